"""What was measured: methods compared, acceptance by position and category, throughput by batch, latency.

Promises: rows share a figure only where target, data, temperature, machine, engine and type are equal; what a figure leaves
out is counted in its caption. Refuses to know: what was predicted.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from foredraft import kinds
from foredraft.report import marks, style
from foredraft.report.configurations import (
    RowConfiguration,
    Setting,
    at_least_load,
    best,
    by_setting,
    config_of,
    drafted,
    label_of,
    load_of,
    metric,
    names,
    online,
    requests,
    setting_of,
)
from foredraft.report.documents import Documents, Row, Span, span_of
from foredraft.report.parts import NONE, Picture, Section, Table, levels, number

FILLED_BY = "measurements.jsonl or observations.jsonl, which `foredraft measure TARGET --draft DIR@5 --prompts FILE --out DIR` writes"
MOST_SETTINGS, MOST_METHODS, MOST_LINES, MOST_CATEGORIES, MOST_ROWS = 3, 10, 5, 14, 60
Labels = Mapping[RowConfiguration, str]
KINDS = {"greedy": "greedy: both models' first choices agree", "point": "point: a draft token chosen without chance is kept",
         "sampled": "sampled: a draft token drawn by chance is kept"}  # fmt: skip


def section(documents: Documents) -> Section | None:
    rows = [row for row in documents.rows if row.span("tokens_per_step") or row.span("output_tok_s") or row.survival()]
    if not rows:
        return None
    settings = by_setting(online(rows))
    shown = settings[:MOST_SETTINGS]
    apart = differences([setting for setting, _ in shown])
    pictures = [p for i, (setting, of) in enumerate(shown) for p in _pictures(setting, of, rows, i, apart[setting])]
    tables = [t for setting, of in shown for t in _tables(setting, of, rows)]
    lede = f"{style.plural(len(rows), 'row')} in {style.plural(len(settings), 'setting')} (target, data, temperature, machine)."
    if len(settings) > MOST_SETTINGS:
        lede += f" Shown are the {MOST_SETTINGS} settings with the most rows."
    lede += " Tokens per step counts the token that the target itself adds, so 1 is plain decoding."
    return Section("measured", "What was measured", lede, pictures, tables)


def _pictures(setting: Setting, rows: Sequence[Row], all_rows: Sequence[Row], i: int, differing: str) -> list[Picture]:
    first, labels = at_least_load(rows), names(map(config_of, rows))
    pictures = [
        _methods(setting, first, labels, "tokens_per_step", i), _methods(setting, first, labels, "speedup", i),
        _positions(setting, first, labels, i), _by_load(setting, rows, labels, "output_tok_s", i),
        _by_load(setting, rows, labels, "speedup", i), _categories(setting, all_rows, i),
    ]  # fmt: skip
    return [picture._replace(title=f"{picture.title}{differing}") for picture in pictures if picture]


def differences(settings: Sequence[Setting]) -> dict[Setting, str]:
    """What a title adds where there are several settings: the fields in which they differ."""
    differ = {name for name in Setting._fields if len({getattr(setting, name) for setting in settings}) > 1}
    bare = Setting("", *[None] * (len(Setting._fields) - 1))
    words = {s: bare._replace(**{name: getattr(s, name) for name in differ}).words() for s in settings}
    return {setting: f" ({text})" if text else "" for setting, text in words.items()}


def _caption(
    setting: Setting, rows: Sequence[Row], spans: Sequence[Span], omitted: int = 0, dataset: bool = True
) -> str:
    """Conditions, n, intervals, and how many configurations there was no room for."""
    loads = sorted({load for row in rows if (load := load_of(row)) is not None})
    at = f", batch {loads[0]}" if len(loads) == 1 else ""
    omission = f" {style.plural(omitted, 'more arm')} measured, with less to show, are left out." if omitted else ""
    return f"{setting.words(dataset)}{at}; {requests(rows)}. {levels(spans)}{omission}"


# --- Methods compared ---

AXES = {"tokens_per_step": "tokens per step", "speedup": "gain, × plain decoding", "output_tok_s": "output tokens/s"}
TITLES = {"tokens_per_step": "Tokens per step, by method", "speedup": "Gain over plain decoding, by method"}
HUES = tuple(next(iter(kind.methods)) for kind in kinds.USUAL)  # a method looks the same in every figure


def looks(configs: Iterable[RowConfiguration]) -> dict[RowConfiguration, marks.Look]:
    """Colour and marker by method, whose further configurations are dashed and hollow; plain decoding is the ink's own colour."""
    configs = list(dict.fromkeys(configs))
    further = [
        name for name in dict.fromkeys(config.method for config in configs if not config.plain) if name not in HUES
    ]
    free = (i for i in itertools.count(1) if i >= len(HUES) or all(config.method != HUES[i] for config in configs))
    places = {name: i for i, name in enumerate(HUES)} | dict(zip(further, free, strict=False))
    counts: Counter[str] = Counter()
    look_of: dict[RowConfiguration, marks.Look] = {}
    for config in configs:
        look_of[config] = marks.look(places.get(config.method, 0), counts[config.method])
        counts[config.method] += 1
    return look_of | {config: {"color": style.BLACK, "marker": "o", "ls": "--"} for config in configs if config.plain}


def _methods(setting: Setting, rows: Sequence[Row], labels: Labels, name: str, i: int) -> Picture | None:
    """A dot per configuration, the best on top."""
    measured = [row for row in drafted(rows) if row.span(name)]
    if not measured:
        return None
    shown = sorted(best(measured, MOST_METHODS), key=lambda row: -getattr(row.observation, name))
    configs = [config_of(row) for row in shown]
    spans = [span for row in shown if (span := row.span(name))]
    methods = {config.method: label_of(config.method) for config in configs}
    series = {
        label: [span if config.method == method else None for config, span in zip(configs, spans, strict=True)]
        for method, label in methods.items()
    }
    drawn = {label_of(config.method): look for config, look in reversed(looks(configs).items())}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        marks.dots(axes, series, [labels[config] for config in configs], drawn)
        marks.no_gain(axes, horizontal=False)
        axes.set(xlabel=AXES[name])
        axes.margins(x=0.12)
        style.legend(figure, [axes], most=3)

    caption = _caption(setting, shown, spans, len(measured) - len(shown))
    height = marks.rows_height([labels[config] for config in configs]) + 0.2
    return Picture(f"measured-{i}-{name.replace('_', '-')}", TITLES[name], caption, paint, height)


# --- Acceptance ---


def _positions(setting: Setting, rows: Sequence[Row], labels: Labels, i: int) -> Picture | None:
    """Acceptance given that all before were accepted, position by position."""
    measured = [row for row in drafted(rows) if len(row.accept_given_prefix()) > 1]
    if not measured:
        return None
    shown = best(measured, MOST_LINES)
    drawn = looks(map(config_of, shown))
    spans = [span for row in shown for span in row.accept_given_prefix()]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for n, row in enumerate(shown):
            line = row.accept_given_prefix()
            x = [place + 1 + 0.05 * (n - (len(shown) - 1) / 2) for place in range(len(line))]
            marks.points(axes, x, line, drawn[config_of(row)], labels[config_of(row)])
        axes.set(xlabel="position in the draft", ylabel="accepted, given all before were", ylim=(0, 1))
        axes.set_xticks(range(1, max(len(row.accept_given_prefix()) for row in shown) + 1))
        style.legend(figure, [axes], most=2)

    caption = _caption(setting, shown, spans, len(measured) - len(shown))
    return Picture(f"measured-{i}-positions", "Acceptance by position", caption, paint, 4.2)


def _categories(setting: Setting, rows: Sequence[Row], i: int) -> Picture | None:
    """Tokens per step of the best configurations, category by category; a published row's data set is its category."""
    same = _without_dataset(setting)
    here = [row for row in rows if row.category and row.way != "forced" and _without_dataset(setting_of(row)) == same]
    category_of: Callable[[Row], str | None] = lambda row: row.category  # noqa: E731
    if not here:
        here = [row for row in online(rows) if row.observation.dataset and _without_dataset(setting_of(row)) == same]
        category_of = lambda row: row.observation.dataset  # noqa: E731
    measured = at_least_load(
        [row for row in drafted(here) if row.span("tokens_per_step")],
        key=lambda row: (config_of(row), category_of(row)),
    )
    categories = list(dict.fromkeys(name for row in measured if (name := category_of(row))))[:MOST_CATEGORIES]
    if len(categories) < 2:
        return None
    configs = _widest(measured, category_of, MOST_LINES)
    labels = names(configs)
    by_place = {(config_of(row), category_of(row)): row.span("tokens_per_step") for row in measured}
    series = {labels[config]: [by_place.get((config, name)) for name in categories] for config in configs}
    single = all(row.observation.num_requests == 1 for row in measured)
    if single:  # the interval of one request is all that could have come out
        series = {label: [span and Span(span.value) for span in line] for label, line in series.items()}
    spans = [span for line in series.values() for span in line if span]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        marks.dots(axes, series, categories, {labels[config]: look for config, look in looks(configs).items()})
        axes.set(xlabel=AXES["tokens_per_step"])
        style.legend(figure, [axes], most=2)

    caption = _caption(
        setting, measured, spans, len({config_of(row) for row in measured}) - len(configs), dataset=False
    )
    if single:
        caption = caption.replace(levels(spans), "One request each, so no intervals.")
    height = marks.rows_height(categories, len(configs)) + 0.22 * len(configs)
    return Picture(f"measured-{i}-categories", "Tokens per step, by category", caption, paint, height)


def _without_dataset(setting: Setting) -> Setting:
    return setting._replace(dataset=None)


def _widest(rows: Sequence[Row], category_of: Callable[[Row], str | None], most: int) -> list[RowConfiguration]:
    """The configurations measured in the most categories; of equals those with the most tokens per step."""
    by_config: dict[RowConfiguration, list[Row]] = {}
    for row in rows:
        by_config.setdefault(config_of(row), []).append(row)

    def rank(config: RowConfiguration) -> tuple[float, float]:
        of = by_config[config]
        return -len({category_of(row) for row in of}), -sum(row.observation.tokens_per_step or 0 for row in of) / len(
            of
        )

    ranked = sorted(by_config, key=rank)
    firsts = list({config.method: config for config in reversed(ranked)}.values())
    return sorted((sorted(firsts, key=rank) + [config for config in ranked if config not in firsts])[:most], key=rank)


# --- Speed ---


def _by_load(setting: Setting, rows: Sequence[Row], labels: Labels, name: str, i: int) -> Picture | None:
    """A line per configuration over the loads it was measured at."""
    by_load: dict[RowConfiguration, dict[int, Row]] = {}
    for row in rows:
        if row.span(name) and (load := load_of(row)) and not (config_of(row).plain and name == "speedup"):
            by_load.setdefault(config_of(row), {}).setdefault(load, row)
    lines = {config: [row for _, row in sorted(of.items())] for config, of in by_load.items() if len(of) > 1}
    if not lines:
        return None
    ranked = best([max(of, key=lambda row: getattr(row.observation, name)) for of in lines.values()], MOST_LINES)
    configs = [config for config in lines if config.plain][:1] + [
        config_of(row) for row in ranked if not config_of(row).plain
    ]
    shown = {config: lines[config] for config in configs}
    spans = [span for of in shown.values() for row in of if (span := row.span(name))]
    paint = partial(_loads, lines=shown, labels=labels, name=name)
    title = "Throughput by batch" if name == "output_tok_s" else "Gain by batch"
    flat = [row for of in shown.values() for row in of]
    caption = _caption(setting, flat, spans, len(lines) - len(shown))
    return Picture(f"measured-{i}-load-{name.replace('_', '-')}", title, caption, paint, 4.2)


def _loads(figure: Any, lines: dict[RowConfiguration, list[Row]], labels: Labels, name: str) -> None:
    axes = figure.subplots()
    drawn = looks(lines)
    for config, of in lines.items():
        spans = [span for row in of if (span := row.span(name))]
        marks.points(axes, [float(load_of(row) or 0) for row in of], spans, drawn[config], labels[config])
    style.load_axis(axes, sorted({float(load_of(row) or 0) for of in lines.values() for row in of}))
    served = any(row.observation.concurrency is not None for of in lines.values() for row in of)
    axes.set(xlabel="requests at once" if served else "sequences in the batch", ylabel=AXES[name])
    if name == "output_tok_s":
        axes.set_yscale("log")
        style.log_axis(axes.yaxis)
    else:
        marks.no_gain(axes)
    style.legend(figure, [axes], most=2)


# --- Tables ---


def _tables(setting: Setting, rows: Sequence[Row], all_rows: Sequence[Row]) -> list[Table]:
    tables = [_numbers(setting, rows), _accept(setting, all_rows), _online_and_forced(setting, all_rows)]
    return [table for table in tables if table]


def _numbers(setting: Setting, rows: Sequence[Row]) -> Table:
    labels = names(map(config_of, rows))
    ranked = sorted(rows, key=lambda row: (load_of(row) or 0, -(getattr(row.observation, metric(rows)) or 0)))
    head = (
        "method", "batch", "tokens/step", "gain", "tokens/s", "first token, ms", "per token, ms", "whole answer, s",
        "requests",
    )  # fmt: skip
    cells = [
        (
            labels[config_of(row)], f"{load_of(row) or NONE}", number(row.span("tokens_per_step")),
            number(row.span("speedup")), number(row.span("output_tok_s"), ",.1f"),
            number(row.span("ttft_s"), ".1f", 1e3), number(row.span("tpot_s"), ".2f", 1e3),
            number(row.measurement.ttot_s if row.measurement else None), f"{row.observation.num_requests or NONE}",
        )
        for row in ranked[:MOST_ROWS]
    ]  # fmt: skip
    cut = f"; the first {MOST_ROWS} of {len(rows)} rows" if len(rows) > MOST_ROWS else ""
    return Table(f"{setting.words()}: as decoded{cut}", head, cells)


def _accept(setting: Setting, rows: Sequence[Row]) -> Table | None:
    """α by kind; kinds are never mixed, and each is of the temperature that it is read at."""
    here = [row for row in rows if row.measurement and row.measurement.accept_probs and row.category is None]
    spans: dict[RowConfiguration, dict[str, Span]] = {}
    for row in here:
        if setting_of(row)._replace(temperature=None) == setting._replace(temperature=None):
            spans.setdefault(config_of(row), {}).update({kind: span for kind in KINDS if (span := _span(row, kind))})
    if not spans:
        return None
    labels = names(spans)
    cells = [(labels[config], *(number(of.get(kind), ".3f") for kind in KINDS)) for config, of in spans.items()]
    about = f"Acceptance per token (α), {setting._replace(temperature=None).words()}. {'; '.join(KINDS.values())}"
    return Table(about, ("method", *KINDS), sorted(cells))


def _span(row: Row, kind: str) -> Span | None:
    estimate = row.measurement.accept_probs.get(kind) if row.measurement else None
    return span_of(estimate) if estimate else None


def _online_and_forced(setting: Setting, rows: Sequence[Row]) -> Table | None:
    """Tokens per step as decoded beside one pass over the same answers."""
    here = [row for row in rows if row.category is None and setting_of(row) == setting]
    forced = {config_of(row): row for row in here if row.way == "forced"}
    pairs = [(row, forced[config_of(row)]) for row in at_least_load(online(here)) if config_of(row) in forced]
    if not pairs:
        return None
    labels = names(config_of(row) for row, _ in pairs)
    cells = [
        (
            labels[config_of(row)],
            number(row.span("tokens_per_step"), ".3f"),
            number(other.span("tokens_per_step"), ".3f"),
        )
        for row, other in pairs
    ]
    return Table(
        f"Tokens per step, decoded and teacher-forced: {setting.words()}", ("method", "decoded", "forced"), cells
    )
