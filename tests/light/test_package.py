"""What is handed out: a wheel and an sdist that hold the package and nothing of the studies, and one version everywhere."""

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from foredraft import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True, capture_output=True, timeout=300
    )
    return out


def test_the_wheel_is_the_package_and_its_data(built: Path) -> None:
    (path,) = built.glob("*.whl")
    names = zipfile.ZipFile(path).namelist()
    assert {name.split("/")[0] for name in names} == {"foredraft", f"foredraft-{__version__}.dist-info"}
    assert {"foredraft/py.typed", "foredraft/published/machines.json", "foredraft/report/page.css"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert path.stat().st_size < 2e6


def test_the_sdist_holds_no_drafts_results_or_studies(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    files = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "PKG-INFO",
        ".gitignore",
    }
    assert {name for name in names if not name.startswith("src/foredraft/")} == files
    assert path.stat().st_size < 2e6


def test_one_version() -> None:
    assert PROJECT["version"] == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == __version__


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist() -> None:
    lines = (ROOT / "Dockerfile").read_text()
    allowed = (ROOT / ".dockerignore").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", lines, re.MULTILINE) for name in line.split()]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}\n" in allowed
    extras = {extra for group in re.findall(r"'\.\[(.+?)\]'", lines) for extra in group.split(",")}
    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])


BROUGHT = {"markupsafe"}  # by jinja2


def test_every_import_of_the_package_is_declared() -> None:
    """Among the dependencies or in an extra."""
    imports = {
        name.split(".")[0]
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
    }
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    names = {match[0].lower().replace("-", "_") for line in declared if (match := re.match(r"[\w-]+", line))}
    known = names | set(sys.stdlib_module_names) | {"foredraft"} | BROUGHT
    modules = {name for name in imports - known if importlib.util.find_spec(name)}
    assert modules == set()
