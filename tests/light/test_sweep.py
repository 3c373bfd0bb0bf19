"""Sweeps: what a document comes to, digests, going on after failures, kills and changes. Cells run a stand-in for foredraft."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foredraft import records
from foredraft.recipe import Recipe
from foredraft.records import Observation, Plan
from foredraft.sweep.cells import REFERENCE, Cell, Places, definitions, dependants, difference, missing, ordered
from foredraft.sweep.expand import expand, laid, short
from foredraft.sweep.figures import seconds_left
from foredraft.sweep.folder import DONE, FAILED, CellState, Sweep
from foredraft.sweep.grid import Grid
from foredraft.sweep.job import Job, execute, reason
from foredraft.sweep.local_runner import LocalRunner
from foredraft.sweep.planned import planned
from foredraft.sweep.run import Driver, failures, prepared
from foredraft.sweep.table import most_telling

# Stands in for `foredraft`: trains by steps that it keeps in a file, measures by writing an observation, fails as its words say.
STAND_IN = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
def after(option):
    return words[words.index(option) + 1]
with open(os.environ["STARTS"], "a") as starts:
    starts.write(" ".join(words[:2]) + "\\n")
if words[0] == "fail":
    print("something to say")
    print("error: cannot allocate memory" if words[1] == "memory" else "error: it went wrong")
    sys.exit(2)
if words[0] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if words[0] == "empty":
    sys.exit(0)
if words[0] == "steps":
    kept = pathlib.Path(words[1]); done = int(kept.read_text()) if kept.is_file() else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    while done < int(words[2]):
        done += 1; part = kept.with_suffix(".part"); part.write_text(str(done)); os.replace(part, kept)
        time.sleep(0.02 * pathlib.Path(os.environ["STARTS"]).with_name("slow").exists())
    sys.exit(0)
out = pathlib.Path(after("--out"))
if words[0] == "train":
    recipe = json.loads(pathlib.Path(words[1]).read_text())
    exports = recipe.get("watch", {}).get("export_at", [])
    for name in ["final", *(f"exports/tokens-{budget:.6g}" for budget in exports)]:
        (out / name).mkdir(parents=True)
        (out / name / "config.json").write_text(json.dumps(recipe))
    tokens = sum(stage["tokens"] for stage in recipe["stages"])
    (out / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": tokens, "held_out_tokens_per_step": 1.5}) + "\\n")
if words[0] == "measure":
    drafts = [after(w) for w in words if w == "--draft"]
    assert all(pathlib.Path(d.rsplit("@", 1)[0]).exists() for d in drafts), drafts
    row = {"run": after("--run"), "target": after("measure"), "method": "lm", "tokens_per_step": 2.0,
           "provenance": {"source": "stand-in", "versions": {"torch": "0"}}}
    (out / "observations.jsonl").write_text(json.dumps(row) + "\\n")
    (out / "measurements.jsonl").write_text(json.dumps({"observation": row, "way": "live"}) + "\\n")
if words[0] == "torn":
    (out / "observations.jsonl").write_text('{"run": ')
"""

SLOWEST_S = 200.0  # on a machine with much else to do
GRID = {
    "target": "target", "data": "text", "prompts": "prompts.jsonl",
    "recipe": {"stages": [{"length": 64, "batch": 4}]},
    "drafts": {
        "lm": {"params": [5e4, 1e5], "tokens": [2e4, 1e5], "runs": "each", "rate": {"value": 4e-3, "params": 5e4, "power": -0.5}},
        "scylla": {
            "layers": [2], "tokens": [2e4, 1e5], "recipe": {"model": {"kind": "eagle3", "draft_vocab": 512}, "stages": [{"schedule": "constant"}]},
            "then": {"data": "answers", "recipe": {"stages": [{"tokens": 1e4, "schedule": "cosine"}]}},
        },
        "given": {"folder": "there"},
    },
    "measure": [{"spec": ["@5", "@4,4,8"], "batch": [1, 8], "of": ["lm-*", "scylla-*", "given"]}, {"name": "hot", "temperature": [1]}],
}  # fmt: skip


def grid(**changes) -> Grid:
    return msgspec.convert(GRID | changes, Grid)


def by_name(cells) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that GRID names, and the stand-in."""
    for name in ("target", "text", "answers", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drive(cells, here: Path, *, redo=(), retry_failed=False, workers=1, out="out"):
    """Run cells; the sweep, and the verbs that were started for it."""
    starts = here / "starts.txt"
    starts.unlink(missing_ok=True)
    folder, runner = prepared(cells, Path(out), here, redo), LocalRunner(workers)
    driver = Driver(
        folder, runner, here, retry_failed=retry_failed, environment={"STARTS": str(starts)},
        program=(sys.executable, str(here / "stand_in.py")),
    )  # fmt: skip
    try:
        return driver.run(), starts.read_text().splitlines() if starts.is_file() else []
    finally:
        runner.close()
        folder.release()


def states(sweep) -> dict[str, str]:
    return {cell.name: cell.state for cell in sweep.cells}


# What a document comes to


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "recipes").glob("*/*.json")),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_documents_of_the_recipes_expand(path: Path):
    """Every grid that the repository holds comes to cells."""
    document = json.loads(path.read_bytes())
    if "drafts" in document:
        assert expand(records.read(Grid, path))


def test_heads_share_a_cache_of_hidden_states():
    """Every training of a head names it, no other cell does."""
    cells = expand(grid(features="states"))
    caching = {cell.name for cell in cells if "--features" in cell.words}
    assert caching == {"scylla-L2", "scylla-L2-d20k-then", "scylla-L2-d100k-then"}


def test_axes_multiply_and_every_export_is_measured_at_every_batch():
    cells = by_name(expand(grid()))
    trained = {name for name, cell in cells.items() if cell.recipe is not None}
    runs = {f"lm-n{n}-d{d}" for n in ("50k", "100k") for d in ("20k", "100k")}
    assert trained == runs | {"scylla-L2", "scylla-L2-d20k-then", "scylla-L2-d100k-then"}
    drafts = {*runs, "scylla-L2-d20k-then", "scylla-L2-d100k-then", "given"}
    assert set(cells) - trained == {f"{d}-m1-b{b}-t0" for d in drafts for b in (1, 8)} | {"plain-hot-b1-t1"}


def test_the_axes_are_what_the_recipes_say():
    cells = by_name(expand(grid()))
    recipes = {name: recipe_of(cell) for name, cell in cells.items() if cell.recipe is not None}
    small, large = recipes["lm-n50k-d20k"], recipes["lm-n100k-d100k"]
    assert (small.model.params, large.model.params) == (5e4, 1e5)
    assert (small.stages[0].tokens, large.stages[0].tokens) == (2e4, 1e5)
    assert small.stages[0].learning_rate == pytest.approx(4e-3)
    assert large.stages[0].learning_rate == pytest.approx(4e-3 / 2**0.5, rel=1e-3)
    assert recipes["scylla-L2"].watch.export_at == (2e4,)
    assert recipes["scylla-L2"].stages[0].learning_rate == 1e-3, "the rate of another family is not its own"


def test_a_second_training_starts_from_the_export_at_its_budget_and_keeps_the_model():
    """And with it its draft vocabulary, which training refuses to be told twice."""
    cells = expand(grid())
    named, places = by_name(cells), Places(Path("out"), cells)
    for budget, where in (("20k", "exports/tokens-20000"), ("100k", "final")):
        cell = named[f"scylla-L2-d{budget}-then"]
        recipe = places.recipe(cell)
        assert recipe
        assert recipe["model"] == {"kind": "eagle3", "layers": 2, "init": f"out/cells/scylla-L2/{where}"}
        assert recipe["stages"] == [{"tokens": 1e4, "length": 64, "batch": 4, "schedule": "cosine"}]
        assert "out/cells/scylla-L2/" not in " ".join(places.words(cell)), "of the stem only the weights"
        assert cell.needs == ("scylla-L2",)
        assert "answers" in cell.words


def test_a_measurement_says_the_tokens_of_its_export_and_the_run_it_came_from():
    cells = expand(grid())
    words = Places(Path("out"), cells).words(by_name(cells)["scylla-L2-d20k-then-m1-b8-t0"])
    draft = "out/cells/scylla-L2-d20k-then/final"
    assert words == (
        "measure", "target", "--draft", f"{draft}@5", "--draft", f"{draft}@4,4,8", "--prompts", "prompts.jsonl", "--batch", "8",
        "--temperature", "0", "--run", "scylla-L2", "--draft-tokens", "20000", "--family", "scylla-then",
        "--out", "out/cells/scylla-L2-d20k-then-m1-b8-t0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("init", "says"), [("@scylla-L2", "101024"), ("@scylla-L2-d20k-then", "21024"), ("somewhere/final", None)]
)
def test_a_draft_that_goes_on_from_another_was_trained_on_the_tokens_of_both(init, says):
    recipe = {"model": {"kind": "eagle3", "layers": 2, "init": init}, "stages": [{"tokens": 1024}]}
    entry = {"spec": ["@3"], "of": ["long"]}
    cells = by_name(expand(grid(drafts=GRID["drafts"] | {"long": {"recipe": recipe}}, measure=[entry])))
    words = cells["long-m1-b1-t0"].words
    assert (words[words.index("--draft-tokens") + 1] if "--draft-tokens" in words else None) == says


def test_a_spec_may_put_a_look_up_before_a_draft():
    """The cell that trains the draft is the one waited for, and its model stands in the words; look-up alone has none before it."""
    entry = {"spec": ["@3", "+ngram:3,8@3"], "of": ["lm-n50k-d20k", "alone"]}
    drafts = GRID["drafts"] | {"alone": {"folder": "ngram"}}
    cells = by_name(expand(grid(drafts=drafts, measure=[entry])))
    cell = cells["lm-n50k-d20k-m1-b1-t0"]
    trained = cell.words[cell.words.index("--draft") + 1].removesuffix("@3")
    assert f"{trained}+ngram:3,8@3" in cell.words
    match = REFERENCE.fullmatch(trained)
    assert match is not None
    assert cell.needs == (match[1],)
    places = Places(Path("out"), cells.values())
    assert places.words(cell)[5] == places.resolve(trained, cell.name) + "+ngram:3,8@3"
    assert cells["alone-m1-b1-t0"].words[2:4] == ("--draft", "ngram@3")
    assert not any("+ngram" in word for word in cells["alone-m1-b1-t0"].words)


def test_stems_are_measured_where_asked():
    entry = {"spec": ["@3"], "of": ["scylla-*"], "stems": True}
    cells = by_name(expand(grid(measure=[entry])))
    assert "@scylla-L2/exports/tokens-20000@3" in cells["scylla-L2-d20k-m1-b1-t0"].words
    assert "@scylla-L2@3" in cells["scylla-L2-d100k-m1-b1-t0"].words


def test_a_measurement_comes_as_soon_as_its_draft_is_there():
    names = [cell.name for cell in expand(grid())]
    assert names.index("lm-n50k-d20k-m1-b1-t0") == names.index("lm-n50k-d20k") + 1
    assert names.index("scylla-L2-d20k-then-m1-b1-t0") < names.index("scylla-L2-d100k-then")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"measures": []}, "unknown field `measures`"),
        ({"recipe": {"model": "x"}}, "recipe.model must be an object, got 'x'"),
        ({"recipe": {"stages": [0]}}, "recipe.stages must be a list of objects"),
        ({"recipe": {"stages": []}}, "recipe.stages must be a list of objects"),
        ({"drafts": {"lm": {"params": [1e5], "recipe": {"model": 5}}}}, "recipe.model must be an object, got 5"),
        ({"drafts": {"lm": {"params": [1e5], "tokens": [1e5], "then": {"recipe": {"model": 5}}}}}, "recipe.model must be an object, got 5"),
        ({"drafts": {"lm": {"params": [1e5], "rate": {"value": 1, "params": 1, "power": -4000}}}}, "power must lie in -10…10"),
        ({"drafts": {"lm": {"params": [0]}}}, "params must be positive"),
        ({"drafts": {"lm": {"params": [1e5], "tokens": [1e5], "recipe": {"optimizer": "adamw"}}}}, "drafts.lm.recipe.*unknown field `optimizer`"),
        ({"drafts": {"lm": {"params": [1e5], "tokens": [1e4, 1e5]}}}, "cosine ends with the last budget"),
        ({"drafts": {"lm": {"params": [1e5], "tokens": [1e4, 10010], "recipe": {"stages": [{"schedule": "constant"}]}}}}, "are the same step"),
        ({"drafts": {"lm": {"params": [1e5]}}}, "missing required field `tokens`"),
        ({"drafts": {"lm": {"params": [1e5], "layers": [1]}}}, "give one of them"),
        ({"drafts": {"lm": {"layers": [2], "rate": {"value": 1, "params": 1, "power": 1}}}}, "rate needs the axis params"),
        ({"drafts": {"g": {"folder": "x", "tokens": [1e5]}}}, "folder names a draft that is there"),
        ({"measure": [{"spec": ["@5"], "of": ["eagle*"]}]}, "of 'eagle\\*' names no draft; there are lm-n50k-d20k"),
        ({"measure": [{"spec": ["5"]}]}, "must be as @5"),
        ({"measure": [{"batch": []}]}, "batch must hold at least one value"),
        ({"measure": [{"way": "forced", "temperature": [0, 1]}]}, "temperature is of live decoding"),
        ({"prompts": None}, "prompts is missing"),
        ({"data": None}, "drafts.lm: data is missing"),
        ({"target": None}, "target is missing"),
        ({"drafts": {}, "measure": []}, "nothing to run"),
        ({"planner": 2}, "name its Plan.json"),
        ({"cells": {"x": {"run": ["data"], "recipe": {}}}}, "exactly one of recipe and run"),
        ({"cells": {"a b": {"run": ["data"]}}}, "cell name 'a b'"),
        ({"cells": {"lm-n50k-d20k": {"run": ["data"]}}}, "two cells are named lm-n50k-d20k"),
        ({"cells": {"a": {"run": ["data", "@b/x"]}}}, "cell a: there is no cell named b"),
        ({"cells": {"a": {"run": ["x", "@b"]}, "b": {"run": ["x", "@a"]}}}, "in a circle: a → b → a"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_refused_by_name(changes, says):
    with pytest.raises((ValueError, msgspec.ValidationError), match=says):
        expand(grid(**changes))


def test_inputs_that_are_not_there_are_named_before_anything_runs(here: Path):
    (here / "prompts.jsonl").unlink()
    (here / "there").rmdir()
    with pytest.raises(ValueError, match=r"there \(for given-m1-b1-t0.*prompts\.jsonl|prompts\.jsonl.*there \(for"):
        drive(expand(grid()), here)
    assert not (here / "out").exists()
    assert missing(expand(grid(prompts="@made/p.jsonl", cells={"made": {"run": ["x"]}})), here) == [
        "there (for given-m1-b1-t0, given-m1-b8-t0)"
    ], "what another cell makes need not be there yet"


def test_the_committed_experiment_covers_the_asked_grid():
    path = Path(__file__).parents[2] / "recipes" / "experiment" / "grid.json"
    assert len(path.read_text().splitlines()) < 60
    document = records.read(Grid, path)
    cells = expand(document)
    named = by_name(cells)
    lms = {name for name in named if name.startswith("lm-") and named[name].recipe is not None}
    sizes, budgets = document.drafts["lm"].params, document.drafts["lm"].tokens
    assert len(lms) == len(sizes) * len(budgets)
    assert len(sizes) >= 6
    assert (min(sizes), max(sizes)) == (5e4, 3e6)
    assert len(budgets) >= 5
    assert max(budgets) / min(budgets) >= 10**1.5
    scyllas = {name for name in named if name.startswith("scylla") and name.endswith("-then")}
    assert len(scyllas) == 4 * 5
    only_answers = recipe_of(named["eagle2"]), recipe_of(named["eagle3"])
    assert all(recipe.model.layers == 1 for recipe in only_answers)
    assert all("exp/answers/train" in named[name].words for name in ("eagle2", "eagle3", *scyllas))
    wide = [entry for entry in document.measure if entry.name in ("width", "wide")]
    assert all({int(spec.split(",")[-1].strip("@")) for spec in entry.spec} >= {1, 16, 64} for entry in wide)
    assert sorted(batch for entry in wide for batch in entry.batch) == [1, 2, 4, 8, 16, 32]
    plane = [cell for cell in cells if cell.words[:2] == ("measure", "@lm-n3M-d5M")]
    assert len(plane) == 3 * len(budgets)
    assert all("lm-n3M-d5M" in cell.needs and "--family" in cell.words for cell in plane)


def test_the_documented_example_is_one():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "study.md").read_text()
    example = page.split('```json title="grid"\n')[1].split("```")[0]
    cells = expand(records.decode(Grid, example))
    trained = [cell for cell in cells if cell.recipe is not None]
    assert len(trained) == 4 * 3 + 1 + 4 + 4 * 3
    assert len(cells) - len(trained) == (4 * 3 + 1 + 4 * 3) + (1 + 4) * 3 * 2


def test_a_cell_that_needs_no_target_waits_for_none():
    config = {"recipe": {"model": {"kind": "lm", "config": {}}, "stages": [{"tokens": 1e5}]}}
    sized = {"recipe": {"model": {"kind": "lm", "params": 1e5}, "stages": [{"tokens": 1e5}]}}
    cells = by_name(expand(grid(target="@base", cells={"base": config, "small": sized})))
    assert cells["base"].needs == ()
    assert cells["small"].needs == ("base",)


# Digests


def recipe_of(cell: Cell) -> Any:
    """What `train` would read."""
    return msgspec.convert(cell.recipe, Recipe)


def cell(name: str, *words: str, **more) -> Cell:
    return Cell(name=name, words=words, **more)


def test_a_digest_follows_what_is_needed_and_not_what_is_merely_watched():
    recipe = {"model": {"kind": "lm", "params": 1e5}, "stages": [{"tokens": 1e5}]}
    chain = [
        cell("a", "train", "@./recipe.json", recipe=recipe),
        cell("b", "x", "@a"),
        cell("c", "y"),
        cell("d", "z", "@b/q@5"),
    ]
    first = {name: d.digest for name, d in definitions(ordered(chain)).items()}
    watched = msgspec.structs.replace(chain[0], recipe=recipe | {"watch": {"log_every": 3}}, alone=True)
    assert {name: d.digest for name, d in definitions(ordered([watched, *chain[1:]])).items()} == first
    changed = msgspec.structs.replace(chain[0], recipe=recipe | {"seed": 1})
    second = {name: d.digest for name, d in definitions(ordered([changed, *chain[1:]])).items()}
    assert {name for name in first if first[name] != second[name]} == {"a", "b", "d"}
    exported = msgspec.structs.replace(chain[0], recipe=recipe | {"watch": {"export_at": [5e4]}})
    assert definitions([exported])["a"].digest != first["a"]
    text = difference(definitions([chain[0]])["a"], definitions([changed])["a"])
    assert '+ "seed": 1' in text


def test_order_puts_needs_first_and_keeps_the_rest():
    cells = [cell("late", "x", "@mid/f"), cell("first", "x"), cell("mid", "x", "@base"), cell("base", "x")]
    assert [c.name for c in ordered(cells)] == ["base", "mid", "late", "first"]
    assert dependants(ordered(cells), ["mid"]) == {"mid", "late"}


def test_recipes_are_laid_over_each_other_key_by_key_and_stage_by_stage():
    under = {"a": {"x": 1, "y": 2}, "stages": [{"length": 64, "batch": 4}], "betas": [1, 2]}
    over = {"a": {"y": 3}, "stages": [{"batch": 8}, {"batch": 1}], "betas": [3]}
    assert laid(under, over) == {
        "a": {"x": 1, "y": 3},
        "stages": [{"length": 64, "batch": 8}, {"batch": 1}],
        "betas": [3],
    }
    assert [short(value) for value in (320, 2.5e5, 1.4e6, 123456.0, 3)] == ["320", "250k", "1.4M", "123.456k", "3"]


# Running


def test_a_sweep_runs_once_and_puts_observations_together_with_their_origin(here: Path):
    cells = expand(grid())
    sweep, starts = drive(cells, here)
    assert set(states(sweep).values()) == {"done"}
    assert len(starts) == len(cells)
    rows = records.read_lines(Observation, here / "out" / "observations.jsonl")
    assert len(rows) == sum(cell.words[0] == "measure" for cell in cells)
    row = next(row for row in rows if row.run == "scylla-L2")
    assert row.provenance.source == "stand-in"
    assert row.provenance.versions["torch"] == "0", "what the measurement says of itself comes first"
    assert {"foredraft", "python"} <= set(row.provenance.versions)
    assert (row.provenance.command or "").startswith(
        "foredraft measure target --draft out/cells/scylla-L2-d20k-then/final@5"
    )
    assert "trained by scylla-L2-d20k-then, recipe " in (row.provenance.note or "")
    lines = [json.loads(line) for line in (here / "out" / "measurements.jsonl").read_text().splitlines()]
    assert [line["observation"] for line in lines] == [msgspec.to_builtins(row) for row in rows]
    again, starts = drive(cells, here)
    assert starts == []
    assert [(c.name, c.seconds, c.tokens_per_step) for c in again.cells] == [(c.name, c.seconds, c.tokens_per_step) for c in sweep.cells]  # fmt: skip
    head_cell = next(c for c in sweep.cells if c.name == "scylla-L2")
    assert (head_cell.tokens, head_cell.tokens_per_step) == (1e5, 1.5)


def test_a_failure_costs_its_cell_and_what_needs_it(here: Path):
    cells = ordered([
        cell("bad", "fail", "wrong"), cell("memory", "fail", "memory"), cell("killed", "die"), cell("torn", "torn", "--out", "@."),
        cell("lacking", "empty", products=("final",)), cell("next", "empty", "@bad"), cell("last", "empty", "@next/x"), cell("good", "empty"),
    ])  # fmt: skip
    sweep, starts = drive(cells, here)
    assert states(sweep) == {
        "bad": "failed", "memory": "failed", "killed": "failed", "torn": "failed", "lacking": "failed", "next": "waits for bad",
        "last": "waits for bad", "good": "done",
    }  # fmt: skip
    reasons = dict(line.split(": ", 1) for line in failures(sweep))
    assert reasons["bad"] == "exit code 2: it went wrong (2 cells wait for it)"
    assert reasons["memory"] == "exit code 2: cannot allocate memory"
    assert reasons["killed"] == "killed (out of memory?)"
    assert reasons["lacking"] == "ended well but left no final"
    assert "observations.jsonl:1" in reasons["torn"]
    failure = json.loads((here / "out/cells/bad" / FAILED).read_text())
    assert failure["outcome"]["tail"] == ["something to say", "error: it went wrong"]
    again, starts = drive(cells, here)
    assert (states(again), starts) == (states(sweep), []), "failed cells stay failed unless asked"
    _, starts = drive(cells, here, retry_failed=True)
    assert len(starts) == 5
    healed = ordered([msgspec.structs.replace(c, words=("empty",)) if c.name == "bad" else c for c in cells])
    sweep, starts = drive(healed, here)
    assert [states(sweep)[name] for name in ("bad", "next", "last")] == ["done"] * 3
    assert len(starts) == 3, "a failed cell that is defined otherwise now is tried again"


def test_a_done_cell_with_another_definition_is_refused_until_redone(here: Path):
    cells = [cell("a", "empty", "1"), cell("b", "empty", "@a"), cell("c", "empty")]
    drive(cells, here)
    changed = [cell("a", "empty", "2"), *cells[1:]]
    with pytest.raises(
        ValueError, match=r'cell a has results of another definition \(and 1 more cells\): .*"1".*"2".*--redo a'
    ):
        drive(changed, here)
    assert (here / "out/cells/a" / DONE).is_file()
    sweep, starts = drive(changed, here, redo=["a"])
    assert set(states(sweep).values()) == {"done"}
    assert len(starts) == 2, "what depends on it is run anew too, the rest is not"
    with pytest.raises(ValueError, match="redo: no cell is named z"):
        drive(changed, here, redo=["z"])


def test_two_sweeps_in_one_folder_are_refused(here: Path):
    cells = [cell("a", "empty")]
    folder = prepared(cells, Path("out"), here)
    with pytest.raises(ValueError, match="another sweep is at work"):
        prepared(cells, Path("out"), here)
    folder.release()
    prepared(cells, Path("out"), here).release()


def test_workers_run_side_by_side_and_what_is_to_be_alone_runs_alone(here: Path):
    steps = [cell(f"s{i}", "steps", f"@./n{i}", "20", alone=i == 1) for i in range(4)]
    folder, runner, observed = prepared(steps, Path("out"), here), LocalRunner(3), []
    driver = Driver(
        folder,
        runner,
        here,
        environment={"STARTS": str(here / "s")},
        program=(sys.executable, str(here / "stand_in.py")),
    )
    begin = folder.begin

    def watched(cell: Cell) -> None:
        observed.append({*(running.name for running in driver.running.values()), cell.name})
        begin(cell)

    folder.begin = watched
    driver.run()
    runner.close()
    folder.release()
    assert max(map(len, observed)) == 3
    assert [names for names in observed if "s1" in names] == [{"s1"}]


SWEEP = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from foredraft.sweep.cells import Cell
from foredraft.sweep.local_runner import LocalRunner
from foredraft.sweep.run import Driver, prepared
here = Path.cwd()
cells = [Cell(name=f"s{i}", words=("steps", "@./n", "1000")) for i in range(2)]
driver = Driver(prepared(cells, here / "out", here), LocalRunner(1), here, environment={"STARTS": str(here / "starts")},
                program=(sys.executable, str(here / "stand_in.py")))
try:
    driver.run()
except KeyboardInterrupt:
    sys.exit(130)
"""


def until(what, seconds=SLOWEST_S):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return result


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_or_interrupted_sweep_leaves_no_process_behind_and_goes_on(here: Path, how: signal.Signals):
    (here / "slow").touch()
    process = subprocess.Popen([sys.executable, "-c", SWEEP], cwd=here, env=os.environ)
    cell_folder, marker = here / "out/cells/s0/n", here / "out/cells/s0/running.txt"
    try:
        until(
            lambda: (
                cell_folder.is_file()
                and int(cell_folder.read_text()) > 1
                and marker.is_file()
                and marker.read_text().endswith("\n")
            )
        )
        pid = int(marker.read_text().split()[1])
        process.send_signal(how)
        assert process.wait(SLOWEST_S) == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    finally:
        process.kill()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    done = int(cell_folder.read_text())
    assert 1 < done < 1000
    assert not (here / "out/cells/s0" / DONE).exists()
    assert not (here / "out/cells/s0" / FAILED).exists(), "an interrupt is no failure"
    (here / "slow").unlink()
    subprocess.run([sys.executable, "-c", SWEEP], cwd=here, check=True, timeout=SLOWEST_S)
    assert (here / "starts").read_text().count("steps") == 3, "s0 twice, s1 once"
    assert states(records.read(Sweep, here / "out/sweep.json")) == {"s0": "done", "s1": "done"}


def test_a_cell_that_outlived_its_sweep_is_waited_for(here: Path):
    folder = here / "cell"
    folder.mkdir()
    job = Job(
        "a",
        ("empty",),
        folder,
        here,
        {"STARTS": str(here / "starts")},
        program=(sys.executable, str(here / "stand_in.py")),
    )
    with (folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began = time.monotonic()
        stopped = execute(job, lambda: time.monotonic() > began + 0.5)
        assert stopped.stopped
        assert not (here / "starts").exists()
    assert execute(job).error is None


def test_reasons_name_signals_and_memory():
    assert reason(0, ()) is None
    assert reason(-signal.SIGSEGV, ()) == "ended by SIGSEGV"
    assert (
        reason(137, ("RuntimeError: CUDA out of memory. Tried",))
        == "killed (out of memory?): RuntimeError: CUDA out of memory. Tried"
    )
    message = "RuntimeError: DefaultCPUAllocator: can't allocate memory"
    assert reason(1, ("Traceback", "  File x", message, "later")) == f"exit code 1: {message}"
    assert reason(2, ()) == "exit code 2: no output"


# What is told


def state(name: str, word: str, **more) -> CellState:
    return CellState(name=name, verb="train", state=word, digest="", command="", **more)


def test_time_left_comes_from_cells_done_per_token_and_is_unknown_without_any():
    cells = {
        name: cell(name, "train", tokens=tokens, kin="lm")
        for name, tokens in (("a", 100.0), ("b", 300.0), ("c", 200.0))
    }
    waiting = [state("a", "done", seconds=10.0), state("b", "running", tokens=100.0), state("c", "waiting")]
    assert seconds_left(cells, waiting, 1) == pytest.approx(40.0)
    assert seconds_left(cells, waiting, 2) == pytest.approx(20.0)
    assert seconds_left(cells, [state("b", "waiting")], 1) is None


def test_a_full_screen_keeps_what_runs_and_what_failed():
    rows = [state(f"d{i}", "done") for i in range(50)] + [state("f", "failed"), state("r", "running")]
    rows += [state(f"w{i}", "waiting") for i in range(50)]
    names = [row.name for row in most_telling(rows, 6)]
    assert names == ["f", "r", "w0", "w1", "w2", "w3"]


# The planner's next runs

RUN = {"run": "r", "settles": "s", "narrows": 0.5, "gpu_hours": 1.0}
LM = {"kind": "lm", "name": "independent model", "params": 1.5e5, "non_embedding_params": 1e5, "draft_tokens": 1e7}


def a_plan(path: Path, draft: dict, *runs: dict) -> Path:
    estimate = {"value": 2.0, "low": 1.0, "high": 3.0, "unit": "", "source": ""}
    names = ("tokens_per_step", "speedup", "output_tok_s", "tpot_s", "ttft_s")
    step = {"concurrency": 8, "running": 8.0, "lookahead": 4, "topk": 1, "tree_nodes": 4} | dict.fromkeys(
        names, estimate
    )
    plan_json = {
        "objective": "throughput", "engine": "foredraft", "target": "t", "machine": "m", "devices": 1, "dtype": "float32",
        "workload": {"input_len": 1, "output_len": 1, "concurrency": [1, 8]}, "speedup": estimate, "schedule": [step], "draft": draft,
        "next_runs": [RUN | {"run": f"run {i}"} | run for i, run in enumerate(runs)],
    }  # fmt: skip
    records.write(path, msgspec.convert(plan_json, Plan))
    return path


def test_next_runs_become_trainings_and_measurements_and_the_rest_is_told(tmp_path: Path):
    runs = ({"factor": "draft"}, {"factor": "data", "draft_tokens": 1e6}, {"factor": "trees"}, {"factor": "costs"}, {})
    path = a_plan(tmp_path / "Plan.json", LM, *runs)
    lm = GRID["drafts"]["lm"]
    planned_cells = planned(grid(plan=str(path), planner=5, drafts={"lm": lm}, measure=[]))
    cells = by_name(planned_cells.cells)
    assert set(planned_cells.left_out) == {"run 0", "run 4"}
    assert "name it under drafts with folder" in planned_cells.left_out["run 0"]
    recipe = recipe_of(cells["next2-d1M"])
    assert (recipe.model.params, recipe.stages[0].tokens, recipe.stages[0].length) == (1e5, 1e6, 64)
    assert recipe.stages[0].learning_rate == pytest.approx(4e-3 / 2**0.5, rel=1e-3)
    assert "@next2-d1M@4" in cells["next2-d1M-next2-b1-t0"].words
    assert {"ngram@4", "ngram@4,4,16"} <= set(cells["ngram-next3-b1-t0"].words)
    assert {"ngram-next4-b1-t0", "ngram-next4-b8-t0"} <= set(cells)
    public = planned(grid(plan=str(path), planner=1))
    assert {"there@1", "there@2"} <= set(public.cells[0].words)
    assert public.left_out == {}


def test_a_head_is_trained_as_the_family_of_heads_says(tmp_path: Path):
    head = {
        "kind": "head",
        "name": "EAGLE-3",
        "params": 1e7,
        "non_embedding_params": 9e6,
        "num_layers": 3,
        "draft_tokens": 1e8,
    }
    path = a_plan(tmp_path / "Plan.json", head, {"factor": "data", "draft_tokens": 1e6})
    recipe = recipe_of(planned(grid(plan=str(path), planner=1)).cells[0])
    assert (recipe.model.layers, recipe.stages[0].schedule) == (3, "constant")


# The command line


def foredraft(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foredraft", "sweep", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=SLOWEST_S)


def test_dry_run_tells_all_and_makes_nothing(here: Path):
    records.write(here / "grid.json", GRID)
    done = foredraft("grid.json", "--out", "out", "--dry-run", cwd=here)
    assert done.returncode == 0, done.stderr
    assert (
        "foredraft train out/cells/scylla-L2/recipe.json --out out/cells/scylla-L2 --data text --target target"
        in done.stdout
    )
    assert (
        done.stdout.splitlines()[-1]
        == f"{len(expand(grid()))} cells, {len(expand(grid()))} to run, 360k tokens to train on"
    )
    assert not (here / "out").exists()
    rows = json.loads(foredraft("grid.json", "--out", "out", "--dry-run", "--json", cwd=here).stdout)
    assert [row["name"] for row in rows] == [cell.name for cell in expand(grid())]


def test_failed_cells_end_the_command_with_1_and_are_listed(here: Path):
    cells = {"no": {"run": ["list", "nothing"]}, "yes": {"run": ["list", "laws"]}, "late": {"run": ["list", "@no/x"]}}
    records.write(here / "grid.json", {"cells": cells})
    done = foredraft("grid.json", "--out", "out", "--json", cwd=here)
    assert done.returncode == 1
    states = {cell["name"]: cell["state"] for cell in json.loads(done.stdout)["cells"]}
    assert states == {"no": "failed", "yes": "done", "late": "waits for no"}
    assert "1 of 3 cells failed" in done.stderr
    assert "no: exit code 2:" in done.stderr
    assert "hint: out/cells/NAME/log.txt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("missing.json",), "missing.json: No such file"),
        (("grid.json", "--gpus-per-cell", "1"), "gpus-per-cell needs --ray"),
        (("grid.json", "--workers", "0"), "--workers must be a whole number from 1"),
        (("grid.json", "--cpus-per-cell", "0"), "--cpus-per-cell must be a whole number from 1"),
        (("broken.json",), "broken.json: "),
        (("lacks.json",), "not there: target (for"),
    ],
)
def test_bad_input_is_one_line(here: Path, words, says):
    records.write(here / "grid.json", {"cells": {"a": {"run": ["list", "laws"]}}})
    (here / "broken.json").write_text('{"cells": ')
    records.write(here / "lacks.json", GRID)
    (here / "target").rmdir()
    done = foredraft(*words, "--out", "out", cwd=here)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
