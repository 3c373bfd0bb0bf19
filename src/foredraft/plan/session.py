"""Plans one after another, each with a few inputs changed: what the next may take over, and how a first look comes from fewer drafts.

Promises: what is taken over is what would have been worked out again; a sketch weighs the drafts that led the last plan of its target and
engine alone (where there was none, few sizes and budgets of each kind), so that it may miss one that only now
leads. Refuses to know: how candidates are scored.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from foredraft import kinds
from foredraft.plan.at_hand import DraftAtHand
from foredraft.plan.candidate import Candidate
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.draft_vocab import with_words
from foredraft.plan.problem import PlanSettings, Problem, unheeded
from foredraft.plan.ties import identity
from foredraft.records import DraftChoice, Machine, Observation, Workload
from foredraft.shapes import Shape

if TYPE_CHECKING:
    from foredraft.plan.search import Scored

MOST_BASES = 24  # whose candidates are held on to, the last used ones
LEADERS = 2  # of each identity: the best ones, beside the cheapest to train


@dataclass
class Session:
    """Candidates by what they hang on; by target and engine the drafts that led, with their draft vocabularies."""

    bases: OrderedDict[Hashable, tuple[Basis, list[Candidate], dict[str, str]]] = field(default_factory=OrderedDict)
    leaders: dict[Hashable, dict[Hashable, int | None]] = field(default_factory=dict)

    def candidates(self, basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
        """`candidates.candidates`, worked out once for each basis."""
        rows = tuple(id(row) for row in basis.observations)
        trains = basis.machine.name, *sorted(basis.machine.flops_per_s.items())
        key = *_served(basis), trains, rows, basis.temperature, basis.task, basis.lengths, basis.without, basis.coarse
        if key not in self.bases:
            self.bases[key] = basis, *candidates(basis)  # the rows are held on to, so that their ids stay their own
            while len(self.bases) > MOST_BASES:
                self.bases.popitem(last=False)
        self.bases.move_to_end(key)
        _, everybody, missing = self.bases[key]
        return list(everybody), dict(missing)

    def leading(self, problem: Problem, basis: Basis, everybody: Sequence[Candidate]) -> list[Candidate]:
        """Of `everybody` those that led the last plan of this target and engine, with the draft vocabularies that they had there; all, as they
        stand, where none of them did.
        """
        led = self.leaders.get(_served(basis), {})
        few = [each for each in everybody if _name(each.choice) in led]
        return [with_words(problem, each, led[_name(each.choice)]) for each in few] or list(everybody)

    def knows(self, basis: Basis) -> bool:
        """Whether a plan of this target and engine was made."""
        return _served(basis) in self.leaders

    def learn(self, basis: Basis, everybody: Iterable[Candidate], ranked: Sequence["Scored"]) -> None:
        """Which of `everybody` led: of each identity the best of the ranked, and the cheapest to train; with their vocabularies."""
        names = {_name(each.choice) for each in everybody}
        led: dict[Hashable, list[Scored]] = {}
        for scored in ranked:
            if scored.candidate and _name(scored.candidate.choice) in names:
                led.setdefault(identity(scored), []).append(scored)
        leaders: dict[Hashable, int | None] = {}
        for alike in led.values():
            cheapest = min(alike, key=lambda each: each.candidate.choice.training_gpu_hours if each.candidate else 0.0)
            choices = [each.candidate.choice for each in (*alike[:LEADERS], cheapest) if each.candidate]
            leaders |= {_name(choice): choice.draft_vocab for choice in choices}
        self.leaders[_served(basis)] = leaders


def _served(basis: Basis) -> tuple[Hashable, ...]:
    target = basis.target
    return target.name, target.params, target.weight_format, basis.engine


def _name(choice: DraftChoice) -> Hashable:
    """What tells drafts of a target apart, whatever their vocabulary and whatever stands before them."""
    name = choice.name.removesuffix(kinds.BEHIND)
    return choice.kind, choice.method, name, choice.num_layers, choice.hidden_size, choice.draft_tokens


class PlanArguments(NamedTuple):
    """What `plan.plan` is asked, in its order."""

    target: Shape
    machine: Machine
    workload: Workload
    settings: PlanSettings
    observations: Sequence[Observation] = ()
    draft: DraftAtHand | None = None
    beside: Sequence[DraftAtHand] = ()


@dataclass(frozen=True)
class Manner:
    """How a plan is worked out: within which `session`, if any; whether as a `sketch`, a first look without best size, lengths, next runs and
    other engines' settings; and `heed`, which is called between steps and raises where the plan is no longer asked for.
    """

    session: Session | None = None
    sketch: bool = False
    heed: Callable[[], None] = unheeded
