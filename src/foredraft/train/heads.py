"""Draft heads as something to train: EAGLE-1/2, EAGLE-3 and Scylla on the hidden states of a frozen target.

EAGLE-3 and Scylla (arXiv 2503.01840, 2505.07858): `unroll` steps of training-time test, the loss of step s weighing
decay^s, a mean over the places that count. EAGLE-1/2 (arXiv 2401.15077): one step on noisy hidden states,
feature_weight·SmoothL1 of its state to the target's + token_weight·the loss on tokens.

Promises: tokens, hidden states and probabilities are aligned as in the engine; sums, so that any split of a batch trains the
same head. Refuses to know: the loop, plans.

Shapes: S steps, B windows, T tokens, C hidden size, V the head's vocabulary; W the target's hidden size.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.data.tokens import TOKENIZER, Batch
from foredraft.models.draft_head import DraftHead, TokenHead
from foredraft.models.heads import save_head
from foredraft.models.layers import FusionLayer, Layer
from foredraft.models.target import Target
from foredraft.shapes import Shape
from foredraft.teacher.acceptance import tally
from foredraft.teacher.hidden_states import HiddenStates, HiddenStateSource, OnlineHiddenStates
from foredraft.teacher.predictions import emitted_mask
from foredraft.teacher.unroll import UnrolledHead, within
from foredraft.train.flops import EAGLE3, EVERYTHING, Computed, HeadSettings, head_training_flops
from foredraft.train.lm_head import lm_head_loss
from foredraft.train.objective import Loss, acceptance_figures

NOISE = 0.2 * 512  # EAGLE's width of the uniform noise, by tokens of the window


class TrainedHead(UnrolledHead):
    """A head with all that is computed from its parameters as one module, so that devices may wrap and shard it."""

    def __init__(self, head: TokenHead, settings: HeadSettings) -> None:
        super().__init__(head, within_documents=settings.within_documents)
        self.settings = settings

    def combined(self, hidden_states: HiddenStates) -> Tensor:
        """While training, with EAGLE's noise."""
        hidden = super().combined(hidden_states)
        if not (self.training and self.settings.noise):
            return hidden
        return hidden + (torch.rand_like(hidden) - 0.5) * (self.settings.noise * NOISE / hidden.shape[1])

    def forward(self, batch: Batch, hidden_states: HiddenStates, tallied: bool = False) -> Any:
        """Summed loss, its weight, and by step [3, S]: loss on tokens, places, agreements. `tallied`: the sums of
        `acceptance.tally` instead. Both here, since a wrapped module's parameters are whole only inside `forward`.
        """
        return self.tally(batch, hidden_states) if tallied else self.loss(batch, hidden_states)

    def loss(self, batch: Batch, hidden_states: HiddenStates) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        states = self.states(batch, hidden_states, settings.unroll)
        weights = settings.decay ** torch.arange(settings.unroll, device=states.device, dtype=torch.float32)
        weights = weights / weights.sum()
        labels = F.pad(batch.mask_BT[:, 1:], (0, 1))
        counted = within(batch.documents_BT, settings.unroll) & labels
        tokens = lm_head_loss(
            states.flatten(1, 2), self.lm_head(), counted.flatten(1), settings.loss,
            teacher=self.teacher(hidden_states), weights_S=weights, monitor="agree",
        )  # fmt: skip
        by_step = torch.stack([share * tokens.terms[name] for name, share in settings.loss.items()]).sum(0)
        total, places = settings.token_weight * tokens.total, tokens.terms["places"]
        if settings.feature_weight:
            distances = regression(states, hidden_states.final_BTW, counted)
            total = total + settings.feature_weight * (weights * distances).sum()
        return total, (weights * places).sum(), torch.stack((by_step, places, tokens.terms["agree"]))

    def tally(self, batch: Batch, hidden_states: HiddenStates) -> dict[str, Tensor]:
        emitted = emitted_mask(batch.mask_BT, batch.documents_BT)
        predicted = self.predictions(batch, hidden_states, self.settings.lookahead)
        return tally(predicted, batch.tokens_BT, emitted, batch.documents_BT)


def regression(states_SBTC: Tensor, final_BTW: Tensor, counted_SBT: Tensor) -> Tensor:
    """SmoothL1 between the head's states and the target's, mean over C, summed over places, [S]."""
    apart = F.smooth_l1_loss(states_SBTC.float(), final_BTW.float().expand(states_SBTC.shape), reduction="none")
    return (apart.mean(-1) * counted_SBT).sum((1, 2))


class HeadObjective:
    """An `Objective`: trains `head`, which borrows `target`, on hidden states from `source` (the target itself by default,
    as on held-out text, where `held_out` has none).

    `length`: tokens of a window, and `computed`, for `flops_per_token`. `dtype`: of the served weights, `keys`: more of their config,
    `tokenizer`: the folder of the one whose ids they draft.
    Raises ValueError where the settings do not fit the head.
    """

    settings: Any

    def __init__(
        self, target: Target, head: DraftHead, settings: Any = EAGLE3, *,
        source: HiddenStateSource | None = None, held_out: HiddenStateSource | None = None, length: int = 512,
        dtype: torch.dtype = torch.float32, keys: Mapping[str, Any] | None = None, computed: Computed = EVERYTHING,
        tokenizer: Path | None = None,
    ) -> None:  # fmt: skip
        if settings.lookahead < 1:
            raise ValueError(f"lookahead ({settings.lookahead}) must be at least 1")
        if head.target is not target:
            raise ValueError("head borrows the tables of another target")
        self.settings, self.frozen = settings, target.requires_grad_(False).eval()
        self.trained: nn.Module = self.module(head.requires_grad_(True), settings)
        online = OnlineHiddenStates(target, head.feature_layers, within_documents=settings.within_documents)
        self._source, self._held_out = source or online, held_out or online
        self._head, self._dtype, self._keys, self._tokenizer = head, dtype, dict(keys or {}), tokenizer
        self.flops_per_token = self.flops(head.shape, target.shape, settings, length, computed)

    @staticmethod
    def module(head: DraftHead, settings: Any) -> nn.Module:
        """What is trained. Raises ValueError where the settings do not fit the head."""
        if settings.unroll < 1:
            raise ValueError(f"unroll ({settings.unroll}) must be at least 1")
        if settings.feature_weight and not head.predicts_hidden_state:
            raise ValueError("feature_weight is EAGLE-1/2's: an EAGLE-3 head's state stands for no state of its target")
        if not isinstance(head, TokenHead):
            raise ValueError("unrolling is for heads that draft token by token")
        return TrainedHead(head, settings)

    @staticmethod
    def flops(shape: Shape, target: Shape, settings: Any, length: int, computed: Computed = EVERYTHING) -> float:
        """Training FLOPs of one token of a window."""
        return head_training_flops(shape, target, settings, length, computed)

    def sums(self, batch: Batch, hidden_states: HiddenStates, step: int) -> Any:
        """Summed loss, its weight, and the sums by step of `trained`, as step `step` of training has them."""
        return self.trained(batch, hidden_states)

    def compile(self) -> None:
        """Layers one by one, of the target and the head, around their attention."""
        for module in (*self.frozen.modules(), *self._head.modules()):
            if isinstance(module, Layer | FusionLayer):
                module.compile(dynamic=False)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Terms are sums that divided by the weight give each step's means: loss on tokens, and share of agreement on
        the argmax ("agree", over all places, not conditional on earlier steps).
        """
        total, weight, sums = self.sums(batch, self._source(batch), step)
        scale = weight.detach() / sums[1].clamp(min=1)
        terms = {f"loss_{s}": value for s, value in enumerate((sums[0] * scale).unbind())}
        return Loss(total, weight.detach(), terms | {f"agree_{s}": x for s, x in enumerate((sums[2] * scale).unbind())})

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """Loss as in training, without noise, and what `acceptance` needs of every document in the windows."""
        training, hidden_states = self.trained.training, self._held_out(batch)
        total, weight, steps = self.trained.eval()(batch, hidden_states)
        sums = self.trained(batch, hidden_states, tallied=True)
        self.trained.train(training)
        return {"loss": total.double(), "weight": weight.double(), "by_step": steps.double()} | sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean loss; τ with its 90 % interval and survival by position (`acceptance`); by step of training-time test the
        loss on tokens and the share of agreement.
        """
        by_step = sums["by_step"]
        means = (by_step[[0, 2]] / by_step[1].clamp(min=1)).tolist()
        return {
            "loss": float(sums["loss"] / sums["weight"].clamp(min=1)),
            **acceptance_figures(sums),
            **{f"loss_{s}": value for s, value in enumerate(means[0])},
            **{f"agree_{s}": value for s, value in enumerate(means[1])},
        }

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """The served flat format (config.json, model.safetensors), from the whole state of `trained`, and the tokenizer that its ids are of, so
        that a target of another is told.
        """
        weights = {name.removeprefix("head."): tensor for name, tensor in state.items()}
        save_head(self._head.with_weights(weights), folder, dtype=self._dtype, more=self._keys)
        if self._tokenizer and (file := self._tokenizer / TOKENIZER).is_file():
            shutil.copyfile(file, folder / TOKENIZER)
