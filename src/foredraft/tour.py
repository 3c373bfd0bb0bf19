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

TARGET, DATA, PROMPTS = "tales-11m", "own-text", "prompts.jsonl"  # in the zoo
OBSERVATIONS = "experiment/observations.jsonl"  # in the results
CLIENTS, INPUT_LEN, ANSWER = "1,8", 96, 96
TRAINING_HOURS = 0.02  # of this machine: about a minute
OPENING = "Once upon a time there was a"


class TourStep(NamedTuple):
    """A verb with its words, and what it is for."""

    title: str
    words: tuple[str, ...]


def before_training(zoo: Path, observations: Path, out: Path) -> Iterator[TourStep]:
    """What this machine reaches; and which draft to train for the target here, said from the shipped observations."""
    target, machine = zoo / TARGET, out / "machine.json"
    yield TourStep("Measure this machine", ("probe", "--out", f"{machine}", "--repeats", "3"))
    yield TourStep(
        f"Plan a draft for {TARGET}, one that trains in a minute",
        ("plan", f"{target}", "--machine", f"{machine}", "--engine", "foredraft", "--dtype", "float32", "--observations", f"{observations}",
         "--concurrency", CLIENTS, "--input-len", f"{INPUT_LEN}", "--output-len", f"{ANSWER}", "--kinds", "head,lm",
         "--max-gpu-hours", f"{TRAINING_HOURS}", "--no-answers", "--served-tokens", "1e12", "--out", f"{out / 'plan'}", "--no-figures"),
    )  # fmt: skip


def after_planning(zoo: Path, out: Path, step: ScheduleStep) -> Iterator[TourStep]:
    """Train the plan's draft as it says, measure it beside prompt lookup, and put it all on a page."""
    target, draft = zoo / TARGET, out / "run" / "final"
    yield TourStep(
        "Train it",
        ("train", f"{out / 'plan' / 'Plan.json'}", "--target", f"{target}", "--data", f"{zoo / DATA}", "--out", f"{out / 'run'}"),
    )  # fmt: skip
    yield TourStep(
        "Measure it",
        ("measure", f"{target}", "--draft", f"{draft}@{spec(step)}", "--draft", "ngram@4", "--prompts", f"{zoo / PROMPTS}",
         "--batch", CLIENTS, "--max-tokens", f"{ANSWER}", "--out", f"{out / 'measured'}"),
    )  # fmt: skip
    yield TourStep("Show it", ("report", f"{out}", "--out", f"{out / 'report.html'}"))


def run(step: TourStep) -> None:
    """The verb in a process of its own, its words shown; raises ValueError where it fails."""
    print(f"\n── {step.title}\n$ foredraft {' '.join(step.words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "foredraft", *step.words], check=False)
    if done.returncode:
        raise ValueError(f"foredraft {step.words[0]} ended with exit code {done.returncode}: its reason is above")


def tour(zoo: Path, observations: Path, out: Path) -> Path:
    """Run every step into `out`; return the page. Raises ValueError without the zoo, or where a verb fails or texts differ."""
    for need in (zoo / TARGET / "config.json", zoo / DATA, zoo / PROMPTS, observations):
        if not need.exists():
            raise ValueError(
                f"{need} is missing: take the tour in a checkout of the repository, or name --zoo and --observations"
            )
    probe, plan = before_training(zoo, observations, out)
    run(probe)
    run(plan)
    if records.read(Plan, out / "plan" / "Plan.json").draft is None:
        run(
            TourStep(
                "No draft pays here. Plan the best there is, to see whether that is right", (*plan.words, "--always")
            )
        )
    planned = chosen(records.read(Plan, out / "plan" / "Plan.json"))
    train, *further = after_planning(zoo, out, planned)
    run(train)
    show(zoo / TARGET, out / "run" / "final", planned)
    for step in further:
        run(step)
    return out / "report.html"


def chosen(plan: Plan) -> ScheduleStep:
    """How the plan drafts at its smallest load that drafts at all."""
    return next(step for step in plan.schedule if step.lookahead)


def spec(step: ScheduleStep) -> str:
    """The step's lookahead or tree in the words of `--draft DIR@…`."""
    return f"{step.lookahead}" if step.topk == 1 else f"{step.lookahead},{step.topk},{step.tree_nodes}"


def show(target: Path, draft: Path, step: ScheduleStep) -> None:
    """One text decoded plainly and with the draft, which must be the same, token by token."""
    words = text.tokenizer_of(target)
    request = Request(prompt=tuple(text.encode(words, OPENING, False)), max_tokens=ANSWER)
    tree = None if step.topk == 1 else f"{step.topk},{step.tree_nodes}"
    answers = [_answer(text.load_engine(target, who, lookahead=text.budget_of(step.lookahead, tree), max_batch=1, max_context=512), request)
               for who in (None, str(draft))]  # fmt: skip
    if answers[0][0] != answers[1][0]:
        raise ValueError("drafted and plain text differ: please report this")
    print(f"\n── Decode with it, losslessly\n\n{OPENING}{words.decode(answers[0][0])}\n")
    print(
        f"{len(answers[0][0])} tokens, the same with the draft and without; {answers[1][1]:.2f} tokens per step with it"
    )


def _answer(engine: Engine, request: Request) -> tuple[Sequence[int], float]:
    """An answer's tokens, and how many came of a step."""
    (sequence,) = engine.generate([request])
    return sequence.answer, len(sequence.answer) / sequence.steps
