"""One process per device, as torchrun, accelerate or a job manager starts them, and what they have in common.

Copies (DDP) or shards (FSDP2, `fully_shard`) of what is trained; shards of what is frozen. Gradients come out as the mean
over processes either way, so sums need a factor `world`.

Promises: one process needs no process group; state that leaves here is whole and on the CPU. Refuses to know: losses,
optimisers.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from foredraft.data.tokens import Batch
from foredraft.models.layers import FusionLayer, Layer
from foredraft.train.batches import Process
from foredraft.train.objective import Loss, Objective

PATIENCE = timedelta(minutes=30)  # for the slowest process, say one that compiles


class Devices:
    """This process among `world`. `shard`: spread weights, gradients and optimiser state instead of copying them."""

    def __init__(self, rank: int = 0, world: int = 1, device: str | torch.device = "cpu", shard: bool = False) -> None:
        self.rank, self.world, self.device, self.shard = rank, world, torch.device(device), shard

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def prepare(self, objective: Objective) -> "SharedLoss":
        """Move the objective to the device and spread it; call what comes back for a loss whose backward is shared."""
        for module in (objective.trained, objective.frozen):
            if module is not None:
                module.to(self.device)
        if self.world > 1 and self.shard:
            for module in (objective.trained, objective.frozen):
                if module is not None:
                    _shard(module)
        return SharedLoss(objective, self)

    @property
    def place(self) -> Process:
        return Process(self.rank, self.world, self.device.type, self.shard)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, error: str | None) -> None:
        """Raise on every process what the first one met, so that none waits for it for ever."""
        errors: list[Any] = [error]
        if self.world > 1:
            dist.broadcast_object_list(errors, src=0, device=self.device)
        if errors[0] is not None:
            raise ValueError(errors[0])


class SharedLoss:
    """The loss, called so that its backward is shared among devices: as one module's forward pass, where DDP hooks in."""

    def __init__(self, objective: Objective, devices: Devices) -> None:
        inner = _Inside(objective)
        copies = devices.world > 1 and not devices.shard
        self.run: nn.Module = DistributedDataParallel(inner) if copies else inner
        self.modules = (objective.trained, objective.frozen)

    def __call__(self, batch: Batch, step: int) -> Loss:
        return self.run(batch, step)

    def reshard(self) -> None:
        """Back to shards after a forward without a backward, which would have seen to that."""
        for module in self.modules:
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def alone(self, local: bool) -> Iterator[None]:
        """Where `local`, gradients add up on this process and are not shared yet."""
        trained = self.modules[0]
        if isinstance(trained, FSDPModule):
            trained.set_requires_gradient_sync(not local)
        copies = self.run if isinstance(self.run, DistributedDataParallel) else None
        with copies.no_sync() if copies is not None and local else nullcontext():
            yield


class _Inside(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.trained, self._objective = objective.trained, (objective,)

    def forward(self, batch: Batch, step: int) -> Loss:
        return self._objective[0].loss(batch, step)


@contextmanager
def started(device: str, shard: bool = False) -> Iterator[Devices]:
    """The devices of this launch: `device` is "cpu" or "cuda". Reads what torchrun sets: RANK, LOCAL_RANK, WORLD_SIZE."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if world == 1:
        yield Devices(0, 1, device, False)
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Devices(dist.get_rank(), world, device, shard)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _shard(module: nn.Module) -> None:
    """Layer by layer, then the rest, which stays whole from forward to backward: the loss reads the LM head in between."""
    for part in module.modules():
        if isinstance(part, Layer | FusionLayer):
            fully_shard(part)
    fully_shard(module, reshard_after_forward=False)


def gathered(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Every tensor gathered, on the CPU where `keep`, else empty: all processes must call, one needs the memory."""
    tensors = {}
    for name, tensor in state.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            tensors[name] = full.detach().to("cpu", copy=True)
    return tensors


@torch.no_grad()
def fill(into: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those in use, sharded or not; names must be the same."""
    for name, tensor in into.items():
        source = state[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            source = distribute_tensor(source, tensor.device_mesh, tensor.placements)
        tensor.copy_(source)
