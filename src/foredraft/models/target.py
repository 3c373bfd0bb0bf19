"""What draft heads, and all that learns from a target's states, read of a target, whatever computes it.

Three do: our own `Decoder`, a model of transformers, and the tables of a checkpoint whose states a serving engine wrote to files (`teacher`).

Promises: heads know nothing else of their target. Refuses to know: caches, how states come about.

Shapes: as in this room; V rows of the LM head.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foredraft.models.layers import ModelConfig
from foredraft.shapes import Shape


class LogitsForm(NamedTuple):
    """What makes logits of the products of states and the LM head, where there is more: `bias_V` is added to them, and `cap` bounds them
    softly, cap·tanh(x/cap).
    """

    bias_V: Tensor | None = None
    cap: float | None = None

    def __call__(self, products_nV: Tensor) -> Tensor:
        """Logits of the products, [..., n, V]."""
        if self.bias_V is not None:
            products_nV = products_nV + self.bias_V.to(products_nV)
        return products_nV if self.cap is None else self.cap * (products_nV / self.cap).tanh()

    def rows(self, ids: Tensor) -> "LogitsForm":
        """Of these ids alone."""
        return self if self.bias_V is None else self._replace(bias_V=self.bias_V[ids])


class Target(nn.Module, ABC):
    """A frozen causal language model as its heads see it. `config`: of its layers, of which a new head takes norm and rope.

    Called as `Decoder.forward` is, without a cache, it gives hidden states; one that has none to compute raises ValueError.
    """

    shape: Shape
    config: ModelConfig
    embed_tokens: nn.Embedding
    norm: nn.Module
    logits_form = LogitsForm()
    masked = True  # whether it takes a mask of who sees whom; else documents are put to it one by one

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    @abstractmethod
    def head_weight_VC(self) -> Tensor:
        """The matrix of the LM head."""
