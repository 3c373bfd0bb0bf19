"""A server's counts as numbers: Prometheus pages, running totals, and what one response says of its own speculation.

Promises: a total that is not there is None. Refuses to know: what an engine calls its counters, how a server is asked.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from foredraft.records import Record, require

MOST, POSITIONS = 10**15, 1024  # that a server can have counted; drafted tokens of a step
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([^\s]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class PageSample(NamedTuple):
    """One line of a Prometheus page."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(page: str) -> list[PageSample]:
    """The lines of a Prometheus page that hold a number, NaN and infinite ones too."""
    lines = []
    for line in page.splitlines():
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        lines.append(PageSample(match[1], dict(_LABEL.findall(match[2] or "")), value))
    return lines


def total(page: Sequence[PageSample], name: str) -> float | None:
    """The sum of a counter over all engines behind a server; None where the page has none of that name. Raises ValueError where it is no
    finite number.
    """
    values = [finite(sample) for sample in page if sample.name == name]
    return sum(values) if values else None


def finite(sample: PageSample) -> float:
    """A sample's value. Raises ValueError where it is NaN, infinite, or more than can have been counted."""
    if not abs(sample.value) <= MOST:
        raise ValueError(f"the server's page of counters: {sample.name} is {sample.value}")
    return sample.value


NEAR = 0.05  # how far drafted tokens per step may lie from a whole number that stands for all steps


def chain_length(steps: float, drafted: float | None) -> int | None:
    """Draft tokens per step where that is a whole number; None of a schedule that changed under way."""
    mean = (drafted or 0.0) / steps
    return round(mean) if round(mean) and abs(mean - round(mean)) <= NEAR else None


class Counters(Record, frozen=True):
    """A server's running totals since it started: `steps` of sequences that drafted, `drafted` and `accepted` tokens, and by
    position how many steps accepted at least so many.
    """

    steps: int
    drafted: int
    accepted: int
    by_position: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self, non_negative=("steps", "drafted", "accepted", "by_position"))
        if self.accepted > self.drafted:
            raise ValueError(f"accepted ({self.accepted}) must not exceed drafted ({self.drafted})")

    @property
    def lookahead(self) -> int | None:
        return chain_length(self.steps, self.drafted)

    @property
    def longest(self) -> int | None:
        """Draft tokens of a step at most, where the server counts every position that it may draft; else as many as all steps draft."""
        return self.lookahead or len(self.by_position) or None

    @property
    def survival(self) -> tuple[float, ...]:
        """Joint acceptance by position, as far as steps drafted."""
        return tuple(min(count / self.steps, 1.0) for count in self.by_position[: self.lookahead])

    def since(self, earlier: "Counters") -> "Counters":
        """What came between two readings. Raises ValueError where a total fell: the server was started anew in between."""
        if len(self.by_position) != len(earlier.by_position):
            raise ValueError(
                f"by_position has {len(self.by_position)} positions, and had {len(earlier.by_position)} before"
            )
        parts = {name: getattr(self, name) - getattr(earlier, name) for name in ("steps", "drafted", "accepted")}
        places = tuple(now - then for now, then in zip(self.by_position, earlier.by_position, strict=True))
        if fell := [name for name, value in (*parts.items(), ("by_position", min(places, default=0))) if value < 0]:
            raise ValueError(
                f"{fell[0]} fell between the readings: the server was started anew; read it before and after one load"
            )
        return Counters(**parts, by_position=places)


class Totals(NamedTuple):
    """A server's running totals. `spec` None: it does not speculate, or does not say. `cached`: prompt tokens out of its prefix cache;
    `running` and `waiting`: requests now; `tokens_per_step`: τ now, of a server that tells no counts of it.
    """

    spec: Counters | None = None
    generated: float | None = None
    requests: float | None = None
    prompts: float | None = None
    cached: float | None = None
    running: float | None = None
    waiting: float | None = None
    tokens_per_step: float | None = None


class RequestCounts(NamedTuple):
    """One request's speculation. `accepted` None: only steps are told. `by_position[i]`: steps that accepted more than i; () where not told."""

    steps: int
    drafted: int | None
    accepted: int | None
    by_position: tuple[int, ...] = ()


def nested(event: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key of a JSON object; {} where there is none."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def whole_number(counts: Mapping[str, Any], *names: str) -> int | None:
    """The first count that is there, newer and older names of the same in order. Raises ValueError where it counts nothing."""
    return next((count_of(counts[name], name) for name in names if counts.get(name) is not None), None)


def count_of(value: Any, name: str, most: int = MOST) -> int:
    """A count that a server states. Raises ValueError where it is no whole number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value != int(value):
        raise ValueError(f"the server counts {name} as {value!r:.60}")
    return int(value)


def position_of(key: Any) -> int:
    """A drafted position that a server states, in digits or as a number. Raises ValueError beyond `POSITIONS`."""
    number = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 9 else key
    return count_of(number, "a position", POSITIONS)


def reached(histogram: Any, longest: int | None = None) -> tuple[int, ...]:
    """From steps by how many tokens they accepted, dense or by number, to steps that accepted more than i."""
    if isinstance(histogram, dict):
        counts = {position_of(key): count_of(value, "steps") for key, value in histogram.items()}
    elif isinstance(histogram, list) and len(histogram) <= POSITIONS:
        counts = {i: count_of(value, "steps") for i, value in enumerate(histogram)}
    else:
        return ()
    most = max([*counts, position_of(longest or 0)], default=0)
    return tuple(sum(count for accepted, count in counts.items() if accepted > i) for i in range(most))
