"""Text in, text out: a tokenizer around the engine, and checkpoints into drafters.

Promises: text is given out as soon as it cannot change any more, and ends before a stop string. Refuses to know: how
tokens are decoded.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from foredraft import kinds, records
from foredraft.decode.batch import Request, Sequence
from foredraft.decode.drafters import TREE_SLOTS, drafter_for, rule_for
from foredraft.decode.engine import Engine, Schedule, budgeted
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling
from foredraft.models.decoder import Decoder
from foredraft.models.forward import context_limit
from foredraft.models.gguf_tokenizer import gguf_tokenizer
from foredraft.models.load import load
from foredraft.records import Plan, StepRecord
from foredraft.shapes import check_folder, read_config
from foredraft.shapes.gguf import GgufFile, is_gguf
from foredraft.shapes.gguf_config import generation_keys
from foredraft.tokenization import of_folder, template_errors

NODES = 64  # drafted nodes that a step may verify beyond the context
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for half a character


def load_engine(
    target: str | Path, draft: str | None = None, *, lookahead: int | Budget | Schedule = 4,
    dtype: torch.dtype = torch.float32, device: str = "cpu", max_batch: int = 8, max_context: int | None = None,
    cache_bytes: int | None = None,
) -> Engine:  # fmt: skip
    """The engine for the Hugging Face folder `target`, drafted for by "ngram", by the model in the folder `draft`, or by that behind a
    look-up: "DIR+ngram", "DIR+ngram:MIN_MATCH" or "DIR+ngram:MIN_MATCH,LOOKAHEAD"; "DIR~" or "DIR~FILE.json": of chains as many tokens as
    their confidence is worth, by what was measured of them.

    `max_context` defaults to the model's own, at most 4,096. Raises ValueError, one line, on a lookahead that does not fit
    the context, a draft no smaller than its target or one of another vocabulary.
    """
    model = load(target, dtype, device)
    return engine_on(
        model, draft, lookahead=lookahead, max_batch=max_batch, max_context=max_context, cache_bytes=cache_bytes
    )


def engine_on(
    model: Decoder, draft: str | None = None, *, lookahead: int | Budget | Schedule = 4, max_batch: int = 8,
    max_context: int | None = None, cache_bytes: int | None = None,
) -> Engine:  # fmt: skip
    """`load_engine` for a target that is loaded already, which several engines may share."""
    hard = context_limit(model.shape, model.config)  # of learned positions and sliding windows
    context = max_context or min(model.shape.max_position_embeddings or 4096, 4096)
    context = min(context, hard - NODES) if hard else context
    levels = lookahead.lookahead if isinstance(lookahead, Budget) else lookahead
    if isinstance(levels, int) and levels >= context:
        raise ValueError(f"lookahead ({levels}) must be less than the context ({context})")
    extended = 0 if callable(lookahead) else budgeted(lookahead).extended
    drafter = drafter_for(model, draft, max_batch, context + NODES + max(extended - TREE_SLOTS, 0)) if draft else None
    lookup = kinds.parted(draft)[1] if draft else None
    return Engine(
        model, drafter, lookahead=_looking_up(lookahead, lookup), max_batch=max_batch, max_context=context, max_nodes=NODES,
        cache_bytes=cache_bytes, lengths=rule_for(model, draft) if draft else None,
    )  # fmt: skip


def _looking_up(lookahead: int | Budget | Schedule, lookup: kinds.Lookup | None) -> int | Budget | Schedule:
    """The same budgets, with the positions that the look-up drafts."""
    if lookup is None:
        return lookahead
    if not callable(lookahead):
        return budgeted(lookahead)._replace(lookup=lookup.lookahead)
    return lambda running: budgeted(lookahead(running))._replace(lookup=lookup.lookahead)


def draft_folder(draft: str | None) -> str | None:
    """The folder of a draft as its words name it; None of none, and of prompt lookup alone."""
    folder = kinds.parted(draft)[0] if draft else kinds.NGRAM.name
    return None if folder == kinds.NGRAM.name else folder


def schedule_of(plan: Plan) -> Callable[[int], Budget]:
    """What the plan drafts by running sequences, chain or static tree: as for the smallest batch planned for that is no smaller, else the largest.
    Lengths follow a draft's confidence (`DIR~`) where the plan says that it is worth it.
    """
    if not plan.schedule:
        raise records.with_hint(
            ValueError("--plan: its schedule is empty"), "plan again: foredraft plan TARGET --out DIR"
        )
    steps, longest = sorted(plan.schedule, key=lambda step: step.running), max(step.lookahead for step in plan.schedule)
    verdicts = {gain.concurrency: gain.adaptive_verdict for gain in plan.lengths}

    def budget(running: int) -> Budget:
        step = next((step for step in steps if step.running >= running), steps[-1])
        if verdicts.get(step.concurrency) == "worth it" and not step.tree:
            return Budget(longest)
        return Budget(step.lookahead, tree=step.tree, fixed=verdicts.get(step.concurrency) is not None)

    return budget


def budget_of(lookahead: int, tree: str | None) -> Budget:
    """A chain of `lookahead`; the dynamic tree "TOPK,NODES" of as many levels; or the static tree of a JSON file, a list of
    [parent, rank], parents first (-1: the root).
    """
    if tree is None:
        return Budget(lookahead).check()
    if tree.endswith(".json"):
        nodes = records.decode(list[tuple[int, int]], records.read_bytes(tree), name=tree)
        if not nodes:
            raise ValueError(f"{tree}: the tree must have at least one node")
        return Budget(lookahead, tree=tuple(nodes)).check()
    topk, comma, num = tree.partition(",")
    if not (comma and topk.isdigit() and num.isdigit()):
        raise ValueError(f"tree must be TOPK,NODES (for example 4,16) or a JSON file, got {tree!r}")
    return Budget(lookahead, int(topk), int(num)).check()


class Completion:
    """One request's text as it grows. `on_text(piece, drafted)` gets what can be shown; `drafted` says whether a draft had it right."""

    def __init__(
        self, tokenizer: Any, stops: tuple[str, ...] = (), on_text: Callable[[str, bool], None] | None = None
    ) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special] if stops else []
        visible = {stop: _without(stop, special) for stop in stops}
        self.stops = tuple(stop for stop in stops if visible[stop] == stop)
        self.special_stops = {
            stop: words for stop, words in visible.items() if words != stop
        }  # each with what a text shows of it
        self.tokens: list[int] = []
        self.text, self.shown, self.stopped = "", 0, False

    def take(self, emitted: list[int]) -> None:
        """Tokens of one step: all but the last were drafted and accepted."""
        for i, token in enumerate(emitted):
            if not self.stopped:
                self._grow(token, i + 1 < len(emitted))

    def _grow(self, token: int, drafted: bool) -> None:
        self.tokens.append(token)
        self.text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        stops_at = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if self.special_stops:
            whole = self.tokenizer.decode(self.tokens, skip_special_tokens=False)
            stops_at += [max(self.text.rfind(words), 0) for stop, words in self.special_stops.items() if stop in whole]
        if stops_at:
            self.text, self.stopped = self.text[: min(stops_at)], True
        self._show(self.text if self.stopped else self._final_part(), drafted)

    def _final_part(self) -> str:
        """The text less what the next token may still change: half a character, or the beginning of a stop string."""
        text = self.text.rstrip(UNFINISHED)
        begun = [stop[:n] for stop in self.stops for n in range(1, len(stop))]
        begun += [words[:n] for words in self.special_stops.values() for n in range(1, len(words) + 1)]
        partial_stop = max((len(part) for part in begun if text.endswith(part)), default=0)
        return text[: len(text) - partial_stop]

    def finish(self) -> str:
        """All of the text, shown to its end."""
        self._show(self.text, False)
        return self.text

    def _show(self, text: str, drafted: bool) -> None:
        if self.on_text and len(text) > self.shown:
            self.on_text(text[self.shown :], drafted)
        self.shown = max(self.shown, len(text))


def _without(stop: str, special: list[str]) -> str:
    """A stop string without its special tokens, of which texts show nothing."""
    for token in special:
        stop = stop.replace(token, "")
    return stop


def stop_ids(target: str | Path, tokenizer: Any) -> frozenset[int]:
    """The end-of-text ids of a folder: of generation_config.json, config.json (its text_config too) and the tokenizer; of a GGUF file."""
    ids = [tokenizer.eos_token_id]
    for keys in _token_keys(Path(target)):
        inner = keys.get("text_config")
        for part in (keys, inner if isinstance(inner, dict) else {}):
            stated = part.get("eos_token_id")
            listed = stated if isinstance(stated, list) else [stated]
            if not all(i is None or type(i) is int for i in listed):
                raise ValueError(f"{target}: eos_token_id must be a whole number or a list of them, got {stated!r:.80}")
            ids += listed
    return frozenset(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def generate(
    engine: Engine, tokenizer: Any, prompts: Iterable[str | list[int]], *, max_tokens: int = 256, sampling: Sampling | None = None,
    ends: frozenset[int] = frozenset(), stops: tuple[str, ...] = (), chat: bool = False,
    on_text: Callable[[int, str, bool], None] | None = None, on_step: Callable[[StepRecord], object] | None = None,
) -> list[tuple[Completion, Sequence]]:  # fmt: skip
    """Answer `prompts`, words or token ids, together; `on_text(index, piece, drafted)` streams, `on_step` counts. Answers hold texts, sequences
    counts.
    """
    completions = []
    for index, prompt in enumerate(prompts):
        show = None if on_text is None else lambda piece, drafted, index=index: on_text(index, piece, drafted)
        answer = Completion(tokenizer, stops, show)
        request = Request(
            prompt=tuple(encode(tokenizer, prompt, chat) if isinstance(prompt, str) else prompt),
            max_tokens=max_tokens,
            sampling=sampling or Sampling(),
            stop_ids=ends,
        )
        completions.append((answer, engine.add(request, answer.take)))
    for step in engine.run():
        if on_step:
            on_step(step)
        for answer, sequence in completions:
            if answer.stopped and not sequence.finish:
                sequence.finish = "stop"
                engine.cancel(sequence)
    for answer, _ in completions:
        answer.finish()
    return completions


def encode(
    tokenizer: Any, prompt: str, chat: bool, before: Iterable[Mapping[str, Any]] = (), tools: Iterable[Mapping[str, Any]] = ()
) -> list[int]:  # fmt: skip
    """Token ids of a prompt, as a user's turn where `chat`, behind the turns `before` it; else with the beginning token once."""
    if not chat:
        ids = tokenizer(prompt)["input_ids"]
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else ids
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat_template; pass --chat never")
    with template_errors():
        text = tokenizer.apply_chat_template(
            [*before, {"role": "user", "content": prompt}],
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=True,
        )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _token_keys(target: Path) -> list[dict[str, Any]]:
    if is_gguf(target):
        return [generation_keys(GgufFile(target))]
    return [
        read_config(file) for name in ("generation_config.json", "config.json") if (file := target / name).is_file()
    ]


def tokenizer_of(target: str | Path) -> Any:
    """The tokenizer in a model's folder or GGUF file; Python that the folder brings is never run."""
    check_folder(target, weights=False, tokenizer=True)
    if is_gguf(target):
        return gguf_tokenizer(target)
    return of_folder(target)


def report(prompt: str, answer: Completion, sequence: Sequence) -> dict[str, Any]:
    """One answer for scripts."""
    return {
        "prompt": prompt, "text": answer.text, "tokens": sequence.answer, "finish": sequence.finish, "steps": sequence.steps,
        "tokens_per_step": len(sequence.answer) / sequence.steps, "accepted_per_step": sequence.accepted_at,
    }  # fmt: skip


def summary(steps: list[StepRecord]) -> str:
    """What the steps counted, in one line."""
    rows, emitted = sum(len(s.emitted) for s in steps), sum(sum(s.emitted) for s in steps)
    drafted, accepted = sum(sum(s.drafted) for s in steps), sum(sum(s.accepted) for s in steps)
    draft_s, target_s, other_s = (sum(getattr(s, name) for s in steps) for name in ("draft_s", "target_s", "other_s"))
    total = draft_s + target_s + other_s
    return (
        f"{emitted} tokens in {rows} sequence steps: {emitted / rows:.2f} tokens per step; {accepted} of {drafted} drafted accepted; "
        f"{emitted / total:.1f} tokens/s (draft {draft_s / total:.0%}, target {target_s / total:.0%}, other {other_s / total:.0%})"
    )
