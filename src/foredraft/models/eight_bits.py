"""Matrices in eight bits, a scale for each row: what a draft may be stored and read in, since its target judges whatever it drafts.

On file they are compressed-tensors' int-quantized: `NAME` int8 [out, in] and `NAME_scale` float32 [out, 1], and config.json says so; or in
half the bytes (`four_bits`), of which they are made when they are read.
Promises: what is read back is what was written, to the bit. Refuses to know: which models are drafts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foredraft.models import four_bits
from foredraft.shapes.tensors import SCALE

LARGEST = 127
METHODS: dict[torch.dtype, tuple[str, dict[str, Any]]] = {
    torch.int8: ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    four_bits.INT4: (
        "pack-quantized",
        {"num_bits": four_bits.BITS, "strategy": "group", "group_size": four_bits.GROUP},
    ),
}


class EightBits(NamedTuple):
    """Row o of a matrix is `values[o]` (int8 [out, in]) times `scale[o]` (float32 [out])."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "EightBits":
        """The nearest, each row's largest number being ±127."""
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        return cls((weight / scale[:, None]).round().to(torch.int8), scale)

    @property
    def weight(self) -> Tensor:
        """What it stands for, in float32."""
        return self.values.float() * self.scale[:, None]


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A folder's tensors, weights in `dtype`, where int8 and int4 stand for matrices in so few bits and all others in bfloat16. Copies, since
    two names may share memory; maps and masks keep their type.
    """
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype == torch.int8 and tensor.dim() == 2 and tensor.is_floating_point():
            eight = EightBits.of(tensor)
            copies |= {name: eight.values, name + SCALE: eight.scale[:, None]}
        elif dtype == four_bits.INT4 and four_bits.fits(tensor):
            copies |= four_bits.packed(tensor, name)
        else:
            of = torch.bfloat16 if dtype in METHODS else dtype
            copies[name] = tensor.to(of if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
    return copies


def config_keys(dtype: torch.dtype, key: str) -> dict[str, Any]:
    """What config.json says of weights so stored; `key`: what it calls their type."""
    if dtype not in METHODS:
        return {key: str(dtype).removeprefix("torch.")}
    form, how = METHODS[dtype]
    weights = {"type": "int", "symmetric": True, "dynamic": False, **how}
    method = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": [],
        "config_groups": {"group_0": {"targets": ["Linear", "Embedding"], "weights": weights}},
    }  # fmt: skip
    return {key: "bfloat16", "quantization_config": method}
