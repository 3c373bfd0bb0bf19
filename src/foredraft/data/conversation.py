"""Prompts as people ask them, and talks that go on: words into the tokens that a target is asked.

Promises: what is asked at a turn is what a server of the target would ask: the whole talk in the chat template, or the words as they stand.
Refuses to know: who answers.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.data import files
from foredraft.data.chat import ChatTemplate
from foredraft.data.rows import Document, Message, words_of_turn
from foredraft.data.sources import Skips, origins, read


class ChatQuestion(NamedTuple):
    """What is asked: `turns` in order, each to be answered, behind `history`, with `tools` and `options` for the template. `form`: "chat",
    "raw" or, where nobody says, None.
    """

    where: str
    turns: tuple[Message, ...]
    history: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    options: Mapping[str, Any] = {}
    form: str | None = None

    def as_chat(self, tokenizer: Any, chat: str) -> bool:
        """Whether the chat template goes around it where `chat` is auto, always or never. Raises ValueError where it must and cannot."""
        if chat == "never" or (chat == "auto" and self.form == "raw"):
            return False
        if not tokenizer.chat_template and (chat == "always" or self.form == "chat" or self.history or self.tools):
            raise ValueError(
                f"{self.where}: a chat, but the tokenizer has no chat_template; pass --chat never to ask its words as they stand"
            )
        return bool(tokenizer.chat_template)


def asked(path: str | Path, skips: Skips) -> list[ChatQuestion]:
    """Return what a file asks: of JSON rows (see `rows`) the turns of Spec-Bench, else the last turn of the user behind all before it; of any
    other file a prompt a line. Broken rows go to `skips`. Raises ValueError where nothing is asked.
    """
    path = Path(path)
    if files.ending(path) in (None, *files.TEXTS):
        from foredraft.published.opened import utf8_of

        lines = enumerate(utf8_of(path).decode().split("\n"), 1)
        questions = [question_of(line.removesuffix("\r"), f"{path}:{number}") for number, line in lines if line.strip()]
    else:
        documents = [document for origin in origins([str(path)]) for document in read(origin, "prompts", skips)]
        questions = [question for document in documents if (question := _asked(document, skips))]
    if not questions:
        raise ValueError(f"{path}: no prompts in the file" + (f" ({skips.count} rows skipped)" if skips.count else ""))
    return questions


def question_of(words: str, where: str = "prompt") -> ChatQuestion:
    """Return the question of a user who says no more."""
    return ChatQuestion(where, (Message(role="user", content=words),))


def _asked(document: Document, skips: Skips) -> ChatQuestion | None:
    turns = document.messages or (Message(role="user", content=document.text),)
    beside = ChatQuestion(document.where, (), (), document.tools, document.options, document.form)
    said = next(
        (i for i, turn in enumerate(turns) if turn.role == "user"), len(turns)
    )  # what comes before is the system's
    if said < len(turns) and all(turn.role == "user" for turn in turns[said:]):
        return beside._replace(turns=turns[said:], history=turns[:said])
    last = max((i for i, turn in enumerate(turns) if turn.role in ("user", "tool")), default=None)
    if last is None:
        skips(f"{document.where}: no turn of the user")
        return None
    return beside._replace(turns=turns[last : last + 1], history=turns[:last])


class Conversation:
    """A talk with a target: `messages` so far; each turn of the user becomes the tokens that are asked. Without a template, words as they stand."""

    def __init__(
        self, tokenizer: Any, template: ChatTemplate | None, history: Sequence[Message] = (), tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.template = tokenizer, template
        self.messages, self.tools, self.options = list(history), tuple(tools), options

    def ask(self, turn: Message) -> list[int]:
        """Take a turn of the user; return the token ids of all up to where the assistant is to speak."""
        if self.template is None:
            from foredraft import text

            return text.encode(self.tokenizer, words_of_turn(turn), False)
        self.messages.append(turn)
        prompt = self.template.prompt(self.messages, self.tools, self.options)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def hear(self, answer: str) -> None:
        """Take what the target answered."""
        self.messages.append(Message(role="assistant", content=answer.strip()))

    def forget(self) -> None:
        """Take the last turn of the user back, which got no answer."""
        self.messages.pop()


def conversations(
    questions: Sequence[ChatQuestion], tokenizer: Any, chat: str, system: str | None = None
) -> list[Conversation]:
    """Return a talk for each question, none of them asked yet. `chat`: auto, always or never; `system`: said first, where nothing else is."""
    template = ChatTemplate(tokenizer) if tokenizer.chat_template and chat != "never" else None
    talks = []
    for question in questions:
        in_chat = question.as_chat(tokenizer, chat)
        if system is not None and not in_chat:
            raise ValueError(f"--system: {question.where} is asked as it stands, without a chat template")
        first = () if system is None else (Message(role="system", content=system),)
        if first and question.history and question.history[0].role == "system":
            first = ()
        talks.append(
            Conversation(
                tokenizer, template if in_chat else None, (*first, *question.history), question.tools, question.options
            )
        )
    return talks


def answer_turns(
    questions: Sequence[ChatQuestion], talks: Sequence[Conversation], answer: Callable[[list[list[int]]], list[str]]
) -> list[tuple[int, int]]:
    """Ask the first turn of all questions, then the second of those that have one in a chat, and so on; `answer` gives the answers to token
    ids that are asked together. Return question and turn of each that was asked, in that order.
    """
    order: list[tuple[int, int]] = []
    for turn in range(max(len(question.turns) for question in questions)):
        chosen = [
            i
            for i, (question, talk) in enumerate(zip(questions, talks, strict=True))
            if turn < (len(question.turns) if talk.template else 1)
        ]
        if not chosen:
            break
        answers = answer([talks[i].ask(questions[i].turns[turn]) for i in chosen])
        for i, words in zip(chosen, answers, strict=True):
            talks[i].hear(words)
        order += [(i, turn) for i in chosen]
    return order
