"""How far a head's laws are from its target's: the loss over all steps, from states, without all logits at once.

The target's law is restricted to what the head can draft and renormalised (EAGLE-3's p); places whose likeliest token
it cannot draft do not count. Logits of both live for one group of places, in which the gradient is computed at once.

Promises: loss and gradients do not depend on the size of the groups. Refuses to know: how states were made.

Shapes: S steps, M places (B·T), n places of a group, C hidden size, W hidden size of the target, U the target's
vocabulary, V the head's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foredraft.teacher.read_out import CHUNK_BYTES, GROUP_BYTES, compute_dtype
from foredraft.train.losses import against_target


class Teacher(NamedTuple):
    """The target's last word: `final_MW`, the states its LM head `head_UW` reads, and which ids the head can draft.

    `ids_V` are those, ascending; None means all.
    """

    final_MW: Tensor
    head_UW: Tensor
    ids_V: Tensor | None = None

    def logits(self, places_n: Tensor, dtype: torch.dtype) -> Tensor:
        """Over the target's whole vocabulary, [n, U]."""
        return self.final_MW[places_n].to(dtype) @ self.head_UW.to(dtype).T

    def restricted(self, logits_nU: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over the head's vocabulary [n, V], and the target's likeliest token in it [n]; -1: it has it not."""
        best = logits_nU.argmax(-1)
        if self.ids_V is None:
            return logits_nU, best
        own = torch.searchsorted(self.ids_V, best).clamp(max=len(self.ids_V) - 1)
        return logits_nU[:, self.ids_V], torch.where(self.ids_V[own] == best, own, -1)

    def target_ids(self, own: Tensor) -> Tensor:
        """Ids in the head's vocabulary as the target's."""
        return own if self.ids_V is None else self.ids_V[own]


class Match(NamedTuple):
    """Sums over places. `total`: the weighted loss of all steps, differentiable; by step [S]: `losses`, `counts` of
    places, `hits` where head and target agree on the likeliest token.
    """

    total: Tensor
    losses_S: Tensor
    counts_S: Tensor
    hits_S: Tensor


def match(
    states_SMC: Tensor,
    head_VC: Tensor,
    teacher: Teacher,
    counted_SM: Tensor,
    weights_S: Tensor,
    loss: Mapping[str, float],
    group_bytes: int | None = None,
) -> Match:
    """Σ_s w_s Σ_places Σ_names loss, over the places that `counted_SM` marks; `loss` names `losses`, each against the
    target. Gradients reach `states_SMC` and `head_VC`. Matrix products are in autocast's type.
    """
    setting = (compute_dtype(head_VC), teacher, counted_SM, weights_S, dict(loss), group_bytes)
    with torch.autocast(head_VC.device.type, enabled=False):  # which would round the sums too
        total, sums = _Matched.apply(states_SMC, head_VC, setting)  # type: ignore[misc]
    return Match(total, *sums)


def groups(counted_SM: Tensor, vocabulary: int, width: int, room: int | None = None) -> tuple[Tensor, ...]:
    """The places that count at any step, in groups whose logits of `width` bytes each stay within `room` bytes."""
    places = counted_SM.any(0).nonzero()[:, 0]
    if not len(places):
        return ()
    room = room or GROUP_BYTES.get(counted_SM.device.type, GROUP_BYTES["cuda"])
    return places.split(max(1, room // (width * len(counted_SM) * vocabulary)))


class _Matched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, setting: Any) -> tuple[Tensor, Tensor]:
        dtype, teacher, counted, weights, loss, room = setting
        matrix, teacher = head.to(dtype), teacher._replace(head_UW=teacher.head_UW.to(dtype))
        wants = ctx.needs_input_grad[:2]
        grad_states = torch.zeros_like(states, dtype=dtype) if wants[0] else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wants[1] else None
        sums = torch.zeros(3, len(states), device=states.device)
        for places in groups(counted, max(len(head), len(teacher.head_UW)), matrix.element_size(), room):
            x = states[:, places].to(dtype)
            logits = x @ matrix.T
            found, live = _read(logits, teacher, places, counted, loss, any(wants))
            sums += found
            scale = (live * weights[:, None])[..., None].to(dtype)  # of the rows, and so of either side of a product
            if grad_states is not None:
                grad_states[:, places] = (logits @ matrix) * scale
            if grad_head is not None:
                grad_head += logits.flatten(0, 1).T @ (x * scale).flatten(0, 1)
        ctx.kinds = states.dtype, head.dtype
        ctx.save_for_backward(grad_states, grad_head)
        ctx.mark_non_differentiable(sums)
        return (weights * sums[0]).sum(), sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = [
            None if kept is None else kept.to(kind) * grads[0]
            for kept, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
        ]
        return *made, None


def _read(
    logits_SnV: Tensor,
    teacher: Teacher,
    places_n: Tensor,
    counted_SM: Tensor,
    loss: dict[str, float],
    wants_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Loss, places and hits of one group by step, [3, S], and which places count [S, n]; where asked, `logits_SnV`
    becomes the gradient in itself.
    """
    truths, sums = teacher.logits(places_n, logits_SnV.dtype), torch.zeros(3, len(logits_SnV), device=logits_SnV.device)
    room = CHUNK_BYTES.get(logits_SnV.device.type, CHUNK_BYTES["cuda"])
    size, lives = max(1, room // (4 * len(logits_SnV) * logits_SnV.shape[2])), []
    for start in range(0, len(places_n), size):
        here = slice(start, start + size)
        logits, (truth, best) = logits_SnV[:, here], teacher.restricted(truths[here])
        live = counted_SM[:, places_n[here]] & (best >= 0)
        own = logits.gather(-1, best.clamp(min=0).expand(len(logits), -1)[..., None])[..., 0]
        hits = (own >= logits.amax(-1)) & live  # on a CPU a maximum is several times as fast as its place
        rows = _cross_entropy if set(loss) == {"soft_ce"} else _mixture
        value, slope = rows(logits, truth, loss, wants_slope)
        sums += torch.stack(((value * live).sum(1), live.sum(1), hits.sum(1)))
        lives.append(live)
        if slope is not None:
            logits.copy_(slope)
    return sums, torch.cat(lives, 1)


def _mixture(logits: Tensor, truth: Tensor, loss: dict[str, float], wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    values, slope = against_target(logits, truth, loss, wants_slope)
    return torch.stack([weight * values[name] for name, weight in loss.items()]).sum(0), slope


def _cross_entropy(
    logits: Tensor, truth: Tensor, loss: dict[str, float], wants_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """`_mixture` for −Σ p log q alone, the usual one, in a third of its passes over the vocabulary."""
    weight, p = loss["soft_ce"], truth.softmax(-1, dtype=torch.float32)
    log_q = logits.log_softmax(-1, dtype=torch.float32)
    value = (log_q.transpose(0, 1) @ p[..., None])[..., 0].T * -weight
    slope = log_q.exp_().sub_(p) if wants_slope else None
    return value, slope if slope is None or weight == 1 else slope.mul_(weight)
