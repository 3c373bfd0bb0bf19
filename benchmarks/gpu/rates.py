"""The device's ceilings: bytes per second of a copy and of a triad, FLOP/s of matrix products on random data."""

import torch
from bench import Step, machine

from foredraft.hardware import matmul_rate, seconds, synchronize

BYTES = {"cuda": 2**32, "cpu": 2**26}  # of each array: beyond any cache
REPEATS = 10


def run(step: Step) -> None:
    step.record("machine", machine(step.device))
    step.record("memory", memory_rates(step.device))
    for dtype in ("bfloat16", "float32"):
        step.attempt(
            f"matrix products {dtype}", lambda dtype=dtype: {"flops_per_s": matmul_rate(step.device, dtype)}, 2
        )


def memory_rates(device: torch.device) -> dict[str, float]:
    """Bytes per second, read and written ones both counted: b ← a, and c ← a + s·b."""
    size = BYTES[device.type] // 4
    a, b, c = (torch.rand(size, device=device) for _ in range(3))
    works = {"copy": (2, lambda: b.copy_(a)), "triad": (3, lambda: torch.add(a, b, alpha=0.5, out=c))}
    rates = {}
    for name, (arrays, work) in works.items():
        work()
        synchronize(device)
        rates[f"{name}_bytes_per_s"] = arrays * 4 * size / min(seconds(work, device, REPEATS))
    return rates
