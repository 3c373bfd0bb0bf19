"""x·Wᵀ by F.linear against ours, by number of rows: median microseconds over weights that no cache holds together.

python benchmarks/few_rows.py OUT.json
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

from foredraft import records
from foredraft.models.linear import linear

SHAPES = ((1408, 512), (8192, 512), (4096, 4096))
ROWS = (1, 2, 3, 4, 6, 8, 16, 32, 64)


def main(out: str) -> None:
    found = []
    for out_size, in_size in SHAPES:
        weights = [torch.randn(out_size, in_size) for _ in range(max(2, int(2.5e8 / (out_size * in_size * 4))))]
        for rows in ROWS:
            x = torch.randn(rows, in_size)
            theirs, ours = _paired(weights, x)
            found.append(
                {
                    "weight": [out_size, in_size],
                    "rows": rows,
                    "f_linear_us": theirs,
                    "ours_us": ours,
                    "ratio": theirs / ours,
                }
            )
            print(found[-1])
    best = [row["ratio"] for row in found]
    records.write(
        out,
        {
            "threads": torch.get_num_threads(),
            "dtype": "float32",
            "rows": found,
            "least_ratio": min(best),
            "most_ratio": max(best),
        },
    )


def _paired(weights: list[torch.Tensor], x: torch.Tensor, repeats: int = 40) -> tuple[float, float]:
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
