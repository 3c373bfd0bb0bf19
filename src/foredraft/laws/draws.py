"""Draws that hold still from seed to seed: uniforms spread evenly over each factor, and the way from a uniform to its factor.

Promises: of `num` uniforms of a factor one lies in each of `num` equal strata, in an order of its own (McKay, Beckman and Conover 1979,
Latin hypercubes), so that what a factor does by itself is summed almost without chance. Refuses to know: what the factors are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

EDGE = 1e-9  # of (0, 1): a normal has no quantile at 0 and 1
BINS = 128  # of equal mass, into which the first coordinate of weighted points is cut


def stratified(num: int, rng: np.random.Generator) -> Array:
    """`num` uniforms within (0, 1), one in each of `num` equal strata, permuted [num]."""
    return np.clip((rng.permutation(num) + rng.random(num)) / num, EDGE, 1 - EDGE)


def normals(num: int, rng: np.random.Generator) -> Array:
    """`num` standard normals, one in each of `num` equal strata, permuted [num]."""
    return ndtri(stratified(num, rng))


def quantiles(values: ArrayLike, uniforms: Array) -> Array:
    """Draws of what `values` [V] (draws of equal weight, in any order) are of, by inverse CDF; linear between two values."""
    return np.quantile(np.asarray(values, dtype=float), uniforms)


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
        masses = np.bincount(bins, weights, minlength=BINS)
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
