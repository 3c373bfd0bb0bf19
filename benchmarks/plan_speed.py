"""How long a plan takes, and a search of a million configurations; peak memory of both.

    python benchmarks/plan_speed.py OUT.json

A configuration is one (candidate draft, mode, concurrency, draw) whose throughput, latency and gain are computed.
"""

import platform
import resource
import statistics
import subprocess
import sys
import time

from foredraft import machines, records, shapes
from foredraft.plan import candidates as pool
from foredraft.plan.plan import plan
from foredraft.plan.search import PlanSettings, Problem, modes_for, rank
from foredraft.records import Workload

HELP = [sys.executable, "-m", "foredraft", "plan", "--help"]
LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(out: str) -> None:
    target, machine = shapes.shape("Llama-3.1-70B"), machines.machine("H100")
    workload = Workload(input_len=512, output_len=256, concurrency=LOADS)
    first, again = _timed(lambda: plan(target, machine, workload, PlanSettings(devices=4))), []
    for _ in range(5):
        again.append(_timed(lambda: plan(target, machine, workload, PlanSettings(devices=4))))
    weighed, _ = pool.candidates(pool.Basis(target, machine, (), 0.0))
    settings = PlanSettings(devices=4, draws=256)
    problem = Problem(target, machine, workload, settings)
    configurations = sum(len(modes_for(c, settings)) for c in weighed) * len(LOADS) * settings.draws
    search_s = _timed(lambda: rank(problem, weighed))
    help_s = statistics.median(_timed(lambda: subprocess.run(HELP, capture_output=True, check=True)) for _ in range(5))
    report = {
        "plan_first_s": round(first, 3),
        "plan_again_median_s": round(statistics.median(again), 3),
        "configurations": configurations,
        "search_s": round(search_s, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "plan_help_median_s": round(help_s, 3),
        "conditions": f"Python {platform.python_version()}, {platform.machine()}, one process",
    }
    records.write(out, report)
    print(report)


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1])
