"""How fast a target decodes with and without drafts: the online measurement's clock, in a few figures.

Promises: ratios are paired by the prompts that ran together, and their intervals come from a bootstrap over those. Refuses to
know: what was predicted.

Shapes: D requests, G groups that ran together.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foredraft import text
from foredraft.data.conversation import ChatQuestion, conversations, question_of
from foredraft.decode.batch import Request
from foredraft.decode.drafters import machine_name
from foredraft.decode.sampling import Sampling
from foredraft.hardware import read_rate
from foredraft.measure.configurations import PLAIN, EngineConfiguration, configurations_on, spec_of
from foredraft.measure.live import TIMES, Decoding, check_batch, decode_in_turn, turns
from foredraft.measure.settings import MeasureSettings
from foredraft.measure.talks import asked_turns
from foredraft.models import kernels
from foredraft.models.load import load
from foredraft.records import Estimate, Record
from foredraft.serving.bootstrap import Array, ratio


class BenchRow(Record, frozen=True):
    """What a configuration measured: `ratio` of tokens/s over plain decoding's, paired by prompt; `gb_s` of weights its passes read."""

    name: str
    tokens_per_step: Estimate
    output_tok_s: Estimate
    ratio: Estimate
    ttft_s: Estimate
    tpot_s: Estimate
    gb_s: float
    ceiling_gb_s: float
    same_tokens: bool
    drafting_share: float


class Bench(NamedTuple):
    """Rows, plain decoding's first, and what a reader must know to compare them: machine, threads, sizes, versions."""

    conditions: dict[str, Any]
    rows: list[BenchRow]


def bench(
    target: str | Path,
    drafts: Sequence[str],
    prompts: Sequence[str | ChatQuestion],
    settings: MeasureSettings,
    progress: Callable[[int], object] | None = None,
) -> Bench:
    """Time the folder `target` alone and with each of `drafts`, as specs write them, on `prompts`, all turns of each, at the first batch and
    temperature of `settings`. Later turns stand behind the target's own answers to earlier ones, which are not timed.

    `progress` hears after each group how many there are in all. Raises ValueError without prompts, and where they are fewer than the batch.
    """
    if not prompts:
        raise ValueError("bench needs at least one prompt")
    specs, tokenizer, batch = [spec_of(draft) for draft in drafts], text.tokenizer_of(target), settings.batches[0]
    questions = [question_of(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    talks = conversations(questions, tokenizer, settings.chat)
    model = load(target, settings.torch_dtype, settings.device)
    ids = [turn.ids for turn in asked_turns(model, questions, talks, settings, text.stop_ids(target, tokenizer))]
    check_batch(batch, len(ids))
    requests = [
        Request(
            prompt=tuple(prompt), max_tokens=settings.max_tokens, sampling=Sampling(temperature=settings.temperatures[0], seed=seed)
        )
        for seed, prompt in enumerate(ids)
    ]  # fmt: skip
    context = max(map(len, ids)) + settings.max_tokens
    configurations = {each.spec.name: each for each in configurations_on(model, specs, batch, context)}
    engines = {name: each.engine for name, each in configurations.items()}
    total = turns(engines, len(requests), batch, settings.rounds)
    decodings = decode_in_turn(
        engines, requests, batch, rounds=settings.rounds, progress=lambda: progress and progress(total)
    )
    ceiling = read_rate(model.device)
    rows = [_row(each, decodings[name], decodings[PLAIN], batch, ceiling) for name, each in configurations.items()]
    chats = {"in_chat": sum(talk.template is not None for talk in talks), "later_turns": len(ids) - len(questions)}
    return Bench(_conditions(target, len(questions), settings) | chats, rows)


def _row(configuration: EngineConfiguration, run: Decoding, plain: Decoding, batch: int, ceiling: float) -> BenchRow:
    target = configuration.engine.target
    times, base = ({name: each.times_GT[:, i] for i, name in enumerate(TIMES)} for each in (run, plain))
    group_D = np.arange(len(run.counts)) // batch
    emitted, steps = (
        np.bincount(group_D, [getattr(each, name) for each in run.counts]).astype(float)
        for name in ("emitted", "steps")
    )
    read_bytes = target.shape.read_bytes(1, str(target.dtype).removeprefix("torch."))
    sums = {name: float(column.sum()) for name, column in times.items()}
    tokens, seconds, requests = times["tokens"], times["seconds"], times["requests"]
    first_s = times["first_s"] / requests
    return BenchRow(
        name=configuration.spec.name, tokens_per_step=_ratio(emitted, steps, "tokens/step"),
        output_tok_s=_ratio(tokens, seconds, "tokens/s"),
        ratio=_mean(tokens / seconds / (base["tokens"] / base["seconds"]), "× the first arm"), ttft_s=_mean(first_s, "s"),
        tpot_s=_ratio(times["between_s"], np.maximum(times["gaps"], 1), "s"),
        gb_s=read_bytes * sums["passes"] / sums["target_s"] / 1e9, ceiling_gb_s=ceiling / 1e9,
        same_tokens=run.answers == plain.answers, drafting_share=sums["draft_s"] / (sums["draft_s"] + sums["target_s"] + sums["other_s"]),
    )  # fmt: skip


def _ratio(top: Array, bottom: Array, unit: str) -> Estimate:
    """Σ top / Σ bottom, its interval by resampling groups of prompts."""
    return ratio(top, bottom, unit, "foredraft bench")


def _mean(values: Array, unit: str) -> Estimate:
    return _ratio(values, np.ones_like(values), unit)


def _conditions(target: str | Path, num_prompts: int, settings: MeasureSettings) -> dict[str, Any]:
    on_cpu = settings.device == "cpu"
    return {
        "target": Path(target).name, "prompts": num_prompts, "max_tokens": settings.max_tokens, "batch": settings.batches[0],
        "rounds": settings.rounds, "dtype": settings.dtype, "device": settings.device, "threads": torch.get_num_threads(),
        "torch": str(torch.__version__), "machine": machine_name(torch.device(settings.device)),
    } | ({"kernels": kernels.missing() or "own"} if on_cpu else {})  # fmt: skip
