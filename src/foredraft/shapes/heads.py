"""What makes a draft head of a transformer: the parts that it has beside its layers, in sizes of whatever target it is for.

Promises: a kind's parts are stated once and fit every target. Refuses to know: kinds by name, what engines call them.
"""

from typing import NamedTuple

from foredraft.records import Record
from foredraft.shapes.blocks import Matrices

# A number, or a sum of numbers, H (hidden size), V (vocabulary) and r (the rank of the head), each perhaps divided: "H+r", "H/4".
Size = int | str


class HeadMatrix(NamedTuple):
    """A matrix of a head by its name on file."""

    name: str
    inputs: Size
    outputs: Size


class HeadParts(Record, frozen=True):
    """What makes a draft head of a transformer that borrows its target's embedding.

    `kind`: its name, by which checkpoints are told apart. `hidden_states`: how many of the target's `fc` joins;
    `fc_embedding`: and the embedding of the token with them, so that every pass of a step needs `fc`, not the first alone.
    `wide_layer`: q, k and v of layer 0 read the embedding beside the hidden state (2H). `norms`: vectors of H beyond two norms a layer,
    a final norm included. `own_lm_head`: it does not borrow the target's.

    `block`: tokens that it was trained to draft in one pass, 0 of a head that drafts one after another. `qk_norm`: its layers norm
    queries and keys. `layer`, `layer_vectors`: matrices, and vectors of H, of each layer beside attention and MLP. `tables`: of which a
    token's row is read. `chain`: matrices that every drafted token passes after the block's pass, in the order of the tokens; `rank`: r.
    """

    kind: str
    hidden_states: int
    fc_embedding: bool
    wide_layer: bool
    norms: int
    own_lm_head: bool
    block: int = 0
    qk_norm: bool = False
    layer: tuple[HeadMatrix, ...] = ()
    layer_vectors: int = 0
    tables: tuple[HeadMatrix, ...] = ()
    chain: tuple[HeadMatrix, ...] = ()
    rank: int = 0

    @property
    def context_in_keys(self) -> bool:
        """Whether the target's hidden states enter its keys and values alone (DFlash and kin), and no layer runs over the context."""
        return self.block > 0 and not self.wide_layer

    def sized(self, parts: tuple[HeadMatrix, ...], hidden_size: int, vocab_size: int) -> Matrices:
        """`parts` of this head in numbers."""
        sizes = {"H": hidden_size, "V": vocab_size, "r": self.rank}
        return {part.name: (_number(part.inputs, sizes), _number(part.outputs, sizes)) for part in parts}


def _number(size: Size, sizes: dict[str, int]) -> int:
    """What a size such as H/4 is in numbers."""
    total = 0
    for term in str(size).split("+"):
        name, _, divisor = term.partition("/")
        total += (sizes[name] if name in sizes else int(name)) // int(divisor or 1)
    return total
