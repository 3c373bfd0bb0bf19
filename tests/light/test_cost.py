"""The cost law: monotone, made of the stated parts, right on measured capacities, with the signs that MagicDec and queueing give."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from given import given

from foredraft import kinds, published
from foredraft.engines import ENGINES, named_in
from foredraft.laws import calibration
from foredraft.laws.calibration import MULTIPLIERS, CostRow, adjusted, calibrate, predict_rows
from foredraft.laws.cost import ServerCost, capacity_tokens, mean_running, serve
from foredraft.laws.passes import (
    CORRELATION,
    TILE,
    Efficiency,
    Layout,
    PassCost,
    cache_share,
    exchange,
    reached_rate,
)
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.machines import machine
from foredraft.plan.study import draft_shapes
from foredraft.records import Machine
from foredraft.shapes import Shape, shape

H100 = machine("H100 94GB")
TARGET, DRAFT, LARGE_DRAFT = shape("Qwen3-32B"), shape("Qwen3-1.7B"), shape("Qwen3-4B")
LENGTHS: dict[str, Any] = {"input_len": 200.0, "output_len": 300.0}


def server(draft=None, **changes) -> ServerCost:
    return serve(TARGET, H100, draft=draft, **LENGTHS | changes)


def passes(target: Shape = TARGET, where: Machine = H100, efficiency: Efficiency | None = None, **changes) -> PassCost:
    fields: dict[str, Any] = {"fixed_s": 0.0, "layer_s": 0.0, "context": 300.0} | changes
    return PassCost.of(target, where, efficiency or Efficiency(), **fields)


# The parts of one pass.


@pytest.mark.parametrize("draft", [None, DRAFT], ids=["plain", "draft"])
def test_a_step_takes_longer_with_more_sequences_context_nodes_and_depth(draft):
    depth = 3 if draft else 0
    base = server(draft)
    by_batch = base.step_s(np.arange(1, 300), depth)
    assert (np.diff(by_batch) > 0).all()
    by_context = [float(server(draft, input_len=length).step_s(8, depth)) for length in (50.0, 200.0, 800.0, 3200.0)]
    assert by_context == sorted(set(by_context))
    by_nodes = [float(base.step_s(64, depth, nodes=nodes)) for nodes in range(3, 60, 7)]
    assert by_nodes == sorted(set(by_nodes))
    if draft:
        assert (np.diff(base.step_s(8, np.arange(1, 9))) > 0).all()


def test_a_step_is_a_target_pass_draft_passes_and_the_cost_of_speculation():
    draft_server = server(DRAFT)
    assert draft_server.draft is not None
    verify, drafting = (
        draft_server.target.seconds(8, 4, draft_server.blend),
        draft_server.draft.seconds(8, 1, draft_server.blend),
    )
    assert float(draft_server.step_s(8, 3)) == pytest.approx(float(verify + 3 * drafting) + draft_server.speculation_s)
    assert float(draft_server.step_s(8, 0)) == pytest.approx(
        float(draft_server.target.seconds(8, 1, draft_server.blend))
    )


def test_each_level_of_a_tree_costs_more_than_that_of_a_chain():
    """Where a level is ranked on the host, as ours is: the same passes and tokens, and one ranking per level."""
    tree_server = dataclasses.replace(server(DRAFT), tree_level_s=2e-3)
    chain, tree = (float(tree_server.step_s(8, 3, width=width, nodes=3)) for width in (1, 2))
    wider = float(server(DRAFT).step_s(8, 3, width=2, nodes=3))
    assert tree == pytest.approx(wider + 3 * 2e-3)
    assert float(server(DRAFT).step_s(8, 3)) == chain < tree
    slower = adjusted(tree_server, dict.fromkeys(MULTIPLIERS, 1.0) | {"tree": 1.5})
    assert float(slower.step_s(8, 3, width=2, nodes=3)) == pytest.approx(wider + 3 * 3e-3)


def test_blend_runs_from_the_sum_to_the_maximum():
    added = passes()
    for sequences in (1.0, 100.0, 1000.0):
        memory = added.dense_s + added.sequence_s * sequences
        compute = added.token_s * sequences
        assert float(added.seconds(sequences, 1, 1.0)) == pytest.approx(memory + compute)
        assert float(added.seconds(sequences, 1, 500.0)) == pytest.approx(max(memory, compute), rel=2e-3)
        between = float(added.seconds(sequences, 1, 3.0))
        assert max(memory, compute) < between < memory + compute


def test_weights_are_read_once_however_many_tokens_pass():
    single_gpu = passes(efficiency=Efficiency(bandwidth=0.8))
    assert single_gpu.dense_s == pytest.approx(TARGET.weight_bytes() / (H100.bandwidth_bytes_per_s * 0.8), rel=0.05)
    assert single_gpu.experts_s is None
    caches = 64 * single_gpu.sequence_s
    batched = float(single_gpu.seconds(64, 1, 100.0)) - caches
    assert batched < 1.01 * float(single_gpu.seconds(1, 1, 100.0))
    assert batched < 0.02 * 64 * float(single_gpu.seconds(1, 1, 100.0))


# Mixtures of experts: what tokens touch, how their layers are split, what that costs.

MIXTURE = shape("Qwen3-30B-A3B")  # 48 layers of 128 experts, 8 a token


def read_s(cost: PassCost, sequences: float, tokens: float = 1.0) -> float:
    assert cost.experts_s
    return float(cost.experts_s(np.array(sequences), np.array(tokens)))


def test_a_mixture_reads_the_experts_that_its_tokens_touch():
    """One token 8 of 128; of n others 128·(1 − (15/16)^(n^popularity)); the tokens of one sequence fewer."""
    eff = Efficiency(expert_bandwidth=0.5)
    cost = passes(MIXTURE, efficiency=eff)
    expert_s = 48 * MIXTURE.expert_bytes() / (0.5 * H100.bandwidth_bytes_per_s)
    assert MIXTURE.expert_bytes() == 3 * 2048 * 768 * 2
    assert read_s(cost, 1) == pytest.approx(8 * expert_s)
    assert read_s(cost, 16) == pytest.approx(128 * (1 - (15 / 16) ** 16 ** Efficiency().popularity) * expert_s)
    assert read_s(cost, 4096) == pytest.approx(128 * expert_s)
    assert read_s(cost, 1, 4) == pytest.approx(read_s(cost, 4**CORRELATION))
    assert read_s(cost, 1, 4) < read_s(cost, 4)


def test_the_correlation_of_a_sequences_tokens_is_that_of_its_source():
    """Four consecutive tokens touch 2.5 times the experts of one, the second 62 % new ones, where experts are many."""
    assert pytest.approx(2.5, rel=0.02) == 4**CORRELATION
    assert pytest.approx(1.62, rel=0.02) == 2**CORRELATION


def test_experts_whole_on_all_devices_are_read_by_all_and_their_tokens_travel():
    """Four replicas of two: each device reads an eighth of what all tokens together touch; without, half of what its own touch."""
    where = machine("H100")
    split, whole = (passes(MIXTURE, where, layout=Layout(2, 4, expert)) for expert in (False, True))
    alone = passes(MIXTURE, where)
    assert read_s(split, 8) == pytest.approx(read_s(alone, 8) / 2)
    assert read_s(whole, 8) == pytest.approx(read_s(alone, 32) / 8)
    assert split.dense_s == whole.dense_s == pytest.approx(alone.dense_s / 2)
    assert exchange(MIXTURE, where, Layout(2, 4))[0] == 2 * 48
    assert exchange(MIXTURE, where, Layout(2, 4, expert=True))[0] == 3 * 48
    assert exchange(MIXTURE, where, Layout(1, 8, expert=True))[0] == 2 * 48
    travelled = exchange(MIXTURE, where, Layout(1, 8, expert=True))[1]
    assert travelled == pytest.approx(2 * 48 * 8 * (7 / 8) * 2048 * 2 / (where.link_bytes_per_s or 1.0))


def test_an_expert_with_few_tokens_is_multiplied_as_a_whole_tile():
    """16 sequences touch some 70 experts with 128 rows in all, and as many tiles are multiplied; 4096 fill every tile."""
    cost = passes(MIXTURE)
    assert cost.padding_s
    row_s = 2 * 48 * MIXTURE.expert_params / reached_rate(MIXTURE, H100, Efficiency(), None)
    touched = 128 * (1 - (15 / 16) ** 16 ** Efficiency().popularity)
    assert float(cost.padding_s(np.array(16.0), np.array(1.0))) == pytest.approx((TILE * touched - 128) * row_s)
    assert float(cost.padding_s(np.array(4096.0), np.array(1.0))) == 0.0


def test_a_layer_of_experts_has_a_floor_of_its_own_and_a_dense_one_has_not():
    slower = Efficiency(expert_layer_s=1e-3 + Efficiency().expert_layer_s)
    assert passes(MIXTURE, efficiency=slower).fixed_s == pytest.approx(passes(MIXTURE).fixed_s + 48e-3)
    assert passes(efficiency=slower).fixed_s == passes().fixed_s


# Several devices.


def test_tensor_parallel_divides_memory_and_compute_and_adds_the_link():
    single, two = passes(), passes(layout=Layout(2))
    assert two.dense_s == pytest.approx(single.dense_s / 2)
    assert two.sequence_s == pytest.approx(single.sequence_s / 2)
    assert two.token_s == pytest.approx(single.token_s / 2)
    assert single.link_token_s == 0.0
    assert single.fixed_s == 0.0
    assert two.link_token_s == pytest.approx(2 * 64 * 5120 * 2 / (H100.link_bytes_per_s or 1.0))
    latency = (H100.link_latency_s or 0.0) + Efficiency().exchange_s
    assert two.fixed_s == pytest.approx(2 * TARGET.num_layers * latency)
    assert float(single.seconds(16, 1, 3.0)) / 2 < float(two.seconds(16, 1, 3.0)) < float(single.seconds(16, 1, 3.0))
    assert passes(layout=Layout(8)).link_token_s > two.link_token_s


def test_a_devices_share_of_the_cache_is_no_less_than_a_head_and_a_latent_one_is_whole():
    """Qwen3-32B has 8 key-value heads; a latent cache has none to split."""
    latent = msgspec.structs.replace(TARGET, kv_replicated=True)
    assert [cache_share(TARGET, Layout(n)) for n in (1, 4, 8, 16)] == [1, 1 / 4, 1 / 8, 1 / 8]
    assert cache_share(latent, Layout(8)) == 1.0
    assert capacity_tokens(latent, H100, layout=Layout(4)) < 0.3 * capacity_tokens(TARGET, H100, layout=Layout(4))


def test_replicas_hold_the_weights_each_and_share_the_sequences():
    one, four = server(), server(layout=Layout(1, 4))
    assert four.capacity_tokens == pytest.approx(4 * one.capacity_tokens)
    assert float(four.step_s(64, 0)) == pytest.approx(float(one.step_s(16, 0)))
    assert float(four.step_s(2, 0)) == pytest.approx(float(one.step_s(1, 0)))
    assert float(four.load(64, 0, 1.0).output_tok_s) == pytest.approx(4 * float(one.load(16, 0, 1.0).output_tok_s))
    assert float(four.load(64, 0, 1.0).tpot_s) == pytest.approx(float(one.load(16, 0, 1.0).tpot_s))


@pytest.mark.parametrize(
    ("layout", "words"),
    [(Layout(3), ("--devices 3", "64 heads", "Qwen3-32B")), (Layout(1, 3, True), ("--devices 3", "128 experts"))],
)
def test_devices_divide_heads_and_experts(layout, words):
    message = refusal(lambda: serve(MIXTURE if layout.expert else TARGET, H100, layout=layout, **LENGTHS))
    assert all(word in message for word in words)


# Number formats.


def test_bytes_per_value_scale_memory_time_and_the_cache_keeps_its_own_type():
    sixteen, eight, four = passes(), passes(dtype="fp8"), passes(dtype="int4")
    halved = (TARGET.dense_read_bytes() - TARGET.head_params * 2) / 2 + TARGET.head_params * 2  # the LM head stays
    assert eight.dense_s / sixteen.dense_s == pytest.approx(halved / TARGET.dense_read_bytes(), rel=0.01)
    assert eight.dense_s > four.dense_s > sixteen.dense_s / 4
    assert eight.sequence_s == sixteen.sequence_s
    assert passes(kv_dtype="fp8").sequence_s == pytest.approx(sixteen.sequence_s / 2)


def test_weights_in_fewer_bits_than_the_multiplier_takes_are_unpacked_first():
    """FP8 has a rate on an H100 and none on an A100; 4-bit weights with 16-bit activations have none anywhere."""
    eff = Efficiency(compute=0.5, narrow=0.8, unpacking=0.4)
    hopper, ampere = machine("H100"), machine("A100")

    def rate(where: Machine, dtype: str) -> float:
        return reached_rate(TARGET, where, eff, dtype)

    assert rate(hopper, "bfloat16") == pytest.approx(0.5 * hopper.flops_per_s["bfloat16"])
    assert rate(hopper, "fp8") == pytest.approx(0.5 * 0.8 * hopper.flops_per_s["fp8"])
    blackwell = machine("B200")
    assert rate(blackwell, "nvfp4") == pytest.approx(0.5 * 0.8 * blackwell.flops_per_s["fp4"])
    assert rate(ampere, "fp8") == pytest.approx(0.5 * 0.4 * ampere.flops_per_s["bfloat16"])
    assert rate(hopper, "int4") == pytest.approx(0.5 * 0.4 * hopper.flops_per_s["bfloat16"])


# Prompts.


def test_a_prompt_alone_takes_no_less_than_one_pass_over_the_weights_and_beside_others_its_products():
    """Ten tokens cost a pass over 65 GB, the more so experts that they touch; a long prompt costs its products, twice for twice."""
    short = server(input_len=10.0)
    assert short.prefill.alone > TARGET.weight_bytes() * 0.95 / H100.bandwidth_bytes_per_s
    assert short.prefill.beside < 0.1 * short.prefill.alone
    long, longer = server(input_len=8_000.0), server(input_len=16_000.0)
    assert long.prefill.alone == pytest.approx(long.prefill.beside, rel=0.05)
    assert longer.prefill.beside > 2 * long.prefill.beside
    assert float(short.load(1, 0, 1.0).ttft_s) == pytest.approx(short.request_s + short.prefill.alone)


def test_few_requests_leave_the_last_wave_empty():
    """20 requests of 16 clients: 16 and then 4, ten on average; of 64 clients, all at once."""
    assert mean_running([1, 4, 16, 32, 64], 20).tolist() == [1, 4, 10, 20, 20]


# Memory: capacities that a server printed, and what taking them from the target does.


@pytest.mark.parametrize(("draft", "measured"), [(None, 69_232), (DRAFT, 32_528), (LARGE_DRAFT, 18_560)])
def test_capacity_of_qwen3_32b_on_h100_94gb_as_measured(draft, measured):
    assert capacity_tokens(TARGET, H100, draft=draft) == pytest.approx(measured, rel=0.03)


def test_capacity_needs_both_the_drafts_weights_and_its_cache():
    """Negative controls: with either left out, the measured capacity is missed."""
    eff = Efficiency()
    room = H100.memory_bytes * (eff.memory_use - eff.reserve - eff.speculation_reserve) - TARGET.weight_bytes()
    kv, draft_kv = TARGET.kv_bytes_per_token(), LARGE_DRAFT.kv_bytes_per_token()
    assert room / (kv + draft_kv) > 1.5 * 18_560
    assert (room - LARGE_DRAFT.weight_bytes()) / kv > 1.3 * 18_560
    assert capacity_tokens(TARGET, H100, draft=LARGE_DRAFT) == pytest.approx(
        (room - LARGE_DRAFT.weight_bytes()) / (kv + draft_kv)
    )


def test_a_draft_takes_room_and_a_crowd_waits_for_it():
    plain, small, large = server(), server(DRAFT), server(LARGE_DRAFT)
    assert plain.capacity_tokens > small.capacity_tokens > large.capacity_tokens
    tau = float(tokens_per_step_constant(0.7, 3))
    crowd = [model_server.load(256, 3, tau) for model_server in (small, large)]
    assert crowd[0].running > crowd[1].running
    assert crowd[0].output_tok_s > crowd[1].output_tok_s
    assert crowd[0].ttft_s < crowd[1].ttft_s
    unlimited = adjusted(large, dict.fromkeys(MULTIPLIERS, 1.0) | {"capacity": 1e3}).load(256, 3, tau)
    assert unlimited.output_tok_s > 1.2 * crowd[1].output_tok_s
    assert unlimited.ttft_s < 0.1 * crowd[1].ttft_s


def test_the_first_token_waits_for_a_step_for_other_prompts_and_where_the_cache_is_full():
    full_server = server(LARGE_DRAFT)
    fits = int(full_server.capacity_tokens / full_server.cached_tokens)
    within, beyond = (
        full_server.load(np.array([1, 2, fits]), 0, 1.0),
        full_server.load(np.array([fits + 1, 4 * fits]), 0, 1.0),
    )
    idle_s = full_server.request_s + full_server.prefill.alone
    alone, beside, crowded = within.ttft_s
    assert alone == pytest.approx(idle_s)
    assert beside == pytest.approx(idle_s + float(full_server.step_s(2, 0)), rel=0.05)
    assert beside < crowded < idle_s + float(full_server.step_s(fits, 0)) + fits * full_server.prefill.beside
    assert beyond.ttft_s[1] > 10 * idle_s
    assert beyond.running == pytest.approx(np.full(2, full_server.capacity_tokens / full_server.cached_tokens))
    assert beyond.output_tok_s[0] == pytest.approx(beyond.output_tok_s[1])


def test_published_first_tokens_are_met_within_a_quarter():
    """171 rows of vLLM on one H100 from 1 to 256 clients, from names alone and measured tokens per step. In sight when the form was chosen;
    a model of the prompt's pass alone, without company, misses them by a factor of 2.7.
    """
    away, alone = [], []
    rows = [row for row in published.observations() if row.ttft_s and row.input_len and row.concurrency]
    draft_of = draft_shapes(TARGET)
    for row in rows:
        measured_s = given(row.ttft_s)
        draft = None if row.method == "none" else draft_of(row)
        place = {"input_len": row.input_len, "output_len": row.output_len, "speculate": row.method != "none"}
        told = serve(TARGET, machine(row.machine or ""), draft=draft, **place)
        ttft_s = float(told.load(given(row.concurrency), row.lookahead or 0, row.tokens_per_step or 1.0).ttft_s)
        away.append(abs(np.log(ttft_s / measured_s)))
        alone.append(abs(np.log((told.request_s + told.prefill.alone) / measured_s)))
    assert len(rows) > 150
    assert np.mean(away) < 0.25
    assert np.mean(alone) > 1


def test_more_clients_bring_more_tokens_and_slower_ones_until_the_cache_is_full():
    full_server = server()
    load = full_server.load(np.arange(1, 100), 0, 1.0)
    assert (np.diff(load.output_tok_s) > 0).all()
    assert (np.diff(load.tpot_s) > 0).all()


# MagicDec (arXiv 2408.11049): at long context speculation pays at large batch too, and the more so the larger.


# Passes captured in graphs on kernels of one's own, as the paper times them: next to no fixed costs.
LEAN = Efficiency(
    bandwidth=0.8, cache_bandwidth=0.8, compute=0.7, target_fixed_s=3e-4, target_layer_s=5e-6, exchange_s=0.0
)


def decode_speedup(draft, context: float, batch: int, devices: int = 8) -> float:
    """The best of k = 1 … 4 at α = 0.8, decoding alone, as the paper times it."""
    target, where = shape("Llama-3.1-8B"), machine("H100")
    fields: dict[str, Any] = {"input_len": context, "output_len": 64.0, "layout": Layout(devices), "efficiency": LEAN}
    plain, speculative = serve(target, where, **fields), serve(target, where, draft=draft, **fields)
    tau = {k: float(tokens_per_step_constant(0.8, k)) for k in range(1, 5)}
    return max(float(plain.step_s(batch, 0) / speculative.step_s(batch, k) * tau[k]) for k in tau)


@pytest.mark.parametrize("batch", [128, 256])
@pytest.mark.parametrize("devices", [4, 8])
def test_magicdec_long_context_keeps_speculation_worth_it_at_large_batch(batch, devices):
    head = kinds.EAGLE3.shape(shape("Llama-3.1-8B"))
    short, long, longest = (decode_speedup(head, context, batch, devices) for context in (256, 8_000, 32_000))
    assert 1.0 < long < longest
    assert short < long / 1.5
    assert short < 1.05


def test_magicdec_batch_hurts_at_short_context_and_helps_at_long():
    head = kinds.EAGLE3.shape(shape("Llama-3.1-8B"))
    short, long = ([decode_speedup(head, context, batch) for batch in (32, 128, 256)] for context in (256, 32_000))
    assert short == sorted(short, reverse=True)
    assert long == sorted(long)
    assert short[-1] < 1 < long[0]


def test_magicdec_a_draft_with_a_cache_of_its_own_gains_less():
    """Negative control: a 1B model, whose cache is a quarter of the target's, gains far less at long context than a head does."""
    head, model = kinds.EAGLE3.shape(shape("Llama-3.1-8B")), shape("Llama-3.2-1B")
    assert decode_speedup(model, 32_000, 256) < 0.7 * decode_speedup(head, 32_000, 256)


def test_speedup_without_speculation_is_one():
    plain = server()
    drafting_nothing = server(speculate=False)
    for n in (1, 32, 256):
        assert drafting_nothing.load(n, 0, 1.0).output_tok_s == plain.load(n, 0, 1.0).output_tok_s
        assert server(DRAFT).step_s(n, 0) == plain.step_s(n, 0)
    ngram = plain.load(8, np.array([0, 3]), np.array([1.0, 1.0]))
    assert ngram.output_tok_s[1] < ngram.output_tok_s[0]


# Calibration.

PLANTED = {
    "memory": 1.15, "experts": 1.0, "compute": 0.8, "target_fixed": 1.4, "draft_weight": 1.1, "draft_fixed": 0.7, "speculation": 1.5, "tree": 1.2,
    "capacity": 0.95, "prefill": 1.3, "blend": 0.8,
}  # fmt: skip


def rows(
    plain: ServerCost, speculative: ServerCost, multipliers: dict[str, float], depths, noise: float, seed: int = 7
) -> list[CostRow]:
    loads = (1, 4, 16, 64, 128, 256)
    settings = [(n, k, float(tokens_per_step_constant(0.7, k)) if k else 1.0) for n in loads for k in depths]
    speeds = predict_rows(plain, speculative, np.array(settings), multipliers)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(speeds)))
    return [CostRow(n, k, tau, speed) for (n, k, tau), speed in zip(settings, (speeds * scatter).tolist(), strict=True)]


def test_calibration_on_k_up_to_2_predicts_larger_k():
    """Planted multipliers, 0.5 % noise, seed 7; over 200 seeds the mean miss at k = 3 … 6 never reached 3 % and the
    largest of 24 reached 6 % once: false alarms about 0.5 %. Uncalibrated servers miss by far more.
    """
    plain, speculative = server(), server(DRAFT)
    assert set(PLANTED) == set(MULTIPLIERS)
    multipliers = calibrate(plain, speculative, rows(plain, speculative, PLANTED, (0, 1, 2), 0.005), noise=0.01)
    truth = np.array(rows(plain, speculative, PLANTED, (3, 4, 5, 6), 0.0))
    errors = np.abs(predict_rows(plain, speculative, truth, multipliers.multipliers) / truth[:, 3] - 1)
    assert errors.mean() < 0.03
    assert errors.max() < 0.06
    untouched = np.abs(predict_rows(plain, speculative, truth, dict.fromkeys(MULTIPLIERS, 1.0)) / truth[:, 3] - 1)
    assert untouched.mean() > 0.05
    assert multipliers.multipliers["memory"] == pytest.approx(1.15, rel=0.05)


def test_calibration_leaves_alone_what_already_fits():
    plain, speculative = server(), server(DRAFT)
    multipliers = calibrate(
        plain, speculative, rows(plain, speculative, dict.fromkeys(MULTIPLIERS, 1.0), (0, 1, 2), 0.0)
    )
    assert list(multipliers.multipliers.values()) == pytest.approx([1.0] * len(MULTIPLIERS), abs=1e-4)
    assert multipliers.misfit == pytest.approx(0.0, abs=1e-6)
    assert multipliers.covariance.shape == (len(MULTIPLIERS), len(MULTIPLIERS))


def test_one_wild_row_does_not_carry_the_rest():
    plain, speculative = server(), server(DRAFT)
    measured = rows(plain, speculative, PLANTED, (0, 1, 2), 0.01)
    measured[5] = measured[5]._replace(output_tok_s=measured[5].output_tok_s * 3)
    multipliers = calibrate(plain, speculative, measured, noise=0.01)
    truth = np.array(rows(plain, speculative, PLANTED, (3, 4, 5, 6), 0.0))
    errors = np.abs(predict_rows(plain, speculative, truth, multipliers.multipliers) / truth[:, 3] - 1)
    assert errors.mean() < 0.03


def test_one_set_of_multipliers_for_several_servers_and_trees():
    """Two drafts and trees: what was planted comes back; each row is held to its own server, which swapped ones are not."""
    drafts = [server(DRAFT), server(LARGE_DRAFT)]
    plain = server()
    served, rows = [], []
    for model_server, tau in zip([plain, *drafts], (1.0, 2.2, 2.6), strict=True):
        for n in (1, 8, 64, 256):
            ways = (
                [CostRow(n, 0, 1.0, 1.0)]
                if model_server is plain
                else [CostRow(n, 1, tau - 0.6, 1.0), CostRow(n, 3, tau, 1.0, 4.0, 12.0)]
            )
            served += [model_server] * len(ways)
            rows += ways
    speeds = calibration.predict_served(served, rows, PLANTED)
    rows = [row._replace(output_tok_s=float(speed)) for row, speed in zip(rows, speeds, strict=True)]
    assert speeds[5] == adjusted(drafts[0], PLANTED).load(1, 3, 2.2, width=4, nodes=12).output_tok_s
    multipliers = calibration.calibrate_served(served, rows, noise=0.005)
    assert calibration.predict_served(served, rows, multipliers.multipliers) == pytest.approx(speeds, rel=0.02)
    assert multipliers.multipliers["memory"] == pytest.approx(PLANTED["memory"], rel=0.05)
    other = {id(drafts[0]): drafts[1], id(drafts[1]): drafts[0], id(plain): plain}
    swapped = [other[id(model_server)] for model_server in served]
    assert calibration.calibrate_served(swapped, rows, noise=0.005).misfit > 3 * multipliers.misfit


def swung(seed: int, swing: float) -> tuple[list[ServerCost], list[CostRow], list[float]]:
    """A run for each load, plain and k = 1, 2, on a machine whose speed differs from run to run; the runs' loads."""
    plain, speculative = server(), server(DRAFT)
    timed_rows = rows(plain, speculative, PLANTED, (0, 1, 2), 0.005, seed)
    moods = np.exp(swing * np.random.default_rng(seed).standard_normal(10))
    runs = [row.concurrency for row in timed_rows]
    timed_rows = [
        row._replace(output_tok_s=row.output_tok_s * moods[round(np.log2(row.concurrency))]) for row in timed_rows
    ]
    return [speculative if row.depth else plain for row in timed_rows], timed_rows, runs


def test_a_machine_that_swings_from_run_to_run_spoils_ratios_less_when_runs_are_told():
    plain, speculative = server(), server(DRAFT)
    truth = [(n, k, float(tokens_per_step_constant(0.7, k)) if k else 1.0) for n in (1, 16, 256) for k in (0, 4)]
    right = predict_rows(plain, speculative, np.array(truth), PLANTED).reshape(-1, 2)
    missed = {False: [], True: []}
    for seed in range(20):
        served, timed_rows, runs = swung(seed, 0.2)
        for runs_named, errors in missed.items():
            multipliers = calibration.calibrate_served(
                served, timed_rows, noise=0.03, runs=runs if runs_named else None
            ).multipliers
            predictions = predict_rows(plain, speculative, np.array(truth), multipliers).reshape(-1, 2)
            errors.append(np.abs(predictions[:, 1] / predictions[:, 0] / (right[:, 1] / right[:, 0]) - 1).mean())
    assert np.mean(missed[True]) < 0.75 * np.mean(missed[False])


def test_the_level_of_all_runs_together_counts_in_full():
    served, timed_rows, runs = swung(0, 0.2)
    timed_rows = [row._replace(output_tok_s=0.6 * row.output_tok_s) for row in timed_rows]
    multipliers = calibration.calibrate_served(served, timed_rows, noise=0.03, runs=runs).multipliers
    off = np.log(calibration.predict_served(served, timed_rows, multipliers) / [row.output_tok_s for row in timed_rows])
    assert off.mean() == pytest.approx(0.0, abs=0.01)
    assert max(abs(off[np.array(runs) == run].mean()) for run in set(runs)) > 0.1, "each run may lie off"


# What is refused.


def refusal(call) -> str:
    with pytest.raises(ValueError, match=r".+") as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_calibration_without_rows_is_refused():
    assert "at least one" in refusal(lambda: calibrate(server(), server(DRAFT), []))


def test_a_draft_no_smaller_than_its_target_is_refused():
    message = refusal(lambda: serve(DRAFT, H100, draft=TARGET, **LENGTHS))
    assert "Qwen3-32B" in message
    assert "32.8 B" in message
    assert "smaller" in message
    assert "smaller" in refusal(lambda: serve(DRAFT, H100, draft=DRAFT, **LENGTHS))


def test_what_does_not_fit_is_refused_with_the_numbers():
    message = refusal(lambda: serve(shape("Llama-3.1-70B"), machine("H100"), **LENGTHS))
    assert "holds 0 tokens" in message
    assert "needs 500" in message
    assert "more devices" in message
    long = refusal(lambda: server(LARGE_DRAFT, input_len=20_000.0))
    assert "18,8" in long
    assert "20,300" in long
    assert "Qwen3-4B" in long
    serve(shape("Llama-3.1-70B"), machine("H100"), layout=Layout(4), **LENGTHS)


def test_a_dtype_that_the_package_does_not_know_is_refused():
    message = refusal(lambda: serve(DRAFT, machine("A100"), dtype="bfloat17", **LENGTHS))
    assert "bfloat17" in message
    assert "bfloat16" in message


def test_an_unknown_engine_is_taken_for_vllm_and_sglang_is_not():
    assert named_in("vLLM 0.11, B300") is named_in(None) is ENGINES["vllm"]
    assert named_in("vllm").efficiency() == Efficiency()
    assert named_in("SGLang").efficiency().draft_fixed_s < Efficiency().draft_fixed_s


# Drafts of blocks.


def blocks(kind: kinds.Kind, target: str = "Qwen3-4B", where: str = "H100", **loads: Any) -> ServerCost:
    draft = kind.shape(shape(target))
    lengths: dict[str, Any] = {"input_len": 1024, "output_len": 256} | loads
    return serve(shape(target), machine(where), **lengths, draft=draft)


def test_a_block_takes_one_pass_of_the_draft_whatever_its_length():
    server, many = blocks(kinds.DFLASH), dataclasses.replace(blocks(kinds.DFLASH), block=None)
    plain = server.target.seconds(1, np.array([1.0, 2.0, 16.0]), server.blend)
    drafting = server.step_s(1, np.array([0, 1, 15])) - plain - np.array([0.0, 1, 1]) * server.speculation_s
    assert drafting[0] == 0
    assert drafting[2] < 1.5 * drafting[1]
    assert many.step_s(1, 15) > 3 * server.step_s(1, 15)  # as if it drafted one token after another


def test_context_enters_keys_and_values_once():
    """More verified tokens cost the draft their own keys and values, not a pass of its layers."""
    server = blocks(kinds.DFLASH)
    context = given(server.block).context
    draft = kinds.DFLASH.shape(shape("Qwen3-4B"))
    assert context.token_s == pytest.approx(
        2 * draft.context_weights / (machine("H100").flops_per_s["bfloat16"] * Efficiency().compute)
    )
    assert context.token_s < 0.25 * given(server.draft).token_s
    heavier = given(blocks(kinds.P_EAGLE).block).context  # its layers read embeddings, so they run over the context too
    assert heavier.token_s > context.token_s
    assert (
        blocks(kinds.DFLASH).prefill.alone
        < serve(
            shape("Qwen3-4B"),
            machine("H100"),
            input_len=1024,
            output_len=256,
            draft=kinds.EAGLE3.shape(shape("Qwen3-4B"), 5),
        ).prefill.alone
    )


# Milliseconds of a round of 128 sequences by drafted tokens, DeepSpec's DSpark_paper.pdf, figure 4: DSpark's Markov head over DFlash. The
# machine and the context are not stated; an H100 is assumed, on which `chain_s` was set by this very figure.
CHAIN_MS = {3: 0.41, 7: 1.06, 11: 1.79, 15: 2.52}


def test_a_chain_costs_what_is_published_of_it():
    depths = np.array(list(CHAIN_MS), dtype=float)
    more_ms = 1e3 * (blocks(kinds.DSPARK).step_s(128, depths) - blocks(kinds.DFLASH).step_s(128, depths))
    published_ms = np.array(list(CHAIN_MS.values()))
    assert np.polyfit(depths, more_ms, 1)[0] == pytest.approx(np.polyfit(depths, published_ms, 1)[0], rel=0.1)
    assert np.abs(more_ms - published_ms).max() < 0.2


# Milliseconds of drafting five tokens by requests in the step, DeepSeek-V4-Flash on four B300, vLLM's blog of 2026-08-14, figure 2: three of
# the target's own layers and a Markov head. Nothing of it was fitted.
V4_DRAFT_MS = {1: 0.917, 8: 1.317, 32: 1.877, 56: 2.274, 128: 3.306, 248: 5.38}


def test_the_drafting_of_deepseek_v4_is_near_what_was_measured_at_small_batches():
    """Beyond 64 requests drafting is dearer than is modelled, by up to half at 248: a tenth of that step."""
    target = shape("DeepSeek-V4-Flash")
    layer = kinds.MTP.shape(target)
    parts = msgspec.structs.replace(given(kinds.DSPARK.parts), hidden_states=0, norms=0, qk_norm=False, block=5)
    three = tuple(msgspec.structs.replace(block, count=3 * block.count) for block in layer.blocks)
    head = msgspec.structs.replace(layer, blocks=three, num_layers=3 * layer.num_layers, head=parts)
    server = serve(target, machine("B300"), input_len=8192, output_len=256, draft=head, layout=Layout(4))
    requests, five = np.array(list(V4_DRAFT_MS), dtype=float), np.full(len(V4_DRAFT_MS), 5.0)
    undrafted_s = server.target.seconds(requests, 6.0, server.blend) + server.speculation_s
    ratio = (server.step_s(requests, five) - undrafted_s) * 1e3 / np.array(list(V4_DRAFT_MS.values()))
    assert np.all(np.abs(np.log(ratio[:4])) < np.log(1.5))
    assert np.all(ratio[4:] > 0.4)


def test_mtp_layers_cost_passes_of_the_targets_own_layer():
    target = shape("DeepSeek-V3")
    server = serve(
        target, machine("H200"), input_len=1024, output_len=256, draft=kinds.MTP.shape(target), layout=Layout(8)
    )
    draft = given(server.draft)
    pass_s = draft.seconds(8, 1, server.blend)
    assert draft.experts_s is not None
    assert server.step_s(8, 3) - server.target.seconds(8, 4, server.blend) == pytest.approx(
        3 * pass_s + server.speculation_s
    )


def test_calibration_moves_all_parts_of_a_block():
    server = blocks(kinds.DSPARK)
    ones = dict.fromkeys(MULTIPLIERS, 1.0)
    assert adjusted(server, ones).step_s(8, 7) == pytest.approx(server.step_s(8, 7))
    block, dearer = given(server.block), given(adjusted(server, ones | {"draft_weight": 2.0}).block)
    assert given(dearer.chain).dense_s == pytest.approx(2 * given(block.chain).dense_s)
    assert dearer.context.token_s == pytest.approx(2 * block.context.token_s)
