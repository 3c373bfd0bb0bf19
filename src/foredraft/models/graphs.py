"""Passes captured once and replayed: on a GPU a small model's pass costs its kernels' launches, and a CUDA graph is one launch.

Promises: the output of the model itself; shapes that come up often are captured, everything else runs as it is. An
output lives until the next pass of its shape: copy what must last. Refuses to know: sampling, scheduling.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foredraft.models.cache import KVCache
from foredraft.models.forward import Output

MOST_TOKENS = 128  # of a sequence in a pass: more is a prompt, which comes in too many lengths
MOST_GRAPHS = 256
NARROWEST = 256  # slots read; masks are widened to a power of two times this, so that few widths come up

Capture = Callable[[Callable[[], Output]], Callable[[], Output]]


def captured(compute: Callable[[], Output]) -> Callable[[], Output]:
    """A CUDA graph of `compute`, which must read and write the same memory every time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in a first run, which must not be captured
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()

    def replay() -> Output:
        graph.replay()
        return output

    return replay


class Graphed:
    """A decoder or draft head whose passes through a cache are captured. `capture` None: they are not (a CPU)."""

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        on_gpu = next(model.parameters()).device.type == "cuda"
        self.model, self.capture = model, capture or (captured if on_gpu else None)
        self.graphs: dict[tuple[Any, ...], tuple[list[Tensor], Callable[[], Output]]] = {}

    def __call__(
        self, *inputs: Tensor, cache: KVCache, slots_BT: Tensor, mask_BTS: Tensor, logits: Any = "all", **options: Any
    ) -> Output:
        """`inputs` are tokens, a head's hidden states, positions: what stands before the cache in the model's arguments."""
        tokens = inputs[0]
        if self.capture is None or tokens.shape[1] > MOST_TOKENS:
            return self.model(*inputs, cache, slots_BT, mask_BTS, logits=logits, **options)
        rows = (logits,) if isinstance(logits, Tensor) else ()
        arguments = [*inputs, slots_BT, widened(mask_BTS, cache.slots), *rows]
        where = None if rows else logits
        key = (
            cache.kv.data_ptr(),
            cache.batch,
            where,
            *options.items(),
            *((tuple(x.shape), x.dtype) for x in arguments),
        )
        if key not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                return self.model(*inputs, cache, slots_BT, mask_BTS, logits=logits, **options)
            self.graphs[key] = self._new(arguments, len(inputs), cache, where, options)
        static, replay = self.graphs[key]
        for buffer, value in zip(static, arguments, strict=True):
            buffer.copy_(value)
        return replay()

    def _new(
        self, arguments: list[Tensor], num: int, cache: KVCache, where: Any, options: dict[str, Any]
    ) -> tuple[list[Tensor], Callable[[], Output]]:
        static = [x.clone() for x in arguments]
        inputs, (slots, mask, *rows) = static[:num], static[num:]
        assert self.capture is not None
        return static, self.capture(
            lambda: self.model(*inputs, cache, slots, mask, logits=rows[0] if rows else where, **options)
        )


def widened(mask_BTS: Tensor, slots: int) -> Tensor:
    """The mask over NARROWEST · 2^n slots or all there are; nothing more is seen."""
    width = NARROWEST
    while width < mask_BTS.shape[-1]:
        width *= 2
    return torch.nn.functional.pad(mask_BTS, (0, min(width, slots) - mask_BTS.shape[-1]))
