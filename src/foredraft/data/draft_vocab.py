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
HALF_PIECE = 2**16  # tokens of the same half on end
LEAST_WORDS = 256


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


def unused_token(folder: TokenFolder) -> int:
    """Return the id that stands least often in the folder's text, the last of several: a mask token of a head of blocks."""
    seen = np.zeros(folder.data.vocab_size, np.int64)
    for start in range(0, len(folder.tokens), PIECE):
        seen += np.bincount(folder.tokens[start : start + PIECE], minlength=len(seen))
    return int(np.flatnonzero(seen == seen.min())[-1])


def outside(folder: TokenFolder) -> tuple[tuple[int, float, float], ...]:
    """Return by numbers of words (powers of 2 from LEAST_WORDS) the share of labels outside the most frequent ones, ranked on one half of the
    folder and counted on the other: (words, share in the second half, share in the first).

    Raises ValueError where a half has no label.
    """
    halves = [_half(folder, part) for part in (0, 1)]
    if not all(half.any() for half in halves):
        raise ValueError(f"{folder.path}: too few tokens to be predicted for counting words by halves; give more text")
    size = len(halves[0])
    words = [LEAST_WORDS << i for i in range(size.bit_length()) if LEAST_WORDS << i < size]
    columns = []
    for ranked, counted in (halves, halves[::-1]):
        order = np.argsort(-ranked, kind="stable")
        inside = np.cumsum(counted[order]) / counted.sum()
        columns.append([float(1 - inside[num - 1]) for num in words])
    return tuple(zip(words, *columns, strict=True))


def _half(folder: TokenFolder, part: int) -> np.ndarray[Any, Any]:
    """Label counts of every second piece of the folder, from `part` on."""
    label_counts, length = np.zeros(folder.data.vocab_size, np.int64), max(1, min(HALF_PIECE, len(folder.tokens) // 2))
    for start in range(part * length, len(folder.tokens), 2 * length):
        here = slice(start, start + length)
        label_counts += np.bincount(folder.tokens[here][folder.mask[here] > 0], minlength=len(label_counts))
    return label_counts


def coverage(folder: TokenFolder, ids: Iterable[int]) -> float:
    """Return the share of the folder's labels that `ids` hold: what a head over them could ever draft rightly there."""
    label_counts = counts(folder)
    return float(label_counts[list(ids)].sum() / label_counts.sum()) if label_counts.any() else 0.0
