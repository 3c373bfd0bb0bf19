"""Memory in huge pages, where the system gives them: for weights and caches, which every pass reads from end to end.

With pages of 4 kB a fifth of the time of reading goes into finding them (docs/log.md). Refuses to know: what lies there.
"""

import itertools
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

LINE = 64  # bytes that memory gives at once


def zeros(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """Tensors of zeros; on a CPU of Linux one behind another in one stretch of memory, each from a line of its own on."""
    if torch.device(device).type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    sizes = [-(-math.prod(shape) * dtype.itemsize // LINE) * LINE for shape in shapes]
    stretch = mmap.mmap(-1, max(sum(sizes), LINE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that has none
        stretch.madvise(mmap.MADV_HUGEPAGE)
    starts = itertools.accumulate(sizes, initial=0)
    return [
        torch.frombuffer(stretch, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
        for shape, start in zip(shapes, starts, strict=False)
    ]
