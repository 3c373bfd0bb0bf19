"""The probe: a record that the planner takes, figures that are possible, and how each was measured; never how fast anything is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foredraft import hardware, machines, records
from foredraft.hardware import memory_bytes, read_rate, seconds, write_rate
from foredraft.measure import probe as probing
from foredraft.measure.probe import (
    VERIFIED,
    busy,
    cache_bytes,
    device_of,
    probe,
    stacked,
    step_overhead,
    verification,
)
from foredraft.models import load
from foredraft.models.kernels import processor_name
from foredraft.records import Machine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def quick() -> Any:
    """Smaller tensors, the same measurements."""
    patch = pytest.MonkeyPatch()
    patch.setattr("foredraft.hardware.SWEPT_BYTES", 2**22)
    patch.setattr(probing, "STACKED_BYTES", {"cpu": 2**20})
    patch.setattr(probing, "WIDTH", {"cpu": 256})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def machine(quick: None, checkpoint: Path) -> Machine:
    return probe("cpu", checkpoint, repeats=2, command="foredraft probe")


def test_every_figure_is_there_and_says_how_it_was_measured(machine: Machine):
    assert machine.name == processor_name()
    assert tuple(machine.verify_s) == VERIFIED
    assert set(machine.flops_per_s) == {"float32", "bfloat16"}
    measured = {
        "verify_s",
        "stack_s",
        "flops_per_s",
        "memory_bytes",
        "bandwidth_bytes_per_s",
        "write_bytes_per_s",
        "step_overhead_s",
    }
    assert measured <= machine.measured.keys()
    assert all(getattr(machine, name) for name in measured)
    assert "256 tokens of context, float32" in machine.measured["verify_s"]
    assert {name: tuple(rows) for name, rows in machine.stack_s.items()} == {"float32": VERIFIED, "bfloat16": VERIFIED}
    assert machine.threads == torch.get_num_threads()
    assert machine.provenance is not None
    assert machine.provenance.versions["torch"] == str(torch.__version__)
    assert machine.provenance.command == "foredraft probe"


def test_figures_are_possible(machine: Machine):
    assert 2**28 < machine.memory_bytes < 2**45
    assert machine.cache_bytes is None or 2**15 < machine.cache_bytes < 2**32
    assert 1e8 < machine.bandwidth_bytes_per_s < 1e13
    assert 1e8 < (machine.write_bytes_per_s or 0) < 1e13
    assert all(1e7 < rate < 1e16 for rate in machine.flops_per_s.values())
    assert 1e-6 < (machine.step_overhead_s or 0) < 1
    assert machine.link_bytes_per_s is None, "nothing between devices was measured"


def test_what_was_measured_can_be_read_back(machine: Machine, tmp_path: Path):
    records.write(tmp_path / "machine.json", machine)
    assert records.read(Machine, tmp_path / "machine.json") == machine
    with pytest.raises(ValueError, match=r"verify_s\[4\] must be positive"):
        records.decode(
            Machine, json.dumps({**json.loads((tmp_path / "machine.json").read_bytes()), "verify_s": {"4": 0}})
        )


def test_shipped_machines_need_none_of_what_is_measured():
    for machine in machines.MACHINES.values():
        assert machine.verify_s == {}
        assert machine.step_overhead_s is None


def test_more_tokens_are_more_work(quick: None, checkpoint: Path):
    """64 tokens do 64 times the arithmetic of one: even a noisy clock sees it."""
    by_model, by_stack = verification(load(checkpoint), 5), stacked(CPU, torch.float32, 5)
    assert by_model[64] > by_model[1]
    assert by_stack[64] > by_stack[1]


def test_the_pass_is_the_models_own(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """As many passes as announced, of the widths announced, behind the context announced."""
    model, calls = load(checkpoint), []
    forward = type(model).forward

    def watched(self: Any, tokens: torch.Tensor, positions: torch.Tensor, *positional: Any, **more: Any) -> Any:
        calls.append((tokens.shape[1], int(positions[0, 0])))
        return forward(self, tokens, positions, *positional, **more)

    monkeypatch.setattr(type(model), "forward", watched)
    verification(model, 3)
    assert calls == [(num, probing.CONTEXT) for num in VERIFIED for _ in range(2 + 3)]


def test_a_clock_counts_every_run_and_waits():
    ran: list[int] = []
    assert len(seconds(lambda: ran.append(1), CPU, 4)) == len(ran) == 4
    assert step_overhead(CPU, 1) > 0


def test_memory_is_read_and_written_at_believable_rates(quick: None):
    assert 1e8 < read_rate(repeats=2) < 1e14
    assert 1e8 < write_rate(repeats=2) < 1e14


def test_a_limit_of_the_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_LIMIT", limit)
    total_bytes = memory_bytes(CPU)
    limit.write_text("max\n")
    assert memory_bytes(CPU) == total_bytes
    limit.write_text("1048576\n")
    assert memory_bytes(CPU) == 2**20


def test_the_largest_cache_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(probing, "_CACHES", tmp_path)
    assert cache_bytes(CPU) is None
    for name, size in (("index0", "48K"), ("index3", "32M")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    assert cache_bytes(CPU) == 32 * 2**20


def test_the_command_writes_a_machine_that_the_planner_takes(
    quick: None, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
):
    file = tmp_path / "machine.json"
    code, output, talk = cli("probe", "--repeats", 1, "--out", file)
    assert code == 0, talk
    assert processor_name() in output
    assert "× of the first" in output
    code, output, talk = cli("probe", "--repeats", 1, "--json")
    assert records.decode(Machine, output).name == processor_name()
    load_of = (
        "--dtype",
        "float32",
        "--concurrency",
        "1",
        "--input-len",
        "32",
        "--output-len",
        "32",
        "--draws",
        "8",
        "--json",
    )
    code, output, talk = cli("plan", "Qwen2.5-0.5B", "--machine", file, *load_of)
    assert code == 0, talk
    assert json.loads(output)["machine"] == processor_name()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:N"),
        (("--repeats", "0"), "--repeats must be a whole number from 1"),
        (("--threads", "0"), "--threads must be a whole number from 1"),
        (("--dtype", "int3"), "dtype must be one of"),
        (("--target", "{tmp}/nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str
):
    code, output, talk = cli("probe", *(part.format(tmp=tmp_path) for part in arguments))
    assert (code, output) == (2, "")
    assert message in talk


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="sees no GPU"):
        device_of("cuda")


@pytest.mark.parametrize(
    ("running", "figures", "says"),
    [
        (0.05, [10.0, 10.2, 9.9, 10.1], None),
        (None, [10.0, 10.2, 9.9, 10.1], None),
        (6.2, [10.0, 10.2, 9.9, 10.1], "6.2 other processes"),
        (0.05, [10.0, 5.0, 9.0, 4.0], "lie 79% apart"),
        (0.05, [10.0], None),
    ],
)
def test_a_busy_machine_is_told_by_its_load_or_by_its_repeats(running, figures, says):
    warning = busy(running, figures)
    assert (warning is None) == (says is None)
    if warning and says:
        assert says in warning
        assert warning.endswith("probe again")
