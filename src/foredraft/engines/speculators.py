"""The speculators format of an EAGLE-3 head, a nested config, written and judged.

Refuses to know: tensors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from foredraft.engines.loading import Fault
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS

VERSION = "0.1.0"  # of the format that is written
ARCHITECTURE = "Eagle3Speculator"
KEYS = ("speculators_model_type", "speculators_config", "transformer_layer_config")
MAY_BE_NULL = ("target_hidden_size", AUX_LAYER_IDS, "draft_vocab_size")  # there null is an absence
FAMILIES = ("llama", "qwen3")  # that its reader maps to a class
OUTER_KEYS = (
    "draft_vocab_size", "target_hidden_size", "norm_before_residual", "fc_norm", "norm_output", AUX_LAYER_IDS, "tie_word_embeddings",
    "torch_dtype",
)  # fmt: skip


def is_one(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this format."""
    return any(key in raw for key in KEYS)


def nested_config(flat: dict[str, Any], lookahead: int, verifier: str, verifier_architectures: list[str]) -> dict[str, Any]:  # fmt: skip
    """The nested config of a flat one. Every switch is written: an absent norm_before_residual would mean true."""
    outer = {key: flat[key] for key in OUTER_KEYS if key in flat}
    inner = {key: value for key, value in flat.items() if key not in (*OUTER_KEYS, "architectures", AUX_CONFIG)}
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": lookahead,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return outer | {
        "architectures": [ARCHITECTURE], "speculators_model_type": "eagle3", "speculators_version": VERSION,
        "norm_before_fc": False, "embed_requires_grad": False, "transformer_layer_config": inner,
        "speculators_config": {
            "algorithm": "eagle3", "default_proposal_method": "greedy", "proposal_methods": [method],
            "verifier": {"name_or_path": verifier, "architectures": verifier_architectures},
        },
    }  # fmt: skip


def faults(raw: dict[str, Any]) -> Iterator[Fault]:
    """Where a config departs from what its reader walks through."""
    for where, reason in _broken(raw):
        yield Fault(
            "speculators",
            where,
            f"{reason}: the loader refuses the folder",
            "export it again with --format speculators",
        )
    if "norm_before_residual" not in raw:
        yield Fault(
            "norm-default", "norm_before_residual", "is absent, which means true here and false in the flat format",
            "write it as the head was trained",
        )  # fmt: skip


def _broken(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    inner = raw.get("transformer_layer_config")
    if not isinstance(inner, dict):
        yield "transformer_layer_config", "is no object"
    elif inner.get("model_type", "llama") not in FAMILIES:
        yield "transformer_layer_config.model_type", f"{inner.get('model_type')!r} is none of {', '.join(FAMILIES)}"
    if raw.get("speculators_model_type") != "eagle3":
        yield "speculators_model_type", f"is {raw.get('speculators_model_type')!r}, not 'eagle3'"
    outer = raw.get("speculators_config")
    outer = outer if isinstance(outer, dict) else {}
    methods = outer.get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods and isinstance(methods[0], dict) else {}
    if not isinstance(first.get("speculative_tokens"), int):
        yield "speculators_config.proposal_methods", "gives no speculative_tokens"
    verifier = outer.get("verifier")
    if not (isinstance(verifier, dict) and verifier.get("name_or_path")):
        yield "speculators_config.verifier", "names no name_or_path"
