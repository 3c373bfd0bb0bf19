"""A small sweep of the real verbs: one run with two budgets, its first export measured; killed in between, it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foredraft import records
from foredraft.data.tokens import TokenData
from foredraft.records import Observation
from foredraft.sweep.folder import Sweep

SLOWEST_S = 300.0  # on a machine with much else to do
STAGE = {"length": 32, "batch": 4, "learning_rate": 3e-3, "schedule": "constant"}
GRID = {
    "target": "target", "data": "text", "prompts": "prompts.txt",
    "recipe": {"precision": "float32", "stages": [STAGE], "watch": {"save_every": 5, "log_every": 1}},
    "drafts": {"lm": {"params": [5e4], "tokens": [1280, 5120]}},
    "measure": [{"spec": ["@2", "@2,2,3"], "num": 2, "max_tokens": 8, "way": "live", "alone": False, "of": ["lm-n50k-d1.28k"]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def here(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GRID names."""
    here = tmp_path_factory.mktemp("sweep")
    shutil.copytree(checkpoint, here / "target")
    (here / "prompts.txt").write_text("the quick brown fox\njumps over\n")
    (here / "text").mkdir()
    np.random.default_rng(0).integers(1, 300, 4000).astype("<u2").tofile(here / "text" / "tokens.bin")
    np.ones(4000, dtype="u1").tofile(here / "text" / "mask.bin")
    np.arange(0, 4001, 100).astype("<i8").tofile(here / "text" / "documents.bin")
    from foredraft.data.tokenizer import sha256

    data = TokenData(
        version=1, vocab_size=300, eos_id=0, tokenizer_sha256=sha256(here / "target"), dtype="uint16", num_tokens=4000, num_documents=40,
        raw_tokens=4000, regenerated_tokens=0, predicted_tokens=4000, sources=(),
    )  # fmt: skip
    records.write(here / "text" / "data.json", data)
    records.write(here / "grid.json", GRID)
    return here


def command(here: Path) -> list[str]:
    return [sys.executable, "-m", "foredraft", "sweep", "grid.json", "--out", "out", "--cpus-per-cell", "1"]


def test_a_killed_sweep_of_real_verbs_goes_on(here: Path):
    process = subprocess.Popen(command(here), cwd=here, stderr=subprocess.PIPE, env=os.environ)
    run, end = here / "out/cells/lm-n50k", time.monotonic() + SLOWEST_S
    try:
        while not list((run / "checkpoints").glob("step-*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command(here), cwd=here, capture_output=True, text=True, check=False, timeout=SLOWEST_S)
    assert done.returncode == 0, done.stderr
    sweep = records.read(Sweep, here / "out" / "sweep.json")
    cell_of = {cell.name: cell for cell in sweep.cells}
    assert {name: cell.state for name, cell in cell_of.items()} == {
        "lm-n50k": "done", "lm-n50k-d1.28k-m1-b1-t0": "done",
    }, [cell.error for cell in sweep.cells]  # fmt: skip
    assert cell_of["lm-n50k"].tokens == 5120
    steps = [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "learning_rate" in line
    ]
    assert steps == list(range(1, 41)), "each step once, over the kill too"
    rows = records.read_lines(Observation, here / "out" / "observations.jsonl")
    drafted = [row for row in rows if row.draft]
    assert {(row.draft_tokens, row.lookahead, row.tree_nodes) for row in drafted} == {(1280, 2, 2), (1280, 2, 3)}
    assert all(row.tokens_per_step and row.tokens_per_step >= 1 for row in drafted)
    assert {row.draft for row in drafted} == {"lm-n50k/exports/tokens-1280"}
    assert all("sweep cell" in (row.provenance.note or "") and row.provenance.versions["torch"] for row in rows)
    again = subprocess.run(command(here), cwd=here, capture_output=True, text=True, check=False, timeout=SLOWEST_S)
    assert again.returncode == 0, again.stderr
    assert records.read(Sweep, here / "out" / "sweep.json").cells == sweep.cells, "nothing is run twice"
