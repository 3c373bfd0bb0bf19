"""The fitter behind `laws.fit`: variable projection, and the bootstrap of its fits.

Promises: one solver for every law, all starts and all draws in one batch. Refuses to know: observations and records.

Intervals. Least squares: a wild cluster bootstrap over `run` (Webb's six-point weights) of residuals corrected for
leverage per cluster (CV3, the cluster form of HC3), each draw rescaled as a t with (clusters - 1) degrees of freedom
(MacKinnon, Nielsen, Webb 2023, J. Econometrics 232). Counts: a binomial model by Fisher scoring, then the same
bootstrap of its working residuals (the score bootstrap of Kline and Santos 2012), so that scatter between runs widens
the interval although the counts are large.

Losses: Huber on relative residuals, which to first order are Hoffmann's log residuals (arXiv:2203.15556, approach 3),
because a few diverged or mis-logged runs are usual there. The threshold is 1.345 robust sd (95 % efficiency) rather
than Hoffmann's fixed 1e-3, which fits one noise level only. τ: ordinary least squares.

Shapes: M fits at once (draws or starts), R rows, J terms, Q shape parameters, P = J + Q.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from foredraft.laws.law import Array, Law
from foredraft.records import Observation

HUBER = 1.345
STEPS = 40
TOLERANCE = 1e-5


@dataclass(frozen=True)
class FitTable:
    """What the fitter sees of the observations: features [R, J], output, the trials behind it or None, runs as ids."""

    rows: tuple[Observation, ...]
    inputs: dict[str, Array]
    features: Array
    output: Array
    trials: Array | None
    runs: Array

    def keep(self, mask: Array) -> "FitTable":
        return FitTable(
            rows=tuple(row for row, inside in zip(self.rows, mask, strict=True) if inside),
            inputs={name: values[mask] for name, values in self.inputs.items()},
            features=self.features[mask],
            output=self.output[mask],
            trials=None if self.trials is None else self.trials[mask],
            runs=np.unique(self.runs[mask], return_inverse=True)[1],
        )


@dataclass(frozen=True)
class Solved:
    """A point fit: parameters [P], response on the link's scale and row weights [R], Huber's threshold (inf: none)."""

    theta: Array
    response: Array
    weight: Array
    threshold: float = math.inf


# --- The fitter ---


def _free(law: Law) -> Array:
    """Mask over coefficients: True where no bound at zero applies."""
    return np.array([law.bounds.get(name, (-np.inf,))[0] == -np.inf for name in law.coefficients])


def _coefficients(law: Law, phi: Array, response: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Weighted least squares at given φ [M, R, J]: c [M, J], residuals [M, R] and inverse Gram matrices [M, J, J].

    A coefficient bounded at zero that comes out negative is set to zero and the rest are solved again.
    """
    root = np.sqrt(weight)
    scale = np.maximum(np.sqrt(((phi * root[..., None]) ** 2).sum(axis=-2)), 1e-300)
    design = phi * root[..., None] / scale[:, None, :]
    active, free, eye = np.ones(scale.shape), _free(law), np.eye(scale.shape[-1])
    while True:
        masked = design * active[:, None, :]
        gram = masked.swapaxes(-1, -2) @ masked + eye * (1 - active + 1e-13)[:, None, :]
        inverse = np.linalg.inv(gram)
        c = (inverse @ (masked.swapaxes(-1, -2) @ (root * response)[..., None]))[..., 0]
        drop = (c < 0) & ~free & (active > 0)
        if not drop.any():
            break
        active[drop] = 0.0
    c = c * active / scale
    both = active / scale
    return c, response - (phi @ c[..., None])[..., 0], inverse * both[:, :, None] * both[:, None, :]


def _huber_weight(weight: Array, residual: Array, threshold: float) -> Array:
    """IRLS weights of Huber's loss on √weight·residual."""
    if threshold == math.inf:
        return np.broadcast_to(weight, residual.shape)
    size = np.sqrt(weight) * np.abs(residual)
    return weight * np.minimum(1.0, threshold / np.maximum(size, 1e-300))


def _solve(
    law: Law, features: Array, response: Array, weight: Array, shapes: Array, threshold: float = math.inf
) -> Array:
    """Parameters [M, P] for responses [M, R] from starting shapes [M, Q]: variable projection by Levenberg-Marquardt.

    Kaufman's approximation of the projected Jacobian (Golub and Pereyra 2003, Inverse Problems 19), all M fits at once,
    shapes kept within bounds; Huber's weights are renewed at every step.
    """
    weights = np.broadcast_to(weight, response.shape)
    state = _coefficients(law, law.basis(features, shapes), response, weights)
    if threshold == math.inf and not law.shapes:
        return state[0]
    damping = np.full(len(response), 1e-3)
    for _ in range(STEPS):
        if threshold < math.inf:
            weights = _huber_weight(weight, state[1], threshold)
            state = _coefficients(law, law.basis(features, shapes), response, weights)
        trial = _step(law, features, shapes, state, weights, damping)
        new = _coefficients(law, law.basis(features, trial), response, weights)
        better = (weights * new[1] ** 2).sum(axis=-1) <= (weights * state[1] ** 2).sum(axis=-1)
        damping = np.where(better, damping / 5, damping * 8).clip(1e-12, 1e8)
        done = (np.abs(trial - shapes) < TOLERANCE * np.abs(shapes)).all()
        shapes = np.where(better[:, None], trial, shapes)
        state = tuple(np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, state, strict=True))
        if done:
            break
    return np.concatenate([state[0], shapes], axis=-1)


def _step(law: Law, features: Array, shapes: Array, state: tuple, weights: Array, damping: Array) -> Array:
    """New shapes [M, Q] after one damped Gauss-Newton step on the projected residual."""
    c, residual, inverse = state
    phi = law.basis(features, shapes)
    slope = (-features * phi * c[:, None, :]) @ law.shape_index
    weighted = phi * weights[..., None]
    slope = slope - phi @ (inverse @ (weighted.swapaxes(-1, -2) @ slope))
    normal = slope.swapaxes(-1, -2) @ (slope * weights[..., None])
    square = np.maximum(np.diagonal(normal, axis1=-2, axis2=-1), 1e-300)
    size = np.sqrt(square)
    damped = normal / size[:, :, None] / size[:, None, :] + np.eye(size.shape[-1]) * damping[:, None, None]
    push = (slope.swapaxes(-1, -2) @ (weights * residual)[..., None])[..., 0] / size
    step = np.linalg.solve(damped, push[..., None])[..., 0] / size
    low, high = np.array([law.bounds[name] for name in law.shapes]).T
    return np.clip(shapes + np.clip(step, -0.5, 0.5), low, high)


def shape_grid(law: Law, num: int) -> Array:
    """Grid of shape parameters [num^Q, Q], even in the logarithm and inside the bounds."""
    if not law.shapes:
        return np.zeros((1, 0))
    axes = [
        np.geomspace(low * 1.5, high / 1.5, num) if num > 1 else [0.3]
        for low, high in (law.bounds[s] for s in law.shapes)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _least_squares(law: Law, table: FitTable) -> Solved:
    """Multi-start fit: the best few of a grid over the shapes, each refined; then Huber's for a relative law."""
    response = law.link.forward(table.output)
    weight = table.output**-2.0 if law.relative else np.ones_like(response)
    solved = Solved(_multi_start(law, table.features, response, weight), response, weight)
    return _robust(law, table, solved) if law.relative else solved


def _multi_start(law: Law, features: Array, response: Array, weight: Array) -> Array:
    """Parameters [P] of the best weighted least-squares fit."""
    starts = shape_grid(law, 10)
    many, weights = (np.broadcast_to(row, (len(starts), len(response))) for row in (response, weight))
    residual = _coefficients(law, law.basis(features, starts), many, weights)[1]
    starts = starts[np.argsort((weight * residual**2).sum(axis=-1))[:6]]
    refined = _solve(law, features, many[: len(starts)], weight, starts)
    error = (weight * (response - law.linear_gradient(features, refined)[0]) ** 2).sum(axis=-1)
    return refined[np.argmin(error)]


def _robust(law: Law, table: FitTable, solved: Solved) -> Solved:
    """Huber's fit from a least-squares start; the threshold follows the robust sd of its own residuals."""
    spare = len(solved.response) / max(len(solved.response) - len(law.parameters), 1)
    for _ in range(3):
        residual = np.sqrt(solved.weight) * residuals(law, table, solved)
        threshold = HUBER * 1.4826 * float(np.median(np.abs(residual))) * math.sqrt(spare)
        if threshold < 1e-10:
            return solved
        shapes = solved.theta[None, len(law.terms) :]
        theta = _solve(law, table.features, solved.response[None], solved.weight, shapes, threshold)[0]
        solved = replace(solved, theta=theta, threshold=threshold)
    return solved


def _binomial(law: Law, table: FitTable) -> Solved:
    """Binomial maximum likelihood by Fisher scoring under the law's link, ending in a working response and weights."""
    assert table.trials is not None
    mean = (table.output * table.trials + 0.5) / (table.trials + 1)
    response, weight, theta = law.link.forward(mean), np.ones_like(mean), np.zeros(len(law.parameters))
    slope = law.link.slope(response)
    if law.shapes:
        theta = _multi_start(law, table.features, response, table.trials * slope**2 / (mean * (1 - mean)))
    for _ in range(STEPS):
        weight, before = table.trials * slope**2 / (mean * (1 - mean)), theta
        if law.shapes:
            theta = _solve(law, table.features, response[None], weight, theta[None, len(law.terms) :])[0]
            eta = law.linear_gradient(table.features, theta[None])[0][0]
        else:
            theta = _coefficients(law, table.features[None], response[None], weight[None])[0][0]
            eta = table.features @ theta
        if law.shapes and (np.abs(theta - before) <= TOLERANCE * np.abs(theta)).all():
            break
        mean = np.clip(law.link.inverse(eta), 1e-9, 1 - 1e-9)
        slope = np.copysign(np.maximum(np.abs(law.link.slope(eta)), 1e-9), law.link.slope(eta))
        response = eta + (table.output - mean) / slope
    return Solved(theta, response, weight)


def residuals(law: Law, table: FitTable, solved: Solved) -> Array:
    """Residuals [R] on the link's scale."""
    return solved.response - law.linear_gradient(table.features, solved.theta[None])[0][0]


def point(law: Law, table: FitTable) -> Solved:
    return _least_squares(law, table) if table.trials is None else _binomial(law, table)


# --- Intervals ---


def _leverage_corrected(jacobian: Array, weight: Array, residual: Array, runs: Array) -> Array:
    """Residuals (I - H_cc)^-1 u_c per cluster c, the jackknife's: HC3 where a cluster is a single row."""
    root = np.sqrt(weight)
    scaled = jacobian * root[:, None]
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=0), 1e-300)
    basis = np.linalg.svd(scaled, full_matrices=False)[0]
    corrected = np.empty_like(residual)
    for run in range(runs.max() + 1):
        rows = runs == run
        values, vectors = np.linalg.eigh(np.eye(rows.sum()) - basis[rows] @ basis[rows].T)
        corrected[rows] = vectors @ ((vectors.T @ (root * residual)[rows]) / np.maximum(values, 0.05))
    return corrected / root


def _wild_weights(runs: Array, draws: int, rng: np.random.Generator) -> Array:
    """Webb's weights per cluster, times a factor per draw for a t with (clusters - 1) degrees: [draws, R]."""
    num = runs.max() + 1
    points = np.sqrt([0.5, 1.0, 1.5])
    weights = rng.choice(np.concatenate([-points, points]), size=(draws, num))
    factor = np.sqrt((num - 1) / rng.chisquare(num - 1, size=(draws, 1)))
    return (weights * factor)[:, runs]


def bootstrap(law: Law, table: FitTable, solved: Solved, draws: int, rng: np.random.Generator) -> Array:
    """Parameters [draws, P] refitted to the fit plus its corrected residuals times wild weights."""
    fitted, jacobian = (out[0] for out in law.linear_gradient(table.features, solved.theta[None]))
    weight = _huber_weight(solved.weight, solved.response - fitted, solved.threshold)
    residual = _leverage_corrected(jacobian, weight, solved.response - fitted, table.runs)
    response = fitted + residual * _wild_weights(table.runs, draws, rng)
    shapes = np.repeat(solved.theta[None, len(law.terms) :], draws, axis=0)
    return _solve(law, table.features, response, solved.weight, shapes, solved.threshold)
