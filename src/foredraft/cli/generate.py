"""The verb `foredraft generate`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli import answer_options as of_answers
from foredraft.cli.console import check_models, print_json, prompts_of
from foredraft.cli.options import JSON, Device, Dtype, Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foredraft.data.conversation import ChatQuestion


def generate(
    target: of_answers.Target,
    prompt: of_answers.Prompt = None,
    file: of_answers.PromptFile = None,
    draft: of_answers.Draft = None,
    lookahead: of_answers.Lookahead = 4,
    plan: of_answers.PlanFile = None,
    tree: of_answers.Tree = None,
    max_tokens: of_answers.MaxTokens = 256,
    temperature: of_answers.Temperature = 0.0,
    top_p: of_answers.TopP = 1.0,
    top_k: of_answers.TopK = 0,
    seed: Seed = 0,
    stop: of_answers.Stop = None,
    chat: of_answers.Chat = "auto",
    system: of_answers.System = None,
    batch: of_answers.Batch = 8,
    context: of_answers.Context = None,
    cache_gb: of_answers.CacheGb = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    stream: of_answers.Stream = True,
    stats: Annotated[bool, typer.Option("--stats", help="Show drafted text in colour, and the counts.")] = False,
    json: JSON = False,
) -> None:
    """Decode losslessly with any drafter: the text is the target's own, only sooner."""
    words = prompts_of(prompt, file)
    from foredraft.data import conversation
    from foredraft.data.sources import Skips

    questions = conversation.asked(file, Skips("stop")) if file else [conversation.question_of(words)]
    check_models(target, [draft] if draft else [])
    options = of_answers.AnswerOptions(
        target=target, draft=draft, lookahead=lookahead, plan=plan, tree=tree, max_tokens=max_tokens, temperature=temperature, top_p=top_p,
        top_k=top_k, seed=seed, stop=tuple(stop or ()), context=context, cache_gb=cache_gb, dtype=dtype, device=device,
    )  # fmt: skip
    show = streamer(stats) if stream and not json and len(questions) == 1 else None
    turns, steps = _answered(options, questions, (chat, system), batch, show)
    from foredraft import text

    if json:
        print_json([text.report(*turn) for turn in turns])
        return
    if not show:
        print("\n\n".join(answer.text for _, answer, _ in turns))
    if stats:
        print(text.summary(steps), file=sys.stderr)


def _answered(
    options: of_answers.AnswerOptions, questions: "Sequence[ChatQuestion]", form: tuple[str, str | None], batch: int,
    show: "Callable[..., None] | None",
) -> tuple[list[tuple[str, Any, Any]], list[Any]]:  # fmt: skip
    """Every turn of every question in order, as what it asked, its answer and its sequence; and the engine's steps. `form`: --chat, --system."""
    from foredraft import text
    from foredraft.data import conversation
    from foredraft.data.rows import words_of_turn

    tokenizer = text.tokenizer_of(options.target)
    talks = conversation.conversations(questions, tokenizer, *form)
    engine = options.engine(min(batch, len(questions)))
    settings, steps, answers = options.answers(tokenizer), [], []

    def answer(prompts: list[list[int]]) -> list[str]:
        more = text.generate(engine, tokenizer, prompts, on_text=show, on_step=steps.append, **settings)
        if show:
            print()
        answers.extend(more)
        return [completion.text for completion, _ in more]

    order = conversation.answer_turns(questions, talks, answer)
    turns = sorted(zip(order, answers, strict=True), key=lambda turn: turn[0])
    return [(words_of_turn(questions[i].turns[number]), *each) for (i, number), each in turns], steps


def streamer(stats: bool) -> Any:
    """Print pieces as they come; on a terminal what would move its cursor is shown, and with --stats what a draft had right is green."""
    from foredraft.records import visible

    terminal = sys.stdout.isatty()
    colour = stats and sys.stdout.isatty()

    def show(_: int, piece: str, drafted: bool) -> None:
        piece = visible(piece) if terminal else piece
        print(f"\033[32m{piece}\033[0m" if colour and drafted else piece, end="", flush=True)

    return show
