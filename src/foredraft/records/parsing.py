"""JSON out of bytes, whoever wrote them: the one place that parses it, so that one limit holds for all of it.

Promises: what cannot be read is a ValueError of one line, whatever its cause. Refuses to know: files, and what is in the JSON.
"""

import json
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
JSON_DEPTH = 100  # of objects and lists in one another


class TooDeepError(ValueError):
    """JSON nested deeper than anyone nests."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {JSON_DEPTH} deep")


@overload
def parse(data: bytes | str) -> Any: ...
@overload
def parse(data: bytes | str, kind: type[T]) -> T: ...
def parse(data: bytes | str, kind: Any = Any) -> Any:
    """Strict JSON as `kind`. Raises ValueError, half a character (a lone surrogate) among its causes."""
    try:
        value = msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise TooDeepError from None
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    return _bounded(value, data)


def parse_loosely(data: bytes | str) -> Any:
    """JSON as Python and others write it, with NaN and infinities. Raises ValueError."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise TooDeepError from None
    return _bounded(value, data)


def _bounded(value: T, data: bytes | str) -> T:
    """The value, once it is known not to be too deep, by its brackets where these are few."""
    openings = (b"[", b"{") if isinstance(data, bytes) else ("[", "{")
    if sum(map(data.count, openings)) > JSON_DEPTH and _deeper(value, JSON_DEPTH - 1):  # type: ignore[arg-type]
        raise TooDeepError
    return value


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(part, depth - 1) for part in inner if isinstance(part, dict | list))
