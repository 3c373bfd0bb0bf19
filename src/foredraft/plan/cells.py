"""Published rows of acceptance as cells of `laws.conditions`: one per draft, prompts, temperature and way of drafting, repeats averaged.

Promises: a row that does not say how it drafted is read only where its document is of the draft's own implementation at batch 1, whose
defaults are known; an average over prompt sets does not stand beside its parts. Refuses to know: what is asked.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from foredraft import kinds, published, shapes
from foredraft.kinds import Kind
from foredraft.laws.acceptance import MAX_POSITIONS
from foredraft.laws.conditions import (
    REFERENCE_LOOKAHEAD,
    REFERENCE_PARAMS,
    AcceptanceCell,
    ContextFade,
    Levels,
    Spreads,
    chain_level,
    is_mean,
    plain,
    task_of,
)
from foredraft.plan import evidence
from foredraft.plan.trees import PUBLISHED, grown
from foredraft.records import Observation, Record, decode

SINGLE = re.compile(
    r"#\d+$|^huggingface\.co/"
)  # a document that is an issue, a pull request or a card: what one user saw on one server
USUAL_ACCEPT = 0.65  # of a first choice, as most published chains of heads have it


class Drafting(NamedTuple):
    """How a step drafts: passes, tokens a pass, nodes verified."""

    depth: int
    width: int = 1
    nodes: int | None = None

    @property
    def tree(self) -> tuple[int, int, int] | None:
        """None of a chain."""
        return None if self.width == 1 else (self.depth, self.width, self.nodes or self.depth * self.width)

    @property
    def levels(self) -> int:
        """Drafted tokens in a row at most: a tree's first pass makes a level besides those of its depth."""
        return self.depth + (self.width > 1)


# What the public implementations do where a table does not say (EAGLE repository, see docs/log.md; assisted generation of transformers: 5).
USUAL = {
    "eagle": Drafting(5, 4, 25), "eagle2": Drafting(7, 10, 59), "eagle3": Drafting(7, 10, 59),
    "draft_model": Drafting(5), "ngram": Drafting(10),
}  # fmt: skip


class Conditions(Record, frozen=True):
    """What ships: the spreads over all documents, how acceptance fades beyond a context, and the sd between reports of log speedup beyond
    what acceptance and the cost law's own uncertainty say.
    """

    spreads: Spreads
    fade: ContextFade
    report_sd: float


@cache
def conditions() -> Conditions:
    """Fitted by recipes/conditions.py."""
    return decode(Conditions, (files("foredraft.published") / "conditions.json").read_bytes(), name="conditions.json")


@cache
def levels(without: frozenset[str] = evidence.NOTHING) -> Levels:
    """What published rows, but those of the documents `without`, say of any cell."""
    measured = cells(evidence.observations(without))
    return Levels(tuple(measured), np.array(list(measured.values())), conditions().spreads)


def cells(rows: Iterable[Observation]) -> dict[AcceptanceCell, float]:
    """The level of every cell that `rows` measure; of a tree that of a chain as deep, less what its choices are taken to lift it."""
    taken: dict[AcceptanceCell, list[float]] = defaultdict(list)
    for row in _apart(rows):
        drafting = _drafting(row)
        if drafting is None or row.tokens_per_step is None:
            continue
        cell = cell_of(row, drafting)
        taken[cell].append(chain_level(row.tokens_per_step, drafting.levels) - tree_lift(drafting))
    return {cell: float(np.mean(values)) for cell, values in taken.items()}


def _apart(rows: Iterable[Observation]) -> list[Observation]:
    """Rows with a draft and its τ, less averages over prompt sets that stand by themselves too, and trees of drafts whose chains do."""
    drafted = [row for row in rows if row.method != "none" and row.tokens_per_step]
    parts = {(_place(row), row.lookahead) for row in drafted if not is_mean(row.dataset)}
    chains = {_place(row) for row in drafted if row.lookahead and (row.topk or 1) == 1}
    return [
        row
        for row in drafted
        if not (is_mean(row.dataset) and (_place(row), row.lookahead) in parts)
        and not ((row.topk or 1) > 1 and _place(row) in chains)
    ]


def _place(row: Observation) -> Hashable:
    return row.provenance.source, row.target, row.method, row.draft


def _drafting(row: Observation) -> Drafting | None:
    """None where the row does not say, and its document is of no implementation with known defaults."""
    if row.lookahead and row.lookahead <= MAX_POSITIONS:
        width = row.topk or 1
        return Drafting(row.lookahead, width, row.tree_nodes if width > 1 else None)
    kind = kinds.of_method(row.method)
    known = row.method if row.method in USUAL else kind.name
    return USUAL.get(known) if row.lookahead is None and row.batch_size == 1 and row.engine is None else None


def cell_of(row: Observation, drafting: Drafting) -> AcceptanceCell:
    """The cell that `row` measures."""
    kind = kinds.of_method(row.method)
    name, log_size = target_key(row.target)
    document = published.document(row.provenance.source)
    return AcceptanceCell(
        role=kind.prior, kind=kind.name, method=row.method, target=name, log_size=log_size,
        head=(name, row.method, head_key(row.draft, kind) or document), document=document, task=task_of(row.dataset) or row.dataset,
        prompts=row.dataset, temperature=row.temperature or 0.0,
        log_lookahead=float(np.log(drafting.depth / REFERENCE_LOOKAHEAD)),
        single=bool(SINGLE.search(document)), tree=drafting.tree,
    )  # fmt: skip


@cache
def target_key(name: str) -> tuple[str, float]:
    """A target by the words of its name that tell it from others, whoever spells it; and its log size, 0 where it is not known."""
    words = re.split(r"[^a-z0-9.]+", name.rsplit("/", 1)[-1].lower())
    telling = sorted(
        word for word in words if word and not re.fullmatch(r"instruct|chat|it|hf|meta|v[\d.]+|\d{4}", word)
    )
    if shapes.known_name(name):
        params = float(shapes.shape(name).params)
    else:
        sizes = re.findall(r"(\d+(?:\.\d+)?)b(?![a-z])", name.lower())
        params = float(sizes[0]) * 1e9 if sizes else REFERENCE_PARAMS
    return "-".join(telling), float(np.log(params / REFERENCE_PARAMS))


def head_key(draft: str | None, kind: Kind) -> str | None:
    """A draft's name without its owner, in lower case; None where it only repeats its kind."""
    name = plain((draft or "").rsplit("/", 1)[-1])
    generic = {plain(word) for word in (*kind.methods, *kind.methods.values(), kind.label)}
    return None if not name or name in generic or name.removesuffix("head") in generic else name


@cache
def tree_lift(drafting: Drafting) -> float:
    """How far above its first choices' level a tree's levels are accepted, by the published tail at USUAL_ACCEPT; 0 of a chain."""
    if drafting.tree is None:
        return 0.0
    depth, topk, nodes = drafting.tree
    tau = grown(np.full(depth + 1, USUAL_ACCEPT), topk, PUBLISHED.middle, [nodes])[0]
    return chain_level(tau, depth + 1) - float(np.log(USUAL_ACCEPT / (1 - USUAL_ACCEPT)))
