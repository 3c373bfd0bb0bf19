"""The laws: every map from dials to an outcome.

Promises: every law is a `Law`, every published coefficient has its source. Refuses to know: how parameters are found, and where
observations come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from foredraft.laws.law import LOG_MINUS_LOG, LOGIT, Array, Inputs, Law, Term
from foredraft.records import Record, decode

# Features, and the bounds of powers, that several laws share.


def _constant(x: Inputs) -> Array:
    return np.ones_like(next(iter(x.values())))


def _log(name: str) -> Callable[[Inputs], Array]:
    return lambda x: np.log(x[name])


POSITIVE, EXPONENT = (0, np.inf), (0.02, 1.5)
_POWERS = {"A": POSITIVE, "B": POSITIVE, "a": EXPONENT, "b": EXPONENT}

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
    name="loss_law", formula="L = E + A/N^a + B/D^b", output="loss", inputs=("draft_params", "draft_tokens"),
    terms=(Term("E", _constant), Term("A", _log("draft_params"), "a"), Term("B", _log("draft_tokens"), "b")),
    leading="draft_tokens", unit="nats/token", source="Hoffmann et al. 2022, arXiv:2203.15556, eq. 2 and approach 3",
    note="N parameters, D training tokens, loss per token of the model's own tokenizer",
    bounds={"E": POSITIVE, **_POWERS}, distinct={"draft_params": 3, "draft_tokens": 3},
    pool=("dataset", "draft_tokenizer"), relative=True, limits=(0, np.inf),
)  # fmt: skip

# --- Acceptance per token ---

_ACCEPT: dict[str, Any] = {"output": "accept_prob", "unit": "probability per token", "limits": (0.0, 1.0)}
_ACCEPT_POOL = ("method", "family", "dataset", "temperature", "accept_kind")


ACCEPT_PLANE = Law(
    name="accept_plane",
    formula="α = A1·x + B1·y + C1",
    inputs=("draft_perplexity", "target_perplexity"),
    terms=(
        Term("A1", lambda x: x["draft_perplexity"]),
        Term("B1", lambda x: x["target_perplexity"]),
        Term("C1", _constant),
    ),
    leading="draft_perplexity",
    leads_down=True,
    source="arXiv:2603.11053, acceptance plane",
    note="x, y perplexities of draft and target in one tokenizer; A1, B1 per unit of perplexity",
    distinct={"draft_perplexity": 2, "target_perplexity": 2},
    pool=_ACCEPT_POOL,
    **_ACCEPT,
)
ACCEPT_LINE = replace(
    ACCEPT_PLANE,
    name="accept_line",
    formula="α = A1·x + C1",
    inputs=("draft_perplexity",),
    terms=(ACCEPT_PLANE.terms[0], ACCEPT_PLANE.terms[2]),
    source="arXiv:2603.11053, acceptance plane at one target",
    note="x, the draft's perplexity in its target's tokenizer; A1 per unit of perplexity",
    distinct={"draft_perplexity": 2},
    pool=("target", *_ACCEPT_POOL),
)
SDSL_PLANE: Mapping[str, float] = {"A1": -0.0067, "B1": 0.01297, "C1": 0.642}
"""Published coefficients (arXiv:2603.11053): 13 targets and their drafts on HellaSwag, R² 0.602."""


def _accept(name: str, formula: str, inputs: tuple[str, ...], terms: tuple[Term, ...], note: str, **kwargs: Any) -> Law:
    base = {
        "link": LOGIT, "leading": "draft_params", "source": "bounded rival of arXiv:2603.11053", "pool": _ACCEPT_POOL,
        **_ACCEPT,
    }  # fmt: skip
    return Law(name=name, formula=formula, inputs=inputs, terms=terms, note=note, **{**base, **kwargs})


_RATIO = Term("c1", lambda x: np.log(x["draft_params"] / x["target_params"]))
ACCEPT_SIZE = _accept(
    "accept_size", "logit α = c0 + c1·ln N", ("draft_params",),
    (Term("c0", _constant), Term("c1", _log("draft_params"))),
    "one target; c1 in logits per e-fold of draft parameters", distinct={"draft_params": 2},
    pool=("target", *_ACCEPT_POOL),
)  # fmt: skip
ACCEPT_RATIO = _accept(
    "accept_ratio", "logit α = c0 + c1·ln(N/M)", ("draft_params", "target_params"), (Term("c0", _constant), _RATIO),
    "several targets; c1 in logits per e-fold of the size ratio",
)  # fmt: skip
ACCEPT_RATIO_TOKENS = _accept(
    "accept_ratio_tokens", "logit α = c0 + c1·ln(N/M) + c2·log10 D", ("draft_params", "target_params", "draft_tokens"),
    (Term("c0", _constant), _RATIO, Term("c2", lambda x: np.log10(x["draft_tokens"]))),
    "c1 in logits per e-fold of the size ratio, c2 in logits per decade of draft tokens", distinct={"draft_tokens": 2},
)  # fmt: skip
ACCEPT_CHINCHILLA = _accept(
    "accept_chinchilla", "logit α = c0 - A/N^a - B/D^b", ("draft_params", "draft_tokens"),
    (
        Term("c0", _constant), Term("A", _log("draft_params"), "a", -1.0),
        Term("B", _log("draft_tokens"), "b", -1.0),
    ),
    "one target; c0 in logits, what an endless draft reaches; A and B in logits·count^exponent",
    bounds=_POWERS,
    distinct={"draft_params": 3, "draft_tokens": 3}, pool=("target", *_ACCEPT_POOL),
    source="the loss law of arXiv:2203.15556 inside a bounded link",
)  # fmt: skip

ACCEPT_LOSS_PLANE = _accept(
    "accept_loss_plane", "logit α = c0 + c1·ln x + c2·ln y", ("draft_perplexity", "target_perplexity"),
    (Term("c0", _constant), Term("c1", _log("draft_perplexity")), Term("c2", _log("target_perplexity"))),
    "x, y perplexities of draft and target in one tokenizer, whose logs are losses; c1, c2 in logits per nat",
    leading="draft_perplexity", leads_down=True, distinct={"draft_perplexity": 2, "target_perplexity": 2},
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
        (Term("c0", _constant), Term("c1", lambda x: np.log(gap(x)))),
        f"Δ in nats/token under {loss_law} ({law.source}); c1 is dimensionless",
        link=LOG_MINUS_LOG,
        bounds={"c1": POSITIVE},  # a draft nearer to its target is accepted no less
    )


# --- Tokens per target step ---

_TAU: dict[str, Any] = {"output": "tokens_per_step", "unit": "tokens/step", "limits": (1.0, np.inf)}
_TAU_POOL = ("target", "method", "family", "dataset", "temperature", "pooling", "lookahead")
_SAME_DRAFT = (*_TAU_POOL, "tree_nodes", "draft_layers", "draft_params")
_SAME_DATA = (*_TAU_POOL, "tree_nodes", "draft_tokens")
_SAME_TREE = (*_TAU_POOL, "tree_nodes")
_SAME_BOTH = (*_TAU_POOL, "draft", "draft_layers", "draft_tokens")


def _log10_tokens(x: Inputs) -> Array:
    return np.log10(x["draft_tokens"])


def _log_nodes(x: Inputs) -> Array:
    return np.log1p(x["tree_nodes"])


def _tau(
    name: str, formula: str, inputs: tuple[str, ...], terms: tuple[Term, ...], source: str, note: str, **kwargs: Any
) -> Law:
    base = {"leading": inputs[0], "distinct": {inputs[0]: len(terms) + 1 if "bounds" in kwargs else 2}, **_TAU}
    return Law(name=name, formula=formula, inputs=inputs, terms=terms, source=source, note=note, **{**base, **kwargs})


LAW_1_1 = _tau(
    "law_1_1", "τ = c0 + c1·log10 D", ("draft_tokens",), (Term("c0", _constant), Term("c1", _log10_tokens)),
    "arXiv:2505.07858, law 1.1", "c1 in tokens/step per decade of the draft's training tokens", pool=_SAME_DRAFT,
)  # fmt: skip


def _in_capacity(dial: str, letter: str, what: str, suffix: str = "", source: str = "") -> tuple[Law, Law]:
    """Law 1.2, and its joint law with 1.1, in the draft's capacity as `dial` counts it."""
    size = _log(dial)
    alone = _tau(
        f"law_1_2{suffix}", f"τ = c0 + c1·ln {letter}", (dial,), (Term("c0", _constant), Term("c1", size)),
        f"arXiv:2505.07858, law 1.2{source}", what, pool=_SAME_DATA,
    )  # fmt: skip
    joint = _tau(
        f"law_joint{suffix}", f"τ = c0 + c1·log10 D + c2·ln {letter} + c3·log10 D·ln {letter}", ("draft_tokens", dial),
        (
            Term("c0", _constant), Term("c1", _log10_tokens), Term("c2", size),
            Term("c3", lambda x: _log10_tokens(x) * size(x)),
        ),
        f"arXiv:2505.07858, laws 1.1 and 1.2 with their interaction{source}",
        "c1 in tokens/step per decade, c2 per e-fold, c3 per decade and e-fold",
        distinct={"draft_tokens": 2, dial: 2}, pool=_SAME_TREE,
    )  # fmt: skip
    return alone, joint


LAW_1_2, LAW_JOINT = _in_capacity("draft_layers", "L", "L decoder layers; c1 in tokens/step per e-fold of layers")
LAW_1_2_PARAMS, LAW_JOINT_PARAMS = _in_capacity(
    "draft_params", "N", "c1 in tokens/step per e-fold of parameters", "_params", ", capacity counted in parameters"
)
LAW_1_3 = _tau(
    "law_1_3", "τ = c0 + c1·ln(1 + w)", ("tree_nodes",),
    (Term("c0", _constant), Term("c1", _log_nodes)),
    "arXiv:2505.07858, law 1.3 (width)", "w verified tokens per sequence, root excluded; c1 in tokens/step per e-fold",
    pool=_SAME_BOTH,
)  # fmt: skip
_SATURATING = "saturating rival of arXiv:2505.07858, for the concave data of arXiv:2503.01840 Fig. 1"
TOKENS_SATURATING = _tau(
    "tokens_saturating", "τ = τ∞ - B·D^-b", ("draft_tokens",),
    (Term("tau_inf", _constant), Term("B", _log("draft_tokens"), "b", -1.0)),
    _SATURATING, "τ∞ in tokens/step, B in tokens/step·tokens^b; b → 0 is law 1.1",
    bounds={"B": POSITIVE, "b": (0.02, 2.0)}, pool=_SAME_DRAFT,
)  # fmt: skip
TOKENS_EXPONENT = 0.4  # of the published series in tokens: results/dial_forms.json, which judged it and had been seen
TOKENS_POWER = _tau(
    "tokens_power", f"τ = τ∞ - B·D^-{TOKENS_EXPONENT}", ("draft_tokens",),
    (Term("tau_inf", _constant), Term("B", lambda x: -(x["draft_tokens"] ** -TOKENS_EXPONENT))),
    f"{_SATURATING}, its exponent fixed so that few budgets teach it", "τ∞ in tokens/step, B in tokens/step·tokens^exponent",
    bounds={"B": POSITIVE}, distinct={"draft_tokens": 2}, pool=_SAME_DRAFT,
)  # fmt: skip
LAW_JOINT_SATURATING = _tau(
    "law_joint_saturating", "τ = τ∞ - A·L^-a - B·D^-b", ("draft_tokens", "draft_layers"),
    (Term("tau_inf", _constant), Term("A", _log("draft_layers"), "a", -1.0), Term("B", _log("draft_tokens"), "b", -1.0)),
    _SATURATING, "τ∞ and A in tokens/step, B in tokens/step·tokens^b",
    bounds=_POWERS,
    distinct={"draft_tokens": 3, "draft_layers": 3}, pool=_SAME_TREE,
)  # fmt: skip
NODES_SATURATING = _tau(
    "nodes_saturating", "τ = τ∞ - B·(1 + w)^-b", ("tree_nodes",),
    (Term("tau_inf", _constant), Term("B", _log_nodes, "b", -1.0)),
    _SATURATING, "τ∞ and B in tokens/step; b → 0 is law 1.3",
    bounds={"B": POSITIVE, "b": (0.02, 3.0)}, pool=_SAME_BOTH,
)  # fmt: skip

TAU_LAWS = (
    LAW_1_1, LAW_1_2, LAW_1_2_PARAMS, LAW_JOINT, LAW_JOINT_PARAMS, LAW_1_3, TOKENS_SATURATING, TOKENS_POWER, LAW_JOINT_SATURATING,
    NODES_SATURATING,
)  # fmt: skip


@cache
def laws() -> dict[str, Law]:
    """All laws by name; `accept_gap` once per text loss law."""
    accept = (
        ACCEPT_PLANE,
        ACCEPT_LINE,
        ACCEPT_LOSS_PLANE,
        ACCEPT_SIZE,
        ACCEPT_RATIO,
        ACCEPT_RATIO_TOKENS,
        ACCEPT_CHINCHILLA,
    )
    gaps = map(accept_gap, loss_laws())
    return {law.name: law for law in (LOSS_LAW, *accept, *gaps, *TAU_LAWS)}


def law_named(name: str) -> Law:
    """The law of that name; raises ValueError listing the names there are."""
    if name not in laws():
        raise ValueError(f"law must be one of {', '.join(laws())}; got {name}")
    return laws()[name]
