"""From logits to the law that is sampled: temperature, top-k, top-p, the same for target and draft.

Promises: p and q are made by this one function, so that verification compares what was really sampled. At temperature
0 the law is one-hot at the first of the largest logits. Refuses to know: whose logits they are.

Shapes: … any leading axes, V vocabulary; settings broadcast over the leading axes.
"""

import torch

from foredraft.records import Record


class Sampling(Record, frozen=True):
    """How a request is sampled. `top_k` 0 and `top_p` 1 leave the law whole; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative (0: no limit), got {self.top_k}")


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The tokens of temperature 0: the first of the largest logits. Raises ValueError on a NaN."""
    largest, ids = logits.max(-1)
    if torch.isnan(largest).any():
        raise ValueError("logits hold NaN: the model's weights or its input are broken")
    return ids


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The law over V, float32: logits / temperature, cut to the top_k largest, then to the smallest set whose mass
    reaches top_p, renormalised.

    Ties at the top_k border are all kept; ties inside top_p are taken in vocabulary order. Raises ValueError on a
    NaN.
    """
    if torch.isnan(logits).any():
        raise ValueError("logits hold NaN: the model's weights or its input are broken")
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, argmax(logits)[..., None], 1.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        border = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < border, -torch.inf)
    law = logits.softmax(-1)
    return law if sampling.top_p == 1 else _nucleus(law, sampling.top_p)


def _nucleus(law: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = law.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(law).scatter_(-1, order, torch.where(before < top_p, ordered, 0.0))
    return kept / kept.sum(-1, keepdim=True)
