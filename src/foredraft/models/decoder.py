"""One decoder for every family that `shapes.families` gives an architecture.

Promises: logits and hidden states equal transformers'; trees and ragged batches are a matter of positions, slots and
mask. Refuses to know: which tokens are drafts, what was accepted, files.
"""

import itertools
from collections.abc import Callable
from typing import Self

import msgspec
import torch
from torch import Tensor, nn

from foredraft.models.cache import KVCache, new_cache
from foredraft.models.chain import Entry
from foredraft.models.draft_vocab import GatheredRows, all_target_ids, target_ids
from foredraft.models.forward import LogitsAt, Output, attention_metadata, check_context, read_out, reads_prompt
from foredraft.models.kernels import Stack, fits_layer
from foredraft.models.layers import Attend, AttentionMetadata, KeyValues, Layer, ModelConfig, norm
from foredraft.models.linear import Linear, linear
from foredraft.models.rope import Rotary
from foredraft.models.target import Target
from foredraft.shapes import Shape
from foredraft.shapes.families import runnable

INIT_STD = 0.02
POSITION_OFFSET = 2  # OPT's table begins with two rows for padding


class Decoder(Target):
    """A causal language model with weights of shape `shape`; parameters are named as in Hugging Face's Llama.

    A draft that may draft some of its vocabulary alone reads all of it and has logits of `d2t`'s ids (see `draft_vocab`): by an LM head of
    so many rows, or, tied, by those rows of its embedding, which costs no parameters.
    """

    d2t: Tensor | None

    def __init__(self, shape: Shape, model_config: ModelConfig, d2t: Tensor | None = None) -> None:
        super().__init__()
        assert (shape.draft_vocab_size or shape.vocab_size) == (shape.vocab_size if d2t is None else len(d2t))
        runnable(shape.family)
        self.shape, self.config = shape, model_config
        self.rotary = Rotary(model_config.rope, shape.head_dim) if model_config.rope else None
        self.kernel_dtypes = fits_layer(shape, model_config)
        width, hidden = shape.embed_width, shape.hidden_size
        self.embed_tokens = nn.Embedding(shape.vocab_size, width)
        self.embed_positions = nn.Embedding(shape.position_rows, hidden) if shape.position_rows else None
        self.project_in = Linear(width, hidden, bias=False) if shape.embed_dim else nn.Identity()
        self.layers = nn.ModuleList(Layer(shape, model_config, i) for i in range(shape.num_layers))
        self.norm = norm(hidden, shape, model_config) if shape.final_norm else nn.Identity()
        self.project_out = Linear(hidden, width, bias=False) if shape.embed_dim else nn.Identity()
        rows = shape.draft_vocab_size or shape.vocab_size
        self.lm_head = None if shape.tie_embeddings else Linear(width, rows, bias=False)
        self.register_buffer("d2t", d2t)
        self.gathered = GatheredRows()
        self._stack: Stack | None = None

    @property
    def head_weight_VC(self) -> Tensor:
        """The LM head, which a tied model shares with its embedding: the rows of what it can draft."""
        if self.lm_head is not None:
            return self.lm_head.weight
        return self.gathered(self.embed_tokens.weight, self.d2t, self.dtype, in_eight=self.in_eight)

    @property
    def in_eight(self) -> bool:
        """Whether its matrices are kept in eight bits."""
        layer = next(iter(self.layers), None)
        return isinstance(layer, Layer) and layer.in_eight

    @property
    def draft_ids(self) -> Tensor | None:
        """The ids that its logits are of, in their order; None for all."""
        return all_target_ids(self.d2t)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Ids among its logits as ids of the vocabulary."""
        return target_ids(self.d2t, draft_ids)

    def new_cache(self, batch: int, slots: int) -> KVCache:
        """Room for `batch` sequences of `slots` tokens, draft nodes included."""
        check_context(slots, self.shape, self.config)
        return new_cache(self.shape, batch, slots, self.dtype, self.device)

    def forward(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, cache: KeyValues | None = None,
        slots_BT: Tensor | None = None, mask_BTS: Tensor | None = None, *, hidden_states: tuple[int, ...] = (),
        logits: LogitsAt = "all", attend: Attend | None = None,
    ) -> Output:  # fmt: skip
        """Score T tokens per sequence.

        `positions_BT` is each token's place in its text, `slots_BT` where its keys and values go in the cache (nodes of
        a tree at one depth share a position, never a slot), `mask_BTS` which slots it sees, its own included (True:
        seen; the first S slots are read; a batch of 1 serves all). Left out: positions 0, 1, … (without a cache only),
        slots = positions, and a causal mask over slots. `hidden_states` asks for hidden states (see `Output`), `logits` for
        "all", "last", "none", or rows [B, R] of the T. `attend` computes attention in the layers' stead.
        """
        positions_BT, metadata = attention_metadata(
            tokens_BT, positions_BT, cache, slots_BT, mask_BTS, self.rotary, self.dtype, self.kernel_dtypes,
            groups=self.shape.num_heads // self.shape.num_kv_heads, prompt=reads_prompt(logits),
        )  # fmt: skip
        metadata = metadata._replace(attend=attend)
        if cache is None:
            check_context(tokens_BT.shape[1], self.shape, self.config)
        assert all(0 <= i <= len(self.layers) for i in hidden_states), (
            f"hidden states {hidden_states} of {len(self.layers)} layers"
        )
        stops, x_BTC = sorted({*hidden_states, len(self.layers)}), self._embed(tokens_BT, positions_BT)
        states = {0: x_BTC}
        for start, stop in itertools.pairwise((0, *stops)):
            states[stop] = x_BTC = self._run(start, stop, x_BTC, metadata)
        final = states[len(self.layers)] = self.project_out(self.norm(x_BTC))
        return Output(read_out(final, logits, self.head), final, x_BTC, tuple(states[i] for i in hidden_states))

    def _run(self, start: int, stop: int, x_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Layers `start` to `stop`."""
        if metadata.kernel is not None and start < stop:
            if self._stack is None:
                self._stack = Stack(self.layers)
            return metadata.kernel.layers(self._stack, x_BTC, None, start, stop)
        for layer in self.layers[start:stop]:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Weights that move are looked up again."""
        self._stack = None
        return super()._apply(fn, recurse)

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTC = self.project_in(self.embed_tokens(tokens_BT))
        if self.embed_positions is None:
            return x_BTC
        return x_BTC + self.embed_positions(positions_BT + POSITION_OFFSET)

    @property
    def table(self) -> nn.Embedding:
        """The embedding that it reads."""
        return self.embed_tokens

    @property
    def entry(self) -> Entry | None:
        """A token's embedding enters as it is; None where it is widened, or learned positions are added."""
        widened = not isinstance(self.project_in, nn.Identity)
        return None if widened or self.embed_positions is not None else Entry()

    def head(self, final_BTC: Tensor) -> Tensor:
        """Logits of hidden states that are normed already."""
        if self.lm_head is not None:
            return self.lm_head(final_BTC)
        return linear(final_BTC, self.head_weight_VC, eight=self.gathered.eight)


def new_decoder(shape: Shape, model_config: ModelConfig, seed: int, d2t: Tensor | None = None) -> Decoder:
    """Transformers' start: normal weights of deviation 0.02, biases of zero, norms of one; a seed gives one model."""
    decoder, generator = Decoder(shape, model_config, d2t), torch.Generator().manual_seed(seed)
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0, INIT_STD, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return decoder


def cut(decoder: Decoder, d2t: Tensor) -> Decoder:
    """A decoder with the weights of one over the whole vocabulary, not copied, that drafts the ids of `d2t` alone."""
    ids = all_target_ids(d2t)
    assert decoder.d2t is None, "it is cut already"
    assert ids is not None
    state = dict(decoder.state_dict()) | {"d2t": d2t}
    if "lm_head.weight" in state:
        state["lm_head.weight"] = state["lm_head.weight"][ids.to(decoder.device)]
    with torch.device("meta"):
        cut_decoder = Decoder(msgspec.structs.replace(decoder.shape, draft_vocab_size=len(d2t)), decoder.config, d2t)
    cut_decoder.load_state_dict(state, strict=True, assign=True)
    return cut_decoder.to(decoder.device)
