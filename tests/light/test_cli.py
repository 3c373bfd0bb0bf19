"""The command line as a user meets it: exit codes, one-line errors with a hint, JSON on stdout, talk on stderr."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from foredraft import __version__, records
from foredraft.cli.main import app, main

PLAN = ("plan", "Llama-3.1-8B", "--machine", "H100", "--concurrency", "1,64", "--draws", "16")


BLOCKED = """
import contextlib, io, json, sys
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
from foredraft.cli.main import main
ends = []
for words in json.loads(sys.argv[1]):
    sys.argv, err = ["foredraft", *words], io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        ends.append((end.code, err.getvalue()))
print(json.dumps(ends))
"""
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 99,
}  # fmt: skip


def blocked(commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of each command line, in one process where nothing heavy can be imported."""
    words = [sys.executable, "-c", BLOCKED, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return [tuple(end) for end in json.loads(done.stdout)]


def _model(folder: Path, *files: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in files:
        (folder / name).touch()


def test_a_verb_that_needs_torch_says_in_a_line_how_to_have_it(tmp_path: Path):
    _model(tmp_path / "model", "model.safetensors", "tokenizer.json")
    assert blocked([["generate", "model", "Hello"]], tmp_path) == [
        (2, "error: this needs torch: pip install 'foredraft[full]'\n")
    ]


class Ended(NamedTuple):
    """What a run of the command line left."""

    returncode: int
    stdout: str
    stderr: str


def foredraft(*args: str, cwd: Path | None = None) -> Ended:
    """The command line in this process, which has its imports already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["foredraft", *args]), contextlib.chdir(cwd or Path.cwd()), contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end,
    ):  # fmt: skip
        main()
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "foredraft", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_hints_stand_where_an_error_is_raised(tmp_path: Path) -> None:
    """And not by a word of its message: these two end in no word of machines."""
    (tmp_path / "grid.json").write_text('{"target": "t", "cells": {"a": {"run": ["list", "laws"]}}}')
    (tmp_path / "rows.csv").write_text("target,k,tau\nM,1,1.5\n")
    for args in (
        ("sweep", "grid.json", "--out", "out", "--gpus-per-cell", "1"),
        ("validate", "rows.csv", "--target", "Llama-3.1-8B"),
    ):
        done = foredraft(*args, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "hint" not in done.stderr


MODELS = {"nowhere": "no such folder", "empty": "no such file", "weightless": "holds neither model.safetensors"}


EXPORT_FOR = ("deploy", "{good}", "--target", "{bad}")  # which needs no weights of its target
VERBS = (
    ("generate", "{bad}", "hi"),
    ("generate", "{good}", "hi", "--draft", "{bad}"),
    ("bench", "{bad}"),
    ("bench", "{good}", "--draft", "{bad}@3"),
    ("measure", "{bad}", "--prompts", "p.txt", "--out", "out"),
    ("measure", "{good}", "--draft", "{bad}@3", "--prompts", "p.txt", "--out", "out"),
    ("probe", "--target", "{bad}"),
    ("train", "recipe.json", "--target", "{bad}", "--data", "tokens", "--out", "out"),
    ("data", "regenerate", "p.txt", "--target", "{bad}", "--out", "out"),
    ("deploy", "{bad}", "--target", "{good}", "--out", "out"),
    ("deploy", "{good}", "--target", "{bad}", "--out", "out"),
)


@pytest.mark.parametrize("folder", MODELS)
def test_a_wrong_folder_is_told_before_torch_or_a_tokenizer_is_loaded(tmp_path: Path, folder: str) -> None:
    """Where neither can be imported at all."""
    _model(tmp_path / "weightless", "tokenizer.json")
    _model(tmp_path / "good", "tokenizer.json", "model.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.txt").write_text("hi\n")
    recipe = {"model": {"kind": "eagle3"}, "stages": [{"tokens": 20000, "length": 100, "batch": 10}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    verbs = [words for words in VERBS if (folder, words[:4]) != ("weightless", EXPORT_FOR)]
    commands = [[word.format(bad=tmp_path / folder, good=tmp_path / "good") for word in words] for words in verbs]
    ends = blocked(commands, tmp_path)
    assert len(ends) == len(verbs)
    for words, (code, talk) in zip(verbs, ends, strict=True):
        error, *_ = talk.split("\n\n")
        assert code == 2, (words, talk)
        assert MODELS[folder] in error, words
        assert error.startswith(f"error: {tmp_path / folder}"), (words, error)
        assert "\n" not in error.strip(), words


MISSING = {
    ("data", "show", "nowhere"): "no token folder",
    ("data", "tokenizer", "nowhere", "--out", "out"): "No such file or folder",
    ("train", "recipe.json", "--data", "nowhere", "--out", "out"): "no token folder",
    ("train", "nowhere.json", "--out", "out"): "No such file",
    ("plan", "nowhere/model"): "no shape named",
    ("deploy", "check", "nowhere"): "No such file",
    ("sweep", "nowhere.json", "--out", "out"): "No such file",
    ("report", "nowhere"): "no such folder",
}


def test_other_missing_folders_are_told_as_soon(tmp_path: Path) -> None:
    recipe = {"model": {"kind": "lm", "params": 5e4}, "stages": [{"tokens": 20000, "length": 100, "batch": 10}]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    ends = blocked([list(words) for words in MISSING], tmp_path)
    for (words, says), (code, talk) in zip(MISSING.items(), ends, strict=True):
        error, *_ = talk.split("\n\n")
        assert code == 2, (words, talk)
        assert says in error, (words, error)
        assert "\n" not in error.strip(), words


def test_plan_writes_its_documents_and_prints_the_answer(tmp_path: Path) -> None:
    done = foredraft(*PLAN, "--out", str(tmp_path), "--no-figures")
    assert done.returncode == 0, done.stderr
    assert "Schedule" in done.stdout
    assert "Plan.json" in done.stderr
    plan = json.loads((tmp_path / "Plan.json").read_text())
    ranges = json.loads((tmp_path / "vllm_speculative_config.json").read_text())[
        "num_speculative_tokens_per_batch_size"
    ]
    assert ranges[0][0] == 1
    assert [step["concurrency"] for step in plan["schedule"]] == [1, 64]


def test_json_is_the_record_and_nothing_else() -> None:
    done = foredraft(*PLAN, "--json")
    assert json.loads(done.stdout)["target"] == "Llama-3.1-8B"


def test_config_folder_stands_for_a_model(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = foredraft("plan", str(tmp_path), "--concurrency", "1", "--draws", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == tmp_path.name


def test_a_shape_is_printed_edited_and_given_back(tmp_path: Path) -> None:
    """What a config cannot say is stated: a shape as JSON, in the place of a model or under its name."""
    printed = foredraft("list", "models", "Qwen3-8B", "--json")
    edited = json.loads(printed.stdout) | {"name": "Mine-9B", "num_layers": 40}
    (tmp_path / "shape.json").write_text(json.dumps(edited))
    for args, name in ((("plan", "shape.json"), "Mine-9B"), (("plan", "Theirs", "--shape", "shape.json"), "Theirs")):
        done = foredraft(*args, "--concurrency", "1", "--draws", "16", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["target"] == name
    said = foredraft("list", "models", "gpt-oss-20b").stdout
    assert "13.76 GB, mxfp4" in said
    assert "12 x window of 128" in said


@pytest.mark.parametrize(
    ("args", "says", "hints"),
    [
        (("plan", "Llama-3.1-700B"), "no shape named", "foredraft list models"),
        (("plan", "Llama-3.1-8B", "-m", "H10"), "machine 'H10' is not known", "foredraft list machines"),
        (("plan", "Llama-3.1-70B", "-m", "H100"), "the KV cache holds 0 tokens", "raise --devices"),
        (("plan", "Llama-3.1-8B", "-c", "many"), "concurrency must be a list", ""),
        (("plan", "Llama-3.1-8B", "-c", "0-8"), "concurrency must be a list", ""),
        (("plan", "Llama-3.1-8B", "--objective", "fame"), "objective must be one of", ""),
        (("plan", "Qwen3-1.7B", "-d", "Qwen3-4B"), "must be smaller than target", ""),
        (("plan", "Llama-3.1-8B", "--input-len", "-5"), "--input-len must be a number above 0", ""),
        (("plan", "OPT-13B", "--input-len", "4000"), "exceed the context", "lower --input-len"),
        (("plan", "Llama-3.1-8B", "--observations", "nowhere.jsonl"), "nowhere.jsonl: No such file", "check the path"),
        (("fit", "nowhere.jsonl"), "nowhere.jsonl: No such file", "check the path"),
        (("validate", "nowhere.csv"), "nowhere.csv: No such file", "check the path"),
        (("reproduce", "medusa"), "nothing named 'medusa'", "foredraft reproduce sdsl"),
        (("list", "dragons"), "nothing named 'dragons'", ""),
        (("list", "models", "Qwen3-800B"), "no shape named", "foredraft list models"),
        (("plan", "Mine", "--shape", "nowhere.json"), "nowhere.json: no such file", ""),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_a_hint(args: tuple[str, ...], says: str, hints: str, tmp_path: Path) -> None:
    done = foredraft(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    error, *hint_lines = done.stderr.strip().split("\n\n")
    assert says in error
    assert "\n" not in error
    assert hints in "".join(hint_lines)
    assert list(tmp_path.iterdir()) == []


def test_fit_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(
        "target,method,draft_tokens,tau\nT,eagle3,1e8,2.5\nT,eagle3,1e9,3.0\nT,eagle3,1e10,3.5\n"
    )
    done = foredraft("fit", str(tmp_path / "runs.csv"), "--json")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    fitted = {fit["law"]: fit for fit in reply["fits"]}
    assert fitted["law_1_1"]["parameters"]["c1"] == pytest.approx(0.5, abs=1e-6)
    assert "draft_layers" in reply["lacking"]["law_1_2"]


def test_fit_prints_one_table_or_one_law_and_draws_on_demand(tmp_path: Path) -> None:
    rows = "".join(f"T{i},eagle3,1e{8 + j},{2.5 + 0.1 * i + 0.5 * j}\n" for i in range(60) for j in range(3))
    (tmp_path / "runs.csv").write_text("target,method,draft_tokens,tau\n" + rows)
    every = foredraft("fit", str(tmp_path / "runs.csv"), "--draws", "20", "--out", str(tmp_path / "out"))
    assert every.returncode == 0, every.stderr
    assert every.stdout.count("law_1_1") == 1
    assert "more fits, of other pools" in every.stdout
    assert len(every.stdout.splitlines()) < 30
    assert len(list((tmp_path / "out").glob("Fit.*.json"))) >= 60
    assert not list((tmp_path / "out").glob("*.png"))
    whole = foredraft("fit", str(tmp_path / "runs.csv"), "--draws", "20", "--law", "law_1_1").stdout
    assert whole.count("domain draft_tokens") == 60


def test_without_matplotlib_documents_are_written_and_a_line_says_how_to_draw(tmp_path: Path) -> None:
    with patch.dict(sys.modules, {"matplotlib": None}):
        done = foredraft(*PLAN, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no figures: they need matplotlib (pip install 'foredraft[plot]')" in done.stderr
    assert (tmp_path / "Plan.json").is_file()
    assert not list(tmp_path.glob("*.png"))


def test_validate_judges_a_table_and_counts_what_it_lacks(tmp_path: Path) -> None:
    rows = "".join(f"M,eagle3,{k},{1 + sum(0.7**i for i in range(1, k + 1)):.4f}\n" for k in (1, 2, 4, 6))
    (tmp_path / "al.csv").write_text("target,method,k,mean_acceptance_length\n" + rows + "N,eagle3,5,3.1\n")
    done = foredraft("validate", str(tmp_path / "al.csv"), "--json")
    summary = json.loads(done.stdout)["tables"]["al.csv"]
    assert summary["curve_points"] == 2
    assert summary["lacking"] == {"τ at k ≤ 2 (for τ at larger k)": 1}


def test_validate_refuses_a_table_without_outcomes(tmp_path: Path) -> None:
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    done = foredraft("validate", str(tmp_path / "no.csv"))
    assert done.returncode == 2
    assert "no outcome column" in done.stderr


def test_reproduce_sdsl_is_within_one_per_cent() -> None:
    report = json.loads(foredraft("reproduce", "sdsl", "--json").stdout)
    assert report["table_5_worst_relative_error"] < 0.01


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("wei\x1brd"), 1, "error: KeyError: 'wei\\x1brd' at "),
        (RecursionError("maximum recursion depth exceeded"), 1, "a bug of foredraft"),
        (MemoryError(), 2, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: out of memory"),
        (ValueError("\x1b]0;owned\x07 is not it"), 2, "error: \\x1b]0;owned\\x07 is not it"),
        (KeyboardInterrupt(), 130, "stopped: "),
    ],
    ids=["bug", "recursion", "memory", "torch's memory", "escapes", "interrupt"],
)
def test_whatever_is_left_is_one_line_and_debug_shows_where(error: BaseException, code: int, says: str) -> None:
    with (
        patch("foredraft.shapes.known_shapes", side_effect=error),
        patch("foredraft.shapes.public.known_shapes", side_effect=error),
    ):
        done, debugged = foredraft("list", "models"), foredraft("list", "models", "--debug")
    assert (done.returncode, debugged.returncode) == (code, code)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not done.stderr or done.stderr.splitlines()[0].startswith(("error: ", "stopped: "))
    assert ("Traceback" in debugged.stderr) == (code != 130)
    if code == 1:
        assert "hint: report this line at " in done.stderr
        assert f"in foredraft list (version {__version__}, Python " in done.stderr


def test_a_bug_line_names_the_project_and_options_without_what_they_hold() -> None:
    import email.message

    named = email.message.Message()
    for line in ("Documentation, https://docs.example", "Issues, https://git.example/issues"):
        named["Project-URL"] = line
    with (
        patch("foredraft.api.fit", side_effect=KeyError("x")),
        patch("foredraft.cli.fit.rows_by_file", return_value={}),
        patch("importlib.metadata.metadata", return_value=named),
    ):
        done = foredraft("fit", "/home/me/mine.jsonl", "--draws=3133", "--seed", "987654")
    assert done.returncode == 1
    assert "in foredraft fit --draws --seed (version" in done.stderr
    assert "https://git.example/issues" in done.stderr
    assert not any(word in done.stderr for word in ("mine", "3133", "987654"))


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "Llama-160M"), ("fit", "x.jsonl"), ("probe",), ("report", "."), ("validate",), ("reproduce", "sdsl"), ("tour",),
        ("deploy", "simulate", "--accept", "2@3", "--target", "Llama-160M", "--method", "eagle3"),
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_the_second_of_two_runs_into_one_output_says_who_has_it(words: tuple[str, ...], tmp_path: Path) -> None:
    with records.reserved(tmp_path / "out"):
        done = foredraft(*words, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"{tmp_path / 'out'}: another run is at work on it (" in done.stderr.splitlines()[0]
    assert f"process {os.getpid()} on " in done.stderr
    assert not list(tmp_path.iterdir())


GROUPS = {group.name or "": group.typer_instance for group in app.registered_groups if group.typer_instance}
EVERY_VERB = [
    (*prefix, command.name or command.callback.__name__)
    for prefix, home in (((), app), *(((name,), group) for name, group in GROUPS.items()))
    for command in home.registered_commands
    if command.callback
]


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_every_verb_has_a_short_help_and_ends_at_ctrl_c_in_one_line_that_says_what_is_saved(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert foredraft(*verb, "-h").stdout == foredraft(*verb, "--help").stdout

    def stop() -> None:
        raise KeyboardInterrupt

    for command in (GROUPS[verb[0]] if len(verb) > 1 else app).registered_commands:
        monkeypatch.setattr(command, "name", command.name or getattr(command.callback, "__name__", ""))
        monkeypatch.setattr(command, "callback", stop)
    done = foredraft(*verb)
    assert done.returncode == 130
    assert done.stdout == ""
    assert re.fullmatch(r"stopped: .*\b(saved|stands|kept|written|printed|holds)\b.*\n", done.stderr)


def test_completion_is_installed_by_an_option_of_its_own() -> None:
    assert "--install-completion" in foredraft("--help").stdout
