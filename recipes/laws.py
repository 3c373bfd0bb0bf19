"""The laws on what a sweep measured, held to what they were not shown; and with --target, the plans.

    python recipes/laws.py OBSERVATIONS.jsonl.gz OUT.json [--target DIR --machine MACHINE.json [--target-name NAME] [--beside DRAFT/ …]]

Held out are, of each target and recipe, the largest draft, the deepest head and the longest budget; of the laws in width the widest tree.
`laws`: by law, target, recipe and temperature, rows held out, mean error absolute and relative, how many lay inside the 90 % interval of
one further run; and the range of R² over the fits to the rest. `chosen`: the same by outcome, temperature and recipe (None: all) of one
prediction for each held-out outcome, by the law that erred least on runs left out of the rest: it is chosen before it is judged.
`lacking`: what could not be held out, and why. `plans`: plans.py.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import plans

from foredraft import machines, records, shapes
from foredraft.laws.fit import by_range, fit_all
from foredraft.laws.forms import law_named
from foredraft.laws.held_out import DIALS, HeldOut, judge, r_squared, without_largest
from foredraft.records import Fit, Observation

Key = tuple[str, str, str, float | None]
SPLITS = (("draft_params", "draft_layers", "draft_tokens"), ("tree_nodes",))  # the second for the laws in width


class Judged(NamedTuple):
    """A fit on the rest, a row that it was fitted on, its R², and what it says of rows that were held out."""

    fit: Fit
    like: Observation | None
    r_squared: float | None
    held_out: list[HeldOut]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observations", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", help="the study's target; judges plans too, with --machine")
    parser.add_argument("--target-name", help="what the observations call it, where that is not the folder's name")
    parser.add_argument("--machine", help="a Machine record, as foredraft probe writes it")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="DRAFT/",
        help="trained drafts that plans weigh with all others",
    )
    arguments = parser.parse_args()
    if bool(arguments.target) != bool(arguments.machine):
        parser.error("plans are judged with --target and --machine; give both")
    rows = records.read_lines(Observation, arguments.observations)
    report = judged_laws(rows)
    if arguments.target:
        target = shapes.named(arguments.target)
        named = [
            msgspec.structs.replace(row, target=target.name) if row.target == arguments.target_name else row
            for row in rows
        ]
        report["plans"] = plans.judged(target, machines.named(arguments.machine), named, arguments.beside)
    records.write(arguments.out, report)
    for each in report["chosen"]:
        if each["family"] is None:
            where = f"{each['outcome']} at temperature {each['temperature']:g}: {each['held_out']} held out"
            print(
                f"{where}, error {each['error']:.3g} ({each['relative_error']:.1%}), {each['inside_90']} inside their 90 % intervals"
            )


def judged_laws(rows: Sequence[Observation]) -> dict[str, Any]:
    fits = [judged for dials in SPLITS for judged in judge_split(rows, dials)]  # each once, for they take seconds
    return {"laws": by_law(fits), "chosen": list(chosen(fits)), "lacking": lacking(rows)}


def judge_split(rows: Sequence[Observation], dials: Sequence[str]) -> Iterator[Judged]:
    """Every law on the rows without the largest of `dials`; where that is the width, the laws in width."""
    training_rows, away = without_largest(rows, dials)
    for fit in fit_all(training_rows)[0]:
        if (law_named(fit.law).leading == "tree_nodes") is ("tree_nodes" in dials):
            like = next(iter(by_range(fit, training_rows)[0]), None)
            yield Judged(fit, like, r_squared(fit, training_rows), judge(fit, away))


def place(law: str, row: Observation) -> Key:
    return law, row.target.removesuffix("/final"), row.family or row.method, row.temperature


def by_law(fits: Iterable[Judged]) -> list[dict[str, Any]]:
    """Every law by itself."""
    held_out: dict[Key, list[HeldOut]] = defaultdict(list)
    fitted: dict[Key, list[float]] = defaultdict(list)
    for judged in fits:
        for judgement in judged.held_out:
            held_out[place(judged.fit.law, judgement.row)].append(judgement)
        if judged.like is not None and judged.r_squared is not None:
            fitted[place(judged.fit.law, judged.like)].append(judged.r_squared)
    return [
        {"law": law, "target": target, "family": family, "temperature": heat}
        | summary(held_out[key])
        | {"r_squared": [min(fitted[key]), max(fitted[key])] if fitted[key] else None}
        for key in sorted({*held_out, *fitted}, key=str)
        for law, target, family, heat in [key]
    ]


def chosen(fits: Iterable[Judged]) -> Iterator[dict[str, Any]]:
    """One prediction of each held-out outcome, by the law of the least error on runs left out of the rest; of no law without that error."""
    best: dict[tuple[str, Observation], tuple[float, HeldOut]] = {}
    for fit, _, _, held_out in fits:
        if fit.held_out_error is not None:
            for judgement in held_out:
                key = fit.output, judgement.row
                best[key] = min(
                    best.get(key, (np.inf, judgement)), (fit.held_out_error, judgement), key=lambda pair: pair[0]
                )
    groups: dict[tuple[str, float, str | None], list[HeldOut]] = defaultdict(list)
    for (outcome, row), (_, judgement) in best.items():
        for family in (None, row.family or row.method):
            groups[outcome, row.temperature or 0.0, family].append(judgement)
    for (outcome, heat, family), judgements in sorted(groups.items(), key=str):
        laws = sorted({judgement.law for judgement in judgements})
        yield {"outcome": outcome, "temperature": heat, "family": family, "laws": laws} | summary(judgements)


def summary(judgements: Sequence[HeldOut]) -> dict[str, Any]:
    off = np.array([abs(judgement.predicted.value - judgement.measured) for judgement in judgements])
    measured = np.array([judgement.measured for judgement in judgements])
    return {
        "held_out": len(judgements),
        "error": float(off.mean()) if judgements else None,
        "relative_error": float((off / measured).mean()) if judgements else None,
        "inside_90": sum(judgement.predicted.covers(judgement.measured) for judgement in judgements),
    }


def lacking(rows: Iterable[Observation]) -> list[str]:
    """What cannot be held out: dials that vary, but over fewer than three values, since two would leave no law to fit."""
    values: dict[tuple[str, str, str], set[float]] = defaultdict(set)
    for row in rows:
        for dial in DIALS:
            value = getattr(row, dial)
            if value is not None and not (dial == "tree_nodes" and (row.topk or 1) == 1):
                values[row.target.removesuffix("/final"), row.family or row.method, dial].add(value)
    return [
        f"{family} of {target}: {dial} has {len(of)} value{'s' if len(of) > 1 else ''}, of which none can be held out; three are needed"
        for (target, family, dial), of in sorted(values.items())
        if len(of) < 3
    ]


if __name__ == "__main__":
    main()
