"""What was measured: methods compared, acceptance by position and category, throughput by batch, latency.

Promises: rows share a figure only where target, data, temperature, machine, engine and type are equal; what a figure leaves
out is counted in its caption. Refuses to know: what was predicted.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from foredraft.report import marks, style
from foredraft.report.arms import (
    METHODS,
    Arm,
    Setting,
    arm_of,
    at_least_load,
    best,
    by_setting,
    drafted,
    live,
    load_of,
    metric,
    names,
    requests,
    setting_of,
)
from foredraft.report.found import Found, Row, Span, span_of
from foredraft.report.parts import NONE, Picture, Section, Table, levels, number

FILLED_BY = "measurements.jsonl or observations.jsonl, which `foredraft measure TARGET --draft DIR@5 --prompts FILE --out DIR` writes"
MOST_SETTINGS, MOST_METHODS, MOST_LINES, MOST_CATEGORIES, MOST_ROWS = 3, 10, 5, 14, 60
Labels = Mapping[Arm, str]
KINDS = {"greedy": "greedy: both models' first choices agree", "point": "point: a draft token chosen without chance is kept",
         "sampled": "sampled: a draft token drawn by chance is kept"}  # fmt: skip


def section(found: Found) -> Section | None:
    rows = [row for row in found.rows if row.span("tokens_per_step") or row.span("output_tok_s") or row.survival()]
    if not rows:
        return None
    settings = by_setting(live(rows))
    shown = settings[:MOST_SETTINGS]
    apart = told_apart([setting for setting, _ in shown])
    pictures = [p for i, (setting, of) in enumerate(shown) for p in _pictures(setting, of, rows, i, apart[setting])]
    tables = [t for setting, of in shown for t in _tables(setting, of, rows)]
    lede = f"{style.plural(len(rows), 'row')} in {style.plural(len(settings), 'setting')} (target, data, temperature, machine)."
    if len(settings) > MOST_SETTINGS:
        lede += f" Shown are the {MOST_SETTINGS} settings with the most rows."
    lede += " Tokens per step counts the token that the target itself adds, so 1 is plain decoding."
    return Section("measured", "What was measured", lede, pictures, tables)


def _pictures(setting: Setting, rows: Sequence[Row], all_rows: Sequence[Row], i: int, told: str) -> list[Picture]:
    first, labels = at_least_load(rows), names(map(arm_of, rows))
    made = [
        _methods(setting, first, labels, "tokens_per_step", i),
        _methods(setting, first, labels, "speedup", i),
        _positions(setting, first, labels, i),
        _by_load(setting, rows, labels, "output_tok_s", i),
        _by_load(setting, rows, labels, "speedup", i),
        _categories(setting, all_rows, i),
    ]
    return [picture._replace(title=f"{picture.title}{told}") for picture in made if picture]


def told_apart(settings: Sequence[Setting]) -> dict[Setting, str]:
    """What a title adds where there are several settings: the fields in which they differ."""
    differ = {name for name in Setting._fields if len({getattr(setting, name) for setting in settings}) > 1}
    bare = Setting("", *[None] * (len(Setting._fields) - 1))
    words = {s: bare._replace(**{name: getattr(s, name) for name in differ}).words() for s in settings}
    return {setting: f" ({text})" if text else "" for setting, text in words.items()}


def _caption(setting: Setting, rows: Sequence[Row], spans: Sequence[Span], left: int = 0, dataset: bool = True) -> str:
    """Conditions, n, intervals, and how many arms there was no room for."""
    loads = sorted({load for row in rows if (load := load_of(row)) is not None})
    at = f", batch {loads[0]}" if len(loads) == 1 else ""
    rest = f" {style.plural(left, 'more arm')} measured, with less to show, are left out." if left else ""
    return f"{setting.words(dataset)}{at}; {requests(rows)}. {levels(spans)}{rest}"


# --- Methods compared ---

AXES = {"tokens_per_step": "tokens per step", "speedup": "gain, × plain decoding", "output_tok_s": "output tokens/s"}
TITLES = {"tokens_per_step": "Tokens per step, by method", "speedup": "Gain over plain decoding, by method"}
HUES = ("eagle3", "scylla", "eagle", "draft_model", "ngram")  # a method looks the same in every figure


def looks(arms: Iterable[Arm]) -> dict[Arm, marks.Look]:
    """Colour and marker by method, whose further arms are dashed and hollow; plain decoding is the ink's own colour."""
    arms = list(dict.fromkeys(arms))
    others = [name for name in dict.fromkeys(arm.method for arm in arms if not arm.plain) if name not in HUES]
    free = (i for i in itertools.count(1) if i >= len(HUES) or all(arm.method != HUES[i] for arm in arms))
    places = {name: i for i, name in enumerate(HUES)} | dict(zip(others, free, strict=False))
    seen: Counter[str] = Counter()
    made: dict[Arm, marks.Look] = {}
    for arm in arms:
        made[arm] = marks.look(places.get(arm.method, 0), seen[arm.method])
        seen[arm.method] += 1
    return made | {arm: {"color": style.BLACK, "marker": "o", "ls": "--"} for arm in arms if arm.plain}


def _methods(setting: Setting, rows: Sequence[Row], labels: Labels, name: str, i: int) -> Picture | None:
    """A dot per arm, the best on top."""
    kept = [row for row in drafted(rows) if row.span(name)]
    if not kept:
        return None
    shown = sorted(best(kept, MOST_METHODS), key=lambda row: -getattr(row.observation, name))
    arms = [arm_of(row) for row in shown]
    spans = [span for row in shown if (span := row.span(name))]
    methods = {arm.method: METHODS.get(arm.method, arm.method) for arm in arms}
    series = {
        label: [span if arm.method == method else None for arm, span in zip(arms, spans, strict=True)]
        for method, label in methods.items()
    }
    drawn = {METHODS.get(arm.method, arm.method): look for arm, look in reversed(looks(arms).items())}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        marks.dots(axes, series, [labels[arm] for arm in arms], drawn)
        marks.one(axes, horizontal=False)
        axes.set(xlabel=AXES[name])
        axes.margins(x=0.12)
        style.legend(figure, [axes], most=3)

    caption = _caption(setting, shown, spans, len(kept) - len(shown))
    height = marks.rows_height([labels[arm] for arm in arms]) + 0.2
    return Picture(f"measured-{i}-{name.replace('_', '-')}", TITLES[name], caption, paint, height)


# --- Acceptance ---


def _positions(setting: Setting, rows: Sequence[Row], labels: Labels, i: int) -> Picture | None:
    """Acceptance given that all before were accepted, position by position."""
    kept = [row for row in drafted(rows) if len(row.accept_given_prefix()) > 1]
    if not kept:
        return None
    shown = best(kept, MOST_LINES)
    drawn = looks(map(arm_of, shown))
    spans = [span for row in shown for span in row.accept_given_prefix()]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for n, row in enumerate(shown):
            line = row.accept_given_prefix()
            x = [place + 1 + 0.05 * (n - (len(shown) - 1) / 2) for place in range(len(line))]
            marks.points(axes, x, line, drawn[arm_of(row)], labels[arm_of(row)])
        axes.set(xlabel="position in the draft", ylabel="accepted, given all before were", ylim=(0, 1))
        axes.set_xticks(range(1, max(len(row.accept_given_prefix()) for row in shown) + 1))
        style.legend(figure, [axes], most=2)

    caption = _caption(setting, shown, spans, len(kept) - len(shown))
    return Picture(f"measured-{i}-positions", "Acceptance by position", caption, paint, 4.2)


def _categories(setting: Setting, rows: Sequence[Row], i: int) -> Picture | None:
    """Tokens per step of the best arms, category by category; a published row's data set is its category."""
    same = _without_dataset(setting)
    here = [row for row in rows if row.category and row.way != "forced" and _without_dataset(setting_of(row)) == same]
    pick: Callable[[Row], str | None] = lambda row: row.category  # noqa: E731
    if not here:
        here = [row for row in live(rows) if row.observation.dataset and _without_dataset(setting_of(row)) == same]
        pick = lambda row: row.observation.dataset  # noqa: E731
    kept = at_least_load(
        [row for row in drafted(here) if row.span("tokens_per_step")], key=lambda row: (arm_of(row), pick(row))
    )
    found = list(dict.fromkeys(name for row in kept if (name := pick(row))))[:MOST_CATEGORIES]
    if len(found) < 2:
        return None
    arms = _widest(kept, pick, MOST_LINES)
    labels = names(arms)
    series = {
        labels[arm]: [next((row.span("tokens_per_step") for row in kept if arm_of(row) == arm and pick(row) == name), None) for name in found]
        for arm in arms
    }  # fmt: skip
    spans = [span for line in series.values() for span in line if span]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        marks.dots(axes, series, found, {labels[arm]: look for arm, look in looks(arms).items()})
        axes.set(xlabel=AXES["tokens_per_step"])
        style.legend(figure, [axes], most=2)

    caption = _caption(setting, kept, spans, len({arm_of(row) for row in kept}) - len(arms), dataset=False)
    height = marks.rows_height(found, len(arms)) + 0.22 * len(arms)
    return Picture(f"measured-{i}-categories", "Tokens per step, by category", caption, paint, height)


def _without_dataset(setting: Setting) -> Setting:
    return setting._replace(dataset=None)


def _widest(rows: Sequence[Row], pick: Callable[[Row], str | None], most: int) -> list[Arm]:
    """The arms measured in the most categories; of equals the one with the most tokens per step."""
    found: dict[Arm, list[Row]] = {}
    for row in rows:
        found.setdefault(arm_of(row), []).append(row)

    def rank(arm: Arm) -> tuple[float, float]:
        of = found[arm]
        return -len({pick(row) for row in of}), -sum(row.observation.tokens_per_step or 0 for row in of) / len(of)

    ranked = sorted(found, key=rank)
    firsts = list({arm.method: arm for arm in reversed(ranked)}.values())
    return sorted((sorted(firsts, key=rank) + [arm for arm in ranked if arm not in firsts])[:most], key=rank)


# --- Speed ---


def _by_load(setting: Setting, rows: Sequence[Row], labels: Labels, name: str, i: int) -> Picture | None:
    """A line per arm over the loads it was measured at."""
    held: dict[Arm, dict[int, Row]] = {}
    for row in rows:
        if row.span(name) and (load := load_of(row)) and not (arm_of(row).plain and name == "speedup"):
            held.setdefault(arm_of(row), {}).setdefault(load, row)
    lines = {arm: [row for _, row in sorted(of.items())] for arm, of in held.items() if len(of) > 1}
    if not lines:
        return None
    ranked = best([max(of, key=lambda row: getattr(row.observation, name)) for of in lines.values()], MOST_LINES)
    arms = [arm for arm in lines if arm.plain][:1] + [arm_of(row) for row in ranked if not arm_of(row).plain]
    shown = {arm: lines[arm] for arm in arms}
    spans = [span for of in shown.values() for row in of if (span := row.span(name))]
    paint = partial(_loads, lines=shown, labels=labels, name=name)
    title = "Throughput by batch" if name == "output_tok_s" else "Gain by batch"
    flat = [row for of in shown.values() for row in of]
    caption = _caption(setting, flat, spans, len(lines) - len(shown))
    return Picture(f"measured-{i}-load-{name.replace('_', '-')}", title, caption, paint, 4.2)


def _loads(figure: Any, lines: dict[Arm, list[Row]], labels: Labels, name: str) -> None:
    axes = figure.subplots()
    drawn = looks(lines)
    for arm, of in lines.items():
        spans = [span for row in of if (span := row.span(name))]
        marks.points(axes, [float(load_of(row) or 0) for row in of], spans, drawn[arm], labels[arm])
    style.load_axis(axes, sorted({float(load_of(row) or 0) for of in lines.values() for row in of}))
    served = any(row.observation.concurrency is not None for of in lines.values() for row in of)
    axes.set(xlabel="requests at once" if served else "sequences in the batch", ylabel=AXES[name])
    if name == "output_tok_s":
        axes.set_yscale("log")
        style.log_axis(axes.yaxis)
    else:
        marks.one(axes)
    style.legend(figure, [axes], most=2)


# --- Tables ---


def _tables(setting: Setting, rows: Sequence[Row], all_rows: Sequence[Row]) -> list[Table]:
    made = [_numbers(setting, rows), _accept(setting, all_rows), _ways(setting, all_rows)]
    return [table for table in made if table]


def _numbers(setting: Setting, rows: Sequence[Row]) -> Table:
    labels = names(map(arm_of, rows))
    ranked = sorted(rows, key=lambda row: (load_of(row) or 0, -(getattr(row.observation, metric(rows)) or 0)))
    head = (
        "method",
        "batch",
        "tokens/step",
        "gain",
        "tokens/s",
        "first token, ms",
        "per token, ms",
        "whole answer, s",
        "requests",
    )
    made = [
        (
            labels[arm_of(row)],
            f"{load_of(row) or NONE}",
            number(row.span("tokens_per_step")),
            number(row.span("speedup")),
            number(row.span("output_tok_s"), ",.1f"),
            number(row.span("ttft_s"), ".1f", 1e3),
            number(row.span("tpot_s"), ".2f", 1e3),
            number(row.measurement.ttot_s if row.measurement else None),
            f"{row.observation.num_requests or NONE}",
        )
        for row in ranked[:MOST_ROWS]
    ]
    rest = f"; the first {MOST_ROWS} of {len(rows)} rows" if len(rows) > MOST_ROWS else ""
    return Table(f"{setting.words()}: as decoded{rest}", head, made)


def _accept(setting: Setting, rows: Sequence[Row]) -> Table | None:
    """α by kind; kinds are never mixed, and each is of the temperature that it is read at."""
    here = [row for row in rows if row.measurement and row.measurement.accept_probs and row.category is None]
    found: dict[Arm, dict[str, Span]] = {}
    for row in here:
        if setting_of(row)._replace(temperature=None) == setting._replace(temperature=None):
            found.setdefault(arm_of(row), {}).update({kind: span for kind in KINDS if (span := _span(row, kind))})
    if not found:
        return None
    labels = names(found)
    made = [(labels[arm], *(number(of.get(kind), ".3f") for kind in KINDS)) for arm, of in found.items()]
    about = f"Acceptance per token (α), {setting._replace(temperature=None).words()}. {'; '.join(KINDS.values())}"
    return Table(about, ("method", *KINDS), sorted(made))


def _span(row: Row, kind: str) -> Span | None:
    found = row.measurement.accept_probs.get(kind) if row.measurement else None
    return span_of(found) if found else None


def _ways(setting: Setting, rows: Sequence[Row]) -> Table | None:
    """Tokens per step as decoded beside one pass over the same answers."""
    here = [row for row in rows if row.category is None and setting_of(row) == setting]
    forced = {arm_of(row): row for row in here if row.way == "forced"}
    pairs = [(row, forced[arm_of(row)]) for row in at_least_load(live(here)) if arm_of(row) in forced]
    if not pairs:
        return None
    labels = names(arm_of(row) for row, _ in pairs)
    made = [
        (labels[arm_of(row)], number(row.span("tokens_per_step"), ".3f"), number(other.span("tokens_per_step"), ".3f"))
        for row, other in pairs
    ]
    return Table(
        f"Tokens per step, decoded and teacher-forced: {setting.words()}", ("method", "decoded", "forced"), made
    )
