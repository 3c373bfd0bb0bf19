"""What lies in a file's place and is none: told at once, but for a pipe into which someone writes, as a shell's `<(…)`."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from foredraft import records
from foredraft.data.sources import origins
from foredraft.published.readers import read as read_rows
from foredraft.records import files, is_file, other_than_file, read_bytes, read_json
from foredraft.shapes import check_folder
from foredraft.shapes.absent import missing_weights

ROWS = "target,k,tau\nSmolLM2-135M,1,1.5\nSmolLM2-135M,2,1.8\n"


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_pipe_that_nobody_writes_into_is_told_at_once(pipe: Path):
    began = time.monotonic()
    for read in (
        read_bytes,
        read_json,
        records.read_text,
        lambda path: records.read_lines(dict, path),
        lambda path: read_rows([path]),
    ):
        with pytest.raises(ValueError, match=f"{pipe}: is a pipe that nobody writes into"):
            read(pipe)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_what_is_written_into_a_pipe_is_read(pipe: Path, wait_s: float):
    """Though the writer is slower than one is waited for, and goes on for more than a pipe holds."""

    held = os.open(pipe, os.O_RDWR)  # so that there is one who writes before it is read

    def write() -> None:
        with os.fdopen(held, "wb") as file:
            time.sleep(wait_s)
            file.write(b"x" * 300_000)

    writer = Thread(target=write)
    writer.start()
    assert read_bytes(pipe) == b"x" * 300_000
    writer.join()


def test_a_pipe_of_too_much_is_told_before_it_is_all_read(pipe: Path):
    held = os.open(pipe, os.O_RDWR)  # until the other, which has yet to start, has written
    code = f"open({str(pipe)!r}, 'wb').write(b'x' * 10**7)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL):
        with pytest.raises(ValueError, match="more than the 1,000 bytes"):
            read_bytes(pipe, 1000)
        os.close(held)


def test_a_shells_ways_of_giving_a_file(tmp_path: Path):
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "code.py").write_text(
        "import sys; from foredraft.published.readers import read; print([len(read([name])[0].rows) for name in sys.argv[1:]])"
    )
    ways = f"cat rows.csv | {sys.executable} code.py /dev/stdin <(cat rows.csv) <(sleep 0.2; cat rows.csv)"
    done = subprocess.run(["bash", "-c", ways], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[2, 2, 2]\n", done.stderr


def test_sockets_devices_and_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path, what in (("socket", "a socket"), ("/dev/zero", "a device"), (".", "a folder")):
            assert other_than_file(path) == what
            with pytest.raises(ValueError, match=f"is {what}, where a file is expected"):
                read_bytes(path)
    assert other_than_file("nothing") is None
    assert not is_file("nothing")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "chat_template.jinja", "tokenizer.model"]
)
def test_in_a_models_folder_only_files_have_the_names_of_files(tmp_path: Path, name: str):
    for other in {"config.json", "model.safetensors", "tokenizer.json"} - {name}:
        (tmp_path / other).write_text("{}")
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "removed")
    for check in (
        lambda: check_folder(tmp_path),
        lambda: (_ for _ in ()).throw(missing_weights(tmp_path) or AssertionError()),
    ):
        with pytest.raises(ValueError, match=f"{name}: is a link that leads nowhere, where a file is expected"):
            check()


def test_data_are_files_since_they_are_read_twice(pipe: Path):
    with pytest.raises(ValueError, match="is a pipe, where a file is expected") as caught:
        origins([str(pipe)])
    assert "save it as a file that ends in .jsonl" in caught.value.__notes__[0]
