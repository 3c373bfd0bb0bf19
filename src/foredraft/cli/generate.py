"""The verbs `foredraft generate` and `foredraft bench`. Refuses to know: how anything is decoded or timed; each imports its room
when it runs.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.console import (
    JSON,
    Device,
    Dtype,
    Threads,
    dtype_of,
    print_blocks,
    print_json,
    progress_bar,
    set_threads,
)

if TYPE_CHECKING:
    from foredraft.decode.batch import Request


def generate(
    target: Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer.")],
    prompt: Annotated[str | None, typer.Argument(help="What to continue; left out, --file or stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A prompt per line, answered together.")] = None,
    draft: Annotated[
        str | None, typer.Option("--draft", "-d", help="ngram, or the folder of a smaller model or a draft head.")
    ] = None,
    lookahead: Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.")] = 4,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A Plan.json, whose schedule sets the lookahead by running requests.")
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            help="TOPK,NODES: EAGLE-2's dynamic tree with a head, e.g. 4,16, --lookahead levels deep; or a JSON file of [parent, rank]."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Likeliest tokens only; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer; repeat for more.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    batch: Annotated[int, typer.Option(help="Requests decoded together.")] = 8,
    context: Annotated[int | None, typer.Option(help="Most tokens per request; the model's own by default.")] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Refuse a KV cache larger than this many GB.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the text as it comes (one prompt).")
    ] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Show drafted text in colour, and the counts.")] = False,
    json: JSON = False,
) -> None:
    """Decode losslessly with any drafter: the text is the target's own, only sooner."""
    from foredraft import records, text
    from foredraft.decode.sampling import Sampling

    kind = dtype_of(dtype)
    prompts = _prompts(prompt, file)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    tokenizer = text.tokenizer_of(target)
    budget = text.schedule_of(records.read(records.Plan, plan)) if plan else text.budget_of(lookahead, tree)
    engine = text.load_engine(
        target, draft, lookahead=budget, dtype=kind, device=device, max_batch=min(batch, len(prompts)),
        max_context=context, cache_bytes=None if cache_gb is None else int(cache_gb * 1e9),
    )  # fmt: skip
    show = _streamer(stats) if stream and not json and len(prompts) == 1 else None
    steps: list[Any] = []
    made = text.generate(
        engine, tokenizer, prompts, max_tokens=max_tokens, sampling=sampling, ends=text.stop_ids(target, tokenizer),
        stops=tuple(stop or ()), chat=chat, on_text=show, on_step=steps.append,
    )  # fmt: skip
    if json:
        print_json(
            [text.report(prompt, answer, sequence) for prompt, (answer, sequence) in zip(prompts, made, strict=True)]
        )
        return
    if show:
        print()
    else:
        print("\n\n".join(answer.text for answer, _ in made))
    if stats:
        print(text.summary(steps), file=sys.stderr)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if prompt is not None and file is not None:
        raise ValueError("prompt and --file: give one of them")
    if file is not None:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{file}: no prompts in the file")
        return lines
    given = prompt if prompt is not None else "" if sys.stdin.isatty() else sys.stdin.read()
    if not given.strip():
        raise ValueError("prompt: give one as an argument, with --file or on stdin")
    return [given]


def _streamer(stats: bool) -> Any:
    """Prints pieces as they come; with --stats on a terminal, what a draft had right in green."""
    colour = stats and sys.stdout.isatty()

    def show(_: int, piece: str, drafted: bool) -> None:
        print(f"\033[32m{piece}\033[0m" if colour and drafted else piece, end="", flush=True)

    return show


def bench(
    target: Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer.")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram or a folder, with @k for its lookahead (dir@5) or a head's tree (dir@5,4,16); repeat for more arms.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Prompts: a line each, or Spec-Bench JSONL.")
    ] = None,
    num: Annotated[int, typer.Option(help="Prompts to take.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Requests decoded together.")] = 1,
    rounds: Annotated[int, typer.Option(help="Counted rounds; one more warms up.")] = 3,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write bench.json there.")] = None,
    json: JSON = False,
) -> None:
    """Time plain decoding and every draft on the same prompts, in turn, in one run."""
    from foredraft import records, text
    from foredraft.measure.arms import spec_of
    from foredraft.measure.bench import bench as run
    from foredraft.measure.bench import conditions

    set_threads(threads)
    kind = dtype_of(dtype)
    requests = _requests(target, file, num, max_tokens, temperature)
    context = max(len(request.prompt) for request in requests) + max_tokens

    def arm(given: str | None) -> Any:
        spec = spec_of(given)
        return lambda: text.load_engine(
            target, spec.draft, lookahead=spec.budget, dtype=kind, device=device, max_batch=batch, max_context=context
        )

    arms = {"plain": arm(None)} | {spec: arm(spec) for spec in draft or ["ngram"]}
    groups = -(-len(requests) // batch)
    with progress_bar() as bar:
        task = bar.add_task("decoding", total=(rounds + 1) * groups * len(arms))
        found = run(arms, requests, rounds=rounds, progress=lambda: bar.advance(task))
    under = conditions(target, len(requests), max_tokens, batch, rounds, dtype, device)
    report = {"conditions": under, "arms": found}
    if out:
        records.write(out / "bench.json", report)
    if json:
        print_json(report)
        return
    from foredraft.report.terminal import bench_tables

    print_blocks(bench_tables(found, under))


def _requests(target: str, file: Path | None, num: int, max_tokens: int, temperature: float) -> "list[Request]":
    """The first `num` prompts of the file or of stdin, each with a seed of its own."""
    from foredraft import text
    from foredraft.decode.batch import Request
    from foredraft.decode.sampling import Sampling
    from foredraft.measure.bench import spec_bench_prompts

    prompts = spec_bench_prompts(file) if file and file.suffix == ".jsonl" else _prompts(None, file)
    tokenizer = text.tokenizer_of(target)
    return [
        Request(
            prompt=tuple(text.encode(tokenizer, prompt, False)),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=temperature, seed=i),
        )
        for i, prompt in enumerate(prompts[:num])
    ]
