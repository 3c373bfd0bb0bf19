"""Optimisers, and the learning rate by step.

Promises: the rate is a function of the step alone; weights of one dimension do not decay. Refuses to know: losses, devices.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foredraft.recipe import Recipe, Stage

ADAM_EPS = 1e-8
MUON_MATCH = "match_rms_adamw"  # updates as large as AdamW's, so that one learning rate serves both (arXiv 2502.16982)


def rate(stage: Stage, step: int) -> float:
    """The learning rate of step `step`, counted from 0: it rises over `warmup`, and falls as the schedule has it."""
    rising = math.ceil(stage.warmup * stage.steps)
    if step < rising:
        return stage.learning_rate * (step + 1) / rising
    return stage.learning_rate * _fallen(stage, (step + 1 - rising) / max(1, stage.steps - rising))


def _fallen(stage: Stage, done: float) -> float:
    """The share of the peak once `done` of the steps after the warm-up are taken."""
    if stage.schedule == "cosine":
        return stage.final + (1 - stage.final) * (1 + math.cos(math.pi * done)) / 2
    if stage.schedule == "wsd" and stage.cooldown:
        return 1 - (1 - stage.final) * max(0.0, (done - 1) / stage.cooldown + 1)
    return 1.0


def optimisers_of(trained: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW (arXiv 1711.05101) for all, or Muon (Jordan et al. 2024) for the layers' matrices and AdamW for the rest."""
    parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    hidden = {name for name, p in parameters.items() if recipe.optimiser == "muon" and _is_hidden(name, p)}
    by_adamw = [p for name, p in parameters.items() if name not in hidden]
    groups = [
        {"params": [p for p in by_adamw if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in by_adamw if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=recipe.betas, eps=ADAM_EPS, fused=True)
    ]
    if hidden:
        matrices = [parameters[name] for name in parameters if name in hidden]
        muon = CpuMuon if matrices[0].device.type == "cpu" else torch.optim.Muon
        optimisers.append(muon(matrices, lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn=MUON_MATCH))
    return optimisers


class CpuMuon(torch.optim.Muon):
    """torch's Muon with its Newton-Schulz iteration in float32: a CPU without bfloat16 units takes over ten times as long in bfloat16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for matrix in (p for p in group["params"] if p.grad is not None):
                state = self.state[matrix]
                average = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(
                    matrix.grad.lerp(average, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])  # MUON_MATCH


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The matrix with singular values near 1, by steps of the odd polynomial with these coefficients (Jordan et al. 2024)."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Matrices between hidden states: neither embeddings nor an LM head, whose rows are tokens."""
    return parameter.dim() == 2 and "embed" not in name and "lm_head" not in name


def set_rate(optimisers: list[torch.optim.Optimizer], value: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = value


def scale_gradients(trained: nn.Module, by: float, clip: float) -> float:
    """Multiply gradients by `by`, then shorten them to a norm of `clip`, in one pass; returns the norm in between."""
    gradients = [p.grad for p in trained.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    value = by * float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    factor = by * min(1.0, clip / (value + 1e-6))
    torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
        [g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor
    )
    return value


def state_of(trained: nn.Module, optimisers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimisers' state, named "parameter|what"; none before the first step."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trained.named_parameters()}
    for optimiser in optimisers:
        for parameter, state in optimiser.state.items():
            for what, tensor in state.items():
                yield f"{names[parameter]}|{what}", tensor


def begin(trained: nn.Module, optimisers: list[torch.optim.Optimizer]) -> None:
    """Make the state that the first step would make, so that a checkpoint's can be put in its place."""
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimisers, 0.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
