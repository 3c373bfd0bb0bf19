"""Passes captured once and replayed: on a GPU a small model's pass costs its kernels' launches, and a CUDA graph is one launch.

Promises: the output of the model itself; shapes that come up often are captured, everything else runs as it is. An
output lives until the next pass of any shape: copy what must last. Refuses to know: sampling, scheduling.

The number of sequences is rounded up, so that a batch that empties meets few shapes: the rows of the cache behind those of the
pass must be free, since the rows added write their slot 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.models.cache import KVCache
from foredraft.models.forward import Output

MOST_TOKENS = 128  # of a sequence in a pass: more is a prompt, which comes in too many lengths
MOST_GRAPHS = 512
NARROWEST = 256  # slots read; masks are widened to a power of two times this, so that few widths come up

Capture = Callable[[Callable[[], Output]], Callable[[], Output]]


def captured(compute: Callable[[], Output], pool: Any = None) -> Callable[[], Output]:
    """A CUDA graph of `compute`, which must read and write the same memory every time. Graphs of one `pool` share what they
    need in between, and so each may overwrite the others' outputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in a first run, which must not be captured
        compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = compute()

    def replay() -> Output:
        graph.replay()
        return output

    return replay


class Graphed:
    """A decoder or draft head whose passes through a cache are captured. `capture` None: they are not (a CPU). `rounds`: whether
    the number of sequences is rounded up, as where passes are captured."""

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        on_gpu = next(model.parameters()).device.type == "cuda"
        self.model, self.rounds = model, on_gpu or capture is not None
        self.capture = capture or (partial(captured, pool=torch.cuda.graph_pool_handle()) if on_gpu else None)
        self.graphs: dict[tuple[Any, ...], tuple[list[Tensor], Callable[[], Output]]] = {}

    def __call__(
        self, *inputs: Tensor, cache: KVCache, slots_BT: Tensor, mask_BTS: Tensor, logits: Any = "all", **options: Any
    ) -> Output:
        """`inputs` are tokens, a head's hidden states, positions: what stands before the cache in the model's arguments."""
        batch, tokens = inputs[0].shape[:2]
        assert len(mask_BTS) == batch, (mask_BTS.shape, batch)
        if not self.rounds or tokens > MOST_TOKENS:
            return self.model(*inputs, cache, slots_BT, mask_BTS, logits=logits, **options)
        rows = (logits,) if isinstance(logits, Tensor) else ()
        wide = cache.widened(rounded(batch))
        arguments = [
            _with_rows(x, wide.batch - batch) for x in (*inputs, slots_BT, widened(mask_BTS, cache.slots), *rows)
        ]
        if wide.batch > batch:
            arguments[len(inputs) + 1][batch:, :, 0] = True  # a row must see something
        output = self._run(arguments, len(inputs), wide, None if rows else logits, options)
        return output if wide.batch == batch else _first(output, batch)

    def _run(self, arguments: list[Tensor], num: int, cache: KVCache, where: Any, options: dict[str, Any]) -> Output:
        """By the graph of these shapes, captured where there is none yet; as it is where there are too many."""
        key = (
            cache.kv.data_ptr(),
            cache.batch,
            where,
            *options.items(),
            *((tuple(x.shape), x.dtype) for x in arguments),
        )
        if self.capture is None or (key not in self.graphs and len(self.graphs) == MOST_GRAPHS):
            return self._pass(arguments, num, cache, where, options)()
        if key not in self.graphs:
            static = [x.clone() for x in arguments]
            self.graphs[key] = static, self.capture(self._pass(static, num, cache, where, options))
        static, replay = self.graphs[key]
        for buffer, value in zip(static, arguments, strict=True):
            buffer.copy_(value)
        return replay()

    def _pass(
        self, arguments: list[Tensor], num: int, cache: KVCache, where: Any, options: dict[str, Any]
    ) -> Callable[[], Output]:
        inputs, (slots, mask, *rows) = arguments[:num], arguments[num:]
        return lambda: self.model(*inputs, cache, slots, mask, logits=rows[0] if rows else where, **options)


def rounded(batch: int) -> int:
    """To 1, 2, 4, 8, 12, 16, 24, 32, …, by 60 % at most."""
    size = 1
    while size < batch:
        size *= 2
    return size * 3 // 4 if size >= 16 and batch <= size * 3 // 4 else size


def _with_rows(x: Tensor, num: int) -> Tensor:
    """With `num` rows of zeros below."""
    return x if num == 0 else F.pad(x, (0, 0) * (x.dim() - 1) + (0, num))


def _first(output: Output, batch: int) -> Output:
    """The output of the first `batch` sequences."""
    logits, final, pre_norm, hidden_states = output
    return Output(
        None if logits is None else logits[:batch],
        final[:batch],
        pre_norm[:batch],
        tuple(x[:batch] for x in hidden_states),
    )


def widened(mask_BTS: Tensor, slots: int) -> Tensor:
    """The mask over NARROWEST · 2^n slots or all there are; nothing more is seen."""
    width = NARROWEST
    while width < mask_BTS.shape[-1]:
        width *= 2
    return F.pad(mask_BTS, (0, min(width, slots) - mask_BTS.shape[-1]))
