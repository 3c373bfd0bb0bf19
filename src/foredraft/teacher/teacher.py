"""A frozen target as a draft's teacher: the hidden states its LM head reads, and what a draft can say of its vocabulary.

Promises: logits of one group of places live at a time. Refuses to know: losses, how a draft's states were made.

Shapes: S steps, M places (B·T), n places of a group, W hidden size of the target, U its vocabulary, V the draft's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foredraft.models.target import LogitsForm
from foredraft.teacher.group_bytes import GROUP_BYTES

Text = tuple[Sequence[int] | np.ndarray, Sequence[bool] | np.ndarray]  # tokens, and which of them are to be predicted


class Teacher(NamedTuple):
    """`final_MW`, the hidden states that the target's LM head `head_UW` reads, or [S, M, W] where steps are held against places of their own;
    `ids_V`, ascending: the target ids that the draft has in its vocabulary, None for all. `argmax_M`: the likeliest id of each place (or
    [S, M]) where that is known; `head_UW` then is [V, W], the rows of `ids_V`, since the others say nothing more, but for `log_sum_M`, the
    logarithm of the sum of all exponents, which is then known too where what is accepted is asked for.
    `form`: what else makes logits of their products.
    """

    final_MW: Tensor
    head_UW: Tensor
    ids_V: Tensor | None = None
    argmax_M: Tensor | None = None
    log_sum_M: Tensor | None = None
    form: LogitsForm = LogitsForm()

    def logits(self, places_n: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Over the rows of `head_UW`, [n, U], or [S, n, U]."""
        return self.form(self.final_MW[..., places_n, :].to(dtype) @ self.head_UW.to(dtype).T)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Ids in the draft's vocabulary as the target's."""
        return draft_ids if self.ids_V is None else self.ids_V[draft_ids]


def groups(counted_SM: Tensor, vocabulary: int, width: int) -> tuple[Tensor, ...]:
    """The places that count at any step, in groups whose logits of `width` bytes each stay within `GROUP_BYTES`."""
    places = counted_SM.any(0).nonzero()[:, 0]
    return places.split(group_size(counted_SM, vocabulary, width)) if len(places) else ()


def group_size(counted_SM: Tensor, vocabulary: int, width: int) -> int:
    """How many places of all steps have room at once."""
    room = GROUP_BYTES.get(counted_SM.device.type, GROUP_BYTES["cuda"])
    return max(1, room // (width * len(counted_SM) * vocabulary))
