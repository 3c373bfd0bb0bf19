"""EAGLE-1/2 (arXiv 2401.15077, 2406.16858) as a draft head, and what its folder calls things."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import msgspec
import torch
from torch import Tensor, nn

from foredraft import kinds
from foredraft.models.chain import Entry
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.draft_head import HeadLayout, NamesOnFile, TokenHead, llama_like, no_options
from foredraft.models.draft_vocab import cut_offsets, stored_offsets
from foredraft.models.layers import AttentionMetadata, Layer, ModelConfig
from foredraft.models.linear import Linear
from foredraft.models.target import Target
from foredraft.shapes import Shape

CUT_LAYOUT = HeadLayout(
    "LlamaForCausalLMEagle"
)  # a draft vocabulary alone would make it an EAGLE-3 head, see kinds.of_checkpoint


class EagleHead(TokenHead):
    """`fc` joins embedding and hidden state at every step; the target's LM head, or its rows of a draft vocabulary alone (as
    FR-Spec, arXiv 2502.14856, cuts it).

    Its output predicts the target's normed hidden state, so nothing is normed at the end.
    """

    predicts_hidden_state = True
    layout = HeadLayout("LlamaForCausalLM")

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, d2t: Tensor | None = None, *,
        own_embedding: bool = False, fc_bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(shape, config, target, (target.shape.num_layers,), own_embedding, d2t)
        if d2t is not None:
            self.layout = CUT_LAYOUT
        self.fc = Linear(2 * shape.hidden_size, shape.hidden_size, bias=fc_bias)
        self.layers = nn.ModuleList(Layer(shape, config, i, input_norm=i > 0) for i in range(shape.num_layers))
        self.norm = nn.Identity()

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
        if feature_layers is not None:
            raise ValueError("feature_layers are for 'eagle3': an 'eagle' head reads the target's last hidden state")
        d2t = cut_offsets(draft_vocab, target.shape.vocab_size)
        shape = kinds.EAGLE.shape(target.shape, num_layers, None if d2t is None else len(d2t))
        return cls(shape, llama_like(target), target, d2t)

    @classmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        width = target.shape.embed_width
        if shape.hidden_size != width:
            raise ValueError(f"an EAGLE-1/2 head needs the target's hidden_size {width}, got {shape.hidden_size}")
        own_embedding, fc_bias = "embed_tokens.weight" in checkpoint.stored, "fc.bias" in checkpoint.stored
        d2t = stored_offsets(shape, checkpoint)
        with torch.device("meta"):
            return cls(shape, config, target, d2t, own_embedding=own_embedding, fc_bias=fc_bias)

    def hollow(self, shape: Shape) -> Self:
        own_embedding, fc_bias = self.embed_tokens is not None, self.fc.bias is not None
        d2t = self.d2t if shape.draft_vocab_size else None
        return type(self)(shape, self.config, self.target, d2t, own_embedding=own_embedding, fc_bias=fc_bias)

    def uncut(self) -> Self:
        """The same head over the target's whole LM head, as engines without draft vocabularies run it."""
        state = {name: tensor for name, tensor in self.state_dict().items() if name not in ("d2t", "t2d")}
        return self.with_weights(state, msgspec.structs.replace(self.shape, draft_vocab_size=None))

    def combine(self, features_BTF: Tensor) -> Tensor:
        """The target's final hidden state as it is."""
        return features_BTF.to(self.dtype)

    @property
    def entry(self) -> Entry:
        return Entry(fc=self.fc)

    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_BTC = self.fc(torch.cat((embeds_BTC, hidden_BTC), dim=-1))
        for layer in self.layers:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    @staticmethod
    def names_on_file(checkpoint: Checkpoint) -> NamesOnFile:
        return _Names(checkpoint)

    def tensors_on_file(self, layout: HeadLayout) -> dict[str, Tensor]:
        """`fc` with a bias or without, as the engine has it. Raises ValueError where a bias would be lost."""
        tensors, bias = dict(self.state_dict()), self.fc.bias
        if layout.fc_bias:
            return {"fc.bias": torch.zeros(self.shape.hidden_size)} | tensors
        if bias is not None and bool(bias.any()):
            raise ValueError(
                "fc.bias is not zero, and this layout has no bias; train without one, or save for an engine whose fc has one"
            )
        tensors.pop("fc.bias", None)
        return tensors

    def keys_on_file(self) -> dict[str, Any]:
        return {"draft_vocab_size": self.shape.draft_vocab_size}


class _Names(NamesOnFile):
    """An LM head may be there, which no loader reads: it is the target's."""

    def is_spare(self, name: str) -> bool:
        return name == "lm_head.weight" or super().is_spare(name)
