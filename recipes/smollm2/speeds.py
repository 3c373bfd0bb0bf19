"""From the rows of `foredraft measure` to results/smollm2/speed.json: what each configuration brings by precision, batch and category.

A configuration is named as its draft is: `scylla-L2@4,4,8` a tree, `scylla-L2+ngram@5` a chain behind a look-up, `ngram@5` the look-up alone.

Promises: a speedup is a ratio within one run; what was not measured is absent; a mean over categories weighs them equally, and its
interval takes their errors for independent. Refuses to know: how anything was run.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

from foredraft import kinds, records
from foredraft.records import Estimate, Measurement, Observation

PLAIN = "plain"
Z = 1.645  # half of a 90 % interval in standard errors


class Interval(records.Record, frozen=True):
    """A figure with its 90 % interval over requests, None where a single one was measured."""

    value: float
    low: float | None = None
    high: float | None = None


class Figures(records.Record, frozen=True):
    """Of a configuration on some prompts: tokens per step, tokens/s of whole calls (prompts included), and those over plain decoding's."""

    num_requests: int
    tokens_per_step: Interval | None = None
    tok_s: Interval | None = None
    speedup: Interval | None = None


class Configuration(records.Record, frozen=True):
    """`group`: "draft", a trained draft; "lookup", prompt look-up alone; "beside", a trained draft behind a look-up; None is plain.
    `draft`: its name. `spec`: "@5" a chain, "@4,4,8" a tree. The means are over categories.
    """

    all: Figures
    by_category: dict[str, Figures]
    group: str | None = None
    draft: str | None = None
    spec: str | None = None
    speedup_mean: Interval | None = None
    tokens_per_step_mean: Interval | None = None


class Load(records.Record, frozen=True):
    """A precision at a batch: `configurations` by name, "plain" among them, all in turn in one run. By group: `best`, the fastest of them
    as measured here, and `chosen`, the fastest on other prompts before; a group that was not measured is absent.
    """

    configurations: dict[str, Configuration]
    best: dict[str, str]
    chosen: dict[str, str]


class DraftFacts(records.Record, frozen=True):
    """What a draft is, as its rows say."""

    method: str
    draft_layers: int | None = None
    draft_params: float | None = None
    draft_tokens: float | None = None


class Speeds(records.Record, frozen=True):
    """results/smollm2/speed.json. `categories`: most prompts of each that a figure stands on. `speed`: by dtype, then batch; T = 0.
    `counted`: by temperature, live tokens per step in float32; `forced`: by temperature, the same of chains read from the target's own
    answers.
    """

    target: str
    machine: str
    threads: int
    prompts: str
    max_tokens: int
    categories: dict[str, int]
    versions: dict[str, str]
    measured: str
    drafts: dict[str, DraftFacts]
    speed: dict[str, dict[str, Load]]
    counted: dict[str, dict[str, Configuration]]
    forced: dict[str, dict[str, Configuration]]


def configurations(rows: Iterable[Measurement], names: Mapping[str, str]) -> dict[str, Configuration]:
    """The configurations of one run's rows, by name. `names`: a draft's name by what its rows call it."""
    by_name: dict[str, list[Measurement]] = {}
    for row in rows:
        by_name.setdefault(name_of(row.observation, names), []).append(row)
    return {name: _configuration(of, names) for name, of in by_name.items()}


def name_of(row: Observation, names: Mapping[str, str]) -> str:
    """A row's configuration."""
    if row.draft is None:
        return PLAIN
    return f"{_draft(row, names)[0]}{_spec(row)}"


def _draft(row: Observation, names: Mapping[str, str]) -> tuple[str, str, str | None]:
    """A row's draft with the look-up before it, its group, and its name without."""
    assert row.draft is not None, "plain decoding has none"
    folder, lookup = kinds.parted(row.draft)
    if folder == kinds.NGRAM.name:
        return folder, "lookup", None
    return names[folder] + row.draft.removeprefix(folder), "beside" if lookup else "draft", names[folder]


def _spec(row: Observation) -> str:
    return f"@{row.lookahead}" + (f",{row.topk},{row.tree_nodes}" if (row.topk or 1) > 1 else "")


def _configuration(rows: Sequence[Measurement], names: Mapping[str, str]) -> Configuration:
    whole = next(row for row in rows if row.category is None)
    by_category = {row.category: _figures(row) for row in rows if row.category is not None}
    _, group, draft = (None, None, None) if whole.observation.draft is None else _draft(whole.observation, names)
    return Configuration(
        all=_figures(whole), by_category=by_category, group=group, draft=draft, spec=_spec(whole.observation) if group else None,
        speedup_mean=mean(figures.speedup for figures in by_category.values()),
        tokens_per_step_mean=mean(figures.tokens_per_step for figures in by_category.values()),
    )  # fmt: skip


def _figures(row: Measurement) -> Figures:
    fields = {"tokens_per_step": "tokens_per_step", "tok_s": "output_tok_s", "speedup": "speedup"}
    values = {
        name: _interval(getattr(row.observation, field), row.intervals.get(field)) for name, field in fields.items()
    }
    return Figures(num_requests=row.observation.num_requests or 0, **values)


def _interval(value: float | None, estimate: Estimate | None) -> Interval | None:
    if value is None:
        return None
    return Interval(value=value, low=estimate.low, high=estimate.high) if estimate else Interval(value=value)


def mean(intervals: Iterable[Interval | None]) -> Interval | None:
    """The mean of figures that each stand for a category; without an interval where one of them has none, and None where none was measured."""
    measured = [interval for interval in intervals if interval is not None]
    if not measured:
        return None
    value = sum(interval.value for interval in measured) / len(measured)
    widths = [
        interval.high - interval.low for interval in measured if interval.low is not None and interval.high is not None
    ]
    if len(widths) < len(measured):
        return Interval(value=value)
    away = Z * sqrt(sum((width / 2 / Z) ** 2 for width in widths)) / len(measured)
    return Interval(value=value, low=value - away, high=value + away)


def finalists(of: Mapping[str, Configuration], num: int) -> list[str]:
    """The names of each draft's `num` fastest configurations alone, and of its fastest behind a look-up; and of the fastest look-up alone."""
    by_draft: dict[str, list[str]] = {}
    for name in fastest_first(of):
        by_draft.setdefault(name.partition("@")[0], []).append(name)
    return [name for names in by_draft.values() for name in names[: num if of[names[0]].group == "draft" else 1]]


def best(of: Mapping[str, Configuration]) -> dict[str, str]:
    """By group the fastest configuration."""
    tops: dict[str, str] = {}
    for name in fastest_first(of):
        tops.setdefault(of[name].group or PLAIN, name)
    return tops


def fastest_first(of: Mapping[str, Configuration]) -> list[str]:
    """Names of the drafted ones, by the mean speedup over categories where there is one."""
    timed = [name for name in of if of[name].group and of[name].all.speedup]
    return sorted(timed, key=lambda name: -_speed(of[name]))


def _speed(configuration: Configuration) -> float:
    speedup = configuration.speedup_mean or configuration.all.speedup
    return speedup.value if speedup else 0.0


def by_temperature(
    cells: Iterable[Sequence[Measurement]], names: Mapping[str, str]
) -> dict[str, dict[str, Configuration]]:
    """Configurations of several runs, by temperature."""
    figures: dict[str, dict[str, Configuration]] = {}
    for rows in cells:
        for temperature in dict.fromkeys(row.observation.temperature or 0.0 for row in rows):
            of = [row for row in rows if (row.observation.temperature or 0.0) == temperature]
            figures.setdefault(f"{temperature:g}", {}).update(configurations(of, names))
    return figures


def categories(rows: Iterable[Measurement]) -> dict[str, int]:
    """Most prompts of each."""
    most: dict[str, int] = {}
    for row in rows:
        if row.category is not None:
            most[row.category] = max(most.get(row.category, 0), row.observation.num_requests or 0)
    return most


def facts(rows: Iterable[Measurement], names: Mapping[str, str]) -> dict[str, DraftFacts]:
    """What each draft is, by name."""
    drafts = {}
    for row in (row.observation for row in rows):
        if row.draft and row.draft in names:
            drafts[names[row.draft]] = DraftFacts(
                method=row.method, draft_layers=row.draft_layers, draft_params=row.draft_params, draft_tokens=row.draft_tokens
            )  # fmt: skip
    return drafts
