"""The four short recipes at a part of their tokens, from text to lossless decoding, by the commands that a user types."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes/train_all.py"


def test_every_recipes_draft_is_accepted_more_than_before_training_and_decodes_losslessly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """The script ends with an error where a draft's tokens per step do not rise, or one greedy token differs."""
    spec = importlib.util.spec_from_file_location("train_all", SCRIPT)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def foredraft(*words: object) -> str:
        done = cli(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    monkeypatch.setattr(script, "foredraft", foredraft)
    steps = script.main(tmp_path / "all", share=0.5)
    assert list(steps) == ["independent", "eagle2", "eagle3", "scylla"]
    assert all(after > before for before, after in steps.values())
