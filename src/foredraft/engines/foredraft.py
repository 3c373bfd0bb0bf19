"""Foredraft's own engine: chains and trees, and costs that follow from the machine's probe."""

from typing import ClassVar

from foredraft.engines.engine import Adaptive, ServingEngine
from foredraft.kinds import ADAPTIVE, LENGTHS, Kind
from foredraft.laws.passes import Efficiency
from foredraft.records import Machine

PACKED = 64  # tokens that our kernels on a CPU compute alone, in bfloat16 without matrix units
LAYER_S = 1e-5  # of a model's layer, beside what the probe's step of one layer holds


class Foredraft(ServingEngine):
    name, label = "foredraft", "Foredraft"
    trees = True
    looks_up = True
    draft_vocabularies: ClassVar = frozenset({"eagle3", "eagle", "dflash", "dspark", "lm"})

    def adaptive(self, kind: Kind) -> Adaptive | None:
        """Of drafts that are models: as far as their confidence pays, position by position."""
        if kind.role not in ("lm", "head") or self.name not in kind.engine_names:
            return None
        return Adaptive(
            f"--draft DRAFT{ADAPTIVE}",
            "batch",
            f"{LENGTHS}, of foredraft measure --adaptive",
            stops=True,
            packed=PACKED,
        )

    def efficiency(self, machine: Machine | None = None) -> Efficiency:
        """Where the machine's step was probed, the rates of its record are those reached, and the fixed costs follow from the step;
        no other measurement stands behind the shares. Elsewhere the defaults.
        """
        if machine is None or not machine.step_overhead_s:
            return Efficiency()
        step_s = machine.step_overhead_s
        return Efficiency(
            bandwidth=1.0, compute=1.0, target_fixed_s=step_s, target_layer_s=LAYER_S, draft_fixed_s=0.5 * step_s,
            draft_layer_s=LAYER_S, speculation_s=step_s, tree_level_s=step_s,
        )  # fmt: skip

    def own_rates(self, machine: Machine) -> bool:
        return bool(machine.step_overhead_s)
