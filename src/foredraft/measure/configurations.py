"""The configurations that are compared: plain decoding, and decoding with each draft, on one target that is loaded once.

Promises: plain decoding always comes first; what a draft cannot do is refused before anything is decoded. Refuses to know:
prompts, clocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from foredraft import kinds, text
from foredraft.decode.engine import Engine
from foredraft.decode.lookup_first import LookupFirst
from foredraft.decode.proposals import Budget
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.forward import context_limit

PLAIN = "plain"
LEVELS = 4  # drafted in a step where a spec names no number


class DraftSpec(NamedTuple):
    """A draft and its budget: `DIR@5` a chain of 5, `DIR@5,4,16` a dynamic tree 5 deep, 4 wide, of 16 nodes; `DIR+ngram@5` the same behind
    a look-up; `DIR~@5` a chain of at most 5, by confidence; None is plain decoding.
    """

    name: str
    draft: str | None
    budget: Budget


class EngineConfiguration(NamedTuple):
    """A spec with its engine."""

    spec: DraftSpec
    engine: Engine

    @property
    def method(self) -> str:
        """As Observations spell it: none, or the drafter's own name."""
        if self.engine.drafter is None:
            return "none"
        return self.engine.drafter.name + (kinds.ADAPTIVE if self.engine.lengths else "")

    @property
    def model(self) -> Decoder | DraftHead | None:
        """What drafts, where that is a model."""
        drafter = self.engine.drafter
        drafter = drafter.inner if isinstance(drafter, LookupFirst) else drafter
        return getattr(drafter, "head", None) or getattr(drafter, "model", None)


def spec_of(words: str | None) -> DraftSpec:
    """The spec that the command line writes as `words`; None is plain decoding. Raises ValueError on any other."""
    name, at, budget = (words or "").rpartition("@")
    name, budget = (name, budget) if at else (budget, "")
    levels, _, tree = budget.partition(",")
    if budget and not levels.isdigit():
        raise ValueError(f"draft {words!r}: what follows @ is the lookahead, a whole number")
    if words is not None and not name:
        raise ValueError(f"draft {words!r}: name ngram or a folder before @")
    kinds.parted(name)
    return DraftSpec(words or PLAIN, name or None, text.budget_of(int(levels or LEVELS), tree or None))


def configurations_on(
    target: Decoder, specs: Sequence[DraftSpec], max_batch: int, max_context: int
) -> list[EngineConfiguration]:
    """Plain decoding and an engine for each of `specs`. Raises ValueError on a spec given twice or one that does not fit."""
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"draft {min(twice)} is given twice; give each once")
    return [
        EngineConfiguration(
            spec,
            text.engine_on(target, spec.draft, lookahead=spec.budget, max_batch=max_batch, max_context=max_context),
        )
        for spec in (DraftSpec(PLAIN, None, Budget(0)), *specs)
    ]


def longest(target: Decoder) -> int | None:
    """Most tokens of prompt and answer together: what the model was made for, less drafted nodes where a table ends."""
    hard = context_limit(target.shape, target.config)
    limits = target.shape.max_position_embeddings, hard - text.NODES if hard else None
    return min((limit for limit in limits if limit is not None), default=None)
