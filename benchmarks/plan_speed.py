"""How long a plan takes, beyond the start of its process too, and its search; peak memory of both.

    python benchmarks/plan_speed.py OUT.json

A configuration is one (candidate draft, mode, concurrency, draw) whose throughput, latency and gain are computed: all of the first sift, and
of what it leaves the best mode at each concurrency.
"""

import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from foredraft import machines, records, shapes
from foredraft.plan import candidates as pool
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.plan.search import SIFTS, modes_for, rank
from foredraft.records import Workload, concurrency_of

COMMAND = [sys.executable, "-m", "foredraft", "plan"]
PLANS = {  # target, devices, engine, objective, loads
    "70B, 1 to 256 clients": ("Llama-3.1-70B", 4, "vllm", "throughput", "1-256"),
    "mixture of experts": ("Qwen3-30B-A3B", 1, "vllm", "throughput", "1-256"),
    "trees": ("Llama-3.1-8B", 1, "foredraft", "latency", "1-64"),
}


def main(out: str) -> None:
    plans = {name: _plan_s(*setting) for name, setting in PLANS.items()}
    target, machine = shapes.shape("Llama-3.1-70B"), machines.machine("H100")
    workload, settings = (
        Workload(input_len=512, output_len=256, concurrency=concurrency_of("1-256")),
        PlanSettings(devices=4),
    )
    weighed, _ = pool.candidates(pool.Basis(target, machine, (), 0.0))
    problem = Problem(target, machine, workload, settings)
    modes = sum(len(modes_for(candidate, settings)) for candidate in weighed)
    ranked, _ = rank(problem, weighed)
    judged = sum(scored.outcome.lift.size for scored in ranked)
    search_s = _timed(lambda: rank(Problem(target, machine, workload, settings), weighed))
    usual = plans["70B, 1 to 256 clients"]
    report = {
        "draws": settings.num_draws,
        "plan_first_s": usual["first_s"],
        "plan_again_median_s": usual["again_median_s"],
        "plans": plans,
        "configurations": modes * len(workload.concurrency) * SIFTS[0].draws + judged,
        "search_s": round(search_s, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "plan_help_median_s": _process_s("--help"),
        "conditions": f"Python {platform.python_version()}, {platform.machine()}, one process",
    }
    records.write(out, report)
    print(report)


def _plan_s(target: str, devices: int, engine: str, objective: str, loads: str) -> dict[str, float]:
    """Seconds of a first plan, of the median of five more, and of a process of its own beyond the one that prints its help."""
    load = Workload(input_len=512, output_len=256, concurrency=concurrency_of(loads))
    settings = PlanSettings(devices=devices, engine=engine, objective=objective)
    shape, machine = shapes.shape(target), machines.machine("H100")
    first, *again = (_timed(lambda: plan(shape, machine, load, settings)) for _ in range(6))
    options = ("-n", str(devices), "--engine", engine, "--objective", objective, "-c", loads)
    beyond_start_s = _process_s(target, *options) - _process_s("--help")
    return {
        "first_s": round(first, 3),
        "again_median_s": round(statistics.median(again), 3),
        "beyond_start_s": round(beyond_start_s, 3),
    }


def _process_s(*options: str) -> float:
    """Median seconds of five processes of the verb."""
    run = [*COMMAND, *options]
    return round(
        statistics.median(_timed(lambda: subprocess.run(run, capture_output=True, check=True)) for _ in range(5)), 3
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1])
