"""Published measurements along one dial of a draft's making: τ against training tokens or layers, all else alike.

Promises: a series is of one target, one method and one way of measuring. Refuses to know: which law it follows.
"""

from functools import cache
from importlib.resources import files
from typing import Literal

from foredraft.records import Record, decode


class DialSeries(Record, frozen=True):
    """τ of drafts alike in all but `dial`, at each of `at` (in `unit`), in rising order.

    `method` is the kind of draft as measurements spell it; `passes` says how it drafts, as `Kind.passes` does.
    """

    name: str
    method: str
    dial: Literal["draft_tokens", "draft_layers"]
    unit: str
    at: tuple[float, ...]
    tokens_per_step: tuple[float, ...]
    conditions: str
    source: str
    passes: Literal["token", "block"] = "token"

    def __post_init__(self) -> None:
        if len(self.at) != len(self.tokens_per_step) or sorted(set(self.at)) != list(self.at):
            raise ValueError(f"at of {self.name!r} must rise, with a tokens_per_step for each")


@cache
def dial_series(dial: str) -> tuple[DialSeries, ...]:
    """The published series along `dial`, draft_tokens or draft_layers."""
    text = (files("foredraft") / "published" / "dial_series.json").read_text(encoding="utf-8")
    return tuple(series for series in decode(list[DialSeries], text, name="dial_series.json") if series.dial == dial)
