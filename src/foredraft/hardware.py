"""How fast a device reads and writes its memory.

Promises: over a tensor that no cache holds, the device waited for. Refuses to know: models.
"""

import time
from collections.abc import Callable

import torch

SWEPT_BYTES = 2**28  # a tensor well beyond any cache


def read_rate(device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes per second that this machine reads from memory: the best of several sums over a tensor that no cache
    holds.
    """
    data = torch.ones(SWEPT_BYTES // 4, device=device)
    return SWEPT_BYTES / min(seconds(lambda: data.sum(), data.device, repeats))


def write_rate(device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes per second that this machine writes to memory: the best of several fillings of such a tensor."""
    data = torch.ones(SWEPT_BYTES // 4, device=device)
    return SWEPT_BYTES / min(seconds(lambda: data.fill_(2.0), data.device, repeats))


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall time of each of `repeats` runs of `work`, from an idle device to an idle device."""
    took = []
    for _ in range(repeats):
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        took.append(time.perf_counter() - start)
    return took


def settle(device: torch.device) -> None:
    """Wait for a device that works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
