"""Plans for a page: one after another in one thread, a sketch of few draws before the full one, each dropped when nobody waits for it.

Promises: one planner, the room `plan`, reached by the command line's own options; a sketch says that it is one. Refuses to know: HTTP, HTML.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from foredraft.page.inputs import FIELDS, VERSION
from foredraft.plan.plan import plan
from foredraft.plan.session import Manner, Question, Session
from foredraft.records import Observation, Plan

SKETCH_DRAWS = 128
MOST_PLANS = 64  # that are held on to, for going back and forth
Read = Callable[[Mapping[str, str]], Question]


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
    question: Question
    draws: int
    full: bool


@dataclass
class Planner:
    """Answers to inputs; `read` makes the planner's question of them, and raises BadInput. `own`: the user's measurements."""

    read: Read
    own: Sequence[Observation] = ()
    session: Session = field(default_factory=Session)
    plans: OrderedDict[tuple[tuple[str, str], ...], Answer] = field(default_factory=OrderedDict)
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
            key = tuple(sorted((name, value) for name, value in inputs.items() if name != VERSION))  # no plan hangs on it
            if key in self.plans:
                self.plans.move_to_end(key)
                return self.plans[key]
            question = self.read(inputs)
            settings = question.settings
            if sketch:
                settings = msgspec.structs.replace(settings, draws=min(SKETCH_DRAWS, settings.draws))
            manner = Manner(self.session, sketch, heed)
            try:
                best = plan(*question._replace(settings=settings), manner=manner)
            except ValueError as error:
                raise BadInput(blamed(error)) from None
            answer = Answer(best, question, settings.num_draws, not sketch)
            if not sketch:
                self.plans[key] = answer
                while len(self.plans) > MOST_PLANS:
                    self.plans.popitem(last=False)
            return answer
