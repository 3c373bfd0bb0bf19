"""Conversations as text, and which of its characters the assistant said: by the tokenizer's own chat template.

Promises: an answer counts from the end of the template's generation prompt to the end of its end token, and nothing
else counts; a template that does not say where an answer stands is refused, never guessed at. Refuses to know:
tokens.
"""

import re
from typing import Any, NamedTuple

from foredraft.data.sources import Message

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters, which no text may hold
_MARKS = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_MACRO = "{% macro foredraft_said() %}{{ '" + OPEN + "' }}{{ caller() }}{{ '" + CLOSE + "' }}{% endmacro %}"


class Rendered(NamedTuple):
    """A conversation's text and the [start, end) of its characters to be predicted. `closed`: the last answer ends
    with a token of its own.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    closed: bool = False


class End(NamedTuple):
    """Where an answer ends in the text, and the special token that it ends with, "" for none."""

    at: int
    token: str


class Template:
    """A chat template with the special tokens it may end answers with. Raises ValueError where the tokenizer has none."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self.text = tokenizer, template or tokenizer.chat_template
        if not self.text:
            raise ValueError("the tokenizer has no chat_template; give one with --template")
        if not isinstance(self.text, str):
            raise ValueError(
                f"the tokenizer has several chat templates ({', '.join(self.text)}); give one with --template"
            )
        self.marked = marked(self.text)
        self.ends = sorted(
            {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True
        )

    def render(self, messages: tuple[Message, ...]) -> Rendered:
        """Text and answers of a conversation up to its last answer. Raises ValueError where it has no answer, or the template fails on it."""
        if not any(message.role == "assistant" for message in messages):
            raise ValueError("no turn of the assistant")
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        messages = messages[: last + 1]  # nothing is learnt from what follows
        if any(mark in message.content for message in messages for mark in (OPEN, CLOSE)):
            raise ValueError("holds a Unicode noncharacter (U+FDD0 or U+FDD1)")
        return self._by_marks(messages) if self.marked else self._by_prefixes(messages)

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The text up to where the assistant is to speak."""
        return self._apply(messages, self.text, True)

    def _apply(self, messages: tuple[Message, ...], template: str, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        said = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                said, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template fails: {error}") from None

    def _by_marks(self, messages: tuple[Message, ...]) -> Rendered:
        """Answers are what stands between the template's own {% generation %} marks."""
        assert self.marked is not None
        pieces = re.split(f"([{OPEN}{CLOSE}])", self._apply(messages, self.marked))
        text, spans, start = "", [], 0
        for piece in pieces:
            if piece == OPEN:
                start = len(text)
            elif piece == CLOSE:
                spans.append((start, len(text)))
            else:
                text += piece
        spans = [span for span in spans if span[0] < span[1]]
        if not spans:
            raise ValueError("the chat template marks nothing as generated in it")
        return Rendered(text, tuple(spans), text[slice(*spans[-1])].endswith(tuple(self.ends)))

    def _by_prefixes(self, messages: tuple[Message, ...]) -> Rendered:
        """Answers are found by rendering the conversation up to each of them, and by their words; the last one first,
        since it shows which end token answers have.
        """
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        text = self._apply(messages, self.text)
        spans: list[tuple[int, int]] = []
        token = ""
        for i in reversed(answers):
            before = self._apply(messages[:i], self.text, True) if i else self._opening(text, messages[0])
            found = self._end(text, before, messages[: i + 1], token if spans else None)
            token = token if spans else found.token
            spans.append((len(before), found.at))
        return Rendered(text, tuple(reversed(spans)), bool(token))

    def _opening(self, text: str, message: Message) -> str:
        """What stands before an answer with which the conversation begins."""
        at = text.find(message.content.strip())
        if at < 0:
            raise ValueError("the chat template does not keep the words of turn 1")
        return text[:at]

    def _end(self, text: str, before: str, messages: tuple[Message, ...], token: str | None) -> End:
        """Where an answer, the last of `messages`, ends with its end token: `token`, or any where that is None."""
        words = messages[-1].content.strip()
        at = text.find(words, len(before)) if text.startswith(before) else -1
        said = at + len(words)
        if token and at >= 0 and (rest := text[said:]).lstrip().startswith(token):
            return End(said + rest.index(token) + len(token), token)
        after = text if token is None else self._apply(messages, self.text)
        if not text.startswith(before) or not text.startswith(after):
            raise ValueError(
                f"the chat template does not keep the words of turn {len(messages)} in a longer conversation; "
                "mark what the assistant says with {% generation %} in --template"
            )
        said = said if at >= 0 and said <= len(after) else len(before)
        rest = after[said:]
        ends = [(place, -len(end), end) for end in self.ends if (place := rest.find(end)) >= 0]
        if ends:
            place, _, end = min(ends)
            return End(said + place + len(end), end)
        return End(said + len(rest.rstrip()), "")


def marked(template: str) -> str | None:
    """The template with its {% generation %} blocks as calls that print marks around them; None where it has none.

    Both are blocks to jinja, so that what it trims around them is trimmed as ever.
    """
    if not _MARKS.search(template):
        return None
    called = _MARKS.sub(lambda m: f"{m[1]}{'endcall' if m[2] else 'call foredraft_said()'}{m[3]}", template)
    return _MACRO + ("\n" if called.startswith("\n") else "") + called
