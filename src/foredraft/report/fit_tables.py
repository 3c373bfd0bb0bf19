"""Fitted laws for a terminal: one table of all, or one law in full.

Refuses to know: how a law is fitted.
"""

from collections.abc import Mapping, Sequence
from textwrap import shorten

import numpy as np
from rich.text import Text

from foredraft.laws.fit import sample_words
from foredraft.laws.forms import law_named
from foredraft.laws.held_out import HeldOut
from foredraft.laws.law import Law
from foredraft.records import Fit
from foredraft.report.terminal import Blocks, Titled

LEVEL = 0.9
POOL = 22  # letters of a pool's name in the table of all laws
SYMBOLS = {"temperature": "T", "lookahead": "k", "draft_tokens": "D", "draft_layers": "L", "tree_nodes": "w"}


def fit_tables(fits: Sequence[Fit], lacking: Mapping[str, str]) -> Blocks:
    """One table, a line for each law: its main parameter with its interval and the error held out (best: of its rivals), on the pool of
    data with the most observations; the laws that no data support, in a line.
    """
    best, shown = best_by_pool(fits), _shown(fits)
    table = Titled("Laws (90 % intervals)", "law", "runs", "main parameter", "held out", "pool")
    for fit in shown:
        error = "–" if fit.held_out_error is None else f"{fit.held_out_error:.3g}"
        chosen = " (best)" if fit is best.get((pool_of(fit), fit.output)) else ""
        pool = shorten(_short(pool_of(fit)), POOL, placeholder=" …")
        table.add_row(fit.law, str(fit.num_clusters), _main(fit), error + chosen, pool)
    notes = []
    if len(fits) > len(shown):
        notes.append(
            f"{len(fits) - len(shown)} more fits, of other pools: --law NAME shows all of one law, --out writes all"
        )
    names = dict.fromkeys(name.partition(" [")[0] for name in lacking)
    if unfitted := [name for name in names if not any(fit.law == name for fit in fits)]:
        notes.append(f"not fitted: {', '.join(unfitted)}; --law NAME says what it lacks")
    return [table, *([Text("\n".join(notes), style="dim")] if notes else [])]


def law_tables(law: str, fits: Sequence[Fit], lacking: Mapping[str, str]) -> Blocks:
    """All of one law: every pool's parameters, domain and rivals; and the pools that do not support it."""
    blocks: Blocks = []
    best = best_by_pool(fits)
    for fit in (fit for fit in fits if fit.law == law):
        table = Titled(
            f"{fit.law}: {fit.formula}\n{sample_words(fit)}; {pool_of(fit)}", "parameter", "value", "90 % interval"
        )
        for name, value in fit.parameters.items():
            low, high = _interval(fit, name)
            table.add_row(
                name + (" (at its bound)" if name in fit.at_bound else ""), f"{value:.4g}", f"[{low:.4g}, {high:.4g}]"
            )
        blocks.append(table)
        domain = ", ".join(f"{name} {low:.3g}…{high:.3g}" for name, (low, high) in fit.domain.items())
        error = "none: too few runs to hold one out" if fit.held_out_error is None else f"{fit.held_out_error:.3g}"
        rivals = "".join(f", {name} {value:.3g}" for name, value in fit.rivals.items())
        chosen = "; predicts it best of its rivals" if fit is best.get((pool_of(fit), fit.output)) else ""
        blocks.append(
            Text(f"domain {domain}; error on the largest run, held out: {error}{rivals}{chosen}", style="dim")
        )
    missing = [f"  {name}: {why}" for name, why in lacking.items() if name.partition(" [")[0] == law]
    if missing:
        blocks.append(Text("not fitted:\n" + "\n".join(missing), style="dim"))
    return blocks


def _short(pool: str) -> str:
    """A pool without the names of fields that their values tell."""
    parts = (part.partition("=") for part in pool.split(", "))
    return ", ".join(
        f"{SYMBOLS[name]} {float(value):g}" if name in SYMBOLS else value or name for name, _, value in parts
    )


def _shown(fits: Sequence[Fit]) -> list[Fit]:
    """Each law's of the most observations."""
    most: dict[str, Fit] = {}
    for fit in sorted(fits, key=lambda fit: -fit.num_observations):
        most.setdefault(fit.law, fit)
    return [most[law] for law in dict.fromkeys(fit.law for fit in fits)]


def _main(fit: Fit) -> str:
    """The parameter of the law's leading dial: the exponent of its power where it has one."""
    name = _leading(law_named(fit.law))
    value = fit.parameters[name]
    low, high = _interval(fit, name)
    bound = " (at its bound)" if name in fit.at_bound else ""
    return f"{name} {value:.3g} [{low:.3g}, {high:.3g}]{bound}"


def _leading(law: Law) -> str:
    """The parameter of the term that changes with the leading dial, the others where they are."""
    middle, moved = (
        {name: np.array(3.0 + i) for i, name in enumerate(law.inputs)} | {law.leading: np.array(dial)}
        for dial in (20.0, 30.0)
    )
    terms = [term for term in law.terms if not np.allclose(term.feature(middle), term.feature(moved))]
    return terms[0].shape or terms[0].coefficient


def _interval(fit: Fit, name: str) -> tuple[float, float]:
    """Of the bootstrap draws."""
    place = list(fit.parameters).index(name)
    draws = sorted(draw[place] for draw in fit.draws)
    return draws[round(0.5 * (1 - LEVEL) * (len(draws) - 1))], draws[round(0.5 * (1 + LEVEL) * (len(draws) - 1))]


def held_out_table(judged: Sequence[HeldOut]) -> Titled:
    """How far predictions lay from what was held out, by law, target, kind of draft and temperature."""
    table = Titled(
        "Held out: one further run as predicted", "law", "for", "rows", "mean error", "relative", "inside 90 %"
    )
    groups: dict[tuple[str, str], list[HeldOut]] = {}
    for row_out in judged:
        row = row_out.row
        heat = "" if row.temperature is None else f", T {row.temperature:g}"
        groups.setdefault((row_out.law, f"{row.target}: {row.family or row.method}{heat}"), []).append(row_out)
    for (law, which), group in groups.items():
        away = [abs(row_out.predicted.value - row_out.measured) for row_out in group]
        share = [gap / row_out.measured for gap, row_out in zip(away, group, strict=True) if row_out.measured]
        inside = sum(row_out.predicted.covers(row_out.measured) for row_out in group)
        table.add_row(
            law, which, str(len(group)), f"{sum(away) / len(away):.3g} {group[0].predicted.unit}",
            f"{sum(share) / len(share):.1%}" if share else "–", f"{inside} of {len(group)}",
        )  # fmt: skip
    return table


def best_by_pool(fits: Sequence[Fit]) -> dict[tuple[str, str], Fit]:
    """The law with the smallest held-out error among those fitted to one pool and output, where at least two have one."""
    rivals: dict[tuple[str, str], list[Fit]] = {}
    for fit in fits:
        if fit.held_out_error is not None:
            rivals.setdefault((pool_of(fit), fit.output), []).append(fit)
    return {
        key: min(group, key=lambda fit: fit.held_out_error or 0.0) for key, group in rivals.items() if len(group) > 1
    }


def pool_of(fit: Fit) -> str:
    return (fit.provenance[0].note if fit.provenance else None) or "all"
