"""Conversations as text, and which of its characters the assistant said: by the tokenizer's own chat template.

Promises: an answer counts from the end of the template's generation prompt to the end of its end token, in the text that the target would
have read at that turn: where a template changes earlier turns once the talk goes on (it strips thoughts, say), a conversation becomes several
texts. A template that does not say where an answer stands is refused, never guessed at; words that it leaves out are named. Refuses to know:
tokens.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from foredraft.data.left_out import Words, left_out, marked, words_of
from foredraft.data.rows import THOUGHTS, Message
from foredraft.tokenization import template_errors

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK_IN_MACRO = re.compile(r"\{%[-+]?\s*macro\b(?:(?!\bendmacro\b).)*" + _GENERATION.pattern, re.DOTALL)
_OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
THINK, END_THINK = "<think>", "</think>"
MENDABLE = (
    "assistant tool_calls.function",
    *(f"assistant {name}" for name in THOUGHTS),
)  # what another spelling may bring into the text
PROBE = "foredraft probe"

Turn = dict[str, Any]


class Rendered(NamedTuple):
    """A text, the [start, end) of its characters to be predicted, and whether its last answer is `closed` by a token."""

    text: str
    spans: tuple[tuple[int, int], ...]
    closed: bool = False


class Rendering(NamedTuple):
    """A conversation's texts, and its words that are in none of them."""

    texts: tuple[Rendered, ...]
    left_out: tuple[Words, ...] = ()


class Talk(NamedTuple):
    """What a template is given: turns, tools, and further variables."""

    turns: list[Turn]
    tools: list[dict[str, Any]]
    options: Mapping[str, Any] = {}

    def upto(self, end: int) -> "Talk":
        return self._replace(turns=self.turns[:end])


class ChatTemplate:
    """A chat template with the special tokens it may end answers with.

    Raises ValueError where the tokenizer has none, or where it marks answers inside a macro, which transformers misplaces.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self.text = tokenizer, template or tokenizer.chat_template
        if not self.text:
            raise ValueError("the tokenizer has no chat_template; give one with --template")
        if not isinstance(self.text, str):
            raise ValueError(
                f"the tokenizer has several chat templates ({', '.join(self.text)}); give one with --template"
            )
        if _MARK_IN_MACRO.search(self.text):
            raise ValueError("the chat template has {% generation %} inside a macro; give one without with --template")
        self.marked = bool(_GENERATION.search(self.text))
        self.end_tokens = sorted(
            {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True
        )
        self.reads_parts, self.reads_words = self._reads([{"type": "text", "text": PROBE}]), self._reads(PROBE)
        self.end = self._usual_end()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Rendering:
        """Return texts and answers of a conversation up to its last answer.

        Raises ValueError where it has no answer, where the template fails on it, and where it leaves out a call that the assistant makes.
        """
        if not any(message.role == "assistant" for message in messages):
            raise ValueError("no turn of the assistant")
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        said = messages[: last + 1]  # nothing is learnt from what follows
        rendering = self._best(self._talk(said, tools, options))
        if calls := [words for words in rendering.left_out if words.kind.startswith("assistant tool_calls.function")]:
            turn = (calls[0].turn or 0) + 1
            raise ValueError(
                f"the chat template leaves out the call of turn {turn} ({calls[0].text!r}); give one that has tools with --template"
            )
        after = words_of([message.turn() for message in messages[last + 1 :]])
        unlearnt = [Words(f"{words.kind} after the last answer", words.text, words.turn) for words in after]
        unlearnt += [Words("chat_template_kwargs", name, None) for name in options or () if name not in self.text]
        weights = [message.more.get("weight") for message in said if message.role == "assistant"]
        texts = (
            _without_answers(rendering.texts, [weight == 0 for weight in weights]) if 0 in weights else rendering.texts
        )
        return rendering._replace(texts=texts, left_out=(*rendering.left_out, *unlearnt))

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text up to where the assistant is to speak."""
        return self._as_read(self._talk(messages, tools, options))

    def left_out_of_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[Words]:
        """Return the words that the text up to where the assistant is to speak lacks."""
        talk = self._talk(messages, tools, options)
        words = words_of(talk.turns, talk.tools)
        return left_out(words, self._as_read(talk), lambda: self._as_read(_marked(talk)))

    def _as_read(self, talk: Talk) -> str:
        """The prompt in the first spelling that the template takes."""
        failures = []
        for _, spelling in _spellings(talk):
            try:
                return self._apply(spelling, add_generation_prompt=True)
            except ValueError as error:
                failures.append(error)
        raise failures[0]

    def _talk(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], options: Mapping[str, Any] | None
    ) -> Talk:
        return Talk([self._turn(message) for message in messages], list(tools), options or {})

    def _turn(self, message: Message) -> Turn:
        """A turn with its words as the template reads them: parts, or one text."""
        turn, content = message.turn(), message.content
        if isinstance(content, list) and not self.reads_parts:
            turn["content"] = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and not self.reads_words and self.reads_parts:
            turn["content"] = [{"type": "text", "text": content}]
        elif content is None:
            turn["content"] = ""
        return turn

    def _best(self, talk: Talk) -> Rendering:
        """The rendering in the spelling, among those that mean the same, of which the template leaves out the least."""
        renderings, failures = [], []
        words = words_of(talk.turns, talk.tools)
        for respelt, spelling in _spellings(talk):
            try:
                texts = self._texts(spelling)
            except ValueError as error:
                failures.append(error)
                continue
            lost = left_out(words, _joined(texts), lambda: _joined(self._texts(respelt(_marked(talk)))))  # noqa: B023
            renderings.append(Rendering(texts, tuple(lost)))
            if not any(each.kind.startswith(MENDABLE) for each in lost):
                break
        if not renderings:
            raise failures[0]
        return min(renderings, key=lambda rendering: len(rendering.left_out))

    def _texts(self, talk: Talk) -> tuple[Rendered, ...]:
        """The fewest texts in which every answer stands behind what the target would have read at its turn, last answer last."""
        texts: list[Rendered] = []
        for i in reversed([i for i, turn in enumerate(talk.turns) if turn["role"] == "assistant"]):
            answer = (self._by_marks if self.marked else self._by_prefix)(talk.upto(i + 1))
            if texts and texts[-1].text.startswith(answer.text[: answer.spans[-1][1]]):
                texts[-1] = texts[-1]._replace(spans=(*answer.spans, *texts[-1].spans))
            else:
                texts.append(answer)
        return tuple(reversed(texts))

    def _by_marks(self, talk: Talk) -> Rendered:
        """The last answer is what stands in the template's own {% generation %} blocks behind all that comes before it."""
        text, blocks = self._run(talk, return_assistant_tokens_mask=True)
        before = self._apply(talk.upto(len(talk.turns) - 1), add_generation_prompt=True) if len(talk.turns) > 1 else ""
        begins = next(
            (i for i, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), min(len(text), len(before))
        )
        spans = tuple((start, end) for start, end in blocks if begins <= end and start < end)
        if not spans:
            raise ValueError(f"the chat template marks nothing of turn {len(talk.turns)} as generated")
        return Rendered(text, spans, text[slice(*spans[-1])].endswith(tuple(self.end_tokens)))

    def _by_prefix(self, talk: Talk) -> Rendered:
        """The last answer is what stands between the generation prompt and the end token."""
        *earlier, turn = talk.turns
        text = self._apply(talk)
        before = (
            self._apply(talk._replace(turns=earlier), add_generation_prompt=True) if earlier else _opening(text, turn)
        )
        if not text.startswith(before):
            text = _behind_opened_thought(text, before, talk)
        elif (thought := _thought_said(_plain(turn))) and thought.removeprefix(THINK).partition(END_THINK)[
            0
        ].strip() not in text[len(before) :]:
            text = f"{before}{thought}{text[len(before) :].lstrip()}"  # a template that shows no thought, not even of the last answer
        end, closed = self._end(text, len(before), _plain(turn).strip())
        return Rendered(text, ((len(before), end),), closed)

    def _end(self, text: str, begins: int, words: str) -> tuple[int, bool]:
        """Where an answer that `begins` there ends with its end token, and whether it has one."""
        after_thought = words.rpartition(END_THINK)[2].strip()
        place = next(
            (at + len(part) for part in (words, after_thought) if part and (at := text.find(part, begins)) >= 0), begins
        )
        tail = text[place:]
        if self.end and (at := tail.find(self.end)) >= 0:
            return place + at + len(self.end), True
        ends = [(at, -len(end)) for end in self.end_tokens if (at := tail.find(end)) >= 0]
        if ends:
            at, length = min(ends)
            return place + at - length, True
        return place + len(tail.rstrip()), False

    def _usual_end(self) -> str:
        """The special token that a plain answer ends with, "" where there is none or the template asks for more."""
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": f"{PROBE} answer"}]
        try:
            tail = self._apply(Talk(turns, [])).rpartition(f"{PROBE} answer")[2]
        except ValueError:
            return ""
        ends = [(at, -len(end), end) for end in self.end_tokens if (at := tail.find(end)) >= 0]
        return min(ends)[2] if ends else ""

    def _reads(self, content: Any) -> bool:
        """Whether the template prints the words of such content, and not its spelling."""
        try:
            text = self._apply(Talk([{"role": "user", "content": content}], []), add_generation_prompt=True)
        except ValueError:
            return False
        return PROBE in text and "'type'" not in text and '"type"' not in text

    def _apply(self, talk: Talk, add_generation_prompt: bool = False) -> str:
        return self._run(talk, add_generation_prompt=add_generation_prompt)[0]

    def _run(self, talk: Talk, **settings: bool) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where its generated blocks stand, as transformers runs templates; it keeps null contents, as apply_chat_template does not."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # annotated as giving a str
        with template_errors():
            texts, blocks = render(
                [talk.turns], tools=talk.tools or None, chat_template=self.text, **settings,
                **{**self.tokenizer.special_tokens_map, **talk.options},
            )  # fmt: skip
        return texts[0], blocks[0] if blocks else []


def _opening(text: str, turn: Turn) -> str:
    """What stands before an answer with which the conversation begins."""
    at = text.find(_plain(turn).strip())
    if at < 0:
        raise ValueError("the chat template does not keep the words of turn 1")
    return text[:at]


def _behind_opened_thought(text: str, before: str, talk: Talk) -> str:
    """A text whose generation prompt opens a thought that the template strips once it is said: what the target read and wrote.

    Raises ValueError where the answer has no thought, and where the template does not keep what comes before.
    """
    opened, turn, number = _OPENED_THOUGHT.search(before), talk.turns[-1], len(talk.turns)
    if not opened or not text.startswith(before[: opened.start()]):
        raise ValueError(
            f"the chat template does not keep the words of turn {number} in a longer conversation; "
            "mark what the assistant says with {% generation %} in --template"
        )
    rest = text[opened.start() :]
    rest = rest.partition(END_THINK)[2] if rest.lstrip().startswith(THINK) else rest
    thought = next((turn[name] for name in THOUGHTS if turn.get(name)), None)
    if thought:
        return f"{before}{thought.strip()}\n{END_THINK}\n\n{rest.lstrip()}"
    thought, mark, words = _plain(turn).lstrip().removeprefix(THINK).partition(END_THINK)
    if not mark:
        raise ValueError(
            f"the chat template opens a thought ({THINK}) before an answer, and turn {number} has none; give it one "
            f"(reasoning_content, or {THINK}…{END_THINK} before its words), or another --template"
        )
    space = words[: len(words) - len(words.lstrip())]
    return f"{before}{thought.lstrip()}{END_THINK}{space}{rest.lstrip()}"


def _thought_said(words: str) -> str:
    """What stands before an answer's words: a thought between its marks, and the space behind it; "" for none."""
    thought, mark, rest = words.lstrip().removeprefix(THINK).partition(END_THINK)
    opened = THINK if words.lstrip().startswith(THINK) else ""
    return f"{opened}{thought}{mark}{rest[: len(rest) - len(rest.lstrip())]}" if mark and thought.strip() else ""


def _plain(turn: Turn) -> str:
    """The words of a turn."""
    content = turn["content"]
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _without_answers(texts: Sequence[Rendered], unwanted: Sequence[bool]) -> tuple[Rendered, ...]:
    """Texts without the spans of answers that are not to be learnt (`weight` 0, as OpenAI's fine-tuning spells it). Raises ValueError where
    none is left, and where spans are not told apart by answer.
    """
    if sum(len(text.spans) for text in texts) != len(unwanted):
        raise ValueError("a turn of weight 0, but the template's answers are not told apart; leave the row out")
    skip = iter(unwanted)
    rest = [text._replace(spans=tuple(span for span in text.spans if not next(skip))) for text in texts]
    if not any(text.spans for text in rest):
        raise ValueError("no turn of the assistant but such of weight 0")
    return tuple(text for text in rest if text.spans)


def _joined(texts: Sequence[Rendered]) -> str:
    return "\0".join(rendered.text for rendered in texts)


def _marked(talk: Talk) -> Talk:
    turns, tools = marked(talk.turns, talk.tools)
    return talk._replace(turns=turns, tools=tools)


Spelling = Callable[[Turn], Turn]


def _spellings(talk: Talk) -> Iterator[tuple[Callable[[Talk], Talk], Talk]]:
    """Talks that mean the same, as templates want them, the plainest first, each with what makes it of any talk."""
    before: list[Talk] = []
    for chosen in sorted(product((False, True), repeat=len(_SPELLINGS)), key=sum):
        spellings = [spelling for spelling, taken in zip(_SPELLINGS, chosen, strict=True) if taken]

        def respelt(any_talk: Talk, spellings: list[Spelling] = spellings) -> Talk:
            turns = any_talk.turns
            for spelling in spellings:
                turns = [spelling(turn) for turn in turns]
            return any_talk._replace(turns=turns)

        new = respelt(talk)
        if new not in before:
            before.append(new)
            yield respelt, new


def _with_null(turn: Turn) -> Turn:
    """Calls without words have the content null, which some templates ask for."""
    return turn | {"content": None} if turn.get("tool_calls") and not turn["content"] else turn


def _with_every_thought(turn: Turn) -> Turn:
    thought = next((turn[name] for name in THOUGHTS if turn.get(name)), None)
    return turn | dict.fromkeys(THOUGHTS, thought) if thought else turn


def _with_written_arguments(turn: Turn) -> Turn:
    """Arguments as JSON in a text, as OpenAI's API gives them."""
    calls = turn.get("tool_calls")
    return turn | {"tool_calls": [_written(call) for call in calls]} if calls else turn


def _written(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return call | {"function": call["function"] | {"arguments": text}}


_SPELLINGS: tuple[Spelling, ...] = (_with_null, _with_every_thought, _with_written_arguments)
