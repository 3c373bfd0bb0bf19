"""Lengths as tables for a terminal: a plan's choice of fixed, scheduled or adaptive, and the judged cases. Refuses to know: how any of
it is computed.
"""

from foredraft.records import Estimate, JudgedLengths, LengthGain, Plan
from foredraft.report.terminal import Blocks, Titled

ADAPTS = {
    "sequence": "each sequence's length by the draft's confidence",
    "batch": "one length for the batch, by what it accepted of late",
}


def length_table(plan: Plan) -> Blocks:
    """What a schedule and an adaptive length bring over the best fixed lookahead; nothing where none was weighed."""
    if not plan.lengths:
        return []
    first = plan.lengths[0]
    fixed = f"k = {first.fixed}" if first.fixed else "no speculation"
    table = Titled(
        f"Fixed, schedule or adaptive? Over {fixed} at every load (chains; 90 % intervals)", "clients", "schedule", "brings",
        "", "adaptive verifies", "brings", "",
    )  # fmt: skip
    for gain in plan.lengths:
        table.add_row(
            str(gain.concurrency),
            str(gain.scheduled or "off"),
            _percent(gain.schedule),
            gain.schedule_verdict,
            *_adaptive(gain),
        )
    return [table, _note(plan), *_uncaptured(plan)]


def _uncaptured(plan: Plan) -> list[str]:
    steps = [(gain.concurrency, gain.uncaptured) for gain in plan.lengths if gain.uncaptured]
    if not steps:
        return []
    clients, tokens = steps[0]
    return [
        f"from {clients} clients on the schedule verifies {tokens:,.0f} tokens a step and more: capture graphs for them, or it may lose what it gains"
    ]


def _adaptive(gain: LengthGain) -> tuple[str, str, str]:
    if gain.adaptive is None or gain.verified is None:
        return "", "no confidence to follow", ""
    return f"{gain.verified:.1f}", _percent(gain.adaptive), gain.adaptive_verdict or ""


def _note(plan: Plan) -> str:
    first = plan.lengths[0]
    if first.adaptive is None:
        return "prompt lookup shows no confidence that a length could follow"
    if first.setting:
        return f"adaptive: {ADAPTS[first.adapts or 'sequence']}: {first.setting}"
    return f"adaptive is not planned: {plan.engine} has no such setting for this draft; the figures say what it would bring"


def _percent(estimate: Estimate) -> str:
    value, low, high = (f"{100 * (number - 1):+.0f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"


def judged_length_tables(judged: JudgedLengths) -> Blocks:
    """Published cases of adaptive lengths and of schedules, predicted against measured."""
    blocks: Blocks = []
    if judged.adaptive:
        covered, said = sum(case.covered for case in judged.adaptive), [case.agrees for case in judged.adaptive]
        right = [agrees for agrees in said if agrees is not None]
        table = Titled(
            f"Adaptive over fixed lengths, published cases: gain or loss right in {sum(right)} of {len(right)}, "
            f"in the 90 % interval {covered} of {len(judged.adaptive)}",
            "setting", "load", "fixed k", "measured", "predicted", "90 % interval", "costs", "",
        )  # fmt: skip
        for case in judged.adaptive:
            ends = f"{100 * (case.low - 1):+.0f} – {100 * (case.high - 1):+.0f} %"
            marks = ", ".join(
                mark for mark, shown in (("wrong side", case.agrees is False), ("outside", not case.covered)) if shown
            )
            table.add_row(
                f"{case.document}: {case.setting}", str(case.load), str(case.lookahead), f"{100 * (case.measured - 1):+.0f} %",
                f"{100 * (case.predicted - 1):+.0f} %", ends, case.costs, marks,
            )  # fmt: skip
        blocks.append(table)
    if judged.schedules:
        table = Titled(
            "Schedules over the best fixed length: mean loss to the best length of each load",
            "case",
            "fixed k",
            "fixed",
            "schedule",
        )
        for each in judged.schedules:
            table.add_row(each.setting, str(each.fixed), f"{each.fixed_regret:.1%}", f"{each.schedule_regret:.1%}")
        blocks.append(table)
    if judged.lacking:
        blocks.append("not judged:\n" + "\n".join(f"  {what} ({count})" for what, count in judged.lacking.items()))
    return blocks
