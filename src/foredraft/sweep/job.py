"""One cell in a process of its own, whose output goes to its log.

Promises: whatever the process meets, and however it ends, is told in one line; two sweeps never run a cell at once; where
memory runs out, the kernel takes the cell and not the sweep. Refuses to know: grids, order, what the verb computes.
"""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from foredraft.records import Record

LOG, LOCK, RUNNING = "log.txt", "lock", "running.txt"
FOREDRAFT = sys.executable, "-m", "foredraft"
TAIL_LINES, TAIL_BYTES = 12, 8192
GRACE_S = 60.0  # for a process that was asked to stop to save what it has
POLL_S = 0.05
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|MemoryError|bad_alloc", re.I)


class Job(NamedTuple):
    """What to run: the words of a verb, the cell's folder, the one it starts in, its environment beside the machine's own, and
    what it must have left behind in `folder`. `program` None: foredraft, as installed beside this Python.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    start_in: Path
    environment: Mapping[str, str]
    products: tuple[str, ...] = ()
    program: tuple[str, ...] | None = None


class Outcome(Record, frozen=True):
    """How a process ended. `error` None: well. `stopped`: it was asked to. `returncode` is negative for a signal."""

    seconds: float
    host: str
    returncode: int | None = None
    error: str | None = None
    tail: tuple[str, ...] = ()
    stopped: bool = False


def execute(job: Job, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Run `job` to its end, or ask it to stop once `stop()` says so. Raises nothing that the process or the disk may cause."""
    began = time.monotonic()
    try:
        with (job.folder / LOCK).open("w") as lock:
            waited = _lock(lock.fileno(), stop)
            if not waited:
                return Outcome(seconds=0.0, host=socket.gethostname(), stopped=True)
            code, stopped = _run(job, lock.fileno(), stop)
    except OSError as error:
        return Outcome(seconds=time.monotonic() - began, host=socket.gethostname(), error=f"could not be run: {error}")
    tail = last_lines(job.folder / LOG)
    lacking = [name for name in job.products if not (job.folder / name).exists()]
    return Outcome(
        seconds=time.monotonic() - began, host=socket.gethostname(), returncode=code, tail=tail, stopped=stopped and code != 0,
        error=reason(code, tail) or (f"ended well but left no {', '.join(lacking)}" if lacking else None),
    )  # fmt: skip


def _lock(file: int, stop: Callable[[], bool]) -> bool:
    """Hold the cell's lock, which its process inherits: one that outlived its sweep is waited for. False: stopped meanwhile."""
    while not stop():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(POLL_S * 4)
    return False


def _run(job: Job, lock: int, stop: Callable[[], bool]) -> tuple[int, bool]:
    """Exit code, and whether it was asked to stop."""
    command = [sys.executable, "-m", "foredraft.sweep.leash", str(os.getpid()), *(job.program or FOREDRAFT), *job.words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(job.environment)
    with (job.folder / LOG).open("ab") as log:
        log.write(f"$ foredraft {' '.join(job.words)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command, cwd=job.start_in, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            pass_fds=(lock,), start_new_session=True,
        )  # fmt: skip
        _offer_to_the_kernel(process.pid)
        marker = job.folder / RUNNING
        marker.write_text(f"{socket.gethostname()} {process.pid}\n")
        try:
            return _wait(process, stop)
        finally:
            marker.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], stop: Callable[[], bool]) -> tuple[int, bool]:
    """SIGTERM once it is to stop, at which training saves first; SIGKILL to all it started where that takes too long."""
    try:
        while process.poll() is None:
            if stop():
                _end(process)
                return process.returncode, True
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    except BaseException:  # KeyboardInterrupt is how Ray cancels
        _end(process)
        raise
    return process.returncode, False


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _offer_to_the_kernel(pid: int) -> None:
    """Linux: the first to go when memory runs out. Elsewhere nothing."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


def reason(code: int, tail: tuple[str, ...]) -> str | None:
    """Why a process failed, in a line; None for one that did not."""
    if code == 0:
        return None
    message = next((line for line in reversed(tail) if OUT_OF_MEMORY.search(line)), None)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed (out of memory?)" + (f": {message}" if message else "")
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    message = message or next((line for line in tail if line.startswith("error:")), tail[-1] if tail else "no output")
    return f"exit code {code}: {message.removeprefix('error: ')}"


def last_lines(log: Path) -> tuple[str, ...]:
    """The end of a log, of its last process alone."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    starts = [i for i, line in enumerate(lines) if line.startswith("$ foredraft ")]
    last = lines[starts[-1] + 1 :] if starts else lines
    return tuple(line.rstrip() for line in last if line.strip())[-TAIL_LINES:]
