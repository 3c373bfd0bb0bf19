"""Training runs: the loss and the held-out tokens per step against tokens seen.

Promises: every line is a metrics.jsonl as it lies there; held-out figures are marked apart from those in training; a
predicted value is drawn only where the recipe carries it. Refuses to know: how training works.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foredraft.report import marks, style
from foredraft.report.found import Found, Run, Span
from foredraft.report.marks import COLOURS
from foredraft.report.parts import NONE, Picture, Section, Table, count, number

FILLED_BY = "metrics.jsonl with recipe.json, which `foredraft train RECIPE --out DIR` writes"
MOST, LEVEL = 6, 0.9  # lines of a figure; the interval that held-out figures carry (docs/training.md)
KINDS = {"lm": "language model", "eagle": "EAGLE-2 head", "eagle3": "EAGLE-3 head"}
NLL = ("held_out_ce", "held_out_loss")  # nats per token first; else the objective's own
Points = list[tuple[float, Span]]


def section(found: Found) -> Section | None:
    if not found.runs:
        return None
    pictures = [picture for picture in (_taus(found.runs), _held_out(found.runs), _losses(found.runs)) if picture]
    lede = (
        f"{style.plural(len(found.runs), 'training run')}. Held-out figures are taken along the way on text that training never "
        "saw; its tokens per step are what a chain of drafts would gain there, teacher-forced."
    )
    return Section("training", "Training", lede, pictures, [_table(found.runs)])


def line(run: Run, *keys: str) -> Points:
    """(tokens, value) of the first of `keys` that the run has; held-out τ with its interval."""
    for key in keys:
        made = [
            (float(row["tokens"]), Span(row[key], row.get(f"{key}_low"), row.get(f"{key}_high"), LEVEL if f"{key}_low" in row else None))
            for row in run.lines
            if "tokens" in row and isinstance(row.get(key), int | float)
        ]  # fmt: skip
        if made:
            return made
    return []


def kind(run: Run) -> str:
    model = run.recipe.get("model", {})
    if model.get("kind") == "eagle3" and model.get("layers", 1) > 1:
        return f"Scylla head, {model['layers']} layers"
    return KINDS.get(model.get("kind", ""), NONE)


def _caption(shown: int, runs: int, what: str) -> str:
    left = f" {style.plural(runs - shown, 'more run')}, with less to show, are in the table." if runs > shown else ""
    return f"{what} {style.plural(shown, 'run')}.{left}"


def _taus(runs: Sequence[Run]) -> Picture | None:
    lines = {run.name: (run, found) for run in runs if (found := line(run, "held_out_tokens_per_step"))}
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


def _held_out(runs: Sequence[Run]) -> Picture | None:
    return _loss_picture(runs, NLL, "training-held-out", "Held-out loss", "loss on held-out text", "o-")


def _losses(runs: Sequence[Run]) -> Picture | None:
    return _loss_picture(runs, ("ce", "loss"), "training-loss", "Loss in training", "loss of the last step logged", "-")


def _loss_picture(
    runs: Sequence[Run], keys: tuple[str, ...], name: str, title: str, label: str, look: str
) -> Picture | None:
    lines = [(run, found) for run in runs if len(found := line(run, *keys)) > 1]
    if not lines:
        return None
    shown = sorted(lines, key=lambda item: -item[1][-1][0])[:MOST]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (run, points) in enumerate(shown):
            axes.plot(
                [x for x, _ in points],
                [span.value for _, span in points],
                look,
                ms=3.5,
                color=COLOURS[i],
                label=run.name,
            )
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


def predicted(run: Run) -> Span | None:
    """What the plan behind the recipe expects of the trained draft."""
    held = run.recipe.get("predicted")
    if not held:
        return None
    tau = held["tokens_per_step"]
    return Span(tau["value"], tau["low"], tau["high"], tau.get("level", LEVEL))


def _table(runs: Sequence[Run]) -> Table:
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
