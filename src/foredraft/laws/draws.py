"""Draws that hold still from seed to seed: uniforms spread evenly over each factor, and the way from a uniform to its factor.

Promises: of `num` uniforms of a factor one lies in each of `num` equal strata, in an order of its own (McKay, Beckman and Conover 1979,
Latin hypercubes), so that what a factor does by itself is summed almost without chance. Refuses to know: what the factors are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]

EDGE = 1e-9  # of (0, 1): a normal has no quantile at 0 and 1
BAND = 0.02  # of the draws, to either side of an interval's end, whose values make it
BINS = 128  # of equal mass, into which the first coordinate of weighted points is cut
SMOOTH = 0.1  # of the sd of draws: a log-normal factor of less smooths their ends less than the values about them do
MOST_STEPS, CLOSE = 60, 1e-7  # of the search for an end, and how near its logarithm it stops

# Of recipes/lattice.py, which says by what measure they are good for 128 to 8,192 draws.
# fmt: off
VECTOR = (
    1, 128561, 82769, 102219, 64729, 61177, 14625, 81571, 891, 415, 23607, 3137, 37391, 31659, 78959, 95813, 57499, 75127, 66497, 106649,
    72903, 31835, 60723, 48749, 28631, 8835, 9517, 11917, 28595, 55985, 104309, 111383, 33583, 20251, 60107, 42963, 105757, 27689, 22051,
    34685, 18317, 13589, 10631, 42869, 109801, 237, 30949, 100207, 29905, 18387, 9175, 108131, 51069, 81805, 53995, 46713, 49229, 17175, 74205,
    82059, 84801, 18203, 113793, 104407, 38845, 81277, 70965, 104493, 55687, 41331, 51991, 6959, 120909, 50699, 129889, 34069, 3031, 129747,
    15169, 77443, 16451, 30881, 104587, 79987, 49943, 44927, 125319, 57421, 98075, 35563, 51253, 121555, 127619, 25313, 124445, 98443, 79831,
    6029, 34861, 53011, 83817, 108153, 77595, 99875, 95275, 101653, 70889, 77, 10379, 31703, 76297, 68817, 8237, 64893, 96141, 17143, 125853,
    113707, 5455, 45803, 91683, 73805, 116875, 39895, 77033, 126161, 112595, 75133, 77939, 118025, 97829, 108935, 25323, 51683, 118707, 8053,
    31785, 87273, 32291, 81875, 60797, 62673, 72439, 115, 101711, 23003, 5661, 78571, 96395, 44161, 27415, 112599, 45133, 5031, 105853, 65765,
    102611, 38097, 4211, 96095, 82333, 45195, 41707, 67047, 58601, 75921, 36823, 43485, 116093, 38099, 14107, 64721, 116897, 53133, 130933,
    93085, 44581, 50409, 81987, 67625, 103147, 104395, 126899, 121645, 128381, 70447, 20641, 84107, 28443, 130005, 88855, 49267, 81251, 15083,
    28619, 120755, 57555, 15741, 122143, 47249, 114925, 52363, 53019, 19223, 100109, 114213, 109291, 112693, 31075, 34771, 94131, 126595,
    19585, 44819, 96647, 112411, 112791, 100467, 98165, 83221, 22475, 32727, 88585, 102323, 26579, 2175, 4571, 116605, 113123, 90349, 13079,
    83445, 34677, 46989, 82985, 5397, 79925, 723, 106419, 19959, 75907, 48923, 75731, 87831, 43399, 122405, 20595, 669, 10987, 17955, 56529,
    127861, 100419, 81689, 29431, 49795,
)
# fmt: on


class Lattice(np.random.Generator):
    """A generator whose `stratified` uniforms are, call after call, columns `first` … `last` - 1 of one lattice, shifted by `seed`.

    Where the number of draws is a power of two, factors are spread evenly in pairs and triples too, not by themselves alone: column j of
    point i is {i·z_j / num + shift_j}, folded by 1 - |2x - 1| so that no function jumps from 1 to 0 (Cranley and Patterson 1976; Hickernell
    2002). Two generators of one seed give the same columns, so that what shares a factor shares its draws. Past the last column, and for
    other numbers of draws, it is a Latin hypercube.
    """

    def __init__(self, seed: int, first: int = 0, last: int = len(VECTOR)) -> None:
        super().__init__(np.random.PCG64([seed, first]))
        self._seed, self._places = seed, iter(range(first, min(last, len(VECTOR))))

    def column(self, num: int, *, normal: bool = False) -> Array | None:
        """The next column [num], uniform or normal, not to be written to; None where there is none."""
        place = next(self._places, None)
        if place is None or num & (num - 1):
            return None
        return _column(self._seed, place, num, normal)


@lru_cache(512)
def _column(seed: int, place: int, num: int, normal: bool) -> Array:
    """Within (0, 1), or those uniforms' normals; worked out once, since all drafts of a plan share their draws."""
    if normal:
        drawn = ndtri(_column(seed, place, num, normal=False))
    else:
        spread = np.arange(num) * VECTOR[place] % num / num + _shifts(seed)[place]
        drawn = np.clip(1 - np.abs(2 * (spread % 1) - 1), EDGE, 1 - EDGE)
    drawn.setflags(write=False)
    return drawn


@lru_cache(64)
def _shifts(seed: int) -> Array:
    return np.random.default_rng(seed).random(len(VECTOR))


def stratified(num: int, rng: np.random.Generator) -> Array:
    """`num` uniforms within (0, 1), one in each of `num` equal strata, permuted [num]; of a `Lattice` its next column."""
    column = rng.column(num) if isinstance(rng, Lattice) else None
    return _permuted(num, rng) if column is None else column


def normals(num: int, rng: np.random.Generator) -> Array:
    """`num` standard normals, one in each of `num` equal strata, permuted [num]; of a `Lattice` its next column."""
    column = rng.column(num, normal=True) if isinstance(rng, Lattice) else None
    return ndtri(_permuted(num, rng)) if column is None else column


def _permuted(num: int, rng: np.random.Generator) -> Array:
    return np.clip((rng.permutation(num) + rng.random(num)) / num, EDGE, 1 - EDGE)


def quantiles(values: ArrayLike, uniforms: Array) -> Array:
    """Draws of what `values` [V] (draws of equal weight, in any order) are of, by inverse CDF; linear between two values."""
    ordered = np.sort(np.asarray(values, dtype=float))
    return np.interp(uniforms, (np.arange(len(ordered)) + 0.5) / len(ordered), ordered)


@dataclass(frozen=True)
class WeightedPoints:
    """Points of unequal weight in an order that makes strata mean something: bins along a first coordinate, within them a second.

    `order` [P]: places of the points; `reached` [P]: weight of them and of those before; `starts`, `masses` [B]: of the bins.
    """

    order: NDArray[np.intp]
    reached: Array
    starts: Array
    masses: Array

    @classmethod
    def along(cls, weights: Array, first: Array, second: Array) -> "WeightedPoints":
        """Points of `weights` [P], which sum to 1, along the coordinates `first` and `second` [P]."""
        by_first = np.argsort(first, kind="stable")
        middles = np.cumsum(weights[by_first]) - weights[by_first] / 2
        bins = np.empty(len(weights), dtype=np.intp)
        bins[by_first] = np.minimum((middles * BINS).astype(np.intp), BINS - 1)
        order = np.lexsort((second, bins))
        masses = np.asarray(np.bincount(bins, weights, minlength=BINS), dtype=np.float64)
        return cls(order, np.cumsum(weights[order]), np.cumsum(masses) - masses, masses)

    def at(self, first: Array, second: Array) -> NDArray[np.intp]:
        """Places of the points that two uniforms [S] pick."""
        bins = np.minimum(np.searchsorted(self.starts + self.masses, first, side="right"), BINS - 1)
        target = self.starts[bins] + second * self.masses[bins]
        return self.order[np.minimum(np.searchsorted(self.reached, target), len(self.order) - 1)]


def shares(weights: Sequence[float] | Array, uniforms: Array) -> NDArray[np.intp]:
    """Which of a few alternatives each uniform picks, in their order; `weights` need not sum to 1."""
    reached = np.cumsum(weights)
    return np.minimum(np.searchsorted(reached / reached[-1], uniforms, side="right"), len(reached) - 1)


def ends(draws: Array, level: float = 0.9, factor: Array | None = None) -> tuple[float, float]:
    """The equal-tailed interval of `draws` [S]: each end the mean of the values about it, weighed by Epanechnikov's kernel over BAND to
    either side (Parzen 1979), which moves less from seed to seed than the one value that stands there.

    `factor` [S]: logs of a log-normal factor of the draws, independent of all else in them. Its distribution is known and is summed in
    place of its draws (conditional Monte Carlo; Asmussen and Glynn 2007, V.4): an end then hangs on a smooth function of what else is drawn,
    and moves several times less.
    """
    shares = (1 - level) / 2, (1 + level) / 2
    if factor is not None and (sd := float(factor.std())) > 0:
        others = np.log(draws) - factor
        if sd > SMOOTH * others.std():
            low, high = (_smooth_quantile(others, sd, share) for share in shares)
            return low, high
    low, high = (_quantile(draws, share) for share in shares)
    return low, high


def _smooth_quantile(logs: Array, sd: float, share: float) -> float:
    """Of exp(logs + sd·Z), Z a standard normal, the value below which a `share` of it lies: Newton's steps in the normal quantile of what
    lies below, which is all but straight in the logarithm; halves the bracket where a step leaves it.
    """
    goal = float(ndtri(share))
    low, high = float(logs.min()) + sd * goal, float(logs.max()) + sd * goal
    at = float(logs.mean()) + goal * float(np.hypot(logs.std(), sd))
    for _ in range(MOST_STEPS):
        if not low <= at <= high:
            at = (low + high) / 2
        normals = (at - logs) / sd
        reached = float(ndtri(np.clip(ndtr(normals).mean(), EDGE, 1 - EDGE)))
        low, high = (at, high) if reached < goal else (low, at)
        slope = float(np.exp((reached**2 - normals**2) / 2).mean()) / sd
        step = (goal - reached) / max(slope, EDGE)
        at += step
        if abs(step) < CLOSE:
            break
    return float(np.exp(at))


def _quantile(values: Array, share: float) -> float:
    """Of values [S] in any order."""
    num = len(values)
    band = min(BAND, share, 1 - share)
    start, stop = int((share - band) * num), int(np.ceil((share + band) * num))
    off = ((np.arange(start, stop) + 0.5) / num - share) / (band + 0.5 / num)
    about = np.sort(np.partition(values, (start, stop - 1))[start:stop])
    return float(np.average(about, weights=1 - off**2))
