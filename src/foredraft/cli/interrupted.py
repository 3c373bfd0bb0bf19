"""What Ctrl-C leaves of each verb, in a line. Refuses to know: how anything is saved."""

from collections.abc import Sequence

_AT_THE_END = "its output is written whole at its end, so nothing of it is saved; the same command begins anew"
_SAVED = {
    "data regenerate": "the answers so far are saved; the same command goes on",
    "measure": "rows are written at the end, those of a running server after each load; what was written before stands",
    "generate": "answers that were printed are all there is",
    "chat": "the chat is not saved",
    "bench": "what was printed is all there is",
    "page": "the page is no longer served; its address holds all inputs",
    "train": "the last checkpoint stands; the same command goes on",
    "sweep": "what was done and begun is kept; the same command goes on",
    "tour": "steps that ended are kept in the tour's folder",
}


def interruption(verb: str) -> str:
    """The line that ends a verb which the user stopped."""
    return f"stopped: {_SAVED.get(verb, _AT_THE_END)}"


def verb_of(words: Sequence[str], groups: Sequence[str]) -> str:
    """The verb on a command line, with its group's name before it."""
    names = [word for word in words if not word.startswith("-")]
    return " ".join(names[: 2 if names[:1] and names[0] in groups else 1])
