"""A law as a value: what its formula is made of, and how it predicts.

Promises: each law reads link(y) = Σ_j c_j · φ_j(x; ψ), with linear coefficients c and at most two shape parameters ψ,
so that one variable-projection fitter serves all; prediction and gradient are vectorised and exact. Refuses to know: any law,
and how parameters are found.

Shapes: R rows, J terms, P parameters, M parameter vectors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from foredraft.records import Observation

Array = NDArray[Any]
Inputs = Mapping[str, Array]


@dataclass(frozen=True)
class Link:
    """A link η = forward(y), its inverse, and the inverse's slope dy/dη."""

    name: str
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]


IDENTITY = Link("identity", lambda y: y, lambda eta: eta, np.ones_like)
LOGIT = Link("logit", logit, expit, lambda eta: expit(eta) * expit(-eta))
LOG_MINUS_LOG = Link(
    "log(-log)",
    lambda y: np.log(-np.log(y)),
    lambda eta: np.exp(-np.exp(np.minimum(eta, 700.0))),
    lambda eta: -np.exp(np.minimum(eta, 700.0) - np.exp(np.minimum(eta, 700.0))),
)


@dataclass(frozen=True)
class Term:
    """One term c·φ: φ = feature(x), or where `shape` names a ψ, φ = sign·exp(-ψ·feature(x)) with a log for feature."""

    coefficient: str
    feature: Callable[[Inputs], Any]
    shape: str | None = None
    sign: float = 1.0


@dataclass(frozen=True)
class Law:
    """A law as a value. `inputs` and `output` name fields of Observation; parameters are (*coefficients, *shapes).

    `bounds` limits parameters (the rest are free), `distinct` says how many values an input must take, `pool` names the
    fields whose values must agree among the observations of one fit, `leading` is the dial whose largest run is held
    out (`leads_down`: whose smallest), `relative` asks for a robust fit of relative residuals, `limits` bounds the
    output, `unit` is the output's.
    """

    name: str
    formula: str
    output: str
    inputs: tuple[str, ...]
    terms: tuple[Term, ...]
    leading: str
    unit: str
    source: str
    note: str = ""
    link: Link = IDENTITY
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    distinct: Mapping[str, int] = field(default_factory=dict)
    pool: tuple[str, ...] = ()
    relative: bool = False
    leads_down: bool = False
    limits: tuple[float, float] = (-np.inf, np.inf)

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(term.coefficient for term in self.terms)

    @cached_property
    def shapes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(term.shape for term in self.terms if term.shape))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return self.coefficients + self.shapes

    @cached_property
    def shape_index(self) -> Array:
        """One-hot map J × Q from a term to its shape parameter; a row of zeros for a term without one."""
        return np.array([[float(term.shape == shape) for shape in self.shapes] for term in self.terms])

    def features(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """Features [..., J] of the terms; raises ValueError naming a missing, unknown or non-positive input."""
        arrays = self._checked(inputs)
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = np.broadcast_arrays(*arrays.values(), *(term.feature(arrays) for term in self.terms))
        return np.stack(columns[len(arrays) :], axis=-1).astype(float)

    def _checked(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        if set(inputs) != set(self.inputs):
            raise ValueError(f"{self.name} takes {', '.join(self.inputs)}; got {', '.join(inputs) or 'nothing'}")
        arrays = {name: np.asarray(inputs[name], dtype=float) for name in self.inputs}
        for name, values in arrays.items():
            positive = values >= 0 if name == "tree_nodes" else values > 0
            if not np.all(positive & np.isfinite(values)):
                raise ValueError(f"{name} must be positive and finite in {self.name}: leave out a row that lacks it")
        return arrays

    def basis(self, features: Array, shapes: Array) -> Array:
        """φ [M, R, J] at features [R, J] and shape parameters [M, Q]."""
        if not self.shapes:
            return np.broadcast_to(features, (len(shapes), *features.shape))
        sign = np.array([term.sign for term in self.terms])
        exponent = shapes @ self.shape_index.T
        is_power = self.shape_index.any(axis=1)
        return np.where(is_power, sign * np.exp(-exponent[:, None, :] * features), features)

    def linear_gradient(self, features: Array, theta: Array) -> tuple[Array, Array]:
        """Linear predictor η [M, R] and its gradient [M, R, P] at features [R, J] and parameters theta [M, P]."""
        num = len(self.terms)
        phi = self.basis(features, theta[:, num:])
        weighted = phi * theta[:, None, :num]
        eta = weighted.sum(axis=-1)
        if not self.shapes:
            return eta, phi
        return eta, np.concatenate([phi, (-features * weighted) @ self.shape_index], axis=-1)

    def theta(self, parameters: Mapping[str, float] | ArrayLike) -> Array:
        """Parameters as an array [..., P], from a mapping by name or an array already in order."""
        if isinstance(parameters, Mapping):
            if set(parameters) != set(self.parameters):
                raise ValueError(
                    f"{self.name} has parameters {', '.join(self.parameters)}; got {', '.join(parameters)}"
                )
            return np.array([parameters[name] for name in self.parameters], dtype=float)
        return np.asarray(parameters, dtype=float)

    def predict(self, parameters: Mapping[str, float] | ArrayLike, **inputs: ArrayLike) -> Array:
        """Output in `unit` at inputs (broadcast together) for one or several parameter vectors: [*vectors, *inputs]."""
        return self.link.inverse(self.linear(parameters, **inputs))

    def linear(self, parameters: Mapping[str, float] | ArrayLike, **inputs: ArrayLike) -> Array:
        """The same on the link's scale: η = Σ c·φ."""
        theta, features = self.theta(parameters), self.features(inputs)
        num, flat = len(self.terms), features.reshape(-1, len(self.terms))
        vectors = theta.reshape(-1, len(self.parameters))
        eta = (self.basis(flat, vectors[:, num:]) * vectors[:, None, :num]).sum(axis=-1)
        return eta.reshape(theta.shape[:-1] + features.shape[:-1])

    def refuse(self, observations: Iterable[Observation]) -> None:
        """Raise ValueError on observations whose outcomes or inputs are not comparable under this law."""
        rows = list(observations)
        if "draft_perplexity" in self.inputs:
            _refuse_tokenizers(self.name, rows)
        for name in self.pool:
            values = list(dict.fromkeys(getattr(row, name) for row in rows))
            if len(values) > 1:
                some = f"{values[0]}, {values[1]}"
                raise ValueError(f"{self.name} must not pool {len(values)} values of {name} ({some}): fit each apart")


def _refuse_tokenizers(law: str, rows: list[Observation]) -> None:
    """Perplexities per token compare only within one tokenizer."""
    for row in rows:
        if row.target_tokenizer is None or row.target_tokenizer != row.draft_tokenizer:
            raise ValueError(
                f"{law} needs draft and target perplexity in one named tokenizer, run {row.run} has target_tokenizer "
                f"{row.target_tokenizer} and draft_tokenizer {row.draft_tokenizer}: leave it out or remeasure"
            )
