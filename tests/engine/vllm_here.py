"""The real vLLM, in an environment of its own: a worker that answers token ids, and its OpenAI server as a draft's serve.sh starts it.

Refuses to know: what is asked.
"""

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vllm_server

VARIABLE = "FOREDRAFT_VLLM_PYTHON"
PYTHON = os.environ.get(VARIABLE)
REASON = "tests/engine needs vLLM in an environment of its own: make test-engine"

CONTEXT = 512
ANSWER_S = 180  # most seconds that an answer may take on a busy machine


def python() -> Path:
    """vLLM's interpreter. An error, not a skip, where the variable names none: then the tests were asked for."""
    path = Path(PYTHON or "")
    if not path.is_file():
        raise RuntimeError(
            f"{VARIABLE} must name the interpreter of vLLM's environment, got {PYTHON!r}; run make test-engine"
        )
    return path


class Offline:
    """`serve_offline.py`, ready for jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.count = folder, folder / "offline.log", 0
        self.process = subprocess.Popen(
            [python(), Path(__file__).parent / "serve_offline.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open("w"), text=True, bufsize=1, env=vllm_server.environment(python(), 1), start_new_session=True,
        )  # fmt: skip

    def __call__(
        self, target: Path, speculative: dict[str, Any] | None, *loads: dict[str, Any], modules: Path | None = None
    ) -> dict[str, Any]:
        """What came of a job; its `error` where the engine stopped. `modules`: a folder of Python that it may import."""
        self.count += 1
        job, out = (self.folder / f"{what}-{self.count}.json" for what in ("job", "out"))
        settings = {
            "target": str(target),
            "speculative": speculative,
            "context": CONTEXT,
            "sequences": 4,
            "loads": loads,
            "modules": [str(modules)] if modules else [],
        }
        job.write_text(json.dumps(settings))
        assert self.process.stdin
        assert self.process.stdout
        print(job, out, file=self.process.stdin)
        assert self.process.stdout.readline(), f"vLLM's worker ended: {vllm_server.tail(self.log)}"
        assert out.is_file(), f"vLLM's process died: {vllm_server.tail(self.log)}"
        return json.loads(out.read_bytes())

    def end(self) -> None:
        vllm_server.end(self.process)


@contextlib.contextmanager
def serving(folder: Path, log: Path, *more: str) -> Iterator[str]:
    """The URL of a server that the folder's own serve.sh started: float32, eager."""
    command = [
        "sh",
        folder / "serve.sh",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        str(CONTEXT),
        *more,
    ]
    with vllm_server.serving(command, vllm_server.environment(python(), 1), log) as url:
        yield url


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON that a server answers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
        return json.loads(reply.read())
