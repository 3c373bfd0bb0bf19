"""Writing token folders: whole or not at all.

Promises: a folder appears under its name once everything in it is on disk; after an error, a full disk included,
nothing is left. Refuses to know: text.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from foredraft import records
from foredraft.train.tokens import DATA, DOCUMENTS, MASK, TOKENS, VERSION, Source, TokenData, width

BUFFER = 2**20


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `path` when the block ends well and removed when it does not.

    Raises ValueError where `path` already holds something, and OSError naming `path` where the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already; remove it or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC, f"the disk is full ({free / 1e6:,.0f} MB free before cleaning up), nothing was kept; free some or choose another --out",
            str(path),
        ) from None  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have everything on disk before it gets its name; a disk that fills late says so here."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


class TokenWriter:
    """Appends documents to the files of a token folder, and counts them. Close it with `finish`."""

    def __init__(self, folder: Path, vocab_size: int, eos_id: int, files: ExitStack) -> None:
        self.folder, self.vocab_size, self.eos_id = folder, vocab_size, eos_id
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens, self.mask, self.documents = (
            files.enter_context((folder / name).open("wb", buffering=BUFFER)) for name in (TOKENS, MASK, DOCUMENTS)
        )
        self.dtype = "<u2" if width(vocab_size) == "uint16" else "<u4"
        self.num_tokens = self.num_documents = self.regenerated = self.predicted = 0
        self.documents.write(np.int64(0).tobytes())

    def add(self, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], regenerated: bool = False) -> None:
        """One document, whose last token is the end token; `mask` is 1 where a token is to be predicted."""
        assert len(ids) == len(mask), (len(ids), len(mask))
        assert ids[-1] == self.eos_id, "a document must end with the end token"
        if ids.max() >= self.vocab_size:
            raise ValueError(f"token {ids.max()} lies outside the vocabulary of {self.vocab_size}")
        self.tokens.write(ids.astype(self.dtype).tobytes())
        self.mask.write(mask.astype(np.uint8).tobytes())
        self.num_tokens += len(ids)
        self.num_documents += 1
        self.regenerated += len(ids) if regenerated else 0
        self.predicted += int(np.count_nonzero(mask))
        self.documents.write(np.int64(self.num_tokens).tobytes())

    def finish(self, tokenizer_sha256: str, sources: tuple[Source, ...], template: str | None) -> TokenData:
        """Write data.json, which makes the files a token folder. Raises ValueError where no document was added."""
        data = TokenData(
            version=VERSION, vocab_size=self.vocab_size, eos_id=self.eos_id, tokenizer_sha256=tokenizer_sha256, dtype=width(self.vocab_size),
            num_tokens=self.num_tokens, num_documents=self.num_documents, raw_tokens=self.num_tokens - self.regenerated,
            regenerated_tokens=self.regenerated, predicted_tokens=self.predicted, sources=sources, template=template,
        )  # fmt: skip
        for file in (self.tokens, self.mask, self.documents):
            file.flush()
        records.write(self.folder / DATA, data)
        return data
