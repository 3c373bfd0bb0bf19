"""Causal attention for training on short windows on a CPU, where the library's own kernel is slow.

Blocks of queries against all keys up to the block's end, as plain matrix products: half of what a full square costs, at the
speed of large products (docs/log.md has the measurement). The probabilities are kept for the backward pass, which is why
windows must be short.

Promises: values and gradients of softmax(q·k/√D)·v over each row's own past. Refuses to know: models, documents.

Shapes: B windows, K key heads, G query heads on each, N = K·G, T tokens, D head_dim, n rows of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
LONGEST = 512  # tokens; beyond it the kept probabilities cost more than they save
KINDS = (torch.bfloat16, torch.float32)


def attend(layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
    """Causal attention of every layer, a `Placing`'s `attend`: in blocks where they are faster, else the library's."""
    kind = v_BKTD.dtype  # rotation leaves queries and keys in float32 under autocast
    q, k = q_BNTD.to(kind), k_BKTD.to(kind)
    short = q.shape[2] <= LONGEST and q.device.type == "cpu" and kind in KINDS
    if short and torch.is_grad_enabled():
        out: Any = _Blocks.apply(q, k, v_BKTD)
        return out
    return F.scaled_dot_product_attention(q, k, v_BKTD, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped, (k, v) = _grouped(q, k.shape[1]), (x.flatten(0, 1).contiguous() for x in (k, v))
        out, kept = torch.empty_like(grouped), []
        for start, stop in _blocks(q.shape[2]):
            rows = grouped[:, :, start:stop]
            scores = torch.bmm(rows.flatten(1, 2), k[:, :stop].transpose(1, 2)).view(*rows.shape[:3], stop).float()
            scores = scores * q.shape[-1] ** -0.5 + _unseen(start, stop, q.device)
            weights = scores.softmax(-1).to(q.dtype).flatten(1, 2)
            out[:, :, start:stop] = torch.bmm(weights, v[:, :stop]).view(rows.shape)
            kept.append(weights)
        ctx.save_for_backward(grouped, k, v, out, *kept)
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *kept = ctx.saved_tensors
        batch, heads, length, size = grads[0].shape
        grad = grads[0].reshape(q.shape).to(q.dtype)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        for (start, stop), weights in zip(_blocks(length), kept, strict=True):
            rows, towards = q[:, :, start:stop].flatten(1, 2), grad[:, :, start:stop].flatten(1, 2)
            grad_v[:, :stop] += torch.bmm(weights.transpose(1, 2), towards)
            slope = torch.bmm(towards, v[:, :stop].transpose(1, 2)).float()
            slope = (slope - delta[:, :, start:stop].flatten(1, 2)) * weights * size**-0.5
            slope = slope.to(q.dtype)
            grad_q[:, :, start:stop] = torch.bmm(slope, k[:, :stop]).unflatten(1, (q.shape[1], -1))
            grad_k[:, :stop] += torch.bmm(slope.transpose(1, 2), rows)
        shape = (batch, -1, length, size)
        return grad_q.view(batch, heads, length, size), grad_k.view(shape), grad_v.view(shape)


def _grouped(q_BNTD: Tensor, keys: int) -> Tensor:
    """[B·K, G, T, D]: the query heads of one key head together, so that no key is repeated."""
    batch, heads, length, size = q_BNTD.shape
    return q_BNTD.reshape(batch * keys, heads // keys, length, size)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _unseen(start: int, stop: int, device: torch.device) -> Tensor:
    """[n, stop]: −∞ where a key lies after the query, else 0. Added, since a compiler makes vectors of that and not of a masked slice."""
    return torch.full((stop - start, stop), -torch.inf, device=device).triu(start + 1)
