"""Every number that an option takes, at its worst: one line that names the option as typed, before anything is loaded."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from foredraft.cli.main import app, main

ABSURD = "-1", "-inf", "inf", "nan", "1e30", "9" * 30, "1" * 5000
# Options for which 0 has a meaning: greedy, no draft, no limit, none held out, the first seed.
ZERO = {"--temperature", "--lookahead", "--top-k", "--val-share", "--seed", "--gpus-per-cell"}
NO_ZERO = {("deploy export", "--lookahead")}
LISTS = {"batch", "temperature", "concurrency", "request_rate", "load"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))
    if path and not hasattr(command, "commands"):
        yield path, command


def numeric() -> Iterator[tuple[tuple[str, ...], str]]:
    """Verbs and their options that take a number, or a list of them."""
    for path, command in commands(COMMAND):
        kinds = get_type_hints(inspect.unwrap(command.callback))
        for param in command.params:
            kind = kinds.get(param.name)
            if param.opts[0].startswith("-") and (
                kind in (int, float, int | None, float | None) or param.name in LISTS
            ):
                yield path, max(param.opts, key=len)


COMMAND = typer.main.get_command(app)
OPTIONS = list(numeric())


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["foredraft", *words])
    monkeypatch.setattr(typer.main, "get_command", lambda _: COMMAND)  # its making is most of the time
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    code = end.value.code
    assert isinstance(code, int)
    return code, out, err


def one_line(result: tuple[int, str, str]) -> str:
    """The error of a run that ended as it should: code 2, nothing on stdout, one line and perhaps a hint."""
    code, out, err = result
    error, *hints = err.strip().split("\n\n")
    assert (code, out) == (2, ""), err
    assert error.startswith("error: ")
    assert "\n" not in error
    assert all(hint.startswith("hint: ") for hint in hints)
    return error


def test_every_verb_with_a_number_is_walked() -> None:
    assert {path[0] for path, _ in OPTIONS} >= {
        "plan",
        "fit",
        "measure",
        "generate",
        "bench",
        "probe",
        "sweep",
        "data",
        "deploy",
        "train",
    }
    assert len(OPTIONS) > 55


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=[" ".join((*path, option)) for path, option in OPTIONS])
def test_an_absurd_number_is_one_line_that_names_its_option(
    path: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else stands on the command line: the value is judged before what is missing, and before torch is loaded (of a
    process that other tests had load it before, nothing can be told).
    """
    loaded = "torch" in sys.modules
    for value in (*ABSURD, *(() if option in ZERO and (" ".join(path), option) not in NO_ZERO else ("0",)), "x"):
        error = one_line(run(capsys, monkeypatch, *path, f"{option}={value}"))
        assert option in error, (value, error)
        assert len(error) < 300 or len(value) > 300
    assert loaded or "torch" not in sys.modules


@pytest.mark.parametrize("option", sorted(ZERO))
def test_zero_passes_where_it_has_a_meaning(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: what is then missed is another argument."""
    path = next(path for path, each in OPTIONS if each == option and (" ".join(path), option) not in NO_ZERO)
    assert option not in one_line(run(capsys, monkeypatch, *path, f"{option}=0"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "Llama-3.1-8B", "--draws", "0"), "--draws must be a whole number from 2 to 100,000, got 0"),
        (("fit", "rows.jsonl", "--seed", "-1"), "--seed must be a whole number from 0 to 4.294967"),
        (("plan", "Llama-3.1-8B", "-n", "3"), "--devices 3 does not divide the 32 heads (8 of keys and values) of Llama-3.1-8B; 1, 2, 4, 8, 16 or"),
        (("plan", "Llama-3.1-8B", "--machine", "3xH100"), "--devices 3 does not divide"),
        (("plan", "Llama-3.1-8B", "--machine", "8xH100", "--devices", "4"), "--machine 8xH100 says 8 devices, --devices 4; give one"),
        (("plan", "Llama-3.1-8B", "--machine", "M4 Max", "--devices", "2"), "Apple-M4-Max states no link"),
        (("plan", "Llama-3.1-8B", "--machine", "tera.json"), "tera.json: flops_per_s[bfloat16] 148: it is in FLOP/s; 148e12?"),
        (("plan", "Llama-3.1-8B", "--machine", "eight.json"), "machine M: dtype bfloat16 needs a rate for"),
        (("plan", "Llama-3.1-8B", "--concurrency", "0"), "--concurrency must be a list"),
        (("plan", "Llama-3.1-8B", "--concurrency", "1,nan"), "--concurrency must be a list"),
        (("plan", "Llama-3.1-8B", "--engine", "foo"), "--engine must be one of"),
        (("plan", "Llama-3.1-8B", "--dtype", "foo"), "--dtype must be one of"),
        (("plan", "Llama-3.1-8B", "--kv-dtype", "foo"), "--kv-dtype must be one of"),
        (("plan", "Llama-3.1-8B", "--kinds", "foo"), "--kinds must be among"),
        (("plan", "Llama-3.1-8B", "--kinds", ""), "--kinds must name one or more of"),
        (("plan", "Llama-3.1-8B", "--objective", "fame"), "--objective must be one of"),
        (("plan", "Llama-3.1-8B", "--input-len", "1e9"), "--input-len"),
        (("plan", "Llama-3.1-8B", "--load", "1:0.2,1:0.3"), "--load must be clients with the share of the time"),
        (("plan", "Llama-3.1-8B", "--load", "8"), "--load must be clients with the share of the time"),
        (("plan", "Llama-3.1-8B", "--load", "8:0"), "--load must be clients with the share of the time"),
        (("plan", "Llama-3.1-8B", "--load", "8:1", "-c", "8"), "--load and --concurrency both say"),
        (("plan", "Llama-3.1-8B", "--ttft", "5000"), "--ttft must be a number above 0 and at most 3,600"),
        (("plan", "Llama-3.1-8B", "--train-machine", "0xH100"), "--train-machine 0xH100 says 0 devices"),
        (("plan", "Llama-3.1-8B", "--train-machine", "2xM4 Max"), "--train-machine 2xM4 Max: machine Apple-M4-Max states no link"),
        (("plan", "Llama-3.1-8B", "--train-machine", "H10"), "--train-machine 'H10' is not known"),
        (("plan", "Llama-3.1-8B", "--train-device-hour", "1"), "--train-device-hour: give --device-hour too"),
        (("plan", "Llama-3.1-8B", "-n", "3", "--data-parallel", "2"), "--data-parallel 2 does not divide --devices 3"),
        (("fit", "rows.jsonl", "--law", "gravity"), "--law must be one of loss_law"),
        (("fit", "rows.jsonl", "--figures"), "--figures: name a folder for them with --out"),
        (("fit", "rows.jsonl", "--hold-out", "fame"), "--hold-out must be among draft_params, draft_layers, draft_tokens, tree_nodes, got fame"),
        (("plan", "Llama-3.1-8B", "--speed"), "No such option: --speed"),
        (("plan",), "Missing argument"),
        (("generate", "x", "y", "--device", "xyz"), "--device must be cpu, cuda or cuda:N, got 'xyz'"),
        (("bench", "x", "--dtype", "int3"), "--dtype must be one of float32, bfloat16, float16, got int3"),
        (("measure", "x", "-p", "p", "-o", "o", "--batch", "1,0"), "--batch must be a whole number from 1 to 65,536, got 0"),
        (("measure", "x", "-p", "p", "-o", "o", "--batch", "1,two"), "--batch must be a number or a list such as 1,8, got '1,two'"),
        (("measure", "x", "-p", "p", "-o", "o", "--way", "sideways"), "--way must be one of live, forced, both"),
        (("plan", "null"), "null/config.json: "),
        (("plan", "Llama-3.1-8B", "--machine", "wide.json"), "wide.json: not UTF-8"),
        (("train", "wide.json", "-o", "o"), "wide.json: not UTF-8"),
        (("sweep", "wide.json", "-o", "o"), "wide.json: not UTF-8"),
        (("generate", "x", "\udcff"), "prompt: it is not UTF-8"),
        (("generate", "x", "--file", "wide.json"), "wide.json: not UTF-8 (byte 0)"),
    ],
)  # fmt: skip
def test_what_users_typed(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"name": "M", "memory_bytes": 1e11, "bandwidth_bytes_per_s": 4e12, "source": "x"}
    Path("tera.json").write_text(json.dumps(record | {"flops_per_s": {"bfloat16": 148}}))
    Path("eight.json").write_text(json.dumps(record | {"flops_per_s": {"fp8": 3e14}}))
    Path("wide.json").write_text(json.dumps(record), encoding="utf-16")
    config = {
        "architectures": [None],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    Path("null").mkdir()
    Path("null/config.json").write_text(json.dumps(config))
    assert says in one_line(run(capsys, monkeypatch, *words))
