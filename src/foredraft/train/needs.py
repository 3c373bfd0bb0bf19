"""What a run will need, before it is started: parameters, FLOPs, memory, disk, time, and what its plan expects of it.

Counted from shapes, no weight is loaded and torch is not needed; only the rate of matrix products is measured, here and now. Memory counts
tensors as the loop holds them in eager mode, with room for what is not counted.

Promises: nothing is written or trained; data that does not fit is refused as by the run. Refuses to know: laws (what a plan expects is in
the recipe).
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foredraft.data.tokens import TokenFolder, check
from foredraft.recipe import Prediction, Recipe
from foredraft.records import Estimate, Record
from foredraft.shapes import Shape, bytes_per_value
from foredraft.teacher.group_bytes import GROUP_BYTES
from foredraft.train.batches import Process, micro_batches
from foredraft.train.sizes import (
    TargetSize,
    TeacherChoice,
    TrainedSize,
    check_target,
    sizes_of,
    target_size,
    tokenizer_folder,
)

MOMENTS = 2  # tensors of AdamW's state, as large as its weights
# Share of the ceiling that training reaches: from small models in eager mode to large or compiled ones (results/train_speed.json).
SHARES = 0.25, 0.45, 0.6
ROOM = 1.6  # peaks were 1.11 to 1.54 times the count (five kinds of run, results/head_speed.json)
MOST_PASSES = 4  # over the same tokens, beyond which more passes bring little (arXiv 2305.16264)
FLOAT = bytes_per_value("float32")
SIZE, PRODUCTS = 1024, 5  # of the square matrices, and how many products of them, that numpy is timed by


class Needs(Record, frozen=True):
    """Per run, `memory_bytes` per device. `time_s` assumes `SHARES` of `ceiling_flops_per_s`, one device's measured rate.

    `passes`: over the tokens of each folder of data, by its path; `notes`: what does not suit it.
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
    passes: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def needs(
    recipe: Recipe, place: Process, target: Path | None = None, teacher: TeacherChoice | None = None, data: Sequence[Path] = ()
) -> Needs:  # fmt: skip
    """What `recipe` needs; of `data`, token folders as in `launch`, only sizes and vocabulary are looked at.

    Raises ValueError where the recipe needs a target and has none, a batch does not spread over the devices, or data is of another vocabulary.
    """
    choice = teacher or TeacherChoice()
    check_target(recipe, target, choice)
    frozen = target_size(target, choice) if target else None
    sizes = sizes_of(recipe, frozen)
    read_by = frozen.shape if frozen else sizes.shape
    passes: dict[str, float] = {}
    for stage, path in zip(recipe.stages, _folders(recipe, data), strict=True):
        if path:
            folder = TokenFolder.open(path)
            check(folder, read_by.vocab_size, tokenizer_folder(recipe, target))
            passes[str(path)] = passes.get(str(path), 0.0) + stage.tokens / folder.data.num_tokens
    flops = sum(stage.steps * stage.tokens_per_step * sizes.flops_per_token(stage.length) for stage in recipe.stages)
    rate = _rate(place.device, recipe.precision)
    times = [flops / (rate.flops_per_s * place.world * share) for share in SHARES]
    return Needs(
        params=sizes.shape.params, frozen_params=frozen.shape.params if frozen else 0, tokens=recipe.tokens,
        steps=sum(stage.steps for stage in recipe.stages), flops_per_token=flops / recipe.tokens, flops=flops,
        memory_bytes=memory(recipe, sizes, frozen, place), disk_bytes=disk(recipe, sizes.shape), devices=place.world,
        ceiling_flops_per_s=rate.flops_per_s, predicted=recipe.predicted, passes=tuple(passes.items()),
        notes=(*rate.notes, *_notes(recipe, read_by, data)),
        time_s=Estimate(value=times[1], low=times[2], high=times[0], unit="s", source="share of the measured rate"),
    )  # fmt: skip


class _Rate(NamedTuple):
    flops_per_s: float
    notes: tuple[str, ...] = ()


def _rate(device: str, precision: str) -> _Rate:
    """Of matrix products by torch; where it is not installed by numpy, on the processor and in float32 alone."""
    try:
        import torch

        from foredraft.hardware import matmul_rate
    except ImportError:
        if device != "cpu":
            raise
        product = "without torch the processor's rate is numpy's"
        other = f", in float32, not {precision}" if precision != "float32" else ""
        return _Rate(_numpy_rate(), (f"{product}{other}: pip install 'foredraft[full]' measures what trains",))
    return _Rate(matmul_rate(torch.device(device), precision))


def _numpy_rate() -> float:
    x, times = np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32), []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        np.matmul(x, x)
        times.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(times)


def _folders(recipe: Recipe, data: Sequence[Path]) -> list[Path | None]:
    """Of each stage: its own, else that of `data` at its place, the last for those that follow."""
    given = [data[min(i, len(data) - 1)] if data else None for i in range(len(recipe.stages))]
    return [Path(stage.data) if stage.data else path for stage, path in zip(recipe.stages, given, strict=True)]


def _notes(recipe: Recipe, read_by: Shape, data: Sequence[Path]) -> Iterator[str]:
    """In words, for each stage: windows longer than the context or than documents, and many passes over few tokens."""
    context = read_by.max_position_embeddings
    for i, (stage, path) in enumerate(zip(recipe.stages, _folders(recipe, data), strict=True)):
        where = f"stages[{i}]: " if len(recipe.stages) > 1 else ""
        if context and stage.length > context:
            yield f"{where}windows of {stage.length:,} tokens are longer than the context of {read_by.name}, {context:,}: lower length"
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


def memory(recipe: Recipe, sizes: TrainedSize, target: TargetSize | None, place: Process) -> float:
    """Bytes of weights, gradients, moments, the frozen target, activations of one micro-batch and the loss's logits."""
    trained, spread = sizes.shape, place.world if place.shard else 1
    narrow = bytes_per_value(recipe.precision)
    states = trained.params * FLOAT * (2 + MOMENTS) / spread + trained.params * narrow
    frozen = frozen_bytes(target, narrow) / spread if target else 0.0
    rows = max(len(range(stage.batch)[micro_batches(stage, place)[0]]) * stage.length for stage in recipe.stages)
    length = max(stage.length for stage in recipe.stages)
    activations = rows * sizes.passes * trained.num_layers * _activation_bytes(trained, narrow, length)
    logits = GROUP_BYTES.get(place.device, GROUP_BYTES["cuda"]) * 4
    return ROOM * (states + frozen + activations + logits)


def frozen_bytes(target: TargetSize, narrow: float) -> float:
    """Bytes of the target's weights as its teacher holds them: those of its tables where its states are on file, quantised ones as stored."""
    shape = target.shape
    if target.on_file:
        return (shape.params - shape.non_embedding_params) * narrow
    return shape.weight_bytes() if target.quantised else shape.params * narrow


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
