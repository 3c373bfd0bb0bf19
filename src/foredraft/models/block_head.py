"""DFlash (arXiv 2602.06036) as a draft head: a block of tokens in one pass. What all heads of blocks share, and its folder.

A block is the anchor, which is the last token known, and mask tokens behind it. Its layers are bidirectional: each row sees the
target's hidden states of all tokens before the anchor, and all rows of its block. The hidden states, joined by `fc` and normed, enter
the keys and values of every layer and nothing else, so that they are cached once and the block's own rows are forgotten every step.

Promises: names and keys are those of the published files. Refuses to know: which drafted tokens were accepted, sampling, losses.

Shapes: B sequences, T rows of a pass, k drafted tokens of a block; the rest as in this room.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foredraft import kinds
from foredraft.feature_layers import block_feature_layers
from foredraft.models.chain import Entry
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.draft_head import DraftHead, HeadLayout, NamesOnFile, llama_like, no_options
from foredraft.models.draft_vocab import all_target_ids, cut_offsets, stored_offsets
from foredraft.models.forward import LogitsAt, Output, attention_metadata, read_out
from foredraft.models.layers import AttentionMetadata, KeyValues, Layer, ModelConfig, norm
from foredraft.models.linear import Linear
from foredraft.models.target import Target
from foredraft.shapes import Shape

TABLES = ("embed_tokens.weight", "lm_head.weight")


class BlockHead(DraftHead):
    """A head that drafts a block of tokens in one pass; with nothing beside its layers it is DFlash's.

    `mask_token`: the target's id that stands for a token not known yet. `from_anchor`: whether the anchor's own row predicts the token
    after it (DeepSpec's layout, whose blocks have as many rows as they draft tokens) or is read by the others alone (z-lab's, one more).
    """

    kind: ClassVar[kinds.Kind] = kinds.DFLASH
    layout = HeadLayout("DFlashDraftModel")
    reads_drafts: ClassVar[bool] = False  # whether a token's logits depend on the token drafted before it

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, feature_layers: tuple[int, ...], mask_token: int,
        d2t: Tensor | None = None, *, from_anchor: bool | None = None, own_tables: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(shape, config, target, feature_layers, TABLES[0] in own_tables, d2t)
        self.mask_token, self.own_tables = mask_token, own_tables
        self.from_anchor = from_anchor_by_default(self.kind) if from_anchor is None else from_anchor
        hidden, width = shape.hidden_size, shape.target_hidden_size or shape.hidden_size
        self.fc = Linear(len(feature_layers) * width, hidden, bias=False)
        self.hidden_norm = norm(hidden, shape, config)
        self.layers = nn.ModuleList(Layer(shape, config, i) for i in range(shape.num_layers))
        self.norm = norm(hidden, shape, config)
        if TABLES[1] in own_tables:
            self.lm_head = Linear(hidden, shape.draft_vocab_size or shape.vocab_size, bias=False)

    @property
    def block(self) -> int:
        """Tokens that a pass drafts."""
        assert self.shape.head is not None
        return self.shape.head.block

    @property
    def rows(self) -> int:
        """Rows of a block's pass, the anchor's among them."""
        return self.block + (not self.from_anchor)

    @property
    def first_row(self) -> int:
        """The row that predicts the first token behind the anchor."""
        return self.rows - self.block

    @classmethod
    def new(
        cls,
        target: Target,
        num_layers: int = 1,
        draft_vocab: Iterable[int] | None = None,
        feature_layers: tuple[int, ...] | None = None,
        *,
        block: int | None = None,
        mask_token: int | None = None,
        **options: Any,
    ) -> Self:
        """`block`: tokens drafted in a pass, the kind's own by default. `mask_token`: an id that texts do not hold, the last by default."""
        vocab_size = target.shape.vocab_size
        feature_layers = feature_layers or block_feature_layers(target.shape.num_layers)
        mask_token = vocab_size - 1 if mask_token is None else mask_token
        check_block(feature_layers, mask_token, target)
        d2t = cut_offsets(draft_vocab, vocab_size)
        parts = cls.part_fields(len(feature_layers), block, **options)
        shape = cls.kind.shape(target.shape, num_layers, None if d2t is None else len(d2t), **parts)
        return cls(shape, llama_like(target), target, feature_layers, mask_token, d2t)

    @classmethod
    def part_fields(cls, hidden_states: int, block: int | None = None, **options: Any) -> dict[str, Any]:
        """The fields of `HeadParts` in which a head of such options differs from its kind."""
        no_options(options)
        return {"hidden_states": hidden_states} | ({} if block is None else {"block": block})

    @classmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        keys = kinds.block_keys(config_keys)
        refuse_variants(keys, config)
        feature_layers, mask_token = stated_feature_layers(keys, target), keys.get("mask_token_id")
        if mask_token is None:
            raise ValueError("mask_token_id is missing: it says which token stands for one that is not known yet")
        check_block(feature_layers, mask_token, target)
        d2t = stored_offsets(shape, checkpoint) if shape.draft_vocab_size else None
        own_tables = tuple(name for name in TABLES if _differs(name, checkpoint, target, d2t))
        with torch.device("meta"):
            return cls(
                shape, config, target, feature_layers, mask_token, d2t, from_anchor=kinds.from_anchor(keys, cls.kind),
                own_tables=own_tables,
            )  # fmt: skip

    def hollow(self, shape: Shape) -> Self:
        return type(self)(
            shape, self.config, self.target, self.feature_layers, self.mask_token, self.d2t, from_anchor=self.from_anchor,
            own_tables=self.own_tables,
        )  # fmt: skip

    def combine(self, features_BTF: Tensor) -> Tensor:
        """[B, T, F], hidden states low to high, to what every layer's keys and values are made of, [B, T, C]."""
        return self.hidden_norm(self.fc(features_BTF.to(self.dtype)))

    def context(self, hidden_BTC: Tensor, positions_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of tokens whose hidden states `combine` gave."""
        rotation = self.rotary(positions_BT, hidden_BTC.dtype)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield layer.self_attn.keys_values(hidden_BTC, rotation)

    def read(self, hidden_BTC: Tensor, positions_BT: Tensor, cache: KeyValues, slots_BT: Tensor) -> None:
        """Put the keys and values of tokens known by now into the cache."""
        for index, (k_BKTD, v_BKTD) in enumerate(self.context(hidden_BTC, positions_BT)):
            cache.write(index, k_BKTD, v_BKTD, slots_BT)

    def blocks(self, anchors_BA: Tensor) -> Tensor:
        """Anchor tokens, each with the mask tokens behind it, [B, A · rows]."""
        masks = anchors_BA.new_full((*anchors_BA.shape, self.rows - 1), self.mask_token)
        return torch.cat((anchors_BA[..., None], masks), -1).flatten(1)

    def forward(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, cache: KeyValues | None = None, slots_BT: Tensor | None = None,
        mask_BTS: Tensor | None = None, *, logits: LogitsAt = "all",
    ) -> Output:  # fmt: skip
        """A pass over the rows of blocks, as `Decoder.forward` has its arguments; the mask says which slots of the context and of its
        block a row sees. Logits are over the head's own vocabulary and know nothing of tokens drafted before (see `corrected`).
        """
        _, metadata = attention_metadata(
            tokens_BT, positions_BT, cache, slots_BT, mask_BTS, self.rotary, self.dtype, self.kernel_dtypes,
            groups=self.shape.num_heads // self.shape.num_kv_heads,
        )  # fmt: skip
        x_BTC = self.run(self.embed(tokens_BT), metadata)
        final = self.norm(x_BTC)
        return Output(read_out(final, logits, self.head), final, x_BTC)

    def run(self, embeds_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        """All layers."""
        x_BTC = embeds_BTC
        for layer in self.layers:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    @property
    def entry(self) -> Entry:
        """What `corrected` does, for our kernels."""
        return Entry()

    def corrected(self, logits_BkV: Tensor, previous_Bk: Tensor) -> Tensor:
        """Logits of a block's places once the token before each is known, by its target id."""
        return logits_BkV

    def acceptance(self, final_BkC: Tensor, previous_Bk: Tensor) -> Tensor | None:
        """The logit of how probable the token drafted at each place is to be accepted, [B, k], from the states that the LM head reads and
        the token before; None of a head that says nothing of it.
        """
        return None

    def correction(self, previous_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `corrected` adds, as rows [B, T, r] and a matrix [V, r] whose products it is; None for nothing."""
        return None

    # On file

    @staticmethod
    def names_on_file(checkpoint: Checkpoint) -> NamesOnFile:
        return _Names(checkpoint)

    def tensors_on_file(self, layout: HeadLayout) -> dict[str, Tensor]:
        """Tables that are the target's stay out of the file."""
        return self.state_dict()

    def block_config(self) -> dict[str, Any]:
        """The keys that say what a block is, in z-lab's count of layers: by the layer left."""
        return {"mask_token_id": self.mask_token, "target_layer_ids": [layer - 1 for layer in self.feature_layers]}

    def keys_on_file(self) -> dict[str, Any]:
        return self.shared_keys() | {kinds.BLOCK_CONFIG: self.block_config()}

    def shared_keys(self) -> dict[str, Any]:
        """What both layouts of configs have at the top."""
        return {
            "num_target_layers": self.target.shape.num_layers, "block_size": self.rows, "sample_from_anchor": self.from_anchor,
            "layer_types": ["full_attention"] * self.shape.num_layers, "draft_vocab_size": self.shape.draft_vocab_size,
            "target_hidden_size": self.shape.target_hidden_size,
        }  # fmt: skip


def from_anchor_by_default(kind: kinds.Kind) -> bool:
    """Whether heads of the kind predict from the anchor's row where their config does not say."""
    return kinds.from_anchor({}, kind)


def check_block(feature_layers: tuple[int, ...], mask_token: int, target: Target) -> None:
    """Raise ValueError unless these are hidden states before the last layer's, and a token of the target's."""
    depth, vocab_size = target.shape.num_layers, target.shape.vocab_size
    if not feature_layers or not all(0 <= layer < depth for layer in feature_layers):
        raise ValueError(f"feature_layers must be hidden states from 0 to {depth - 1}, got {list(feature_layers)}")
    if not 0 <= mask_token < vocab_size:
        raise ValueError(f"mask_token must be an id below the target's vocab_size {vocab_size}, got {mask_token}")


def stated_feature_layers(keys: Mapping[str, Any], target: Target) -> tuple[int, ...]:
    """By the layers left (`target_layer_ids`), or in the speculators format by the layers entered; the default where neither is there."""
    if left := keys.get("target_layer_ids"):
        return tuple(layer + 1 for layer in left)
    return tuple(keys.get("aux_hidden_state_layer_ids") or block_feature_layers(target.shape.num_layers))


def refuse_variants(keys: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ValueError on a published variant that is not built here."""
    causal = next((key for key in ("causal", "is_causal") if keys.get(key)), None)
    if causal:
        raise ValueError(f"{causal} is true: blocks whose rows see no later ones are not supported")
    if config.window is not None or "sliding_attention" in (keys.get("layer_types") or ()):
        raise ValueError("layer_types: sliding layers of a head of blocks are not supported")


def _differs(name: str, checkpoint: Checkpoint, target: Target, d2t: Tensor | None) -> bool:
    """Whether a folder has a table that is not its target's own: published heads often carry copies."""
    if name not in checkpoint.stored:
        return False
    table, ids = (
        (target.embed_tokens.weight, None) if name == TABLES[0] else (target.head_weight_VC, all_target_ids(d2t))
    )
    stored = checkpoint.tensor(name)
    rows = len(table) if ids is None else len(ids)
    if table.is_meta or stored.shape != (rows, table.shape[1]):
        return True
    return not torch.equal(stored.to(table), table if ids is None else table[ids.to(table.device)])


class _Names(NamesOnFile):
    """Copies of the target's tables may be there."""

    def is_spare(self, name: str) -> bool:
        return name in TABLES or super().is_spare(name)
