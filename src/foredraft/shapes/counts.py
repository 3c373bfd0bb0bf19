"""Counts of a transformer: parameters, FLOPs per token, weight and cache bytes.

Promises: exact for the families of `families.py` (checked against published totals). Refuses to know: where a shape comes from.
"""

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from foredraft.records import Record, require
from foredraft.shapes.blocks import MOST_LAYERS, Block, Count, Matrices, Storage, capped
from foredraft.shapes.formats import bytes_per_value, matrix_bytes, number_format
from foredraft.shapes.heads import HeadParts
from foredraft.shapes.plain import plain_blocks


class MtpLayers(NamedTuple):
    """The layers in a checkpoint that draft by multi-token prediction; they share the embedding and the LM head, which do not count."""

    num_layers: int
    params: int


# Far beyond any transformer published; what is larger is a mistake, and would take memory and minutes to be found one.
MOST_SIZES = {
    "hidden_size": 2**24, "num_heads": 2**24, "num_kv_heads": 2**24, "head_dim": 2**20, "intermediate_size": 2**24, "vocab_size": 2**26,
    "max_position_embeddings": 2**27,
}  # fmt: skip


class Shape(Record, frozen=True, dict=True):
    """What a transformer is made of. Sizes as in a Hugging Face `config.json`; `family` is its model_type.

    `blocks` states layers that are no plain ones (attention, then an MLP or a mixture of experts), or not all alike; then the
    sizes from `num_heads` to `intermediate_size` and of the experts are the usual layer's. `extra`: matrices outside layers.
    `embed_dim` is the embedding's width where it is not `hidden_size` (OPT-350m), which adds two projections.
    `position_rows` is the length of a learned position table (OPT: 2050); `per_layer_embed` the width of a second embedding, which all
    layers share (Gemma 3n, Gemma 4 E). `layer_norm`: LayerNorm with bias or RMSNorm.
    `head` is None for a language model, else what a draft head has in its place; a head reads hidden states of width
    `target_hidden_size`, of a target of `target_num_layers` layers where its config says so. `draft_vocab_size`: rows of its LM head, of an
    independent draft's too; None for all of the vocabulary.
    `final_norm` is a language model's.
    `weight_format`: of the layers' matrices, `formats`: of matrices stored otherwise, by name; `kv_format`: of the cache where the
    checkpoint says. `mtp_blocks` and `vision_params` are in the checkpoint and in no other count.
    `kv_replicated`: the cache has no heads to split over devices (latent attention). `notes`: what its config left to be assumed.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool = False
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    final_norm: bool = True
    embed_dim: int | None = None
    position_rows: int = 0
    per_layer_embed: int = 0
    max_position_embeddings: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int | None = None
    shared_intermediate_size: int = 0
    sparse_step: int = 1
    dense_layers: tuple[int, ...] = ()
    blocks: tuple[Block, ...] = ()
    extra: Matrices = {}
    weight_format: str = "bfloat16"
    formats: dict[str, str] = {}
    kv_format: str | None = None
    kv_replicated: bool = False
    mtp_blocks: tuple[Block, ...] = ()
    vision_params: int = 0
    notes: tuple[str, ...] = ()
    head: HeadParts | None = None
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    target_num_layers: int | None = None
    training_tokens: float | None = None
    training_source: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size",
                "embed_dim", "max_position_embeddings", "moe_intermediate_size", "sparse_step", "draft_vocab_size",
                "target_hidden_size", "target_num_layers", "training_tokens",
            ),
            non_negative=(
                "position_rows", "per_layer_embed", "num_experts", "experts_per_token", "shared_intermediate_size", "dense_layers",
                "vision_params",
            ),
        )  # fmt: skip
        for name, most in MOST_SIZES.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name} must be at most {most:,}, got {getattr(self, name):,}")
        if self.num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {MOST_LAYERS:,}, got {self.num_layers:,}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must not exceed num_experts ({self.num_experts})"
            )
        if self.num_experts and not (self.experts_per_token and self.moe_intermediate_size):
            raise ValueError("num_experts > 0 needs experts_per_token and moe_intermediate_size, both positive")
        if self.head and self.embed_dim:
            raise ValueError("embed_dim must be None for a draft head: its target's embedding must be hidden_size wide")
        if self.blocks and self.num_layers != (stated := sum(block.count for block in self.blocks)):
            raise ValueError(f"num_layers ({self.num_layers}) must be the sum of the blocks' counts ({stated})")
        for name in {self.weight_format, *self.formats.values(), *([self.kv_format] if self.kv_format else [])}:
            number_format(name)

    def __hash__(self) -> int:
        """Without what is a dict; equal shapes have equal hashes."""
        return hash(
            (self.name, self.family, self.num_layers, self.hidden_size, self.intermediate_size, self.vocab_size)
        )

    # the parts, in numbers of weights

    @property
    def layers(self) -> tuple[Block, ...]:
        """All layers, equal ones together."""
        return self.blocks or plain_blocks(self)

    def is_sparse(self, index: int) -> bool:
        """Whether that plain layer has a mixture of experts: every `sparse_step`-th but for `dense_layers` (HF's rule for Qwen)."""
        return bool(self.num_experts) and (index + 1) % self.sparse_step == 0 and index not in self.dense_layers

    @property
    def num_sparse_layers(self) -> int:
        """Layers with a mixture of experts."""
        return sum(block.count for block in self.layers if block.num_experts)

    @property
    def embed_width(self) -> int:
        """Width of one row of the embedding and of the LM head."""
        return self.embed_dim or self.hidden_size

    @property
    def head_params(self) -> int:
        """Weights of the LM head that a forward pass multiplies by, whoever stores them."""
        return (self.draft_vocab_size or self.vocab_size) * self.embed_width

    @property
    def fc_params(self) -> int:
        """Weights of a draft head's `fc`, which joins hidden states, and the embedding where it takes it, to one of H."""
        if self.head is None:
            return 0
        joined = self.head.hidden_states * (self.target_hidden_size or self.hidden_size)
        return (joined + self.head.fc_embedding * self.hidden_size) * self.hidden_size

    @property
    def _tables(self) -> Matrices:
        """Tables of a draft head of which a token reads its row."""
        return self.head.sized(self.head.tables, self.hidden_size, self.vocab_size) if self.head else {}

    @property
    def chain(self) -> Matrices:
        """What every token drafted in a block passes one after another; its words are the draft's own where it has fewer."""
        if self.head is None:
            return {}
        return self.head.sized(self.head.chain, self.hidden_size, self.draft_vocab_size or self.vocab_size)

    @property
    def context_weights(self) -> int:
        """Matrix weights that a committed token passes to leave its keys and values in a head that drafts a block: `fc` and the
        projections of keys and values, or all layers.
        """
        keys_alone = self.head is not None and self.head.context_in_keys
        layers = sum(
            block.count * inputs * outputs
            for block in self.layers
            for name, (inputs, outputs) in block.matrices.items()
            if not keys_alone or name.endswith(("k_proj", "v_proj"))
        )
        return self.fc_params + layers

    @property
    def expert_params(self) -> int:
        """Weights of one expert of one layer, of those layers that have the most experts."""
        sparse = max(self.layers, key=lambda block: block.num_experts)
        return sparse.expert_weights + sparse.expert_vectors if sparse.num_experts else 0

    @property
    def _end_vectors(self) -> int:
        """Norm weights outside layers, OPT's biases among them."""
        norms = self.head.norms if self.head else self.final_norm
        return norms * self.hidden_size * (1 + self.layer_norm)

    @property
    def _projections(self) -> int:
        """OPT-350m's project_in and project_out, and what else stands outside layers."""
        outside = sum(inputs * outputs for inputs, outputs in self.extra.values())
        return outside + (2 * self.embed_dim * self.hidden_size if self.embed_dim else 0)

    # the totals

    @property
    def embedding_params(self) -> int:
        """Stored token embedding, position table and LM head; a tied head counts once, a borrowed table not at all."""
        if self.head:
            return self.head_params if self.head.own_lm_head else 0
        rows = self.vocab_size * (self.embed_width + self.per_layer_embed)
        return rows + self.position_rows * self.hidden_size + (0 if self.tie_embeddings else self.head_params)

    @cached_property
    def non_embedding_params(self) -> int:
        """Stored weights of everything else: layers, norms, what a draft head has beside them. The N of the loss laws."""
        own = _weights(self._tables) + _weights(self.chain)
        return _layer_params(self) + self._end_vectors + self.fc_params + self._projections + own

    @cached_property
    def params(self) -> int:
        """All stored weights of the language model; MTP layers and a vision tower are counted apart."""
        return self.embedding_params + self.non_embedding_params

    @property
    def active_params(self) -> int:
        """Weights that serve one token: `params`, the embedding included, less the experts it is not routed to."""
        return self.params - sum(block.idle_params for block in self.layers)

    @property
    def mtp_layers(self) -> MtpLayers | None:
        """The multi-token prediction layers of the checkpoint, None where it has none."""
        blocks = self.mtp_blocks
        return MtpLayers(sum(b.count for b in blocks), sum(b.params for b in blocks)) if blocks else None

    def flops_per_token(self, context: Count, *, recurrent: bool = False) -> Count:
        """Forward FLOPs of one token that attends to `context` tokens.

        2 per matrix weight touched (LM head included, embedding look-up not) plus 2 per multiply-add with the cached tokens that each
        layer attends to. A recurrent layer's update of its state (under 2 % of its products) is left out. `recurrent`: as in `read_bytes`.
        """
        ends = self._projections + self.head_params + self._once(recurrent)
        touched = sum(b.count * (b.weights + b.experts_per_token * b.expert_weights) for b in self.layers)
        attended: Any = sum(
            b.count * c.width * capped(capped(context, c.window), c.top)
            for b in self.layers
            for c in b.caches
            if c.width
        )
        return 2.0 * (touched + ends) + 2.0 * attended

    def _once(self, recurrent: bool) -> int:
        """Of a draft head the weights beside its pass: the chain, and an `fc` that joins the target's hidden states alone, which serves
        only the first pass of a step; a recurrent pass has neither.
        """
        if self.head and self.head.fc_embedding:
            return self.fc_params
        return 0 if recurrent else self.fc_params + _weights(self.chain)

    # bytes: in the checkpoint's own formats, or all in one where a dtype is named

    def _storage(self, dtype: str | None) -> Storage:
        if dtype:
            number_format(dtype)
        return Storage(self.weight_format, self.formats, dtype)

    def weight_bytes(self, dtype: str | None = None) -> float:
        """Bytes of the stored weights, scales included; MTP layers and a vision tower are not.

        `dtype`: None for the checkpoint's own formats; one of 16 or 32 bits for all of them; a quantised one for what engines quantise
        while they load, linear layers alone: the embedding, the LM head, routers and norms stay in 16 bits.
        """
        ends = sum(self._end_bytes(dtype))
        experts = sum(
            b.count * b.num_experts * size for b, size in zip(self.layers, self._expert_bytes(dtype), strict=True)
        )
        return self._layer_bytes(dtype) + experts + ends

    def _layer_bytes(self, dtype: str | None) -> float:
        """Bytes of all layers but for the routed experts."""
        return _layer_bytes(self, dtype)

    def _expert_bytes(self, dtype: str | None) -> tuple[float, ...]:
        """Bytes of one routed expert of each of `layers`."""
        return _expert_bytes(self, dtype)

    def _end_bytes(self, dtype: str | None) -> tuple[float, float]:
        """Bytes outside layers: of what only its tokens' rows are read, and of what is read whole (the LM head's too where it is tied)."""
        storage = self._storage(dtype)
        whole = self._end_vectors * bytes_per_value(storage.sixteen_bit)
        whole += sum(matrix_bytes(storage.format_of(name, {}), *sizes) for name, sizes in self.extra.items())
        if self.embed_dim:
            whole += 2 * self.embed_dim * self.hidden_size * bytes_per_value(storage.sixteen_bit)
        whole += self.fc_params * bytes_per_value(storage.format_of("fc", {}))
        if self.head:
            looked_up = _weights(self._tables) * bytes_per_value(storage.sixteen_bit)
            whole += self.chain_bytes(dtype)
            return looked_up, whole + (self._head_bytes(storage) if self.head.own_lm_head else 0.0)
        rows = self.vocab_size * (self.embed_width + self.per_layer_embed) + self.position_rows * self.hidden_size
        looked_up = rows * bytes_per_value(storage.format_of("embed_tokens", {}))
        return looked_up, whole + (0.0 if self.tie_embeddings else self._head_bytes(storage))

    def _head_bytes(self, storage: Storage) -> float:
        name = "embed_tokens" if self.tie_embeddings else "lm_head"
        return self.head_params * bytes_per_value(storage.format_of(name, {}))

    def expert_bytes(self, dtype: str | None = None) -> float:
        """Bytes of one routed expert of one layer, scales included; 0 for a dense model."""
        return max(self._expert_bytes(dtype))

    def dense_read_bytes(self, dtype: str | None = None, *, recurrent: bool = False) -> float:
        """Bytes that every forward pass reads whatever its tokens and their routing: all but routed experts and embedding rows.

        A head that borrows its target's LM head reads it though it does not store it; `recurrent` as in `read_bytes`.
        """
        storage = self._storage(dtype)
        whole = self._end_bytes(dtype)[1]
        if self.tie_embeddings or (self.head and not self.head.own_lm_head):
            whole += self._head_bytes(storage)
        idle = self.chain_bytes(dtype) if recurrent else 0.0
        if recurrent and self.head and not self.head.fc_embedding:
            idle += self.fc_params * bytes_per_value(storage.format_of("fc", {}))
        return self._layer_bytes(dtype) + whole - idle

    def chain_bytes(self, dtype: str | None = None) -> float:
        """Bytes of what every token drafted in a block passes one after another."""
        return _weights(self.chain) * bytes_per_value(self._storage(dtype).sixteen_bit)

    def experts_touched(self, tokens: Count) -> Count:
        """Expected distinct experts that `tokens` uniformly routed tokens use in a layer: E·(1 − (1 − k/E)^tokens)."""
        return _touched(self.num_experts, self.experts_per_token, tokens)

    def read_bytes(self, tokens: Count, dtype: str | None = None, *, recurrent: bool = False) -> Count:
        """Weight bytes that one forward pass over `tokens` tokens reads (all sequences together; arrays broadcast).

        Every matrix once; of an untied or borrowed embedding and a position table only the tokens' rows; of each sparse
        layer the expected distinct experts. `recurrent` is a draft head's later forward pass of a step, fed by its own output.
        `dtype` as in `weight_bytes`.
        """
        if (tokens < 0) if isinstance(tokens, int | float) else (tokens < 0).any():
            raise ValueError("tokens must not be negative")
        storage = self._storage(dtype)
        rows = (0 if self.tie_embeddings else self.embed_width) + (self.hidden_size if self.position_rows else 0)
        row_bytes = (rows + self.per_layer_embed) * bytes_per_value(storage.format_of("embed_tokens", {}))
        experts: Any = sum(
            block.count * size * _touched(block.num_experts, block.experts_per_token, tokens)
            for block, size in zip(self.layers, self._expert_bytes(dtype), strict=True)
            if size
        )
        return self.dense_read_bytes(dtype, recurrent=recurrent) + experts + row_bytes * tokens

    # the cache

    def _kv_dtype(self, kv_dtype: str | None) -> str:
        return kv_dtype or self.kv_format or self._storage(None).sixteen_bit

    def kv_bytes_per_token(self, kv_dtype: str | None = None) -> float:
        """Bytes that one more token adds to the cache, all layers together, as long as no window is full.

        `kv_dtype`: None for the cache format that the checkpoint states, else its 16-bit type.
        """
        dtype = self._kv_dtype(kv_dtype)
        return sum(b.count * c.num_bytes(dtype) for b in self.layers for c in b.caches)

    def state_bytes(self) -> float:
        """Bytes that a sequence keeps whatever its length: the states of recurrent layers."""
        sizes = (b.count * n * bytes_per_value(form) for b in self.layers for form, n in b.state.items())
        return float(sum(sizes))

    def cache_bytes(self, context: Count, kv_dtype: str | None = None) -> Count:
        """Bytes that one sequence of `context` tokens keeps: full layers grow, windows fill, states are there from the first token."""
        dtype = self._kv_dtype(kv_dtype)
        held: Any = sum(b.count * c.num_bytes(dtype) * capped(context, c.window) for b in self.layers for c in b.caches)
        return held + self.state_bytes()

    def cache_read_bytes(self, context: Count, kv_dtype: str | None = None) -> Count:
        """Bytes of it that a decoding step reads: of a layer with sparse attention only the tokens that it picks."""
        dtype = self._kv_dtype(kv_dtype)
        read: Any = sum(
            b.count * c.num_bytes(dtype) * capped(capped(context, c.window), c.top)
            for b in self.layers
            for c in b.caches
        )
        return read + self.state_bytes()


def _weights(matrices: Matrices) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices.values())


def _touched(num_experts: int, experts_per_token: int, tokens: Any) -> Any:
    idle: Any = 1.0 - experts_per_token / (num_experts or 1)
    return num_experts * (1.0 - idle**tokens)


@lru_cache(1024)
def _layer_params(shape: Shape) -> int:
    return sum(block.params for block in shape.layers)


@lru_cache(1024)
def _layer_bytes(shape: Shape, dtype: str | None) -> float:
    storage = Storage(shape.weight_format, shape.formats, dtype)
    return sum(b.count * storage.num_bytes(b.matrices, b.vectors, b.formats) for b in shape.layers)


@lru_cache(1024)
def _expert_bytes(shape: Shape, dtype: str | None) -> tuple[float, ...]:
    storage = Storage(shape.weight_format, shape.formats, dtype)
    return tuple(storage.num_bytes(b.expert, b.expert_vectors, b.formats) for b in shape.layers)
