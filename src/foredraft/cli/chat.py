"""The verb `foredraft chat`."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from foredraft.cli import answer_options as of_answers
from foredraft.cli.console import check_models
from foredraft.cli.generate import streamer
from foredraft.cli.options import Device, Dtype, Seed

ANEW, END = "/new", "/bye"


def chat(
    target: of_answers.Target,
    draft: of_answers.Draft = None,
    lookahead: of_answers.Lookahead = 4,
    tree: of_answers.Tree = None,
    system: of_answers.System = None,
    max_tokens: of_answers.MaxTokens = 512,
    temperature: of_answers.Temperature = 0.0,
    top_p: of_answers.TopP = 1.0,
    top_k: of_answers.TopK = 0,
    seed: Seed = 0,
    stop: of_answers.Stop = None,
    context: of_answers.Context = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    drafted: Annotated[bool, typer.Option("--drafted", help="Show in green what the draft had right.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Count steps and tokens below each answer.")] = False,
) -> None:
    """Talk with TARGET, a line a turn: /new begins anew, /bye ends."""
    check_models(target, [draft] if draft else [])
    from foredraft import text
    from foredraft.data.conversation import conversations, question_of

    options = of_answers.AnswerOptions(
        target=target, draft=draft, lookahead=lookahead, tree=tree, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        seed=seed, stop=tuple(stop or ()), context=context, dtype=dtype, device=device,
    )  # fmt: skip
    tokenizer = text.tokenizer_of(target)
    opening = [question_of("", "chat")]
    conversations(opening, tokenizer, "always")
    engine = options.engine(1)
    settings = options.answers(tokenizer) | {"on_text": streamer(drafted)}
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
