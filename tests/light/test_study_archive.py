"""The study's archive: the same bytes again, checked sums, and a command inside that makes its figures and tables from its observations."""

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from report_records import rows

from foredraft import records

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

FOLDER = Path(__file__).parents[2] / "recipes" / "study"
DRAWS = 8
CONTENTS = {
    "README.md": "README.md",
    "rebuild.py": "rebuild.py",
    "studies/one/observations.jsonl.gz": "rows.jsonl.gz",
    "grids": "grids",
}


@pytest.fixture(scope="module")
def pack() -> Any:
    spec = importlib.util.spec_from_file_location("study_pack", FOLDER / "pack.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def packed(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the language models of the report's records, few enough to be fitted at once; the archive opened."""
    root = tmp_path_factory.mktemp("root")
    for name in ("README.md", "rebuild.py"):
        (root / name).write_bytes((FOLDER / name).read_bytes())
    records.write(root / "grids/b.json", {"b": 1})
    models = [row.observation for row in rows() if row.way == "live" and row.observation.draft_params == 1e6]
    records.write_lines(root / "rows.jsonl.gz", models)
    path = pack.pack(root / "study-1.tar.gz", CONTENTS, root, DRAWS)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        tar.extractall(root, filter="data")
    return root / "study-1"


def test_every_file_has_its_sum(packed: Path) -> None:
    lines = [line.split("  ", 1) for line in (packed / "CHECKSUMS").read_text().splitlines()]
    assert {place for _, place in lines} == {
        str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()
    } - {"CHECKSUMS"}
    assert all(hashlib.sha256((packed / place).read_bytes()).hexdigest() == digest for digest, place in lines)
    assert any(line.startswith("numpy==") for line in (packed / "environment.lock").read_text().splitlines())


def test_the_command_inside_makes_the_same_again(packed: Path, tmp_path: Path) -> None:
    """To the byte: fits, tables and figures, in a process of its own."""
    words = [sys.executable, "rebuild.py", str(tmp_path), str(DRAWS)]
    done = subprocess.run(words, cwd=packed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again, first = (_contents(folder) for folder in (tmp_path, packed / "rebuilt"))
    assert again == first
    assert b"law_1_1" in first["one/laws.csv"]
    assert any(name.startswith("one/figures/law-") for name in first)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_files_are_the_same_archive(pack: Any) -> None:
    files = {"b.sh": b"2", "a": b"1"}
    assert pack.archive(files, "x") == pack.archive(dict(reversed(files.items())), "x")
    assert pack.archive(files, "x") != pack.archive(files | {"a": b"3"}, "x")


def test_what_is_missing_is_named(pack: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such file or folder"):
        pack.pack(tmp_path / "x.tar.gz", {"a": "nowhere.csv"}, tmp_path)


def test_all_that_the_archive_holds_is_in_the_repository(pack: Any) -> None:
    assert dict(pack._files(pack.CONTENTS, pack.ROOT))
