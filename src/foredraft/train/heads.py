"""Draft heads as something to train: EAGLE-1/2, EAGLE-3 and Scylla on the features of a frozen target.

EAGLE-3 and Scylla (arXiv 2503.01840, 2505.07858): `unroll` steps of training-time test, the loss of step s weighing
decay^s, a mean over the places that count. EAGLE-1/2 (arXiv 2401.15077): one step on noisy features,
feature_weight·SmoothL1 of its state to the target's + token_weight·the loss on tokens.

Promises: tokens, features and laws are aligned as in the engine; sums, so that any split of a batch trains the same head;
the target's tables are read, never copied. Refuses to know: the loop, plans.

Shapes: S steps, B windows, T tokens, C hidden size, V the head's vocabulary; F, W as in `features`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.data.tokens import Batch
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.heads import save_head
from foredraft.models.layers import FusionLayer, Layer
from foredraft.teacher.acceptance import acceptance, tally
from foredraft.teacher.features import Features, FeatureSource, Online
from foredraft.teacher.readings import Readings, predicted, read
from foredraft.teacher.teacher import Teacher
from foredraft.teacher.unroll import aligned, unroll, within
from foredraft.train.lm_head import lm_head_loss
from foredraft.train.objective import Loss

NOISE = 0.2 * 512  # EAGLE's width of the uniform noise, by tokens of the window


class HeadSettings(NamedTuple):
    """How a head is trained. `decay`: weight of a step over the one before. `loss`: names of `losses` against the target,
    with weights. `feature_weight`, `token_weight` and `noise` (in units of the paper's 0.2·512/T) are EAGLE-1/2's.
    `within_documents`: nothing is seen of other documents in a window. `lookahead`: drafted tokens per step held out.
    """

    unroll: int = 7
    decay: float = 0.8
    loss: Mapping[str, float] = {"soft_ce": 1.0}
    feature_weight: float = 0.0
    token_weight: float = 1.0
    noise: float = 0.0
    within_documents: bool = False
    lookahead: int = 5


EAGLE = HeadSettings(unroll=1, feature_weight=1.0, token_weight=0.1, noise=1.0)
EAGLE3 = HeadSettings()


class Unrolled(nn.Module):
    """A head with all that is computed from its parameters as one module, so that devices may wrap and shard it."""

    def __init__(self, head: DraftHead, settings: HeadSettings) -> None:
        super().__init__()
        self.head, self.settings = head, settings
        target = head.target
        self._tables = (target.embed_tokens.weight, target.head_weight_VC)  # in a tuple: no parameters of this module

    def states(self, batch: Batch, features: Features, steps: int) -> Tensor:
        """`unroll.aligned` states [S, B, T, C]; while training, features carry EAGLE's noise."""
        hidden = self.head.combine(features.streams_BTF)
        if self.training and self.settings.noise:
            width = self.settings.noise * NOISE / hidden.shape[1]
            hidden = hidden + (torch.rand_like(hidden) - 0.5) * width
        own, documents = self.head.embed_tokens, batch.documents_BT if self.settings.within_documents else None
        table = self._tables[0] if own is None else own.weight
        found = unroll(self.head, table, hidden, batch.tokens_BT, steps, documents)
        return aligned(found, batch.tokens_BT.shape[1])

    def readout(self, features: Features) -> tuple[Tensor, Teacher]:
        """The head's own matrix to logits, and what it is compared with."""
        final, table = features.final_BTW.flatten(0, 1), self._tables[1]
        if not isinstance(self.head, Eagle3Head):
            return table, Teacher(final, table)
        ids = None if bool(self.head.t2d.all()) else self.head.t2d.nonzero()[:, 0]
        return self.head.lm_head.weight, Teacher(final, table, ids)

    def forward(self, batch: Batch, features: Features, probe: bool = False) -> Any:
        """Summed loss, its weight, and by step [3, S]: loss on tokens, places, agreements. `probe`: the sums of
        `acceptance.tally` instead. Both here, since a wrapped module's parameters are whole only inside `forward`.
        """
        return self.tallied(batch, features) if probe else self.lost(batch, features)

    def lost(self, batch: Batch, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        states = self.states(batch, features, settings.unroll)
        weights = settings.decay ** torch.arange(settings.unroll, device=states.device, dtype=torch.float32)
        weights = weights / weights.sum()
        labels = F.pad(batch.mask_BT[:, 1:], (0, 1))
        counted = within(batch.documents_BT, settings.unroll) & labels
        matrix, teacher = self.readout(features)
        found = lm_head_loss(
            states.flatten(1, 2), matrix, counted.flatten(1), settings.loss,
            teacher=teacher, weights_S=weights, monitor="agree",
        )  # fmt: skip
        losses = torch.stack([share * found.terms[name] for name, share in settings.loss.items()]).sum(0)
        places = found.terms["places"]
        total = settings.token_weight * found.total
        if settings.feature_weight:
            total = total + settings.feature_weight * (weights * regression(states, features.final_BTW, counted)).sum()
        return total, (weights * places).sum(), torch.stack((losses, places, found.terms["agree"]))

    def tallied(self, batch: Batch, features: Features) -> dict[str, Tensor]:
        emitted = predicted(batch.mask_BT, batch.documents_BT)
        readings = self.read(batch, features, self.settings.lookahead)
        return tally(readings, batch.tokens_BT, emitted, batch.documents_BT)

    def read(self, batch: Batch, features: Features, lookahead: int, *, laws: bool = False) -> Readings:
        """What the head would draft from every place of the batch's texts."""
        matrix, teacher = self.readout(features)
        emitted = predicted(batch.mask_BT, batch.documents_BT)
        states, drafted = self.states(batch, features, lookahead), within(batch.documents_BT, lookahead)
        return read(states, matrix, teacher, batch.tokens_BT, emitted, drafted, laws=laws)


def regression(states_SBTC: Tensor, final_BTW: Tensor, counted_SBT: Tensor) -> Tensor:
    """SmoothL1 between the head's states and the target's, mean over C, summed over places, [S]."""
    apart = F.smooth_l1_loss(states_SBTC.float(), final_BTW.float().expand(states_SBTC.shape), reduction="none")
    return (apart.mean(-1) * counted_SBT).sum((1, 2))


class HeadObjective:
    """An `Objective`: trains `head`, which borrows `target`, on features from `source` (the target itself by default,
    as always on held-out text).

    `length`: tokens of a window, for `flops_per_token`. `dtype`: of the served weights, `keys`: more of their config.
    Raises ValueError where the settings do not fit the head.
    """

    def __init__(
        self,
        target: Decoder,
        head: DraftHead,
        settings: HeadSettings = EAGLE3,
        *,
        source: FeatureSource | None = None,
        length: int = 512,
        dtype: torch.dtype = torch.float32,
        keys: Mapping[str, Any] | None = None,
    ) -> None:
        if settings.unroll < 1 or settings.lookahead < 1:
            raise ValueError(f"unroll ({settings.unroll}) and lookahead ({settings.lookahead}) must be at least 1")
        if settings.feature_weight and not isinstance(head, EagleHead):
            raise ValueError("feature_weight is EAGLE-1/2's: an EAGLE-3 head's state stands for no state of its target")
        if head.target is not target:
            raise ValueError("head borrows the tables of another target")
        self.settings, self.frozen = settings, target.requires_grad_(False).eval()
        self.trained: nn.Module = Unrolled(head.requires_grad_(True), settings)
        self._online = Online(target, head.feature_layers, within_documents=settings.within_documents)
        self._head, self._source, self._dtype, self._keys = head, source or self._online, dtype, dict(keys or {})
        self.flops_per_token = training_flops(head, settings, length)

    def compile(self) -> None:
        """Layers one by one, of the target and the head, around their attention."""
        for module in (*self.frozen.modules(), *self._head.modules()):
            if isinstance(module, Layer | FusionLayer):
                module.compile(dynamic=False)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Terms are sums that divided by the weight give each step's means: loss on tokens, and share of agreement on
        the likeliest token ("agree", over all places, not conditional on earlier steps).
        """
        total, weight, sums = self.trained(batch, self._source(batch))
        scale = weight.detach() / sums[1].clamp(min=1)
        terms = {f"loss_{s}": value for s, value in enumerate((sums[0] * scale).unbind())}
        return Loss(total, weight.detach(), terms | {f"agree_{s}": x for s, x in enumerate((sums[2] * scale).unbind())})

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """Loss as in training, without noise, and what `acceptance` needs of every document in the windows."""
        was, features = self.trained.training, self._online(batch)
        total, weight, steps = self.trained.eval()(batch, features)
        sums = self.trained(batch, features, probe=True)
        self.trained.train(was)
        return {"loss": total.double(), "weight": weight.double(), "by_step": steps.double()} | sums

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean loss; τ with its 90 % interval and survival by position (`acceptance`); by step of training-time test the
        loss on tokens and the share of agreement.
        """
        found, by_step = acceptance(sums), sums["by_step"]
        tau = found.tokens_per_step
        means = (by_step[[0, 2]] / by_step[1].clamp(min=1)).tolist()
        return {
            "loss": float(sums["loss"] / sums["weight"].clamp(min=1)),
            "tokens_per_step": tau.value, "tokens_per_step_low": tau.low, "tokens_per_step_high": tau.high,
            **{f"survival_{i}": value for i, value in enumerate(found.survival, 1)},
            **{f"loss_{s}": value for s, value in enumerate(means[0])},
            **{f"agree_{s}": value for s, value in enumerate(means[1])},
        }  # fmt: skip

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """The served flat format (config.json, model.safetensors), from the whole state of `trained`."""
        save_head(restored(self._head, state), folder, dtype=self._dtype, more=self._keys)


def restored(head: DraftHead, state: Mapping[str, Tensor]) -> Eagle3Head | EagleHead:
    """A head like `head`, which may be spread over devices, with the whole weights in `state` (of an `Unrolled`)."""
    own, target = head.embed_tokens is not None, head.target
    weights = {name.removeprefix("head."): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        if isinstance(head, Eagle3Head):
            made: Eagle3Head | EagleHead = Eagle3Head(
                head.shape, head.config, target, head.feature_layers, weights["d2t"], own
            )
        else:
            made = EagleHead(head.shape, head.config, target, own_embedding=own, fc_bias="fc.bias" in weights)
    made.load_state_dict(weights, strict=True, assign=True)
    return made


def training_flops(head: DraftHead, settings: HeadSettings, length: int) -> float:
    """FLOPs per token of a window: the target forward, the head's steps forward and twice that backward.

    EAGLE-1/2's LM head is the target's and gets no gradient of its own. Attention at half the window.
    """
    shape, context, later = head.shape, length / 2, settings.unroll - 1
    steps = shape.flops_per_token(context) + later * shape.flops_per_token(context, recurrent=True)
    borrowed = 0 if isinstance(head, Eagle3Head) else 2 * shape.head_params * settings.unroll
    return float(head.target.shape.flops_per_token(context) + 3 * steps - borrowed)
