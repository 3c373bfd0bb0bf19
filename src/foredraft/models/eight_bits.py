"""Matrices in eight bits, a scale for each row: what a draft may be stored and read in, since its target judges whatever it drafts.

On file they are compressed-tensors' int-quantized: `NAME` int8 [out, in] and `NAME_scale` float32 [out, 1], and config.json says so.
Promises: what is read back is what was written, to the bit. Refuses to know: which models are drafts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCALE = "_scale"
LARGEST = 127


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
    """A folder's tensors, weights in `dtype`, where int8 stands for matrices in eight bits and all others in bfloat16. Copies, since two
    names may share memory; maps and masks keep their type.
    """
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype == torch.int8 and tensor.dim() == 2 and tensor.is_floating_point():
            eight = EightBits.of(tensor)
            copies |= {name: eight.values, name + SCALE: eight.scale[:, None]}
        else:
            of = torch.bfloat16 if dtype == torch.int8 else dtype
            copies[name] = tensor.to(of if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
    return copies


def config_keys(dtype: torch.dtype, key: str) -> dict[str, Any]:
    """What config.json says of weights so stored; `key`: what it calls their type."""
    if dtype != torch.int8:
        return {key: str(dtype).removeprefix("torch.")}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    method = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed", "ignore": [],
        "config_groups": {"group_0": {"targets": ["Linear", "Embedding"], "weights": weights}},
    }  # fmt: skip
    return {key: "bfloat16", "quantization_config": method}
