"""llama.cpp's own server, for worker.py: one for each method, started when it is prepared and asked by token ids.

Caches in float32 where that is the precision, else float16, its default. A reply tells what was drafted and accepted; a pass gives the accepted
tokens and one more.
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from worker import Answered, Run, end_with_parent, serve

READY_S = 120


def prepare(settings: dict[str, Any], method: str) -> Run:
    port, lookahead = _free_port(), settings["lookahead"].get(method)
    words = [
        settings["server"],
        "-m",
        settings["targets"].get(method, settings["target"]),
        "-c",
        str(settings["context"]),
    ]
    words += ["-np", "1", "-t", str(settings["threads"]), "--host", "127.0.0.1", "--port", str(port)]
    cache = ["f32"] if settings["dtype"] == "float32" else []
    words += [word for kind in cache for word in ("-ctk", kind, "-ctv", kind)]
    if lookahead:
        words += [
            "-md",
            settings["drafts"][method],
            "--spec-type",
            "draft-eagle3",
            "--spec-draft-n-max",
            str(lookahead),
        ]
        words += [word for kind in cache for word in ("-ctkd", kind, "-ctvd", kind)]
    process = subprocess.Popen(words, stdout=2, stderr=2, preexec_fn=end_with_parent)
    _wait(process, port)

    def run(prompts: list[list[int]], max_tokens: int) -> Answered:
        replies = [_asked(port, prompt, max_tokens) for prompt in prompts]
        answers = [reply["tokens"] for reply in replies]
        timings = replies[0]["timings"]
        steps = max(
            len(answer) - reply["timings"].get("draft_n_accepted", 0)
            for answer, reply in zip(answers, replies, strict=True)
        )
        return Answered(answers, timings["prompt_ms"] / 1e3, steps)

    return run


def _asked(port: int, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(process: "subprocess.Popen[Any]", port: int) -> None:
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"llama-server was not ready (exit code {process.poll()}); its words are above in the log")


if __name__ == "__main__":
    serve(prepare, ())
