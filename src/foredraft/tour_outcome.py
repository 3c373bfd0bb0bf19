"""What a tour came to: the shipped draft and the minute's draft, each as predicted and as measured.

Promises: every figure is read from the plans and measurements that lie in the tour's folder. Refuses to know: how they were made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foredraft import kinds, records, runs
from foredraft.records import Estimate, Measurement, Observation, Plan, Record, ScheduleStep


class DraftOutcome(Record, frozen=True):
    """A draft at one request at a time. `spec`: its lookahead or tree in the words of `measure`; `predicted_*`: by its plan."""

    draft: str
    spec: str
    predicted_speedup: Estimate
    predicted_tokens_per_step: Estimate
    speedup: Estimate
    tokens_per_step: float
    output_tok_s: float
    draft_params: float | None = None
    draft_tokens: float | None = None


class TourOutcome(Record, frozen=True):
    """`shipped`: the best draft of the zoo; `trained`: the one of the tour's own minute. `same_tokens`: of the texts shown, that were the
    same with each draft and without; `prompts` were answered to `answer_len` tokens on average.
    """

    target: str
    machine: str
    dtype: str
    prompts: int
    answer_len: float
    plain_tok_s: float
    same_tokens: int
    shipped: DraftOutcome
    trained: DraftOutcome


def spec(step: ScheduleStep) -> str:
    """The step's lookahead or tree in the words of `--draft DIR@…`."""
    return f"{step.lookahead}" if step.topk == 1 else f"{step.lookahead},{step.topk},{step.tree_nodes}"


def drafting(plan: Plan) -> ScheduleStep:
    """How the plan drafts at its smallest load that drafts at all. Raises ValueError where it drafts at none."""
    step = next((step for step in plan.schedule if step.lookahead), None)
    if step is None:
        raise ValueError(
            f"the plan for {plan.target} drafts at no load; measure a draft's folder with foredraft measure instead"
        )
    return step


def outcome(measured: Path, shipped: tuple[str, Plan], trained: tuple[str, Plan], same_tokens: int) -> TourOutcome:
    """From the folder `measured` that `foredraft measure` wrote; drafts as words of --draft before the @, each with its plan."""
    rows = [
        row
        for row in records.read_lines(Measurement, measured / "measurements.jsonl")
        if row.way == "live" and row.category is None
    ]
    plain = _row(rows, None, 0).observation
    return TourOutcome(
        target=plain.target, machine=plain.machine or "unknown", dtype=plain.dtype or "unknown", prompts=_measured(plain, "num_requests"),
        answer_len=_measured(plain, "output_len"), plain_tok_s=_measured(plain, "output_tok_s"), same_tokens=same_tokens,
        shipped=_of_draft(rows, *shipped), trained=_of_draft(rows, *trained),
    )  # fmt: skip


def _of_draft(rows: Sequence[Measurement], draft: str, plan: Plan) -> DraftOutcome:
    step = drafting(plan)
    folder, beside, lookup = draft.partition(kinds.BESIDE)
    row = _row(rows, runs.name_of(folder) + beside + lookup, step.lookahead, step.tree_nodes)
    seen, speedup = row.observation, row.intervals.get("speedup")
    if speedup is None:  # of one request
        value = _measured(seen, "speedup")
        speedup = Estimate(value=value, low=value, high=value, unit="× plain decoding", source="foredraft measure")
    return DraftOutcome(
        draft=draft, spec=spec(step), predicted_speedup=step.speedup, predicted_tokens_per_step=step.tokens_per_step, speedup=speedup,
        tokens_per_step=_measured(seen, "tokens_per_step"), output_tok_s=_measured(seen, "output_tok_s"), draft_params=seen.draft_params,
        draft_tokens=seen.draft_tokens,
    )  # fmt: skip


def _measured(seen: Observation, field: str) -> Any:
    """A field that the engine's own steps give. Raises ValueError where it is missing."""
    value = getattr(seen, field)
    if value is None:
        raise ValueError(f"{seen.draft or 'plain decoding'}: {field} was not measured; measure again with --way live")
    return value


def _row(rows: Sequence[Measurement], draft: str | None, lookahead: int, nodes: int | None = None) -> Measurement:
    """One request at a time, of plain decoding (None) or of a draft in one way."""
    for row in rows:
        seen = row.observation
        alike = seen.draft == draft if draft else seen.method == "none"
        if alike and seen.lookahead == lookahead and nodes in (None, seen.tree_nodes) and (seen.batch_size or 1) == 1:
            return row
    raise ValueError(f"{draft or 'plain decoding'} at lookahead {lookahead} was not measured one request at a time")


def lines(came: TourOutcome) -> list[str]:
    """The tour's first figures, for people."""
    best, trained = came.shipped, came.trained
    return [
        f"{best.speedup.value:.2f} × as fast with {best.draft} at {best.spec}: {best.output_tok_s:.1f} tokens/s, plain {came.plain_tok_s:.1f}, "
        f"the same text; {_beside(best.speedup, best.predicted_speedup)}",
        f"{best.tokens_per_step:.2f} tokens per step with it; predicted {_range(best.predicted_tokens_per_step)}",
        f"{trained.tokens_per_step:.2f} tokens per step with what was trained here, {trained.draft} at {trained.spec}; predicted "
        f"{_range(trained.predicted_tokens_per_step)}: {_inside(trained.predicted_tokens_per_step, trained.tokens_per_step)}",
        f"{trained.speedup.value:.2f} × as fast with it; {_beside(trained.speedup, trained.predicted_speedup)}",
    ]


def _beside(measured: Estimate, predicted: Estimate) -> str:
    """A measured value's interval, and whether it lies in the predicted one."""
    own = f"90 % interval {measured.low:.2f} to {measured.high:.2f}; " if measured.low < measured.high else ""
    return f"{own}predicted {_range(predicted)}: {_inside(predicted, measured.value)}"


def _range(predicted: Estimate) -> str:
    return f"{predicted.value:.2f} ({predicted.low:.2f} to {predicted.high:.2f})"


def _inside(predicted: Estimate, value: float) -> str:
    return "inside" if predicted.covers(value) else "outside"
