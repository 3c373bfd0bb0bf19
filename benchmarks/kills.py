"""SIGKILL at random moments of every verb that writes: at the end stands what an undisturbed run leaves, and nothing kept is lost on the way.

    python benchmarks/kills.py --kills 200 --seed 0 --out results/kills.json

Each verb has a job of a second or so on a tiny model. It is run twice undisturbed, which gives its end and how long it takes; then again and
again in new folders, killed up to `PER_RUN` times at moments drawn evenly over that time, and run to its end. A kill counts where the process
was still alive. Numbers that differ between the two undisturbed runs are clocks: they must be there, whatever they are; they are listed.
Processes are forked from a server that has torch loaded.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cpu"))
from fuzz import TEMPLATE, write_base

from foredraft import records
from foredraft.cli.main import main

PER_RUN = 8
SLOWEST_S = 300.0  # then a run hangs
WORDS = "the quick brown fox jumps over the lazy dog, once upon a time there was a cat"
OF_A_PROCESS = (
    "log.txt",
    "lock",
    "running.txt",
)  # what a sweep's cell says of its processes, as the `tail` of an outcome does
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "__main__", "kills", "foredraft.train.launch", "foredraft.measure.measure", "foredraft.measure.lengths", "foredraft.data.prepare",
        "foredraft.deploy.export", "foredraft.models.convert", "foredraft.laws.fit", "foredraft.plan.plan", "foredraft.text",
        "foredraft.sweep.run", "foredraft.report.measured", "foredraft.report.fit_tables", "transformers.models.auto.tokenization_auto",
        "transformers.tokenization_utils_tokenizers",
    ]
)  # fmt: skip


class Job(NamedTuple):
    """A command, in whose words {base} and {out} stand for folders, and how much of its work is kept so far: never less after a kill."""

    words: tuple[str, ...]
    kept: Callable[[Path], int]
    share: int = 1  # of the kills

    @property
    def verb(self) -> str:
        return " ".join(self.words[:2] if self.words[0] in ("data", "deploy") else self.words[:1])


def whole(out: Path) -> int:
    return int(any(out.iterdir()))


def rows(out: Path) -> int:
    return (out / "a.jsonl").read_bytes().count(b"\n") if (out / "a.jsonl").is_file() else 0


def steps(out: Path) -> int:
    return max((int(path.name[5:]) for path in out.glob("run/checkpoints/step-*")), default=0)


def cells(out: Path) -> int:
    return len(list(out.glob("sweep/cells/*/done.json")))


JOBS = (
    Job(
        ("train", "{base}/recipe.json", "--target", "{base}/target", "--data", "{base}/tokens", "--held-out", "{base}/tokens",
         "--features", "{out}/states", "--out", "{out}/run"), steps, 4,
    ),
    Job(("sweep", "{base}/grid.json", "--out", "{out}/sweep", "--cpus-per-cell", "1"), cells, 3),
    Job(("data", "prepare", "{base}/corpus.jsonl", "-t", "{base}/target", "-o", "{out}/tokens", "--val-share", "0.2"), whole, 4),
    Job(
        ("data", "regenerate", "{base}/prompts.jsonl", "--target", "{base}/target", "-o", "{out}/a.jsonl", "--max-tokens", "12", "--batch", "2",
         "--draft", "{base}/head"), rows, 4,
    ),
    Job(
        ("measure", "{base}/target", "--draft", "{base}/head@2", "--prompts", "{base}/prompts.jsonl", "--num", "4", "--max-tokens", "8",
         "--way", "live", "--out", "{out}/measured"), whole, 3,
    ),
    Job(("convert", "{base}/pickled", "{out}/folder"), whole),
    Job(("fit", "{base}/records/observations.jsonl", "--draws", "16", "--out", "{out}/fits"), whole),
    Job(("plan", "Llama-160M", "--draws", "256", "--no-figures", "--out", "{out}/plan"), whole),
    Job(("deploy", "export", "{base}/head", "--target", "{base}/target", "--out", "{out}/served"), whole),
    Job(("data", "tokenizer", "{base}/corpus.jsonl", "--vocab", "300", "--out", "{out}/tokenizer"), whole),
)  # fmt: skip


def write_jobs(base: Path, documents: int = 6000, prompts: int = 48) -> None:
    """The files that the jobs read: those of the fuzzer, longer where a job would be over too soon."""
    import torch

    write_base(base)
    (base / "corpus.jsonl").write_text("".join(json.dumps({"text": f"{WORDS} {i}"}) + "\n" for i in range(documents)))
    (base / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": f"q{i}", "turns": [f"{WORDS[: 20 + i]}"]}) + "\n" for i in range(prompts))
    )
    stage = {"tokens": 24 * 4 * 32, "length": 32, "batch": 4, "learning_rate": 1e-3}
    watch = {"save_every": 3, "log_every": 1, "held_out_every": 6, "held_out_tokens": 256, "export_at": [1000, 2000]}
    recipe = {"model": {"kind": "eagle3"}, "stages": [stage], "watch": watch, "precision": "float32"}
    (base / "recipe.json").write_text(json.dumps(recipe))
    fit = ["fit", str(base / "records" / "observations.jsonl"), "--draws", "8", "--out", "@."]
    grid = {"target": "t", "cells": {"a": {"run": fit}, "b": {"run": ["list", "laws"]}, "c": {"run": fit}}}
    (base / "grid.json").write_text(json.dumps(grid))
    pickled = base / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (pickled / name).write_bytes((base / "target" / name).read_bytes())
    (pickled / "chat_template.jinja").write_text(TEMPLATE)
    from safetensors.torch import load_file

    torch.save(load_file(base / "target" / "model.safetensors"), pickled / "pytorch_model.bin")


def run(words: tuple[str, ...], base: Path, out: Path, kill_after_s: float | None = None) -> tuple[int, float]:
    """A command in a process of its own, killed after so long: its exit code, −9 where that ended it, and its seconds."""
    out.mkdir(parents=True, exist_ok=True)
    said = out.with_name(f"{out.name}.said")
    process = SERVER.Process(target=_command, args=([word.format(base=base, out=out) for word in words], base, said))
    process.start()
    began = time.monotonic()
    while not said.exists() and process.is_alive():  # the server may be loading
        time.sleep(0.001)
    ready = time.monotonic()
    process.join(SLOWEST_S if kill_after_s is None else kill_after_s)
    if process.is_alive():
        process.kill()
    process.join()
    code, words_said = process.exitcode or 0, said.read_text() if said.exists() else ""
    if code == 2 and "exists already" in words_said:
        code = 0  # the kill had come behind its end
    if kill_after_s is None and code:
        raise RuntimeError(f"{words}: exit code {code} after {time.monotonic() - began:.0f} s: {words_said[-2000:]}")
    said.unlink(missing_ok=True)
    return code, time.monotonic() - ready


def _command(words: list[str], base: Path, said: Path) -> None:
    import torch

    from foredraft.train import launch

    launch.matmul_rate = lambda *_: 1e9  # a second of every training that writes nothing
    torch.set_num_threads(1)
    os.chdir(base)
    sys.argv = ["foredraft", *words]
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        main()


def end_of(out: Path) -> dict[str, Any]:
    """All that is in a folder: files' digests; of JSON, pages of HTML left out, every value by file and place."""
    values: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or path.name in OF_A_PROCESS:
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            for i, line in enumerate(lines):
                values |= dict(_leaves(json.loads(line), f"{name}:{i}"))
        else:
            data = path.read_bytes().replace(str(out).encode(), b"OUT")  # texts that name where they lie
            values[name] = hashlib.sha256(data).hexdigest()
    return {name: value.replace(str(out), "OUT") if isinstance(value, str) else value for name, value in values.items()}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    items = (
        [each for each in value.items() if each[0] != "tail"]
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield name, value
    for key, part in items or ():
        yield from _leaves(part, f"{name}.{key}")


class Undisturbed(NamedTuple):
    """What a job leaves, its seconds, and which of its values are clocks."""

    end: dict[str, Any]
    seconds: float
    clocks: frozenset[str]


def undisturbed(job: Job, base: Path, root: Path) -> Undisturbed:
    runs = []
    for i in range(2):
        out = root / f"whole-{i}"
        _, seconds = run(job.words, base, out)
        runs.append((end_of(out), seconds))
    (first, cold), (second, warm) = runs
    return Undisturbed(first, min(cold, warm), clocks_of(job, first, second))


def clocks_of(job: Job, first: dict[str, Any], second: dict[str, Any]) -> frozenset[str]:
    """In which values two undisturbed runs differ, and those of whole seconds, in which they may not. Raises RuntimeError where those are no
    numbers of a document.
    """
    if first.keys() != second.keys():
        raise RuntimeError(
            f"{job.verb}: two undisturbed runs leave other things: {sorted(first.keys() ^ second.keys())[:5]}"
        )
    clocks = frozenset(name for name in first if first[name] != second[name] or name.endswith(".created"))
    if others := [name for name in clocks if ".json" not in name]:
        raise RuntimeError(f"{job.verb}: two undisturbed runs differ in {others[:5]}")
    return clocks


def killed(
    job: Job, whole_run: Undisturbed, base: Path, out: Path, kills: int, draw: random.Random
) -> tuple[int, list[str]]:
    """A run killed up to so many times and then left to end: how often it was, and what is wrong with it."""
    count, kept, wrong = 0, 0, []
    for _ in range(kills):
        code, _ = run(job.words, base, out, draw.random() * whole_run.seconds * 1.05)
        count += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"exit code {code} after a kill")
        if (now := job.kept(out)) < kept:
            wrong.append(f"{kept} kept before a kill, {now} after it")
        kept = job.kept(out)
        if code == 0:
            break
    try:
        run(job.words, base, out)
    except RuntimeError as error:
        return count, [*wrong, str(error)]
    return count, [*wrong, *differences(whole_run.end, whole_run.clocks, end_of(out))]


def differences(whole_end: dict[str, Any], clocks: frozenset[str], end: dict[str, Any]) -> list[str]:
    """What is wrong with the end of a run that was killed."""
    wrong = []
    if lost := sorted(whole_end.keys() - end.keys()):
        wrong.append(f"lost: {lost[:5]}")
    if more := sorted(end.keys() - whole_end.keys()):
        wrong.append(f"left behind: {more[:5]}")
    other = [name for name in end.keys() & whole_end.keys() - clocks if end[name] != whole_end[name]]
    if other:
        wrong.append(f"other: {[(name, whole_end[name], end[name]) for name in sorted(other)[:5]]}")
    return wrong


def tally(jobs: tuple[Job, ...], kills: int, seed: int, root: Path) -> list[dict[str, Any]]:
    """Kill every job for its share of `kills`."""
    base, draw, results = root / "base", random.Random(seed), []
    write_jobs(base)
    for job in jobs:
        whole_run = undisturbed(job, base, root / job.verb.replace(" ", "-"))
        asked, count, runs, wrong = -(-kills * job.share // sum(each.share for each in jobs)), 0, 0, []
        while count < asked:
            out = root / job.verb.replace(" ", "-") / f"killed-{runs}"
            more, faults = killed(job, whole_run, base, out, min(PER_RUN, asked - count), draw)
            count, runs, wrong = count + more, runs + 1, [*wrong, *faults]
            for fault in faults:
                print(f"  {job.verb} run {runs}: {fault}", flush=True)
        clocks = sorted({name.rpartition(":")[2].partition(".")[2] for name in whole_run.clocks})
        results.append(
            {
                "verb": job.verb,
                "kills": count,
                "runs": runs,
                "wrong": wrong,
                "seconds": round(whole_run.seconds, 2),
                "clocks": clocks,
            }
        )
        print(f"{job.verb}: {count} kills in {runs} runs of {whole_run.seconds:.1f} s, {len(wrong)} wrong", flush=True)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Verbs that hold this word.")
    parser.add_argument(
        "--at", type=Path, help="Folder for the jobs' files; in memory (/dev/shm) a thousand flushes take no time."
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = tuple(job for job in JOBS if options.only in job.verb)
    with tempfile.TemporaryDirectory(dir=options.at) as folder:
        results = tally(chosen, options.kills, options.seed, Path(folder))
    if options.out:
        report = {"seed": options.seed, "kills": sum(each["kills"] for each in results), "verbs": results}
        records.write(options.out, report)
    raise SystemExit(any(each["wrong"] for each in results))
