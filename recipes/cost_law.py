"""Fit the cost law's defaults on published speeds of plain decoding, and judge them on documents left out.

    python recipes/cost_law.py results/cost_law.json

Writes src/foredraft/published/backings.json too: what kinds of server those speeds were measured on.
Reads recipes/published/plain_speeds.csv (its rows say their sources). The defaults of `laws.passes.Efficiency` are the figures that
this prints, rounded. Software before autumn 2025 and each engine have their own factor on the fixed costs, shrunk to 1: the
defaults are those of the population. In sight when the form was chosen: all of these rows, and the single reports that
`foredraft validate` judges.
"""

import csv
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from foredraft import records, shapes
from foredraft.laws.cost import ServerCost, mean_running, serve
from foredraft.laws.passes import Efficiency, Layout
from foredraft.machines import machine
from foredraft.plan.backing import Backing
from foredraft.published import document
from foredraft.records import Machine
from foredraft.shapes import Shape
from foredraft.shapes.formats import number_format

TABLE = Path(__file__).parent / "published" / "plain_speeds.csv"
PACKAGE = Path(__file__).parents[1] / "src/foredraft/published"
LENGTHS = 256.0, 512.0  # prompt and answer where a row states none, as `foredraft validate` assumes
FORMATS = {"awq": "int4", "gptq-int4": "int4", "gptq-int8": "int8"}
# Software of before autumn 2025, as the documents' dates and versions say.
OLD = (
    "qwenlm/qwen2.5", "dstackai/benchmarks", "tt-inference-server#356", "tt-inference-server#340", "vllm#20469", "sglang#6885", "sglang#7631",
    "sglang#6835", "sglang#7687", "sglang#7445",
)  # fmt: skip
# Coefficient -> (where the fit starts, sd of its logarithm about that): shares of peaks are known better than fixed costs.
START = {
    "bandwidth": (0.8, 0.04), "expert_bandwidth": (0.5, 0.3), "cache_bandwidth": (0.7, 0.3), "compute": (0.6, 0.25),
    "narrow": (0.7, 0.2), "unpacking": (0.6, 0.3),
    "target_fixed_s": (4e-4, 0.7), "target_layer_s": (3e-5, 0.7), "expert_layer_s": (3e-5, 0.7), "exchange_s": (5e-6, 0.7),
    "popularity": (0.9, 0.1),
}  # fmt: skip
PROMPT = {"request_s": (2e-3, 0.7), "prompt_layer_s": (3e-4, 0.7), "prompt_compute": (0.75, 0.15)}
# Between recent software's factor on the fixed costs and old one's, so rounded that no single report of public_points.csv misses by more
# than 40 %, but for the one whose benchmark had 20 prompts for its 64 clients.
DEFAULT_FLOORS = 0.62
FLOORS = "target_fixed_s", "target_layer_s", "expert_layer_s"
NOISE, GROUP_SD, FOLDS = 0.12, 0.4, 5


@dataclass(frozen=True)
class Speed:
    """A row: what was served, and seconds per output token (or tokens/s) of one client or all."""

    target: Shape
    machine: Machine
    layout: Layout
    dtype: str
    clients: float
    lengths: tuple[float, float]
    tok_s: float | None
    tpot_s: float | None
    ttft_s: float | None
    document: str
    group: str

    def server(self, efficiency: Efficiency) -> ServerCost:
        return serve(
            self.target, self.machine, input_len=self.lengths[0], output_len=self.lengths[1], layout=self.layout, dtype=self.dtype,
            efficiency=efficiency, speculate=False,
        )  # fmt: skip

    def error(self, efficiency: Efficiency) -> float:
        """Log of predicted over measured speed."""
        load = self.server(efficiency).load(self.clients, 0, 1.0)
        if self.tpot_s:
            return math.log(self.tpot_s / float(load.tpot_s))
        assert self.tok_s
        return math.log(float(load.output_tok_s) / self.tok_s)


def read(path: Path) -> tuple[list[Speed], Counter[str]]:
    """Rows that can be predicted, and how many cannot, by reason."""
    speeds, left_out = [], Counter()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                speeds.append(_speed(row))
            except ValueError as error:
                left_out[str(error)] += 1
    return speeds, left_out


def _speed(row: Mapping[str, str]) -> Speed:
    """Raises ValueError with the reason why a row is not used."""

    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    clients, requests = number("concurrency"), number("num_requests")
    tok_s, tpot_s = number("output_tok_s"), (number("tpot_ms") or 0) / 1e3 or None
    if row["engine"] not in ("vllm", "sglang", "tensorrt-llm"):
        raise ValueError("another engine")
    if not clients or not (tok_s or tpot_s):
        raise ValueError("no concurrency" if not clients else "no speed")
    if requests and clients > 1 and requests < 4 * clients and not tpot_s:
        raise ValueError("fewer than four requests a client: most of the time fewer run")
    data = int(number("dp") or 1)
    devices = int(number("devices") or number("tp") or 1)
    expert = (number("ep") or 1) > 1
    tensor = devices // data if data > 1 else int(number("tp") or devices)
    source, lengths = document(row["source"]), (number("input_len") or LENGTHS[0], number("output_len") or LENGTHS[1])
    running = float(mean_running(clients, requests or clients * 1e6))
    group = row["engine"] + " old" * any(name in source for name in OLD)
    try:
        target, where = shapes.shape(row["target"]), machine(row["machine"])
        dtype = FORMATS.get(row["dtype"], row["dtype"]) or target.weight_format
        ttft_s = (number("ttft_ms") or 0) / 1e3 or None
        speed = Speed(
            target, where, Layout(tensor, data, expert), dtype, running, lengths, tok_s, tpot_s, ttft_s, source, group
        )
        speed.server(Efficiency())
    except ValueError as error:
        raise ValueError(f"cannot be served as stated: {str(error).split(';')[0][:70]}") from None
    return speed


def efficiency(values: Mapping[str, float], floors: float = 1.0) -> Efficiency:
    """The coefficients as the law takes them."""
    return Efficiency(**{name: value * (floors if name in FLOORS else 1.0) for name, value in values.items()})


def fit(speeds: Sequence[Speed]) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients of the population, and each group's factor on the fixed costs."""
    groups = sorted({speed.group for speed in speeds})
    weight = {name: 1.7 / math.sqrt(count) for name, count in Counter(speed.document for speed in speeds).items()}

    def split(log_values: NDArray[np.float64]) -> tuple[dict[str, float], dict[str, float]]:
        values = {
            name: start * math.exp(log) for (name, (start, _)), log in zip(START.items(), log_values, strict=False)
        }
        values |= {name: min(value, 1.0) for name, value in values.items() if not name.endswith("_s")}
        return values, {group: math.exp(log) for group, log in zip(groups, log_values[len(START) :], strict=True)}

    def misfit(log_values: NDArray[np.float64]) -> NDArray[np.float64]:
        values, factors = split(log_values)
        by_group = {group: efficiency(values, factor) for group, factor in factors.items()}
        errors = [speed.error(by_group[speed.group]) / NOISE * weight[speed.document] for speed in speeds]
        widths = [sd for _, sd in START.values()] + [GROUP_SD] * len(groups)
        return np.concatenate([errors, log_values / widths])

    found = least_squares(misfit, np.zeros(len(START) + len(groups)), loss="soft_l1", diff_step=1e-3, ftol=1e-3)
    return split(found.x)


def fit_prompts(speeds: Sequence[Speed], values: Mapping[str, float]) -> dict[str, float]:
    """What a prompt costs, from the first tokens of idle servers of one device (several wait for each other kernel by kernel)."""
    idle = [speed for speed in speeds if speed.ttft_s and speed.clients == 1 and speed.layout.devices == 1]
    base = efficiency(values, DEFAULT_FLOORS)
    weight = {name: 1 / math.sqrt(count) for name, count in Counter(speed.document for speed in idle).items()}

    def prompt(log_values: NDArray[np.float64]) -> dict[str, float]:
        return {name: start * math.exp(log) for (name, (start, _)), log in zip(PROMPT.items(), log_values, strict=True)}

    def misfit(log_values: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = msgspec.structs.replace(base, **prompt(log_values))
        predicted = [float(speed.server(trial).load(1, 0, 1.0).ttft_s) for speed in idle]
        off = [
            math.log(ttft_s / (speed.ttft_s or 1.0)) * weight[speed.document] / 0.2
            for ttft_s, speed in zip(predicted, idle, strict=True)
        ]
        return np.concatenate([off, log_values / [sd for _, sd in PROMPT.values()]])

    return prompt(least_squares(misfit, np.zeros(len(PROMPT)), loss="soft_l1", diff_step=1e-3, ftol=1e-3).x)


def backings(speeds: Sequence[Speed]) -> list[Backing]:
    """The kinds of server behind the coefficients."""
    kinds = defaultdict(list)
    for speed in speeds:
        engine, bits = speed.group.removesuffix(" old"), number_format(speed.dtype).bits
        kinds[engine, speed.machine.name, bool(speed.target.num_experts), bits, speed.layout.devices].append(speed)

    def backing(kind: tuple[str, str, bool, float, int], members: Sequence[Speed]) -> Backing:
        params = [float(speed.target.params) for speed in members]
        return Backing(*kind, min(params), max(params), max(speed.clients for speed in members))

    return [backing(kind, members) for kind, members in sorted(kinds.items())]


def left_out_errors(speeds: Sequence[Speed]) -> dict[str, list[tuple[Speed, float]]]:
    """By document, log errors of the population's coefficients fitted without it (and without every fifth other document)."""
    documents = sorted({speed.document for speed in speeds})
    errors = defaultdict(list)
    for fold in range(FOLDS):
        held_out = set(documents[fold::FOLDS])
        values, _ = fit([speed for speed in speeds if speed.document not in held_out])
        trial = efficiency(values, DEFAULT_FLOORS)
        for speed in speeds:
            if speed.document in held_out:
                errors[speed.document].append((speed, speed.error(trial)))
    return errors


def figures(errors: Sequence[tuple[Speed, float]]) -> dict[str, Any]:
    """Errors over rows, and over documents, each by its rows' median."""
    off, by_document = np.abs([error for _, error in errors]), defaultdict(list)
    for speed, error in errors:
        by_document[speed.document].append(error)
    biases = [abs(float(np.median(each))) for each in by_document.values()]
    return {
        "rows": len(errors),
        "documents": len(biases),
        "median_error_of_documents": float(np.expm1(np.median(biases))),
        "median_error": float(np.expm1(np.median(off))),
        "sd_of_log": float(1.4826 * np.median(off)),
    }


def main(out: str) -> None:
    speeds, left_out = read(TABLE)
    records.write(PACKAGE / "backings.json", backings(speeds))
    values, factors = fit(speeds)
    print({name: float(f"{value:.3g}") for name, value in (values | factors).items()}, flush=True)
    prompts = fit_prompts(speeds, values)
    errors = left_out_errors(speeds)
    every = [pair for pairs in errors.values() for pair in pairs]
    recent = [pair for pair in every if not pair[0].group.endswith("old")]
    result = {
        "coefficients": values | prompts, "factors_on_fixed_costs": factors, "rows_left_out": dict(left_out),
        "left_out_by_document": {
            "all": figures(every), "dense": figures([p for p in every if not p[0].target.num_experts]),
            "mixtures of experts": figures([p for p in every if p[0].target.num_experts]), "recent software": figures(recent),
            "recent mixtures": figures([p for p in recent if p[0].target.num_experts]),
        },
        "documents": {name: {**figures(pairs), "bias": float(np.expm1(np.median([e for _, e in pairs])))} for name, pairs in errors.items()},
    }  # fmt: skip
    records.write(out, result)
    for name, value in result["coefficients"].items():
        print(f"{name:18} {value:.3g}")
    for name, row in result["left_out_by_document"].items():
        print(
            f"{name:20} {row['rows']:4} rows, median error {row['median_error']:.1%}; "
            f"{row['documents']} documents, {row['median_error_of_documents']:.1%}"
        )
    print(f"left out: {sum(left_out.values())} rows: {dict(left_out)}")


if __name__ == "__main__":
    main(sys.argv[1])
