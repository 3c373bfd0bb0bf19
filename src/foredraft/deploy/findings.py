"""What is wrong with a draft's folder, in words that a person can act on.

Refuses to know: how it was found.
"""

from collections.abc import Sequence

from foredraft.records import Record

ENGINES = ("vllm", "sglang")
SPELT = {"vllm": "vLLM", "sglang": "SGLang", "both": "any engine"}


class Finding(Record, frozen=True):
    """One fault: a short `code`, the tensor, key or file, what the loader of `engine` ("both": of any) does about it, and the remedy.

    `level`: "error", it would not load or compute something else; "warning", it works but loses, or only some versions fail.
    """

    code: str
    where: str
    effect: str
    remedy: str
    engine: str = "both"
    level: str = "error"

    def __str__(self) -> str:
        return f"{self.level} {self.code} ({SPELT[self.engine]}): {self.where}: {self.effect}; {self.remedy}"


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Those that keep a draft from working as it was trained."""
    return [one for one in findings if one.level == "error"]


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, each once: what every judged engine does alike is told once for both."""
    kept: dict[tuple[str, str, str, str], Finding] = {}
    for one in findings:
        key = (one.code, one.where, one.effect, one.level)
        twin = kept.get(key)
        alike = twin is not None and twin.engine != one.engine
        kept[key] = _for_both(one) if alike else one
    return sorted(kept.values(), key=lambda one: (one.level != "error", one.code, one.where))


def _for_both(one: Finding) -> Finding:
    return Finding(code=one.code, where=one.where, effect=one.effect, remedy=one.remedy, level=one.level)
