"""Adaptive lengths in the engine: every drafter's text stays the target's, greedy and drawn; and what is measured for them."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import test_blocks as of_blocks
import test_engine as of_tokens
import torch

from foredraft import kinds
from foredraft.decode.batch import Request
from foredraft.decode.block_drafter import BlockDrafter
from foredraft.decode.drafter import Drafter, top_confidence
from foredraft.decode.drafters import machine_name, rule_for
from foredraft.decode.engine import Engine
from foredraft.decode.lengths import Choice, LengthRule, PassTimes, Regime, StepLengths
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling
from foredraft.decode.verify import verify_rows
from foredraft.measure import lengths as measuring
from foredraft.measure.configurations import DraftSpec, EngineConfiguration, spec_of
from foredraft.measure.lengths import (
    JudgedConfidence,
    Recorder,
    fixed_rates,
    held_out_auc,
    learn,
    replayed_rate,
    weights_of,
)
from foredraft.models import kernels
from foredraft.models.forward import causal_mask
from foredraft.records import Confidence, DraftLengths, Provenance, StepCosts, write

LOOKAHEAD, TOKENS = 4, 14


def confidence(**changes: Any) -> Confidence:
    """The draft's own word, taken as it is."""
    fields: dict[str, Any] = {
        "temperature": 0.0, "here": (0.5, 1.0, 0.0, 0.0), "ahead": (0.5, 0.5, 0.0, 0.0), "num": 1, "survival": (0.5,), "shared_sd": 0.0,
        "single_sd": 0.0, "rates": {1: 1.2, 8: 4.0}, "fixed": {1: (1.0,) * 5, 8: (3.0,) * 5},
    }  # fmt: skip
    return Confidence(**(fields | changes))


def lengths_of(machine: str = "m", dtype: str = "float32", **changes: Any) -> DraftLengths:
    """Passes that cost an eighth of a plain one for each token more, drafting as much."""
    costs = StepCosts({num: 0.875 + 0.125 * num for num in range(1, 20)}, {1: (0.1, 0.05), 8: (0.1, 0.05)})
    return DraftLengths(
        draft="d", method="m", target="t", lookahead=LOOKAHEAD, machine=machine, dtype=dtype, threads=torch.get_num_threads(),
        confidences=(confidence(**changes),), costs=costs, provenance=Provenance(source="test"),
    )  # fmt: skip


DRAFTERS: dict[str, tuple[Any, Callable[[], Drafter | None]]] = {
    name: (of_tokens, of_tokens.DRAFTERS[name])
    for name in ("near", "other", "same", "eagle", "eagle3", "lm-cut")
} | {
    f"{kind}{'-cut' * bool(cut)}": (of_blocks, lambda kind=kind, cut=cut: block_drafter(kind, cut))
    for kind, cut in (("dflash", None), ("dspark", None), ("dspark", of_blocks.CUT))
}  # fmt: skip


def block_drafter(kind: str, cut: tuple[int, ...] | None) -> BlockDrafter:
    head = of_blocks.random_head(kind, cut) if cut or kind == "dflash" else of_blocks.taught(kind, cut)
    return BlockDrafter(head, head.new_cache(8, 300))


def engine_with(name: str, max_batch: int, lengths: Any) -> tuple[Any, Engine]:
    source, drafter = DRAFTERS[name]
    return source, Engine(
        source.TARGET, drafter(), lookahead=LOOKAHEAD, max_batch=max_batch, max_context=128, lengths=lengths
    )


@cache
def plain(source: Any) -> list[list[int]]:
    return [source.plain(prompt, TOKENS) for prompt in source.PROMPTS]


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_is_token_for_token_that_of_the_target(name: str):
    """In batches of three of which some end and others enter, down to one alone; lengths differ between steps."""
    source, engine = engine_with(name, 3, LengthRule(lengths_of(), 99))
    sequences = [engine.add(Request(prompt=prompt, max_tokens=TOKENS)) for prompt in source.PROMPTS]
    steps = list(engine.run())
    assert [sequence.answer for sequence in sequences] == plain(source)
    assert all(a <= d for step in steps for a, d in zip(step.accepted, step.drafted, strict=True))
    assert len({d for step in steps for d in step.drafted}) > 1
    assert max(step.lookahead for step in steps) <= LOOKAHEAD


class ByTurns:
    """Lengths of a batch that differ, whatever anyone is confident of: 0, 1, 2 … by row and step."""

    def __init__(self) -> None:
        self.turn = 0

    def begin(self, temperatures: Sequence[float], most: int) -> StepLengths:
        self.turn += 1
        return _Given([(self.turn + 2 * row) % (most + 1) for row in range(len(temperatures))])


class _Given:
    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.told = lengths, 0

    def tell(self, confidence_B: Sequence[float]) -> bool:
        assert np.isfinite(confidence_B).all()
        self.told += 1
        return self.told < max(self.lengths)


@pytest.mark.parametrize("name", ["near", "eagle3", "dspark"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sequences_of_a_batch_may_have_different_lengths(name: str, temperature: float):
    source, engine = engine_with(name, 3, ByTurns())
    sampling = [Sampling(temperature=temperature, seed=seed) for seed in range(6)]
    sequences = [
        engine.add(Request(prompt=prompt, max_tokens=TOKENS, sampling=each))
        for prompt, each in zip(source.PROMPTS, sampling, strict=True)
    ]
    steps = list(engine.run())
    assert any(len(set(step.drafted)) == 3 for step in steps)
    assert all(len(sequence.answer) == TOKENS for sequence in sequences)
    if not temperature:
        assert [sequence.answer for sequence in sequences] == plain(source)


@pytest.mark.skipif(kernels.missing() is not None, reason="no C compiler: passes are padded")
@pytest.mark.parametrize("name", ["near", "eagle3"])
def test_a_pass_over_what_is_verified_alone_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch):
    """Drawn answers, which hang on every bit of p and of the hidden states that a head reads, are those of padded passes."""
    sizes, (source, packed), (_, padded) = [], engine_with(name, 3, ByTurns()), engine_with(name, 3, ByTurns())
    whole = packed._score_packed

    def watched(nodes: Any, *more: Any) -> Any:
        sizes.append(len(nodes[0]))
        return whole(nodes, *more)

    monkeypatch.setattr(packed, "_score_packed", watched)
    monkeypatch.setattr(padded, "_packs", lambda nodes, padded: False)
    asked = [
        Request(prompt=prompt, max_tokens=TOKENS, sampling=Sampling(temperature=0.8, seed=i))
        for i, prompt in enumerate(source.PROMPTS)
    ]
    answers = [[sequence.answer for sequence in engine.generate(asked)] for engine in (packed, padded)]
    assert answers[0] == answers[1]
    assert len(set(sizes)) > 2


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernels", "torch"])
def test_single_tokens_read_and_write_the_rows_that_they_are_told(by_kernel: bool):
    """Three tokens of one sequence and one of another as four sequences of a pass: the logits of both padded; a row that is none is refused."""
    tokens, model = torch.tensor([[3, 1, 4], [1, 5, 9]]), of_tokens.TARGET
    slots, nodes = torch.arange(3).expand(2, 3), (torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0]))
    with torch.inference_mode() if by_kernel else torch.enable_grad():  # our kernels run where nothing is learned
        cache = model.new_cache(2, 8)
        whole = model(tokens, slots, cache, slots, causal_mask(slots, 3)).logits_BTV
        picked = [part[nodes][:, None] for part in (tokens, slots, causal_mask(slots, 3))]
        alone = model(picked[0], picked[1], model.new_cache(2, 8).of_rows(nodes[0]), picked[1], picked[2]).logits_BTV
        assert whole is not None
        assert alone is not None
        torch.testing.assert_close(
            alone[:, 0], whole[nodes], rtol=0 if by_kernel else 1e-4, atol=0 if by_kernel else 1e-5
        )
        with pytest.raises((ValueError, IndexError, AssertionError, RuntimeError)):
            model(picked[0], picked[1], cache.of_rows(nodes[0] + 1), picked[1], picked[2])


# Drawn chains, enumerated


def drawing(name: str) -> tuple[Any, list[int], Callable[[Any], Drafter]]:
    """A drafter that draws, its target's module, and a prompt that it has read."""
    if name == "lm":
        model = of_tokens.blended(0.1)
        return (
            of_tokens,
            [1, 2, 3, 4],
            lambda sequence: _admitted(ModelDrafter(model, model.new_cache(1, 64)), sequence),
        )
    head = of_blocks.taught("dspark", None)

    def drafter(sequence: Any) -> Drafter:
        sequence.fresh = of_blocks.joined(head, list(sequence.tokens[:-1]))
        return _admitted(BlockDrafter(head, head.new_cache(1, 64)), sequence)

    return of_blocks, [1, 2, 3, 4], drafter


def _admitted(drafter: Any, sequence: Any) -> Any:
    drafter.admit(0, sequence)
    return drafter


@pytest.mark.parametrize("name", ["lm", "dspark"])
def test_a_drawn_step_of_adaptive_length_is_enumerated_to_the_targets_distribution(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Every chain that the drafter can draw and stop, by the measure of the uniforms that draw it, through the rule itself, with every
    outcome of verification: what a step emits, followed by the target, is the target's distribution. The second token's confidence
    hangs on the first, and so does whether it is verified.
    """
    source, prompt, read = drawing(name)
    monkeypatch.setattr(of_blocks, "TARGET", source.TARGET)  # whose probabilities the helpers there are of
    of_blocks.probs_after.cache_clear()
    sampling, k = Sampling(temperature=0.9, top_k=3), 2
    sequence: Any = of_blocks.Chosen.of(1, Request(prompt=tuple(prompt), max_tokens=9, sampling=sampling))
    drafter, told = read(sequence), []

    class Listening(Choice):
        def tell(self, confidence_B: Sequence[float]) -> bool:
            told.append(confidence_B[0])
            return super().tell(confidence_B)

    def drawn(picked: list[float], price: float) -> tuple[list[int], np.ndarray, int]:
        costs = StepCosts({num: 1 + price * num for num in range(1, 9)}, {1: (0.0, 0.0)})
        choice = Listening(
            Regime(
                [confidence(here=(0.0, 1.0, 0.0, 0.0), ahead=(9.0, 0.0, 0.0, 0.0))],
                1.0,
                PassTimes(costs, packed=99),
                k,
            )
        )
        sequence.picked = list(picked)
        if isinstance(drafter, ModelDrafter):
            drafter.num_read[0] = sequence.cached  # as before the step
        proposal = drafter.propose([sequence], Budget(k), choice)
        assert proposal.q is not None
        return proposal.tokens[0].tolist(), proposal.q[0].double().numpy(), choice.lengths[0]

    first = of_blocks.middles(np.cumsum(drawn([0.5] * k, 0.0)[1][0]).tolist())
    joint = []
    for u, _ in first:
        told.clear()
        drawn([u] * k, 0.0)
        joint.append(1 / (1 + np.exp(-told[0])) / (1 + np.exp(-told[1])))
    price = (min(joint) + max(joint)) / 2  # between the survivals of the second token after the firsts
    emitted, lengths = defaultdict[tuple[int, ...], float](float), set()
    for u0, measure0 in first:
        tokens, q, length = drawn([u0] * k, price)
        for u1, measure1 in of_blocks.middles(np.cumsum(q[1]).tolist()) if len(q) > 1 else [(0.5, 1.0)]:
            tokens, q, length = drawn([u0, u1], price)
            lengths.add(length)
            p = np.stack([of_blocks.probs_after((*prompt, *tokens[:i]), sampling) for i in range(length + 1)])
            residuals = [np.maximum(p[i] - q[i], 0) for i in range(length)]
            finals = [np.cumsum(x / x.sum()) for x in (*residuals, *p) if x.sum()]
            outcomes = [of_blocks.middles([p[i][t] / q[i][t]]) for i, t in enumerate(tokens[:length])]
            outcomes.append(of_blocks.middles([cut for cuts in finals for cut in cuts]))
            for picked in itertools.product(*outcomes):
                verdict = verify_rows(
                    p[None], q[None, :length], np.array([tokens[:length]], dtype=int).reshape(1, length), [list(range(-1, length - 1))], [True],
                    np.array([[u for u, _ in picked]]),
                )  # fmt: skip
                weight = measure0 * measure1 * float(np.prod([m for _, m in picked]))
                emitted[(*tokens[: len(verdict.path[0])], verdict.bonus[0])] += weight
    assert len(lengths) > 1
    completed = defaultdict[tuple[int, ...], float](float)
    for tokens, weight in emitted.items():
        for rest, more in of_blocks.by_target([*prompt, *tokens], sampling, k + 1 - len(tokens)).items():
            completed[(*tokens, *rest)] += weight * more
    exact = of_blocks.by_target(prompt, sampling, k + 1)
    assert max(abs(completed[key] - exact[key]) for key in exact) < 1e-6
    of_blocks.probs_after.cache_clear()


# What is measured


def test_the_confidence_of_logits_is_the_logit_of_their_largest_probability():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [30.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf]])
    probs = logits.softmax(-1).double().max(-1).values
    expected = torch.log(probs[[0, 2]] / (1 - probs[[0, 2]])).numpy()
    first, sure, last = top_confidence(logits)
    np.testing.assert_allclose((first, last), expected, rtol=1e-5, atol=1e-6)
    assert 15 < sure < 40


def planted(num: int = 4000, seed: int = 0) -> tuple[JudgedConfidence, np.ndarray]:
    """Steps whose tokens are accepted as weights say that a fit should find."""
    rng, weights = np.random.default_rng(seed), np.array([0.4, 0.8, 0.3, -0.5])
    told = rng.normal(0.5, 2.0, (num, LOOKAHEAD))
    counts = np.zeros(num, dtype=int)
    for place in range(LOOKAHEAD):
        before = told[:, :place].mean(axis=1) if place else np.zeros(num)
        logits = weights @ [np.ones(num), told[:, place], before, np.full(num, np.log(place + 1))]
        counts += (counts == place) & (rng.random(num) < 1 / (1 + np.exp(-logits)))
    return JudgedConfidence(told, counts, rng.integers(0, 50, num)), weights


def test_planted_weights_of_confidence_are_recovered():
    """4,000 steps, fixed seed: each within 0.2, five of its standard errors; and a confidence that says nothing is told so by the AUC."""
    judged, weights = planted()
    np.testing.assert_allclose(weights_of(judged)[0], weights, atol=0.2)
    auc = held_out_auc(judged)
    assert auc is not None
    assert 0.75 < auc < 0.95
    shuffled = judged._replace(told=np.random.default_rng(1).permutation(judged.told, axis=0))
    blind = held_out_auc(shuffled)
    assert blind is not None
    assert abs(blind - 0.5) < 0.12  # places alone tell a little


def test_replayed_the_rule_is_ahead_of_every_fixed_length_where_passes_cost_and_never_far_behind(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(measuring, "REPLAYED", 48)
    judged, _ = planted(384)
    here, ahead = ((float(a), float(b), float(c), float(d)) for a, b, c, d in weights_of(judged))
    for packs, batch, token_s, least in (
        (True, 1, 0.2, 1.03),
        (True, 8, 0.05, 1.03),
        (False, 8, 0.05, 0.99),
        (True, 1, 0.0, 0.99),
    ):
        times = PassTimes(StepCosts({num: 1 + token_s * num for num in (1, 64)}, {1: (0.02, 0.02)}), 99 * packs)
        best = max(fixed_rates(judged, times, batch))
        rate = replayed_rate(confidence(here=here, ahead=ahead), judged, times, batch, best)
        assert rate > least * best, (packs, batch, token_s, rate / best)


def test_what_a_confidence_promises_is_judged_on_other_requests():
    """Two requests in which the same confidence means the opposite: each by itself promises a gain, the other's weights none."""
    rng = np.random.default_rng(0)
    told, sequence = np.repeat(rng.choice([-3.0, 3.0], (128, 1)), 3, axis=1), np.arange(128) % 2
    judged = JudgedConfidence(told, np.where((told[:, 0] > 0) == (sequence == 0), 3, 0), sequence)
    times = PassTimes(StepCosts({num: 1 + 0.2 * num for num in (1, 64)}, {1: (0.02, 0.02)}), 99)
    best = max(fixed_rates(judged, times, 1))
    assert replayed_rate(confidence(), judged, times, 1, best) < best
    alone = judged.at(sequence == 0)
    assert replayed_rate(confidence(), alone, times, 1, best) > 1.1 * best


def test_a_run_measures_what_the_rule_asks_for():
    """Of a draft near the target, at both temperatures: counted steps, times of every length, and rates by batch."""
    _, engine = engine_with("near", 4, None)
    spec = DraftSpec("near@4", "near", Budget(LOOKAHEAD))
    asked = {
        temperature: [
            Request(prompt=prompt, max_tokens=30, sampling=Sampling(temperature=temperature, seed=i))
            for i, prompt in enumerate(of_tokens.PROMPTS)
        ]
        for temperature in (0.0, 1.0)
    }
    measured = learn(EngineConfiguration(spec, engine), asked, (1, 4), target="t", draft="near")
    assert engine.lengths is None
    assert [each.temperature for each in measured.confidences] == [0.0, 1.0]
    for each in measured.confidences:
        assert list(each.rates) == list(each.fixed) == [1, 2, 4]
        assert all(len(rates) == LOOKAHEAD + 1 for rates in each.fixed.values())
        assert list(each.survival) == sorted(each.survival, reverse=True)
    assert 0.5 < (measured.confidences[0].auc or 0) <= 1
    assert set(measured.costs.pass_s) >= {1, 2, 3, 4, 5}
    assert 1 in measured.costs.draft_s
    answers = engine.generate(asked[0.0])
    source: Any = of_tokens
    assert [sequence.answer[:TOKENS] for sequence in answers] == plain(source)


def test_what_leaves_nothing_to_choose_or_too_little_to_time_is_said_with_a_remedy():
    _, engine = engine_with("near", 4, None)
    asked = {0.0: [Request(prompt=prompt, max_tokens=2) for prompt in of_tokens.PROMPTS[:1]]}
    for num, said in ((1, r"near@1: a draft of one token leaves no length to choose; give it more, such as @7"),
                      (LOOKAHEAD, "too few steps to time them; give more prompts or longer answers")):  # fmt: skip
        spec = DraftSpec(f"near@{num}", "near", Budget(num))
        with pytest.raises(ValueError, match=said):
            learn(EngineConfiguration(spec, engine), asked, (1,), target="t", draft="near")


def test_a_recorder_asks_for_every_length_by_turns():
    recorder, asked = Recorder(), []
    for _ in range(8):
        step = recorder.begin([0.0], 3)
        asked.append(step if isinstance(step, int) else step.lengths[0])
    assert asked == [3, 0, 3, 1, 3, 2, 3, 0]


# In words


def test_words_of_a_draft_name_its_lengths(tmp_path: Any):
    assert kinds.parted("dir~") == kinds.parted("dir~x/y.json") == ("dir", None)
    assert [str(kinds.lengths_file(draft)) for draft in ("dir~", "dir~x/y.json", "dir", "~/dir", "a~b/dir")] == [
        "dir/lengths.json", "x/y.json", "None", "None", "None",
    ]  # fmt: skip
    assert spec_of("dir~@7").draft == "dir~"
    assert kinds.of_method("eagle3~").role == "mixed"
    assert kinds.of_method("eagle3~").label == "EAGLE-3, adaptive length"
    for draft in ("ngram~", "dir+ngram~"):
        with pytest.raises(ValueError, match="a look-up has no confidence that lengths could follow"):
            kinds.parted(draft)
    with pytest.raises(ValueError, match=r"no .*lengths.json, which says when a longer draft pays"):
        rule_for(of_tokens.TARGET, f"{tmp_path}~")
    write(tmp_path / kinds.LENGTHS, lengths_of("another"))
    with pytest.raises(ValueError, match="measured on another, float32"):
        rule_for(of_tokens.TARGET, f"{tmp_path}~")
    write(tmp_path / "here.json", lengths_of(machine_name(torch.device("cpu"))))
    assert rule_for(of_tokens.TARGET, f"{tmp_path}~{tmp_path}/here.json") is not None
    assert rule_for(of_tokens.TARGET, str(tmp_path)) is None


def test_trees_do_not_adapt():
    with pytest.raises(ValueError, match="a tree's nodes are as many in every step"):
        Engine(
            of_tokens.TARGET,
            of_tokens.headed("eagle3"),
            lookahead=Budget(4, 3, 10),
            lengths=LengthRule(lengths_of(), 99),
            max_context=128,
        )
