"""What a draft predicts beside its target at every place of given texts, the texts' own tokens standing for accepted drafts.

Promises: one pass of the target over each text; a draft's token at each place is the one it would draft there from a
cache (a head: by training-time test). Refuses to know: what counts as accepted, and how steps follow each other.

Shapes: S places of a chain, B texts, T tokens, n places of a group, U the target's vocabulary, V the draft's.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.teacher.teacher import Teacher, groups


class TokenProbs(NamedTuple):
    """How probable the drafted token is to be accepted by chance, [S, B, T] each: `point` p(x̂) of the draft's argmax x̂;
    `overlap` Σ min(p, q); `ratio` min(1, q(x)/p(x)) of the text's own token x.
    """

    point: Tensor
    overlap: Tensor
    ratio: Tensor


class Predictions(NamedTuple):
    """Of step s of a chain begun with the first n tokens known, at [s, text, n]: `drafted`, there is a draft at all;
    `agrees`, its argmax is the target's; `in_text`, it is the text's token. `greedy` [B, T]: token n of the text is
    the target's argmax. `probs` where asked for.
    """

    drafted: Tensor
    agrees: Tensor
    in_text: Tensor
    greedy: Tensor
    probs: TokenProbs | None = None


def emitted_mask(mask_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """The tokens that a request would have the engine emit: labels with something before them in their document."""
    same = F.pad(documents_BT[:, 1:] == documents_BT[:, :-1], (1, 0))
    return mask_BT & same


def drafted_mask(documents_BT: Tensor, steps: int) -> Tensor:
    """Where a language model drafts, as in `unroll.within` [S, B, T]: a chain begun s tokens ago began with a token of the same document."""
    length = documents_BT.shape[1]
    drafted = torch.zeros(steps, *documents_BT.shape, dtype=torch.bool, device=documents_BT.device)
    for step in range(min(steps, length - 1)):
        drafted[step, :, step:-1] = documents_BT[:, : length - 1 - step] == documents_BT[:, step + 1 :]
    return drafted


def predictions(
    states_SBTC: Tensor, head_VC: Tensor, teacher: Teacher, tokens_BT: Tensor, emitted_BT: Tensor, drafted_SBT: Tensor,
    *, probs: bool = False,
) -> Predictions:  # fmt: skip
    """From `unroll.aligned` states, place t for token t + 1; `drafted_SBT` is by place too.

    States of one step stand for all steps of a draft whose token does not depend on where its chain began (a language
    model's).
    """
    steps, (batch, length) = len(drafted_SBT), tokens_BT.shape
    flat = F.pad(emitted_BT[:, 1:], (0, 1)).flatten()
    following = F.pad(tokens_BT[:, 1:], (0, 1)).flatten()
    states = states_SBTC.flatten(1, 2)
    by_place = torch.zeros(5 if probs else 2, steps, batch * length, device=tokens_BT.device)
    greedy = torch.zeros(batch * length, dtype=torch.bool, device=tokens_BT.device)
    with torch.autocast(tokens_BT.device.type, enabled=False):  # rounded logits would tie
        for places in groups(flat.expand(steps, -1), max(len(head_VC), len(teacher.head_UW)), 4):
            target_nU, text_n = teacher.logits(places, torch.float32), following[places]
            draft_SnV = states[:, places].float() @ head_VC.float().T
            best_n, drafted_Sn = target_nU.argmax(-1), teacher.target_ids(draft_SnV.argmax(-1))
            greedy[places] = best_n == text_n
            by_place[:2, :, places] = torch.stack((drafted_Sn == best_n, drafted_Sn == text_n)).float()
            if probs:
                by_place[2:, :, places] = _token_probs(target_nU, draft_SnV, drafted_Sn, text_n, teacher.ids_V)
    agrees, in_text, *more = (_by_start(values) for values in by_place.unflatten(2, (batch, length)))
    greedy_BT = F.pad(greedy.view(batch, length)[:, :-1], (1, 0))
    return Predictions(_by_start(drafted_SBT), agrees > 0, in_text > 0, greedy_BT, TokenProbs(*more) if probs else None)


def _token_probs(
    target_nU: Tensor, draft_SnV: Tensor, drafted_Sn: Tensor, text_n: Tensor, ids_V: Tensor | None
) -> Tensor:
    """The three of `TokenProbs`, [3, S, n]."""
    p_nU, q_SnV = target_nU.softmax(-1), draft_SnV.softmax(-1)
    rows = torch.arange(len(p_nU), device=p_nU.device)
    ids = torch.arange(p_nU.shape[1], device=p_nU.device) if ids_V is None else ids_V
    draft_n = torch.searchsorted(ids, text_n).clamp(max=len(ids) - 1)
    q_of_text = torch.where(ids[draft_n] == text_n, q_SnV[:, rows, draft_n], 0.0)
    ratio = (q_of_text / p_nU[rows, text_n]).clamp(max=1.0)
    point = p_nU[rows, drafted_Sn]
    return torch.stack((point, torch.minimum(p_nU[:, ids], q_SnV).sum(-1), ratio))


def _by_start(values_SBT: Tensor) -> Tensor:
    """From places to starts: place t of step s was begun with t + 1 - s tokens known."""
    length, moved = values_SBT.shape[2], torch.zeros_like(values_SBT)
    for step in range(min(len(values_SBT), length - 1)):
        moved[step, :, 1 : length - step] = values_SBT[step, :, step : length - 1]
    return moved
