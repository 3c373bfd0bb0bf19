"""Teacher-forced: one pass of target and draft over each answer of the target, and what every request's text says of acceptance.

Greedy acceptance is read off the target's own greedy answers, where the steps are the engine's one by one
(`train.acceptance`); what chance would accept off answers that it sampled at temperature 1. Drafts are followed along chains;
a tree's acceptance needs the engine.

Promises: every text stands alone, and its sums depend on no other. Refuses to know: clocks, intervals.

Shapes: D texts, S positions of a chain, K sums.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.decode.drafter import fitted
from foredraft.measure.bootstrap import Array
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.teacher.acceptance import tally
from foredraft.teacher.judge import head_readings, model_readings, padded
from foredraft.teacher.kept import Kept
from foredraft.teacher.readings import Readings, predicted
from foredraft.teacher.teacher import Text

TOKENS_PER_BATCH = 4096
SUMS = (
    "emitted",
    "whole",
    "steps",
    "cut",
    "all_accepted",
    "all_risk",
)  # scalars of a text; the last two at the first position


@torch.no_grad()
def forced(
    draft: DraftHead | Decoder, kept: Kept, texts: Sequence[Text], lookahead: int, *, laws: bool = False
) -> list[dict[str, Array]]:
    """For each text the sums of `train.acceptance.tally`, [S] or [] each; a text is its tokens and the mask of those to be predicted.

    `laws` adds "point", "sampled" and "there", which need texts sampled at temperature 1.
    """
    target, source = kept.target, kept.features(draft.feature_layers if isinstance(draft, DraftHead) else None)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
    found: dict[int, dict[str, Array]] = {}
    left = iter(order)
    for batch in padded([texts[i] for i in order], TOKENS_PER_BATCH, target.device):
        readings = (
            head_readings(draft, batch, lookahead, laws=laws, source=source)
            if isinstance(draft, DraftHead)
            else model_readings(draft, target, batch, lookahead, laws=laws, source=source)
        )
        for row in range(len(batch.tokens_BT)):
            index = next(left)
            tokens, mask, documents = (part[row : row + 1] for part in batch)
            assert tokens[0, : len(texts[index][0])].tolist() == list(texts[index][0]), "texts come longest first"
            sums = tally(_of_row(readings, row), tokens, predicted(mask, documents), documents)
            found[index] = {name: value[0].cpu().numpy() for name, value in sums.items()}
    return [found[i] for i in range(len(texts))]


def _of_row(readings: Readings, row: int) -> Readings:
    """One text's readings, still a batch."""
    here = slice(row, row + 1)
    laws = readings.laws and type(readings.laws)(*(values[:, here] for values in readings.laws))
    by_step = (values[:, here] for values in (readings.drafted, readings.agrees, readings.says))
    return Readings(*by_step, follows=readings.follows[here], laws=laws)


@torch.no_grad()
def surprise(model: Decoder, texts: Sequence[Text], vocab_size: int) -> Array:
    """Nats that each text's predicted tokens cost `model`, and how many they are, [D, 2].

    `vocab_size`: the ids that count; rows that a model has beyond them, by padding, are cut before normalising, so that two
    models of one tokenizer are compared on one vocabulary.
    """
    found = np.zeros((len(texts), 2))
    for i, text in enumerate(texts):
        (batch,) = padded([text], len(text[0]), model.device)
        found[i] = _cost(model, batch, vocab_size)
    return found


def _cost(model: Decoder, batch: Batch, vocab_size: int) -> tuple[float, float]:
    output = model(batch.tokens_BT)
    assert output.logits_BTV is not None
    laws_TV = fitted(output.logits_BTV[0], vocab_size).float().log_softmax(-1)
    there = predicted(batch.mask_BT, batch.documents_BT)[0, 1:]
    said: Tensor = laws_TV[:-1].gather(-1, batch.tokens_BT[0, 1:, None])[:, 0][there]
    return -float(said.double().sum()), float(there.sum())
