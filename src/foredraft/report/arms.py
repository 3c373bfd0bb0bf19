"""Which rows stand beside each other: one setting's, arm by arm, under names that a reader can tell apart.

Promises: rows of different targets, machines, temperatures or data never share a figure; what is left out is counted.
Refuses to know: how anything is drawn.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from foredraft.records import Observation
from foredraft.report import style
from foredraft.report.found import Row

PLAIN = "none"  # the method of decoding without a draft
UNTOLD = {"exports", "final", "best", "draft", "run"}  # folders of a run whose names say nothing of it
HEADS = "eagle", "eagle2", "eagle3"
METHODS = {"none": "no draft", "draft_model": "language model", "ngram": "n-gram", "eagle": "EAGLE", "eagle2": "EAGLE-2",
           "eagle3": "EAGLE-3", "scylla": "Scylla", "lookahead": "Lookahead", "medusa": "Medusa", "hydra": "Hydra",
           "lm": "language model", "mtp": "MTP"}  # fmt: skip


class Setting(NamedTuple):
    """What must be equal for numbers to compare."""

    target: str
    dataset: str | None
    temperature: float | None
    machine: str | None
    engine: str | None
    dtype: str | None

    def words(self, dataset: bool = True) -> str:
        """Target, data, temperature, machine, engine and type, as far as recorded."""
        heat = None if self.temperature is None else f"temperature {self.temperature:g}"
        parts = (self.target, self.dataset if dataset else None, heat, self.machine, self.engine, self.dtype)
        return ", ".join(part for part in parts if part)


class Arm(NamedTuple):
    """A way to decode: the method, its draft and how it drafts."""

    method: str
    draft: str | None
    lookahead: int | None
    topk: int | None
    tree_nodes: int | None

    @property
    def plain(self) -> bool:
        return self.method == PLAIN

    @property
    def chain(self) -> bool:
        return self.tree_nodes in (None, self.lookahead)


def setting_of(row: Row) -> Setting:
    o = row.observation
    return Setting(o.target, o.dataset, o.temperature, o.machine, o.engine, o.dtype)


def arm_of(row: Row) -> Arm:
    o = row.observation
    nodes = None if o.tree_nodes == o.lookahead else o.tree_nodes
    return Arm(method_of(row), o.draft, o.lookahead, None if nodes is None else o.topk, nodes)


def method_of(row: Row) -> str:
    """As recorded; of EAGLE heads what their family is named after, and those of several layers are Scylla's."""
    o = row.observation
    if o.method not in HEADS:
        return o.method
    kin = (o.family or "").split("-")[0]
    return kin if kin in (*HEADS, "scylla") else "scylla" if (o.draft_layers or 1) > 1 else o.method


def load_of(row: Row) -> int | None:
    """Sequences at once: those of a fixed batch, or a server's clients."""
    o = row.observation
    return o.batch_size if o.batch_size is not None else o.concurrency


def live(rows: Iterable[Row]) -> list[Row]:
    """All categories together, as decoded: what figures of speed and acceptance are drawn from."""
    return [row for row in rows if row.category is None and row.way != "forced"]


def by_setting(rows: Iterable[Row], key: Callable[[Row], Setting] = setting_of) -> list[tuple[Setting, list[Row]]]:
    """Rows apart by setting, the largest group first."""
    found: dict[Setting, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def metric(rows: Iterable[Row]) -> str:
    """What ranks arms: the measured gain, or tokens per step where no gain was measured."""
    return "speedup" if any(row.observation.speedup is not None for row in rows) else "tokens_per_step"


def at_least_load(rows: Sequence[Row], key: Callable[[Row], Hashable] | None = None) -> list[Row]:
    """One row per arm (or other key) at the smallest load that most of them were measured at."""
    key = key or arm_of
    held: dict[int | None, dict[Hashable, Row]] = {}
    for row in rows:
        held.setdefault(load_of(row), {}).setdefault(key(row), row)
    widest = max(map(len, held.values()), default=0)
    loads = [load for load, of in held.items() if len(of) == widest]
    return list(held[min(loads, key=lambda load: load or 0)].values()) if loads else []


def best(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows: the best of every method first, then the best of the others; in order of what ranks them."""
    name = metric(rows)
    ranked = sorted(rows, key=lambda row: -(getattr(row.observation, name) or 0.0))
    firsts = {method_of(row): row for row in reversed(ranked)}
    first = [row for row in ranked if firsts[method_of(row)] is row]
    kept = (first + [row for row in ranked if all(row is not other for other in first)])[:most]
    return [row for row in ranked if any(row is other for other in kept)]


def names(arms: Iterable[Arm]) -> dict[Arm, str]:
    """A name for each arm: its method, or its draft where the method has several, and how it drafts."""
    arms = list(dict.fromkeys(arms))
    drafts = {method: {arm.draft for arm in arms if arm.method == method} for method in {arm.method for arm in arms}}
    return {arm: _name(arm, len(drafts[arm.method]) > 1) for arm in arms}


def _name(arm: Arm, told: bool) -> str:
    if arm.plain:
        return METHODS[PLAIN]
    who = draft_name(arm.draft) if told and arm.draft else METHODS.get(arm.method, arm.method)
    return ", ".join([who, *_dials(arm)])


def _dials(arm: Arm) -> list[str]:
    depth = [] if arm.lookahead is None else [f"k\u00a0=\u00a0{arm.lookahead}"]
    return depth if arm.chain else [*depth, f"w\u00a0=\u00a0{arm.tree_nodes}"]


def draft_name(draft: str) -> str:
    """The last words of a path that say which draft it is: eagle3 of runs/eagle3/final, and the tokens of an export."""
    parts = [part for part in re.split(r"[/\\]", draft) if part and part not in UNTOLD] or [draft]
    tokens = re.fullmatch(r"tokens-(\d+)", parts[-1])
    if tokens and len(parts) > 1:
        return f"{parts[-2]}, {style.count(float(tokens[1]))}\u00a0tokens"
    return parts[-1]


def drafted(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not arm_of(row).plain]


def requests(rows: Iterable[Row]) -> str:
    """How many requests stand behind each point, for a caption."""
    numbers = sorted({row.observation.num_requests for row in rows if row.observation.num_requests is not None})
    if not numbers:
        return "number of requests not recorded"
    return f"n = {numbers[0]}{f' to {numbers[-1]}' if len(numbers) > 1 else ''} requests per point"


def same_load(observation: Observation, concurrency: int) -> bool:
    return concurrency in (observation.batch_size, observation.concurrency)
