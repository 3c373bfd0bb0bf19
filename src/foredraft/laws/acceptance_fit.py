"""The position law from many curves: a prior per kind of draft, pooled so that a kind with few curves borrows from the others.

Promises: EM over fixed points of each curve, deterministic. Refuses to know: documents, which weigh in through the lessons' weights.

Of (level, step) a kind's mean is its curves' with OF_CENTRE more at the mean over kinds, and its scale its curves' with OF_SCALE more at
the pooled one, widened by what kinds differ where its own curves are few. Carry is drawn about the kind's factor times the step.
With no step there is none but for the offset, which is constant α.

Shapes: J curves of a kind × P points × 3 parameters, N levels of noise.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.kinds import PRIORS, Prior
from foredraft.laws.acceptance import (
    DECAY,
    MAX_POSITIONS,
    NOISES,
    Curve,
    KindPrior,
    PositionLaw,
    check_curve,
    log_likelihood,
)
from foredraft.laws.points import StudentT, close_in, log_sum

Array = NDArray[np.float64]

VAGUE = StudentT(np.array([1.2, -0.1, 0.0]), np.diag([1.5, 1.0, 1.0]), 4.0)  # wide enough for every curve's points
TAIL = 1.5
ORDINARY = np.array([1.2, -0.1])  # level and step where pooling starts, a kind's worth at half
# What a kind's factor is drawn to. A draft that goes on from its own estimates and settles geometrically carries DECAY / (1 - DECAY) of
# its first step on; half of it where a draft does not feed on itself, as all curves together show. What sets an independent model's second
# position off from its first it takes back by half: it reads both alike, and a constant α lies between.
FACTORS: dict[Prior, float] = {"head": DECAY / (1 - DECAY), "mtp": DECAY / (1 - DECAY), "lm": -0.5}
OTHER_FACTOR = DECAY / (1 - DECAY) / 2
PARENTS: dict[Prior, Prior] = {"mtp": "head"}  # one-step layers draft token by token as heads do
OF_CENTRE, OF_SCALE = 1.0, 3.0  # curves' worth of the mean over kinds and of the pooled scale
FACTOR_SD, OFFSET_SD = 0.3, 0.02  # of a kind's factor about that, of its carry about none at no step
SURER = 0.55  # sd of carry over that which EM finds: intervals left out by document hold 97 % without
LEAST = np.array([0.3, 0.1, 0.02])  # sd of level, step and carry that no kind falls below
NOISE_WORTH = {True: 0.5, False: 4.0}  # curves' worth of even noise: of one run, of runs apart
LONG = 5  # lookaheads of a curve that can tell its noise from its three parameters
ROUNDS = 30
NUM_POINTS = 1024


class Lesson(NamedTuple):
    """One curve to learn from: its weight (say 1/√n of its document, so that none drowns the rest), which prior it follows, and
    whether its τ are of one run's positions.
    """

    curve: Curve
    weight: float = 1.0
    kind: Prior = "head"
    one_run: bool = False


class Group(NamedTuple):
    """The lessons of a kind and way of measuring at their points: `points` [J, P, 3], log of likelihood over the density of the points
    by level of noise `fits` [J, N, P], shares [J], and which are long enough to tell their noise [J].
    """

    kind: Prior
    one_run: bool
    points: Array
    fits: Array
    share: Array
    long: NDArray[np.bool_]


def fit_position_law(lessons: Sequence[Lesson]) -> PositionLaw:
    """The law from `lessons`. Raises ValueError with fewer than 4 curves of at least 3 lookaheads: shorter ones teach no drift."""
    usable = [
        lesson._replace(curve={k: t for k, t in lesson.curve.items() if k <= MAX_POSITIONS}) for lesson in lessons
    ]
    usable = [lesson for lesson in usable if len(lesson.curve) >= 3]
    if len(usable) < 4:
        raise ValueError(f"the position law needs 4 curves τ(k) with 3 or more lookaheads, got {len(usable)}")
    for lesson in usable:
        check_curve(lesson.curve)
    return _em(_groups(usable), len(usable))


class Pooled(NamedTuple):
    """Hyperparameters: by kind the mean and scale of (level, step), and carry's factor of the step, offset and sd; and shares of noise."""

    mean: dict[Prior, Array]
    scale: dict[Prior, Array]
    factor: dict[Prior, float]
    offset: dict[Prior, float]
    sd: dict[Prior, float]
    noise: dict[bool, Array]

    def prior(self, kind: Prior) -> StudentT:
        """The Student t of (level, step, carry)."""
        factor, scale = self.factor[kind], self.scale[kind]
        joint = np.zeros((3, 3))
        joint[:2, :2] = scale
        joint[2, :2] = joint[:2, 2] = factor * scale[1]
        joint[2, 2] = factor**2 * scale[1, 1] + self.sd[kind] ** 2
        carry = self.offset[kind] + factor * self.mean[kind][1]
        return StudentT(np.array([*self.mean[kind], carry]), joint, TAIL)


class Sums(NamedTuple):
    """What a round of EM adds up: by kind the weighted moments of (1, level, step, carry) [4, 4] and the curves' worth; noise; evidence."""

    moments: dict[Prior, Array]
    worth: dict[Prior, float]
    noise: dict[bool, Array]
    evidence: float


def _groups(lessons: Sequence[Lesson]) -> list[Group]:
    groups = []
    for kind in PRIORS:
        for one_run in (True, False):
            alike = [lesson for lesson in lessons if (lesson.kind, lesson.one_run) == (kind, one_run)]
            if alike:
                points, fits = zip(
                    *(_points(tuple(lesson.curve.items()), one_run, kind) for lesson in alike), strict=True
                )
                share = np.array([lesson.weight for lesson in alike])
                long = np.array([len(lesson.curve) >= LONG for lesson in alike])
                groups.append(Group(kind, one_run, np.stack(points), np.stack(fits), share, long))
    return groups


@cache
def _points(items: tuple[tuple[int, float], ...], one_run: bool, kind: Prior) -> tuple[Array, Array]:
    """Points where a curve has mass under the vague prior [P, 3], and log of its likelihood over their density [N, P]."""
    curve, even = dict(items), np.log(_even(one_run))[:, None]

    def by_noise(points: Array) -> Array:
        return log_likelihood(points, curve, one_run, kind)

    points, base = close_in(VAGUE, lambda points: log_sum(by_noise(points) + even, 0)[0], NUM_POINTS)
    return points, by_noise(points) + base - VAGUE.log_density(points) - np.log(NUM_POINTS)


def _even(one_run: bool) -> Array:
    """Shares of noise before any curve: every level alike, but the runs' least alone where the positions are of one run."""
    weights = np.where(NOISES[:, 0] > NOISES[:, 0].min(), 1e-6, 1.0) if one_run else np.ones(len(NOISES))
    return weights / weights.sum()


def _em(groups: Sequence[Group], num_curves: int) -> PositionLaw:
    pooled = Pooled(
        mean=dict.fromkeys(PRIORS, ORDINARY), scale=dict.fromkeys(PRIORS, np.diag([0.6, 0.1])), factor=dict.fromkeys(PRIORS, 0.5),
        offset=dict.fromkeys(PRIORS, 0.0), sd=dict.fromkeys(PRIORS, 0.2), noise={way: _even(way) for way in (True, False)},
    )  # fmt: skip
    ordinary, evidence = ORDINARY, 0.0
    for _ in range(ROUNDS):
        sums = _expected(groups, pooled)
        evidence = sums.evidence
        mean, scale, ordinary = _levels(sums, pooled, ordinary)
        factor, offset, sd = _carries(sums, pooled)
        noise = {
            way: (sums.noise[way] + NOISE_WORTH[way] * _even(way)) / (sums.noise[way].sum() + NOISE_WORTH[way])
            for way in sums.noise
        }
        pooled = Pooled(mean, scale, factor, offset, sd, noise)
    pooled = pooled._replace(sd={kind: SURER * sd for kind, sd in pooled.sd.items()})
    return PositionLaw(
        priors=tuple(_record(kind, pooled.prior(kind)) for kind in PRIORS), tail=TAIL,
        noise_of_one_run=tuple(pooled.noise[True].tolist()), noise_of_runs=tuple(pooled.noise[False].tolist()), num_curves=num_curves,
        evidence=evidence,
    )  # fmt: skip


def _expected(groups: Sequence[Group], pooled: Pooled) -> Sums:
    """Where each curve's parameters lie under the priors of the last round."""
    moments: dict[Prior, Array] = {kind: np.zeros((4, 4)) for kind in PRIORS}
    worth = dict.fromkeys(PRIORS, 0.0)
    noise, evidence, total_share = {way: np.zeros(len(NOISES)) for way in (True, False)}, 0.0, 0.0
    for group in groups:
        prior, flat = pooled.prior(group.kind), group.points.reshape(-1, 3)
        log_prior = prior.log_density(flat).reshape(group.points.shape[:2])
        joint = group.fits + log_prior[:, None, :] + np.log(pooled.noise[group.one_run])[:, None]
        total = log_sum(joint, (1, 2))
        joint = np.exp(joint - total) * group.share[:, None, None]
        evidence += float(group.share @ total.ravel())
        total_share += float(group.share.sum())
        noise[group.one_run] += joint[group.long].sum(axis=(0, 2))
        pull = joint.sum(axis=1).ravel() * (TAIL + 3) / (TAIL + prior.distance(flat))
        columns = np.column_stack([np.ones(len(flat)), flat])
        moments[group.kind] += (columns * pull[:, None]).T @ columns
        worth[group.kind] += float(group.share.sum())
    return Sums(moments, worth, noise, evidence / total_share)


def _levels(sums: Sums, pooled: Pooled, ordinary: Array) -> tuple[dict[Prior, Array], dict[Prior, Array], Array]:
    """Mean and scale of (level, step) by kind, and their mean over kinds."""
    moments, worth, mean = sums.moments, sums.worth, dict(pooled.mean)
    for kind in PRIORS:
        centre = mean[PARENTS[kind]] if kind in PARENTS else ordinary * (1.0, 0.0) if kind == "lm" else ordinary
        mean[kind] = (OF_CENTRE * centre + moments[kind][0, 1:3]) / (OF_CENTRE + moments[kind][0, 0])
    trust = {kind: moments[kind][0, 0] / (moments[kind][0, 0] + OF_CENTRE) for kind in PRIORS}
    ordinary = (0.5 * ORDINARY + sum(trust[kind] * mean[kind] for kind in PRIORS)) / (0.5 + sum(trust.values()))
    about = {kind: _about(moments[kind], mean[kind]) for kind in PRIORS}
    alike = sum(about.values()) / sum(worth.values()) + 0.1 * np.diag(LEAST[:2] ** 2)
    between = sum(trust[kind] * np.outer(mean[kind] - ordinary, mean[kind] - ordinary) for kind in PRIORS) / sum(
        trust.values()
    )
    scale: dict[Prior, Array] = {
        kind: (OF_SCALE * alike + about[kind]) / (OF_SCALE + worth[kind])
        + np.diag(LEAST[:2] ** 2)
        + between / (OF_CENTRE + worth[kind])
        for kind in PRIORS
    }
    return mean, scale, ordinary


def _about(moments: Array, mean: Array) -> Array:
    """Scatter of (level, step) about `mean`."""
    cross = np.outer(moments[0, 1:3], mean)
    return moments[1:3, 1:3] - cross - cross.T + moments[0, 0] * np.outer(mean, mean)


def _carries(sums: Sums, pooled: Pooled) -> tuple[dict[Prior, float], dict[Prior, float], dict[Prior, float]]:
    """By kind the factor of the step that carry is drawn about, its offset, and its sd, which is drawn to the pooled one."""
    factor: dict[Prior, float] = {}
    offset: dict[Prior, float] = {}
    left: dict[Prior, float] = {}
    for kind in PRIORS:
        moments, variance = sums.moments[kind], pooled.sd[kind] ** 2
        matrix = moments[np.ix_([0, 2], [0, 2])] / variance + np.diag([OFFSET_SD**-2, FACTOR_SD**-2])
        centre = np.array([0.0, FACTORS.get(kind, OTHER_FACTOR) * FACTOR_SD**-2])
        line = np.linalg.solve(matrix, moments[[0, 2], 3] / variance + centre)
        offset[kind], factor[kind] = line.tolist()
        residual = np.array([-line[0], 0.0, -line[1], 1.0])
        left[kind] = float(residual @ moments @ residual)
    alike = sum(left.values()) / sum(sums.worth.values()) + LEAST[2] ** 2
    sd: dict[Prior, float] = {
        kind: ((OF_SCALE * alike + left[kind]) / (OF_SCALE + sums.worth[kind])) ** 0.5 for kind in PRIORS
    }
    return factor, offset, sd


def _record(kind: Prior, prior: StudentT) -> KindPrior:
    return KindPrior(kind, tuple(prior.mean.tolist()), tuple(map(tuple, prior.scale.tolist())))
