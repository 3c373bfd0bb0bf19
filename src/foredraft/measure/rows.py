"""From the sums of requests to Measurement rows: every figure with its interval, nothing that was not measured.

Promises: a figure that the requests do not say is left out, and one α never stands for another kind. Refuses to know: how
the sums came about.

Shapes: D requests, K sums, G groups, S positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from foredraft.measure.bootstrap import Array, Figure, divided, figure, figures, wanted
from foredraft.measure.live import TIMES, Counts
from foredraft.records import Estimate, Measurement, Observation
from foredraft.teacher.forced import SUMS

LIVE, FORCED = "foredraft measure, live", "foredraft measure, teacher-forced"
TAU, SHARE = "tokens/step", "probability"
UNIT = (0.0, 1.0)


class Told(NamedTuple):
    """A figure, and its interval where there is more than one cluster to draw."""

    value: float
    interval: Estimate | None


def live_row(
    base: Mapping[str, Any], counts: Sequence[Counts], times_GT: Array, plain_GT: Array, width: float
) -> Measurement:
    """What the engine's steps say. `times_GT`: of the groups that count here, none perhaps; `plain_GT`: plain decoding's own."""
    positions = len(counts[0].at_risk)
    sums = np.array([[*one[:4], *one.at_risk, *one.reached] for one in counts], dtype=float)
    told = {"tokens_per_step": _told(sums, _over(1, 0), TAU, LIVE, (1.0, positions + 1.0))}
    given = figures(sums, _given(4, positions), positions, SHARE, LIVE, UNIT)
    survival = figures(sums, _products(_given(4, positions)), positions, SHARE, LIVE, UNIT)
    ttot = None
    if len(times_GT):
        timed, ttot = _timed(times_GT, plain_GT)
        told |= timed
    steps, emitted, drafted, accepted = (int(total) for total in sums[:, :4].sum(0))
    counted = {
        "steps": steps, "drafted": drafted, "accepted": accepted, "output_len": emitted / len(counts),
        "num_requests": len(counts), "pooling": "steps",
    }  # fmt: skip
    return _row({**base, **counted}, "live", told, given, survival, {}, width, len(counts), ttot)


def _timed(times_GT: Array, plain_GT: Array) -> tuple[dict[str, Told | None], Estimate | None]:
    """Figures of the clock, resampled by group: requests that run together share their seconds. The speedup is the ratio
    of pooled tokens/s, prompts included; and the time to the whole answer.
    """
    both, at = np.concatenate((times_GT, plain_GT), 1), {name: i for i, name in enumerate(TIMES)}
    rate = _over(at["tokens"], at["seconds"])

    def speedup(sums: Array) -> Array:
        return rate(sums) / rate(sums[..., len(TIMES) :])

    found = {
        "output_tok_s": _told(both, rate, "tokens/s", LIVE),
        "speedup": _told(both, speedup, "× plain decoding", LIVE),
        "ttft_s": _told(both, _over(at["first_s"], at["requests"]), "s", LIVE),
        "tpot_s": _told(both, _over(at["between_s"], at["gaps"]), "s", LIVE),
    }
    return found, figure(both, _over(at["whole_s"], at["requests"]), "s", LIVE)


def greedy_row(base: Mapping[str, Any], sums: Sequence[Mapping[str, Array]], width: float) -> Measurement:
    """What the target's greedy answers say, `train.acceptance` step by step: α is greedy, P(argmax p = argmax q)."""
    positions = len(sums[0]["risk"])
    scalars = [_scalars(one) for one in sums]
    table = np.array([[*first, *one["risk"], *one["accepted"]] for first, one in zip(scalars, sums, strict=True)])
    at = {name: i for i, name in enumerate(SUMS)}
    told = {"tokens_per_step": _told(table, _over(at["emitted"], at["whole"]), TAU, FORCED, (1.0, positions + 1.0))}
    given = figures(table, _given(len(SUMS), positions), positions, SHARE, FORCED, UNIT)
    survival = figures(table, _products(_given(len(SUMS), positions)), positions, SHARE, FORCED, UNIT)
    alpha = _told(table, _over(at["all_accepted"], at["all_risk"]), SHARE, FORCED, UNIT)
    counted = {"steps": int(table[:, at["steps"]].sum()), "num_requests": len(sums), "pooling": "steps"}
    alphas = {"greedy": alpha}
    return _row({**base, **counted}, "forced", told, given, survival, alphas, width, len(sums), kind="greedy")


def chance_row(
    base: Mapping[str, Any], sums: Sequence[Mapping[str, Array]], kinds: Sequence[str], width: float
) -> Measurement:
    """What answers sampled at temperature 1 say of the draft's own way of drafting, the first of `kinds`: "sampled",
    Σ min(p, q), of a draft that draws from q, "point", E[p(x̂)], of one that takes its likeliest token. Of the others only α.
    """
    positions = len(sums[0]["there"])
    tables = {kind: np.array([[*one[kind], *one["there"]] for one in sums]) for kind in kinds}

    def survived(table: Array) -> Array:
        return divided(table[..., :positions], table[..., positions:])

    def tau(table: Array) -> Array:
        return 1 + survived(table).sum(-1)

    def given(table: Array) -> Array:
        joint = survived(table)
        return np.minimum(divided(joint, np.concatenate((np.ones_like(joint[..., :1]), joint[..., :-1]), -1)), 1)

    own = tables[kinds[0]]
    told = {"tokens_per_step": _told(own, tau, TAU, FORCED, (1.0, positions + 1.0))}
    alphas = {
        kind: _told(table, lambda part: survived(part)[..., 0], SHARE, FORCED, UNIT) for kind, table in tables.items()
    }
    curves = [figures(own, of, positions, SHARE, FORCED, UNIT) for of in (given, survived)]
    counted = {"num_requests": len(sums), "pooling": "steps"}
    return _row({**base, **counted}, "forced", told, curves[0], curves[1], alphas, width, len(sums), kind=kinds[0])


def perplexities(costs: Mapping[str, Array]) -> dict[str, Told | None]:
    """exp of nats per token by model, "target" and perhaps "draft", each [D, 2], by the name of an Observation's field; the
    draft's nats per token besides.
    """

    def of(sums: Array) -> Array:
        return np.exp(divided(sums[..., 0], sums[..., 1]))

    found = {f"{model}_perplexity": _told(table, of, "perplexity", FORCED) for model, table in costs.items()}
    if "draft" in costs:
        found["loss"] = _told(costs["draft"], _over(0, 1), "nats/token", FORCED)
    return found


def with_more(row: Measurement, more: Mapping[str, Told | None], fields: Mapping[str, Any]) -> Measurement:
    """The row with further figures, and fields of its observation."""
    values, intervals = _parted(more)
    observation = msgspec.structs.replace(row.observation, **values, **fields)
    return msgspec.structs.replace(row, observation=observation, intervals=row.intervals | intervals)


def _row(
    fields: Mapping[str, Any], way: str, told: Mapping[str, Told | None], given: tuple[Estimate, ...],
    survival: tuple[Estimate, ...], alphas: Mapping[str, Told | None], width: float, num: int, ttot: Estimate | None = None,
    kind: str | None = None,
) -> Measurement:  # fmt: skip
    """What was not told is None in the observation, and in no interval."""
    values, intervals = _parted(told)
    alpha = alphas[kind] if kind else None
    observation = Observation(
        **{
            **fields, **values, "survival": tuple(min(one.value, 1.0) for one in survival) or None,
            "accept_prob": alpha.value if alpha else None, "accept_kind": kind if alpha else None,
        }
    )  # fmt: skip
    return Measurement(
        observation=observation, way=way, intervals=intervals, accept_probs=_parted(alphas)[1], survival=survival,
        accept_given_prefix=given, wanted_requests=wanted(intervals.get("tokens_per_step"), num, width), ttot_s=ttot,
    )  # fmt: skip


def _told(sums: Array, of: Figure, unit: str, source: str, limits: tuple[float, float] | None = None) -> Told | None:
    """None where the sums do not say, and where a clock stood still."""
    value = float(of(sums.sum(0)))
    if not np.isfinite(value) or (value == 0 and unit == "s"):
        return None
    return Told(value, figure(sums, of, unit, source, limits))


def _parted(told: Mapping[str, Told | None]) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Values, and those intervals that there are."""
    found = {name: one for name, one in told.items() if one is not None}
    return {name: one.value for name, one in found.items()}, {
        name: one.interval for name, one in found.items() if one.interval is not None
    }


def _over(top: int, bottom: int) -> Figure:
    return lambda sums: divided(sums[..., top], sums[..., bottom])


def _given(start: int, positions: int) -> Figure:
    """Accepted over at risk by position, of sums that hold at risk from `start` on and then accepted."""
    middle, end = start + positions, start + 2 * positions
    return lambda sums: divided(sums[..., middle:end], sums[..., start:middle])


def _products(given: Figure) -> Figure:
    """P(at least i accepted) as the product of what each was given the one before (Kaplan and Meier 1958); where none was
    reached, none survives.
    """
    return lambda sums: np.cumprod(np.nan_to_num(given(sums)), -1, dtype=np.float64)


def _scalars(sums: Mapping[str, Array]) -> list[float]:
    return [float(sums[name].flat[0]) for name in SUMS]
