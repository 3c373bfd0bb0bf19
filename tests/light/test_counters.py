"""A server's running totals: what came between two readings."""

import pytest

from foredraft.engines.counters import Counters


def test_running_totals_are_differenced():
    """100 steps at τ = 2 before, 50 at τ = 3 in the load."""
    before = Counters(steps=100, drafted=300, accepted=100, by_position=(70, 20, 10))
    after = Counters(steps=150, drafted=450, accepted=200, by_position=(115, 55, 30))
    assert after.since(before) == Counters(steps=50, drafted=150, accepted=100, by_position=(45, 35, 20))
    with pytest.raises(ValueError, match=r"steps fell.*started anew"):
        before.since(after)
