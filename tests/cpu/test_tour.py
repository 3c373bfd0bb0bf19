"""The tour's steps are words that the verbs take, and the draft that it shows decodes to the target's own text."""

import shutil
from pathlib import Path

import pytest
from typer.main import get_group

from foredraft import tour
from foredraft.cli.main import app
from foredraft.records import Estimate, ScheduleStep


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, unit="x", source="test")


def step(lookahead: int, topk: int = 1, nodes: int | None = None) -> ScheduleStep:
    value = estimate(1.5)
    return ScheduleStep(
        concurrency=1, running=1, lookahead=lookahead, topk=topk, tree_nodes=lookahead if nodes is None else nodes,
        tokens_per_step=value, speedup=value, output_tok_s=value, tpot_s=value, ttft_s=value,
    )  # fmt: skip


@pytest.mark.parametrize("drafting", [step(4), step(3, 2, 8)])
def test_every_step_is_one_that_its_verb_takes(tmp_path: Path, drafting: ScheduleStep) -> None:
    verbs = get_group(app).commands
    steps = [
        *tour.before_training(tmp_path, tmp_path / "o.jsonl", tmp_path),
        *tour.after_planning(tmp_path, tmp_path, drafting),
    ]
    assert [tour_step.words[0] for tour_step in steps] == ["probe", "plan", "train", "measure", "report"]
    for tour_step in steps:
        verbs[tour_step.words[0]].make_context(tour_step.words[0], list(tour_step.words[1:]))


def test_the_planned_step_in_the_words_of_measure() -> None:
    assert tour.spec(step(4)) == "4"
    assert tour.spec(step(3, 2, 8)) == "3,2,8"


def test_the_text_shown_is_the_targets_own(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tour.show(checkpoint, Path("ngram"), step(4))
    assert f"{tour.ITINERARY.answer_len} tokens, the same with the draft and without" in capsys.readouterr().out


def test_without_the_zoo_the_tour_says_where_it_is(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="checkout of the repository"):
        tour.tour(tmp_path, tmp_path / "none.jsonl", tmp_path / "out")
    shutil.copytree(checkpoint, tmp_path / tour.ITINERARY.target)
    with pytest.raises(ValueError, match=tour.ITINERARY.data):
        tour.tour(tmp_path, tmp_path / "none.jsonl", tmp_path / "out")
