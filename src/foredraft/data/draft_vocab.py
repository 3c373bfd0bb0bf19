"""Which of its target's tokens a head may draft: those that are most often to be predicted in the training text.

Promises: counted over labels alone (arXiv 2503.01840's code counts the same), whole folder, ties to the lower id. Refuses
to know: heads.

Shapes: V ids of the vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from foredraft.data.tokens import TokenFolder

PIECE = 2**24  # tokens counted at a time


def counts(folder: TokenFolder) -> np.ndarray[Any, Any]:
    """How often each id is a label, [V] int64."""
    size, found = folder.data.vocab_size, np.zeros(folder.data.vocab_size, np.int64)
    for start in range(0, len(folder.tokens), PIECE):
        here = slice(start, start + PIECE)
        found += np.bincount(folder.tokens[here][folder.mask[here] > 0], minlength=size)
    return found


def most_frequent(folder: TokenFolder, size: int) -> list[int]:
    """The `size` ids that are labels most often, ascending; ids that never are fill up from the lowest.

    Raises ValueError where the vocabulary has fewer ids, or the folder no label.
    """
    found = counts(folder)
    if not 1 <= size <= len(found):
        raise ValueError(f"draft_vocab must lie in 1…{len(found)}, the vocabulary of {folder.path}; got {size}")
    if not found.any():
        raise ValueError(f"{folder.path}: no token is to be predicted, so none is frequent; check the loss masks")
    order = np.argsort(-found, kind="stable")
    return sorted(order[:size].tolist())


def coverage(folder: TokenFolder, ids: Iterable[int]) -> float:
    """The share of the folder's labels that `ids` hold: what a head over them could ever draft rightly there."""
    found = counts(folder)
    return float(found[list(ids)].sum() / found.sum()) if found.any() else 0.0
