"""The layers of a config, one after another: which mixes tokens how, and what follows it.

Promises: decided by keys, so that a family which spells them as another does is read; a `Traits` row says what keys cannot. Refuses to
know: formats, the embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from foredraft.shapes import mixers
from foredraft.shapes.blocks import MOST_LAYERS, Block, Matrices
from foredraft.shapes.mixers import Heads, Keys, Mixer
from foredraft.shapes.plain import mlp


class Traits(NamedTuple):
    """What a family's config does not say of its layers. `norms` of the hidden size a layer; `qk_norm` "head" or "full".

    `qkv_bias`, `o_bias`: None where `attention_bias` says. `gate`: attention's, "double" (in q_proj), "heads" (a value each) or "full"; `sinks`: a
    weight for each head; `shared_gate`: a gate on the shared expert; `router_bias`, `expert_bias`: biases. `defaults`: its class's keys.
    """

    norms: int = 2
    qk_norm: str = ""
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    gate: str = ""
    sinks: bool = False
    gated_mlp: bool = True
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    defaults: Keys = {}


def first(keys: Keys, *names: str, default: Any = None) -> Any:
    """The value of the first key that the config has, null being absent."""
    return next((keys[name] for name in names if keys.get(name) is not None), default)


# Spellings of what mixes tokens: by name, by Nemotron's letters and by MiniMax-01's numbers.
_KINDS = {
    "full_attention": "full", "attention": "full", "full": "full", "*": "full", "1": "full", "sliding_attention": "sliding",
    "chunked_attention": "sliding", "linear_attention": "linear", "0": "linear", "mamba": "mamba", "M": "mamba", "mlp": "mlp", "-": "mlp",
    "moe": "moe", "E": "moe",
}  # fmt: skip


def layer_kinds(keys: Keys) -> list[str]:
    """How each layer mixes tokens: full, sliding, linear or mamba; or mlp and moe where these are layers of their own."""
    pattern = first(keys, "hybrid_override_pattern", "layers_block_type", "layer_types", "attn_type_list", default=())
    names = [str(name) for name in pattern if name != "|"]
    count: int = (
        len(names) if isinstance(pattern, str) else first(keys, "num_hidden_layers", "num_layers", default=len(names))
    )
    if not 0 < count <= MOST_LAYERS:
        raise ValueError(f"num_hidden_layers must be from 1 to {MOST_LAYERS:,}, got {count:,}")
    if keys.get("compress_ratios") is not None:
        return ["full"] * count
    if not names:
        return _by_rule(keys, count)
    if len(names) < count:
        raise ValueError(f"its list of layer types has {len(names)} of {count} layers")
    if strange := [name for name in names[:count] if name not in _KINDS]:
        raise ValueError(f"layer type {strange[0]!r} is not known (have {', '.join(_KINDS)})")
    return [_KINDS[name] for name in names[:count]]


def _by_rule(keys: Keys, count: int) -> list[str]:
    """Kinds where no list names them: every n-th layer attends to all, or all slide, or none."""
    if linear := keys.get("linear_attn_config"):  # Kimi Linear counts its layers from 1
        return ["linear" if i + 1 in linear["kda_layers"] else "full" for i in range(count)]
    if "mamba_n_heads" in keys:
        return ["full" if i in keys.get("attn_layer_indices", ()) else "mamba" for i in range(count)]
    if every := keys.get("full_attention_interval"):
        return ["full" if (i + 1) % every == 0 else "linear" for i in range(count)]
    if hybrid := keys.get("hybrid_layer_pattern"):
        return ["sliding" if hybrid[i] else "full" for i in range(count)]
    if not (window := first(keys, "sliding_window", "attention_chunk_size")) or keys.get("use_sliding_window") is False:
        return ["full"] * count
    if every := first(keys, "sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval"):
        every = len(every) if isinstance(every, str) else every  # EXAONE's LLLG
        return ["full" if (i + 1) % every == 0 else "sliding" for i in range(count)]
    begin = keys.get("max_window_layers", 0) if keys.get("use_sliding_window") else 0
    return ["sliding" if i >= begin and window else "full" for i in range(count)]


def at(value: Any, index: int) -> Any:
    """A key's value for a layer, where it may be a list with one for each."""
    return value[index] if isinstance(value, Sequence) and not isinstance(value, str) else value


def heads_of(keys: Keys, traits: Traits, kind: str, index: int) -> Heads:
    """The heads of that layer: sliding layers may have other ones (MiMo-V2, Step), and so may full ones (Gemma 4)."""
    queries, hidden = at(first(keys, "num_attention_heads", "num_query_heads"), index), keys["hidden_size"]
    groups = at(first(keys, "num_key_value_heads", "num_attention_groups", "num_kv_heads", default=queries), index)
    dim = at(first(keys, "head_dim", "attention_head_dim"), index)
    value_dim, shares = keys.get("v_head_dim"), False
    if kind == "sliding":
        other = first(keys, "attention_other_setting", default={})
        queries = at(first(keys, "swa_num_attention_heads", default=other.get("num_attention_heads", queries)), index)
        groups = at(first(keys, "swa_num_key_value_heads", default=other.get("num_attention_groups", groups)), index)
        dim, value_dim = first(keys, "swa_head_dim", default=dim), first(keys, "swa_v_head_dim", default=value_dim)
    elif keys.get("global_head_dim") or keys.get("attention_k_eq_v"):
        dim, shares = first(keys, "global_head_dim", default=dim), bool(keys.get("attention_k_eq_v"))
        groups = first(keys, "num_global_key_value_heads", default=groups) if shares else groups
    if not dim:
        if hidden % queries:
            raise ValueError(f"head_dim is missing, and hidden_size/num_attention_heads = {hidden}/{queries}")
        dim = hidden // queries
    biased = bool(keys.get("attention_bias"))
    shared = keys.get("num_kv_shared_layers") or 0
    return Heads(
        queries, groups, dim, value_dim or dim,
        window=first(keys, "sliding_window", "attention_chunk_size", "sliding_window_size") if kind == "sliding" else None,
        qkv_bias=biased if traits.qkv_bias is None else traits.qkv_bias, o_bias=biased if traits.o_bias is None else traits.o_bias,
        qk_norm="" if keys.get("use_qk_norm") is False else traits.qk_norm, gate=traits.gate, sinks=traits.sinks, shares_value=shares,
        reads_only=index >= keys["num_hidden_layers"] - shared if shared else False,
    )  # fmt: skip


def mixer_of(keys: Keys, traits: Traits, kind: str, index: int) -> Mixer:
    """What mixes tokens in that layer."""
    hidden = keys["hidden_size"]
    if kind in ("mlp", "moe"):
        return Mixer({})
    if keys.get("compress_ratios") is not None:
        return mixers.compressed_attention(keys, hidden, keys["compress_ratios"][index])
    if kind == "mamba" or (kind == "linear" and "mamba_n_heads" in keys):
        return mixers.mamba2(keys, hidden)
    if kind == "linear":
        if "linear_attn_config" in keys or "linear_num_heads" in keys:
            return mixers.delta_attention(keys, hidden)
        return mixers.gated_delta(keys, hidden) if "linear_num_value_heads" in keys else mixers.lightning(keys, hidden)
    if keys.get("kv_lora_rank"):
        return mixers.latent_attention(keys, hidden, _has_indexer(keys, index))
    return mixers.attention(hidden, heads_of(keys, traits, kind, index))


def _has_indexer(keys: Keys, index: int) -> bool:
    """Whether that layer picks tokens itself: all layers of DeepSeek-V3.2, the first ones and then every few of GLM-5.2, which share."""
    if not keys.get("index_topk"):
        return False
    if types := keys.get("indexer_types"):
        return types[min(index, len(types) - 1)] == "full"
    often, begin = keys.get("index_topk_freq") or 1, keys.get("index_skip_topk_offset") or 0
    return index < begin or (index - begin + 1) % often == 0


def _number(keys: Keys, *names: str) -> int:
    """The first of these keys that there is, or 0; of a list with one for each layer, its first."""
    return at(first(keys, *names, default=0), 0)


def num_experts(keys: Keys) -> int:
    """Routed experts of a sparse layer; 0 for a dense model."""
    return _number(keys, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


def experts_per_token(keys: Keys) -> int:
    """Of them, those that a token uses."""
    spelt = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts")
    return _number(keys, *spelt, "moe_top_k", "moe_k", "moe_topk")


def expert_width(keys: Keys) -> int:
    """Width of one routed expert: where no key of its own says so, `intermediate_size` is one's."""
    return _number(keys, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")


def shared_width(keys: Keys) -> int:
    """Width of the shared experts together: stated, or so many routed experts'."""
    stated = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim")
    if any(keys.get(name) is not None for name in stated):
        return _number(keys, *stated)
    number = _number(keys, "n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    return number * expert_width(keys) or _number(keys, "shared_intermediate_size")


def is_sparse(keys: Keys, index: int) -> bool:
    """Whether that layer has a mixture of experts."""
    if not num_experts(keys):
        return False
    if types := keys.get("mlp_layer_types"):
        return at(types, min(index, len(types) - 1)) != "dense"
    if listed := first(keys, "moe_layers", "moe_layers_enum"):
        return index in (map(int, listed.split(",")) if isinstance(listed, str) else listed)
    if index < first(keys, "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", default=0):
        return False
    often = keys.get("moe_layer_freq", 1)
    if isinstance(often, list):
        return bool(at(often, min(index, len(often) - 1)))
    step = first(keys, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    return index % often == 0 and (index + 1) % step == 0 and index not in (keys.get("mlp_only_layers") or ())


def dense_width(keys: Keys, index: int) -> int:
    """Width of that layer's dense MLP; Gemma 4 E doubles it where keys and values are an earlier layer's."""
    width = at(first(keys, "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"), index)
    last = keys.get("num_kv_shared_layers") or 0
    wide = last and keys.get("use_double_wide_mlp") and index >= keys["num_hidden_layers"] - last
    return 2 * width if wide else width


def block_of(keys: Keys, traits: Traits, kind: str, index: int) -> Block:
    """One layer."""
    if configs := keys.get("block_configs"):
        return _searched(keys, configs[index])
    hidden, mixer = keys["hidden_size"], mixer_of(keys, traits, kind, index)
    alone = kind in ("mlp", "moe") or _apart(keys)
    matrices, vectors = dict(mixer.matrices), mixer.vectors + (1 if alone else traits.norms) * hidden
    sparse = kind == "moe" if alone else is_sparse(keys, index)
    dense = kind == "mlp" if alone else not sparse or keys.get("enable_moe_block")
    if dense:
        matrices |= mlp("mlp.", hidden, dense_width(keys, index), traits.gated_mlp)
    if keys.get("mlp_bias") and dense:
        vectors += (1 + traits.gated_mlp) * dense_width(keys, index) + hidden
    if small := keys.get("hidden_size_per_layer_input"):
        matrices |= {"per_layer_input_gate": (hidden, small), "per_layer_projection": (small, hidden)}
        vectors += hidden
    if mult := keys.get("hc_mult"):  # hyper-connections of attention and experts
        matrices |= {f"{part}_hc.fn": (mult * hidden, (2 + mult) * mult) for part in ("attn", "ffn")}
        vectors += 2 * ((2 + mult) * mult + 3)
    block = Block(matrices=matrices, vectors=vectors, caches=mixer.caches, state=dict(mixer.state))
    return _with_experts(keys, traits, block) if sparse else block


def _apart(keys: Keys) -> bool:
    """Whether mixers and MLPs are layers of their own (Nemotron-H)."""
    return bool(first(keys, "hybrid_override_pattern", "layers_block_type")) and "mamba_num_heads" in keys


def _with_experts(keys: Keys, traits: Traits, block: Block) -> Block:
    """That layer with its router, shared expert and routed experts."""
    hidden, experts, width = keys["hidden_size"], num_experts(keys), expert_width(keys)
    if not (experts_per_token(keys) and width):
        raise ValueError("lacks num_experts_per_tok or moe_intermediate_size")
    inner = keys.get("moe_latent_size") or hidden
    matrices = block.matrices | {"mlp.gate": (hidden, experts)}
    if inner != hidden:
        matrices |= {"mlp.fc1_latent_proj": (hidden, inner), "mlp.fc2_latent_proj": (inner, hidden)}
    if shared := shared_width(keys):
        matrices |= mlp("mlp.shared_expert.", hidden, shared, traits.gated_mlp)
        if traits.shared_gate:
            matrices["mlp.shared_expert_gate"] = hidden, 1
    vectors = block.vectors + (experts if traits.router_bias else 0)
    if keys.get("enable_moe_block"):
        vectors += 4 * hidden + experts  # three more norms, the router's scales
    return msgspec.structs.replace(
        block, matrices=matrices, vectors=vectors, num_experts=experts, experts_per_token=experts_per_token(keys),
        expert=mlp("mlp.experts.", inner, width, traits.gated_mlp), expert_vectors=2 * width + hidden if traits.expert_bias else 0,
    )  # fmt: skip


def _searched(keys: Keys, layer: dict[str, Any]) -> Block:
    """A layer of a searched architecture (Llama-Nemotron, arXiv 2411.19146): each part may be absent or replaced by a matrix."""
    hidden, part, feed = keys["hidden_size"], layer["attention"], layer["ffn"]
    matrices: Matrices = {}
    caches: tuple[Any, ...] = ()
    vectors = 0
    if not part.get("no_op"):
        vectors += hidden
        if part.get("replace_with_linear"):
            matrices["self_attn.linear_attn"] = hidden, hidden
        else:
            queries = keys["num_attention_heads"]
            groups = part.get("num_key_value_heads") or queries // part["n_heads_in_group"]
            dim = keys.get("head_dim") or hidden // queries
            mixer = mixers.attention(hidden, Heads(queries, groups, dim, dim))
            matrices, caches = dict(mixer.matrices), mixer.caches
    if not feed.get("no_op"):
        vectors += hidden
        if feed.get("replace_with_linear"):
            matrices["mlp.linear_mlp"] = hidden, hidden
        else:
            width = feed.get("intermediate_size") or -(-int(2 * feed["ffn_mult"] * hidden / 3) // 256) * 256
            matrices |= mlp("mlp.", hidden, width)
    return Block(matrices=matrices, vectors=vectors, caches=caches)


def mtp_layers(keys: Keys, traits: Traits) -> list[Block]:
    """The multi-token prediction layers in the checkpoint: a matrix that joins two hidden vectors, then layers like the last."""
    depth = first(keys, "num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", default=0)
    if not 0 < depth <= MOST_LAYERS:
        if depth:
            raise ValueError(f"num_nextn_predict_layers must be from 0 to {MOST_LAYERS:,}, got {depth:,}")
        return []
    hidden, kinds = keys["hidden_size"], layer_kinds(keys)
    parts = first(keys, "mtp_hybrid_override_pattern", "mtp_layers_block_type", default=["full"])
    layers = [block_of(keys, traits, _KINDS[part], len(kinds) - 1) for part in parts]
    joined = layers[0].matrices | {"eh_proj": (2 * hidden, hidden)}
    layers[0] = msgspec.structs.replace(layers[0], matrices=joined, vectors=layers[0].vectors + 3 * hidden)
    return layers * depth


def stack(keys: Keys, traits: Traits) -> list[Block]:
    """The layers of a config in their order. Raises ValueError, one line, for keys that are missing or make no sense."""
    return [block_of(keys, traits, kind, index) for index, kind in enumerate(layer_kinds(keys))]
