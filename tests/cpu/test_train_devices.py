"""Two processes train what one trains, copied or sharded, and a run goes on with another number of them."""

import json
import os
import subprocess
import sys

import msgspec
import pytest
from grammar import CONFIG, write_folder
from processes import together
from safetensors.torch import load_file

from foredraft import records
from foredraft.recipe import DSpark, Eagle3, EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.train.devices import Devices
from foredraft.train.launch import launch

STEPS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    return write_folder(root / "train", tokens=8000), write_folder(root / "held_out", tokens=2000, seed=1)


def recipe(steps=STEPS, **changes):
    """7 held-out windows, which two processes cannot halve; micro-batches of which each process has two."""
    stage = Stage(tokens=STEPS * 8 * 32, length=32, batch=8, learning_rate=1e-2, micro_batch=2, schedule="constant")
    watch = EvalSchedule(log_every=1, held_out_every=4, held_out_tokens=7 * 32, save_every=6)
    device_recipe = Recipe(model=LanguageModel(config=CONFIG), stages=(stage,), precision="float32", watch=watch)
    return msgspec.structs.replace(device_recipe, **changes)


def figures(out, key):
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in logged if key in line]


@pytest.fixture(scope="module")
def alone(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    launch(recipe(), out, Devices(), data=[folders[0]], held_out=folders[1])
    return out


def same(out, alone):
    for key in ("loss", "gradient_norm", "held_out_loss"):
        assert figures(out, key) == pytest.approx(figures(alone, key), abs=1e-5), key
    weights, expected_weights = (load_file(path / "final/model.safetensors") for path in (out, alone))
    assert weights.keys() == expected_weights.keys()
    assert all(
        (weights[name].double() - expected_weights[name].double()).abs().max() < 1e-4 for name in expected_weights
    )
    return True


@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_train_what_one_trains(shard, folders, alone, tmp_path):
    assert together(recipe(), tmp_path / "run", folders, shard=shard) == [0, 0]
    assert same(tmp_path / "run", alone)


@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("worlds", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(worlds, shard, folders, alone, tmp_path):
    """Stopped after the checkpoint at step 6, whose optimiser state the second part needs."""
    out = tmp_path / "run"
    for world in worlds:
        if world == 1:
            launch(recipe(), out, Devices(), data=[folders[0]], held_out=folders[1])
        else:
            assert together(recipe(), out, folders, shard=shard) == [0, 0]
        if world == worlds[0]:
            state = records.read(dict, out / "checkpoints/step-00000006/state.json")
            assert state["stage_step"] == 6
            forget(out, after=6)
    assert same(out, alone)


def forget(out, after):
    """As if the run had been killed before its next checkpoint."""
    for path in (out / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > after:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


@pytest.fixture(scope="module")
def target(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("target") / "run"
    launch(recipe(model=LanguageModel(config=CONFIG | {"num_hidden_layers": 4})), out, Devices(), data=[folders[0]])
    return out / "final"


BLOCKS = DSpark(layers=1, block=5, rank=4, feature_layers=(1, 3), anchors=0.3, mask_token=0)


@pytest.mark.parametrize("model", [Eagle3(unroll=2), BLOCKS], ids=["EAGLE-3", "DSpark"])
def test_a_head_trains_beside_a_sharded_target(model, folders, target, tmp_path):
    device_recipe = recipe(model=model)
    launch(device_recipe, tmp_path / "one", Devices(), data=[folders[0]], held_out=folders[1], target=target)
    codes = together(device_recipe, tmp_path / "two", folders, shard=True, target=target)
    assert codes == [0, 0]
    assert figures(tmp_path / "one", "loss")[-1] < figures(tmp_path / "one", "loss")[0]
    assert same(tmp_path / "two", tmp_path / "one")


def test_a_batch_that_does_not_spread_is_refused(folders, tmp_path):
    stage = msgspec.structs.replace(recipe().stages[0], batch=7, tokens=7 * 32 * STEPS)
    assert together(recipe(stages=(stage,)), tmp_path / "run", folders) == [2, 2]
    assert (tmp_path / "run.error0").read_text() == "batch (7) must be a multiple of the 2 processes"


def test_torchrun_starts_it(folders, alone, tmp_path):
    """The documented command, on the CPU."""
    records.write(tmp_path / "recipe.json", recipe())
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "foredraft",
        "train", str(tmp_path / "recipe.json"), "--data", str(folders[0]), "--held-out", str(folders[1]),
        "--out", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == STEPS
    assert same(tmp_path / "run", alone)
