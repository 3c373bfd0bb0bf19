"""README's figures are those of results/: no number is typed twice."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _check(readme: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "recipes/readme_table.py"
    return subprocess.run([sys.executable, str(script), str(readme), "--check"], capture_output=True, text=True)


def test_results_table_is_current() -> None:
    done = _check(ROOT / "README.md")
    assert done.returncode == 0, done.stderr


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text().replace("% worst error", "1 % worst error"))
    assert _check(copy).returncode != 0
