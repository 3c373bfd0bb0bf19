"""Rotary position embedding (arXiv 2104.09864): its settings as configs write them.

Promises: default, linear (arXiv 2306.15595), llama3 and yarn (arXiv 2309.00071); any other type is an error. Refuses to know: frequencies,
attention.
"""

import math
from typing import Any

from foredraft.records import Record, require

KINDS = ("default", "linear", "llama3", "yarn")
_NEEDS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ()}


class Rope(Record, frozen=True):
    """How positions turn into angles. `original_positions`: the context that llama3 and yarn stretch by `factor`.

    `attention_factor` scales cosine and sine (yarn's temperature, equation 22).
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_positions: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "theta", "factor", "original_positions", "low_freq_factor", "high_freq_factor", "beta_fast",
                "beta_slow", "attention_factor",
            ),
        )  # fmt: skip
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must exceed low_freq_factor ({self.low_freq_factor})"
            )


def rope_from_config(config: dict[str, Any]) -> Rope:
    """The rope of a Hugging Face config: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    keys = _rope_keys(config)
    kind = keys.get("rope_type") or keys.get("type") or "default"
    kind = "default" if kind == "mrope" else kind  # of text alone all three of its positions are one
    if kind == "dynamic" and keys.get("alpha") is not None:
        return Rope(theta=_stretched_theta(keys, config))
    if kind not in KINDS:
        raise ValueError(f"rope_type {kind!r} is not supported (have {', '.join(KINDS)})")
    lacks = [key for key in _NEEDS[kind] if keys.get(key) is None]
    if lacks:
        raise ValueError(f"rope_scaling of type {kind} lacks {', '.join(lacks)}")
    if (keys.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor must be 1: rotating a part of each head is not supported")
    theta = _number("rope_theta", keys.get("rope_theta", config.get("rope_theta")) or 10000.0)
    if kind == "default":
        return Rope(theta=theta)
    return Rope(kind=kind, theta=theta, **(_yarn if kind == "yarn" else _stretched)(kind, keys, config))


def _stretched_theta(keys: dict[str, Any], config: dict[str, Any]) -> float:
    """HunYuan's `dynamic` with an `alpha`, which stretches the base once and for all: theta · alpha^(d / (d − 2))."""
    theta = _number("rope_theta", keys.get("rope_theta", config.get("rope_theta")) or 10000.0)
    dim = config.get("head_dim") or _number("hidden_size", config.get("hidden_size")) / _number(
        "num_attention_heads", config.get("num_attention_heads")
    )
    return theta * _number("alpha", keys["alpha"]) ** (dim / (dim - 2))


def _rope_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Both spellings in one dict; a rope per kind of layer, a dict of dicts, is refused."""
    parts = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    for key, part in zip(("rope_parameters", "rope_scaling"), parts, strict=True):
        if not isinstance(part, dict) or any(isinstance(value, dict) for value in part.values()):
            raise ValueError(f"{key} must be one flat object, got {part!r}")
    return parts[0] | parts[1]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _original(keys: dict[str, Any], config: dict[str, Any]) -> float:
    """The context before stretching; transformers lets the outer key win and falls back on the current context."""
    original, current = "original_max_position_embeddings", "max_position_embeddings"
    return _number(original, config.get(original) or keys.get(original) or config.get(current))


def _stretched(kind: str, keys: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    fields = {key: _number(key, keys[key]) for key in _NEEDS[kind]}
    return fields | ({"original_positions": _original(keys, config)} if kind == "llama3" else {})


def _yarn(kind: str, keys: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    original = _original(keys, config)
    factor = keys.get("factor")
    if factor is None:
        factor = _number("max_position_embeddings", config.get("max_position_embeddings")) / original
    fields = {"factor": _number("factor", factor), "original_positions": original}
    fields |= {key: _number(key, keys[key]) for key in ("beta_fast", "beta_slow") if keys.get(key)}
    return fields | {"truncate": keys.get("truncate", True), "attention_factor": _temperature(keys, fields["factor"])}


def _temperature(keys: dict[str, Any], factor: float) -> float:
    """Equation 22 of yarn, 0.1·ln(factor) + 1, or DeepSeek's ratio of two such terms."""
    if keys.get("attention_factor") is not None:
        return _number("attention_factor", keys["attention_factor"])

    def term(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if keys.get("mscale") and keys.get("mscale_all_dim"):
        return term(_number("mscale", keys["mscale"])) / term(_number("mscale_all_dim", keys["mscale_all_dim"]))
    return term(1.0)


def rope_to_config(rope: Rope) -> dict[str, Any]:
    """The config keys that `rope_from_config` and the engines read; no key is null."""
    if rope.kind == "default":
        return {"rope_theta": rope.theta}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        original = rope.original_positions or 0.0
        scaling["original_max_position_embeddings"] = int(original) if original == int(original) else original
    names = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow", "attention_factor")}
    scaling |= {name: getattr(rope, name) for name in names.get(rope.kind, ())}
    if not rope.truncate:
        scaling["truncate"] = False
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
