"""Teacher-forced acceptance: one pass of target and draft over each text, and what every text says of acceptance.

Greedy acceptance is read off the target's own greedy answers, where the steps are the engine's one by one (`acceptance`);
what chance would accept off answers that it sampled at temperature 1. Drafts are followed along chains; a tree's acceptance
needs the engine.

Promises: every text stands alone, as a request would, and its sums depend on no other. Refuses to know: clocks, intervals, how
drafts are trained.

Shapes: B texts of a batch, T tokens, padded on the right, D texts, S positions of a chain.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.decode.drafter import fitted
from foredraft.models.block_head import BlockHead
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead, TokenHead
from foredraft.models.target import Target
from foredraft.teacher.acceptance import tally
from foredraft.teacher.blocks import PackedHead
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import HiddenStates
from foredraft.teacher.predictions import Predictions, drafted_mask, emitted_mask, predictions
from foredraft.teacher.teacher import Teacher, Text
from foredraft.teacher.unroll import UnrolledHead

TOKENS_PER_BATCH = 4096
# Scalars of a text; the last two at the first position.
SUMS = ("emitted", "whole", "steps", "cut", "all_accepted", "all_risk")

Array = NDArray[np.float64]


def teacher_forced(
    draft: DraftHead | Decoder, cache: TargetCache, texts: Sequence[Text], lookahead: int, *, probs: bool = False
) -> list[dict[str, Array]]:
    """For each text the sums of `acceptance.tally`, [S] or [] each; a text is its tokens and the mask of those to be predicted.

    `probs` adds "point", "sampled" and "there", which need texts sampled at temperature 1.
    """
    sums = tallies(draft, cache, texts, lookahead, probs=probs)
    return [{name: value[0].cpu().numpy() for name, value in row.items()} for row in sums]


@torch.no_grad()
def tallies(
    draft: DraftHead | Decoder, cache: TargetCache, texts: Sequence[Text], lookahead: int, *, probs: bool = False
) -> list[dict[str, Tensor]]:
    """For each text what `acceptance.tally` counts; that of several may be added."""
    layers = draft.feature_layers if isinstance(draft, DraftHead) else None
    source, sums = cache.hidden_states(layers), []
    longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
    for batch in padded([texts[i] for i in longest_first], TOKENS_PER_BATCH, cache.target.device):
        predicted = draft_predictions(draft, cache.target, batch, source(batch), lookahead, probs=probs)
        for row in range(len(batch.tokens_BT)):
            tokens, mask, documents = (part[row : row + 1] for part in batch)
            sums.append(tally(_of_row(predicted, row), tokens, emitted_mask(mask, documents), documents))
    return [row for _, row in sorted(zip(longest_first, sums, strict=True), key=lambda pair: pair[0])]


def padded(texts: Iterable[Text], tokens_per_batch: int, device: torch.device) -> Iterator[Batch]:
    """Texts of like lengths together, longest first, one to a row; padding is a document of its own that nothing is predicted in."""
    waiting = sorted(((np.asarray(t), np.asarray(m, dtype=bool)) for t, m in texts), key=lambda text: -len(text[0]))
    while waiting:
        width = max(3, len(waiting[0][0]))
        count = max(1, tokens_per_batch // width)
        rows, waiting = waiting[:count], waiting[count:]
        tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
        documents = np.full((len(rows), width), -1, np.int32)
        for row, (ids, labels) in enumerate(rows):
            tokens[row, : len(ids)], mask[row, : len(ids)], documents[row, : len(ids)] = ids, labels, 0
        yield Batch(*(torch.from_numpy(part).to(device) for part in (tokens, mask, documents)))


def draft_predictions(
    draft: DraftHead | Decoder, target: Target, batch: Batch, hidden_states: HiddenStates, lookahead: int, *, probs: bool = False
) -> Predictions:  # fmt: skip
    """Of a head beside its target, or of an independent language model, cut where its vocabulary is wider by padding. A token that the
    draft cannot draft is never accepted.
    """
    if isinstance(draft, BlockHead):
        return PackedHead(draft).predictions(batch, hidden_states, lookahead, probs=probs)
    if isinstance(draft, DraftHead):
        assert isinstance(draft, TokenHead), type(draft)
        return UnrolledHead(draft).predictions(batch, hidden_states, lookahead, probs=probs)
    states = draft(batch.tokens_BT, logits="none").final_BTC
    width, ids = min(draft.shape.vocab_size, target.shape.vocab_size), draft.draft_ids
    if ids is None and width != target.shape.vocab_size:
        ids = torch.arange(width, device=target.device)
    teacher = Teacher(hidden_states.final_BTW.flatten(0, 1), target.head_weight_VC, ids, form=target.logits_form)
    emitted, drafted = emitted_mask(batch.mask_BT, batch.documents_BT), drafted_mask(batch.documents_BT, lookahead)
    matrix = draft.head_weight_VC[:width]  # a draft vocabulary has fewer rows
    return predictions(states[None], matrix, teacher, batch.tokens_BT, emitted, drafted, probs=probs)


def _of_row(predicted: Predictions, row: int) -> Predictions:
    """One text's predictions, still a batch."""
    here = slice(row, row + 1)
    probs = predicted.probs and type(predicted.probs)(*(values[:, here] for values in predicted.probs))
    by_step = (values[:, here] for values in (predicted.drafted, predicted.agrees, predicted.in_text))
    return Predictions(*by_step, greedy=predicted.greedy[here], probs=probs)


@torch.no_grad()
def surprise(model: Decoder, texts: Sequence[Text], vocab_size: int) -> Array:
    """Nats that each text's predicted tokens cost `model`, and how many they are, [D, 2].

    `vocab_size`: the ids that count; rows that a model has beyond them, by padding, are cut before normalising, so that two
    models of one tokenizer are compared on one vocabulary.
    """
    costs = np.zeros((len(texts), 2))
    for i, text in enumerate(texts):
        (batch,) = padded([text], len(text[0]), model.device)
        costs[i] = _cost(model, batch, vocab_size)
    return costs


def _cost(model: Decoder, batch: Batch, vocab_size: int) -> tuple[float, float]:
    output = model(batch.tokens_BT)
    assert output.logits_BTV is not None
    log_probs_TV = fitted(output.logits_BTV[0], vocab_size).float().log_softmax(-1)
    predicted_T = emitted_mask(batch.mask_BT, batch.documents_BT)[0, 1:]
    log_probs: Tensor = log_probs_TV[:-1].gather(-1, batch.tokens_BT[0, 1:, None])[:, 0][predicted_T]
    return -float(log_probs.double().sum()), float(predicted_T.sum())
