"""The position law: constant α is its special case, a planted law comes back, its intervals cover, and nothing judged teaches it."""

import math
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft import kinds
from foredraft.laws import acceptance
from foredraft.laws.acceptance import (
    MAX_POSITIONS,
    Lesson,
    PositionLaw,
    chain_curves,
    fit_position_law,
    posterior,
    predict,
)
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.plan import evidence
from foredraft.published import document, observations
from foredraft.records import Observation, Provenance, decode
from foredraft.validate import curves, validate

INFERENCEX = "github.com/semianalysisai/inferencex"
PLANTED = PositionLaw(
    mean=(1.1, -0.6), scale=((0.30, -0.06), (-0.06, 0.10)), tail=4.0, decay=0.6, noise=0.007, noise_growth=1.0,
    num_curves=0, evidence=0.0,
)  # fmt: skip


def constant(alpha: float, *lookaheads: int) -> dict[int, float]:
    return {k: float(tokens_per_step_constant(alpha, k)) for k in lookaheads}


def simulated(law: PositionLaw, num: int, rng: np.random.Generator, lookaheads=range(1, 9)) -> list[dict[int, float]]:
    """Noisy τ(k) of `num` drafts drawn from `law`: a bivariate t, logistic acceptance, scatter in log τ."""
    taus = []
    while len(taus) < num:
        normal = np.linalg.cholesky(np.array(law.scale)) @ rng.standard_normal(2)
        level, slope = np.array(law.mean) + normal / math.sqrt(rng.chisquare(law.tail) / law.tail)
        accept = 1 / (1 + np.exp(-(level + slope * (1 - law.decay ** np.arange(MAX_POSITIONS)))))
        tau = 1 + np.cumsum(np.cumprod(accept))
        noisy = {
            k: tau[k - 1] * math.exp(law.noise * (k / 2) ** law.noise_growth * rng.standard_normal())
            for k in lookaheads
        }
        taus.append({k: float(min(max(value, 1.0), k + 1.0)) for k, value in noisy.items()})
    return taus


@pytest.fixture(scope="module")
def shipped() -> dict[str, PositionLaw]:
    text = (files("foredraft.published") / "position_laws.json").read_bytes()
    return decode(dict[str, PositionLaw], text, name="position_laws.json")


@pytest.mark.parametrize("alpha", [0.4, 0.6, 0.75, 0.9])
def test_constant_acceptance_is_the_special_case(alpha):
    """Exact constant-α τ at k = 1 and 2 of a draft that does not drift gives constant-α τ elsewhere, within 2 %."""
    prediction = posterior(evidence.position_law(), constant(alpha, 1, 2), kind="lm")
    for k in range(3, 9):
        assert prediction.tokens_per_step(k)[0] == pytest.approx(float(tokens_per_step_constant(alpha, k)), rel=0.02)


@pytest.mark.parametrize("alpha", [0.6, 0.75, 0.9])
def test_a_head_is_not_taken_to_be_constant(alpha):
    """Negative control: one τ of a head, which drifts, promises less at k = 8 than constant α does."""
    law = evidence.position_law()
    head, steady = (posterior(law, constant(alpha, 1), kind=kind).tokens_per_step(8)[0] for kind in ("head", "lm"))
    assert head < 0.95 * steady
    assert steady == pytest.approx(float(tokens_per_step_constant(alpha, 8)), rel=0.08)


def test_correlated_levels_and_slopes_would_break_the_special_case():
    """Negative control: among heads a higher level goes with a steeper fall; an independent model must not inherit that."""
    law = evidence.position_law()
    assert law.scale[0][1] < -0.05
    inherited = msgspec.structs.replace(law, mean=(law.mean[0], 0.0))
    tau = posterior(inherited, constant(0.9, 1, 2), kind="head").tokens_per_step(8)[0]
    assert tau < 0.98 * float(tokens_per_step_constant(0.9, 8))


def test_slope_0_is_constant_acceptance_exactly():
    flat = 1 / (1 + math.exp(-1.3))
    accept = acceptance._accept(0.5)
    level, slope = acceptance.GRID.reshape(-1, 2).T
    nearest = np.flatnonzero(np.abs(slope) == np.abs(slope).min())
    row = nearest[np.argmin(np.abs(level[nearest] - 1.3))]
    assert accept[row] == pytest.approx(np.full(MAX_POSITIONS, flat), abs=0.01)  # half a step of the grid


def test_planted_law_is_recovered(monkeypatch):
    """80 curves, seed 3. Sampling sd of the mean level is about 0.08 and of the slope 0.045; the bounds are 3.5 sd: false alarms below 1e-3."""
    monkeypatch.setattr(acceptance, "DECAYS", (0.4, 0.6))
    monkeypatch.setattr(acceptance, "NOISES", (0.007,))
    monkeypatch.setattr(acceptance, "TAILS", (4.0,))
    taught = simulated(PLANTED, 80, np.random.default_rng(3))
    law = fit_position_law([Lesson(curve) for curve in taught])
    assert (law.decay, law.noise_growth, law.num_curves) == (0.6, 1.0, 80)
    assert law.mean[0] == pytest.approx(1.1, abs=0.28)
    assert law.mean[1] == pytest.approx(-0.6, abs=0.16)
    assert law.scale[0][0] == pytest.approx(0.30, rel=0.6)
    assert law.scale[1][1] == pytest.approx(0.10, rel=0.7)
    assert law.scale[0][1] == pytest.approx(law.scale[1][0])
    assert law.scale[0][1] < 0.02


def coverage(law: PositionLaw, held_out: list[dict[int, float]]) -> float:
    """Share of τ(k > 2) within its 90 % interval from τ(1) and τ(2)."""
    hits = []
    for curve in held_out:
        known_taus = {k: tau for k, tau in curve.items() if k <= 2}
        hits += [
            low <= curve[k] <= high for k, (_, low, high) in predict(law, known_taus, [3, 5, 8], kind="head").items()
        ]
    return float(np.mean(hits))


def test_predictive_intervals_cover():
    """A law fitted to 60 simulated curves covers 80 to 98 % of 100 held-out ones (seed 4). A curve's points go together: sd of a 90 % share
    of 100 curves is 3 points, so 80 % lies 3 sd off and 98 % 2.7: false alarms below 1 %. A law that is too sure, and one too humble, fail."""
    rng = np.random.default_rng(4)
    lessons = [Lesson(curve) for curve in simulated(PLANTED, 60, rng)]
    held_out = simulated(PLANTED, 100, rng)
    law = acceptance._fit_prior(lessons, PLANTED.decay, PLANTED.noise, PLANTED.noise_growth, PLANTED.tail)
    assert 0.80 <= coverage(law, held_out) <= 0.98
    squeezed = msgspec.structs.replace(
        law, noise=law.noise / 5, scale=tuple(tuple(v / 100 for v in row) for row in law.scale)
    )
    assert coverage(squeezed, held_out) < 0.80
    humble = msgspec.structs.replace(law, noise=law.noise * 5)
    assert coverage(humble, held_out) > 0.98


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


def test_too_few_curves_teach_nothing():
    long, short = {1: 1.7, 2: 2.1, 3: 2.4}, {1: 1.7, 2: 2.1}
    with pytest.raises(ValueError, match=r"needs 4 curves .* got 3"):
        fit_position_law([Lesson(long)] * 3 + [Lesson(short)] * 10)


def test_more_data_narrows_and_intervals_are_in_order():
    law = evidence.position_law()
    truth = {1: 1.72, 2: 2.20, 3: 2.52, 5: 2.85}
    widths = []
    for lookaheads in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 5)):
        known_taus = {k: truth[k] for k in lookaheads}
        predictions = predict(law, known_taus, range(1, 17), kind="head")
        assert all(1 <= low <= mid <= high <= k + 1.2 for k, (mid, low, high) in predictions.items())
        medians = [mid for mid, _, _ in predictions.values()]
        assert medians == sorted(medians)
        _, low, high = posterior(law, known_taus, kind="head").tokens_per_step(8)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.2 * widths[0]


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


def test_curves_of_rows():
    """Chains only, one curve per draft and dataset, repeats averaged, own rows before what a longer run's survival implies."""
    source = Provenance(source="s")

    def row(**fields) -> Observation:
        values: dict[str, Any] = {"method": "eagle3"} | fields
        return Observation(run="a", target="T", provenance=source, **values)

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


def test_shipped_laws_are_one_per_left_out_document(shipped):
    rows = observations()
    teaching = {
        document(row.provenance.source)
        for row in rows
        if row.lookahead and row.tokens_per_step and (row.topk or 1) == 1
    }
    assert set(shipped) == {"", *teaching}
    assert len(teaching) >= 4
    for name, law in shipped.items():
        remaining = [row for row in rows if document(row.provenance.source) != name]
        assert law.num_curves == sum(len(acceptance._within(c)) >= 3 for c in chain_curves(remaining).values())


@pytest.mark.parametrize("name", ["", INFERENCEX])
def test_shipped_law_is_reproduced_at_its_settings(shipped, monkeypatch, name):
    """Mean and scale to 1e-6, and a higher evidence than the neighbouring settings (the search over all of them takes 17 s)."""
    law = shipped[name]
    all_lessons: list[Lesson] = []

    def catch(lessons):
        all_lessons.extend(lessons)
        return law

    monkeypatch.setattr(acceptance, "fit_position_law", catch)
    evidence.fit_position_law([row for row in observations() if document(row.provenance.source) != name])
    usable = [lesson._replace(curve=acceptance._within(lesson.curve)) for lesson in all_lessons]
    usable = [lesson for lesson in usable if len(lesson.curve) >= 3]
    again = acceptance._fit_prior(usable, law.decay, law.noise, law.noise_growth, law.tail)
    assert again.mean == pytest.approx(law.mean, abs=1e-6)
    assert np.array(again.scale) == pytest.approx(np.array(law.scale), abs=1e-6)
    assert again.evidence == pytest.approx(law.evidence, abs=1e-6)
    for change in ({"noise_growth": 1 - law.noise_growth}, {"tail": 4.0}):
        other = msgspec.structs.replace(law, **change)
        again = acceptance._fit_prior(usable, other.decay, other.noise, other.noise_growth, other.tail)
        assert again.evidence < law.evidence


def test_no_document_drowns_the_rest(monkeypatch):
    """A curve weighs 1/√n, n the curves of its document."""
    all_lessons: list[Lesson] = []
    monkeypatch.setattr(acceptance, "fit_position_law", lambda lessons: all_lessons.extend(lessons))
    evidence.fit_position_law(observations())
    by_draft = dict(zip(chain_curves(observations()), all_lessons, strict=True))
    home = {acceptance.curve_key(row): document(row.provenance.source) for row in observations()}
    weights: dict[str, set[float]] = {}
    for key, lesson in by_draft.items():
        assert lesson.kind == kinds.of_method(key[1]).prior
        if len(lesson.curve) >= 3:
            weights.setdefault(home[key], set()).add(lesson.weight)
    assert all(len(weights_of_document) == 1 for weights_of_document in weights.values())
    assert weights[INFERENCEX] == {7**-0.5}


def test_judged_document_does_not_teach_the_law_that_judges_it(shipped):
    rows = [row for row in observations() if document(row.provenance.source) == INFERENCEX]
    used = evidence.position_law(evidence.documents(rows))
    assert used == shipped[INFERENCEX]
    assert used.mean != shipped[""].mean
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
