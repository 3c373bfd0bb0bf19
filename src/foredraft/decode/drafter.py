"""What every drafter offers the engine: all stand behind `propose`, and none can change what is emitted. What they share.

Promises: each row's proposal depends on that row's text and settings alone, but for its length where that follows the batch.
Refuses to know: what becomes of a proposal.

Shapes: B running sequences, M tokens that a drafter has not read yet, V vocabulary.
"""

import math
from collections.abc import Sequence as Listed
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.lengths import StepLengths
from foredraft.decode.proposals import Budget, Proposal, in_line
from foredraft.decode.sampling import Sampling, probabilities, require_finite
from foredraft.decode.trees import broken, plan_of
from foredraft.models.cache import KVCache
from foredraft.models.chain import Chain, Drafted
from foredraft.models.decoder import Decoder
from foredraft.models.forward import causal_mask
from foredraft.models.kernels import chunk


class Drafter(Protocol):
    """What the engine asks of a drafter. `reads` names the target's hidden states whose values it needs for each token
    (none: it reads tokens alone); `cache` is what it holds per sequence; `trees`, whether it drafts any.
    """

    name: str
    reads: tuple[int, ...]
    trees: bool

    @property
    def cache(self) -> KVCache | None: ...

    def admit(self, row: int, sequence: Sequence) -> None:
        """A sequence enters at `row`: read its prompt but for the last token."""
        ...

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        """Draft for rows 0 … n-1. `lengths` is told each position's confidence before its token, and says whether to draft on."""
        ...

    def move(self, source: int, row: int, num: int) -> None:
        """The sequence of row `source`, of `num` tokens, now stands at `row`."""
        ...


class Pairs(NamedTuple):
    """Tokens that a draft has not read yet, what it reads beside each (None: nothing), their slots, which are their positions, which is
    the last of each row, and how many slots are in use then.
    """

    tokens_BM: Tensor
    left_BMC: Tensor | None
    slots_BM: Tensor
    last_B: Tensor
    seen: int


def fitted(logits_BV: Tensor, vocab_size: int) -> Tensor:
    """Logits over the target's vocabulary: rows that only the draft has are cut, those it lacks are impossible."""
    lacking = max(vocab_size - logits_BV.shape[-1], 0)
    if not lacking and logits_BV.shape[-1] == vocab_size:
        return logits_BV
    return torch.nn.functional.pad(logits_BV[..., :vocab_size], (0, lacking), value=-torch.inf)


def row_probabilities(logits_BV: Tensor, samplings: Listed[Sampling], model: str) -> Tensor:
    """Probabilities of every row [.., V] under its settings. Raises ValueError, which names `model`, on what is no distribution."""
    if (
        len({(sampling.temperature, sampling.top_p, sampling.top_k) for sampling in samplings}) == 1
    ):  # whatever the seeds
        return probabilities(logits_BV, samplings[0], model)
    rows = zip(logits_BV, samplings, strict=True)
    return torch.stack([probabilities(logits, sampling, model) for logits, sampling in rows])


def goes_on(lengths: StepLengths | None, logits_BV: Tensor, position: int, lookahead: int) -> bool:
    """Whether a position more is drafted after `position`, counted from 0, once `lengths` has been told that position's confidence."""
    wanted = lengths is None or lengths.tell(top_confidence(logits_BV))
    return wanted and position + 1 < lookahead


def top_confidence(logits_BV: Tensor) -> list[float]:
    """The logit of the probability of each row's most probable token, whatever is drawn: a confidence that every draft has."""
    logits = logits_BV.float()
    return _confidences((logits - logits.amax(-1, keepdim=True)).exp_().sum(-1))


def _confidences(over_largest_B: Tensor) -> list[float]:
    """The same of the sums of e^(logit − largest)."""
    return [_logit_of(-math.log(each)) for each in over_largest_B.tolist()]


def by_kernels(
    chain: Chain | None, pairs: Pairs, cache: KVCache, budget: Budget, lengths: StepLengths | None, model: str
) -> Proposal | None:
    """The most probable chain or tree by our kernels; None where there are none, or a pass of it has more rows than these take."""
    if chain is None or not chain.takes(pairs.tokens_BM.numel()):
        return None
    if budget.branches:
        return _kernel_tree(chain, pairs, cache, budget, model)
    return _greedy_chain(chain, pairs, cache, budget.lookahead, lengths, model)


def _greedy_chain(
    chain: Chain, pairs: Pairs, cache: KVCache, lookahead: int, lengths: StepLengths | None, model: str
) -> Proposal:
    """By one call, or one for each position where `lengths` is asked behind each."""
    tokens_BM, left_BMC, slots_BM, last_B, _ = pairs
    parts: list[Drafted] = []
    while len(parts) < (1 if lengths is None else lookahead):
        if parts:
            last, slots_BM = parts[-1], (slots_BM.gather(1, last_B[:, None]) + 1)
            tokens_BM, left_BMC, last_B = last.ids_KB.T, last.left_BC[:, None], torch.zeros_like(last_B)
        parts.append(chain(tokens_BM, left_BMC, slots_BM, last_B, cache, lookahead if lengths is None else 1))
        if lengths is not None and not lengths.tell(_confidences(parts[-1].over_largest_KB[0])):
            break
    require_finite(torch.cat([part.largest_KB for part in parts]).T, model)
    return in_line(torch.cat([part.ids_KB for part in parts]).T)


def _kernel_tree(chain: Chain, pairs: Pairs, cache: KVCache, budget: Budget, model: str) -> Proposal | None:
    tokens_BM, left_BMC, slots_BM, last_B, _ = pairs
    plan = plan_of(budget, chain.words, model)
    if not chain.takes(len(tokens_BM) * plan.widest):
        return None
    tree = chain.tree(tokens_BM, left_BMC, slots_BM, last_B, cache, plan)
    if tree is None:
        raise broken(model)
    ids, parents = tree
    return Proposal(ids, parents.tolist())


def _logit_of(log_prob: float) -> float:
    return log_prob - math.log(-math.expm1(min(log_prob, -1e-7)))


def over_target(probs_BKD: Tensor, draft_ids: Tensor | None, vocab_size: int) -> Tensor:
    """Probabilities over a draft's vocabulary as q over the target's, [B, K, V]: tokens outside are never drafted. None: it has them all."""
    if draft_ids is None:
        return probs_BKD
    q_BKV = probs_BKD.new_zeros(*probs_BKD.shape[:-1], vocab_size)
    return q_BKV.index_copy_(-1, draft_ids, probs_BKD)


def prefill(
    model: Decoder, cache: KVCache, row: int, sequence: Sequence, hidden_states: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """Read all tokens but the last into `row`; give the hidden states asked for, each [M, C]."""
    num, device, into = sequence.cached, model.device, cache.rows(row, row + 1)
    tokens, positions = torch.tensor([sequence.tokens[:-1]], device=device), torch.arange(num, device=device)[None]
    size, parts = chunk(num, model.dtype, device), []
    for start in range(0, num, size):
        some = positions[:, start : start + size]
        mask = causal_mask(some, int(some[0, -1]) + 1)
        output = model(
            tokens[:, start : start + size], some, into, mask_BTS=mask, hidden_states=hidden_states, logits="none"
        )
        parts.append(output.hidden_states)
    return tuple(torch.cat(chunks, 1)[0] for chunks in zip(*parts, strict=True))


def prefill_together(
    model: Decoder, cache: KVCache, row: int, sequences: Listed[Sequence], hidden_states: tuple[int, ...] = ()
) -> list[tuple[Tensor, ...]]:
    """`prefill` of several sequences into the rows from `row` on by one pass, padded on the right: what padding writes lies behind
    each text, where nothing looks before it is written anew."""
    counts = [sequence.cached for sequence in sequences]
    longest, device = max(counts), model.device
    if not longest:
        return [()] * len(counts)
    padded = [s.tokens[:-1] + [s.tokens[-1]] * (longest - n) for s, n in zip(sequences, counts, strict=True)]
    positions = torch.arange(longest, device=device).expand(len(counts), -1)
    output = model(
        torch.tensor(padded, device=device), positions, cache.rows(row, row + len(counts)),
        mask_BTS=causal_mask(positions[:1], longest), hidden_states=hidden_states, logits="none",
    )  # fmt: skip
    return [tuple(x[i, :n] for x in output.hidden_states) if n else () for i, n in enumerate(counts)]


def unread(running: Listed[Sequence], num_read: Listed[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens behind the first `num_read` of each sequence, right-padded by the last: tokens, positions [B, M], index of the last [B]."""
    counts = [len(sequence.tokens) - start for sequence, start in zip(running, num_read, strict=False)]
    width = max(counts)
    tokens = [
        s.tokens[len(s.tokens) - n :] + [s.tokens[-1]] * (width - n) for s, n in zip(running, counts, strict=True)
    ]
    starts = torch.tensor([len(s.tokens) - n for s, n in zip(running, counts, strict=True)], device=device)
    last = torch.tensor([n - 1 for n in counts], device=device)
    offsets = torch.arange(width, device=device).minimum(last[:, None])
    return torch.tensor(tokens, device=device), starts[:, None] + offsets, last
