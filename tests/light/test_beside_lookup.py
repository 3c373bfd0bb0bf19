"""A look-up before a draft, as a plan weighs it: the mixture's arithmetic, own rows of it, and which engine is offered it."""

from functools import cache

import msgspec
import numpy as np
import pytest

from foredraft import kinds
from foredraft.laws.draws import Lattice
from foredraft.machines import machine
from foredraft.plan.beside_lookup import PLANNED, LookupShare, OwnShare, lookup_matches, own_share
from foredraft.plan.candidate import LookedUp, Steps
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.records import Observation, Plan, Provenance, Workload
from foredraft.shapes import shape

TARGET, H100 = shape("Llama-3.1-8B"), machine("H100")
NOTHING: frozenset[str] = frozenset()
NUM = 256
BY_DEFAULT = {"lookup_min_match": PLANNED.min_match, "lookup_lookahead": PLANNED.lookahead}


class Alone:
    """Prompt lookup that accepts each next token with one probability, none in doubt."""

    def __init__(self, accept: float) -> None:
        self.accept = accept

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> np.ndarray:
        return np.full((num, 16), self.accept)


def drawn(share: LookupShare, tau: float, frozen: frozenset[str] = NOTHING) -> LookedUp:
    return share.draws(np.full((1, NUM), tau), Lattice(0), frozen)


def mixed(share: LookupShare, tau: float, frozen: frozenset[str] = NOTHING) -> np.ndarray:
    """Tokens per step [S] behind the look-up of a draft of `tau`."""
    of_steps, accepted, _ = drawn(share, tau, frozen)
    return ((1 - of_steps) * tau + of_steps * (1 + accepted))[0]


def test_without_matches_the_draft_is_as_it_is_alone() -> None:
    assert np.allclose(mixed(LookupShare(Alone(0.0)), 2.5), 2.5)


def test_beside_plain_decoding_matches_are_those_of_prompt_lookup() -> None:
    """At the centre of what is uncertain, by hand: prompt lookup accepts 0.5 of any next token."""
    matches = lookup_matches()
    assert (matches.min_match, matches.lookahead) == PLANNED
    at_centre = drawn(LookupShare(Alone(0.5)), 1.0, frozenset({"draft"}))
    accepted = matches.accepted_of_alone * (0.5 + 0.25 + 0.125 + 0.0625) / 0.5
    constant, each = matches.drafted
    assert np.allclose(at_centre.share, matches.share_of_first * 0.5)
    assert np.allclose(at_centre.accepted, accepted)
    assert np.allclose(at_centre.drafted, constant + each * accepted)
    scattered = drawn(LookupShare(Alone(0.5)), 1.0)
    for part, centre in zip(scattered, at_centre, strict=True):
        assert np.ptp(part) > 0.01
        assert np.median(part) == pytest.approx(centre[0, 0], rel=0.05)


def test_a_better_draft_is_looked_up_beside_in_more_of_its_steps() -> None:
    worse, better = (drawn(LookupShare(Alone(0.5)), tau, frozenset({"draft"})) for tau in (1.5, 3.0))
    odds = [float(each.share[0, 0] / (1 - each.share[0, 0])) for each in (worse, better)]
    assert odds[1] / odds[0] == pytest.approx(2 ** lookup_matches().share_by_tau)
    assert np.all(better.accepted > worse.accepted)


def test_never_more_is_looked_up_than_there_is() -> None:
    share, accepted, drafted = drawn(LookupShare(Alone(0.999)), 4.0)
    assert share.max() < 1
    assert np.all(accepted <= drafted)
    assert drafted.max() <= PLANNED.lookahead


def test_own_rows_of_the_mixture_say_how_much_is_looked_up() -> None:
    """4,000 steps, a quarter looked up, 2 of 4 tokens accepted there: τ of a draft of 1.8 is 0.25 · 3 + 0.75 · 1.8."""
    own = LookupShare(Alone(0.2), OwnShare(4000, 1000, 4000, 2000, 1.8))
    assert np.mean(mixed(own, 1.8)) == pytest.approx(2.1, abs=0.01)
    assert np.allclose(drawn(own, 1.8).drafted, 4.0)
    few = LookupShare(Alone(0.2), OwnShare(40, 10, 40, 20, 1.8))
    assert np.std(mixed(few, 1.8)) > 3 * np.std(mixed(own, 1.8)), "few steps say less"


def test_steps_spend_what_the_look_up_leaves() -> None:
    """Half the steps looked up, eight tokens each, beside a chain of 3: alone the draft makes half its passes, beside a second sequence
    three quarters of them.
    """
    half, eight = np.full((1, 1), 0.5), np.full((1, 1), 8.0)
    steps = Steps(np.full((1, 1), 2.0), LookedUp(half, eight, eight))
    three = np.array([[3.0]])
    for running, passes in ((1, 1.5), (2, 2.25)):
        depth, nodes = steps.spent(three, three, np.array(running))
        assert (depth.item(), nodes.item()) == (passes, 5.5)
    assert Steps(steps.tau).spent(three, three, np.array(1)) == (three, three)


def row(method: str, k: int, tau: float, **more: object) -> Observation:
    fields = {"draft": method, "draft_layers": 1} if method != "ngram" else {}
    return Observation(
        **{
            "run": method, "target": TARGET.name, "method": method, "provenance": Provenance(source="test"), "lookahead": k,
            "tokens_per_step": tau, "temperature": 0.0, "dataset": "d", **fields, **more,
        }
    )  # fmt: skip


@cache
def planned(engine: str, accepted: int | None) -> Plan:
    """Of own rows: a head of 1.8 tokens per step, look-up alone of 1.3, and the head behind a look-up in which `accepted` tokens are
    accepted in 400 of 1,000 steps (None: no such rows).
    """
    rows = [row("eagle3", k, tau) for k, tau in ((1, 1.5), (2, 1.7), (4, 1.85))] + [row("ngram", 4, 1.3)]
    counted = {
        "steps": 1000, "lookup_steps": 400, "lookup_drafted": 1600, "lookup_accepted": accepted, **BY_DEFAULT,
    }  # fmt: skip
    rows += [row("eagle3+ngram", 4, 2.4, **counted)] if accepted is not None else []
    workload = Workload(input_len=200, output_len=200, concurrency=(1,))
    options = PlanSettings(engine=engine, trees=False, draws=64, kinds=("head", "lookup"))
    return plan(TARGET, H100, workload, options, rows)


def labels(one_plan: Plan) -> list[str]:
    return [lost.label or "" for lost in one_plan.runners_up]


def test_a_look_up_that_pays_is_planned_and_measured_by_its_words() -> None:
    paying = planned("foredraft", 1400)
    assert paying.draft is not None
    assert paying.action is not None
    assert paying.draft.lookup_min_match == PLANNED.min_match
    assert paying.draft.name.endswith(kinds.BEHIND)
    assert any(f"{kinds.BESIDE}:{PLANNED.min_match}@" in command for command in paying.action.commands), (
        paying.action.commands
    )
    (step,) = paying.schedule
    assert step.tokens_per_step.low < step.tokens_per_step.value < step.tokens_per_step.high
    assert paying.settings == {}, "no other engine is given settings of what it does not run"
    assert kinds.of_choice(paying.draft) is kinds.EAGLE3


def test_a_look_up_that_brings_nothing_loses_to_the_draft_alone() -> None:
    idle = planned("foredraft", 300)
    assert idle.draft is not None
    assert idle.draft.lookup_min_match is None
    assert "EAGLE-3 + n-gram" in labels(idle)


def test_an_engine_without_it_is_not_offered_it() -> None:
    for engine in ("vllm", "sglang", "tensorrt-llm"):
        other = planned(engine, 1400)
        assert other.draft is None or other.draft.lookup_min_match is None
        assert not any("+" in label for label in labels(other))


def test_rows_behind_a_look_up_are_not_taken_for_the_draft_alone() -> None:
    """The head's own τ is that of its rows, however much a look-up brought."""
    for engine in ("vllm",):
        with_rows, without = planned(engine, 1400), planned(engine, None)
        assert with_rows.draft == without.draft
        assert [s.tokens_per_step for s in with_rows.schedule] == [s.tokens_per_step for s in without.schedule]


def test_a_plan_keeps_the_look_up_when_it_is_written() -> None:
    paying = planned("foredraft", 1400)
    assert msgspec.json.decode(msgspec.json.encode(paying), type=Plan).draft == paying.draft


def test_tokens_accepted_beyond_an_answers_end_do_not_count() -> None:
    """Rows that emitted half of what they accepted say half of it."""
    counted = {
        "steps": 100, "accepted": 100, "lookup_steps": 40, "lookup_drafted": 160, "lookup_accepted": 80, **BY_DEFAULT,
    }  # fmt: skip
    rows = [row("eagle3+ngram", 4, 1.5, **counted)]
    basis = Basis(TARGET, H100, rows, 0.0)
    head = next(each for each in candidates(basis)[0] if each.choice.method == "eagle3")
    assert own_share(basis, head) == OwnShare(100, 40, 160, 40, 70 / 60)
    assert own_share(Basis(TARGET, H100, rows, 1.0), head) is None, "of another temperature"
    shorter = [msgspec.structs.replace(each, lookup_lookahead=4) for each in rows]
    assert own_share(Basis(TARGET, H100, shorter, 0.0), head) is None, "of another look-up"
