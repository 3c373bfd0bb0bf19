"""Predictions against published measurements: as good as claimed, blind to what they may not see, and honest about what they lack."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest
from given import given

from foredraft.published import document, observations
from foredraft.published.tables import read_table
from foredraft.records import Observation, Provenance
from foredraft.validate import Validation, curves, merge, plain_rule, throughput, validate

SOURCES = {
    "inferencex": "github.com/semianalysisai/inferencex",
    "specdecode": "github.com/specdecode-bench/simulator",
    "qwen3": "github.com/tomasruizt/vllm-scripts",
    "specforge": "github.com/sgl-project/specforge",
}
KNOWN = 2


@cache
def published(name: str) -> tuple[Observation, ...]:
    return tuple(row for row in observations() if document(row.provenance.source) == SOURCES[name])


@cache
def judged(name: str) -> Validation:
    return validate(published(name))


@cache
def acceptance_curves() -> Validation:
    """InferenceX's seven drafts and SpecDecode-Bench's EAGLE-3 on CNN."""
    cnn = [row for row in published("specdecode") if row.method == "eagle3" and row.dataset == "cnn"]
    return merge([judged("inferencex"), validate(cnn)])


def mean(values) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


# As good as claimed.


MISSED = "the position law of all kinds gave this up: docs/log.md, acceptance carried on"


@pytest.mark.parametrize(("lookahead", "most"), [(5, 0.055), (8, 0.10)])
def test_tokens_per_step_from_k_up_to_2_beats_constant_acceptance(lookahead, most):
    points = [point for point in acceptance_curves().curves if point.lookahead == lookahead]
    assert len(points) >= 7
    ours = mean(abs(point.predicted / point.measured - 1) for point in points)
    constant = mean(abs(point.constant_alpha / point.measured - 1) for point in points)
    assert ours <= most
    assert constant >= 1.8 * ours


def test_every_published_curve_is_judged_and_its_interval_holds_its_prediction():
    assert {point.lookahead for point in judged("inferencex").curves} == {3, 4, 5, 6, 7, 8}
    assert len(judged("inferencex").curves) == 42
    for point in (*judged("inferencex").curves, *judged("specdecode").curves, *judged("qwen3").curves):
        assert 1 <= point.low <= point.predicted <= point.high


def test_the_rules_to_beat_are_no_straw_men():
    """On exactly constant rows all are exact; constant α is that of the largest known k; the others are the arithmetic that they say."""
    known_taus = {1: 1.7, 2: 1.7 + 0.49}
    assert plain_rule.constant_alpha(known_taus) == pytest.approx(0.7, abs=1e-6)
    assert plain_rule.constant_alpha({1: 1.9, 2: 1.7 + 0.49}) == pytest.approx(0.7, abs=1e-6)
    for rule in (plain_rule.second_alpha_tau, plain_rule.carried_tau):
        assert given(rule(known_taus))[2] == pytest.approx(1.7 + 0.49 + 0.343)
        assert rule({2: 2.2}) is None
    assert given(plain_rule.second_alpha_tau({1: 1.8, 2: 2.2}))[2] == pytest.approx(2.2 + 0.8 * 0.5 * 0.5)
    assert curves.visible_part({1: 1.7, 2: 2.1, 3: 2.3, 8: 3.0}) == {1: 1.7, 2: 2.1}


def test_throughput_of_qwen3_32b_from_k_up_to_2():
    validation = judged("qwen3")
    assert len(validation.ratios) == 108
    assert len(validation.choices) == 27
    summary = validation.summary()
    assert summary["throughput_ratio_error"] <= 0.04
    assert summary["best_k_regret_mean"] <= 0.015
    assert summary["best_k_regret_worst"] <= 0.06


def test_the_best_fixed_k_loses_what_the_table_says():
    """5.2 % on average to 0.2 points; 40 % at worst, which was stated to a whole point."""
    summary = judged("qwen3").summary()
    assert summary["best_fixed_k"] == 3
    assert 100 * summary["best_fixed_k_regret_mean"] == pytest.approx(5.2, abs=0.2)
    assert round(100 * summary["best_fixed_k_regret_worst"]) == 40
    assert summary["best_k_regret_mean"] < 0.3 * summary["best_fixed_k_regret_mean"]


# Blind to what a prediction may not see.


def altered(rows: Sequence[Observation], factor: float, chosen: Callable[[int], bool]) -> list[Observation]:
    """Throughputs and τ of the rows whose k is `chosen`, times `factor`."""
    out = []
    for row in rows:
        if not row.lookahead or not chosen(row.lookahead):
            out.append(row)
            continue
        speed, tau = row.output_tok_s, row.tokens_per_step
        out.append(
            msgspec.structs.replace(
                row,
                output_tok_s=speed * factor if speed else None,
                tokens_per_step=max(tau * factor, 1.0) if tau else None,
            )
        )
    return out


def predictions(validation: Validation) -> dict[tuple, float]:
    out: dict[tuple, float] = {(p.curve, p.lookahead): p.predicted for p in validation.curves}
    out |= {(p.curve, p.lookahead, "constant"): p.constant_alpha for p in validation.curves}
    out |= {(p.setting, p.load, p.lookahead): p.predicted for p in validation.ratios}
    return out | {(c.setting, c.load, "k"): float(c.chosen) for c in validation.choices}


@pytest.mark.parametrize("name", ["qwen3", "inferencex", "specdecode"])
def test_rows_beyond_k_2_do_not_leak_into_predictions(name):
    honest, tampered = judged(name), validate(altered(published(name), 1.3, lambda k: k > KNOWN))
    assert predictions(tampered) == predictions(honest)
    assert [p.measured for p in tampered.curves] != [p.measured for p in honest.curves]


@pytest.mark.parametrize("name", ["qwen3", "inferencex"])
def test_known_rows_do_enter(name):
    """Negative control: the same change at k ≤ 2 moves the predictions."""
    tampered = predictions(validate(altered(published(name), 0.95, lambda k: k <= KNOWN)))
    honest = predictions(judged(name))
    assert set(tampered) == set(honest)
    assert all(tampered[key] != honest[key] for key in honest if key[-1] != "k")


def test_survival_of_longer_runs_does_not_leak_where_rows_at_k_up_to_2_exist():
    def shaken(row: Observation) -> Observation:
        longer = row.survival and (row.lookahead or 0) > KNOWN
        return msgspec.structs.replace(row, survival=tuple(0.8 * s for s in row.survival or ())) if longer else row

    rows = [shaken(row) for row in published("qwen3")]
    assert rows != list(published("qwen3"))
    assert predictions(validate(rows)) == predictions(judged("qwen3"))


def test_order_of_rows_does_not_matter():
    """To 0.1 %: a group's lengths are its first row's, and they differ by a few tokens."""
    backwards = predictions(validate(list(reversed(published("qwen3")))))
    forwards = predictions(judged("qwen3"))
    assert set(backwards) == set(forwards)
    assert all(backwards[key] == pytest.approx(value, rel=1e-3) for key, value in forwards.items())


# Tables of a user's own.

SPEEDS = {  # tokens/s at k = 0 … 4, by load
    1: (100.0, 150.0, 175.0, 185.0, 188.0),
    8: (700.0, 980.0, 1090.0, 1120.0, 1100.0),
    64: (3800.0, 4300.0, 4200.0, 3900.0, 3600.0),
}


def row(**fields) -> Observation:
    values: dict[str, Any] = {"run": "a", "target": "House-7B", "method": "eagle3"} | fields
    return Observation(provenance=Provenance(source="own.csv"), **values)


def own_table(**fields) -> list[Observation]:
    """Loads 1, 8 and 64 at k = 0 … 4, without τ."""
    return [
        row(**{"method": "eagle3" if k else "none", "lookahead": k, "concurrency": n, "output_tok_s": speed} | fields)
        for n, speeds in SPEEDS.items()
        for k, speed in enumerate(speeds)
    ]


def test_an_unknown_target_on_an_unknown_machine_without_tau_still_gets_predictions_and_says_so():
    validation = validate(own_table())
    assert len(validation.ratios) == 6
    assert len(validation.choices) == 3
    assert validation.summary()["throughput_ratio_error"] < 0.15
    assert validation.summary()["best_k_regret_worst"] < 0.10
    notes = " | ".join(validation.assumed)
    assert "House-7B" in notes
    assert "no τ in the rows" in notes
    assert "own speed" in notes
    assert "prompts of" in notes


def test_a_known_target_with_tau_assumes_its_type_alone():
    assert judged("qwen3").assumed == ("weights as the checkpoint stores them",)


def test_an_unknown_name_with_a_known_machine_and_the_reverse():
    validation = validate(own_table(target="Qwen3-8B", machine="Abacus 3"))
    assert len(validation.ratios) == 6
    assert any("own speed" in note and "Abacus 3" in note for note in validation.assumed)
    with_machine = validate(own_table(target="Qwen3-8B"), machine="H100")
    assert not any("own speed" in note for note in with_machine.assumed)


def test_lacking_rows_are_counted_and_named():
    rows = own_table()
    rows += [row(lookahead=3, output_tok_s=5.0) for _ in range(2)]  # no load
    rows += [row(concurrency=8, output_tok_s=5.0) for _ in range(3)]  # no k
    rows += [row(concurrency=8, lookahead=3, topk=4, tree_nodes=8, output_tok_s=5.0)]  # a tree
    rows += [
        row(concurrency=512, lookahead=k, output_tok_s=5.0) for k in (3, 4)
    ]  # neither plain nor k ≤ 2 at that load
    rows += [row(lookahead=k, tokens_per_step=2.0, dataset="elsewhere") for k in (4, 5)]  # a curve without its start
    validation = validate(rows)
    counts = {
        what: n for what, n in validation.lacking.items() if "for throughput" in what or "throughput of trees" in what
    }
    assert counts["a concurrency or batch size (for throughput)"] == 2
    assert counts["k (for throughput)"] == 3
    assert counts["a row without speculation, or at a known k, at the same load (for throughput)"] == 2
    assert sum(n for what, n in counts.items() if "chain" in what) == 1
    assert validation.lacking["τ at k ≤ 2 (for τ at larger k)"] == 2


@pytest.mark.parametrize(
    "rows",
    [
        [row(lookahead=3, tokens_per_step=2.2)],
        [row(lookahead=3, concurrency=4, output_tok_s=9.0)],
        [row(loss=2.0)],
        [row(method="none", lookahead=0, concurrency=1, output_tok_s=9.0)],
        [row(speedup=2.0)],
    ],
    ids=["one τ", "one speed", "loss", "no draft", "speedup alone"],
)
def test_a_table_that_allows_no_prediction_is_one_line_that_says_what_is_missing(rows):
    with pytest.raises(ValueError, match=r"^no prediction can be judged: ") as error:
        validate(rows)
    assert "\n" not in str(error.value)
    assert "lack" in str(error.value) or "needs" in str(error.value)


def test_no_rows_is_an_error_too():
    with pytest.raises(ValueError, match="no prediction can be judged"):
        validate([])


def test_a_batch_ladder_with_only_the_chain_length():
    """Speedups by batch with neither τ nor throughput: τ from other drafts of its kind, and said so."""
    rows = [
        row(target="Llama-3.1-8B", batch_size=n, lookahead=3, speedup=s, machine="H100")
        for n, s in ((1, 1.9), (8, 1.8), (64, 1.4), (256, 1.0))
    ]
    validation = validate(rows)
    assert [p.load for p in validation.ladders] == [1, 8, 64, 256]
    predicted = [p.predicted for p in validation.ladders]
    assert predicted[1:] == sorted(predicted[1:], reverse=True)
    assert predicted[0] > predicted[2]
    assert any("τ of eagle3" in note for note in validation.assumed)
    stated = validate([msgspec.structs.replace(r, tokens_per_step=3.0) for r in rows])
    assert not any("τ of" in note for note in stated.assumed)


def test_a_ladder_without_a_machine_asks_for_one_and_takes_it():
    rows = [row(target="Llama-3.1-8B", batch_size=8, lookahead=3, tokens_per_step=2.5, speedup=1.8)]
    with pytest.raises(ValueError, match="machine"):
        validate(rows)
    validation = validate(rows, machine="H100")
    assert len(validation.ladders) == 1
    assert "machine H100" in validation.assumed


def test_a_nan_in_a_table_is_an_error_and_a_blank_is_not(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("model,method,k,tau\nT,eagle3,1,1.7\nT,eagle3,2,nan\nT,eagle3,3,2.5\n")
    with pytest.raises(ValueError, match=r"^t\.csv:3: column tau: 'nan'"):
        validate(read_table(path)[0])
    path.write_text("model,method,k,tau\nT,eagle3,1,1.7\nT,eagle3,2,\nT,eagle3,3,2.5\n")
    validation = validate(read_table(path)[0])
    assert [(p.lookahead, p.measured) for p in validation.curves] == [(3, 2.5)]


def test_a_written_table_gives_the_same_findings_as_the_shipped_rows(tmp_path):
    rows = ["model,method,draft,k,accept_length"]
    rows += [
        f"T{r.target},{r.method},{r.draft or ''},{r.lookahead},{r.tokens_per_step}" for r in published("inferencex")
    ]
    path = tmp_path / "al.csv"
    path.write_text("\n".join(rows) + "\n")
    validation = validate(read_table(path)[0])
    assert validation.summary()["curve_points"] >= 30
    assert validation.summary()["tokens_per_step_error"] < 0.08


# The report of it.


def test_findings_are_records_and_go_through_json():
    for validation in (judged("inferencex"), judged("qwen3")):
        assert msgspec.json.decode(msgspec.json.encode(validation), type=Validation) == validation
        summary = validation.summary()
        assert json.loads(msgspec.json.encode(summary)) == summary
        assert summary["curve_points"] == len(validation.curves)


def test_merge_adds_up():
    both = merge([judged("inferencex"), judged("qwen3"), Validation(lacking={"k": 1}), Validation(lacking={"k": 2})])
    assert both.summary()["curve_points"] == 42 + judged("qwen3").summary()["curve_points"]
    assert both.lacking["k"] == 3
    assert both.fixed_regret == judged("qwen3").fixed_regret


def test_regret_of_a_choice_is_what_was_lost_to_the_best():
    points = throughput._choices(
        [p for p in judged("qwen3").ratios if p.setting == judged("qwen3").ratios[0].setting and p.load == 1]
    )
    assert len(points) == 1
    assert points[0].regret >= 0
    assert all(0 <= choice.regret < 1 for choice in judged("qwen3").choices)
    assert any(choice.chosen == choice.best and choice.regret == 0 for choice in judged("qwen3").choices)


def test_specforge_alone_is_judged_from_its_own_speeds_and_says_so():
    """Chains of 5 and 7 from plain rows and k = 3, trees with their τ; no machine is stated, so no speed follows from names."""
    validation = judged("specforge")
    assert {point.lookahead for point in validation.ratios} == {5, 7}
    assert len(validation.trees) == 88
    summary = validation.summary()
    assert summary["best_k_regret_mean"] < 0.01
    assert summary["tree_ratio_error"] < 0.08
    assert summary["throughput_ratio_coverage"] > 0.85
    assert not validation.named
    assert any("own speed" in note for note in validation.assumed)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=MISSED)
def test_specforges_longer_chains_are_judged_within_5_percent():
    assert judged("specforge").summary()["throughput_ratio_error"] < 0.05


# The plain rule, and tables without plain rows.


def test_the_plain_rule_by_hand():
    """α = 0.8, 0.6: logits 1.386, 0.405; the third is 0.405 − 0.35 · 0.981 · 0.5 = 0.234, so 0.558; steps 10 and 13 ms go on to 19."""
    taus = plain_rule.carried_tau({1: 1.8, 2: 2.28})
    assert taus is not None
    assert taus[:3] == pytest.approx([1.8, 2.28, 2.28 + 0.48 * 0.5582], abs=1e-4)
    assert plain_rule.carried_tau({2: 2.28}) is None
    assert plain_rule.step_at({1: 0.010, 2: 0.013}, 4) == pytest.approx(0.019)
    assert plain_rule.step_at({2: 0.013}, 4) is None


def test_the_law_is_not_behind_the_plain_rule():
    """The rule's 2.9 % error, 0.6 % mean and 3.9 % worst regret on Qwen3-32B, as stated to a tenth with τ pooled over loads."""
    summary = judged("qwen3").summary()
    assert summary["plain_rule_throughput_ratio_error"] == pytest.approx(0.029, abs=0.001)
    assert summary["plain_rule_regret_mean"] == pytest.approx(0.006, abs=0.0005)
    assert summary["plain_rule_regret_worst"] == pytest.approx(0.039, abs=0.0005)
    assert summary["throughput_ratio_error"] <= 0.025
    assert summary["best_k_regret_mean"] <= summary["plain_rule_regret_mean"]
    assert summary["best_k_regret_worst"] <= summary["plain_rule_regret_worst"]
    assert summary["throughput_ratio_coverage"] >= 0.9


def test_without_plain_rows_lookaheads_are_judged_against_the_smallest():
    drafted = [row for row in published("qwen3") if row.method != "none" and row.output_tok_s]
    validation = validate(drafted)
    assert len(validation.ratios) == 108
    assert {point.baseline for point in validation.ratios} == {1}
    first = validation.ratios[0]
    speeds = {
        row.lookahead: row.output_tok_s or float("nan")
        for row in drafted
        if row.concurrency == first.load and row.draft == drafted[0].draft
    }
    assert first.measured == pytest.approx(speeds[first.lookahead] / speeds[1])
    assert validation.summary()["throughput_ratio_error"] < 0.03
    assert validation.summary()["best_k_regret_mean"] < 0.02


# From names alone.


def test_figures_from_names_alone():
    """A plain speed, an idle server's TTFT and a cache, of one row each; the mixture of experts apart."""
    base = {"method": "none", "machine": "H100", "dtype": "bfloat16", "input_len": 128.0, "output_len": 128.0}
    rows = [
        row(target="Qwen3-8B", concurrency=1, output_tok_s=140.0, ttft_s=0.012, **base),
        row(target="Qwen3-8B", concurrency=8, output_tok_s=1000.0, ttft_s=0.05, **base),
        row(target="Qwen3-30B-A3B", concurrency=1, output_tok_s=150.0, **base),
        row(target="Qwen3-8B", kv_cache_tokens=370_000, **base),
        row(target="House-7B", concurrency=1, output_tok_s=150.0, **base),
    ]
    validation = validate(rows)
    assert [(p.quantity, p.load, p.mixture) for p in validation.named] == [
        ("plain tokens/s", 1, False), ("TTFT in s", 1, False), ("plain tokens/s", 8, False), ("plain tokens/s", 1, True),
        ("KV cache tokens", 1, False),
    ]  # fmt: skip
    assert all(p.low < p.predicted < p.high for p in validation.named)
    assert validation.named[0].predicted == pytest.approx(140, rel=0.5)
    assert any("House-7B" in what for what in validation.lacking)
    summary = validation.summary()
    assert summary["plain_tokens_per_s_rows"] == 2
    assert summary["mixture_plain_tokens_per_s_rows"] == 1
    assert summary["plain_tokens_per_s_worst_error"] >= summary["plain_tokens_per_s_median_error"]


REPORTS = """id,target,machine,devices,engine,dtype,method,k,tree,concurrency,input_len,tokens_per_step,plain_tok_s,gain,ttft_ms,kv_cache_tokens
p1,Llama-3.1-8B,H100,1,vllm,bfloat16,EAGLE-3,4,chain,1,100,3.08,141.4,1.746,,
p3,Llama-2-7B,H100,1,sglang,float16,EAGLE-3,,tree 5/8/64,1,40,,156,1.90,,
p5,Qwen3-30B-A3B,H100,2,sglang,bfloat16,EAGLE-3,3,chain,4,,1.86,,0.791,,
p10,Qwen3-1.7B,A100,1,vllm,bfloat16,none,0,,1,128,,217,1,11.4,
p11,Qwen3-8B,H100,1,vllm,fp8,none,0,,,,,,,,429700
"""


def test_single_reports_hold_a_plain_speed_beside_a_gain(tmp_path):
    (tmp_path / "points.csv").write_text(REPORTS)
    rows, unknown = read_table(tmp_path / "points.csv")
    assert unknown == ["id"]
    assert [(row.method, row.output_tok_s, row.speedup) for row in rows] == [
        ("none", 141.4, None), ("eagle3", None, 1.746), ("none", 156.0, None), ("eagle3", None, 1.9), ("eagle3", None, 0.791),
        ("none", 217.0, 1.0), ("none", None, None),
    ]  # fmt: skip
    tree = rows[3]
    assert (tree.lookahead, tree.topk, tree.tree_nodes) == (5, 8, 63)
    assert rows[4].tensor_parallel == 2
    validation = validate(rows)
    assert [p.quantity for p in validation.named] == ["plain tokens/s"] * 3 + ["TTFT in s", "KV cache tokens"]
    assert [p.measured for p in validation.ladders] == [1.746, 1.9, 0.791]
    assert all((p.low or 0) < p.predicted < (p.high or 0) for p in validation.ladders)


def test_a_repeated_plain_speed_counts_once(tmp_path):
    header = "target,machine,method,k,concurrency,tau,base_tok_s,spec_tok_s\n"
    (tmp_path / "t.csv").write_text(
        header + "".join(f"Qwen3-8B,H100,eagle3,{k},1,{1 + k / 2},140,{140 + k}\n" for k in (1, 2, 3))
    )
    rows, _ = read_table(tmp_path / "t.csv")
    assert [row.output_tok_s for row in rows] == [140.0, 141.0, 142.0, 143.0]


def test_lookaheads_beyond_the_law_are_counted_not_predicted():
    base = {"target": "T", "provenance": Provenance(source="here"), "concurrency": 1, "output_tok_s": 100.0}
    rows = [Observation(run="0", method="none", **base)]
    rows += [Observation(run=str(k), method="ngram", lookahead=k, tokens_per_step=1.5, **base) for k in (1, 2, 4, 32)]
    validation = validate(rows)
    assert [p.lookahead for p in validation.ratios] == [4]
    assert validation.lacking["a lookahead within 16 (for throughput)"] == 1
