"""What all draft heads share: small decoders that read their target's hidden states; and those that draft token by token.

Promises: every kind is driven alike. Ask the target for `hidden_states=head.feature_layers`, join them and `combine` them once.
A `TokenHead` then runs with the tokens one place ahead; feed `pre_norm_BTC` of its output back as the next `hidden_BTC`. A head that
drafts a block in one pass is a `BlockHead` (`block_head`).
Refuses to know: trees, sampling, losses.

Alignment of a `TokenHead`: row t holds the embedding of token t+1 and the hidden state of token t, stands at position t, and its
logits predict token t+2.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from foredraft.models.cache import KVCache, new_cache
from foredraft.models.chain import Entry
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.decoder import INIT_STD
from foredraft.models.draft_vocab import GatheredRows, draftable, maps_nothing, target_ids
from foredraft.models.forward import LogitsAt, Output, attention_metadata, check_context, read_out, reads_prompt
from foredraft.models.kernels import fits_layer
from foredraft.models.layers import AttentionMetadata, DecoderBlock, KeyValues, ModelConfig
from foredraft.models.linear import Linear, linear
from foredraft.models.rope import Rotary
from foredraft.models.target import Target
from foredraft.shapes import Shape
from foredraft.shapes.rope import Rope


class HeadLayout(NamedTuple):
    """What engines differ in of a head's folder: its class in `architectures`, and whether its `fc` must have a bias."""

    architecture: str
    fc_bias: bool = False


class DraftHead(nn.Module, ABC):
    """A head whose target's tables are borrowed: they are no parameters of this module."""

    predicts_hidden_state: ClassVar[bool] = False  # whether its output stands for its target's final hidden state
    draws: ClassVar[bool] = False  # whether sampled requests get a draw from q, and not its argmax
    layout: HeadLayout  # of the flat format, where nobody asks for another
    d2t: Tensor | None
    t2d: Tensor | None
    fc: Any  # a Linear; None: the target's last hidden state enters as it is
    layers: nn.ModuleList
    norm: nn.Module

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, feature_layers: tuple[int, ...], own_embedding: bool,
        d2t: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.config, self.feature_layers = shape, config, feature_layers
        self.rotary = Rotary(config.rope or Rope(), shape.head_dim)
        self.kernel_dtypes = fits_layer(shape, config)
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size) if own_embedding else None
        self.lm_head: Linear | None = None  # None: the target's is read
        self.register_buffer("d2t", d2t)  # see `draft_vocab`; None: the whole vocabulary
        self.register_buffer("t2d", None if d2t is None else draftable(d2t, shape.vocab_size))
        self.maps_nothing = d2t is not None and maps_nothing(d2t, shape.vocab_size)
        self._borrowed = (target,)  # in a tuple, where nn.Module does not register it
        self.gathered = GatheredRows()

    @classmethod
    @abstractmethod
    def new(
        cls,
        target: Target,
        num_layers: int = 1,
        draft_vocab: Iterable[int] | None = None,
        feature_layers: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Self:
        """A head for `target` before `initialise`; `options` are the kind's own. Raises ValueError on what the kind does not have."""

    @classmethod
    @abstractmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        """The head of a folder on the meta device, its vocabulary's map apart. `config_keys`: its config.json, unfolded."""

    @abstractmethod
    def hollow(self, shape: Shape) -> Self:
        """A head like this one, in `shape`."""

    @abstractmethod
    def combine(self, features_BTF: Tensor) -> Tensor:
        """The target's hidden states, joined, as the head reads them: `hidden_BTC`."""

    @property
    def target(self) -> Target:
        return self._borrowed[0]

    @property
    def dtype(self) -> torch.dtype:
        return self._matrix.dtype

    @property
    def _matrix(self) -> Tensor:
        """A weight that every head has."""
        layer = self.layers[0]
        assert isinstance(layer, DecoderBlock)
        return layer.self_attn.o_proj.weight

    @property
    def draft_ids(self) -> Tensor | None:
        """The target's ids that the head can draft, in the order of its own vocabulary; None for all."""
        return None if self.t2d is None or bool(self.t2d.all()) else self.t2d.nonzero()[:, 0]

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Ids in the head's vocabulary as the target's ids."""
        return target_ids(self.d2t, draft_ids)

    @property
    def head_weight_VC(self) -> Tensor:
        """What makes logits over the head's vocabulary, in its type: its own LM head, or the target's rows of what it can draft."""
        if self.lm_head is not None:
            return self.lm_head.weight
        d2t = None if self.maps_nothing else self.d2t
        return self.gathered(self.target.head_weight_VC, d2t, self.dtype, in_eight=self.in_eight)

    @property
    def in_eight(self) -> bool:
        """Whether its matrices are kept in eight bits: then it reads its target's rows so too."""
        layer = self.layers[0]
        assert isinstance(layer, DecoderBlock)
        return layer.in_eight

    def with_weights(self, state: Mapping[str, Tensor], shape: Shape | None = None) -> Self:
        """A head like this one (in `shape`, where it changes) that holds `state`, not copied."""
        with torch.device("meta"):
            head = self.hollow(shape or self.shape)
        head.load_state_dict(state, strict=True, assign=True)
        return head

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal weights of deviation 0.02 in the order of the parameters, on the CPU, so that a seed gives one head everywhere; biases of
        zero, which torch would draw by its global generator.
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, INIT_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    def new_cache(self, batch: int, slots: int) -> KVCache:
        """Room for `batch` sequences of `slots` rows, draft nodes included."""
        check_context(slots, self.shape, self.config)
        return new_cache(self.shape, batch, slots, self.dtype, self._matrix.device)

    @property
    def table(self) -> nn.Embedding:
        """The embedding that it reads: its own if its file carries one, else the target's."""
        return self.target.embed_tokens if self.embed_tokens is None else self.embed_tokens

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings of target token ids."""
        return self.table(tokens_BT).to(self.dtype)

    def head(self, final_BTC: Tensor) -> Tensor:
        """Logits over the head's vocabulary."""
        if self.lm_head is not None:
            return self.lm_head(final_BTC)
        return linear(final_BTC, self.head_weight_VC, eight=self.gathered.eight)

    # On file

    @staticmethod
    def names_on_file(checkpoint: Checkpoint) -> "NamesOnFile":
        return NamesOnFile(checkpoint)

    def tensors_on_file(self, layout: HeadLayout) -> dict[str, Tensor]:
        """The tensors of the flat format by their names there."""
        return self.state_dict()

    def keys_on_file(self) -> dict[str, Any]:
        """The config keys of this kind alone."""
        return {}

    @property
    def null_keys(self) -> tuple[str, ...]:
        """Config keys whose null says something to the engines."""
        return ()


class TokenHead(DraftHead):
    """A head that drafts token by token, reading its own output."""

    @abstractmethod
    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        """All layers."""

    @property
    @abstractmethod
    def entry(self) -> Entry:
        """What `run` and `fed_back` do, for our kernels."""

    def fed_back(self, pre_norm_BTC: Tensor, final_BTC: Tensor) -> Tensor:
        """What the next step reads in place of the target's hidden states: what the layers left, before the final norm."""
        return pre_norm_BTC

    def forward(
        self, tokens_BT: Tensor, hidden_BTC: Tensor, positions_BT: Tensor | None = None, cache: KeyValues | None = None,
        slots_BT: Tensor | None = None, mask_BTS: Tensor | None = None, *, logits: LogitsAt = "all",
    ) -> Output:  # fmt: skip
        """One draft step. `tokens_BT` are target ids, `hidden_BTC` what `combine` or the last step's `pre_norm_BTC` gave (see `fed_back`).

        The rest is as in `Decoder.forward`; logits are over the head's own vocabulary (see `target_ids`).
        """
        assert hidden_BTC.shape == (*tokens_BT.shape, self.shape.hidden_size), (hidden_BTC.shape, tokens_BT.shape)
        _, metadata = attention_metadata(
            tokens_BT, positions_BT, cache, slots_BT, mask_BTS, self.rotary, self.dtype, self.kernel_dtypes,
            groups=self.shape.num_heads // self.shape.num_kv_heads, prompt=reads_prompt(logits),
        )  # fmt: skip
        pre_norm = self.run(self.embed(tokens_BT), hidden_BTC, metadata)
        final = self.norm(pre_norm)
        return Output(read_out(final, logits, self.head), final, self.fed_back(pre_norm, final))


class NamesOnFile:
    """What the parameters of a head are called in its folder (see `head_files`): by their own names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def of_parameter(self, name: str) -> str:
        return name

    def is_spare(self, name: str) -> bool:
        """Whether a tensor is no parameter of ours, and may be there."""
        return name in ("d2t", "t2d") or name.startswith("verifier_") or name.endswith("rotary_emb.inv_freq")

    def check(self) -> None:
        """Raise ValueError where two tensors of the folder contradict each other."""


def no_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError where a kind that has no options of its own is given one."""
    if options:
        raise ValueError(f"{next(iter(options))} is not an option of this kind of head")


def llama_like(target: Target) -> ModelConfig:
    """The config of a new head's layers: Llama's, with the target's rope and norm."""
    return ModelConfig(norm_eps=target.config.norm_eps, activation="silu", rope=target.config.rope or Rope())
