"""Adaptive lengths: the spread of acceptance, the best budget against every assignment of lengths, and what a plan says of them."""

import re
from itertools import product

import numpy as np
import pytest
from given import given
from msgspec.structs import replace

from foredraft import published, shapes
from foredraft.engines import ENGINES
from foredraft.engines.lengths import adapted, note
from foredraft.kinds import DSPARK, EAGLE3, MULTI_LAYER, NGRAM, Kind
from foredraft.laws.adaptive import (
    AdaptiveLaw,
    batch_sd,
    best_common,
    best_stopping,
    budgets,
    in_common,
    overheads,
    seen_sd,
    seen_survival,
    spreads,
)
from foredraft.machines import named
from foredraft.plan.at_hand import DraftAtHand
from foredraft.plan.evidence import adaptive_law
from foredraft.plan.lengths import IDLE, LOSES, WORTH_IT, verdict
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.records import (
    Confidence,
    DraftLengths,
    Estimate,
    JudgedLength,
    LengthCase,
    LengthGain,
    Plan,
    Provenance,
    StepCosts,
    Workload,
)
from foredraft.report.lengths import judged_length_tables, length_table
from foredraft.validate.lengths import grouped, judge, server_key, step_costs

CURVES = np.array([[0.8, 0.6, 0.42, 0.28], [0.95, 0.93, 0.9, 0.86], [0.3, 0.05, 0.005, 0.0001]])
LAW = AdaptiveLaw(0.86, 0.03, 0.5, 0.6, 0.8, 0.1, 0.06, 0.02, 10)


def fixed_rates(survival: np.ndarray, step_s: np.ndarray) -> np.ndarray:
    """Tokens per second of every fixed length [S, K + 1]."""
    return (1 + np.concatenate([np.zeros((len(survival), 1)), np.cumsum(survival, axis=1)], axis=1)) / step_s


@pytest.mark.parametrize(("shared", "single"), [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (1.3, 1.7)])
def test_the_mean_curve_is_preserved_and_survival_never_rises(shared, single):
    seen = seen_survival(CURVES, shared, single)
    np.testing.assert_allclose(seen.mean(axis=1), CURVES, rtol=1e-8)
    assert (np.diff(seen, axis=2) <= 1e-15).all()
    assert ((seen >= 0) & (seen <= 1)).all()


def test_more_auc_is_more_spread():
    """None at 0.5; at 0.86, of a published head, an acceptance of 0.75 splits into tokens that are nearly sure and nearly hopeless."""
    assert seen_sd(0.5) == pytest.approx(0.0, abs=0.05)
    assert (np.diff(seen_sd(np.linspace(0.5, 0.95, 20))) > 0).all()
    sd = float(seen_sd(0.86))
    seen = seen_survival(np.array([[0.75]]), 0.0, sd, steps=512)[0, :, 0]
    accepted = np.random.default_rng(0).random((400, 512)) < seen
    above = [(seen[row][:, None] > seen[~row][None]).mean() for row in accepted]
    assert np.mean(above) == pytest.approx(0.86, abs=0.01)  # 400 runs of 512 tokens: sd of the mean 0.001


def test_without_spread_adaptive_is_the_best_fixed_length_and_no_more():
    for growth in (0.0, 0.01, 0.1, 0.4):
        step_s = np.tile(1 + growth * np.arange(5.0), (3, 1))
        spent = budgets(seen_survival(CURVES, 0.0, 0.0)).best(step_s)
        np.testing.assert_allclose(spent.tokens / spent.seconds, fixed_rates(CURVES, step_s).max(axis=1), rtol=1e-7)


def test_spread_never_loses_to_a_fixed_length_and_gains_between_free_and_ruinous_verification():
    seen = seen_survival(CURVES, 1.5, 1.0)
    gains = []
    for growth in (0.0, 0.05, 0.3, 50.0):
        step_s = np.tile(1 + growth * np.arange(5.0), (3, 1))
        spent = budgets(seen).best(step_s)
        gains.append((spent.tokens / spent.seconds / fixed_rates(CURVES, step_s).max(axis=1))[0] - 1)
    assert gains[0] == pytest.approx(0, abs=1e-7)  # verification costs nothing: all of it is done
    assert gains[1] > 0.01
    assert gains[2] > 0.01
    assert gains[3] == pytest.approx(0, abs=1e-9)  # none of it is


def test_perfect_confidence_bounds_the_gain():
    """Who knew how many tokens are accepted would verify these alone; every confidence gains less, a sharp one nearly as much."""
    survival, step_s = CURVES[:1], np.array([[1.0, 1.2, 1.4, 1.6, 1.8]])
    accepted = -np.diff(np.concatenate([[1.0], survival[0], [0.0]]))  # P(exactly i accepted)
    known = np.repeat(np.arange(5), np.round(accepted * 10_000).astype(int))
    perfect = np.array([np.arange(4)[None] < known[:, None]], dtype=float).reshape(1, len(known), 4)
    bound = budgets(perfect).best(step_s)
    for sd in (0.0, 1.0, 2.0, 4.0, 30.0):
        spent = budgets(seen_survival(survival, 0.0, sd, steps=256)).best(step_s)
        assert spent.tokens / spent.seconds <= bound.tokens / bound.seconds * (1 + 1e-3)
    assert spent.tokens / spent.seconds == pytest.approx(bound.tokens / bound.seconds, rel=0.03)


def test_the_budget_is_the_best_of_all_assignments_of_lengths():
    """Every assignment of lengths 0 … 3 to four equally likely steps, enumerated, on three cost curves."""
    rng = np.random.default_rng(3)
    for step in ([1.0, 1.1, 1.2, 1.3], [1.0, 1.02, 1.3, 1.9], [1.0, 1.5, 1.6, 1.65]):
        seen = np.sort(rng.random((1, 4, 3)), axis=2)[:, :, ::-1]
        best = 0.0
        for assigned in product(range(4), repeat=4):
            tokens = 1 + np.mean([seen[0, p, :n].sum() for p, n in enumerate(assigned)])
            best = max(best, tokens / np.interp(np.mean(assigned), range(4), step))
        spent = budgets(seen).best(np.array([step]))
        assert (spent.tokens / spent.seconds)[0] == pytest.approx(best, rel=1e-12)


def test_a_common_length_is_the_best_of_all_assignments_where_each_step_pays_its_own():
    rng = np.random.default_rng(5)
    step = np.array([1.0, 1.1, 1.3, 1.7])
    seen = np.sort(rng.random((1, 4, 3)), axis=2)[:, :, ::-1]
    best = max(
        (1 + np.mean([seen[0, p, :n].sum() for p, n in enumerate(assigned)])) / np.mean([step[n] for n in assigned])
        for assigned in product(range(4), repeat=4)
    )
    spent = best_common(seen, step[None])
    assert (spent.tokens / spent.seconds)[0] == pytest.approx(best, rel=1e-9)


def test_stopping_early_saves_passes_alone_and_none_in_a_large_batch():
    """Passes at a fifth of a step: a single sequence gains from stopping; with many, one of them always goes on."""
    survival, verify_s, pass_s = CURVES[:1], np.ones((1, 5)), np.array([0.2])
    seen = seen_survival(survival, 1.5, 1.0)
    fixed = fixed_rates(survival, 1 + 0.2 * np.arange(5)[None]).max()
    alone, crowd = (best_stopping(seen, verify_s, pass_s, batch) for batch in (1, 1000))
    assert (alone.tokens / alone.seconds)[0] > 1.01 * fixed
    assert (crowd.tokens / crowd.seconds)[0] == pytest.approx(fixed, rel=1e-6)
    level = best_stopping(seen_survival(survival, 0.0, 0.0), verify_s, pass_s, 1)
    assert (level.tokens / level.seconds)[0] == pytest.approx(fixed, rel=1e-6)


def test_what_deciding_costs_makes_cheap_verification_lose():
    quantiles = (np.arange(64) + 0.5) / 64
    seen = seen_survival(np.tile(CURVES[:1], (64, 1)), *spreads(LAW, quantiles))
    spent = budgets(seen).best(np.tile(1 + 0.001 * np.arange(5.0), (64, 1)))
    gain = spent.tokens / spent.seconds / fixed_rates(CURVES[:1], 1 + 0.001 * np.arange(5)[None]).max()
    assert (gain >= 1).all()
    assert verdict(gain / (1 + overheads(LAW, quantiles))) == LOSES


def test_verdicts():
    assert verdict(np.linspace(1.02, 1.2, 100)) == WORTH_IT
    assert verdict(np.linspace(0.95, 1.05, 100)) == IDLE
    assert verdict(np.linspace(1.001, 1.004, 100)) == IDLE
    assert verdict(np.linspace(0.8, 0.97, 100)) == LOSES


def test_a_batch_of_one_shows_its_request_and_a_large_one_nothing():
    assert batch_sd(LAW, 1) == LAW.request_sd
    assert batch_sd(LAW, 64) == pytest.approx(LAW.request_sd / 8)


def test_adaptive_settings_only_where_an_engine_has_them():
    dspark = Kind("dspark", "DSpark", "head", {"dspark": "DSpark"}, engine_names={"vllm": "dspark", "sglang": "DSPARK"})
    vllm, sglang, ours = (ENGINES[name] for name in ("vllm", "sglang", "foredraft"))
    assert (
        given(vllm.adaptive(dspark)).setting == given(vllm.adaptive(EAGLE3)).setting == "enable_adaptive_verification"
    )
    assert vllm.adaptive(NGRAM) is vllm.adaptive(MULTI_LAYER) is None  # no model; not served
    assert given(sglang.adaptive(EAGLE3))[:2] == ("--speculative-adaptive", "batch")
    assert given(sglang.adaptive(dspark)).by == "sequence"
    assert sglang.adaptive(NGRAM) is None
    assert [ours.adaptive(kind) is None for kind in (dspark, EAGLE3, DSPARK, NGRAM)] == [True, False, False, True]
    assert given(ours.adaptive(EAGLE3)).stops


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, unit="×", source="test")


def planned(engine: str, *gains: tuple[float, float, str]) -> Plan:
    """A plan with lengths of these schedule's gains, adaptive gains and verdicts."""
    lengths = tuple(
        LengthGain(
            concurrency=8**i, fixed=4, scheduled=4, schedule=estimate(by_batch), schedule_verdict=IDLE, adaptive=estimate(gain),
            adaptive_verdict=word,
        ) for i, (by_batch, gain, word) in enumerate(gains)
    )  # fmt: skip
    load = Workload(input_len=64, output_len=32, concurrency=tuple(each.concurrency for each in lengths))
    return Plan(
        objective="throughput", engine=engine, target="T", machine="H100", devices=1, dtype="bfloat16", workload=load,
        speedup=estimate(1.0), schedule=(), draft=None, lengths=lengths,
    )  # fmt: skip


CHAIN = {"--speculative-num-steps": 4, "--speculative-eagle-topk": 1, "--speculative-num-draft-tokens": 5}
BATCHES = {"num_speculative_tokens": 4, "num_speculative_tokens_per_batch_size": [[1, 8, 4]]}


def test_launch_settings_follow_the_confidence_where_the_plan_says_that_it_pays():
    vllm, sglang = ENGINES["vllm"], ENGINES["sglang"]
    gains = (1.0, 1.0, IDLE), (1.0, 1.2, WORTH_IT)
    settings = adapted(vllm, BATCHES, planned("vllm", *gains), EAGLE3)
    assert settings == {"num_speculative_tokens": 4, "enable_adaptive_verification": True}
    assert "worth it at 8 (+20%) clients" in note(vllm, BATCHES, planned("vllm", *gains), EAGLE3)
    assert adapted(sglang, CHAIN, planned("sglang", *gains), EAGLE3) == CHAIN | {"--speculative-adaptive": True}
    script = sglang.script("T", "T", CHAIN | {"--speculative-adaptive": True}, None)
    assert '--speculative-adaptive "$@"' in script


@pytest.mark.parametrize(
    ("engine", "kind", "gains", "words"),
    [
        ("vllm", EAGLE3, [(1.3, 1.2, WORTH_IT)], "the schedule by batch brings more"),
        ("vllm", EAGLE3, [(1.0, 1.2, WORTH_IT), (1.0, 0.9, LOSES)], r"they lose at 8 \(-10%\) clients"),
        ("vllm", EAGLE3, [(1.0, 1.01, IDLE)], "nothing sure"),
        ("vllm", NGRAM, [(1.0, 1.2, WORTH_IT)], "has no length that follows"),
        ("sglang", DSPARK, [(1.0, 1.2, WORTH_IT)], "take more than this file"),
    ],
)
def test_they_are_left_off_elsewhere_and_a_line_says_why(engine, kind, gains, words):
    chosen = planned(engine, *gains)
    assert adapted(ENGINES[engine], BATCHES, chosen, kind) == BATCHES
    assert re.search(words, note(ENGINES[engine], BATCHES, chosen, kind))
    other = "sglang" if engine == "vllm" else "vllm"
    assert adapted(ENGINES[other], CHAIN, chosen, kind) == CHAIN


LOAD = Workload(input_len=512, output_len=256, concurrency=(1, 16, 128))


def lengths_of(engine: str, kinds: tuple[str, ...], **settings):
    return plan(
        shapes.named("Llama-3.1-8B"),
        named("H100"),
        LOAD,
        PlanSettings(engine=engine, kinds=kinds, trees=False, **settings),
    )


def test_a_plan_says_what_schedule_and_adaptive_bring_and_names_the_engines_setting():
    chosen = lengths_of("vllm", ("head",))
    assert [gain.concurrency for gain in chosen.lengths] == [1, 16, 128]
    assert all("enable_adaptive_verification" in given(gain.setting) for gain in chosen.lengths)
    assert [gain.scheduled for gain in chosen.lengths] == [step.lookahead for step in chosen.schedule]
    for gain in chosen.lengths:
        assert gain.schedule.value >= 0.995
        adaptive = given(gain.adaptive)
        assert adaptive.low <= adaptive.value <= adaptive.high
        assert (gain.scheduled == gain.fixed) <= (gain.schedule_verdict == IDLE)
    assert "enable_adaptive_verification" in str(length_table(chosen)[-1])


def test_an_engine_without_it_plans_none_and_says_what_it_would_bring():
    chosen = lengths_of("tensorrt-llm", ("head",))
    assert all(gain.setting is None and gain.adaptive for gain in chosen.lengths)
    assert "not planned" in str(length_table(chosen)[-1])


def test_sglangs_length_follows_the_batch_or_of_dspark_the_sequence():
    chosen = lengths_of("sglang", ("head",))
    by_batch, by_sequence = (given(ENGINES["sglang"].adaptive(kind)) for kind in (EAGLE3, DSPARK))
    by_setting = {by_batch.setting: "batch", by_sequence.setting: "sequence"}
    assert all(by_setting[given(gain.setting)] == gain.adapts for gain in chosen.lengths)
    assert (by_batch.by, by_sequence.by) == ("batch", "sequence")


def test_prompt_lookup_has_no_confidence_to_follow_and_no_draft_no_lengths():
    chosen = lengths_of("vllm", ("lookup",), always=True)
    assert all(gain.adaptive is None and gain.setting is None for gain in chosen.lengths)
    assert all(gain.fixed > 0 for gain in chosen.lengths)


@pytest.fixture(scope="module")
def judged():
    return judge(published.length_cases())


def test_published_cases_are_told_rightly(judged):
    """Regression bounds on what was measured when the law was fitted: 35 of 42 signs, 43 of 48 in the interval; over the longest
    length 33 of 35 signs.
    """
    longest = {
        (case.document, case.load, case.lookahead) for case in published.length_cases() if case.measured is not None
    }
    over_longest = [case for case in judged.adaptive if (case.document, case.load, case.lookahead) in longest]
    said = [case.agrees for case in over_longest if case.agrees is not None]
    assert len(said) >= 30
    assert np.mean(said) >= 0.85
    assert np.mean([case.covered for case in judged.adaptive]) >= 0.8
    assert all(schedule.schedule_regret < schedule.fixed_regret + 0.01 for schedule in judged.schedules)
    assert judged_length_tables(judged)


def test_no_case_is_judged_by_a_law_that_saw_its_document(judged):
    longest = {(case.document, case.lookahead) for case in published.length_cases() if case.adapts}
    cases = [case for case in judged.adaptive if (case.document, case.lookahead) in longest]
    for document in {case.document for case in cases}:
        own = sum(case.document == document for case in cases)
        assert adaptive_law(document).num_cases == adaptive_law().num_cases - own


def test_a_planted_case_is_recovered_and_a_prediction_sees_no_adaptive_row():
    """Rows of a server whose step grows with its tokens; an adaptive speed ten times as high changes no prediction."""

    def case(load: int, **changes) -> LengthCase:
        step_s = 0.01 + 2e-5 * load * 8
        base = LengthCase(
            document="planted", target="t", method="dspark", load=load, lookahead=7, source="here", adapts="sequence",
            plain_tok_s=load / (0.01 + 2e-5 * load), fixed_tok_s=3.4 * load / step_s, adaptive_tok_s=3.5 * load / step_s,
            tokens_per_step=3.4,
        )  # fmt: skip
        return replace(base, **changes)

    cases = [case(load) for load in (1, 8, 64, 256)]
    group = grouped(cases)[server_key(cases[2])]
    costs = step_costs(cases[2], group, np.full(2, 3.4), np.zeros(2))
    assert costs.origin == "rows"
    assert costs.step_s[0, -1] == pytest.approx(0.01 + 2e-5 * 64 * 8, rel=1e-9)
    assert (np.diff(costs.step_s, axis=1) >= 0).all()
    louder = [replace(each, adaptive_tok_s=10 * given(each.adaptive_tok_s)) for each in cases]
    assert [c.predicted for c in judge(cases, LAW).adaptive] == [c.predicted for c in judge(louder, LAW).adaptive]
    gains = [c.predicted for c in judge(cases, LAW).adaptive]
    assert gains[0] < 1 < gains[-1]


def test_a_case_without_costs_says_what_it_lacks():
    lone = LengthCase(
        document="d", target="nobody's", method="dspark", load=8, lookahead=7, source="s", adapts="sequence", fixed_tok_s=10.0,
        adaptive_tok_s=11.0,
    )  # fmt: skip
    assert list(judge([lone], LAW).lacking) == ["d: a plain row, rows at loads from one to its block, or the machine"]


def test_agreement_needs_a_side_to_be_on():
    def point(measured: float, predicted: float) -> JudgedLength:
        return JudgedLength("s", "d", 1, 7, measured, predicted, 0.9, 1.1, "rows")

    assert point(1.1, 1.05).agrees is True
    assert point(0.9, 1.05).agrees is False
    assert point(1.01, 0.99).agrees is None


def test_the_thinned_draws_hold_still():
    """An end of the interval moves by less than 0.03 between seeds."""
    gains = [given(lengths_of("vllm", ("head",), seed=seed, draws=1024).lengths[1].adaptive) for seed in range(3)]
    assert np.ptp([(gain.low, gain.high) for gain in gains], axis=0).max() < 0.03


def test_a_plan_warns_where_a_step_outgrows_captured_graphs():
    chosen = lengths_of("vllm", ("head",))
    assert [gain.uncaptured for gain in chosen.lengths] == [None] * 3
    longer = replace(chosen, lengths=(*chosen.lengths[:2], replace(chosen.lengths[2], uncaptured=1152.0)))
    assert str(length_table(longer)[-1]).startswith("from 128 clients on the schedule verifies 1,152 tokens")


def test_a_batch_shows_its_mean_and_the_less_the_larger_it_is():
    seen = seen_survival(CURVES, 1.5, 1.0)
    spread = [float(in_common(seen, batch).std(axis=1).mean()) for batch in (1, 4, 16)]
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]
    np.testing.assert_allclose(in_common(seen, 7).mean(axis=1), CURVES, rtol=1e-8)


def measured_lengths(sd: float) -> DraftLengths:
    """A confidence of that spread, measured of an EAGLE-3 head."""
    confidence = Confidence(
        temperature=0.0, here=(0.0, 1.0, 0.0, 0.0), ahead=(0.0, 1.0, 0.0, 0.0), num=100, survival=(0.7, 0.5), shared_sd=sd, single_sd=sd,
        rates={1: 1.0}, fixed={1: (1.0, 1.0)},
    )  # fmt: skip
    return DraftLengths(
        draft="d", method="eagle3", target="t", lookahead=2, machine="m", dtype="bfloat16", threads=None, confidences=(confidence,),
        costs=StepCosts({1: 1.0}, {1: (0.1, 0.1)}), provenance=Provenance(source="test"),
    )  # fmt: skip


def test_a_plan_for_our_engine_follows_the_confidence_that_was_measured_of_the_draft(tmp_path):
    """A single client gains most by its spread, 128 together the least."""

    def gains(sd: float) -> list[float]:
        target = shapes.named("Llama-3.1-8B")
        draft = DraftAtHand(EAGLE3, EAGLE3.shape(target), lengths=measured_lengths(sd))
        chosen = plan(
            target,
            named("H100"),
            LOAD,
            PlanSettings(engine="foredraft", trees=False, always=True, draws=256),
            draft=draft,
        )
        assert all("lengths.json" in given(gain.setting) for gain in chosen.lengths)
        return [given(gain.adaptive).value / gain.schedule.value for gain in chosen.lengths]

    blind, sharp = np.array(gains(0.0)), np.array(gains(2.0))
    assert (blind < 1.04).all()  # what is left: a length for each draw of acceptance
    promised = np.concatenate([blind, sharp])
    kept = abs(promised - 1) < 0.01  # below 1.03 the rule keeps to the fixed length, and so does the plan
    assert (kept | (promised > 1.02)).all()
    assert kept.any()
    assert (promised > 1.03).any()
    assert (sharp - blind)[0] > 0.02
    assert (sharp - blind)[0] > (sharp - blind)[2]
