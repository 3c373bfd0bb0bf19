"""From rows to results/smollm2/speed.json: which configuration is whose, which go on, and prompts that choose are not those that are timed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foredraft.records import Estimate, Measurement, Observation, Provenance

FOLDER = Path(__file__).parents[2] / "recipes" / "smollm2"
NAMES = {"e2/final": "eagle2", "s/final": "scylla-L2"}


@pytest.fixture(scope="module")
def recipes():
    """recipes/smollm2/measure.py and speeds.py, which are no package."""
    sys.path.insert(0, str(FOLDER))
    import speeds

    spec = importlib.util.spec_from_file_location("measure_smollm2", FOLDER / "measure.py")
    assert spec
    assert spec.loader
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    yield speeds, measure
    sys.path.remove(str(FOLDER))


def row(
    draft: str | None, speedup: float, category: str | None = None, k: int = 3, tree: tuple[int, int] | None = None
) -> Measurement:
    """A row as `foredraft measure` writes it, its interval a tenth wide."""
    topk, nodes = tree or (1, k)
    dials = (
        {} if draft is None else {"draft": draft, "lookahead": k, "topk": topk, "tree_nodes": nodes, "draft_layers": 1}
    )
    observation = Observation(
        run="r", target="target", method="none" if draft is None else "eagle", provenance=Provenance(source="test"), dtype="float32", batch_size=1,
        temperature=0.0, speedup=speedup, output_tok_s=30 * speedup, tokens_per_step=1 + speedup, num_requests=4, **dials,
    )  # fmt: skip
    interval = Estimate(value=speedup, low=speedup - 0.05, high=speedup + 0.05, unit="×", source="test")
    return Measurement(observation=observation, way="live", category=category, intervals={"speedup": interval})


def rows(draft: str | None, qa: float, code: float, **more: Any) -> list[Measurement]:
    parts = {None: (qa + code) / 2, "qa": qa, "code": code}
    return [row(draft, speedup, category, **more) for category, speedup in parts.items()]


@pytest.fixture
def figures(recipes: tuple[ModuleType, ModuleType]) -> dict[str, Any]:
    run = [
        *rows(None, 1.0, 1.0), *rows("e2/final", 1.2, 1.4), *rows("e2/final", 1.3, 1.5, k=4, tree=(4, 8)), *rows("e2/final", 0.8, 0.9, k=7),
        *rows("s/final", 1.6, 1.8), *rows("s/final+ngram", 1.5, 2.1, k=5), *rows("ngram", 1.1, 1.5, k=5), *rows("ngram", 1.0, 1.2, k=7),
    ]  # fmt: skip
    return recipes[0].configurations(run, NAMES)


def test_configurations_are_named_as_they_are_asked_for(figures: dict[str, Any]) -> None:
    assert {name: of.group for name, of in figures.items()} == {
        "plain": None, "eagle2@3": "draft", "eagle2@4,4,8": "draft", "eagle2@7": "draft", "scylla-L2@3": "draft", "scylla-L2+ngram@5": "beside",
        "ngram@5": "lookup", "ngram@7": "lookup",
    }  # fmt: skip
    assert set(figures["scylla-L2@3"].by_category) == {"qa", "code"}


def test_a_mean_over_categories_weighs_them_equally_and_is_narrower_than_they_are(figures: dict[str, Any]) -> None:
    mean = figures["scylla-L2@3"].speedup_mean
    assert mean.value == pytest.approx(1.7)
    assert mean.high - mean.low == pytest.approx(0.1 / 2**0.5)
    assert figures["scylla-L2@3"].tokens_per_step_mean.low is None  # its categories have no interval


def test_two_specs_of_a_draft_and_one_of_each_look_up_go_on(
    recipes: tuple[ModuleType, ModuleType], figures: dict[str, Any]
) -> None:
    going_on = set(recipes[0].finalists(figures, 2))
    assert going_on == {"eagle2@4,4,8", "eagle2@3", "scylla-L2@3", "scylla-L2+ngram@5", "ngram@5"}
    assert recipes[0].best(figures) == {"draft": "scylla-L2@3", "beside": "scylla-L2+ngram@5", "lookup": "ngram@5"}


def test_prompts_that_choose_are_not_timed(recipes: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    measure = recipes[1]
    lines = [{"id": f"{category}{i}", "category": category} for category in ("qa", "code", "math") for i in range(4)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measure.write_prompts(tmp_path / "all.jsonl", tmp_path, measure.FULL._replace(timed=2, chosen_on=4))
    ids = {
        name: [json.loads(line)["id"] for line in (tmp_path / f"{name}.jsonl").open()]
        for name in ("timed", "chosen-on")
    }
    assert ids == {
        "timed": ["qa0", "qa1", "code0", "code1", "math0", "math1"],
        "chosen-on": ["qa2", "code2", "math2", "qa3"],
    }
    measure.write_prompts(tmp_path / "all.jsonl", tmp_path, measure.FULL._replace(timed=9))
    assert len((tmp_path / "timed.jsonl").read_text().splitlines()) == 9  # one of each is left
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[::4]))
    with pytest.raises(SystemExit, match="too few prompts"):
        measure.write_prompts(tmp_path / "few.jsonl", tmp_path, measure.FULL)


def test_a_cell_names_folders_and_leaves_out_what_no_cpu_gains_from(
    recipes: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    measure = recipes[1]
    bench = measure.Bench("T", {"s": "runs/s/final"}, tmp_path, measure.QUICK, ("@3",), ("@5",), 2, 2)
    words = measure.timed(bench, "timed", ("bfloat16", 8), ["s@4,4,8", "s+ngram@5", "ngram@5"])["run"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--draft"] == [
        "runs/s/final@4,4,8",
        "runs/s/final+ngram@5",
        "ngram@5",
    ]
    assert [measure.fits("s@5,4,16", batch) for batch in (1, 8, 32)] == [True, False, False]
    assert [measure.fits("s@3", batch) for batch in (1, 8, 32)] == [True, True, True]


def test_the_report_keeps_what_was_chosen_apart_from_what_was_best(
    recipes: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    speeds, measure = recipes
    bench = measure.Bench(
        "T", {name: folder for folder, name in NAMES.items()}, tmp_path, measure.QUICK, ("@3",), ("@5",), 2, 2
    )
    bench = bench._replace(
        drafts={"eagle2": str(tmp_path / "e2" / "final"), "scylla-L2": str(tmp_path / "s" / "final")}
    )
    chosen = {"float32-b1": speeds.configurations([*rows(None, 1.0, 1.0), *rows("e2/final", 1.9, 1.9)], NAMES)}
    drafted = rows("e2/final", 1.2, 1.4)
    cells = {
        "speed-float32-b1": [*rows(None, 1.0, 1.0), *drafted, *rows("s/final", 1.6, 1.8)],
        "counted-t0-eagle2": drafted,
    }
    report = measure.report(bench, "p.jsonl", cells, chosen)
    load = report.speed["float32"]["1"]
    assert (load.best, load.chosen) == ({"draft": "scylla-L2@3"}, {"draft": "eagle2@3"})
    assert set(report.counted["0"]) == {"eagle2@3"}
    assert report.drafts["eagle2"].draft_layers == 1
    assert report.categories == {"qa": 4, "code": 4}
