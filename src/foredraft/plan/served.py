"""Own rows with a clock, and the cost law calibrated on them.

Promises: only rows of this very target, machine, engine and dtype speak; each is held to a server of its own shapes and
lengths; a row whose draft cannot be told is left out. Refuses to know: acceptance, search.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from foredraft import kinds
from foredraft.engines import named_in
from foredraft.laws.calibration import CostRow
from foredraft.laws.cost import ServerCost, serve
from foredraft.laws.own_costs import Measured, OwnCosts, own_costs
from foredraft.laws.passes import Efficiency, Layout
from foredraft.machines import machine as known_machine
from foredraft.plan.study import on_target, shape_of
from foredraft.records import Machine, Observation
from foredraft.shapes import Shape

LENGTH_STEP = 0.02  # of log length: rows nearer than this share a server
PROBE_PRIOR_WIDTH = 2.0  # how much wider the cost law's prior is where a probe alone stands behind it


@dataclass(frozen=True)
class Place:
    """What serves: target, machine, and how; `dtype` None: the weights as the checkpoint stores them."""

    target: Shape
    machine: Machine
    engine: str
    layout: Layout
    dtype: str | None = None
    kv_dtype: str | None = None

    @property
    def weight_format(self) -> str:
        """What the weights are stored in, the most of them."""
        return self.dtype or self.target.weight_format

    @property
    def efficiency(self) -> Efficiency:
        return named_in(self.engine).efficiency(self.machine)

    @property
    def prior_width(self) -> float:
        """How wide the cost law's prior is, against that of published servers."""
        return PROBE_PRIOR_WIDTH if named_in(self.engine).own_rates(self.machine) else 1.0

    def server(self, draft: Shape | None, input_len: float, output_len: float, *, speculate: bool) -> ServerCost:
        """The server of the target beside `draft`; raises ValueError where it does not fit."""
        return serve(
            self.target, self.machine, draft=draft, input_len=input_len, output_len=output_len,
            layout=self.layout, dtype=self.dtype, kv_dtype=self.kv_dtype, efficiency=self.efficiency,
            speculate=speculate,
        )  # fmt: skip


class TimedRow(NamedTuple):
    """An own row with the servers that it was measured on, with and without its draft, and as calibration reads it."""

    observation: Observation
    server: ServerCost
    cost: CostRow
    plain: ServerCost
    draft: Shape | None

    @property
    def measured(self) -> Measured:
        return Measured(self.server, self.plain, self.cost, alike(self.draft), self.observation.provenance.command)

    @property
    def undrafted(self) -> Measured:
        """Plain decoding of the same prompts."""
        return Measured(self.plain, self.plain, self.cost._replace(depth=0.0, nodes=0.0, width=1.0))


def timed(place: Place, observations: Iterable[Observation], temperature: float) -> list[TimedRow]:
    """Rows with a throughput at a stated load and lengths, measured at `place`: of the temperature's class (0 or not), whose
    steps differ, or where that has none of the other.
    """
    rows = [row for row in observations if _is_timed(row) and _at(place, row)]
    of_class = [row for row in rows if ((row.temperature or 0.0) > 0) == (temperature > 0)] or rows
    server = cache(place.server)
    timed_rows = []
    for row in of_class:
        try:
            lengths = _near(row.input_len), _near(row.output_len)
            draft = shape_of(place.target, row)
            server_cost = server(draft, *lengths, speculate=row.method != "none")
            plain = server(None, *lengths, speculate=False)
        except ValueError:  # it does not fit as it is described
            continue
        timed_rows.append(TimedRow(row, server_cost, _cost_row(row), plain, draft))
    return timed_rows


def alike(draft: Shape | None) -> Hashable:
    """What tells drafts apart whose steps may deviate otherwise from the cost law; names do not."""
    return draft and (draft.head, draft.params)


def load(row: Observation) -> int:
    """Clients, or the batch; 0 where a row states neither."""
    return row.concurrency or row.batch_size or 0


def _is_timed(row: Observation) -> bool:
    has_speed = row.output_tok_s and load(row) and row.input_len and row.output_len
    role = kinds.role_of(row.method)
    return bool(has_speed and (role == "none" or (row.lookahead and row.tokens_per_step)))


def _at(place: Place, row: Observation) -> bool:
    """Whether a row was measured there, with a draft whose shape can be told or none."""
    able = kinds.role_of(row.method) in ("none", "lookup") or shape_of(place.target, row) is not None
    return (
        able
        and on_target(row, place.target)
        and place.engine in (row.engine or "").lower()
        and _is_machine(row.machine, place.machine)
        and row.dtype in (None, place.weight_format)
        and (row.tensor_parallel or 1) == place.layout.tensor
    )


@cache
def _known_name(name: str) -> str | None:
    try:
        return known_machine(name).name
    except ValueError:
        return None


def _is_machine(name: str | None, machine: Machine) -> bool:
    return name is not None and machine.name in (name, _known_name(name))


def _near(length: float | None) -> float:
    assert length is not None, "only rows that state their lengths are timed"
    return float(np.exp(LENGTH_STEP * np.round(np.log(length) / LENGTH_STEP)))


def _cost_row(row: Observation) -> CostRow:
    depth = row.lookahead or 0 if row.method != "none" else 0
    width = float(row.topk or 1)
    nodes = float(row.tree_nodes or depth) if width > 1 else float(depth)
    return CostRow(load(row), depth, row.tokens_per_step or 1.0, row.output_tok_s or 0.0, width, nodes)


def calibrated(place: Place, rows: Sequence[TimedRow]) -> OwnCosts | None:
    """None without rows of plain decoding: a speedup would hang on the prior."""
    if not any(row.cost.depth == 0 for row in rows):
        return None
    return own_costs([row.measured for row in rows], prior_width=place.prior_width)
