"""The target answers prompts, and its answers become training data: the draft is to predict this target, not its teachers.

Promises: an interrupted run, run again, leaves the file that an uninterrupted one would have left, byte for byte, and
refuses other settings; answers are kept as the tokens that the target wrote, so that no retokenising changes them.
Refuses to know: how the engine decodes, what becomes of the answers.

Prompts are answered in groups of a fixed membership. A group that was interrupted is decoded anew as a whole, since
what shares a batch may change the last bit of a logit; what the file holds of it already is not written again.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from foredraft import records
from foredraft.data.chat import ChatTemplate
from foredraft.data.sources import Document, Message, Regenerated, Skips, origins, read
from foredraft.decode.batch import Request, Sequence
from foredraft.decode.engine import Engine
from foredraft.decode.sampling import Sampling
from foredraft.records import Record, StepRecord, require

GROUP = 8  # batches to a group
SAMPLE = 2**20  # bytes of each weight file that tell checkpoints apart

Progress = Callable[[int, int], object]  # prompts done, of how many


class Settings(Record, frozen=True):
    """All that the answers depend on. With `plain` prompts are continued as they stand; else they go into the chat
    template, and the turns of one conversation are answered one after another, `turns` of them at most.
    """

    target_sha256: str
    tokenizer_sha256: str
    prompts_sha256: str
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch: int = 8
    plain: bool = False
    turns: int | None = None
    prompt_tokens: int | None = None
    draft_sha256: str | None = None
    lookahead: int = 0
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


class Asked(NamedTuple):
    """A prompt: the turns that are to be answered, system turns among them, or a text to go on from."""

    id: str
    turns: tuple[Message, ...] = ()
    text: str = ""


class Done(NamedTuple):
    """`written` rows now, `found` there before; answer tokens written, and the engine's steps."""

    written: int
    found: int
    tokens: int
    steps: list[StepRecord]


def prompts(inputs: list[str], plain: bool, skips: Skips, num: int | None = None) -> list[Asked]:
    """The prompts of files (see `sources`): turns, the user's side of conversations, prompts or texts; `num` at most.

    Ids are the rows' own, or where they stand; a second row of an id is called id#2. Plain, of several turns only the
    first is taken. Raises ValueError where there are none.
    """
    found: list[Asked] = []
    seen: dict[str, int] = {}
    for document in (document for origin in origins(inputs) for document in read(origin, "prompts", skips)):
        if len(found) == num:
            break
        name = document.id or document.where.rsplit("/", 1)[-1]
        seen[name] = seen.get(name, 0) + 1
        asked = _asked(document, name if seen[name] == 1 else f"{name}#{seen[name]}", plain)
        if asked:
            found.append(asked)
        else:
            skips(f"{document.where}: no turn of the user")
    if not found:
        raise ValueError(f"{', '.join(inputs)}: no prompts to answer")
    return found


def _asked(document: Document, name: str, plain: bool) -> Asked | None:
    turns = tuple(turn for turn in document.messages if turn.role in ("system", "user"))
    first = next((turn.content for turn in turns if turn.role == "user"), document.text)
    if not first:
        return None
    if plain:
        return Asked(name, text=first)
    return Asked(name, turns or (Message(role="user", content=first),))


def fingerprint(folder: str | Path) -> str:
    """A hash that tells checkpoints apart: config.json, and of each weight file its name, size and first mebibyte."""
    digest = hashlib.sha256()
    for path in [Path(folder) / "config.json", *sorted(Path(folder).glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(SAMPLE))
    return digest.hexdigest()


def digest(asked: list[Asked]) -> str:
    """A hash of all prompts in their order."""
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


class Talk:
    """One prompt on its way: what was said, in tokens and in words, and what is yet to be asked."""

    def __init__(self, asked: Asked, settings: Settings, tokenizer: Any, template: ChatTemplate | None) -> None:
        self.asked, self.settings, self.tokenizer, self.template = asked, settings, tokenizer, template
        self.left = asked.turns
        self.messages: list[Message] = []
        self.ids: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self.finish: list[str] = []
        self.prompt = self.completion = self.said = ""

    def ask(self, max_context: int) -> bool:
        """Have the next turn's prompt in `ids`; False where the talk is over or an answer would not fit."""
        if self.finish and (self.finish[-1] != "stop" or len(self.finish) == self.settings.turns):
            return False
        ids = self._go_on() if self.template else self._begin_plain()
        if ids is None or len(ids) + self.settings.max_tokens > max_context:
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

    def request(self, ends: frozenset[int]) -> Request:
        """What the engine is asked; chance comes from the settings' seed, the prompt's id and the turn alone."""
        s = self.settings
        name = f"{s.seed}\0{self.asked.id}\0{len(self.answers)}".encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1
        sampling = Sampling(temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, seed=seed)
        return Request(prompt=tuple(self.ids), max_tokens=s.max_tokens, sampling=sampling, stop_ids=ends)

    def row(self) -> dict[str, Any]:
        """A line of chat JSONL, or of prompt and completion, with the tokens beside it."""
        said = Regenerated(
            tokens=tuple(self.ids), answers=tuple(self.answers), finish=tuple(self.finish), tokenizer_sha256=self.settings.tokenizer_sha256,
        )  # fmt: skip
        last = max((i for i, turn in enumerate(self.messages) if turn.role == "assistant"), default=-1)
        words = (
            {"messages": self.messages[: last + 1]}
            if self.template
            else {"prompt": self.prompt, "completion": self.completion}
        )
        return {"id": self.asked.id, **words, "regenerated": said}

    def _begin_plain(self) -> list[int] | None:
        if self.finish:
            return None
        ids = self.tokenizer(self.asked.text)["input_ids"][: self.settings.prompt_tokens]
        self.prompt = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids

    def _go_on(self) -> list[int] | None:
        """Tokens so far and those of what comes before the next answer; None where nothing is left to ask."""
        assert self.template is not None
        next_user = next((i for i, turn in enumerate(self.left) if turn.role == "user"), None)
        if next_user is None:
            return None
        self.messages += self.left[: next_user + 1]
        self.left = self.left[next_user + 1 :]
        text = self.template.prompt(tuple(self.messages))
        new = self._since(text) if self.answers else text
        self.said = text
        return [*self.ids, *self.tokenizer(new, add_special_tokens=False)["input_ids"]]

    def _since(self, text: str) -> str:
        """What a conversation's text has beyond the last answer and its end token. Raises ValueError where the
        template writes what was said before in another way.
        """
        words = next(turn.content for turn in reversed(self.messages) if turn.role == "assistant")
        rest = text[len(self.said) :].lstrip() if text.startswith(self.said) else None
        ended = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=True) == ""  # by a token that is no word
        end = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=False) if ended else ""
        if rest is None or not rest.startswith(words) or not rest[len(words) :].lstrip().startswith(end):
            raise ValueError(
                f"{self.asked.id}: the chat template changes what was said once the talk goes on; pass --turns 1 to answer first turns alone"
            )
        return rest[len(words) :].lstrip().removeprefix(end) if ended else rest[len(words) :]


def regenerate(
    engine: Engine,
    tokenizer: Any,
    asked: list[Asked],
    out: str | Path,
    settings: Settings,
    *,
    ends: frozenset[int] = frozenset(),
    skips: Skips | None = None,
    progress: Progress | None = None,
) -> Done:
    """Have `engine`'s target answer all of `asked`, a line of `out` each, settings beside it.

    What `out` holds already is kept, but for a torn last line. Raises ValueError where it was begun with other
    settings, on a prompt that does not fit the engine's context (unless skipped), or without a chat template.
    """
    template, skips = None if settings.plain else ChatTemplate(tokenizer), skips or Skips("stop")
    out = Path(out)
    there = _reopened(out, settings)
    written, tokens, size = 0, 0, settings.batch * GROUP
    steps: list[StepRecord] = []
    with out.open("ab") as file:
        for first in range(0, len(asked), size):
            group = [Talk(one, settings, tokenizer, template) for one in asked[first : first + size]]
            group = [talk for talk in group if _fits(talk, engine, skips)]
            if all(talk.asked.id in there for talk in group):
                continue
            for talk in _answered(engine, group, ends, steps.append):
                if talk.asked.id not in there:
                    _append(file, talk.row(), out)
                    written, tokens = written + 1, tokens + sum(end - start for start, end in talk.answers)
                    if progress:
                        progress(len(there) + written, len(asked))
    return Done(written, len(there), tokens, steps)


def _fits(talk: Talk, engine: Engine, skips: Skips) -> bool:
    fits = talk.ask(engine.max_context)
    if not fits:
        skips(
            f"prompt {talk.asked.id}: too long for max_tokens {talk.settings.max_tokens} in a context of {engine.max_context}"
        )
    return fits


def _answered(
    engine: Engine, talks: list[Talk], ends: frozenset[int], on_step: Callable[[StepRecord], object]
) -> Iterator[Talk]:
    """The talks, each as soon as its last answer is there; the next turn joins the batch when one has ended."""
    going: dict[Sequence, Talk] = {engine.add(talk.request(ends)): talk for talk in talks}
    for step in engine.run():
        on_step(step)
        for sequence in [sequence for sequence in going if sequence.finish]:
            talk = going.pop(sequence)
            talk.hear(sequence.answer, sequence.finish or "")
            if talk.ask(engine.max_context):
                going[engine.add(talk.request(ends))] = talk
            else:
                yield talk


def _append(file: Any, row: dict[str, Any], out: Path) -> None:
    try:
        file.write(msgspec.json.encode(row) + b"\n")
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, "the disk is full; free some and run the same command to go on", str(out)) from None


def _reopened(out: Path, settings: Settings) -> set[str]:
    """Ids of the whole lines of an earlier run with the same settings; what it left of a line is cut off."""
    notes = out.with_name(f"{out.name}.settings.json")
    if out.exists() and out.stat().st_size and not notes.exists():
        raise ValueError(f"{out}: exists already and {notes.name} is missing; remove it or choose another --out")
    if notes.exists():
        _same(records.read(Settings, notes), settings, out)
    else:
        records.write(notes, settings)
    if not out.exists():
        return set()
    lines = out.read_bytes()
    whole = lines.rfind(b"\n") + 1
    if whole < len(lines):
        os.truncate(out, whole)
    return {
        row.id
        for row in (
            records.decode(_Id, line, name=f"{out}:{i}") for i, line in enumerate(lines[:whole].splitlines(), 1)
        )
    }


class _Id(msgspec.Struct):
    id: str


def _same(old: Settings, new: Settings, out: Path) -> None:
    names = [name for name in Settings.__struct_fields__ if getattr(old, name) != getattr(new, name)]
    if names:
        changes = ", ".join(f"{name} {_short(getattr(old, name))} → {_short(getattr(new, name))}" for name in names)
        raise ValueError(f"{out}: begun with other settings ({changes}); run with the old ones or choose another --out")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
