"""The loss through the LM head, group by group of places, so that the logits of all places never live at once.

The gradient of a sum over places is known as soon as a place's logits are, so each group's is computed at once and its
logits are forgotten (as in Cut Cross-Entropy, arXiv 2411.09009, and Liger kernels, arXiv 2410.10989). A language model is
one step with the text's next tokens as labels; a draft head is several, against the target's probabilities over what the
head can draft, renormalised (EAGLE-3's p): places whose argmax it cannot draft do not count. A language model of a draft vocabulary is
held against the same, and against the text where it can draft the text's token: of places where it cannot none counts. Of a head that
drafts blocks each step has places, labels and target of its own, and a correction of low rank may be added to its logits.

Promises: the value and gradients of the loss over all logits, in the memory of one group, whatever its size. Refuses to know:
how states were made.

Shapes: S steps, M places, n places of a group, C hidden size of the draft, V its vocabulary, U the target's, K terms.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foredraft.teacher.teacher import Teacher, group_size, groups
from foredraft.train.losses import against_target, against_text

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**30}  # of a group's logits in float32 at a time (on a CPU: what its cache holds)

Terms = Callable[..., tuple[Tensor, Tensor]]


class LossSums(NamedTuple):
    """Sums over places. `total`: the weighted loss of all steps, differentiable; `terms`: by name each step's sum [S], detached:
    those of the loss, "accept_prob" (Σ min(p, q), p as the loss sees it) and "agree" (target and draft have one argmax) where asked
    for, and "places". `accept_SM`: by place Σ min(p, q), p over all that the target can say, where asked for.
    """

    total: Tensor
    terms: dict[str, Tensor]
    accept_SM: Tensor | None = None


class _Job(NamedTuple):
    """What the loss is made of besides the draft, none of it differentiated."""

    counted_SM: Tensor
    weights_S: Tensor
    loss: dict[str, float]
    names: tuple[str, ...]
    teacher: Teacher | None
    labels_M: Tensor | None
    terms: Terms
    accept_SM: Tensor | None = None

    def groups(self, head_VC: Tensor) -> Iterator[Tensor | slice]:
        """Places that count; with a text's labels all places, nearly all of which do, in shapes that a compiler can rely on."""
        widest = max(len(head_VC), len(self.teacher.head_UW) if self.teacher else 0)
        if self.labels_M is None or self.labels_M.dim() == 2:
            yield from groups(self.counted_SM, widest, head_VC.element_size())
            return
        size, num = group_size(self.counted_SM, widest, head_VC.element_size()), len(self.labels_M)
        yield from (slice(start, min(start + size, num)) for start in range(0, num, size))


def lm_head_loss(
    states_SMC: Tensor, head_VC: Tensor, counted_SM: Tensor, loss: Mapping[str, float], *,
    teacher: Teacher | None = None, labels_M: Tensor | None = None, weights_S: Tensor | None = None,
    monitor: str | None = None, compiled: bool = False, correction: tuple[Tensor, Tensor] | None = None, accepted: bool = False,
) -> LossSums:  # fmt: skip
    """Σ_s w_s Σ_places Σ_names share · loss over the places that `counted_SM` marks; `loss` names those of `losses`.

    "ce" needs `labels_M` (ids of the draft, -1 where it has none; [S, M] where each step has its own), all others need `teacher`; `monitor`
    names "accept_prob" or "agree" (with the labels, where there is no teacher). `correction`: rows [S, M, r] and a matrix [V, r] whose
    products are added to the logits. `accepted` asks for `accept_SM`, which needs `teacher`.
    Gradients reach states, head and correction; matrix products are in autocast's type. `compiled`: what follows them as one kernel of torch.compile.
    """
    if teacher is None and set(loss) != {"ce"}:
        raise ValueError(f"loss {', '.join(sorted(set(loss) - {'ce'}))} needs a target")
    if labels_M is None and "ce" in loss:
        raise ValueError(
            "loss ce is a language model's or a block head's, against the text; others are soft_ce, kl, rkl, tv or nla"
        )
    names = (*loss, *([monitor] if monitor else []), "places")
    weights_S = torch.ones(len(states_SMC), device=states_SMC.device) if weights_S is None else weights_S
    accept_SM = torch.zeros(counted_SM.shape, device=counted_SM.device) if accepted else None
    job = _Job(
        counted_SM,
        weights_S,
        dict(loss),
        names,
        teacher,
        labels_M,
        _compiled_terms() if compiled else chunk_terms,
        accept_SM,
    )
    dtype = compute_dtype(head_VC)
    with torch.autocast(head_VC.device.type, enabled=False):  # which would round the sums too
        total, sums = _LmHeadLoss.apply(job, dtype, states_SMC, head_VC, *(correction or ()))  # type: ignore[misc]
    return LossSums(total, dict(zip(names, sums.unbind(), strict=True)), accept_SM)


def compute_dtype(like: Tensor) -> torch.dtype:
    """What matrices are multiplied in: autocast's type where it is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


class _LmHeadLoss(torch.autograd.Function):
    """`factors`: rows and the matrix that they meet, one pair after another; logits are the sum of their products."""

    @staticmethod
    def forward(ctx: Any, job: _Job, dtype: torch.dtype, *factors: Tensor) -> tuple[Tensor, Tensor]:
        wants, matrices = ctx.needs_input_grad[2:], [matrix.to(dtype) for matrix in factors[1::2]]
        if job.teacher:
            job = job._replace(teacher=job.teacher._replace(head_UW=job.teacher.head_UW.to(dtype)))
        types = (dtype, torch.float32) * len(matrices)
        grads = [
            torch.zeros_like(x, dtype=kind) if want else None
            for x, want, kind in zip(factors, wants, types, strict=True)
        ]
        sums = torch.zeros(len(job.names), len(factors[0]), device=factors[0].device)
        for places in job.groups(matrices[0]):
            rows = [x[:, places].to(dtype) for x in factors[::2]]
            group_sums, live, slopes = _group(rows, matrices, places, job, any(wants))
            sums += group_sums
            scale = (live * job.weights_S[:, None])[..., None].to(dtype)  # of the rows, so of either side of a product
            for x, matrix, grad_rows, grad_matrix in zip(rows, matrices, grads[::2], grads[1::2], strict=True):
                if grad_rows is not None:
                    grad_rows[:, places] = (slopes @ matrix) * scale
                if grad_matrix is not None:
                    grad_matrix += slopes.flatten(0, 1).T @ (x * scale).flatten(0, 1)
        ctx.dtypes = [x.dtype for x in factors]
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(sums)
        shares = sums.new_tensor(list(job.loss.values()))
        return (shares[:, None] * sums[: len(shares)] * job.weights_S).sum(), sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slopes = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, *(None if slope is None else slope.to(dtype) * grads[0] for slope, dtype in slopes)


def _group(
    rows: list[Tensor], matrices: list[Tensor], places: Tensor | slice, job: _Job, wants_slope: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of one group [K, S], which of its places count [S, n], and where asked for the loss's gradient in its logits."""
    x_SnC, head_VC = rows[0], matrices[0]
    steps, num, device = *x_SnC.shape[:2], x_SnC.device
    truth_nU = job.teacher.logits(places, x_SnC.dtype) if job.teacher else None
    labels_n = None if job.labels_M is None else job.labels_M[..., places]
    argmax_n, log_sum_n = (
        None if known is None else known[..., places]
        for known in ((job.teacher.argmax_M, job.teacher.log_sum_M) if job.teacher else (None, None))
    )
    counted_Sn, ids_V = job.counted_SM[:, places], job.teacher.ids_V if job.teacher else None
    slopes = x_SnC.new_empty(steps, num if wants_slope else 0, len(head_VC))
    sums, live = torch.zeros(len(job.names), steps, device=device), torch.empty_like(counted_Sn)
    accept_Sn = None if job.accept_SM is None else torch.empty(steps, num, device=device)
    size = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * steps * len(head_VC)))
    for start in range(0, num, size):
        part = slice(start, start + size)
        truth = None if truth_nU is None else truth_nU[..., part, :]
        argmax, log_sum, labels = (
            None if known is None else known[..., part] for known in (argmax_n, log_sum_n, labels_n)
        )
        out = slopes[:, part] if wants_slope else None
        logits = _products(x_SnC[:, part], head_VC)
        for x, matrix in zip(rows[1:], matrices[1:], strict=True):
            logits += _products(x[:, part], matrix)
        chunk, live[:, part] = job.terms(
            logits, truth, argmax, ids_V, labels, counted_Sn[:, part], job.loss, job.names, out
        )
        sums += chunk
        if accept_Sn is not None:
            assert truth is not None, "what is accepted is the target's to say"
            assert argmax is None or log_sum is not None, "the logits of what can be drafted say nothing of the others"
            accept_Sn[:, part] = acceptance(logits, truth, None if argmax is not None else ids_V, log_sum)
    if job.accept_SM is not None and accept_Sn is not None:
        job.accept_SM[:, places] = accept_Sn
    return sums, live, slopes


def _products(x_SnC: Tensor, matrix_VC: Tensor) -> Tensor:
    """x·Mᵀ by one product: of rows that do not lie together torch would make one for each step, and a copy of the matrix each."""
    return (x_SnC.flatten(0, 1) @ matrix_VC.T).unflatten(0, x_SnC.shape[:2])


def acceptance(logits_SnV: Tensor, truth_nU: Tensor, ids_V: Tensor | None, log_sum_n: Tensor | None = None) -> Tensor:
    """Σ min(p, q) over what the draft can draft, float32 [S, n]. p is normalised over all that the target can say: over `truth_nU`, of
    which `ids_V` can be drafted, or by `log_sum_n`, where `truth_nU` holds what can be drafted alone.
    """
    log_sum = truth_nU.float().logsumexp(-1) if log_sum_n is None else log_sum_n.float()
    truth_nV = truth_nU if ids_V is None else truth_nU[..., ids_V]
    q_SnV = logits_SnV.softmax(-1, dtype=torch.float32)
    return torch.minimum((truth_nV.float() - log_sum[..., None]).exp_(), q_SnV).sum(-1)


def chunk_terms(
    logits_SnV: Tensor, truth_nU: Tensor | None, argmax_n: Tensor | None, ids_V: Tensor | None, labels_n: Tensor | None,
    counted_Sn: Tensor, loss: dict[str, float], names: tuple[str, ...], slopes_SnV: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A chunk's sums [K, S] in the order of `names`, and which of its places count [S, n]; `slopes_SnV` takes the gradient.

    Where the target's argmax is known, `truth_nU` holds the logits of `ids_V` alone.
    """
    soft, wants_slope = {name: share for name, share in loss.items() if name != "ce"}, slopes_SnV is not None
    values, slope, live_Sn = {}, None, counted_Sn
    if truth_nU is not None:
        truth_nV = truth_nU if ids_V is None or argmax_n is not None else truth_nU[..., ids_V]
        values, slope = against_target(logits_SnV, truth_nV, soft, wants_slope, acceptance="accept_prob" in names)
        if ids_V is not None or "agree" in names:
            best_n = draft_ids_of(truth_nU.argmax(-1) if argmax_n is None else argmax_n, ids_V)
            live_Sn = counted_Sn & (best_n >= 0)
            values["agree"] = _agree(logits_SnV, best_n)
    if "ce" in loss and labels_n is not None:
        values["ce"], hard = against_text(logits_SnV, labels_n.clamp(min=0), wants_slope)
        live_Sn = live_Sn & (labels_n >= 0)
        if "agree" in names and truth_nU is None:
            values["agree"] = _agree(logits_SnV, labels_n)
        if hard is not None:
            slope = hard * loss["ce"] if slope is None else slope + hard * loss["ce"]
    if slopes_SnV is not None and slope is not None:
        slopes_SnV.copy_(slope)
    values["places"] = torch.ones_like(logits_SnV[..., 0], dtype=torch.float32)
    return torch.stack([(values[name] * live_Sn).sum(1) for name in names]), live_Sn


@cache
def _compiled_terms() -> Terms:
    return torch.compile(chunk_terms, dynamic=False)


def draft_ids_of(target_ids_n: Tensor, ids_V: Tensor | None) -> Tensor:
    """Target ids by their place among `ids_V`, ascending; -1 where they are not among them. None: all are."""
    if ids_V is None:
        return target_ids_n
    draft_n = torch.searchsorted(ids_V, target_ids_n.contiguous()).clamp(max=len(ids_V) - 1)
    return torch.where(ids_V[draft_n] == target_ids_n, draft_n, -1)


def _agree(logits_SnV: Tensor, best_n: Tensor) -> Tensor:
    """Whether the draft's argmax is `best_n` ([n] or [S, n]), float32 [S, n]; on a CPU a maximum is several times as fast as its place."""
    logits_Sn = logits_SnV.gather(-1, best_n.clamp(min=0).expand(logits_SnV.shape[:-1])[..., None])[..., 0]
    return (logits_Sn >= logits_SnV.amax(-1)).float()
