"""Writing the files of a token folder.

Promises: data.json, which makes them a token folder, comes last. Refuses to know: text, and where the folder will lie.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from foredraft import records
from foredraft.data.tokens import DATA, DOCUMENTS, MASK, TOKENS, VERSION, Source, TokenData, width

BUFFER = 2**20


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
