"""Attention of EAGLE-3's training-time test (arXiv 2503.01840, section 3.2): causal first, then along each row's own chain.

At step 0 row t sees rows 0 … t. At step s it sees those again, with step 0's keys, and of every later step up to its
own the one key of row t: what a chain drafted after row t finds in the cache. The second part is a handful of keys per
row, so it is never laid out as a mask: both parts are computed apart and merged by their log-sum-exp, and the backward
of the first part runs on the merged output and log-sum-exp, which makes it that part's share of the joint softmax's
gradient (the identity behind ring attention, arXiv 2310.01889).

Promises: values and gradients of one softmax over all keys seen, in memory that grows with B·T·steps, not with T².
Refuses to know: heads, losses.

Shapes: B windows, N query heads, K key heads, G = N/K, T rows, D head_dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.teacher.attention import blockwise, blockwise_backward, out_of_graphs

_HALF = (torch.bfloat16, torch.float16)


class Chains:
    """The attention of one training-time test, an `AttentionMetadata`'s `attend`: its n-th call for a layer is step n.

    `documents_BT` keeps attention inside documents (None: a row sees all earlier ones).
    """

    def __init__(self, documents_BT: Tensor | None = None) -> None:
        self.documents_BT = documents_BT
        self.keys_values: dict[int, list[Tensor]] = {}  # of each layer: keys and values, step after step
        self._attend = out_of_graphs(self.attend)

    def __call__(self, layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        return self._attend(layer, q_BNTD, k_BKTD, v_BKTD)

    def attend(self, layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        q, k, v = (
            _rowed(x.to(v_BKTD.dtype)) for x in (q_BNTD, k_BKTD, v_BKTD)
        )  # float32 after rotation under autocast
        keys_values = self.keys_values.setdefault(layer, [])
        keys_values += (k, v)
        if len(keys_values) == 2 and self.documents_BT is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return joint(q, keys_values, self.documents_BT)


def _rowed(x: Tensor) -> Tensor:
    """With D side by side in memory, which the kernels below take for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


def joint(q_BNTD: Tensor, keys_values: list[Tensor], documents_BT: Tensor | None = None) -> Tensor:
    """softmax(q·k/√D)·v over all keys seen, [B, N, T, D]; `keys_values` are k and v of step 0, then of each later step."""
    merged: Any = _Joint.apply(q_BNTD, documents_BT, *keys_values)
    return merged


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, documents: Tensor | None, *keys_values: Tensor) -> Tensor:
        out, lse, ctx.kernel_state = _causal(q, _repeated(keys_values[0], q), _repeated(keys_values[1], q), documents)
        scores = torch.stack([lse, *(_scores(q, k) for k in keys_values[2::2])])
        total = scores.logsumexp(0)
        shares = (scores - total).exp()[..., None]
        merged = out.float() * shares[0]
        for share, v in zip(shares[1:], keys_values[3::2], strict=True):
            merged = (_grid(merged, v) + _grid(share, v) * v[:, :, None]).flatten(1, 2)
        merged = merged.to(q.dtype)
        ctx.save_for_backward(q, documents, merged, total, *keys_values)
        return merged

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, documents, merged, total, *keys_values = ctx.saved_tensors
        grad, first = grads[0], (_repeated(keys_values[0], q), _repeated(keys_values[1], q))
        grad_q, *causal_grads = _causal_backward(grad, q, *first, documents, merged, total, ctx.kernel_state)
        grad_q, grads_kv = grad_q.float(), [_folded(part, keys_values[0]) for part in causal_grads]
        delta = (grad.float() * merged).sum(-1)
        for k, v in zip(keys_values[2::2], keys_values[3::2], strict=True):
            share = (_scores(q, k) - total).exp()
            slope = share * (_dot(grad, v) - delta) * q.shape[-1] ** -0.5
            grad_q += (_grid(slope[..., None], k) * k[:, :, None]).flatten(1, 2)
            grads_kv.append((_grid(slope[..., None], k) * _grid(q, k)).sum(2).to(k.dtype))
            grads_kv.append((_grid(share[..., None], v) * _grid(grad, v)).sum(2).to(v.dtype))
        return grad_q.to(q.dtype), None, *grads_kv


# A row's chain: one key per row and step, so elementwise products.


def _grid(x: Tensor, keys: Tensor) -> Tensor:
    """[B, N, …] as [B, K, G, …], to meet keys [B, K, 1, …]."""
    return x.unflatten(1, (keys.shape[1], -1))


def _dot(x_BNTD: Tensor, y_BKTD: Tensor) -> Tensor:
    """Row by row, float32, [B, N, T]."""
    return (_grid(x_BNTD, y_BKTD).float() * y_BKTD[:, :, None]).sum(-1).flatten(1, 2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return _dot(q, k) * q.shape[-1] ** -0.5


def _repeated(x_BKTD: Tensor, q: Tensor) -> Tensor:
    """Each key head once for every query head that reads it."""
    groups = q.shape[1] // x_BKTD.shape[1]
    return x_BKTD if groups == 1 else x_BKTD.repeat_interleave(groups, 1)


def _folded(grad_BNTD: Tensor, keys: Tensor) -> Tensor:
    """The gradient of `_repeated`."""
    return _grid(grad_BNTD, keys).sum(2).to(keys.dtype)


# The causal part: the library's kernels where they give a log-sum-exp, blocks of queries elsewhere.


def _causal(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Any]:
    """Output, log-sum-exp [B, N, T] and what the backward needs besides."""
    kind = _kernel(q, documents)
    if kind == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        return out, lse, None
    if kind == "cuda":
        out, lse, *state = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
        return out, lse, state[:6]
    return *blockwise(q, k, v, documents), None


def _causal_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, out: Tensor, lse: Tensor, kernel_state: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v with `out` and `lse` of the softmax that these keys share with others."""
    kind, grad = _kernel(q, documents), _rowed(grad.to(q.dtype))
    if kind == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return kernel(grad, q, k, v, out, lse, 0.0, True)
    if kind == "cuda":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
        lengths, philox = kernel_state[:4], kernel_state[4:]
        return kernel(grad, q, k, v, out, lse, *lengths, 0.0, True, *philox)
    return blockwise_backward(grad, q, k, v, documents, out, lse)


def _kernel(q: Tensor, documents: Tensor | None) -> str:
    if documents is not None:
        return "blocks"
    if q.device.type == "cpu":
        return "cpu"
    return "cuda" if q.device.type == "cuda" and q.dtype in _HALF and q.shape[-1] % 8 == 0 else "blocks"
