"""How many words a draft to be trained may draft: acceptance lost at the others against the LM head's bytes and FLOPs.

Promises: each draft is weighed at the one size that is expected to gain the most, so that the search grows by none; it keeps its usual
size where no other gains WORTH more. Refuses to know: which drafts are weighed, draws of costs.

Acceptance at a position falls to α · (1 - outside), since a token outside is never accepted: as if what lies outside were drafted as well as
the rest, where it is drafted worse, so that the loss is rather over- than understated.

Shapes: L loads, K positions, S draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.laws.coverage import LEAST_VOCABULARY, CountedCoverage, Coverage, coverage_law
from foredraft.laws.draws import normals
from foredraft.plan.candidate import AcceptanceDraws, Candidate, Steps, choice, head_training_flops
from foredraft.plan.outcome import Pairs, outcome
from foredraft.plan.problem import Mode, Problem
from foredraft.shapes import Shape

Array = NDArray[np.float64]

HALVINGS = 5  # of the vocabulary that are tried, …
LEAST_WORDS = 1024  # … down to so many words
WORTH = 0.005  # of log gain that another size than the usual must bring
DRAWS = 64  # behind a draft's mean acceptance


@dataclass(frozen=True)
class CutAcceptance:
    """Acceptance of a draft of `before` words, where it may draft `words` of `vocab_size`."""

    base: AcceptanceDraws
    coverage: Coverage
    words: int
    before: int
    vocab_size: int

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        accept, beside = self.base.draws(num, rng, frozen), normals(num, rng)
        return _cut(accept, self.kept(np.zeros(num) if "draft" in frozen else beside)[:, None])

    def kept(self, normal: Array) -> Array:
        """Of the acceptance before, the share that is left, [S]."""
        outside, before = (self.coverage.outside(n, self.vocab_size, normal) for n in (self.words, self.before))
        return (1 - outside) / np.maximum(1 - before, 1e-9)


def _cut(accept: Array, kept: Array) -> Array:
    return np.clip(accept * kept, 0.0, 1 - 1e-9)


def with_draft_vocabularies(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same drafts, those whose vocabulary is a dial at their best size of it."""
    coverage = _coverage(problem)
    if coverage is None or problem.settings.objective == "tokens_per_flop":
        return list(candidates)
    best: dict[Shape, int] = {}
    sized = []
    for candidate in candidates:
        shape = candidate.shape
        if shape is None or not _has_dial(candidate, problem):
            sized.append(candidate)
            continue
        if shape not in best:
            best[shape] = _best_size(problem, candidate, coverage)
        sized.append(resized(problem, candidate, best[shape], coverage))
    return sized


def with_words(problem: Problem, candidate: Candidate, words: int | None) -> Candidate:
    """The same draft with a vocabulary of so many `words` (None: as it stands) where that is a dial."""
    coverage = _coverage(problem)
    if coverage is None or words is None or candidate.shape is None or not _has_dial(candidate, problem):
        return candidate
    return resized(problem, candidate, words, coverage)


def _coverage(problem: Problem) -> Coverage | None:
    """The user's counts, else the law where it speaks for such a vocabulary."""
    if problem.settings.outside:
        return CountedCoverage(problem.settings.outside)
    return coverage_law() if problem.target.vocab_size >= LEAST_VOCABULARY else None


def _has_dial(candidate: Candidate, problem: Problem) -> bool:
    """Whether the draft is to be trained here, and its engine runs such drafts with a vocabulary of their own."""
    kind = kinds.of_choice(candidate.choice)
    trains = kind.training is not None and kinds.OURS in kind.training.tools and candidate.choice.training_flops > 0
    return (
        trains and kind.name in kinds.CHECKPOINTS and kind.name in ENGINES[problem.settings.engine].draft_vocabularies
    )


def sizes(vocab_size: int) -> list[int]:
    """The numbers of words that are tried: all, and halvings."""
    return [size for i in range(HALVINGS + 1) if (size := vocab_size >> i) >= min(LEAST_WORDS, vocab_size)]


def _words(shape: Shape) -> int:
    return shape.draft_vocab_size or shape.vocab_size


def _best_size(problem: Problem, candidate: Candidate, coverage: Coverage) -> int:
    """The number of words of the greatest expected gain, which is the draft's own where the others' are no greater by WORTH."""
    shape = candidate.shape
    assert shape is not None
    accept = problem.accept(candidate, DRAWS).mean(axis=0)
    gains = {}
    for size in dict.fromkeys((_words(shape), *sizes(shape.vocab_size))):
        kept = CutAcceptance(candidate.acceptance, coverage, size, _words(shape), shape.vocab_size).kept(np.zeros(1))
        try:
            gains[size] = _expected(problem, _of_size(problem, candidate, size), _cut(accept, kept))
        except ValueError:  # it does not fit: what does is the search's matter
            continue
    usual = gains.get(_words(shape), -np.inf)
    size = max(gains, key=lambda size: gains[size], default=_words(shape))
    return size if gains and gains[size] > usual + WORTH else _words(shape)


def _expected(problem: Problem, candidate: Candidate, accept: Array) -> float:
    """The mean log gain of the best chain at each load, costs at their centre, at accept_given_prefix [K]."""
    longest, num_loads = min(problem.settings.max_lookahead, len(accept)), len(problem.concurrency)
    pairs = Pairs.all(num_loads, [Mode(k, 1, k) for k in range(1, longest + 1)])
    tau: Array = np.tile(1 + np.cumsum(np.cumprod(accept))[:longest], num_loads)[:, None].astype(np.float64)
    lift = outcome(problem, candidate, pairs, Steps(tau), costs_frozen=True).lift
    return float(problem.weights @ lift.reshape(num_loads, longest).max(axis=1))


def resized(problem: Problem, candidate: Candidate, size: int, coverage: Coverage) -> Candidate:
    """The draft with a vocabulary of `size` words."""
    shape = candidate.shape
    assert shape is not None
    if size == _words(shape):
        return candidate
    law, vocab_size = (
        CutAcceptance(candidate.acceptance, coverage, size, _words(shape), shape.vocab_size),
        shape.vocab_size,
    )
    low, middle, high = coverage.outside(size, vocab_size, np.array([-1.645, 0.0, 1.645]))
    note = f"drafts {size:,} of {vocab_size:,} words: {middle:.1%} of tokens lie outside ({low:.1%} to {high:.1%})"
    sized = _of_size(problem, candidate, size)
    return replace(sized, acceptance=law, notes=(*candidate.notes, f"{note}; {coverage.source}"))


def _of_size(problem: Problem, candidate: Candidate, size: int) -> Candidate:
    """The same draft with `size` words, its parameters and training FLOPs counted anew; its acceptance as it was."""
    shape, before = candidate.shape, candidate.choice
    assert shape is not None
    sized = msgspec.structs.replace(
        shape, draft_vocab_size=None if size == shape.vocab_size and not _own(shape) else size
    )
    tokens = before.draft_tokens or 0.0
    flops = head_training_flops(problem.target, sized, tokens) if shape.head else 3 * sized.flops_per_token(0) * tokens
    after = choice(before.name, sized, problem.train_machine, before.draft_tokens, flops, hub_id=before.hub_id)
    return replace(candidate, choice=after, shape=sized)


def _own(shape: Shape) -> bool:
    return shape.head is not None and shape.head.own_lm_head
