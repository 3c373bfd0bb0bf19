"""The vector of `laws.draws.Lattice`, column by column (component by component; Sloan and Reztsov 2002).

    python recipes/lattice.py

Each is the best of DRAWN odd numbers beside the columns that it meets in a plan, the first COMMON (costs) and the last BLOCK before it (its
draft's acceptance), for several numbers of points at once. What counts, in logs: the squared error of the worst pair and that of all columns
together, in a space of functions of smoothness 2, with product weights: mean over the points of Π_j (1 + WEIGHT·2π²·B₂({i·z_j / n})),
less 1; of a pair of the product of its two terms alone.
"""

import numpy as np

COLUMNS, COMMON, BLOCK, LARGEST = 256, 24, 12, 2**17
DRAWN = 384
SIZES = (128, 1024, 2048, 4096)
WEIGHT = 0.05


def main() -> None:
    rng = np.random.default_rng(0)
    terms = {num: np.empty((0, num)) for num in SIZES}
    vector = [1]
    for _ in range(COLUMNS - 1):
        for num in SIZES:
            terms[num] = np.concatenate([terms[num], smooth(np.array(vector[-1:]), num)])
        met = sorted({*range(min(COMMON, len(vector))), *range(max(len(vector) - BLOCK, 0), len(vector))})
        drawn = np.setdiff1d(2 * rng.integers(LARGEST // 2, size=DRAWN) + 1, vector)
        errors = np.zeros(len(drawn))
        for num in SIZES:
            tried, beside = smooth(drawn, num), terms[num][met]
            pairs = (tried @ beside.T / num).max(axis=1)
            together = (1 + WEIGHT * tried) @ (1 + WEIGHT * beside).prod(axis=0) / num - 1
            errors += np.log(pairs) + np.log(together)
        vector.append(int(drawn[np.argmin(errors)]))
    print(vector)


def smooth(drawn: np.ndarray, num: int) -> np.ndarray:
    """2π²·B₂ of every number drawn at every point, [drawn, num]."""
    at = np.outer(drawn, np.arange(num)) % num / num
    return 2 * np.pi**2 * (at * at - at + 1 / 6)


if __name__ == "__main__":
    main()
