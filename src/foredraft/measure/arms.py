"""The ways of decoding that are compared: plain, and with each draft, all on one target that is loaded once.

Promises: plain decoding is always the first; what a draft cannot do is refused before anything is decoded. Refuses to know:
prompts, clocks.
"""

import json
from pathlib import Path
from typing import NamedTuple

from foredraft import text
from foredraft.decode.engine import Engine
from foredraft.decode.proposals import Budget
from foredraft.models.decoder import Decoder
from foredraft.models.forward import context_limit
from foredraft.runs import name_of
from foredraft.shapes import Shape

PLAIN = "plain"
LEVELS = 4  # drafted in a step where a spec names no number


class Spec(NamedTuple):
    """A draft and how much of it: `DIR@5` a chain of 5, `DIR@5,4,16` a dynamic tree 5 deep, 4 wide, of 16 nodes; `draft`
    None is plain decoding.
    """

    name: str
    draft: str | None
    budget: Budget


class Arm(NamedTuple):
    """A spec with its engine."""

    spec: Spec
    engine: Engine

    @property
    def method(self) -> str:
        """As Observations spell it: none, ngram, draft_model, eagle, eagle3."""
        return self.engine.drafter.name if self.engine.drafter else "none"


def spec_of(given: str | None) -> Spec:
    """A spec as the command line writes it; None is plain decoding."""
    name, at, budget = (given or "").rpartition("@")
    name, budget = (name, budget) if at else (budget, "")
    levels, _, tree = budget.partition(",")
    if budget and not levels.isdigit():
        raise ValueError(f"draft {given!r}: what follows @ is the lookahead, a whole number")
    if given is not None and not name:
        raise ValueError(f"draft {given!r}: name ngram or a folder before @")
    return Spec(given or PLAIN, name or None, text.budget_of(int(levels or LEVELS), tree or None))


def arms_on(target: Decoder, specs: list[Spec], max_batch: int, max_context: int) -> list[Arm]:
    """Plain decoding and an engine for each of `specs`. Raises ValueError on a spec given twice or one that does not fit."""
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"draft {min(twice)} is given twice; give each once")
    return [
        Arm(
            spec,
            text.engine_on(target, spec.draft, lookahead=spec.budget, max_batch=max_batch, max_context=max_context),
        )
        for spec in (Spec(PLAIN, None, Budget(0)), *specs)
    ]


def longest(target: Decoder) -> int | None:
    """Most tokens of prompt and answer together: what the model was made for, less drafted nodes where a table ends."""
    hard = context_limit(target.shape, target.config)
    limits = target.shape.max_position_embeddings, hard - text.NODES if hard else None
    return min((limit for limit in limits if limit is not None), default=None)


def shape_of(arm: Arm) -> Shape | None:
    """The draft's; None where nothing is computed."""
    drafter = arm.engine.drafter
    model = getattr(drafter, "head", None) or getattr(drafter, "model", None)
    return model.shape if model is not None else None


def tokenizer_name(folder: str | Path) -> str:
    """A name that two folders share if their tokenizers are one: the hash of tokenizer.json, or else the folder's name."""
    from foredraft.data import tokenizer

    if not (Path(folder) / tokenizer.TOKENIZER).is_file():
        return name_of(folder)
    vocabulary = json.loads((Path(folder) / tokenizer.TOKENIZER).read_bytes()).get("model", {}).get("vocab", ())
    return f"{len(vocabulary)} words, sha256 {tokenizer.sha256(folder)[:12]}"
