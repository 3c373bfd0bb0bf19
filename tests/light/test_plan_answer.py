"""What a plan says first, what it costs and saves, whether it serves as asked, and what stands behind it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft.kinds import EAGLE3, of_choice
from foredraft.laws.cost import serve
from foredraft.machines import machine
from foredraft.page.html import answer_html
from foredraft.plan.candidate import Steps, training_dtype, training_rate
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.cost_sheet import answer_tokens
from foredraft.plan.outcome import Pairs, outcome
from foredraft.plan.plan import plan
from foredraft.plan.problem import Mode, PlanSettings, Problem
from foredraft.plan.search import rank
from foredraft.plan.service_levels import excess, first_token, shortfall
from foredraft.plan.terms import Terms
from foredraft.records import Action, DraftChoice, Machine, Plan, ScheduleStep, Workload, without_draft
from foredraft.report.plan_tables import headline, next_commands
from foredraft.report.sections import planned as planned_section
from foredraft.shapes import shape
from foredraft.train.from_plan import from_plan

PUBLIC, H100 = shape("Llama-3.1-8B"), machine("H100")
SMALL = msgspec.structs.replace(PUBLIC, name="mine-8B")  # for which no head is public
LOAD = Workload(input_len=512, output_len=256, concurrency=(1, 8, 64))
HEADS = PlanSettings(kinds=("head",), draws=32)


def planned(workload: Workload = LOAD, **fields) -> Plan:
    """A head for the small target, with settings and terms of those names."""
    terms = {name: fields.pop(name) for name in Terms.__struct_fields__ if name in fields}
    return plan(SMALL, H100, workload, msgspec.structs.replace(HEADS, **fields, terms=Terms(**terms)))


@pytest.fixture(scope="module")
def head_plan() -> Plan:
    return planned(device_hour=2.0)


# What to do.


def test_the_first_line_is_what_to_do(head_plan):
    model = planned(kinds=("lm",))
    for chosen in (head_plan, model):
        assert chosen.action is not None
        assert chosen.action.verb == "train"
        first = headline(chosen).splitlines()[0]
        assert first.startswith("train: ")
        assert "device-" in first
    assert next_commands(model, None).startswith("next (after this with --out PLAN): foredraft train PLAN/Plan.json")
    assert next_commands(model, Path("p")).startswith("next: foredraft train p/Plan.json")


@pytest.mark.parametrize(
    ("fields", "why"), [({"family": "gpt_neox"}, "models of family 'gpt_neox'"), ({"weight_format": "fp8-block"}, "weights in fp8-block")]
)  # fmt: skip
def test_a_target_that_our_decoder_does_not_run_is_told_what_is_possible(head_plan, fields, why):
    other = msgspec.structs.replace(SMALL, **fields)
    chosen = plan(other, H100, LOAD, HEADS)
    (told,) = (line for line in chosen.assumptions if "our decoder does not run" in line)
    assert why in told
    assert "measure --endpoint" in told
    assert chosen.action is not None
    assert "--target TARGET --teacher transformers --data" in chosen.action.commands[0]
    assert "--teacher" not in head_plan.action.commands[0]
    assert not any("our decoder" in line for line in head_plan.assumptions)
    model = plan(other, H100, LOAD, msgspec.structs.replace(HEADS, kinds=("lm",)))
    assert model.action is not None
    assert (model.action.verb, model.action.commands) == ("train", ())


def test_a_public_head_is_downloaded():
    chosen = plan(PUBLIC, H100, LOAD, msgspec.structs.replace(HEADS, horizon_tokens=1.0))
    assert chosen.action is not None
    assert chosen.draft is not None
    assert chosen.action.verb == "download"
    fetch, serve_it = chosen.action.commands
    assert fetch == f"hf download {chosen.draft.hub_id}"
    assert f'"model":"{chosen.draft.hub_id}"' in serve_it
    assert headline(chosen).startswith(f"download: {chosen.draft.hub_id}")


def test_nothing_is_said_where_nothing_pays():
    unpaid = planned(horizon_tokens=1.0)
    assert unpaid.draft is None
    assert unpaid.action is not None
    assert headline(unpaid).startswith("nothing: no draft pays at these loads")


def test_prompt_lookup_is_switched_on():
    chosen = planned(kinds=("lookup",), always=True)
    assert chosen.action is not None
    assert chosen.action.verb == "use"
    (command,) = chosen.action.commands
    assert command.startswith("vllm serve TARGET ")
    assert '"method":"ngram"' in command


def test_an_action_is_one_of_four():
    with pytest.raises(ValueError, match="verb must be download, train, use or nothing, got 'wait'"):
        Action(verb="wait", why="")


# Kinds.


def test_a_kind_has_one_row():
    best_plan = plan(SMALL, H100, LOAD, PlanSettings(draws=32))
    kinds = [(lost.label, lost.draft.training_flops > 0) for lost in best_plan.runners_up]
    assert len(set(kinds)) == len(kinds) >= 3
    gains = [lost.speedup.value for lost in best_plan.runners_up]
    assert all(gain > 0 for gain in gains)


def test_a_budget_at_the_end_of_the_search_is_said(head_plan):
    assert head_plan.draft is not None
    wide = planned(kinds=("lm",), always=True, horizon_tokens=1e20)
    assert wide.draft is not None
    ends = {wide.edges.get("draft_tokens"), head_plan.edges.get("draft_tokens")}
    assert "most" in ends, "tokens cost nothing over such a horizon"


# Costs.


def test_hours_add_up_and_are_paid_in_money(head_plan):
    costs, draft = head_plan.costs, head_plan.draft
    assert costs is not None
    assert draft is not None
    assert costs.hours == pytest.approx(draft.training_gpu_hours)
    assert min(costs.draft_hours, costs.passes_hours, costs.answers_hours) > 0
    assert costs.spent == pytest.approx(2 * costs.hours)
    rate = training_rate(H100)
    assert costs.passes_hours == pytest.approx((draft.draft_tokens or 0) * SMALL.flops_per_token(0) / rate / 3600)


def test_answers_cost_the_targets_own_decoding(head_plan):
    """As many tokens as the workload's share of an epoch, at a full server's speed."""
    costs, draft = head_plan.costs, head_plan.draft
    assert costs is not None
    assert draft is not None
    training = of_choice(draft).training
    assert training is not None
    tokens = (draft.draft_tokens or 0) / training.epochs * 256 / 768
    assert costs.answer_tokens == pytest.approx(tokens)
    speed = serve(SMALL, H100, input_len=512, output_len=256, speculate=False).load(256, 0, 1).output_tok_s
    assert costs.answers_hours == pytest.approx(tokens / float(speed) / 3600, rel=0.01)
    without = planned(answers=False)
    assert without.costs is not None
    assert (without.costs.answers_hours, without.costs.answer_tokens) == (pytest.approx(0, abs=1e-9), None)


def test_answers_are_written_once_for_all_epochs():
    """DFlash's published heads read the same answers three times, EAGLE-3's once."""
    problem: Any = SimpleNamespace(workload=Workload(input_len=512, output_len=256, concurrency=(1,)))
    choice = DraftChoice(
        name="head", kind="head", params=1e8, non_embedding_params=1e8, num_layers=1, draft_tokens=6e8, training_flops=1e18, method="eagle3",
    )  # fmt: skip
    once = answer_tokens(problem, choice)
    assert once == pytest.approx(2e8)
    assert answer_tokens(problem, msgspec.structs.replace(choice, method="dflash", num_layers=5)) == pytest.approx(
        once / 3
    )


def test_training_lies_on_a_machine_of_its_own():
    """An A100's hours for the H100's: more of them; and a target that does not fit there is refused by the option's name."""
    elsewhere = planned(train_machine=machine("A100"), train_devices=8, max_training_gpu_hours=1e9)
    here = planned(max_training_gpu_hours=1e9)
    assert elsewhere.costs is not None
    assert here.costs is not None
    assert (elsewhere.costs.machine, elsewhere.costs.devices) == ("A100-SXM-80GB", 8)
    if elsewhere.draft == here.draft:
        assert elsewhere.costs.hours > here.costs.hours
    with pytest.raises(ValueError, match=r"^--train-machine 1xL40S"):
        plan(
            shape("Llama-3.1-70B"),
            H100,
            LOAD,
            PlanSettings(devices=4, draws=8, terms=Terms(train_machine=machine("L40S"))),
        )


def test_money_per_token_follows_throughput():
    """At one load a million tokens cost what the device costs while it writes them, with the draft less by its gain."""
    alone = planned(Workload(input_len=512, output_len=256, concurrency=(8,)), device_hour=3.0)
    assert alone.costs is not None
    with_draft, without = alone.costs.per_million, alone.costs.per_million_plain
    assert with_draft is not None
    assert without is not None
    (step,) = alone.schedule
    assert with_draft.value == pytest.approx(3e6 / 3600 / step.output_tok_s.value, rel=0.02)
    assert without.value / with_draft.value == pytest.approx(step.speedup.value, rel=0.1)


def test_payback_counts_tokens_where_they_are_served():
    """Time at 64 clients serves most tokens: a server that is crowded for a tenth of its time pays back as one crowded always, nearly;
    the mean of the two loads would not say so.
    """
    shares = {name: Workload(input_len=512, output_len=256, concurrency=(1, 64), weights=weights) for name, weights in
              {"lonely": (0.999, 0.001), "mixed": (0.8, 0.2), "crowded": (0.001, 0.999)}.items()}  # fmt: skip
    fixed = {
        name: planned(load, max_training_gpu_hours=1e9, always=True, device_hour=1.0).costs
        for name, load in shares.items()
    }
    money = {name: costs.per_million_plain.value for name, costs in fixed.items() if costs and costs.per_million_plain}
    assert money["crowded"] < money["mixed"] < money["lonely"]
    nearness = (np.log(money["mixed"]) - np.log(money["crowded"])) / (
        np.log(money["lonely"]) - np.log(money["crowded"])
    )
    assert nearness < 0.5


# Levels of service.


def test_excess_is_nothing_where_levels_are_met():
    ttft, tpot = np.array([[0.4], [0.4], [1.0]]), np.array([[0.01], [0.04], [0.04]])
    assert excess(Terms(ttft_s=0.5, tpot_s=0.02), ttft, tpot) == pytest.approx(np.log([1, 2, 4]))
    assert not excess(Terms(), ttft, tpot).any()


def test_a_rate_is_missed_by_the_fastest_load_that_meets_the_levels():
    terms = Terms(rate=10.0)
    assert shortfall(terms, 100.0, [500.0, 2000.0], [0, 0]) == 0
    assert shortfall(terms, 100.0, [500.0, 2000.0], [0, 1]) == pytest.approx(np.log(2))
    assert shortfall(Terms(), 100.0, [1.0], [0]) == 0


def test_levels_that_are_met_say_up_to_where():
    free = planned()
    tpots = [step.tpot_s.value for step in free.schedule]
    limit = float(np.sqrt(tpots[1] * tpots[2]))
    levels = planned(tpot_s=limit).service_levels
    assert levels is not None
    assert levels.is_met
    assert levels.clients is not None
    assert 8 < levels.clients < 64
    assert levels.plain_clients is None or levels.plain_clients < levels.clients
    assert "meets TPOT ≤" in headline(planned(tpot_s=limit))


def test_a_level_out_of_reach_says_the_nearest():
    best_plan = planned(tpot_s=1e-6, ttft_s=10.0)
    levels = best_plan.service_levels
    assert levels is not None
    assert not levels.is_met
    assert levels.clients is None
    assert set(levels.nearest) == {"tpot_s"}
    near = levels.nearest["tpot_s"]
    step = next(step for step in best_plan.schedule if step.concurrency == near.clients)
    assert near.value == pytest.approx(step.tpot_s.value)
    assert "does not meet" in headline(best_plan)


def test_a_rate_beyond_the_server_is_told():
    most = max(step.output_tok_s.value for step in planned().schedule) / 256
    reached, missed = planned(rate=0.5 * most).service_levels, planned(rate=3 * most).service_levels
    assert reached is not None
    assert missed is not None
    assert reached.is_met
    assert reached.rate_clients is not None
    assert 1 <= reached.rate_clients <= 64
    assert missed.nearest["rate"].value == pytest.approx(most, rel=0.15)


def test_no_levels_are_none():
    assert planned().service_levels is None


def test_a_mode_that_meets_the_level_is_taken_before_a_faster_one():
    """Long chains serve more at one client; where TTFT has no room the plan still meets it, with what does."""
    free = planned(Workload(input_len=512, output_len=256, concurrency=(256,)))
    (step,) = free.schedule
    strict = planned(Workload(input_len=512, output_len=256, concurrency=(256,)), tpot_s=0.999 * step.tpot_s.value)
    (other,) = strict.schedule
    assert other.tpot_s.value <= step.tpot_s.value


def test_a_first_token_that_may_queue_or_not_is_not_told():
    problem = Problem(SMALL, H100, LOAD, HEADS)
    (plain,) = rank(problem, [])[0]
    told, untold = (first_token(np.geomspace(0.1, most, 500), plain) for most in (0.3, 30.0))
    assert told is not None
    assert told.low < told.value < told.high
    assert untold is None


# Trust.


def test_what_stands_behind_a_plan_is_said(head_plan):
    assert head_plan.trust is not None
    at_hand = plan(PUBLIC, H100, LOAD, HEADS, draft=EAGLE3.shape(PUBLIC))
    known, action = at_hand.trust, at_hand.action
    assert known is not None
    assert action is not None
    assert action.verb == "use"
    assert " public rows of " in known.acceptance
    assert " drafts of Llama-3.1-8B" in known.acceptance
    assert "vLLM on H100-SXM-80GB" in head_plan.trust.costs
    assert head_plan.trust.beyond == ()
    far = plan(shape("OPT-125M"), machine("L40S"), LOAD, PlanSettings(draws=8, kinds=("head",), always=True))
    assert far.trust is not None
    assert far.trust.acceptance.startswith("none of ")
    assert "drafts of OPT-125M" in far.trust.acceptance
    assert "no public speed on L40S" in far.trust.beyond


# Training.


def test_a_processor_without_bfloat16_trains_in_float32():
    """In the plan, in its draft, and in the recipe that training makes of it."""
    slow = Machine(
        name="CPU", memory_bytes=64e9, bandwidth_bytes_per_s=5e10, flops_per_s={"bfloat16": 1e10, "float32": 1e12}, source="test"
    )  # fmt: skip
    assert (training_dtype(slow), training_dtype(H100)) == ("float32", "bfloat16")
    unlimited = {"answers": False, "max_training_gpu_hours": 1e12, "always": True, "kinds": ("lm",)}
    best_plan = planned(train_machine=slow, **unlimited)
    assert best_plan.draft is not None
    assert best_plan.draft.training_dtype == "float32"
    assert from_plan(best_plan).precision == "float32"
    assert from_plan(planned(**unlimited)).precision == "bfloat16"


# Where a server without a draft is faster.


def losing_at(head_plan: Plan, *loads: tuple[int, int, float]) -> Plan:
    """A plan by (clients, k, gain)."""
    step = head_plan.schedule[0]
    gain = step.speedup

    def at(clients: int, k: int, value: float) -> ScheduleStep:
        spread = msgspec.structs.replace(gain, value=value, low=value * 0.9, high=value * 1.1)
        return msgspec.structs.replace(
            step, concurrency=clients, running=float(clients), lookahead=k, tree_nodes=k, speedup=spread
        )

    return msgspec.structs.replace(head_plan, schedule=tuple(at(*load) for load in loads))


@pytest.mark.parametrize(
    ("loads", "told"),
    [
        (((1, 4, 2.0), (64, 2, 1.5)), None),
        (((1, 4, 2.0), (64, 2, 1.25), (256, 1, 0.8)), "above about 128 clients a server without a draft is faster: 1.25 [1.14, 1.39] × at 256"),
        (((1, 4, 2.0), (64, 2, 1.5), (128, 0, 0.95)), "above about 96 clients a server without a draft is faster: 1.05 [0.96, 1.17] × at 128"),
        (((1, 4, 2.0), (64, 0, 0.999)), "above about 32 clients a server without a draft is as fast"),
        (((1, 1, 0.9), (8, 4, 1.5)), "at 1 clients a server without a draft is faster: 1.11"),
        (((1, 1, 0.9), (8, 1, 0.8)), "at 1, 8 clients a server without a draft is faster: 1.25"),
    ],
)  # fmt: skip
def test_where_no_draft_is_faster_is_said_alike_everywhere(head_plan, loads, told):
    chosen = losing_at(head_plan, *loads)
    sentence = without_draft(chosen)
    assert sentence.startswith(told) if told else not sentence
    assert ("(k = 0)" in sentence) == (loads[-1][1] == 0)
    for text in (headline(chosen), planned_section.lede(chosen), answer_html(chosen, None, draws=32, full=False)):
        assert (sentence.split(" a server")[0].lower() in text.lower()) if told else "without a draft is" not in text


@pytest.mark.parametrize(("engine", "pays"), [("vllm", True), ("foredraft", False)])
def test_a_schedules_0_pays_for_the_draft_where_its_pass_is_made_all_the_same(engine, pays):
    problem = Problem(PUBLIC, H100, LOAD, msgspec.structs.replace(HEADS, engine=engine))
    everybody, _ = candidates(Basis(PUBLIC, H100, (), 0.0, None, engine, (512, 256)))
    candidate = next(each for each in everybody if each.choice.kind == "head")
    off = outcome(problem, candidate, Pairs.all(3, (Mode(0, 1, 0),)), Steps(np.ones((1, 32))))
    server = problem.server(candidate.shape)
    assert np.allclose(off.speedup.mean(axis=-1), server.idle_speed([1, 8, 64]) if pays else 1.0, rtol=0.01)
    assert not pays or off.speedup.max() < 0.99
