"""A run that is killed, refused, short of disk or asked to stop goes on from its last good checkpoint as if nothing had been."""

import json
import random
import signal

import msgspec
import pytest
from grammar import CONFIG, write_folder
from processes import ended, reached, start
from safetensors.torch import load_file

from foredraft.recipe import EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.train.checkpoints import OPTIMISER, optimiser_state
from foredraft.train.devices import Devices
from foredraft.train.launch import launch
from foredraft.train.progress import Metrics

STEPS, STAGES = 120, (90, 30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    return write_folder(root / "train"), write_folder(root / "held_out", tokens=2000, seed=1)


RECIPE = Recipe(
    model=LanguageModel(config=CONFIG),
    stages=tuple(
        Stage(tokens=steps * 8 * 32, length=32, batch=8, learning_rate=1e-2, micro_batch=4) for steps in STAGES
    ),
    precision="float32",
    watch=EvalSchedule(log_every=1, held_out_every=25, held_out_tokens=512, save_every=7, keep=2),
)


@pytest.fixture(scope="module")
def uninterrupted(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    launch(RECIPE, out, Devices(), data=[folders[0]], held_out=folders[1])
    return out


def figures(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return {line["step"]: line["loss"] for line in figures(out) if "loss" in line}


def same(out, uninterrupted):
    """Every step's loss, once, and every weight."""
    assert [line["step"] for line in figures(out) if "loss" in line] == list(range(1, STEPS + 1))
    assert losses(out) == pytest.approx(losses(uninterrupted), abs=1e-6)
    weights, expected_weights = (load_file(path / "final/model.safetensors") for path in (out, uninterrupted))
    assert all((weights[name] - expected_weights[name]).abs().max() < 1e-6 for name in expected_weights)
    return True


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_points_it_ends_as_if_it_had_not_been(seed, folders, uninterrupted, tmp_path):
    draw, out = random.Random(seed), tmp_path / "run"
    for step in sorted(draw.sample(range(3, STEPS - 9), 4)):
        assert ended(start(RECIPE, out, folders, dies=(step, 0.001 + draw.random() * 0.02))) == -signal.SIGPROF
    assert losses(out) != losses(uninterrupted)  # it was not done yet
    assert ended(start(RECIPE, out, folders)) == 0
    assert same(out, uninterrupted)


def test_another_recipe_or_other_data_are_refused_with_the_difference(folders, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    hotter = msgspec.structs.replace(RECIPE.stages[1], learning_rate=0.5)
    other = msgspec.structs.replace(RECIPE, stages=(RECIPE.stages[0], hotter), seed=3)
    with pytest.raises(ValueError, match=r"stages\[1\]\.learning_rate 0\.01 → 0\.5; seed 0 → 3"):
        launch(other, uninterrupted, Devices(), data=[folders[0]])
    with pytest.raises(ValueError, match=r"data \w+ → \w+"):
        launch(RECIPE, uninterrupted, Devices(), data=[folders[1]])
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    louder = msgspec.structs.replace(RECIPE, watch=EvalSchedule(save_every=50))  # what is watched may change
    assert launch(louder, uninterrupted, Devices(), data=[folders[0]]).step == STEPS


def test_a_full_disk_leaves_the_last_good_checkpoint(folders, uninterrupted, tmp_path):
    """No file of this process may grow beyond 100 KB, less than the weights need."""
    out = tmp_path / "run"
    process = start(RECIPE, out, folders)
    assert reached(process, out / "metrics.jsonl", 30)
    process.terminate()
    assert ended(process) == 2
    good = sorted(path.name for path in (out / "checkpoints").glob("step-*"))[-1]
    full = start(RECIPE, out, folders, file_bytes=100_000)
    assert ended(full) == 2
    message = out.with_suffix(".error").read_text()
    assert "File too large" in message
    assert message.endswith(f"the last good checkpoint is {out / 'checkpoints' / good}")
    assert not list((out / "checkpoints").glob(".*"))
    assert ended(start(RECIPE, out, folders)) == 0
    assert same(out, uninterrupted)


def test_a_cut_optimiser_and_torn_metrics_are_named_or_dropped(uninterrupted, tmp_path):
    checkpoint = sorted((uninterrupted / "checkpoints").glob("step-*"))[-1]
    (tmp_path / OPTIMISER).write_bytes((checkpoint / OPTIMISER).read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{tmp_path}/{OPTIMISER}: truncated or corrupt"):
        optimiser_state(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{}\n[]\n{"step": ""}\n{"step": 2}\n{"step": 9}\n{"step"')
    Metrics(path, 5).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 0}\n{"step": 1}\n')  # of a run that was killed before its first checkpoint
    Metrics(path, 0).close()
    assert path.read_text() == ""


def test_asked_to_stop_it_saves_first_and_says_so(folders, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(RECIPE, out, folders)
    assert reached(process, out / "metrics.jsonl", 10)
    process.terminate()
    assert ended(process) == 2
    step = max(losses(out))
    assert out.with_suffix(".error").read_text() == (
        f"asked to stop at step {step}; the last good checkpoint is {out / f'checkpoints/step-{step:08d}'}"
    )
    assert ended(start(RECIPE, out, folders)) == 0
    assert same(out, uninterrupted)
