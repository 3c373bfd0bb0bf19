"""This device: its memory, how fast it reads and writes it and multiplies matrices (the ceiling that MFU is a share of).

Promises: measured here and now, the device waited for, memory over a tensor that no cache holds. Refuses to know: models.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

SWEPT_BYTES = 2**28  # a tensor well beyond any cache
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}  # of the largest square matrix, past the cost of a launch
MATMUL_S, MATMUL_WARMUPS = 0.2, 2  # seconds to measure for, and products before

_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes(device: torch.device) -> float:
    """Of the accelerator, or what this process may have of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    machine_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return min(machine_bytes, float(limit)) if limit.isdigit() else machine_bytes


def read_rate(device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes per second that this machine reads from memory: the best of several sums over a tensor that no cache holds."""
    data = torch.ones(SWEPT_BYTES // 4, device=device)
    return SWEPT_BYTES / min(seconds(lambda: data.sum(), data.device, repeats))


def write_rate(device: torch.device | str = "cpu", repeats: int = 7) -> float:
    """Bytes per second that this machine writes to memory: the best of several fillings of such a tensor."""
    data = torch.ones(SWEPT_BYTES // 4, device=device)
    return SWEPT_BYTES / min(seconds(lambda: data.fill_(2.0), data.device, repeats))


def matmul_rate(device: torch.device, dtype: str) -> float:
    """FLOP/s of square matrix products in "bfloat16", "float16" or "float32" on one device: the best of those timed.

    Of the largest size that does not outlast the measurement: a processor without bfloat16 takes seconds for one of 1,024.
    """
    largest = MATMUL_SIZE.get(device.type, MATMUL_SIZE["cuda"])
    size, product = 0, partial(torch.mm)
    for size in (largest // 8, largest // 4, largest // 2, largest):
        x = torch.rand(size, size, device=device).to(
            getattr(torch, dtype)
        )  # of ones a GPU would draw less power and run faster
        product = partial(torch.mm, x, x)
        if min(seconds(product, device, MATMUL_WARMUPS)) > MATMUL_S:
            break
    times: list[float] = []
    while sum(times) < MATMUL_S:
        times += seconds(product, device, 1)
    return 2 * size**3 / min(times)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall time of each of `repeats` runs of `work`, from an idle device to an idle device."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def synchronize(device: torch.device) -> None:
    """Wait for a device that works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
