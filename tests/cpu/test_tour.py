"""The tour's second half, on fewer tokens: a model is made once, and its two texts are one."""

from pathlib import Path

import pytest

from foredraft import tour


def test_a_small_model_is_made_once_and_decoded_twice_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tour.RECIPE["stages"][0]
    monkeypatch.setitem(tour.RECIPE, "stages", [stage | {"tokens": 4 * stage["length"] * stage["batch"]}])
    made = tour.small_model(tmp_path)
    written = made.stat().st_mtime_ns
    assert tour.small_model(tmp_path) == made
    assert made.stat().st_mtime_ns == written
    found = tour.decode(made)
    assert found["identical"]
    assert found["arms"]["plain"]["tokens_per_step"] == 1
    assert found["arms"]["ngram"]["tokens_per_step"] >= 1
