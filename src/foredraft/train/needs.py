"""What a run will need, before it is started: parameters, FLOPs, memory, disk, time, and what its plan expects of it.

Counted from shapes, no weight is loaded; only the rate of matrix products is measured, here and now. Memory counts tensors
as the loop holds them in eager mode, with room for what is not counted.

Promises: nothing is written or trained. Refuses to know: laws (what a plan expects is in the recipe).
"""

from pathlib import Path

from foredraft import kinds
from foredraft.hardware import matmul_rate
from foredraft.models.load import read_config
from foredraft.recipe import Eagle3, LanguageModel, Prediction, Recipe, Stage
from foredraft.records import Estimate, Record
from foredraft.shapes import BYTES_PER_VALUE, Shape
from foredraft.teacher.teacher import GROUP_BYTES
from foredraft.train.devices import Devices
from foredraft.train.heads import training_flops
from foredraft.train.language_model import settings_of
from foredraft.train.launch import check_target, head_settings
from foredraft.train.loop import micro_batches
from foredraft.train.optimiser import MOMENTS

# Share of the ceiling that training reaches: from small models in eager mode to large or compiled ones (results/train_speed.json).
SHARES = 0.25, 0.45, 0.6
ROOM = 1.6  # peaks were 1.11 to 1.54 times the count (five kinds of run, results/head_speed.json)
FLOAT = BYTES_PER_VALUE["float32"]


class Needs(Record, frozen=True):
    """Per run, `memory_bytes` per device. `time_s` assumes `SHARES` of `ceiling_flops_per_s`, one device's measured rate.

    `steps` are optimiser steps, `tokens` all positions fed. `disk_bytes`: checkpoints at their most, and exports.
    """

    params: int
    frozen_params: int
    tokens: int
    steps: int
    flops_per_token: float
    flops: float
    memory_bytes: float
    disk_bytes: float
    ceiling_flops_per_s: float
    devices: int
    time_s: Estimate
    predicted: Prediction | None = None


def needs(recipe: Recipe, devices: Devices, target: Path | None = None) -> Needs:
    """Raises ValueError where the recipe needs a target and has none, or a batch does not spread over the devices."""
    check_target(recipe, target)
    frozen = read_config(target)[0] if target else None
    trained = trained_shape(recipe, target)
    flops = sum(stage.steps * stage.tokens_per_step * _flops(recipe, stage, trained, target) for stage in recipe.stages)
    rate = matmul_rate(devices.device, recipe.precision)
    times = [flops / (rate * devices.world * share) for share in SHARES]
    return Needs(
        params=trained.params, frozen_params=frozen.params if frozen else 0, tokens=recipe.tokens,
        steps=sum(stage.steps for stage in recipe.stages), flops_per_token=flops / recipe.tokens, flops=flops,
        memory_bytes=memory(recipe, devices, trained, frozen), disk_bytes=disk(recipe, trained), devices=devices.world,
        ceiling_flops_per_s=rate, predicted=recipe.predicted,
        time_s=Estimate(value=times[1], low=times[2], high=times[0], unit="s", source="share of the measured rate"),
    )  # fmt: skip


def trained_shape(recipe: Recipe, target: Path | None) -> Shape:
    """Of what is trained."""
    model = recipe.model
    if isinstance(model, LanguageModel):
        return settings_of(model, target)[0]
    assert target is not None, "check_target came first"
    if model.init is not None:
        return kinds.shape_of_folder(model.init)
    shape = read_config(target)[0]
    if isinstance(model, Eagle3):
        return kinds.EAGLE3.shape(shape, model.layers, min(model.draft_vocab or shape.vocab_size, shape.vocab_size))
    return kinds.EAGLE.shape(shape, model.layers)


def _flops(recipe: Recipe, stage: Stage, trained: Shape, target: Path | None) -> float:
    """Training FLOPs of one token of a stage's windows."""
    if target is None or isinstance(recipe.model, LanguageModel):
        frozen = read_config(target)[0] if target and recipe.needs_target else None
        context = (stage.length + 1) / 2
        return 3 * trained.flops_per_token(context) + (frozen.flops_per_token(context) if frozen else 0.0)
    return training_flops(trained, read_config(target)[0], head_settings(recipe), stage.length)


def memory(recipe: Recipe, devices: Devices, trained: Shape, frozen: Shape | None) -> float:
    """Bytes of weights, gradients, moments, the frozen target, activations of one micro-batch and the loss's logits."""
    spread = devices.world if devices.shard else 1
    narrow = BYTES_PER_VALUE[recipe.precision]
    states = trained.params * FLOAT * (2 + MOMENTS) / spread + trained.params * narrow
    target = frozen.params * narrow / spread if frozen else 0.0
    rows = max(len(range(stage.batch)[micro_batches(stage, devices)[0]]) * stage.length for stage in recipe.stages)
    unroll = recipe.model.unroll if isinstance(recipe.model, Eagle3) else 1
    kept = rows * unroll * trained.num_layers * _kept_per_token(trained, narrow, max(s.length for s in recipe.stages))
    return ROOM * (states + target + kept + GROUP_BYTES.get(devices.device.type, GROUP_BYTES["cuda"]) * 4)


def _kept_per_token(shape: Shape, narrow: float, length: int) -> float:
    """Bytes that one layer keeps of a token for its backward: norms' inputs and outputs in float32, products' in `narrow`."""
    hidden, inner, queries = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim
    products = 6 * hidden + 4 * inner + 3 * queries + 2 * keys + shape.num_heads * min(length, 512) / 2
    return 4 * hidden * FLOAT + (queries + keys) * FLOAT + products * narrow


def disk(recipe: Recipe, trained: Shape) -> float:
    """Bytes of the checkpoints kept, the best and the one being written, and of exports, the last and the best."""
    watch = recipe.watch
    checkpoints = (watch.keep + 2) * trained.params * FLOAT * (1 + MOMENTS)
    return checkpoints + (len(watch.export_at) + 2) * trained.weight_bytes(watch.export_dtype)
