"""Drafts for a target: heads of its widths, and smaller models of its family."""

import math

import msgspec

from foredraft.shapes.counts import Shape
from foredraft.shapes.families import FAMILIES, HEAD_FAMILY, NORMED_HEAD_FAMILY, dense_family
from foredraft.shapes.heads import HeadParts


def head(target: Shape, parts: HeadParts, num_layers: int = 1, draft_vocab: int | None = None) -> Shape:
    """A draft head of `parts` and the target's widths: Llama's layers without biases (Qwen3's where they norm queries and keys), an LM
    head of `draft_vocab` rows, its own or so many of the target's.
    """
    if draft_vocab is not None and draft_vocab > target.vocab_size:
        raise ValueError(f"draft_vocab ({draft_vocab}) must not exceed the target's vocab_size ({target.vocab_size})")
    if target.embed_dim:
        raise ValueError(f"{target.name}: a draft head needs embed_dim equal to hidden_size ({target.hidden_size})")
    heads, groups, dim = _head_sizes(target)
    return Shape(
        name=f"{target.name}-{parts.kind}-{num_layers}L", family=NORMED_HEAD_FAMILY if parts.qk_norm else HEAD_FAMILY, head=parts,
        num_layers=num_layers, qk_norm=parts.qk_norm,
        hidden_size=target.hidden_size, num_heads=heads, num_kv_heads=groups, head_dim=dim,
        intermediate_size=target.intermediate_size, vocab_size=target.vocab_size,
        draft_vocab_size=draft_vocab, target_hidden_size=target.hidden_size, target_num_layers=target.num_layers,
        max_position_embeddings=target.max_position_embeddings,
    )  # fmt: skip


def mtp_head(target: Shape, parts: HeadParts) -> Shape:
    """A pass of the multi-token prediction layers in the target's own checkpoint: the target's kind of layer, in its formats. Of several
    such layers a pass runs one, which is what is counted.

    Raises ValueError where the checkpoint has none.
    """
    if not target.mtp_blocks:
        raise ValueError(f"{target.name} has no multi-token prediction layers in its checkpoint")
    alike = math.gcd(*(block.count for block in target.mtp_blocks))
    blocks = tuple(msgspec.structs.replace(block, count=block.count // alike) for block in target.mtp_blocks)
    experts = max(block.num_experts for block in blocks)
    dense = {} if experts else {"num_experts": 0, "experts_per_token": 0, "moe_intermediate_size": None}
    return msgspec.structs.replace(
        target, name=f"{target.name}-{parts.kind}", blocks=blocks, num_layers=sum(block.count for block in blocks),
        head=msgspec.structs.replace(parts, hidden_states=0, fc_embedding=False, norms=0), tie_embeddings=False, position_rows=0,
        per_layer_embed=0, sparse_step=1, dense_layers=(), extra={}, mtp_blocks=(), vision_params=0,
        target_hidden_size=target.hidden_size, target_num_layers=target.num_layers, training_tokens=None, training_source=None, **dense,
    )  # fmt: skip


def _head_sizes(target: Shape) -> tuple[int, int, int]:
    """Attention heads, groups and width of a draft head: the target's, but for attention of more than twice the hidden size, which none
    that was published takes over (DeepSeek, Gemma 4): there heads of 128.
    """
    if target.num_heads * target.head_dim <= 2 * target.hidden_size:
        return target.num_heads, target.num_kv_heads, target.head_dim
    heads, share = max(1, target.hidden_size // 128), target.num_heads // target.num_kv_heads
    return heads, heads // max(g for g in range(1, share + 1) if heads % g == 0), 128


# What a draft of a target's sizes does not take over: its special layers and its formats.
PLAIN = {
    "blocks": (), "extra": {}, "weight_format": "bfloat16", "formats": {}, "kv_format": None, "kv_replicated": False, "mtp_blocks": (),
    "vision_params": 0, "notes": (), "draft_vocab_size": None,
}  # fmt: skip
WIDTHS = (*range(64, 1024, 64), *range(1024, 32769, 128))  # that `scaled` builds
LEAST_BODY = 5e4  # non-embedding parameters of the smallest model that `scaled` builds


def scaled(target: Shape, params: float) -> Shape:
    """A buildable small LM of the target's family and vocabulary with about `params` non-embedding parameters.

    Within 5 % from 5e6 on. Width over depth grows from 64 at 1e8 to 128 at 1e10 parameters, as in the public families;
    grouped queries as in the target; dense where the target is a mixture of experts. The embedding is tied where it
    exceeds a tenth of `params`, about where Llama-3.2, Qwen2.5 and Qwen3 stop tying theirs.
    """
    if not (math.isfinite(params) and params >= LEAST_BODY):
        raise ValueError(f"params must be at least 5e4 non-embedding parameters, got {params}")
    usual = (params * _aspect(params) / 12) ** (1 / 3)  # of a layer of 12 times its width squared
    widths = [width for width in WIDTHS if usual / 3 <= width <= 3 * usual] or WIDTHS[:1]
    candidates = [c for hidden in widths for c in _of_width(target, hidden, params)]
    best = min(candidates, key=lambda c: _misfit(c, target, params))
    tied = target.tie_embeddings or best.vocab_size * best.hidden_size > 0.1 * params
    return msgspec.structs.replace(best, name=f"{target.name}-scaled-{params:.3g}", tie_embeddings=tied)


def _of_width(target: Shape, hidden: int, params: float) -> list[Shape]:
    """The shapes of one width at the two depths around the request, the MLP's width taking up the rest."""
    step = 16 if hidden < 512 else 64
    draft = _with_width(target, hidden, max(step, round(_mlp_ratio(target) * hidden / step) * step))
    layer = _layers_only(draft)
    ends = draft.non_embedding_params - layer
    depth = (params - ends) / layer
    shapes = []
    for num_layers in {math.floor(depth), math.ceil(depth)}:
        if 1 <= num_layers <= 160:
            slope = (3 if draft.gated_mlp else 2) * hidden
            short = ((params - ends) / num_layers - layer) / slope
            mlp = max(step, draft.intermediate_size + round(short / step) * step)
            shapes.append(msgspec.structs.replace(draft, num_layers=num_layers, intermediate_size=mlp))
    return shapes or [draft]


def _layers_only(draft: Shape) -> int:
    """Parameters of one layer, from the difference that a second one makes."""
    more = msgspec.structs.replace(draft, num_layers=draft.num_layers + 1)
    return more.non_embedding_params - draft.non_embedding_params


def _mlp_ratio(target: Shape) -> float:
    """MLP width over hidden size, held to what small models of the public families use."""
    low, high = (2.5, 4.0) if target.gated_mlp else (4.0, 4.0)
    return min(max(target.intermediate_size / target.hidden_size, low), high)


def _with_width(target: Shape, hidden: int, intermediate: int) -> Shape:
    """One layer of the target's kind at another width."""
    head_dim = 128 if hidden >= 1024 and target.head_dim >= 128 else 64
    num_heads, group = hidden // head_dim, target.num_heads // target.num_kv_heads
    group = max(g for g in range(1, group + 1) if num_heads % g == 0)
    return msgspec.structs.replace(
        target, family=dense_family(target.family), **_switches(target), num_layers=1,
        hidden_size=hidden, num_heads=num_heads, num_kv_heads=num_heads // group, head_dim=head_dim,
        intermediate_size=intermediate, embed_dim=None, final_norm=True, num_experts=0, experts_per_token=0,
        moe_intermediate_size=None, shared_intermediate_size=0, sparse_step=1, dense_layers=(), per_layer_embed=0, **PLAIN,
        training_tokens=None, training_source=None,
    )  # fmt: skip


def _switches(target: Shape) -> dict[str, bool]:
    """The norms and biases of the draft's family, where the target's layers are of another kind."""
    family = FAMILIES.get(target.family)
    if family and family.traits is None:
        return {}
    dense = dense_family(target.family)
    return {
        "gated_mlp": True,
        "qk_norm": dense == "qwen3",
        "qkv_bias": dense == "qwen2",
        "o_bias": False,
        "mlp_bias": False,
    }


def _aspect(params: float) -> float:
    """Width over depth of a model of that size, as the public families have it."""
    return 64 * 2 ** min(max((math.log10(params) - 8) / 2, 0.0), 1.0)


def _misfit(draft: Shape, target: Shape, params: float) -> float:
    """What to minimise: log distances from the usual aspect, the target's MLP and query ratios, above all the size."""
    aspect = math.log(draft.hidden_size / draft.num_layers / _aspect(params))
    mlp = math.log(draft.intermediate_size / draft.hidden_size / _mlp_ratio(target))
    size = math.log(draft.non_embedding_params / params)
    group = math.log(draft.num_heads / draft.num_kv_heads * target.num_kv_heads / target.num_heads)
    return abs(aspect) + abs(mlp) + abs(group) + 50 * abs(size)
