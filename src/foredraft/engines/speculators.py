"""The speculators format of a draft head, a nested config, written and judged as vLLM 0.32 reads it.

Refuses to know: tensors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from foredraft.engines.loading import Fault
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, BLOCK_CONFIG, Kind, block_keys

VERSION = "0.1.0"  # of the format that is written
KEYS = ("speculators_model_type", "speculators_config", "transformer_layer_config")
MAY_BE_NULL = ("target_hidden_size", AUX_LAYER_IDS, "draft_vocab_size")  # there null is an absence
TYPES = ("eagle3", "peagle", "dflash", "dflash2", "dspark")  # that its reader has
FAMILIES = ("llama", "qwen3")  # of layers that it maps to an EAGLE-3 class
CLASSES = {
    "eagle3": "Eagle3Speculator",
    "dflash": "DFlashSpeculator",
    "dspark": "DSparkSpeculator",
}  # of the kinds that are written
BLOCK_LAYERS = "aux_hidden_state_layer_ids"  # hidden states of a head of blocks, by the layers entered
REQUIRED = {"dflash": ("mask_token_id", BLOCK_LAYERS), "dspark": ("mask_token_id", BLOCK_LAYERS)}
OUTER_KEYS = (
    "draft_vocab_size", "target_hidden_size", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", AUX_LAYER_IDS,
    "tie_word_embeddings", "torch_dtype", "block_size", "sample_from_anchor", "mask_token_id", "markov_rank", "markov_head_type",
    "enable_confidence_head", "confidence_head_with_markov",
)  # fmt: skip
_FLAT_ALONE = ("architectures", BLOCK_CONFIG, "target_layer_ids", "num_target_layers")


def is_one(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this format."""
    return any(key in raw for key in KEYS)


def nested_config(
    flat: dict[str, Any], kind: Kind, lookahead: int, verifier: str, verifier_architectures: list[str]
) -> dict[str, Any]:
    """The nested config of a flat one. Every switch is written: an absent norm_before_residual would mean true. The number of hidden states,
    where it is not three, stands in the inner config, the one in which vLLM looks for it.
    """
    keys = dict(block_keys(flat)) if kind.passes == "block" else flat
    outer = {key: keys[key] for key in OUTER_KEYS if key in keys}
    if kind.passes == "block":
        outer |= {BLOCK_LAYERS: [i + 1 for i in keys["target_layer_ids"]], "sliding_window_non_causal": True}
    skipped = (*OUTER_KEYS, *_FLAT_ALONE, *((AUX_CONFIG,) if AUX_LAYER_IDS in flat else ()))
    inner = {key: value for key, value in keys.items() if key not in skipped}
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": lookahead,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return outer | {
        "architectures": [CLASSES[kind.name]], "speculators_model_type": kind.name, "speculators_version": VERSION,
        "embed_requires_grad": False, "transformer_layer_config": inner,
        "speculators_config": {
            "algorithm": kind.name, "default_proposal_method": "greedy", "proposal_methods": [method],
            "verifier": {"name_or_path": verifier, "architectures": verifier_architectures},
        },
    }  # fmt: skip


def unread(raw: Mapping[str, Any]) -> Fault | None:
    """Why its reader takes a config of this format for none of its own; None where it reads it, or where it is of another format."""
    kind = raw.get("speculators_model_type")
    if not is_one(raw) or kind is None or kind in TYPES:
        return None
    effect = f"is {kind!r}, and vLLM 0.32 reads {', '.join(TYPES)} of this format: it stops"
    return Fault("speculators", "speculators_model_type", effect, "export it with --format vllm")


def faults(raw: dict[str, Any]) -> Iterator[Fault]:
    """Where a config departs from what its reader walks through."""
    for where, reason in _broken(raw):
        yield Fault(
            "speculators",
            where,
            f"{reason}: the loader refuses the folder",
            "export it again with --format speculators",
        )
    if raw.get("speculators_model_type") == "eagle3" and "norm_before_residual" not in raw:
        yield Fault(
            "norm-default", "norm_before_residual", "is absent, which means true here and false in the flat format",
            "write it as the head was trained", level="warning",
        )  # fmt: skip


def _broken(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind, inner = raw.get("speculators_model_type"), raw.get("transformer_layer_config")
    if kind not in TYPES:
        yield "speculators_model_type", f"is {kind!r}, none of {', '.join(TYPES)}"
    if not isinstance(inner, dict):
        yield "transformer_layer_config", "is no object"
    elif kind == "eagle3" and inner.get("model_type", "llama") not in FAMILIES:
        yield "transformer_layer_config.model_type", f"{inner.get('model_type')!r} is none of {', '.join(FAMILIES)}"
    for key in REQUIRED.get(str(kind), ()):
        if raw.get(key) is None:
            yield key, "is missing"
    outer = raw.get("speculators_config")
    outer = outer if isinstance(outer, dict) else {}
    methods = outer.get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods and isinstance(methods[0], dict) else {}
    if not isinstance(first.get("speculative_tokens"), int):
        yield "speculators_config.proposal_methods", "gives no speculative_tokens"
    verifier = outer.get("verifier")
    if not (isinstance(verifier, dict) and verifier.get("name_or_path")):
        yield "speculators_config.verifier", "names no name_or_path"
