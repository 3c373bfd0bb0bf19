"""Which draft a method stands for: its kind, and its shape beside a target.

Refuses to know: how well it drafts.
"""

import re

from foredraft.records import Observation
from foredraft.shapes import Shape, eagle3_head, eagle_head, shape

LOOKUPS = frozenset({"ngram", "suffix", "lookahead", "rest"})
EAGLE3_LIKE = re.compile(r"eagle_?3|scylla|mtp|dspark|hass|griffin")
EAGLE_LIKE = re.compile(r"eagle")


def kind_of(method: str) -> str:
    """none, lookup (n-gram and kin: no model), lm (an independent model) or head (on the target's features)."""
    if method == "none":
        return "none"
    if method in LOOKUPS:
        return "lookup"
    return "lm" if method in ("draft_model", "lm", "unstated") else "head"


def draft_shape(row: Observation, target: Shape) -> Shape | None:
    """The draft's shape for a measured row; None for look-ups. Raises ValueError when the row does not say which
    draft it was.

    MTP and similar single-layer heads are costed as an EAGLE-3 head: one decoder layer on the target's features.
    """
    kind = kind_of(row.method)
    if kind in ("none", "lookup"):
        return None
    if kind == "lm":
        if not row.draft:
            raise ValueError("the draft model's name")
        return shape(row.draft)
    if EAGLE3_LIKE.search(row.method):
        return eagle3_head(target)
    if EAGLE_LIKE.search(row.method):
        return eagle_head(target)
    raise ValueError(f"a shape for method {row.method}")
