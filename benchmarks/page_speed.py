"""How long the planner page takes to answer: from a changed input to the first look, and to the full plan, over HTTP as its script asks.

    python benchmarks/page_speed.py OUT.json

Each input is changed by itself from one case, whose plan was worked out before; a page's first question, with nothing worked out, stands by
itself. Every change is asked ROUNDS times with values never asked before. The browser's own work (a few milliseconds) is not in it.
"""

import platform
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

from foredraft import records

PORT, ROUNDS = 8799, 3
CASE = {"target": "Llama-3.1-8B"}
# By input, the values of the rounds.
CHANGES = {
    "load": ("1:5,2:7,4:11,8:15,16:18,32:13,64:9", "1:9,8:9,64:3", "1:1,2:2,4:3,8:4,16:5,32:6,64:7,128:8,256:9"),
    "target": ("Qwen3-32B", "Llama-3.2-3B", "Qwen3-30B-A3B"), "machine": ("H200-SXM-141GB", "B200", "A100-SXM-80GB"), "devices": ("2", "4", "8"),
    "dtype": ("fp8", "int4", "nvfp4"), "engine": ("sglang", "tensorrt-llm", "foredraft"), "engine_version": ("0.10", "0.11", "0.12"),
    "input_len": ("1024", "2048", "300"), "output_len": ("128", "512", "1024"), "temperature": ("0.6", "0.8", "1"), "task": ("code", "math", "chat"),
    "ttft": ("0.5", "0.2", "1"), "tpot": ("0.02", "0.01", "0.05"), "rate": ("5", "10", "20"), "max_gpu_hours": ("100", "50", "10"),
    "device_hour": ("2", "3", "4"), "train_machine": ("8xH100", "8xA100-SXM-80GB", "4xH200-SXM-141GB"), "served_tokens": ("1e10", "1e12", "1e9"),
}  # fmt: skip


def main(out: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "foredraft", "page", "--port", str(PORT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        first = _answered(CASE, sketch=True, patience_s=60)
        full_first = _answered(CASE, sketch=False)
        times: dict[str, list[tuple[float, float]]] = {}
        for turn in range(ROUNDS):
            for name, values in CHANGES.items():
                inputs = CASE | {name: values[turn]}
                times.setdefault(name, []).append((_answered(inputs, sketch=True), _answered(inputs, sketch=False)))
    finally:
        server.terminate()
    sketches = {name: round(statistics.median(sketch for sketch, _ in pairs), 3) for name, pairs in times.items()}
    fulls = {name: round(statistics.median(full for _, full in pairs), 3) for name, pairs in times.items()}
    report = {
        "first_look_median_s": statistics.median(sketches.values()), "full_median_s": statistics.median(fulls.values()),
        "first_look_worst_s": max(sketches.values()), "full_worst_s": max(fulls.values()),
        "first_question_s": round(first, 3), "first_full_s": round(full_first, 3),
        "first_look_s": sketches, "full_s": fulls, "case": CASE, "rounds": ROUNDS,
        "conditions": f"Python {platform.python_version()}, {platform.machine()}, one server process, HTTP on the loopback",
    }  # fmt: skip
    records.write(out, report)
    print(report)


def _answered(inputs: dict[str, str], *, sketch: bool, patience_s: float = 0.0) -> float:
    """Seconds from asking to the last byte; a server that is just starting is waited for."""
    headers = {"foredraft-sketch": "1"} if sketch else {}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/answer?{urlencode(inputs)}", headers=headers)
    until = time.perf_counter() + patience_s
    while True:
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(request) as reply:
                reply.read()
            return time.perf_counter() - start
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) or time.perf_counter() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
