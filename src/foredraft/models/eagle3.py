"""EAGLE-3 (arXiv 2503.01840) and, with more layers, Scylla (arXiv 2505.07858) as a draft head, and what its folder calls things."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from foredraft import kinds
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, aux_layer_ids
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.draft_head import HeadLayout, NamesOnFile, TokenHead, llama_like, no_options
from foredraft.models.draft_vocab import offsets, stored_offsets
from foredraft.models.layers import AttentionMetadata, FusionLayer, Layer, ModelConfig, norm
from foredraft.models.linear import Linear
from foredraft.models.target import Target
from foredraft.shapes import Shape


class Eagle3Head(TokenHead):
    """`fc` joins three of the target's hidden states and never sees the head's own output.

    A map `d2t` it always has, over the whole vocabulary one that maps nothing.
    """

    layout = HeadLayout("LlamaForCausalLMEagle3")

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, feature_layers: tuple[int, ...], d2t: Tensor,
        own_embedding: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(shape, config, target, feature_layers, own_embedding, d2t)
        hidden, width = shape.hidden_size, shape.target_hidden_size or shape.hidden_size
        self.fc = Linear(3 * width, hidden, bias=False)
        later_layers = (Layer(shape, config, i) for i in range(1, shape.num_layers))
        self.layers = nn.ModuleList([FusionLayer(shape, config), *later_layers])
        self.norm = norm(hidden, shape, config)
        self.lm_head = Linear(hidden, shape.draft_vocab_size or shape.vocab_size, bias=False)

    d2t: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    t2d: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def new(
        cls,
        target: Target,
        num_layers: int = 1,
        draft_vocab: Iterable[int] | None = None,
        feature_layers: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Self:
        no_options(options)
        d2t = offsets(draft_vocab, target.shape.vocab_size)
        feature_layers = feature_layers or default_feature_layers(target.shape.num_layers)
        check_features(feature_layers, target)
        return cls(
            kinds.EAGLE3.shape(target.shape, num_layers, len(d2t)), llama_like(target), target, feature_layers, d2t
        )

    @classmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        feature_layers, d2t = _feature_layers(config_keys, target), stored_offsets(shape, checkpoint)
        d2t = offsets(None, shape.vocab_size) if d2t is None else d2t
        with torch.device("meta"):
            return cls(shape, config, target, feature_layers, d2t, "embed_tokens.weight" in checkpoint.stored)

    def hollow(self, shape: Shape) -> Self:
        return type(self)(shape, self.config, self.target, self.feature_layers, self.d2t, self.embed_tokens is not None)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """The LM head and the final norm begin as the target's, cut to what the head can draft."""
        super().initialise(seed)
        ids = torch.nonzero(self.t2d)[:, 0]
        assert self.lm_head is not None
        self.lm_head.weight.copy_(self.target.head_weight_VC[ids.to(self.target.device)])
        if isinstance(self.target.norm, nn.RMSNorm) and self.target.norm.weight is not None:
            self.norm.weight.copy_(self.target.norm.weight)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def combine(self, features_BTF: Tensor) -> Tensor:
        """[B, T, 3 × target's hidden size], hidden states low to high, to [B, T, C]."""
        return self.fc(features_BTF.to(self.dtype))

    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        first_layer, *later_layers = self.layers
        x_BTC = first_layer(embeds_BTC, hidden_BTC, metadata)
        for layer in later_layers:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    @staticmethod
    def names_on_file(checkpoint: Checkpoint) -> NamesOnFile:
        return _Names(checkpoint)

    def tensors_on_file(self, layout: HeadLayout) -> dict[str, Tensor]:
        """A head over the whole vocabulary has no map: vLLM 0.32 refuses one that maps nothing."""
        state = self.state_dict()
        if len(self.d2t) == self.shape.vocab_size and not self.d2t.any():
            state = {name: tensor for name, tensor in state.items() if name not in ("d2t", "t2d")}
        tensors = {re.sub(r"^layers\.0\.", "midlayer.", name): tensor for name, tensor in state.items()}
        return tensors | {twin: tensor for name, tensor in tensors.items() if (twin := _twin(name))}

    def keys_on_file(self) -> dict[str, Any]:
        """The ids of the hidden states are left out where they are the default."""
        shape, entered = self.shape, list(self.feature_layers)
        keys: dict[str, Any] = {
            "draft_vocab_size": shape.draft_vocab_size or shape.vocab_size,
            "target_hidden_size": shape.target_hidden_size or shape.hidden_size,
            "norm_before_residual": False,
            "fc_norm": False,
            "norm_output": False,
        }
        depth = self.target.shape.num_layers
        if depth >= 3 and entered == list(default_feature_layers(depth)):
            return keys
        left_layers = {AUX_LAYER_IDS: [i - 1 for i in entered], "use_aux_hidden_state": True}
        return keys | {AUX_LAYER_IDS: entered, AUX_CONFIG: left_layers}


def default_feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The hidden states EAGLE-3 reads: those entering layers 2, L/2 and L−3 (Hugging Face's `hidden_states` indices)."""
    if num_layers < 3:
        raise ValueError(
            f"an EAGLE-3 head reads hidden states 2, L/2 and L−3, but its target has {num_layers} layers; name three"
        )
    return 2, num_layers // 2, num_layers - 3


def check_features(layers: tuple[int, ...], target: Target) -> None:
    """Raise unless these are three of the target's hidden states."""
    depth = target.shape.num_layers
    if len(layers) != 3 or not all(0 <= layer <= depth for layer in layers):
        raise ValueError(f"feature_layers must be three hidden states from 0 to {depth}, got {list(layers)}")


def _feature_layers(config_keys: Mapping[str, Any], target: Target) -> tuple[int, ...]:
    """vLLM counts hidden states by the layer they enter, SGLang (under eagle_config) by the layer they leave."""
    entered, left_layers = aux_layer_ids(config_keys)
    if entered and left_layers and [i + 1 for i in left_layers] != list(entered):
        raise ValueError(f"{AUX_LAYER_IDS} {entered} must be one more than {AUX_CONFIG}'s {left_layers}")
    layers = entered or [i + 1 for i in left_layers] or default_feature_layers(target.shape.num_layers)
    check_features(tuple(layers), target)
    return tuple(layers)


class _Names(NamesOnFile):
    """Layer 0 is `midlayer.` or `layers.0.`, the norms of later layers `input_layernorm` (vLLM), `hidden_norm` (SGLang) or both."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        has_midlayer = any(name.startswith("midlayer.") for name in checkpoint.stored)
        self.first_layer = "midlayer." if has_midlayer else "layers.0."
        pairs = {_twin(name): name for name in checkpoint.stored}
        self.twins = {twin: name for twin, name in pairs.items() if twin in checkpoint.stored}

    def of_parameter(self, name: str) -> str:
        name = re.sub(r"^layers\.0\.", self.first_layer, name)
        twin, stored = _twin(name), self.checkpoint.stored
        return twin if twin and name not in stored and twin in stored else name

    def is_spare(self, name: str) -> bool:
        return name in self.twins or super().is_spare(name)

    def check(self) -> None:
        """vLLM uses one of the two norms, SGLang the other: they must agree."""
        for twin, name in self.twins.items():
            if not torch.equal(self.checkpoint.tensor(twin), self.checkpoint.tensor(name)):
                raise self.checkpoint.fail(twin, f"differs from {name}; engines disagree about which one counts")


def _twin(name: str) -> str:
    """The second name of a later layer's first norm, or nothing."""
    match = re.fullmatch(r"layers\.([1-9]\d*)\.input_layernorm\.weight", name)
    return f"layers.{match[1]}.hidden_norm.weight" if match else ""
