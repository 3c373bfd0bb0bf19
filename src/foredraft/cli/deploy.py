"""The verb `foredraft deploy`: a draft as the folder that an engine loads; `deploy check`, which judges such a folder; and `deploy
simulate`, which serves a plan before its draft is trained.

Refuses to know: how anything is written or judged; it imports its room when it runs.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from foredraft.cli.console import check_models, print_json, rows_by_file
from foredraft.cli.options import BATCH, SEED


class ExportByDefault(TyperGroup):
    """A group whose first word may be a draft's folder: `deploy DRAFT …` is `deploy export DRAFT …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["export", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ExportByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Hand a draft to vLLM or SGLang: deploy DRAFT --target DIR --out DIR writes a folder to serve; check judges one; simulate tries a plan's.",
)
JSON = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of lines.")]


@app.command()
def export(
    draft: Annotated[Path, typer.Argument(help="Folder of a trained draft: a model, or a head of any depth.")],
    target: Annotated[Path, typer.Option("--target", "-t", help="Folder of the target's Hugging Face checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="vllm, sglang, speculators (vLLM) or hf (other runtimes).")
    ] = "vllm",
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A Plan.json, whose schedule sets the lookahead by running requests.")
    ] = None,
    lookahead: Annotated[
        int | None,
        typer.Option(
            "--lookahead",
            "-k",
            help="Draft tokens per step, without a plan; 4, or all of a block, when left out.",
            callback=BATCH,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as the draft is stored when left out.")
    ] = None,
    observations: Annotated[
        list[Path] | None,
        typer.Option("--observations", help="observations.jsonl whose rows of this draft go into its card; repeat."),
    ] = None,
    card_note: Annotated[
        str | None, typer.Option("--card-note", help="Data and licences for the card: words, or a file of them.")
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="The target's name on the Hub for a speculators config; its folder by default.")
    ] = None,
    json: JSON = False,
) -> None:
    """Write DRAFT as a folder that an engine loads, with launch settings, serve.sh and a model card; checked before it appears."""
    check_models(target, [str(draft)], tokenizer=False, gguf=False, weights=False)
    from foredraft import records
    from foredraft.deploy.export import ExportSettings
    from foredraft.deploy.export import export as run

    settings = ExportSettings(
        format=format, dtype=dtype, lookahead=lookahead, verifier=verifier, note=_words(card_note)
    )
    schedule = records.read(records.Plan, plan) if plan else None
    rows = [row for part in rows_by_file(observations or ()).values() for row in part]
    exported = run(draft, target, out, settings, plan=schedule, observations=rows)
    for line in (*exported.notes, *map(str, exported.warnings)):
        print(line, file=sys.stderr)
    print(f"wrote {out}: {', '.join(exported.files)}", file=sys.stderr)
    if json:
        print_json(
            {
                "deployed": exported.record,
                "files": exported.files,
                "warnings": exported.warnings,
                "notes": exported.notes,
            }
        )
        return
    print(f"sh {out / 'serve.sh'}" if "serve.sh" in exported.files else str(out))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of a draft, whoever made it.")],
    target: Annotated[
        Path | None, typer.Option("--target", "-t", help="Folder of its target; ids and sizes are compared with it.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", "-e", help="vllm or sglang; those it was made for when left out.")
    ] = None,
    json: JSON = False,
) -> None:
    """Re-read DIR with each loader's rules and tell what would be skipped, missing or misread. Exit code 1 on an error."""
    next(folder.iterdir(), None)  # OSError where there is no such folder
    if target and target.suffix == ".gguf":
        check_models(target, tokenizer=False, gguf=False)
    from foredraft.deploy.check import check as run
    from foredraft.deploy.findings import errors

    findings = run(folder, target, engine)
    if json:
        print_json(findings)
    else:
        for finding in findings:
            print(
                f"{finding.level} {finding.code} [{finding.engine}] {finding.where}: {finding.effect}\n  remedy: {finding.remedy}"
            )
        num_errors, num_warnings = (
            sum(finding.level == level for finding in findings) for level in ("error", "warning")
        )
        print(f"{folder}: {num_errors} errors, {num_warnings} warnings", file=sys.stderr)
    if errors(findings):
        raise typer.Exit(1)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    source: Annotated[
        Path | None, typer.Argument(help="A plan (Plan.json or its folder), or the folder of a draft of that shape.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", "-e", help="vllm, sglang or tensorrt-llm.")] = "vllm",
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="What is served: a folder, or a public name; the plan's when left out."),
    ] = None,
    accept: Annotated[
        str | None,
        typer.Option(
            help="In place of the plan's acceptance: 2.6@3 (tokens per step at a lookahead) or 0.8,0.6,0.4 (by position)."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The kind of a head, where neither a plan nor a draft is given.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="vLLM on a CPU: drafts replayed out of known answers.")] = False,
    answers: Annotated[
        Path | None,
        typer.Option(help="With --cpu: the target's own answers, as foredraft data regenerate writes them."),
    ] = None,
    draft_cost: Annotated[
        str | None, typer.Option(help="With --cpu: seconds of a draft's pass, or by requests: 1:0.002,8:0.003.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --cpu: of what is accepted.", callback=SEED)] = 0,
    json: JSON = False,
) -> None:
    """Try a plan before its draft is trained: write a folder that serves the target with drafts accepted as predicted."""
    from foredraft.deploy.simulate import SimulateSettings, next_commands
    from foredraft.deploy.simulate import simulate as run

    kind: dict[str, Any] = {"method": method} if method else {}
    settings = SimulateSettings(engine=engine, accept=accept, cpu=cpu, draft_cost=draft_cost, seed=seed, **kind)
    simulated = run(source, out, settings, target=target, answers=answers)
    for note in simulated.notes:
        print(note, file=sys.stderr)
    print(f"wrote {out}: {', '.join(sorted(file.name for file in out.iterdir()))}", file=sys.stderr)
    if json:
        print_json(simulated)
        return
    for step in simulated.predicted:
        speed = step.output_tok_s
        print(
            f"{step.concurrency} clients, lookahead {step.lookahead}: {step.tokens_per_step.value:.2f} tokens per step, "
            f"{speed.value:,.0f} tokens/s predicted ({speed.low:,.0f} to {speed.high:,.0f})"
        )
    print("\n".join(next_commands(simulated, out)))


def _words(note: str | None) -> str | None:
    """Words as they are, or those in the file that they name."""
    if note is None:
        return None
    from foredraft.records import read_text

    try:
        file = Path(note)
        return read_text(file) if file.exists() and not file.is_dir() else note
    except OSError:  # too long for a file's name
        return note
