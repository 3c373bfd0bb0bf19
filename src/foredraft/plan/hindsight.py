"""A study held against what would have been predicted of it: speedups from a few calibration rows, and the planned draft.

Promises: a cell that is judged was not calibrated on; its τ is the measured one, so that the cost law alone is judged. The
draft is chosen as `foredraft plan` would, with the laws that the study gives. Refuses to know: how costs and laws are fitted.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from foredraft.laws.acceptance import MAX_POSITIONS
from foredraft.laws.cost import predict_served
from foredraft.plan import from_study
from foredraft.plan.drafts import kind_of
from foredraft.plan.search import Problem, Settings, rank
from foredraft.plan.served import Calibrated, Place, Timed, calibrated, load, timed
from foredraft.plan.study import Study, shape_of, study
from foredraft.records import Cell, DraftRegret, Hindsight, Machine, Observation, Workload
from foredraft.shapes import Shape

KNOWN_LOOKAHEAD = 2  # what calibration may look at: a quick run at one and two draft tokens


def judge(target: Shape, machine: Machine, own: Sequence[Observation], temperature: float = 0.0) -> Hindsight:
    """Every timed cell beyond k = 2 (beyond the smallest k where that is larger) from plain rows and the others, and the regret
    of the planned independent draft at each load.

    Rows of the temperature's class (0 or not), of the engine and dtype with the most rows. Raises ValueError, one line, where
    nothing can be judged.
    """
    own = [row for row in own if ((row.temperature or 0.0) > 0) == (temperature > 0)]
    place = _place(target, machine, own)
    rows = timed(place, own, temperature)
    depths = {int(one.row.depth) for one in rows if one.row.depth}
    if not depths or not any(one.row.depth == 0 for one in rows):
        raise ValueError(
            f"no own speedup can be judged: needs rows of {target.name} on machine {machine.name}, plain and drafted, with "
            "output_tok_s, batch_size or concurrency, input_len and output_len"
        )
    seen = max(KNOWN_LOOKAHEAD, min(depths))
    known = calibrated(place, [one for one in rows if one.row.depth <= seen])
    assert known is not None, "there is a plain row"
    return Hindsight(
        target=target.name,
        machine=machine.name,
        temperature=temperature,
        known_lookahead=seen,
        calibration_rows=known.num_rows,
        calibration_error=known.error,
        cells=tuple(_cells(place, known, [one for one in rows if one.row.depth > seen], _plain_speeds(rows))),
        choices=tuple(_choices(place, own, rows, temperature)),
    )


def _place(target: Shape, machine: Machine, own: Sequence[Observation]) -> Place:
    """The engine, dtype and number of devices that most rows with a clock state."""
    clocked = [row for row in own if row.output_tok_s]

    def most(name: str, otherwise: Any) -> Any:
        stated = Counter(getattr(row, name) for row in clocked if getattr(row, name)).most_common(1)
        return stated[0][0] if stated else otherwise

    return Place(
        target, machine, most("engine", "").lower(), most("tensor_parallel", 1), dtype=most("dtype", "bfloat16")
    )


def _plain_speeds(rows: Sequence[Timed]) -> dict[int, float]:
    """Mean tokens/s of plain decoding by load."""
    found: dict[int, list[float]] = defaultdict(list)
    for one in rows:
        if one.row.depth == 0:
            found[load(one.observation)].append(one.row.output_tok_s)
    return {batch: float(np.mean(speeds)) for batch, speeds in found.items()}


def _cells(place: Place, known: Calibrated, rows: Sequence[Timed], plain: dict[int, float]) -> list[Cell]:
    """Predicted over predicted plain decoding of the same prompts, against the measured ratio: of one run where the row has it."""
    rows = [one for one in rows if one.observation.speedup or load(one.observation) in plain]
    if not rows:
        return []
    bare = {id(s): place.server(None, s.input_len, s.output_len, speculate=False) for s in (one.server for one in rows)}
    fast = predict_served([one.server for one in rows], [one.row for one in rows], known.knobs)
    slow = predict_served(
        [bare[id(one.server)] for one in rows], [one.row._replace(depth=0.0, nodes=0.0) for one in rows], known.knobs
    )
    return [
        Cell(
            draft=_name(one.observation),
            load=load(one.observation),
            lookahead=int(one.row.depth),
            tree_nodes=int(one.row.nodes),
            measured=one.observation.speedup or one.row.output_tok_s / plain[load(one.observation)],
            predicted=float(ratio),
        )
        for one, ratio in zip(rows, fast / slow, strict=True)
    ]


def _name(row: Observation) -> str:
    return row.draft or row.method


def _choices(place: Place, own: Sequence[Observation], rows: Sequence[Timed], temperature: float) -> list[DraftRegret]:
    """At each load that at least two independent drafts were timed at."""
    tried = study(place.target, tuple(own), temperature, "lm")
    whole = calibrated(place, rows)
    if tried is None or whole is None:
        return []
    found = []
    for batch in sorted({load(one.observation) for one in rows}):
        best = _best_by_draft(tried, [one for one in rows if load(one.observation) == batch])
        if len(best) > 1:
            found.append(_choice(place, tried, whole, best, batch, rows))
    return found


Draft = tuple[Shape, float]  # and the tokens that it was trained on


def _best_by_draft(tried: Study, rows: Sequence[Timed]) -> dict[Draft, float]:
    """The greatest tokens/s of each independent draft of the study in any way of drafting that was timed."""
    known = {(one.shape, one.tokens) for one in tried.tried}
    best: dict[Draft, float] = {}
    for row, speed in ((one.observation, one.row.output_tok_s) for one in rows):
        made = shape_of(tried.target, row) if kind_of(row.method) == "lm" else None
        if made and row.draft_tokens and (made, row.draft_tokens) in known:
            key = made, row.draft_tokens
            best[key] = max(best.get(key, 0.0), speed)
    return best


def _choice(
    place: Place, tried: Study, whole: Calibrated, best: dict[Draft, float], batch: int, rows: Sequence[Timed]
) -> DraftRegret:
    """Of the drafts that were timed the one of the greatest planned gain, training aside, in ways that were timed of them."""
    here = [one for one in rows if load(one.observation) == batch]
    models = [one.row for one in here if kind_of(one.observation.method) == "lm"]
    workload = Workload(
        input_len=float(np.mean([one.server.input_len for one in here])),
        output_len=float(np.mean([one.server.output_len for one in here])),
        concurrency=(batch,),
        temperature=tried.temperature,
    )
    settings = Settings(
        engine="foredraft" if "foredraft" in place.engine else "vllm",
        devices=place.devices,
        dtype=place.dtype,
        horizon_tokens=1e18,
        max_lookahead=min(int(max(row.depth for row in models)), MAX_POSITIONS),
        trees=any(row.width > 1 for row in models),
    )
    problem = Problem(place.target, place.machine, workload, settings, whole)
    ranked = rank(problem, from_study.as_tried(tried, place.machine, list(best)))[0]
    chosen = next(one.candidate for one in ranked if one.candidate)
    assert chosen.shape is not None and chosen.choice.draft_tokens is not None  # noqa: PT018
    speed, most = best[chosen.shape, chosen.choice.draft_tokens], max(best, key=lambda key: best[key])
    return DraftRegret(
        load=batch,
        params=chosen.choice.params,
        tokens=chosen.choice.draft_tokens,
        best_params=float(most[0].params),
        best_tokens=most[1],
        regret=1 - speed / best[most],
    )
