"""What a tour came to: each draft's measured row beside its plan's prediction, and whether it lies inside."""

from pathlib import Path
from typing import Any

import pytest

from foredraft import records
from foredraft.records import Estimate, Measurement, Observation, Plan, Provenance, ScheduleStep, Workload
from foredraft.tour_outcome import lines, outcome, spec


def estimate(value: float, spread: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread, unit="x", source="test")


def step(lookahead: int, topk: int = 1, nodes: int | None = None, gain: float = 1.5) -> ScheduleStep:
    return ScheduleStep(
        concurrency=1, running=1, lookahead=lookahead, topk=topk, tree_nodes=lookahead if nodes is None else nodes,
        tokens_per_step=estimate(2.0), speedup=estimate(gain), output_tok_s=estimate(1.5), tpot_s=estimate(1.5), ttft_s=None,
    )  # fmt: skip


def plan(*schedule: ScheduleStep) -> Plan:
    return Plan(
        objective="throughput", engine="foredraft", target="T", machine="M", devices=1, dtype="float32", speedup=estimate(1.5),
        workload=Workload(input_len=8, output_len=8, concurrency=(1,)), schedule=schedule,
    )  # fmt: skip


def row(draft: str | None, lookahead: int, nodes: int, speed: float, **more: Any) -> Measurement:
    seen = Observation(
        run="r", target="T", method="eagle" if draft else "none", provenance=Provenance(source="test"), draft=draft, dtype="float32",
        machine="M", lookahead=lookahead, tree_nodes=nodes, topk=1, batch_size=1, output_len=20.0, num_requests=12, output_tok_s=speed,
        tokens_per_step=1.9, speedup=speed / 10,
    )  # fmt: skip
    return Measurement(
        observation=seen, way="live", intervals={"speedup": estimate(speed / 10, 0.05)} if draft else {}, **more
    )


def measured(folder: Path, *rows: Measurement) -> Path:
    records.write_lines(folder / "measurements.jsonl", rows)
    return folder


def test_each_draft_stands_beside_its_own_plan(tmp_path: Path) -> None:
    folder = measured(
        tmp_path, row(None, 0, 0, 10.0), row("eagle+ngram:3", 4, 4, 12.0, category="stem"), row("eagle+ngram:3", 4, 4, 14.5),
        row("run/final", 3, 8, 11.0), row("run/final", 3, 3, 99.0),
    )  # fmt: skip
    came = outcome(folder, ("zoo/eagle+ngram:3", plan(step(4))), ("out/run/final", plan(step(3, 2, 8))), 20)
    assert (came.plain_tok_s, came.shipped.output_tok_s, came.trained.output_tok_s) == (10.0, 14.5, 11.0)
    assert (came.shipped.spec, came.trained.spec) == ("4", "3,2,8")
    first, *_, last = lines(came)
    assert first.startswith(
        "1.45 × as fast with zoo/eagle+ngram:3 at 4: 14.5 tokens/s, plain 10.0, the same text; 90 % interval 1.40"
    )
    assert first.endswith("predicted 1.50 (1.40 to 1.60): inside")
    assert last.endswith("predicted 1.50 (1.40 to 1.60): outside")


def test_what_was_not_measured_is_refused_and_not_made_up(tmp_path: Path) -> None:
    folder = measured(tmp_path, row(None, 0, 0, 10.0), row("eagle", 5, 5, 12.0))
    with pytest.raises(ValueError, match="eagle at lookahead 4 was not measured"):
        outcome(folder, ("zoo/eagle", plan(step(4))), ("zoo/eagle", plan(step(5))), 20)
    with pytest.raises(ValueError, match="drafts at no load"):
        outcome(folder, ("zoo/eagle", plan(step(5))), ("zoo/eagle", plan(step(0))), 20)


def test_a_step_in_the_words_of_measure() -> None:
    assert spec(step(4)) == "4"
    assert spec(step(3, 2, 8)) == "3,2,8"
