"""The grid at more tokens: the target's answers by batched sampling, then the drafts of a sweep document in order of worth.

`--data DIR` holds what the document names, by the last part of each path: token folders (NAME/data.json), or rows to make them of
(NAME.jsonl or .jsonl.zst, and for the answers NAME-*.jsonl too). Where DIR has prompts-free.jsonl, else prompts-train.jsonl (or
.zst), the target answers them first, greedily and at temperature 1 in turn, and its answers join those that are there.

Tokens of all budgets × `tokens_factor`, or less where the time would not do for the first; sequences of a step × `batch_factor`,
learning rates × its square root (the scaling of adaptive optimisers, arXiv 2205.10287). A draft that is done is a folder in
WORK/sweep/cells; one that is not is named as left.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
from bench import Settings, Step

from foredraft.data import regenerate
from foredraft.data.prepare import prepare
from foredraft.data.sources import Skips
from foredraft.data.tokens import DATA, TokenFolder
from foredraft.recipe import Recipe
from foredraft.sweep.cells import EXPORTS, Cell, ordered
from foredraft.sweep.expand import expand, grid_of
from foredraft.sweep.folder import CellState
from foredraft.sweep.grid import Grid
from foredraft.sweep.local_runner import LocalRunner
from foredraft.sweep.run import Driver, prepared

WORTH = ("eagle3*", "lm*", "eagle2*", "scylla-L1*", "scylla-L2*", "scylla-L3*")
ANSWERS, PROMPTS = "answers", ("prompts-free", "prompts-train")  # of the prompts the first that is there
ENDINGS = ".jsonl", ".jsonl.zst"
ANSWER_SHARE = 0.4  # of the step's time at most
MAX_TOKENS, BATCH, CONTEXT = 192, 256, 1024
START_S = 20.0  # of a training's process, until its first step
GRACE_S = 25.0  # before the end of the step: trainings save, results are written


class TimeUp(Exception):
    """The time for answers is spent; what is written stays."""


def run(step: Step) -> None:
    settings = step.settings
    if settings.grid is None or settings.data is None or settings.target is None:
        raise ValueError("the grid needs --grid, --data and --target")
    grid = grid_of(settings.grid)
    answered = answers(step)
    here = laid_out(step, grid, answered)
    settings = settings._replace(tokens_factor=factor_within(step, grid))
    step.record("tokens_factor", settings.tokens_factor)
    train(step, cells_of(grid, settings), here)


# Answers


def answers(step: Step) -> list[Path]:
    """Answer the prompts until the time for it is spent; the files of answers."""
    files = [path for name in PROMPTS if (path := _rows(step.settings.data, name))][:1]
    written, until = [], time.monotonic() + ANSWER_SHARE * step.time_left
    for i, temperature in enumerate((0.0, 1.0) if files else ()):
        out = step.settings.work / f"answers-t{temperature:g}.jsonl"
        end = until if i else time.monotonic() + (until - time.monotonic()) / 2
        step.attempt(
            f"answers T={temperature:g}", lambda out=out, t=temperature, end=end: _answer(step, files, out, t, end), 5
        )
        written += [out] if out.is_file() and out.stat().st_size else []
    return written


def _answer(step: Step, files: list[Path], out: Path, temperature: float, until: float) -> dict[str, Any]:
    """What was answered until then, and the tokens per second of it all, loading included."""
    small, began = step.settings.small, time.monotonic()

    def watch(what: str, rows: int, total: int) -> None:
        if time.monotonic() > until:
            raise TimeUp

    settings = regenerate.RegenerateSettings(
        max_tokens=8 if small else MAX_TOKENS, temperature=temperature, batch=4 if small else BATCH, context=64 if small else CONTEXT,
        dtype="bfloat16", device=step.settings.device,
    )  # fmt: skip
    skips = Skips("skip")
    asked = regenerate.prompts([str(path) for path in files], False, skips)
    over = False
    try:
        regenerate.regenerate(asked, step.settings.target or "", out, settings, skips=skips, progress=watch)
    except TimeUp:
        over = True
    ended = time.monotonic()
    rows = [msgspec.json.decode(line) for line in out.read_bytes().splitlines()]
    tokens = sum(end - start for row in rows for start, end in row["regenerated"]["answers"])
    return {
        "prompts": len(asked), "answered": len(rows), "answer_tokens": tokens, "seconds": ended - began,
        "tokens_per_s": tokens / (ended - began), "batch": settings.batch, "ended": "its time was spent" if over else "all answered",
    }  # fmt: skip


# Data where the document looks for it


def laid_out(step: Step, grid: Grid, answered: list[Path]) -> Path:
    """A folder in which every path of the document leads to what DIR holds under its last name."""
    settings = step.settings
    assert settings.data is not None
    assert settings.target is not None
    here = settings.work / "here"
    _link(here / (grid.target or "target"), settings.target)
    for path in sorted(data_paths(grid)):
        name = Path(path).name
        made = settings.data / name
        rows = [file for file in (_rows(settings.data, name),) if file]
        if name == ANSWERS:
            others = (file for ending in ENDINGS for file in settings.data.glob(f"{ANSWERS}-*{ending}"))
            rows += [*sorted(file for file in others if "-val." not in file.name), *answered]
        if not (made / DATA).is_file() or (name == ANSWERS and answered):
            if not rows:
                raise ValueError(f"--data {settings.data}: holds neither {name}/{DATA} nor {name}.jsonl")
            made = settings.work / "tokens" / name
            shutil.rmtree(made, ignore_errors=True)  # of an earlier run in the same folder
            prepare([str(file) for file in rows], made, settings.target, chat=name.startswith(ANSWERS), on_error="skip")
        data = TokenFolder.open(made).data
        step.record(
            f"tokens {name}",
            {"tokens": data.num_tokens, "of_the_target": data.regenerated_tokens, "predicted": data.predicted_tokens},
        )
        _link(here / path, made)
    return here


def data_paths(grid: Grid) -> set[str]:
    families = grid.drafts.values()
    named = [grid.data, grid.held_out]
    for family in families:
        named += [family.data, family.held_out, *((family.then.data, family.then.held_out) if family.then else ())]
    return {path for path in named if path}


def _rows(folder: Path | None, name: str) -> Path | None:
    """NAME.jsonl or NAME.jsonl.zst."""
    assert folder is not None
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(target.resolve())


# Drafts


def factor_within(step: Step, grid: Grid) -> float:
    """`tokens_factor`, or as much of it as the time allows the most worthwhile training, at half the rate that the step `train`
    measured for a head, since others run beside it; 1 at least. Without that figure, as asked for."""
    settings, path = step.settings, step.settings.out / "train.json"
    head = msgspec.json.decode(path.read_bytes())["figures"].get("eagle3 head") if path.is_file() else None
    if head is None or settings.small:
        return settings.tokens_factor
    longest = cells_of(grid, settings._replace(tokens_factor=1.0))[0].tokens or 1.0
    tokens = max(step.time_left - GRACE_S - START_S, 0.0) * head["tokens_per_s"] / 2
    return max(1.0, min(settings.tokens_factor, int(10 * tokens / longest) / 10))


def cells_of(grid: Grid, settings: Settings) -> list[Cell]:
    """The document's trainings on this device, the most worthwhile first, each after what it starts from; last those that go on from
    an earlier budget than their run's."""
    longer = msgspec.convert(with_more_tokens(msgspec.to_builtins(grid), settings), Grid)
    worth = settings.worth or WORTH

    def place(cell: Cell) -> tuple[bool, int, float]:
        matches = (i for i, pattern in enumerate(worth) if fnmatchcase(cell.name, pattern))
        earlier = f"/{EXPORTS}/" in str((cell.recipe or {})["model"].get("init"))
        return earlier, next(matches, len(worth)), -(cell.tokens or 0)

    cells = [with_larger_steps(cell, settings) for cell in expand(longer) if cell.recipe is not None]
    return ordered(sorted(cells, key=place))


def with_more_tokens(document: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The sweep document without measurements, which are the business of where drafts serve, and without a cache of hidden states,
    which a GPU computes sooner than a disk reads them."""

    def recipe(given: dict[str, Any]) -> dict[str, Any]:
        grown = [
            stage | ({"tokens": stage["tokens"] * settings.tokens_factor} if stage.get("tokens") else {})
            for stage in given.get("stages", ())
        ]
        return given | ({"stages": grown} if grown else {})

    def family(given: dict[str, Any]) -> dict[str, Any]:
        out = given | {"recipe": recipe(given.get("recipe", {}))}
        if given.get("tokens"):
            out["tokens"] = [value * settings.tokens_factor for value in given["tokens"]]
        if given.get("then"):
            out["then"] = given["then"] | {"recipe": recipe(given["then"]["recipe"])}
        return out

    drafts = {name: family(given) for name, given in document.get("drafts", {}).items()}
    rest = {"measure": [], "cells": {}, "plan": None, "planner": 0, "features": None, "device": settings.device}
    return document | rest | {"recipe": recipe(document.get("recipe", {})), "drafts": drafts}


def with_larger_steps(cell: Cell, settings: Settings) -> Cell:
    """The training with `batch_factor` times the sequences in a step, at its square root times the rate; in bfloat16 on a GPU."""
    recipe, factor = msgspec.convert(cell.recipe, Recipe), settings.batch_factor
    stages = tuple(
        msgspec.structs.replace(
            stage, batch=stage.batch * factor, micro_batch=stage.micro_batch and stage.micro_batch * factor,
            learning_rate=stage.learning_rate * sqrt(factor),
        )
        for stage in recipe.stages
    )  # fmt: skip
    watch = msgspec.structs.replace(recipe.watch, held_out_every=10**6, save_every=10**6, log_every=50)
    precision = "bfloat16" if settings.device == "cuda" else recipe.precision
    changed = msgspec.structs.replace(recipe, stages=stages, watch=watch, precision=precision)
    return msgspec.structs.replace(cell, recipe=msgspec.to_builtins(changed), tokens=float(changed.tokens))


def train(step: Step, cells: list[Cell], here: Path) -> None:
    """As many as the time allows, several at once: small drafts leave most of a GPU to others."""
    if step.time_left < GRACE_S + START_S:
        step.left |= {cell.name: "no time was left to begin" for cell in cells}
        return
    out = step.settings.work / "sweep"
    folder = prepared(cells, out, here)
    runner = LocalRunner(step.settings.workers)
    threads = max(1, (os.cpu_count() or 1) // step.settings.workers)
    driver = Driver(folder, runner, here, threads=threads)
    try:
        with interrupted_after(step.time_left - GRACE_S):
            driver.run(lambda states: step.record("cells", rows(states), quiet=True))
    except KeyboardInterrupt:
        print("the time is spent", flush=True)
    finally:
        step.record("cells", rows(driver.rows), quiet=True)
        folder.release()
        runner.close()
    undone = [state for state in driver.rows if state.state != "done"]
    step.left |= {
        state.name: state.error or f"{state.state}; {state.tokens or 0:,.0f} of {state.of_tokens or 0:,.0f} tokens"
        for state in undone
    }


def rows(states: list[CellState] | Any) -> dict[str, Any]:
    return {
        state.name: {
            "state": state.state, "tokens": state.tokens, "seconds": state.seconds, "tokens_per_step": state.tokens_per_step, "error": state.error,
        }
        for state in states if state.state not in ("waiting", "queued")
    }  # fmt: skip


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """SIGTERM to this process once `seconds` are over, which a sweep takes as the wish to stop and save."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
