"""Own rows with a clock, and the cost law calibrated on them.

Promises: each row is held to a server of its own shapes and lengths. Refuses to know: acceptance, search.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from foredraft import kinds
from foredraft.engines import named_in
from foredraft.laws.calibration import CostRow
from foredraft.laws.cost import ServerCost, serve
from foredraft.laws.own_costs import Measured, OwnCosts, own_costs
from foredraft.laws.passes import Efficiency, Layout
from foredraft.plan.backing import unbacked
from foredraft.plan.study import draft_shapes
from foredraft.records import Machine, Observation
from foredraft.shapes import Shape

LENGTH_STEP = 0.02  # of log length: rows nearer than this share a server
MOST_LENGTHS = 60  # pairs of prompt and answer lengths that have servers of their own; with more the step is doubled until they are few
# How much wider the cost law's prior is than on dense targets, with experts and for each input that no published speed stands behind:
# documents left out of the fit missed mixtures by about half as much again (results/cost_law.json).
EXPERTS_WIDTH, UNBACKED_WIDTH = 1.5, 1.3
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
        return named_in(self.engine).efficiency(self.machine, self.weight_format)

    @property
    def unbacked(self) -> tuple[str, ...]:
        """Inputs that no published speed stands behind."""
        return unbacked(self.target, self.machine, named_in(self.engine).name, self.layout, self.weight_format)

    @property
    def prior_width(self) -> float:
        """How wide the cost law's prior is, against that of published dense servers."""
        if named_in(self.engine).own_rates(self.machine):
            return PROBE_PRIOR_WIDTH
        return (EXPERTS_WIDTH if self.target.num_experts else 1.0) * UNBACKED_WIDTH ** len(self.unbacked)

    def _draft_reading(self, draft: Shape | None) -> tuple[str, Efficiency] | None:
        """None where the draft is computed in the target's type."""
        engine = named_in(self.engine)
        dtype = engine.draft_dtype(draft, self.weight_format) if draft else self.weight_format
        return None if dtype == self.weight_format else (dtype, engine.efficiency(self.machine, dtype))

    def server(self, draft: Shape | None, input_len: float, output_len: float, *, speculate: bool) -> ServerCost:
        """The server of the target beside `draft`; raises ValueError where it does not fit."""
        return serve(
            self.target, self.machine, draft=draft, input_len=input_len, output_len=output_len,
            layout=self.layout, dtype=self.dtype, kv_dtype=self.kv_dtype, efficiency=self.efficiency,
            speculate=speculate, draft_reading=self._draft_reading(draft),
        )  # fmt: skip


class TimedRow(NamedTuple):
    """An own row with the servers that it was measured on, with and without its draft, and as calibration reads it."""

    observation: Observation
    server: ServerCost
    cost: CostRow
    plain: ServerCost
    draft: Hashable

    @property
    def measured(self) -> Measured:
        return Measured(self.server, self.plain, self.cost, self.draft, self.observation.provenance.command)

    @property
    def undrafted(self) -> Measured:
        """Plain decoding of the same prompts."""
        return Measured(self.plain, self.plain, self.cost._replace(depth=0.0, nodes=0.0, width=1.0))


def timed(
    place: Place, observations: Iterable[Observation], refuse: Callable[[Observation, str], object] = lambda *_: None
) -> list[TimedRow]:
    """Rows that `matching.match` gave, each with its servers; `refuse` takes those that do not fit as they are described, and why."""
    observations = list(observations)
    draft_of, servers, timed_rows = draft_shapes(place.target), {}, []
    length = cache(partial(near, step=_length_step(observations)))
    likeness: dict[tuple[int, bool], Hashable] = {}

    def server(draft: Shape | None, prompt: float, answer: float, speculate: bool) -> ServerCost | ValueError:
        key = id(draft), prompt, answer, speculate
        if key not in servers:
            try:
                servers[key] = place.server(draft, prompt, answer, speculate=speculate)
            except ValueError as error:
                servers[key] = error
        return servers[key]

    for row in observations:
        lengths, draft = (length(row.input_len), length(row.output_len)), draft_of(row)
        server_cost, plain = server(draft, *lengths, row.method != "none"), server(None, *lengths, False)
        if isinstance(server_cost, ServerCost) and isinstance(plain, ServerCost):
            key = id(draft), kinds.role_of(row.method) == "mixed"
            if key not in likeness:
                likeness[key] = alike(draft, mixed=key[1])
            timed_rows.append(TimedRow(row, server_cost, _cost_row(row), plain, likeness[key]))
        else:
            refuse(row, f"that do not fit as described: {plain if isinstance(plain, ValueError) else server_cost}")
    return timed_rows


def alike(draft: Shape | None, *, mixed: bool) -> Hashable:
    """What tells drafts apart whose steps may deviate otherwise from the cost law, one behind a look-up (`mixed`) too; names do not."""
    return draft and (draft.head, draft.params, mixed)


def load(row: Observation) -> int:
    """Clients, or the batch; 0 where a row states neither."""
    return row.concurrency or row.batch_size or 0


def near(length: float | None, step: float = LENGTH_STEP) -> float:
    """A length that rows share which are as long within `step` of its logarithm."""
    assert length is not None, "only rows with lengths are timed"
    return math.exp(step * round(math.log(length) / step))


def _length_step(observations: Sequence[Observation]) -> float:
    lengths = np.array([(row.input_len, row.output_len) for row in observations] or [(1.0, 1.0)], dtype=float)
    logs, step = np.log(lengths), LENGTH_STEP
    while len(np.unique(np.round(logs / step) @ [1, 1j])) > MOST_LENGTHS:
        step *= 2
    return step


def _cost_row(row: Observation) -> CostRow:
    depth = float(row.lookahead or 0) if row.method != "none" else 0.0
    width = float(row.topk or 1)
    nodes = float(row.tree_nodes or depth) if width > 1 else float(depth)
    role = kinds.role_of(row.method)
    if role in ("lookup", "mixed") and row.steps and row.drafted:
        nodes = row.drafted / row.steps  # where a look-up finds no match it drafts nothing, or a draft does
        depth *= 1 - ((row.lookup_steps or 0) / row.steps) ** max(load(row), 1)
    tau, tok_s = row.tokens_per_step or 1.0, row.output_tok_s or 0.0
    return CostRow(load(row), depth, tau, tok_s, width, nodes, *_shares(row))


def _shares(row: Observation) -> tuple[float, float]:
    """Of all time, what prompts and drafting took; NaN where the row does not say."""
    parts = [part for part in (row.draft_s, row.target_s, row.other_s) if part is not None]
    if row.prompt_s is None or not row.output_tok_s or not row.output_len or len(parts) < 3:
        return math.nan, math.nan
    prompt = row.prompt_s * row.output_tok_s / row.output_len
    return prompt, (1 - prompt) * parts[0] / sum(parts) if row.method != "none" else 0.0


def calibrated(place: Place, rows: Sequence[TimedRow]) -> OwnCosts | None:
    """None without rows of plain decoding: a speedup would hang on the prior."""
    if not any(row.cost.depth == 0 for row in rows):
        return None
    return own_costs([row.measured for row in rows], prior_width=place.prior_width)
