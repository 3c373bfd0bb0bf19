"""Which of a server's inputs have published speeds behind them: the rows that the cost law's defaults were fitted on.

Promises: an input that no row shares is named, so that a plan says so and widens. Refuses to know: the speeds themselves
(recipes/cost_law.py fits them), own rows.
"""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec

from foredraft.laws.passes import Layout
from foredraft.records import Machine
from foredraft.shapes import Shape
from foredraft.shapes.formats import number_format

SIZES = 3.0  # a target this much smaller or larger than any that was measured is outside


class Backing(NamedTuple):
    """One kind of server that published rows were measured on, with the spread of its targets and loads."""

    engine: str
    machine: str
    experts: bool
    bits: float
    devices: int
    least_params: float
    most_params: float
    most_clients: float


@cache
def backings() -> tuple[Backing, ...]:
    """What ships with the package."""
    return tuple(msgspec.json.decode((files("foredraft.published") / "backings.json").read_bytes(), type=list[Backing]))


def unbacked(target: Shape, machine: Machine, engine: str, layout: Layout, weight_format: str) -> tuple[str, ...]:
    """The inputs, by the names of a plan, that no published row shares: a machine or engine as such, the others among targets of the
    same class, dense or with experts.
    """
    rows = [row for row in backings() if row.experts == bool(target.num_experts)]
    least, most = min(row.least_params for row in rows), max(row.most_params for row in rows)
    shared = {
        "machine": any(row.machine == machine.name for row in backings()),
        "engine": any(row.engine == engine for row in backings()),
        "dtype": any(row.bits == number_format(weight_format).bits for row in rows),
        "devices": layout.devices <= max(row.devices for row in rows) and (layout.data == 1 or layout.expert),
        "target_params": least / SIZES <= target.params <= most * SIZES,
    }
    return tuple(name for name, is_shared in shared.items() if not is_shared)
