"""How much of a draft is accepted on a target under a load, by kind of draft, and what speaks for it.

Promises: one rule for every kind and every caller. Own rows stand before published ones and move only as far as the load's temperature
and task differ from theirs; without own rows the level is what published cells say of it (laws.conditions), with every scatter that it
does not share with them, and the shape by position is that of the most alike published curves. Refuses to know: costs, training, which
drafts are worth weighing.

Shapes: S draws, K positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.kinds import Kind
from foredraft.laws import acceptance
from foredraft.laws.acceptance import CurvePosterior
from foredraft.laws.conditions import REFERENCE_LOOKAHEAD, REFERENCE_PARAMS, AcceptanceCell, Levels, fade, task_of
from foredraft.laws.draws import normals, quantiles, stratified
from foredraft.laws.sampling import sampling_sd
from foredraft.plan import cells, evidence
from foredraft.plan.candidate import AcceptanceDraws, level_shift, moved
from foredraft.plan.cells import Drafting
from foredraft.plan.study import mean_curve, on_target
from foredraft.records import TASKS, Observation
from foredraft.shapes import Shape

Array = NDArray[np.float64]

# sd of log τ between a published curve and its kin, in whose shape by position alone it is taken to be.
ELSEWHERE_NOISE = 0.05
ASKED = "asked"  # the draft, harness and prompts of a plan, which no published row shares
NEWTON_STEPS, ARRIVED = 8, 1e-6  # the next step would be about the square of the last
SAME_SIZE = 1e-6  # of log parameters
NAMED_HEADS = 2  # in what speaks for a level, for people


class LevelBasis(Protocol):
    """For what acceptance is asked: a target under a load, with own observations (may be none), less some published documents."""

    @property
    def target(self) -> Shape: ...
    @property
    def observations(self) -> Sequence[Observation]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def task(self) -> str | None: ...
    @property
    def lengths(self) -> tuple[float, float] | None: ...
    @property
    def without(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class LevelAcceptance:
    """Acceptance by position in the shape of `posterior`; at a `level` of its own (mean and sd of the logit of the constant α with its τ
    at REFERENCE_LOOKAHEAD) where that is given, and its logits moved by a `shift` (mean and sd) and by what training data do (`gain`,
    draws of τ-1 over τ-1 at the reference tokens).
    """

    posterior: CurvePosterior
    level: tuple[float, float] | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    gain: tuple[float, ...] = (1.0,)

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        settled = "draft" in frozen
        drawn = self.posterior.draws(num, rng)
        above, beside, uniforms = normals(num, rng), normals(num, rng), stratified(num, rng)
        accept = np.tile(self.posterior.median_accept, (num, 1)) if settled else drawn
        gain = np.full(num, np.median(self.gain)) if "data" in frozen else quantiles(self.gain, uniforms)
        shift = (
            self.shift[0]
            + (0.0 if settled else self.shift[1]) * beside
            + level_shift(self.posterior.median_accept, gain)
        )
        if self.level:
            shift = shift + _to_level(accept, self.level[0] + (0.0 if settled else self.level[1]) * above)
        return moved(accept, shift)


def _to_level(accept: Array, level: Array, k: int = REFERENCE_LOOKAHEAD) -> Array:
    """The moves [S] of the logits of `accept` [S, K] that give τ at `k` as the constant α whose logit is `level` [S], by Newton's steps
    in the logarithm of what is accepted.
    """
    first = np.clip(accept[:, :k], 1e-9, 1 - 1e-9)
    logits = np.log(first / (1 - first))
    alpha = 1 / (1 + np.exp(-level))
    target = np.log(alpha * (1 - alpha**k) / (1 - alpha))
    moves = level - logits.mean(axis=1)
    for _ in range(NEWTON_STEPS):
        here = 1 / (1 + np.exp(-(logits + moves[:, None])))
        reach = np.cumprod(here, axis=1)
        accepted = reach.sum(axis=1)
        slope = (reach * np.cumsum(1 - here, axis=1)).sum(axis=1) / accepted
        steps = np.clip((target - np.log(accepted)) / slope, -2.0, 2.0)
        moves = moves + steps
        if np.abs(steps).max() < ARRIVED:
            break
    return moves


@dataclass(frozen=True)
class Level:
    """Acceptance of a draft, in a few words what speaks for it, which inputs left what was measured, and what a plan should say besides."""

    acceptance: LevelAcceptance
    source: str
    extrapolates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def gained(self, gain: tuple[float, ...]) -> "Level":
        """After training on other amounts; `gain` as in LevelAcceptance."""
        return replace(self, acceptance=replace(self.acceptance, gain=gain))


def level_of(
    basis: LevelBasis, kind: Kind, *, layers: int = 1, draft: str | None = None, method: str | None = None, context: float | None = None,
    alike: Callable[[Observation], bool] | None = None, tree: tuple[int, int, int] | None = None,
) -> Level:  # fmt: skip
    """Acceptance of a draft of `kind`: of the one named `draft`, or of one of so many `layers` as such drafts are on the target.

    `method`: which of the kind's, the usual one where left out. `context`: positions that the draft was trained to, None where it has
    none. `alike`: which own rows are of the draft; by its name, or role and layers, where left out. `tree`: depth, choices and nodes of
    trees whose levels' acceptance is asked for, of which published rows speak.
    """
    if level := own_level(basis, kind, alike or (named(draft) if draft else _of_role(kind, layers))):
        return _within_context(level, basis, draft or kind.label, context)
    return _within_context(
        _published(basis, kind, draft, method or _usual(kind), tree), basis, draft or kind.label, context
    )


def _usual(kind: Kind) -> str:
    return kind.name if kind.name in kind.methods else next(iter(kind.methods))


def named(draft: str | Shape) -> Callable[[Observation], bool]:
    """Whether a row was measured with the draft of this name, or (of a shape) of its public size."""
    if isinstance(draft, str):
        return lambda row: row.draft == draft
    return lambda row: row.draft is not None and evidence.names(row.draft, draft)


def _of_role(kind: Kind, layers: int) -> Callable[[Observation], bool]:
    """Whether a row is of a draft of the kind's role and depth."""
    return lambda row: kinds.role_of(row.method) == kind.role and (row.draft_layers or 1) == layers


def measured_level(basis: LevelBasis, kind: Kind, draft: Shape) -> Level | None:
    """Of a public model on the target, where own or published rows measured the pair; None where none did."""
    alike = named(draft)
    if level := own_level(basis, kind, alike):
        return level
    rows = evidence.observations(basis.without)
    row = next((row for row in rows if alike(row) and row.tokens_per_step and on_target(row, basis.target)), None)
    return _published(basis, kind, row.draft, row.method) if row else None


@dataclass(frozen=True)
class Moved:
    """Acceptance of `base` with its logits moved by a `shift` (mean and sd)."""

    base: AcceptanceDraws
    shift: tuple[float, float]

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        accept, beside = self.base.draws(num, rng, frozen), normals(num, rng)
        return moved(accept, self.shift[0] + (0.0 if "draft" in frozen else self.shift[1]) * beside)


def from_the_mix(basis: LevelBasis, kind: Kind) -> tuple[float, float]:
    """From a mix of tasks at temperature 0 (at 1, where the load's is above 0) to the load's task and temperature: the move of the logits."""
    measured, method = cells.levels(basis.without), _usual(kind)
    usual = 1.0 if basis.temperature > 0 else 0.0
    before = [_cell(basis, measured, kind, method, task, ASKED)._replace(temperature=usual) for task in TASKS]
    after = [_cell(basis, measured, kind, method, basis.task or task, ASKED) for task in TASKS]
    return measured.shift(after, before)


# Own rows.


def own_level(basis: LevelBasis, kind: Kind, alike: Callable[[Observation], bool]) -> Level | None:
    """By own rows of such drafts on the target, of the nearest temperature and of the task if any are, with what their few prompts leave
    open; None without.
    """
    rows = [row for row in basis.observations if row.method != "none" and _is_chain(row) and alike(row)]
    rows = _nearest([row for row in rows if on_target(row, basis.target)], basis)
    if not (mean := mean_curve(rows)):
        return None
    kind = kinds.of_method(rows[0].method)
    posterior = acceptance.posterior(evidence.position_law(), mean, kind=kind.prior)
    temperature = rows[0].temperature or 0.0
    tasks = sorted(task for task in {task_of(row.dataset) for row in rows} if task)
    there = basis.task if tasks and basis.task not in tasks else None
    move, sd = _own_shift(basis, kind, rows[0].method, temperature, tasks, there)
    shift = move, float(np.hypot(sd, sampling_sd(rows, posterior.median_accept)))
    source = f"{len(rows)} own rows of {rows[0].draft or kind.label}"
    return Level(LevelAcceptance(posterior, shift=shift), source)


def _is_chain(row: Observation) -> bool:
    told = bool(row.lookahead) and bool(row.tokens_per_step or row.survival)
    return (row.topk or 1) == 1 and told and kinds.role_of(row.method) != "mixed"


def _nearest(rows: Sequence[Observation], basis: LevelBasis) -> Sequence[Observation]:
    if not rows:
        return rows
    least = min(abs((row.temperature or 0.0) - basis.temperature) for row in rows)
    rows = [row for row in rows if abs((row.temperature or 0.0) - basis.temperature) == least]
    return [row for row in rows if basis.task and task_of(row.dataset) == basis.task] or rows


def _own_shift(
    basis: LevelBasis, kind: Kind, method: str, temperature: float, tasks: Sequence[str], there: str | None
) -> tuple[float, float]:
    """From own rows' temperature and tasks to the load's, `there` where it is another: mean and sd of the move of the logits."""
    if temperature == basis.temperature and not there:
        return 0.0, 0.0
    measured = cells.levels(basis.without)
    here = [_cell(basis, measured, kind, method, task, ASKED) for task in tasks or (None,)]
    after = [cell._replace(task=there, prompts="others") if there else cell for cell in here]
    return measured.shift(after, [cell._replace(temperature=temperature) for cell in here])


# Published rows.


class _Sized(NamedTuple):
    """What published rows are asked of a target's shape, as a key."""

    name: str
    params: int
    non_embedding_params: int


class _Asked(NamedTuple):
    """What published rows are asked of a load, as a key: neither machine nor lengths are in it."""

    target: _Sized
    temperature: float
    task: str | None
    without: frozenset[str]


class _KindKey(NamedTuple):
    """What they are asked of a kind."""

    name: str
    label: str
    role: kinds.Role
    prior: kinds.Prior


def _published(
    basis: LevelBasis, kind: Kind, draft: str | None, method: str, tree: tuple[int, int, int] | None = None
) -> Level:
    target = basis.target
    sized = _Sized(target.name, target.params, target.non_embedding_params)
    asked = _Asked(sized, basis.temperature, basis.task, basis.without)
    key = _KindKey(kind.name, kind.label, kind.role, kind.prior)
    return _published_level(asked, key, cells.head_key(draft, kind), draft, method, tree)


@lru_cache(4096)
def _published_level(
    basis: _Asked, kind: _KindKey, key: Any, draft: str | None, method: str, tree: tuple[int, int, int] | None
) -> Level:
    """Worked out once for a target, a draft, a temperature and a task."""
    measured = cells.levels(basis.without)
    wanted = [_cell(basis, measured, kind, method, task, ASKED) for task in ((basis.task,) if basis.task else TASKS)]
    head = (wanted[0].target, method, key)
    of_draft = next((cell for cell in measured.cells if cell.head == head), None) if key else None
    if of_draft:  # its own rows say what else would differ from head to head and from report to report
        wanted = [cell._replace(head=head, document=of_draft.document, single=of_draft.single) for cell in wanted]
    wanted = [cell._replace(tree=tree) for cell in wanted]
    level = measured.mixed(wanted)
    shape = _shape(basis, kind, draft)
    return Level(
        LevelAcceptance(shape, level),
        _source(measured, wanted[0], kind, basis),
        _outside(measured, wanted[0], basis.task),
    )


def _cell(
    basis: "LevelBasis | _Asked", measured: Levels, kind: "Kind | _KindKey", method: str, task: str | None, prompts: str
) -> AcceptanceCell:
    """A draft of the kind on the target under the load, in a harness of its own."""
    target, log_size = cells.target_key(basis.target.name)[0], float(np.log(basis.target.params / REFERENCE_PARAMS))
    if target not in measured.targets:  # a folder has a name of its own, and its model's size
        target = next((cell.target for cell in measured.cells if abs(cell.log_size - log_size) < SAME_SIZE), target)
    return AcceptanceCell(
        role=kind.prior, kind=kind.name, method=method, target=target, log_size=log_size, head=ASKED, document=ASKED, task=task or ASKED,
        prompts=prompts, temperature=basis.temperature, single=True,
    )  # fmt: skip


def _shape(basis: _Asked, kind: _KindKey, draft: str | None) -> CurvePosterior:
    """The shape by position: of the draft's own published curves, else of such drafts on the target, else of all such."""
    if kind.role == "lookup":
        return _any_lookup(basis.without)
    return _published_shape(basis.target, kind.name, kind.prior, draft, basis.without)


@lru_cache(256)
def _published_shape(
    target: Any, kind: str, prior: kinds.Prior, draft: str | None, without: frozenset[str]
) -> CurvePosterior:
    """Worked out once for a target (a `_Sized`) and a draft, since neither load nor machine is in it."""
    chains = _chains(without)
    of_draft = [row for rows in chains.values() for row in rows if named(draft)(row)] if draft else []
    for rows in (of_draft, chains.get(kind, ())):
        if mean := mean_curve(row for row in rows if on_target(row, target)):
            law = evidence.position_law(without)
            return acceptance.posterior(law, mean, kind=prior, extra_noise=ELSEWHERE_NOISE)
    return any_draft(prior, without)


@cache
def _chains(without: frozenset[str]) -> dict[str, list[Observation]]:
    """Published rows of drafts in chains, by kind."""
    chains: dict[str, list[Observation]] = {}
    for row in evidence.observations(without):
        if row.method != "none" and _is_chain(row):
            chains.setdefault(kinds.of_method(row.method).name, []).append(row)
    return chains


@cache
def any_draft(kind: kinds.Prior, without: frozenset[str] = evidence.NOTHING) -> CurvePosterior:
    """Acceptance by position where nothing is known of a draft but its kind: the prior."""
    return acceptance.posterior(evidence.position_law(without), {}, kind=kind)


@cache
def _any_lookup(without: frozenset[str]) -> CurvePosterior:
    """Every published curve of prompt lookup is a draw."""
    law = evidence.position_law(without)
    by_key = acceptance.chain_curves(evidence.observations(without))
    curves = [curve for key, curve in by_key.items() if key[1] == kinds.NGRAM.name]
    parts = [
        acceptance.posterior(law, lookup, kind=kinds.NGRAM.prior, extra_noise=ELSEWHERE_NOISE) for lookup in curves
    ]
    return CurvePosterior(
        np.concatenate([part.weights for part in parts]) / len(parts),
        np.concatenate([part.accept_given_prefix for part in parts]),
    )


def _source(measured: Levels, asked: AcceptanceCell, kind: _KindKey, basis: _Asked) -> str:
    """Which published rows speak, in a few words."""
    same = [cell for cell in measured.cells if cell.kind == asked.kind]
    load = f"{basis.task or 'a mix of tasks'} at temperature {basis.temperature:g}"
    here = [cell for cell in same if cell.target == asked.target]
    if not same:
        return f"no published figure is of {kind.label}: as other drafts are accepted, moved to {load}"
    if asked.head != ASKED and (of_draft := [cell for cell in here if cell.head == asked.head]):
        return f"{len(of_draft)} published figures of this very draft, moved to {load}"
    if not here:
        where = len({cell.target for cell in same})
        return f"{kind.label}: {len(same)} published figures on {where} other targets, moved to {load}"
    heads = list(dict.fromkeys(str(cell.head[-1]) for cell in here if isinstance(cell.head, tuple)))
    more = f" and {len(heads) - NAMED_HEADS} more" if len(heads) > NAMED_HEADS else ""
    return f"{kind.label}: {len(here)} published figures on {basis.target.name} ({', '.join(heads[:NAMED_HEADS])}{more}), moved to {load}"


def _outside(measured: Levels, asked: AcceptanceCell, task: str | None) -> tuple[str, ...]:
    """The inputs, by the names of a plan, beyond what was measured of such drafts."""
    same = [cell for cell in measured.cells if cell.role == asked.role]
    hottest = max((cell.temperature for cell in same), default=0.0)
    tasks = {cell.task for cell in same}
    return tuple(
        name
        for name, out in (
            ("task", task is not None and task not in tasks),
            ("temperature", asked.temperature > max(hottest, 0.0)),
        )
        if out
    )


# Beyond the draft's context.


def _within_context(level: Level, basis: LevelBasis, name: str, context: float | None) -> Level:
    """The level as it stands, or lower by what acceptance loses beyond the positions that the draft was trained to."""
    beyond = fade(*basis.lengths, context) if context and basis.lengths else 0.0
    if beyond <= 0:
        return level
    law = cells.conditions().fade
    mean, sd = level.acceptance.shift
    moved_by = (mean - law.per_efold * beyond, float(np.hypot(sd, law.sd * beyond)))
    note = (
        f"{name} was trained to {context:,.0f} positions and prompts with answers take {sum(basis.lengths or ()):,.0f}: acceptance beyond "
        f"falls as read off {', '.join(law.sources)}"
    )
    return Level(
        replace(level.acceptance, shift=moved_by),
        level.source,
        (*level.extrapolates, "input_len"),
        (*level.notes, note),
    )


def tokens_per_step(accept: Array, drafting: Drafting) -> Array:
    """τ [S] of drafts with `accept` [S, K] so drafted; a tree's choices lift it as they are taken to."""
    lifted = moved(accept, np.full(len(accept), cells.tree_lift(drafting)))
    return 1 + np.cumprod(lifted[:, : drafting.levels], axis=1).sum(axis=1)
