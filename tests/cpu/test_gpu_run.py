"""benchmarks/gpu/run.py where there is no GPU: a step that fails or overruns is recorded and the others go on; what travels in parts."""

import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foredraft.recipe import Recipe

ROOT = Path(__file__).parents[2]
GRID = {
    "target": "own/target", "data": "own/text", "held_out": "own/answers-val", "features": "own/states",
    "recipe": {"stages": [{"length": 64, "batch": 8}], "watch": {"save_every": 100, "export_dtype": "bfloat16"}},
    "drafts": {
        "scylla": {"layers": [1, 2], "tokens": [5e5, 1e6], "recipe": {"model": {"kind": "eagle"}, "stages": [{"schedule": "constant"}]},
                   "then": {"data": "own/answers", "recipe": {"stages": [{"tokens": 2e5, "learning_rate": 1e-3}]}}},
        "lm": {"params": [1e6], "tokens": [1e6, 4e6], "runs": "each", "rate": {"value": 4e-3, "params": 1e6, "power": -0.2}},
        "eagle3": {"data": "own/answers", "tokens": [1e6, 5e6], "runs": "each",
                   "recipe": {"model": {"kind": "eagle3"}, "stages": [{"learning_rate": 1e-3}]}},
    },
    "measure": [{"spec": ["@5"], "prompts": "own/prompts.jsonl"}],
}  # fmt: skip
MODULES = "run", "bench", "parcels", "drafts", "gpu_tables"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; what lies beside it is importable while a test runs."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    monkeypatch.setenv("PYTHONPATH", "")  # put back afterwards
    before = sys.path[:]
    import run

    yield run
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)


def steps_of(run: Any, works: dict[str, Callable[[Any], None]], out: Path, minutes: float = 1.0) -> dict[str, Any]:
    """Records of a run whose steps do `works`."""
    run.work = works.__getitem__
    run.main(
        [
            "--out",
            str(out),
            "--device",
            "cpu",
            "--steps",
            ",".join(works),
            "--minutes",
            str(minutes),
            "--pack",
            str(out / "pack"),
        ]
    )
    return {name: json.loads((out / f"{name}.json").read_text()) for name in [*works, "run"]}


def test_a_step_that_fails_is_recorded_and_the_others_go_on(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(step: Any) -> None:
        step.record("first", 1)
        raise ValueError("no such device")

    def trying(step: Any) -> None:
        step.attempt("halved", lambda: 1 / 0, needs_s=0)
        step.attempt("far too long", lambda: 1, needs_s=1e6)
        step.attempt("whole", lambda: 7, needs_s=0)

    records = steps_of(run, {"rates": failing, "train": trying}, tmp_path)
    assert records["rates"]["state"] == "failed"
    assert records["rates"]["figures"] == {"first": 1}
    assert records["rates"]["error"][-1] == "ValueError: no such device"
    assert records["train"]["state"] == "done"
    assert records["train"]["figures"] == {"whole": 7}
    assert records["train"]["left"]["halved"].startswith("ZeroDivisionError")
    assert "are needed" in records["train"]["left"]["far too long"]
    assert capsys.readouterr().out.strip().endswith("done: train; not done: rates (failed: ValueError: no such device)")


def test_a_step_beyond_its_time_is_ended_and_leaves_what_it_had(run: Any, tmp_path: Path) -> None:
    def endless(step: Any) -> None:
        step.record("first", 1)
        time.sleep(600)

    run.RESERVE_S, began = 0.0, time.monotonic()
    records = steps_of(run, {"grid": endless}, tmp_path, minutes=0.03)
    assert time.monotonic() - began < 30
    assert records["grid"]["state"] == "stopped: its time was spent"
    assert records["grid"]["figures"] == {"first": 1}
    assert records["run"]["packed"] == ["packed.tar.00"]


def test_parts_are_the_file_and_the_archive_keeps_to_its_size(run: Any, tmp_path: Path) -> None:
    import parcels

    for name, text in (("whole.01", b"def"), ("whole.00", b"abc")):
        (tmp_path / name).write_bytes(text)
    assert (
        parcels.join([tmp_path / "whole.01", tmp_path / "whole.00"], tmp_path / "out" / "whole").read_bytes()
        == b"abcdef"
    )
    with pytest.raises(ValueError, match="no such file"):
        parcels.join([tmp_path / "whole.02"], tmp_path / "whole")
    files = []
    for i in range(3):
        files.append((tmp_path / f"file{i}", f"in/file{i}"))
        files[-1][0].write_bytes(bytes(1000))
    parts, left = parcels.pack(files, tmp_path / "packed", 4200)
    assert left == ["in/file2"]
    assert [part.name for part in parts] == ["packed.tar.00"]


def test_wheels_beside_are_importable(run: Any, tmp_path: Path) -> None:
    import parcels

    with zipfile.ZipFile(tmp_path / "lent_name-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lent_name.py", "value = 3")
    parcels.use_site(tmp_path, tmp_path / "work")
    import lent_name  # pyright: ignore[reportMissingImports]

    assert lent_name.value == 3


def test_the_grid_grows_in_tokens_and_steps_and_comes_in_order_of_worth(run: Any, tmp_path: Path) -> None:
    import drafts
    from bench import Settings

    from foredraft.sweep.expand import grid_of

    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    grid = grid_of(tmp_path / "grid.json")
    cells = drafts.cells_of(grid, Settings(out=tmp_path, work=tmp_path, tokens_factor=10, batch_factor=4))
    names = [cell.name for cell in cells]
    assert names[:3] == ["eagle3-d50M", "eagle3-d10M", "lm-n1M-d40M"]
    assert names.index("scylla-L1-d10M-then") < names.index("scylla-L2-d10M-then") < names.index("scylla-L1-d5M-then")
    assert all(names.index(need) < names.index(cell.name) for cell in cells for need in cell.needs)
    stages = {cell.name: msgspec.convert(cell.recipe, Recipe).stages[0] for cell in cells}
    told = {name: (stage.tokens, stage.batch, stage.learning_rate) for name, stage in stages.items()}
    assert told["eagle3-d50M"] == (5e7, 32, 2e-3)
    assert told["lm-n1M-d40M"] == (4e7, 32, 8e-3)
    assert told["scylla-L2"] == (1e7, 32, 2e-3)
    assert told["scylla-L2-d10M-then"] == (2e6, 32, 2e-3)
    assert all({"--device", "cuda"} <= set(cell.words) and "--features" not in cell.words for cell in cells)
    assert drafts.data_paths(grid) == {"own/text", "own/answers-val", "own/answers"}


def test_tokens_are_no_more_than_the_time_allows_the_first_draft(run: Any, tmp_path: Path) -> None:
    import drafts
    from bench import Settings, Step

    from foredraft.sweep.expand import grid_of

    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    grid, settings = grid_of(tmp_path / "grid.json"), Settings(out=tmp_path, work=tmp_path, device="cpu")
    budget_s = drafts.GRACE_S + drafts.START_S + 100.0
    assert drafts.factor_within(Step("grid", settings, budget_s), grid) == 10.0
    (tmp_path / "train.json").write_text(json.dumps({"figures": {"eagle3 head": {"tokens_per_s": 2e5}}}))
    assert drafts.factor_within(Step("grid", settings, budget_s), grid) == pytest.approx(
        2.0, abs=0.11
    )  # 100 s × 100,000 of 5 M
    assert drafts.factor_within(Step("grid", settings, 1.0), grid) == 1.0


def test_the_table_says_what_ran_and_what_did_not(run: Any, tmp_path: Path) -> None:
    import gpu_tables

    assert gpu_tables.table(tmp_path) == gpu_tables.NOT_RUN
    figures = {"m plain b1": {"tokens_per_s": 500.0, "step_ms": 2.0, "bandwidth_share": 0.41, "tokens_per_step": 1.0}}
    record = {
        "state": "stopped: its time was spent",
        "error": None,
        "figures": figures,
        "left": {"m plain b8": "too late"},
    }
    (tmp_path / "decode.json").write_text(json.dumps(record))
    table = gpu_tables.table(tmp_path)
    assert "| m plain b1 | 500 tokens/s, 2.00 ms a step, 41% of the copy's bandwidth |" in table
    assert "| decode: not done | stopped: its time was spent |" in table
    assert "m plain b8 (too late)" in table
