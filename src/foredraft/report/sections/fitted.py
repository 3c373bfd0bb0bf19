"""The laws: each over the points it was fitted on, with its interval, and the points it never saw.

Promises: curves and intervals are the Fit's own draws; points outside the range of a fit's data are predictions it is held
to, and are marked apart. Refuses to know: how a law is fitted.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from foredraft.laws.fit import by_range, sample_words
from foredraft.laws.forms import law_named
from foredraft.laws.held_out import HeldOut, judge, r_squared
from foredraft.records import Fit, Observation
from foredraft.report import style
from foredraft.report.documents import Documents, Span
from foredraft.report.fit import LEVEL, painter, pool_words
from foredraft.report.parts import NONE, Picture, Section, Table, listed, number, signed

FILLED_BY = "Fit*.json, which `foredraft fit observations.jsonl --out DIR` writes"
MOST = 6  # figures; the others are in the table
MOST_LINES, MOST_HELD_OUT = 60, 40  # lines of tables


def section(documents: Documents) -> Section | None:
    if not documents.fits:
        return None
    rows = documents.observations
    fits = ranked(documents.fits)
    pictures = [_picture(fit, i, rows) for i, fit in enumerate(fits[:MOST])]
    omitted = f" Figures show {MOST} of them, the best of each kind first." if len(fits) > MOST else ""
    lede = (
        f"{style.plural(len(fits), 'law')} fitted to measurements. A law is a curve from a dial (tokens, size, layers, tree "
        f"nodes) to an outcome; shaded is its {style.percent(LEVEL)} interval, grey the range of its data.{omitted}"
    )
    judged = [(fit, held_out) for fit in fits if (held_out := judge(fit, rows))]
    tables = [_table(fits, rows), *([_summary(judged), _held_out(judged)] if judged else [])]
    return Section("laws", "The laws behind it", lede, pictures, tables)


def ranked(fits: Sequence[Fit]) -> list[Fit]:
    """The law with the least held-out error for each outcome and dial, then the others; those with the most data first."""
    by_data = sorted(fits, key=lambda fit: -fit.num_observations)
    best: dict[tuple[str, str], Fit] = {}
    for fit in sorted(by_data, key=lambda fit: math.inf if fit.held_out_error is None else fit.held_out_error):
        best.setdefault((fit.output, law_named(fit.law).leading), fit)
    first = [fit for fit in by_data if any(fit is other for other in best.values())]
    return first + [fit for fit in by_data if all(fit is not other for other in first)]


def _picture(fit: Fit, i: int, rows: Sequence[Observation]) -> Picture:
    inside, beyond = by_range(fit, rows)
    missing = fit.num_observations - len(inside)
    of_sample = "" if not missing else (
        f" Of the {fit.num_observations} observations behind it, {len(inside)} lie in these folders."
        if missing > 0
        else f" {len(inside)} observations lie within its range, more than the {fit.num_observations} it was fitted on."
    )  # fmt: skip
    diamonds = f" White diamonds ({len(beyond)}) lie beyond the range and took no part in the fit." if beyond else ""
    error = ""
    if fit.held_out_error is not None:
        error = f" Mean error on its largest run, held out of a fit to the rest: {fit.held_out_error:.3g}."
    caption = f"{fit.formula}; {_conditions(fit)}. {sample_words(fit)}; {style.percent(LEVEL)} interval of the mean.{of_sample}{diamonds}{error}"
    return Picture(f"law-{i}", _title(fit), caption, painter(fit, inside, beyond), 4.2)


def _title(fit: Fit) -> str:
    law = law_named(fit.law)
    outputs = {"tokens_per_step": "Tokens per step", "accept_prob": "Acceptance", "loss": "Loss"}
    dials = {"draft_tokens": "the draft's training tokens", "draft_params": "the draft's size", "tree_nodes": "tree nodes",
             "draft_layers": "the draft's layers", "draft_perplexity": "the draft's perplexity"}  # fmt: skip
    return f"{outputs.get(law.output, law.output)} by {dials.get(law.leading, law.leading)}: {_words(fit.law)}"


def _conditions(fit: Fit) -> str:
    """The pool in words: what was held equal."""
    return pool_words(fit).replace("=", " ").replace("_", " ") or "all observations together"


def _table(fits: Sequence[Fit], rows: Sequence[Observation]) -> Table:
    head = ("law", "for", "parameters", "R²", "held-out error", "rivals' error", "observations (runs)")
    cells = [
        (
            f"{_words(fit.law)}: {fit.formula}",
            _conditions(fit),
            _parameters(fit),
            NONE if (r2 := r_squared(fit, rows)) is None else f"{r2:.3f}",
            NONE if fit.held_out_error is None else f"{fit.held_out_error:.3g}",
            ", ".join(f"{name} {error:.3g}" for name, error in fit.rivals.items()) or NONE,
            f"{fit.num_observations} ({fit.num_clusters}{' checkpoints' if fit.checkpoints_of else ''})",
        )
        for fit in fits[:MOST_LINES]
    ]
    cut = f"; the first {MOST_LINES} of {len(fits)}" if len(fits) > MOST_LINES else ""
    return Table(
        f"Parameters with {style.percent(LEVEL)} intervals; errors are mean absolute, in the outcome's units{cut}",
        head,
        cells,
    )


def _parameters(fit: Fit) -> str:
    """Each with its interval, and what stands at its bound."""
    low, high = np.quantile(np.array(fit.draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    named = zip(fit.parameters.items(), low.tolist(), high.tolist(), strict=True)
    text = "; ".join(f"{name} {number(Span(value, least, most), '.3g')}" for (name, value), least, most in named)
    return text + (f"; at its bound: {listed(fit.at_bound)}" if fit.at_bound else "")


def _summary(judged: Sequence[tuple[Fit, Sequence[HeldOut]]]) -> Table:
    """How each law did on what it was held to."""
    head = ("law", "for", "held out", "mean error", "relative", f"inside the {style.percent(LEVEL)} interval")
    rows = [
        (
            _words(fit.law),
            _conditions(fit),
            f"{len(held_out)}",
            f"{np.mean([abs(j.predicted.value - j.measured) for j in held_out]):.3g}\u00a0{law_named(fit.law).unit}",
            f"{100 * np.mean([abs(j.predicted.value / j.measured - 1) for j in held_out if j.measured]):.1f}\u00a0%",
            f"{sum(j.predicted.covers(j.measured) for j in held_out)} of {len(held_out)}",
        )
        for fit, held_out in judged
    ]
    return Table(
        "Held out: measurements beyond the range that a law was fitted on, against one further run's interval",
        head,
        rows,
    )


def _held_out(judged: Sequence[tuple[Fit, Sequence[HeldOut]]]) -> Table:
    """Predictions that the laws were held to."""
    rows = [
        (
            _words(fit.law),
            ", ".join(
                f"{name.replace('_', ' ')} {style.count(getattr(j.row, name))}" for name in law_named(fit.law).inputs
            ),
            number(j.predicted, ".3f"),
            f"{j.measured:.3f}",
            signed(j.predicted.value / j.measured - 1) if j.measured else NONE,
            "yes" if j.predicted.covers(j.measured) else "no",
        )
        for fit, held_out in judged
        for j in held_out
    ]
    cut = f"; the first {MOST_HELD_OUT} of {len(rows)}" if len(rows) > MOST_HELD_OUT else ""
    head = ("law", "at", "predicted", "measured", "error", "inside")
    return Table(f"Held out, point by point{cut}", head, rows[:MOST_HELD_OUT])


def _words(law: str) -> str:
    """law 1.1 of law_1_1."""
    return re.sub(r"(\d)_(\d)", r"\1.\2", law).replace("_", " ")
