"""What a run will need, before it is started: parameters, FLOPs, memory, disk, time, and what its plan expects of it.

Counted from shapes, no weight is loaded; only the rate of matrix products is measured, here and now. Memory counts tensors
as the loop holds them in eager mode, with room for what is not counted.

Promises: nothing is written or trained. Refuses to know: laws (what a plan expects is in the recipe).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from foredraft.data.tokens import TokenFolder
from foredraft.hardware import matmul_rate
from foredraft.recipe import Prediction, Recipe
from foredraft.records import Estimate, Record
from foredraft.shapes import Shape, bytes_per_value
from foredraft.teacher.state_files import StateFolder
from foredraft.teacher.teacher import GROUP_BYTES
from foredraft.teacher.transformers_target import TransformersFolder
from foredraft.train.devices import Devices
from foredraft.train.loop import micro_batches
from foredraft.train.objectives import TargetFolder, TeacherChoice, Trainee, trainee_of
from foredraft.train.optimiser import MOMENTS

# Share of the ceiling that training reaches: from small models in eager mode to large or compiled ones (results/train_speed.json).
SHARES = 0.25, 0.45, 0.6
ROOM = 1.6  # peaks were 1.11 to 1.54 times the count (five kinds of run, results/head_speed.json)
MOST_PASSES = 4  # over the same tokens, beyond which more passes bring little (arXiv 2305.16264)
FLOAT = bytes_per_value("float32")


class Needs(Record, frozen=True):
    """Per run, `memory_bytes` per device. `time_s` assumes `SHARES` of `ceiling_flops_per_s`, one device's measured rate.

    `notes`: what does not suit the data.
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
    notes: tuple[str, ...] = ()


def needs(
    recipe: Recipe, devices: Devices, target: Path | None = None, teacher: TeacherChoice | None = None, data: Sequence[Path] = ()
) -> Needs:  # fmt: skip
    """What `recipe` needs; of `data`, token folders as in `launch`, only sizes are looked at.

    Raises ValueError where the recipe needs a target and has none, or a batch does not spread over the devices."""
    trainee = trainee_of(recipe, target, teacher)
    trained, frozen = trainee.shape, trainee.target.shape if trainee.target else None
    flops = sum(stage.steps * stage.tokens_per_step * trainee.flops_per_token(stage.length) for stage in recipe.stages)
    rate = matmul_rate(devices.device, recipe.precision)
    times = [flops / (rate * devices.world * share) for share in SHARES]
    return Needs(
        params=trained.params, frozen_params=frozen.params if frozen else 0, tokens=recipe.tokens,
        steps=sum(stage.steps for stage in recipe.stages), flops_per_token=flops / recipe.tokens, flops=flops,
        memory_bytes=memory(trainee, devices), disk_bytes=disk(recipe, trained), devices=devices.world,
        ceiling_flops_per_s=rate, predicted=recipe.predicted, notes=tuple(_notes(recipe, frozen or trained, data)),
        time_s=Estimate(value=times[1], low=times[2], high=times[0], unit="s", source="share of the measured rate"),
    )  # fmt: skip


def _notes(recipe: Recipe, read_by: Shape, data: Sequence[Path]) -> Iterator[str]:
    """In words, for each stage: windows longer than the context or than documents, and many passes over few tokens."""
    context = read_by.max_position_embeddings
    for i, stage in enumerate(recipe.stages):
        where = f"stages[{i}]: " if len(recipe.stages) > 1 else ""
        if context and stage.length > context:
            yield f"{where}windows of {stage.length:,} tokens are longer than the context of {read_by.name}, {context:,}: lower length"
        path = Path(stage.data) if stage.data else data[min(i, len(data) - 1)] if data else None
        if path is None:
            continue
        folder = TokenFolder.open(path)
        median = float(np.median(np.diff(folder.offsets)))
        if stage.length > median:
            joined = "" if recipe.within_documents else ", which see one another unless within_documents is true"
            holds = f"a window of {stage.length:,} holds about {stage.length / median:,.1f} of them"
            yield f"{where}documents of {path.name} have {median:,.0f} tokens at the median: {holds}{joined}"
        if (passes := stage.tokens / folder.data.num_tokens) > MOST_PASSES:
            yield f"{where}{passes:,.0f} passes over {folder.data.num_tokens:,} tokens of {path.name}: prepare more of them, or lower tokens"


def memory(trainee: Trainee, devices: Devices) -> float:
    """Bytes of weights, gradients, moments, the frozen target, activations of one micro-batch and the loss's logits."""
    recipe, trained, frozen = trainee.recipe, trainee.shape, trainee.target
    spread = devices.world if devices.shard else 1
    narrow = bytes_per_value(recipe.precision)
    states = trained.params * FLOAT * (2 + MOMENTS) / spread + trained.params * narrow
    target = frozen_bytes(frozen, narrow) / spread if frozen else 0.0
    rows = max(len(range(stage.batch)[micro_batches(stage, devices)[0]]) * stage.length for stage in recipe.stages)
    length = max(stage.length for stage in recipe.stages)
    activations = rows * trainee.passes * trained.num_layers * _activation_bytes(trained, narrow, length)
    logits = GROUP_BYTES.get(devices.device.type, GROUP_BYTES["cuda"]) * 4
    return ROOM * (states + target + activations + logits)


def frozen_bytes(target: TargetFolder, narrow: float) -> float:
    """Bytes of the target's weights as its teacher holds them: those of its tables where its states are on file, quantised ones as stored."""
    shape = target.shape
    if isinstance(target, StateFolder):
        return (shape.params - shape.non_embedding_params) * narrow
    if isinstance(target, TransformersFolder) and target.quantised:
        return shape.weight_bytes()
    return shape.params * narrow


def _activation_bytes(shape: Shape, narrow: float, length: int) -> float:
    """Bytes of a token that one layer stores for its backward pass: norms' inputs and outputs in float32, products' in `narrow`."""
    hidden, inner, queries = shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim
    products = 6 * hidden + 4 * inner + 3 * queries + 2 * keys + shape.num_heads * min(length, 512) / 2
    return 4 * hidden * FLOAT + (queries + keys) * FLOAT + products * narrow


def disk(recipe: Recipe, trained: Shape) -> float:
    """Bytes of the checkpoints kept, the best and the one being written, and of exports, the last and the best."""
    watch = recipe.watch
    checkpoints = (watch.keep + 2) * trained.params * FLOAT * (1 + MOMENTS)
    return checkpoints + (len(watch.export_at) + 2) * trained.weight_bytes(watch.export_dtype)
