"""A proposer for vLLM (`custom_class`, as 0.32 has it) that drafts what the target is known to answer, and errs as often as is asked.

Promises: P(at least i drafted tokens accepted) is `survival[i-1]` of settings.json for greedy requests whose answer is known, whatever the
engine's text, which it cannot change; an answer that is not in answers.jsonl is learnt as it is written, and known from its second asking
on. Refuses to know: how acceptance is predicted. Runs where vLLM is, out of a folder of its own: standard library and numpy only.
"""

import contextlib
import json
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SETTINGS, ANSWERS, COUNTS = "settings.json", "answers.jsonl", "counts.json"
COUNT_S = 1.0  # between two writings of counts.json
VARIANTS = 8  # answers remembered of one prompt, whose text near-ties change from batch to batch

Ids = NDArray[np.int32]


class Settings(NamedTuple):
    """`survival` by position; `lookaheads`: [first, last, drafted tokens] by requests in a step; `draft_s`: [requests, seconds] of a pass."""

    survival: Sequence[float]
    lookaheads: Sequence[Sequence[int]]
    draft_s: Sequence[Sequence[float]] = ()
    seed: int = 0

    def lookahead(self, requests: int) -> int:
        """Drafted tokens in a step of so many; beyond the last range its own."""
        return next((k for _, last, k in self.lookaheads if requests <= last), self.lookaheads[-1][2])

    def seconds(self, requests: int) -> float:
        """What a step's passes cost; between two points on a straight line, beyond them the nearest."""
        if not self.draft_s:
            return 0.0
        at, seconds = zip(*self.draft_s, strict=True)
        return self.lookahead(requests) * float(np.interp(requests, at, seconds))


class Answers:
    """Sequences (prompt and answer) by their prompts."""

    def __init__(self) -> None:
        self.by_prompt: dict[bytes, list[Ids]] = {}
        self.lengths: list[int] = []  # of the prompts, longest first
        self.of_row: dict[int, Ids] = {}

    def add(self, ids: Sequence[int] | Ids, prompt_len: int) -> Ids:
        sequence = np.array(ids, dtype=np.int32)
        variants = self.by_prompt.setdefault(sequence[:prompt_len].tobytes(), [])
        variants.insert(0, sequence)
        del variants[VARIANTS:]
        if prompt_len not in self.lengths:
            self.lengths = sorted([*self.lengths, prompt_len], reverse=True)
        return sequence

    def following(self, row: int, context: Ids, longest: int, num_new: int) -> Ids:
        """What is known to follow, at most `longest` tokens. An unknown context, `num_new` tokens of which are new, is learnt.

        `row`: of the batch, where the sequence of the step before is looked for first.
        """
        sequence = self.of_row.get(row)
        if sequence is None or not _begins(sequence, context):
            sequence = self._known(context)
        if sequence is None:
            sequence = self._learn(context, num_new)
        self.of_row[row] = sequence
        return sequence[len(context) : len(context) + longest]

    def _known(self, context: Ids) -> Ids | None:
        groups = self._variants(context).values()
        return next((sequence for group in groups for sequence in group if _begins(sequence, context)), None)

    def _learn(self, context: Ids, num_new: int) -> Ids:
        """The context as a sequence, in place of what was known of it before."""
        variants_of = self._variants(context)
        for length, variants in variants_of.items():
            for i, sequence in enumerate(variants):
                if length < len(sequence) and _begins(context, sequence):
                    variants[i] = context.copy()
                    return variants[i]
        return self.add(context, next(iter(variants_of), len(context) - num_new))

    def _variants(self, context: Ids) -> dict[int, list[Ids]]:
        """The sequences of each prompt that the context begins with, by the prompt's length, the longest first."""
        lengths = [length for length in self.lengths if length < len(context)]
        return {length: variants for length in lengths if (variants := self.by_prompt.get(context[:length].tobytes()))}


def _begins(sequence: Ids, start: Ids) -> bool:
    return len(sequence) >= len(start) and np.array_equal(sequence[: len(start)], start)


class Replay:
    """vLLM's proposer."""

    def __init__(self, vllm_config: Any) -> None:
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.max_len = vllm_config.model_config.max_model_len
        self.changed, self.settings = 0, Settings((), ())
        self.answers = Answers()
        for line in (HERE / ANSWERS).read_text().splitlines() if (HERE / ANSWERS).is_file() else ():
            row = json.loads(line)
            self.answers.add(row["prompt"] + row["answer"], len(row["prompt"]))
        self._read()
        self.random = random.Random(self.settings.seed)
        self.counts = {"drafts": 0, "unknown": 0}  # of unknown ones an accepted token was asked for, and was not known
        self.counted_s = time.monotonic()

    def load_model(self, *_: Any, **__: Any) -> None:
        """There is none."""

    def propose(
        self, sampled_ids: Sequence[Sequence[int]], num_tokens: Sequence[int], ids: Ids, **_: Any
    ) -> list[list[int]]:
        """A draft for each request of the step; [] for one whose prompt is not read to its end, or whose context is full."""
        begun_s = time.perf_counter()
        self._read()
        lookahead = self.settings.lookahead(len(sampled_ids))
        drafts = []
        for i, new in enumerate(sampled_ids):
            room = max(0, min(lookahead, self.max_len - int(num_tokens[i])))
            drafts.append(self._draft(i, ids[i, : num_tokens[i]], room, len(new)) if new else [])
        self._count()
        end_s = begun_s + self.settings.seconds(len(sampled_ids))
        while time.perf_counter() < end_s:
            pass  # a draft's passes keep a core busy
        return drafts

    def _draft(self, row: int, context: Ids, lookahead: int, num_new: int) -> list[int]:
        """As many right tokens as this step is to accept, a wrong one, and whatever comes behind it."""
        following = self.answers.following(row, context, lookahead, num_new).tolist()
        chance = self.random.random()
        num_right = sum(chance < survival for survival in self.settings.survival[:lookahead])
        self.counts["drafts"] += 1
        self.counts["unknown"] += len(following) < num_right
        draft = following[:num_right]
        while len(draft) < lookahead:
            right = following[len(draft)] if len(draft) < len(following) else 0
            draft.append((right + self.random.randrange(1, self.vocab_size)) % self.vocab_size)
        return draft

    def _read(self) -> None:
        """The settings, anew where their file has changed: acceptance can be set under a running server."""
        changed = (HERE / SETTINGS).stat().st_mtime_ns
        if changed != self.changed:
            self.changed, self.settings = changed, Settings(**json.loads((HERE / SETTINGS).read_text()))
            assert all(a >= b for a, b in pairwise((1.0, *self.settings.survival, 0.0))), "survival falls, from 1 to 0"

    def _count(self) -> None:
        if time.monotonic() - self.counted_s > COUNT_S:
            self.counted_s = time.monotonic()
            with contextlib.suppress(OSError):
                (HERE / COUNTS).write_text(json.dumps(self.counts))
