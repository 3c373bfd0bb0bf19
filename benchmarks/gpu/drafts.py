"""Drafts of all kinds at the same tokens: the cells of a sweep document, each a process, for as long as there is time.

`--data DIR` holds token folders by the names that the document's cells say; what the step `answers` left in WORK/tokens joins `answers`.

Cells begin in the document's order, as many at once as `--workers`. How fast the first ones are together says what all budgets are
multiplied by, so that the time is used up; where it would not do for one all the same, its schedule ends earlier (`timed_training`). A draft
that is done is a folder in WORK/drafts; one that is not is named as left.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from answers import ANSWERS, ended, joined, started
from bench import Settings, Step
from timed_training import Job, Pace

from foredraft import records
from foredraft.data.tokens import DATA, TokenFolder
from foredraft.recipe import Eagle, Eagle3, Recipe
from foredraft.sweep.expand import expand, grid_of

GRACE_S = 6.0
FILL = 0.92  # of the time that is left, as the pilot's rates count it


class Waits(NamedTuple):
    """Seconds: of a training's process until its first step (with less than twice that none is begun), and in which the first drafts'
    rates are measured."""

    start: float = 25.0
    pilot: float = 20.0


SMALL = Waits(4.0, 2.0)


def run(step: Step) -> None:
    settings = step.settings
    if settings.grid is None or settings.data is None or settings.target is None:
        raise ValueError("the grid needs --grid, --data and --target")
    train(step, trainings(settings), laid_out(step), SMALL if settings.small else Waits())


# Data


def laid_out(step: Step) -> dict[str, Path]:
    """Token folders by name: DIR's, and the new answers joined to its `answers`."""
    assert step.settings.data is not None
    folders = {path.parent.name: path.parent for path in sorted(step.settings.data.glob(f"*/{DATA}"))}
    answers = sorted(path.parent for path in (step.settings.work / "tokens").glob(f"{ANSWERS}-t*/{DATA}"))
    if answers:
        folders[ANSWERS] = joined(
            [*([folders[ANSWERS]] if ANSWERS in folders else []), *answers], step.settings.work / "tokens" / ANSWERS
        )
    for name, folder in folders.items():
        data = TokenFolder.open(folder).data
        step.record(
            f"tokens {name}",
            {"tokens": data.num_tokens, "of_the_target": data.regenerated_tokens, "predicted": data.predicted_tokens},
        )
    return folders


# Drafts


class Training(NamedTuple):
    """A cell of the document. `data`: names of token folders, one per stage."""

    name: str
    recipe: Recipe
    data: tuple[str, ...]
    held_out: str

    @property
    def begins(self) -> bool:
        """Whether its head begins by passing its target's state on."""
        return isinstance(self.recipe.model, Eagle | Eagle3) and self.recipe.model.init is None


def trainings(settings: Settings) -> list[Training]:
    """In the document's order. Raises ValueError where it holds anything but cells with recipes."""
    assert settings.grid is not None
    grid = grid_of(settings.grid)
    if grid.drafts or not grid.cells:
        raise ValueError(f"{settings.grid}: give cells with a recipe each, as recipes/smollm2/kinds.json does")
    out = []
    for cell in expand(grid):
        named = grid.cells[cell.name]
        held_out = named.held_out or grid.held_out
        if cell.recipe is None or held_out is None:
            raise ValueError(f"{settings.grid}: cells.{cell.name}: a recipe and held_out are needed")
        recipe = msgspec.convert(cell.recipe, Recipe)
        if settings.device != "cuda":
            recipe = msgspec.structs.replace(recipe, precision="float32")
        out.append(Training(cell.name, recipe, named.data or (grid.data or ANSWERS,), held_out))
    return out


class Running(NamedTuple):
    training: Training
    process: "subprocess.Popen[bytes]"
    folder: Path

    def progress(self) -> dict[str, Any]:
        """What it said last; empty before it said anything."""
        path = self.folder / "state.json"
        return msgspec.json.decode(path.read_bytes()) if path.is_file() else {}


def train(step: Step, waiting: list[Training], folders: dict[str, Path], waits: Waits) -> None:
    """All that the time allows; what is done and what is left is recorded as it changes."""
    until, pace = time.time() + step.time_left - GRACE_S, step.settings.work / "pace.json"
    pace.unlink(missing_ok=True)
    running: list[Running] = []
    pilot_ends, waiting, all_trainings = None, list(waiting), list(waiting)
    while waiting or running:
        while waiting and len(running) < step.settings.workers and until - time.time() > 2 * waits.start:
            running.append(begun(step, waiting.pop(0), folders, pace, until))
        time.sleep(0.5)
        rates = {item.training.name: item.progress().get("tokens_per_s") for item in running}
        if not pace.is_file() and running and all(rates.values()):
            pilot_ends = pilot_ends or time.time() + waits.pilot
            if time.time() > pilot_ends:
                records.write(pace, Pace(factor_of(all_trainings, rates, until - time.time())))
                step.record("factor", records.read(Pace, pace).factor)
        for item in [item for item in running if item.process.poll() is not None]:
            running.remove(item)
            recorded(step, item)
        if time.time() > until:
            for item in running:
                ended(item.process)
        if not running and until - time.time() <= 2 * waits.start:
            break
    step.left |= {training.name: "no time was left to begin" for training in waiting}


def factor_of(trainings: Sequence[Training], rates: dict[str, Any], left_s: float) -> float:
    """What multiplies all budgets, so that all of them take the time that is left: a token of those measured took its share of the device,
    one of others what the measured ones' took on average.
    """
    costs = {name: 1 / (len(rates) * rate) for name, rate in rates.items()}
    mean = sum(costs.values()) / len(costs)
    whole = sum(training.recipe.tokens * costs.get(training.name, mean) for training in trainings)
    return FILL * left_s / whole


def begun(step: Step, training: Training, folders: dict[str, Path], pace: Path, until: float) -> Running:
    settings, folder = step.settings, step.settings.work / "drafts" / training.name
    missing = [name for name in (*training.data, training.held_out) if name not in folders]
    if missing:
        raise ValueError(f"--data {settings.data}: holds no token folder {missing[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(
        recipe=training.recipe, data=tuple(str(folders[name]) for name in training.data), held_out=str(folders[training.held_out]),
        target=str(settings.target), out=str(folder), pace=str(pace), until=until, device=settings.device, begin=training.begins,
    )  # fmt: skip
    records.write(folder / "job.json", job)
    script = Path(__file__).with_name("timed_training.py")
    return Running(training, started(step, training.name, [str(script), str(folder / "job.json")]), folder)


def recorded(step: Step, item: Running) -> None:
    done, name = item.folder / "done.json", item.training.name
    if not done.is_file():
        lines = (step.settings.out / f"{name}.log").read_text(errors="replace").strip().splitlines()
        step.left[name] = f"ended with {item.process.returncode}: {lines[-1] if lines else 'it said nothing'}"
        return
    lines = (item.folder / "metrics.jsonl").read_bytes().splitlines()
    held_out = [row for row in map(msgspec.json.decode, lines) if "held_out_loss" in row]
    last = {key.removeprefix("held_out_"): value for key, value in held_out[-1].items()} if held_out else {}
    step.record(name, msgspec.json.decode(done.read_bytes()) | {"held_out": last})
