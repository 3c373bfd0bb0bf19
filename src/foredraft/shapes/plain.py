"""Layers of a plain transformer or a draft head: attention, then an MLP or a mixture of experts.

Refuses to know: where their sizes come from.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from foredraft.shapes.blocks import Block, Cache, Matrices

if TYPE_CHECKING:
    from foredraft.shapes.counts import Shape


@lru_cache(1024)
def plain_blocks(shape: "Shape") -> tuple[Block, ...]:
    """The layers of a plain transformer or a draft head: dense ones, sparse ones, and a head's first where it is wider."""
    sparse = sum(map(shape.is_sparse, range(shape.num_layers))) if shape.num_experts else 0
    wide = int(bool(shape.head and shape.head.wide_layer))
    numbers = ((wide, 2, False), (shape.num_layers - sparse - wide, 1, False), (sparse, 1, True))
    return tuple(plain_block(shape, count, width, experts) for count, width, experts in numbers if count)


def plain_block(shape: "Shape", count: int = 1, width: int = 1, sparse: bool = False) -> Block:
    """`count` plain layers, whose attention reads `width` vectors of the hidden size side by side."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    matrices: Matrices = {
        "self_attn.q_proj": (width * hidden, queries), "self_attn.k_proj": (width * hidden, keys),
        "self_attn.v_proj": (width * hidden, keys), "self_attn.o_proj": (queries, hidden),
    }  # fmt: skip
    biases = shape.qkv_bias * (queries + 2 * keys) + shape.o_bias * hidden
    vectors = 2 * hidden * (1 + shape.layer_norm) + biases + shape.qk_norm * 2 * shape.head_dim
    caches = (Cache(values=2 * keys, width=2 * queries),)
    if shape.head:
        matrices |= shape.head.sized(shape.head.layer, hidden, shape.vocab_size)
        vectors += shape.head.layer_vectors * hidden
    if not sparse:
        matrices |= mlp("mlp.", hidden, inner, shape.gated_mlp)
        vectors += shape.mlp_bias * ((1 + shape.gated_mlp) * inner + hidden)
        return Block(count=count, matrices=matrices, vectors=vectors, caches=caches)
    matrices["mlp.gate"] = hidden, shape.num_experts
    if shape.shared_intermediate_size:
        matrices |= mlp("mlp.shared_expert.", hidden, shape.shared_intermediate_size)
        matrices["mlp.shared_expert_gate"] = hidden, 1
    return Block(
        count=count, matrices=matrices, vectors=vectors, caches=caches, num_experts=shape.num_experts,
        experts_per_token=shape.experts_per_token, expert=mlp("mlp.experts.", hidden, shape.moe_intermediate_size or 0),
    )  # fmt: skip


def mlp(prefix: str, hidden: int, inner: int, gated: bool = True) -> Matrices:
    """The matrices of an MLP or an expert."""
    ways = {"gate_proj": (hidden, inner)} if gated else {}
    ways |= {"up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return {prefix + name: sizes for name, sizes in ways.items()}
