"""Number formats of weights and caches: bytes with their block scales, what a machine multiplies them in, their names.

Promises: the one place that knows a format. Refuses to know: which layers are stored in it (`quantised` reads that).
"""

import math
import re
from collections.abc import Collection
from functools import cache
from typing import NamedTuple


class NumberFormat(NamedTuple):
    """`bits` of a value; a scale of `scale_bits` (with a zero point, where there is one) for each block of `inputs` × `outputs` weights,
    0 being all of them; the arithmetic types that engines multiply it in, the preferred first.
    """

    bits: float
    compute: tuple[str, ...]
    scale_bits: float = 0.0
    inputs: int = 0
    outputs: int = 0


_SIXTEEN = ("bfloat16", "float16", "float32")
_FP8 = ("fp8", *_SIXTEEN)  # weight-only kernels (Marlin) where a machine has no FP8
_FP4 = ("fp4", *_SIXTEEN)
# Sources: DeepSeek-V3's README_WEIGHTS (a float32 scale for each 128 × 128; V4's are one byte, E8M0), the OCP MX specification (E8M0 for 32
# values), NVIDIA's NVFP4 (an E4M3 scale for 16 values and one for the tensor), AutoAWQ and GPTQ (float16 scale and 4-bit zero point for
# 128 inputs), bitsandbytes' NF4 (float32 for 64 values), compressed-tensors (16-bit scales, symmetric).
FORMATS: dict[str, NumberFormat] = {
    "float32": NumberFormat(32, ("float32",)),
    "float16": NumberFormat(16, ("float16", "bfloat16", "float32")),
    "bfloat16": NumberFormat(16, _SIXTEEN),
    "fp8": NumberFormat(8, _FP8, 32),
    "fp8-channel": NumberFormat(8, _FP8, 32, 0, 1),
    "fp8-block": NumberFormat(8, _FP8, 32, 128, 128),
    "fp8-block-ue8m0": NumberFormat(8, _FP8, 8, 128, 128),
    "mxfp8": NumberFormat(8, _FP8, 8, 32, 1),
    "int8": NumberFormat(8, ("int8", *_SIXTEEN), 32, 0, 1),
    "int4": NumberFormat(4, _SIXTEEN, 20, 128, 1),
    "mxfp4": NumberFormat(4, _FP4, 8, 32, 1),
    "nvfp4": NumberFormat(4, _FP4, 8, 16, 1),
    "fp4": NumberFormat(4, _FP4, 8, 16, 1),  # a machine's rate, and NVFP4 where weights are meant
    "nvfp4-w4a16": NumberFormat(4, _SIXTEEN, 8, 16, 1),
    "nf4": NumberFormat(4, _SIXTEEN, 32, 64, 1),
}
SIXTEEN_BIT = ("bfloat16", "float16")
UNQUANTISED = ("float32", *SIXTEEN_BIT)
_GROUPED = re.compile(r"int([2-8])-g(\d+)")  # weight-only integers with a 16-bit scale for so many inputs


@cache
def number_format(name: str) -> NumberFormat:
    """The format of a name in `FORMATS`, or `int4-g32` and the like. Raises ValueError."""
    if name in FORMATS:
        return FORMATS[name]
    if grouped := _GROUPED.fullmatch(name):
        return NumberFormat(int(grouped[1]), _SIXTEEN, 16, int(grouped[2]), 1)
    raise ValueError(f"dtype must be one of {', '.join(FORMATS)} or int4-g32 and the like, got {name!r}")


def bytes_per_value(name: str) -> float:
    """Bytes of one stored weight of a large matrix, its share of the scales included; of a cache entry for formats without blocks."""
    form = number_format(name)
    share = 0.0 if 0 in (form.inputs, form.outputs) else form.scale_bits / (form.inputs * form.outputs)
    return (form.bits + share) / 8


def matrix_bytes(name: str, inputs: int, outputs: int) -> float:
    """Bytes of a stored matrix with its scales."""
    form = number_format(name)
    scales = math.ceil(inputs / (form.inputs or inputs)) * math.ceil(outputs / (form.outputs or outputs))
    return (inputs * outputs * form.bits + scales * form.scale_bits) / 8


def compute_dtype(name: str, rates: Collection[str] | None = None) -> str:
    """What weights of this format are multiplied in, on a machine that has `rates` (any, by default). Raises ValueError."""
    preferred = number_format(name).compute
    for dtype in preferred:
        if rates is None or dtype in rates:
            return dtype
    raise ValueError(
        f"dtype {name} needs a rate for {' or '.join(preferred)}, and the machine has {', '.join(rates or ())}"
    )
