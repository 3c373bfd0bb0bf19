"""The parts of a decoder layer, for every family: norms, attention, MLP, and the settings a `Shape` does not count.

Promises: one module per part, switched by `Shape` and `ModelConfig`, never by a family's name. Refuses to know: embeddings,
LM heads, files.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.models import kernels
from foredraft.models.linear import Linear
from foredraft.models.rope import rotate
from foredraft.records import Record, require
from foredraft.shapes import Shape
from foredraft.shapes.families import FAMILIES
from foredraft.shapes.rope import Rope, rope_from_config

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "relu": F.relu, "gelu": F.gelu}


class ModelConfig(Record, frozen=True):
    """What changes a layer's values but not its size. `rope` is None where positions are learned (OPT).

    `pre_norm`: norms stand before attention and MLP (False: OPT-350m, after the sum). `window`: tokens that sliding
    attention sees, None for all.
    """

    norm_eps: float
    activation: str
    rope: Rope | None = None
    pre_norm: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        require(self, positive=("norm_eps", "window"))
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not supported (have {', '.join(ACTIVATIONS)})")


def model_config_of(config: dict[str, Any], shape: Shape) -> ModelConfig:
    """The rest of a Hugging Face config; what it leaves out takes transformers' default of its family."""
    if shape.position_rows:
        if not config.get("layer_norm_elementwise_affine", True):
            raise ValueError("layer_norm_elementwise_affine must be true: norms without weights are not supported")
        activation, pre_norm = config.get("activation_function", "relu"), config.get("do_layer_norm_before", True)
        return msgspec.convert({"norm_eps": 1e-5, "activation": activation, "pre_norm": pre_norm}, ModelConfig)
    activation, eps = config.get("hidden_act", "silu"), config.get("rms_norm_eps", 1e-6)
    plain = {"norm_eps": eps, "activation": activation, "window": _window(config, shape)}
    return msgspec.structs.replace(msgspec.convert(plain, ModelConfig), rope=rope_from_config(config))


def _window(config: dict[str, Any], shape: Shape) -> int | None:
    """The window of the layers that slide: all, or where they are switched on those from `max_window_layers` on."""
    kinds = config.get("layer_types") or []
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(f"layer_types {unknown[0]!r} is not supported (have full_attention, sliding_attention)")
    family = FAMILIES[shape.family]
    if family.slides == "always":
        return config.get("sliding_window", 4096)
    if family.slides == "never" or not config.get("use_sliding_window", False):
        return None
    slides = "sliding_attention" in kinds if kinds else config.get("max_window_layers", 28) < shape.num_layers
    return config.get("sliding_window", 4096) if slides else None


class KeyValues(Protocol):
    """What attention asks of a cache: take this pass's keys and values, give all it may see. `KVCache` is one."""

    def write(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]: ...


class Attend(Protocol):
    """Attention of the caller's own over one layer's queries, keys and values, rotated already: [B, N, T, D]."""

    def __call__(self, layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor: ...


class ContextAttention(Protocol):
    """Attention of the caller's own where each layer makes keys and values of `hidden_BTC` too, of tokens that are no rows of the pass."""

    @property
    def hidden_BTC(self) -> Tensor: ...
    @property
    def rotation(self) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, context_k: Tensor, context_v: Tensor
    ) -> Tensor: ...


class AttentionMetadata(NamedTuple):
    """Where a pass's tokens stand and what they see; the same for all layers. `mask` None: causal among themselves.

    `bias` says on a GPU what `mask` says, as `grouped_attention` takes it.
    `kernel`: the same for our own kernels, where they run this pass.
    `attend` stands in for cache, slots and mask where none of them can say what is seen (training of draft heads), `context` too.
    """

    rotation: tuple[Tensor, Tensor] | None
    cache: KeyValues | None
    slots_BT: Tensor
    mask_B1TS: Tensor | None
    attend: Attend | None = None
    kernel: kernels.KernelPass | None = None
    bias_B1RS: Tensor | None = None
    context: ContextAttention | None = None


def grouped_bias(mask_B1TS: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The mask as a number to add, 0 or −∞, for `groups` query heads of a key head one after another: R = groups · T rows."""
    bias = torch.zeros(mask_B1TS.shape, dtype=dtype, device=mask_B1TS.device).masked_fill_(~mask_B1TS, -torch.inf)
    return bias.repeat(1, 1, groups, 1)


def grouped_attention(q_BNTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias_B1RS: Tensor) -> Tensor:
    """Attention under a mask, [B, N, T, D], all query heads of a key head as rows of one: with a mask CUDA's fused kernel does
    not share keys among heads, and the fallback copies keys and values for each of them."""
    rows_BKRD = q_BNTD.reshape(q_BNTD.shape[0], k_BKSD.shape[1], -1, q_BNTD.shape[-1])
    return F.scaled_dot_product_attention(rows_BKRD, k_BKSD, v_BKSD, attn_mask=bias_B1RS).reshape(q_BNTD.shape)


def norm(size: int, shape: Shape, model_config: ModelConfig) -> nn.Module:
    """LayerNorm with bias or RMSNorm; both compute in float32 inside."""
    return (nn.LayerNorm if shape.layer_norm else nn.RMSNorm)(size, eps=model_config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245). `index` is its layer's place in the cache."""

    def __init__(self, shape: Shape, model_config: ModelConfig, index: int, input_size: int | None = None) -> None:
        super().__init__()
        self.index, self.head_dim, self.grouped = index, shape.head_dim, shape.num_heads != shape.num_kv_heads
        size, queries, keys = input_size or shape.hidden_size, shape.num_heads, shape.num_kv_heads
        self.q_proj = Linear(size, queries * shape.head_dim, bias=shape.qkv_bias)
        self.k_proj = Linear(size, keys * shape.head_dim, bias=shape.qkv_bias)
        self.v_proj = Linear(size, keys * shape.head_dim, bias=shape.qkv_bias)
        self.o_proj = Linear(queries * shape.head_dim, shape.hidden_size, bias=shape.o_bias)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=model_config.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=model_config.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        q_BNTD = self.q_norm(self._split(self.q_proj(x_BTC))).transpose(1, 2)
        k_BKTD, v_BKTD = self.keys_values(x_BTC, metadata.rotation)
        if metadata.rotation is not None:
            q_BNTD = rotate(q_BNTD, metadata.rotation)
        return self.o_proj(self._attend(q_BNTD, k_BKTD, v_BKTD, metadata).transpose(1, 2).flatten(2))

    def keys_values(self, x_BTC: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Keys, rotated, and values of `x_BTC`, [B, K, T, D] each."""
        k_BKTD = self.k_norm(self._split(self.k_proj(x_BTC))).transpose(1, 2)
        v_BKTD = self._split(self.v_proj(x_BTC)).transpose(1, 2)
        return k_BKTD if rotation is None else rotate(k_BKTD, rotation), v_BKTD

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, heads·D] to [B, T, heads, D]."""
        return x.unflatten(-1, (-1, self.head_dim))

    def _attend(self, q_BNTD: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
        """The mask's width says how many slots are read, so that short contexts do not pay for a long cache."""
        if metadata.attend is not None:
            return metadata.attend(self.index, q_BNTD, k, v)
        if (context := metadata.context) is not None:
            return context(self.index, q_BNTD, k, v, *self.keys_values(context.hidden_BTC, context.rotation))
        mask = metadata.mask_B1TS
        if metadata.cache is not None:
            k, v = metadata.cache.write(self.index, k, v, metadata.slots_BT)
        if mask is not None:
            k, v = k[:, :, : mask.shape[-1]], v[:, :, : mask.shape[-1]]
        if metadata.bias_B1RS is not None:
            return grouped_attention(q_BNTD, k, v, metadata.bias_B1RS)
        causal = mask is None and q_BNTD.shape[2] > 1
        return F.scaled_dot_product_attention(q_BNTD, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped)


class Mlp(nn.Module):
    """act(gate(x)) · up(x), or act(up(x)) where nothing gates (OPT), then down."""

    def __init__(self, shape: Shape, model_config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        self.activation = ACTIVATIONS[model_config.activation]
        self.gate_proj = Linear(hidden, inner, bias=bias) if shape.gated_mlp else None
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x_BTC)))
        return self.down_proj(self.activation(self.gate_proj(x_BTC)) * self.up_proj(x_BTC))


class DecoderBlock(nn.Module):
    """Attention, then MLP, each around a residual: what all layers share, whichever way they compute it."""

    self_attn: Attention
    post_attention_layernorm: nn.Module
    mlp: Mlp

    def __init__(self, shape: Shape, model_config: ModelConfig, index: int, input_size: int | None = None) -> None:
        super().__init__()
        self.shape, self.config, self.index = shape, model_config, index
        self.self_attn = Attention(shape, model_config, index, input_size)
        self.post_attention_layernorm = norm(shape.hidden_size, shape, model_config)
        self.mlp = Mlp(shape, model_config)
        self._stack: kernels.Stack | None = None

    @property
    def in_eight(self) -> bool:
        """Whether its matrices are kept in eight bits."""
        return self.self_attn.o_proj.eight is not None

    def block(self, x_BTC: Tensor, normed_BTI: Tensor, metadata: AttentionMetadata) -> Tensor:
        """The layer, `normed_BTI` being what attention reads."""
        if metadata.kernel is not None:
            return self.by_kernel(x_BTC, normed_BTI, metadata.kernel)
        x_BTC = x_BTC + self.self_attn(normed_BTI, metadata)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))

    def by_kernel(self, x_BTC: Tensor, normed_BTI: Tensor | None, kernel: kernels.KernelPass) -> Tensor:
        if self._stack is None:
            self._stack = kernels.Stack([self], self.index)
        return kernel.layers(self._stack, x_BTC, normed_BTI)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Weights that move are looked up again."""
        self._stack = None
        return super()._apply(fn, recurse)


class Layer(DecoderBlock):
    """One decoder layer. `input_norm` False leaves the first norm out (layer 0 of an EAGLE head)."""

    def __init__(self, shape: Shape, model_config: ModelConfig, index: int, *, input_norm: bool = True) -> None:
        super().__init__(shape, model_config, index)
        self.input_layernorm = norm(shape.hidden_size, shape, model_config) if input_norm else nn.Identity()

    def forward(self, x_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        if metadata.kernel is not None and not isinstance(self.input_layernorm, nn.Identity):
            return self.by_kernel(x_BTC, None, metadata.kernel)
        if self.config.pre_norm:
            return self.block(x_BTC, self.input_layernorm(x_BTC), metadata)
        x_BTC = self.input_layernorm(x_BTC + self.self_attn(x_BTC, metadata))
        return self.post_attention_layernorm(x_BTC + self.mlp(x_BTC))


class FusionLayer(DecoderBlock):
    """Layer 0 of an EAGLE-3 head: attention reads the embedding beside the feature; the residual is the raw feature, or the normed one
    (`norm_before_residual`).
    """

    def __init__(self, shape: Shape, model_config: ModelConfig, *, norm_before_residual: bool = False) -> None:
        super().__init__(shape, model_config, 0, input_size=2 * shape.hidden_size)
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = norm(shape.hidden_size, shape, model_config)
        self.hidden_norm = norm(shape.hidden_size, shape, model_config)

    def forward(self, embeds_BTC: Tensor, x_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        normed_BTC = self.hidden_norm(x_BTC)
        read_BTI = torch.cat((self.input_layernorm(embeds_BTC), normed_BTC), dim=-1)
        return self.block(normed_BTC if self.norm_before_residual else x_BTC, read_BTI, metadata)
