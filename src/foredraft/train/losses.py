"""How far a draft's probabilities q are from what they should be, token by token.

With p the target's distribution, q the draft's, α = Σ min(p, q) the chance that a sampled draft token is accepted
(arXiv 2211.17192, theorem 3.5):

    ce        −log q(the text's next token)
    soft_ce   −Σ p log q
    kl        Σ p log(p/q), soft_ce less the entropy of p
    rkl       Σ q log(q/p)
    tv        ½ Σ |p − q| = 1 − α
    nla       −log α

Promises: values in float32, gradients by their closed forms. Refuses to know: models, which tokens count.

Shapes: S steps, n places, V vocabulary. Leading axes that a target lacks are broadcast.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def against_target(
    draft_SnV: Tensor,
    target_nV: Tensor,
    loss: Mapping[str, float],
    wants_slope: bool = True,
    *,
    acceptance: bool = True,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Each named loss and, with `acceptance`, "accept_prob" (α), [S, n], and the gradient of their weighted sum in the draft's logits.

    With c = ∂L/∂q that gradient is q·(c − Σ c q); a cross-entropy's is q − p. Raises ValueError where a name is none of these.
    """
    if loss.keys() == {"soft_ce"} and not acceptance:
        return _soft_cross_entropy(draft_SnV, target_nV, loss["soft_ce"], wants_slope)
    log_q, log_p = draft_SnV.float().log_softmax(-1), target_nV.float().log_softmax(-1)
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


def _soft_cross_entropy(
    draft_SnV: Tensor, target_nV: Tensor, weight: float, wants_slope: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """−Σ p log q alone, the usual one, in a third of the passes over the vocabulary."""
    p = target_nV.softmax(-1, dtype=torch.float32)
    log_q = draft_SnV.log_softmax(-1, dtype=torch.float32)
    shared = p.dim() == 2  # one row of p for all steps: a product of matrices
    values = {"soft_ce": -((log_q.transpose(0, 1) @ p[..., None])[..., 0].T if shared else (p * log_q).sum(-1))}
    slope = log_q.exp_().sub_(p) if wants_slope else None
    return values, slope if slope is None or weight == 1 else slope.mul_(weight)


def against_text(logits_SnV: Tensor, labels_n: Tensor, wants_slope: bool = True) -> tuple[Tensor, Tensor | None]:
    """−log q(label), float32 [S, n], and its gradient in the logits, q − 1[label], float32."""
    log_q, labels = logits_SnV.float().log_softmax(-1), labels_n.expand(logits_SnV.shape[:-1])[..., None]
    values = -log_q.gather(-1, labels)
    if not wants_slope:
        return values[..., 0], None
    return values[..., 0], log_q.exp().scatter_add(-1, labels, -torch.ones_like(values))
