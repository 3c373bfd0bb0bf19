"""What the loop trains: a module and a loss summed over tokens. Language models and draft heads both are one of these.

Promises: sums, never means, so that any split of a batch into micro-batches and ranks gives one update.
Refuses to know: optimisers, schedules, checkpoints, devices.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from foredraft.data.tokens import Batch
from foredraft.teacher.acceptance import acceptance


class Loss(NamedTuple):
    """`total`: scalar, the loss summed over counted tokens, differentiable. `weight`: scalar, how many were counted.

    `terms`: further sums over the same tokens for the log, detached; the loop divides them by the summed `weight`.
    """

    total: Tensor
    weight: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """A thing to train. The loop calls `loss` under its autocast and owns gradients, optimiser and state.

    `trained` is what the optimiser sees and a checkpoint holds: float32, all of it `requires_grad`. `frozen` is what else
    computes (a target), or None; the loop may shard it, so it is only ever called as a module. `flops_per_token` are the
    training FLOPs of one token in a batch: forward and backward of `trained`, forward of `frozen`.
    """

    flops_per_token: float

    @property
    def trained(self) -> nn.Module: ...

    @property
    def frozen(self) -> nn.Module | None: ...

    def compile(self) -> None:
        """Put torch.compile where it pays; called once, before anything else."""
        ...

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of one micro-batch, on the batch's device; `step` counts optimiser steps from 0 (it may seed noise)."""
        ...

    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over one held-out batch, scalars or vectors, without gradient; the loop adds them over batches and ranks."""
        ...

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """What the added sums of `held_out` say. It has "loss", lower is better, which marks the best checkpoint."""
        ...

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write what serves: Hugging Face's or the draft head's format. `state` is the whole state of `trained`."""
        ...


def acceptance_figures(sums: dict[str, Tensor]) -> dict[str, float]:
    """What sums of `acceptance.tally` say: the acceptance length (τ) with its 90 % interval and survival by position."""
    figures = acceptance(sums)
    length = figures.tokens_per_step
    return {
        "tokens_per_step": length.value, "tokens_per_step_low": length.low, "tokens_per_step_high": length.high,
        **{f"survival_{i}": value for i, value in enumerate(figures.survival, 1)},
    }  # fmt: skip
