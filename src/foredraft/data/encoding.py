"""Documents as token ids with a loss mask, a batch at a time on all cores.

Promises: ids are those transformers gives for the same text, with the beginning token once; plain text counts whole, of a conversation only
what the assistant said, of a regenerated document only the very tokens the target wrote; every document ends with the end token. Refuses to
know: files.

Shapes: T tokens of a text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foredraft.data.chat import ChatTemplate, Rendered
from foredraft.data.left_out import Words
from foredraft.data.rows import Document, Regenerated
from foredraft.data.tokenizer import num_ids, twice_begun

Array = np.ndarray[Any, Any]


class EncodedText(NamedTuple):
    """`ids` uint32 [T] and `mask` uint8 [T]."""

    ids: Array
    mask: Array


class Encoded(NamedTuple):
    """A document's texts, or what is wrong with it; `left_out`: words that its chat template leaves out."""

    document: Document
    texts: tuple[EncodedText, ...] = ()
    left_out: tuple[Words, ...] = ()
    error: str | None = None


class Encoder:
    """Encodes with a transformers tokenizer whose tokenizer.json has the hash `sha256`; conversations need a template."""

    def __init__(self, tokenizer: Any, sha256: str, template: ChatTemplate | None = None) -> None:
        self.eos_id, self.bos_id, self.num_ids = tokenizer.eos_token_id, tokenizer.bos_token_id, num_ids(tokenizer)
        self.sha256, self.template = sha256, template
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()

    def batch(self, documents: Sequence[Document]) -> list[Encoded]:
        """Return all of `documents` encoded, in their order."""
        rows: dict[int, Encoded] = {}
        plain, spanned = [], []
        for i, document in enumerate(documents):
            try:
                if document.regenerated:
                    rows[i] = Encoded(document, tuple(self._exact(answer) for answer in document.regenerated))
                elif document.messages:
                    assert self.template is not None, "conversations are read with a template only"
                    rendering = self.template.render(document.messages, document.tools, document.options)
                    rows[i] = Encoded(document, left_out=rendering.left_out)
                    spanned += [(i, rendered, False) for rendered in rendering.texts]
                elif document.prompt:
                    text = document.prompt + document.text
                    rows[i] = Encoded(document)
                    spanned.append((i, Rendered(text, ((len(document.prompt), len(text)),)), True))
                else:
                    plain.append(i)
            except ValueError as error:
                rows[i] = Encoded(document, error=str(error))
        texts = [documents[i].text for i in plain]
        for i, encoding in zip(plain, self.backend.encode_batch_fast(texts, add_special_tokens=True), strict=True):
            ids = np.array(encoding.ids, np.uint32)[int(twice_begun(encoding.ids, self.bos_id)) :]
            rows[i] = Encoded(documents[i], (self._ended(ids, np.ones(len(ids), np.uint8), True),))
        self._add_spanned(rows, spanned)
        return [rows[i] for i in range(len(documents))]

    def _add_spanned(self, rows: dict[int, Encoded], spanned: list[tuple[int, Rendered, bool]]) -> None:
        """Encode rendered texts, each of the row with its number, with the tokenizer's special tokens or without."""
        for special in (False, True):
            part = [(i, rendered) for i, rendered, prefixed in spanned if prefixed == special]
            encodings = self.backend.encode_batch([rendered.text for _, rendered in part], add_special_tokens=special)
            for (i, rendered), encoding in zip(part, encodings, strict=True):
                try:
                    text = self._spanned(rendered, encoding)
                    rows[i] = rows[i]._replace(texts=(*rows[i].texts, text))
                except ValueError as error:
                    rows[i] = rows[i]._replace(error=str(error))

    def _spanned(self, rendered: Rendered, encoding: Any) -> EncodedText:
        """A token counts where any of its characters does; what follows the last answer is cut off."""
        ids, offsets = np.array(encoding.ids, np.uint32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), np.uint8)
        for start, end in rendered.spans:
            mask |= ((offsets[:, 1] > start) & (offsets[:, 0] < end)).astype(np.uint8)
        if not mask.any():
            raise ValueError("no token of it is to be predicted")
        begin, stop = int(twice_begun(encoding.ids, self.bos_id)), int(mask.nonzero()[0][-1]) + 1
        return self._ended(ids[begin:stop], mask[begin:stop], not rendered.closed)

    def _exact(self, answer: Regenerated) -> EncodedText:
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
        return self._ended(ids, mask, False)

    def _ended(self, ids: Array, mask: Array, counts: bool) -> EncodedText:
        """Append the end token, to be predicted where it `counts`, unless it is there."""
        if len(ids) == 0 or ids[-1] != self.eos_id:
            ids, mask = np.append(ids, np.uint32(self.eos_id)), np.append(mask, np.uint8(counts))
        return EncodedText(ids, mask)
