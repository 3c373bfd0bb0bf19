"""How much is accepted, by kind, temperature, task and what is known of the draft."""

from dataclasses import dataclass

import numpy as np
import pytest

from foredraft import kinds, shapes
from foredraft.plan.cells import Drafting
from foredraft.plan.evidence import NOTHING
from foredraft.plan.levels import LevelAcceptance, any_draft, level_of, tokens_per_step
from foredraft.records import Observation, Provenance
from foredraft.shapes import Shape

LLAMA = shapes.shape("Llama-3.1-8B")
PUBLIC_HEAD = "lmsys/sglang-EAGLE3-LLaMA3.1-Instruct-8B"
KINDS = (kinds.EAGLE3, kinds.NGRAM, kinds.LM)


@dataclass(frozen=True)
class Load:
    target: Shape = LLAMA
    temperature: float = 0.0
    task: str | None = None
    observations: tuple[Observation, ...] = ()
    lengths: tuple[float, float] | None = (512, 256)
    without: frozenset[str] = NOTHING


def tau(load: Load, kind=kinds.EAGLE3, *, k: int = 4, **named) -> tuple[float, float, float]:
    """5 %, 50 % and 95 % of τ."""
    accept = level_of(load, kind, **named).acceptance.draws(2000, np.random.default_rng(0), NOTHING)
    return tuple(np.quantile(tokens_per_step(accept, Drafting(k)), (0.05, 0.5, 0.95)).tolist())


def own_row(k: int, tokens: float, **fields) -> Observation:
    base = {
        "run": "own",
        "target": "Llama-3.1-8B",
        "method": "eagle3",
        "draft": "mine",
        "provenance": Provenance(source="here"),
    }
    return Observation(lookahead=k, tokens_per_step=tokens, **base | fields)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_less_is_accepted_when_sampled_hotter(kind):
    middles = [tau(Load(temperature=t), kind)[1] for t in (0.0, 0.6, 1.0)]
    assert middles[0] > middles[1] > middles[2]


@pytest.mark.parametrize(
    ("kind", "more", "less"), [(kinds.EAGLE3, "code", "chat"), (kinds.NGRAM, "code", "translation")]
)
def test_the_task_enters(kind, more, less):
    assert tau(Load(task=more), kind)[1] > tau(Load(task=less), kind)[1] + 0.1


def test_a_task_that_is_told_narrows_the_interval():
    """Of prompt lookup most."""
    for kind in (kinds.EAGLE3, kinds.NGRAM):
        low, _, high = tau(Load(), kind)
        task_low, _, task_high = tau(Load(task="code"), kind)
        assert np.log((task_high - 1) / (task_low - 1)) < np.log((high - 1) / (low - 1))


def test_heads_of_a_kind_differ_on_one_target_and_prompts_do():
    """Today's heads of Llama-3.1-8B span a fifth at one k: one to be trained may be any, a published one is itself on other prompts."""
    low, middle, high = tau(Load(), k=3)
    assert 2.2 < middle < 3.1
    assert high / low > 1.25
    public_low, _, public_high = tau(Load(), k=3, draft=PUBLIC_HEAD)
    assert 1.05 < public_high / public_low < 0.95 * high / low


def test_what_speaks_is_named():
    assert "Llama-3.1-8B" in level_of(Load(), kinds.EAGLE3).source
    assert "very draft" in level_of(Load(), kinds.EAGLE3, draft=PUBLIC_HEAD).source
    assert "other targets" in level_of(Load(target=shapes.shape("Qwen2.5-14B")), kinds.EAGLE3).source
    assert "own rows" in level_of(Load(observations=(own_row(2, 2.2), own_row(1, 1.7))), kinds.EAGLE3).source
    assert "n-gram" in level_of(Load(task="chat"), kinds.NGRAM).source


# Own rows.

OWN = (own_row(1, 1.72), own_row(2, 2.2), own_row(4, 2.75))


def test_own_rows_stand_before_all():
    low, middle, high = tau(Load(observations=OWN))
    assert middle == pytest.approx(2.75, rel=0.02)
    assert high / low < 1.05


def test_own_rows_move_with_the_temperature_alone_as_far_as_it_is_unlike_theirs():
    middle = tau(Load(observations=OWN))[1]
    low, warm, high = tau(Load(observations=OWN, temperature=1.0))
    assert warm < middle
    assert high / low > 1.05
    both = (*OWN, own_row(1, 1.6, temperature=1.0), own_row(4, 2.3, temperature=1.0))
    assert tau(Load(observations=both, temperature=1.0))[1] == pytest.approx(2.3, rel=0.02)
    assert tau(Load(observations=both))[1] == pytest.approx(middle, rel=1e-6)


def test_own_rows_of_the_task_speak_for_it_and_others_are_moved():
    rows = tuple(own_row(k, t, dataset="HumanEval") for k, t in ((1, 1.8), (4, 3.2)))
    assert tau(Load(observations=rows, task="code"))[1] == pytest.approx(3.2, rel=0.02)
    assert tau(Load(observations=rows, task="chat"))[1] < 3.1


# Context.


def test_beyond_its_context_a_head_is_accepted_less_and_the_level_says_so():
    within = level_of(Load(lengths=(1000, 500)), kinds.EAGLE3, draft=PUBLIC_HEAD, context=2048)
    beyond = level_of(Load(lengths=(8000, 500)), kinds.EAGLE3, draft=PUBLIC_HEAD, context=2048)
    assert "input_len" not in within.extrapolates
    assert not within.notes
    assert "input_len" in beyond.extrapolates
    assert "2,048" in beyond.notes[0]
    near = tau(Load(lengths=(1000, 500)), draft=PUBLIC_HEAD, context=2048)[1]
    assert tau(Load(lengths=(8000, 500)), draft=PUBLIC_HEAD, context=2048)[1] < near - 0.3
    assert "\n" not in beyond.notes[0]


# Draws.


def test_draws_stand_at_their_level():
    accept = LevelAcceptance(any_draft(kinds.EAGLE3.prior), level=(0.5, 0.0)).draws(
        64, np.random.default_rng(0), NOTHING
    )
    alpha = 1 / (1 + np.exp(-0.5))
    assert tokens_per_step(accept, Drafting(4)) == pytest.approx(np.full(64, (1 - alpha**5) / (1 - alpha)), rel=1e-6)


def test_a_settled_draft_does_not_vary():
    level = level_of(Load(), kinds.EAGLE3)
    accept = level.acceptance.draws(64, np.random.default_rng(0), frozenset({"draft"}))
    assert np.ptp(accept, axis=0).max() < 1e-9


def test_more_training_data_lift_a_level():
    level = level_of(Load(), kinds.EAGLE3)
    more = level.gained((1.2,)).acceptance.draws(500, np.random.default_rng(0), NOTHING)
    usual = level.acceptance.draws(500, np.random.default_rng(0), NOTHING)
    assert (more[:, 0] > usual[:, 0]).all()


def test_beyond_what_was_measured_is_said():
    assert "temperature" in level_of(Load(temperature=2.0), kinds.EAGLE3).extrapolates
    assert "temperature" not in level_of(Load(temperature=1.0), kinds.EAGLE3).extrapolates
