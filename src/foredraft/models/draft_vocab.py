"""A draft's own vocabulary: which of its target's ids it may draft, as offsets, and the rows of a table that stand for them.

Promises: a draft's ids rise with its target's. Refuses to know: which tokens are worth drafting (`data.draft_vocab`), models.

Shapes: V the target's vocabulary, D the draft's, C the width of a table. `d2t` [D] int64: target id less draft id, as in published
EAGLE-3 heads; `t2d` [V] bool: the ids that can be drafted.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from foredraft.models.checkpoint import Checkpoint, TensorError
from foredraft.models.eight_bits import EightBits
from foredraft.shapes import Shape


def offsets(draft_vocab: Iterable[int] | None, vocab_size: int) -> Tensor:
    """`d2t` of the target ids in `draft_vocab`, None for all. Raises ValueError on none, on one that comes twice, and on an unknown one."""
    ids = torch.arange(vocab_size) if draft_vocab is None else torch.tensor(sorted(int(i) for i in draft_vocab))
    if not len(ids):
        raise ValueError("draft_vocab must name at least one token")
    d2t = ids - torch.arange(len(ids))
    draftable(d2t, vocab_size)
    return d2t


def cut_offsets(draft_vocab: Iterable[int] | None, vocab_size: int) -> Tensor | None:
    """`offsets`, or None where all of the vocabulary may be drafted."""
    d2t = None if draft_vocab is None else offsets(draft_vocab, vocab_size)
    return None if d2t is None or len(d2t) == vocab_size else d2t


def target_ids(d2t: Tensor | None, draft_ids: Tensor) -> Tensor:
    """Ids in the draft's vocabulary as the target's."""
    return draft_ids if d2t is None else draft_ids + d2t[draft_ids]


def maps_nothing(d2t: Tensor, vocab_size: int) -> bool:
    """Whether every token of the whole vocabulary keeps its own id."""
    return len(d2t) == vocab_size and not bool(d2t.any())


def all_target_ids(d2t: Tensor | None) -> Tensor | None:
    """The target ids that can be drafted, [D]; None for all."""
    return None if d2t is None else d2t + torch.arange(len(d2t), device=d2t.device)


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


def draft_size(shape: Shape, checkpoint: Checkpoint) -> int:
    """How many tokens a draft may draft: by its config, and where that does not say by its map."""
    stored = checkpoint.stored.get("d2t")
    return shape.draft_vocab_size or (stored.shape[0] if stored and len(stored.shape) == 1 else shape.vocab_size)


def stored_offsets(shape: Shape, checkpoint: Checkpoint) -> Tensor | None:
    """A folder's d2t, checked against t2d where the file has it; None where it has none, as a draft over the whole vocabulary may.

    Raises ValueError where the map is of another vocabulary or contradicts itself.
    """
    size = draft_size(shape, checkpoint)
    if "d2t" not in checkpoint.stored and size == shape.vocab_size:
        return None
    if "d2t" not in checkpoint.stored:
        raise TensorError(
            f"{checkpoint.where}: lacks tensor d2t, which draft_vocab_size {size} of {shape.vocab_size} needs"
        )
    _check_map(checkpoint, "d2t", ("I64", "I32"), size)
    d2t = checkpoint.tensor("d2t").to(torch.int64)
    try:
        mask = draftable(d2t, shape.vocab_size)
    except ValueError as error:
        raise TensorError(f"{checkpoint.stored['d2t'].file}: {error}") from None
    if "t2d" in checkpoint.stored:
        _check_map(checkpoint, "t2d", ("BOOL", "U8", "I8", "I32", "I64"), shape.vocab_size)
        if not torch.equal(checkpoint.tensor("t2d").bool(), mask):
            raise checkpoint.fail("t2d", "must mark the tokens of d2t, which holds offsets: target id less own id")
    return d2t


def _check_map(checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], size: int) -> None:
    stored = checkpoint.stored[name]
    if stored.kind not in dtypes or stored.shape != (size,):
        raise checkpoint.fail(name, f"is {stored.kind} {list(stored.shape)}; it must be {dtypes[0]} [{size}]")


class GatheredRows:
    """Rows of a table that offsets name, None for all, in a type: a copy taken once while the table is frozen and unchanged, so that a pass reads
    no others; of a trained one anew. `eight`: those that were given last in eight bits, where that was asked for.
    """

    def __init__(self) -> None:
        self._of: tuple[Tensor | None, int, int] = (None, 0, 0)
        self._rows_DC: Tensor | None = None
        self.eight: EightBits | None = None

    def __call__(self, table_VC: Tensor, d2t: Tensor | None, dtype: torch.dtype, *, in_eight: bool = False) -> Tensor:
        if d2t is None and table_VC.dtype == dtype and not in_eight:
            return table_VC
        if table_VC.requires_grad:
            return _rows(table_VC, d2t).to(dtype)
        table, place, version = self._of
        now = (table_VC, table_VC.data_ptr(), 0 if table_VC.is_inference() else table_VC._version)
        if (
            self._rows_DC is None
            or self._rows_DC.dtype != dtype
            or table is not table_VC
            or (place, version) != now[1:]
        ):
            rows_DC = _rows(table_VC, d2t)
            self.eight = EightBits.of(rows_DC) if in_eight else None
            self._of, self._rows_DC = now, (self.eight.weight if self.eight else rows_DC).to(dtype)
        return self._rows_DC


def _rows(table_VC: Tensor, d2t: Tensor | None) -> Tensor:
    ids = all_target_ids(d2t)
    return table_VC if ids is None else table_VC[ids]
