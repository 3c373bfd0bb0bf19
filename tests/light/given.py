"""A value whose type allows None, where the test does not."""

from typing import TypeVar

T = TypeVar("T")


def given(value: T | None) -> T:
    assert value is not None
    return value
