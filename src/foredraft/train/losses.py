"""How far a draft's law q is from what it should say, token by token.

With p the target's distribution, q the draft's, α = Σ min(p, q) the chance that a sampled draft token is accepted
(arXiv 2211.17192, theorem 3.5):

    ce        −log q(the text's next token)
    soft_ce   −Σ p log q
    kl        Σ p log(p/q), soft_ce less the entropy of p
    rkl       Σ q log(q/p)
    tv        ½ Σ |p − q| = 1 − α
    nla       −log α

Promises: values in float32, gradients by their closed forms. Refuses to know: models, which tokens count.

Shapes: R rows (tokens), V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def divergence(loss: Mapping[str, float]) -> Divergence:
    """The weighted sum of `loss` against a target: logits [..., V] of draft and target (finite) to [...], float32.

    Differentiable in the draft's logits only. The target's may lack leading axes that the draft's have.
    """

    def mixed(draft: Tensor, target: Tensor) -> Tensor:
        value: Any = _Mixture.apply(draft, target, dict(loss))
        return value

    return mixed


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, draft: Tensor, target: Tensor, loss: dict[str, float]) -> Tensor:
        values, slope = against_target(draft, target, loss, ctx.needs_input_grad[0])
        ctx.save_for_backward(None if slope is None else slope.to(draft.dtype))
        return _weighted(values, loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][..., None].to(slope.dtype), None, None


def _weighted(values: dict[str, Tensor], loss: Mapping[str, float]) -> Tensor:
    return torch.stack([weight * values[name] for name, weight in loss.items()]).sum(0)


def against_target(
    draft: Tensor, target: Tensor, loss: Mapping[str, float], wants_slope: bool = True
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Each named loss and "accept_prob" (α) per row, and the gradient of their weighted sum in the draft's logits.

    With c = ∂L/∂q that gradient is q·(c − Σ c q); a cross-entropy's is q − p.
    """
    log_q, log_p = draft.float().log_softmax(-1), target.float().log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    accept = torch.minimum(p, q).sum(-1)
    values = {name: _value(name, p, q, log_p, log_q, accept) for name in loss} | {"accept_prob": accept}
    if not wants_slope:
        return values, None
    pull = loss.get("tv", 0.0) + loss.get("nla", 0.0) / accept
    towards = loss.get("rkl", 0.0) * (log_q - log_p) - pull[..., None] * (q < p)
    slope = (loss.get("soft_ce", 0.0) + loss.get("kl", 0.0)) * (q - p)
    return values, slope + q * (towards - (towards * q).sum(-1, keepdim=True))


def _value(name: str, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, accept: Tensor) -> Tensor:
    if name == "soft_ce":
        return -(p * log_q).sum(-1)
    if name == "kl":
        return (p * (log_p - log_q)).sum(-1)
    if name == "rkl":
        return (q * (log_q - log_p)).sum(-1)
    if name == "tv":
        return 1 - accept
    if name == "nla":
        return -accept.log()
    raise ValueError(f"loss {name!r} is not one against a target: soft_ce, kl, rkl, tv, nla")


def against_text(logits_RV: Tensor, labels_R: Tensor, wants_slope: bool = True) -> tuple[Tensor, Tensor | None]:
    """−log q(label) per row, float32, and its gradient in the logits, q − 1[label], float32."""
    log_q = logits_RV.float().log_softmax(-1)
    values = -log_q.gather(-1, labels_R[:, None])[:, 0]
    if not wants_slope:
        return values, None
    slope = log_q.exp()
    return values, slope.scatter_add(-1, labels_R[:, None], -torch.ones_like(values)[:, None])
