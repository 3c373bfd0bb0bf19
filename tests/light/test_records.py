"""Records: strict about keys and values, one-line errors that name file and field, files whole or not at all."""

import gzip
import json
import math
import os
import re
import sys
from pathlib import Path

import msgspec
import pytest

from foredraft import records
from foredraft.records import (
    BreakEven,
    DraftChoice,
    Estimate,
    Fit,
    Machine,
    NextRun,
    Observation,
    Plan,
    Provenance,
    RunnerUp,
    ScheduleStep,
    Workload,
)

OWN = Provenance(source="own run", command="serve", versions={"engine": "1.2"}, created="2026-10-01")


def row(**fields) -> Observation:
    return Observation(**{"run": "a", "target": "T", "method": "eagle3", "provenance": OWN} | fields)


def estimate() -> Estimate:
    return Estimate(value=1.5, low=1.0, high=2.0 + 1e-15, unit="×", source="s", extrapolates=("devices",))


OBSERVATION = row(
    draft="d", lookahead=3, survival=(0.8, 0.6, 0.3), tokens_per_step=2.7, drafted=300, accepted=170, temperature=0.0,
    ttft_s=0.0, dataset="Σ τ\u2028\x85 \"quoted\"\n", draft_params=1.2e8,
)  # fmt: skip
FIT = Fit(
    law="l", formula="y = a·x", output="tokens_per_step", parameters={"a": 0.1 + 0.2}, draws=((1.0,), (1 / 3,)),
    domain={"x": (1.0, 2.0)}, num_observations=3, num_clusters=2, residual_sd=1e-300, rivals={"other": 0.2},
    at_bound=("a",), provenance=(OWN,),
)  # fmt: skip
CHOICE = DraftChoice(kind="head", name="h", params=1e9, non_embedding_params=9e8, num_layers=1, draft_tokens=8e8)
STEP = ScheduleStep(
    concurrency=4, running=3.5, lookahead=3, topk=1, tree_nodes=3, tokens_per_step=estimate(), speedup=estimate(),
    output_tok_s=estimate(), tpot_s=estimate(), ttft_s=estimate(),
)  # fmt: skip
PLAN = Plan(
    objective="throughput", engine="vllm", target="T", machine="M", devices=1, dtype="bfloat16",
    workload=Workload(input_len=8, output_len=8, concurrency=(1, 4), weights=(0.0, 1.0)), speedup=estimate(),
    schedule=(STEP,), draft=CHOICE, break_even=BreakEven(tokens=2e8, low=1e8, high=None), theory_params=1e8,
    runners_up=(RunnerUp(draft=CHOICE, speedup=estimate(), reason="r"),),
    next_runs=(NextRun(run="r", settles="s", narrows=0.3, gpu_hours=1.0),), not_considered={"a": "b"},
    settings={
        "vllm": {"method": "eagle3", "num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 8, 0]]},
        "sglang": {"--speculative-num-steps": 3},
    }, provenance=(OWN,),
)  # fmt: skip


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text
    return text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokens_per_stp": 2.0}, "tokens_per_stp"),
        ({"draft_params": -1.0}, "draft_params"),
        ({"target_params": 0}, "target_params"),
        ({"kv_cache_tokens": -5}, "kv_cache_tokens"),
        ({"lookahead": -1}, "lookahead"),
        ({"tokens_per_step": 0.9}, "tokens_per_step"),
        ({"tokens_per_step": "2.1"}, "tokens_per_step"),
        ({"accept_prob": 1.2}, "accept_prob"),
        ({"survival": [0.5, -0.1]}, "survival"),
        ({"accepted": 6, "drafted": 5}, "accepted"),
        ({"output_tok_s": 0.0}, "output_tok_s"),
        ({"lookahead": 2.5}, "lookahead"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_line_names_file_line_and_field(tmp_path, fields, named):
    good = json.loads(msgspec.json.encode(OBSERVATION))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | fields) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: ") as error:
        records.read_lines(Observation, path)
    assert named in one_line(error)


def test_the_same_lines_without_the_fault_are_read(tmp_path):
    """Negative control of the test above: its base line is not at fault."""
    path = tmp_path / "rows.jsonl"
    records.write_lines(path, [OBSERVATION, OBSERVATION])
    assert records.read_lines(Observation, path) == [OBSERVATION] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["tokens_per_step", "draft_params", "ttft_s", "accept_prob", "loss", "output_tok_s"])
def test_no_number_may_be_nan_or_infinite(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be a finite number") as error:
        row(**{field: value})
    one_line(error)


def test_nan_in_a_survival_curve_and_in_a_file(tmp_path):
    with pytest.raises(ValueError, match="survival must be a finite number"):
        row(survival=(0.5, math.nan))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(json.loads(msgspec.json.encode(OBSERVATION)) | {"tokens_per_step": math.nan}))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: ") as error:
        records.read_lines(Observation, path)
    one_line(error)


def test_what_was_not_measured_is_absent_and_zero_stays_zero():
    stored = json.loads(msgspec.json.encode(row(ttft_s=0.0, accepted=0, drafted=10)))
    assert stored["ttft_s"] == 0.0
    assert stored["accepted"] == 0
    assert "tpot_s" not in stored
    assert row().tpot_s is None


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (Workload, {"input_len": 0, "output_len": 1, "concurrency": (1,)}, "input_len"),
        (Workload, {"input_len": 1, "output_len": 1, "concurrency": ()}, "concurrency"),
        (Workload, {"input_len": 1, "output_len": 1, "concurrency": (1, 0)}, "concurrency"),
        (Workload, {"input_len": 1, "output_len": 1, "concurrency": (1, 2), "weights": (1.0,)}, "weights"),
        (Workload, {"input_len": 1, "output_len": 1, "concurrency": (1, 2), "weights": (0.0, 0.0)}, "weights"),
        (Workload, {"input_len": 1, "output_len": 1, "concurrency": (1,), "temperature": -1.0}, "temperature"),
        (DraftChoice, {"kind": "lm", "params": 1.0, "non_embedding_params": 1.0, "method": "eagle3"}, "only of a head"),
        (Machine, {"memory_bytes": 0, "bandwidth_bytes_per_s": 1, "flops_per_s": {}}, "memory_bytes"),
        (
            Machine,
            {"memory_bytes": 1e9, "bandwidth_bytes_per_s": 1e9, "flops_per_s": {"bfloat16": math.nan}},
            "bfloat16",
        ),
    ],
)
def test_impossible_workloads_drafts_and_machines(kind, fields, named):
    with pytest.raises(ValueError, match=named) as error:
        kind(**fields | {Machine: {"name": "m", "source": "s"}, DraftChoice: {"name": "d"}}.get(kind, {}))
    one_line(error)


@pytest.mark.parametrize("record", [OBSERVATION, FIT, PLAN], ids=lambda record: type(record).__name__)
def test_round_trip_through_a_file(tmp_path, record):
    path = tmp_path / "new" / "record.json"
    records.write(path, record)
    assert records.read(type(record), path) == record
    records.write_lines(path, [record, record])
    assert records.read_lines(type(record), path) == [record, record]


def test_packed_lines_read_as_they_were_written(tmp_path):
    path = tmp_path / "o.jsonl.gz"
    records.write_lines(path, [OBSERVATION] * 50)
    data = path.read_bytes()
    assert len(data) < 2000
    assert records.read_lines(Observation, path) == [OBSERVATION] * 50
    records.write_lines(path, [OBSERVATION] * 50)
    assert path.read_bytes() == data
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"o\.jsonl\.gz: truncated or corrupt") as caught:
        records.read_lines(Observation, path)
    assert "\n" not in str(caught.value)


def test_unknown_key_in_a_document_names_file_and_key(tmp_path):
    path = tmp_path / "Plan.json"
    path.write_text(json.dumps(json.loads(msgspec.json.encode(PLAN)) | {"speed_up": 2}))
    with pytest.raises(ValueError, match=r"Plan\.json: .*speed_up") as error:
        records.read(Plan, path)
    one_line(error)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file_is_an_error(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rows\.jsonl: no records"):
        records.read_lines(Observation, path)
    with pytest.raises(ValueError, match=r"rows\.jsonl: "):
        records.read(Plan, path)


def survives(path, write) -> bool:
    """Whether a write that fails leaves the old content and nothing else."""
    path.write_text("old")
    with pytest.raises((TypeError, OSError)):
        write()
    return path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "Plan.json"
    unencodable = msgspec.structs.replace(PLAN, settings={"vllm": {"method": object()}})
    assert survives(path, lambda: records.write(path, unencodable))
    assert survives(path, lambda: records.write_lines(path, [PLAN, unencodable]))

    def broken(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", broken)
    assert survives(path, lambda: records.write(path, PLAN))


def test_a_writer_that_opens_first_is_caught(tmp_path):
    """Negative control: the usual way of writing loses the old file."""
    path = tmp_path / "Plan.json"

    def naive():
        with path.open("wb") as file:
            file.write(b"{")
            file.write(msgspec.json.encode(object()))

    assert not survives(path, naive)


def test_an_output_is_one_runs_at_a_time_and_leftovers_of_a_killed_one_go(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (tmp_path / ".run.99.partial").mkdir()
    (out / ".metrics.99.partial").write_text("half")
    (out / "metrics").write_text("whole")
    with records.reserved(out):
        assert [path.name for path in out.iterdir()] == ["metrics"]
        with pytest.raises(
            ValueError, match=rf"{out}: another run is at work on it \(.*, process {os.getpid()} on .+\); wait"
        ):
            records.reserved(out)
        with pytest.raises(ValueError, match="another run is at work"), records.whole_folder(out, replace=True):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no lock is left either
    records.reserved(out).close()


def test_who_holds_an_output_is_told_without_what_its_options_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/foredraft", "--api-key", "-secret", "x"])
    with records.reserved(tmp_path / "out"):
        assert "secret" not in (tmp_path / ".out.lock").read_text()


def test_a_folder_whose_parent_cannot_be_written_is_locked_within(tmp_path, monkeypatch):
    out = tmp_path / "mounted"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with records.reserved(out):
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert not list(out.iterdir())


def test_a_folder_takes_the_place_of_another_once_it_is_whole_and_can_be_read_by_others(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(ValueError, match="exists already"), records.whole_folder(out):
        pass
    with pytest.raises(RuntimeError), records.whole_folder(out, replace=True) as folder:
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["old"]
    with records.whole_folder(out, replace=True) as folder:
        for name, mode in (("weights", 0o600), ("serve.sh", 0o700)):
            (folder / name).touch(mode=mode)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()} == {
        "weights": 0o666 & ~umask,
        "serve.sh": (0o666 & ~umask) | 0o100,
    }


def test_a_disk_that_a_library_found_full_is_told_as_one(tmp_path):
    """safetensors raises an error of its own."""

    class LibraryError(Exception):
        pass

    def write():
        with records.whole_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise LibraryError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="the disk is full") as caught:
        write()
    assert caught.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"[" * 100_000, "nested more than 100 deep"),
        (b"[" * 200 + b"]" * 200, "nested more than 100 deep"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
    ],
)
def test_json_of_others_is_read_or_one_line(tmp_path, data, match):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        records.read_json(tmp_path / "a.json")
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    (tmp_path / "a.json").write_text('{"a": [NaN, {"b": 1}]}')
    assert records.read_json(tmp_path / "a.json")["a"][1] == {"b": 1}


def test_what_unpacks_to_more_than_fits_is_one_line():
    data = gzip.compress(b"\n" * 2**20)
    assert len(records.gunzipped(data, Path("a.gz"), 2**20)) == 2**20
    with pytest.raises(ValueError, match=r"a\.gz: unpacks to more than"):
        records.gunzipped(data, Path("a.gz"), 2**20 - 1)


def test_others_words_move_no_cursor():
    assert records.visible("a\x1b]0;owned\x07\u202eb\tc\nd é") == "a\\x1b]0;owned\\x07\\u202eb\tc\nd é"


OWN_JSON = (  # what parses the package's own files or what was encoded before, or runs where there is no package
    "deploy/replay.py", "machines.py", "plan/backing.py", "published/heads.py", "shapes/public.py", "sweep/cells.py",
)  # fmt: skip


def test_json_of_others_is_parsed_in_one_place():
    """So that its limits hold for every reader."""
    package = Path(records.__file__).parents[1]
    elsewhere = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"\bjson\.(loads|decode)\(", file.read_text()) and file.name != "parsing.py"
    }
    assert elsewhere == set(OWN_JSON)


@pytest.mark.parametrize("read", [records.parse, records.parse_loosely])
def test_json_nested_too_deep_is_a_line(read):
    """By a parser's own limit, and by ours; brackets in texts and beside one another are none."""
    for depth in (101, 3000):
        for begin, end in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(ValueError, match="nested more than 100 deep"):
                read(begin * depth + "1" + end * depth)
    assert read("[" * 100 + "]" * 100)
    assert read(json.dumps([["[[{" * 60, {}]] * 200).encode())


def test_a_row_nested_too_deep_is_named_in_every_kind_of_file(tmp_path):
    from foredraft.data.prompts import read_questions
    from foredraft.data.sources import Skips, origins
    from foredraft.data.sources import read as read_documents
    from foredraft.published.readers import read as read_rows

    file = tmp_path / "a.jsonl"
    file.write_text('{"more": ' + '{"a": ' * 3000 + "1" + "}" * 3001 + "\n")
    readers = (
        lambda: read_questions(file, Skips("stop")),
        lambda: list(read_documents(origins([str(file)])[0], "chat", Skips("stop"))),
        lambda: read_rows([file]),
    )
    for read in readers:
        with pytest.raises(ValueError, match=r"a\.jsonl:1: .*nested more than 100 deep"):
            read()
