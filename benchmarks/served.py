"""Drafts on vLLM's own server: acceptance there and here, tokens/s under load, and what was predicted of both.

    python benchmarks/served.py OUT.json [--target DIR] [--draft NAME=DIR …] [--planned NAME] [--published NAME] [--prompts FILE] [--num N]
        [--quick] [--only PATTERN] [--loads 1,8,32] [--rounds N] [--dtype D] [--threads N] [--eager] [--python PATH]

Three questions. Acceptance: each draft's chain by vLLM (float32), by our engine, and our tree, on the same prompts. Throughput: no
speculation, the published and the planned draft at fixed lookaheads, and the planned one with the planner's schedule, each under every
concurrency. Prediction: the cost law, calibrated on no speculation and one lookahead, against the other cells; the schedule against each
fixed lookahead. By default the zoo's drafts, Scylla planned beside EAGLE-2.

A setting is a server, in turn with one of the bare target, whose tokens/s are thus known over the whole run: they swing most. What a setting
gave lies in the folder OUT/ and is not measured again (delete its file to repeat it). PATTERN is a regular expression on settings, such as
scylla-L2@ or accept. The planner sees what its user would: one lookahead, no speculation beside it, and our own engine's acceptance. Times mean
something on a quiet machine only; on two cores, --threads 1 leaves one to the client. vLLM comes from `make peers` or `make test-engine`.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import served_figures
import vllm_server
import zoo_drafts
from zoo_drafts import Draft

from foredraft import records, shapes
from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.deploy.export import ExportSettings, export
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.records import Machine, Observation, Plan, Workload
from foredraft.serving.endpoint import LoadSettings, OfferedLoad, one_round, started
from foredraft.serving.endpoint_http import address_of
from foredraft.serving.endpoint_rows import base_of, rows_of

ROOT = zoo_drafts.ROOT
PYTHON = ROOT / ".venv-peers" / "vllm" / "bin" / "python"

PUBLISHED = 5  # draft passes of EAGLE-2 as its authors' code sets them (depth=5), and SGLang for Llama; their tree is a chain in vLLM
CHAIN = 5  # lookahead at which acceptance is compared
LONGEST = 8  # of our own chains, or a block's length
COUNTED_AT = 8  # sequences that our engine decodes at once, since nothing is timed
TREES = ("5,4,16", "5,10,60")  # ours: as wide as pays here, and as EAGLE-2 is published
LOOKAHEADS = (1, 2, 3, PUBLISHED)
PLANNED = "planned"
NONE = "none"
LOADS, QUICK_LOADS = (1, 2, 4, 8, 16, 32), (1, 4)
NEW, QUICK_NEW = 64, 24
CONTEXT = 1024
COMMAND = "python benchmarks/served.py"


class Setting(NamedTuple):
    """A server: its draft, None for plain decoding; its lookahead, None as planned; whether it is there for acceptance alone."""

    name: str
    draft: str | None = None
    lookahead: int | None = None
    accept: bool = False


class Bench(NamedTuple):
    """What is measured, and how. `planned`, `published`: names of `drafts`; `prompts`: a file of `num` of each category."""

    folder: Path
    target: Path
    drafts: dict[str, Draft]
    planned: str
    published: str
    prompts: Path
    python: Path
    dtype: str
    threads: int
    eager: bool
    rounds: int
    loads: tuple[int, ...]
    new: int

    def of(self, setting: str) -> Path:
        return self.folder / f"{setting}.jsonl"

    @property
    def known(self) -> str:
        """The setting that is calibrated on beside none, so that the others lie between what was seen."""
        return f"{self.planned}@{max(LOOKAHEADS)}"

    @property
    def rival(self) -> str:
        """The published draft as published."""
        return f"{self.published}@{PUBLISHED}"

    def settings(self, quick: bool) -> list[Setting]:
        """Every server in turn; the known one before the schedule that is planned from it."""
        accept = [Setting(f"accept-{draft}", draft, CHAIN, True) for draft in self.drafts]
        fixed = [
            Setting(f"{draft}@{k}", draft, k)
            for draft in dict.fromkeys((self.planned, self.published))
            for k in LOOKAHEADS
        ]
        every = [
            *accept,
            *sorted(fixed, key=lambda setting: setting.name != self.known),
            Setting(PLANNED, self.planned),
        ]
        names = (f"accept-{self.planned}", self.known, f"{self.planned}@2", self.rival, PLANNED)
        return [setting for setting in every if not quick or setting.name in names]


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server under way is ended too
    out = Path(arguments.out)
    bench = bench_of(arguments, out, tuple(map(int, arguments.loads.split(","))), QUICK_LOADS)
    machine = machine_here(bench)
    refused = _refused(bench)
    settings = [setting for setting in bench.settings(arguments.quick) if setting.draft not in refused]
    ours = [draft for draft in bench.drafts if not arguments.quick or draft == bench.planned]
    for draft in ours:
        _measure_ours(bench, draft)
    for setting in settings:
        if re.search(arguments.only, setting.name) and not bench.of(setting.name).is_file():
            records.write_lines(bench.of(setting.name), _measured(bench, setting, machine))
            say(f"wrote {bench.of(setting.name)}")
    rows = {setting.name: _rows(bench.of(setting.name)) for setting in settings if bench.of(setting.name).is_file()}
    our_rows = {draft: _rows(bench.of(f"own-{draft}")) for draft in ours}
    _write(out, bench, machine, rows, our_rows, refused)


def bench_of(arguments: argparse.Namespace, out: Path, loads: tuple[int, ...], quick_loads: tuple[int, ...]) -> Bench:
    """As the command line says. Raises SystemExit where something is not there."""
    zoo_drafts.at_hand(arguments.target, arguments.prompts)
    drafts = zoo_drafts.drafts_of(arguments.draft)
    for name in (arguments.planned, arguments.published):
        if name not in drafts:
            raise SystemExit(
                f"no draft named {name}, of {', '.join(drafts)}; hint: --planned and --published name two of them"
            )
    if not arguments.python.is_file():
        raise SystemExit(f"no {arguments.python}; hint: make peers, or --python PATH")
    folder, quick = out.with_suffix(""), arguments.quick
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(
        folder, arguments.target, drafts, arguments.planned, arguments.published, zoo_drafts.first_of_each(arguments.prompts, arguments.num, folder),
        arguments.python, arguments.dtype, arguments.threads, arguments.eager or quick, 1 if quick else arguments.rounds,
        quick_loads if quick else loads, QUICK_NEW if quick else NEW,
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of a server asks."""
    zoo_drafts.add_options(parser)
    parser.add_argument("--planned", default="scylla-L2", help="the draft that is planned for")
    parser.add_argument("--published", default="eagle2", help="the draft that it is held against")
    parser.add_argument("--num", type=int, default=2, help="prompts of each category")
    parser.add_argument("--quick", action="store_true", help="few settings, loads and tokens, to try it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", help="of throughput; acceptance is in float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--eager", action="store_true", help="vLLM without its compiler")
    parser.add_argument("--python", type=Path, default=PYTHON, help="vLLM's interpreter")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--only", default="", help="settings to measure")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)), help="clients")
    add_options(parser)
    return parser.parse_args()


def _refused(bench: Bench) -> dict[str, str]:
    """Drafts that vLLM's format cannot hold, and why; said once."""
    refused = {}
    for draft in bench.drafts.values():
        with tempfile.TemporaryDirectory() as folder:
            try:
                export(draft.folder, bench.target, Path(folder, "draft"), ExportSettings())
            except ValueError as error:
                refused[draft.name] = str(error)
                say(f"not served: {draft.name}: {error}")
    return refused


def _write(
    out: Path,
    bench: Bench,
    machine: Machine,
    rows: dict[str, list[Observation]],
    our_rows: dict[str, list[Observation]],
    refused: dict[str, str],
) -> None:
    """All that was measured as observations, and the figures."""
    records.write_lines(
        bench.folder / "observations.jsonl.gz", [row for of in (*our_rows.values(), *rows.values()) for row in of]
    )
    target = shapes.from_config(bench.target)
    figures: dict[str, Any] = {
        "conditions": conditions(bench, rows) | {"refused": refused},
        "acceptance": served_figures.acceptance(our_rows, rows),
    }
    speeds = _by_setting({name: of for name, of in rows.items() if not name.startswith("accept-")})
    figures["throughput"] = served_figures.throughput(speeds, bench.rival, PLANNED)
    if bench.known in speeds:
        fixed = {name: of for name, of in speeds.items() if name == NONE or name.startswith(f"{bench.planned}@")}
        figures["prediction"] = served_figures.prediction(
            target, machine, bench.dtype, fixed, (NONE, bench.known), our_rows[bench.planned]
        )
    if PLANNED in speeds:
        schedule_plan = records.read(Plan, bench.folder / "Plan.json")
        figures["schedule"] = served_figures.schedule(schedule_plan, speeds, PLANNED, f"{bench.planned}@")
    records.write(out, msgspec.to_builtins(figures, str_keys=True))
    say(f"wrote {out}, {bench.folder / 'observations.jsonl.gz'}")


def _by_setting(rows: dict[str, list[Observation]]) -> dict[str, list[Observation]]:
    """No speculation apart, as it was measured beside every setting."""
    drafted = {name: [row for row in of if row.method != "none"] for name, of in rows.items()}
    return {NONE: [row for of in rows.values() for row in of if row.method == "none"]} | drafted


def conditions(bench: Bench, rows: dict[str, list[Observation]]) -> dict[str, Any]:
    versions = next((row.provenance.versions for of in rows.values() for row in of), {})
    return {
        "target": bench.target.name, "planned": bench.planned, "published": bench.published, "prompts": bench.prompts.name,
        "new_tokens": bench.new, "rounds": bench.rounds, "dtype": bench.dtype,
        "threads": bench.threads, "eager": bench.eager, "loads": bench.loads, "versions": versions,
        "preloaded": [Path(path).name for path in preload(bench.python).values()],
        "prefix_cache": False, "requests": {str(load): _num_requests(load) for load in bench.loads},
    }  # fmt: skip


# Ours.


def machine_here(bench: Bench) -> Machine:
    """This machine as `foredraft probe` sees it, once."""
    file = bench.folder / "machine.json"
    if not file.is_file():
        foredraft("probe", "--out", file, "--threads", bench.threads)
    return records.read(Machine, file)


def _measure_ours(bench: Bench, draft: str) -> None:
    """Our engine's chain, at the longest lookahead too, and its trees."""
    if bench.of(f"own-{draft}").is_file():
        return
    head = bench.drafts[draft].shape.head
    longest = min(head.block or LONGEST, LONGEST) if head else LONGEST
    specs = [f"{CHAIN}", f"{longest}", *(TREES if head else TREES[:1])]
    with tempfile.TemporaryDirectory() as folder:
        foredraft(
            "measure", bench.target, "--prompts", bench.prompts, "--out", folder, "--way", "live", "--batch", COUNTED_AT, "--max-tokens", bench.new,
            "--no-stop", "--threads", bench.threads, *(word for spec in specs for word in ("--draft", f"{bench.drafts[draft].folder}@{spec}")),
        )  # fmt: skip
        rows = _rows(Path(folder) / "observations.jsonl")
    records.write_lines(bench.of(f"own-{draft}"), [_by_us(row) for row in rows if row.method != "none"])


def _by_us(row: Observation) -> Observation:
    """With this script as its command, in place of one with passing folders."""
    return msgspec.structs.replace(row, provenance=msgspec.structs.replace(row.provenance, command=COMMAND))


def foredraft(*words: object) -> None:
    say("foredraft " + " ".join(map(str, words[:2])))
    subprocess.run([sys.executable, "-m", "foredraft", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _plan(bench: Bench, machine: Machine) -> Plan:
    """The planned draft's schedule, from the known setting, no speculation beside it and our own engine's acceptance."""
    if not bench.of(bench.known).is_file():
        raise SystemExit(f"{PLANNED} needs {bench.known}: leave out --only, or measure it first")
    known_rows = _rows(bench.of(bench.known))
    chains = [row for row in _rows(bench.of(f"own-{bench.planned}")) if (row.topk or 1) == 1]
    workload = Workload(
        input_len=_mean(row.input_len for row in known_rows), output_len=_mean(row.output_len for row in known_rows), concurrency=bench.loads
    )  # fmt: skip
    settings = PlanSettings(engine="vllm", dtype=bench.dtype)
    target, draft = shapes.from_config(bench.target), bench.drafts[bench.planned].served_shape
    schedule_plan = plan(target, machine, workload, settings, [*known_rows, *chains], draft)
    records.write(bench.folder / "Plan.json", schedule_plan)
    return schedule_plan


def _mean(values: Iterable[float | None]) -> float:
    known_values = [value for value in values if value is not None]
    return sum(known_values) / len(known_values)


# vLLM's.


def _measured(bench: Bench, setting: Setting, machine: Machine) -> list[Observation]:
    """A row for each round and load of a setting, and of the bare target in turn."""
    environment = vllm_server.environment(bench.python, bench.threads) | preload(bench.python)
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        settings = [setting] if setting.accept else [Setting(NONE), setting]
        urls = []
        for load_setting in settings:
            say(f"starting vLLM: {load_setting.name}")
            command = _command(bench, load_setting, machine, folder)
            urls.append(
                running.enter_context(vllm_server.serving(command, environment, folder / f"{load_setting.name}.log"))
            )
        return asyncio.run(_loads(bench, list(zip(settings, urls, strict=True)), machine))


def preload(python: Path) -> dict[str, str]:
    """Intel's OpenMP, without which vLLM warns of slow speculation, where its environment has it."""
    library = python.parents[1] / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library)} if library.is_file() else {}


def _command(bench: Bench, setting: Setting, machine: Machine, folder: Path) -> list[str | Path]:
    """The draft's own serve.sh, or the bare server."""
    dtype = "float32" if setting.accept else bench.dtype
    more: list[str | Path] = [
        "--dtype", dtype, "--max-model-len", str(CONTEXT), "--no-enable-prefix-caching", "--max-num-seqs", str(max(LOADS)),
        "--uvicorn-log-level", "warning", *(["--enforce-eager"] if bench.eager or setting.accept else []),
    ]  # fmt: skip
    if setting.draft is None:
        return [bench.python, "-m", "vllm.entrypoints.openai.api_server", "--model", bench.target, *more]
    schedule_plan = _plan(bench, machine) if setting.lookahead is None else None
    if schedule_plan is not None and "vllm" not in schedule_plan.settings:
        raise SystemExit("the plan speculates at no load: there is no schedule to serve")
    export(
        bench.drafts[setting.draft].folder,
        bench.target,
        folder / "draft",
        ExportSettings(lookahead=setting.lookahead or 1),
        plan=schedule_plan,
    )
    if setting.accept:
        more += ["--per-request-spec-decode-metrics", "summary"]
    return ["sh", folder / "draft" / "serve.sh", *more]


def _num_requests(load: int) -> int:
    """So many that the load's beginning and end weigh little."""
    return max(8, 2 * load)


async def _loads(bench: Bench, servers: list[tuple[Setting, str]], machine: Machine) -> list[Observation]:
    """Of one server its acceptance; of two every load, on each in turn, and the gain of the second over the first."""
    questions = read_questions(bench.prompts, Skips("stop"))
    for setting, url in servers:
        await measured_load(
            bench, setting, machine, url, questions, 1 if setting.accept else max(bench.loads), 8
        )  # warms up
    if len(servers) == 1:
        ((setting, url),) = servers
        return [await measured_load(bench, setting, machine, url, questions, 1, bench.new)]
    rows = []
    for number in range(bench.rounds):
        for load in bench.loads:
            pair = {}
            for setting, url in servers[:: 1 if number % 2 else -1]:
                pair[setting.name] = await measured_load(bench, setting, machine, url, questions, load, bench.new)
            bare, drafted = (pair[setting.name] for setting, _ in servers)
            if drafted.output_tok_s and bare.output_tok_s:
                drafted = msgspec.structs.replace(drafted, speedup=drafted.output_tok_s / bare.output_tok_s)
                say(
                    f"{servers[1][0].name}, concurrency {load}: {drafted.output_tok_s:.0f} tokens/s, × {drafted.speedup:.2f}"
                )
            rows += [bare, drafted]
    return rows


async def measured_load(
    bench: Bench, setting: Setting, machine: Machine, url: str, questions: list[Question], load: int, new: int
) -> Observation:
    """One load's row, with what the server cannot tell."""
    num = len(questions) if setting.accept else _num_requests(load)
    requested = [questions[i % len(questions)] for i in range(num)]
    settings = LoadSettings(concurrency=(load,), max_tokens=new, stop=False)
    async with started(address_of(url), requested, settings) as running:
        round = await one_round(running, settings, OfferedLoad(0.0, concurrency=load))
    fields = {"machine": machine.name, "dataset": bench.prompts.stem, "command": COMMAND}
    if setting.draft:
        fields |= {
            "draft": setting.draft,
            "method": bench.drafts[setting.draft].method,
            "draft_layers": bench.drafts[setting.draft].layers,
        }
    load_rows = rows_of(round, base_of(running.server, round, fields), 0.1)
    if round.failures:
        raise SystemExit(f"{setting.name}: {load_rows.warnings}")
    for warning in load_rows.warnings:
        say(f"warning: {setting.name}: {warning}")
    return msgspec.structs.replace(load_rows.rows[0].observation, dtype="float32" if setting.accept else bench.dtype)


def _rows(file: Path) -> list[Observation]:
    return records.read_lines(Observation, file)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
