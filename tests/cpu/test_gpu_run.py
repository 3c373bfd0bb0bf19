"""benchmarks/gpu/run.py where there is no GPU: a step that fails or overruns is recorded and the others go on; what travels in parts."""

import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foredraft import records
from foredraft.data.tokens import TokenData, TokenFolder
from foredraft.recipe import Eagle, Recipe, Stage

ROOT = Path(__file__).parents[2]
KINDS = {
    "target": "target", "held_out": "answers-val",
    "recipe": {"stages": [{"tokens": 4096, "length": 64, "batch": 4}]},
    "cells": {
        "eagle2": {"data": ["answers"], "recipe": {"model": {"kind": "eagle"}}},
        "scylla": {"data": ["text", "answers"], "recipe": {"model": {"kind": "eagle", "layers": 2},
                   "stages": [{}, {"tokens": 4096, "length": 64, "batch": 4}]}},
    },
}  # fmt: skip
MODULES = "run", "bench", "parcels", "answers", "drafts", "timed_training", "gpu_tables"


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
    records = steps_of(run, {"grid": endless}, tmp_path, minutes=0.05)
    assert time.monotonic() - began < 300
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


def test_trainings_are_the_documents_cells_in_its_order(run: Any, tmp_path: Path) -> None:
    import drafts
    from bench import Settings

    (tmp_path / "kinds.json").write_text(json.dumps(KINDS))
    trainings = drafts.trainings(Settings(out=tmp_path, work=tmp_path, grid=tmp_path / "kinds.json", device="cpu"))
    assert [training.name for training in trainings] == ["eagle2", "scylla"]
    assert [training.data for training in trainings] == [("answers",), ("text", "answers")]
    assert [training.recipe.tokens for training in trainings] == [4096, 8192]
    assert all(training.begins and training.recipe.precision == "float32" for training in trainings)
    (tmp_path / "none.json").write_text(json.dumps(KINDS | {"cells": {}, "measure": [{"prompts": "p"}]}))
    with pytest.raises(ValueError, match="give cells"):
        drafts.trainings(Settings(out=tmp_path, work=tmp_path, grid=tmp_path / "none.json"))


def test_budgets_fill_the_time_that_the_first_rates_leave(run: Any) -> None:
    """Two trainings measured side by side had half of the device each; a third costs what they cost on average."""
    import drafts

    def training(name: str, tokens: float) -> Any:
        return drafts.Training(name, Recipe(model=Eagle(), stages=(Stage(tokens=tokens),)), ("answers",), "answers-val")

    trainings = [training("a", 819_200), training("b", 819_200), training("c", 819_200)]
    factor = drafts.factor_of(trainings, {"a": 1000.0, "b": 500.0}, left_s=1000.0)
    assert factor * 819_200 * (1 / 2000 + 1 / 1000 + 0.75e-3) == pytest.approx(drafts.FILL * 1000)


def test_a_schedule_ends_with_the_time(run: Any, tmp_path: Path) -> None:
    """At 1,000 tokens per second and 50 s left for steps, the rest of a run is 0.97 of 50,000 tokens, whatever its recipe asked for."""
    import timed_training
    from timed_training import Clock, Job, Pace

    stages = (Stage(tokens=1e6, length=64, batch=1), Stage(tokens=1e6, length=64, batch=1))
    recipe = Recipe(model=Eagle(), stages=stages)
    (tmp_path / "out").mkdir()
    now = time.time()
    job = Job(
        recipe=recipe, data=("a", "b"), held_out="c", target="t", out=str(tmp_path / "out"), pace=str(tmp_path / "pace.json"),
        until=now + timed_training.LAST_S + 50.0,
    )  # fmt: skip
    training = SimpleNamespace(
        recipe=recipe, stage_steps_left=99, state=SimpleNamespace(tokens=10_000, stage=0, stage_step=156)
    )
    clock = Clock(job)
    clock.looked = now - 10
    clock.look(training)
    assert training.recipe.tokens == pytest.approx(10_000 + 0.97 * 50_000, rel=0.01)
    records.write(tmp_path / "pace.json", Pace(0.005))
    training.state.tokens, clock.looked = 11_000, now - 10
    clock.look(training)
    assert training.recipe.stages[0].tokens == 157 * 64  # what is done, and a step
    assert training.recipe.stages[1].tokens == pytest.approx(5000)


def test_answers_of_several_processes_become_one_token_folder(run: Any, tmp_path: Path) -> None:
    import answers

    folders = [
        token_folder(tmp_path / name, documents) for name, documents in (("a", [[1, 2], [3]]), ("b", [[4, 5, 6]]))
    ]
    whole = TokenFolder.open(answers.joined(folders, tmp_path / "whole"))
    assert [whole.document(i)[0].tolist() for i in range(3)] == [[1, 2], [3], [4, 5, 6]]
    assert (whole.data.num_documents, whole.data.regenerated_tokens) == (3, 6)


def token_folder(path: Path, documents: list[list[int]]) -> Path:
    tokens = [token for document in documents for token in document]
    path.mkdir()
    np.array(tokens, "<u2").tofile(path / "tokens.bin")
    np.ones(len(tokens), "u1").tofile(path / "mask.bin")
    np.cumsum([0, *map(len, documents)]).astype("<i8").tofile(path / "documents.bin")
    data = TokenData(
        version=1, vocab_size=8, eos_id=0, tokenizer_sha256="t", dtype="uint16", num_tokens=len(tokens), num_documents=len(documents),
        raw_tokens=0, regenerated_tokens=len(tokens), predicted_tokens=len(tokens), sources=(),
    )  # fmt: skip
    records.write(path / "data.json", data)
    return path


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
