"""What decoder and draft heads share around their layers: where tokens stand, what they see, which rows get logits.

Promises: shapes are checked here, at the border, so that layers need not. Refuses to know: weights.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from foredraft.models import kernels
from foredraft.models.cache import KVCache
from foredraft.models.layers import AttentionMetadata, KeyValues, ModelConfig, grouped_bias
from foredraft.models.rope import Rotary
from foredraft.shapes import Shape

LogitsAt = Tensor | Literal["all", "last", "none"]


class Output(NamedTuple):
    """What a forward pass gives.

    `logits_BTV`: None, of all T tokens, or of the R rows asked for. `final_BTC`: the hidden state the LM head reads
    (Hugging Face's `hidden_states[-1]`, EAGLE-1/2's feature). `pre_norm_BTC`: what the last layer left, before the
    final norm (what an EAGLE-3 head feeds itself). `hidden_states`: the hidden states asked for, in that order; index i is
    Hugging Face's `hidden_states[i]`, what enters layer i, and the number of layers gives `final_BTC`.
    """

    logits_BTV: Tensor | None
    final_BTC: Tensor
    pre_norm_BTC: Tensor
    hidden_states: tuple[Tensor, ...] = ()


def attention_metadata(
    tokens_BT: Tensor, positions_BT: Tensor | None, cache: KeyValues | None, slots_BT: Tensor | None,
    mask_BTS: Tensor | None, rotary: Rotary | None, dtype: torch.dtype,
    kernel_dtypes: frozenset[torch.dtype] = frozenset(), groups: int = 1, prompt: bool = False,
) -> tuple[Tensor, AttentionMetadata]:  # fmt: skip
    """Positions and `AttentionMetadata` of a pass, defaults filled in: positions 0, 1, …, slots = positions, a causal mask.

    `groups`: query heads of a key head. `kernel_dtypes`: types in which the layers can run by our own kernels, which they then do
    where the pass is small enough. `prompt`: whether it reads one, and decides no token.
    """
    assert tokens_BT.dim() == 2, f"tokens must be [B, T], got {tuple(tokens_BT.shape)}"
    if positions_BT is None:
        assert cache is None, "a pass with a cache needs positions"
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand(tokens_BT.shape)
    slots_BT = positions_BT if slots_BT is None else slots_BT
    assert positions_BT.shape == slots_BT.shape == tokens_BT.shape, (
        positions_BT.shape,
        slots_BT.shape,
        tokens_BT.shape,
    )
    if mask_BTS is None and cache is not None:
        assert isinstance(cache, KVCache), "a pass with a cache of another kind needs a mask"
        mask_BTS = causal_mask(slots_BT, cache.slots)
    mask_B1TS = None if mask_BTS is None else _mask(mask_BTS, tokens_BT)
    if (
        dtype in kernel_dtypes
        and mask_BTS is not None
        and isinstance(cache, KVCache)
        and kernels.usable(tokens_BT.numel(), dtype, tokens_BT.device, prompt=prompt)
    ):
        table = rotary.table(cache.slots) if rotary else None
        kernel = kernels.KernelPass.of(table, cache, slots_BT, positions_BT, mask_BTS, dtype, prompt=prompt)
        return positions_BT, AttentionMetadata(None, cache, slots_BT, mask_B1TS, kernel=kernel)
    rotation = rotary(positions_BT, dtype) if rotary else None
    bias = grouped_bias(mask_B1TS, groups, dtype) if mask_B1TS is not None and mask_B1TS.is_cuda else None
    return positions_BT, AttentionMetadata(rotation, cache, slots_BT, mask_B1TS, bias_B1RS=bias)


def causal_mask(slots_BT: Tensor, width: int) -> Tensor:
    """Each token sees the first slots up to its own: right where slots hold one sequence in order. [B, T, width]."""
    return torch.arange(width, device=slots_BT.device) <= slots_BT[..., None]


def _mask(mask_BTS: Tensor, tokens_BT: Tensor) -> Tensor:
    batch, width = tokens_BT.shape
    assert mask_BTS.dtype == torch.bool, f"mask must be bool, True where seen, got {mask_BTS.dtype}"
    assert mask_BTS.dim() == 3, f"mask must be [B, T, S], got {tuple(mask_BTS.shape)}"
    assert mask_BTS.shape[0] in (1, batch), (mask_BTS.shape, tokens_BT.shape)
    assert mask_BTS.shape[1] == width, (mask_BTS.shape, tokens_BT.shape)
    return mask_BTS[:, None]


def reads_prompt(at: LogitsAt) -> bool:
    """Whether a pass decides no token: it reads a prompt."""
    return isinstance(at, str) and at == "none"


def read_out(x_BTC: Tensor, at: LogitsAt, head: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Logits of the rows asked for only: the LM head is the widest matrix of a small model."""
    if isinstance(at, Tensor):
        assert at.dim() == 2, f"rows must be [B, R], got {tuple(at.shape)}"
        return head(x_BTC.gather(1, at[..., None].expand(-1, -1, x_BTC.shape[-1])))
    if at == "none":
        return None
    assert at in ("all", "last"), f"logits must be 'all', 'last', 'none' or rows [B, R], got {at!r}"
    return head(x_BTC if at == "all" else x_BTC[:, -1:])


def context_limit(shape: Shape, model_config: ModelConfig) -> int | None:
    """The longest context that is computed rightly: a learned table's rows (two are OPT's padding), or the window."""
    limits = [model_config.window, shape.position_rows - 2 if shape.position_rows else None]
    return min((limit for limit in limits if limit is not None), default=None)


def check_context(length: int, shape: Shape, model_config: ModelConfig) -> None:
    """Refuse what would reach beyond the limit. A cache's slots bound its positions, so no value is read back."""
    limit = context_limit(shape, model_config)
    if limit is None or length <= limit:
        return
    field = "sliding_window" if limit == model_config.window else "max_position_embeddings"
    raise ValueError(f"{shape.name}: {length} slots reach beyond {field} ({limit}), which is not supported; use fewer")
