"""Draft heads: small decoders that read their target's hidden states. EAGLE-3, Scylla (EAGLE-3 with more layers), EAGLE-1/2.

Promises: both kinds are driven alike. Ask the target for `hidden_states=head.feature_layers`, join them, `combine` them once,
then run the head with the tokens one place ahead; feed `pre_norm_BTC` of its output back as the next `hidden_BTC`.
Refuses to know: trees, sampling, losses, files.

Alignment: row t holds the embedding of token t+1 and the feature of token t, stands at position t, and its logits
predict token t+2.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from foredraft import shapes
from foredraft.models.cache import Cache, new_cache
from foredraft.models.decoder import INIT_STD, Decoder
from foredraft.models.forward import LogitsAt, Output, attention_metadata, check_context, read_out
from foredraft.models.kernels import fits_layer
from foredraft.models.layers import AttentionMetadata, FusionLayer, KeyValues, Layer, ModelConfig, norm
from foredraft.models.linear import Linear, linear
from foredraft.models.rope import Rope, Rotary
from foredraft.shapes import Shape


class DraftHead(nn.Module, ABC):
    """What both kinds share. The target's tables are borrowed: they are no parameters of this module."""

    fc: Linear
    layers: nn.ModuleList
    norm: nn.Module

    def __init__(
        self,
        shape: Shape,
        model_config: ModelConfig,
        target: Decoder,
        feature_layers: tuple[int, ...],
        own_embedding: bool,
    ) -> None:
        super().__init__()
        self.shape, self.config, self.feature_layers = shape, model_config, feature_layers
        self.rotary = Rotary(model_config.rope or Rope(), shape.head_dim)
        self.fits = fits_layer(shape, model_config)
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size) if own_embedding else None
        self._borrowed = (target,)  # in a tuple, where nn.Module does not register it

    @property
    def target(self) -> Decoder:
        return self._borrowed[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    def new_cache(self, batch: int, slots: int) -> Cache:
        """Room for `batch` sequences of `slots` rows, draft nodes included."""
        check_context(slots, self.shape, self.config)
        return new_cache(self.shape, batch, slots, self.dtype, self.fc.weight.device)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings of target token ids: the head's own table if its file carries one, else the target's."""
        table = self.target.embed_tokens if self.embed_tokens is None else self.embed_tokens
        return table(tokens_BT).to(self.dtype)

    def forward(
        self,
        tokens_BT: Tensor,
        hidden_BTC: Tensor,
        positions_BT: Tensor | None = None,
        cache: KeyValues | None = None,
        slots_BT: Tensor | None = None,
        mask_BTS: Tensor | None = None,
        *,
        logits: LogitsAt = "all",
    ) -> Output:
        """One draft step. `tokens_BT` are target ids, `hidden_BTC` what `combine` or the last step's `pre_norm_BTC` gave.

        The rest is as in `Decoder.forward`; logits are over the head's own vocabulary (see `target_ids`).
        """
        assert hidden_BTC.shape == (*tokens_BT.shape, self.shape.hidden_size), (hidden_BTC.shape, tokens_BT.shape)
        _, metadata = attention_metadata(
            tokens_BT, positions_BT, cache, slots_BT, mask_BTS, self.rotary, self.dtype, self.fits
        )
        pre_norm = self.run(self.embed(tokens_BT), hidden_BTC, metadata)
        final = self.norm(pre_norm)
        return Output(read_out(final, logits, self.head), final, pre_norm)

    @abstractmethod
    def combine(self, features_BTF: Tensor) -> Tensor:
        """The target's features as `hidden_BTC` of a first step."""

    @abstractmethod
    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        """All layers."""

    @abstractmethod
    def head(self, final_BTC: Tensor) -> Tensor:
        """Logits over the head's vocabulary."""

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Ids in the head's vocabulary as the target's ids."""
        return draft_ids


class Eagle3Head(DraftHead):
    """EAGLE-3 (arXiv 2503.01840) and, with more layers, Scylla (arXiv 2505.07858).

    `fc` joins three target streams and never sees the head's own output. `d2t` [V of the head] int64: target id minus
    own id; `t2d` [V of the target] bool: the tokens that the head can draft.
    """

    def __init__(
        self,
        shape: Shape,
        model_config: ModelConfig,
        target: Decoder,
        feature_layers: tuple[int, ...],
        d2t: Tensor,
        own_embedding: bool = False,
    ) -> None:
        super().__init__(shape, model_config, target, feature_layers, own_embedding)
        hidden, width = shape.hidden_size, shape.target_hidden_size or shape.hidden_size
        self.fc = Linear(3 * width, hidden, bias=False)
        more = (Layer(shape, model_config, i) for i in range(1, shape.num_layers))
        self.layers = nn.ModuleList([FusionLayer(shape, model_config), *more])
        self.norm = norm(hidden, shape, model_config)
        self.lm_head = Linear(hidden, shape.draft_vocab_size or shape.vocab_size, bias=False)
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", draftable(d2t, shape.vocab_size))

    d2t: Tensor
    t2d: Tensor

    def combine(self, features_BTF: Tensor) -> Tensor:
        """[B, T, 3 × target's hidden size], streams low to high, to [B, T, C]."""
        return self.fc(features_BTF.to(self.dtype))

    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        first, *more = self.layers
        x_BTC = first(embeds_BTC, hidden_BTC, metadata)
        for layer in more:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    def head(self, final_BTC: Tensor) -> Tensor:
        return self.lm_head(final_BTC)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        return draft_ids + self.d2t[draft_ids]


class EagleHead(DraftHead):
    """EAGLE-1/2 (arXiv 2401.15077, 2406.16858): `fc` joins embedding and hidden state at every step; the target's LM head.

    Its output predicts the target's normed hidden state, so nothing is normed at the end.
    """

    def __init__(
        self,
        shape: Shape,
        model_config: ModelConfig,
        target: Decoder,
        *,
        own_embedding: bool = False,
        fc_bias: bool = False,
    ) -> None:
        super().__init__(shape, model_config, target, (target.shape.num_layers,), own_embedding)
        self.fc = Linear(2 * shape.hidden_size, shape.hidden_size, bias=fc_bias)
        self.layers = nn.ModuleList(Layer(shape, model_config, i, input_norm=i > 0) for i in range(shape.num_layers))
        self.norm = nn.Identity()

    def combine(self, features_BTF: Tensor) -> Tensor:
        """The target's final hidden state as it is."""
        return features_BTF.to(self.dtype)

    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_BTC = self.fc(torch.cat((embeds_BTC, hidden_BTC), dim=-1))
        for layer in self.layers:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    def head(self, final_BTC: Tensor) -> Tensor:
        return linear(final_BTC, self.target.head_weight_VC.to(self.dtype))


def default_feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The streams EAGLE-3 reads: those entering layers 2, L/2 and L−3 (Hugging Face's `hidden_states` indices)."""
    if num_layers < 3:
        raise ValueError(
            f"an EAGLE-3 head reads streams 2, L/2 and L−3, but its target has {num_layers} layers; name three"
        )
    return 2, num_layers // 2, num_layers - 3


def draftable(d2t: Tensor, vocab_size: int) -> Tensor:
    """The mask t2d behind the offsets d2t; raises where they leave the vocabulary or name a token twice."""
    ids = d2t + torch.arange(len(d2t), device=d2t.device)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"d2t must hold offsets to ids below {vocab_size}, got ids {int(ids.min())} to {int(ids.max())}"
        )
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=d2t.device)
    mask[ids] = True
    if int(mask.sum()) != len(ids):
        raise ValueError(f"d2t must name each token once, got {int(mask.sum())} tokens in {len(ids)} entries")
    return mask


def new_head(
    target: Decoder,
    kind: str = "eagle3",
    num_layers: int = 1,
    draft_vocab: Iterable[int] | None = None,
    *,
    seed: int = 0,
    feature_layers: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Eagle3Head | EagleHead:
    """An untrained head for `target` in its widths and rope: normal weights of deviation 0.02, norms of one.

    `kind` is "eagle3" (Scylla from two layers on) or "eagle". `draft_vocab` are the target ids it may draft, all by
    default; an EAGLE-3 head's LM head and final norm begin as the target's, cut to them.
    """
    rope, eps = target.config.rope or Rope(), target.config.norm_eps
    model_config = ModelConfig(norm_eps=eps, activation="silu", rope=rope)
    if kind == "eagle":
        if draft_vocab is not None or feature_layers is not None:
            raise ValueError(
                "draft_vocab and feature_layers are for 'eagle3': an 'eagle' head drafts all tokens from one stream"
            )
        head: Eagle3Head | EagleHead = EagleHead(shapes.eagle_head(target.shape, num_layers), model_config, target)
    elif kind == "eagle3":
        d2t = _offsets(draft_vocab, target.shape.vocab_size)
        layers = feature_layers or default_feature_layers(target.shape.num_layers)
        check_features(layers, target)
        head = Eagle3Head(shapes.eagle3_head(target.shape, num_layers, len(d2t)), model_config, target, layers, d2t)
    else:
        raise ValueError(f"kind must be 'eagle3' or 'eagle', got {kind!r}")
    _initialise(head, seed)
    return head.to(device=target.device, dtype=dtype)


def _offsets(draft_vocab: Iterable[int] | None, vocab_size: int) -> Tensor:
    ids = torch.arange(vocab_size) if draft_vocab is None else torch.tensor(sorted(int(i) for i in draft_vocab))
    if not len(ids):
        raise ValueError("draft_vocab must name at least one token")
    return ids - torch.arange(len(ids))


def check_features(layers: tuple[int, ...], target: Decoder) -> None:
    """Raise unless these are three of the target's streams."""
    depth = target.shape.num_layers
    if len(layers) != 3 or not all(0 <= layer <= depth for layer in layers):
        raise ValueError(f"feature_layers must be three streams from 0 to {depth}, got {list(layers)}")


@torch.no_grad()
def _initialise(head: Eagle3Head | EagleHead, seed: int) -> None:
    """In the order of the parameters, on the CPU, so that a seed gives one head everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, INIT_STD, generator=generator)
    if isinstance(head, Eagle3Head):
        ids = torch.nonzero(head.t2d)[:, 0]
        head.lm_head.weight.copy_(head.target.head_weight_VC[ids.to(head.target.device)])
        if isinstance(head.target.norm, nn.RMSNorm) and head.target.norm.weight is not None:
            head.norm.weight.copy_(head.target.norm.weight)  # pyright: ignore[reportCallIssue, reportArgumentType]
