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
    """Count how often each id is a label, [V] int64."""
    size = folder.data.vocab_size
    label_counts = np.zeros(size, np.int64)
    for start in range(0, len(folder.tokens), PIECE):
        here = slice(start, start + PIECE)
        label_counts += np.bincount(folder.tokens[here][folder.mask[here] > 0], minlength=size)
    return label_counts


def most_frequent(folder: TokenFolder, size: int) -> list[int]:
    """Return the `size` ids that are labels most often, ascending; ids that never are fill up from the lowest.

    Raises ValueError where the vocabulary has fewer ids, or the folder no label.
    """
    label_counts = counts(folder)
    if not 1 <= size <= len(label_counts):
        raise ValueError(f"draft_vocab must lie in 1…{len(label_counts)}, the vocabulary of {folder.path}; got {size}")
    if not label_counts.any():
        raise ValueError(f"{folder.path}: no token is to be predicted, so none is frequent; check the loss masks")
    order = np.argsort(-label_counts, kind="stable")
    return sorted(order[:size].tolist())


def coverage(folder: TokenFolder, ids: Iterable[int]) -> float:
    """Return the share of the folder's labels that `ids` hold: what a head over them could ever draft rightly there."""
    label_counts = counts(folder)
    return float(label_counts[list(ids)].sum() / label_counts.sum()) if label_counts.any() else 0.0
