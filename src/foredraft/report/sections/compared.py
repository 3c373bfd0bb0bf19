"""Predicted against measured: a plan beside measurements of the same target and draft at the same load.

Promises: only like is compared with like (target, draft, load, drafting, temperature), and the page says how the draft was
recognised. Refuses to know: how either number came about.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foredraft import kinds
from foredraft.records import DraftChoice, Plan, ScheduleStep
from foredraft.report import marks, style
from foredraft.report.configurations import draft_name, load_of, online, same_load
from foredraft.report.documents import Documents, Row, Span, span_of
from foredraft.report.parts import Picture, Section, Table, levels, number, signed

FILLED_BY = (
    "Plan.json beside measurements.jsonl of the planned draft, at a batch size and lookahead of the plan's schedule"
)
NEAR = 0.05  # sizes that differ by no more are one draft's: a plan's size is rounded to what can be built
QUANTITIES = {"tokens_per_step": "tokens per step", "speedup": "gain over plain decoding, ×"}
TITLES = {"tokens_per_step": "Tokens per step", "speedup": "Gain over plain decoding"}


class Pair(NamedTuple):
    """A prediction and its measurement."""

    plan: Plan
    step: ScheduleStep
    row: Row
    quantity: str

    @property
    def predicted(self) -> Span:
        return span_of(getattr(self.step, self.quantity))

    @property
    def measured(self) -> Span:
        span = self.row.span(self.quantity)
        assert span is not None
        return span

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted.value / self.measured.value - 1

    @property
    def covered(self) -> bool:
        """Whether the measured value lies in the predicted interval."""
        low, high = self.predicted.low, self.predicted.high
        return low is not None and high is not None and low <= self.measured.value <= high


def pairs(documents: Documents) -> list[Pair]:
    """Every prediction that was measured, tokens per step first."""
    steps = [
        (plan, step, row)
        for plan in documents.plans
        for step in plan.schedule
        for row in online(documents.rows)
        if _same(plan, step, row)
    ]
    return [
        Pair(plan, step, row, name)
        for name in QUANTITIES
        for plan, step, row in steps
        if row.span(name) is not None and not _of_another_unit(plan, name)
    ]


def _of_another_unit(plan: Plan, name: str) -> bool:
    """A plan for latency states its gain in TPOT, which is no gain in throughput."""
    return name == "speedup" and plan.objective == "latency"


def _same(plan: Plan, step: ScheduleStep, row: Row) -> bool:
    o = row.observation
    heat = o.temperature is None or o.temperature == plan.workload.temperature
    nodes = o.tree_nodes in (None, step.tree_nodes)
    alike = o.lookahead == step.lookahead and nodes and heat and same_load(o, step.concurrency)
    return (
        bool(step.lookahead) and alike and _last(o.target) == _last(plan.target) and recognised(plan, row) is not None
    )


def recognised(plan: Plan, row: Row) -> str | None:
    """How the row's draft is recognised as the plan's: by its name, or by its kind and size; None where it is another."""
    draft, o = plan.draft, row.observation
    if draft is None or kinds.of_method(o.method).role != draft.kind:
        return None
    if draft.kind == "lookup" or (o.draft and _last(o.draft) == _last(draft.name)):
        return "name"
    return "size" if _same_size(draft, o.draft_params) and _same_tokens(draft, o.draft_tokens) else None


def _same_size(draft: DraftChoice, params: float | None) -> bool:
    sizes = (draft.params, draft.non_embedding_params)
    return params is not None and any(size and abs(params / size - 1) <= NEAR for size in sizes)


def _same_tokens(draft: DraftChoice, tokens: float | None) -> bool:
    """Training tokens alike, where both are known."""
    return not tokens or not draft.draft_tokens or abs(tokens / draft.draft_tokens - 1) <= NEAR


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def section(documents: Documents) -> Section | None:
    measured_pairs = pairs(documents)
    if not measured_pairs:
        return None
    pictures = [_picture(name, [p for p in measured_pairs if p.quantity == name]) for name in QUANTITIES]
    return Section(
        "compared", "Predicted against measured", lede(measured_pairs), [p for p in pictures if p],
        [_table(measured_pairs)],
    )  # fmt: skip


def lede(pairs: Sequence[Pair]) -> str:
    """How the draft was recognised, and how far off the plan was on average."""
    how = {recognised(pair.plan, pair.row) for pair in pairs}
    mark = "name" if how == {"name"} else "size and training tokens"
    errors = " ".join(
        f"{TITLES[name]}: mean error {100 * mean_error(of):.1f}\u00a0% over {style.plural(len(of), 'load')}, "
        f"{sum(pair.covered for pair in of)} of {len(of)} measured values within the predicted interval."
        for name in QUANTITIES
        if (of := [pair for pair in pairs if pair.quantity == name])
    )
    return f"The measured draft is recognised as the planned one by its {mark}. {errors}"


def mean_error(pairs: Sequence[Pair]) -> float:
    """Mean absolute relative error."""
    return float(np.mean([abs(pair.error) for pair in pairs]))


def _picture(quantity: str, pairs: Sequence[Pair]) -> Picture | None:
    if not pairs:
        return None
    pairs = sorted(pairs, key=lambda pair: pair.step.concurrency)
    spans = [pair.predicted for pair in pairs] + [pair.measured for pair in pairs]
    drafts = list(dict.fromkeys(_draft(pair) for pair in pairs))
    target = pairs[0].row.observation.target
    caption = f"{target} with {' and '.join(drafts)}, {style.plural(len(pairs), 'load')}. {levels(spans)} Points side by side are one load."

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        x = np.arange(len(pairs))
        marks.points(
            axes, (x - 0.08).tolist(), [p.predicted for p in pairs], marks.look(0), "predicted", ls="none", ms=7
        )
        marks.points(axes, (x + 0.08).tolist(), [p.measured for p in pairs], marks.look(1), "measured", ls="none", ms=7)
        marks.no_gain(axes)
        named = [f"\n{_draft(pair)}" if len(drafts) > 1 else "" for pair in pairs]
        axes.set_xticks(x, [f"{pair.step.concurrency}{name}" for pair, name in zip(pairs, named, strict=True)])
        axes.set(xlabel="sequences at once", ylabel=QUANTITIES[quantity], xlim=(-0.6, len(pairs) - 0.4))
        axes.margins(y=0.15)
        style.legend(figure, [axes])

    return Picture(
        f"compared-{quantity.replace('_', '-')}", f"{TITLES[quantity]}, predicted and measured", caption, paint
    )


def _draft(pair: Pair) -> str:
    """What was measured, for people."""
    seen = pair.row.observation
    return draft_name(seen.draft) if seen.draft else seen.method


def _table(pairs: Sequence[Pair]) -> Table:
    head = ("what", "draft", "sequences at once", "drafted", "predicted", "measured", "error", "inside the interval")
    rows = [
        (
            TITLES[pair.quantity],
            _draft(pair),
            f"{load_of(pair.row)}",
            f"{pair.step.lookahead}"
            if pair.step.tree_nodes == pair.step.lookahead
            else f"{pair.step.tree_nodes} nodes",
            number(pair.predicted),
            number(pair.measured),
            signed(pair.error),
            "yes" if pair.covered else "no",
        )
        for pair in pairs
    ]
    intervals = levels([span for pair in pairs for span in (pair.predicted, pair.measured)])
    return Table(f"Predicted and measured. {intervals} Error: predicted over measured, less one", head, rows)
