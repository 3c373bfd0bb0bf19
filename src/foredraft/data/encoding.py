"""Documents as token ids with a loss mask, a batch at a time on all cores.

Promises: ids are those transformers gives for the same text; plain text counts whole, of a conversation only what the
assistant said, of a regenerated document only the very tokens the target wrote; every document ends with the end
token. Refuses to know: files.

Shapes: T tokens of a document.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foredraft.data.chat import ChatTemplate, Rendered
from foredraft.data.sources import Document
from foredraft.data.tokenizer import num_ids


class Encoded(NamedTuple):
    """`ids` uint32 [T] and `mask` uint8 [T], or what is wrong with the document."""

    document: Document
    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    error: str | None = None


class Encoder:
    """Encodes with a transformers tokenizer whose tokenizer.json has the hash `sha256`; conversations need a template."""

    def __init__(self, tokenizer: Any, sha256: str, template: ChatTemplate | None = None) -> None:
        self.eos_id, self.num_ids = tokenizer.eos_token_id, num_ids(tokenizer)
        self.sha256, self.template = sha256, template
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()

    def batch(self, documents: Sequence[Document]) -> list[Encoded]:
        """Return all of `documents` encoded, in their order."""
        rows: list[Encoded | None] = [None] * len(documents)
        plain, spanned = [], []
        for i, document in enumerate(documents):
            try:
                if document.regenerated:
                    rows[i] = self._exact(document)
                elif document.messages:
                    spanned.append((i, self._rendered(document), False))
                elif document.prompt:
                    text = document.prompt + document.text
                    spanned.append((i, Rendered(text, ((len(document.prompt), len(text)),)), True))
                else:
                    plain.append(i)
            except ValueError as error:
                rows[i] = _failed(document, str(error))
        texts = [documents[i].text for i in plain]
        for i, encoding in zip(plain, self.backend.encode_batch_fast(texts, add_special_tokens=True), strict=True):
            rows[i] = self._plain(documents[i], np.array(encoding.ids, np.uint32))
        for special in (False, True):
            part = [(i, rendered) for i, rendered, prefixed in spanned if prefixed == special]
            encodings = self.backend.encode_batch([rendered.text for _, rendered in part], add_special_tokens=special)
            for (i, rendered), encoding in zip(part, encodings, strict=True):
                rows[i] = self._spanned(documents[i], rendered, encoding)
        return [row for row in rows if row is not None]

    def _rendered(self, document: Document) -> Rendered:
        assert self.template is not None, "conversations are read with a template only"
        return self.template.render(document.messages)

    def _plain(self, document: Document, ids: np.ndarray[Any, Any]) -> Encoded:
        return self._ended(document, ids, np.ones(len(ids), np.uint8), True)

    def _spanned(self, document: Document, rendered: Rendered, encoding: Any) -> Encoded:
        """A token counts where any of its characters does; what follows the last answer is cut off."""
        ids, offsets = np.array(encoding.ids, np.uint32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), np.uint8)
        for start, end in rendered.spans:
            mask |= ((offsets[:, 1] > start) & (offsets[:, 0] < end)).astype(np.uint8)
        if not mask.any():
            return _failed(document, "no token of it is to be predicted")
        stop = int(mask.nonzero()[0][-1]) + 1
        return self._ended(document, ids[:stop], mask[:stop], not rendered.closed)

    def _exact(self, document: Document) -> Encoded:
        answer = document.regenerated
        assert answer is not None
        if answer.tokenizer_sha256 != self.sha256:
            raise ValueError(
                f"regenerated with the tokenizer {answer.tokenizer_sha256[:12]}, this is {self.sha256[:12]}; prepare it with the target's"
            )
        ids, mask = np.array(answer.tokens, np.uint32), np.zeros(len(answer.tokens), np.uint8)
        for start, end in answer.answers:
            if not 0 <= start < end <= len(ids):
                raise ValueError(f"an answer at {start}…{end} lies outside its {len(ids)} tokens")
            mask[start:end] = 1
        if ids.max() >= self.num_ids:
            raise ValueError(f"token {ids.max()} is none of the tokenizer's {self.num_ids}")
        return self._ended(document, ids, mask, False)

    def _ended(
        self, document: Document, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], counts: bool
    ) -> Encoded:
        """Append the end token, to be predicted where it `counts`, unless it is there."""
        if len(ids) == 0 or ids[-1] != self.eos_id:
            ids, mask = np.append(ids, np.uint32(self.eos_id)), np.append(mask, np.uint8(counts))
        return Encoded(document, ids, mask)


def _failed(document: Document, error: str) -> Encoded:
    return Encoded(document, np.empty(0, np.uint32), np.empty(0, np.uint8), error)
