"""SDSL's five figures (arXiv 2603.11053) from the rows at hand, for the drafts that are dialled in size.

Promises: α is the sampled kind, perplexities share one named tokenizer, N* is the measured best draft and says so; a figure
whose dials were not varied is left out and named. Refuses to know: the paper's own numbers (`report.sdsl` draws those).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foredraft.laws.speedup import tokens_per_flop
from foredraft.report import marks, style
from foredraft.report.configurations import Setting, by_setting, label_of, load_of, online, requests, setting_of
from foredraft.report.documents import Documents, Row, Span, span_of
from foredraft.report.marks import COLOURS, MARKERS
from foredraft.report.parts import Picture, Section, levels

FILLED_BY = "observations or measurements with draft_params, draft and target perplexity and sampled α of at least three draft sizes"
LEAST_SIZES, MOST_LOOKAHEAD = 3, 16
Draft = tuple[Any, ...]
LATENCIES = {"ttft_s": ("Time to the first token", 1e3, "ms"), "ttot_s": ("Time to the whole answer", 1.0, "s"),
             "tpot_s": ("Time per output token", 1e3, "ms")}  # fmt: skip
LACKING = {
    "sdsl-1-plane": "1, the acceptance plane, needs targets of two perplexities",
    "sdsl-2-throughput": "2, gain by size, needs three sizes with a measured gain",
    "sdsl-3-acceptance": "3, acceptance by perplexity, needs sampled α and perplexities of three drafts",
    "sdsl-5-optimum": "5, the best size, needs two targets or token budgets of three sizes each",
}


class Ladder(NamedTuple):
    """Drafts of one method in several sizes on one target, at one load: of each size the best lookahead and budget."""

    setting: Setting
    method: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """Short: target, method and temperature."""
        short = self.setting._replace(dataset=None, machine=None, engine=None, dtype=None)
        return f"{short.words()}, {label_of(self.method)}"

    @property
    def best(self) -> Row:
        """N*: the draft with the greatest measured gain."""
        return max(self.rows, key=lambda row: row.observation.speedup or 0.0)


def section(documents: Documents) -> Section | None:
    rows = online(documents.rows)
    alike = [row for row in _with_alpha(documents.rows) if _one_tokenizer(row)]
    ladders = [ladder for setting, of in by_setting(rows) for ladder in _ladders(setting, of)]
    candidates: list[Picture | None] = [_plane(alike), _throughput(ladders, alphas(documents.rows)), _acceptance(alike)]
    candidates += [_latency(ladders, name) for name in LATENCIES] + [_optimum(rows, share) for share in (False, True)]
    pictures = [picture for picture in candidates if picture]
    if not pictures:
        return None
    drawn = {picture.name for picture in pictures}
    notes = [f"Figure {why}." for name, why in LACKING.items() if name not in drawn]
    lede = (
        "Speculative decoding's scaling theory ties a draft's size to its perplexity, its perplexity to acceptance, and "
        "acceptance to the best size. These are its figures, drawn from measurements."
    )
    return Section("theory", "The theory's figures, from these data", lede, pictures, (), notes)


def alpha(row: Row) -> Span | None:
    """α of the sampled kind."""
    if row.measurement and (estimate := row.measurement.accept_probs.get("sampled")):
        return span_of(estimate)
    return row.span("accept_prob") if row.observation.accept_kind == "sampled" else None


def draft_of(row: Row) -> Draft:
    """The pair of models and the data that an α belongs to, whether read while decoding or in one pass."""
    o = row.observation
    return o.target, o.dataset, o.method, o.draft, o.draft_tokens


def alphas(rows: Sequence[Row]) -> dict[tuple[Draft, float | None], Span]:
    """α that chains of a draft see at a temperature, of all categories together: greedy at 0, else sampled."""
    spans: dict[tuple[Draft, float | None], Span] = {}
    for row in rows:
        heat = row.observation.temperature
        kinds = row.measurement.accept_probs if row.measurement else {}
        estimate = kinds.get("greedy" if heat == 0 else "sampled")
        span = span_of(estimate) if estimate else row.span("accept_prob")
        if row.category is None and span:
            spans.setdefault((draft_of(row), heat), span)
    return spans


def _with_alpha(rows: Sequence[Row]) -> list[Row]:
    """One row per draft that states α, teacher-forced or online, and both perplexities."""
    firsts: dict[Draft, Row] = {}
    for row in rows:
        o = row.observation
        if row.category is None and alpha(row) and o.draft_perplexity and o.target_perplexity:
            firsts.setdefault(draft_of(row), row)
    return list(firsts.values())


def _one_tokenizer(row: Row) -> bool:
    return (
        row.observation.target_tokenizer is not None
        and row.observation.target_tokenizer == row.observation.draft_tokenizer
    )


def _ladders(setting: Setting, rows: Sequence[Row]) -> list[Ladder]:
    """At the smallest load; methods with at least three sizes."""
    loads = [load for row in rows if (load := load_of(row)) is not None]
    by_method: dict[str, dict[float, Row]] = {}
    for row in rows:
        o = row.observation
        if o.draft_params and o.speedup and load_of(row) == min(loads, default=None):
            sizes = by_method.setdefault(o.method, {})
            if o.draft_params not in sizes or o.speedup > (sizes[o.draft_params].observation.speedup or 0):
                sizes[o.draft_params] = row
    return [
        Ladder(setting, method, [row for _, row in sorted(sizes.items())]) for method, sizes in by_method.items() if len(sizes) >= LEAST_SIZES
    ]  # fmt: skip


# --- 1 and 3: acceptance ---


def _plane(rows: Sequence[Row]) -> Picture | None:
    if len({row.observation.target_perplexity for row in rows}) < 2:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        x, y = ([getattr(row.observation, name) for row in rows] for name in ("draft_perplexity", "target_perplexity"))
        colours = [span.value for row in rows if (span := alpha(row))]
        dots = axes.scatter(x, y, c=colours, cmap="cividis", edgecolors=style.BLACK, linewidths=0.7, s=46)
        figure.colorbar(dots, ax=axes, label="α, sampled")
        axes.set(xlabel="perplexity of the draft per token", ylabel="perplexity of the target per token")

    caption = f"{style.plural(len(rows), 'pair')} of draft and target in one tokenizer each; {requests(rows)}. Colour: α, no intervals drawn."
    return Picture("sdsl-1-plane", "1. Acceptance over both perplexities", caption, paint, 4.0)


def _acceptance(rows: Sequence[Row]) -> Picture | None:
    if len(rows) < LEAST_SIZES:
        return None
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.observation.draft_perplexity or 0):
        groups.setdefault(f"{row.observation.target}, {label_of(row.observation.method)}", []).append(row)
    shown = dict(sorted(groups.items(), key=lambda item: -len(item[1]))[: len(COLOURS)])
    spans = [span for of in shown.values() for row in of if (span := alpha(row))]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (name, of) in enumerate(shown.items()):
            line = [span for row in of if (span := alpha(row))]
            marks.points(
                axes, [row.observation.draft_perplexity or 0.0 for row in of], line, marks.look(i),
                style.wrap(name, 40), ls="none",
            )  # fmt: skip
        axes.set(xlabel="perplexity of the draft per token", ylabel="α, sampled")
        style.legend(figure, [axes], most=1)

    omitted = f" {len(groups) - len(shown)} more targets are left out." if len(groups) > len(shown) else ""
    about = f"Σ min(p, q), teacher-forced; {style.plural(len(spans), 'draft')}. {levels(spans)}"
    caption = f"{about} Perplexities in the target's own tokenizer.{omitted}"
    return Picture(
        "sdsl-3-acceptance", "3. Acceptance by the draft's perplexity", caption, paint, 3.5 + 0.3 * len(shown)
    )


# --- 2: gain by size ---


def _throughput(ladders: Sequence[Ladder], accepts: Mapping[tuple[Draft, float | None], Span]) -> Picture | None:
    """The measured gain of every size, N* starred, beside tokens per FLOP at the same α."""
    shown = ladders[:3]
    if not shown:
        return None
    spans = [span for ladder in shown for row in ladder.rows if (span := row.span("speedup"))]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, ladder in enumerate(shown):
            sizes = [row.observation.draft_params or 0.0 for row in ladder.rows]
            line = [span for row in ladder.rows if (span := row.span("speedup"))]
            marks.points(axes, sizes, line, marks.look(i), f"{ladder.name}: measured")
            star = ladder.best.observation
            axes.plot(star.draft_params, star.speedup, "*", color=COLOURS[i], mec=style.BLACK, ms=15, zorder=5)
            counted = [
                (size, value)
                for row, size in zip(ladder.rows, sizes, strict=True)
                if (value := counted_gain(row, accepts))
            ]
            if counted:
                axes.plot(*np.array(counted).T, ":", color=COLOURS[i], label="tokens per FLOP at its α")
        marks.no_gain(axes)
        axes.set(xscale="log", xlabel="parameters of the draft, N", ylabel="gain, × plain decoding")
        style.log_axis(axes.xaxis, style.count)
        style.legend(figure, [axes], most=1)

    behind = requests([row for ladder in shown for row in ladder.rows])
    caption = (
        f"{shown[0].setting._replace(temperature=None).words()}; batch {load_of(shown[0].rows[0]) or 'not recorded'}; {behind}. "
        f"Each size at its best lookahead and token budget. {levels(spans)} Star: N*, the best measured draft. Dotted: the theory's count, which "
        "leaves memory and overhead out, at the measured α and its best lookahead."
    )
    return Picture("sdsl-2-throughput", "2. Gain by the draft's size", caption, paint, 4.2)


def counted_gain(row: Row, accepts: Mapping[tuple[Draft, float | None], Span]) -> float | None:
    """T(N, γ)·2M at the draft's measured α: tokens per FLOP over no speculation, at the best whole lookahead."""
    o, accept_span = row.observation, accepts.get((draft_of(row), row.observation.temperature))
    if not (accept_span and o.draft_params and o.target_params):
        return None
    accept, sizes = min(accept_span.value, 1 - 1e-9), (o.draft_params, o.target_params)
    gains = [float(tokens_per_flop(accept, k, *sizes)) for k in range(MOST_LOOKAHEAD + 1)]
    return max(gains) * 2 * o.target_params


# --- 4: latency by distance from N* ---


def _latency(ladders: Sequence[Ladder], name: str) -> Picture | None:
    """A latency against |N − N*|/M."""
    title, scale, unit = LATENCIES[name]
    lines: dict[str, list[tuple[float, Span]]] = {}
    for ladder in ladders[: len(COLOURS)]:
        points = [
            (place, span)
            for row in ladder.rows
            if (place := distance(row, ladder.best)) is not None and (span := _latency_span(row, name))
        ]
        if len(points) >= LEAST_SIZES:
            lines[ladder.name] = sorted(points, key=lambda point: point[0])
    if not lines:
        return None
    spans = [span for line in lines.values() for _, span in line]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (label, line) in enumerate(lines.items()):
            scaled = [Span(*(None if end is None else end * scale for end in span[:3]), span.level) for _, span in line]  # type: ignore[arg-type]
            marks.points(axes, [place for place, _ in line], scaled, marks.look(i), label, ls="none")
        axes.set(xlabel="distance from the best size, |N − N*| / M", ylabel=f"{title.lower()}, {unit}")
        style.legend(figure, [axes], most=1)

    rows = [row for ladder in ladders for row in ladder.rows]
    star = "N*: the draft with the greatest measured gain, at distance 0; N, M parameters of draft and target."
    caption = f"{star} {ladders[0].setting._replace(temperature=None).words()}; {requests(rows)}. {levels(spans)}"
    return Picture(
        f"sdsl-4-{name.removesuffix('_s')}", f"4. {title} by distance from the best size", caption, paint, 3.9
    )


def distance(row: Row, star: Row) -> float | None:
    o, best = row.observation, star.observation
    if not (o.draft_params and best.draft_params and o.target_params):
        return None
    return abs(o.draft_params - best.draft_params) / o.target_params


def _latency_span(row: Row, name: str) -> Span | None:
    if name == "ttot_s":
        ttot = row.measurement.ttot_s if row.measurement else None
        return span_of(ttot) if ttot else None
    return row.span(name)


# --- 5: N* ---


def _optimum(rows: Sequence[Row], share: bool) -> Picture | None:
    """N*, or N*/M, against the draft's training tokens, per target."""
    points_of = optima(rows)
    if len({(tokens, of_target) for points in points_of.values() for tokens, _, of_target in points}) < 2:
        return None
    shown = dict(list(points_of.items())[: len(COLOURS)])

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (target, points) in enumerate(shown.items()):
            y = [params / (of_target if share else 1.0) for _, params, of_target in points]
            axes.plot([tokens for tokens, _, _ in points], y, ls="-", color=COLOURS[i], marker=MARKERS[i], label=target)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="training tokens of the drafts, D",
            ylabel="N* / M" if share else "parameters of the best draft, N*",
        )
        style.log_axis(axes.xaxis, style.count)
        style.log_axis(axes.yaxis, "{:.2g}".format if share else style.count)
        style.legend(figure, [axes], most=2)

    caption = (
        "N*: of the sizes measured at the same D, the one with the greatest gain at the smallest batch "
        f"({LEAST_SIZES} sizes at least); it is as coarse as the sizes are apart. No intervals."
    )
    name, title = (
        ("sdsl-5-share", "5. Best size over the target's")
        if share
        else ("sdsl-5-optimum", "5. Best draft size by training tokens")
    )
    return Picture(name, title, caption, paint, 3.3 + 0.4 * len(shown))


def optima(rows: Sequence[Row]) -> Mapping[str, list[tuple[float, float, float]]]:
    """By target and method: (D, N*, M) of every budget with at least three sizes."""
    points_of: dict[str, list[tuple[float, float, float]]] = {}
    budgets: dict[tuple[Setting, float], list[Row]] = {}
    for row in rows:
        if row.observation.draft_tokens:
            budgets.setdefault((setting_of(row), row.observation.draft_tokens), []).append(row)
    for (setting, tokens), of in sorted(budgets.items(), key=lambda item: item[0][1]):
        for ladder in _ladders(setting, of):
            star = ladder.best.observation
            if star.draft_params and star.target_params:
                label = f"{setting.words()}, {label_of(ladder.method)}"
                points_of.setdefault(style.wrap(label, 40), []).append((tokens, star.draft_params, star.target_params))
    return points_of
