"""The verb `foredraft generate`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foredraft.cli.console import check_models, dtype_of, print_json, prompts_of
from foredraft.cli.options import (
    BATCH,
    CONTEXT,
    JSON,
    LOOKAHEAD,
    SHARE,
    TEMPERATURE,
    Device,
    Dtype,
    Seed,
    one_of,
    real,
    whole,
)


def generate(
    target: Annotated[
        str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file.")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What to continue; left out, --file or stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Prompts, answered together: a line each, or rows of JSON (chats, Spec-Bench) or Parquet.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram, the folder of a smaller model or a draft head, or DIR+ngram, it behind a look-up.",
        ),
    ] = None,
    lookahead: Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.", callback=LOOKAHEAD)] = 4,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A Plan.json, whose schedule sets the lookahead by running requests.")
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            help="TOPK,NODES: a dynamic tree with a head, e.g. 4,16, --lookahead levels deep; or a JSON file of [parent, rank]."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", callback=whole())] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", callback=TEMPERATURE)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of this mass.", callback=SHARE)] = 1.0,
    top_k: Annotated[int, typer.Option(help="The most probable tokens only; 0 for all.", callback=whole(0))] = 0,
    seed: Seed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string or special token that ends the answer; repeat for more.")
    ] = None,
    chat: Annotated[
        str,
        typer.Option(
            help="The model's chat template: auto (where it has one), always or never.",
            callback=one_of("auto", "always", "never"),
        ),
    ] = "auto",
    system: Annotated[str | None, typer.Option(help="What the system says first, in a chat.")] = None,
    batch: Annotated[int, typer.Option(help="Requests decoded together.", callback=BATCH)] = 8,
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens per request; the model's own by default.", callback=CONTEXT),
    ] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="Refuse a KV cache larger than this many GB.", callback=real(above=0, most=1e6))
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the text as it comes (one prompt).")
    ] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Show drafted text in colour, and the counts.")] = False,
    json: JSON = False,
) -> None:
    """Decode losslessly with any drafter: the text is the target's own, only sooner."""
    words = prompts_of(prompt, file)
    from foredraft.data import conversation
    from foredraft.data.rows import words_of_turn
    from foredraft.data.sources import Skips

    questions = conversation.asked(file, Skips("stop")) if file else [conversation.question_of(words)]
    check_models(target, [draft] if draft else [])
    from foredraft import records, text
    from foredraft.decode.sampling import Sampling

    torch_dtype = dtype_of(dtype)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    tokenizer = text.tokenizer_of(target)
    talks = conversation.conversations(questions, tokenizer, chat, system)
    budget = text.schedule_of(records.read(records.Plan, plan)) if plan else text.budget_of(lookahead, tree)
    engine = text.load_engine(
        target, draft, lookahead=budget, dtype=torch_dtype, device=device, max_batch=min(batch, len(questions)),
        max_context=context, cache_bytes=None if cache_gb is None else int(cache_gb * 1e9),
    )  # fmt: skip
    show = streamer(stats) if stream and not json and len(questions) == 1 else None
    steps: list[Any] = []
    answers: list[Any] = []

    def answer(prompts: list[list[int]]) -> list[str]:
        more = text.generate(
            engine, tokenizer, prompts, max_tokens=max_tokens, sampling=sampling, ends=text.stop_ids(target, tokenizer),
            stops=tuple(stop or ()), on_text=show, on_step=steps.append,
        )  # fmt: skip
        if show:
            print()
        answers.extend(more)
        return [completion.text for completion, _ in more]

    order = conversation.answer_turns(questions, talks, answer)
    by_question = sorted(zip(order, answers, strict=True), key=lambda each: each[0])
    if json:
        prompts = [words_of_turn(questions[i].turns[turn]) for (i, turn), _ in by_question]
        print_json([text.report(asked, *each) for asked, (_, each) in zip(prompts, by_question, strict=True)])
        return
    if not show:
        print("\n\n".join(completion.text for _, (completion, _) in by_question))
    if stats:
        print(text.summary(steps), file=sys.stderr)


def streamer(stats: bool) -> Any:
    """Print pieces as they come; on a terminal what would move its cursor is shown, and with --stats what a draft had right is green."""
    from foredraft.records import visible

    terminal = sys.stdout.isatty()
    colour = stats and sys.stdout.isatty()

    def show(_: int, piece: str, drafted: bool) -> None:
        piece = visible(piece) if terminal else piece
        print(f"\033[32m{piece}\033[0m" if colour and drafted else piece, end="", flush=True)

    return show
