"""How far a plan hangs on the seed of its draws: 20 seeds of 12 plans.

    python benchmarks/plan_seeds.py OUT.json [--seeds N]

By plan: the drafts planned and the rivals named beside them, how many seeds plan another draft or schedule than the first, whether every
draft and lookahead that some seed plans is named (planned or rival) by every seed, and how far the ends of intervals and the
values move: the greatest less the least over all seeds, of gains and of tokens per step; of tokens/s and TPOT in percent.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from foredraft import machines, records, shapes
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.records import DraftChoice, Estimate, Plan, Workload, concurrency_of

PLANS = (  # target, machine, devices, engine, objective, loads
    ("Llama-3.1-8B", "H100", 1, "vllm", "throughput", "1-64"),
    ("Llama-3.1-8B", "H100", 1, "foredraft", "latency", "1-64"),
    ("Qwen3-8B", "A100", 1, "vllm", "throughput", "1-64"),
    ("Qwen3-8B", "RTX-4090", 1, "sglang", "latency", "1-64"),
    ("Qwen3-32B", "H100", 1, "vllm", "throughput", "1-256"),
    ("Qwen3-32B", "H200", 2, "sglang", "throughput", "1-64"),
    ("Llama-3.1-70B", "H100", 4, "vllm", "throughput", "1-256"),
    ("Llama-3.1-70B", "H200", 2, "foredraft", "latency", "1-64"),
    ("Qwen3-30B-A3B", "H100", 1, "vllm", "throughput", "1-256"),
    ("Qwen3-30B-A3B", "H200", 2, "sglang", "latency", "1-64"),
    ("Qwen2.5-7B", "A100", 1, "vllm", "latency", "1-64"),
    ("Qwen2.5-7B", "RTX-4090", 1, "foredraft", "throughput", "1-64"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    rows = [_row(setting, options.seeds) for setting in PLANS]
    report = {
        "seeds": options.seeds,
        "draws": PlanSettings().num_draws,
        "plans": rows,
        "other_drafts": sum(row["other_drafts"] for row in rows),
        "other_schedules": sum(row["other_schedules"] for row in rows),
        "not_named": sum(not row["named_by_all"] for row in rows),
        "ends_move_most": max(row["gain_ends_move"] for row in rows),
        "values_move_most": max(row["gain_values_move"] for row in rows),
    }
    records.write(options.out, report)


def _row(setting: tuple, seeds: int) -> dict:
    target, machine, devices, engine, objective, loads = setting
    load = Workload(input_len=512, output_len=256, concurrency=concurrency_of(loads))
    plans = [
        plan(
            shapes.shape(target), machines.machine(machine), load,
            PlanSettings(engine=engine, objective=objective, devices=devices, seed=seed),
        )
        for seed in range(seeds)
    ]  # fmt: skip
    drafts = [_name(each.draft) for each in plans]
    schedules = [tuple((step.lookahead, step.topk, step.tree_nodes) for step in each.schedule) for each in plans]
    named = [{_name(each.draft), *([_name(each.rival.draft)] if each.rival else [])} for each in plans]
    row = {
        "plan": " ".join(map(str, setting)),
        "drafts": dict(Counter(drafts)),
        "rivals": dict(Counter(_name(each.rival.draft) if each.rival else "decided" for each in plans)),
        "lookaheads": dict(Counter(" ".join(str(k) for k, *_ in schedule) for schedule in schedules)),
        "other_drafts": sum(draft != drafts[0] for draft in drafts),
        "other_schedules": sum(schedule != schedules[0] for schedule in schedules),
        "named_by_all": all(set(drafts) <= names for names in named),
        "next_runs_move": _next_runs(plans),
    }
    gains = _moves([[each.speedup, *(step.speedup for step in each.schedule)] for each in plans])
    taus = _moves([[step.tokens_per_step for step in each.schedule] for each in plans])
    speeds = _moves(
        [[e for step in each.schedule for e in (step.output_tok_s, step.tpot_s)] for each in plans], log=True
    )
    for name, (ends, values) in {"gain": gains, "tau": taus, "speed_percent": speeds}.items():
        row |= {f"{name}_ends_move": ends, f"{name}_values_move": values}
    print(row, file=sys.stderr)
    return row


def _name(draft: DraftChoice | None) -> str:
    if draft is None:
        return "none"
    return f"{draft.name}, {draft.params:.3g}" + (f", {draft.draft_tokens:.2g} tokens" if draft.draft_tokens else "")


def _moves(estimates: Sequence[Sequence[Estimate]], *, log: bool = False) -> tuple[float, float]:
    """Greatest less least over the plans, of the ends of intervals and of the values, the most that any moves."""
    table = np.array([[(e.low, e.value, e.high) for e in each] for each in estimates])
    table = 100 * np.log(table) if log else table
    moved = np.ptp(table, axis=0)
    return round(float(moved[:, [0, 2]].max()), 4), round(float(moved[:, 1].max()), 4)


def _next_runs(plans: Sequence[Plan]) -> float:
    """The most that the share of the width removed by any next run moves."""
    shares = [{run.factor: run.narrows for run in each.next_runs} for each in plans]
    factors = {factor for each in shares for factor in each}
    return round(max((float(np.ptp([each.get(factor, 0.0) for each in shares])) for factor in factors), default=0.0), 4)


if __name__ == "__main__":
    main()
