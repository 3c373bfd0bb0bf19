"""Words outside a draft's vocabulary: the law says what was counted, and a plan weighs them against the LM head."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from foredraft import kinds, shapes
from foredraft.laws.coverage import CountedCoverage, Curve, Curves, coverage_law, fitted
from foredraft.plan.candidate import Candidate, choice, head_training_flops
from foredraft.plan.draft_vocab import CutAcceptance, sizes, with_draft_vocabularies
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.records import Machine, Workload

LAPTOP = Machine(
    name="laptop", memory_bytes=16 * 10**9, bandwidth_bytes_per_s=1.5e10, flops_per_s={"float32": 1e11, "bfloat16": 1.5e11},
    source="test", step_overhead_s=4e-4,
)  # fmt: skip
TARGET = msgspec.structs.replace(
    shapes.shape("Qwen2.5-0.5B"), num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64, intermediate_size=1536,
    vocab_size=49152,
)  # fmt: skip


class Flat:
    """Acceptance of 0.8 at every position."""

    def draws(self, num, rng, frozen):
        return np.full((num, 16), 0.8)


def problem(engine="foredraft", **settings):
    load = Workload(input_len=128, output_len=128, concurrency=(1,))
    return Problem(TARGET, LAPTOP, load, PlanSettings(engine=engine, **settings))


def head(kind, target=TARGET, tokens=1e7):
    shape = kind.shape(target)
    return Candidate(choice("head", shape, LAPTOP, tokens, head_training_flops(target, shape, tokens)), shape, Flat())


def test_the_fit_recovers_a_planted_law():
    words, rng = (1000, 4000, 16000), np.random.default_rng(0)
    x = 1 - np.log(words) / np.log(50_000)
    curves = tuple(Curve("d", 1000, tuple(1.4 * x**1.7 * np.exp(0.3 * rng.standard_normal()))) for _ in range(200))
    law = fitted(Curves(50_000, words, 1, curves, "planted"))
    assert law.power == pytest.approx(1.7, abs=1e-6)
    assert np.exp(law.level) == pytest.approx(1.4, rel=0.08)
    assert law.sd == pytest.approx(0.3, rel=0.15)


def test_the_law_says_what_another_tokenizer_was_measured_to_hold():
    """Llama 3's 128,256 words, of which a quarter hold 95 % of SlimPajama's tokens (arXiv 2502.14856); none of it was in the fit."""
    law = coverage_law()
    assert float(law.outside(128256 // 4, 128256)) == pytest.approx(0.05, abs=0.015)
    assert float(law.outside(128256, 128256)) == 0
    shares = [float(law.outside(n, 49152)) for n in (1024, 4096, 16384, 32768)]
    assert shares == sorted(shares, reverse=True)
    assert 0.4 < law.sd < 0.9, "domains differ by nearly a factor of two"


def test_what_was_counted_goes_before_the_law():
    counted = CountedCoverage(((1000, 0.10, 0.12), (4000, 0.01, 0.01)))
    assert float(counted.outside(1000, 8000)) == pytest.approx(np.sqrt(0.10 * 0.12))
    assert float(counted.outside(2000, 8000)) == pytest.approx(np.sqrt(0.01 * np.sqrt(0.10 * 0.12)), rel=1e-6)
    assert float(counted.outside(8000, 8000)) == 0
    below, above = counted.outside(1000, 8000, np.array([-1.0, 1.0]))
    assert above / below == pytest.approx(1.2**2**0.5, rel=1e-6)
    (sized,) = with_draft_vocabularies(problem(outside=((1024, 1e-4, 1e-4), (16384, 1e-5, 1e-5))), [head(kinds.EAGLE)])
    assert sized.choice.draft_vocab == sizes(49152)[-1] == 1536


@pytest.mark.parametrize("kind", [kinds.EAGLE, kinds.EAGLE3, kinds.DFLASH, kinds.DSPARK], ids=lambda kind: kind.name)
def test_the_size_that_is_planned_is_the_fastest_of_those_tried(kind):
    """On a laptop the LM head of 49,152 words is most of a head's pass, and fewer words pay; draws and counts follow the size."""
    before = head(kind)
    (sized,) = with_draft_vocabularies(problem(), [before])
    words = sized.choice.draft_vocab
    assert words is not None
    assert 3000 < words < 25_000
    assert sized.shape is not None
    assert sized.shape.draft_vocab_size == words
    assert sized.choice.training_flops < before.choice.training_flops
    accept = sized.acceptance.draws(1024, np.random.default_rng(0), frozenset())
    kept = 1 - coverage_law().outside(words, 49152)
    usual = before.shape.draft_vocab_size if before.shape else None
    kept_before = 1 - coverage_law().outside(usual, 49152) if usual else 1.0
    assert np.median(accept[:, 0]) == pytest.approx(0.8 * kept / kept_before, abs=0.01)
    assert np.ptp(sized.acceptance.draws(8, np.random.default_rng(0), frozenset({"draft"}))) == 0
    assert any("words" in note for note in sized.notes)


def test_a_vocabulary_is_no_dial_where_no_engine_or_no_training_makes_it_one():
    before = head(kinds.EAGLE)
    assert with_draft_vocabularies(problem("vllm"), [before]) == [before]
    block = head(kinds.DSPARK)
    assert with_draft_vocabularies(problem("sglang"), [block]) == [block]
    assert with_draft_vocabularies(problem("vllm"), [block])[0].choice.draft_vocab is not None
    public = replace(before, choice=msgspec.structs.replace(before.choice, training_flops=0.0))
    assert with_draft_vocabularies(problem(), [public]) == [public]
    small = msgspec.structs.replace(TARGET, vocab_size=4096)
    assert (
        with_draft_vocabularies(replace(problem(), target=small), [head(kinds.EAGLE, small)])[0].choice.draft_vocab
        is None
    )


def test_the_usual_size_changes_no_draw():
    law = CutAcceptance(Flat(), coverage_law(), 32000, 32000, 49152)
    assert law.draws(16, np.random.default_rng(0), frozenset()).tolist() == np.full((16, 16), 0.8).tolist()
