"""The key/value cache: one tensor of fixed size that passes write into and never grow.

Promises: a pass writes only the slots it is given, and `compact` keeps accepted rows in order. Refuses to know: which
slots are in use, and by whom; that is the engine's book-keeping, and the mask's.
"""

import math

import torch
from torch import Tensor

from foredraft.hardware import memory_bytes
from foredraft.models import pages
from foredraft.shapes import Shape


class KVCache:
    """Keys and values, `kv` [layers, 2, B, K, S, D].

    Zeros at first, because a masked slot still enters the weighted sum as 0 × value and must not hold a NaN. Padding
    tokens may share any slot that no query sees, but each must itself see a slot, for the same reason.
    """

    def __init__(self, kv: Tensor, room: Tensor | None = None, places: Tensor | None = None) -> None:
        """`room`: these rows and all behind them, in the same memory; `kv` itself where nothing lies behind. `places` [R]: the row that each
        of R sequences of a pass reads and writes, which several may share; None: in order.
        """
        assert kv.dim() == 6, f"kv must be [layers, 2, B, K, S, D], got {tuple(kv.shape)}"
        assert kv.shape[1] == 2, f"kv must hold keys and values, got {tuple(kv.shape)}"
        self.kv, self._room, self.places = kv, kv if room is None else room, places

    @property
    def _rows_B1(self) -> Tensor:
        return (torch.arange(self.batch, device=self.kv.device) if self.places is None else self.places)[:, None]

    @property
    def batch(self) -> int:
        return self.kv.shape[2] if self.places is None else len(self.places)

    @property
    def slots(self) -> int:
        return self.kv.shape[4]

    @property
    def num_bytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()

    def rows(self, start: int, stop: int) -> "KVCache":
        """Sequences `start` to `stop` as a cache of their own in the same memory, to prefill some while others wait."""
        return KVCache(self.kv[:, :, start:stop], self._room[:, :, start:])

    def widened(self, batch: int) -> "KVCache":
        """The same rows and those behind them, `batch` in all or as many as there are."""
        return KVCache(self._room[:, :, :batch], self._room)

    def of_rows(self, places_R: Tensor) -> "KVCache":
        """R sequences of a pass in these rows, such as single tokens of sequences that have different numbers of them."""
        return KVCache(self.kv, places=places_R)

    def write(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of T tokens at their slots; give the layer's whole keys and values, [B, K, S, D]."""
        assert slots_BT.shape == (self.batch, k_BKTD.shape[2]), (slots_BT.shape, self.batch, k_BKTD.shape)
        assert not k_BKTD.requires_grad, "this cache is for inference: run under torch.no_grad()"
        keys, values = self.kv[layer, 0], self.kv[layer, 1]
        if keys.is_cuda and self.places is None:  # two launches instead of six
            index = slots_BT[:, None, :, None].expand(k_BKTD.shape)
            return keys.scatter_(2, index, k_BKTD), values.scatter_(2, index, v_BKTD)
        keys[self._rows_B1, :, slots_BT] = k_BKTD.transpose(1, 2)
        values[self._rows_B1, :, slots_BT] = v_BKTD.transpose(1, 2)
        return (keys, values) if self.places is None else (keys[self.places], values[self.places])

    def copy_row(self, source: int, row: int, slots: int) -> None:
        """Copy the first `slots` slots of a sequence to another's; what lies behind stays, and was never in use in most."""
        self.kv[:, :, row, :, :slots] = self.kv[:, :, source, :, :slots]

    def move(self, source_BR: Tensor, target_BR: Tensor) -> None:
        """Copy slots `source_BR` to `target_BR` in all layers; all are read before any is written."""
        assert source_BR.shape == target_BR.shape, (source_BR.shape, target_BR.shape)
        self.kv[:, :, self._rows_B1, :, target_BR] = self.kv[:, :, self._rows_B1, :, source_BR]

    def compact(self, keep_BR: Tensor, start_B: Tensor) -> None:
        """Slot `keep_BR[b, i]` moves to `start_B[b] + i`; −1 pads a row on the right where less was accepted.

        `start_B` is the number of slots that stay as they are. No value is read back, so the pass stays asynchronous:
        padding repeats the row's last move, and a row that keeps nothing copies slot 0 onto itself.
        """
        assert keep_BR.shape[0] == start_B.shape[0] == self.batch, (keep_BR.shape, start_B.shape, self.batch)
        if keep_BR.shape[1] == 0:
            return
        count_B1 = (keep_BR >= 0).sum(dim=1, keepdim=True)
        order_BR = torch.arange(keep_BR.shape[1], device=keep_BR.device).minimum((count_B1 - 1).clamp(min=0))
        target_BR = torch.where(count_B1 > 0, start_B[:, None] + order_BR, 0)
        self.move(keep_BR.gather(1, order_BR).clamp(min=0), target_BR)


def new_cache(
    shape: Shape, batch: int, slots: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> KVCache:
    """A cache for `batch` sequences of `slots` slots each: the longest context, plus the nodes of one draft tree."""
    if batch < 1 or slots < 1:
        raise ValueError(f"a cache needs batch and slots of at least 1, got {batch} and {slots}")
    size = (shape.num_layers, 2, batch, shape.num_kv_heads, slots, shape.head_dim)
    needed, memory = math.prod(size) * dtype.itemsize, memory_bytes(torch.device(device))
    if needed > memory:
        raise ValueError(
            f"a cache for {batch} sequences of {slots:,} tokens needs {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}; "
            "lower --batch or --context"
        )
    return KVCache(pages.zeros([size], dtype, device)[0])
