"""The drafter that a name or a folder stands for, by the role of its kind.

Promises: a draft that cannot draft for this target is one line. Refuses to know: how any of them drafts.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from foredraft import kinds, shapes
from foredraft.decode.block_drafter import BlockDrafter
from foredraft.decode.drafter import Drafter
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.lengths import LengthRule
from foredraft.decode.lookup_first import LookupFirst
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramDrafter
from foredraft.models import kernels
from foredraft.models.block_head import BlockHead
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead, TokenHead
from foredraft.models.heads import load_head
from foredraft.models.load import load
from foredraft.records import DraftLengths, read, with_hint

M = TypeVar("M", DraftHead, Decoder)

TREE_SLOTS = 192  # nodes of a tree that a drafter may extend, beyond those that a step may verify


def drafter_for(target: Decoder, draft: str, max_batch: int, slots: int) -> Drafter:
    """The drafter for "ngram", or from the folder of a language model or of a draft head; caches of `slots` slots. Behind a folder
    `+ngram[:MIN_MATCH[,LOOKAHEAD]]` puts a look-up before it; what `~` asks for is `rule_for`'s.

    Raises ValueError on a draft no smaller than its target, or one of another vocabulary.
    """
    draft, lookup = kinds.parted(draft)
    drafter = DRAFTERS[role_of(draft)](target, draft, max_batch, slots + TREE_SLOTS)
    return LookupFirst(drafter, lookup) if lookup else drafter


def rule_for(target: Decoder, draft: str) -> LengthRule | None:
    """The rule by which lengths follow the confidence of a draft written as `DIR~` or `DIR~FILE.json`; None of any other.

    Raises ValueError where it was not measured, or elsewhere: what passes cost there says nothing of here.
    """
    file = kinds.lengths_file(draft)
    if file is None:
        return None
    if not file.is_file():
        folder = kinds.parted(draft)[0]
        raise with_hint(
            ValueError(f"draft {draft}: no {file}, which says when a longer draft pays"),
            f"measure it: foredraft measure TARGET --draft {folder}@7 --adaptive --prompts FILE --out DIR, then --draft {folder}~DIR/NAME.json",
        )
    measured, here = (
        read(DraftLengths, file),
        (machine_name(target.device), str(target.dtype)[6:], torch.get_num_threads()),
    )
    there = measured.machine, measured.dtype, measured.threads or here[2]
    if there != here:
        raise with_hint(
            ValueError(
                f"{file}: measured on {there[0]}, {there[1]}, {there[2]} threads, and this is {here[0]}, {here[1]}, {here[2]} threads"
            ),
            "measure again with --adaptive: what passes cost is another",
        )
    return LengthRule(measured, kernels.most_rows(target))


def machine_name(device: torch.device) -> str:
    """The processor's or accelerator's name as it gives it."""
    return kernels.processor_name() if device.type == "cpu" else torch.cuda.get_device_name(device)


def role_of(draft: str) -> kinds.Role:
    """The role of the draft that a name or a folder stands for."""
    if draft == kinds.NGRAM.name:
        return kinds.NGRAM.role
    return kinds.of_checkpoint(shapes.unfolded(shapes.read_config(draft)), shapes.tensor_names(draft)).role


def _ngram(target: Decoder, draft: str, max_batch: int, slots: int) -> Drafter:
    return NGramDrafter()


def _head(target: Decoder, draft: str, max_batch: int, slots: int) -> Drafter:
    head = _narrowed(load_head(draft, target, target.dtype, target.device), target)
    return head_drafter(head, head.new_cache(max_batch, slots))


def _narrowed(model: M, target: Decoder) -> M:
    """The draft of a float32 target in bfloat16, where that holds its weights exactly, or they are kept in eight bits, and our kernels run it:
    half as much to read. What it drafts is judged by the target in float32 all the same.
    """
    half = torch.bfloat16
    if target.dtype != torch.float32 or half not in model.kernel_dtypes or not kernels.able(half, target.device):
        return model
    if model.in_eight or all(bool((each.to(half).to(each.dtype) == each).all()) for each in model.parameters()):
        return model.to(half)
    return model


def head_drafter(head: DraftHead, cache: KVCache) -> Drafter:
    """The drafter of a head: by blocks, or token by token."""
    if isinstance(head, BlockHead):
        return BlockDrafter(head, cache)
    assert isinstance(head, TokenHead), type(head)
    return HeadDrafter(head, cache)


def _model(target: Decoder, draft: str, max_batch: int, slots: int) -> Drafter:
    model = load(draft, target.dtype, target.device)
    if model.shape.params >= target.shape.params:
        raise ValueError(
            f"draft {draft} ({model.shape.params:,} parameters) must be smaller than its target ({target.shape.params:,})"
        )
    if abs(model.shape.vocab_size / target.shape.vocab_size - 1) > 0.01:
        raise ValueError(
            f"draft vocab_size {model.shape.vocab_size} is not the target's {target.shape.vocab_size}: "
            "they do not share a tokenizer; train a draft with the target's"
        )
    if model.draft_ids is not None and int(model.draft_ids.max()) >= target.shape.vocab_size:
        raise ValueError(
            f"draft {draft}: d2t names token {int(model.draft_ids.max())}, beyond the target's {target.shape.vocab_size}"
        )
    model = _narrowed(model, target)
    return ModelDrafter(model, model.new_cache(max_batch, slots), vocab_size=target.shape.vocab_size)


DRAFTERS: Mapping[kinds.Role, Callable[[Decoder, str, int, int], Drafter]] = {
    "lookup": _ngram,
    "lm": _model,
    "head": _head,
}
