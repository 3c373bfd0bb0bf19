"""Which rows stand beside each other: one setting's, a configuration each, under names that a reader can tell apart.

Promises: rows of different targets, machines, temperatures or data never share a figure; what is left out is counted.
Refuses to know: how anything is drawn.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from foredraft import kinds
from foredraft.records import Observation
from foredraft.report import style
from foredraft.report.documents import Row

UNNAMED = {"exports", "final", "best", "draft", "run"}  # folders of a run whose names say nothing of it


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


class RowConfiguration(NamedTuple):
    """A way to decode: the method, its draft and how it drafts."""

    method: str
    draft: str | None
    lookahead: int | None
    topk: int | None
    tree_nodes: int | None

    @property
    def plain(self) -> bool:
        return self.method == kinds.NONE.name

    @property
    def chain(self) -> bool:
        return self.tree_nodes in (None, self.lookahead)


def setting_of(row: Row) -> Setting:
    o = row.observation
    return Setting(o.target, o.dataset, o.temperature, o.machine, o.engine, o.dtype)


def config_of(row: Row) -> RowConfiguration:
    o = row.observation
    nodes = None if o.tree_nodes == o.lookahead else o.tree_nodes
    return RowConfiguration(method_of(row), o.draft, o.lookahead, None if nodes is None else o.topk, nodes)


def method_of(row: Row) -> str:
    """The method as recorded; a head that we train goes by its family's name, else by its number of layers."""
    o, family, heads = row.observation, (row.observation.family or "").split("-")[0], kinds.of_role("head")
    if kinds.of_method(o.method) not in heads:
        return o.method
    if family in kinds.LABELS and kinds.of_method(family) in (*heads, kinds.MULTI_LAYER):
        return family
    return kinds.MULTI_LAYER.name if (o.draft_layers or 1) > 1 else o.method


def label_of(method: str) -> str:
    """A method as people write it; itself where no kind of draft is spelled so."""
    return kinds.LABELS.get(method, method)


def load_of(row: Row) -> int | None:
    """Sequences at once: those of a fixed batch, or a server's clients."""
    o = row.observation
    return o.batch_size if o.batch_size is not None else o.concurrency


def online(rows: Iterable[Row]) -> list[Row]:
    """All categories together, as decoded: what figures of speed and acceptance are drawn from."""
    return [row for row in rows if row.category is None and row.way != "forced"]


def by_setting(rows: Iterable[Row]) -> list[tuple[Setting, list[Row]]]:
    """Rows apart by setting, the largest group first."""
    groups: dict[Setting, list[Row]] = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def metric(rows: Iterable[Row]) -> str:
    """What ranks configurations: the measured gain, or tokens per step where no gain was measured."""
    return "speedup" if any(row.observation.speedup is not None for row in rows) else "tokens_per_step"


def at_least_load(rows: Sequence[Row], key: Callable[[Row], Hashable] | None = None) -> list[Row]:
    """One row per configuration (or other key) at the smallest load that most of them were measured at."""
    key = key or config_of
    by_load: dict[int | None, dict[Hashable, Row]] = {}
    for row in rows:
        by_load.setdefault(load_of(row), {}).setdefault(key(row), row)
    widest = max(map(len, by_load.values()), default=0)
    loads = [load for load, rows_at in by_load.items() if len(rows_at) == widest]
    return list(by_load[min(loads, key=lambda load: load or 0)].values()) if loads else []


def best(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows: the best of every method first, then the best of the others; in order of what ranks them."""
    name = metric(rows)
    ranked = sorted(rows, key=lambda row: -(getattr(row.observation, name) or 0.0))
    firsts = {method_of(row): row for row in reversed(ranked)}
    first = [row for row in ranked if firsts[method_of(row)] is row]
    chosen = (first + [row for row in ranked if all(row is not other for other in first)])[:most]
    return [row for row in ranked if any(row is other for other in chosen)]


def names(configs: Iterable[RowConfiguration]) -> dict[RowConfiguration, str]:
    """A name for each configuration: its method, or its draft where the method has several, and how it drafts."""
    configs = list(dict.fromkeys(configs))
    drafts = {
        method: {config.draft for config in configs if config.method == method}
        for method in {config.method for config in configs}
    }
    return {config: _name(config, len(drafts[config.method]) > 1) for config in configs}


def _name(config: RowConfiguration, by_draft: bool) -> str:
    if config.plain:
        return kinds.NONE.label
    who = draft_name(config.draft) if by_draft and config.draft else label_of(config.method)
    return ", ".join([who, *_dials(config)])


def _dials(config: RowConfiguration) -> list[str]:
    depth = [] if config.lookahead is None else [f"k\u00a0=\u00a0{config.lookahead}"]
    return depth if config.chain else [*depth, f"w\u00a0=\u00a0{config.tree_nodes}"]


def draft_name(draft: str) -> str:
    """The last words of a path that say which draft it is: eagle3 of runs/eagle3/final, and the tokens of an export."""
    parts = [part for part in re.split(r"[/\\]", draft) if part and part not in UNNAMED] or [draft]
    tokens = re.fullmatch(r"tokens-(\d+)", parts[-1])
    if tokens and len(parts) > 1:
        return f"{parts[-2]}, {style.count(float(tokens[1]))}\u00a0tokens"
    return parts[-1]


def drafted(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not config_of(row).plain]


def requests(rows: Iterable[Row]) -> str:
    """How many requests stand behind each point, for a caption."""
    numbers = sorted({row.observation.num_requests for row in rows if row.observation.num_requests is not None})
    if not numbers:
        return "number of requests not recorded"
    return f"n = {numbers[0]}{f' to {numbers[-1]}' if len(numbers) > 1 else ''} requests per point"


def same_load(observation: Observation, concurrency: int) -> bool:
    return concurrency in (observation.batch_size, observation.concurrency)
