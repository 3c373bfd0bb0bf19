"""Causal attention in blocks of queries, for training where no kernel of the library's serves: short windows on a CPU,
attention inside documents, and a log-sum-exp to merge with further keys (`chains`).

Each block meets all keys up to its end, as plain matrix products: half of what a full square costs, at the speed of large
products (docs/log.md has the measurement).

Promises: values and gradients of softmax(q·k/√D)·v over each row's own past. Refuses to know: models.

Shapes: B windows, K key heads, G query heads on each, N = K·G, T tokens, D head_dim, n rows of a block, m keys up to its end.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
LONGEST = 512  # tokens; beyond it probabilities kept for the backward pass cost more than they save
DTYPES = (torch.bfloat16, torch.float32)


def out_of_graphs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` where compiled code may call it, never a part of it: what it sees changes with every call. Nothing is compiled where
    the compiler, which takes a second to import, was not imported.
    """
    disabled: Any = torch.compiler.disable
    return disabled(function) if "torch._dynamo" in sys.modules else function


def attend(layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
    """Causal attention of every layer, an `AttentionMetadata`'s `attend`: in blocks where they are faster, else the library's."""
    dtype = v_BKTD.dtype  # rotation leaves queries and keys in float32 under autocast
    q, k = q_BNTD.to(dtype), k_BKTD.to(dtype)
    short = q.shape[2] <= LONGEST and q.device.type == "cpu" and dtype in DTYPES
    if short and torch.is_grad_enabled():
        out: Any = _Causal.apply(q, k, v_BKTD)
        return out
    return F.scaled_dot_product_attention(q, k, v_BKTD, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])


class _Causal(torch.autograd.Function):
    """The probabilities are kept for the backward pass, which is why windows must be short."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v, out, probs = k.contiguous(), v.contiguous(), torch.empty_like(q), []
        for start, stop in _blocks(q.shape[2]):
            probs.append(_scores(q, k, None, start, stop).softmax(-1).to(q.dtype))
            out[:, :, start:stop] = _times(probs[-1], v[:, :, :stop])
        ctx.save_for_backward(q, k, v, out, *probs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *probs = ctx.saved_tensors
        return _backward(grads[0].to(q.dtype), q, k, v, out, iter(probs))


def blockwise(q: Tensor, k: Tensor, v: Tensor, documents_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, D] and log-sum-exp of the scores [B, N, T]; `documents_BT` keeps attention inside documents."""
    k, v, outs, sums = k.contiguous(), v.contiguous(), [], []  # so that no product copies keys
    for start, stop in _blocks(q.shape[2]):
        scores = _scores(q, k, documents_BT, start, stop)
        sums.append(scores.logsumexp(-1))
        outs.append(_times((scores - sums[-1][..., None]).exp().to(v.dtype), v[:, :, :stop]))
    return torch.cat(outs, 2), torch.cat(sums, 2)


def blockwise_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, documents_BT: Tensor | None, out: Tensor, lse_BNT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `lse_BNT` are of the whole softmax, of which these keys may be a part."""
    k, v = k.contiguous(), v.contiguous()
    probs = (
        (_scores(q, k, documents_BT, start, stop) - lse_BNT[:, :, start:stop, None]).exp()
        for start, stop in _blocks(q.shape[2])
    )
    return _backward(grad, q, k, v, out, probs)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, probs: Iterator[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`probs`: of each block in turn, [B, N, n, m]."""
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (grad.float() * out.float()).sum(-1, keepdim=True)
    for (start, stop), weights in zip(_blocks(q.shape[2]), probs, strict=True):
        towards, rows = grad[:, :, start:stop], q[:, :, start:stop]
        grad_v[:, :, :stop] += _transposed_times(weights.to(v.dtype), towards, v)
        slope = _products(towards, v[:, :, :stop]).float()
        slope = ((slope - delta[:, :, start:stop]) * weights * q.shape[-1] ** -0.5).to(q.dtype)
        grad_q[:, :, start:stop] = _times(slope, k[:, :, :stop])
        grad_k[:, :, :stop] += _transposed_times(slope, rows, k)
    return grad_q, grad_k, grad_v


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _scores(q: Tensor, k: Tensor, documents_BT: Tensor | None, start: int, stop: int) -> Tensor:
    """Of a block's rows with all keys that any of them sees, float32 [B, N, n, m]."""
    scores = _products(q[:, :, start:stop], k[:, :, :stop]).float() * q.shape[-1] ** -0.5
    scores = scores + _unseen(start, stop, q.device)
    if documents_BT is None:
        return scores
    apart = documents_BT[:, start:stop, None] != documents_BT[:, None, :stop]
    return scores.masked_fill(apart[:, None], -torch.inf)


def _unseen(start: int, stop: int, device: torch.device) -> Tensor:
    """[n, m]: −∞ where a key lies after the query, else 0. Added, since a compiler makes vectors of that and not of a masked slice."""
    return torch.full((stop - start, stop), -torch.inf, device=device).triu(start + 1)


# Products of all query heads of a key head together, so that no key is repeated.


def _grouped(x: Tensor, num_keys: int) -> Tensor:
    """[B, N, n, …] as [B·K, G·n, …]."""
    batch, heads, rows = x.shape[:3]
    return x.reshape(batch * num_keys, heads // num_keys * rows, -1)


def _products(rows_BNnD: Tensor, keys_BKmD: Tensor) -> Tensor:
    """Each row with each key of its head, [B, N, n, m]."""
    keys = keys_BKmD.flatten(0, 1)
    return torch.bmm(_grouped(rows_BNnD, keys_BKmD.shape[1]), keys.transpose(1, 2)).view(*rows_BNnD.shape[:3], -1)


def _times(weights_BNnm: Tensor, values_BKmD: Tensor) -> Tensor:
    """Sums of the values by weight, [B, N, n, D]."""
    values = values_BKmD.flatten(0, 1)
    return torch.bmm(_grouped(weights_BNnm, values_BKmD.shape[1]), values).view(*weights_BNnm.shape[:3], -1)


def _transposed_times(weights_BNnm: Tensor, rows_BNnD: Tensor, keys: Tensor) -> Tensor:
    """Sums of the rows by weight for each key, [B, K, m, D]."""
    num_keys = keys.shape[1]
    product = torch.bmm(_grouped(weights_BNnm, num_keys).transpose(1, 2), _grouped(rows_BNnD, num_keys))
    return product.unflatten(0, (-1, num_keys))
