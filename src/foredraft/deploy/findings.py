"""What is wrong with a draft's folder, in words that a person can act on.

Refuses to know: how it was noticed.
"""

from collections.abc import Sequence

import msgspec

from foredraft.engines import ENGINES
from foredraft.engines.loading import Fault
from foredraft.records import Record

BOTH = "both"  # what every judged engine does alike
LEVELS = ("error", "warning", "note")


class Finding(Record, frozen=True):
    """One fault: a short `code`, the tensor, key or file, what the loader of `engine` ("both": of any) does about it, and the remedy.

    `level`: "error", it would not load or compute something else; "warning", it works but loses, or only some versions fail; "note", nothing
    is known to be wrong.
    """

    code: str
    where: str
    effect: str
    remedy: str
    engine: str = BOTH
    level: str = "error"

    def __str__(self) -> str:
        label = ENGINES[self.engine].label if self.engine in ENGINES else "any engine"
        return f"{self.level} {self.code} ({label}): {self.where}: {self.effect}; {self.remedy}"


def finding(fault: Fault, engine: str) -> Finding:
    """A fault as `engine` sees it."""
    return Finding(engine=engine, **fault._asdict())


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Those that keep a draft from working as it was trained."""
    return [finding for finding in findings if finding.level == "error"]


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, each once: what every judged engine does alike is told once for both."""
    distinct: dict[tuple[str, str, str, str], Finding] = {}
    for finding in findings:
        key = (finding.code, finding.where, finding.effect, finding.level)
        alike = key in distinct and distinct[key].engine != finding.engine
        distinct[key] = msgspec.structs.replace(finding, engine=BOTH) if alike else finding
    return sorted(distinct.values(), key=lambda finding: (LEVELS.index(finding.level), finding.code, finding.where))
