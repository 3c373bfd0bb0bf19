"""A draft to weigh: what it is, what it costs to train, and draws of its acceptance by position.

Promises: every uncertain ingredient is a named factor that can be frozen at its centre, so that what a further run
would settle can be priced. Refuses to know: which drafts are worth weighing.

Shapes: S draws, K positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft import kinds
from foredraft.laws import forms
from foredraft.laws.acceptance import CurvePosterior
from foredraft.laws.draws import normals, quantiles, shares, stratified
from foredraft.laws.fit import run_sd
from foredraft.machines import compute_rate
from foredraft.plan.trees import PUBLISHED, Tail
from foredraft.records import DraftChoice, DraftLengths, Fit, Machine
from foredraft.shapes import Shape

Array = NDArray[np.float64]

TRAINING_MFU = 0.35  # assumed share of peak while training


class AcceptanceDraws(Protocol):
    """Draws of accept_given_prefix; `frozen` names the factors to hold at their centre."""

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array: ...


class LookedUp(NamedTuple):
    """What a look-up before a draft takes: its share of the steps, and the tokens accepted and drafted in each of those, all [M, S]."""

    share: Array
    accepted: Array
    drafted: Array


class Mixture(Protocol):
    """What a look-up takes of the steps of a draft whose own tokens per step are `tau` [M, S]."""

    def draws(self, tau: Array, rng: np.random.Generator, frozen: frozenset[str]) -> LookedUp: ...


class Steps(NamedTuple):
    """Tokens per step in M modes [M, S], and what of the steps a look-up takes (None: nothing)."""

    tau: Array
    looked_up: LookedUp | None = None

    def at(self, modes: NDArray[np.intp]) -> "Steps":
        """Those of some modes."""
        looked_up = self.looked_up and LookedUp(*(part[modes] for part in self.looked_up))
        return Steps(self.tau[modes], looked_up)

    def spent(self, depth: Array, nodes: Array, running: Array) -> tuple[Array, Array]:
        """Passes of the draft and drafted tokens verified in a step of `running` sequences, on average: the draft rests where all of them are
        looked up. Of a draft of blocks, whose one pass hardly gets shorter, too much is counted.
        """
        if self.looked_up is None:
            return depth, nodes
        share, _, drafted = self.looked_up
        return depth * (1 - share**running), nodes + share * (drafted - nodes)


class StudyRange(NamedTuple):
    """The own study that a candidate rests on: its least and most training tokens, and what it is, for people."""

    least: float
    most: float
    note: str


@dataclass(frozen=True)
class Candidate:
    """A draft to weigh: what it is, its shape (None: no model), its acceptance, which inputs left their data's range, the
    own study behind it (None: published measurements), what its trees gain, what a plan should say of its acceptance, and the look-up
    before it (None: none), of which `acceptance` knows nothing. `lengths`: what was measured of its confidence.
    """

    choice: DraftChoice
    shape: Shape | None
    acceptance: AcceptanceDraws
    extrapolates: tuple[str, ...] = ()
    study_range: StudyRange | None = None
    tail: Tail = PUBLISHED
    notes: tuple[str, ...] = ()
    lookup: Mixture | None = None
    lengths: DraftLengths | None = None

    @property
    def block(self) -> int | None:
        """The most tokens that one pass drafts; None of a draft that drafts one after another."""
        return (self.shape.head.block or None) if self.shape and self.shape.head else None


@dataclass(frozen=True)
class CurveAcceptance:
    """Acceptance of a draft whose kind has measured curves: a posterior, its logits moved by what more or less training data does, and off
    by what the few prompts of the curves leave open.
    """

    posterior: CurvePosterior
    gain: tuple[float, ...] = (1.0,)  # draws of (τ-1) over (τ-1) at the reference tokens
    sampling_sd: float = 0.0

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        drawn = self.posterior.draws(num, rng)
        picked = quantiles(self.gain, stratified(num, rng))
        base = np.tile(self.posterior.median_accept, (num, 1)) if "draft" in frozen else drawn
        gain = np.full(num, np.median(self.gain)) if "data" in frozen else picked
        off = 0.0 if "draft" in frozen else self.sampling_sd * normals(num, rng)
        return moved(base, level_shift(self.posterior.median_accept, gain) + off)


class _Predicted(NamedTuple):
    """What a law says at some inputs, on its link's scale: at its parameters, under each bootstrap draw, and the sd of a further run."""

    centre: float
    draws: Array
    sd: float
    inverse: Callable[[Array], Array]


@dataclass(frozen=True)
class SizeAcceptance:
    """Acceptance of an independent model of a size: α from laws (in the loss gap, one per loss law; or an own one), then
    by position as in `spread`, or near-constant. `middle`: logits [K] less the first, for "draft" frozen; none: constant.
    """

    fits: tuple[Fit, ...]
    inputs: dict[str, float]
    spread: CurvePosterior = field(repr=False)
    middle: tuple[float, ...] = ()

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        which = shares(np.ones(len(self.fits)), stratified(num, rng))
        data, run = stratified(num, rng), normals(num, rng)
        level = np.empty(num)
        for i, predicted in enumerate(self._predicted):
            here = which == i
            eta = predicted.centre if "data" in frozen else quantiles(predicted.draws, data[here])
            scatter = np.zeros(here.sum()) if "draft" in frozen else predicted.sd * run[here]
            level[here] = logit(np.clip(predicted.inverse(eta + scatter), 1e-4, 1 - 1e-4))
        if "loss law" in frozen:
            centre = level.mean()
            for i in np.unique(which):
                level[which == i] += centre - level[which == i].mean()
        shape = _logit(self.spread.draws(num, rng))
        middle = np.array(self.middle) if self.middle else np.zeros_like(shape)
        shape = shape - shape[:, :1] if "draft" not in frozen else middle
        return expit(level[:, None] + shape)

    @cached_property
    def _predicted(self) -> tuple[_Predicted, ...]:
        predicted = []
        for fitted in self.fits:
            law = forms.law_named(fitted.law)
            vectors = np.array([law.theta(fitted.parameters), *fitted.draws])
            centre, *draws = law.linear(vectors, **self.inputs)
            sd = run_sd(fitted, **self.inputs)
            predicted.append(_Predicted(float(centre), np.array(draws), sd, law.link.inverse))
        return tuple(predicted)


def moved(accept: Array, shift: Array) -> Array:
    """accept_given_prefix [S, K] with its logits moved by `shift` [S]."""
    return expit(_logit(accept) + shift[:, None])


def _logit(accept: Array) -> Array:
    """As scipy's, several times as fast on large arrays."""
    inside = np.clip(accept, 1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside))


def level_shift(accept: Array, gain: Array) -> Array:
    """The move of the logits of `accept` [K] that multiplies τ - 1 by each `gain` [S]."""
    shifts = np.linspace(-4, 4, 161)
    accepted = np.cumprod(moved(np.tile(accept, (len(shifts), 1)), shifts), axis=1).sum(axis=1)
    base = np.cumprod(accept).sum()
    return np.interp(gain, accepted / base, shifts)


def head_training_flops(target: Shape, shape: Shape, tokens: float) -> float:
    """Of a head of `shape`: the target's pass, and three passes' worth of each of the head's, of which its kind takes several."""
    training = kinds.of_shape(shape).training
    passes = training.passes if training else 1
    return tokens * (target.flops_per_token(0) + 3 * passes * shape.flops_per_token(0))


def training_rate(machine: Machine) -> float:
    """FLOP/s of training in the type that `training_dtype` names."""
    return TRAINING_MFU * compute_rate(machine, training_dtype(machine))[0]


def training_dtype(machine: Machine) -> str:
    """bfloat16, or float32 where the machine is faster at that (processors without instructions for bfloat16)."""
    rate, computed = compute_rate(machine, "bfloat16")
    return "bfloat16" if computed == "bfloat16" and rate >= compute_rate(machine, "float32")[0] else "float32"


def choice(
    name: str, shape: Shape, machine: Machine, tokens: float | None, flops: float, *, hub_id: str | None = None
) -> DraftChoice:
    """A draft of `shape` to train on `tokens` for `flops` on `machine`, or at 0 of them one that exists, at `hub_id` if that is known."""
    kind = kinds.of_shape(shape)
    tools = kind.training.tools if flops and kind.training else ()
    return DraftChoice(
        kind=kind.role, name=name, method=kind.name if kind.role == "head" else None, params=float(shape.params),
        non_embedding_params=float(shape.non_embedding_params), num_layers=shape.num_layers,
        hidden_size=shape.hidden_size, draft_vocab=shape.draft_vocab_size, draft_tokens=tokens, training_flops=flops,
        training_gpu_hours=flops / training_rate(machine) / 3600, training_dtype=training_dtype(machine) if flops else None,
        hub_id=hub_id, trained_by=() if kinds.OURS in tools else tools,
    )  # fmt: skip
