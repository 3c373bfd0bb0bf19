"""Matrices in four bits, a scale for each 32 numbers of a row: half the file of eight bits, which is what they are read in.

On file they are compressed-tensors' pack-quantized: `NAME_packed` int32 [out, in/8], eight numbers to each, the first in its lowest bits, all
raised by 8; `NAME_scale` [out, groups]; `NAME_shape`, the two sizes.
Promises: what is written is what is read, up to the rounding of eight bits. Refuses to know: which models are drafts.
"""

import torch
from torch import Tensor

from foredraft.shapes.quantised import PACKED
from foredraft.shapes.tensors import PER_WORD, SCALE, SHAPE

GROUP, BITS = 32, 4
INT4 = getattr(torch, "int4")  # noqa: B009 (which torch has and its stubs lack): a type that stands for matrices so stored
RAISED = 2 ** (BITS - 1)
# Of a group's largest number, the shares that may become ±7: what rounding to fewer, finer steps saves is more than what the few beyond lose.
_SHARES = torch.linspace(0.7, 1.0, 7)


def fits(weight: Tensor) -> bool:
    """Whether a matrix has whole groups; another is stored in sixteen bits."""
    return weight.dim() == 2 and weight.is_floating_point() and weight.shape[1] % GROUP == 0


def packed(weight: Tensor, name: str) -> dict[str, Tensor]:
    """The tensors on file of the matrix `name`: of the scales tried for each group that with the least squared error."""
    groups_OGN = weight.detach().float().unflatten(1, (-1, GROUP))
    largest_OG1 = groups_OGN.abs().amax(-1, keepdim=True)
    tries = [_rounded(groups_OGN, largest_OG1 * share) for share in _SHARES]
    errors = torch.stack([(values * scale - groups_OGN).square().sum(-1, keepdim=True) for values, scale in tries])
    best = errors.argmin(0, keepdim=True)
    values, scale = (
        torch.stack(parts).take_along_dim(best, 0)[0] for parts in ([v for v, _ in tries], [s for _, s in tries])
    )
    places = BITS * torch.arange(PER_WORD)
    words = ((values.flatten(1).long() + RAISED).unflatten(1, (-1, PER_WORD)) << places).sum(-1)
    signed = torch.where(words < 2**31, words, words - 2**32).int()
    shape = torch.tensor(weight.shape)
    return {name + PACKED: signed, name + SCALE: scale[..., 0].bfloat16(), name + SHAPE: shape}


def _rounded(groups_OGN: Tensor, largest_OG1: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from −8 to 7 and the scale, as bfloat16 holds it, that stand for each group."""
    scale = (largest_OG1 / (RAISED - 1)).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16().float()
    return (groups_OGN / scale).round().clamp(-RAISED, RAISED - 1), scale


def unpacked(words_OW: Tensor, scale_OG: Tensor) -> Tensor:
    """What the words and scales stand for, float32 [out, in]."""
    places = BITS * torch.arange(PER_WORD)
    values = ((words_OW.long()[..., None] >> places) & (2**BITS - 1)).flatten(1) - RAISED
    scale_OG = scale_OG.float().reshape(len(values), -1)
    return (values.unflatten(1, (scale_OG.shape[1], -1)) * scale_OG[..., None]).flatten(1)
