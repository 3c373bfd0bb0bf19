"""Plans for a page: one after another in one thread, a sketch of few draws before the full one, each dropped when nobody waits for it.

Promises: one planner, the room `plan`, reached by the command line's own options; a sketch says that it is one. Refuses to know: HTTP, HTML.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from foredraft.engines import ENGINES
from foredraft.page.inputs import FIELDS, VERSION
from foredraft.plan.plan import plan
from foredraft.plan.session import Manner, PlanArguments, Session
from foredraft.records import Observation, Plan

SKETCH_DRAWS = 128
MOST_PLANS = 64  # that are held on to, for going back and forth
Read = Callable[[Mapping[str, str]], PlanArguments]


class BadInput(ValueError):
    """What is wrong with inputs, by field; "" where it is none's alone."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("; ".join(faults.values()))
        self.faults = dict(faults)


def blamed(error: ValueError) -> dict[str, str]:
    """A complaint with its remedy, by the first of the page's fields whose option it names, or else its remedy; by "" where neither does."""
    lines = [" ".join(str(line).split()) for line in (error, *getattr(error, "__notes__", ()))]
    field = next(filter(None, map(_named, lines)), "")
    return {field: "; ".join(lines)}


def _named(line: str) -> str:
    """The field that a line begins with, or whose option stands first in it; "" where there is none."""
    if (word := line.partition(" ")[0]) in FIELDS:
        return word
    places = {name: line.find(f"--{name.replace('_', '-')}") for name in FIELDS}
    return min(((place, -len(name), name) for name, place in places.items() if place >= 0), default=(0, 0, ""))[2]


class Dropped(Exception):
    """Nobody waits for this plan any more."""


class Answer(NamedTuple):
    """A plan of some inputs, of how many draws, and whether it is the full one."""

    plan: Plan
    arguments: PlanArguments
    draws: int
    full: bool


class Turn(NamedTuple):
    """Another case: what is other there, its first look, and whether it says otherwise than the case itself; `why` in its place where it has
    no answer.
    """

    case: str
    plan: Plan | None
    turns: bool
    why: str = ""


@dataclass
class Planner:
    """Answers to inputs; `read` makes `plan`'s arguments of them, and raises BadInput. `own`: the user's measurements,
    `files`: theirs as typed.
    """

    read: Read
    own: Sequence[Observation] = ()
    files: Sequence[str] = ()
    session: Session = field(default_factory=Session)
    plans: OrderedDict[tuple[tuple[str, str], ...], Answer] = field(default_factory=OrderedDict)
    looks: OrderedDict[tuple[tuple[str, str], ...], Plan] = field(default_factory=OrderedDict)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, inputs: Mapping[str, str], *, sketch: bool, stop: threading.Event | None = None) -> Answer:
        """The full plan, or where `sketch` and it is not there yet a first look. Raises BadInput where the inputs do not fit together, Dropped
        once `stop` is set.
        """
        stop = stop or threading.Event()

        def heed() -> None:
            if stop.is_set():
                raise Dropped

        with self.busy:
            heed()
            key = tuple(
                sorted((name, value) for name, value in inputs.items() if name != VERSION)
            )  # no plan hangs on it
            if key in self.plans:
                self.plans.move_to_end(key)
                return self.plans[key]
            arguments = self.read(inputs)
            settings = arguments.settings
            if sketch:
                settings = msgspec.structs.replace(settings, draws=min(SKETCH_DRAWS, settings.draws))
            manner = Manner(self.session, sketch, heed)
            try:
                best = plan(*arguments._replace(settings=settings), manner=manner)
            except ValueError as error:
                raise BadInput(blamed(error)) from None
            answer = Answer(best, arguments, settings.num_draws, not sketch)
            if not sketch:
                self.plans[key] = answer
                while len(self.plans) > MOST_PLANS:
                    self.plans.popitem(last=False)
            return answer

    def turns(self, inputs: Mapping[str, str], stop: threading.Event | None = None) -> list[Turn]:
        """First looks at cases in which one thing is other, beside the case's own. Raises as `answer`."""
        here, arguments = self._sketch(inputs, stop), self.read(inputs)
        cases = []
        for case, changed in others(arguments).items():
            try:
                plan = self._sketch({**inputs, **changed}, stop)
                cases.append(Turn(case, plan, _says(plan) != _says(here)))
            except BadInput as error:
                cases.append(Turn(case, None, True, str(error)))
        return cases

    def _sketch(self, inputs: Mapping[str, str], stop: threading.Event | None) -> Plan:
        key = tuple(sorted(inputs.items()))
        if key not in self.looks:
            self.looks[key] = self.answer(inputs, sketch=True, stop=stop).plan
            while len(self.looks) > MOST_PLANS:
                self.looks.popitem(last=False)
        return self.looks[key]


def _says(plan: Plan) -> tuple[str | None, str | None]:
    """What a plan says to do, and with which draft."""
    return (plan.action.verb if plan.action else None), (plan.draft.name if plan.draft else None)


def others(arguments: PlanArguments) -> dict[str, dict[str, str]]:
    """The cases that are looked at beside a plan, in words, with the inputs that are other there."""
    load, settings = arguments.workload, arguments.settings
    shares = load.weights or (1.0,) * len(load.concurrency)

    def at(times: float) -> dict[str, str]:
        clients = [max(round(each * times), 1) for each in load.concurrency]
        summed: dict[int, float] = {}
        for each, share in zip(clients, shares, strict=True):
            summed[each] = summed.get(each, 0.0) + share
        return {"load": ",".join(f"{each}:{share:g}" for each, share in summed.items())}

    engine = next(name for name in ENGINES if name != settings.engine)
    return {
        "four times as many requests at once": at(4), "a quarter of the requests at once": at(0.25),
        **({"temperature 0": {"temperature": "0"}} if load.temperature else {"temperature 1": {"temperature": "1"}}),
        "prompts four times as long": {"input_len": f"{4 * load.input_len:g}"},
        "answers four times as long": {"output_len": f"{4 * load.output_len:g}"},
        "nothing may be trained": {"max_gpu_hours": "0.001"}, f"{ENGINES[engine].label} instead": {"engine": engine},
    }  # fmt: skip
