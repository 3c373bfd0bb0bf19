"""The servers behind measured rows: from shapes and a machine where the rows name them, else from the rows' own
no-draft speed.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from foredraft import kinds, shapes
from foredraft.engines import named_in
from foredraft.laws.cost import Prefill, ServerCost, capacity_tokens, serve
from foredraft.laws.passes import Layout, PassCost
from foredraft.machines import placed
from foredraft.plan.served import Place
from foredraft.records import Observation, dtype_name

DEFAULT_LENGTHS = (256.0, 512.0)  # prompt and answer tokens where the rows state none
GROWTH = 0.5  # share of how plain steps grow with the load that is laid to caches, the rest to arithmetic
GUESS_PRIOR_WIDTH = 3.0  # how much wider calibration may move the coefficients of a server whose shapes are guessed


class Servers(NamedTuple):
    """Without and with speculation, how far calibration may move them, and what was assumed to build them."""

    plain: ServerCost
    speculative: ServerCost
    prior_width: float
    assumed: tuple[str, ...]


def servers(row: Observation, plain_tok_s: Mapping[int, float], machine_name: str | None = None) -> Servers:
    """Servers for the group that `row` belongs to; where a shape or machine is not known they are guessed from `plain_tok_s` (by load)."""
    lengths, assumed = (row.input_len, row.output_len), ()
    if lengths[0] is None or lengths[1] is None:
        lengths = DEFAULT_LENGTHS
        assumed = (f"{row.target}: prompts of {lengths[0]:.0f} and answers of {lengths[1]:.0f} tokens",)
    try:
        return known_servers(row, lengths, machine_name)._replace(prior_width=1.0, assumed=assumed)
    except ValueError as error:
        if not plain_tok_s:
            raise
        note = f"{row.target} with {row.draft or row.method}: costs from the rows' own speed, not knowing {error}"
        return Servers(*_guessed(kinds.role_of(row.method), plain_tok_s, lengths), GUESS_PRIOR_WIDTH, (*assumed, note))


def known_servers(row: Observation, lengths: tuple, machine_name: str | None = None) -> Servers:
    """From shapes and machine, as far off as published speeds like theirs are. Raises ValueError naming what is not known."""
    name = row.machine or machine_name
    if not name:
        raise ValueError("the machine, or --machine")
    parts = (row.target, name, row.tensor_parallel, format_of(row), row.engine, row.method, row.draft, lengths)
    known = of_names(*parts)
    if isinstance(known, str):
        raise ValueError(known)
    return known


@cache
def of_names(
    target_name: str, machine_name: str, devices: int | None, dtype: str | None, engine: str | None, method: str, draft: str | None,
    lengths: tuple[float, float],
) -> Servers | str:  # fmt: skip
    """Both servers, or what is not known."""
    try:
        target, (where, count) = shapes.shape(target_name), placed(machine_name, devices)
        drafted = draft_shape(method, draft, target)
        efficiency, layout = (
            named_in(engine).efficiency(),
            Layout(count if devices or count > 1 else fewest(target, where)),
        )
        conditions = {
            "input_len": lengths[0], "output_len": lengths[1], "efficiency": efficiency, "dtype": dtype,
            "layout": layout,
        }  # fmt: skip
        return Servers(
            serve(target, where, **conditions), serve(target, where, draft=drafted, **conditions),
            Place(target, where, named_in(engine).name, layout, dtype).prior_width, (),
        )  # fmt: skip
    except ValueError as error:
        return str(error)


def capacity(row: Observation, machine_name: str | None = None) -> float:
    """Tokens that the KV cache of a row's server holds. Raises ValueError naming what is not known."""
    name = row.machine or machine_name
    if not name:
        raise ValueError("the machine, or --machine")
    target, (where, count) = shapes.shape(row.target), placed(name, row.tensor_parallel)
    return capacity_tokens(
        target, where, draft=draft_shape(row.method, row.draft, target), layout=Layout(count), dtype=format_of(row),
        efficiency=named_in(row.engine).efficiency(), speculate=row.method != "none",
    )  # fmt: skip


@cache
def is_mixture(target: str) -> bool:
    """Whether the target is a mixture of experts; an unknown one counts as none."""
    try:
        return shapes.shape(target).num_experts > 0
    except ValueError:
        return False


def draft_shape(method: str, draft: str | None, target: shapes.Shape) -> shapes.Shape | None:
    """The draft's shape for a measured row; None for prompt lookup and no draft. Raises ValueError naming what the row does not say."""
    kind = kinds.of_method(method)
    if kind.passes == "none" or kind.role == "none":
        return None
    if kind.role == "lm" and not draft:
        raise ValueError("the draft model's name")
    if kind.role == "lm" and draft:
        return shapes.shape(draft)
    if kind.parts is None:
        raise ValueError(f"a shape for method {method}")
    return kind.shape(target)


def format_of(row: Observation) -> str | None:
    """What a row says of its weights, in our spelling."""
    return dtype_name(row.dtype) if row.dtype else None


def fewest(target: shapes.Shape, where) -> int:
    """The fewest devices (a power of two) whose memory takes the weights and as much again by half: a guess for rows that do not say."""
    return next(n for n in (1, 2, 4, 8, 16, 32, 64) if n * where.memory_bytes * 0.75 > target.weight_bytes() or n == 64)


def _guessed(kind: str, plain_tok_s: Mapping[int, float], lengths: tuple) -> tuple[ServerCost, ServerCost]:
    """A server whose plain step at the smallest load is as measured, memory-bound up to 250 tokens, and grows with the load half as
    measured; a draft of a twentieth of its cost.

    Ranking a tree's level takes 2 % of a step: SpecForge's trees of 3 and 4 choices took a tenth longer than their tokens alone.
    """
    steps = {load: load / speed for load, speed in plain_tok_s.items()}
    least, most = min(steps), max(steps)
    step = steps[least]
    sequence_s = GROWTH * max(steps[most] - step, 0.0) / max(most - least, 1)

    def model(share: float) -> PassCost:
        weights = 0.9 * share * step
        return PassCost(0.1 * share * step, weights, weights / 250, share * sequence_s)

    parts = {
        "input_len": lengths[0], "output_len": lengths[1], "capacity_tokens": np.inf, "speculation_s": 0.03 * step,
        "prefill": Prefill(0.2 * step, 0.2 * step), "blend": 2.0, "tree_level_s": 0.02 * step,
    }  # fmt: skip
    return ServerCost(target=model(1.0), draft=None, **parts), ServerCost(
        target=model(1.0), draft=None if kind == "lookup" else model(0.05), **parts
    )
