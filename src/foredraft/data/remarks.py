"""What rows have that token data has not, in a line for each kind. Refuses to know: who prints it."""

from collections.abc import Iterable

from foredraft.data.left_out import Words
from foredraft.data.rows import Document

SHOWN = 40  # characters of the first words of a kind


class Remarks:
    """Counts rows by what is to be said of them; `lines` says it, with the first row of each kind."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def note(self, document: Document, left_out: Iterable[Words] = (), in_chat: bool = True) -> None:
        """Take what is to be said of a row; what concerns chat templates only where it is read `in_chat`."""
        kinds = [f"key {key!r} is not read" for key in document.unread]
        kinds += dict.fromkeys(document.remarks if in_chat else ())
        for kind in kinds:
            self._count(kind, document.where)
        self.note_left_out(document.where, left_out)

    def note_left_out(self, where: str, left_out: Iterable[Words]) -> None:
        """Take the words of a row that its chat template leaves out."""
        first: dict[str, str] = {}
        for words in left_out:
            text = " ".join(words.text.split())
            first.setdefault(words.kind, text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
        for kind, text in first.items():
            self._count(f"the chat template leaves out {kind}", f"{where} ({text!r})")

    def _count(self, kind: str, where: str) -> None:
        self.rows[kind] = self.rows.get(kind, 0) + 1
        self.first.setdefault(kind, where)

    def lines(self) -> tuple[str, ...]:
        """Return a line per kind: what, of how many rows, the first of them."""
        return tuple(
            f"{kind} ({count:,} {'row' if count == 1 else 'rows'}, first {self.first[kind]})"
            for kind, count in self.rows.items()
        )
