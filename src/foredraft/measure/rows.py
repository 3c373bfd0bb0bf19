"""From the sums of requests to Measurement rows: every figure with its interval, nothing that was not measured.

Promises: a figure that the requests do not say is left out, and one α never stands for another kind. Refuses to know: how
the sums came about.

Shapes: D requests, K sums, G groups, S positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from foredraft.measure.live import TIMES, Counts
from foredraft.records import Estimate, Measurement, Observation
from foredraft.serving.bootstrap import Array, Figure, divided, figure, figures, requests_for_width
from foredraft.teacher.teacher_forced import SUMS

ONLINE, FORCED = "foredraft measure, live", "foredraft measure, teacher-forced"
STEP_PARTS = ("draft_s", "target_s", "other_s")
BY_LOOKUP = ("lookup_steps", "lookup_drafted", "lookup_accepted")
TAU, SHARE = "tokens/step", "probability"
UNIT = (0.0, 1.0)


class MeasuredValue(NamedTuple):
    """A figure, and its interval where there is more than one cluster to draw."""

    value: float
    interval: Estimate | None


def online_row(
    base: Mapping[str, Any], counts: Sequence[Counts], times_GT: Array, plain_GT: Array, width: float
) -> Measurement:
    """What the engine's steps say. `times_GT`: of the groups that count here, perhaps none; `plain_GT`: plain decoding's own."""
    positions = len(counts[0].at_risk)
    sums = np.array([[*request[:4], *request.at_risk, *request.reached] for request in counts], dtype=float)
    by_source = (
        {}
        if "lookup_min_match" not in base
        else {name: sum(getattr(request, name) for request in counts) for name in BY_LOOKUP}
    )
    measured = {"tokens_per_step": _measured(sums, _over(1, 0), TAU, ONLINE, (1.0, positions + 1.0))}
    given_prefix = figures(sums, _given_prefix(4, positions), positions, SHARE, ONLINE, UNIT)
    survival = figures(sums, _products(_given_prefix(4, positions)), positions, SHARE, ONLINE, UNIT)
    ttot = None
    if len(times_GT):
        timed, ttot = _timed(times_GT, plain_GT)
        measured |= timed
    steps, emitted, drafted, accepted = (int(total) for total in sums[:, :4].sum(0))
    counted = {
        "steps": steps, "drafted": drafted, "accepted": accepted, "output_len": emitted / len(counts),
        "num_requests": len(counts), "pooling": "steps",
    }  # fmt: skip
    return _row(
        {**base, **counted, **by_source}, "live", measured, given_prefix, survival, {}, width, len(counts), ttot
    )


def _timed(times_GT: Array, plain_GT: Array) -> tuple[dict[str, MeasuredValue | None], Estimate | None]:
    """Figures of the clock, resampled by group: requests that run together share their seconds. The speedup is the ratio
    of pooled tokens/s, prompts included; the time to the whole answer; of a step its parts, and what a request takes outside steps.
    """
    both, at = np.concatenate((times_GT, plain_GT), 1), {name: i for i, name in enumerate(TIMES)}
    rate = _over(at["tokens"], at["seconds"])

    def speedup(sums: Array) -> Array:
        return rate(sums) / rate(sums[..., len(TIMES) :])

    def prompt(sums: Array) -> Array:
        steps = sums[..., [at[part] for part in STEP_PARTS]].sum(-1)
        return divided(np.maximum(sums[..., at["seconds"]] - steps, 0.0), sums[..., at["requests"]])

    timed = {
        "output_tok_s": _measured(both, rate, "tokens/s", ONLINE),
        "speedup": _measured(both, speedup, "× plain decoding", ONLINE),
        "ttft_s": _measured(both, _over(at["first_s"], at["requests"]), "s", ONLINE),
        "tpot_s": _measured(both, _over(at["between_s"], at["gaps"]), "s", ONLINE),
        **{part: _measured(both, _over(at[part], at["passes"]), "s", ONLINE) for part in STEP_PARTS},
        "prompt_s": _measured(both, prompt, "s", ONLINE),
    }
    return timed, figure(both, _over(at["whole_s"], at["requests"]), "s", ONLINE)


def greedy_row(base: Mapping[str, Any], sums: Sequence[Mapping[str, Array]], width: float) -> Measurement:
    """What the target's greedy answers say, `teacher.acceptance` step by step: α is greedy, P(argmax p = argmax q)."""
    positions = len(sums[0]["risk"])
    table = np.array(
        [[*(text[name].flat[0] for name in SUMS), *text["risk"], *text["accepted"]] for text in sums], dtype=float
    )
    at = {name: i for i, name in enumerate(SUMS)}
    measured = {
        "tokens_per_step": _measured(table, _over(at["emitted"], at["whole"]), TAU, FORCED, (1.0, positions + 1.0))
    }
    given_prefix = figures(table, _given_prefix(len(SUMS), positions), positions, SHARE, FORCED, UNIT)
    survival = figures(table, _products(_given_prefix(len(SUMS), positions)), positions, SHARE, FORCED, UNIT)
    alpha = _measured(table, _over(at["all_accepted"], at["all_risk"]), SHARE, FORCED, UNIT)
    counted = {"steps": int(table[:, at["steps"]].sum()), "num_requests": len(sums), "pooling": "steps"}
    alphas = {"greedy": alpha}
    return _row(
        {**base, **counted}, "forced", measured, given_prefix, survival, alphas, width, len(sums), kind="greedy"
    )


def chance_row(
    base: Mapping[str, Any], sums: Sequence[Mapping[str, Array]], kinds: Sequence[str], width: float
) -> Measurement:
    """What answers sampled at temperature 1 say of the draft's own way of drafting, the first of `kinds`: "sampled",
    Σ min(p, q), of a draft that draws from q, "point", E[p(x̂)], of one that takes its argmax. Of the others only α.
    """
    positions = len(sums[0]["there"])
    tables = {kind: np.array([[*text[kind], *text["there"]] for text in sums]) for kind in kinds}

    def survived(table: Array) -> Array:
        return divided(table[..., :positions], table[..., positions:])

    def tau(table: Array) -> Array:
        return 1 + survived(table).sum(-1)

    def given_prefix(table: Array) -> Array:
        joint = survived(table)
        return np.minimum(divided(joint, np.concatenate((np.ones_like(joint[..., :1]), joint[..., :-1]), -1)), 1)

    drafted = tables[kinds[0]]
    measured = {"tokens_per_step": _measured(drafted, tau, TAU, FORCED, (1.0, positions + 1.0))}
    alphas = {
        kind: _measured(table, lambda part: survived(part)[..., 0], SHARE, FORCED, UNIT)
        for kind, table in tables.items()
    }
    curves = [figures(drafted, of, positions, SHARE, FORCED, UNIT) for of in (given_prefix, survived)]
    counted = {"num_requests": len(sums), "pooling": "steps"}
    return _row({**base, **counted}, "forced", measured, curves[0], curves[1], alphas, width, len(sums), kind=kinds[0])


def perplexities(costs: Mapping[str, Array]) -> dict[str, MeasuredValue | None]:
    """exp of nats per token [D, 2] by model ("target", perhaps "draft"), by an Observation's field; the draft's nats per token too."""

    def of(sums: Array) -> Array:
        return np.exp(divided(sums[..., 0], sums[..., 1]))

    measured = {f"{model}_perplexity": _measured(table, of, "perplexity", FORCED) for model, table in costs.items()}
    if "draft" in costs:
        measured["loss"] = _measured(costs["draft"], _over(0, 1), "nats/token", FORCED)
    return measured


def with_more(row: Measurement, more: Mapping[str, MeasuredValue | None], fields: Mapping[str, Any]) -> Measurement:
    """The row with further figures, and fields of its observation."""
    values, intervals = _parted(more)
    observation = msgspec.structs.replace(row.observation, **values, **fields)
    return msgspec.structs.replace(row, observation=observation, intervals=row.intervals | intervals)


def _row(
    fields: Mapping[str, Any], way: str, measured: Mapping[str, MeasuredValue | None], given_prefix: tuple[Estimate, ...],
    survival: tuple[Estimate, ...], alphas: Mapping[str, MeasuredValue | None], width: float, num: int, ttot: Estimate | None = None,
    kind: str | None = None,
) -> Measurement:  # fmt: skip
    """What was not measured is None in the observation, and in no interval."""
    values, intervals = _parted(measured)
    alpha = alphas[kind] if kind else None
    observation = Observation(
        **{
            **fields, **values, "survival": tuple(min(share.value, 1.0) for share in survival) or None,
            "accept_prob": alpha.value if alpha else None, "accept_kind": kind if alpha else None,
        }
    )  # fmt: skip
    return Measurement(
        observation=observation, way=way, intervals=intervals, accept_probs=_parted(alphas)[1], survival=survival,
        accept_given_prefix=given_prefix, wanted_requests=requests_for_width(intervals.get("tokens_per_step"), num, width), ttot_s=ttot,
    )  # fmt: skip


def _measured(
    sums: Array, of: Figure, unit: str, source: str, limits: tuple[float, float] | None = None
) -> MeasuredValue | None:
    """None where the sums do not say, and where a clock stood still."""
    value = float(of(sums.sum(0)))
    if not np.isfinite(value) or (value == 0 and unit == "s"):
        return None
    return MeasuredValue(value, figure(sums, of, unit, source, limits))


def _parted(measured: Mapping[str, MeasuredValue | None]) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Values, and those intervals that there are."""
    present = {name: figure for name, figure in measured.items() if figure is not None}
    intervals = {name: figure.interval for name, figure in present.items() if figure.interval is not None}
    return {name: figure.value for name, figure in present.items()}, intervals


def _over(top: int, bottom: int) -> Figure:
    return lambda sums: divided(sums[..., top], sums[..., bottom])


def _given_prefix(start: int, positions: int) -> Figure:
    """Accepted over at risk by position, of sums that hold at risk from `start` on and then accepted."""
    middle, end = start + positions, start + 2 * positions
    return lambda sums: divided(sums[..., middle:end], sums[..., start:middle])


def _products(given_prefix: Figure) -> Figure:
    """P(at least i accepted), the product of conditional ones (Kaplan and Meier 1958); where none was reached, none survives."""
    return lambda sums: np.cumprod(np.nan_to_num(given_prefix(sums)), -1, dtype=np.float64)
