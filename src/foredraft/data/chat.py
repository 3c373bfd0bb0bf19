"""Conversations as text, and which of its characters the assistant said: by the tokenizer's own chat template.

Promises: an answer counts from the end of the template's generation prompt to the end of its end token, and nothing
else counts; a template that does not say where an answer stands is refused, never guessed at. Refuses to know:
tokens.
"""

import re
from typing import Any, NamedTuple

from foredraft.data.sources import Message
from foredraft.tokenization import template_errors

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK_IN_MACRO = re.compile(r"\{%[-+]?\s*macro\b(?:(?!\bendmacro\b).)*" + _MARK.pattern, re.DOTALL)


class Rendered(NamedTuple):
    """A conversation's text, the [start, end) of its characters to be predicted, and whether its last answer is `closed` by a token."""

    text: str
    spans: tuple[tuple[int, int], ...]
    closed: bool = False


class AnswerEnd(NamedTuple):
    """Where an answer ends in the text, and the special token that it ends with, "" for none."""

    at: int
    token: str


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
        self.marked = bool(_MARK.search(self.text))
        self.end_tokens = sorted(
            {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True
        )

    def render(self, messages: tuple[Message, ...]) -> Rendered:
        """Return text and answers of a conversation up to its last answer.

        Raises ValueError where it has no answer, or where the template fails on it.
        """
        if not any(message.role == "assistant" for message in messages):
            raise ValueError("no turn of the assistant")
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        messages = messages[: last + 1]  # nothing is learnt from what follows
        return self._by_marks(messages) if self.marked else self._by_prefixes(messages)

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """Return the text up to where the assistant is to speak."""
        return self._apply(messages, add_generation_prompt=True)

    def _apply(self, messages: tuple[Message, ...], add_generation_prompt: bool = False) -> str:
        with template_errors():
            return self.tokenizer.apply_chat_template(
                _turns(messages), chat_template=self.text, tokenize=False, add_generation_prompt=add_generation_prompt
            )

    def _by_marks(self, messages: tuple[Message, ...]) -> Rendered:
        """Answers are what stands in the template's own {% generation %} blocks, as transformers' assistant mask has it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # annotated as giving a str
        with template_errors():
            (text,), (blocks,) = render(
                [_turns(messages)], chat_template=self.text, return_assistant_tokens_mask=True, **self.tokenizer.special_tokens_map
            )  # fmt: skip
        spans = tuple((start, end) for start, end in blocks if start < end)
        if not spans:
            raise ValueError("the chat template marks nothing as generated in it")
        return Rendered(text, spans, text[slice(*spans[-1])].endswith(tuple(self.end_tokens)))

    def _by_prefixes(self, messages: tuple[Message, ...]) -> Rendered:
        """Answers are found by rendering the conversation up to each and by their words, the last (which shows their end token) first."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        text = self._apply(messages)
        spans: list[tuple[int, int]] = []
        token = ""
        for i in reversed(answers):
            before = self.prompt(messages[:i]) if i else self._opening(text, messages[0])
            end = self._end(text, before, messages[: i + 1], token if spans else None)
            token = token if spans else end.token
            spans.append((len(before), end.at))
        return Rendered(text, tuple(reversed(spans)), bool(token))

    def _opening(self, text: str, message: Message) -> str:
        """Return what stands before an answer with which the conversation begins."""
        at = text.find(message.content.strip())
        if at < 0:
            raise ValueError("the chat template does not keep the words of turn 1")
        return text[:at]

    def _end(self, text: str, before: str, messages: tuple[Message, ...], token: str | None) -> AnswerEnd:
        """Return where an answer, the last of `messages`, ends with its end token: `token`, or any where that is None."""
        words = messages[-1].content.strip()
        at = text.find(words, len(before)) if text.startswith(before) else -1
        words_end = at + len(words)
        if token and at >= 0 and (tail := text[words_end:]).lstrip().startswith(token):
            return AnswerEnd(words_end + tail.index(token) + len(token), token)
        after = text if token is None else self._apply(messages)
        if not text.startswith(before) or not text.startswith(after):
            raise ValueError(
                f"the chat template does not keep the words of turn {len(messages)} in a longer conversation; "
                "mark what the assistant says with {% generation %} in --template"
            )
        words_end = words_end if at >= 0 and words_end <= len(after) else len(before)
        tail = after[words_end:]
        ends = [(place, -len(end), end) for end in self.end_tokens if (place := tail.find(end)) >= 0]
        if ends:
            place, _, end = min(ends)
            return AnswerEnd(words_end + place + len(end), end)
        return AnswerEnd(words_end + len(tail.rstrip()), "")


def _turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
