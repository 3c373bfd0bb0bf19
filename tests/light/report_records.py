"""A folder with every record that a report reads, small and made by hand, for the tests of the page."""

import math
from pathlib import Path

from foredraft import records
from foredraft.laws.fit import fit
from foredraft.laws.forms import LAW_1_1
from foredraft.records import (
    DraftChoice,
    Estimate,
    Machine,
    Measurement,
    NextRun,
    Observation,
    Plan,
    Provenance,
    RunnerUp,
    ScheduleStep,
    Workload,
)

GAIN = "× output tokens/s of no speculation"
OURS = Provenance(source="foredraft measure", versions={"foredraft": "0.1.0"})


def estimate(value: float, unit: str = "x", width: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value * (1 - width), high=value * (1 + width), unit=unit, source="test")


def observation(**fields) -> Observation:
    """A row of an EAGLE-3 head at chains of 4, of which `fields` change what they name."""
    base = {
        "run": "a", "target": "zoo/target", "method": "eagle3", "provenance": OURS, "draft": "eagle3/final",
        "dataset": "prompts", "temperature": 0.0, "engine": "foredraft", "machine": "CPU", "dtype": "float32",
        "target_params": 1e7, "draft_params": 9e5, "draft_tokens": 8e6, "draft_layers": 1, "lookahead": 4, "tree_nodes": 4,
        "topk": 1, "batch_size": 1, "num_requests": 40, "tokens_per_step": 3.0, "pooling": "steps", "speedup": 2.0,
        "output_tok_s": 500.0, "ttft_s": 0.03, "tpot_s": 0.002,
    }  # fmt: skip
    return Observation(**{**base, **fields})


def measurement(category: str | None = None, way: str = "live", accept_probs=None, **fields) -> Measurement:
    observed = observation(**fields)
    named = ("tokens_per_step", "speedup", "output_tok_s", "ttft_s", "tpot_s")
    intervals = {name: estimate(value) for name in named if (value := getattr(observed, name)) is not None}
    accept_given_prefix = tuple(estimate(0.8 - 0.05 * i) for i in range(observed.lookahead or 0))
    return Measurement(
        observation=observed, way=way, category=category, intervals=intervals, accept_given_prefix=accept_given_prefix,
        accept_probs={kind: estimate(value) for kind, value in (accept_probs or {}).items()},
    )  # fmt: skip


def step(concurrency: int, tau: float = 3.3, speedup: float = 2.2, lookahead: int = 4) -> ScheduleStep:
    return ScheduleStep(
        concurrency=concurrency, running=concurrency, lookahead=lookahead, topk=1, tree_nodes=lookahead,
        tokens_per_step=estimate(tau, "tokens/step", 0.2), speedup=estimate(speedup, GAIN, 0.2),
        output_tok_s=estimate(600.0 * concurrency, "tokens/s"), tpot_s=estimate(0.002, "s"), ttft_s=estimate(0.03, "s"),
    )  # fmt: skip


def plan(**fields) -> Plan:
    head = DraftChoice(kind="head", name="EAGLE-3 head", params=1.2e6, non_embedding_params=9e5, draft_tokens=8e6)
    lm = DraftChoice(kind="lm", name="language model", params=5e5, non_embedding_params=4e5)
    base = {
        "objective": "throughput", "engine": "foredraft", "target": "target", "machine": "CPU", "devices": 1,
        "dtype": "float32", "workload": Workload(input_len=100, output_len=100, concurrency=(1, 8)),
        "speedup": estimate(1.9, GAIN), "schedule": (step(1), step(8, speedup=1.5)), "draft": head,
        "runners_up": (RunnerUp(draft=lm, speedup=estimate(1.6), reason="a longer step"),),
        "next_runs": (NextRun(run="measure at k = 1", settles="acceptance", narrows=0.3, gpu_hours=0.2),),
        "assumptions": ("the load is steady",),
    }  # fmt: skip
    return Plan(**{**base, **fields})


def rows() -> list[Measurement]:
    """Two methods and plain decoding by batch, two categories, and a ladder of language models read in one pass too."""
    measured = []
    for batch in (1, 8):
        measured.append(measurement(method="none", draft=None, lookahead=None, tree_nodes=None, topk=None, draft_params=None,
                                draft_tokens=None, draft_layers=None, batch_size=batch, tokens_per_step=1.0, speedup=1.0,
                                output_tok_s=250.0 * batch))  # fmt: skip
        measured.append(measurement(batch_size=batch, speedup=2.0 - batch / 16, output_tok_s=500.0 * batch))
        measured.append(measurement(method="ngram", draft=None, draft_params=None, draft_tokens=None, draft_layers=None,
                                batch_size=batch, tokens_per_step=1.5, speedup=1.2))  # fmt: skip
    for category, tau in (("math", 3.4), ("news", 2.6)):
        measured.append(measurement(category, dataset=f"prompts/{category}", tokens_per_step=tau))
    for i, params in enumerate((1e5, 3e5, 1e6)):
        for j, tokens in enumerate((1e6, 2e6, 4e6, 8e6)):
            x = 20.0 - 3 * i - 2 * j
            fields = {"run": f"lm-{i}-{j}", "method": "draft_model", "draft": f"lm-{i}/exports/tokens-{tokens:.0f}", "draft_params": params,
                      "draft_tokens": tokens, "draft_layers": 2, "tokens_per_step": 1.6 + 0.2 * i + 0.3 * math.log10(tokens / 1e6)}  # fmt: skip
            measured.append(measurement(**fields, speedup=1.5 - 0.3 * abs(i - 1) + 0.01 * j))
            read = {"output_tok_s": None, "speedup": None, "ttft_s": None, "tpot_s": None, "batch_size": None}
            words = {"draft_perplexity": x, "target_perplexity": 9.0, "target_tokenizer": "t", "draft_tokenizer": "t"}
            measured.append(
                measurement(way="forced", accept_probs={"greedy": 0.9 - 0.02 * x}, **fields, **read, **words)
            )
            chance = {"temperature": 1.0, "accept_prob": 0.8 - 0.02 * x, "accept_kind": "sampled"}
            measured.append(measurement(way="forced", accept_probs={"sampled": 0.8 - 0.02 * x}, **{**fields, **chance}, **read, **words))  # fmt: skip
    return measured


def machine() -> Machine:
    return Machine(
        name="CPU", memory_bytes=2e10, bandwidth_bytes_per_s=2.5e10, flops_per_s={"float32": 2e11, "bfloat16": 7e11},
        source="foredraft probe", step_overhead_s=3e-4, verify_s={1: 0.01, 4: 0.011, 16: 0.02, 64: 0.06},
        measured={"verify_s": "median of 9 passes"},
    )  # fmt: skip


def write_all(folder: Path) -> Path:
    """Every document, each in a folder of its own as the verbs write them; `folder`."""
    measured = rows()
    records.write_lines(folder / "measure/measured.jsonl", measured)
    records.write_lines(folder / "measure/observations.jsonl", [row.observation for row in measured])
    small = [row.observation for row in measured if row.way == "live" and row.observation.draft_params == 1e6]
    small = [row for row in small if (row.draft_tokens or 0) < 8e6]
    records.write(folder / "fit/Fit.0.law_1_1.json", fit(LAW_1_1, small, draws=40))
    records.write(folder / "plan/Plan.json", plan())
    records.write(folder / "machine.json", machine())
    lines = [{"step": i, "tokens": 1000 * i, "loss": 6 - 0.3 * i, "tokens_per_s": 5000.0, "seconds": 2.0 * i} for i in range(1, 6)]  # fmt: skip
    log_lines = [{"step": i, "tokens": 1000 * i, "held_out_loss": 6 - 0.3 * i, "held_out_tokens_per_step": 1 + 0.3 * i,
             "held_out_tokens_per_step_low": 1 + 0.2 * i, "held_out_tokens_per_step_high": 1 + 0.4 * i} for i in (0, 5)]  # fmt: skip
    records.write_lines(folder / "train/eagle3/metrics.jsonl", lines + log_lines)
    records.write(folder / "train/eagle3/recipe.json", {"model": {"kind": "eagle3"}, "stages": []})
    cells = [{"name": "lm-0", "verb": "train", "state": "done", "seconds": 60.0, "tokens": 8e6},
             {"name": "scylla-4", "verb": "train", "state": "failed", "seconds": 5.0, "error": "killed (out of memory?)"},
             {"name": "measure-4", "verb": "measure", "state": "waits for scylla-4"}]  # fmt: skip
    records.write(folder / "sweep/sweep.json", {"cells": cells, "versions": {}, "created": "today"})
    return folder
