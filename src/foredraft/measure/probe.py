"""This machine as a `Machine` record: what it reaches, measured, each figure with how it was measured.

Promises: medians over repeats, the device waited for; what is no figure of this machine (links between devices) stays None.
Refuses to know: what a plan makes of it.

Shapes: T tokens verified together, L matrices of a stack, C width.
"""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from foredraft import __version__, shapes
from foredraft.decode.batch import Request
from foredraft.decode.drafters import machine_name
from foredraft.decode.engine import Engine
from foredraft.hardware import MATMUL_SIZE, SWEPT_BYTES, matmul_rate, memory_bytes, read_rate, seconds, write_rate
from foredraft.models.decoder import Decoder, new_decoder
from foredraft.models.forward import causal_mask
from foredraft.models.graphs import Graphed
from foredraft.models.layers import model_config_of
from foredraft.models.linear import linear
from foredraft.models.load import load
from foredraft.records import Machine, Provenance
from foredraft.shapes.families import HEAD_FAMILY

VERIFIED = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 256  # tokens in the cache where a target's pass is timed
# Of matrix products. On a CPU float16 is worked in software here, a thousand times slower than what anyone serves in.
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
STACKED = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}  # formats of the stack
STACKED_BYTES = {"cpu": 2**28, "cuda": 2**32}  # of the stack's weights, beyond any cache
WIDTH = {"cpu": 4096, "cuda": 8192}
STEPS = 64  # of the engine, to tell its overhead
TINY = {
    "model_type": HEAD_FAMILY, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def probe(
    device: str = "cpu", target: str | Path | None = None, *, dtype: torch.dtype = torch.float32, repeats: int = 7,
    command: str | None = None, warn: Callable[[str], None] | None = None,
) -> Machine:  # fmt: skip
    """Measure `device` with torch's current number of threads, the pass of the model in the folder `target` (or of a stack of
    matrices) in `dtype`. Bytes per second, FLOP/s, seconds, bytes. `warn` is told where the machine is busy with other things.

    Raises ValueError where there is no such device, or where fewer than one repeat is asked for.
    """
    where = device_of(device)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    running = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    reads = [read_rate(where, 3) for _ in range(repeats)]
    if warn and (warning := busy(running, reads)):
        warn(warning)
    model = load(target, dtype, where) if target else None
    stacks = {name: stacked(where, getattr(torch, name), repeats) for name in STACKED[where.type]}
    kind = str(dtype).removeprefix("torch.")
    verify_s = verification(model, repeats) if model else stacks.get(kind) or stacked(where, dtype, repeats)
    passed = (
        f"a pass of {Path(target).resolve().name} at {CONTEXT} tokens of context" if target else _stack(where, dtype)
    )
    return Machine(
        name=machine_name(where), memory_bytes=memory_bytes(where), cache_bytes=cache_bytes(where),
        bandwidth_bytes_per_s=statistics.median(reads),
        write_bytes_per_s=_median(lambda: write_rate(where, 3), repeats),
        flops_per_s={name: _median(lambda name=name: matmul_rate(where, name), min(repeats, 3)) for name in DTYPES[where.type]},
        step_overhead_s=step_overhead(where, repeats), verify_s=verify_s, stack_bytes=float(STACKED_BYTES[where.type]), stack_s=stacks,
        threads=torch.get_num_threads() if where.type == "cpu" else None, source="measured by foredraft probe",
        measured=_how(where, repeats, f"{passed}, {kind}, one sequence"),
        provenance=provenance("foredraft probe", command),
    )  # fmt: skip


def _how(device: torch.device, repeats: int, passed: str) -> dict[str, str]:
    """How each figure came about."""
    swept, size = f"a float32 tensor of {SWEPT_BYTES // 2**20} MiB", MATMUL_SIZE[device.type]
    runs = f"median of {repeats}"
    stacks = " and ".join(f"{_stack(device, getattr(torch, name))}, {name}" for name in STACKED[device.type])
    return {
        "bandwidth_bytes_per_s": f"summing {swept}; {runs} bests of 3",
        "write_bytes_per_s": f"filling {swept}; {runs} bests of 3",
        "flops_per_s": f"products of square matrices of up to {size}; median of {min(repeats, 3)} bests over 0.2 s",
        "step_overhead_s": f"a whole step of plain decoding, one sequence, 1 layer of width {TINY['hidden_size']}, float32: "
        f"{runs} medians over {STEPS} steps",
        "verify_s": f"{passed}, by number of tokens; {runs}",
        "stack_s": f"{stacks}, as our engine multiplies; {runs}",
        "memory_bytes": "as the system states it, the limit of its control group included"
        if device.type == "cpu"
        else "as the driver states it",
        "cache_bytes": "largest cache of the first core, as the system states it"
        if device.type == "cpu"
        else "second-level cache, as the driver states it",
    }


SCATTER = 0.15  # of a quiet machine's repeats: the middle half's width over the median stays below it
BUSY_LOAD = 0.3  # processes ready to run before the probe begins; a quiet machine has hardly any


def busy(running: float | None, figures: Sequence[float]) -> str | None:
    """Why a probe's figures cannot be trusted, and what to do: by the load before it and how far its repeats lie apart; None on a quiet machine.

    `running`: processes ready to run, of the last minute; None where the system does not say. `figures`: the repeats of one figure.
    """
    reasons = (
        [f"{running:.1f} other processes were running before it"] if running is not None and running > BUSY_LOAD else []
    )
    if len(figures) > 2:
        low, middle, high = statistics.quantiles(figures, n=4)
        if (high - low) / middle > SCATTER:
            reasons.append(f"half of its repeats lie {(high - low) / middle:.0%} apart")
    if not reasons:
        return None
    return f"this machine is busy ({'; '.join(reasons)}): its figures come out too low; end other programs, wait a minute and probe again"


def _median(figure: Callable[[], float], repeats: int) -> float:
    return statistics.median(figure() for _ in range(repeats))


# The device


def device_of(name: str) -> torch.device:
    """The device, or ValueError where this torch has none."""
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this torch sees no GPU; leave --device out")
    return torch.device(name)


def cache_bytes(device: torch.device) -> float | None:
    """Of the largest cache; None where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((float(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=None)


# Passes


@torch.inference_mode()
def verification(model: Decoder, repeats: int) -> dict[int, float]:
    """Seconds of the model's pass over T tokens behind CONTEXT in its cache, all logits asked for, as a step asks it."""
    most = CONTEXT + max(VERIFIED)
    limit = model.shape.max_position_embeddings
    if limit is not None and limit < most:
        raise ValueError(
            f"target {model.shape.name}: max_position_embeddings {limit} is less than the {most} to be timed"
        )
    cache, run, device = model.new_cache(1, most), Graphed(model), model.device
    seconds_by_num = {}
    for num in VERIFIED:
        tokens = torch.arange(num, device=device)[None] % model.shape.vocab_size
        positions = CONTEXT + torch.arange(num, device=device)[None]
        mask = causal_mask(positions, CONTEXT + num)

        def step(tokens: Tensor = tokens, positions: Tensor = positions, mask: Tensor = mask) -> None:
            run(tokens, positions, cache=cache, slots_BT=positions, mask_BTS=mask)

        seconds_by_num[num] = _timed(step, device, repeats)
    return seconds_by_num


@torch.inference_mode()
def stacked(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[int, float]:
    """Seconds of T rows through a stack of square matrices that no cache holds, as `models.linear` multiplies them."""
    width, num_matrices = _stack_shape(device, dtype)
    stack = [
        nn.Linear(width, width, bias=False, device=device, dtype=dtype).requires_grad_(False)
        for _ in range(num_matrices)
    ]
    seconds_by_num = {}
    for num in VERIFIED:
        x_TC = torch.ones(1, num, width, device=device, dtype=dtype)

        def step(x_TC: Tensor = x_TC) -> None:
            for matrix in stack:  # each reads the same rows, so that no number grows
                linear(x_TC, matrix.weight)

        seconds_by_num[num] = _timed(step, device, repeats)
    return seconds_by_num


def _stack_shape(device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """Width of the matrices and how many."""
    width = WIDTH[device.type]
    return width, max(1, STACKED_BYTES[device.type] // (width * width * dtype.itemsize))


def _stack(device: torch.device, dtype: torch.dtype) -> str:
    width, num = _stack_shape(device, dtype)
    return f"rows through {num} matrices of {width}²"


def _timed(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median seconds, after two that warm up."""
    seconds(step, device, 2)
    return statistics.median(seconds(step, device, repeats))


def step_overhead(device: torch.device, repeats: int) -> float:
    """Seconds of a whole step of the engine, proposing to committing, on a model whose arithmetic costs next to nothing."""
    model = new_decoder(shapes.from_config(TINY, "tiny"), model_config_of(TINY, shapes.from_config(TINY, "tiny")), 0)
    engine = Engine(model.to(device).requires_grad_(False).eval(), max_batch=1, max_context=4 * STEPS)
    medians = []
    for _ in range(repeats + 1):
        engine.add(Request(prompt=(1, 2), max_tokens=STEPS))
        medians.append(statistics.median(step.draft_s + step.target_s + step.other_s for step in engine.run()))
    return statistics.median(medians[1:])  # the first warms up


def provenance(source: str, command: str | None = None, note: str | None = None) -> Provenance:
    """Now, here, with the versions that decide what a figure means."""
    versions = {"foredraft": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    for package in ("transformers", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(source=source, note=note, command=command, versions=versions, created=created)
