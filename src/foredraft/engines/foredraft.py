"""Foredraft's own engine: chains and trees, and costs that follow from the machine's probe."""

from typing import ClassVar

import msgspec

from foredraft.engines.engine import Adaptive, ServingEngine
from foredraft.kinds import ADAPTIVE, LENGTHS, Kind
from foredraft.laws.passes import Efficiency
from foredraft.laws.stack import reached_rates
from foredraft.records import Machine
from foredraft.shapes import Shape
from foredraft.shapes.formats import bytes_per_value, compute_dtype

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

    def draft_dtype(self, draft: Shape, dtype: str) -> str:
        """As it is stored, where that is narrower than a target in float32; of eight bits and fewer no more is counted than of sixteen."""
        return (
            "bfloat16" if dtype == "float32" and draft.weight_format in ("bfloat16", "int8-g0", "int4-g32") else dtype
        )

    def efficiency(self, machine: Machine | None = None, dtype: str = "bfloat16") -> Efficiency:
        """Where the machine's step was probed, the rates are those that rows through its stack of weights in `dtype` reached, else those of
        its record, and the fixed costs follow from the step; no other measurement stands behind the shares. Elsewhere the defaults.
        """
        if machine is None or not machine.step_overhead_s:
            return Efficiency()
        step_s = machine.step_overhead_s
        fixed = Efficiency(
            bandwidth=1.0, compute=1.0, target_fixed_s=step_s, target_layer_s=LAYER_S, draft_fixed_s=0.5 * step_s,
            draft_layer_s=LAYER_S, speculation_s=step_s, tree_level_s=step_s, first_steps=1.0,
        )  # fmt: skip
        rates = reached_rates(machine.stack_bytes or 0.0, bytes_per_value(dtype), machine.stack_s.get(dtype, {}))
        if rates is None:
            return fixed
        bandwidth = rates.bandwidth / machine.bandwidth_bytes_per_s
        compute = rates.flops_per_s / machine.flops_per_s[compute_dtype(dtype, machine.flops_per_s)]
        return msgspec.structs.replace(
            fixed,
            bandwidth=bandwidth,
            cache_bandwidth=bandwidth,
            compute=compute,
            prompt_compute=compute,
            blend=rates.blend,
        )

    def own_rates(self, machine: Machine) -> bool:
        return bool(machine.step_overhead_s)
