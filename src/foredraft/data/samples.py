"""What training will see: documents out of a token folder as text, what is to be predicted kept apart from the rest.

Promises: the text is decoded from the stored ids and cut where the stored mask changes. Refuses to know: how it was
made.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from foredraft.data.tokens import TokenFolder
from foredraft.records import Record

BEFORE = 40  # tokens shown ahead of the first that is to be predicted


class Piece(Record, frozen=True):
    """Tokens that follow each other and are all to be predicted, or all not."""

    text: str
    num_tokens: int
    predicted: bool


class DocumentSample(Record, frozen=True):
    """Part of a document: its tokens `first` … of `num_tokens`, in pieces."""

    document: int
    num_tokens: int
    predicted_tokens: int
    first: int
    pieces: tuple[Piece, ...]


def samples(
    folder: TokenFolder, tokenizer: Any, num: int = 3, max_tokens: int = 200, seed: int = 0
) -> list[DocumentSample]:
    """Return `num` documents drawn by `seed`, in the folder's order, at most `max_tokens` of each.

    A longer document is shown from its beginning, or from shortly before the first token that is to be predicted.
    """
    if num < 1 or max_tokens < 1:
        raise ValueError(f"num and tokens must be at least 1, got {num} and {max_tokens}")
    total = folder.data.num_documents
    chosen = np.random.default_rng(seed).choice(total, min(num, total), replace=False)
    return [_sample(folder, tokenizer, int(index), max_tokens) for index in sorted(chosen)]


def _sample(folder: TokenFolder, tokenizer: Any, index: int, max_tokens: int) -> DocumentSample:
    ids, mask = folder.document(index)
    predicted = np.flatnonzero(mask)
    late = len(predicted) > 0 and predicted[0] >= max_tokens
    first = int(predicted[0]) - min(BEFORE, max_tokens // 2) if late else 0
    shown = slice(first, first + max_tokens)
    return DocumentSample(
        document=index, num_tokens=len(ids), predicted_tokens=len(predicted), first=first,
        pieces=_pieces(tokenizer, ids[shown].tolist(), mask[shown].astype(bool)),
    )  # fmt: skip


def _pieces(tokenizer: Any, ids: list[int], mask: np.ndarray[Any, Any]) -> tuple[Piece, ...]:
    """Runs of equal mask. A run's text is what its tokens add to the text before, since a character may span tokens."""
    cuts = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(ids)]
    before, pieces = "", []
    for start, end in pairwise(cuts):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        settled = len(before.rstrip("\N{REPLACEMENT CHARACTER}"))
        pieces.append(Piece(text=text[settled:], num_tokens=end - start, predicted=bool(mask[start])))
        before = text
    return tuple(pieces)
