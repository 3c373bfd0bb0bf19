"""Files of every kind that is read, damaged at random, and what the command line says of them.

`python tests/cpu/fuzz.py --num 1000 --seed 0` damages that many, each read in a process of its own with bounded time and memory, and prints
what did not end well. Well is: exit code 0, or a line `error: …` (exit code 2), or findings on stdout (`deploy check`); and a file that is
cut or no longer parses is never taken for a whole one. The suite runs a few dozen in its own process.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from foredraft.cli.main import main
from foredraft.data import tokenizer as tokenizers
from foredraft.data.prepare import prepare
from foredraft.models import Decoder, new_head, save_head
from foredraft.models.layers import ModelConfig
from foredraft.models.save import save
from foredraft.shapes import Shape
from foredraft.shapes.rope import Rope

SECONDS, MEMORY = 60, 3 * 2**30
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
DEEP = b"[" * 3000 + b"]" * 3000
ODD = (
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b]0;x\x07",
    [],
    {},
    [[]],
    {"a": 1},
    "9" * 99,
)
ROW = {
    "run": "r", "target": "SmolLM2-135M", "method": "draft_model", "provenance": {"source": "x"}, "draft": "d", "tokens_per_step": 1.5,
    "lookahead": 3, "draft_params": 1e6, "draft_tokens": 1e6,
}  # fmt: skip


class Reader(NamedTuple):
    """A file below the base, and the command that reads it, in whose words {base} and {out} stand for folders. `strict`: it is one
    document, so that a part of it is none.
    """

    file: str
    words: tuple[str, ...]
    strict: bool = True


GENERATE = ("generate", "{base}/target", "once", "--max-tokens", "2", "--no-stream")
CHECK = ("deploy", "check", "{base}/head", "--target", "{base}/target")
DRY_RUN = ("train", "{base}/recipe.json", "--dry-run", "--target", "{base}/target", "--data", "{base}/tokens")
SHOW = ("data", "show", "{base}/tokens")
PREPARE = ("data", "prepare", "-t", "{base}/target", "-o", "{out}/tokens")
REGENERATE = ("data", "regenerate", "--target", "{base}/target", "-o", "{out}/a.jsonl", "--max-tokens", "2")
REPORT = ("report", "{base}/records", "--out", "{out}/page.html")
READERS = (
    Reader("target/config.json", GENERATE), Reader("target/config.json", CHECK), Reader("target/tokenizer.json", GENERATE),
    Reader("target/tokenizer_config.json", (*GENERATE, "--chat", "always")), Reader("target/generation_config.json", GENERATE),
    Reader("target/chat_template.jinja", (*GENERATE, "--chat", "always"), strict=False), Reader("target/model.safetensors", GENERATE),
    Reader("head/config.json", CHECK), Reader("head/config.json", (*GENERATE, "--draft", "{base}/head")),
    Reader("head/model.safetensors", CHECK), Reader("head/model.safetensors", (*GENERATE, "--draft", "{base}/head")),
    Reader("recipe.json", DRY_RUN), Reader("tokens/data.json", SHOW), Reader("tokens/documents.bin", SHOW), Reader("tokens/tokens.bin", SHOW),
    Reader("tokens/mask.bin", DRY_RUN), Reader("corpus.jsonl", (*PREPARE, "{base}/corpus.jsonl"), strict=False),
    Reader("corpus.jsonl.zst", (*PREPARE, "{base}/corpus.jsonl.zst")), Reader("corpus.jsonl.gz", (*PREPARE, "{base}/corpus.jsonl.gz")),
    Reader("chats.jsonl", (*PREPARE, "{base}/chats.jsonl", "--chat"), strict=False),
    Reader("prompts.jsonl", (*REGENERATE, "{base}/prompts.jsonl"), strict=False),
    Reader("records/observations.jsonl", ("fit", "{base}/records/observations.jsonl", "--draws", "8"), strict=False),
    Reader("records/observations.jsonl", REPORT, strict=False), Reader("records/sweep.json", REPORT),
    Reader("table.csv", ("validate", "{base}/table.csv"), strict=False),
    Reader("grid.json", ("sweep", "{base}/grid.json", "--out", "{out}/s", "--dry-run")),
)  # fmt: skip

PAGE = "inputs of the page"  # no verb: the page's own reader of what its address holds
PLAN = ("--draws", "16", "--no-figures", "--input-len", "32", "--output-len", "32")
SERVER = ("plan", "{base}/examples/SmolLM2-135M-Instruct", "--machine", "{base}/examples/machine.json")
TOOLS = (*PREPARE, "{base}/examples/tools.jsonl", "--chat", "--template", "{base}/examples/tools.jinja")
MORE = (  # dearer ones, for which the suite has no time
    Reader("plan/Plan.json", ("generate", "{base}/target", "once", "--plan", "{base}/plan/Plan.json", "--draft", "{base}/head", "--max-tokens", "2")),
    Reader("plan/Plan.json", ("report", "{base}/plan", "--out", "{out}/page.html")),
    Reader("plan/Plan.json", ("deploy", "simulate", "{base}/plan/Plan.json", "--out", "{out}/s")),
    Reader("machine.json", ("plan", "Llama-160M", "--machine", "{base}/machine.json", *PLAN)),
    Reader("prompts.jsonl", ("bench", "{base}/target", "--file", "{base}/prompts.jsonl", "--max-tokens", "2", "--rounds", "1"), strict=False),
    Reader(
        "prompts.jsonl", ("measure", "{base}/target", "--prompts", "{base}/prompts.jsonl", "--max-tokens", "2", "--way", "live", "--out", "{out}/m"),
        strict=False,
    ),
    Reader("target/config.json", ("plan", "{base}/target", *PLAN)), Reader("tiny.gguf", ("plan", "{base}/tiny.gguf", *PLAN)),
    Reader(
        "records/observations.jsonl", ("plan", "Llama-160M", "--observations", "{base}/records/observations.jsonl", *PLAN), strict=False,
    ),
    Reader("examples/runs.csv", ("plan", "Qwen3-32B", "--observations", "{base}/examples/runs.csv", *PLAN), strict=False),
    Reader("examples/metrics.txt", (*SERVER, "--observations", "{base}/examples/metrics.txt", *PLAN), strict=False),
    Reader("examples/SmolLM2-135M-Instruct/config.json", (*SERVER, *PLAN)), Reader("examples/machine.json", (*SERVER, *PLAN)),
    Reader("examples/recipe.json", ("train", "{base}/examples/recipe.json", "--dry-run", "--target", "{base}/target")),
    Reader("examples/tools.jsonl", TOOLS, strict=False), Reader("examples/tools.jinja", TOOLS, strict=False),
    Reader("page.json", (PAGE, "{base}/page.json"), strict=False), Reader("page.json", (PAGE, "{base}/page.json"), strict=False),
    Reader("corpus.parquet", (*PREPARE, "{base}/corpus.parquet")),
    Reader("model.gguf", ("generate", "{base}/model.gguf", "a", "--max-tokens", "2", "--no-stream")),
    Reader("model.gguf", ("convert", "{base}/model.gguf", "{out}/folder")),
    Reader("pickled/pytorch_model.bin", ("convert", "{base}/pickled", "{out}/folder")),
    Reader("head/lengths.json", (*GENERATE, "--draft", "{base}/head~")),
    Reader("served/deploy.json", ("deploy", "check", "{base}/served", "--target", "{base}/target"), strict=False),
    Reader("own/Plan.json", ("deploy", "{base}/head", "--target", "{base}/target", "--plan", "{base}/own/Plan.json", "--out", "{out}/served")),
    Reader("plan/Plan.json", ("page", "--plan", "{base}/plan/Plan.json", "--out", "{out}/page.html")),
    Reader("run/metrics.jsonl", ("report", "{base}/run", "--out", "{out}/page.html"), strict=False),
    Reader("run/recipe.json", ("report", "{base}/run", "--out", "{out}/page.html")),
)  # fmt: skip


def write_base(base: Path) -> None:
    """A file of each kind, small and whole."""
    words = ["the quick brown fox jumps over the lazy dog, once upon a time there was a cat"] * 8
    tokenizers.train(words, 300, base / "target")
    vocab = tokenizers.num_ids(tokenizers.load(base / "target"))
    shape = Shape(
        name="tiny", family="llama", num_layers=4, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128,
        vocab_size=vocab, tie_embeddings=False, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Decoder(shape, ModelConfig(norm_eps=1e-5, activation="silu", rope=Rope()))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1)
    save(model.state_dict(), shape, model.config, base / "target", more={"eos_token_id": 0})
    (base / "target" / "generation_config.json").write_text('{"eos_token_id": [0, 1], "temperature": 0.7}')
    (base / "target" / "chat_template.jinja").write_text(TEMPLATE)
    save_head(new_head(model, "eagle3", 1, range(200)), base / "head")
    rows = [{"text": f"{words[0]} {i}"} for i in range(30)]
    chats = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": words[0]}]}
        for i in range(9)
    ]
    lines = {"corpus.jsonl": rows, "chats.jsonl": chats, "prompts.jsonl": [{"id": "a", "turns": ["once"]}]}
    for name, of in lines.items():
        (base / name).write_text("".join(json.dumps(row) + "\n" for row in of))
    prepare([str(base / "corpus.jsonl")], base / "tokens", base / "target")
    import gzip

    import zstandard

    text = (base / "corpus.jsonl").read_bytes()
    (base / "corpus.jsonl.gz").write_bytes(gzip.compress(text))
    (base / "corpus.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(text))
    recipe = {"model": {"kind": "eagle3"}, "stages": [{"tokens": 2560, "length": 32, "batch": 4}]}
    (base / "recipe.json").write_text(json.dumps(recipe))
    (base / "grid.json").write_text(json.dumps({"target": "t", "cells": {"a": {"run": ["list", "laws"]}}}))
    (base / "table.csv").write_text(
        "target,k,tau\nSmolLM2-135M,1,1.5\nSmolLM2-135M,2,1.8\nSmolLM2-135M,3,2.0\nSmolLM2-135M,4,2.1\n"
    )
    (base / "records").mkdir()
    (base / "records" / "observations.jsonl").write_text(
        "".join(json.dumps(ROW | {"draft_tokens": 1e6 * i}) + "\n" for i in range(1, 7))
    )
    sys.path.insert(0, str(Path(__file__).parents[1] / "light"))
    from gguf_bytes import write_gguf

    write_gguf(base / "tiny.gguf")
    cell = {"name": "a", "verb": "list", "state": "done", "digest": "0" * 16, "command": "list"}
    (base / "records" / "sweep.json").write_text(json.dumps({"cells": [cell]}))


def write_more(base: Path) -> None:
    """What the dearer readers read."""
    import pyarrow
    import pyarrow.parquet
    from gguf_models import write_model
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from foredraft.decode.drafters import machine_name
    from foredraft.records import Confidence, DraftLengths, Provenance, StepCosts, write

    here(["plan", "Llama-160M", "--always", *PLAN, "--out", str(base / "plan")])
    here(["plan", str(base / "target"), "--draft", str(base / "head"), "--always", *PLAN, "--out", str(base / "own")])
    rates = {
        "memory_bytes": 8e10,
        "bandwidth_bytes_per_s": 1e12,
        "flops_per_s": dict.fromkeys(("bfloat16", "float32"), 1e14),
    }
    (base / "machine.json").write_text(json.dumps({"name": "m", "source": "x"} | rates))
    shutil.copytree(Path(__file__).parents[2] / "examples", base / "examples")
    (base / "page.json").write_text(
        json.dumps({"target": "Llama-160M", "devices": "2", "load": "1:0.5,8:0.5", "input_len": "64", "ttft": "2"})
    )
    rows = [json.loads(line) for line in (base / "corpus.jsonl").read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), base / "corpus.parquet")
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128,
    )  # fmt: skip
    write_model(base / "model.gguf", LlamaForCausalLM(config))
    (base / "pickled").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / "target" / name, base / "pickled" / name)
    torch.save(load_file(base / "target" / "model.safetensors"), base / "pickled" / "pytorch_model.bin")
    confidence = Confidence(
        temperature=0.0, here=(0.5, 1.0, 0.0, 0.0), ahead=(0.5, 0.5, 0.0, 0.0), num=1, survival=(0.5,), shared_sd=0.0, single_sd=0.0, rates={1: 1.2},
        fixed={1: (1.0,) * 5},
    )  # fmt: skip
    lengths = DraftLengths(
        draft="d", method="m", target="t", lookahead=4, machine=machine_name(torch.device("cpu")), dtype="float32", threads=torch.get_num_threads(),
        confidences=(confidence,), costs=StepCosts({1: 1.0, 2: 1.1}, {1: (0.1, 0.05)}), provenance=Provenance(source="test"),
    )  # fmt: skip
    write(base / "head" / "lengths.json", lengths)
    here(["deploy", str(base / "head"), "--target", str(base / "target"), "--out", str(base / "served")])
    (base / "run").mkdir()
    shutil.copy(base / "recipe.json", base / "run")
    (base / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "tokens": 100 * i, "loss": 3 / i}) + "\n" for i in range(1, 9))
    )


PLACES = "folder", "loop", "device", "pipe", "socket"  # in a file's place: a folder, a link to itself, /dev/zero, …


def put(file: Path, how: str) -> None:
    """Something else in a file's place."""
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "socket":
        os.mknod(file, stat.S_IFSOCK | 0o600)
    else:
        file.symlink_to("/dev/zero")


def restored(file: Path, data: bytes) -> None:
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    file.write_bytes(data)


SPELT: dict[str, Callable[[bytes], bytes]] = {  # the same text otherwise: read as it is, or refused in a line
    "mark": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "UTF-16": lambda data: data.decode("utf-8", "replace").encode("utf-16"),
    "twice": lambda data: data + data,
}


def damaged(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A file's bytes, damaged, and how. "cut": only its beginning is left; "value": a JSON value is another, of whatever type; "key": one is
    gone; "bytes": some are others; "deep": lists in lists, "deep value": in a value's place; "empty", "other": another kind of file.
    """
    how = draw.choice(
        (
            "cut",
            "value",
            "value",
            "value",
            "deep value",
            "key",
            "doubled",
            "bytes",
            "bytes",
            "deep",
            "empty",
            "other",
            *SPELT,
        )
    )
    if how in SPELT:
        return SPELT[how](data), how
    if how == "doubled":  # the first key of JSON again, as something else
        at = data.find(b"{") + 1
        name = data[at:].lstrip()[:40].partition(b":")[0]
        return data[:at] + name + b': "\xf0\x9f\x92\xa5", ' + data[at:] if at and name.startswith(b'"') else data, how
    if how in ("value", "deep value", "key"):
        try:
            return _other_json(data, draw, how), how
        except (ValueError, IndexError):
            how = "bytes"
    if how == "cut":
        return data[: draw.randrange(len(data) - 1)], how
    if how == "bytes":
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 8, 64))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed), how
    other = (
        b"\x80\x04cos\nsystem\n.",
        b"PK\x03\x04",
        b"\xff\xfe{\0",  # in UTF-16, which is read where it is whole
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    )
    return {"deep": DEEP, "empty": b""}.get(how) if how != "other" else draw.choice(other), how  # type: ignore[return-value]


def _other_json(data: bytes, draw: random.Random, how: str) -> bytes:
    """JSON, or one line of it, with a value of it taken away ("key"), nested deeply ("deep value") or changed to something odd."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines)) if lines[0].startswith(b"{") and lines[0].endswith(b"}") else None
    document = json.loads(data if at is None else lines[at])
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in items:
            places.append((value, key))
            walk(part)

    walk(document)
    holder, key = places[draw.randrange(min(len(places), 400))]
    if how == "key":
        del holder[key]
    else:
        holder[key] = DEEP.decode() if how == "deep value" else draw.choice(ODD)
    text = json.dumps(document).encode().replace(b'"%b"' % DEEP, DEEP)
    return text if at is None else b"\n".join([*lines[:at], text, *lines[at + 1 :]])


class Verdict(NamedTuple):
    """How a reader took a damaged file; `fault` None: well."""

    reader: Reader
    how: str
    code: int
    talk: str
    fault: str | None


def tried(
    base: Path, out: Path, reader: Reader, draw: random.Random, run: Callable[[list[str]], tuple[int, str, str]], *,
    places: Sequence[str] = (), share: float = 0.15,
) -> Verdict:  # fmt: skip
    """Damage the reader's file, or with `places` put something of these there, run its command and put the file back."""
    file = base / reader.file
    whole = file.read_bytes()
    changed, how = (None, draw.choice(places)) if places and draw.random() < share else damaged(whole, draw)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        put(file, how) if changed is None else file.write_bytes(changed)
        code, stdout, stderr = run([word.format(base=base, out=out) for word in reader.words])
    finally:
        restored(file, whole)
    return Verdict(reader, how, code, stderr, fault_of(reader, how, code, stdout, stderr, changed == whole))


def fault_of(reader: Reader, how: str, code: int, stdout: str, stderr: str, same: bool) -> str | None:
    """What is wrong with the end of a command; None where nothing is."""
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in stderr or "a bug of foredraft" in stderr:
        return "a traceback or a bug"
    if "\x1b" in stderr:
        return "an escape sequence on stderr"
    if code == 0:
        return (
            "took a part of a file, or none, for a whole one"
            if how in ("cut", "empty", "deep", "other", *PLACES) and reader.strict and not same
            else None
        )
    if code == 1:
        return None if stdout.startswith("error") else "exit code 1 without findings"
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return None if len(errors) == 1 and len(errors[0]) < 2000 else "no one line that says error"


def of_page(file: str) -> tuple[int, str, str]:
    """What the page says of inputs in an address, written as a JSON object, with the exit code of the like command."""
    from foredraft.cli.page import _reader
    from foredraft.page.inputs import asked
    from foredraft.page.planner import BadInput, Planner
    from foredraft.records import read_bytes

    try:
        query = [
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in json.loads(read_bytes(file, 2**20)).items()
        ]
        inputs, faults = asked(query)
        if not faults:
            Planner(_reader({}, {}, []), []).answer(inputs, sketch=True)
    except BadInput as error:
        faults = error.faults
    except (ValueError, OSError, AttributeError, RecursionError):  # no JSON object: not an address either
        return 2, "", "error: no inputs"
    return (2, "", f"error: {'; '.join(faults.values())}") if faults else (0, "", "")


def here(words: list[str]) -> tuple[int, str, str]:
    """A command in this process."""
    if words[0] == PAGE:
        return of_page(words[1])
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["foredraft", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = argv
    return 0, out.getvalue(), err.getvalue()


def forked(words: list[str]) -> tuple[int, str, str]:
    """A command in a process of its own: exit code −9 where it was killed for its time, −6 and the like where it crashed."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        pid = os.fork()
        if not pid:
            try:
                pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
                resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                try:
                    end = here(words)
                except BaseException:
                    end = (70, "", traceback.format_exc())
                told.write_bytes(msgspec.json.encode(end))
            finally:
                os._exit(0)
        deadline = time.monotonic() + SECONDS
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return -9, "", f"no end within {SECONDS} s"
            time.sleep(0.005)
        if not told.is_file() or os.WIFSIGNALED(done[1]):
            return -(os.WTERMSIG(done[1]) or 1), "", ""
        return msgspec.json.decode(told.read_bytes(), type=tuple[int, str, str])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Readers whose file or command holds this.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base, out = Path(folder) / "base", Path(folder) / "out"
        write_base(base)
        readers = [reader for reader in READERS + MORE if options.only in " ".join((reader.file, *reader.words))]
        write_more(base)
        for reader in readers:  # whole files are read, and what is imported is there before the forks
            code, _, stderr = here([word.format(base=base, out=out) for word in reader.words])
            shutil.rmtree(out, ignore_errors=True)
            if code:
                print(f"the whole {reader.file} is not read by {reader.words[0]}: {stderr}")
        draw, ends = random.Random(options.seed), Counter()
        for i in range(options.num):
            verdict = tried(base, out, readers[i % len(readers)], draw, forked, places=PLACES)
            ends[
                "faults"
                if verdict.fault
                else "read all the same"
                if verdict.code == 0
                else "refused in a line, or found"
            ] += 1
            if verdict.fault:
                last = (verdict.talk.strip().splitlines() or [""])[-1]
                print(
                    f"{i}: {verdict.reader.file} {verdict.reader.words[:2]} {verdict.how}: {verdict.fault} | {verdict.talk[:120]!r} … {last[:160]!r}",
                    flush=True,
                )
        print(dict(ends))
