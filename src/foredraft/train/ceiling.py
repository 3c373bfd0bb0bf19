"""What this device can do at best: the rate of one large matrix product, the ceiling that MFU is a share of.

Promises: measured here and now, in the type that training multiplies in. Refuses to know: models.
"""

import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192}  # of a square matrix, past the cost of a launch
SECONDS, WARM = 0.2, 2  # to measure for, and tries before


def ceiling(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products in "bfloat16" or "float32" on one device: the best of a few."""
    size = SIZES.get(device.type, SIZES["cuda"])
    x = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    for _ in range(WARM):
        _time(x)
    took: list[float] = []
    while sum(took) < SECONDS:
        took.append(_time(x))
    return 2 * size**3 / min(took)


def _time(x: torch.Tensor) -> float:
    _finish(x.device)
    began = time.perf_counter()
    torch.mm(x, x)
    _finish(x.device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
