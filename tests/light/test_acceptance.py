"""The position law: constant α is its special case, planted falling, flat and rising curves come back, its intervals cover and widen, and
nothing judged teaches it."""

import math
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft import kinds
from foredraft.laws.acceptance import (
    MAX_POSITIONS,
    SPREAD,
    KindPrior,
    PositionLaw,
    accept,
    chain_curves,
    posterior,
    predict,
    scatter,
    single_runs,
)
from foredraft.laws.acceptance_fit import Lesson, fit_position_law
from foredraft.laws.points import StudentT, close_in, normalised
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.plan import evidence
from foredraft.published import document, observations
from foredraft.records import Observation, Provenance, decode
from foredraft.validate import curves, validate

INFERENCEX = "github.com/semianalysisai/inferencex"
LEVELS = len(scatter([1], True))


def planted(mean: dict[str, tuple[float, ...]], level: int = 2) -> PositionLaw:
    """A law whose kinds lie about `mean`, step and carry with sd 0.15 and of no correlation, all its noise at one level."""
    noise = tuple(float(i == level) + 1e-9 for i in range(LEVELS))
    scale = tuple(tuple(row) for row in np.diag([0.25, 0.15**2, 0.15**2]).tolist())
    priors = tuple(KindPrior(kind, mean.get(kind, (1.2, -0.1, 0.0)), scale) for kind in kinds.PRIORS)
    return PositionLaw(priors, 8.0, noise, noise, 0, 0.0)


# Falling, flat and rising: heads step down and go on, blocks step down once, independent models hold, one-step layers fall off.
PLANTED = planted(
    {"head": (1.1, -0.4, -0.4), "block": (1.6, -0.4, 0.1), "lm": (1.1, 0.0, 0.0), "mtp": (2.2, -1.0, -1.0)}
)


def constant(alpha: float, *lookaheads: int) -> dict[int, float]:
    return {k: float(tokens_per_step_constant(alpha, k)) for k in lookaheads}


def simulated(
    law: PositionLaw, kind: Any, num: int, rng: np.random.Generator, one_run: bool = False
) -> list[dict[int, float]]:
    """Noisy τ(k), k = 1 … 8, of `num` drafts of a kind drawn from `law`."""
    prior, lookaheads = law.prior(kind), range(1, 9)
    radius = np.sqrt(law.tail / rng.chisquare(law.tail, size=(num, 1)))
    points = prior.mean + radius * (rng.standard_normal((num, 3)) @ prior.root.T)
    tau = 1 + np.cumsum(np.cumprod(accept(points, 8), axis=1), axis=1)
    sd = scatter(lookaheads, one_run)[int(np.argmax(law.noise_of_runs))]
    noisy = tau * np.exp(sd * rng.standard_normal(tau.shape))
    return [{k: float(np.clip(row[k - 1], 1.0, k + 1.0)) for k in lookaheads} for row in noisy]


@pytest.fixture(scope="module")
def shipped() -> dict[str, PositionLaw]:
    text = (files("foredraft.published") / "position_laws.json").read_bytes()
    return decode(dict[str, PositionLaw], text, name="position_laws.json")


# Points of a posterior.


def test_points_close_in_on_a_posterior_that_is_known():
    """A normal prior (tail 1e6) and a precise normal likelihood: mean, variance and evidence in closed form, to a few per cent of an sd."""
    prior = StudentT(np.array([0.0, 1.0]), np.diag([1.0, 4.0]), 1e6)
    sd, seen = 0.01, np.array([1.5, -2.0])
    points, base = close_in(prior, lambda p: -0.5 * (((p - seen) / sd) ** 2).sum(axis=1))
    weights = normalised(base - 0.5 * (((points - seen) / sd) ** 2).sum(axis=1))
    spread = 1 / (1 / np.array([1.0, 4.0]) + 1 / sd**2)
    mean = spread * (np.array([0.0, 0.25]) + seen / sd**2)
    assert weights @ points == pytest.approx(mean, abs=0.05 * sd)
    assert weights @ (points - mean) ** 2 == pytest.approx(spread, rel=0.05)
    fit = np.exp(base - 0.5 * (((points - seen) / sd) ** 2).sum(axis=1)).mean()
    closed = np.prod(np.sqrt(spread / [1.0, 4.0])) * math.exp(-0.5 * (1.5**2 / (1 + sd**2) + 9.0 / (4 + sd**2)))
    assert fit == pytest.approx(closed, rel=0.05)


def test_points_are_the_same_every_time():
    first, second = (posterior(PLANTED, {1: 1.7, 2: 2.2}, kind="head") for _ in range(2))
    assert (first.accept_given_prefix == second.accept_given_prefix).all()
    assert (first.weights == second.weights).all()


# The law's form.


def test_no_step_and_no_carry_is_constant_acceptance_but_for_the_rise_of_differing_stretches():
    """α Beta(a, b) over stretches of text: α_i = (a + i − 1) / (a + b + i − 1), the law at a = 1 / (SPREAD (1 − α_1)); 0.05 at most at i = 4."""
    level, i = 1.3, np.arange(MAX_POSITIONS)
    first = 1 / (1 + math.exp(-level))
    a = 1 / (SPREAD * (1 - first))
    b = a * (1 - first) / first
    alpha = accept(np.array([[level, 0.0, 0.0]]), MAX_POSITIONS)[0]
    assert alpha == pytest.approx((a + i) / (a + b + i))
    assert alpha[:4] == pytest.approx(np.full(4, first), abs=0.05)


@pytest.mark.parametrize("alpha", [0.4, 0.6, 0.75, 0.9])
def test_constant_acceptance_of_an_independent_model_stays_constant(alpha):
    """Exact constant-α τ at k = 1 and 2 of a draft that does not drift gives constant-α τ elsewhere, within 2 %."""
    prediction = posterior(evidence.position_law(), constant(alpha, 1, 2), kind="lm")
    for k in range(3, 9):
        assert prediction.tokens_per_step(k)[0] == pytest.approx(float(tokens_per_step_constant(alpha, k)), rel=0.02)


@pytest.mark.parametrize("alpha", [0.6, 0.75])
def test_a_head_is_not_taken_to_be_constant(alpha):
    """Negative control: one τ of a head, which drifts, promises less at k = 8 than one of an independent model does."""
    law = evidence.position_law()
    head, steady = (posterior(law, constant(alpha, 1), kind=kind).tokens_per_step(8)[0] for kind in ("head", "lm"))
    assert head < 0.95 * steady


# Planted curves.


@pytest.fixture(scope="module")
def learned() -> PositionLaw:
    """A law from 25 planted curves of each of four kinds, seed 3; none is of prompt lookup."""
    rng = np.random.default_rng(3)
    return fit_position_law(
        [
            Lesson(curve, kind=kind)
            for kind in ("head", "block", "lm", "mtp")
            for curve in simulated(PLANTED, kind, 25, rng)
        ]
    )


@pytest.mark.parametrize("kind", ["head", "block", "lm", "mtp"])
def test_planted_kinds_are_recovered(learned, kind):
    """Means of 25 drafts, of sd 0.1, 0.03 and 0.03 but for noise: within 0.4, 0.15 and 0.25, the last since carry is drawn about a factor
    of the step."""
    assert learned.num_curves == 100
    for learnt, mean, off in zip(learned.prior(kind).mean, PLANTED.prior(kind).mean, (0.4, 0.15, 0.25), strict=True):
        assert learnt == pytest.approx(mean, abs=off)


@pytest.mark.parametrize(
    ("kind", "point"),
    [("head", (1.0, -0.5, -0.5)), ("lm", (1.2, 0.0, 0.0)), ("block", (1.4, 0.1, 0.2)), ("mtp", (2.4, -1.2, -1.2))],
)
def test_falling_flat_and_rising_curves_are_carried_on(learned, kind, point):
    """Exact τ at k = 1 and 2 of a draft like its kind: τ at k = 4 within 3 %, at k = 8 within 8 %."""
    tau = 1 + np.cumsum(np.cumprod(accept(np.array([point]), 8)))
    prediction = posterior(learned, {1: float(tau[0]), 2: float(tau[1])}, kind=kind)
    assert prediction.tokens_per_step(4)[0] == pytest.approx(tau[3], rel=0.03)
    assert prediction.tokens_per_step(8)[0] == pytest.approx(tau[7], rel=0.08)


def test_a_kind_never_seen_borrows_from_the_others_and_is_less_sure(learned):
    seen, unseen = (posterior(learned, {1: 1.75, 2: 2.3}, kind=kind) for kind in ("lm", "lookup"))
    low, high = zip(*(p.tokens_per_step(8)[1:] for p in (seen, unseen)), strict=True)
    assert high[1] - low[1] > high[0] - low[0]
    steps = [PLANTED.prior(kind).mean[1] for kind in ("head", "block", "lm", "mtp")]
    assert min(steps) < learned.prior("lookup").mean[1] < max(steps)
    with pytest.raises(ValueError, match="kind must be one of lookup, lm, head, mtp, block, got 'medusa'"):
        posterior(learned, {}, kind="medusa")  # type: ignore[arg-type]


def coverage(law: PositionLaw, held_out: list[tuple[Any, dict[int, float]]]) -> float:
    """Share of τ(k > 2) within its 90 % interval from τ(1) and τ(2)."""
    hits = []
    for kind, curve in held_out:
        known_taus = {k: tau for k, tau in curve.items() if k <= 2}
        hits += [
            low <= curve[k] <= high for k, (_, low, high) in predict(law, known_taus, [3, 5, 8], kind=kind).items()
        ]
    return float(np.mean(hits))


def test_predictive_intervals_cover(learned):
    """The learned law covers 78 to 99 % of 60 fresh curves (seed 4). A curve's points go together: sd of a 90 % share of 60 curves is 3.9
    points, so 78 % lies 3 sd off: false alarms below 1 %. A law that is too sure, and one too humble, fail.
    """
    rng = np.random.default_rng(4)
    held_out = [(kind, curve) for kind in ("head", "block", "lm") for curve in simulated(PLANTED, kind, 20, rng)]
    assert 0.80 <= (covered := coverage(learned, held_out)) <= 0.98
    quiet, loud = (tuple(float(i == at) + 1e-9 for i in range(LEVELS)) for at in (0, LEVELS - 1))
    narrow = tuple(
        msgspec.structs.replace(prior, scale=tuple(tuple(v / 100 for v in row) for row in prior.scale))
        for prior in learned.priors
    )
    assert coverage(msgspec.structs.replace(learned, priors=narrow, noise_of_runs=quiet), held_out) < 0.78
    assert coverage(msgspec.structs.replace(learned, noise_of_runs=loud), held_out) > covered


def test_intervals_widen_beyond_the_positions_known_and_narrow_with_more():
    law = evidence.position_law()
    truth = {1: 1.72, 2: 2.20, 3: 2.52, 5: 2.85}
    at_8 = []
    for lookaheads in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 5)):
        known_taus = {k: truth[k] for k in lookaheads}
        predictions = predict(law, known_taus, range(1, 17), kind="head")
        assert all(1 <= low <= mid <= high for mid, low, high in predictions.values())
        medians = [mid for mid, _, _ in predictions.values()]
        assert medians == sorted(medians)
        _, low, high = posterior(law, known_taus, kind="head").tokens_per_step(8)
        at_8.append(high - low)
    assert at_8 == sorted(at_8, reverse=True)
    assert at_8[-1] < 0.3 * at_8[0]
    beyond = posterior(law, {1: 1.72, 2: 2.20}, kind="head")
    widths = [high / low for _, low, high in (beyond.tokens_per_step(k) for k in (2, 3, 5, 8, 16))]
    assert widths == sorted(widths)
    assert widths[-1] > widths[0] + 0.05


def test_one_run_s_positions_are_surer_than_runs_apart():
    law = evidence.position_law()
    apart, one = (
        posterior(law, {1: 1.72, 2: 2.2}, kind="head", one_run=one_run).tokens_per_step(2) for one_run in (False, True)
    )
    assert one[2] - one[1] < apart[2] - apart[1]


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({1: 0.99}, "tokens_per_step 0.99"),
        ({2: 3.01}, r"lie in \[1, 3\]"),
        ({0: 1.0}, "lookahead 0"),
        ({17: 2.0}, "lookahead 17"),
        ({1: math.nan}, "nan"),
    ],
)
def test_impossible_curves_are_refused_in_one_line(curve, words):
    with pytest.raises(ValueError, match=words) as error:
        posterior(PLANTED, curve, kind="head")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("curve", [{1: 1.0, 2: 1.0}, {1: 2.0, 2: 3.0}, {8: 9.0}, {1: 1.9, 2: 1.9}])
def test_curves_at_the_edge_of_what_a_chain_can_give_are_taken(curve):
    prediction = posterior(evidence.position_law(), curve, kind="block")
    assert np.isfinite(prediction.weights).all()
    assert prediction.tokens_per_step(max(curve))[0] == pytest.approx(curve[max(curve)], rel=0.15)


def test_too_few_curves_teach_nothing():
    long, short = {1: 1.7, 2: 2.1, 3: 2.4}, {1: 1.7, 2: 2.1}
    with pytest.raises(ValueError, match=r"needs 4 curves .* got 3"):
        fit_position_law([Lesson(long)] * 3 + [Lesson(short)] * 10)


def test_a_wider_level_gives_a_wider_interval_and_no_lookahead_gives_one():
    prediction = posterior(PLANTED, {1: 1.7}, kind="head")
    assert prediction.tokens_per_step(0) == (1.0, 1.0, 1.0)
    _, low50, high50 = prediction.tokens_per_step(5, 0.5)
    _, low90, high90 = prediction.tokens_per_step(5, 0.9)
    assert low90 < low50 < high50 < high90


def test_a_curve_measured_elsewhere_weighs_less():
    here, elsewhere = (posterior(PLANTED, {1: 1.9, 2: 2.7}, kind="head", extra_noise=noise) for noise in (0.0, 0.1))
    width = [high - low for _, low, high in (prediction.tokens_per_step(5) for prediction in (here, elsewhere))]
    assert width[1] > 1.3 * width[0]


def test_draws_follow_the_posterior_and_the_seed():
    """Seed 1; 4000 draws put the median within 4 standard errors, 0.02 in quantile: false alarms below 1e-3."""
    prediction = posterior(PLANTED, {1: 1.7, 2: 2.2}, kind="head")
    drawn = prediction.draws(4000, np.random.default_rng(1))
    assert (drawn == prediction.draws(4000, np.random.default_rng(1))).all()
    tau = 1 + np.cumprod(drawn, axis=1)[:, :5].sum(axis=1)
    mid, low, high = prediction.tokens_per_step(5)
    assert np.mean(tau <= mid) == pytest.approx(0.5, abs=0.04)
    assert np.mean((low <= tau) & (tau <= high)) == pytest.approx(0.9, abs=0.025)


# Curves of rows, and what ships.


def row(**fields: Any) -> Observation:
    values: dict[str, Any] = {"method": "eagle3"} | fields
    return Observation(run="a", target="T", provenance=Provenance(source="s"), **values)


def test_curves_of_rows():
    """Chains only, one curve per draft and dataset, repeats averaged, own rows before what a longer run's survival implies."""
    rows = [
        row(lookahead=1, tokens_per_step=1.6, concurrency=1),
        row(lookahead=1, tokens_per_step=1.8, concurrency=8),
        row(lookahead=3, survival=(0.5, 0.4, 0.2)),
        row(lookahead=2, topk=4, tokens_per_step=2.9),
        row(lookahead=2, tokens_per_step=2.2, dataset="other"),
        row(method="none", lookahead=0),
        row(tokens_per_step=2.0),
    ]
    curves = {key[3]: curve for key, curve in chain_curves(rows).items()}
    assert curves == {"": pytest.approx({1: 1.7, 2: 1.9, 3: 2.1}), "other": {2: 2.2}}


def test_curves_of_one_run_are_told_from_runs_apart():
    rows = [
        row(lookahead=3, survival=(0.5, 0.4, 0.2), tokens_per_step=2.1, dataset="one"),
        row(lookahead=3, survival=(0.5, 0.4, 0.2), dataset="both"),
        row(lookahead=1, tokens_per_step=1.5, dataset="both"),
        row(lookahead=1, tokens_per_step=1.5, dataset="apart"),
        row(lookahead=2, tokens_per_step=1.9, dataset="apart"),
    ]
    assert {key[3] for key in single_runs(rows)} == {"one"}


def test_shipped_laws_are_one_per_left_out_document(shipped):
    rows = observations()
    teaching = {
        name
        for name in evidence.documents(rows)
        if evidence.lessons([r for r in rows if document(r.provenance.source) == name])
    }
    assert set(shipped) == {"", *teaching}
    assert len(teaching) >= 15
    for name, law in shipped.items():
        assert law.num_curves == len(evidence.lessons([row for row in rows if document(row.provenance.source) != name]))
        assert tuple(prior.kind for prior in law.priors) == kinds.PRIORS


@pytest.mark.parametrize("name", ["", INFERENCEX])
def test_shipped_law_is_reproduced(shipped, name):
    """To 1e-6; and curves of a kind left out would move its prior, which a law copied from elsewhere would not show."""
    rows = [row for row in observations() if document(row.provenance.source) != name]
    again = evidence.fit_position_law(rows)
    for prior, same in zip(again.priors, shipped[name].priors, strict=True):
        assert prior.mean == pytest.approx(same.mean, abs=1e-6)
        assert np.array(prior.scale) == pytest.approx(np.array(same.scale), abs=1e-6)
    assert again.evidence == pytest.approx(shipped[name].evidence, abs=1e-6)


def test_no_document_drowns_the_rest():
    """A curve weighs 1/√n, n the curves of its document."""
    rows = [row for row in observations() if document(row.provenance.source) == INFERENCEX]
    lessons = evidence.lessons(observations())
    assert {lesson.weight for lesson in evidence.lessons(rows)} == {7**-0.5}
    assert len(lessons) > 90
    assert min(lesson.weight for lesson in lessons) < 0.2
    assert {lesson.kind for lesson in lessons} == set(kinds.PRIORS)


def test_judged_document_does_not_teach_the_law_that_judges_it(shipped):
    rows = [row for row in observations() if document(row.provenance.source) == INFERENCEX]
    used = evidence.position_law(evidence.documents(rows))
    assert used == shipped[INFERENCEX]
    assert used.priors != shipped[""].priors
    judged = validate(rows).curves
    assert judged == curves.judge(rows, shipped[INFERENCEX]).curves
    leaked = curves.judge(rows, shipped[""]).curves
    assert any(abs(a.predicted / b.predicted - 1) > 1e-3 for a, b in zip(judged, leaked, strict=True))


def test_two_left_out_documents_call_for_a_fresh_fit(monkeypatch):
    without = frozenset({INFERENCEX, "github.com/sgl-project/specforge"})
    fitted_rows: list[Observation] = []

    def catch(rows):
        fitted_rows.extend(rows)
        return PLANTED

    monkeypatch.setattr(evidence, "fit_position_law", catch)
    assert evidence.position_law.__wrapped__(without) == PLANTED
    assert fitted_rows
    assert not without & evidence.documents(fitted_rows)
    assert evidence.position_law.__wrapped__(frozenset({"my own table.csv"})) == evidence.position_law()
