"""The target's answers: greedy ones and draws at temperature 1 of all prompts-*.jsonl of `--data`, in several processes at once.

What is answered when the time is spent is made tokens of: WORK/tokens/answers-*, which the step `grid` joins to DIR's own `answers`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from bench import Settings, Step

from foredraft import records
from foredraft.data.tokens import DATA, DOCUMENTS, MASK, TOKENS, TokenFolder

ANSWERS = "answers"
TEMPERATURES = 0.0, 1.0
SHARDS = 3  # processes per temperature
MAX_TOKENS, BATCH, CONTEXT = 192, 256, 1024
PREPARE_SHARE = 0.35  # of the step's time at most, to make tokens of the answers
GRACE_S = 6.0


def run(step: Step) -> None:
    """Raises ValueError where target or prompts are missing."""
    settings = step.settings
    files = sorted(settings.data.glob("prompts-*.jsonl")) if settings.data else []
    if settings.target is None or not files:
        raise ValueError("answers need --target, and prompts-*.jsonl in --data")
    answered(step, [line for file in files for line in file.read_bytes().splitlines(keepends=True)])


def answered(step: Step, rows: list[bytes]) -> None:
    """Answer prompts until the time for it is spent, and make token folders of the answers."""
    began, until = time.monotonic(), time.monotonic() + (1 - PREPARE_SHARE) * step.time_left
    shards = 1 if step.settings.small else SHARDS
    work = [(temperature, i) for temperature in TEMPERATURES for i in range(shards)]
    running = {}
    for temperature, i in work:
        name = f"{ANSWERS}-t{temperature:g}-{i}"
        asked = step.settings.work / f"{name}-prompts.jsonl"
        asked.write_bytes(b"".join(rows[i::shards]))
        out = asked.with_name(f"{name}.jsonl")
        running[name] = (out, started(step, name, answer_words(step.settings, asked, out, temperature)))
    while any(process.poll() is None for _, process in running.values()) and time.monotonic() < until:
        time.sleep(0.2)
    for _, process in running.values():
        ended(process)
    took = time.monotonic() - began
    lines = {name: complete(out) for name, (out, _) in running.items()}
    done = [msgspec.json.decode(line) for found in lines.values() for line in found]
    tokens = sum(end - start for row in done for start, end in row["regenerated"]["answers"])
    step.record("answers", {
        "prompts": len(rows), "answered": len(done), "answer_tokens": tokens, "seconds": took, "tokens_per_s": tokens / took,
        "processes": len(work), "batch": BATCH,
    })  # fmt: skip
    tokens_of(step, {name: out for name, (out, _) in running.items() if lines[name]})


def answer_words(settings: Settings, asked: Path, out: Path, temperature: float) -> list[str]:
    sizes = ("8", "4", "64") if settings.small else (str(MAX_TOKENS), str(BATCH), str(CONTEXT))
    options = dict(zip(("--max-tokens", "--batch", "--context"), sizes, strict=True))
    options |= {
        "--temperature": f"{temperature:g}",
        "--dtype": "bfloat16",
        "--device": settings.device,
        "--on-error": "skip",
        "--seed": "1",
    }
    words = ["-m", "foredraft", "data", "regenerate", str(asked), "--target", str(settings.target), "--out", str(out)]
    return [*words, *(word for pair in options.items() for word in pair)]


def complete(path: Path) -> list[bytes]:
    """Its whole lines; a torn one is cut off."""
    text = path.read_bytes() if path.is_file() else b""
    text = text[: text.rfind(b"\n") + 1]
    if path.is_file():
        path.write_bytes(text)
    return text.splitlines()


def tokens_of(step: Step, files: dict[str, Path]) -> None:
    """A token folder of each file, made in as many processes."""
    began, made = time.monotonic(), {name: step.settings.work / "tokens" / name for name in files}
    running = {
        name: started(step, f"{name}-tokens", [
            "-m", "foredraft", "data", "prepare", str(files[name]), "--tokenizer", str(step.settings.target), "--out", str(folder),
            "--chat", "--on-error", "skip",
        ])
        for name, folder in made.items()
    }  # fmt: skip
    while any(process.poll() is None for process in running.values()) and step.time_left > GRACE_S:
        time.sleep(0.2)
    for process in running.values():
        ended(process)
    step.record("seconds of preparing", time.monotonic() - began)


def started(step: Step, name: str, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """`python WORDS` in a process of its own, its output in OUT/NAME.log."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with (step.settings.out / f"{name}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)


def ended(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue


def joined(folders: list[Path], out: Path) -> Path:
    """One token folder of several of one tokenizer."""
    opened = [TokenFolder.open(folder) for folder in folders]
    if len({folder.data.tokenizer_sha256 for folder in opened}) > 1:
        raise ValueError(f"{folders[0]}: the answers were tokenized by another tokenizer.json")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    starts = np.cumsum([0, *(folder.data.num_tokens for folder in opened)])
    np.concatenate([folder.tokens for folder in opened]).tofile(out / TOKENS)
    np.concatenate([folder.mask for folder in opened]).tofile(out / MASK)
    offsets = [folder.offsets[:-1] + start for folder, start in zip(opened, starts, strict=False)]
    np.concatenate([*offsets, starts[-1:]]).astype("<i8").tofile(out / DOCUMENTS)
    sums = {
        field: sum(getattr(folder.data, field) for folder in opened)
        for field in ("num_tokens", "num_documents", "raw_tokens", "regenerated_tokens", "predicted_tokens")
    }
    sources = tuple(source for folder in opened for source in folder.data.sources)
    records.write(out / DATA, msgspec.structs.replace(opened[0].data, **sums, sources=sources))
    return out
