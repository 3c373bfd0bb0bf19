"""From logits to the probabilities that are sampled: temperature, top-k, top-p, the same for target and draft.

Promises: p and q are made by this one function, so that verification compares what was really sampled. At temperature 0 they
are one-hot at the first of the largest logits. What is not a distribution is an error, never a token. Refuses to know: where
logits come from.

Shapes: … any leading axes, V vocabulary; settings broadcast over the leading axes.
"""

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from foredraft.models import kernels
from foredraft.records import Record

SUM_ERROR = 1e-4  # more than float32 is off in a sum over a vocabulary
PROBABLE = 1e-3  # of a word: there are a thousand such at most


class Sampling(Record, frozen=True):
    """How a request is sampled. `top_k` 0 and `top_p` 1 leave all tokens in; temperature 0 is greedy."""

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


def argmax(logits: Tensor, model: str = "the model") -> Tensor:
    """The tokens of temperature 0: the first of the largest logits. Raises ValueError, which names `model`, where these are not finite."""
    largest, ids = first_largest(logits)
    require_finite(largest, model)
    return ids


def first_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row (NaN where one is) and where it stands first. On a CPU our kernels look for it, or numpy, a register at a
    time where torch takes number by number: of 8 × 2 rows of 49,152 words in 0.1 ms and not in 0.9.
    """
    if logits.device.type != "cpu":
        return logits.max(-1)
    if kernels.able(logits.dtype, logits.device):
        return kernels.first_largest(logits.detach())
    rows = logits.detach().float().numpy()
    return torch.from_numpy(np.asarray(rows.max(-1))), torch.from_numpy(np.asarray(rows.argmax(-1)))


def require_finite(largest: Tensor, model: str) -> None:
    """Raise ValueError, which names `model`, where a row's largest logit is not finite; waits for the device."""
    finite = [
        all(map(math.isfinite, row)) for row in largest.reshape(len(largest) if largest.dim() else 1, -1).tolist()
    ]
    if not all(finite):
        raise ValueError(
            f"{model}: the logits of row {finite.index(False)} are NaN or infinite: its weights or its input are broken"
        )


def probabilities(logits: Tensor, sampling: Sampling, model: str = "the model") -> Tensor:
    """The distribution over V, float32: logits / temperature, cut to the top_k largest, then to the smallest set whose mass
    reaches top_p, renormalised.

    Ties at the top_k border are all in; ties inside top_p are taken in vocabulary order. Raises ValueError, which names `model`,
    where the result is not finite or sums to nothing: broken logits, or settings too extreme for float32.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, argmax(logits, model)[..., None], 1.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        border = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < border, -torch.inf)
    probs = logits.softmax(-1)
    probs = probs if sampling.top_p == 1 else _nucleus(probs, sampling.top_p)
    sums = probs.sum(-1)
    usable = sums.isfinite() & (sums > 0)
    if not usable.all():
        _refuse(~usable, sampling, model)
    return probs


def _refuse(broken: Tensor, sampling: Sampling, model: str) -> NoReturn:
    raise ValueError(
        f"{model}: the probabilities of row {_first_row(broken)} are NaN or sum to nothing at temperature {sampling.temperature:g}, "
        f"top_p {sampling.top_p:g}: its weights or its input are broken, or these settings too small"
    )


def _first_row(broken: Tensor) -> int:
    """The first sequence with a True."""
    return int(torch.atleast_1d(broken).nonzero()[0, 0])


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    if probs.device.type == "cpu":
        return _nucleus_of_rows(probs, top_p)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered
    nucleus = torch.zeros_like(probs).scatter_(-1, order, torch.where(before < top_p, ordered, 0.0))
    return nucleus / nucleus.sum(-1, keepdim=True)


def _nucleus_of_rows(probs: Tensor, top_p: float) -> Tensor:
    """Row by row, and of each only what may be in it is sorted: sorting all of 49,152 words takes 4 ms."""
    rows = probs.detach().numpy().reshape(-1, probs.shape[-1])
    nuclei = np.zeros_like(rows)
    for row, nucleus in zip(rows, nuclei, strict=True):
        likely = _likely(row, top_p)
        order = likely[np.argsort(-row[likely], kind="stable")]
        ordered = row[order]
        kept = ordered[ordered.cumsum(dtype=np.float64) - ordered < top_p]
        nucleus[order[: len(kept)]] = kept / kept.sum()
    return torch.from_numpy(nuclei).reshape(probs.shape)


def _likely(row: Any, top_p: float) -> Any:
    """Words among which the nucleus is, in order: the probable ones where they hold enough, else all but what holds half of what may be left out
    at most, since rounding may have the rest.
    """
    probable = np.flatnonzero(row >= PROBABLE)
    if row[probable].sum() > top_p + SUM_ERROR:
        return probable
    return np.flatnonzero(row >= max((1 - top_p) / 2 - SUM_ERROR, 0.0) / len(row))
