"""Predictions judged on measurements, as tables for a terminal. Refuses to know: how anything in them is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from foredraft.records import Hindsight
from foredraft.report.terminal import Blocks, Titled
from foredraft.validate.findings import Validation

RATIO_FIGURES = (
    ("mean error of the ratio", "throughput_ratio_error"),
    ("the same by the plain rule", "plain_rule_throughput_ratio_error"),
    ("in the 90 % interval", "throughput_ratio_coverage"),
    ("best-k regret, mean", "best_k_regret_mean"),
    ("best-k regret, worst", "best_k_regret_worst"),
    ("the plain rule's, mean", "plain_rule_regret_mean"),
    ("the plain rule's, worst", "plain_rule_regret_worst"),
    ("best fixed k loses, mean", "best_fixed_k_regret_mean"),
    ("best fixed k loses, worst", "best_fixed_k_regret_worst"),
)
FEW_POINTS = 40  # of a table that are shown one by one


def _covered(summary: Mapping[str, Any], kind: str) -> str:
    share = summary.get(f"{kind}_coverage")
    return "" if share is None else f", {share:.0%} in the 90 % interval"


def _gain_words(summary: Mapping[str, Any]) -> str:
    words = f"speedups from names alone: median error {summary['gain_median_error']:.0%}, worst {summary['gain_worst_error']:.0%}"
    words += f" over {summary['gain_rows']} rows{_covered(summary, 'gain')}"
    if rows := summary.get("speculate_or_not_rows"):
        words += f"; whether to speculate right in {summary['speculate_or_not_right']:.0%} of {rows} rows beyond ±5 %"
    return words


def _named(name: str, validation: Validation, summary: Mapping[str, Any]) -> Blocks:
    """What follows from names alone: point by point where they are few, and medians, worst and coverage."""
    blocks: Blocks = []
    points = [(p.quantity, p) for p in validation.named] + [("speedup", p) for p in validation.gains]
    stated = [p for p in validation.ladders if p not in validation.gains]
    points += [("speedup, with its τ", p) for p in stated]
    if len(points) <= FEW_POINTS:
        table = Titled(
            f"{name}: from names alone", "setting", "load", "quantity", "measured", "predicted", "90 % interval", "off"
        )
        for quantity, p in points:
            ends = "" if p.low is None or p.high is None else f"{p.low:,.4g} – {p.high:,.4g}"
            off = f"{p.predicted / p.measured - 1:+.0%}"
            table.add_row(p.setting, str(p.load), quantity, f"{p.measured:,.4g}", f"{p.predicted:,.4g}", ends, off)
        blocks.append(table)
    if validation.named:
        table = Titled(f"{name}: errors from names alone", "quantity", "rows", "median", "worst", "in the interval")
        for key in (key.removesuffix("_median_error") for key in summary if key.endswith("_median_error")):
            rows, worst, covered = (summary[f"{key}_{of}"] for of in ("rows", "worst_error", "coverage"))
            median = summary[f"{key}_median_error"]
            table.add_row(key.replace("_", " "), str(rows), f"{median:.1%}", f"{worst:.1%}", f"{covered:.0%}")
        blocks.append(table)
    return blocks


def validation_tables(judged: Mapping[str, Validation], refused: Mapping[str, str]) -> Blocks:
    """Errors by table, the points of small tables, and what was not judged."""
    blocks: Blocks = []
    for name, validation in judged.items():
        summary = validation.summary()
        if validation.curves:
            blocks.append(_curve_errors(f"{name}: τ at larger k from k ≤ 2", summary))
        if validation.ratios:
            table = Titled(f"{name}: throughput from no draft and k ≤ 2 (or the smallest k)", "what", "value")
            for label, key in RATIO_FIGURES:
                if key in summary:
                    table.add_row(label, f"{summary[key]:.2%}")
            table.add_row("rows predicted / choices of k", f"{len(validation.ratios)} / {len(validation.choices)}")
            blocks.append(table)
        for kind, what, points in (
            ("tree_ratio", "ratio of trees with their τ, from rows known as above", validation.trees),
            ("ladder_ratio", "ratio by batch from shape, machine and τ", validation.ladders),
        ):
            if points:
                blocks.append(
                    Text(
                        f"{name}: {what}: mean error {summary[f'{kind}_error']:.1%} over {len(points)} rows{_covered(summary, kind)}\n"
                    )
                )
        if validation.gains:
            blocks.append(Text(f"{name}: {_gain_words(summary)}\n"))
        if validation.named or 0 < len(validation.gains) <= FEW_POINTS:
            blocks += _named(name, validation, summary)
        notes = [f"{count} rows lack {what}" for what, count in validation.lacking.items()] + [
            f"assumed: {note}" for note in validation.assumed
        ]
        if notes:
            blocks.append(Text("\n".join(f"  {note}" for note in notes) + "\n", style="dim"))
    if refused:
        blocks.append(
            Text("not judged:\n" + "\n".join(f"  {name}: {why}" for name, why in refused.items()), style="dim")
        )
    return blocks


def hindsight_tables(judged: Sequence[Hindsight]) -> Blocks:
    """Errors of speedup by kind of cell, and the planned independent draft at each load."""
    blocks: Blocks = []
    for hindsight in judged:
        where = f"{hindsight.target} on {hindsight.machine}, temperature {hindsight.temperature:g}"
        table = Titled(
            f"{where}: speedups from {hindsight.calibration_rows} rows up to k = {hindsight.known_lookahead}",
            "cells",
            "number",
            "mean error",
        )
        groups: dict[str, list[float]] = {}
        for cell in hindsight.cells:
            kind = "chains" if cell.tree_nodes <= cell.lookahead else "trees"
            for name in ("all", f"{kind} at batch {cell.load}"):
                groups.setdefault(name, []).append(abs(cell.predicted / cell.measured - 1))
        for name, errors in groups.items():
            table.add_row(name, str(len(errors)), f"{sum(errors) / len(errors):.1%}")
        blocks.append(table)
        if hindsight.choices:
            picks = Titled(
                "the chosen independent draft against the best measured", "by", "batch", "chosen", "best", "loses"
            )
            for choice in hindsight.choices:
                planned, best = (
                    f"{choice.params:.3g} on {choice.tokens:.3g}{f' (N* {choice.optimum:.3g})' if choice.optimum else ''}",
                    f"{choice.best_params:.3g} on {choice.best_tokens:.3g}",
                )
                picks.add_row(choice.by, str(choice.load), planned, best, f"{choice.regret:.1%}")
            blocks.append(picks)
        if hindsight.drafts:
            blocks.append(_predicted_drafts(hindsight))
        blocks += [f"not judged: {why}" for why in hindsight.lacking]
    return blocks


def _predicted_drafts(hindsight: Hindsight) -> Titled:
    title = "largest and longest trained drafts, predicted from the others"
    table = Titled(title, "kind", "drafts", "mean error of τ", "inside 90 %")
    for kind in dict.fromkeys(draft.kind for draft in hindsight.drafts):
        drafts = [draft for draft in hindsight.drafts if draft.kind == kind]
        error = sum(abs(draft.predicted.value / draft.measured - 1) for draft in drafts) / len(drafts)
        table.add_row(
            kind,
            str(len(drafts)),
            f"{error:.1%}",
            f"{sum(draft.predicted.covers(draft.measured) for draft in drafts)} of {len(drafts)}",
        )
    return table


RULES = (
    ("the law", "tokens_per_step"),
    ("constant α", "constant_alpha"),
    ("α of the 2nd", "second_alpha"),
    ("its step carried on", "carried_step"),
)


def _curve_errors(title: str, summary: Mapping[str, Any]) -> Titled:
    """By document and kind of draft, and over all: mean errors of the law and of each plain rule, and coverage."""
    table = Titled(title, "document", "kind", "curves", *(name for name, _ in RULES), "in the 90 % interval")
    groups = summary["curves_by_kind"]
    for group in (
        groups
        if len(groups) == 1
        else [*groups, {**summary, "document": "all", "kind": "", "curves": sum(g["curves"] for g in groups)}]
    ):
        errors = (group.get(f"{key}_error") for _, key in RULES)
        table.add_row(
            group["document"], group["kind"], str(group["curves"]), *("" if e is None else f"{e:.1%}" for e in errors),
            f"{group['interval_coverage']:.0%}",
        )  # fmt: skip
    return table
