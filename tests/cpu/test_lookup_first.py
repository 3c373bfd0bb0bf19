"""A look-up before a draft: lossless, the same alone and in a batch, and the draft behind it misses nothing."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import test_engine as engines
import torch
from scipy.stats import chisquare
from test_engine import PROMPTS, TARGET, blended, headed, lm, plain, requests

from foredraft.decode.batch import Request
from foredraft.decode.drafter import Drafter
from foredraft.decode.engine import Engine
from foredraft.decode.lookup_first import LookupFirst
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramIndex
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling, probabilities
from foredraft.kinds import Lookup
from foredraft.measure.live import decode_in_turn
from foredraft.records import StepRecord

INNER: dict[str, tuple[Callable[[], Drafter], Budget]] = {
    "lm, a longer look-up": (lambda: lm(blended(0.1)), Budget(3, lookup=7)),
    "lm, tree": (lambda: lm(blended(0.1)), Budget(4, 3, 12, lookup=6)),
    "eagle3": (lambda: headed("eagle3"), Budget(4)),
    "eagle3, static tree": (lambda: headed("eagle3"), Budget(4, tree=engines.STATIC, lookup=2)),
}


def engine_behind(name: str, min_match: int = 2, max_batch: int = 8, max_context: int = 128) -> Engine:
    drafter, budget = INNER[name]
    return Engine(
        TARGET,
        LookupFirst(drafter(), Lookup(min_match)),
        lookahead=budget,
        max_batch=max_batch,
        max_context=max_context,
    )


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    return [plain(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", INNER)
def test_greedy_is_token_for_token_that_of_the_target(name: str, batch: int, greedy: list[list[int]]) -> None:
    engine = engine_behind(name, max_batch=batch)
    sequences = [engine.add(request) for request in requests()]
    steps = list(engine.run())
    assert [sequence.answer for sequence in sequences] == greedy
    accepted = by_source(steps)
    assert all(0 < sum(a > 0 for a in part) < len(part) for part in accepted.values()), (
        "each source is accepted in part"
    )


def by_source(steps: list[StepRecord]) -> dict[bool, list[int]]:
    """Accepted tokens of each sequence's step, by whether they were looked up."""
    rows = [
        row
        for step in steps
        for row in zip(step.looked_up or (False,) * len(step.accepted), step.accepted, strict=True)
    ]
    return {source: [n for _, n in part] for source, part in groupby(sorted(rows), key=lambda row: row[0])}


@pytest.mark.parametrize("name", INNER)
def test_a_sampled_batch_equals_its_requests_alone(name: str) -> None:
    """Whether the draft ran beside a look-up, and what it drew there, changes nothing."""
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=3)
    together = engine_behind(name, 1, 4).generate(requests(sampling))
    for request, sequence in zip(requests(sampling), together, strict=True):
        (alone,) = engine_behind(name, 1, 1).generate([request])
        assert alone.answer == sequence.answer


def test_sampled_tokens_follow_the_targets_distribution() -> None:
    """Pairs of tokens after two prompts side by side, one looked up and one drawn by a model at first, 500 seeds (0 to 499) each,
    against the exact distribution of pairs; false-alarm rate 1e-4 a prompt.
    """
    num, prompts = 500, ((5, 1, 2, 5, 1, 2), (1, 2, 3))
    settings = [Sampling(temperature=0.7, top_k=3, seed=seed) for seed in range(num)]
    draft = blended(0.1)
    drafter = LookupFirst(ModelDrafter(draft, draft.new_cache(50, 300)), Lookup(2))
    engine = Engine(TARGET, drafter, lookahead=Budget(1, lookup=2), max_batch=50, max_context=16)
    sequences = engine.generate([Request(prompt, 2, sampling) for sampling in settings for prompt in prompts])
    for at, prompt in enumerate(prompts):
        probs = pair_probs(prompt, settings[0])
        samples = [tuple(sequence.answer) for sequence in sequences[at::2]]
        assert set(samples) <= set(probs)
        counts, expected = [samples.count(pair) for pair in probs], [num * p for p in probs.values()]
        scale = sum(counts) / sum(expected)
        assert chisquare(counts, [e * scale for e in expected]).pvalue > 1e-4


def pair_probs(prompt: tuple[int, ...], sampling: Sampling) -> dict[tuple[int, int], float]:
    def after(tokens: list[int]) -> torch.Tensor:
        logits = TARGET(torch.tensor([tokens])).logits_BTV
        return probabilities(logits[0, -1:], sampling)[0]

    first = after([*prompt])
    firsts = first.nonzero()[:, 0].tolist()
    return {
        (a, b): float(first[a] * second[b])
        for a in firsts
        for second in [after([*prompt, a])]
        for b in second.nonzero()[:, 0].tolist()
    }


def test_a_head_behind_a_look_up_drafts_what_whole_passes_would() -> None:
    """After steps in which it did not run, too: its hidden states waited."""
    checked, steps = engines.Checked(headed("eagle3")), []
    for batch in (1, 3):
        engine = Engine(TARGET, LookupFirst(checked, Lookup(1)), lookahead=Budget(3), max_batch=batch, max_context=64)
        for request in requests(max_tokens=16)[:3]:
            engine.add(request)
        steps += engine.run()
    assert sum(step.looked_up != () and all(step.looked_up) for step in steps) > 3, "steps without the draft"
    assert checked.seen > 5


def test_a_model_behind_a_look_up_drafts_as_one_that_read_all_along() -> None:
    """Its proposals after steps in which it did not run are a new drafter's that reads the whole text at once."""
    draft, compared = blended(0.1), 0
    drafter = lm(draft)
    inner_propose = drafter.propose

    def checked(running, budget: Budget, lengths=None):
        nonlocal compared
        proposal = inner_propose(running, budget)
        for row, sequence in enumerate(running):
            anew = ModelDrafter(draft, draft.new_cache(1, 80))
            anew.admit(0, sequence)
            assert anew.propose([sequence], budget).tokens[0].tolist() == proposal.tokens[row].tolist()
            compared += 1
        return proposal

    drafter.propose = checked  # pyright: ignore[reportAttributeAccessIssue]
    engine = Engine(TARGET, LookupFirst(drafter, Lookup(1)), lookahead=Budget(3), max_batch=2, max_context=64)
    engine.generate(requests(max_tokens=16))
    assert compared > 10


def test_rows_without_a_match_of_the_least_length_are_drafted_for() -> None:
    """Of four texts two repeat two tokens and five, and one a single token: at two tokens the first two alone are looked up, as far as they
    repeat, and four tokens at most.
    """
    engine = Engine(TARGET, LookupFirst(lm(blended(0.1)), Lookup(2)), lookahead=Budget(3, lookup=4), max_context=32)
    for prompt in ((4, 6, 9, 4, 6), (1, 4, 6, 9, 7, 3, 2, 4, 6, 9, 7, 3), (4, 6, 9, 4), (4, 6, 9)):
        engine.add(Request(prompt, 1))
    (step,) = engine.run()
    assert step.looked_up == (True, True, False, False)
    assert step.drafted == (2, 4, 3, 3)


@pytest.mark.parametrize(
    ("text", "most", "drafted"),
    [
        ([7, 1, 2, 3, 9, 8, 1, 2, 3], 15, [9, 8, 1]),  # a match of three, whose forerunner differs
        ([7, 1, 2, 3, 9, 8, 7, 1, 2, 3], 15, [9, 8, 7, 1]),  # of four, which begins the text
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 2, [1, 2]),
        ([5, 5, 5, 5], 15, [5, 5, 5]),  # of three, one token ago
        ([1, 2, 1, 2, 1, 2], 15, [1, 2, 1, 2]),
        ([1, 2, 3, 4], 15, []),
    ],
)
def test_a_look_up_drafts_as_many_tokens_as_its_match_is_long(text: list[int], most: int, drafted: list[int]) -> None:
    assert NGramIndex(Lookup().sizes).as_long_as_matched(text, most) == drafted


def test_a_look_up_that_cannot_be_verified_is_refused() -> None:
    with pytest.raises(ValueError, match="may verify; got 65"):
        Engine(TARGET, LookupFirst(lm(blended(0.1)), Lookup()), lookahead=Budget(4, lookup=65), max_context=64)


def test_steps_are_counted_by_source() -> None:
    decoding = decode_in_turn({"lm": engine_behind("lm, a longer look-up", max_batch=3)}, requests(), 3)["lm"]
    parts = [
        (c.lookup_steps, c.steps, c.lookup_drafted, c.drafted, c.lookup_accepted, c.accepted) for c in decoding.counts
    ]
    steps, all_steps, drafted, all_drafted, accepted, all_accepted = (
        sum(column) for column in zip(*parts, strict=True)
    )
    assert 0 < steps < all_steps
    assert 2 * steps < drafted < 7 * steps
    assert all_drafted == drafted + 3 * (all_steps - steps)
    assert 0 < accepted < all_accepted
    assert max(len(c.reached) for c in decoding.counts) == 7


def test_what_a_look_up_brings_is_counted_on_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """recipes/smollm2/lookup_matches.py on a text that stands there twice and once more in part: steps by hand."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes" / "smollm2"))
    import lookup_matches as recipe  # pyright: ignore[reportMissingImports]

    passage = [4, 6, 9, 7, 3, 2, 8]
    answers = [recipe.Answer([1, *passage, *passage, 9, 9], 8)]
    assert recipe.taken(answers) == (6, 2, 3, 10), "4 6 9; 7 3 2 looked up, 8; seven looked up in vain, 9; 9"
    assert recipe.taken(answers, 1.0, 2) == (4, 2, 3, 10), "the first three in one step"
    assert recipe.survival(answers)[[0, 5, 6]].tolist() == [1 / 3, 1 / 3, 0], "none; 6 9 7 3 2 8; none"
