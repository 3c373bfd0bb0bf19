"""Rotary position embedding (arXiv 2104.09864): its frequencies, the rotation.

Promises: the frequencies of transformers' `modeling_rope_utils` for every kind that `shapes.rope` reads. Refuses to know: attention.
"""

import math

import torch
from torch import Tensor

from foredraft.shapes.rope import Rope


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions, [head_dim / 2], float32."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    plain = 1.0 / rope.theta**exponent
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, plain)
    return _yarn_frequencies(rope, plain, head_dim) if rope.kind == "yarn" else plain


def _llama3_frequencies(rope: Rope, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones stay, those between blended."""
    assert rope.original_positions is not None
    turns = rope.original_positions * plain / (2 * math.pi)  # within the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn_frequencies(rope: Rope, plain: Tensor, head_dim: int) -> Tensor:
    """yarn: a ramp over dimensions between those that turn `beta_fast` and `beta_slow` times in the original context."""
    assert rope.original_positions is not None

    def dimension(turns: float, original: float = rope.original_positions) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    return ramp * plain / rope.factor + (1 - ramp) * plain


class Rotary:
    """Positions to cosine and sine. No module: a cast of its owner must not round the frequencies."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self.scale = rope.attention_factor
        self.frequencies = frequencies(rope, head_dim)
        self._table: tuple[Tensor, Tensor] | None = None

    def __call__(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [B, 1, T, D] each: computed in float32 once per pass, for all layers and heads."""
        if self.frequencies.device != positions_BT.device:
            self.frequencies = self.frequencies.to(positions_BT.device)
        angles = positions_BT[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions 0, 1, … for our kernels: float32 [P, D] each, P at least `positions`; kept."""
        if self._table is None or len(self._table[0]) < positions:
            cos, sin = self(torch.arange(positions)[None], torch.float32)
            self._table = cos[0, 0], sin[0, 0]
        return self._table


def rotate(x_BNTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Dimension i turns with dimension i + D/2, the layout of Hugging Face checkpoints."""
    cos, sin = rotation
    first, second = x_BNTD.chunk(2, dim=-1)
    return x_BNTD * cos + torch.cat((-second, first), dim=-1) * sin
