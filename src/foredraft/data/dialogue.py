"""A prompt and what a target answers to it, turn by turn, in tokens and in words.

Promises: what is asked is what a server of the target would ask with the same template; where the template changes earlier turns once the
talk goes on, and behind the results of a recorded call, the tokens begin anew. Refuses to know: who answers, files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from foredraft.data.chat import ChatTemplate
from foredraft.data.left_out import Words
from foredraft.data.rows import Document, Message, Regenerated, words_of_turn
from foredraft.data.tokenizer import twice_begun
from foredraft.records import Record, require

if TYPE_CHECKING:
    from foredraft.decode.batch import Request

DTYPES = ("float32", "bfloat16", "float16")


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
    """All that the answers depend on, kept beside them as NAME.settings.json. `stop_ids` end an answer; `target_sha256` is of the weights, or
    of a server the model's name there.
    """

    target_sha256: str
    tokenizer_sha256: str
    prompts_sha256: str
    template_sha256: str | None = None
    draft_sha256: str | None = None
    stop_ids: tuple[int, ...] = ()


class UnansweredPrompt(NamedTuple):
    """The turns that are to be answered, or stand before such, or a text to go on from; `tools` and `options` go into the template."""

    id: str
    turns: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    options: Mapping[str, Any] = {}


def unanswered(document: Document, name: str, plain: bool) -> UnansweredPrompt | None:
    """Return what of a document is to be answered: all that the assistant did not say, and its calls that results stand behind; None where
    nobody asks.
    """
    roles = [turn.role for turn in document.messages]
    recorded = [role == "assistant" and roles[i + 1 : i + 2] == ["tool"] for i, role in enumerate(roles)]
    turns = tuple(
        turn for turn, keep in zip(document.messages, recorded, strict=True) if keep or turn.role != "assistant"
    )
    first = next((turn for turn in turns if turn.role == "user"), None)
    words = words_of_turn(first) if first else document.text
    if not words:
        return None
    if plain:
        return UnansweredPrompt(name, text=words)
    return UnansweredPrompt(
        name, turns or (Message(role="user", content=words),), tools=document.tools, options=document.options
    )


class Dialogue:
    """One prompt on its way: what was said, in tokens and in words, and which turns are yet to be answered."""

    def __init__(
        self, prompt: UnansweredPrompt, conditions: AnswerConditions, tokenizer: Any, template: ChatTemplate | None
    ) -> None:
        self.id, self.text, self.next_turns = prompt.id, prompt.text, prompt.turns
        self.tools, self.options = prompt.tools, prompt.options
        self.conditions, self.tokenizer, self.template = conditions, tokenizer, template
        self.messages: list[Message] = []
        self.parts: list[Regenerated] = []  # what was read and written in one piece before the present one
        self.finish: list[str] = []
        self.prompt = self.completion = self.rendered = ""
        self._begin([])

    def _begin(self, ids: list[int]) -> None:
        """Go on in tokens that the target has not read yet."""
        self.ids = ids
        self.answers: list[tuple[int, int]] = []

    def ask(self, max_context: int | None) -> bool:
        """Have the next turn's prompt in `ids`; False where no turn is left or an answer would not fit.

        Raises ValueError, naming the prompt, where the template fails on it.
        """
        if self.finish and (self.finish[-1] != "stop" or len(self.finish) == self.conditions.turns):
            return False
        try:
            ids = self._go_on() if self.template else self._begin_plain()
        except ValueError as error:
            raise ValueError(f"prompt {self.id}: {error}") from None
        if ids is None or (max_context is not None and len(ids) + self.conditions.max_tokens > max_context):
            return False
        if self.answers and ids[: len(self.ids)] != self.ids:
            self.parts.append(self._part())
            self._begin(ids)
        self.ids = ids
        return True

    def hear(self, answer: Sequence[int], finish: str, message: Message | None = None) -> None:
        """Take the target's answer to what was asked, as a `message` where a server has made one of it."""
        start = len(self.ids)
        self.ids = [*self.ids, *answer]
        self.answers.append((start, len(self.ids)))
        self.finish.append(finish)
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.template:
            self.messages.append(message or Message(role="assistant", content=text.strip()))
        else:
            self.completion = text

    def request(self) -> "Request":
        """Return what the engine is asked; chance comes from the settings' seed, the prompt's id and the turn alone."""
        from foredraft.decode.batch import Request
        from foredraft.decode.sampling import Sampling

        c = self.conditions
        sampling = Sampling(temperature=c.temperature, top_p=c.top_p, top_k=c.top_k, seed=self.seed())
        return Request(
            prompt=tuple(self.ids), max_tokens=c.max_tokens, sampling=sampling, stop_ids=frozenset(c.stop_ids)
        )

    def seed(self) -> int:
        name = f"{self.conditions.seed}\0{self.id}\0{len(self.finish)}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1

    def left_out(self) -> list[Words]:
        """Return the words before the next answer that the template leaves out."""
        return self.template.left_out_of_prompt(self.messages, self.tools, self.options) if self.template else []

    def num_answered(self) -> int:
        """Return the tokens of its answers."""
        return sum(end - start for part in [*self.parts, self._part()] for start, end in part.answers)

    def row(self) -> dict[str, Any]:
        """Return a line of chat JSONL, or of prompt and completion, with the tokens beside it."""
        last = max((i for i, turn in enumerate(self.messages) if turn.role == "assistant"), default=-1)
        beside = ({"tools": self.tools} if self.tools else {}) | (
            {"chat_template_kwargs": self.options} if self.options else {}
        )
        words = (
            {**beside, "messages": [message.turn() for message in self.messages[: last + 1]]}
            if self.template
            else {"prompt": self.prompt, "completion": self.completion}
        )
        parts = [*self.parts, self._part()]
        return {"id": self.id, **words, "regenerated": parts if len(parts) > 1 else parts[0]}

    def _part(self) -> Regenerated:
        before = sum(len(part.answers) for part in self.parts)
        return Regenerated(
            tokens=tuple(self.ids), answers=tuple(self.answers), finish=tuple(self.finish[before : before + len(self.answers)]),
            tokenizer_sha256=self.conditions.tokenizer_sha256,
        )  # fmt: skip

    def _begin_plain(self) -> list[int] | None:
        if self.finish:
            return None
        ids = self.tokenizer(self.text)["input_ids"]
        ids = ids[int(twice_begun(ids, self.tokenizer.bos_token_id)) :][: self.conditions.prompt_tokens]
        self.prompt = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids

    def _go_on(self) -> list[int] | None:
        """Return the tokens of all that comes before the next answer; None where no turn is left."""
        assert self.template is not None
        if not (turns := self._asking()):
            return None
        recorded = turns[0].role == "assistant" and bool(self.finish)
        if recorded:  # the call whose results follow, in the place of the target's answer
            self.messages.pop()
        self.messages += turns
        self.next_turns = self.next_turns[len(turns) :]
        text = self.template.prompt(self.messages, self.tools, self.options)
        new = self._since(text) if self.answers and not recorded else None
        self.rendered = text
        before = [] if new is None else self.ids
        return [*before, *self.tokenizer(text if new is None else new, add_special_tokens=False)["input_ids"]]

    def _asking(self) -> tuple[Message, ...]:
        """The next turns up to where the assistant is to speak: to the first of the user, or to the last of a call's results."""
        turns = self.next_turns
        for i, turn in enumerate(turns):
            if turn.role == "user" or (turn.role == "tool" and (i + 1 == len(turns) or turns[i + 1].role != "tool")):
                return turns[: i + 1]
        return ()

    def _since(self, text: str) -> str | None:
        """What a text has beyond the last answer and its end token; None where the template says anew what was said before."""
        words = next(words_of_turn(turn) for turn in reversed(self.messages) if turn.role == "assistant")
        answer = text[len(self.rendered) :].lstrip() if text.startswith(self.rendered) else None
        ended = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=True) == ""  # by a token that is no word
        end = self.tokenizer.decode(self.ids[-1:], skip_special_tokens=False) if ended else ""
        if answer is None or not answer.startswith(words) or not answer[len(words) :].lstrip().startswith(end):
            return None
        return answer[len(words) :].lstrip().removeprefix(end) if ended else answer[len(words) :]
