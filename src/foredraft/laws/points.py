"""Weighted points of a posterior of a few dimensions: a Student t prior, any likelihood, no sampler and no seed.

Promises: the same points every time; they close in on the posterior by tempering the likelihood, each round drawn where the last one
found mass, and are weighted by prior × likelihood over the density that they were drawn from. Refuses to know: what they are points of.

Shapes: P points × D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainccinv, gammaln, ndtri

Array = NDArray[np.float64]
NUM_POINTS = 2048
ROUNDS = 40
EFFECTIVE = 0.2  # share of the points that must carry weight before the likelihood is taken more seriously
PROPOSAL_TAIL = 5.0
SMALLEST = 1e-9  # power of the likelihood with which the first round may begin


@dataclass(frozen=True)
class StudentT:
    """A multivariate Student t: `mean` [D], `scale` [D, D] and degrees of freedom `tail`."""

    mean: Array
    scale: Array
    tail: float

    @cached_property
    def root(self) -> Array:
        return np.asarray(np.linalg.cholesky(self.scale), dtype=np.float64)

    def points(self, num: int) -> Array:
        """`num` points [P, D] spread evenly over the distribution."""
        return self.mean + _standard(num, len(self.mean), self.tail) @ self.root.T

    def distance(self, points: Array) -> Array:
        """Squared Mahalanobis distance of each point, [P]."""
        return (((points - self.mean) @ np.linalg.inv(self.root).T) ** 2).sum(axis=1)

    def log_density(self, points: Array) -> Array:
        """[P]."""
        size, tail = len(self.mean), self.tail
        constant = gammaln((tail + size) / 2) - gammaln(tail / 2) - size / 2 * np.log(tail * np.pi)
        return constant - np.log(np.diag(self.root)).sum() - (tail + size) / 2 * np.log1p(self.distance(points) / tail)


def close_in(prior: StudentT, log_likelihood: Callable[[Array], Array], num: int = NUM_POINTS) -> tuple[Array, Array]:
    """`num` points [P, D] of the posterior and the log of prior over the density that they come from, [P].

    Their weights are exp(that + log likelihood); the mean of these is the evidence.
    """
    proposal, power = prior, 0.0
    for _ in range(ROUNDS - 1):
        points = proposal.points(num)
        base = prior.log_density(points) - proposal.log_density(points)
        if power == 1.0:
            return points, base
        fit = log_likelihood(points)
        power = _power(base, fit, power, EFFECTIVE * num)
        weights = normalised(base + power * fit)
        mean = weights @ points
        spread = (points - mean).T @ ((points - mean) * weights[:, None])
        proposal = StudentT(mean, spread + 1e-12 * np.eye(len(mean)), PROPOSAL_TAIL)
    points = proposal.points(num)
    return points, prior.log_density(points) - proposal.log_density(points)


def normalised(log_weights: Array) -> Array:
    """Weights of sum 1."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def log_sum(logs: Array, axis: int | tuple[int, ...]) -> Array:
    """log Σ exp over `axis`, which stays with length 1."""
    peak = logs.max(axis=axis, keepdims=True)
    return np.asarray(peak + np.log(np.exp(logs - peak).sum(axis=axis, keepdims=True)), dtype=np.float64)


def _power(base: Array, fit: Array, least: float, effective: float) -> float:
    """The largest power of the likelihood at which so many points still carry weight; `least` where none does."""

    def carries(power: float) -> bool:
        return 1 / (normalised(base + power * fit) ** 2).sum() >= effective

    if carries(1.0):
        return 1.0
    low, high = np.log(max(least, SMALLEST)), 0.0
    if not carries(np.exp(low)):
        return least
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if carries(np.exp(middle)) else (low, middle)
    return float(np.exp(low))


@cache
def _standard(num: int, size: int, tail: float) -> Array:
    """Points of the Student t of mean 0 and scale 1."""
    uniforms = lattice(num, size + 1)
    return ndtri(uniforms[:, :-1]) * np.sqrt(tail / (2 * gammainccinv(tail / 2, uniforms[:, -1:])))


@cache
def lattice(num: int, size: int) -> Array:
    """`num` points [num, size] spread evenly over the unit cube.

    Multiples of the powers of the root of x^(size + 1) = x + 1 (Roberts's R sequence).
    """
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (size + 1))
    return (0.5 + np.arange(1, num + 1)[:, None] * root ** -np.arange(1.0, size + 1)) % 1.0
