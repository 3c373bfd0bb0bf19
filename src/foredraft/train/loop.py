"""The loop: stage by stage, step by step, from a recipe to a saved model, and on from wherever it was stopped.

Promises: one update is the same for any number of micro-batches and processes; a run that was killed and started again ends
with the weights of one that was not; what is stopped for a loss that is not finite or diverges names its last good
checkpoint. Refuses to know: what is trained, where data come from.
"""

import math
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from foredraft import records
from foredraft.data.tokens import Batch, Packing
from foredraft.recipe import Recipe, Stage
from foredraft.train.batches import micro_batches
from foredraft.train.checkpoints import Best, Checkpoints, RunningLoss, State, difference, optimiser_state, weights
from foredraft.train.devices import Devices, fill, gathered
from foredraft.train.objective import Objective
from foredraft.train.optimiser import begin, optimisers_of, rate, scale_gradients, set_rate, state_of
from foredraft.train.progress import Meter, RunLogger

CHECKPOINTS, EXPORTS, FINAL, BEST, RECIPE = "checkpoints", "exports", "final", "best", "recipe.json"
MEMORY = 0.95  # of the running mean of the loss
MOST_IDLE = 20  # steps in a row without a label: prompts are long, but not that long


class Data(NamedTuple):
    """What a run reads: a packing and its fingerprint for each stage, and held-out windows, if any."""

    stages: Sequence[Packing]
    fingerprints: tuple[str, ...]
    held_out: Packing | None = None

    @property
    def packings(self) -> tuple[Packing, ...]:
        return (*self.stages, *((self.held_out,) if self.held_out else ()))


class Stopped(ValueError):
    """A run that ended before its budget, on its own account."""


class Interrupted(Stopped):
    """A run that a signal asked to stop."""

    exit_code = 130


def train(
    recipe: Recipe, objective: Objective, data: Data, out: Path, devices: Devices, ceiling_flops_per_s: float
) -> State:
    """Run a recipe to its end in `out`, from its last checkpoint there if it has one, and export the model.

    `ceiling_flops_per_s`: one device's measured rate of matrix products, for the MFU. Raises ValueError where the recipe
    or the data in `out` differ, where a checkpoint cannot be written, and `Stopped` where the loss is not finite or
    diverges, or a signal asks to stop.
    """
    run = TrainingRun(recipe, objective, data, out, devices)
    steps = sum(stage.steps for stage in recipe.stages)
    meter = Meter(objective.flops_per_token, ceiling_flops_per_s * devices.world)
    with (
        Interrupt() as interrupt,
        RunLogger(out, steps, run.state.step, speaks=devices.first, tensorboard=recipe.watch.tensorboard) as logger,
    ):
        if run.state.step:
            logger.say(f"going on from step {run.state.step} of {steps}")
        if not run.state.step:
            run.evaluate(logger)
        while run.begin_stage():
            while run.stage_steps_left:
                run.step(meter, interrupt.requested)
                logger.advance()
                run.evaluate(logger, meter)
                run.stop_if_requested()
            run.end_stage()
        run.finish()
    return run.state


class TrainingRun:
    """A run's moving parts. `state` is what a checkpoint would hold now."""

    def __init__(self, recipe: Recipe, objective: Objective, data: Data, out: Path, devices: Devices) -> None:
        self.recipe, self.objective, self.data, self.out, self.devices = recipe, objective, data, out, devices
        self.checkpoints = Checkpoints(out / CHECKPOINTS, recipe.watch.keep)
        self.saved = self.checkpoints.newest_whole(devices.first)
        self.state = self._resumed()
        if recipe.compile:
            objective.compile()
        if self.saved:
            fill(objective.trained.state_dict(), weights(self.saved.folder))
        self.forward = devices.prepare(objective)
        self.optimisers: list[torch.optim.Optimizer] = []
        self.last: dict[str, float] = {}
        self._stop_requested, self._idle = False, 0
        if devices.first:
            records.write(out / RECIPE, recipe)

    def _resumed(self) -> State:
        """The last checkpoint's state, its recipe and data being this run's; else a new one."""
        new = State(recipe=self.recipe, data=self.data.fingerprints, world=self.devices.world)
        if self.saved is None:
            return new
        old = self.checkpoints.read(self.saved)
        changed = difference(old.recipe, self.recipe)
        changed += [f"data {a} → {b}" for a, b in zip(old.data, new.data, strict=False) if a != b]
        if changed:
            message = (
                f"{self.out}: holds a run of another recipe ({'; '.join(changed)}); give the old one, or another --out"
            )
            raise records.with_hint(ValueError(message), "a run goes on only with its own recipe and data")
        return msgspec.structs.replace(old, recipe=self.recipe, world=self.devices.world)

    @property
    def stage(self) -> Stage | None:
        """The stage at hand; None when all are done."""
        stages = self.recipe.stages
        return stages[self.state.stage] if self.state.stage < len(stages) else None

    def _advance(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)

    # stages

    def begin_stage(self) -> bool:
        """Optimisers for the stage at hand, as the checkpoint left them if it is from its midst; False after the last."""
        if self.stage is None:
            return False
        trained = self.objective.trained
        self.optimisers = optimisers_of(trained, self.recipe)
        if self.saved and self.state.stage_step:
            begin(trained, self.optimisers)
            fill(dict(state_of(trained, self.optimisers)), optimiser_state(self.saved.folder))
        self.saved = None
        return True

    @property
    def stage_steps_left(self) -> int:
        return self._the_stage().steps - self.state.stage_step

    def end_stage(self) -> None:
        self._advance(stage=self.state.stage + 1, stage_step=0, course=None)

    # a step

    def step(self, meter: Meter, stop_requested: bool = False) -> None:
        """One update from the next `batch` samples."""
        stage, state, began = self._the_stage(), self.state, time.perf_counter()
        self._seed(state.step)
        total, weight, terms = self._gradients(stage, stop_requested)
        self._stop_requested = bool(terms.pop("stop_requested"))
        self._idle = 0 if weight else self._idle + 1
        self._stop_if(self._idle == MOST_IDLE, "no token is to be predicted (see foredraft data show)")
        running = self._update(stage, total / weight, weight, terms) if weight else state.course
        seconds = time.perf_counter() - began
        meter.add(stage.tokens_per_step, seconds)
        self._advance(
            step=state.step + 1, stage_step=state.stage_step + 1, tokens=state.tokens + stage.tokens_per_step,
            seconds=state.seconds + seconds, course=running,
        )  # fmt: skip
        self._stop_if(diverged(running), f"the loss diverges ({self.last.get('loss')})")

    def _update(self, stage: Stage, loss: float, weight: float, terms: dict[str, float]) -> RunningLoss:
        """Move the weights; a step whose windows hold no label leaves them, and the optimisers, as they are."""
        norm = scale_gradients(self.objective.trained, self.devices.world / weight, self.recipe.clip)
        self._check(loss, norm)
        value = rate(stage, self.state.stage_step)
        set_rate(self.optimisers, value)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        means = {name: term / weight for name, term in terms.items()}
        self.last = {"loss": loss, "learning_rate": value, "gradient_norm": norm, **means}
        return with_loss(self.state.course, loss)

    def stop_if_requested(self) -> None:
        """Save and raise `Stopped` where any process was asked to stop."""
        if self._stop_requested:
            self.save()
            raise Interrupted(f"asked to stop at step {self.state.step}; {self.checkpoints.last_good()}")

    def _the_stage(self) -> Stage:
        assert self.stage is not None, "the run is over"
        return self.stage

    def _seed(self, step: int) -> None:
        """Randomness of a step is a function of (seed, step, process), so that there is no state of it to restore."""
        torch.manual_seed(((self.recipe.seed * 1_000_003 + step) * 4099 + self.devices.rank) % 2**63)

    def _gradients(self, stage: Stage, stop_requested: bool) -> tuple[float, float, dict[str, float]]:
        """Gradients of the summed loss, in place, and total, weight and terms summed over micro-batches and processes."""
        pieces = micro_batches(stage, self.devices.place)
        first, sums = self.state.stage_step * stage.batch, None
        for i, piece in enumerate(pieces):
            batch = self._batch(self.data.stages[self.state.stage], first + piece.start, piece.stop - piece.start)
            with self.forward.alone(i + 1 < len(pieces)):
                with self._precision():
                    loss = self.forward(batch, self.state.step)
                loss.total.backward()
            sums = added(sums, {"total": loss.total.detach(), "weight": loss.weight} | loss.terms)
        assert sums is not None, "a step has at least one micro-batch"
        reduced = self._reduced(
            sums | {"stop_requested": torch.tensor(float(stop_requested), device=self.devices.device)}
        )
        return reduced.pop("total"), reduced.pop("weight"), reduced

    def _precision(self) -> Any:
        kind = self.devices.device.type
        return torch.autocast(kind, torch.bfloat16) if self.recipe.precision == "bfloat16" else nullcontext()

    def _batch(self, packing: Packing, first: int, count: int) -> Batch:
        return Batch(*(part.to(self.devices.device, non_blocking=True) for part in packing.batch(first, count)))

    def _reduced(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars summed over processes, in one message."""
        packed = torch.stack([value.detach().double() for value in sums.values()])
        return dict(zip(sums, self.devices.sum(packed).tolist(), strict=True))

    def _check(self, loss: float, norm: float) -> None:
        bad = next((name for name, value in (("loss", loss), ("gradient", norm)) if not math.isfinite(value)), None)
        self._stop_if(bad is not None, f"the {bad} is not finite (loss {loss}, gradient norm {norm})")

    def _stop_if(self, wrong: bool, why: str) -> None:
        if wrong:
            step = self.state.step
            raise Stopped(
                f"{why} at step {step}; {self.checkpoints.last_good()}; lower learning_rate or clip, or raise warmup"
            )

    # what is logged and saved

    def evaluate(self, logger: RunLogger, meter: Meter | None = None) -> None:
        """Write, export, hold out and save what is due after this step; before the first one, without `meter`, hold out.

        A checkpoint comes last: what is resumed from has left behind all that was due.
        """
        watch, state, where = self.recipe.watch, self.state, {"step": self.state.step, "tokens": self.state.tokens}
        over = state.step == sum(stage.steps for stage in self.recipe.stages)
        saves = meter is not None and (over or state.step % watch.save_every == 0)
        if meter and self.last and (over or state.step % watch.log_every == 0):
            logger.log(where | self.last | meter.read() | {"seconds": state.seconds})
        for budget in watch.export_at if meter else ():
            if state.tokens - self._the_stage().tokens_per_step < budget <= state.tokens:
                self.export(self.out / EXPORTS / f"tokens-{budget:.6g}")
        held_out = self.held_out() if self.data.held_out and (saves or state.step % watch.held_out_every == 0) else None
        if held_out:
            logger.log(where | {f"held_out_{name}": value for name, value in held_out.items()})
        if saves:
            self.save(held_out["loss"] if held_out else None)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Figures over the first windows of the held-out data, the same ones each time."""
        packing, devices, stage = self.data.held_out, self.devices, self.recipe.stages[0]
        assert packing is not None
        num_windows = min(len(packing), max(1, round(self.recipe.watch.held_out_tokens / packing.length)))
        size = len(range(*micro_batches(stage, devices.place)[0].indices(stage.batch)))
        sums: dict[str, Tensor] | None = None
        for first in range(0, num_windows, size * devices.world):
            batch = self._batch(packing, first + devices.rank * size, size)
            beyond = torch.arange(size, device=devices.device) + first + devices.rank * size >= num_windows
            batch = batch._replace(mask_BT=batch.mask_BT & ~beyond[:, None])
            with self._precision():
                sums = added(sums, self.objective.held_out(batch))
        self.forward.reshard()
        assert sums is not None, "there is at least one window"
        return self.objective.figures({name: devices.sum(value) for name, value in sums.items()})

    def save(self, held_out_loss: float | None = None) -> None:
        """A checkpoint, marked best where its held-out loss is the lowest so far."""
        state, best = self.state, self.state.best
        if held_out_loss is not None and (best is None or held_out_loss < best.loss):
            self._advance(best=Best(step=state.step, loss=held_out_loss))
        model, optimiser = (
            self._weights(),
            gathered(dict(state_of(self.objective.trained, self.optimisers)), self.devices.first),
        )
        self._on_first(lambda: self.checkpoints.save(self.state, model, optimiser))

    def export(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The model in its served format."""
        tensors = dict(self._weights() if state is None else state)

        def write() -> None:
            with records.whole_folder(folder, replace=True) as partial:
                self.objective.save(partial, tensors)

        self._on_first(write)

    def finish(self) -> None:
        """Export the last weights, and the best ones where they are others."""
        self.export(self.out / FINAL)
        best = self.state.best
        if best and best.step != self.state.step:
            folder = next(saved.folder for saved in self.checkpoints.list() if saved.step == best.step)
            self.export(self.out / BEST, weights(folder))

    def _weights(self) -> dict[str, Tensor]:
        return gathered(self.objective.trained.state_dict(), self.devices.first)

    def _on_first(self, work: Any) -> None:
        """Let the first process write; what it meets is met by all."""
        error = None
        if self.devices.first:
            try:
                work()
            except (ValueError, OSError) as met:
                error = str(met)
        self.devices.agree(error)


def added(sums: dict[str, Tensor] | None, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(more) if sums is None else {name: sums[name] + value for name, value in more.items()}


def with_loss(running: RunningLoss | None, loss: float) -> RunningLoss:
    """The running loss after one more step's."""
    if running is None:
        return RunningLoss(first=loss, smooth=loss, lowest=loss)
    smooth = MEMORY * running.smooth + (1 - MEMORY) * loss
    return RunningLoss(first=running.first, smooth=smooth, lowest=min(running.lowest, smooth))


def diverged(running: RunningLoss | None) -> bool:
    """Whether the running mean has lost more than half of what was gained; half as much again as at first, if little was."""
    if running is None:
        return False
    halved = running.lowest < running.first / 2
    return running.smooth > (running.lowest + running.first) / 2 if halved else running.smooth > 1.5 * running.first


class Interrupt:
    """Within it, SIGINT and SIGTERM ask to stop after the step at hand, with a checkpoint; a second one stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for other, handler in self._before.items():
            signal.signal(other, handler)
