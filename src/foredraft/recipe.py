"""A training run as a document: what is trained, on how much, with which loss, optimiser and seed.

Promises: frozen, an unknown key is an error, and equal recipes on equal data train the same run. Refuses to know: torch,
where target, data and results lie (the command line says so).
"""

import math
from typing import Any

import msgspec

from foredraft.records import Estimate, Record, require

TEXT_LOSSES = ("ce",)
TARGET_LOSSES = ("soft_ce", "kl", "rkl", "tv", "nla")
SCHEDULES = ("cosine", "wsd", "constant")
OPTIMISERS = ("adamw", "muon")
PRECISIONS = ("bfloat16", "float32")
STORED = (
    *PRECISIONS,
    "int8",
    "int4",
)  # matrices in eight bits, a scale a row, which our engine reads as they are, or in half the file


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")


class LanguageModel(Record, frozen=True, tag_field="kind", tag="lm"):
    """A decoder of its own: an independent draft, or a target to speculate on. One of three says its shape.

    `params`: about so many non-embedding parameters, in the family and vocabulary of the target. `config`: a Hugging Face
    config as an object. `init`: the folder of a checkpoint to go on from. `draft_vocab`: how many of the most frequent tokens it may draft,
    None for all; it reads them all.
    """

    params: float | None = None
    config: dict[str, Any] | None = None
    init: str | None = None
    draft_vocab: int | None = None

    def __post_init__(self) -> None:
        require(self, positive=("params", "draft_vocab"))
        if sum(field is not None for field in (self.params, self.config, self.init)) != 1:
            raise ValueError("model must give exactly one of params, config and init")


class Eagle(Record, frozen=True, tag_field="kind", tag="eagle"):
    """An EAGLE-1/2 head (arXiv 2401.15077): `feature_weight`·SmoothL1 on features + `token_weight`·the recipe's loss.

    `unroll`: steps on its own features that it learns from; EAGLE's one, or more as HASS has them (arXiv 2408.15766). `decay`: weight of a
    step over the step before. `noise`: amplitude of the uniform noise on features, in units of the paper's 0.2·512/T. `draft_vocab`: how many
    of the most frequent tokens it may draft, by their rows of the target's LM head alone; None for all. `init`: a head's folder.
    """

    layers: int = 1
    unroll: int = 1
    decay: float = 0.8
    feature_weight: float = 1.0
    token_weight: float = 0.1
    noise: float = 1.0
    draft_vocab: int | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        settings = ("feature_weight", "token_weight", "noise")
        require(self, positive=("layers", "unroll", "decay", "draft_vocab"), non_negative=settings)


class Eagle3(Record, frozen=True, tag_field="kind", tag="eagle3"):
    """An EAGLE-3 head (arXiv 2503.01840); from two layers on, Scylla's (arXiv 2505.07858).

    `unroll`: steps of training-time test. `decay`: weight of a step over the step before. `draft_vocab`: how many of the
    most frequent tokens it may draft, None for all. `feature_layers`: of the target, whose hidden states it reads; None for the default three.
    `init`: a head's folder.
    """

    layers: int = 1
    unroll: int = 7
    decay: float = 0.8
    draft_vocab: int | None = None
    feature_layers: tuple[int, int, int] | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("layers", "unroll", "decay", "draft_vocab"), non_negative=("feature_layers",))


class DFlash(Record, frozen=True, tag_field="kind", tag="dflash"):
    """A DFlash head (arXiv 2602.06036): a block of tokens in one pass.

    `block`: tokens that a pass drafts. `anchors`: blocks of a training window, as a share of its tokens. `decay`: weight of a position over
    the one before, None for the published exp(−1/γ) by the block. `feature_layers`: hidden states that it reads, in Hugging Face's count; None
    for five, as published. `mask_token`: the target's id that stands for a token not known yet; None for one that the first token folder does
    not hold. `draft_vocab`: how many of the most frequent tokens it may draft, by their rows of the target's LM head alone; None for all.
    `init`: a head's folder.
    """

    layers: int = 5
    block: int = 15
    anchors: float = 1 / 6
    decay: float | None = None
    draft_vocab: int | None = None
    feature_layers: tuple[int, ...] | None = None
    mask_token: int | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        _check_block(self)

    @property
    def position_decay(self) -> float:
        """`decay`, its default filled in."""
        return block_decay(self.block) if self.decay is None else self.decay


class DSpark(Record, frozen=True, tag_field="kind", tag="dspark"):
    """A DSpark head (arXiv 2607.05147): DFlash's block, in which each token is corrected by the one drafted before it, and a confidence.

    `rank`: of the correction. `confidence`: weight of the confidence head's loss. The rest is `DFlash`'s.
    """

    layers: int = 5
    block: int = 7
    anchors: float = 1 / 8
    decay: float | None = None
    rank: int = 256
    confidence: float = 1.0
    draft_vocab: int | None = None
    feature_layers: tuple[int, ...] | None = None
    mask_token: int | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("rank", "confidence"))
        _check_block(self)

    @property
    def position_decay(self) -> float:
        """`decay`, its default filled in."""
        return block_decay(self.block) if self.decay is None else self.decay


def _check_block(model: DFlash | DSpark) -> None:
    require(
        model, positive=("layers", "block", "anchors", "decay", "draft_vocab"), unit=("anchors",),
        non_negative=("feature_layers", "mask_token"),
    )  # fmt: skip
    if model.feature_layers is not None and not model.feature_layers:
        raise ValueError("feature_layers must name at least one hidden state")


def block_decay(block: int) -> float:
    """exp(−1/γ), γ as published: 4 for blocks of 7 and 8, 5 for 10, 7 for 16 (arXiv 2602.06036, appendix A.1), in line between and beyond."""
    return math.exp(-1 / (4 + max(block - 8, 0) * 3 / 8))


HeadModel = Eagle | Eagle3 | DFlash | DSpark
HEADS: dict[str, type[HeadModel]] = {
    "eagle": Eagle,
    "eagle3": Eagle3,
    "dflash": DFlash,
    "dspark": DSpark,
}  # by the name of their kind


class Stage(Record, frozen=True):
    """One stretch of training with a schedule of its own; weights go on from stage to stage, optimiser state starts anew.

    `tokens`: its budget, positions fed to the model. `data`: a token folder, the command line's when left out. A step takes
    `batch` sequences of `length` tokens, at most `micro_batch` of them at once on a device. `warmup`: share of the steps in
    which the rate rises to `learning_rate`; `final`: where it ends, as a share of it; `cooldown`: share in which "wsd" falls.
    """

    tokens: float
    data: str | None = None
    length: int = 512
    batch: int = 16
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.02
    cooldown: float = 0.2
    final: float = 0.1

    def __post_init__(self) -> None:
        require(
            self,
            positive=("tokens", "length", "batch", "micro_batch", "learning_rate"),
            unit=("warmup", "cooldown", "final"),
        )
        _one_of("schedule", self.schedule, SCHEDULES)
        if self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens ({self.tokens:g}) must cover one step of batch × length = {self.tokens_per_step}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    @property
    def steps(self) -> int:
        """Optimiser steps: the budget in whole steps."""
        return round(self.tokens / self.tokens_per_step)


class EvalSchedule(Record, frozen=True):
    """What is logged, evaluated and saved along the way. Changes no weight, so it may differ when a run resumes.

    Every so many steps: a line in metrics.jsonl, held-out figures over about `held_out_tokens`, a checkpoint (of which the
    last `keep` and the best stay). `export_at`: tokens, counted over the run, at which the model is saved in its served
    format beside; `export_dtype`: the type of served weights (int8, int4: see `STORED`). `lookahead`: drafted tokens per step on held-out text.
    """

    log_every: int = 10
    held_out_every: int = 200
    held_out_tokens: float = 65536
    save_every: int = 500
    keep: int = 2
    export_at: tuple[float, ...] = ()
    export_dtype: str = "float32"
    lookahead: int = 5
    tensorboard: bool = False

    def __post_init__(self) -> None:
        every = ("log_every", "held_out_every", "held_out_tokens", "save_every", "keep", "export_at", "lookahead")
        require(self, positive=every)
        _one_of("export_dtype", self.export_dtype, STORED)


class Prediction(Record, frozen=True):
    """What a plan expects of the trained draft, drafting `lookahead` tokens per step."""

    lookahead: int
    tokens_per_step: Estimate


class Recipe(Record, frozen=True):
    """All that decides a run's numbers, and `watch`.

    `loss` maps names to weights: "ce" is against the text's own next token; against the target's distribution p are
    "soft_ce" −Σ p log q, "kl" KL(p‖q), "rkl" KL(q‖p), "tv" total variation = 1 − α, "nla" −log α. Left out: "ce" for a
    language model and DFlash, "soft_ce" for EAGLE's heads, 0.1 "ce" and 1.8 "tv" (0.9 Σ|p − q|) for DSpark. `clip`: largest norm of the
    gradient. `within_documents`: attention and labels stay inside a document. `precision`: of matrix products; weights and optimiser
    are float32. `predicted`: what the plan behind the recipe expects.
    """

    model: LanguageModel | Eagle | Eagle3 | DFlash | DSpark
    stages: tuple[Stage, ...]
    loss: dict[str, float] = msgspec.field(default_factory=dict)
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    within_documents: bool = False
    precision: str = "bfloat16"
    compile: bool = False
    seed: int = 0
    watch: EvalSchedule = EvalSchedule()
    predicted: Prediction | None = None

    def __post_init__(self) -> None:
        require(self, positive=("clip",), non_negative=("weight_decay",), unit=("betas",))
        _one_of("optimiser", self.optimiser, OPTIMISERS)
        _one_of("precision", self.precision, PRECISIONS)
        if not self.stages:
            raise ValueError("stages must hold at least one stage")
        for name, weight in self.loss.items():
            _one_of("loss", name, TEXT_LOSSES + TARGET_LOSSES)
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"loss[{name}] must be a positive number, got {weight}")

    @property
    def losses(self) -> dict[str, float]:
        """`loss`, its default filled in."""
        if self.loss:
            return self.loss
        if isinstance(self.model, DSpark):
            return {"ce": 0.1, "tv": 1.8}
        return {"ce": 1.0} if isinstance(self.model, LanguageModel | DFlash) else {"soft_ce": 1.0}

    @property
    def needs_target(self) -> bool:
        """Whether a target computes along with what is trained."""
        return not isinstance(self.model, LanguageModel) or any(name in TARGET_LOSSES for name in self.losses)

    @property
    def tokens(self) -> int:
        """Of all stages, in whole steps."""
        return sum(stage.steps * stage.tokens_per_step for stage in self.stages)
