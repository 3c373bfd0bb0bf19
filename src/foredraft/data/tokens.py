"""Token folders, and windows of tokens out of them: the one form in which training reads text.

Promises: a folder is opened by mapping it, and refused in one line unless its files are as large as data.json says;
the sample at a position depends on (seed, position) and numpy's generator alone, so that a run may stop, go on and
change its world size. Refuses to know: tokenizers, losses, where the text came from.

A folder holds tokens.bin (little-endian, uint16 up to 65,536 ids, else uint32), mask.bin (a byte per token, 1 where
the token is to be predicted), documents.bin (int64: every document's first token, then the end) and data.json.

Shapes: B windows, T tokens of a window, D documents.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foredraft.records import Record, is_file, read, read_json, require, with_hint
from foredraft.shapes.folder import other_words

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
TOKENS, MASK, DOCUMENTS, DATA = "tokens.bin", "mask.bin", "documents.bin", "data.json"
TOKENIZER = "tokenizer.json"
NARROW = 65536  # ids that fit two bytes


class Source(Record, frozen=True):
    """Where documents came from: `bytes` and `sha256` of a file on disk (None for a remote set), `skipped` broken lines."""

    name: str
    documents: int
    bytes: int | None = None
    sha256: str | None = None
    skipped: int = 0
    licence: str | None = None


class TokenData(Record, frozen=True):
    """What a token folder holds. `raw_tokens` (found text) and `regenerated_tokens` (documents the target answered)
    add up to `num_tokens`, end-of-document tokens included; `predicted_tokens` are those the mask lets count.
    """

    version: int
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    dtype: str
    num_tokens: int
    num_documents: int
    raw_tokens: int
    regenerated_tokens: int
    predicted_tokens: int
    sources: tuple[Source, ...]
    template: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=("vocab_size", "num_tokens", "num_documents"),
            non_negative=("eos_id", "raw_tokens", "regenerated_tokens", "predicted_tokens"),
        )
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}; prepare the data again")
        if self.dtype != width(self.vocab_size):
            raise ValueError(f"dtype {self.dtype} must be {width(self.vocab_size)} for {self.vocab_size} ids")
        if self.raw_tokens + self.regenerated_tokens != self.num_tokens:
            raise ValueError("raw_tokens and regenerated_tokens must add up to num_tokens")


class Batch(NamedTuple):
    """`tokens_BT` int64; `mask_BT` bool, True where the token itself is to be predicted (a label, not shifted);
    `documents_BT` int32, the number of the token's document within its window, from 0.
    """

    tokens_BT: "Tensor"
    mask_BT: "Tensor"
    documents_BT: "Tensor"


def width(vocab_size: int) -> str:
    """The stored type of token ids: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= NARROW else "uint32"


@dataclass(frozen=True, eq=False)
class TokenFolder:
    """An open folder: `tokens` [num_tokens], `mask` [num_tokens] uint8 and `offsets` [D + 1] are maps of its files."""

    path: Path
    data: TokenData
    tokens: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]

    @classmethod
    def open(cls, path: str | Path) -> "TokenFolder":
        """Map the folder at `path`. Raises ValueError where it is none, or a file's size is not what data.json says."""
        path = Path(path)
        if not is_file(path / DATA):
            inside = ", ".join(sorted(file.parent.name for file in path.glob(f"*/{DATA}")))
            remedy = f"it holds some: {inside}; give one of them" if inside else "make one with foredraft data prepare"
            message = f"{path}: no token folder ({DATA} is missing); {remedy}"
            raise with_hint(ValueError(message), "foredraft data prepare FILES --tokenizer DIR --out DIR")
        data = read(TokenData, path / DATA)
        tokens = _mapped(path / TOKENS, "<u2" if data.dtype == "uint16" else "<u4", data.num_tokens)
        mask = _mapped(path / MASK, "u1", data.num_tokens)
        offsets = _mapped(path / DOCUMENTS, "<i8", data.num_documents + 1)
        if offsets[0] != 0 or offsets[-1] != data.num_tokens or not (offsets[1:] > offsets[:-1]).all():
            raise ValueError(
                f"{path / DOCUMENTS}: spans {offsets[0]}…{offsets[-1]}, {DATA} says 0…{data.num_tokens}; prepare the data again"
            )
        return cls(path, data, tokens, mask, offsets)

    def document(self, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Tokens and mask of one document, its end token included."""
        start, end = self.offsets[index : index + 2]
        return self.tokens[start:end], self.mask[start:end]


def _mapped(path: Path, dtype: str, size: int) -> np.ndarray[Any, Any]:
    needed = size * np.dtype(dtype).itemsize
    if not is_file(path):
        raise ValueError(f"{path}: no such file; prepare the data again")
    if (size_on_disk := path.stat().st_size) != needed:
        raise ValueError(f"{path}: {size_on_disk:,} bytes, {DATA} says {needed:,}; prepare the data again")
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,))


class Packing:
    """Windows of `length` tokens cut from the folder's documents laid end to end, in an order of its own each epoch.

    `len()` is the windows of an epoch; the tokens after the last whole window are left out. With
    `reset_at_documents` no document's first token is a label, so that with attention kept inside `documents_BT`
    nothing is predicted from another document. Raises ValueError where the folder has no whole window.
    """

    def __init__(self, folder: TokenFolder, length: int, seed: int, reset_at_documents: bool = False) -> None:
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}")
        if folder.data.num_tokens < length:
            raise ValueError(
                f"{folder.path}: {folder.data.num_tokens:,} tokens hold no window of length {length:,}; lower length or prepare more data"
            )
        self.folder, self.length, self.seed, self.reset_at_documents = folder, length, seed, reset_at_documents
        self._order = lru_cache(maxsize=2)(partial(shuffled, len(self), seed))  # of an epoch; a batch may span two

    def __len__(self) -> int:
        return self.folder.data.num_tokens // self.length

    def windows(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """Which windows samples `first` … `first + count - 1` are, [count] int64; samples count on over epochs."""
        assert first >= 0, f"first must not be negative, got {first}"
        samples = np.arange(first, first + count, dtype=np.int64)
        epochs = samples // len(self)
        orders = [self._order(int(epoch))[samples[epochs == epoch] % len(self)] for epoch in np.unique(epochs)]
        return np.concatenate(orders)

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first` … `first + count - 1`, each of `length` tokens, on the CPU."""
        import torch

        starts = self.windows(first, count) * self.length
        tokens = np.stack([self.folder.tokens[at : at + self.length] for at in starts])
        mask = np.stack([self.folder.mask[at : at + self.length] for at in starts]).astype(bool)
        places = starts[:, None] + np.arange(self.length)
        documents = np.searchsorted(self.folder.offsets, places, side="right")
        if self.reset_at_documents:
            mask &= self.folder.offsets[documents - 1] != places
        documents = (documents - documents[:, :1]).astype(np.int32)
        return Batch(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask), torch.from_numpy(documents))


def shuffled(size: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """The permutation of 0 … size-1 that (seed, epoch) gives, [size] int64."""
    return np.random.default_rng([seed % 2**64, epoch]).permutation(size)


def check(folder: TokenFolder, vocab_size: int, target: str | Path | None = None) -> None:
    """Raise ValueError unless the folder's ids mean to a model of `vocab_size` ids what they meant when written.

    A model may have more ids than its tokenizer (padding rows), never fewer. `target`: its folder or GGUF file. Another tokenizer.json
    is accepted only where everything that makes ids of text is equal; of a target that has none its words are compared.
    """
    if folder.data.vocab_size > vocab_size:
        raise ValueError(
            f"{folder.path}: tokens of a vocabulary of {folder.data.vocab_size}, but the target's vocab_size is {vocab_size}; "
            "prepare the data with the target's tokenizer"
        )
    if target is None:
        return
    hint = f"foredraft data prepare FILES --tokenizer {target} --out DIR"
    other = Path(target) / TOKENIZER
    if not other.is_file():
        if words := other_words(target, folder.path):
            raise with_hint(
                ValueError(f"{folder.path}: made with another tokenizer than {target}'s: {words} are other words"), hint
            )
        return
    theirs = hashlib.sha256(other.read_bytes()).hexdigest()
    if theirs != folder.data.tokenizer_sha256 and not _same_ids(folder.path / TOKENIZER, other):
        words = other_words(target, folder.path)
        error = ValueError(
            f"{folder.path}: made with the tokenizer {folder.data.tokenizer_sha256[:12]} ({folder.data.vocab_size} ids), "
            f"the target's is {theirs[:12]} ({len(_vocabulary(other))} ids){f': {words} are other words' if words else ''}; "
            "prepare the data with the target's tokenizer"
        )
        raise with_hint(error, hint)


def _same_ids(first: Path, second: Path) -> bool:
    """Whether two tokenizer.json turn text into the same ids: only truncation, padding and decoding may differ."""
    if not first.is_file():
        return False
    parts = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")
    a, b = map(_tokenizer_in, (first, second))
    return all(a.get(part) == b.get(part) for part in parts)


def _tokenizer_in(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not (isinstance(document, dict) and isinstance(document.get("model", {}), dict)):
        raise ValueError(f"{path}: expected a JSON object with a model; copy the tokenizer again")
    return document


def _vocabulary(path: Path) -> set[str]:
    """The words of a tokenizer.json, added ones included."""
    tokenizer = _tokenizer_in(path)
    words = tokenizer.get("model", {}).get("vocab", {})
    names = words if isinstance(words, dict) else (word[0] for word in words)  # a Unigram model lists [word, score]
    return {*names, *(token["content"] for token in tokenizer.get("added_tokens", ()))}
