"""What is planned: a target on a machine under a workload; and every draw of what is uncertain there.

Promises: draws are those of one lattice, so that candidates, modes and plain decoding are held to the same ones: costs are shared by all,
acceptance by the drafts of one kind, and two kinds are drawn apart. Refuses to know: which candidates there are, what they bring.

Shapes: C concurrencies, S draws, K positions.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.engines import ENGINES, USUAL
from foredraft.laws.calibration import MULTIPLIERS, adjusted
from foredraft.laws.cost import ServedLoad, ServerCost
from foredraft.laws.draws import Lattice, normals
from foredraft.laws.own_costs import UNEVEN, OwnCosts
from foredraft.laws.passes import Layout
from foredraft.plan.candidate import Candidate, Steps
from foredraft.plan.cells import conditions
from foredraft.plan.served import Place, alike
from foredraft.plan.terms import Terms
from foredraft.records import DraftChoice, Machine, Record, Workload
from foredraft.shapes import Shape

Array = NDArray[np.float64]
Result = TypeVar("Result")
NOTHING: frozenset[str] = frozenset()
OBJECTIVES = ("throughput", "latency", "tokens_per_flop")
KINDS = ("head", "lm", "lookup")

# Columns of the lattice: the cost law's multipliers and a tree's tail; how own rows' steps deviate (the widest directions); each kind's
# acceptance; and the scatter of runs.
TAIL, DEVIATION, ACCEPTANCE, KIND_COLUMNS = len(MULTIPLIERS), len(MULTIPLIERS) + 1, 24, 10
SCATTER = ACCEPTANCE + KIND_COLUMNS * len(kinds.KINDS)


class PlanSettings(Record, frozen=True):
    """What the user fixes; the rest is searched. `devices` in all make `data_parallel` replicas; `dtype` None: the weights as the
    checkpoint stores them. `horizon_tokens` is the output over which a draft's training is paid
    back; `outside`: counts of the user's own tokens, as `laws.coverage.CountedCoverage` has them; without `trees` chains alone are weighed;
    `kinds` of draft to weigh, all by default; `always`: the best draft is planned even where none pays; `terms`: of training and
    service. `draws` of all that is uncertain, behind every choice (the planned draft's intervals have `search.FINER` times as many), are
    rounded up to a power of two, which is what a lattice has.
    """

    objective: str = "throughput"
    engine: str = USUAL.name
    devices: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    dtype: str | None = None
    kv_dtype: str | None = None
    max_lookahead: int = 8
    horizon_tokens: float = 1e11
    max_training_gpu_hours: float = 1e5
    draws: int = 4096
    seed: int = 0
    trees: bool = True
    kinds: tuple[str, ...] = KINDS
    always: bool = False
    terms: Terms = Terms()
    outside: tuple[tuple[int, float, float], ...] = ()

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown[0]}")
        if not self.kinds:
            raise ValueError(f"kinds must name one or more of {', '.join(KINDS)}")
        for name, allowed in (("objective", OBJECTIVES), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)}")
        for name in ("devices", "data_parallel", "max_lookahead", "horizon_tokens", "max_training_gpu_hours", "draws"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.devices % self.data_parallel:
            raise ValueError(f"--data-parallel {self.data_parallel} does not divide --devices {self.devices}")
        if self.max_lookahead > 16:
            raise ValueError(
                f"max_lookahead must not exceed 16, the positions that the acceptance law knows; got {self.max_lookahead}"
            )

    @property
    def num_draws(self) -> int:
        """`draws` rounded up to a power of two."""
        return 1 << (self.draws - 1).bit_length()

    @property
    def layout(self) -> Layout:
        """How the devices share the models."""
        return Layout(self.devices // self.data_parallel, self.data_parallel, self.expert_parallel)


class Mode(NamedTuple):
    """One way to draft: passes, tokens a pass, nodes verified; depth 0 is plain decoding."""

    depth: int
    width: int
    nodes: int


def unheeded() -> None:
    """Of a plan that nobody stops."""


@dataclass(frozen=True)
class Problem:
    """One target on one machine under one workload, with the settings that hold throughout, and the cost law as own rows calibrate it;
    `heed` is called between steps, and raises where the plan is no longer asked for.
    """

    target: Shape
    machine: Machine
    workload: Workload
    settings: PlanSettings
    calibrated: OwnCosts | None = None
    heed: Callable[[], None] = field(default=unheeded, compare=False, repr=False)

    @cached_property
    def weights(self) -> Array:
        weights = np.array(self.workload.weights or [1.0] * len(self.workload.concurrency))
        return weights / weights.sum()

    @cached_property
    def concurrency(self) -> Array:
        return np.array(self.workload.concurrency, dtype=float)

    @property
    def train_machine(self) -> Machine:
        """What a draft is trained on."""
        return self.settings.terms.train_machine or self.machine

    @property
    def place(self) -> Place:
        settings = self.settings
        return Place(self.target, self.machine, settings.engine, settings.layout, settings.dtype, settings.kv_dtype)

    @cached_property
    def _known(self) -> dict[Hashable, Any]:
        """What was worked out once, by what it is and for how many draws."""
        return {}

    def _once(self, key: Hashable, work: Callable[[], Result]) -> Result:
        if key not in self._known:
            self._known[key] = work()
        return self._known[key]

    @cached_property
    def reference(self) -> "Problem":
        """The same under the draws of seed 0, by which lookaheads are chosen: of two that lie at the end of being as good as each other
        the same is planned whatever the seed.
        """
        settings = msgspec.structs.replace(self.settings, seed=0)
        return self if self.settings.seed == 0 else replace(self, settings=settings)

    def server(self, draft: Shape | None, speculate: bool = True) -> ServerCost:
        """The server of the target beside `draft`; raises ValueError where it does not fit."""

        def beside() -> tuple[Shape | None, ServerCost]:
            bare = self.place.server(draft, self.workload.input_len, self.workload.output_len, speculate=speculate)
            return draft, adjusted(bare, self.calibrated.multipliers) if self.calibrated else bare

        _, server = self._once(
            ("server", id(draft), speculate), beside
        )  # the shape is held on to, so that its id stays its own
        return server

    # Draws, each the first `num` of its kind; None: at their centre, in an axis of length 1.

    def costs(self, num: int | None) -> dict[str, Array]:
        """Multipliers on a server's coefficients, each [S]: of the calibration's posterior, else of the prior."""
        if num is None:
            return dict.fromkeys(MULTIPLIERS, np.ones(1))

        def drawn() -> dict[str, Array]:
            rng = Lattice(self.settings.seed)
            if self.calibrated:
                return dict(zip(MULTIPLIERS, self.calibrated.draws(num, rng).T, strict=True))
            width = self.place.prior_width
            return {name: np.exp(sd * width * normals(num, rng)) for name, sd in MULTIPLIERS.items()}

        return self._once(("costs", num), drawn)

    def plain(self, num: int | None) -> ServedLoad:
        """The modelled load of plain decoding at each concurrency, [C, S]."""
        server = self.server(None, speculate=False)
        return self._once(
            ("plain", num), lambda: adjusted(server, self.costs(num)).load(self.concurrency[:, None], 0.0, 1.0)
        )

    def deviations(self, candidate: Candidate | None, num: int | None) -> Array | None:
        """How own rows say that steps deviate from the modelled ones: coefficients [C, S, 3]; None without own rows."""
        if not (costs := self.calibrated):
            return None
        draft = alike(candidate.shape, mixed=candidate.lookup is not None) if candidate else None
        if num is None:
            return costs.deviation.mean(self.concurrency, draft)[:, None]
        rng = Lattice(self.settings.seed, DEVIATION, ACCEPTANCE)
        return self._once(("deviations", draft, num), lambda: costs.deviation.draws(self.concurrency, draft, num, rng))

    def scatter(self, num: int | None) -> Array:
        """Logs of how speculative and plain throughput scatter at each load [2, C, S], apart from all else: each run by itself where own rows
        say what a run is; else all speculative ones together, as far as reports lie off the cost law.
        """
        num_loads, costs = len(self.concurrency), self.calibrated

        def drawn() -> Array:
            if num is None:
                return np.zeros((2, num_loads, 1))
            if costs is None:
                reported = normals(num, Lattice(self.settings.seed, DEVIATION, ACCEPTANCE))
                return np.stack(
                    [np.tile(conditions().report_sd * reported, (num_loads, 1)), np.zeros((num_loads, num))]
                )
            rng = Lattice(self.settings.seed, SCATTER)
            sds = np.array([np.hypot(costs.noise, UNEVEN), costs.noise])[:, None, None]
            return sds * np.reshape([normals(num, rng) for _ in range(2 * num_loads)], (2, num_loads, num))

        return self._once(("scatter", num), drawn)

    def accept(self, candidate: Candidate, num: int, frozen: frozenset[str] = NOTHING) -> Array:
        """Draws of the draft's own accept_given_prefix [S, K]; the same uniforms for every draft of a kind."""
        return candidate.acceptance.draws(num, self._columns(_place_of_kind(candidate.choice)), frozen)

    def steps(self, candidate: Candidate, tau: Array, depths: Sequence[int], frozen: frozenset[str] = NOTHING) -> Steps:
        """In modes of `depths` [M], of the draft's own tokens per step `tau` [M, S]: those, unless a look-up stands before it."""
        if candidate.lookup is None:
            return Steps(tau)
        looked_up = candidate.lookup.draws(tau, self._columns(kinds.KINDS.index(kinds.NGRAM)), frozen)
        share = np.where(np.array(depths)[:, None] > 0, looked_up.share, 0.0)
        return Steps(tau + share * (1 + looked_up.accepted - tau), looked_up._replace(share=share))

    def _columns(self, place: int) -> Lattice:
        """Those of the kind that stands at `place`."""
        first = ACCEPTANCE + KIND_COLUMNS * place
        return Lattice(self.settings.seed, first, first + KIND_COLUMNS)

    def tails(self, candidate: Candidate, num: int, frozen: frozenset[str] = NOTHING) -> Array:
        """Draws [S] of how far further choices cover what the first misses."""
        spread = 0.0 if "trees" in frozen else candidate.tail.sd
        return candidate.tail.middle * np.exp(spread * normals(num, Lattice(self.settings.seed, TAIL, DEVIATION)))


def _place_of_kind(choice: DraftChoice) -> int:
    """Where its kind stands among all kinds; heads of no known kind stand with the usual one."""
    name = choice.method or (kinds.USUAL_HEAD.name if choice.kind == "head" else None)
    for place, kind in enumerate(kinds.KINDS):
        if name == kind.name or (name is None and kind.role == choice.kind):
            return place
    return kinds.KINDS.index(kinds.USUAL_HEAD)
