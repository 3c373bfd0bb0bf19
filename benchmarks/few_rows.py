"""x·Wᵀ by F.linear against ours, by number of rows: median microseconds over weights that no cache holds together.

python benchmarks/few_rows.py OUT.json
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

from foredraft import records
from foredraft.hardware import read_rate
from foredraft.models import kernels
from foredraft.models.linear import linear

SHAPES = ((1408, 512), (8192, 512), (4096, 4096))
ROWS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)


def main(out: str) -> None:
    measurements = []
    for dtype in (torch.float32, torch.bfloat16):
        for out_size, in_size in SHAPES:
            num = max(2, int(2.5e8 / (out_size * in_size * dtype.itemsize)))
            weights = [torch.randn(out_size, in_size).to(dtype) for _ in range(num)]
            for rows in ROWS:
                theirs, ours = _paired(weights, torch.randn(rows, in_size).to(dtype))
                read = out_size * in_size * dtype.itemsize / ours / 1e3
                row = {
                    "weight": [out_size, in_size],
                    "rows": rows,
                    "f_linear_us": theirs,
                    "ours_us": ours,
                    "ratio": theirs / ours,
                    "gb_s": read,
                }
                measurements.append({"dtype": str(dtype)[6:], **row})
                print(measurements[-1], flush=True)
    ratios = [row["ratio"] for row in measurements]
    conditions = {
        "threads": torch.get_num_threads(),
        "processor": kernels.processor_name(),
        "kernels": kernels.missing() or "own",
    }
    least, most = min(ratios), max(ratios)
    records.write(
        out,
        {**conditions, "read_gb_s": read_rate() / 1e9, "rows": measurements, "least_ratio": least, "most_ratio": most},
    )


def _paired(weights: list[torch.Tensor], x: torch.Tensor, repeats: int = 25) -> tuple[float, float]:
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for i in range(repeats + 5):
        for name, run in (("theirs", F.linear), ("ours", linear)):
            weight = weights[(2 * i + (name == "ours")) % len(weights)]
            start = time.perf_counter()
            run(x, weight)
            if i >= 5:
                times[name].append(time.perf_counter() - start)
    return tuple(statistics.median(values) * 1e6 for values in times.values())  # type: ignore[return-value]


if __name__ == "__main__":
    with torch.inference_mode():
        main(sys.argv[1])
