"""The plan: schedules that fall with load, intervals that hold their values, refusals in one line, own runs that move it."""

import itertools
import re
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft import records
from foredraft.engines import ENGINES
from foredraft.engines.vllm import batch_ranges
from foredraft.kinds import EAGLE3, LM
from foredraft.laws.speedup import node_depths
from foredraft.machines import device_time, machine
from foredraft.plan import evidence
from foredraft.plan.candidate import TRAINING_MFU, training_rate
from foredraft.plan.candidates import LM_TOKENS, Basis, candidates
from foredraft.plan.heads import HEAD_TOKENS
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.plan.terms import Terms
from foredraft.records import DraftChoice, Estimate, Machine, Observation, Plan, Provenance, ScheduleStep, Workload
from foredraft.shapes import shape

LLAMA, SMALL, H100 = shape("Llama-3.1-70B"), shape("Llama-3.1-8B"), machine("H100")
WORKLOAD = Workload(input_len=512, output_len=256, concurrency=(1, 4, 16, 64, 256))
FOUR = PlanSettings(devices=4)


@pytest.fixture(scope="module")
def small_plan() -> Plan:
    return plan(LLAMA, H100, WORKLOAD, FOUR)


def own_row(lookahead: int, tau: float, **fields) -> Observation:
    defaults: dict[str, Any] = {"method": "eagle3", "provenance": Provenance(source="own", versions={"engine": "1"})}
    name = f"r{lookahead}-{tau}-{fields}"
    return Observation(run=name, target="Llama-3.1-70B", lookahead=lookahead, tokens_per_step=tau, **defaults | fields)


HIGH = [own_row(1, 1.9), own_row(2, 2.7)]


def estimates(document) -> list[tuple[str, Estimate]]:
    """Every Estimate of a plan, with its name."""
    parts = [document, *document.schedule, *document.runners_up]
    return [
        (name, e) for part in parts for name in part.__struct_fields__ if isinstance(e := getattr(part, name), Estimate)
    ]


# A whole plan.


def test_lookahead_does_not_rise_with_concurrency(small_plan):
    lookaheads = [step.lookahead for step in small_plan.schedule]
    assert [step.concurrency for step in small_plan.schedule] == list(WORKLOAD.concurrency)
    assert lookaheads == sorted(lookaheads, reverse=True)
    assert lookaheads[0] > lookaheads[-1]


def test_every_interval_holds_its_value(small_plan):
    values = estimates(small_plan)
    assert len(values) >= 2 + 5 * len(small_plan.schedule)
    for name, estimate in values:
        assert estimate.low <= estimate.value <= estimate.high, name
        assert 0 < estimate.level < 1


def test_numbers_of_a_schedule_agree_with_each_other(small_plan):
    for step in small_plan.schedule:
        assert 1 <= step.tokens_per_step.value <= step.lookahead + 1
        assert step.running <= step.concurrency
        served = step.running / step.output_tok_s.value * (1 + 0.1)
        assert step.tpot_s.value < served
        assert step.topk == 1
        assert step.tree_nodes == step.lookahead
    speeds = [step.output_tok_s.value for step in small_plan.schedule]
    assert speeds == sorted(speeds)


def test_running_up_and_what_was_not_considered_are_named(small_plan):
    assert small_plan.draft is not None
    identities = [(r.draft.name, r.draft.num_layers) for r in small_plan.runners_up]
    assert (small_plan.draft.name, small_plan.draft.num_layers) not in identities
    assert len(set(identities)) == len(identities) > 0
    assert all(r.reason and "\n" not in r.reason for r in small_plan.runners_up)
    assert any("other amounts" in name for name in small_plan.not_considered)
    assert small_plan.next_runs
    for run in small_plan.next_runs:
        assert run.narrows <= 1
        assert run.gpu_hours > 0


def test_a_plan_is_a_document(small_plan, tmp_path):
    records.write(tmp_path / "Plan.json", small_plan)
    assert records.read(Plan, tmp_path / "Plan.json") == small_plan


def test_the_same_seed_gives_the_same_plan_and_another_does_not(small_plan):
    assert plan(LLAMA, H100, WORKLOAD, FOUR) == small_plan
    other = plan(LLAMA, H100, WORKLOAD, PlanSettings(devices=4, seed=1))
    assert other != small_plan
    assert other.speedup.value == pytest.approx(small_plan.speedup.value, rel=0.15)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "foredraft"])
@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_speculation_pays_at_concurrency_1(engine, objective):
    best_plan = plan(SMALL, H100, WORKLOAD, PlanSettings(engine=engine, objective=objective))
    assert best_plan.schedule[0].speedup.low > 1
    assert (best_plan.engine, best_plan.objective) == (engine, objective)
    for name, estimate in estimates(best_plan):
        assert estimate.low <= estimate.value <= estimate.high, name


def test_trees_are_planned_for_our_own_engine_alone():
    ours, vllm = (plan(SMALL, H100, WORKLOAD, PlanSettings(engine=engine)) for engine in ("foredraft", "vllm"))
    assert ours.schedule[0].tree_nodes > ours.schedule[0].lookahead
    assert ours.schedule[0].topk > 1
    assert all(step.tree_nodes == step.lookahead for step in vllm.schedule)
    assert ours.settings["vllm"]["num_speculative_tokens"] <= 8


def test_only_the_kinds_asked_for_are_weighed():
    for kinds in (("lm",), ("head", "lookup")):
        best_plan = plan(SMALL, H100, WORKLOAD, PlanSettings(kinds=kinds))
        drafts = [best_plan.draft, *(lost.draft for lost in best_plan.runners_up)]
        assert {draft.kind for draft in drafts if draft} == set(kinds)
    with pytest.raises(ValueError, match="kinds must be among head, lm, lookup, got tree"):
        PlanSettings(kinds=("tree",))


def test_a_draft_is_planned_where_none_pays_if_asked_for():
    """Of a target for which no head is public, which would cost nothing."""
    mine, unpaid = msgspec.structs.replace(SMALL, name="mine"), PlanSettings(kinds=("head",), horizon_tokens=1.0)
    assert plan(mine, H100, WORKLOAD, unpaid).draft is None
    best_plan = plan(mine, H100, WORKLOAD, msgspec.structs.replace(unpaid, always=True))
    assert best_plan.draft is not None
    assert all(step.lookahead >= 1 for step in best_plan.schedule)
    with pytest.raises(ValueError, match="no draft is left to plan"):
        plan(mine, H100, WORKLOAD, PlanSettings(kinds=("head",), max_training_gpu_hours=1e-9, always=True))


def test_one_lookahead_for_every_load_on_sglang():
    best_plan = plan(SMALL, H100, WORKLOAD, PlanSettings(engine="sglang"))
    assert len({step.lookahead for step in best_plan.schedule}) == 1


def test_break_even_is_training_over_what_a_token_saves(small_plan):
    assert small_plan.draft is not None
    paid = small_plan.break_even
    assert paid is not None
    assert paid.low <= paid.tokens <= (paid.high or np.inf)
    spent = small_plan.draft.training_gpu_hours * 3600
    plain = [step.output_tok_s.value / step.speedup.value for step in small_plan.schedule]
    busy = sum(p / step.output_tok_s.value for p, step in zip(plain, small_plan.schedule, strict=True))
    saved = 4 * (len(plain) - busy) / sum(plain)  # of a server that spends as long at each load
    assert paid.tokens == pytest.approx(spent / saved, rel=0.25)  # medians of draws against a ratio of medians


def test_training_that_is_not_allowed_is_not_planned():
    best_plan = plan(SMALL, H100, WORKLOAD, PlanSettings(max_training_gpu_hours=1e-3))
    assert best_plan.draft is None or best_plan.draft.training_gpu_hours <= 1e-3
    assert best_plan.break_even is None


def test_a_crowded_small_horizon_pays_no_training():
    """Negative control of the training's cost: what pays back over 1e11 tokens does not over a thousand."""
    short = plan(SMALL, H100, WORKLOAD, PlanSettings(horizon_tokens=1e3))
    assert short.draft is None or short.draft.training_gpu_hours == 0


# What leaves the range of the data is said.


COSTS = {"devices", "machine", "engine", "dtype", "target_params", "concurrency"}


@pytest.mark.parametrize(
    ("target", "where", "clients", "settings", "outside"),
    [
        (SMALL, "H100", 8, {}, set()),
        (shape("Qwen3-30B-A3B"), "H100", 8, {}, set()),
        (SMALL, "L40S", 8192, {}, {"machine", "concurrency"}),
        (SMALL, "H100", 8, {"engine": "foredraft"}, {"engine"}),
        (SMALL, "H100", 8, {"devices": 2, "data_parallel": 2}, {"devices"}),
        (shape("OPT-125M"), "H100", 8, {}, {"target_params"}),
        (SMALL, "H100", 8, {"dtype": "int4-g32"}, set()),
        (SMALL, "H100", 8, {"dtype": "float32"}, {"dtype"}),
    ],
)  # fmt: skip
def test_what_no_published_speed_stands_behind_is_named(target, where, clients, settings, outside):
    """What was measured: dense and sparse targets on an H100, on vLLM, in 4, 8 and 16 bits, on one to eight devices."""
    load = msgspec.structs.replace(WORKLOAD, concurrency=(1, clients))
    settings = PlanSettings(kinds=("head",), always=True, **settings)
    assert COSTS & set(plan(target, machine(where), load, settings).extrapolates) == outside


def test_an_input_that_none_shares_widens_the_interval():
    """Of plain decoding, which hangs on costs alone."""

    def width(where: Machine) -> float:
        speeds = Problem(SMALL, where, WORKLOAD, PlanSettings()).plain(1024).output_tok_s[0]
        return float(np.ptp(np.log(np.quantile(speeds, (0.05, 0.95)))))

    assert width(msgspec.structs.replace(H100, name="H100 of another maker")) > 1.1 * width(H100)


def test_drafts_beyond_the_laws_range_are_flagged():
    weighed, missing = candidates(Basis(SMALL, H100, (), 0.0))
    heads = [c for c in weighed if c.choice.method == "eagle3" and c.choice.training_flops]
    assert {c.choice.draft_tokens for c in heads} < set(HEAD_TOKENS)
    assert max(c.choice.draft_tokens or 0 for c in heads) <= 8e8
    assert "heads trained on other amounts" in missing
    models = [c for c in weighed if c.choice.name == "independent model"]
    assert {c.choice.draft_tokens for c in models} == set(LM_TOKENS)
    flagged = {"draft_tokens" in c.extrapolates for c in models if c.choice.draft_tokens == LM_TOKENS[0]}
    assert flagged == {True}
    assert all("draft_params" in c.extrapolates for c in models if c.choice.params < 2e7)


# One-line errors.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlanSettings(objective="speed"), ("objective", "throughput", "speed")),
        (lambda: PlanSettings(engine="llama.cpp"), ("engine", "vllm", "llama.cpp")),
        (lambda: PlanSettings(max_lookahead=17), ("max_lookahead", "16", "17")),
        (lambda: PlanSettings(max_lookahead=0), ("max_lookahead", "positive")),
        (lambda: PlanSettings(devices=0), ("devices", "positive")),
        (lambda: PlanSettings(horizon_tokens=float("nan")), ("horizon_tokens", "positive")),
        (lambda: PlanSettings(draws=0), ("draws", "positive")),
        (
            lambda: plan(SMALL, H100, Workload(input_len=131_000, output_len=100, concurrency=(1,))),
            ("131,108", "131,072", "Llama-3.1-8B", "--max-lookahead"),
        ),
        (lambda: plan(LLAMA, H100, WORKLOAD), ("Llama-3.1-70B", "768", "more devices")),
        (lambda: plan(SMALL, H100, WORKLOAD, PlanSettings(dtype="bfloat17")), ("dtype", "bfloat17")),
        (lambda: plan(SMALL, H100, WORKLOAD, draft=LLAMA), ("Llama-3.1-70B", "smaller")),
    ],
)  # fmt: skip
def test_impossible_requests_are_one_line_that_names_them(make, words):
    with pytest.raises(ValueError, match=r".+") as error:
        make()
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_16_is_still_allowed_and_the_whole_context_too():
    PlanSettings(max_lookahead=16)
    plan(SMALL, H100, Workload(input_len=131_072 - 108, output_len=100, concurrency=(1,)), PlanSettings(draws=8))


# Launch settings.


def step(running: float, lookahead: int, **fields) -> ScheduleStep:
    blank = Estimate(value=1.0, low=1.0, high=1.0, unit="", source="")
    names = ("tokens_per_step", "speedup", "output_tok_s", "tpot_s", "ttft_s")
    defaults: dict[str, Any] = {
        "concurrency": max(round(running), 1),
        "topk": 1,
        "tree_nodes": lookahead,
    } | dict.fromkeys(names, blank)
    return ScheduleStep(running=running, lookahead=lookahead, **defaults | fields)


VLLM, SGLANG = ENGINES["vllm"], ENGINES["sglang"]
HEAD = DraftChoice(kind="head", name="EAGLE-3 head", method="eagle3", params=1e9, non_embedding_params=1e9)


def planned(ranges: list[list[int]], batch: int) -> list[int]:
    return [k for start, end, k in ranges if start <= batch <= end]


def test_vllm_ranges_turn_speculation_off():
    schedule = [step(1, 5), step(8, 3), step(64, 1), step(128, 0), step(256, 0)]
    config = VLLM.settings(HEAD, schedule, 2)
    ranges = config["num_speculative_tokens_per_batch_size"]
    assert ranges == [[1, 4, 5], [5, 36, 3], [37, 96, 1], [97, 256, 0]]
    assert config["num_speculative_tokens"] == 5
    assert config["method"] == "eagle3"
    assert config["draft_tensor_parallel_size"] == 2


def covers(ranges: list[list[int]], schedule: list[ScheduleStep]) -> bool:
    """From 1 to the largest planned batch without gap or overlap, each planned batch with its own lookahead."""
    starts, ends = [start for start, _, _ in ranges], [end for _, end, _ in ranges]
    joined = starts == [1, *(end + 1 for end in ends[:-1])] and all(s <= e for s, e in zip(starts, ends, strict=True))
    covers_all = ends[-1] == max(round(s.running) for s in schedule)
    return joined and covers_all and all(planned(ranges, round(s.running)) == [s.lookahead] for s in schedule)


def test_vllm_ranges_cover_every_batch_once():
    """300 random schedules, seed 0."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        batches = np.sort(rng.choice(np.arange(1, 300), size=rng.integers(1, 9), replace=False))
        schedule = [
            step(float(batch), int(k)) for batch, k in zip(batches, rng.integers(0, 6, len(batches)), strict=True)
        ]
        assert covers(batch_ranges(schedule), schedule)


def test_a_gap_and_an_overlap_would_be_seen():
    """Negative controls of `covers`."""
    schedule = [step(1, 3), step(8, 1)]
    assert covers([[1, 4, 3], [5, 8, 1]], schedule)
    for broken in ([[1, 3, 3], [5, 8, 1]], [[2, 4, 3], [5, 8, 1]], [[1, 4, 3], [5, 7, 1]], [[1, 8, 3]]):
        assert not covers(broken, schedule)


def test_nothing_to_launch_without_a_draft_or_without_speculation():
    off = [step(1, 0), step(8, 0)]
    assert VLLM.settings(HEAD, off, 1) == {}
    assert SGLANG.settings(HEAD, off, 1) == {}
    assert VLLM.settings(None, [step(1, 3)], 1) == {}


def test_sglang_counts_the_root():
    flags = SGLANG.settings(HEAD, [step(4, 3), step(8, 3)], 1)
    assert flags["--speculative-num-steps"] == 3
    assert flags["--speculative-eagle-topk"] == 1
    assert flags["--speculative-num-draft-tokens"] == 4
    tree = SGLANG.settings(HEAD, [step(4, 5, topk=8, tree_nodes=31)], 1)
    assert tree["--speculative-num-draft-tokens"] == 32


@pytest.fixture(scope="module")
def model_plan() -> Plan:
    """An independent model, which every engine runs in chains."""
    return plan(LLAMA, H100, WORKLOAD, msgspec.structs.replace(FOUR, kinds=("lm",)))


def test_a_plans_launch_settings_are_its_schedule(model_plan):
    ranges = model_plan.settings["vllm"]["num_speculative_tokens_per_batch_size"]
    assert covers(ranges, list(model_plan.schedule))
    assert (
        model_plan.settings["sglang"]["--speculative-num-draft-tokens"]
        == model_plan.settings["sglang"]["--speculative-num-steps"] + 1
    )
    assert model_plan.settings["vllm"]["draft_tensor_parallel_size"] == 4
    limited = plan(LLAMA, H100, msgspec.structs.replace(WORKLOAD, concurrency=(1, 4096)), FOUR)
    assert (
        limited.settings["vllm"]["num_speculative_tokens_per_batch_size"][-1][1]
        == round(limited.schedule[-1].running)
        < 4096
    )


def test_each_engine_is_launched_with_what_was_searched_for_it(model_plan):
    """SGLang's one setting for all loads is not the first of the schedule that vLLM changes by batch."""
    steps, flags = model_plan.schedule[0].lookahead, model_plan.settings["sglang"]
    launched = SGLANG.launched(flags, LM, "draft")
    assert SGLANG.lookahead(launched) == flags["--speculative-num-steps"] < steps
    assert VLLM.lookahead(VLLM.launched(model_plan.settings["vllm"], LM, "draft")) == steps


# Own runs.


def test_own_runs_of_a_good_head_raise_tau_and_narrow_it(small_plan):
    better = plan(LLAMA, H100, WORKLOAD, FOUR, observations=HIGH)
    before, after = small_plan.schedule[0].tokens_per_step, better.schedule[0].tokens_per_step
    assert after.value > before.value + 0.5
    assert (after.high - after.low) / after.value < 0.7 * (before.high - before.low) / before.value
    assert better.speedup.value > small_plan.speedup.value
    refused = [own_row(1, 1.3), own_row(2, 1.4)]
    worse, usual = (plan(LLAMA, H100, WORKLOAD, FOUR, own_rows, EAGLE3.shape(LLAMA)) for own_rows in (refused, ()))
    assert worse.speedup.value < usual.speedup.value


def test_own_runs_on_another_target_say_nothing(small_plan):
    elsewhere = [msgspec.structs.replace(row, target="Qwen3-8B") for row in HIGH]
    again = plan(LLAMA, H100, WORKLOAD, FOUR, observations=elsewhere)
    assert [s.tokens_per_step for s in again.schedule] == [s.tokens_per_step for s in small_plan.schedule]


DEPTHS = [own_row(3, tau, draft_layers=n, dataset=d) for n, d, tau in (
    (1, "a", 2.30), (2, "a", 2.60), (4, "a", 2.90), (1, "b", 2.32), (2, "b", 2.62), (4, "b", 2.88),
)]  # fmt: skip


def heads(own_rows) -> dict[int, float]:
    """Mean τ at k = 3 of the heads weighed, by number of layers, at the tokens behind the published curves."""
    weighed, _ = candidates(Basis(LLAMA, H100, own_rows, 0.0))
    rng = np.random.default_rng(0)
    best = {c.choice.num_layers: c for c in weighed if c.choice.kind == "head" and c.choice.draft_tokens == 8e8}
    drawn = {n: c.acceptance.draws(256, rng, frozenset()) for n, c in best.items()}
    return {n: float(1 + np.cumprod(accept, axis=1)[:, :3].sum(axis=1).mean()) for n, accept in drawn.items()}


def test_deeper_heads_are_weighed():
    rows = [msgspec.structs.replace(row, dataset=None) for row in DEPTHS]
    deep = plan(LLAMA, H100, WORKLOAD, FOUR, observations=rows)
    weighed = [deep.draft, *(r.draft for r in deep.runners_up)]
    assert any(choice and choice.name.startswith("Scylla head") for choice in weighed)
    assert not any("Scylla" in name for name in deep.not_considered)
    assert set(heads(rows)) == set(heads(())) == {1, 2, 4}


def test_depth_is_counted_once():
    """Of heads of 1, 2 and 4 layers measured at τ = 2.3, 2.6 and 2.9, the deep ones' runs must not raise the shallow one's forecast,
    nor their gain be added to a level that holds it already.
    """
    deepest = heads([msgspec.structs.replace(row, dataset=None) for row in DEPTHS])
    assert deepest[1] == pytest.approx(2.31, abs=0.06)
    assert deepest[1] < deepest[2] < 2.61 + 0.06
    assert deepest[2] < deepest[4] < 2.90 + 0.06


# Size: the planner's own search against SDSL's theory.


@pytest.mark.parametrize(("target", "devices"), [("Llama-3.1-70B", 4), ("OPT-13B", 1), ("OPT-30B", 2), ("Qwen3-32B", 2), ("OPT-66B", 4)])  # fmt: skip
def test_tokens_per_flop_agrees_with_sdsl(target, devices):
    """N* of the search over built models, in tokens per FLOP, within a factor 3 of the closed theory's."""
    alone = Workload(input_len=512, output_len=256, concurrency=(1,))
    best_plan = plan(shape(target), H100, alone, PlanSettings(objective="tokens_per_flop", devices=devices))
    assert best_plan.theory_params is not None
    assert best_plan.continuous_params is not None
    assert 1 / 3 < best_plan.continuous_params.value / best_plan.theory_params < 3


def test_throughput_asks_for_another_size_than_tokens_per_flop(small_plan):
    """Negative control: the agreement is not by construction; the objective moves N*."""
    flops = plan(LLAMA, H100, WORKLOAD, PlanSettings(devices=4, objective="tokens_per_flop"))
    assert flops.continuous_params is not None
    assert small_plan.continuous_params is not None
    assert abs(np.log(flops.continuous_params.value / small_plan.continuous_params.value)) > 0.3


def test_a_named_draft_is_planned_alone():
    best_plan = plan(LLAMA, H100, WORKLOAD, FOUR, draft=shape("Llama-3.2-1B"))
    assert best_plan.draft is None or best_plan.draft.name.startswith("Llama-3.2-1B")
    assert best_plan.runners_up == ()
    assert {e.extrapolates for _, e in estimates(best_plan)} == {best_plan.schedule[0].speedup.extrapolates}


def test_weights_of_the_workload_move_the_headline(small_plan):
    lonely, crowded = (
        plan(LLAMA, H100, msgspec.structs.replace(WORKLOAD, weights=weights), FOUR).speedup.value
        for weights in ((1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0))
    )
    assert lonely > small_plan.speedup.value > crowded


def test_pairs_of_settings_do_not_crash():
    for engine, dtype, temperature in itertools.product(("vllm", "sglang"), ("bfloat16", "fp8"), (0.0, 1.0)):
        load = Workload(input_len=64, output_len=64, concurrency=(2,), temperature=temperature)
        best_plan = plan(SMALL, H100, load, PlanSettings(engine=engine, dtype=dtype, draws=8, max_lookahead=4))
        assert best_plan.schedule[0].lookahead <= 4


def test_a_draft_that_does_not_fit_is_named_and_an_asked_one_refused():
    """Qwen3-32B fills a 94 GB card: an 8 B draft leaves its cache no room."""
    target, card = shape("Qwen3-32B"), machine("H100 94GB")
    load = Workload(input_len=512, output_len=256, concurrency=(1,))
    best_plan = plan(target, card, load, PlanSettings(draws=16))
    assert any("KV cache holds" in why for why in best_plan.not_considered.values())
    with pytest.raises(ValueError, match=r"with Qwen3-8B .*KV cache holds"):
        plan(target, card, load, PlanSettings(draws=16), draft=shape("Qwen3-8B"))


def test_a_budget_for_training_leaves_dear_drafts_out_by_name():
    best_plan = plan(
        shape("Llama-3.1-8B"), machine("H100"), WORKLOAD, PlanSettings(draws=16, max_training_gpu_hours=50)
    )
    assert best_plan.draft is None or best_plan.draft.training_gpu_hours <= 50
    why = next(why for why in best_plan.not_considered.values() if "more than" in why)
    assert re.fullmatch(
        r"training on \S+ tokens costs [\d,]+ device-hours, more than 50 device-hours; raise --max-gpu-hours .*", why
    )


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (12345, "12,345 device-hours"), (1.5, "1.5 device-hours"), (0.5, "30 device-minutes"), (0.02, "1.2 device-minutes"),
        (2e-3, "7.2 device-seconds"), (1e-6, "0.0036 device-seconds"), (0, "0 device-seconds"),
    ],
)  # fmt: skip
def test_a_small_cost_keeps_its_digits(hours: float, expected: str):
    assert device_time(hours) == expected


def test_of_a_draft_at_several_budgets_the_first_beyond_the_limit_is_named():
    heads = [
        draft.choice
        for draft in candidates(Basis(SMALL, H100, (), WORKLOAD.temperature))[0]
        if draft.choice.method == "eagle3" and draft.choice.training_flops and draft.choice.num_layers == 1
    ]
    limit = heads[1].training_gpu_hours
    least = min(draft.draft_tokens or 0 for draft in heads if draft.training_gpu_hours > limit)
    assert least < max(draft.draft_tokens or 0 for draft in heads)
    best_plan = plan(
        SMALL,
        H100,
        WORKLOAD,
        PlanSettings(draws=16, max_training_gpu_hours=limit, kinds=("head",), terms=Terms(answers=False)),
    )
    (why,) = [why for name, why in best_plan.not_considered.items() if name.startswith("EAGLE-3 head of")]
    assert f"training on {least:.2g} tokens" in why


def test_why_a_draft_lost_is_what_separates_it():
    """Where no draft is worth running, and where its training alone stands in the way."""
    refused, crowded = [own_row(1, 1.01), own_row(2, 1.015)], msgspec.structs.replace(WORKLOAD, concurrency=(256,))
    off = plan(LLAMA, H100, crowded, PlanSettings(devices=4, draws=16), refused, EAGLE3.shape(LLAMA))
    assert off.draft is None
    assert [lost.reason.partition(":")[0] for lost in off.runners_up] == ["no lookahead that pays"]
    unknown = msgspec.structs.replace(shape("Llama-3.1-8B"), name="of our own")  # for which no head is public
    unpaid = plan(unknown, machine("H100"), WORKLOAD, PlanSettings(draws=16, kinds=("head",), horizon_tokens=1e5))
    assert unpaid.draft is None
    trained = [lost for lost in unpaid.runners_up if lost.draft.method == "eagle3"]
    assert trained
    for lost in trained:
        assert re.fullmatch(
            r"training that 1e\+05 served tokens do not pay back \(.+ device-\w+ against 0 device-seconds\)",
            lost.reason,
        )


def test_a_planned_tree_is_the_one_that_was_weighed() -> None:
    """As many nodes as planned, and no deeper; parents come first and siblings differ in rank."""
    tree_plan = plan(
        shape("Llama-3.1-8B"),
        H100,
        Workload(input_len=64, output_len=64, concurrency=(1,)),
        PlanSettings(engine="foredraft"),
    )
    (step,) = tree_plan.schedule
    assert step.topk > 1
    assert len(step.tree) == step.tree_nodes
    assert max(node_depths([parent for parent, _ in step.tree])) <= step.lookahead
    assert max(rank for _, rank in step.tree) < step.topk
    assert all(parent < w for w, (parent, _) in enumerate(step.tree))
    assert len(set(step.tree)) == len(step.tree)


def test_own_rows_belong_to_an_unpublished_target_by_its_name():
    mine = msgspec.structs.replace(shape("Llama-3.1-8B"), name="mine", hidden_size=2048)
    assert evidence.names("mine", mine)
    assert not evidence.names("another", mine)
    assert evidence.names("Meta-Llama-3.1-8B-Instruct", shape("Llama-3.1-8B")), "a public name of the same size"


def test_training_goes_by_the_faster_of_16_and_32_bits():
    """A processor without instructions for bfloat16 multiplies it a hundred times slower than float32."""
    rates = {"bfloat16": 1e9, "float32": 1e11}
    assert training_rate(msgspec.structs.replace(H100, flops_per_s=rates)) == pytest.approx(TRAINING_MFU * 1e11)
    assert training_rate(H100) == pytest.approx(TRAINING_MFU * H100.flops_per_s["bfloat16"])
