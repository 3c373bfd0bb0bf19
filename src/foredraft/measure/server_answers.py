"""A running server answers prompts, and its answers become training data: the way for targets that only a server holds.

Promises: whatever the engine behind an OpenAI API, an answer is taken only where the server's counts of its tokens and of the prompt's are
those of the tokenizer and template at hand, or where the server tells the very ids; what was answered already is not asked again. Refuses to
know: which engine answers.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from foredraft import records
from foredraft.data import tokenizer as tokenizers
from foredraft.data.chat import ChatTemplate
from foredraft.data.dialogue import AnswerConditions, Dialogue, RegenerateSettings, UnansweredPrompt
from foredraft.data.regenerate import Progress, Regeneration, append, fits, prompts_sha256, reopened
from foredraft.data.remarks import Remarks
from foredraft.data.rows import Message, message_of
from foredraft.data.sources import Skips
from foredraft.serving.endpoint_http import Address, Connections, NotJson, Refused

MODELS, CHAT, COMPLETIONS = "/v1/models", "/v1/chat/completions", "/v1/completions"
ASKED_TOO_MUCH = (400, 422)  # what a server says that knows no more than OpenAI's own parameters


class ServedTokens(NamedTuple):
    """What a server says of an answer: its ids and the prompt's where it tells them, else None, and how many they are."""

    prompt: list[int] | None
    answer: list[int] | None
    num_prompt: int
    num_answer: int


def regenerate_served(
    prompts: list[UnansweredPrompt], address: Address, folder: str | Path, out: str | Path, settings: RegenerateSettings, *,
    model: str | None = None, skips: Skips | None = None, remarks: Remarks | None = None, progress: Progress | None = None,
) -> Regeneration:  # fmt: skip
    """Have the server at `address` answer `prompts`, `settings.batch` at once, a line of `out` each, in the tokens of the tokenizer in `folder`.

    What `out` holds already is not asked again. Raises ValueError where no server answers or it serves no such model, where `out` was begun
    under other conditions, and, unless skipped, on a prompt that the server or the template refuses and on counts that differ.
    """
    out, skips, remarks = Path(out), skips or Skips("stop"), remarks or Remarks()
    from foredraft import text

    with records.reserved(out):
        tokenizer = tokenizers.load(folder)
        template = None if settings.plain else ChatTemplate(tokenizer)
        name = asyncio.run(_model_name(address, model))
        conditions = AnswerConditions(**msgspec.structs.asdict(settings) | {
            "target_sha256": f"{name} at a server", "tokenizer_sha256": tokenizers.sha256(folder), "prompts_sha256": prompts_sha256(prompts),
            "template_sha256": hashlib.sha256(template.text.encode()).hexdigest() if template else None, "lookahead": 0,
            "stop_ids": tuple(sorted(text.stop_ids(folder, tokenizer))),
        })  # fmt: skip
        done_ids = reopened(out, conditions)
        dialogues = (
            Dialogue(prompt, conditions, tokenizer, template) for prompt in prompts if prompt.id not in done_ids
        )
        run = _Run(address, name, folder, out, skips, remarks)
        asyncio.run(
            run.answer(
                dialogues,
                settings.batch,
                lambda rows: progress and progress("answering", len(done_ids) + rows, len(prompts)),
            )
        )
        return Regeneration(run.written, len(done_ids), run.tokens, [])


async def _model_name(address: Address, model: str | None) -> str:
    async with Connections(address) as connections:
        listing = await connections.get_json(MODELS)
    cards = listing.get("data") if isinstance(listing, dict) else None
    names = [str(card.get("id")) for card in cards or [] if isinstance(card, dict)]
    if not names:
        raise ValueError(f"{address}{MODELS}: lists no model; is this a server of the OpenAI API?")
    if model is not None and model not in names:
        raise ValueError(f"{address}: serves no model {model!r}, but {', '.join(names)}; pass one of them as --model")
    return model or names[0]


class _Run:
    """The rows that a server's answers become."""

    def __init__(
        self, address: Address, model: str, folder: str | Path, out: Path, skips: Skips, remarks: Remarks
    ) -> None:
        self.address, self.model, self.folder, self.out = address, model, folder, out
        self.skips, self.remarks = skips, remarks
        self.written = self.tokens = 0
        self.extras: dict[str, Any] = {"return_token_ids": True}  # which vLLM knows

    async def answer(self, dialogues: Iterator[Dialogue], at_once: int, on_row: Any) -> None:
        with self.out.open("ab") as file:

            async def client(connections: Connections) -> None:
                for dialogue in dialogues:
                    if fits(dialogue, dialogue.conditions.context, self.skips, self.remarks) and await self._answered(
                        connections, dialogue
                    ):
                        append(file, dialogue.row(), self.out)
                        self.written, self.tokens = self.written + 1, self.tokens + dialogue.num_answered()
                        on_row(self.written)

            async with Connections(self.address) as connections:
                clients = [asyncio.create_task(client(connections)) for _ in range(at_once)]
                try:
                    await asyncio.gather(*clients)
                finally:
                    for task in clients:
                        task.cancel()
                    await asyncio.gather(*clients, return_exceptions=True)

    async def _answered(self, connections: Connections, dialogue: Dialogue) -> bool:
        """Have every turn answered; where that cannot be, tell `skips`."""
        try:
            while True:
                await self._turn(connections, dialogue)
                if not dialogue.ask(dialogue.conditions.context):
                    return True
        except (Refused, _Mismatch) as error:
            self.skips(f"prompt {dialogue.id}: {error}")
            return False

    async def _turn(self, connections: Connections, dialogue: Dialogue) -> None:
        reply = await self._post(connections, *_request(dialogue, self.model))
        choice, served = _choice(reply), _served(reply)
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        message, answer = _message_and_ids(dialogue, choice, finish)
        prompt = served.prompt or dialogue.ids
        answer = served.answer or answer
        counts, ours = (served.num_prompt, served.num_answer), (len(dialogue.ids), len(answer))
        if prompt != dialogue.ids or counts[0] != ours[0] or counts[1] not in (ours[1], ours[1] - (finish == "stop")):
            raise _Mismatch(
                f"the server counts {counts[0]} tokens of the prompt and {counts[1]} of its answer, the tokenizer and template in {self.folder} "
                f"{ours[0]} and {ours[1]}; is it the target's folder, and is its template the server's?"
            )
        dialogue.hear(answer, finish, message)

    async def _post(self, connections: Connections, path: str, body: dict[str, Any]) -> Any:
        extras = self.extras  # another client may learn meanwhile that the server refuses them
        try:
            async with connections.ask(path, body | extras) as reply:
                data = await reply.body()
        except Refused as error:
            if not extras or error.status not in ASKED_TOO_MUCH:
                raise
            async with connections.ask(path, body) as reply:
                data = await reply.body()
            self.extras = {}  # what was refused was that alone
        try:
            return records.parse_loosely(data)
        except ValueError:
            raise NotJson(f"{self.address}{path}: the answer is no JSON; is this a server of the OpenAI API?") from None


class _Mismatch(ValueError):
    """A server's answer that the tokenizer and template at hand would not read as it did."""


def _request(dialogue: Dialogue, model: str) -> tuple[str, dict[str, Any]]:
    """Path and JSON of the next turn."""
    c = dialogue.conditions
    body: dict[str, Any] = {
        "model": model, "max_tokens": c.max_tokens, "temperature": c.temperature, "top_p": c.top_p, "seed": dialogue.seed() % 2**31,
    }  # fmt: skip
    body |= {"top_k": c.top_k} if c.top_k else {}
    if dialogue.template is None:
        return COMPLETIONS, body | {"prompt": dialogue.ids}
    body |= {"messages": [message.turn() for message in dialogue.messages]}
    body |= {"tools": list(dialogue.tools)} if dialogue.tools else {}
    return CHAT, body | ({"chat_template_kwargs": dict(dialogue.options)} if dialogue.options else {})


def _choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise _Mismatch("the server's reply has no choice")
    return choices[0]


def _served(reply: dict[str, Any]) -> ServedTokens:
    """What a reply says of tokens. Raises _Mismatch where it does not count them."""
    usage, choice = reply.get("usage"), _choice(reply)
    num_prompt, num_answer = (
        (usage if isinstance(usage, dict) else {}).get(name) for name in ("prompt_tokens", "completion_tokens")
    )
    if not (isinstance(num_prompt, int) and isinstance(num_answer, int)):
        raise _Mismatch(
            "the server does not count tokens (usage), so that its answer cannot be checked against the tokenizer"
        )
    prompt, answer = reply.get("prompt_token_ids") or choice.get("prompt_token_ids"), choice.get("token_ids")
    return ServedTokens(_ids(prompt), _ids(answer), num_prompt, num_answer)


def _ids(value: Any) -> list[int] | None:
    return value if isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value) else None


def _message_and_ids(dialogue: Dialogue, choice: dict[str, Any], finish: str) -> tuple[Message | None, list[int]]:
    """An answer as a turn, and in our tokens: those that the template gives it, or those of its words where it was cut off."""
    tokenizer, template = dialogue.tokenizer, dialogue.template
    if template is None:
        ids = tokenizer(str(choice.get("text") or ""), add_special_tokens=False)["input_ids"]
        return None, [*ids, *([tokenizer.eos_token_id] if finish == "stop" else [])]
    turn = choice.get("message")
    try:
        message, _ = message_of({**(turn if isinstance(turn, dict) else {}), "role": "assistant"})
        rendered = template.render([*dialogue.messages, message], dialogue.tools, dialogue.options).texts[-1]
    except ValueError as error:
        raise _Mismatch(f"the server's answer is none that the template takes: {error}") from None
    end = rendered.spans[-1][1]
    ids = tokenizer(rendered.text[:end], add_special_tokens=False)["input_ids"]
    if finish == "length" and rendered.closed:
        ids = ids[:-1]
    if ids[: len(dialogue.ids)] != dialogue.ids:
        raise _Mismatch("the server's answer does not stand behind the prompt in the template's text")
    return message, ids[len(dialogue.ids) :]
