"""A finished draft on held-out texts: teacher-forced acceptance of any kind, without the engine.

Promises: every text stands alone, as a request would. Refuses to know: how drafts are trained.

Shapes: B texts of a batch, T tokens, padded on the right.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.teacher.acceptance import Acceptance, acceptance, tally
from foredraft.teacher.features import FeatureSource, Online
from foredraft.teacher.readings import Readings, begun, predicted, read
from foredraft.teacher.teacher import Teacher, Text
from foredraft.train.heads import HeadSettings, Unrolled


@torch.no_grad()
def judge(
    draft: DraftHead | Decoder,
    target: Decoder,
    texts: Iterable[Text],
    *,
    lookahead: int = 5,
    tokens_per_batch: int = 8192,
    laws: bool = False,
) -> Acceptance:
    """Acceptance of `draft` at chains of `lookahead`, on texts given as tokens and the mask of those to be predicted.

    On the target's own greedy answers this is what the engine would count at temperature 0; `laws` adds what chance
    would accept, which needs answers that the target sampled at temperature 1. Raises ValueError where nothing can be
    judged.
    """
    sums: dict[str, Tensor] = {}
    for batch in padded(texts, tokens_per_batch, target.device):
        readings = (
            head_readings(draft, batch, lookahead, laws=laws)
            if isinstance(draft, DraftHead)
            else model_readings(draft, target, batch, lookahead, laws=laws)
        )
        found = tally(readings, batch.tokens_BT, predicted(batch.mask_BT, batch.documents_BT), batch.documents_BT)
        sums = {name: sums[name] + value if sums else value for name, value in found.items()}
    if not sums:
        raise ValueError("no texts to judge a draft on")
    return acceptance(sums, determined=isinstance(draft, DraftHead))


def padded(texts: Iterable[Text], tokens_per_batch: int, device: torch.device) -> Iterator[Batch]:
    """Texts of like lengths together, one to a row; padding is a document of its own that nothing is predicted in."""
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


def head_readings(
    head: DraftHead, batch: Batch, lookahead: int, *, laws: bool = False, source: FeatureSource | None = None
) -> Readings:
    """Of a head beside its own target, or what `source` holds of that."""
    features = (source or Online(head.target, head.feature_layers))(batch)
    return Unrolled(head, HeadSettings()).eval().read(batch, features, lookahead, laws=laws)


def model_readings(
    draft: Decoder,
    target: Decoder,
    batch: Batch,
    lookahead: int,
    *,
    laws: bool = False,
    source: FeatureSource | None = None,
) -> Readings:
    """Of an independent language model beside the target, or what `source` holds of that; where its vocabulary is wider than the
    target's by padding, it is cut.
    """
    final = (source or Online(target, (target.shape.num_layers,)))(batch).final_BTW
    states = draft(batch.tokens_BT, logits="none").final_BTC
    width = min(draft.shape.vocab_size, target.shape.vocab_size)
    ids = None if width == target.shape.vocab_size else torch.arange(width, device=target.device)
    teacher = Teacher(final.flatten(0, 1), target.head_weight_VC, ids)
    emitted = predicted(batch.mask_BT, batch.documents_BT)
    drafted = begun(batch.documents_BT, lookahead)
    matrix = draft.head_weight_VC[:width]
    return read(states[None], matrix, teacher, batch.tokens_BT, emitted, drafted, laws=laws)
