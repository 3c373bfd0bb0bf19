"""From documents to token folders.

Promises: the same inputs give the same folders; equal documents lie on one side of the split; what was skipped is
counted and named; an empty corpus is an error. Refuses to know: how documents are written in files, or what a token is.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from foredraft import records
from foredraft.data import tokenizer as tokenizers
from foredraft.data.chat import ChatTemplate
from foredraft.data.encoding import Encoder
from foredraft.data.remarks import Remarks
from foredraft.data.rows import Document, Mode
from foredraft.data.sources import Origin, Skips, origins, read
from foredraft.data.token_writer import TokenWriter
from foredraft.data.tokens import Source, TokenData

WORKERS = 2  # one turns ids into arrays while the other has all cores tokenise
BATCH_DOCUMENTS, BATCH_CHARACTERS = 2048, 2**22
TRAIN, HELD_OUT = "train", "val"

Progress = Callable[[int, int], object]  # bytes read so far, tokens written so far
Read = tuple[Origin, Document]
In = TypeVar("In")
Done = TypeVar("Done")


class Prepared(NamedTuple):
    """What was made: data by folder name ("" for the folder itself), characters read, rows skipped and the first of them, and `warnings`
    of what rows have that the data has not.
    """

    folders: dict[str, TokenData]
    characters: int
    skipped: int
    named: list[str]
    warnings: tuple[str, ...] = ()


def prepare(
    inputs: list[str], out: str | Path, tokenizer: str | Path, *, chat: bool = False, template: str | None = None,
    documents: int | None = None, val_share: float = 0.0, on_error: str = "stop", licence: str | None = None,
    progress: Progress | None = None,
) -> Prepared:  # fmt: skip
    """Read `inputs` (see `sources.origins`), encode them with the tokenizer at `tokenizer`, write the folder `out`.

    With `chat` conversations are put into the tokenizer's chat template, or into `template`. With `val_share` the
    folder holds two, train and val, split by documents' contents. At most `documents` are taken. Raises ValueError on
    a broken row (unless skipped) or nothing to read, OSError on a full disk; then nothing is left of `out`.
    """
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share must lie in [0, 1), got {val_share}")
    if documents is not None and documents < 1:
        raise ValueError(f"documents must be at least 1, got {documents}")
    sources, skips = origins(inputs), Skips(on_error)
    loaded = tokenizers.load(tokenizer)
    shape = ChatTemplate(loaded, template) if chat else None
    names = (TRAIN, HELD_OUT) if val_share else ("",)
    with records.whole_folder(out) as folder, ExitStack() as files:
        writers = {
            name: TokenWriter(folder / name, tokenizers.num_ids(loaded), loaded.eos_token_id, files) for name in names
        }
        shas = [tokenizers.keep(loaded, tokenizer, folder / name, template) for name in names]
        reads = islice(_reads(sources, "chat" if chat else "text", skips), documents)
        remarks = Remarks()
        counts, characters = _fill(
            writers, reads, Encoder(loaded, shas[0], shape), skips, remarks, sources, val_share, progress
        )
        for name, writer in writers.items():
            if not writer.num_documents:
                raise ValueError(_nothing(out, name, inputs, skips))
        folders = {
            name: writer.finish(shas[0], _sources(sources, counts[name], licence), shape.text if shape else None)
            for name, writer in writers.items()
        }
    return Prepared(folders, characters, skips.count, skips.named, remarks.lines())


def _reads(sources: list[Origin], mode: Mode, skips: Skips) -> Iterator[Read]:
    return ((origin, document) for origin in sources for document in read(origin, mode, skips))


def _fill(
    writers: dict[str, TokenWriter], reads: Iterable[Read], encoder: Encoder, skips: Skips, remarks: Remarks, sources: list[Origin],
    val_share: float, progress: Progress | None,
) -> tuple[dict[str, Counter[str]], int]:  # fmt: skip
    """Encode and write everything; give the documents written by folder and origin, and the characters read."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in writers}
    characters = 0
    for batch, encodings in _ahead(lambda batch: encoder.batch([document for _, document in batch]), _batches(reads)):
        for (origin, document), encoding in zip(batch, encodings, strict=True):
            if encoding.error:
                origin.skipped += 1
                skips(f"{document.where}: {encoding.error}")
                continue
            name = _side(document, val_share) if val_share else ""
            for text in encoding.texts:
                writers[name].add(text.ids, text.mask, bool(document.regenerated))
            remarks.note(document, encoding.left_out, in_chat=encoder.template is not None)
            counts[name][origin.name] += 1
            characters += document.characters()
        if progress:
            progress(
                sum(origin.done_bytes for origin in sources), sum(writer.num_tokens for writer in writers.values())
            )
    return counts, characters


def _batches(reads: Iterable[Read]) -> Iterator[list[Read]]:
    batch, characters = [], 0
    for origin, document in reads:
        batch.append((origin, document))
        characters += document.characters()
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ahead(work: Callable[[In], Done], items: Iterable[In]) -> Iterator[tuple[In, Done]]:
    """Each item with what `work` makes of it, in order; two are worked on while the next is being read."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[In, Future[Done]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > WORKERS:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _side(document: Document, val_share: float) -> str:
    """Train or held out, by the document's contents alone."""
    parts = [document.prompt, document.text]
    for turn in document.messages:
        parts += [turn.role, turn.content if isinstance(turn.content, str) else _json(turn.content)]
        parts += [_json(turn.more)] if turn.more else []
    parts += [_json(document.tools)] if document.tools else []
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return HELD_OUT if int.from_bytes(digest) < val_share * 2**64 else TRAIN


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _sources(sources: list[Origin], counts: Counter[str], licence: str | None) -> tuple[Source, ...]:
    return tuple(
        origin.source(counts[origin.name], licence) for origin in sources if counts[origin.name] or origin.skipped
    )


def _nothing(out: str | Path, name: str, inputs: list[str], skips: Skips) -> str:
    if name:
        return f"{Path(out) / name}: no document fell to it; change --val-share or give more documents"
    rows = f"; {skips.count} broken rows were skipped, such as {skips.named[0]}" if skips.count else ""
    return f"{', '.join(inputs)}: an empty corpus, no document to read{rows}"
