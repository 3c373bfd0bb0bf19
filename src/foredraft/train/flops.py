"""How drafts are trained, as settings, and the FLOPs that a token of it takes. Refuses to know: torch, weights."""

from collections.abc import Mapping
from typing import NamedTuple

from foredraft import kinds
from foredraft.shapes import Shape


class HeadSettings(NamedTuple):
    """How a head is trained. `decay`: weight of a step over the one before. `loss`: names of `losses` against the target,
    with weights. `feature_weight`, `token_weight` and `noise` (in units of the paper's 0.2·512/T) are EAGLE-1/2's.
    `within_documents`: nothing is seen of other documents in a window. `lookahead`: drafted tokens per step held out.
    """

    unroll: int = 7
    decay: float = 0.8
    loss: Mapping[str, float] = {"soft_ce": 1.0}
    feature_weight: float = 0.0
    token_weight: float = 1.0
    noise: float = 0.0
    within_documents: bool = False
    lookahead: int = 5


EAGLE = HeadSettings(unroll=1, feature_weight=1.0, token_weight=0.1, noise=1.0)
EAGLE3 = HeadSettings()


class Computed(NamedTuple):
    """What of a token is computed besides the head's layers. `labelled`: the share of tokens to be predicted. `cached`: the target's hidden
    states come from disk, and with a draft vocabulary, where it is `known`, its argmax (which the first look at a window computes, and this
    leaves out).
    """

    labelled: float = 1.0
    cached: bool = False
    known: bool = True

    def target_flops(self, target: Shape, context: float) -> float:
        """Of the target's layers, per token."""
        return 0.0 if self.cached else target.flops_per_token(context) - 2 * target.head_params

    def target_head_flops(self, shape: Shape, target: Shape, loss: Mapping[str, float]) -> float:
        """Of the target's LM head, per place that is held against it."""
        if set(loss) == {"ce"}:
            return 0.0
        rows = shape.draft_vocab_size if self.cached and self.known else None
        return 2.0 * (rows or target.vocab_size) * target.embed_width


EVERYTHING = Computed()


class BlockSettings(NamedTuple):
    """How a head of blocks is trained. `anchors`: blocks of a window, as a share of its tokens. `decay`: weight of a position over the one
    before. `loss`: names of `losses` with weights; `confidence`: of the confidence head's. The rest as in `HeadSettings`.
    """

    anchors: float = 0.125
    decay: float = 0.78
    loss: Mapping[str, float] = {"ce": 1.0}
    confidence: float = 0.0
    within_documents: bool = False
    lookahead: int = 5

    def num(self, length: int) -> int:
        """Blocks of a window of `length` tokens."""
        return max(1, round(self.anchors * length))


def model_training_flops(shape: Shape, target: Shape | None, length: int) -> float:
    """FLOPs per token of a window: forward and twice that backward, and the forward of a target that is learned from."""
    context = (length + 1) / 2
    return 3 * shape.flops_per_token(context) + (target.flops_per_token(context) if target else 0.0)


def head_training_flops(
    shape: Shape, target: Shape, settings: HeadSettings, length: int, computed: Computed = EVERYTHING
) -> float:
    """FLOPs per token of a window: the head's steps forward and twice that backward, but nothing backward into the hidden states and
    embeddings that are given, and what `computed` leaves of the target. LM heads meet the places that count alone; a borrowed one gets no
    gradient of its own. Attention at half the window.
    """
    assert shape.head is not None
    context, later = length / 2, settings.unroll - 1
    layers = shape.flops_per_token(context) + later * shape.flops_per_token(context, recurrent=True)
    layers -= settings.unroll * 2 * shape.head_params
    given = 2 * (shape.fc_params + later * shape.head.fc_embedding * shape.hidden_size**2)
    lm_head = settings.unroll * 2 * shape.head_params * (3 if shape.head.own_lm_head else 2)
    judged = computed.target_head_flops(shape, target, settings.loss)
    return float(3 * layers - given + computed.target_flops(target, context) + computed.labelled * (lm_head + judged))


def block_training_flops(
    shape: Shape, target: Shape, settings: BlockSettings, length: int, computed: Computed = EVERYTHING
) -> float:
    """FLOPs per token of a window, forward and twice that backward: `fc` (into whose inputs nothing goes back) and the keys and values of
    every token, the layers over the rows of the blocks, what follows them over the drafted places; the LM head, which is the target's, gets
    no gradient of its own. And of the frozen target what `computed` leaves, its LM head over the drafted places where the loss is against
    its distribution. A window with fewer tokens to be predicted than blocks asks no LM head of those beyond.
    """
    assert shape.head is not None
    blocks, context = settings.num(length) / length, length / 2
    rows, places = blocks * _rows(shape), min(blocks, computed.labelled) * shape.head.block
    chain = sum(inputs * outputs for inputs, outputs in shape.chain.values())
    layers = shape.flops_per_token(context, recurrent=True) - 2 * shape.head_params
    head = 3 * (2 * shape.context_weights + rows * layers + places * 2 * chain) - 2 * shape.fc_params
    judged = computed.target_head_flops(shape, target, settings.loss if not settings.confidence else {})
    return float(head + computed.target_flops(target, context) + places * (2 * 2 * shape.head_params + judged))


def _rows(shape: Shape) -> int:
    """Rows of a new head's block, the anchor's among them."""
    assert shape.head is not None
    return shape.head.block + (not kinds.from_anchor({}, kinds.of_shape(shape)))
