"""One draft, trained in a process of its own for the time that is there: `python timed_training.py JOB.json`.

The recipe's budgets are a wish: PACE says what they are multiplied by once that is known, and where the time would not do for the rest, so
much less is aimed at, so that every schedule reaches its end. Meanwhile OUT/state.json says how far the run is and how fast.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from foredraft import records
from foredraft.recipe import Recipe, Stage

EVERY_S = 2.0  # between looks at the clock
LAST_S = 8.0  # of the time: the last figures, and the draft written
SAFE = 0.97  # of the steps that the rate allows


class Job(records.Record, frozen=True):
    """`data`: a token folder per stage. `until`: seconds of `time.time()`. `begin`: whether the head begins by passing its target's state on."""

    recipe: Recipe
    data: tuple[str, ...]
    held_out: str
    target: str
    out: str
    pace: str
    until: float
    device: str = "cuda"
    threads: int = 2
    begin: bool = False


class Pace(records.Record, frozen=True):
    """What all budgets are multiplied by."""

    factor: float


class Clock:
    """The budgets of a run's stages, as the pace and the time left have them."""

    def __init__(self, job: Job) -> None:
        self.job, self.factor = job, 1.0
        self.looked, self.tokens, self.rate = time.time(), 0, 0.0

    def look(self, run: Any) -> None:
        """Every few seconds: measure the rate, set the budgets, say so."""
        now, state = time.time(), run.state
        if now - self.looked < EVERY_S or run.stage_steps_left < 2:
            return
        self.rate, self.looked, self.tokens = (state.tokens - self.tokens) / (now - self.looked), now, state.tokens
        path, wished = Path(self.job.pace), self.job.recipe
        if path.is_file():
            self.factor = records.read(Pace, path).factor
        within = state.tokens + SAFE * self.rate * max(self.job.until - LAST_S - now, 0)
        factor = min(self.factor, within / wished.tokens)
        stages = tuple(self._stage(i, stage, factor, run) for i, stage in enumerate(wished.stages))
        run.recipe = msgspec.structs.replace(run.recipe, stages=stages)
        records.write(
            Path(self.job.out) / "state.json",
            {"tokens": state.tokens, "of_tokens": run.recipe.tokens, "tokens_per_s": self.rate},
        )

    def _stage(self, index: int, wished: Stage, factor: float, run: Any) -> Stage:
        """A stage that is over keeps its budget; the one at hand has at least another step."""
        state, step_tokens = run.state, wished.tokens_per_step
        if index < state.stage:
            return run.recipe.stages[index]
        least = (state.stage_step + 1 if index == state.stage else 1) * step_tokens
        return msgspec.structs.replace(wished, tokens=max(wished.tokens * factor, least))


def train(job: Job) -> None:
    import torch

    torch.set_num_threads(job.threads)
    from foredraft.hardware import matmul_rate
    from foredraft.train.devices import Devices
    from foredraft.train.launch import open_data
    from foredraft.train.loop import RECIPE, TrainingRun
    from foredraft.train.objectives import trainee_of
    from foredraft.train.progress import Meter, RunLogger

    began, out, devices = time.time(), Path(job.out), Devices(device=torch.device(job.device))
    data = open_data(job.recipe, [Path(path) for path in job.data], Path(job.held_out))
    objective: Any = trainee_of(job.recipe, Path(job.target)).objective(data, devices, None)
    if job.begin:
        sys.path.append(str(Path(__file__).resolve().parents[2] / "recipes" / "smollm2"))
        from begin import pass_state_on  # type: ignore[import-not-found]

        pass_state_on(objective._head)
    run, clock = TrainingRun(job.recipe, objective, data, out, devices), Clock(job)
    meter = Meter(objective.flops_per_token, matmul_rate(devices.device, job.recipe.precision))
    with RunLogger(out, 0, 0, speaks=True) as logger:
        run.evaluate(logger)
        clock.looked = time.time()
        while run.begin_stage():
            while run.stage_steps_left > 0:
                run.step(meter)
                run.evaluate(logger, meter)
                clock.look(run)
            run.end_stage()
    run.finish()
    records.write(out / RECIPE, run.recipe)
    records.write(
        out / "done.json", {"tokens": run.state.tokens, "seconds": time.time() - began, "training_s": run.state.seconds}
    )


if __name__ == "__main__":
    train(records.read(Job, sys.argv[1]))
