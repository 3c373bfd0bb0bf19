"""The same sweep on Ray: two workers at once, dependencies, failures, kills; and what a missing ray or a too small cluster says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foredraft import records
from foredraft.sweep.cells import Cell
from foredraft.sweep.folder import Sweep
from foredraft.sweep.ray_runner import RayRunner
from foredraft.sweep.run import Driver, prepared

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'foredraft[sweep]'")

# Stands in for a verb: notes when it began and ended, and with how many threads. `meet` lasts until two have begun.
STAND_IN = """
import json, os, pathlib, signal, sys, time
verb, out = sys.argv[1], pathlib.Path(sys.argv[3])
began = time.time()
if verb == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if verb == "fail":
    print("error: it went wrong"); sys.exit(2)
(out.parent / f"{out.name}.began").touch()
while verb == "meet" and len(list(out.parent.glob("*.began"))) < 2:
    time.sleep(0.05)
time.sleep(1.0)
(out / "times.json").write_text(json.dumps([began, time.time(), os.environ.get("OMP_NUM_THREADS"), os.environ["MARK"]]))
"""


def cell(name: str, verb: str, *words: str) -> Cell:
    return Cell(name=name, words=(verb, "--out", "@.", *words))


@pytest.fixture(scope="module")
def cluster():
    runner = RayRunner("local", workers=2, cpus=1.0)
    yield runner
    runner.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return tmp_path


def driver(cells, here: Path, runner) -> Driver:
    return Driver(
        prepared(cells, here / "out", here), runner, here, threads=1, environment={"MARK": "here"},
        program=(sys.executable, str(here / "stand_in.py")),
    )  # fmt: skip


def times(here: Path, name: str) -> list:
    return json.loads((here / "out" / "cells" / name / "times.json").read_text())


def test_two_workers_share_the_cells_and_wait_for_what_they_need(here: Path, cluster):
    cells = [cell(name, "meet") for name in ("a", "b", "c")] + [cell("last", "run", "@a", "@b")]
    sweep = driver(cells, here, cluster).run()
    assert {c.state for c in sweep.cells} == {"done"}
    spans = {name: times(here, name) for name in ("a", "b", "c", "last")}
    ticks = sorted({t for began, ended, *_ in spans.values() for t in (began, ended)})
    side_by_side = [sum(began <= t < ended for began, ended, *_ in spans.values()) for t in ticks]
    assert max(side_by_side) == 2, "two of three at once, and never three"
    assert spans["last"][0] >= max(spans["a"][1], spans["b"][1])
    assert {tuple(span[2:]) for span in spans.values()} == {("1", "here")}
    assert all(c.host and c.seconds and c.seconds >= 1 for c in sweep.cells)


def test_failures_and_kills_cost_their_cells(here: Path, cluster):
    cells = [cell("bad", "fail"), cell("killed", "die"), cell("late", "run", "@killed"), cell("good", "run")]
    sweep = driver(cells, here, cluster).run()
    states = {c.name: (c.state, c.error) for c in sweep.cells}
    assert states["bad"] == ("failed", "exit code 2: it went wrong")
    assert states["killed"] == ("failed", "killed (out of memory?)")
    assert states["late"] == ("waits for killed", None)
    assert states["good"] == ("done", None)
    assert records.read(Sweep, here / "out" / "sweep.json").cells == sweep.cells


def test_an_interrupt_stops_tasks_that_run_and_forgets_those_that_wait(here: Path, cluster):
    cells = [cell(f"c{i}", "run") for i in range(5)]
    ray_driver = driver(cells, here, cluster)
    calls = 0

    def interrupt(rows) -> None:
        nonlocal calls
        calls += 1
        if any(row.state == "running" for row in rows) and calls < 1000:
            calls = 1000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_driver.run(interrupt)
    ray_driver.folder.release()
    states = {row.state for row in ray_driver.rows}
    assert states <= {"stopped", "done"}
    assert "stopped" in states
    again = driver(cells, here, cluster).run()
    assert {c.state for c in again.cells} == {"done"}


def test_a_cluster_that_can_hold_no_cell_is_named():
    code = "from foredraft.sweep.ray_runner import RayRunner; RayRunner('local', 1, 1.0, 64.0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert "no machine of the cluster has 1 CPUs and 64 GPUs at once" in done.stderr.splitlines()[-1]


def test_without_ray_one_line_says_how_to_install_it(tmp_path: Path):
    records.write(tmp_path / "grid.json", {"cells": {"a": {"run": ["list", "laws"]}}})
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", "foredraft", "sweep", "grid.json", "--out", "out", "--ray", "local"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ray needs the package ray: pip install 'foredraft[sweep]'")
    assert "Traceback" not in done.stderr
