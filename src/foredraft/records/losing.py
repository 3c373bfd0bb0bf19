"""Where a plan's schedule loses to a server without a draft: at which loads, from which on, and the sentence in which plan, report, page and
cards say so.

Promises: all of it follows from the schedule. Refuses to know: engines, how a schedule is found.
"""

import math
from collections.abc import Sequence

from foredraft.records.planned import Plan, ScheduleStep

EVEN = 0.995  # of a gain: above, nothing is lost


def losing(plan: Plan) -> list[ScheduleStep]:
    """The loads at which a server without a draft is the faster one, or as fast, the least first."""
    return [step for step in sorted(plan.schedule, key=lambda step: step.concurrency) if not step.gains]


def last_gaining(loads: Sequence[tuple[float, ScheduleStep]]) -> float | None:
    """About the largest load at which a schedule gains over no draft: behind the last step that does, where the gain, in log, comes to 1
    between it and the next; midway where that one drafts nothing. None where the largest load gains, 0 where none does.
    """
    ordered = sorted(loads, key=lambda each: each[0])
    gaining = [i for i, (_, step) in enumerate(ordered) if step.gains]
    if not gaining:
        return 0.0
    if gaining[-1] + 1 == len(ordered):
        return None
    (load, step), (beyond, lost) = ordered[gaining[-1] : gaining[-1] + 2]
    if not lost.lookahead:
        return (load + beyond) / 2
    gain, loss = math.log(step.speedup.value), math.log(lost.speedup.value)
    return load * (beyond / load) ** (gain / (gain - loss))


def without_draft(plan: Plan, always: bool = False) -> str:
    """Where a server without a draft is faster than the planned one, by how much, and what the schedule does there; "" where it is nowhere,
    or where no draft is planned. `always`: of a server that drafts at every load, whatever the schedule.
    """
    loads = losing(plan)
    if not loads or plan.draft is None:
        return ""
    off = last_gaining([(step.concurrency, step) for step in plan.schedule])
    where = f"at {', '.join(f'{step.concurrency:,}' for step in loads)} clients"
    if off and loads[0].concurrency > off:
        where = f"above about {off:,.0f} clients"
    most = loads[-1]
    gain, faster = most.speedup, "faster" if most.speedup.value < EVEN else "as fast"
    times = f"{1 / gain.value:.2f} [{1 / gain.high:.2f}, {1 / gain.low:.2f}] × at {most.concurrency:,}"
    drafts = always or any(step.lookahead for step in loads)
    what = "serve such loads without one" if drafts else "the schedule drafts nothing there (k = 0)"
    return f"{where} a server without a draft is {faster}: {times}; {what}"
