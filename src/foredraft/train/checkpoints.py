"""A run's state on disk: weights, optimiser, where it is. Never pickle.

A folder `step-00001200` holds model.safetensors, optimiser.safetensors and state.json; `best.json` names the best of them.
It is written under another name and renamed when it is whole and flushed, so a crash or a full disk leaves the last good one.

Promises: what is listed is whole; the newest `keep` and the best stay. Refuses to know: what the tensors are for.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foredraft import records
from foredraft.models.checkpoint import Checkpoint
from foredraft.recipe import Recipe
from foredraft.records import Record
from foredraft.shapes.absent import SINGLE

OPTIMISER, STATE, BEST = "optimiser.safetensors", "state.json", "best.json"
_NAME = re.compile(r"step-(\d{8})")


class RunningLoss(Record, frozen=True):
    """The loss of the stage at hand: its `first`, a running mean `smooth`, and the `lowest` that this has been."""

    first: float
    smooth: float
    lowest: float


class Best(Record, frozen=True):
    """The lowest held-out loss at a checkpoint so far."""

    step: int
    loss: float


class State(Record, frozen=True):
    """Where a run is: `step` steps done in all, `stage_step` of them in stage `stage`, so many `tokens` seen.

    The next sample is stage_step × batch, so this is the data's position too; randomness is drawn anew from (seed, step).
    `data` are fingerprints of the token folders, `world` the processes that last ran, `seconds` the time in training steps.
    """

    recipe: Recipe
    data: tuple[str, ...]
    version: int = 1
    step: int = 0
    stage: int = 0
    stage_step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    world: int = 1
    course: RunningLoss | None = None
    best: Best | None = None


class Saved(NamedTuple):
    """A checkpoint that is whole."""

    step: int
    folder: Path


class Checkpoints:
    """The checkpoints in `folder`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def list(self) -> list[Saved]:
        """Oldest first."""
        matches = [(match, path) for path in self.folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
        return sorted(Saved(int(match[1]), path) for match, path in matches)

    def latest(self) -> Saved | None:
        return max(self.list(), default=None)

    def save(self, state: State, model: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint and drop what is no longer kept. Raises ValueError, the last good one named, where it fails."""
        path = self.folder / f"step-{state.step:08d}"
        if path.is_dir():  # of this very step, so of this very state
            return path
        partial = self.folder / f".{path.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial / SINGLE, model)
            _write(partial / OPTIMISER, optimiser)
            records.write(partial / STATE, state)
            for file in (*partial.iterdir(), partial):
                _flush(file)
            partial.rename(path)
            if state.best and state.best.step == state.step:
                records.write(self.folder / BEST, state.best)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ValueError(f"{path}: cannot be written ({reason}); {self.last_good()}") from None
        self._prune(state.best)
        return path

    def last_good(self) -> str:
        """For the end of a message: which checkpoint a run can go on from."""
        latest = self.latest()
        return f"the last good checkpoint is {latest.folder}" if latest else "there is no checkpoint yet"

    def newest_whole(self, speaks: bool = True) -> Saved | None:
        """The newest checkpoint that reads; None where there is none. Damaged ones after it are set aside as damaged-step-…, which `speaks`
        does and says on stderr.

        Raises ValueError where all are damaged.
        """
        damaged: dict[Path, str] = {}
        for saved in reversed(self.list()):
            try:
                self.read(saved)
                Checkpoint(saved.folder)
                _check_optimiser(saved.folder)
            except (ValueError, OSError) as error:
                damaged[saved.folder] = str(error)
                continue
            for folder, why in damaged.items() if speaks else ():
                folder.rename(folder.with_name(f"damaged-{folder.name}"))
                print(f"warning: {why}: set aside, going on from {saved.folder}", file=sys.stderr)
            return saved
        if damaged:
            error = ValueError(f"{next(iter(damaged.values()))}; no checkpoint before it is whole")
            raise records.with_hint(error, f"remove {self.folder} to begin anew")
        return None

    def read(self, saved: Saved) -> State:
        return records.read(State, saved.folder / STATE)

    def _prune(self, best: Best | None) -> None:
        """Drop what is no longer kept, and what a killed run left half-made."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path)
        newest = self.list()[-self.keep :]
        for saved in self.list():
            if saved not in newest and not (best and saved.step == best.step):
                shutil.rmtree(saved.folder)


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU."""
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.stored}


def optimiser_state(folder: Path) -> dict[str, Tensor]:
    """The optimiser's tensors of a checkpoint, on the CPU; empty where it was saved before a first step."""
    _check_optimiser(folder)
    return safetensors.torch.load_file(folder / OPTIMISER)


def _check_optimiser(folder: Path) -> None:
    try:
        with safe_open(folder / OPTIMISER, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / OPTIMISER}: truncated or corrupt ({str(error).splitlines()[0]})") from None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _flush(path: Path) -> None:
    """To the disk itself, so that a rename never names what is not there yet."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def difference(old: Recipe, new: Recipe) -> list[str]:
    """What two recipes disagree on that changes a run's numbers, as "stages[0].learning_rate 0.001 → 0.01"."""
    return [text for text in _differences(old, new, "") if not text.startswith(("watch", "predicted"))]


def _differences(old: object, new: object, where: str) -> Iterator[str]:
    old_parts, new_parts = _parts(old), _parts(new)
    if old_parts is None or new_parts is None or type(old) is not type(new) or old_parts.keys() != new_parts.keys():
        if old != new:
            yield f"{where} {old} → {new}"
        return
    for name in old_parts:
        yield from _differences(
            old_parts[name], new_parts[name], f"{where}{name}" if name[0] == "[" else f"{where}.{name}".lstrip(".")
        )


def _parts(value: object) -> dict[str, object] | None:
    """A record's fields, a list's items; None for what is compared as a whole."""
    if isinstance(value, Record):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return {f"[{i}]": item for i, item in enumerate(value)}
    return None
