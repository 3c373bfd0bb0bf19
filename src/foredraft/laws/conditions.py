"""How much is accepted under which conditions: temperature and task shift the logit of acceptance, and drafts, targets, prompts and
harnesses scatter about it.

The law: the level of a cell is a sum of effects, each drawn from a normal about 0 whose sd says how far such things differ: kinds and
methods of draft, targets, heads of one kind on one target, documents (a harness, its prompts' format), tasks, prompt sets of one task;
and slopes in temperature (by role, kind, task, target and head; it tells less on larger targets), in log lookahead and for trees. With the sds at
greatest evidence the level of any cell, measured or asked, is a normal given all measured ones: what is shared speaks, as far as
others that share it agree.

Promises: every interval holds every scatter that the asked cell does not share with a measured one. Refuses to know: files, documents'
contents, how a level becomes a curve (laws.acceptance).

Shapes: N measured cells, Q asked ones, E effects.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import scipy  # whose `optimize` loads where it is first used: it takes a fifth of a second
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.records import Record

Array = NDArray[np.float64]

REFERENCE_LOOKAHEAD = 4  # where a cell's level is stated: the logit of the constant α that gives its τ there
REFERENCE_PARAMS = 1e10
MOST_STEPS = 60  # of the search for the sds, which takes about forty
LEVEL_RANGE = (-5.0, 4.5)
GRID = np.linspace(*LEVEL_RANGE, 381)
SD_PRIOR = (np.log(0.15), 1.0)  # of log sd of an effect that is fitted
# Which of `records.TASKS` a set of prompts is of, by its name in lower case without signs; the first that matches counts.
DATASETS = {
    "code": r"humaneval|mbpp|lcb|livecodebench|instructcoder|cod(e|ing)|swe|program",
    "math": r"gsm8k|math|aime|mgsm",
    "translation": r"translat|wmt",
    "summarisation": r"cnn|summar|xsum",
    "rag": r"rag\b|rag$|retrieval",
    "multilingual": r"multilingual|ceval|cmmlu",
    "writing": r"writing|roleplay|creative",
    "reasoning": r"reasoning|gpqa|stem|reason",
    "qa": r"qa|naturalquestions|nq$|humanities|extraction|trivia|mmlu",
    "chat": r"mtbench|multiturn|alpaca|arena|chat|sharegpt|lmsys|ultrachat|dialog",
}
MEANS = re.compile(r"^(mean|avg|average|overall|validation)|(mean|avg|average|overall)$")


@cache
def task_of(dataset: str | None) -> str | None:
    """The task of a set of prompts, by its name; None where the name says none, or means several."""
    name = plain(dataset)
    if not name or MEANS.search(name):
        return None
    return next((task for task, pattern in DATASETS.items() if re.search(pattern, name)), None)


def is_mean(dataset: str | None) -> bool:
    """Whether a set's name says that it averages over others."""
    return bool(MEANS.search(plain(dataset)))


@cache
def plain(name: str | None) -> str:
    """A name's letters and digits, in lower case; "" of none."""
    return re.sub(r"[^a-z0-9]+", "", (name or "").lower())


class AcceptanceCell(NamedTuple):
    """Under what a level is measured or asked. None is like no other: a draft not yet trained, prompts not yet seen."""

    role: str  # lookup, lm, head, mtp or block, as `Kind.prior`
    kind: str
    method: str | None
    target: str | None
    log_size: float  # ln of the target's parameters over REFERENCE_PARAMS
    head: Hashable | None
    document: str | None
    task: str | None
    prompts: str | None
    temperature: float
    log_lookahead: float = 0.0  # ln of the lookahead over REFERENCE_LOOKAHEAD
    single: bool = False  # of one user's report or server, not of a table that its makers measured with care
    tree: tuple[int, int, int] | None = None  # depth, choices and nodes; None: a chain


class Effect(NamedTuple):
    """Cells of an equal `key` (None: like no other) share it, each `slope` times (`warm`: and its warmth times); `sd` fixed where it is no
    scatter but a coefficient.
    """

    key: Callable[[AcceptanceCell], Hashable | None]
    slope: Callable[[AcceptanceCell], float] = lambda cell: 1.0
    sd: float | None = None
    warm: bool = False


def _both(*parts: Hashable | None) -> Hashable | None:
    return None if any(part is None for part in parts) else parts


def _lookup(cell: AcceptanceCell) -> float:
    """Of prompt lookup itself, whose acceptance hangs on the task as no other's; its kin look elsewhere than in the prompt."""
    return float(cell.role == "lookup" and cell.method == cell.kind)


def _tree(cell: AcceptanceCell) -> float:
    return float(cell.tree is not None)


def _length(cell: AcceptanceCell) -> float:
    return cell.log_lookahead


EFFECTS: dict[str, Effect] = {
    "all": Effect(lambda cell: True, sd=2.0),
    "role": Effect(lambda cell: cell.role),
    "kind": Effect(lambda cell: cell.kind),
    "method": Effect(lambda cell: cell.method),
    "target": Effect(lambda cell: cell.target),
    "target and kind": Effect(lambda cell: _both(cell.target, cell.kind)),
    "head": Effect(lambda cell: cell.head),
    "document": Effect(lambda cell: _both(cell.document, cell.kind)),
    "single report": Effect(lambda cell: cell.document, lambda cell: float(cell.single)),
    "task": Effect(lambda cell: cell.task),
    "task and kind": Effect(lambda cell: _both(cell.task, cell.kind)),
    "task of lookup": Effect(lambda cell: cell.task, _lookup),
    "task and target": Effect(lambda cell: _both(cell.task, cell.target)),
    "prompts": Effect(lambda cell: cell.prompts),
    "prompts and head": Effect(lambda cell: _both(cell.prompts, cell.head)),
    "prompts of lookup": Effect(lambda cell: cell.prompts, _lookup),
    "length": Effect(lambda cell: True, _length, sd=0.5),
    "length and kind": Effect(lambda cell: cell.kind, _length),
    "length and head": Effect(lambda cell: cell.head, _length),
    "tree": Effect(lambda cell: True, _tree, sd=0.3),
    "tree and dials": Effect(lambda cell: cell.tree, _tree),
    "tree and document": Effect(lambda cell: cell.document, _tree),
    "temperature": Effect(lambda cell: True, sd=1.0, warm=True),
    "temperature and tree": Effect(lambda cell: True, _tree, sd=0.3, warm=True),
    "temperature and role": Effect(lambda cell: cell.role, warm=True),
    "temperature and method": Effect(lambda cell: cell.method, warm=True),
    "temperature, tree and method": Effect(lambda cell: cell.method, _tree, warm=True),
    "temperature and task": Effect(lambda cell: cell.task, warm=True),
    "temperature and target": Effect(lambda cell: cell.target, warm=True),
    "temperature and head": Effect(lambda cell: cell.head, warm=True),
}
SCATTER = "scatter"  # what is left of a cell when all is known
SIZE_POWERS = (0.0, 0.15, 0.3, 0.45, 0.6)  # by which powers of a target's size temperature may tell less on it


class Spreads(Record, frozen=True):
    """The sds of the effects on the logit of acceptance, and of the scatter; `size_power`: temperature tells as (parameters over
    REFERENCE_PARAMS)^-size_power; how many cells of how many documents taught them. `widened`: by how much documents that are predicted
    from the others lie farther off than the sds say, root mean square.
    """

    sds: dict[str, float]
    size_power: float
    num_cells: int
    num_documents: int
    evidence: float
    widened: float = 1.0


@dataclass(frozen=True)
class Levels:
    """Measured cells with their `levels` [N] under the `spreads`: what they say of any other cell."""

    cells: tuple[AcceptanceCell, ...]
    levels: Array
    spreads: Spreads

    @cached_property
    def _solved(self) -> tuple[tuple[Array, bool], Array]:
        covariance = _covariance(self.cells, self.cells, self.spreads)
        covariance[np.diag_indices(len(self.cells))] += self.spreads.sds[SCATTER] ** 2
        factor = cho_factor(covariance, lower=True)
        return factor, cho_solve(factor, self.levels)

    def of(self, asked: Sequence[AcceptanceCell]) -> tuple[Array, Array]:
        """Mean [Q] and covariance [Q, Q] of the levels of `asked`, without the scatter of a measurement."""
        prior = _covariance(asked, asked, self.spreads)
        if not self.cells:
            return np.zeros(len(asked)), prior
        factor, weights = self._solved
        shared = self._shared_with(asked)
        return shared @ weights, prior - shared @ cho_solve(factor, shared.T, check_finite=False)

    def _each(self, asked: Sequence[AcceptanceCell]) -> tuple[Array, Array]:
        """Mean [Q] and variance [Q] of `asked`, the covariance between them left out."""
        spreads = self.spreads
        prior = np.sum(
            [(spreads.sds[name] * _slopes(effect, asked, spreads.size_power)) ** 2 for name, effect in EFFECTS.items()],
            0,
        )
        if not self.cells:
            return np.zeros(len(asked)), prior
        (factor, _), weights = self._solved
        shared = self._shared_with(asked)
        part = solve_triangular(factor, shared.T, lower=True, check_finite=False)
        return shared @ weights, prior - (part**2).sum(axis=0)

    @cached_property
    def targets(self) -> frozenset[str | None]:
        """Those of the cells."""
        return frozenset(cell.target for cell in self.cells)

    @cached_property
    def _coded(self) -> dict[str, tuple[dict[Hashable, int], Array, Array]]:
        """By effect the measured cells' keys by number, each cell's number (-1: like no other), and their slopes."""
        coded = {}
        for name, effect in EFFECTS.items():
            numbers: dict[Hashable, int] = {}
            keys = map(effect.key, self.cells)
            codes = [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in keys]
            coded[name] = numbers, np.array(codes), _slopes(effect, self.cells, self.spreads.size_power)
        return coded

    def _shared_with(self, asked: Sequence[AcceptanceCell]) -> Array:
        """Covariance of `asked` and the measured cells, [Q, N]."""
        total = np.zeros((len(asked), len(self.cells)))
        for name, effect in EFFECTS.items():
            numbers, codes, slopes = self._coded[name]
            alike = np.array([numbers.get(effect.key(cell), -2) for cell in asked])
            here = _slopes(effect, asked, self.spreads.size_power)
            total += self.spreads.sds[name] ** 2 * (np.equal.outer(alike, codes) * np.multiply.outer(here, slopes))
        return total

    def mixed(self, asked: Sequence[AcceptanceCell]) -> tuple[float, float]:
        """Mean and sd of a cell that is any of `asked`, each as likely; as wide as documents that were left out ask for."""
        means, variances = self._each(asked)
        sd = float(np.sqrt(max(variances.mean() + means.var(), 1e-12)))
        return float(means.mean()), self.spreads.widened * sd

    def shift(self, there: Sequence[AcceptanceCell], here: Sequence[AcceptanceCell]) -> tuple[float, float]:
        """Mean and sd of the level of a cell of `there` less that of its fellow of `here`, each pair as likely; 0 and 0 where they are equal."""
        if tuple(there) == tuple(here):
            return 0.0, 0.0
        means, covariance = self.of([*there, *here])
        n = len(there)
        off = means[:n] - means[n:]
        variance = np.diag(covariance)[:n] + np.diag(covariance)[n:] - 2 * np.diag(covariance[:n, n:])
        return float(off.mean()), float(np.sqrt(max(variance.mean() + off.var(), 0.0)))


def _covariance(some: Sequence[AcceptanceCell], others: Sequence[AcceptanceCell], spreads: Spreads) -> Array:
    """Of the levels of `some` and `others`, [len(some), len(others)], without scatter. The same object on both sides is itself."""
    total = np.zeros((len(some), len(others)))
    for name, effect in EFFECTS.items():
        total += spreads.sds[name] ** 2 * _shared(effect, some, others, spreads.size_power)
    return total


def _warmth(cell: AcceptanceCell, size_power: float) -> float:
    """How much temperature tells: a large target is surer of its tokens than a small one at the same temperature."""
    return cell.temperature * float(np.exp(-size_power * cell.log_size))


def _shared(
    effect: Effect, some: Sequence[AcceptanceCell], others: Sequence[AcceptanceCell], size_power: float
) -> Array:
    """How much of one draw of `effect` two cells share: the product of their slopes where their keys are equal, else 0."""
    numbers: dict[Hashable, int] = {}
    alone = some is others

    def coded(cells: Sequence[AcceptanceCell], least: int) -> Array:
        keys = [effect.key(cell) for cell in cells]
        return np.array(
            [least - i if key is None else numbers.setdefault(key, len(numbers)) for i, key in enumerate(keys)]
        )

    left = coded(some, -1)
    right = left if alone else coded(others, -1 - len(some))
    slopes = (_slopes(effect, cells, size_power) for cells in (some, others))
    return np.equal.outer(left, right) * np.multiply.outer(*slopes)


def _slopes(effect: Effect, cells: Sequence[AcceptanceCell], size_power: float) -> Array:
    """How many times each cell has its share of the effect."""
    return np.array([effect.slope(cell) * (_warmth(cell, size_power) if effect.warm else 1.0) for cell in cells])


def fit_spreads(
    cells: Sequence[AcceptanceCell],
    levels: Array,
    start: Spreads | None = None,
    size_powers: Sequence[float] = SIZE_POWERS,
) -> Spreads:
    """The sds of greatest posterior: evidence of the `levels` [N] times a wide log-normal prior on each fitted sd; and the power of size.

    Raises ValueError with fewer cells than effects.
    """
    fits: list[Spreads] = []
    for power in size_powers:
        fits.append(_fit_at(cells, levels, fits[-1] if fits else start, power))
    return max(fits, key=lambda fit: fit.evidence)


def _fit_at(cells: Sequence[AcceptanceCell], levels: Array, start: Spreads | None, size_power: float) -> Spreads:
    if len(cells) < len(EFFECTS):
        raise ValueError(f"the spread of acceptance needs {len(EFFECTS)} measured cells, got {len(cells)}")
    cells, levels = tuple(cells), np.asarray(levels, dtype=float)
    names = [name for name, effect in EFFECTS.items() if effect.sd is None]
    grams = np.stack([_shared(EFFECTS[name], cells, cells, size_power) for name in names] + [np.eye(len(cells))])
    fixed = sum(
        effect.sd**2 * _shared(effect, cells, cells, size_power) for effect in EFFECTS.values() if effect.sd is not None
    )
    centre, width = SD_PRIOR

    def loss(log_sds: Array) -> tuple[float, Array]:
        variances = np.exp(2 * log_sds)
        covariance = fixed + np.tensordot(variances, grams, axes=1)
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, levels)
        inverse = cho_solve(factor, np.eye(len(cells)))
        log_volume = 2 * np.log(np.diag(factor[0])).sum()
        evidence = -0.5 * (levels @ weights + log_volume + len(cells) * np.log(2 * np.pi))
        pull = np.tensordot(grams, np.outer(weights, weights) - inverse, axes=2) * variances
        prior = -0.5 * (((log_sds - centre) / width) ** 2).sum()
        return -(evidence + prior), -(pull - (log_sds - centre) / width**2)

    first = [start.sds[name] if start else 0.15 for name in (*names, SCATTER)]
    solution = scipy.optimize.minimize(
        loss,
        np.log(first),
        jac=True,
        method="L-BFGS-B",
        bounds=[(np.log(1e-3), np.log(3))] * len(first),
        options={"maxiter": MOST_STEPS},
    )
    fitted = dict(zip((*names, SCATTER), np.exp(solution.x).tolist(), strict=True))
    sds = {name: fitted[name] if effect.sd is None else effect.sd for name, effect in EFFECTS.items()}
    return Spreads(
        sds={name: float(f"{sd:.4g}") for name, sd in (sds | {SCATTER: fitted[SCATTER]}).items()}, size_power=size_power,
        num_cells=len(cells), num_documents=len({cell.document for cell in cells}), evidence=float(-solution.fun),
    )  # fmt: skip


def chain_level(tokens_per_step: float, lookahead: int) -> float:
    """The logit of the constant α that gives a chain's τ at `lookahead`, within LEVEL_RANGE."""
    return float(np.interp(tokens_per_step, _chain_taus(lookahead), GRID))


@cache
def _chain_taus(lookahead: int) -> Array:
    """τ of a chain at each level of GRID."""
    return np.asarray(tokens_per_step_constant(1 / (1 + np.exp(-GRID)), lookahead), dtype=np.float64)


# Beyond a head's trained context.


class ContextFade(Record, frozen=True):
    """By how much the logit of acceptance falls per e-fold of positions beyond a head's context, the sd of that, and its sources."""

    per_efold: float
    sd: float
    sources: tuple[str, ...]


def fade(input_len: float, output_len: float, context: float) -> float:
    """Mean over the answer's positions of ln(position / context) beyond the context, 0 within it."""
    positions = input_len + output_len * (np.arange(64) + 0.5) / 64
    return float(np.maximum(np.log(positions / context), 0.0).mean())
