"""What mixes tokens in one layer, from the keys of a config: attention in its kinds, and recurrent layers.

Promises: matrices, norms, cache and state of each kind as the reference implementations shape them. Refuses to know: which layer has which
(`stack` does). Names are those on file; legend: H hidden size, a matrix is (inputs, outputs).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from foredraft.shapes.blocks import Cache, Matrices

Keys = Mapping[str, Any]  # of a config.json


class Mixer(NamedTuple):
    """Matrices, the number of other weights, what a token leaves in the cache and what a sequence keeps: values by format."""

    matrices: Matrices
    vectors: int = 0
    caches: tuple[Cache, ...] = ()
    state: Mapping[str, int] = {}


class Heads(NamedTuple):
    """The heads of one layer's attention; `gate`: the query projection is doubled, or a gate stands beside it, of one value
    a head ("heads") or as wide as the output ("full").

    `shares_value`: values are the keys. `qk_norm`: "head" or "full", the width of the norms of queries and keys.
    """

    queries: int
    keys: int
    dim: int
    value_dim: int
    window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str = ""
    gate: str = ""
    sinks: bool = False
    shares_value: bool = False
    reads_only: bool = False  # keys and values are an earlier layer's


def attention(hidden: int, heads: Heads) -> Mixer:
    """Grouped-query attention."""
    queries, keys, values = heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.value_dim
    out = heads.queries * heads.value_dim
    matrices: Matrices = {"self_attn.q_proj": (hidden, queries * (2 if heads.gate == "double" else 1))}
    if not heads.reads_only:
        matrices["self_attn.k_proj"] = hidden, keys
    if not (heads.reads_only or heads.shares_value):
        matrices["self_attn.v_proj"] = hidden, values
    matrices["self_attn.o_proj"] = out, hidden
    if heads.gate in ("heads", "full"):
        matrices["self_attn.g_proj"] = hidden, heads.queries if heads.gate == "heads" else out
    biases = heads.qkv_bias * (queries + keys + values) + heads.o_bias * hidden + heads.sinks * heads.queries
    norms = {"head": 2 * heads.dim, "full": queries + keys, "": 0}[heads.qk_norm]
    kept = 0 if heads.reads_only else keys + values
    cache = Cache(values=kept, width=queries + out, window=heads.window)
    return Mixer(matrices, biases + norms, (cache,))


def latent_attention(keys: Keys, hidden: int, indexed: bool) -> Mixer:
    """DeepSeek's MLA (arXiv 2405.04434), and the lightning indexer of its sparse attention (DeepSeek-V3.2-Exp's report) where `indexed`.

    Products are those of decoding, with the up-projections absorbed: a cached token is kv_lora_rank + rope wide.
    """
    heads, rank, rope = keys["num_attention_heads"], keys["kv_lora_rank"], keys["qk_rope_head_dim"]
    query, value, low = keys["qk_nope_head_dim"] + rope, keys["v_head_dim"], keys.get("q_lora_rank")
    matrices: Matrices = {
        "self_attn.kv_a_proj_with_mqa": (hidden, rank + rope),
        "self_attn.kv_b_proj": (rank, heads * (query - rope + value)), "self_attn.o_proj": (heads * value, hidden),
    }  # fmt: skip
    if low:
        matrices |= {"self_attn.q_a_proj": (hidden, low), "self_attn.q_b_proj": (low, heads * query)}
    else:
        matrices["self_attn.q_proj"] = hidden, heads * query
    picks = keys.get("index_topk")
    caches: tuple[Cache, ...] = (Cache(values=rank + rope, width=heads * (2 * rank + rope), top=picks),)
    vectors = rank + (low or 0)
    if indexed:
        index_heads, dim = keys["index_n_heads"], keys["index_head_dim"]
        matrices |= {
            "self_attn.indexer.wq_b": (low or hidden, index_heads * dim), "self_attn.indexer.wk": (hidden, dim),
            "self_attn.indexer.weights_proj": (hidden, index_heads),
        }  # fmt: skip
        caches += (Cache(values=dim, width=index_heads * dim, format="fp8"),)  # its keys are cached in FP8
        vectors += 2 * dim
    return Mixer(matrices, vectors, caches)


def compressed_attention(keys: Keys, hidden: int, ratio: int) -> Mixer:
    """DeepSeek-V4's: a window of whole tokens, and one entry for `ratio` tokens before it (0: none), keys being values.

    At ratio 4 entries overlap (twice the width is projected) and an indexer picks `index_topk` of them.
    """
    heads, dim, low = keys["num_attention_heads"], keys["head_dim"], keys["q_lora_rank"]
    groups, out = keys["o_groups"], keys["o_lora_rank"]
    matrices: Matrices = {
        "self_attn.q_a_proj": (hidden, low), "self_attn.q_b_proj": (low, heads * dim), "self_attn.kv_proj": (hidden, dim),
        "self_attn.o_a_proj": (heads * dim // groups, groups * out), "self_attn.o_b_proj": (groups * out, hidden),
    }  # fmt: skip
    vectors = low + dim + heads
    caches: tuple[Cache, ...] = (Cache(values=dim, width=2 * heads * dim, window=keys["sliding_window"]),)
    if ratio:
        picked = ratio == 4
        wide = (1 + picked) * dim
        matrices |= {
            "self_attn.compressor.kv_proj": (hidden, wide), "self_attn.compressor.gate_proj": (hidden, wide),
        }  # fmt: skip
        vectors += ratio * wide + dim
        most = keys["index_topk"] * ratio if picked else None
        caches += (Cache(values=dim / ratio, width=2 * heads * dim / ratio, top=most),)
        if picked:
            index_heads, small = keys["index_n_heads"], keys["index_head_dim"]
            matrices |= {
                "self_attn.compressor.indexer.kv_proj": (hidden, 2 * small),
                "self_attn.compressor.indexer.gate_proj": (hidden, 2 * small),
                "self_attn.compressor.indexer.q_b_proj": (low, index_heads * small),
                "self_attn.compressor.indexer.weights_proj": (hidden, index_heads),
            }  # fmt: skip
            vectors += 2 * ratio * small + small
            caches += (Cache(values=small / ratio, width=index_heads * small / ratio, format="fp8"),)
    return Mixer(matrices, vectors, caches)


def gated_delta(keys: Keys, hidden: int) -> Mixer:
    """Gated DeltaNet (arXiv 2412.06464) as in Qwen3-Next and Qwen3.5; a matrix of key × value a head is its state."""
    key_width = keys["linear_num_key_heads"] * keys["linear_key_head_dim"]
    heads, value = keys["linear_num_value_heads"], keys["linear_value_head_dim"]
    mixed, kernel = 2 * key_width + heads * value, keys["linear_conv_kernel_dim"]
    matrices: Matrices = {
        "linear_attn.in_proj_qkv": (hidden, mixed), "linear_attn.in_proj_z": (hidden, heads * value),
        "linear_attn.in_proj_b": (hidden, heads), "linear_attn.in_proj_a": (hidden, heads),
        "linear_attn.conv1d": (kernel, mixed), "linear_attn.out_proj": (heads * value, hidden),
    }  # fmt: skip
    state = {"bfloat16": (kernel - 1) * mixed}
    recurrent = str(keys.get("mamba_ssm_dtype") or "bfloat16")
    state[recurrent] = state.get(recurrent, 0) + heads * value * keys["linear_key_head_dim"]
    return Mixer(matrices, 2 * heads + value, (), state)


def mamba2(keys: Keys, hidden: int) -> Mixer:
    """Mamba-2 (arXiv 2405.21060) as in Nemotron-H, and by the names of Bamba and Granite 4."""
    heads, dim = (
        keys.get(a) or keys[b] for a, b in (("mamba_n_heads", "mamba_num_heads"), ("mamba_d_head", "mamba_head_dim"))
    )
    size, groups = (
        keys.get(a) or keys[b] for a, b in (("mamba_d_state", "ssm_state_size"), ("mamba_n_groups", "n_groups"))
    )
    inner, kernel = heads * dim, keys.get("conv_kernel") or keys.get("mamba_d_conv") or 4
    mixed = inner + 2 * groups * size
    matrices: Matrices = {
        "linear_attn.in_proj": (hidden, inner + mixed + heads), "linear_attn.conv1d": (kernel, mixed),
        "linear_attn.out_proj": (inner, hidden),
    }  # fmt: skip
    vectors = 3 * heads + inner + (mixed if keys.get("use_conv_bias", True) else 0)
    state = {"bfloat16": (kernel - 1) * mixed}
    recurrent = str(keys.get("mamba_ssm_cache_dtype") or "bfloat16")
    state[recurrent] = state.get(recurrent, 0) + heads * dim * size
    return Mixer(matrices, vectors, (), state)


def delta_attention(keys: Keys, hidden: int) -> Mixer:
    """Kimi Delta Attention (arXiv 2510.26692): gates of low rank a channel, a convolution for each of q, k and v."""
    inner = keys.get("linear_attn_config") or {}
    heads, dim = inner.get("num_heads") or keys["linear_num_heads"], inner.get("head_dim") or keys["linear_head_dim"]
    kernel = inner.get("short_conv_kernel_size") or keys["linear_conv_kernel_dim"]
    width = heads * dim
    matrices: Matrices = {f"linear_attn.{name}_proj": (hidden, width) for name in "qkv"}
    matrices |= {f"linear_attn.{name}_conv1d": (kernel, width) for name in "qkv"}
    for name in "fg":
        matrices |= {f"linear_attn.{name}_a_proj": (hidden, dim), f"linear_attn.{name}_b_proj": (dim, width)}
    matrices |= {"linear_attn.b_proj": (hidden, heads), "linear_attn.o_proj": (width, hidden)}
    return Mixer(
        matrices, heads + 2 * width + dim, (), {"bfloat16": (kernel - 1) * 3 * width, "float32": heads * dim * dim}
    )


def lightning(keys: Keys, hidden: int) -> Mixer:
    """MiniMax-01's linear attention (arXiv 2501.08313): gated, a norm over all heads, a square matrix a head as its state."""
    heads, dim = keys["num_attention_heads"], keys.get("head_dim") or hidden // keys["num_attention_heads"]
    width = heads * dim
    matrices: Matrices = {
        "self_attn.qkv_proj": (hidden, 3 * width), "self_attn.output_gate": (hidden, width), "self_attn.out_proj": (width, hidden),
    }  # fmt: skip
    return Mixer(matrices, width, (), {"float32": heads * dim * dim})
