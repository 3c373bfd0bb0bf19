"""How fast a target decodes with and without drafts: all arms on the same prompts, in turn, in one run.

Promises: one counter for every arm (the engine's steps), the same tokens asked of each, rounds interleaved so that a
slow minute hurts all alike; ratios are paired by prompt and their intervals come from a bootstrap over prompts.
Refuses to know: what was predicted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.hardware import read_rate
from foredraft.measure.bootstrap import ratio
from foredraft.models import kernels
from foredraft.records import Estimate, Record, StepRecord


class Turn(NamedTuple):
    """One arm's answers to the prompts that ran together: seconds, tokens, steps, and of each prompt the time to its
    first token.
    """

    seconds: float
    tokens: int
    steps: list[StepRecord]
    first_s: list[float]


class Arm(Record, frozen=True):
    """What one arm measured. `ratio` is its tokens/s over the first arm's, paired by prompt; `gb_s` what its target
    passes read of the weights.
    """

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


def bench(
    arms: Mapping[str, Callable[[], Engine]],
    requests: Sequence[Request],
    *,
    rounds: int = 3,
    progress: Callable[[], object] | None = None,
) -> list[Arm]:
    """Every arm answers every group of requests in every round; the first round warms up and is not counted.

    Requests run in groups as large as the engines' batch. Raises ValueError without arms or requests.
    """
    if not arms or not requests:
        raise ValueError("bench needs at least one arm and one request")
    engines = {name: make() for name, make in arms.items()}
    size = min(engine.max_batch for engine in engines.values())
    groups = [requests[i : i + size] for i in range(0, len(requests), size)]
    turns: dict[str, list[list[Turn]]] = {name: [[] for _ in groups] for name in engines}
    answers: dict[str, list[list[int]]] = {}
    for round_number in range(rounds + 1):
        for g, group in enumerate(groups):
            for name, engine in engines.items():
                turn, said = _turn(engine, group)
                if round_number:
                    turns[name][g].append(turn)
                else:
                    answers.setdefault(name, []).extend(said)
                if progress:
                    progress()
    ceiling = read_rate(next(iter(engines.values())).target.device)
    first = next(iter(engines))
    return [
        _arm(name, turns[name], turns[first], engine, ceiling, answers[name] == answers[first])
        for name, engine in engines.items()
    ]


def _turn(engine: Engine, group: Sequence[Request]) -> tuple[Turn, list[list[int]]]:
    """One group on one engine, with the clock stopped at each first token."""
    firsts: dict[int, float] = {}
    start = time.perf_counter()

    def clock(index: int) -> Callable[[list[int]], None]:
        def stop(_: list[int]) -> None:
            firsts.setdefault(index, time.perf_counter() - start)

        return stop

    sequences = [engine.add(request, clock(i)) for i, request in enumerate(group)]
    steps = list(engine.run())
    seconds = time.perf_counter() - start
    said = [sequence.answer for sequence in sequences]
    return Turn(seconds, sum(map(len, said)), steps, list(firsts.values())), said


def _arm(
    name: str, turns: list[list[Turn]], plain: list[list[Turn]], engine: Engine, ceiling: float, same: bool
) -> Arm:
    def pooled(value: Callable[[Turn], float]) -> np.ndarray:
        return np.array([np.median([value(turn) for turn in group]) for group in turns])

    emitted, rows = (
        pooled(lambda t: sum(sum(s.emitted) for s in t.steps)),
        pooled(lambda t: sum(len(s.emitted) for s in t.steps)),
    )
    tokens, seconds = pooled(lambda t: t.tokens), pooled(lambda t: t.seconds)
    base = np.array([np.median([turn.tokens / turn.seconds for turn in group]) for group in plain])
    first_s = pooled(lambda t: float(np.mean(t.first_s)))
    batch = pooled(lambda t: len(t.first_s))
    steps = [step for group in turns for turn in group for step in turn.steps]
    read = (
        engine.target.shape.read_bytes(1, str(engine.target.dtype)[6:])
        * len(steps)
        / sum(step.target_s for step in steps)
    )
    busy = sum(step.draft_s + step.target_s + step.other_s for step in steps)
    return Arm(
        name=name, tokens_per_step=_ratio(emitted, rows, "tokens/step"), output_tok_s=_ratio(tokens, seconds, "tokens/s"),
        ratio=_mean(tokens / seconds / base, "× the first arm"), ttft_s=_mean(first_s, "s"),
        tpot_s=_ratio((seconds - first_s) * batch, np.maximum(tokens - batch, 1), "s"), gb_s=read / 1e9, ceiling_gb_s=ceiling / 1e9,
        same_tokens=same, drafting_share=sum(step.draft_s for step in steps) / busy,
    )  # fmt: skip


def _ratio(top: np.ndarray, bottom: np.ndarray, unit: str) -> Estimate:
    """Σ top / Σ bottom, its interval by resampling groups of prompts."""
    return ratio(top, bottom, unit, "foredraft bench")


def _mean(values: np.ndarray, unit: str) -> Estimate:
    return _ratio(values, np.ones_like(values), unit)


def conditions(
    target: str, prompts: int, max_tokens: int, batch: int, rounds: int, dtype: str, device: str
) -> dict[str, Any]:
    """What a reader must know to compare: machine, threads, sizes, versions."""
    on_cpu = device == "cpu"
    return {
        "target": Path(target).name, "prompts": prompts, "max_tokens": max_tokens, "batch": batch, "rounds": rounds, "dtype": dtype,
        "device": device, "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "machine": kernels.processor_name() if on_cpu else torch.cuda.get_device_name(),
    } | ({"kernels": kernels.missing() or "own"} if on_cpu else {})  # fmt: skip


def spec_bench_prompts(path: Path) -> list[str]:
    """First turns of a Spec-Bench file: JSON lines with `turns`."""
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prompts.append(msgspec.json.decode(line)["turns"][0])
        except (msgspec.DecodeError, KeyError, IndexError, TypeError):
            raise ValueError(f"{path}:{number}: not a Spec-Bench line (JSON with a list 'turns')") from None
    return prompts
