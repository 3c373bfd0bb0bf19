"""A head beside its target's tables, which are read, never copied but for the rows that it drafts, and are no parameters of the module.

Promises: the rows that a head borrows or is held against are taken once. Refuses to know: passes, losses.

Shapes: V the head's vocabulary, C its hidden size, W the target's.
"""

from torch import Tensor, nn

from foredraft.models.draft_head import DraftHead


class HeadBesideTarget(nn.Module):
    """What training and measuring run of any `head`. `within_documents`: nothing is seen of other documents in a window."""

    def __init__(self, head: DraftHead, *, within_documents: bool = False) -> None:
        super().__init__()
        self.head, self.within_documents = head, within_documents
        self._tables = (head.target.embed_tokens.weight, head.target.head_weight_VC)
        self._form = head.target.logits_form
        self._borrowed_rows: tuple[Tensor, ...] = (head.head_weight_VC,) if head.lm_head is None else ()
        self._draftable_rows = (
            self._borrowed_rows
        )  # of the target's LM head; of a head with its own once they are asked for

    def lm_head(self) -> Tensor:
        """The matrix that makes logits of states: the head's own, or of the target's the rows that it can draft, [V, C]."""
        return self._borrowed_rows[0] if self.head.lm_head is None else self.head.lm_head.weight

    def draftable_rows(self, ids_V: Tensor) -> Tensor:
        """The rows of the target's LM head that the head can draft, [V, W]."""
        self._draftable_rows = self._draftable_rows or (self._tables[1][ids_V],)
        return self._draftable_rows[0]
