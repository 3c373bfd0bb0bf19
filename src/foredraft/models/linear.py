"""Matrix times few rows, which is what decoding does all day.

On a CPU our own kernels multiply (kernels.py). Where they cannot be had, in float32 the weight goes on the left, W·xᵀ with at
least two columns: on Intel's processors the library's kernels for that read memory two to five times as fast as those for
x·Wᵀ with up to 8 rows, and no slower up to 64 (docs/log.md).

Promises: the value of `F.linear`, up to rounding. Refuses to know: what the matrix is for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.models import kernels
from foredraft.models.eight_bits import EightBits

FEW_ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, eight: EightBits | None = None) -> Tensor:
    """x·Wᵀ + b over the last axis of `x`, [..., in] to [..., out]. `eight`: the weight in eight bits, which our kernels then read."""
    if kernels.fits_linear(x, weight):
        return kernels.linear(x, weight, bias, eight)
    rows = x.numel() // x.shape[-1]
    learning = torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)
    if learning or not 0 < rows <= FEW_ROWS or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    product = (weight @ (flat.repeat(2, 1) if rows == 1 else flat).T).T[:rows]
    return (product if bias is None else product + bias).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`. `stored_eight`: the weight as its file has it, where that is in eight bits."""

    stored_eight: EightBits | None = None

    @property
    def eight(self) -> EightBits | None:
        """The weight in eight bits while it is what was stored: one that learns is no more."""
        return None if self.weight.requires_grad else self.stored_eight

    @property
    def stored(self) -> kernels.StoredMatrix:
        return kernels.StoredMatrix(self.weight, self.eight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.eight)
