"""Keys of a config whose values are of the wrong type, told once and then left out, so that no other rule stumbles over them.

Refuses to know: what the keys mean.
"""

import math
from typing import Any

from foredraft.deploy.findings import Finding
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS
from foredraft.shapes.blocks import MOST_LAYERS

COUNTS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "draft_vocab_size", "target_hidden_size", "max_position_embeddings", "num_aux_hidden_states",
)  # fmt: skip
OBJECTS = (AUX_CONFIG, "transformer_layer_config", "speculators_config", "rope_scaling", "rope_parameters")
REALS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "rope_theta", "initializer_range")
MOST = 2**31  # beyond which no engine counts
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
NAMES = ("torch_dtype", "dtype", "model_type")


def typed(config: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """A config without its keys of a wrong type, nested ones too, and a finding for each. Null is told of elsewhere."""
    valid, findings = {}, []
    for key, value in config.items():
        expected = _expected(key, value)
        if expected is not None and value is not None:
            findings.append(_finding(key, value, expected))
            continue
        if key in (AUX_CONFIG, "transformer_layer_config") and isinstance(value, dict):
            value, more = typed(value)
            findings += more
        valid[key] = value
    return valid, findings


def _expected(key: str, value: Any) -> str | None:
    """What a key's value should be, where it is not."""
    if key in COUNTS:
        most = MOST_LAYERS if key == "num_hidden_layers" else MOST
        if _is_int(value) and value > most:
            return f"a whole number of at most {most:,}"
        return None if _is_int(value) and value > 0 else "a positive whole number"
    if key in REALS:
        return None if _is_real(value) else "a finite number"
    if key in OBJECTS:
        return None if isinstance(value, dict) else "an object"
    if key == AUX_LAYER_IDS:
        return None if _all(value, int) else "a list of whole numbers"
    if key == "architectures":
        return None if _all(value, str) else "a list of names"
    if key in TOKENS:
        return None if _is_int(value) or _all(value, int) else "a whole number, or a list of them"
    if key in NAMES:
        return None if isinstance(value, str) else "a name"
    return None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


def _finding(key: str, value: Any, expected: str) -> Finding:
    return Finding(
        code="key-type", where=key, effect=f"is {value!r}, and loaders take {expected}", remedy=f"write {expected}, or leave it out"
    )  # fmt: skip
