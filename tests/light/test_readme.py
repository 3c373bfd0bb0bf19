"""README's figures and those of docs/results.md are those of results/: no number is typed twice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _check(root: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "recipes/results_tables.py"
    return subprocess.run([sys.executable, str(script), "--check", str(root)], capture_output=True, text=True)


def test_results_are_current() -> None:
    done = _check(ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("document", "figure"),
    [("README.md", "from names alone: **"), ("README.md", " × as fast with it"), ("docs/results.md", "% worst error")],
)
def test_a_changed_figure_is_noticed(tmp_path: Path, document: str, figure: str) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    text = (ROOT / document).read_text(encoding="utf-8")
    assert figure in text
    (tmp_path / document).write_text(text.replace(figure, f"1 {figure}"), encoding="utf-8")
    assert _check(tmp_path).returncode != 0
