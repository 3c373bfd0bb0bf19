"""How far the judged throughput table hangs on the cost law's own defaults, which were set on logs of that very
table.

    python benchmarks/cost_defaults.py OUT.json

Calibration starts from the defaults and sees the no-draft rows and k ≤ 2. Here it starts from defaults that are badly
wrong, and from none (no shapes, no machine: the rows' own speed); then what loads may deviate from the cost law is halved and
doubled.
"""

import sys
from unittest import mock

import msgspec

from foredraft import records
from foredraft.engines import ENGINES
from foredraft.laws import deviation
from foredraft.laws.passes import Efficiency
from foredraft.published import observations
from foredraft.records import Observation
from foredraft.validate import servers, validate

LOW = {"draft_fixed_s": 2e-4, "draft_layer_s": 1.8e-5, "speculation_s": 6e-4, "target_layer_s": 2e-6}
HIGH = {"draft_fixed_s": 1.25e-3, "draft_layer_s": 1.1e-4, "speculation_s": 3.75e-3}
DEFAULTS = {
    "as shipped": {},
    "fixed costs × 0.4": LOW,
    "fixed costs × 2.5": HIGH,
    "bandwidth 0.6, compute 0.45": {"bandwidth": 0.6, "compute": 0.45},
    "all of them low": LOW | {"bandwidth": 0.65, "compute": 0.5, "occupancy": 1.0},
}


def main(out: str) -> None:
    rows = [row for row in observations() if "tomasruizt" in row.provenance.source and row.output_tok_s]
    defaults = {}
    for name, changes in DEFAULTS.items():
        with mock.patch.object(ENGINES["vllm"], "efficiency", lambda machine=None, by=changes: Efficiency(**by)):
            defaults[name] = _figures(rows)
    defaults["no shapes, no machine"] = _figures(
        [msgspec.structs.replace(r, target="unnamed", machine=None) for r in rows]
    )
    for width in (0.5, 2.0):
        with mock.patch.object(deviation, "PRIOR_SD", width * deviation.PRIOR_SD):
            defaults[f"deviation × {width:g}"] = _figures(rows)
    records.write(out, defaults)
    print(defaults)


def _figures(rows: list[Observation]) -> dict[str, float]:
    servers.of_names.cache_clear()
    summary = validate(rows).summary()
    return {key: summary[key] for key in ("throughput_ratio_error", "best_k_regret_mean", "best_k_regret_worst")}


if __name__ == "__main__":
    main(sys.argv[1])
