"""Lengths that follow the draft's confidence, in launch files: whether a plan says that they pay, the settings that switch them on, and a line
for people. Refuses to know: how the gain is predicted (`plan.lengths`).
"""

import math
from collections.abc import Mapping
from typing import Any

from foredraft.engines.engine import ServingEngine
from foredraft.kinds import Kind
from foredraft.records import LengthGain, Plan


def adapted(engine: ServingEngine, settings: Mapping[str, Any], plan: Plan, kind: Kind) -> dict[str, Any]:
    """`settings` with lengths that follow the draft's confidence where the plan says that they pay and the launch file can say so; else as
    they are.
    """
    switched = engine.with_adaptive(settings, kind) if pays(engine, plan) else None
    return dict(settings) if switched is None else switched


def pays(engine: ServingEngine, plan: Plan) -> bool:
    """Whether the plan, made for this engine, predicts a sure gain over the best fixed length at some load, a loss at none, and over all
    loads more than what else the engine would run: its schedule by batch, or the fixed length where it has none.
    """
    verdicts = {each.adaptive_verdict for each in plan.lengths}
    return plan.engine == engine.name and "worth it" in verdicts and "loses" not in verdicts and _lead(engine, plan) > 0


def _lead(engine: ServingEngine, plan: Plan) -> float:
    """log of what adaptive lengths bring over the engine's other way, weighted over the loads."""
    weights = plan.workload.weights or (1.0,) * len(plan.lengths)
    return sum(
        weight * math.log(each.adaptive.value / (1.0 if engine.one_mode else each.schedule.value))
        for weight, each in zip(weights, plan.lengths, strict=True) if each.adaptive
    )  # fmt: skip


def note(engine: ServingEngine, settings: Mapping[str, Any], plan: Plan, kind: Kind) -> str:
    """A line for a launch file: whether lengths follow the draft's confidence there, and why; `settings` as without them."""
    adaptive = engine.adaptive(kind)
    if adaptive is None:
        return f"{engine.label} has no length that follows this draft's confidence."
    if plan.engine != engine.name:
        return f"Lengths that follow the draft's confidence ({adaptive.setting}) were not weighed: the plan is for {plan.engine}."
    needs = f"; needs {adaptive.needs}" if adaptive.needs else ""
    gains, losses = ([each for each in plan.lengths if each.adaptive_verdict == word] for word in ("worth it", "loses"))
    if not pays(engine, plan):
        why = f"they lose {_at(losses)}" if losses else "they bring nothing sure over a fixed length at these loads"
        if gains and not losses:
            why = "the schedule by batch brings more"
        return f"Lengths that follow the draft's confidence ({adaptive.setting}{needs}) are off: {why}."
    brings = f"predicted to be worth it {_at(gains)}"
    if engine.with_adaptive(settings, kind) is None:
        return f"Lengths that follow the draft's confidence are {brings}, but take more than this file: {adaptive.setting}{needs}."
    return f"Lengths follow the draft's confidence, {brings} ({adaptive.setting}{needs}); leave it out where the server refuses it."


def _at(gains: list[LengthGain]) -> str:
    """at 64 (+8 %), 128 (+20 %) clients."""
    loads = ", ".join(f"{each.concurrency} ({each.adaptive.value - 1:+.0%})" for each in gains if each.adaptive)
    return f"at {loads} clients"
