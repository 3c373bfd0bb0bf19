"""A vLLM server as a process: started, waited for, and ended with all its children.

Promises: nothing that was started outlives its block; a server that ends tells why by the end of its log. Refuses to know: what
is asked of it.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

READY_S = 300  # most seconds that a start may take: imports twice, and perhaps a compiler


def environment(python: Path, threads: int) -> dict[str, str]:
    """Of vLLM's processes: so many threads, bound to no core; nothing is fetched, and our own packages are out of sight."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return variables | {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads), "PYTHON": str(python),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command: Sequence[str | Path], more_variables: Mapping[str, str], log: Path) -> Iterator[str]:
    """The URL of a server, once it answers; `command` gets its host and port. Raises RuntimeError where it ends before."""
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=dict(more_variables), stdout=file, stderr=file, start_new_session=True,
            preexec_fn=_end_with_parent,
        )  # fmt: skip
    try:
        _wait(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def _end_with_parent() -> None:
    """A caller that is killed takes its server with it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[Any], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {tail(log)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server was not ready after {READY_S} s: {tail(log)}")
        time.sleep(0.3)


def tail(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def end(process: subprocess.Popen[Any]) -> None:
    """A process and its children, which share its group: asked first, then made to."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
