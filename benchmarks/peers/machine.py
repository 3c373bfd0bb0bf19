"""The machine under the clock: what it is, how fast it reads, and how busy others kept it (Linux)."""

import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

TELLING = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def described(threads: int) -> dict[str, Any]:
    """Processor, what it computes in, memory, read bandwidth with `threads`."""
    info = Path("/proc/cpuinfo").read_text()
    flags = next(line for line in info.splitlines() if line.startswith("flags")).split()
    return {
        "processor": next(line for line in info.splitlines() if line.startswith("model name")).split(": ")[1],
        "cores": len(os.sched_getaffinity(0)), "threads": threads, "instructions": sorted(TELLING & set(flags)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "read_bytes_per_s": _read_bytes_per_s(threads),
    }  # fmt: skip


def _read_bytes_per_s(threads: int) -> float:
    """The best of some sums over more than caches hold."""
    torch.set_num_threads(threads)
    values, best = torch.ones(1 << 27), 0.0
    for _ in range(7):
        start = time.perf_counter()
        values.sum()
        best = max(best, values.nbytes / (time.perf_counter() - start))
    return best


class Busy(NamedTuple):
    """Processor seconds so far: of the whole machine (and what its host withheld), and of some processes."""

    at: float
    all_s: float
    own_s: float

    @classmethod
    def read(cls, pids: list[int]) -> "Busy":
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]  # less idle and iowait
        return cls(time.perf_counter(), busy * TICK_S, sum(cpu_s(pid) for pid in pids))

    def foreign_since(self, before: "Busy") -> float:
        """The share of the machine that others took."""
        foreign_s = (self.all_s - before.all_s) - (self.own_s - before.own_s)
        return max(0.0, foreign_s / (self.at - before.at) / (os.cpu_count() or 1))


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def with_children(pid: int) -> list[int]:
    """A process and those that it started, which work for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]
