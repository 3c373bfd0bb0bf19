"""Fit the law of adaptive lengths on published cases and write src/foredraft/published/adaptive_laws.json: from all, and without each
document, by which `foredraft validate` judges it.

    python recipes/adaptive_lengths.py

The confidence's AUC starts from the published ones: 0.81 to 0.90 (DSpark, arXiv 2607.05147), 0.839 and 0.884 (vLLM's acceptance
estimator). The spread between requests is that between data sets of one head: DSpark's table 1.
"""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np

from foredraft import published, records
from foredraft.laws.adaptive import TAIL, AdaptiveLaw
from foredraft.laws.speedup import accept_prob_from_rate
from foredraft.validate.lengths import grouped, log_gains, server_key

OUT = Path(__file__).parents[1] / "src/foredraft/published/adaptive_laws.json"
AUC, AUC_SD = 0.86, 0.03
AUCS = (0.82, 0.84, 0.86, 0.88, 0.90)
SHARES = (0.0, 0.25, 0.5, 1.0)
CURVES = 32  # draws of a case's acceptance
SHARES_REALISED = np.linspace(0.4, 1.0, 7)
OVERHEADS = np.linspace(0.02, 0.12, 6)
USUAL_SD = (0.05, 0.5)  # of what deciding costs between cases, and the sd of its logarithm: few documents show it
OVERHEAD_SDS = np.linspace(0.02, 0.1, 5)
REALISED_SDS = np.linspace(0.0, 0.4, 5)
# τ of a block of 7 by data set (GSM8K, MATH, AIME25, MBPP, HumanEval, LCB, MT-Bench, Alpaca, Arena): arXiv 2607.05147, table 1.
BY_DATASET = {
    "Qwen3-4B DFlash": (5.40, 4.85, 4.15, 4.40, 4.74, 4.18, 3.07, 2.96, 2.83),
    "Qwen3-4B DSpark": (6.11, 5.70, 4.89, 5.13, 5.38, 4.86, 3.64, 3.54, 3.29),
    "Qwen3-8B DFlash": (5.33, 4.91, 4.07, 4.36, 4.64, 4.39, 3.11, 2.98, 2.81),
    "Qwen3-8B DSpark": (6.17, 5.78, 5.01, 5.16, 5.52, 5.17, 3.72, 3.58, 3.21),
    "Qwen3-14B DFlash": (5.41, 4.84, 3.98, 4.44, 4.59, 4.33, 3.10, 2.94, 2.72),
    "Qwen3-14B DSpark": (6.21, 5.74, 4.94, 5.26, 5.43, 5.02, 3.70, 3.58, 3.13),
    "Gemma4-12B DFlash": (5.45, 5.04, 4.22, 4.39, 4.95, 3.70, 2.98, 2.84, 2.59),
    "Gemma4-12B DSpark": (6.05, 5.78, 5.12, 5.11, 5.64, 4.51, 3.49, 3.35, 2.92),
    "Qwen3-4B EAGLE-3": (5.14, 4.62, 3.92, 3.69, 4.16, 3.77, 2.39, 2.26, 2.55),
}


def request_sd() -> float:
    """Sd of the logit of constant α between the data sets of a head, pooled over heads."""
    levels = np.array(
        [[float(accept_prob_from_rate((tau - 1) / 7, 7)) for tau in taus] for taus in BY_DATASET.values()]
    )
    logits = np.log(levels / (1 - levels))
    return float(np.sqrt(logits.var(axis=1, ddof=1).mean()))


def gains(auc: float, shared: float, sd: float) -> dict[int, float]:
    """The predicted log ratio of every case that can be predicted, by its place, before what deciding costs."""
    law = AdaptiveLaw(auc, 0.0, shared, sd, 1.0, 0.0, 0.0, 0.0, 0)
    cases, out = published.length_cases(), {}
    groups = grouped(cases)
    for i, case in enumerate(cases):
        if case.measured is None:
            continue
        try:
            drawn, _ = log_gains(case, groups[server_key(case)], law, np.full(CURVES, 0.5), np.random.default_rng(0))
        except ValueError:
            continue
        out[i] = float(np.median(drawn))
    return out


def fit(tried: dict[tuple[float, float], dict[int, float]], sd: float, without: str = "") -> AdaptiveLaw:
    """The law of greatest evidence on the cases but those of `without`; every document weighs as the root of its cases."""
    cases = published.length_cases()
    places = [i for i in next(iter(tried.values())) if cases[i].document != without]
    sizes = Counter(cases[i].document for i in places)
    weights = np.array([sizes[cases[i].document] ** -0.5 for i in places])
    measured = np.log([cases[i].measured or 1.0 for i in places])

    best, law = -np.inf, None
    for (auc, shared), gains_by_place in tried.items():
        gain = np.array([gains_by_place[i] for i in places])
        auc_prior = -0.5 * ((auc - AUC) / AUC_SD) ** 2
        for share, cost in product(SHARES_REALISED, OVERHEADS):
            off = measured - share * gain + np.log1p(cost)
            for share_sd, cost_sd in product(REALISED_SDS, OVERHEAD_SDS):
                prior = auc_prior - 0.5 * (np.log(cost_sd / USUAL_SD[0]) / USUAL_SD[1]) ** 2
                evidence = float(weights @ _log_t(off, np.hypot(cost_sd, share_sd * gain))) + prior
                if evidence > best:
                    best = evidence
                    law = AdaptiveLaw(
                        auc=auc, auc_sd=AUC_SD, shared=shared, request_sd=round(sd, 3), realised=round(float(share), 3),
                        realised_sd=round(float(share_sd), 3), overhead=round(float(cost), 3),
                        overhead_sd=round(float(cost_sd), 3), num_cases=len(places),
                    )  # fmt: skip
    assert law is not None
    return law


def _log_t(off: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Log density of a t of TAIL degrees of freedom, up to a constant."""
    return -(TAIL + 1) / 2 * np.log1p((off / scale) ** 2 / TAIL) - np.log(scale)


def main() -> None:
    sd = request_sd()
    tried = {(auc, shared): gains(auc, shared, sd) for auc in AUCS for shared in SHARES}
    documents = sorted({case.document for case in published.length_cases() if case.measured is not None})
    laws = {name: fit(tried, sd, name) for name in ("", *documents)}
    records.write(OUT, laws)
    for name, law in laws.items():
        print(name or "all", law)


if __name__ == "__main__":
    main()
