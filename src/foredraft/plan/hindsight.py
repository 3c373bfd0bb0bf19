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
from foredraft.laws.fit import fit
from foredraft.laws.forms import LossLaw
from foredraft.laws.own_costs import OwnCosts
from foredraft.laws.passes import Layout
from foredraft.plan import from_study
from foredraft.plan.matching import CLOCKLESS, completed, match
from foredraft.plan.predicted import predicted
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.plan.sdsl import AcceptPlane, DraftOptimum, optimal_draft
from foredraft.plan.search import rank
from foredraft.plan.served import Place, TimedRow, calibrated, load, timed
from foredraft.plan.study import Study, on_target, shape_of, study_of
from foredraft.records import DraftRegret, Hindsight, JudgedCell, Machine, Observation, Workload
from foredraft.shapes import Shape

ShapeAndTokens = tuple[Shape, float]  # of a draft: the tokens are those that it was trained on
KNOWN_LOOKAHEAD = 2  # what calibration may look at: a quick run at one and two draft tokens


def judge_by_class(target: Shape, machine: Machine, observations: Sequence[Observation]) -> list[Hindsight]:
    """`judge` at temperature 0 and above it, as far as there are timed rows of either."""
    observations = completed(target, observations).rows
    sampled = {(row.temperature or 0.0) > 0 for row in observations if row.output_tok_s} or {False}
    return [judge(target, machine, observations, float(above_zero)) for above_zero in sorted(sampled)]


def judge(target: Shape, machine: Machine, observations: Sequence[Observation], temperature: float = 0.0) -> Hindsight:
    """Every timed cell beyond k = 2 (beyond the smallest k where that is larger) from plain rows and the others, and the regret
    of the planned independent draft at each load.

    Rows of the temperature's class (0 or not), of the engine and dtype with the most rows. Raises ValueError, one line, where
    nothing can be judged.
    """
    observations = [row for row in observations if ((row.temperature or 0.0) > 0) == (temperature > 0)]
    place = place_of(target, machine, observations)
    matched = match(place, observations, temperature)
    rows = timed(place, matched.rows, matched.leave_out)
    depths = {int(row.cost.depth) for row in rows if row.cost.depth}
    if not depths or not any(row.cost.depth == 0 for row in rows):
        raise ValueError(
            f"no own speedup can be judged: needs rows of {target.name} on machine {machine.name}, plain and drafted, with "
            f"output_tok_s, batch_size or concurrency, input_len and output_len; of its rows {matched.reasons() or 'none is left out'}"
        )
    known_lookahead = max(KNOWN_LOOKAHEAD, min(depths))
    calibration = calibrated(place, [row for row in rows if row.cost.depth <= known_lookahead])
    judged = [row for row in rows if row.cost.depth > known_lookahead]
    assert calibration is not None, "there is a plain row"
    studies = {role: study_of(target, observations, temperature, role) for role in ("lm", "head")}
    choices, lacking = _choices(place, studies["lm"], observations, rows)
    matched.left_out.pop(CLOCKLESS, None)  # they speak of acceptance
    if reasons := matched.reasons():
        lacking = (*lacking, f"own rows left out: {reasons}")
    return Hindsight(
        target=target.name, machine=machine.name, temperature=temperature, known_lookahead=known_lookahead,
        calibration_rows=calibration.num_rows, calibration_error=calibration.error,
        cells=tuple(_cells(calibration, judged, plain_speeds(rows))), choices=choices,
        drafts=tuple(predicted(studies, machine, observations, temperature)), lacking=lacking,
    )  # fmt: skip


def place_of(target: Shape, machine: Machine, observations: Sequence[Observation]) -> Place:
    """The engine, dtype and number of devices that most rows with a clock state."""
    clocked = [row for row in observations if row.output_tok_s]

    def most(name: str, otherwise: Any) -> Any:
        stated = Counter(getattr(row, name) for row in clocked if getattr(row, name)).most_common(1)
        return stated[0][0] if stated else otherwise

    return Place(
        target, machine, most("engine", "").lower(), Layout(most("tensor_parallel", 1)), dtype=most("dtype", None)
    )


def plain_speeds(rows: Sequence[TimedRow]) -> dict[int, float]:
    """Mean tokens/s of plain decoding by load."""
    by_load: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.cost.depth == 0:
            by_load[load(row.observation)].append(row.cost.output_tok_s)
    return {batch: float(np.mean(speeds)) for batch, speeds in by_load.items()}


def _cells(calibration: OwnCosts, rows: Sequence[TimedRow], plain: dict[int, float]) -> list[JudgedCell]:
    """Predicted over predicted plain decoding of the same prompts, against the measured ratio: of one run where the row has it."""
    rows = [row for row in rows if row.observation.speedup or load(row.observation) in plain]
    if not rows:
        return []
    fast, _ = calibration.output_tok_s([row.measured for row in rows])
    slow, _ = calibration.output_tok_s([row.undrafted for row in rows])
    return [
        JudgedCell(
            draft=_name(row.observation),
            load=load(row.observation),
            lookahead=row.observation.lookahead or 0,
            tree_nodes=int(row.cost.nodes),
            measured=row.observation.speedup or row.cost.output_tok_s / plain[load(row.observation)],
            predicted=float(ratio),
        )
        for row, ratio in zip(rows, fast / slow, strict=True)
    ]


def each_left_out(place: Place, rows: Sequence[TimedRow]) -> list[JudgedCell]:
    """Every drafted cell predicted from all others but those of its draft drafted alike, on whatever prompts; [] without plain rows."""
    plain, ways = plain_speeds(rows), [_way(row) for row in rows]
    cells: list[JudgedCell] = []
    for way in dict.fromkeys(way for way, row in zip(ways, rows, strict=True) if row.cost.depth):
        calibration = calibrated(place, [row for each, row in zip(ways, rows, strict=True) if each != way])
        if calibration:
            cells += _cells(calibration, [row for each, row in zip(ways, rows, strict=True) if each == way], plain)
    return cells


def _way(row: TimedRow) -> tuple[Any, ...]:
    seen = row.observation
    return seen.draft, seen.method, seen.lookahead, seen.topk, seen.tree_nodes


def _name(row: Observation) -> str:
    return row.draft or row.method


def _choices(
    place: Place, study: Study | None, observations: Sequence[Observation], rows: Sequence[TimedRow]
) -> tuple[tuple[DraftRegret, ...], tuple[str, ...]]:
    """At each load that at least two independent drafts were timed at; and why none, or none of the theory."""
    calibration = calibrated(place, rows)
    if study is None or calibration is None:
        return (), ("independent models: fewer than two of known size and tokens were measured",)
    timings: dict[int, list[TimedRow]] = defaultdict(list)
    for row in rows:
        timings[load(row.observation)].append(row)
    bests = {batch: best for batch in sorted(timings) if len(best := _best_by_draft(study, timings[batch])) > 1}
    planned = [_choice(place, study, calibration, best, batch, timings[batch]) for batch, best in bests.items()]
    try:
        optimum = _optimum(study, observations)
    except ValueError as error:
        return tuple(planned), (f"SDSL's N*: {error}",)
    return (*planned, *(_nearest(optimum, best, batch) for batch, best in bests.items())), ()


def _optimum(study: Study, observations: Sequence[Observation]) -> DraftOptimum:
    """N* at the study's largest budget, from the study's own loss law and acceptance plane at the target's measured perplexity; of a study
    of one target the plane is a line.

    Raises ValueError where the rows do not hold what they need: losses of several sizes and budgets, perplexities.
    """
    drafts = [row for row in observations if kinds.role_of(row.method) == "lm" and row.dataset == study.dataset]
    drafts = [row for row in drafts if (row.temperature or 0.0) == study.temperature and row.accept_prob is not None]
    here = [row for row in drafts if on_target(row, study.target)]
    several = len({row.target for row in drafts}) > 1
    loss, plane = fit(forms.LOSS_LAW, here), fit(forms.ACCEPT_PLANE if several else forms.ACCEPT_LINE, drafts)
    level = plane.parameters["C1"]
    if several:
        level += plane.parameters["B1"] * next(row.target_perplexity for row in here if row.target_perplexity)
    coefficients = {name: loss.parameters[name] for name in "EABab"}
    return optimal_draft(
        float(study.target.params),
        draft_tokens=study.tokens[1],
        loss_law=LossLaw(name="own", data="the study", source="fitted", text=True, **coefficients),
        plane=AcceptPlane(A1=plane.parameters["A1"], B1=0.0, C1=level),
        smallest=float(min(draft.shape.params for draft in study.drafts)),
    )


def _nearest(optimum: DraftOptimum, best: dict[ShapeAndTokens, float], batch: int) -> DraftRegret:
    """The timed draft nearest to N*, of those of the largest budget."""
    most_tokens = max(tokens for _, tokens in best)
    drafts = [draft for draft in best if draft[1] == most_tokens]
    shape, tokens = min(drafts, key=lambda draft: abs(np.log(draft[0].params / optimum.draft_params)))
    return _regret("SDSL", batch, (shape, tokens), best, optimum.draft_params)


def _best_by_draft(study: Study, rows: Sequence[TimedRow]) -> dict[ShapeAndTokens, float]:
    """The greatest tokens/s of each independent draft of the study in any way of drafting that was timed."""
    drafts = {(draft.shape, draft.tokens) for draft in study.drafts}
    best: dict[ShapeAndTokens, float] = {}
    for row, speed in ((row.observation, row.cost.output_tok_s) for row in rows):
        shape = shape_of(study.target, row) if kinds.role_of(row.method) == "lm" else None
        if shape and row.draft_tokens and (key := (shape, row.draft_tokens)) in drafts:
            best[key] = max(best.get(key, 0.0), speed)
    return best


def _choice(
    place: Place,
    study: Study,
    calibration: OwnCosts,
    best: dict[ShapeAndTokens, float],
    batch: int,
    rows: Sequence[TimedRow],
) -> DraftRegret:
    """Return the draft of the greatest planned gain, training aside, among those timed, in ways that were timed of them."""
    models = [row.cost for row in rows if kinds.role_of(row.observation.method) == "lm"]
    workload = Workload(
        input_len=float(np.mean([row.server.input_len for row in rows])),
        output_len=float(np.mean([row.server.output_len for row in rows])),
        concurrency=(batch,),
        temperature=study.temperature,
    )
    settings = PlanSettings(
        engine=named_in(place.engine).name, devices=place.layout.devices, dtype=place.dtype, horizon_tokens=1e18,
        max_lookahead=min(int(max(row.depth for row in models)), MAX_POSITIONS),
        trees=any(row.width > 1 for row in models),
    )  # fmt: skip
    problem = Problem(place.target, place.machine, workload, settings, calibration)
    ranked = rank(problem, from_study.models_like(study, place.machine, list(best)))[0]
    chosen = next(scored.candidate for scored in ranked if scored.candidate)
    assert chosen.shape is not None and chosen.choice.draft_tokens is not None  # noqa: PT018
    return _regret("cost law", batch, (chosen.shape, chosen.choice.draft_tokens), best)


def _regret(
    by: str, batch: int, chosen: ShapeAndTokens, best: dict[ShapeAndTokens, float], optimum: float | None = None
) -> DraftRegret:
    most = max(best, key=lambda draft: best[draft])
    return DraftRegret(
        by=by, load=batch, params=float(chosen[0].params), tokens=chosen[1], best_params=float(most[0].params),
        best_tokens=most[1], regret=1 - best[chosen] / best[most], optimum=optimum,
    )  # fmt: skip
