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
from foredraft.data.sources import Document, Message, Regenerated, Skips, origins, read
from foredraft.records import Record, StepRecord, require
from foredraft.shapes import check_folder
from foredraft.shapes.gguf import is_gguf

if TYPE_CHECKING:
    from foredraft.decode.batch import Request, Sequence
    from foredraft.decode.engine import Engine

GROUP = 8  # batches to a group
CHUNK = 2**24  # bytes of a weight file hashed at a time
DTYPES = ("float32", "bfloat16", "float16")

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, of how much


class RegenerateSettings(Record, frozen=True):
    """How prompts are answered. With `plain` they are continued as they stand; else they go into the chat template, and
    the turns of one conversation are answered one after another, `turns` of them at most. `context`: most tokens of a
    prompt and its answer, None for the model's own. `lookahead` matters to a draft alone.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch: int = 8
    plain: bool = False
    turns: int | None = None
    prompt_tokens: int | None = None
    lookahead: int = 4
    context: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(
            self,
            positive=("max_tokens", "batch", "turns", "prompt_tokens", "context"),
            non_negative=("temperature", "lookahead"),
        )
        if self.prompt_tokens and not self.plain:
            raise ValueError("prompt_tokens cuts plain prompts only; pass --plain too")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")


class AnswerConditions(RegenerateSettings, frozen=True, kw_only=True):
    """All that the answers depend on, kept beside them as NAME.settings.json. `stop_ids` end an answer."""

    target_sha256: str
    tokenizer_sha256: str
    prompts_sha256: str
    template_sha256: str | None = None
    draft_sha256: str | None = None
    stop_ids: tuple[int, ...] = ()


class UnansweredPrompt(NamedTuple):
    """The turns that are to be answered, system turns among them, or a text to go on from."""

    id: str
    turns: tuple[Message, ...] = ()
    text: str = ""


class Regeneration(NamedTuple):
    """`written` rows now, `existing` ones there before; answer tokens written, and the engine's steps."""

    written: int
    existing: int
    tokens: int
    steps: list[StepRecord]


def prompts(inputs: list[str], plain: bool, skips: Skips, num: int | None = None) -> list[UnansweredPrompt]:
    """Return the prompts of files (see `sources`): turns, the user's side of conversations, prompts or texts; `num` at most.

    Ids are the rows' own, or where they stand; a second row of an id is called id#2. Plain, of several turns only the
    first is taken. Raises ValueError where there are none.
    """
    unanswered: list[UnansweredPrompt] = []
    uses: dict[str, int] = {}
    for document in (document for origin in origins(inputs) for document in read(origin, "prompts", skips)):
        if len(unanswered) == num:
            break
        name = document.id or document.where.rsplit("/", 1)[-1]
        uses[name] = uses.get(name, 0) + 1
        prompt = _prompt(document, name if uses[name] == 1 else f"{name}#{uses[name]}", plain)
        if prompt:
            unanswered.append(prompt)
        else:
            skips(f"{document.where}: no turn of the user")
    if not unanswered:
        raise ValueError(f"{', '.join(inputs)}: no prompts to answer")
    return unanswered


def _prompt(document: Document, name: str, plain: bool) -> UnansweredPrompt | None:
    turns = tuple(turn for turn in document.messages if turn.role in ("system", "user"))
    first = next((turn.content for turn in turns if turn.role == "user"), document.text)
    if not first:
        return None
    if plain:
        return UnansweredPrompt(name, text=first)
    return UnansweredPrompt(name, turns or (Message(role="user", content=first),))


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


class Dialogue:
    """One prompt on its way: what was said, in tokens and in words, and which turns are yet to be answered."""

    def __init__(
        self, prompt: UnansweredPrompt, conditions: AnswerConditions, tokenizer: Any, template: ChatTemplate | None
    ) -> None:
        self.id, self.text, self.next_turns = prompt.id, prompt.text, prompt.turns
        self.conditions, self.tokenizer, self.template = conditions, tokenizer, template
        self.messages: list[Message] = []
        self.ids: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self.finish: list[str] = []
        self.prompt = self.completion = self.rendered = ""

    def ask(self, max_context: int) -> bool:
        """Have the next turn's prompt in `ids`; False where no turn is left or an answer would not fit."""
        if self.finish and (self.finish[-1] != "stop" or len(self.finish) == self.conditions.turns):
            return False
        ids = self._go_on() if self.template else self._begin_plain()
        if ids is None or len(ids) + self.conditions.max_tokens > max_context:
            return False
        self.ids = ids
        return True

    def hear(self, answer: list[int], finish: str) -> None:
        """Take the target's answer to what was asked."""
        start = len(self.ids)
        self.ids = self.ids + answer
        self.answers.append((start, len(self.ids)))
        self.finish.append(finish)
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.template:
            self.messages.append(Message(role="assistant", content=text.strip()))
        else:
            self.completion = text

    def request(self) -> "Request":
        """Return what the engine is asked; chance comes from the settings' seed, the prompt's id and the turn alone."""
        from foredraft.decode.batch import Request
        from foredraft.decode.sampling import Sampling

        c = self.conditions
        name = f"{c.seed}\0{self.id}\0{len(self.answers)}".encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1
        sampling = Sampling(temperature=c.temperature, top_p=c.top_p, top_k=c.top_k, seed=seed)
        return Request(
            prompt=tuple(self.ids), max_tokens=c.max_tokens, sampling=sampling, stop_ids=frozenset(c.stop_ids)
        )

    def row(self) -> dict[str, Any]:
        """Return a line of chat JSONL, or of prompt and completion, with the tokens beside it."""
        answer = Regenerated(
            tokens=tuple(self.ids), answers=tuple(self.answers), finish=tuple(self.finish), tokenizer_sha256=self.conditions.tokenizer_sha256,
        )  # fmt: skip
        last = max((i for i, turn in enumerate(self.messages) if turn.role == "assistant"), default=-1)
        words = (
            {"messages": self.messages[: last + 1]}
            if self.template
            else {"prompt": self.prompt, "completion": self.completion}
        )
        return {"id": self.id, **words, "regenerated": answer}

    def _begin_plain(self) -> list[int] | None:
        if self.finish:
            return None
        ids = self.tokenizer(self.text)["input_ids"][: self.conditions.prompt_tokens]
        self.prompt = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids

    def _go_on(self) -> list[int] | None:
        """Return tokens so far and those of what comes before the next answer; None where no turn is left."""
        assert self.template is not None
        next_user = next((i for i, turn in enumerate(self.next_turns) if turn.role == "user"), None)
        if next_user is None:
            return None
        self.messages += self.next_turns[: next_user + 1]
        self.next_turns = self.next_turns[next_user + 1 :]
        text = self.template.prompt(tuple(self.messages))
        new = self._since(text) if self.answers else text
        self.rendered = text
        return [*self.ids, *self.tokenizer(new, add_special_tokens=False)["input_ids"]]

    def _since(self, text: str) -> str:
        """What a text has beyond its last answer and end token. Raises ValueError where the template rewrites what was said before."""
        words = next(turn.content for turn in reversed(self.messages) if turn.role == "assistant")
        answer = text[len(self.rendered) :].lstrip() if text.startswith(self.rendered) else None
        ended = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=True) == ""  # by a token that is no word
        end = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=False) if ended else ""
        if answer is None or not answer.startswith(words) or not answer[len(words) :].lstrip().startswith(end):
            message = f"{self.id}: the chat template changes what was said once the conversation goes on"
            raise records.with_hint(ValueError(message), "--turns 1 answers first turns alone")
        return answer[len(words) :].lstrip().removeprefix(end) if ended else answer[len(words) :]


def regenerate(
    prompts: list[UnansweredPrompt], target: str | Path, out: str | Path, settings: RegenerateSettings, *,
    draft: str | None = None, skips: Skips | None = None, progress: Progress | None = None,
) -> Regeneration:  # fmt: skip
    """Have the model in the folder `target` answer `prompts`, a line of `out` each, their conditions beside it.

    `draft`, "ngram", the folder of one or DIR+ngram, changes speed alone. What `out` holds already is kept, but for a torn last line.
    Raises ValueError where another run writes it, where it was begun under other conditions, on a prompt that does not fit
    the context (unless skipped), and without a chat template (unless plain).
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
        done_ids = _reopened(out, conditions)
        engine = text.load_engine(
            target, draft, lookahead=settings.lookahead, dtype=getattr(torch, settings.dtype), device=settings.device,
            max_batch=settings.batch, max_context=settings.context,
        )  # fmt: skip
        dialogues = (Dialogue(prompt, conditions, tokenizer, template) for prompt in prompts)
        return _answer(
            engine, dialogues, out, done_ids, skips, lambda rows: progress and progress("answering", rows, len(prompts))
        )


def _conditions(
    prompts: list[UnansweredPrompt], target: str | Path, settings: RegenerateSettings, draft: str | None, template: ChatTemplate | None,
    stop_ids: frozenset[int], progress: Progress | None,
) -> AnswerConditions:  # fmt: skip
    return AnswerConditions(**msgspec.structs.asdict(settings) | {
        "target_sha256": fingerprint(target, progress),
        "tokenizer_sha256": tokenizers.sha256(target),
        "prompts_sha256": hashlib.sha256(msgspec.json.encode(prompts)).hexdigest(),
        "template_sha256": hashlib.sha256(template.text.encode()).hexdigest() if template else None,
        "draft_sha256": _drafted_by(draft, progress),
        "lookahead": settings.lookahead if draft else 0,
        "stop_ids": tuple(sorted(stop_ids)),
    })  # fmt: skip


def _drafted_by(draft: str | None, progress: Progress | None) -> str | None:
    """A draft's words with the fingerprint of its folder in the folder's place; "ngram" as it stands."""
    from foredraft import text

    folder = text.draft_folder(draft)
    return fingerprint(folder, progress) + str(draft).removeprefix(folder) if folder else draft


def _answer(
    engine: "Engine", dialogues: Iterator[Dialogue], out: Path, done_ids: set[str], skips: Skips, on_row: Callable[[int], object]
) -> Regeneration:  # fmt: skip
    """Answer all but those whose ids are in `out` already, a group at a time, and append them."""
    written, tokens = 0, 0
    steps: list[StepRecord] = []
    with out.open("ab") as file:
        for group in _groups(dialogues, engine, skips):
            if all(dialogue.id in done_ids for dialogue in group):
                continue
            for dialogue in _answered(engine, group, steps.append):
                if dialogue.id not in done_ids:
                    _append(file, dialogue.row(), out)
                    written, tokens = written + 1, tokens + sum(end - start for start, end in dialogue.answers)
                    on_row(len(done_ids) + written)
    return Regeneration(written, len(done_ids), tokens, steps)


def _groups(dialogues: Iterator[Dialogue], engine: "Engine", skips: Skips) -> Iterator[list[Dialogue]]:
    """The dialogues in groups, without those too long for the context, which go to `skips`."""
    while group := list(islice(dialogues, GROUP * engine.max_batch)):
        yield [dialogue for dialogue in group if _fits(dialogue, engine, skips)]


def _fits(dialogue: Dialogue, engine: "Engine", skips: Skips) -> bool:
    fits = dialogue.ask(engine.max_context)
    if not fits:
        skips(
            f"prompt {dialogue.id}: too long for max_tokens {dialogue.conditions.max_tokens} in a context of {engine.max_context}"
        )
    return fits


def _answered(
    engine: "Engine", dialogues: list[Dialogue], on_step: Callable[[StepRecord], object]
) -> Iterator[Dialogue]:
    """The dialogues, each as soon as its last answer is there; the next turn joins the batch when one has ended."""
    running: dict[Sequence, Dialogue] = {engine.add(dialogue.request()): dialogue for dialogue in dialogues}
    for step in engine.run():
        on_step(step)
        for sequence in [sequence for sequence in running if sequence.finish]:
            dialogue = running.pop(sequence)
            dialogue.hear(sequence.answer, sequence.finish or "")
            if dialogue.ask(engine.max_context):
                running[engine.add(dialogue.request())] = dialogue
            else:
                yield dialogue


def _append(file: IO[bytes], row: dict[str, Any], out: Path) -> None:
    try:
        file.write(msgspec.json.encode(row) + b"\n")
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, "the disk is full; free some and run the same command to go on", str(out)) from None


def _reopened(out: Path, conditions: AnswerConditions) -> set[str]:
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
