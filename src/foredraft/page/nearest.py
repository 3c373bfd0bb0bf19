"""The measured rows that lie nearest to a plan: of which target and kind of draft, where, and where they can be read.

Promises: rows are shown as they were published or given. Refuses to know: what a plan concludes from them.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from foredraft import kinds, machines, published, shapes
from foredraft.laws.conditions import task_of
from foredraft.records import Observation, Plan

MOST_ROWS, OF_A_DOCUMENT = 8, 3


class Near(NamedTuple):
    """A row, whether it is of the very target and kind, and the page that it stands on, if its source names one."""

    row: Observation
    same_target: bool
    same_kind: bool
    link: str | None
    is_own: bool


def nearest(plan: Plan, own: Sequence[Observation] = (), version: str | None = None) -> list[Near]:
    """Rows that say how much is accepted or gained, nearest first: by target, kind of draft, temperature, machine, engine (with its
    `version`), task and load, in this order of weight; few of any one document.
    """
    case = _Case(plan, version)
    ranked = sorted(
        ((case.distance(row), i, row, i < len(own)) for i, row in enumerate((*own, *published.observations())) if _says(row)),
        key=lambda each: each[:2],
    )  # fmt: skip
    rows, documents = [], Counter[str]()
    for _, _, row, is_own in ranked:
        document = published.document(row.provenance.source)
        if documents[document] >= OF_A_DOCUMENT and not is_own:
            continue
        documents[document] += 1
        rows.append(Near(row, case.is_target(row), case.is_kind(row), link(row.provenance.source), is_own))
        if len(rows) == MOST_ROWS:
            break
    return rows


def _says(row: Observation) -> bool:
    return row.method != "none" and bool(row.tokens_per_step or row.speedup)


class _Case:
    """What a plan is of, to hold rows against."""

    def __init__(self, plan: Plan, version: str | None) -> None:
        self.plan, self.version = plan, version
        self.public = public_name(plan.target)
        self.params = shapes.shape(plan.target).params if self.public else None
        self.kind = kinds.of_choice(plan.draft) if plan.draft else None
        load = plan.workload
        shares = load.weights or (1.0,) * len(load.concurrency)
        self.log_load = sum(
            share * math.log2(clients) for share, clients in zip(shares, load.concurrency, strict=True)
        ) / sum(shares)

    def is_target(self, row: Observation) -> bool:
        return row.target == self.plan.target or (self.public is not None and public_name(row.target) == self.public)

    def is_kind(self, row: Observation) -> bool:
        return self.kind is not None and kinds.of_method(row.method).name == self.kind.name

    def distance(self, row: Observation) -> float:
        """0 of a row of the very case."""
        load, far = self.plan.workload, 0.0
        if not self.is_target(row):
            both = self.params and row.target_params
            far += (
                4 + min(abs(math.log(row.target_params / self.params)), 3)
                if both and row.target_params and self.params
                else 7.5
            )
        if self.kind and not self.is_kind(row):
            far += 2 if kinds.role_of(row.method) == self.kind.role else 5
        far += 1.0 * (((row.temperature or 0.0) > 0) != (load.temperature > 0))
        far += 0.6 * (row.machine is None or _machine(row.machine) != self.plan.machine)
        engine = (row.engine or "").lower()
        far += 0.4 * (self.plan.engine not in engine) + 0.1 * bool(self.version and self.version not in engine)
        far += 0.3 * (load.task is not None and task_of(row.dataset) != load.task)
        clients = row.concurrency or row.batch_size
        return far + (0.05 * abs(math.log2(clients) - self.log_load) if clients else 0.2)


public_name = cache(shapes.known_name)


@cache
def _machine(name: str) -> str | None:
    try:
        return machines.machine(name).name
    except ValueError:
        return None


_AT = r"@(?P<commit>[0-9a-f]{6,40})(?:[ :](?P<path>[\w./+=-]+\.\w+))?"
_REPOSITORY = re.compile(rf"(?:https://)?(?:github\.com/)?(?P<name>[\w.-]+/[\w.-]+?)(?:{_AT}|(?:#| PR )(?P<issue>\d+))")
_PLAIN = re.compile(r"(?:https://)?((?:github\.com|huggingface\.co)/[\w.-]+(?:/[\w.-]+)*)")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})", re.IGNORECASE)


def link(source: str) -> str | None:
    """The page that a source names; None where it names none.

    >>> link("arXiv:2503.01840 Table 1")
    'https://arxiv.org/abs/2503.01840'
    >>> link("vllm-project/speculators#563")
    'https://github.com/vllm-project/speculators/issues/563'
    """
    if named := _REPOSITORY.match(source):
        root = f"https://github.com/{named['name']}"
        if named["issue"]:
            return f"{root}/issues/{named['issue']}"
        return f"{root}/blob/{named['commit']}/{named['path']}" if named["path"] else f"{root}/tree/{named['commit']}"
    if paper := _ARXIV.search(source):
        return f"https://arxiv.org/abs/{paper[1]}"
    plain = _PLAIN.match(source)
    return f"https://{plain[1]}" if plain else None
