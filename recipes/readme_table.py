"""Write the results table of README from results/, so that no number is typed twice; with --check, only say whether
it is current.

python recipes/readme_table.py README.md [--check]
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from foredraft.records import write_bytes

RESULTS = Path(__file__).parents[1] / "results"
WRONG_DEFAULTS = ("fixed costs × 0.4", "fixed costs × 2.5", "bandwidth 0.6, compute 0.45", "all of them low")
RACES = ("31m-float32-b1", "31m-float32-b8", "31m-bfloat16-b1", "31m-bfloat16-b8", "100m-float32-b1", "100m-float32-b8")
TARGET, SCYLLA = "tales-11m", "scylla-L2-long"
RIVALS = {
    "of 5.05 M tokens of answers": ("eagle2-long-d5.05M", "eagle3-long-d5.05M"),
    "of 2.65 M tokens of answers": ("eagle2-long-d2.65M", "eagle3-long-d2.65M"),
}
FORMATS = {"relative_error": ".1%", "error": ".3f"}
START, END = "<!-- results -->\n", "<!-- /results -->"


def table() -> str:
    """The table as Markdown."""
    tables, sdsl, speed = (
        _read("validation/summary.json")["tables"],
        _read("sdsl/sdsl.json"),
        _read("plan_speed.json"),
    )
    curves, chains, load = (
        tables[name]
        for name in (
            "inferencex_golden_acceptance_length",
            "specdecode_bench_llama31_8b_tau_by_k",
            "tomasruizt_vllm_scripts_throughput",
        )
    )
    defaults = _read("cost_defaults.json")
    ladder, races, engine = tables["specbench_leaderboard"], _read("peers.json")["races"], _read("engine_speed.json")
    rows = [
        ("τ at k = 5 from k ≤ 2, InferenceX (7 heads); constant α", _pair(curves, "k5")),
        ("τ at k = 8 from k ≤ 2, InferenceX; constant α", _pair(curves, "k8")),
        ("τ at k = 5 from k ≤ 2, SpecDecode-Bench (EAGLE-3 and n-gram); constant α", _pair(chains, "k5")),
        (
            "throughput ratio at k = 3…6 from no draft and k ≤ 2 (Qwen3-32B, 3 drafts, 1–256 clients)",
            f"{load['throughput_ratio_error']:.1%} mean error",
        ),
        (
            "the same from badly wrong cost defaults; without shapes or machine",
            f"at most {max(defaults[name]['throughput_ratio_error'] for name in WRONG_DEFAULTS):.1%}; "
            f"{defaults['no shapes, no machine']['throughput_ratio_error']:.1%}",
        ),
        (
            "throughput lost by the predicted best k; by the best fixed k",
            f"{load['best_k_regret_mean']:.1%} mean, {load['best_k_regret_worst']:.1%} worst; "
            f"{load['best_fixed_k_regret_mean']:.1%}, {load['best_fixed_k_regret_worst']:.0%}",
        ),
        (
            "speedup from shape and machine alone, Spec-Bench (17 rows)",
            f"{ladder['ladder_ratio_error']:.1%} mean error",
        ),
        ("SDSL Table 5, N* of four targets", f"{sdsl['table_5_worst_relative_error']:.2%} worst error"),
        *_experiment(),
        *_served(),
        *(_race(name, races[name]) for name in RACES if name in races),
        (
            "one step's pass in float32, 100 M Llama, 1 token: share of the memory's read rate; 5 and 16 tokens over one",
            _passes(engine["models"]["100M float32"]),
        ),
        ("the same in bfloat16", _passes(engine["models"]["100M bfloat16"])),
        (
            "a full plan; a search of " + f"{speed['configurations']:,} configurations; peak memory",
            f"{speed['plan_again_median_s']:.2f} s; {speed['search_s']:.2f} s; {speed['peak_memory_mb']:.0f} MB",
        ),
    ]
    return "| what | measured |\n|---|---|\n" + "".join(f"| {what} | {figure} |\n" for what, figure in rows)


def _experiment() -> list[tuple[str, str]]:
    """The sweep of recipes/experiment: laws held to what they were not shown, the planner in hindsight, Scylla against EAGLE."""
    laws = {
        (one["law"], one["target"], one["family"], one["temperature"]): one for one in _read("experiment/laws.json")
    }
    judged, compared = _read("experiment/hindsight.json"), _read("experiment/compared.json")
    inside, held = (sum(one[name] for one in laws.values()) for name in ("inside_90", "held_out"))

    def errors(law: str, family: str, what: str) -> str:
        return ", ".join(f"{laws[law, TARGET, family, heat][what]:{FORMATS[what]}}" for heat in (0.0, 1.0))

    cells = judged[0]["cells"]
    missed = sum(abs(one["predicted"] / one["measured"] - 1) for one in cells) / len(cells)
    lost = [one["regret"] for one in judged[0]["choices"] if one["by"] == "cost law"]
    return [
        (
            "own drafts of an 11 M target, held out (T = 0, T = 1): τ of the longest budgets, independent models; Scylla",
            f"{errors('law_1_1', 'lm', 'relative_error')}; {errors('law_1_1', 'scylla', 'relative_error')}",
        ),
        (
            "the same of the largest models; the deepest Scylla",
            f"{errors('law_1_2', 'lm', 'relative_error')}; {errors('law_1_2', 'scylla', 'relative_error')}",
        ),
        (
            "α of held-out models from perplexities: SDSL's plane; the plane in losses, bounded",
            f"{errors('accept_plane', 'lm', 'error')}; {errors('accept_loss_plane', 'lm', 'error')}",
        ),
        ("held-out outcomes of all laws within their 90 % intervals", f"{inside / held:.0%} of {held}"),
        (
            f"speedup of {len(cells)} own cells (chains and trees, batch 1 to 32) from plain decoding and k ≤ 2",
            f"{missed:.1%} mean error",
        ),
        (
            "throughput lost by the planned independent draft, batch "
            + ", ".join(f"{one['load']}" for one in judged[0]["choices"] if one["by"] == "cost law"),
            ", ".join(f"{one:.1%}" for one in lost),
        ),
        *(_leads(compared["leads"][f"temperature {heat}"], heat, rivals) for heat in (0, 1) for rivals in RIVALS),
    ]


def _served() -> list[tuple[str, str]]:
    """The zoo's drafts on vLLM's server (benchmarks/served.py)."""
    found = _read("served.json")
    speeds, foretold = found["throughput"], found["prediction"]
    loads = sorted(speeds["planned_over_none"], key=int)
    over = "; ".join(
        ", ".join(f"{speeds[key][load]:.2f}×" for load in loads)
        for key in ("planned_over_published", "planned_over_none")
    )
    return [
        (
            "acceptance by position in vLLM less our engine's, four drafts, chains of 5: largest difference",
            f"{max(one['most_apart'] for one in found['acceptance'].values()):.3f}",
        ),
        (
            f"Scylla as planned on vLLM (CPU) over EAGLE-2 of as many tokens, lookahead 5; over no draft, {', '.join(loads)} clients",
            over,
        ),
        (
            "tokens/s there at other lookaheads from no draft and one; lost by the planned schedule to the best fixed lookahead",
            f"{foretold['error']['mean']:.1%} mean error; {found['schedule']['regret_mean']:.1%}",
        ),
    ]


def _leads(leads: dict[str, Any], heat: int, rivals: str) -> tuple[str, str]:
    over = [leads[f"{SCYLLA} over {rival}"] for rival in RIVALS[rivals]]
    return (
        f"τ of Scylla (2 layers; 2.4 M tokens of text, 2.65 M of answers) over EAGLE-2; EAGLE-3 {rivals}; trees of 60 nodes, T = {heat}",
        "; ".join(f"{x['lead']:+.2f} ({x['low']:+.2f} to {x['high']:+.2f})" for x in over),
    )


def _race(name: str, race: dict[str, Any]) -> tuple[str, str]:
    """Our plain decoding over each peer's, with the spread over rounds."""
    size, dtype, batch = name.split("-")
    over = {arm.split("/")[0]: found for arm, found in race["speed_over"].items() if arm.endswith("/plain")}
    figures = (f"{peer} {x['median']:.2f}× ({x['p5']:.2f} to {x['p95']:.2f})" for peer, x in over.items())
    return f"plain greedy decoding over, {size.upper()} Llama, {dtype}, batch {batch[1:]}, 2 CPU threads", "; ".join(
        figures
    )


def _passes(found: dict[str, Any]) -> str:
    more = found["over_one_token"]
    return (
        f"{found['share_of_read']['median']:.0%}; {more['5 tokens']['median']:.2f}×, {more['16 tokens']['median']:.2f}×"
    )


def _pair(summary: dict[str, Any], at: str) -> str:
    return f"{summary[f'tokens_per_step_error_{at}']:.1%}; {summary[f'constant_alpha_error_{at}']:.1%}"


def _read(name: str) -> dict[str, Any]:
    return msgspec.json.decode((RESULTS / name).read_bytes())


def current(readme: str) -> str:
    """`readme` with the table as results/ has it."""
    before, rest = readme.split(START)
    return before + START + table() + END + rest.split(END)[1]


def main(path: str, *flags: str) -> None:
    text = Path(path).read_text()
    if "--check" in flags:
        raise SystemExit(
            0 if current(text) == text else f"{path}: the results table is not that of results/; run make results"
        )
    write_bytes(path, current(text).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
