"""The four short recipes, from text to lossless decoding, by the commands that a user types."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_recipes_draft_is_accepted_more_than_before_training_and_decodes_losslessly(tmp_path: Path) -> None:
    """The script ends with an error where a draft's tokens per step do not rise, or one greedy token differs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "recipes/train_all.py"), str(tmp_path / "all")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    taus = re.findall(r"^(\w+) +tokens per step ([\d.]+) → ([\d.]+), greedy tokens equal$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in taus] == ["independent", "eagle2", "eagle3", "scylla"]
    assert all(float(after) > float(before) for _, before, after in taus)
