"""Which form of τ in training tokens predicts larger budgets better: every series at hand, its larger budgets left out in turn.

    python recipes/dial_forms.py results/dial_forms.json

Series: the published ones (published/dial_series.json) and those of the package's own experiment (results/experiment). From the n smallest
budgets, n = 3 and up, every policy predicts the rest; an error is relative, in τ. Exponents other than the one in use are judged too, so
that its choice, made with these errors in sight, can be seen. Last: how far depth's law, taught without a document, covers its gain.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foredraft.laws import depth, forms
from foredraft.laws.fit import choose, fit
from foredraft.laws.forms import law_named
from foredraft.laws.law import Law
from foredraft.laws.series import dial_series
from foredraft.plan.study import TOKEN_LAWS
from foredraft.records import Fit, Observation, Provenance, read_lines, write

OWN = Path(__file__).parent.parent / "results" / "experiment" / "observations.jsonl.gz"
LEAST = 3  # budgets to learn from
RIVALS = (forms.LAW_1_1, forms.TOKENS_SATURATING)
EXPONENTS = (0.2, 0.3, 0.5, 0.7, 1.0)  # beside the one in use
NAMED = ("method", "family", "draft_layers", "draft_params", "temperature")
Predict = Callable[[float], float]


class Series(NamedTuple):
    """τ by budget, in rising order; `own` or published."""

    name: str
    at: tuple[float, ...]
    tau: tuple[float, ...]
    own: bool


def published() -> list[Series]:
    series = (Series(each.name, each.at, each.tokens_per_step, False) for each in dial_series("draft_tokens"))
    return [each for each in series if len(each.at) > LEAST]


def experiment() -> list[Series]:
    """Chains of the longest lookahead and trees of the most nodes, of each draft of the experiment that has enough budgets."""
    pools: dict[tuple, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_lines(Observation, OWN):
        if row.draft_tokens and row.tokens_per_step and "/" not in (row.dataset or ""):
            key = tuple(getattr(row, name) for name in forms.LAW_1_1.pool)
            pools[key][row.draft_tokens].append(row.tokens_per_step)
    longest: dict[tuple, tuple[tuple, Series]] = {}
    for key, budgets in pools.items():
        named = dict(zip(forms.LAW_1_1.pool, key, strict=True))
        size, at = (named.pop("lookahead") or 0, named.pop("tree_nodes") or 0), tuple(sorted(budgets))
        draft = tuple(named.values())
        if len(at) > LEAST and (draft not in longest or size > longest[draft][0]):
            words = ", ".join(f"{name} {named[name]}" for name in NAMED if named[name] is not None)
            longest[draft] = size, Series(words, at, tuple(float(np.mean(budgets[tokens])) for tokens in at), True)
    return [series for _, series in longest.values()]


def policies(series: Series, num: int) -> dict[str, Predict]:
    """What each policy predicts from the `num` smallest budgets."""
    source = Provenance(source=series.name)
    taught = [
        Observation(run=f"{i}", target="T", method="eagle3", provenance=source, draft_tokens=at, tokens_per_step=tau)
        for i, (at, tau) in enumerate(zip(series.at[:num], series.tau[:num], strict=True))
    ]

    def single(law: Law) -> Callable[[], Fit]:
        return lambda: fit(law, taught, draws=2)

    def best(*laws: Law) -> Callable[[], Fit]:
        return lambda: choose(laws, taught, draws=2)

    straight, power = single(forms.LAW_1_1), single(forms.TOKENS_POWER)
    plans = {
        "law_1_1": (straight,),
        "tokens_saturating": (single(forms.TOKENS_SATURATING), straight),
        "tokens_power": (power, straight),
        "chosen of law_1_1 and tokens_saturating": (best(*RIVALS), straight),
        "as planned": (best(*TOKEN_LAWS), power, straight),
    }
    fitted = {name: of_fit(first(*attempts)) for name, attempts in plans.items()}
    return fitted | {f"exponent {b:g}": power_line(series.at[:num], series.tau[:num], b) for b in EXPONENTS}


def first(*attempts: Callable[[], Fit]) -> Fit:
    """The first that the data allow."""
    for attempt in attempts:
        try:
            return attempt()
        except ValueError:
            continue
    raise ValueError("a series of three budgets allows a line")


def of_fit(law: Fit) -> Predict:
    return lambda at: float(law_named(law.law).predict(law.parameters, draft_tokens=at))


def power_line(at: Sequence[float], tau: Sequence[float], exponent: float) -> Predict:
    """τ∞ − B·D^−exponent by least squares, B not below 0."""
    feature = -(np.array(at) ** -exponent)
    slope = max(float(np.polyfit(feature, tau, 1)[0]), 0.0)
    level = float(np.mean(tau) - slope * feature.mean())
    return lambda tokens: level - slope * tokens**-exponent


def errors(series: Series) -> Iterator[dict]:
    """Of every policy at every larger budget, by how many octaves it lies beyond."""
    for num in range(LEAST, len(series.at)):
        predict = policies(series, num)
        for at, tau in zip(series.at[num:], series.tau[num:], strict=True):
            missed = {name: policy(at) / tau - 1 for name, policy in predict.items()}
            octaves = float(np.log2(at / series.at[num - 1]))
            yield {"series": series.name, "own": series.own, "taught": num, "octaves": octaves, "missed": missed}


def summary(judged: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Mean absolute error of each policy: of each series, and the mean and the worst over series."""
    by_series: dict[str, list[dict]] = defaultdict(list)
    for each in judged:
        by_series[each["series"]].append(each)
    means = {
        name: {policy: float(np.mean([abs(each["missed"][policy]) for each in group])) for policy in group[0]["missed"]}
        for name, group in by_series.items()
    }
    whole = {policy: [of[policy] for of in means.values()] for policy in next(iter(means.values()))}
    mean, worst = ({policy: float(over(of)) for policy, of in whole.items()} for over in (np.mean, np.max))
    return means | {"mean over series": mean, "worst series": worst}


def depths() -> list[dict]:
    """Each published series' gain from its first to its last depth, as the law says that has not seen its document."""
    judged = []
    for series in dial_series("draft_layers"):
        gains = depth.gain_draws([depth.published_series(series.passes, series.source)], series.at[-1], series.at[0])
        first_tau, last_tau = series.tokens_per_step[0], series.tokens_per_step[-1]
        low, middle, high = (1 + (first_tau - 1) * np.quantile(gains, (0.05, 0.5, 0.95))).tolist()
        judged.append(
            {
                "series": series.name, "layers": [series.at[0], series.at[-1]], "from": first_tau, "measured": last_tau,
                "low": low, "predicted": middle, "high": high, "inside": low <= last_tau <= high,
            }
        )  # fmt: skip
    return judged


def main(path: str) -> None:
    judged = [each for series in (*published(), *experiment()) for each in errors(series)]
    groups = {"published": [j for j in judged if not j["own"]], "own experiment": [j for j in judged if j["own"]]}
    beyond = {name: [j for j in of if j["octaves"] > 1] for name, of in groups.items()}
    write(
        Path(path),
        {
            "exponent": forms.TOKENS_EXPONENT,
            "policies": {name: summary(of) for name, of in groups.items() if of},
            "beyond_one_octave": {name: summary(of) for name, of in beyond.items() if of},
            "depth": depths(),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
