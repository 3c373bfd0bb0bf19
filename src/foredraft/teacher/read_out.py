"""The loss through the LM head, group by group of tokens, so that the logits of all tokens never live at once.

The gradient of a sum over tokens is known as soon as a token's logits are, so each group's is computed at once and its
logits are forgotten (as in Cut Cross-Entropy, arXiv 2411.09009, and Liger kernels, arXiv 2410.10989).

Promises: the value and gradients of the loss over all logits, in the memory of one group. Refuses to know: models, which
tokens count.

Shapes: R rows (tokens), C hidden size of the draft, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foredraft.train.losses import against_target, against_text

# Logits of a group, in the type they are multiplied in, and of a chunk of it in float32 (on a CPU: what its cache holds).
GROUP_BYTES = {"cpu": 2**25, "cuda": 2**29}
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**30}

Rows = Callable[..., dict[str, Tensor]]


class Reading(NamedTuple):
    """Hidden states [R, C] beside the matrix [V, C] that makes logits of them."""

    hidden_RC: Tensor
    head_VC: Tensor

    def cast(self, dtype: torch.dtype) -> "Reading":
        return Reading(self.hidden_RC.to(dtype), self.head_VC.to(dtype))

    def logits(self, rows: slice, out: Tensor | None = None) -> Tensor:
        return torch.mm(self.hidden_RC[rows], self.head_VC.T, out=out)


def read_out(
    draft: Reading,
    labels_R: Tensor,
    weights_R: Tensor,
    loss: Mapping[str, float],
    target: Reading | None = None,
    *,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ weight · loss over rows, differentiable in `draft`, and the same sum of every term of `loss`, detached.

    All losses but "ce" need `target`, with which "accept_prob" (Σ min(p, q)) is among the terms. Matrix products are in
    autocast's type. `compiled`: the row-wise part as one kernel of torch.compile.
    """
    if target is None and set(loss) != {"ce"}:
        raise ValueError(f"loss {', '.join(sorted(set(loss) - {'ce'}))} needs a target")
    names = (*loss, "accept_prob") if target else tuple(loss)
    job = _Job(labels_R, weights_R, dict(loss), names, target, _compiled_rows() if compiled else weighted_rows)
    total, sums = _ReadOut.apply(*draft, job)  # type: ignore[misc]
    return total, dict(zip(names, sums.unbind(), strict=True))


def compute_dtype(like: Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's type where it is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def weighted_rows(
    logits: Tensor, truth: Tensor | None, labels: Tensor, weights: Tensor, loss: dict[str, float], slopes: bool
) -> dict[str, Tensor]:
    """Σ weight · term over a chunk's rows, by name. With `slopes` the gradient of the loss takes the logits' place."""
    soft = {name: weight for name, weight in loss.items() if name != "ce"}
    values, slope = against_target(logits, truth, soft, slopes) if truth is not None else ({}, None)
    if "ce" in loss:
        values["ce"], hard = against_text(logits, labels, slopes)
        if hard is not None:
            slope = hard * loss["ce"] if slope is None else slope + hard * loss["ce"]
    if slope is not None:
        logits.copy_(slope * weights[:, None])
    return {name: (value * weights).sum() for name, value in values.items()}


@cache
def _compiled_rows() -> Rows:
    return torch.compile(weighted_rows, dynamic=False)


class _Job(NamedTuple):
    """What the loss is made of besides the draft, none of it differentiated."""

    labels: Tensor
    weights: Tensor
    loss: dict[str, float]
    names: tuple[str, ...]
    target: Reading | None
    rows: Rows


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, job: _Job) -> tuple[Tensor, Tensor]:
        dtype, wants = compute_dtype(head), ctx.needs_input_grad[:2]
        draft, target = Reading(hidden, head).cast(dtype), job.target.cast(dtype) if job.target else None
        grad_hidden = torch.empty_like(draft.hidden_RC) if any(wants) else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if any(wants) else None
        sums = torch.zeros(len(job.names), device=head.device)
        for group in _pieces(slice(0, len(hidden)), draft, GROUP_BYTES, dtype):
            logits = draft.hidden_RC.new_empty(group.stop - group.start, len(head))
            for rows in _pieces(group, draft, CHUNK_BYTES, torch.float32):
                made = draft.logits(rows, out=logits[rows.start - group.start : rows.stop - group.start])
                truth = target.logits(rows) if target else None
                values = job.rows(made, truth, job.labels[rows], job.weights[rows], job.loss, any(wants))
                sums += torch.stack([values[name] for name in job.names])
            if grad_hidden is not None and grad_head is not None:  # by now the logits are slopes
                torch.mm(logits, draft.head_VC, out=grad_hidden[group])
                grad_head += logits.T @ draft.hidden_RC[group]
        ctx.kinds, ctx.wants = (hidden.dtype, head.dtype), wants
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(sums)
        weights = sums.new_tensor([job.loss.get(name, 0.0) for name in job.names])
        return (sums * weights).sum(), sums  # no matrix product, which autocast would round

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept = zip(ctx.saved_tensors, ctx.kinds, ctx.wants, strict=True)
        return *((made * grads[0]).to(kind) if wanted else None for made, kind, wanted in kept), None


def _pieces(rows: slice, draft: Reading, room: Mapping[str, int], dtype: torch.dtype) -> Iterator[slice]:
    """`rows` in pieces whose logits in `dtype` stay within the room."""
    device = draft.head_VC.device.type
    size = max(1, room.get(device, room["cuda"]) // (dtype.itemsize * len(draft.head_VC)))
    return (slice(at, min(at + size, rows.stop)) for at in range(rows.start, rows.stop, size))
