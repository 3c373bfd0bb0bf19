"""Figures are written, say what their numbers are, and leave out what the record lacks."""

import builtins
import math

import msgspec
import pytest

from foredraft.laws.fit import fit
from foredraft.laws.forms import ACCEPT_RATIO, LAW_1_1, LAW_1_3
from foredraft.records import (
    DraftChoice,
    Estimate,
    NextRun,
    Observation,
    Plan,
    Provenance,
    RunnerUp,
    ScheduleStep,
    Workload,
)
from foredraft.report import style
from foredraft.report.fit import draw_fit
from foredraft.report.plan import draw_plan
from foredraft.report.validation import draw_validation
from foredraft.validate.findings import CurvePoint, LookaheadChoice, RatioPoint, Validation

pytest.importorskip("matplotlib")
HEAD = DraftChoice(kind="head", name="EAGLE-3 head", params=4.2e8, non_embedding_params=2.9e8, draft_tokens=8e8)


def estimate(value: float, unit: str) -> Estimate:
    return Estimate(value=value, low=0.8 * value, high=1.2 * value, unit=unit, source="test")


def step(concurrency: int, lookahead: int, nodes: int | None = None) -> ScheduleStep:
    return ScheduleStep(
        concurrency=concurrency,
        running=concurrency,
        lookahead=lookahead,
        topk=1,
        tree_nodes=lookahead if nodes is None else nodes,
        tokens_per_step=estimate(1 + 0.6 * lookahead, "tokens/step"),
        speedup=estimate(1 + 0.2 * lookahead, "× no speculation"),
        output_tok_s=estimate(100.0 * concurrency, "tokens/s"),
        tpot_s=estimate(0.01, "s"),
        ttft_s=estimate(0.1, "s"),
    )


def a_plan(**kwargs):
    plan = Plan(
        objective="throughput",
        engine="vllm",
        target="Target-8B",
        machine="H100",
        devices=2,
        dtype="bfloat16",
        workload=Workload(input_len=100, output_len=100, concurrency=(1, 8, 64)),
        speedup=estimate(1.5, "× output tokens/s of no speculation"),
        schedule=(step(1, 4), step(8, 2), step(64, 0)),
        draft=HEAD,
        runners_up=(
            RunnerUp(
                draft=HEAD, speedup=estimate(1.3, "× output tokens/s"), reason="a longer step (14.2 ms against 13.9 ms)"
            ),
        ),
        next_runs=(NextRun(run="measure τ at k = 1", settles="acceptance", narrows=0.31, gpu_hours=2.25),),
    )
    return msgspec.structs.replace(plan, **kwargs)


def text(paths, stem):
    """The SVG of a figure, in which every line of text stands as a comment."""
    return next(path for path in paths if path.name == f"{stem}.svg").read_text(encoding="utf-8").replace("\u00a0", " ")


def stems(paths):
    assert all(path.stat().st_size > 5000 for path in paths)
    assert sorted(path.suffix for path in paths) == sorted([".png", ".svg"] * (len(paths) // 2))
    return {path.stem for path in paths}


def test_plan_figures_say_what_their_numbers_are(tmp_path):
    paths = draw_plan(a_plan(), tmp_path)
    assert stems(paths) == {"speedup", "tokens_per_step", "throughput_latency", "runners_up", "next_runs"}
    words = {
        "speedup": ("speedup, × output tokens/s of no speculation", "k: lookahead", "90 % interval"),
        "tokens_per_step": ("τ, tokens/step", "drafted per step"),
        "throughput_latency": ("TPOT, ms per output token", "output tokens/s", "from tokens/s ÷ speedup"),
        "runners_up": ("a longer step", "(14.2 ms against 13.9 ms)", "EAGLE-3 head, 420 M"),
        "next_runs": ("31 %, 2.25 device-hours", "share of the speedup interval"),
    }
    for stem, expected in words.items():
        assert [word for word in expected if word not in text(paths, stem)] == []


def test_plan_figures_leave_out_what_the_plan_lacks(tmp_path):
    bare = a_plan(draft=None, runners_up=(), next_runs=(), schedule=(step(1, 0),))
    assert stems(draw_plan(bare, tmp_path)) == {"speedup", "tokens_per_step", "throughput_latency"}
    assert draw_plan(a_plan(schedule=(), runners_up=(), next_runs=()), tmp_path) == []


def test_plan_of_another_objective_has_its_unit_and_no_derived_curve(tmp_path):
    paths = draw_plan(a_plan(objective="latency", speedup=estimate(1.4, "× TPOT of no speculation")), tmp_path)
    assert "speedup, × TPOT of no speculation" in text(paths, "speedup")
    assert "÷ speedup" not in text(paths, "throughput_latency")
    paths = draw_plan(a_plan(objective="tokens_per_flop", speedup=estimate(2, "× tokens per FLOP")), tmp_path)
    assert "speedup, × no speculation" in text(paths, "speedup")
    assert "× tokens per FLOP" in text(paths, "speedup")


def test_plan_with_trees(tmp_path):
    paths = draw_plan(a_plan(schedule=(step(1, 5, nodes=31), step(8, 2))), tmp_path)
    assert "w: tree nodes verified" in text(paths, "speedup")
    assert "tree nodes w" in text(paths, "tokens_per_step")


def curves(number):
    return tuple(
        CurvePoint(
            curve=f"Target · eagle3 · draft-{i}",
            lookahead=k,
            measured=1 + 0.5 * k,
            predicted=1 + 0.55 * k,
            low=0.4 * k,
            high=1 + 0.7 * k,
            constant_alpha=1 + 0.6 * k,
        )
        for i in range(number)
        for k in (3, 4, 6)
    )


def test_validation_draws_what_was_judged(tmp_path):
    ratios = tuple(
        RatioPoint(setting=f"T · {s}", load=n, lookahead=3, measured=2 / n, predicted=2.1 / n)
        for s in "ab"
        for n in (1, 8)
    )
    choices = tuple(LookaheadChoice(setting="T · a", load=n, chosen=3, best=4, regret=0.02) for n in (1, 8))
    validation = Validation(
        curves=curves(3), ratios=ratios, choices=choices, fixed_regret={0: (0.3, 0.5), 3: (0.05, 0.4)}
    )
    paths = draw_validation(validation, tmp_path)
    assert stems(paths) == {"validation_tokens_per_step", "validation_ratios", "validation_regret"}
    assert "draft-1" in text(paths, "validation_tokens_per_step")
    assert "lookahead k" in text(paths, "validation_tokens_per_step")
    assert "measured ratio, × no speculation" in text(paths, "validation_ratios")
    assert "throughput lost, %" in text(paths, "validation_regret")
    assert "best fixed k, 3: mean" in text(paths, "validation_regret")


def test_many_curves_share_one_scatter_and_the_rest_is_left_out(tmp_path):
    paths = draw_validation(Validation(curves=curves(13)), tmp_path)
    assert stems(paths) == {"validation_tokens_per_step"}
    assert "measured τ, tokens/step" in text(paths, "validation_tokens_per_step")
    alone = Validation(ladders=(RatioPoint(setting="T", load=1, lookahead=5, measured=2.0, predicted=1.9),))
    assert stems(draw_validation(alone, tmp_path)) == {"validation_ladders"}
    assert draw_validation(Validation(), tmp_path) == []


def row(i, **kwargs):
    return Observation(run=f"r{i}", target="T", method="eagle3", provenance=Provenance(source="test"), **kwargs)


def test_fit_figure_shows_its_own_pool_only(tmp_path):
    rows = [row(i, draft_tokens=1e8 * 2**i, tokens_per_step=4 + 0.3 * i + 0.02 * (-1) ** i) for i in range(5)]
    other_rows = [msgspec.structs.replace(row, method="eagle2") for row in rows]
    paths = draw_fit(fit(LAW_1_1, rows), rows + other_rows, tmp_path)
    assert stems(paths) == {"fit_law_1_1_target_T_method_eagle3"}
    texts = text(paths, "fit_law_1_1_target_T_method_eagle3")
    expected_texts = (
        "τ, tokens/step",
        "training tokens of the draft, D",
        "-- 5 observations --",
        "beyond the data",
        "100 M",
    )
    assert [word for word in expected_texts if word not in texts] == []


def test_fit_figure_of_several_inputs_and_of_one_that_may_be_zero(tmp_path):
    rows = [
        row(10 * i + j, draft_params=size, target_params=target, accept_prob=0.5 + 0.05 * i + 0.01 * j)
        for i, size in enumerate((1e7, 1e8, 1e9))
        for j, target in enumerate((8e9, 7e10))
    ]
    paths = draw_fit(fit(ACCEPT_RATIO, rows), rows, tmp_path)
    assert "law at M = 8 B" in text(paths, paths[0].stem)
    rows = [row(i, tree_nodes=w, tokens_per_step=1.1 + math.log1p(w) + 0.01 * i) for i, w in enumerate((0, 7, 15, 63))]
    paths = draw_fit(fit(LAW_1_3, rows), rows, tmp_path)
    assert "tree nodes verified" in text(paths, paths[0].stem)


def test_same_figure_is_the_same_file(tmp_path):
    first, second = (draw_plan(a_plan(), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_counts_and_common_parts_as_a_reader_writes_them():
    assert [style.count(n).replace("\u00a0", " ") for n in (60, 8e8, 1.235e9, 36e12)] == [
        "60",
        "800 M",
        "1.24 B",
        "36 T",
    ]
    assert style.shared_parts(["T · a · x", "T · b · x"]) == ("T · x", {"T · a · x": "a", "T · b · x": "b"})
    assert style.shared_parts(["T · a"]) == ("", {"T · a": "T · a"})


def test_without_matplotlib(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for draw in (
        lambda: draw_plan(a_plan(), tmp_path),
        lambda: draw_validation(Validation(curves=curves(1)), tmp_path),
    ):
        with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'foredraft\[plot\]'"):
            draw()
