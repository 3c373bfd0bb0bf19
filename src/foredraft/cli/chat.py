"""The verb `foredraft chat`."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from foredraft.cli.console import check_models, dtype_of
from foredraft.cli.generate import streamer
from foredraft.cli.options import CONTEXT, LOOKAHEAD, SHARE, TEMPERATURE, Device, Dtype, Seed, whole

ANEW, END = "/new", "/bye"


def chat(
    target: Annotated[
        str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file.")
    ],
    draft: Annotated[
        str | None,
        typer.Option("--draft", "-d", help="ngram, a draft's folder, or DIR+ngram: the same answers, sooner."),
    ] = None,
    lookahead: Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.", callback=LOOKAHEAD)] = 4,
    tree: Annotated[str | None, typer.Option(help="TOPK,NODES or a JSON file, as of generate.")] = None,
    system: Annotated[str | None, typer.Option(help="What the system says first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", callback=whole())] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", callback=TEMPERATURE)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of this mass.", callback=SHARE)] = 1.0,
    top_k: Annotated[int, typer.Option(help="The most probable tokens only; 0 for all.", callback=whole(0))] = 0,
    seed: Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string or special token that ends answers.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Most tokens of the talk; the model's own by default.", callback=CONTEXT)
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    drafted: Annotated[bool, typer.Option("--drafted", help="Show in green what the draft had right.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Count steps and tokens below each answer.")] = False,
) -> None:
    """Talk with TARGET, a line a turn: /new begins anew, /bye ends."""
    check_models(target, [draft] if draft else [])
    from foredraft import text
    from foredraft.data.conversation import conversations, question_of
    from foredraft.decode.sampling import Sampling

    tokenizer = text.tokenizer_of(target)
    opening = [question_of("", "chat")]
    conversations(opening, tokenizer, "always")
    engine = text.load_engine(
        target, draft, lookahead=text.budget_of(lookahead, tree), dtype=dtype_of(dtype), device=device, max_batch=1, max_context=context
    )  # fmt: skip
    settings: dict[str, Any] = {
        "max_tokens": max_tokens, "sampling": Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
        "ends": text.stop_ids(target, tokenizer), "stops": tuple(stop or ()), "on_text": streamer(drafted),
    }  # fmt: skip
    (talk,) = conversations(opening, tokenizer, "always", system)
    for line in _lines():
        if line == ANEW:
            (talk,) = conversations(opening, tokenizer, "always", system)
            continue
        steps: list[Any] = []
        try:
            ids = talk.ask(question_of(line).turns[0])
            ((answer, _),) = text.generate(engine, tokenizer, [ids], on_step=steps.append, **settings)
        except ValueError as error:  # a talk too long, or a template that takes no such turn
            talk.forget()
            print(f"error: {error}; {ANEW} begins anew", file=sys.stderr)
            continue
        print()
        talk.hear(answer.text)
        if stats:
            print(text.summary(steps), file=sys.stderr)


def _lines() -> Iterator[str]:
    """What the user says, until there is no more or it is /bye."""
    while True:
        if sys.stdin.isatty():
            print("› ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == END:
            return
        if line.strip():
            yield line.strip()
