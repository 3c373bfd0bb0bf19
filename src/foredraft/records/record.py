"""The base of all records, and one-line errors that name the field. Refuses to know: any record."""

import math
import re
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

E = TypeVar("E", bound=Exception)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all records: frozen, keyword-only, strict about keys, silent about what is missing."""


def require(
    record: Any, *, positive: tuple[str, ...] = (), non_negative: tuple[str, ...] = (), unit: tuple[str, ...] = ()
) -> None:
    """One-line errors that name the field: `positive` > 0, `non_negative` ≥ 0, `unit` within [0, 1]; None passes, NaN never."""
    names = positive + non_negative
    if names and not _is_fine(_getter(names)(record), len(positive)):
        for name in names:
            _require(name, getattr(record, name), positive=name in positive)
    for name in unit:
        if (value := getattr(record, name)) is not None:
            _require(name, value, most=1.0)


@cache
def _getter(names: tuple[str, ...]) -> Callable[[Any], Any]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _is_fine(values: tuple[Any, ...], positive: int) -> bool:
    """Whether all that is no None is a finite number, the first `positive` above 0 and the others not below, as in nearly all records;
    lists are looked at one by one.
    """
    numbers = [value for value in values if value is not None]
    try:
        total, least = sum(numbers), min(numbers, default=1)
    except TypeError:
        return False
    return total - total == 0 and (least > 0 or (least == 0 and 0 not in values[:positive]))


def _require(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> None:
    for item in value if isinstance(value, tuple) else () if value is None else (value,):
        if not math.isfinite(item):
            raise ValueError(f"{name} must be a finite number, got {item}")
        if positive and item <= 0:
            raise ValueError(f"{name} must be positive, got {item}")
        if item < 0:
            raise ValueError(f"{name} must not be negative, got {item}")
        if item > most:
            raise ValueError(f"{name} must lie in [0, 1], got {item}")


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Others' text for a terminal: what would move its cursor, name its window or turn the reading order is shown as \\x1b and the like."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def with_hint(error: E, hint: str) -> E:
    """`error` with what to do next as its note (PEP 678), which the command line prints after "hint:"; raise it where the remedy
    is known: `raise with_hint(ValueError("…"), "foredraft list machines")`.
    """
    error.add_note(hint)
    return error
