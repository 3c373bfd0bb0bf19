"""Fit what a speculative step of SGLang costs beside its passes, on published speeds with their τ, and judge it on documents left out.

    python recipes/speculation_cost.py results/speculation_cost.json

Reads the published rows that ship with the package (most are of tables/served_reports.csv): of SGLang, with τ, lookahead, machine and speed
over no speculation beside it. SpecForge's rows name no machine: Llama-3.1-8B's plain speed is an H200's, its other targets are not used. Each
document weighs as 1/√rows and has a factor of its own on the host's part, shrunk to 1. One reporter wrote two of the documents, which are left out
together. In sight when the form was chosen: all of these rows and public_points.csv. A part that is the same on two and eight devices fitted
less well (misfit 3.3 against 2.9).
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from foredraft import published, records
from foredraft.engines import SGLang, named_in
from foredraft.laws.cost import ServerCost, serve
from foredraft.laws.passes import Efficiency, Layout
from foredraft.machines import machine
from foredraft.shapes import shape
from foredraft.validate.ladders import measured_speedup
from foredraft.validate.servers import DEFAULT_LENGTHS, draft_shape
from foredraft.validate.throughput import load, plain_speeds

# Coefficient -> (where the fit starts, sd of its logarithm about that).
START = {
    "speculation_s": (1.5e-3, 1.0),
    "speculation_rank_s": (1e-3, 1.5),
    "tree_level_s": (1e-4, 1.5),
    "draft_fixed_s": (2.5e-4, 0.4),
}
DRAFT_LAYER_S = 2.2e-5  # as it stood
DOCUMENT_SD, NOISE = 0.7, 0.1
ONE_REPORTER = {"tencent/angelslim#163": "sgl-project/specforge#339"}
UNSTATED = {"Llama-3.1-8B-Instruct": "H200"}


@dataclass(frozen=True)
class Gain:
    """A row: both servers under what no coefficient here changes, how it drafted, and its measured speedup."""

    document: str
    plain: ServerCost
    speculative: ServerCost
    drafting: tuple[int, int, int]
    clients: float
    tokens_per_step: float
    doublings: float
    measured: float

    def error(self, values: Mapping[str, float], factor: float = 1.0) -> float:
        """Log of predicted over measured speedup."""
        assert self.speculative.draft
        depth, width, nodes = self.drafting
        host_s = values["speculation_s"] + values["speculation_rank_s"] * self.doublings
        draft = self.speculative.draft
        server = replace(
            self.speculative, speculation_s=factor * host_s, tree_level_s=values["tree_level_s"],
            draft=replace(draft, fixed_s=draft.fixed_s + values["draft_fixed_s"]),
        )  # fmt: skip
        fast = server.load(self.clients, depth, self.tokens_per_step, width=width, nodes=nodes)
        return math.log(float(fast.output_tok_s / self.plain.load(self.clients, 0, 1.0).output_tok_s) / self.measured)


def read() -> list[Gain]:
    """Every published row that can be used."""
    rows = published.observations()
    plain = plain_speeds(rows)
    efficiency = Efficiency(draft_fixed_s=0.0, draft_layer_s=DRAFT_LAYER_S)
    gains = []
    for row in rows:
        measured, where = measured_speedup(row, plain), row.machine or UNSTATED.get(row.target)
        stated = row.method != "none" and row.tokens_per_step and row.lookahead and load(row) and measured and where
        if not stated or not row.engine or named_in(row.engine).name != SGLang.name:
            continue
        target = shape(row.target)
        served = {
            "input_len": row.input_len or DEFAULT_LENGTHS[0], "output_len": row.output_len or DEFAULT_LENGTHS[1], "dtype": row.dtype,
            "layout": Layout(row.tensor_parallel or 1), "efficiency": efficiency,
        }  # fmt: skip
        draft = draft_shape(row.method, row.draft, target)
        gains.append(
            Gain(
                published.document(row.provenance.source), serve(target, machine(where), **served),
                serve(target, machine(where), draft=draft, **served), (row.lookahead, row.topk or 1, row.tree_nodes or row.lookahead),
                float(load(row)), row.tokens_per_step, math.log2(row.tensor_parallel or 1), measured,
            )
        )  # fmt: skip
    return gains


def fit(gains: Sequence[Gain]) -> tuple[dict[str, float], dict[str, float]]:
    """Coefficients of the population, and each document's factor on the host's part."""
    documents = Counter(gain.document for gain in gains)

    def split(logs: NDArray[np.float64]) -> tuple[dict[str, float], dict[str, float]]:
        values = {
            name: start * math.exp(log)
            for (name, (start, _)), log in zip(START.items(), logs[: len(START)], strict=True)
        }
        return values, {name: math.exp(log) for name, log in zip(documents, logs[len(START) :], strict=True)}

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        values, factors = split(logs)
        weights = [1.7 / math.sqrt(documents[gain.document]) / NOISE for gain in gains]
        errors = [
            gain.error(values, factors[gain.document]) * weight for gain, weight in zip(gains, weights, strict=True)
        ]
        return np.concatenate([errors, logs / ([sd for _, sd in START.values()] + [DOCUMENT_SD] * len(documents))])

    return split(least_squares(misfit, np.zeros(len(START) + len(documents)), loss="soft_l1").x)


def main(out: str) -> None:
    gains = read()
    values, factors = fit(gains)
    groups = {gain.document: ONE_REPORTER.get(gain.document, gain.document) for gain in gains}
    judged = {}
    for group in sorted(set(groups.values())):
        without, _ = fit([gain for gain in gains if groups[gain.document] != group])
        for document in (name for name, other in groups.items() if other == group):
            errors = [gain.error(without) for gain in gains if gain.document == document]
            judged[document] = {
                "rows": len(errors),
                "mean_log_error": float(np.mean(errors)),
                "factor": factors[document],
            }
            print(f"{document[:40]:40} {len(errors):3} rows, left out: mean log error {np.mean(errors):+.2f}")
        print(f"  without it: {', '.join(f'{name} {value:.2g}' for name, value in without.items())}")
    print(", ".join(f"{name} {value:.3g}" for name, value in values.items()))
    records.write(out, {"coefficients": values, "left_out_by_document": judged})


if __name__ == "__main__":
    main(sys.argv[1])
