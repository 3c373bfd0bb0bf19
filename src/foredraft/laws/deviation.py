"""What the calibrated cost law leaves of measured steps, load by load: a Gaussian process, shrunk to nothing where rows are few.

    step / modelled step = 1 + level + overhead·w + excess·(1 − w),   w = modelled plain step / modelled step,

where a step is clients·τ / (output tokens/s), so that queueing and prefill are in it; of plain rows the level alone stands. Each
coefficient is a Gaussian process over log2 of the load. Rows at two lookaheads can bend the three to any straight line in k at
their load, which is the plain rule; one row, or a load without rows, gets what the cost law and the loads near it say.

Promises: a mean and a covariance of the coefficients at any loads; without rows zero and the prior. Refuses to know: the cost
law, acceptance, files.

Shapes: N measured cells, C loads, 3 coefficients.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.laws.draws import normals

Array = NDArray[np.float64]

# sd of level, overhead and excess, and over how many doublings of the load each is much the same. Searched over Qwen3-32B with three
# drafts (vLLM, H100), its FP8 form with EAGLE-3 (two H100) and 56 simulated ladders (smooth, padded and tiled steps, mixtures of
# experts, full caches, DeepSeek-V4-Flash's published step times); a factor of 2 in any moves the errors by less than a tenth.
PRIOR_SD = np.array([0.1, 0.2, 0.2])
DOUBLINGS = np.array([4.0, 5.0, 7.0])
# How much further off than that a table may be, in its level and in the rest, and how much more its runs may scatter: what the cells make
# likeliest, factors of e, e and e^0.1 each costing half a unit of log evidence. Little else than hundreds of cells that contradict each
# other, as runs on a busy CPU do, makes their noise more than was said.
WIDER = tuple(product((1.0, 2.0, 4.0, 8.0, 16.0), (1.0, 2.0, 4.0), (1.0, 2.0, 4.0, 8.0, 16.0)))
WIDER_SD = np.array([1.0, 1.0, 0.1])
DRAFTS_ALIKE = 0.5  # correlation of overhead and excess between two drafts on one server
SHORTEST = 0.2  # a step is not predicted to take less than this share of the modelled one


class Cells(NamedTuple):
    """Measured steps: load, modelled plain step over modelled step (NaN for plain rows), measured over modelled step, and draft."""

    load: Array
    plain_share: Array
    ratio: Array
    drafts: Sequence[Hashable]


@dataclass(frozen=True)
class Deviation:
    """The posterior: `weights` [N] of the cells, and the inverse of their covariance [N, N], under a prior of `prior_sd` [3]."""

    load: Array
    features: Array
    drafts: tuple[Hashable, ...]
    weights: Array
    precision: Array
    prior_sd: Array

    def mean(self, loads: Array, draft: Hashable) -> Array:
        """Of the coefficients for `draft`, seen or not, at each load [C, 3]."""
        return np.einsum("cnj,n->cj", self._to_cells(loads, draft), self.weights)

    def covariance(self, loads: Array, draft: Hashable) -> Array:
        """Of the same, load by load, [3·C, 3·C]."""
        to_cells = np.moveaxis(self._to_cells(loads, draft), 2, 1).reshape(3 * len(loads), -1)
        nearness = self.prior_sd**2 * _nearness(loads, loads)
        prior = np.einsum("cdj,jk->cjdk", nearness, np.eye(3)).reshape(3 * len(loads), 3 * len(loads))
        return prior - to_cells @ self.precision @ to_cells.T

    def draws(self, loads: Array, draft: Hashable, num: int, rng: np.random.Generator) -> Array:
        """Coefficients drawn jointly over the loads, [C, num, 3]."""
        widest_first = (part[..., ::-1] for part in np.linalg.eigh(self.covariance(loads, draft)))
        values, vectors = widest_first
        drawn = np.stack([normals(num, rng) for _ in values], axis=1)
        off = drawn * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        return self.mean(loads, draft)[:, None] + off.reshape(num, len(loads), 3).swapaxes(0, 1)

    def _to_cells(self, loads: Array, draft: Hashable) -> Array:
        """Covariance of the coefficients with the cells, [C, N, 3]."""
        near = _nearness(loads, self.load) * _alike((draft,), self.drafts)
        return self.prior_sd**2 * near * self.features

    @staticmethod
    def sd(covariance: Array, places: NDArray[np.intp], plain_share: Array) -> Array:
        """sd of step over modelled step at each place (of the loads that `covariance` is of), at that plain share."""
        at = 3 * places[:, None] + np.arange(3)
        features = features_of(plain_share)
        return np.sqrt(np.einsum("nj,njk,nk->n", features, covariance[at[:, :, None], at[:, None, :]], features))


def deviation(cells: Cells, noise: float) -> Deviation:
    """The posterior given `cells`, each of which scatters by `noise`, or by more where they say so."""
    features, off = features_of(cells.plain_share), cells.ratio - 1
    nearness = _nearness(cells.load, cells.load) * _alike(cells.drafts, cells.drafts)
    parts = nearness * features[:, None] * features[None]

    def posterior(wider: tuple[float, float, float]) -> tuple[float, Array, Array]:
        prior_sd = PRIOR_SD * [wider[0], wider[1], wider[1]]
        covariance = parts @ prior_sd**2 + (noise * wider[2]) ** 2 * np.eye(len(off))
        _, log_volume = np.linalg.slogdet(covariance)
        misfit = off @ np.linalg.solve(covariance, off)
        return -(misfit + log_volume + ((np.log(wider) / WIDER_SD) ** 2).sum()) / 2, prior_sd, covariance

    _, prior_sd, covariance = max(map(posterior, WIDER), key=lambda each: each[0])
    precision = np.linalg.inv(covariance)
    return Deviation(
        cells.load, features, tuple(cells.drafts), precision @ off, np.asarray(precision, dtype=np.float64), prior_sd
    )


def features_of(plain_share: Array) -> Array:
    """[…, 3]: what level, overhead and excess are multiplied by; `plain_share` NaN for plain decoding."""
    plain = np.isnan(plain_share)
    return np.stack(
        [np.ones_like(plain_share), np.where(plain, 0.0, plain_share), np.where(plain, 0.0, 1 - plain_share)], axis=-1
    )


def slowdown(coefficients: Array, plain_share: Array) -> Array:
    """Step over modelled step, from coefficients […, 3]."""
    return np.maximum(1 + (coefficients * features_of(plain_share)).sum(axis=-1), SHORTEST)


def _nearness(loads: Array, others: Array) -> Array:
    """Correlation of each coefficient between two loads, [C, D, 3]."""
    doublings = np.abs(np.log2(loads)[:, None] - np.log2(others)[None])
    return np.exp(-doublings[..., None] / DOUBLINGS)


def _alike(drafts: Sequence[Hashable], others: Sequence[Hashable]) -> Array:
    """Correlation of each coefficient between two drafts, [N, M, 3]; a server's level is the same for all."""
    numbers = {draft: i for i, draft in enumerate(dict.fromkeys((*drafts, *others)))}
    same = np.equal.outer([numbers[draft] for draft in drafts], [numbers[draft] for draft in others])
    shared = np.where(same, 1.0, DRAFTS_ALIKE)
    return np.stack([np.ones_like(shared), shared, shared], axis=-1)
