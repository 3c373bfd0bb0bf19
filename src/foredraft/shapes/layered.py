"""Shapes of configs whose layers are no plain ones, or not all alike.

Promises: a config that cannot be read is one line that says what it lacks, or that its layers can be stated. Refuses to know: formats, files.
"""

import re
from typing import Any

import msgspec

from foredraft.records import with_hint
from foredraft.shapes.blocks import Block, grouped
from foredraft.shapes.counts import Shape
from foredraft.shapes.families import ModelFamily
from foredraft.shapes.stack import (
    Traits,
    block_of,
    expert_width,
    first,
    heads_of,
    layer_kinds,
    mtp_layers,
    shared_width,
)

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
_NEEDED = ("hidden_size", "num_attention_heads", "vocab_size")
_SPELLINGS = {"num_attention_heads": ("num_attention_heads", "num_query_heads")}
# Keys of layers that `stack` does not know: Mamba-1, short convolutions, RWKV, RG-LRU, AltUp and the like.
_STRANGE = re.compile(r"mamba|ssm_|conv_|time_step|lru_|rwkv|altup|attention_hidden_size|zero_expert|num_mem_blocks")


def _refuse_strange(keys: dict[str, Any]) -> None:
    """Raise ValueError for a config of an unknown family which is no plain transformer's."""
    if not isinstance(keys.get("model_type"), str | None):
        raise ValueError(f"model_type {keys['model_type']!r} is not supported; it must be a name")
    missing = [key for key in _SIZES if keys.get(key) is None]
    strange = sorted(key for key in keys if _STRANGE.match(key))
    if missing or strange:
        reason = f"it lacks {', '.join(missing)}" if missing else f"its layers are not known ({', '.join(strange[:3])})"
        error = ValueError(f"model_type {keys.get('model_type')!r} is not supported; {reason}")
        raise with_hint(
            error,
            "state its layers: foredraft list models NAME --json > shape.json, edit it, and give --shape shape.json",
        )


_NUMBERS = re.compile(
    r"(hidden|vocab|intermediate|latent|window|state)_size$|^(num|n)_.*(layers|heads|experts|tok)$|_(rank|dim)$|index_topk$"
)
_POSITIVE = {"num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"}


def _check_sizes(keys: dict[str, Any]) -> None:
    """Raise ValueError for a size that is no whole number of a size's kind, in the config's words."""
    for name, value in keys.items():
        if _NUMBERS.search(name) and value is not None and not isinstance(value, list):
            least = int(name in _POSITIVE)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")


def layered_shape(
    keys: dict[str, Any], family_type: str, family: ModelFamily | None, name: str
) -> tuple[Shape, list[Block]]:
    """The shape of a config and its layers one by one. A family that is not known must have plain layers' keys, and its shape says so.

    Raises ValueError, one line.
    """
    if family is None:
        _refuse_strange(keys)
    _check_sizes(keys)
    traits = family.traits if family and family.traits else Traits()
    keys = dict(traits.defaults) | {key: value for key, value in keys.items() if value is not None}
    try:
        shape, layers = _of_layers(keys, family_type, traits, name)
    except KeyError as error:
        raise ValueError(f"{family_type} config lacks {error.args[0]}") from None
    except (TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{family_type} config: a key has another type, length or range than its family's ({error})"
        ) from None
    assumed = f"model_type {family_type!r} is not known; its layers are taken for Llama's with the sizes that its config names"
    return (shape if family else msgspec.structs.replace(shape, notes=(assumed,))), layers


def _of_layers(keys: dict[str, Any], family_type: str, traits: Traits, name: str) -> tuple[Shape, list[Block]]:
    if missing := [key for key in _NEEDED if first(keys, *_SPELLINGS.get(key, (key,))) is None]:
        raise ValueError(f"{family_type} config lacks {', '.join(missing)}")
    if rates := keys.get("compress_rates"):  # transformers' spelling of DeepSeek-V4's
        keys = keys | {"compress_ratios": [rates.get(name, 0) for name in keys["layer_types"]]}
    kinds = layer_kinds(keys)
    keys = keys | {"num_hidden_layers": len(kinds)}
    layers = [block_of(keys, traits, kind, index) for index, kind in enumerate(kinds)]
    sparse = next((layer for layer in layers if layer.num_experts), None)
    index = kinds.index("full") if "full" in kinds else 0
    usual = heads_of({"head_dim": keys.get("v_head_dim")} | keys, traits, "full", index)
    groups = usual.keys
    if keys.get("block_configs"):
        groups = next(k[1] // usual.dim for layer in layers if (k := layer.matrices.get("self_attn.k_proj")))
    dense = next((layer.matrices["mlp.up_proj"][1] for layer in layers if "mlp.up_proj" in layer.matrices), None)
    experts, hidden = sparse.experts_per_token if sparse else 0, keys["hidden_size"]
    fields = {
        "num_layers": len(layers), "hidden_size": hidden, "num_heads": usual.queries, "num_kv_heads": groups, "head_dim": usual.value_dim,
        "intermediate_size": dense or experts * expert_width(keys) + shared_width(keys),
        "vocab_size": keys["vocab_size"], "tie_embeddings": bool(keys.get("tie_word_embeddings")), "gated_mlp": traits.gated_mlp,
        "qk_norm": traits.qk_norm == "head", "max_position_embeddings": context_length(keys), "blocks": grouped(layers),
        "mtp_blocks": grouped(mtp_layers(keys, traits)), "kv_replicated": bool(keys.get("kv_lora_rank")) or usual.keys == 1,
    }  # fmt: skip
    if sparse:
        fields |= {
            "num_experts": sparse.num_experts,
            "experts_per_token": experts,
            "moe_intermediate_size": expert_width(keys),
        }
        fields["shared_intermediate_size"] = shared_width(keys)
    if wide := (keys.get("hidden_size_per_layer_input") or 0) * len(layers):
        fields |= {"per_layer_embed": wide, "extra": {"per_layer_model_projection": (hidden, wide)}}
    if mult := keys.get("hc_mult"):
        fields["extra"] = {"hc_head.fn": (mult * hidden, mult)}
    return msgspec.convert({"name": name, "family": family_type, **fields}, Shape), layers


def context_length(keys: dict[str, Any]) -> Any:
    """Positions that the model is made for, as vLLM derives them: YaRN lengthens its original length by its factor (Qwen's configs leave the
    shorter one beside it), linear and dynamic scaling the length stated, but for Gemma's, which states the longer one for its full layers.
    """
    stated, scaling = keys.get("max_position_embeddings"), first(keys, "rope_scaling", "rope_parameters", default={})
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    if not isinstance(factor, int | float) or not isinstance(stated, int) or factor <= 1:
        return stated
    kind, original = scaling.get("rope_type") or scaling.get("type"), scaling.get("original_max_position_embeddings")
    if kind == "yarn":
        return max(stated, int(factor * (original if isinstance(original, int | float) else stated)))
    return int(factor * stated) if kind in ("linear", "dynamic") and not keys.get("sliding_window") else stated
