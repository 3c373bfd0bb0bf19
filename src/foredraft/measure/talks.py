"""Later turns of chats: what is asked behind the target's own plain answers to earlier ones, which nobody times.

Refuses to know: drafts, clocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from foredraft import text
from foredraft.data.conversation import ChatQuestion, Conversation, answer_turns, conversations, question_of
from foredraft.data.prompts import TURN, Prompt
from foredraft.data.sources import Skips
from foredraft.decode.sampling import Sampling
from foredraft.measure.settings import MeasureSettings
from foredraft.models.decoder import Decoder


class AskedTurn(NamedTuple):
    """The token ids of turn `turn` (from 0) of question number `question`."""

    question: int
    turn: int
    ids: list[int]


def asked_turns(
    model: Decoder, questions: Sequence[ChatQuestion], talks: Sequence[Conversation], settings: MeasureSettings, ends: frozenset[int],
) -> list[AskedTurn]:  # fmt: skip
    """Return every turn, first turns first; what later ones stand behind, `model` says plainly, up to an end token."""
    left = max(len(question.turns) if talk.template else 1 for question, talk in zip(questions, talks, strict=True))
    ids: list[list[int]] = []

    def answer(prompts: list[list[int]]) -> list[str]:
        nonlocal left
        ids.extend(prompts)
        left -= 1
        if not left:  # nobody asks further
            return [""] * len(prompts)
        context = max(map(len, prompts)) + settings.max_tokens
        engine = text.engine_on(model, max_batch=min(settings.together, len(prompts)), max_context=context)
        sampling = Sampling(temperature=settings.temperatures[0], seed=settings.seed)
        answers = text.generate(
            engine, talks[0].tokenizer, prompts, max_tokens=settings.max_tokens, sampling=sampling, ends=ends
        )
        return [completion.text for completion, _ in answers]

    order = answer_turns(questions, talks, answer)
    return [AskedTurn(question, turn, prompt) for (question, turn), prompt in zip(order, ids, strict=True)]


def with_later_turns(
    model: Decoder, prompts: Sequence[Prompt], tokenizer: object, settings: MeasureSettings, ends: frozenset[int], longest: int | None,
    skips: Skips,
) -> list[Prompt]:  # fmt: skip
    """Return prompts with the later turns of their chats, each a prompt of its own; those that do not fit go to `skips`."""
    chats = [prompt for prompt in prompts if prompt.later]
    if not chats:
        return list(prompts)
    questions = [
        ChatQuestion(chat.where, tuple(question_of(words).turns[0] for words in (chat.words, *chat.later)))
        for chat in chats
    ]
    turns = asked_turns(model, questions, conversations(questions, tokenizer, "always"), settings, ends)
    later = []
    for number, turn, ids in turns:
        where = f"{chats[number].where}{TURN}{turn + 1}"
        if turn and longest is not None and len(ids) + settings.max_tokens > longest:
            skips(f"{where}: {len(ids)} tokens and max_tokens ({settings.max_tokens}) exceed the context of {longest}")
        elif turn:
            later.append(Prompt(where=where, category=chats[number].category, ids=tuple(ids)))
    return [*prompts, *later]
