"""Layers of one kind, stated by their matrices and by what they keep of a sequence.

Promises: any layer can be stated, whatever it computes: its weights, bytes and products follow from its matrices. Refuses to know: where a
matrix's sizes come from (`mixers`, `config`), the embedding and the LM head (`counts`).
"""

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from foredraft.records import Record, require
from foredraft.shapes.formats import UNQUANTISED, bytes_per_value, matrix_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    Count = TypeVar("Count", float, npt.NDArray[Any])
else:
    Count = TypeVar("Count")

Matrices = dict[str, tuple[int, int]]  # a name as on file, such as self_attn.q_proj → inputs, outputs

MOST_LAYERS = 10_000  # ten times the deepest transformer published

# What no quantiser takes unless its config names it: these are no linear layers, or small and sensitive (routers, gates, convolutions).
SIXTEEN_BIT_MODULES = frozenset({
    "embed_tokens", "lm_head", "mlp.gate", "mlp.shared_expert_gate", "linear_attn.conv1d", "self_attn.g_proj", "attn_hc.fn", "ffn_hc.fn",
    "hc_head.fn", "self_attn.indexer.weights_proj", "self_attn.compressor.indexer.weights_proj", "linear_attn.in_proj_b",
    "linear_attn.in_proj_a", "eh_proj",
})  # fmt: skip


class Cache(Record, frozen=True):
    """What one layer keeps of each token: `values` in the cache's format (or its own `format`), of no more than `window` tokens;
    `width` multiply-adds for a cached token that a query attends to, of which it picks no more than `top`.

    Values may be broken numbers: a layer that keeps one entry of 512 for 128 tokens keeps 4 of each.
    """

    values: float
    width: float = 0.0
    window: int | None = None
    top: int | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("window", "top"), non_negative=("values", "width"))

    def num_bytes(self, kv_dtype: str) -> float:
        """Bytes of one token."""
        return self.values * bytes_per_value(self.format or kv_dtype)


def capped(tokens: Count, most: int | None) -> Count:
    """`tokens`, a number or an array, but no more than `most`."""
    if most is None:
        return tokens
    return min(tokens, most) if isinstance(tokens, int | float) else tokens.clip(max=most)


class Block(Record, frozen=True):
    """`count` equal layers.

    `matrices`: all but the routed experts'; `vectors`: norm weights, biases and the like, never quantised. Each of `num_experts` routed experts
    has the matrices `expert` and `expert_vectors`, and a token uses `experts_per_token` of them. `caches` are what a token leaves;
    `state` is what a sequence keeps whatever its length (a recurrent layer's): values by format. `formats`: matrices that are
    stored otherwise than the shape says, by name.
    """

    count: int = 1
    matrices: Matrices = {}
    vectors: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert: Matrices = {}
    expert_vectors: int = 0
    caches: tuple[Cache, ...] = ()
    state: dict[str, int] = {}
    formats: dict[str, str] = {}

    def __post_init__(self) -> None:
        require(
            self, positive=("count",), non_negative=("vectors", "num_experts", "experts_per_token", "expert_vectors")
        )
        for name, (inputs, outputs) in (self.matrices | self.expert).items():
            if inputs <= 0 or outputs <= 0:
                raise ValueError(f"{name} must have positive sizes, got {inputs} x {outputs}")
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must not exceed num_experts ({self.num_experts})"
            )

    @property
    def weights(self) -> int:
        """Matrix weights of one layer, routed experts left out."""
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def expert_weights(self) -> int:
        """Matrix weights of one routed expert."""
        return sum(inputs * outputs for inputs, outputs in self.expert.values())

    @property
    def params(self) -> int:
        """Stored weights of all its layers."""
        experts = self.num_experts * (self.expert_weights + self.expert_vectors)
        return self.count * (self.weights + self.vectors + experts)

    @property
    def idle_params(self) -> int:
        """Weights of the experts that a token is not routed to, all layers together."""
        idle = self.num_experts - self.experts_per_token
        return self.count * idle * (self.expert_weights + self.expert_vectors)


def grouped(layers: list[Block]) -> tuple[Block, ...]:
    """Layers one by one, equal ones together in the order of their first."""
    counts: dict[bytes, list[Block]] = {}
    for layer in layers:
        counts.setdefault(msgspec.json.encode(layer), []).append(layer)
    return tuple(msgspec.structs.replace(same[0], count=sum(layer.count for layer in same)) for same in counts.values())


class Storage(NamedTuple):
    """How matrices are stored: all in `dtype` where the user names one, else in the checkpoint's own formats."""

    main: str
    formats: dict[str, str]
    dtype: str | None

    def format_of(self, name: str, own: dict[str, str]) -> str:
        """The format of a matrix. A quantised `dtype` is what engines quantise while they load: linear layers alone."""
        if self.dtype:
            return self.sixteen_bit if self.dtype not in UNQUANTISED and name in SIXTEEN_BIT_MODULES else self.dtype
        stated = own.get(name) or self.formats.get(name)
        return stated or (self.sixteen_bit if name in SIXTEEN_BIT_MODULES else self.main)

    @property
    def sixteen_bit(self) -> str:
        """Of norms, embeddings and whatever is not quantised."""
        main = self.dtype or self.main
        return main if main in UNQUANTISED else "bfloat16"

    def num_bytes(self, matrices: Matrices, vectors: int, own: dict[str, str]) -> float:
        """Bytes of one layer's matrices and vectors."""
        stored = sum(matrix_bytes(self.format_of(name, own), *sizes) for name, sizes in matrices.items())
        return stored + vectors * bytes_per_value(self.sixteen_bit)
