"""The target answers prompts, and its answers become training data: the draft is to predict this target, not its teachers.

Promises: an interrupted run, run again, leaves the file that an uninterrupted one would have left, byte for byte, and
refuses another target, other settings and a second run beside it; answers are kept as the tokens that the target wrote, so
that no retokenising changes them. Refuses to know: how the engine decodes, what becomes of the answers.

Prompts are answered in groups of a fixed membership. A group that was interrupted is decoded anew as a whole, since
what shares a batch may change the last bit of a logit; what the file holds of it already is not written again.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from foredraft import records
from foredraft.data import tokenizer as tokenizers
from foredraft.data.chat import ChatTemplate
from foredraft.data.dialogue import AnswerConditions, Dialogue, RegenerateSettings, UnansweredPrompt, unanswered
from foredraft.data.remarks import Remarks
from foredraft.data.sources import Skips, origins, read
from foredraft.records import StepRecord
from foredraft.shapes import check_folder
from foredraft.shapes.gguf import is_gguf

if TYPE_CHECKING:
    from foredraft.decode.batch import Sequence
    from foredraft.decode.engine import Engine

__all__ = ["AnswerConditions", "RegenerateSettings", "Regeneration", "UnansweredPrompt", "prompts", "regenerate"]

GROUP = 8  # batches to a group
CHUNK = 2**24  # bytes of a weight file hashed at a time

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, of how much


class Regeneration(NamedTuple):
    """`written` rows now, `existing` ones there before; answer tokens written, and the engine's steps."""

    written: int
    existing: int
    tokens: int
    steps: list[StepRecord]


def prompts(
    inputs: list[str], plain: bool, skips: Skips, num: int | None = None, remarks: Remarks | None = None
) -> list[UnansweredPrompt]:
    """Return the prompts of files (see `sources`): turns, the user's side of conversations, prompts or texts; `num` at most.

    Ids are the rows' own, or where they stand; a second row of an id is called id#2. Plain, of several turns only the
    first is taken. `remarks` are told of keys that are not read. Raises ValueError where there are none.
    """
    questions: list[UnansweredPrompt] = []
    uses: dict[str, int] = {}
    for document in (document for origin in origins(inputs) for document in read(origin, "prompts", skips)):
        if len(questions) == num:
            break
        name = document.id or document.where.rsplit("/", 1)[-1]
        uses[name] = uses.get(name, 0) + 1
        prompt = unanswered(document, name if uses[name] == 1 else f"{name}#{uses[name]}", plain)
        if prompt:
            questions.append(prompt)
            (remarks or Remarks()).note(document, in_chat=False)
        else:
            skips(f"{document.where}: no turn of the user")
    if not questions:
        raise ValueError(f"{', '.join(inputs)}: no prompts to answer")
    return questions


def fingerprint(folder: str | Path, progress: Progress | None = None) -> str:
    """Return the sha256 of a model: name, size and every byte of config.json, the index of shards and all weight files, or of a GGUF file."""
    digest, size = hashlib.sha256(), 0
    patterns = ("config.json", "*.index.json", "*.safetensors")
    inside = (path for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    files = [Path(folder)] if is_gguf(folder) else [*inside]
    total = sum(path.stat().st_size for path in files)
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if progress:
                    progress(f"hashing {path.name}", size, total)
    return digest.hexdigest()


def regenerate(
    prompts: list[UnansweredPrompt], target: str | Path, out: str | Path, settings: RegenerateSettings, *,
    draft: str | None = None, skips: Skips | None = None, remarks: Remarks | None = None, progress: Progress | None = None,
) -> Regeneration:  # fmt: skip
    """Have the model in the folder `target` answer `prompts`, a line of `out` each, their conditions beside it.

    `draft`, "ngram", the folder of one or DIR+ngram, changes speed alone; `remarks` are told what the template leaves out of prompts.
    What `out` holds already is kept, but for a torn last line. Raises ValueError where another run writes it, where it was begun under
    other conditions, on a prompt that does not fit the context or the template (unless skipped), and without a chat template (unless plain).
    """
    check_folder(target, tokenizer=True)
    from foredraft import text

    if folder := text.draft_folder(draft):
        check_folder(folder)
    out, skips = Path(out), skips or Skips("stop")
    with records.reserved(out):
        import torch

        tokenizer = tokenizers.load(target)
        template = None if settings.plain else ChatTemplate(tokenizer)
        stop_ids = text.stop_ids(target, tokenizer)
        conditions = _conditions(prompts, target, settings, draft, template, stop_ids, progress)
        done_ids = reopened(out, conditions)
        engine = text.load_engine(
            target, draft, lookahead=settings.lookahead, dtype=getattr(torch, settings.dtype), device=settings.device,
            max_batch=settings.batch, max_context=settings.context,
        )  # fmt: skip
        dialogues = (Dialogue(prompt, conditions, tokenizer, template) for prompt in prompts)
        groups = _groups(dialogues, engine, skips, remarks or Remarks())
        return _answer(
            engine, groups, out, done_ids, skips, lambda rows: progress and progress("answering", rows, len(prompts))
        )


def _conditions(
    prompts: list[UnansweredPrompt], target: str | Path, settings: RegenerateSettings, draft: str | None, template: ChatTemplate | None,
    stop_ids: frozenset[int], progress: Progress | None,
) -> AnswerConditions:  # fmt: skip
    return AnswerConditions(**msgspec.structs.asdict(settings) | {
        "target_sha256": fingerprint(target, progress),
        "tokenizer_sha256": tokenizers.sha256(target),
        "prompts_sha256": prompts_sha256(prompts),
        "template_sha256": hashlib.sha256(template.text.encode()).hexdigest() if template else None,
        "draft_sha256": _drafted_by(draft, progress),
        "lookahead": settings.lookahead if draft else 0,
        "stop_ids": tuple(sorted(stop_ids)),
    })  # fmt: skip


def prompts_sha256(prompts: list[UnansweredPrompt]) -> str:
    """Of all that is asked."""
    asked = [prompt if prompt.tools or prompt.options else prompt[:3] for prompt in prompts]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def _drafted_by(draft: str | None, progress: Progress | None) -> str | None:
    """A draft's words with the fingerprint of its folder in the folder's place; "ngram" as it stands."""
    from foredraft import text

    folder = text.draft_folder(draft)
    return fingerprint(folder, progress) + str(draft).removeprefix(folder) if folder else draft


def _answer(
    engine: "Engine", groups: Iterator[list[Dialogue]], out: Path, done_ids: set[str], skips: Skips, on_row: Callable[[int], object]
) -> Regeneration:  # fmt: skip
    """Answer all but those whose ids are in `out` already, a group at a time, and append them."""
    written, tokens = 0, 0
    steps: list[StepRecord] = []
    with out.open("ab") as file:
        for group in groups:
            if all(dialogue.id in done_ids for dialogue in group):
                continue
            for dialogue in _answered(engine, group, skips, steps.append):
                if dialogue.id not in done_ids:
                    append(file, dialogue.row(), out)
                    written, tokens = written + 1, tokens + dialogue.num_answered()
                    on_row(len(done_ids) + written)
    return Regeneration(written, len(done_ids), tokens, steps)


def _groups(
    dialogues: Iterator[Dialogue], engine: "Engine", skips: Skips, remarks: Remarks
) -> Iterator[list[Dialogue]]:
    """The dialogues in groups, without those too long for the context, which go to `skips`."""
    while group := list(islice(dialogues, GROUP * engine.max_batch)):
        yield [dialogue for dialogue in group if fits(dialogue, engine.max_context, skips, remarks)]


def fits(dialogue: Dialogue, max_context: int | None, skips: Skips, remarks: Remarks) -> bool:
    """Whether a dialogue can be asked its first turn; one that cannot goes to `skips`, what its template leaves out to `remarks`."""
    try:
        asked = dialogue.ask(max_context)
    except ValueError as error:
        skips(str(error))
        return False
    if not asked:
        skips(
            f"prompt {dialogue.id}: too long for max_tokens {dialogue.conditions.max_tokens} in a context of {max_context}"
        )
    else:
        remarks.note_left_out(f"prompt {dialogue.id}", dialogue.left_out())
    return asked


def _answered(
    engine: "Engine", dialogues: list[Dialogue], skips: Skips, on_step: Callable[[StepRecord], object]
) -> Iterator[Dialogue]:
    """The dialogues, each as soon as its last answer is there; the next turn joins the batch when one has ended."""
    running: dict[Sequence, Dialogue] = {engine.add(dialogue.request()): dialogue for dialogue in dialogues}
    for step in engine.run():
        on_step(step)
        for sequence in [sequence for sequence in running if sequence.finish]:
            dialogue = running.pop(sequence)
            dialogue.hear(sequence.answer, sequence.finish or "")
            try:
                goes_on = dialogue.ask(engine.max_context)
            except ValueError as error:  # a template that takes no such turn
                skips(str(error))
                continue
            if goes_on:
                running[engine.add(dialogue.request())] = dialogue
            else:
                yield dialogue


def append(file: IO[bytes], row: dict[str, Any], out: Path) -> None:
    """Write a row's line. Raises OSError, which says how to go on, on a full disk."""
    try:
        file.write(msgspec.json.encode(row) + b"\n")
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, "the disk is full; free some and run the same command to go on", str(out)) from None


def reopened(out: Path, conditions: AnswerConditions) -> set[str]:
    """Return the ids of the whole lines of an earlier run under the same conditions; what it left of a line is cut off."""
    notes = out.with_name(f"{out.name}.settings.json")
    if not out.exists() or not out.stat().st_size:
        records.write(notes, conditions)
        return set()
    if not notes.exists():
        raise ValueError(f"{out}: exists already and {notes.name} is missing; remove it or choose another --out")
    _refuse_changes(records.read(AnswerConditions, notes), conditions, out)
    lines = out.read_bytes()
    end = lines.rfind(b"\n") + 1
    if end < len(lines):
        os.truncate(out, end)
    return {
        row.id
        for row in (records.decode(_Id, line, name=f"{out}:{i}") for i, line in enumerate(lines[:end].splitlines(), 1))
    }


class _Id(msgspec.Struct):
    id: str


def _refuse_changes(old: AnswerConditions, new: AnswerConditions, out: Path) -> None:
    names = [name for name in AnswerConditions.__struct_fields__ if getattr(old, name) != getattr(new, name)]
    names.sort(key=lambda name: not name.endswith("_sha256"))
    if names:
        changes = ", ".join(f"{name} {_short(getattr(old, name))} → {_short(getattr(new, name))}" for name in names)
        raise ValueError(f"{out}: begun with other settings ({changes}); run with the old ones or choose another --out")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
