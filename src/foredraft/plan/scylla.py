"""Scylla reproduced (arXiv 2505.07858): its theorems against the values it states, and its Table 5 against our cost law.

Promises: of Table 5 the cost law sees the plain column alone; the other columns follow from published tokens per step and from
assumptions that are named, each beside what other readings of it would give. Refuses to know: how a pass is costed.

Table 5 was in sight when the assumptions were written down: what it cannot be held against is how well they do, but which are possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from foredraft import kinds, shapes
from foredraft.laws.calibration import Calibration, CostRow, adjusted, calibrate_served
from foredraft.laws.cost import Prefill, ServerCost, serve
from foredraft.laws.draws import stratified
from foredraft.laws.passes import Array, Layout
from foredraft.laws.scylla import BatchTheorem, LogTheorem, published_scylla
from foredraft.laws.speedup import TAIL_ACCEPT
from foredraft.machines import machine
from foredraft.plan.trees import grown

Counts = NDArray[np.intp]
PAPER = published_scylla()
TABLE = PAPER.table_5
BATCH = np.array(TABLE.batch, dtype=float)
COLUMNS = ("eagle2", "scylla")
MOST_NODES = 512  # of trees that the cost law may choose
# Under it a static tree of 8, 16 and 32 nodes keeps 0.59, 0.73 and 0.87 of the accepted tokens of one of 64, as trees of EAGLE-2, EAGLE-3 and
# Scylla did in our own experiment (results/experiment; docs/log.md, width).
TAIL = 1.0
DRAWS, LEVEL, SEED = 200, 0.9, 0
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class TableReading:
    """x"""

    name: str
    eagle2: float
    scylla: float
    nodes: int = 48
    depth: int = 6
    topk: int = 10
    narrowed: str = "tokens"
    layers: int = 2
    kv_dtype: str = "fp8"
    engine_wide: bool = True


def _mean(column: str) -> float:
    return float(np.mean([getattr(pair, column) for pair in PAPER.accept]))


USUAL = TableReading(name="as assumed", eagle2=_mean("eagle2"), scylla=_mean("scylla"))
OTHERS = (
    *(replace(USUAL, name=f"τ of {pair.target}", eagle2=pair.eagle2, scylla=pair.scylla) for pair in PAPER.accept),
    replace(USUAL, name="trees of 60 nodes, EAGLE-2's of 7 B", nodes=60),
    replace(USUAL, name="drafting and speculation with our defaults' fixed costs", engine_wide=False),
    replace(USUAL, name="Scylla of 1 layer", layers=1),
    replace(USUAL, name="Scylla of 5 layers", layers=5),
    replace(USUAL, name="k_opt counts root-to-leaf paths", narrowed="paths"),
    replace(USUAL, name="Scylla's tree as our cost law would have it", narrowed="cost law"),
    replace(USUAL, name="Scylla keeps EAGLE-2's tree", narrowed="never"),
)


@dataclass(frozen=True)
class Table5Costs:
    """The servers of Table 5 under one reading, calibrated on its plain column."""

    reading: TableReading

    @cached_property
    def servers(self) -> dict[str, ServerCost]:
        """Without a draft, with EAGLE-2's head and with Scylla's; every sequence of a batch runs, and prompts are not counted."""
        target = shapes.shape(TABLE.target)
        heads = {
            "none": None,
            "eagle2": kinds.EAGLE.shape(target),
            "scylla": kinds.EAGLE.shape(target, self.reading.layers),
        }
        return {column: self._server(head) for column, head in heads.items()}

    def _server(self, head: shapes.Shape | None) -> ServerCost:
        server = serve(
            shapes.shape(TABLE.target), machine(TABLE.machine), input_len=TABLE.input_len, output_len=1.0, draft=head,
            layout=Layout(tensor=TABLE.devices), dtype="bfloat16", kv_dtype=self.reading.kv_dtype, speculate=head is not None,
        )  # fmt: skip
        return replace(server, capacity_tokens=np.inf, prefill=Prefill(0.0, 0.0))

    @cached_property
    def calibration(self) -> Calibration:
        rows = [CostRow(batch, 0.0, 1.0, speed) for batch, speed in zip(TABLE.batch, TABLE.none, strict=True)]
        return calibrate_served([self.servers["none"]] * len(rows), rows)

    def calibrated(self, column: str, multipliers: dict[str, float] | None = None) -> ServerCost:
        """A column's server with the calibration's multipliers, or others; what the plain column says of the engine's fixed costs holds for
        the draft's passes and speculation too, where the reading has it so.
        """
        drawn = multipliers or self.calibration.multipliers
        alike = {name: drawn[name] * drawn["target_fixed"] for name in ("draft_fixed", "speculation")}
        return adjusted(self.servers[column], drawn | (alike if self.reading.engine_wide else {}))

    def tau(self, column: str) -> Array:
        """Tokens per step of a column's draft in trees of 0 to MOST_NODES nodes, [MOST_NODES + 1]."""
        r = self.reading
        return _tree_taus(getattr(r, column), r.nodes, r.depth, r.topk)

    def nodes(self, column: str) -> Counts:
        """Nodes of a column's tree at each batch of the table."""
        r, paths = self.reading, PAPER.theorem_1_3.best_paths(BATCH)
        if column == "eagle2" or r.narrowed == "never":
            return np.full(len(BATCH), r.nodes)
        if r.narrowed == "cost law":
            return np.minimum(self.best_nodes(column), r.nodes)
        most = paths * r.depth if r.narrowed == "paths" else paths - 1
        return np.clip(np.round(most), 1, r.nodes).astype(int)

    def tok_s(self, column: str, multipliers: dict[str, float] | None = None) -> Array:
        """Predicted tokens/s of a column at each batch, [B]."""
        server = self.calibrated(column, multipliers)
        if column == "none":
            return BATCH / server.step_s(BATCH, 0)
        nodes = self.nodes(column)
        width = np.minimum(self.reading.topk, nodes)
        return BATCH * self.tau(column)[nodes] / server.step_s(BATCH, self.reading.depth, width=width, nodes=nodes)

    def best_nodes(self, column: str) -> Counts:
        """The tree, as deep as the reading's, with the most tokens/s at each batch by the calibrated cost law."""
        server, sizes = self.calibrated(column), np.arange(1, MOST_NODES + 1)
        width = np.minimum(self.reading.topk, sizes)
        step = server.step_s(BATCH[:, None], self.reading.depth, width=width, nodes=sizes)
        return sizes[np.argmax(self.tau(column)[sizes] / step, axis=1)]

    def interval(self, column: str) -> Array:
        """LEVEL's ends of `tok_s` over what calibration leaves open and over the published targets' τ, [2, B]."""
        rng = np.random.default_rng(SEED)
        names, log = list(self.calibration.multipliers), np.log(list(self.calibration.multipliers.values()))
        root = np.linalg.cholesky(0.5 * (self.calibration.covariance + self.calibration.covariance.T))
        draws = np.exp(log + rng.standard_normal((DRAWS, len(names))) @ root.T)
        speeds = np.stack([self.tok_s(column, dict(zip(names, draw, strict=True))) for draw in draws.tolist()])
        taus = np.array([getattr(pair, column) for pair in PAPER.accept])
        shares = np.quantile(taus, stratified(DRAWS, rng)) / _mean(column)
        return np.quantile(speeds * shares[:, None], ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)


@cache
def _tree_taus(tau: float, nodes: int, depth: int, topk: int) -> Array:
    """τ by nodes of static trees of a draft that has `tau` at `nodes`, its acceptance constant over positions."""

    def taus(accept: float, sizes: Sequence[int]) -> list[float]:
        return grown(np.full(depth, accept), topk, TAIL, sizes)

    def gap(accept: float) -> float:
        return taus(accept, [nodes])[0] - tau

    accept = float(brentq(gap, 0.01, 0.999, xtol=1e-6))  # pyright: ignore[reportArgumentType]
    return np.array(taus(accept, range(MOST_NODES + 1)))


def reproduce() -> dict[str, Any]:
    """The theorems and Table 5 beside what the paper states, as plain JSON values."""
    costs = Table5Costs(USUAL)
    return {
        "source": PAPER.source,
        "theorems": [
            *(_log_theorem(each) for each in (PAPER.theorem_1_1, PAPER.theorem_1_2)),
            _batch_theorem(PAPER.theorem_1_3),
        ],
        "table_5": _table_5(costs),
        "other_readings": [_errors(Table5Costs(reading)) | {"name": reading.name} for reading in OTHERS],
        "assumes": list(_assumptions(costs)),
    }


def _log_theorem(theorem: LogTheorem) -> dict[str, Any]:
    """Each stated value under each reading, and the sizes of theorem 1.2 under each pairing with layers."""
    stated = []
    for value in theorem.stated:
        readings = []
        for reading in theorem.readings:
            says, rounding = theorem.says(value, reading)
            agrees = abs(says - value.value) <= rounding
            readings.append({"reading": reading.name, "says": says, "rounding": rounding, "agrees": agrees})
        stated.append({"what": value.what, "value": value.value, "readings": readings})
    pairings = [
        {"name": pairing.name, "params": list(pairing.params), "layers": list(pairing.layers),
         "tokens_per_step": theorem.tokens_per_step(np.array(pairing.layers)).tolist()}
        for pairing in theorem.pairings
    ]  # fmt: skip
    return {**_about(theorem), "stated": stated, "pairings": pairings}


def _batch_theorem(theorem: BatchTheorem) -> dict[str, Any]:
    """The stated values, what the coefficients' rounding leaves of them, the law squared out, and its throughput against Table 5."""
    stated = []
    for value in theorem.stated:
        says, rounding = theorem.says(value)
        stated.append(
            {"what": value.what, "value": value.value, "says": says, "rounding": rounding,
             "rounding_of_coefficients": float(theorem.rounding(value.at)), "agrees": abs(says - value.value) <= rounding}
        )  # fmt: skip
    span, critical, cache_tokens = theorem.as_intensity()
    line = theorem.throughput(BATCH)
    misses = {column: float(np.mean(np.abs(line / getattr(TABLE, column) - 1))) for column in ("none", *COLUMNS)}
    return {
        **_about(theorem), "stated": stated,
        "as_intensity": {"span": span, "critical": critical, "cache": cache_tokens},
        "throughput": {"batch": list(TABLE.batch), "line": line.tolist(), "mean_error_of": misses},
    }  # fmt: skip


def _about(theorem: LogTheorem | BatchTheorem) -> dict[str, Any]:
    return {
        "name": theorem.name,
        "formula": theorem.formula,
        "about": theorem.about,
        "ambiguities": list(theorem.ambiguities),
    }


def _table_5(costs: Table5Costs) -> dict[str, Any]:
    """Row by row: published, predicted and its interval, the trees, and the best number of nodes by either law."""
    predicted = {column: costs.tok_s(column) for column in ("none", *COLUMNS)}
    ends = {column: costs.interval(column) for column in COLUMNS}
    nodes, best = (
        {column: costs.nodes(column) for column in COLUMNS},
        {column: costs.best_nodes(column) for column in COLUMNS},
    )
    rows = []
    for i, batch in enumerate(TABLE.batch):
        row: dict[str, Any] = {
            "batch": batch, "k_opt": float(PAPER.theorem_1_3.best_paths(batch)),
            "none": {"published": TABLE.none[i], "calibrated": float(predicted["none"][i])},
        }  # fmt: skip
        for column in COLUMNS:
            published = getattr(TABLE, column)[i]
            row[column] = {
                "published": published, "predicted": float(predicted[column][i]), "low": float(ends[column][0, i]),
                "high": float(ends[column][1, i]), "error": float(predicted[column][i] / published - 1),
                "nodes": int(nodes[column][i]), "tokens_per_step": float(costs.tau(column)[nodes[column][i]]),
                "best_nodes": int(best[column][i]),
            }  # fmt: skip
        rows.append(row)
    inside = [row[c]["low"] <= row[c]["published"] <= row[c]["high"] for row in rows for c in COLUMNS]
    return {
        "target": TABLE.target, "machine": TABLE.machine, "devices": TABLE.devices, "input_len": TABLE.input_len, "rows": rows,
        "level": LEVEL, "inside": float(np.mean(inside)), **_errors(costs), "multipliers": costs.calibration.multipliers,
    }  # fmt: skip


def _errors(costs: Table5Costs) -> dict[str, Any]:
    """Mean absolute relative errors of all columns, and the first batch at which EAGLE-2 is slower than no draft."""
    predicted = {column: costs.tok_s(column) for column in ("none", *COLUMNS)}
    misses = {
        f"{column}_mean_error": float(np.mean(np.abs(speeds / getattr(TABLE, column) - 1)))
        for column, speeds in predicted.items()
    }
    below = _first_below(predicted["eagle2"], predicted["none"])
    published = _first_below(np.array(TABLE.eagle2), np.array(TABLE.none))
    return {**misses, "eagle2_below_none": below, "eagle2_below_none_published": published}


def _first_below(speeds: Array, plain: Array) -> int | None:
    """The first batch of the table at which `speeds` are below `plain`; None where there is none."""
    slower = np.flatnonzero(speeds < plain)
    return int(BATCH[slower[0]]) if len(slower) else None


def _assumptions(costs: Table5Costs) -> tuple[str, ...]:
    """What Table 5 leaves open and was taken for granted."""
    target, r, most = shapes.shape(TABLE.target), costs.reading, max(TABLE.batch)
    room = TABLE.devices * machine(TABLE.machine).memory_bytes / GB
    weights = target.weight_bytes("bfloat16") / GB
    wide, narrow = (most * target.cache_bytes(TABLE.input_len, dtype) / GB for dtype in ("bfloat16", r.kv_dtype))
    return (
        f"tokens per step at 72 B and prompts of 10 K are not published: {r.eagle2:.2f} (EAGLE-2) and {r.scylla:.2f} (Scylla), the means "
        f"of {len(PAPER.accept)} smaller targets on short prompts",
        f"EAGLE-2's tree has the {r.nodes} nodes of {r.depth} levels, the {r.topk} best expanded in each, that its paper sets for 70 B "
        "(arXiv:2406.16858), at every batch; Scylla's the same, but no more verified tokens a sequence than theorem 1.3's k_opt",
        f"a tree of fewer nodes keeps what a static one would: acceptance the same at each level, further choices as "
        f"rank^-{TAIL:g} at α = {TAIL_ACCEPT}, which is how our own trees gained by width",
        f"EAGLE-2's head has one layer, Scylla's {r.layers}: the paper does not say of which depth",
        f"weights in 16 bits ({weights:.0f} GB: in 8 they would be read in half the measured step), the cache in 8 ({narrow:.0f} GB at "
        f"batch {most}; the {wide:.0f} GB in 16 would not fit beside the weights in {room:.0f} GB)",
        f"the in-house engine costs what our cost law's defaults say but for what the plain column tells: reading weights and cache, and fixed costs "
        f"of {costs.calibration.multipliers['target_fixed']:.2f} of the default's, which hold for drafting and speculation too",
        "a batch is what runs at once, and prompts are not in the tokens/s",
    )
