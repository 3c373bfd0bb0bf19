"""Write what was measured into the documents: the whole table into docs/results.md, its headlines, the tour and a model with and without a
draft into README, so that no number is typed twice; with --check, only say whether both are current. What commands print: docs_blocks.py.

python recipes/results_tables.py [--check] [ROOT]
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_tables
import msgspec
import smollm2_figure
import smollm2_results

from foredraft.records import write_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
WRONG_DEFAULTS = ("fixed costs × 0.4", "fixed costs × 2.5", "bandwidth 0.6, compute 0.45", "all of them low")
RACES = ("31m-float32-b1", "31m-float32-b8", "31m-bfloat16-b1", "31m-bfloat16-b8", "100m-float32-b1", "100m-float32-b8")
TARGET, SCYLLA = "tales-11m", "scylla-L2-long"
RIVALS = {
    "of 5.05 M tokens of answers": ("eagle2-long-d5.05M", "eagle3-long-d5.05M"),
    "of 2.65 M tokens of answers": ("eagle2-long-d2.65M", "eagle3-long-d2.65M"),
}
FORMATS = {"relative_error": ".1%", "error": ".3f"}


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
        *_scylla(),
        *_costs(),
        *_experiment(),
        *_served(),
        *_simulated(),
        *smollm2_results.rows(RESULTS / "smollm2"),
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


def _scylla() -> list[tuple[str, str]]:
    """Scylla's Table 5 from our cost law, and which form of its law in tokens predicts larger budgets (recipes/dial_forms.py)."""
    table, forms = (
        _read("scylla/scylla.json")["table_5"],
        _read("dial_forms.json")["policies"]["published"]["mean over series"],
    )
    return [
        (
            "Scylla Table 5, tokens/s by batch from the plain column and published τ: EAGLE-2; Scylla; where EAGLE-2 falls below no draft",
            f"{table['eagle2_mean_error']:.1%}; {table['scylla_mean_error']:.1%} mean error; at {table['eagle2_below_none']} "
            f"(published {table['eagle2_below_none_published']})",
        ),
        (
            "τ at larger token budgets than seen, published series: log-linear (Scylla); saturating, exponent fixed; as planned",
            f"{forms['law_1_1']:.1%}; {forms['tokens_power']:.1%}; {forms['as planned']:.1%} mean error",
        ),
    ]


def _costs() -> list[tuple[str, str]]:
    """The cost law's defaults on documents left out (recipes/cost_law.py)."""
    held_out = _read("cost_law.json")["left_out_by_document"]
    names = ("recent software", "recent mixtures", "all")
    documents = ", ".join(f"{held_out[name]['documents']}" for name in names)
    return [
        (
            f"plain decoding from names alone, documents left out: median over those of recent software, its mixtures of experts, all ({documents})",
            ", ".join(f"{held_out[name]['median_error_of_documents']:.0%}" for name in names),
        )
    ]


def _experiment() -> list[tuple[str, str]]:
    """The sweep of recipes/experiment: laws held to what they were not shown, the planner in hindsight, Scylla against EAGLE."""
    laws, (inside, held_out) = _laws(), _coverage()
    judged, compared = _read("experiment/hindsight.json"), _read("experiment/compared.json")

    def errors(law: str, family: str, what: str) -> str:
        return ", ".join(f"{laws[law, TARGET, family, heat][what]:{FORMATS[what]}}" for heat in (0.0, 1.0))

    cells = judged[0]["cells"]
    missed = sum(abs(cell["predicted"] / cell["measured"] - 1) for cell in cells) / len(cells)
    choices = [choice for choice in judged[0]["choices"] if choice["by"] == "cost law"]
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
        ("held-out outcomes of all laws within their 90 % intervals", f"{inside / held_out:.0%} of {held_out}"),
        (
            f"speedup of {len(cells)} own cells (chains and trees, batch 1 to 32) from plain decoding and k ≤ 2",
            f"{missed:.1%} mean error",
        ),
        (
            "throughput lost by the planned independent draft, batch "
            + ", ".join(f"{choice['load']}" for choice in choices),
            ", ".join(f"{choice['regret']:.1%}" for choice in choices),
        ),
        *(_leads(compared["leads"][f"temperature {heat}"], heat, rivals) for heat in (0, 1) for rivals in RIVALS),
    ]


def _laws() -> dict[tuple[str, str, str, float], dict[str, Any]]:
    """Each law's held-out errors, by law, target, family and temperature."""
    rows = _read("experiment/laws.json")["laws"]
    return {(row["law"], row["target"], row["family"], row["temperature"]): row for row in rows}


def _coverage() -> tuple[int, int]:
    """Held-out outcomes inside their 90 % intervals, and all of them."""
    laws = _laws().values()
    return sum(row["inside_90"] for row in laws), sum(row["held_out"] for row in laws)


def _served() -> list[tuple[str, str]]:
    """Four drafts of the 11 M target on vLLM's server (benchmarks/served.py)."""
    served = _read("served.json")
    speeds, prediction = served["throughput"], served["prediction"]
    loads = sorted(speeds["planned_over_none"], key=int)
    over = "; ".join(
        ", ".join(f"{speeds[key][load]:.2f}×" for load in loads)
        for key in ("planned_over_published", "planned_over_none")
    )
    return [
        (
            "acceptance by position in vLLM less our engine's, four drafts, chains of 5: largest difference",
            f"{max(draft['most_apart'] for draft in served['acceptance'].values()):.3f}",
        ),
        (
            f"Scylla as planned on vLLM (CPU) over EAGLE-2 of as many tokens, lookahead 5; over no draft, {', '.join(loads)} clients",
            over,
        ),
        (
            "tokens/s there at other lookaheads from no draft and one; lost by the planned schedule to the best fixed lookahead",
            f"{prediction['error']['mean']:.1%} mean error; {served['schedule']['regret_mean']:.1%}",
        ),
    ]


def _simulated() -> list[tuple[str, str]]:
    """A simulated draft on vLLM's server beside the real one, which it never saw (benchmarks/simulated.py)."""
    simulated = _read("simulated.json")
    loads = ", ".join(f"{load}" for load in sorted({cell["load"] for cell in simulated["cells"]}))
    (lookahead,) = simulated["asked"]
    names = ("simulated_against_real", f"predicted from none and untrained@{lookahead}_against_simulated")
    return [
        (
            f"simulated draft on vLLM (CPU), lookahead {lookahead}, {loads} clients: tokens/s off the real draft's; predicted off simulated",
            "; ".join(f"{simulated[name]['mean']:.1%} mean, {simulated[name]['worst']:.1%} worst" for name in names),
        )
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
    over = {name.split("/")[0]: speed for name, speed in race["speed_over"].items() if name.endswith("/plain")}
    figures = (f"{peer} {x['median']:.2f}× ({x['p5']:.2f} to {x['p95']:.2f})" for peer, x in over.items())
    return f"plain greedy decoding over, {size.upper()} Llama, {dtype}, batch {batch[1:]}, 2 CPU threads", "; ".join(
        figures
    )


def _passes(model: dict[str, Any]) -> str:
    more = model["over_one_token"]
    return (
        f"{model['share_of_read']['median']:.0%}; {more['5 tokens']['median']:.2f}×, {more['16 tokens']['median']:.2f}×"
    )


def _pair(summary: dict[str, Any], at: str) -> str:
    return f"{summary[f'tokens_per_step_error_{at}']:.1%}; {summary[f'constant_alpha_error_{at}']:.1%}"


def _read(name: str) -> dict[str, Any]:
    return msgspec.json.decode((RESULTS / name).read_bytes())


def headlines() -> str:
    """A few figures for a visitor, as a Markdown list."""
    tables, speed = _read("validation/summary.json")["tables"], _read("plan_speed.json")
    curves, load = tables["inferencex_golden_acceptance_length"], tables["tomasruizt_vllm_scripts_throughput"]
    reports, (inside, held_out) = tables["public_points"], _coverage()
    peer = _read("peers.json")["races"]["31m-float32-b1"]["speed_over"]
    figures = [
        f"acceptance length at 3 to 8 draft tokens from 1 and 2, seven heads of today's models: **{curves['tokens_per_step_error']:.1%}** mean "
        f"error, {curves['tokens_per_step_error_k8']:.1%} at 8; carrying logit acceptance on by hand, {curves['carried_step_error']:.1%}; taking "
        f"it for constant, {curves['constant_alpha_error']:.1%}",
        f"gain of {reports['gain_rows']} public reports from names alone: **{reports['gain_coverage']:.0%}** within the 90 % interval; median "
        f"error {reports['gain_median_error']:.0%}, worst {reports['gain_worst_error']:.0%}; whether to speculate right in "
        f"{reports['speculate_or_not_right']:.0%}",
        f"throughput at 3 to 6 draft tokens from none, 1 and 2, on vLLM at 1 to 256 clients: **{load['throughput_ratio_error']:.1%}** mean "
        f"error; the planned lookahead loses {load['best_k_regret_mean']:.1%} to the best, the best fixed one {load['best_fixed_k_regret_mean']:.1%}",
        f"speedup from shapes and machine alone, Spec-Bench: **{tables['specbench_leaderboard']['ladder_ratio_error']:.1%}** mean error",
        f"held-out outcomes inside their 90 % intervals: **{inside / held_out:.0%}** of {held_out}",
        f"plain decoding of our engine over transformers, 31 M Llama on 2 CPU threads: "
        f"**{_over(peer, 'transformers')['median']:.2f}×**, over vLLM {_over(peer, 'vllm')['median']:.2f}×; a full plan takes "
        f"{speed['plan_again_median_s']:.2f} s",
    ]
    return "".join(f"- {figure}\n" for figure in figures)


def _over(speeds: dict[str, Any], peer: str) -> dict[str, float]:
    """Our plain decoding over a peer's."""
    return next(speed for name, speed in speeds.items() if name == f"{peer}/plain")


def current(document: str, parts: Mapping[str, str]) -> str:
    """`document` with each text between the marks of its name."""
    for name, text in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, after = document.split(start)
        document = before + start + text + end + after.split(end)[1]
    return document


def main(*words: str) -> None:
    root = next((Path(word) for word in words if not word.startswith("--")), ROOT)
    smollm2 = RESULTS / "smollm2"
    readme = {"smollm2": smollm2_figure.figure(smollm2), "tour": smollm2_figure.toured(smollm2), "results": headlines()}
    for path, parts in (
        (root / "README.md", readme),
        (root / "docs" / "results.md", {"results": table(), "gpu": gpu_tables.table(RESULTS / "gpu")}),
    ):
        document = path.read_text(encoding="utf-8")
        if "--check" not in words:
            write_bytes(path, current(document, parts).encode())
        elif current(document, parts) != document:
            raise SystemExit(f"{path}: its figures are not those of results/; run make results")


if __name__ == "__main__":
    main(*sys.argv[1:])
