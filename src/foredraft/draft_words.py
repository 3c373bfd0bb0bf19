"""How a draft is written where one is asked for and where one was measured: its folder or kind, a look-up before it, lengths by its confidence.

Promises: words that mean nothing are a ValueError of one line. Refuses to know: kinds, what lies in a folder.
"""

import re
from pathlib import Path
from typing import NamedTuple

LONGEST_MATCH = 3  # tokens of a match that is looked for first; 8 gained 0.003 tokens per step over 3 (docs/log.md)
ALONE = "ngram"  # a look-up without a draft
BESIDE = f"+{ALONE}"  # behind a draft, in words and in measurements: a look-up stands before it
BEHIND = " + look-up"  # the same behind a planned draft's name, for people
_LOOKUP = re.compile(rf"(?P<draft>.+){re.escape(BESIDE)}(?::(?P<min_match>\d+)(?:,(?P<lookahead>\d+))?)?")
ADAPTIVE = "~"  # behind a draft, in words and in measurements: lengths follow its confidence
LENGTHS = "lengths.json"  # in a draft's folder: what its confidence and its steps were measured to be
_ADAPTIVE = re.compile(rf"(?P<draft>.+){ADAPTIVE}(?P<file>(?:.+\.json)?)")


class Lookup(NamedTuple):
    """A look-up before a draft: it takes matches of `min_match` tokens or more, and drafts as many as the match is long, `lookahead` at most.

    The default match is the shortest that accepts more than a draft of 2.5 tokens per step does: of 4 looked up after matches of
    exactly 1, 2, 3, 4 and 5 tokens 0.4, 1.2, 1.6, 1.8 and 2.2 were accepted. A further token is accepted the more likely the longer
    the match, so that no one length suits all (docs/log.md).
    """

    min_match: int = 3
    lookahead: int = 15

    @property
    def sizes(self) -> range:
        """Tokens of the matches that are looked for, the longest first."""
        return range(max(LONGEST_MATCH, self.min_match), self.min_match - 1, -1)


def parted(draft: str) -> tuple[str, Lookup | None]:
    """A draft's words, `DIR`, `DIR~[FILE.json]` or `DIR+ngram[:MIN_MATCH[,LOOKAHEAD]]`, as what drafts and the look-up before it, if any.

    Raises ValueError where a look-up stands before a look-up, or asks for no token, or where lengths are to follow a look-up.
    """
    if adaptive := _ADAPTIVE.fullmatch(draft):
        folder, lookup = parted(adaptive["draft"])
        if lookup or folder == ALONE:
            raise ValueError(
                f"draft {draft!r}: a look-up has no confidence that lengths could follow; leave {ADAPTIVE} out"
            )
        return folder, None
    match = _LOOKUP.fullmatch(draft)
    if not match:
        return draft, None
    lookup = Lookup(*(int(stated) for stated in match.group("min_match", "lookahead") if stated is not None))
    if not all(lookup):
        raise ValueError(
            f"draft {draft!r}: what follows {BESIDE}: is MIN_MATCH or MIN_MATCH,LOOKAHEAD, each at least 1"
        )
    if parted(match["draft"])[1] or match["draft"] == ALONE:
        raise ValueError(f"draft {draft!r}: {BESIDE} stands once, behind a folder")
    return match["draft"], lookup


def lengths_file(draft: str) -> Path | None:
    """Where a draft's words, `DIR~` or `DIR~FILE.json`, say that its lengths were measured; None where they do not follow its confidence."""
    adaptive = _ADAPTIVE.fullmatch(draft)
    return (Path(adaptive["file"]) if adaptive["file"] else Path(adaptive["draft"]) / LENGTHS) if adaptive else None
