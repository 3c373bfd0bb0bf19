"""The tour: the whole loop on the zoo's target, each step a verb as its reader would type it.

probe → plan → train → decode → measure → report. Promises: nothing is shown that was not run; what was made is left in one
folder, and its page says what was predicted beside what came out. Refuses to know: how any verb works.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from foredraft import records, text
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.records import Plan, ScheduleStep


class Itinerary(NamedTuple):
    """Whom the tour is of, with what, and how far it goes. `target`, `data` (a token folder) and `prompts` lie in the zoo, `observations`
    (what was measured on the target) in the repository.
    """

    target: str
    data: str
    prompts: str
    observations: str
    clients: str  # at once, by which the plan is made and the draft measured
    input_len: int  # tokens of a prompt that the plan is for
    answer_len: int  # tokens of an answer, planned for, measured and shown
    training_hours: float  # of this machine
    opening: str  # what the text shown goes on from
    dtype: str


ITINERARY = Itinerary(
    target="tales-11m", data="own-text", prompts="prompts.jsonl", observations="results/experiment/observations.jsonl.gz", clients="1,8",
    input_len=96, answer_len=96, training_hours=0.02, opening="Once upon a time there was a", dtype="float32",
)  # fmt: skip


class TourStep(NamedTuple):
    """A verb with its words, and what it is for."""

    title: str
    words: tuple[str, ...]


def before_training(zoo: Path, observations: Path, out: Path, route: Itinerary = ITINERARY) -> Iterator[TourStep]:
    """What this machine reaches; and which draft to train for the target here, said from the shipped observations."""
    target, machine = zoo / route.target, out / "machine.json"
    yield TourStep("Measure this machine", ("probe", "--out", f"{machine}", "--repeats", "3"))
    yield TourStep(
        f"Plan a draft for {route.target}, one that trains in a minute",
        ("plan", f"{target}", "--machine", f"{machine}", "--engine", "foredraft", "--dtype", route.dtype, "--observations", f"{observations}",
         "--concurrency", route.clients, "--input-len", f"{route.input_len}", "--output-len", f"{route.answer_len}", "--kinds", "head,lm",
         "--max-gpu-hours", f"{route.training_hours}", "--no-answers", "--served-tokens", "1e12", "--out", f"{out / 'plan'}", "--no-figures"),
    )  # fmt: skip


def after_planning(zoo: Path, out: Path, step: ScheduleStep, route: Itinerary = ITINERARY) -> Iterator[TourStep]:
    """Train the plan's draft as it says, measure it beside prompt lookup, and put it all on a page."""
    target, draft = zoo / route.target, out / "run" / "final"
    yield TourStep(
        "Train it",
        ("train", f"{out / 'plan' / 'Plan.json'}", "--target", f"{target}", "--data", f"{zoo / route.data}", "--out", f"{out / 'run'}"),
    )  # fmt: skip
    yield TourStep(
        "Measure it",
        ("measure", f"{target}", "--draft", f"{draft}@{spec(step)}", "--draft", "ngram@4", "--prompts", f"{zoo / route.prompts}",
         "--batch", route.clients, "--max-tokens", f"{route.answer_len}", "--out", f"{out / 'measured'}"),
    )  # fmt: skip
    yield TourStep("Show it", ("report", f"{out}", "--out", f"{out / 'report.html'}"))


def run(step: TourStep) -> None:
    """The verb in a process of its own, its words shown; raises ValueError where it fails."""
    print(f"\n── {step.title}\n$ foredraft {' '.join(step.words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "foredraft", *step.words], check=False)
    if done.returncode:
        raise ValueError(f"foredraft {step.words[0]} ended with exit code {done.returncode}: its reason is above")


def tour(zoo: Path, observations: Path, out: Path, route: Itinerary = ITINERARY) -> Path:
    """Run every step into `out`; return the page. Raises ValueError without the zoo, or where a verb fails or texts differ."""
    for need in (zoo / route.target / "config.json", zoo / route.data, zoo / route.prompts, observations):
        if not need.exists():
            raise ValueError(
                f"{need} is missing: take the tour in a checkout of the repository, or name --zoo and --observations"
            )
    probe, plan = before_training(zoo, observations, out, route)
    run(probe)
    run(plan)
    if records.read(Plan, out / "plan" / "Plan.json").draft is None:
        run(
            TourStep(
                "No draft pays here. Plan the best there is, to see whether that is right", (*plan.words, "--always")
            )
        )
    planned = chosen(records.read(Plan, out / "plan" / "Plan.json"))
    train, *further = after_planning(zoo, out, planned, route)
    run(train)
    show(zoo / route.target, out / "run" / "final", planned, route)
    for step in further:
        run(step)
    return out / "report.html"


def chosen(plan: Plan) -> ScheduleStep:
    """How the plan drafts at its smallest load that drafts at all."""
    return next(step for step in plan.schedule if step.lookahead)


def spec(step: ScheduleStep) -> str:
    """The step's lookahead or tree in the words of `--draft DIR@…`."""
    return f"{step.lookahead}" if step.topk == 1 else f"{step.lookahead},{step.topk},{step.tree_nodes}"


def show(target: Path, draft: Path, step: ScheduleStep, route: Itinerary = ITINERARY) -> None:
    """One text decoded plainly and with the draft, which must be the same, token by token."""
    words = text.tokenizer_of(target)
    request = Request(prompt=tuple(text.encode(words, route.opening, False)), max_tokens=route.answer_len)
    tree = None if step.topk == 1 else f"{step.topk},{step.tree_nodes}"
    answers = [_answer(text.load_engine(target, who, lookahead=text.budget_of(step.lookahead, tree), max_batch=1, max_context=512), request)
               for who in (None, str(draft))]  # fmt: skip
    if answers[0][0] != answers[1][0]:
        raise ValueError("drafted and plain text differ: please report this")
    print(f"\n── Decode with it, losslessly\n\n{route.opening}{words.decode(answers[0][0])}\n")
    print(
        f"{len(answers[0][0])} tokens, the same with the draft and without; {answers[1][1]:.2f} tokens per step with it"
    )


def _answer(engine: Engine, request: Request) -> tuple[Sequence[int], float]:
    """An answer's tokens, and how many came of a step."""
    (sequence,) = engine.generate([request])
    return sequence.answer, len(sequence.answer) / sequence.steps
