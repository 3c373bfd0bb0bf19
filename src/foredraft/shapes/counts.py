"""Counts of a transformer: parameters, FLOPs per token, weight and KV bytes.

Promises: exact for the families of `config.py` (checked against the published totals). Refuses to know: where a shape comes from.
"""

from typing import TYPE_CHECKING, Any, TypeVar

from foredraft.records import Record, require

if TYPE_CHECKING:
    import numpy.typing as npt

    Count = TypeVar("Count", float, npt.NDArray[Any])
else:
    Count = TypeVar("Count")

BYTES_PER_VALUE = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


def bytes_per_value(dtype: str) -> float:
    """Bytes of one stored weight or cache entry; the scales of quantised formats (a few per cent) are left out."""
    if dtype not in BYTES_PER_VALUE:
        raise ValueError(f"dtype must be one of {', '.join(BYTES_PER_VALUE)}, got {dtype!r}")
    return BYTES_PER_VALUE[dtype]


class HeadParts(Record, frozen=True):
    """What makes a draft head of a transformer that borrows its target's embedding.

    `kind`: its name, by which checkpoints are told apart. `hidden_states`: how many of the target's `fc` joins;
    `fc_embedding`: and the embedding of the token with them, so that every pass of a step needs `fc`, not the first alone.
    `wide_layer`: q, k and v of layer 0 read the embedding beside the hidden state (2H). `norms`: beyond two a layer, a final
    one included. `own_lm_head`: it does not borrow the target's.
    """

    kind: str
    hidden_states: int
    fc_embedding: bool
    wide_layer: bool
    norms: int
    own_lm_head: bool


class Shape(Record, frozen=True):
    """What a transformer is made of. Sizes as in a Hugging Face `config.json`; `family` is its model_type.

    `embed_dim` is the embedding's width where it is not `hidden_size` (OPT-350m), which adds two projections.
    `position_rows` is the length of a learned position table (OPT: 2050). `layer_norm`: LayerNorm with bias or RMSNorm.
    `head` is None for a language model, else what a draft head has in its place; a head reads hidden states of width
    `target_hidden_size`, and its own LM head has `draft_vocab_size` rows. `final_norm` is a language model's.
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
    max_position_embeddings: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int | None = None
    shared_intermediate_size: int = 0
    sparse_step: int = 1
    dense_layers: tuple[int, ...] = ()
    head: HeadParts | None = None
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    training_tokens: float | None = None
    training_source: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size",
                "embed_dim", "max_position_embeddings", "moe_intermediate_size", "sparse_step", "draft_vocab_size",
                "target_hidden_size", "training_tokens",
            ),
            non_negative=(
                "position_rows", "num_experts", "experts_per_token", "shared_intermediate_size", "dense_layers",
            ),
        )  # fmt: skip
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

    # the parts, in numbers of weights

    @property
    def num_sparse_layers(self) -> int:
        """Layers with a mixture of experts: every `sparse_step`-th but for `dense_layers` (HF's rule for Qwen)."""
        if not self.num_experts:
            return 0
        return sum((i + 1) % self.sparse_step == 0 and i not in self.dense_layers for i in range(self.num_layers))

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
    def expert_params(self) -> int:
        """Weights of one expert of one layer."""
        return 3 * self.hidden_size * (self.moe_intermediate_size or 0)

    def _layer_weights(self, experts: Any) -> Any:
        """Matrix weights of all layers when each sparse layer touches `experts` experts."""
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.num_layers * (hidden * (queries + 2 * keys) + queries * hidden)
        if self.head and self.head.wide_layer:
            attention += hidden * (queries + 2 * keys)
        mlp = (3 if self.gated_mlp else 2) * hidden * self.intermediate_size
        router = hidden * self.num_experts
        shared = 3 * hidden * self.shared_intermediate_size + (hidden if self.shared_intermediate_size else 0)
        sparse = self.num_sparse_layers
        return attention + (self.num_layers - sparse) * mlp + sparse * (router + shared + experts * self.expert_params)

    @property
    def _vectors(self) -> int:
        """Norm weights and biases."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norms = 2 * self.num_layers + (self.head.norms if self.head else self.final_norm)
        layer = self.qkv_bias * (queries + 2 * keys) + self.o_bias * self.hidden_size + self.qk_norm * 2 * self.head_dim
        mlp_bias = self.mlp_bias * ((1 + self.gated_mlp) * self.intermediate_size + self.hidden_size)
        dense = self.num_layers - self.num_sparse_layers
        return norms * self.hidden_size * (1 + self.layer_norm) + self.num_layers * layer + dense * mlp_bias

    @property
    def _projections(self) -> int:
        """OPT-350m's project_in and project_out."""
        return 2 * self.embed_dim * self.hidden_size if self.embed_dim else 0

    # the totals

    @property
    def embedding_params(self) -> int:
        """Stored token embedding, position table and LM head; a tied head counts once, a borrowed table not at all."""
        if self.head:
            return self.head_params if self.head.own_lm_head else 0
        table = self.vocab_size * self.embed_width + self.position_rows * self.hidden_size
        return table + (0 if self.tie_embeddings else self.head_params)

    @property
    def non_embedding_params(self) -> int:
        """Stored weights of everything else: layers, norms, a draft head's fc. The N of the loss laws."""
        return self._layer_weights(self.num_experts) + self._vectors + self.fc_params + self._projections

    @property
    def params(self) -> int:
        """All stored weights."""
        return self.embedding_params + self.non_embedding_params

    @property
    def active_params(self) -> int:
        """Weights that serve one token: `params` less the experts it is not routed to."""
        return self.params - self.num_sparse_layers * (self.num_experts - self.experts_per_token) * self.expert_params

    def flops_per_token(self, context: Count, *, recurrent: bool = False) -> Count:
        """Forward FLOPs of one token that attends to `context` tokens.

        2 per matrix weight touched (LM head included, embedding look-up not) plus 4·layers·heads·head_dim·context for
        the scores and the weighted sum. `recurrent`: as in `read_bytes`.
        """
        ends = self._projections + self.head_params + self._fc(recurrent)
        attention = 4.0 * self.num_layers * self.num_heads * self.head_dim
        return 2.0 * (self._layer_weights(self.experts_per_token) + ends) + attention * context

    def _fc(self, recurrent: bool) -> int:
        """The `fc` as one forward uses it: one that joins the target's hidden states alone serves only the first of a step."""
        return self.fc_params if self.head and (self.head.fc_embedding or not recurrent) else 0

    def weight_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of the stored weights."""
        return self.params * bytes_per_value(dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> float:
        """Bytes of keys and values that one token leaves in the cache, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value(dtype)

    def experts_touched(self, tokens: Count) -> Count:
        """Expected distinct experts that `tokens` uniformly routed tokens use in a layer: E·(1 − (1 − k/E)^tokens)."""
        idle: Any = 1.0 - self.experts_per_token / (self.num_experts or 1)
        return self.num_experts * (1.0 - idle**tokens)

    def read_bytes(self, tokens: Count, dtype: str = "bfloat16", *, recurrent: bool = False) -> Count:
        """Weight bytes that one forward pass over `tokens` tokens reads (all sequences together; arrays broadcast).

        Every matrix once; of an untied or borrowed embedding and a position table only the tokens' rows; of each sparse
        layer the expected distinct experts. A head that borrows its target's LM head reads it though it does not store it.
        `recurrent` is a draft head's later forward pass of a step, fed by its own output.
        """
        if (tokens < 0) if isinstance(tokens, int | float) else (tokens < 0).any():
            raise ValueError("tokens must not be negative")
        rows = (0 if self.tie_embeddings else self.embed_width) + (self.hidden_size if self.position_rows else 0)
        fixed = self._vectors + self._projections + self.head_params + self._fc(recurrent)
        return (self._layer_weights(self.experts_touched(tokens)) + fixed + rows * tokens) * bytes_per_value(dtype)
