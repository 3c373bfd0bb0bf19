"""Teacher-forced acceptance: the engine's own count on greedy answers, worked examples elsewhere, honest intervals."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.models.decoder import Decoder
from foredraft.models.layers import ModelConfig
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config
from foredraft.teacher import teacher_forced
from foredraft.teacher.acceptance import TeacherForcedAcceptance, acceptance, tally
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import OnlineHiddenStates
from foredraft.teacher.predictions import Predictions, emitted_mask
from foredraft.teacher.teacher_forced import draft_predictions, padded, tallies

VOCAB, LOOKAHEAD = 32, 4


def model(seed: int, vocab: int = VOCAB, noise: float = 0.0) -> Decoder:
    """A small random Llama; `noise` moves its weights, for a draft that is right in part."""
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    torch.manual_seed(seed)
    decoder = Decoder(
        from_config(config, name="tiny"), ModelConfig(norm_eps=1e-5, activation="silu", rope=rope_from_config(config))
    )
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    for parameter in decoder.parameters():
        parameter.data += noise * torch.randn_like(parameter) * parameter.abs().mean()
    return decoder.requires_grad_(False).eval()


TARGET, DRAFT = model(0), model(0, noise=0.12)
PROMPTS = [tuple(np.random.default_rng(i).integers(0, VOCAB, 1 + i % 7).tolist()) for i in range(20)]


def live(draft: Decoder, requests: list[Request]) -> tuple[list[list[int]], float, float]:
    """Answers, and what the engine counts: 1 + accepted per step, and tokens emitted per step."""
    engine = Engine(
        TARGET, ModelDrafter(draft, draft.new_cache(4, 160)), lookahead=LOOKAHEAD, max_batch=4, max_context=128
    )
    sequences = [engine.add(request) for request in requests]
    steps = list(engine.run())
    rows = sum(len(step.accepted) for step in steps)
    accepted, emitted = (sum(sum(getattr(step, name)) for step in steps) for name in ("accepted", "emitted"))
    return [sequence.answer for sequence in sequences], 1 + accepted / rows, emitted / rows


def texts(requests: list[Request], answers: list[list[int]]) -> list[tuple[list[int], list[bool]]]:
    return [
        ([*request.prompt, *answer], [False] * len(request.prompt) + [True] * len(answer))
        for request, answer in zip(requests, answers, strict=True)
    ]


def summed(draft: Decoder, texts: list, lookahead: int, *, probs: bool = False) -> dict[str, Tensor]:
    rows = tallies(draft, TargetCache(TARGET), texts, lookahead, probs=probs)
    return {name: torch.stack([row[name] for row in rows]).sum(0) for name in rows[0]}


def judged(draft: Decoder, texts: list, lookahead: int = LOOKAHEAD) -> TeacherForcedAcceptance:
    return acceptance(summed(draft, texts, lookahead))


def test_on_greedy_answers_the_walk_is_the_engines_own():
    """Exactly where answers end; τ without the ends within 2 %. One-token prompts are among them."""
    requests = [Request(prompt=prompt, max_tokens=100) for prompt in PROMPTS]
    answers, tokens_per_step, emitted_per_step = live(DRAFT, requests)
    judgement = judged(DRAFT, texts(requests, answers))
    assert 1.5 < tokens_per_step < 4.5
    assert judgement.emitted_per_step == pytest.approx(emitted_per_step, abs=1e-12)
    assert judgement.tokens_per_step.value == pytest.approx(tokens_per_step, rel=0.02)
    assert (judgement.departures, judgement.cut, judgement.tokens) == (0, 0, 2000)
    assert judgement.tokens_per_step.low < judgement.tokens_per_step.value < judgement.tokens_per_step.high


def test_a_stop_ends_the_walk_as_it_ends_the_answer():
    free = [Request(prompt=prompt, max_tokens=60) for prompt in PROMPTS]
    common = int(np.bincount(np.concatenate(live(DRAFT, free)[0])).argsort()[-4])
    requests = [Request(prompt=prompt, max_tokens=60, stop_ids=frozenset({common})) for prompt in PROMPTS]
    answers, _, emitted_per_step = live(DRAFT, requests)
    assert sum(len(answer) < 60 for answer in answers) > 5
    judgement = judged(DRAFT, texts(requests, answers))
    assert judgement.emitted_per_step == pytest.approx(emitted_per_step, abs=1e-12)


def test_steps_are_not_uniform_over_places():
    """Negative control: begun everywhere alike, the same chains give another number than the engine's."""
    requests = [Request(prompt=prompt, max_tokens=100) for prompt in PROMPTS]
    answers, tokens_per_step, _ = live(DRAFT, requests)
    judgement = judged(DRAFT, texts(requests, answers))
    assert abs(judgement.uniform_tokens_per_step / tokens_per_step - 1) > 0.02


def readings(agrees: list[list[int]], follows: list[int]) -> Predictions:
    """By hand: `agrees[s][n]` of one text."""
    agrees_SBT = torch.tensor(agrees, dtype=torch.bool)[:, None]
    return Predictions(torch.ones_like(agrees_SBT), agrees_SBT, agrees_SBT, torch.tensor([follows], dtype=torch.bool))


def acceptance_of(by_hand: Predictions, mask: list[int]) -> TeacherForcedAcceptance:
    tokens, mask_BT = torch.arange(len(mask))[None], torch.tensor([mask], dtype=torch.bool)
    return acceptance(tally(by_hand, tokens, mask_BT, torch.zeros_like(tokens)))


def test_a_walk_by_hand():
    """Tokens 1 … 6 are the answer. At 1 both drafts are right: 3 tokens. At 4 the first is wrong: 1. At 5 the first is
    right and the answer ends with it and a token more: 2. The second draft at 5 is refused.
    """
    result = acceptance_of(readings([[0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0]], [1] * 7), [0, 1, 1, 1, 1, 1, 1])
    assert (result.steps, result.emitted_per_step) == (3, 2.0)
    assert result.accept_given_prefix == pytest.approx((2 / 3, 1 / 2))
    assert result.survival == pytest.approx((2 / 3, 1 / 3))
    assert result.tokens_per_step.value == pytest.approx(2.0)


def test_a_chain_is_followed_no_further_than_its_text_and_is_not_counted_beyond():
    """Token 1 is not what the target would say: the chain begun there is at risk at its first place only, and the next
    begins at 2. That one accepts 2 and is refused at 3; the last, at 4, accepts to the end, where nothing is at risk.
    """
    result = acceptance_of(readings([[0, 1, 1, 0, 1], [0, 1, 0, 0, 1]], [1, 0, 1, 1, 1]), [0, 1, 1, 1, 1])
    assert (result.steps, result.cut, result.departures) == (3, pytest.approx(1 / 3), 0.25)
    assert result.accept_given_prefix == pytest.approx((1.0, 0.0))
    assert result.emitted_per_step == pytest.approx((2 + 1) / 2)


def test_later_places_are_judged_given_the_earlier_ones():
    """Negative control for products of marginals: here place 2 is right exactly where place 1 is wrong."""
    first, second = [1, 0] * 12, [0, 1] * 12
    result = acceptance_of(readings([first, second], [1] * 24), [0] + [1] * 23)
    assert result.survival[1] == 0
    assert np.mean(first) * np.mean(second) == 0.25


def test_nothing_is_credited_that_was_never_reached_or_to_be_predicted():
    result = acceptance_of(readings([[1, 0, 0, 0], [1, 1, 1, 1]], [1] * 4), [0, 0, 1, 1])
    assert result.survival == (0, 0)
    assert result.tokens == 2
    with pytest.raises(ValueError, match="no drafted token to judge"):
        acceptance_of(readings([[1, 1, 1]], [1] * 3), [0, 0, 0])


def test_documents_in_a_window_are_walked_each_on_its_own():
    """The first token of a document is nobody's to draft, and no chain runs over its end."""
    agrees = torch.ones(2, 1, 8, dtype=torch.bool)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    emitted = emitted_mask(torch.ones(1, 8, dtype=torch.bool), documents)
    assert emitted[0].int().tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
    sums = tally(Predictions(agrees, agrees, agrees, agrees[0]), torch.arange(8)[None], emitted, documents)
    result = acceptance(sums)
    assert (result.steps, result.documents, result.emitted_per_step) == (2, 2, 3.0)


def test_sums_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch):
    requests = [Request(prompt=prompt, max_tokens=30) for prompt in PROMPTS[1:7]]
    answered, both = texts(requests, live(DRAFT, requests)[0]), []
    for num in (40, 4000):
        monkeypatch.setattr(teacher_forced, "TOKENS_PER_BATCH", num)
        both.append(summed(DRAFT, answered, 3, probs=True))
    single, many = (acceptance(sums) for sums in both)
    assert single.survival == pytest.approx(many.survival, abs=1e-12)
    assert single.tokens_per_step.low == pytest.approx(many.tokens_per_step.low, abs=1e-12)
    for name in ("point", "sampled", "there"):
        torch.testing.assert_close(both[0][name], both[1][name], rtol=1e-5, atol=1e-5)


def test_a_draft_whose_vocabulary_is_padded_is_judged_on_the_targets():
    wide = model(0, vocab=VOCAB + 4)
    wide.embed_tokens.weight[:VOCAB] = TARGET.embed_tokens.weight
    assert wide.lm_head is not None
    assert TARGET.lm_head is not None
    wide.lm_head.weight[:VOCAB] = TARGET.lm_head.weight
    for ours, theirs in zip(wide.layers.parameters(), TARGET.layers.parameters(), strict=True):
        ours.copy_(theirs)
    requests = [Request(prompt=prompt, max_tokens=30) for prompt in PROMPTS[:6]]
    answered = texts(requests, live(DRAFT, requests)[0])
    assert judged(wide, answered, 2).survival == (1, 1)


# chance


def probs_of(decoder: Decoder, prefix: list[int]) -> Tensor:
    return decoder(torch.tensor([prefix])).logits_BTV[0, -1].softmax(-1)


@pytest.fixture(scope="module")
def small() -> tuple[Decoder, Decoder]:
    return model(3, vocab=6), model(4, vocab=6)


@pytest.mark.parametrize("kind", ["sampled", "point"])
def test_acceptance_by_chance_is_unbiased_by_enumeration(small: tuple[Decoder, Decoder], kind: str):
    """Over all texts of two tokens with the target's own probabilities, the mean is P(at least i accepted), summed over
    all drafts by the rule: each draft x with min(p, q)(x), or the argmax x̂ with p(x̂).
    """
    target, draft = small
    prompt, mean, exact = [1, 2], np.zeros(2), np.zeros(2)
    for text in itertools.product(range(6), repeat=2):
        tokens, emitted = torch.tensor([[*prompt, *text]]), torch.tensor([[False, False, True, True]])
        (batch,) = padded([(tokens[0].tolist(), emitted[0].tolist())], 100, target.device)
        states = OnlineHiddenStates(target, (target.shape.num_layers,))(batch)
        predicted = draft_predictions(draft, target, batch, states, 2, probs=True)
        sums = tally(predicted, tokens, emitted, torch.zeros_like(tokens))
        # of the two chains of a text (begun at its first and second token) only the first is looked at here
        first = tally(predicted, tokens, torch.tensor([[False, False, True, False]]), torch.zeros_like(tokens))
        share = float(probs_of(target, prompt)[text[0]] * probs_of(target, [*prompt, text[0]])[text[1]])
        second = float(sums[kind][0, 1])
        mean += share * np.array([float(first[kind][0, 0]), second])
    p, q = probs_of(target, prompt), probs_of(draft, prompt)
    for x in range(6):
        best = int(q.argmax())
        reached = float(torch.minimum(p, q)[x]) if kind == "sampled" else float(p[x]) * (x == best)
        exact[0] += reached
        p2, q2 = probs_of(target, [*prompt, x]), probs_of(draft, [*prompt, x])
        exact[1] += reached * float(torch.minimum(p2, q2).sum() if kind == "sampled" else p2[q2.argmax()])
    assert mean == pytest.approx(exact, abs=1e-5)
    assert 0.02 < exact[1] < exact[0] < 0.98


def test_sampled_acceptance_is_not_greedy_acceptance():
    requests = [Request(prompt=prompt, max_tokens=30) for prompt in PROMPTS[:6]]
    sums = summed(DRAFT, texts(requests, live(DRAFT, requests)[0]), 2, probs=True)
    sampled = float(sums["sampled"][0, 0] / sums["there"][0, 0])
    assert abs(sampled - acceptance(sums).accept_prob) > 0.01


# intervals


def test_intervals_cover_what_they_say():
    """Documents whose acceptance differs; 90 % intervals of 150 seeded sets of 24 documents cover the long-run τ of
    such documents 83 to 97 % of the time (false-alarm rate about 1e-3 at a true 90 %).
    """
    rng, steps, length = np.random.default_rng(0), 3, 31

    def drawn(documents: int) -> tuple[Predictions, Tensor, Tensor, Tensor]:
        alpha = rng.beta(6, 3, size=(1, documents, 1))
        agrees = torch.from_numpy(rng.random((steps, documents, length)) < alpha)
        tokens = torch.from_numpy(rng.integers(0, 1 << 30, (documents, length)))
        mask = torch.ones(documents, length, dtype=torch.bool)
        mask[:, 0] = False
        return (
            Predictions(torch.ones_like(agrees), agrees, agrees, torch.ones_like(mask)),
            tokens,
            mask,
            torch.zeros_like(tokens),
        )

    truth = acceptance(tally(*drawn(6000))).tokens_per_step.value
    intervals = [acceptance(tally(*drawn(24))).tokens_per_step for _ in range(150)]
    assert 0.83 <= np.mean([interval.low <= truth <= interval.high for interval in intervals]) <= 0.97
