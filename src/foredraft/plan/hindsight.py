"""A study held against what would have been predicted of it: speedups from a few calibration rows, and the planned draft.

Promises: a cell that is judged was not calibrated on; its τ is the measured one, so that the cost law alone is judged. The
draft is chosen as `foredraft plan` would, with the laws that the study gives, and as SDSL's theory would. Refuses to know: how
costs and laws are fitted.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from foredraft import kinds
from foredraft.engines import named_in
from foredraft.laws import forms
from foredraft.laws.acceptance import MAX_POSITIONS
from foredraft.laws.cost import predict_served
from foredraft.laws.fit import fit
from foredraft.laws.forms import LossLaw
from foredraft.plan import from_study
from foredraft.plan.foretold import foretold
from foredraft.plan.sdsl import AcceptPlane, DraftOptimum, optimal_draft
from foredraft.plan.search import Problem, Settings, rank
from foredraft.plan.served import Calibrated, Place, Timed, calibrated, load, timed
from foredraft.plan.study import Study, on_target, shape_of, study
from foredraft.records import Cell, DraftRegret, Hindsight, Machine, Observation, Workload
from foredraft.shapes import Shape

Draft = tuple[Shape, float]  # and the tokens that it was trained on
KNOWN_LOOKAHEAD = 2  # what calibration may look at: a quick run at one and two draft tokens


def judge_by_class(target: Shape, machine: Machine, observations: Sequence[Observation]) -> list[Hindsight]:
    """`judge` at temperature 0 and above it, as far as there are timed rows of either."""
    sampled = {(row.temperature or 0.0) > 0 for row in observations if row.output_tok_s} or {False}
    return [judge(target, machine, observations, float(above_zero)) for above_zero in sorted(sampled)]


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
    choices, lacking = _choices(place, own, rows, temperature)
    return Hindsight(
        target=target.name,
        machine=machine.name,
        temperature=temperature,
        known_lookahead=seen,
        calibration_rows=known.num_rows,
        calibration_error=known.error,
        cells=tuple(_cells(place, known, [one for one in rows if one.row.depth > seen], _plain_speeds(rows))),
        choices=choices,
        drafts=tuple(foretold(target, machine, own, temperature)),
        lacking=lacking,
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
    fast = predict_served([one.server for one in rows], [one.row for one in rows], known.multipliers)
    slow = predict_served(
        [bare[id(one.server)] for one in rows],
        [one.row._replace(depth=0.0, nodes=0.0) for one in rows],
        known.multipliers,
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


def _choices(
    place: Place, own: Sequence[Observation], rows: Sequence[Timed], temperature: float
) -> tuple[tuple[DraftRegret, ...], tuple[str, ...]]:
    """At each load that at least two independent drafts were timed at; and why none, or none of the theory."""
    tried = study(place.target, tuple(own), temperature, "lm")
    whole = calibrated(place, rows)
    if tried is None or whole is None:
        return (), ("independent models: fewer than two of known size and tokens were measured",)
    timings = {load(one.observation): [] for one in rows}
    for one in rows:
        timings[load(one.observation)].append(one)
    bests = {batch: best for batch in sorted(timings) if len(best := _best_by_draft(tried, timings[batch])) > 1}
    found = [_choice(place, tried, whole, best, batch, timings[batch]) for batch, best in bests.items()]
    try:
        optimum = _optimum(tried, own)
    except ValueError as error:
        return tuple(found), (f"SDSL's N*: {error}",)
    return (*found, *(_nearest(optimum, best, batch) for batch, best in bests.items())), ()


def _optimum(tried: Study, own: Sequence[Observation]) -> DraftOptimum:
    """N* at the study's largest budget, from the study's own loss law and acceptance plane at the target's measured perplexity.

    Raises ValueError where the rows do not hold what they need: losses of several sizes and budgets, two targets.
    """
    drafts = [row for row in own if kinds.role_of(row.method) == "lm" and row.dataset == tried.dataset]
    drafts = [row for row in drafts if (row.temperature or 0.0) == tried.temperature and row.accept_prob is not None]
    here = [row for row in drafts if on_target(row, tried.target)]
    loss, plane = fit(forms.LOSS_LAW, here), fit(forms.ACCEPT_PLANE, drafts)
    perplexity = next(row.target_perplexity for row in here if row.target_perplexity)
    level = plane.parameters["B1"] * perplexity + plane.parameters["C1"]
    coefficients = {name: loss.parameters[name] for name in "EABab"}
    return optimal_draft(
        float(tried.target.params),
        draft_tokens=tried.tokens[1],
        loss_law=LossLaw(name="own", data="the study", source="fitted", text=True, **coefficients),
        plane=AcceptPlane(A1=plane.parameters["A1"], B1=0.0, C1=level),
        smallest=float(min(one.shape.params for one in tried.tried)),
    )


def _nearest(optimum: DraftOptimum, best: dict[Draft, float], batch: int) -> DraftRegret:
    """The timed draft nearest to N*, of those of the largest budget."""
    most_tokens = max(tokens for _, tokens in best)
    able = [draft for draft in best if draft[1] == most_tokens]
    shape, tokens = min(able, key=lambda draft: abs(np.log(draft[0].params / optimum.draft_params)))
    return _regret("SDSL", batch, (shape, tokens), best, optimum.draft_params)


def _best_by_draft(tried: Study, rows: Sequence[Timed]) -> dict[Draft, float]:
    """The greatest tokens/s of each independent draft of the study in any way of drafting that was timed."""
    known = {(one.shape, one.tokens) for one in tried.tried}
    best: dict[Draft, float] = {}
    for row, speed in ((one.observation, one.row.output_tok_s) for one in rows):
        made = shape_of(tried.target, row) if kinds.role_of(row.method) == "lm" else None
        if made and row.draft_tokens and (made, row.draft_tokens) in known:
            key = made, row.draft_tokens
            best[key] = max(best.get(key, 0.0), speed)
    return best


def _choice(
    place: Place, tried: Study, whole: Calibrated, best: dict[Draft, float], batch: int, rows: Sequence[Timed]
) -> DraftRegret:
    """Of the drafts that were timed the one of the greatest planned gain, training aside, in ways that were timed of them."""
    here = [one for one in rows if load(one.observation) == batch]
    models = [one.row for one in here if kinds.role_of(one.observation.method) == "lm"]
    workload = Workload(
        input_len=float(np.mean([one.server.input_len for one in here])),
        output_len=float(np.mean([one.server.output_len for one in here])),
        concurrency=(batch,),
        temperature=tried.temperature,
    )
    settings = Settings(
        engine=named_in(place.engine).name,
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
    return _regret("cost law", batch, (chosen.shape, chosen.choice.draft_tokens), best)


def _regret(by: str, batch: int, chosen: Draft, best: dict[Draft, float], optimum: float | None = None) -> DraftRegret:
    most = max(best, key=lambda draft: best[draft])
    return DraftRegret(
        by=by,
        load=batch,
        params=float(chosen[0].params),
        tokens=chosen[1],
        best_params=float(most[0].params),
        best_tokens=most[1],
        regret=1 - best[chosen] / best[most],
        optimum=optimum,
    )
