"""The laws: every map from dials to an outcome, as a frozen value.

Promises: each law reads link(y) = Σ_j c_j · φ_j(x; ψ), with linear coefficients c and at most two shape parameters ψ,
so that one variable-projection fitter serves all; prediction and gradient are vectorised and exact. Every published
coefficient has its source. Refuses to know: how parameters are found, and where observations come from.

Shapes: R rows, J terms, P parameters, M parameter vectors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri

from foredraft.records import Estimate, Observation, Record, decode

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

    @property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(term.coefficient for term in self.terms)

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(term.shape for term in self.terms if term.shape))

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.coefficients + self.shapes

    @property
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

    def gradient(self, parameters: Mapping[str, float] | ArrayLike, **inputs: ArrayLike) -> Array:
        """d output / d parameters [*inputs, P] at one parameter vector."""
        features = self.features(inputs)
        eta, slopes = self.linear_gradient(features.reshape(-1, len(self.terms)), self.theta(parameters)[None])
        return (self.link.slope(eta[0])[:, None] * slopes[0]).reshape(*features.shape[:-1], -1)

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


# --- Loss laws ---


class LossLaw(Record, frozen=True):
    """A published L(N, D) = E + A/N^a + B/D^b in nats per token of its own tokenizer.

    N is counted in `params_unit` and D in `tokens_unit`; `text` is False for laws of audio or several modalities.
    """

    name: str
    E: float
    A: float
    B: float
    a: float
    b: float
    data: str
    source: str
    params_unit: float = 1.0
    tokens_unit: float = 1.0
    text: bool = True

    @property
    def parameters(self) -> dict[str, float]:
        """Coefficients for N in parameters and D in tokens, whatever units they were published in."""
        A, B = self.A * self.params_unit**self.a, self.B * self.tokens_unit**self.b
        return {"E": self.E, "A": A, "B": B, "a": self.a, "b": self.b}

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss, nats per token."""
        return LOSS_LAW.predict(self.parameters, draft_params=params, draft_tokens=tokens)

    def perplexity(self, params: ArrayLike, tokens: ArrayLike) -> Array:
        """exp(loss), per token."""
        return np.exp(self.loss(params, tokens))


@cache
def loss_laws() -> dict[str, LossLaw]:
    """All published loss laws by name. Fits of the same data differ, a systematic error: plan under several."""
    text = (files("foredraft") / "published" / "loss_laws.json").read_text(encoding="utf-8")
    return {law.name: law for law in decode(list[LossLaw], text, name="loss_laws.json")}


TEXT_LOSS_LAWS = (
    "hoffmann_rounded", "besiroglu", "hoffmann", "besiroglu_notebook", "kyo_takano", "harms", "scalefit_mse",
    "scalefit_huber", "scalefit_basinhopping",
)  # fmt: skip
"""Names of the text laws, in the order in which to prefer them; the first two are the least to plan under."""

LOSS_LAW = Law(
    name="loss_law",
    formula="L = E + A/N^a + B/D^b",
    output="loss",
    inputs=("draft_params", "draft_tokens"),
    terms=(
        Term("E", lambda x: np.ones_like(x["draft_params"])),
        Term("A", lambda x: np.log(x["draft_params"]), "a"),
        Term("B", lambda x: np.log(x["draft_tokens"]), "b"),
    ),
    leading="draft_tokens",
    unit="nats/token",
    source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2 and approach 3",
    note="N parameters, D training tokens, loss per token of the model's own tokenizer",
    bounds={"E": (0, np.inf), "A": (0, np.inf), "B": (0, np.inf), "a": (0.02, 1.5), "b": (0.02, 1.5)},
    distinct={"draft_params": 3, "draft_tokens": 3},
    pool=("dataset", "draft_tokenizer"),
    relative=True,
    limits=(0, np.inf),
)

# --- Acceptance per token ---

_ACCEPT: dict[str, Any] = {"output": "accept_prob", "unit": "probability per token", "limits": (0.0, 1.0)}
_ACCEPT_POOL = ("method", "family", "dataset", "temperature", "accept_kind")


def _one(x: Inputs) -> Array:
    return np.ones_like(next(iter(x.values())))


ACCEPT_PLANE = Law(
    name="accept_plane",
    formula="α = A1·x + B1·y + C1",
    inputs=("draft_perplexity", "target_perplexity"),
    terms=(Term("A1", lambda x: x["draft_perplexity"]), Term("B1", lambda x: x["target_perplexity"]), Term("C1", _one)),
    leading="draft_perplexity",
    leads_down=True,
    source="arXiv:2603.11053, acceptance plane",
    note="x, y perplexities of draft and target in one tokenizer; A1, B1 per unit of perplexity",
    distinct={"draft_perplexity": 2, "target_perplexity": 2},
    pool=_ACCEPT_POOL,
    **_ACCEPT,
)
SDSL_PLANE: Mapping[str, float] = {"A1": -0.0067, "B1": 0.01297, "C1": 0.642}
"""Published coefficients (arXiv:2603.11053): 13 targets and their drafts on HellaSwag, R² 0.602."""
SDSL_PLANE_RESIDUAL_SD = 0.00128**0.5
"""Square root of the plane's published MSE, probability."""
SDSL_PLANE_DOMAIN: Mapping[str, tuple[float, float]] = {
    "draft_perplexity": (4.0, 40.0),
    "target_perplexity": (4.0, 40.0),
}
"""About the range of its data. With a draft no better than its target the plane cannot exceed 0.70 at target perplexity
10, where standalone drafts measure .72-.89."""


def sdsl_accept_prob(draft_perplexity: float, target_perplexity: float, level: float = 0.9) -> Estimate:
    """α on the published plane; the interval is for a new pair and rests on the residual sd alone."""
    inputs = {"draft_perplexity": draft_perplexity, "target_perplexity": target_perplexity}
    value = float(ACCEPT_PLANE.predict(SDSL_PLANE, **inputs))
    half = float(ndtri((1 + level) / 2)) * SDSL_PLANE_RESIDUAL_SD
    low, mid, high = np.clip([value - half, value, value + half], 0, 1).tolist()
    outside = tuple(name for name, (least, most) in SDSL_PLANE_DOMAIN.items() if not least <= inputs[name] <= most)
    return Estimate(
        value=mid,
        low=low,
        high=high,
        unit=ACCEPT_PLANE.unit,
        source=ACCEPT_PLANE.source,
        level=level,
        extrapolates=outside,
    )


def _accept(name: str, formula: str, inputs: tuple[str, ...], terms: tuple[Term, ...], note: str, **kwargs: Any) -> Law:
    base = {
        "link": LOGIT,
        "leading": "draft_params",
        "source": "bounded rival of arXiv:2603.11053",
        "pool": _ACCEPT_POOL,
        **_ACCEPT,
    }
    return Law(name=name, formula=formula, inputs=inputs, terms=terms, note=note, **{**base, **kwargs})


_RATIO = Term("c1", lambda x: np.log(x["draft_params"] / x["target_params"]))
ACCEPT_SIZE = _accept(
    "accept_size", "logit α = c0 + c1·ln N", ("draft_params",),
    (Term("c0", _one), Term("c1", lambda x: np.log(x["draft_params"]))),
    "one target; c1 in logits per e-fold of draft parameters", distinct={"draft_params": 2},
    pool=("target", *_ACCEPT_POOL),
)  # fmt: skip
ACCEPT_RATIO = _accept(
    "accept_ratio", "logit α = c0 + c1·ln(N/M)", ("draft_params", "target_params"), (Term("c0", _one), _RATIO),
    "several targets; c1 in logits per e-fold of the size ratio",
)  # fmt: skip
ACCEPT_RATIO_TOKENS = _accept(
    "accept_ratio_tokens", "logit α = c0 + c1·ln(N/M) + c2·log10 D", ("draft_params", "target_params", "draft_tokens"),
    (Term("c0", _one), _RATIO, Term("c2", lambda x: np.log10(x["draft_tokens"]))),
    "c1 in logits per e-fold of the size ratio, c2 in logits per decade of draft tokens", distinct={"draft_tokens": 2},
)  # fmt: skip
ACCEPT_CHINCHILLA = _accept(
    "accept_chinchilla", "logit α = c0 - A/N^a - B/D^b", ("draft_params", "draft_tokens"),
    (
        Term("c0", _one), Term("A", lambda x: np.log(x["draft_params"]), "a", -1.0),
        Term("B", lambda x: np.log(x["draft_tokens"]), "b", -1.0),
    ),
    "one target; c0 in logits, what an endless draft reaches; A and B in logits·count^exponent",
    bounds={"A": (0, np.inf), "B": (0, np.inf), "a": (0.02, 1.5), "b": (0.02, 1.5)},
    distinct={"draft_params": 3, "draft_tokens": 3}, pool=("target", *_ACCEPT_POOL),
    source="the loss law of arXiv:2203.15556 inside a bounded link",
)  # fmt: skip


@cache
def accept_gap(loss_law: str = TEXT_LOSS_LAWS[0]) -> Law:
    """α = exp(-e^c0 · Δ^c1), Δ = |L(N, D) - L(M, D')| nats under the named loss law: 1 when the draft is the target.

    The gap is taken without its sign because Σ min(p, q) is symmetric in draft and target.
    """
    if loss_law not in loss_laws():
        raise ValueError(f"loss_law must be one of {', '.join(loss_laws())}; got {loss_law}")
    law = loss_laws()[loss_law]

    def gap(x: Inputs) -> Array:
        return np.abs(law.loss(x["draft_params"], x["draft_tokens"]) - law.loss(x["target_params"], x["target_tokens"]))

    return _accept(
        f"accept_gap[{loss_law}]",
        "log(-log α) = c0 + c1·ln Δ, Δ = |L(N, D) - L(M, D')|",
        ("draft_params", "draft_tokens", "target_params", "target_tokens"),
        (Term("c0", _one), Term("c1", lambda x: np.log(gap(x)))),
        f"Δ in nats/token under {loss_law} ({law.source}); c1 is dimensionless",
        link=LOG_MINUS_LOG,
        bounds={"c1": (0, np.inf)},  # a draft nearer to its target is accepted no less
    )


# --- Tokens per target step ---

_TAU: dict[str, Any] = {"output": "tokens_per_step", "unit": "tokens/step", "limits": (1.0, np.inf)}
_TAU_POOL = ("target", "method", "family", "dataset", "temperature", "pooling", "lookahead")
_SAME_DRAFT = (*_TAU_POOL, "tree_nodes", "draft_layers", "draft_params")
_SAME_DATA = (*_TAU_POOL, "tree_nodes", "draft_tokens")
_SAME_BOTH = (*_TAU_POOL, "draft", "draft_layers", "draft_tokens")


def _log10_tokens(x: Inputs) -> Array:
    return np.log10(x["draft_tokens"])


def _log_layers(x: Inputs) -> Array:
    return np.log(x["draft_layers"])


def _log_params(x: Inputs) -> Array:
    return np.log(x["draft_params"])


def _tau(
    name: str, formula: str, inputs: tuple[str, ...], terms: tuple[Term, ...], source: str, note: str, **kwargs: Any
) -> Law:
    base = {"leading": inputs[0], "distinct": {inputs[0]: len(terms) + 1 if "bounds" in kwargs else 2}, **_TAU}
    return Law(name=name, formula=formula, inputs=inputs, terms=terms, source=source, note=note, **{**base, **kwargs})


LAW_1_1 = _tau(
    "law_1_1", "τ = c0 + c1·log10 D", ("draft_tokens",), (Term("c0", _one), Term("c1", _log10_tokens)),
    "arXiv:2505.07858, law 1.1", "c1 in tokens/step per decade of the draft's training tokens", pool=_SAME_DRAFT,
)  # fmt: skip
LAW_1_2 = _tau(
    "law_1_2", "τ = c0 + c1·ln L", ("draft_layers",), (Term("c0", _one), Term("c1", _log_layers)),
    "arXiv:2505.07858, law 1.2", "L decoder layers; c1 in tokens/step per e-fold of layers", pool=_SAME_DATA,
)  # fmt: skip
LAW_1_2_PARAMS = _tau(
    "law_1_2_params", "τ = c0 + c1·ln N", ("draft_params",),
    (Term("c0", _one), Term("c1", _log_params)),
    "arXiv:2505.07858, law 1.2, capacity counted in parameters", "c1 in tokens/step per e-fold of parameters",
    pool=_SAME_DATA,
)  # fmt: skip
LAW_JOINT = _tau(
    "law_joint", "τ = c0 + c1·log10 D + c2·ln L + c3·log10 D·ln L", ("draft_tokens", "draft_layers"),
    (
        Term("c0", _one), Term("c1", _log10_tokens), Term("c2", _log_layers),
        Term("c3", lambda x: _log10_tokens(x) * _log_layers(x)),
    ),
    "arXiv:2505.07858, laws 1.1 and 1.2 with their interaction",
    "c1 in tokens/step per decade, c2 per e-fold, c3 per decade and e-fold",
    distinct={"draft_tokens": 2, "draft_layers": 2}, pool=(*_TAU_POOL, "tree_nodes"),
)  # fmt: skip
LAW_JOINT_PARAMS = _tau(
    "law_joint_params", "τ = c0 + c1·log10 D + c2·ln N + c3·log10 D·ln N", ("draft_tokens", "draft_params"),
    (
        Term("c0", _one), Term("c1", _log10_tokens), Term("c2", _log_params),
        Term("c3", lambda x: _log10_tokens(x) * _log_params(x)),
    ),
    "arXiv:2505.07858, laws 1.1 and 1.2 with their interaction, capacity counted in parameters",
    "c1 in tokens/step per decade, c2 per e-fold, c3 per decade and e-fold",
    distinct={"draft_tokens": 2, "draft_params": 2}, pool=(*_TAU_POOL, "tree_nodes"),
)  # fmt: skip
LAW_1_3 = _tau(
    "law_1_3", "τ = c0 + c1·ln(1 + w)", ("tree_nodes",),
    (Term("c0", _one), Term("c1", lambda x: np.log1p(x["tree_nodes"]))),
    "arXiv:2505.07858, law 1.3 (width)", "w verified tokens per sequence, root excluded; c1 in tokens/step per e-fold",
    pool=_SAME_BOTH,
)  # fmt: skip
_SATURATING = "saturating rival of arXiv:2505.07858, for the concave data of arXiv:2503.01840 Fig. 1"
TOKENS_SATURATING = _tau(
    "tokens_saturating", "τ = τ∞ - B·D^-b", ("draft_tokens",),
    (Term("tau_inf", _one), Term("B", lambda x: np.log(x["draft_tokens"]), "b", -1.0)),
    _SATURATING, "τ∞ in tokens/step, B in tokens/step·tokens^b; b → 0 is law 1.1",
    bounds={"B": (0, np.inf), "b": (0.02, 2.0)}, pool=_SAME_DRAFT,
)  # fmt: skip
LAW_JOINT_SATURATING = _tau(
    "law_joint_saturating", "τ = τ∞ - A·L^-a - B·D^-b", ("draft_tokens", "draft_layers"),
    (Term("tau_inf", _one), Term("A", _log_layers, "a", -1.0), Term("B", lambda x: np.log(x["draft_tokens"]), "b", -1.0)),
    _SATURATING, "τ∞ and A in tokens/step, B in tokens/step·tokens^b",
    bounds={"A": (0, np.inf), "B": (0, np.inf), "a": (0.02, 1.5), "b": (0.02, 1.5)},
    distinct={"draft_tokens": 3, "draft_layers": 3}, pool=(*_TAU_POOL, "tree_nodes"),
)  # fmt: skip
NODES_SATURATING = _tau(
    "nodes_saturating", "τ = τ∞ - B·(1 + w)^-b", ("tree_nodes",),
    (Term("tau_inf", _one), Term("B", lambda x: np.log1p(x["tree_nodes"]), "b", -1.0)),
    _SATURATING, "τ∞ and B in tokens/step; b → 0 is law 1.3",
    bounds={"B": (0, np.inf), "b": (0.02, 3.0)}, pool=_SAME_BOTH,
)  # fmt: skip

TAU_LAWS = (
    LAW_1_1, LAW_1_2, LAW_1_2_PARAMS, LAW_JOINT, LAW_JOINT_PARAMS, LAW_1_3, TOKENS_SATURATING, LAW_JOINT_SATURATING,
    NODES_SATURATING,
)  # fmt: skip


@cache
def laws() -> dict[str, Law]:
    """All laws by name; `accept_gap` once per text loss law."""
    accept = (ACCEPT_PLANE, ACCEPT_SIZE, ACCEPT_RATIO, ACCEPT_RATIO_TOKENS, ACCEPT_CHINCHILLA)
    gaps = map(accept_gap, loss_laws())
    return {law.name: law for law in (LOSS_LAW, *accept, *gaps, *TAU_LAWS)}


def law_named(name: str) -> Law:
    """The law of that name; raises ValueError listing the names there are."""
    if name not in laws():
        raise ValueError(f"law must be one of {', '.join(laws())}; got {name}")
    return laws()[name]
