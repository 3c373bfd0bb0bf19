"""Training runs: the loss and the held-out tokens per step against tokens seen.

Promises: every line is a metrics.jsonl as it lies there; held-out figures are marked apart from those in training; a
predicted value is drawn only where the recipe carries it. Refuses to know: how training works.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foredraft import kinds
from foredraft.report import marks, style
from foredraft.report.documents import Documents, RunLog, RunModel, Span, span_of
from foredraft.report.marks import COLOURS
from foredraft.report.parts import NONE, Picture, Section, Table, count, number

FILLED_BY = "metrics.jsonl with recipe.json, which `foredraft train RECIPE --out DIR` writes"
MOST, LEVEL = 6, 0.9  # lines of a figure; the interval that held-out figures carry (docs/guides/train.md)
NLL = ("held_out_ce", "held_out_loss")  # nats per token first; else the objective's own
Points = list[tuple[float, Span]]


def section(documents: Documents) -> Section | None:
    if not documents.runs:
        return None
    pictures = [
        picture for picture in (_taus(documents.runs), _held_out(documents.runs), _losses(documents.runs)) if picture
    ]
    lede = (
        f"{style.plural(len(documents.runs), 'training run')}. Held-out figures are taken along the way on text that training never "
        "saw; its tokens per step are what a chain of drafts would gain there, teacher-forced."
    )
    return Section("training", "Training", lede, pictures, [_table(documents.runs)])


def line(run: RunLog, *keys: str) -> Points:
    """(tokens, value) of the first of `keys` that the run has; held-out τ with its interval."""
    for key in keys:
        points = [
            (float(row["tokens"]), Span(row[key], row.get(f"{key}_low"), row.get(f"{key}_high"), LEVEL if f"{key}_low" in row else None))
            for row in run.lines
            if "tokens" in row and isinstance(row.get(key), int | float)
        ]  # fmt: skip
        if points:
            return points
    return []


def kind(run: RunLog) -> str:
    """What was trained, in words."""
    model = run.recipe.get("model", RunModel())
    trained, layers = kinds.CHECKPOINTS.get(model.get("kind", "")), model.get("layers", 1)
    if trained is None:
        return NONE
    if trained.role != "head":
        return kinds.LABELS[trained.name]
    return f"{trained.label_at(layers)} head" + (f", {layers} layers" if layers > 1 else "")


def _caption(shown: int, runs: int, what: str) -> str:
    omitted = f" {style.plural(runs - shown, 'more run')}, with less to show, are in the table." if runs > shown else ""
    return f"{what} {style.plural(shown, 'run')}.{omitted}"


def _taus(runs: Sequence[RunLog]) -> Picture | None:
    lines = {run.name: (run, points) for run in runs if (points := line(run, "held_out_tokens_per_step"))}
    if not lines:
        return None
    shown = sorted(lines.values(), key=lambda item: -item[1][-1][1].value)[:MOST]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (run, points) in enumerate(shown):
            x, spans = zip(*points, strict=True)
            marks.band(axes, x, spans, COLOURS[i])
            axes.plot(x, [span.value for span in spans], "o-", color=COLOURS[i], ms=3.5, label=run.name)
            if span := predicted(run):
                axes.axhline(span.value, color=COLOURS[i], ls=":", lw=1.4, label=f"{run.name}, planned")
        axes.set(xlabel="training tokens", ylabel="tokens per step, held out")
        _tokens_axis(axes)
        style.legend(figure, [axes], most=3)

    caption = _caption(
        len(shown), len(lines), f"Held-out text, teacher-forced; shaded: {style.percent(LEVEL)} intervals."
    )
    return Picture("training-tokens-per-step", "Tokens per step as training goes on", caption, paint, 4.0)


def _held_out(runs: Sequence[RunLog]) -> Picture | None:
    return _loss_picture(runs, NLL, "training-held-out", "Held-out loss", "loss on held-out text", "o-")


def _losses(runs: Sequence[RunLog]) -> Picture | None:
    return _loss_picture(runs, ("ce", "loss"), "training-loss", "Loss in training", "loss of the last step logged", "-")


def _loss_picture(
    runs: Sequence[RunLog], keys: tuple[str, ...], name: str, title: str, label: str, look: str
) -> Picture | None:
    lines = [(run, points) for run in runs if len(points := line(run, *keys)) > 1]
    if not lines:
        return None
    shown = sorted(lines, key=lambda item: -item[1][-1][0])[:MOST]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (run, points) in enumerate(shown):
            axes.plot(
                [x for x, _ in points], [span.value for _, span in points], look, ms=3.5, color=COLOURS[i],
                label=run.name,
            )  # fmt: skip
        axes.set(xlabel="training tokens", ylabel=label)
        _tokens_axis(axes)
        style.legend(figure, [axes], most=3)

    about = "Cross-entropy in nats per token where a run records it, else the run's own objective: losses compare within a kind."
    caption = _caption(len(shown), len(lines), f"{about} No intervals: one run each.")
    return Picture(name, title, caption, paint, 4.0)


def _tokens_axis(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.count(value)))


def predicted(run: RunLog) -> Span | None:
    """What the plan behind the recipe expects of the trained draft."""
    expected = run.recipe.get("predicted")
    return span_of(expected["tokens_per_step"]) if expected else None


def _table(runs: Sequence[RunLog]) -> Table:
    head = ("run", "what", "tokens", "held-out loss", "tokens per step", "planned", "tokens/s", "minutes")
    rows = []
    for run in runs:
        loss, tau, speeds = line(run, *NLL), line(run, "held_out_tokens_per_step"), line(run, "tokens_per_s")
        seconds = [row["seconds"] for row in run.lines if "seconds" in row]
        rows.append((
            run.name, kind(run), count(max((row.get("tokens", 0) for row in run.lines), default=None)),
            number(loss[-1][1] if loss else None, ".3f"), number(tau[-1][1] if tau else None), number(predicted(run)),
            number(float(np.median([span.value for _, span in speeds])) if speeds else None, ",.0f"),
            number(seconds[-1] / 60 if seconds else None, ".1f"),
        ))  # fmt: skip
    return Table(f"Runs at their end; {style.percent(LEVEL)} intervals, tokens/s is the median", head, rows)
