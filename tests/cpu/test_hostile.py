"""Files and folders as they should not be: one line, nothing lost, nothing run."""

import gzip
import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import READERS, here, tried, write_base

from foredraft import hardware, records
from foredraft.data import files
from foredraft.data.sources import Skips, origins, read
from foredraft.decode.proposals import Budget
from foredraft.deploy.check import check
from foredraft.deploy.findings import errors
from foredraft.models import load, load_head
from foredraft.records import files as record_files
from foredraft.teacher.cache import fingerprint
from foredraft.teacher.transformers_target import TransformersFolder
from foredraft.text import load_engine
from foredraft.tokenization import template_errors
from foredraft.train.checkpoints import OPTIMISER, Checkpoints

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "base"
    write_base(folder)
    return folder


@contextmanager
def ends_within(seconds: int) -> Iterator[None]:
    """AssertionError where the block does not end by itself."""

    def late(*_: object) -> None:
        raise AssertionError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_damaged_files_end_in_a_line_or_are_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1; 26 of them, each kind of file once. `fuzz.py` tries as many as one has time for."""
    monkeypatch.setattr(hardware, "matmul_rate", lambda *_: 1e9)
    draw = random.Random(1)

    for reader in READERS:
        with ends_within(20):
            verdict = tried(base, tmp_path / "out", reader, draw, here)
        assert verdict.fault is None, verdict


@pytest.mark.parametrize("place", ["pipe", "socket"])
def test_what_is_no_file_is_a_line(place: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe without a writer, at which a reader would wait for ever, and a socket in the place of each kind of file."""
    monkeypatch.setattr(hardware, "matmul_rate", lambda *_: 1e9)
    monkeypatch.setattr(record_files, "PATIENCE", 0.02)
    once = {reader.file: reader for reader in READERS}
    with ends_within(20):
        for reader in once.values():
            verdict = tried(base, tmp_path / "out", reader, random.Random(1), here, places=(place,), share=1.0)
            assert verdict.fault is None, verdict
            assert verdict.code == 1 or f"is a {place}" in verdict.talk, verdict


DEEP = {"prompts.jsonl": ("[%s]", '{"turns": %s}', '{"prompt": "a", "tools": %s}'), "rows.jsonl": ('{"run": %s}',)}


@pytest.mark.parametrize(("file", "form"), [(file, form) for file, forms in DEEP.items() for form in forms])
def test_lines_nested_without_end_are_one_line(cli: Cli, base: Path, tmp_path: Path, file: str, form: str) -> None:
    (tmp_path / file).write_text(form % ("[" * 5000 + "]" * 5000))
    verbs = {
        "prompts.jsonl": ("measure", base / "target", "--prompts", tmp_path / file, "--out", tmp_path / "out"),
        "rows.jsonl": ("fit", tmp_path / file),
    }
    done = cli(*verbs[file])
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "bug" not in done.stderr


def test_links_that_lead_to_themselves_are_one_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    """A record of a report, and the folder to write a draft to."""
    records_folder = tmp_path / "records"
    shutil.copytree(base / "records", records_folder)
    loop = records_folder / "Plan.json"
    loop.symlink_to(loop)
    for verb in (
        ("report", records_folder, "--out", tmp_path / "page.html"),
        ("deploy", base / "head", "--target", base / "target", "--out", loop),
    ):
        done = cli(*verb)
        assert done.returncode == 2, verb
        assert done.stderr.startswith(f"error: {loop}: "), done.stderr
        assert loop.is_symlink()
        assert "bug" not in done.stderr


MALFORMED = {
    "tokenizer.json": ('{"model": {"type": "Nope"}, "added_tokens": []}', "[]", "null", '{"a":'),
    "tokenizer_config.json": ("[]", '{"tokenizer_class": 5}', '{"eos_token": {"a": 1}}', '{"auto_map": {"AutoTokenizer": ["evil.Tok", null]}}'),
    "config.json": ("[" * 5000, '{"model_type": "llama", "mlp_bias": 0}'),
    "generation_config.json": ("[]", '{"eos_token_id": {"a": [1]}}', '{"eos_token_id": "x"}'),
    "chat_template.jinja": (
        "{{ raise_exception('\x1b[2J no') }}", "{% if %}", "{{ a.b.c }}", "{{ 1/0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", MALFORMED)
def test_a_malformed_file_beside_the_weights_is_one_line(cli: Cli, base: Path, tmp_path: Path, file: str) -> None:
    target = tmp_path / "target"
    shutil.copytree(base / "target", target)
    for text in MALFORMED[file]:
        (target / file).write_text(text)
        done = cli("generate", target, "hi", "--chat", "always", "--max-tokens", "1", "--no-stream")
        errors = done.stderr.splitlines()
        assert done.returncode == 2, (text, done.stderr)
        assert errors[0].startswith("error: "), (text, done.stderr)
        assert "bug" not in done.stderr
        assert "\x1b" not in done.stderr
        assert file == "chat_template.jinja" or str(target) in errors[0], done.stderr


def test_a_template_that_fails_in_any_way_is_one_line() -> None:
    for error in (ZeroDivisionError(), RecursionError("deep"), MemoryError(), OverflowError("too big"), KeyError("x")):
        with pytest.raises(ValueError, match=r"^the chat template fails: [^\n]+$"), template_errors():
            raise error


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_what_unpacks_to_far_more_than_text_does_is_named(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(files, "SPARE", 2**19)
    path = tmp_path / f"a.jsonl.{packing}"
    text = b'{"text": "fine"}\n' + b"\n" * 2**22
    path.write_bytes(gzip.compress(text) if packing == "gz" else zstandard.ZstdCompressor().compress(text))
    skips = Skips("skip")
    rows = [document.text for origin in origins([str(path)]) for document in read(origin, "text", skips)]
    assert (rows, skips.count) == (["fine"], 1)
    assert "unpacks to more than 200 times its size" in skips.named[0]


def test_a_line_that_is_too_long_is_named_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "x" * 5000, "three")))
    skips = Skips("skip")
    rows = [document.text for origin in origins([str(path)]) for document in read(origin, "text", skips)]
    assert rows == ["one", "three"]
    assert skips.named == [f"{path}:2: longer than 1,000 bytes"]


ABSURD = [
    ("vocab_size", 10**12), ("hidden_size", 10**9), ("num_hidden_layers", 10**6), ("num_hidden_layers", 10**4), ("num_attention_heads", 10**9),
    ("num_key_value_heads", 10**9), ("head_dim", 10**9), ("intermediate_size", 10**12), ("max_position_embeddings", 10**12),
]  # fmt: skip


@pytest.mark.parametrize(("key", "size"), ABSURD)
def test_a_size_that_no_model_has_is_a_line_before_it_is_built(key: str, size: int, base: Path, tmp_path: Path) -> None:
    """Of a target and of a head, by whatever reads them; in a moment, so that nothing of the size is made."""
    whole = load(base / "target")
    for name in ("target", "head"):
        shutil.copytree(base / name, tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_bytes()) | {key: size}))
    began = time.process_time()
    readers: list[Callable[[], object]] = [
        lambda: load(tmp_path / "target"),
        lambda: load_head(tmp_path / "head", whole),
    ]
    for reader in readers:
        with pytest.raises(ValueError, match=r"must be at most|layers, but config.json has 10,000"):
            reader()
    assert errors(check(tmp_path / "head"))
    assert time.process_time() - began < 2


def test_a_config_counts_no_more_than_its_files_hold(base: Path, tmp_path: Path) -> None:
    """Where transformers would make room for it before it looks."""
    shutil.copytree(base / "target", tmp_path / "target")
    file = tmp_path / "target" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"vocab_size": 10**7}))
    with pytest.raises(
        ValueError, match=r"makes a model of 1,28\d,\d+,\d+ parameters, and its weights on file are \d+,\d+ bytes"
    ):
        TransformersFolder(tmp_path / "target").load()


def test_a_head_of_a_much_larger_vocabulary_is_not_its_targets_filled_up(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "head", tmp_path / "head")
    file, target = tmp_path / "head" / "config.json", load(base / "target")
    for rows, good in ((310, True), (601, False)):
        file.write_text(json.dumps(json.loads(file.read_bytes()) | {"vocab_size": rows}))
        if good:
            load_head(tmp_path / "head", target)
        else:
            with pytest.raises(ValueError, match="vocab_size 601, but target has 300"):
                load_head(tmp_path / "head", target)


def test_a_tree_may_extend_more_nodes_than_a_step_verifies(cli: Cli, base: Path) -> None:
    """Its extended nodes take slots behind the context: 64 of a level, 13 levels."""
    assert Budget(14, 64, 64).extended == 64 * 13
    words = ("--tree", "64,64", "--lookahead", "14", "--context", "40", "--max-tokens", "20", "--no-stream")
    plain = cli("generate", base / "target", "once", *words[4:])
    drafted = cli("generate", base / "target", "once", "--draft", base / "head", *words)
    assert (drafted.returncode, drafted.stdout) == (0, plain.stdout), drafted.stderr


def test_a_fingerprint_is_of_every_value(base: Path) -> None:
    model = load(base / "target")
    before = fingerprint(model)
    with torch.no_grad():
        dict(model.named_parameters())["layers.3.mlp.down_proj.weight"][-1, -1] += 1e-3
    assert fingerprint(model) != before


def test_another_tokenizer_is_told_in_every_verb(cli: Cli, base: Path, tmp_path: Path) -> None:
    target, draft, prompts = base / "target", tmp_path / "draft", base / "prompts.jsonl"
    shutil.copytree(base / "head", draft)
    shutil.copyfile(other_target(base, tmp_path / "other") / "tokenizer.json", draft / "tokenizer.json")
    for verb in (
        ("generate", target, "hi", "--draft", draft), ("bench", target, "--draft", f"{draft}@3", "--file", prompts),
        ("measure", target, "--draft", f"{draft}@3", "--prompts", prompts, "--out", tmp_path / "out"),
        ("data", "regenerate", prompts, "--target", target, "--draft", draft, "--out", tmp_path / "a.jsonl"),
        ("deploy", draft, "--target", target, "--out", tmp_path / "out"),
    ):  # fmt: skip
        done = cli(*verb)
        assert done.returncode == 2, verb
        assert "its tokenizer is not the target's" in done.stderr, (verb, done.stderr)
    done = cli("deploy", "check", draft, "--target", target)
    assert (done.returncode, "error tokenizer" in done.stdout) == (1, True), done.stdout


def other_target(base: Path, out: Path) -> Path:
    """The same model with a tokenizer of the same size whose ids mean other words."""
    shutil.copytree(base / "target", out)
    document = json.loads((out / "tokenizer.json").read_bytes())
    words = document["model"]["vocab"]
    document["model"]["vocab"] = dict(zip(words, reversed(words.values()), strict=True))
    (out / "tokenizer.json").write_text(json.dumps(document))
    return out


def test_another_tokenizer_is_told_in_training(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of data, of the draft to go on from, and of the trained head, which keeps the tokenizer that its ids are of."""
    monkeypatch.setattr("foredraft.train.launch.matmul_rate", lambda *_: 1e9)
    other, out, stage = (
        other_target(base, tmp_path / "other"),
        tmp_path / "run",
        {"tokens": 256, "length": 32, "batch": 4},
    )
    recipes = {
        "head": {"kind": "eagle3", "unroll": 1},
        "again": {"kind": "eagle3", "init": str(out / "final")},
        "lm": {"kind": "lm", "init": str(base / "target")},
    }
    for name, model in recipes.items():
        losses = {"ce": 1.0} if name == "lm" else {"soft_ce": 1.0}
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": model, "stages": [stage], "loss": losses}))

    def train(name: str, target: Path | None, *more: object) -> Any:
        of = () if target is None else ("--target", target)
        return cli("train", tmp_path / f"{name}.json", *of, "--data", base / "tokens", *more)

    for more in (("--dry-run",), ("--out", tmp_path / "none")):
        done = train("head", other, *more)
        assert done.returncode == 2
        assert re.search(r"tokens: made with the tokenizer .*: \d+ of 300 ids are other words", done.stderr), (
            done.stderr
        )
        assert f"foredraft data prepare FILES --tokenizer {other}" in done.stderr
    assert train("head", base / "target", "--out", out).returncode == 0
    assert (out / "final/tokenizer.json").read_bytes() == (base / "target/tokenizer.json").read_bytes()
    for name in ("again", "lm"):
        done = train(name, other, "--dry-run")
        assert "its tokenizer is not the target's: " in done.stderr, done.stderr
    done = cli("generate", other, "once", "--draft", out / "final")
    assert (done.returncode, "its tokenizer is not the target's" in done.stderr) == (2, True)
    (tmp_path / "lm.json").write_text((tmp_path / "lm.json").read_text().replace(str(base / "target"), str(other)))
    done = train("lm", None, "--out", tmp_path / "none")
    assert "are other words" in done.stderr, done.stderr
    assert not (tmp_path / "none").exists()


def test_a_dry_run_sees_its_data(cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "matmul_rate", lambda *_: 1e9)
    stage = {"tokens": 512 * 400, "length": 512, "batch": 4}
    (tmp_path / "recipe.json").write_text(json.dumps({"model": {"kind": "eagle3"}, "stages": [stage]}))
    words = ("train", tmp_path / "recipe.json", "--dry-run", "--target", base / "target")
    done = cli(*words, "--data", base / "tokens")
    assert done.returncode == 0
    assert "windows of 512 tokens are longer than the context of target, 256" in done.stderr
    assert "at the median: a window of 512 holds about" in done.stderr
    assert " passes over " in done.stderr
    assert "median" not in cli(*words).stderr


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from foredraft.recipe import Eagle3, Recipe, Stage
    from foredraft.train.checkpoints import STATE, State

    state = State(recipe=Recipe(model=Eagle3(), stages=(Stage(tokens=1e6),)), data=())
    for step in (1, 2, 3):
        folder = tmp_path / f"step-{step:08}"
        folder.mkdir()
        for name in ("model.safetensors", OPTIMISER):
            save_file({"a": torch.ones(4)}, folder / name)
        records.write(folder / STATE, state)
    checkpoints = Checkpoints(tmp_path, 3)
    assert checkpoints.newest_whole() == checkpoints.list()[-1]
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "step-00000002" / STATE).write_text("{")
    first = checkpoints.list()[0]
    assert checkpoints.newest_whole() == first
    assert capsys.readouterr().err.count("set aside, going on from") == 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "damaged-step-00000002",
        "damaged-step-00000003",
        "step-00000001",
    ]
    (first.folder / OPTIMISER).unlink()
    with pytest.raises(ValueError, match="no checkpoint before it is whole"):
        checkpoints.newest_whole()


def test_what_is_exported_can_be_read_by_others(base: Path) -> None:
    assert (base / "target" / "model.safetensors").stat().st_mode & 0o777 == (
        base / "recipe.json"
    ).stat().st_mode & 0o777


def test_a_plan_without_a_schedule_is_a_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    planned = cli("plan", "Llama-160M", "--draws", "16", "--no-figures", "--out", tmp_path / "plan")
    assert planned.returncode == 0, planned.stderr
    file = tmp_path / "plan/Plan.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"schedule": []}))
    done = cli("generate", base / "target", "once", "--plan", file, "--draft", base / "head")
    assert (done.returncode, "error: --plan: its schedule is empty" in done.stderr) == (2, True), done.stderr


def test_a_cache_that_does_not_fit_is_one_line(base: Path) -> None:
    with pytest.raises(ValueError, match="lower --batch or --context"):
        load_engine(base / "target", max_context=10**8, max_batch=2**12)
