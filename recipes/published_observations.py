"""Turn a folder of published measurement tables (CSV) into the records that ship with the package.

    python recipes/published_observations.py FOLDER

Writes src/foredraft/published/observations.jsonl and position_laws.json. The folder's README says what each table is
and how far to trust it.
"""

import re
import sys
from pathlib import Path

import msgspec

from foredraft import records
from foredraft.plan import evidence
from foredraft.published.tables import read_table
from foredraft.records import Observation
from foredraft.shapes import shape

HERE = Path(__file__).parents[1] / "src/foredraft/published"
TRUST = {  # table -> how far its rows can be trusted; a table that is not named here does not ship
    "tomasruizt_vllm_scripts_throughput": "raw_logs",
    "tomasruizt_kv_capacity": "raw_logs",
    "specforge_specbundle": "repository",
    "inferencex_golden_acceptance_length": "repository",
    "eagle3_table1": "paper",
    "eagle2_table1": "paper",
    "eagle3_data_scaling_fig1": "read_off_plot",
    "leviathan_alpha_table3": "paper",
    "leviathan_t5_alpha_c_speedup": "paper",
    "specbench_leaderboard": "repository",
    "specdecode_bench_llama31_8b_tau_by_k": "derived",
    "angelslim_eagle3_qwen3": "repository",
    "llmviewer_roofline_vs_trtllm": "repository",
}
# Sizes and training tokens that Leviathan's tables state in the text (T5: 1 T tokens of C4, arXiv 1910.10683; LaMDA: 2.81 T, arXiv 2201.08239).
LEVIATHAN = {
    "T5-small": 7.7e7,
    "T5-base": 2.5e8,
    "T5-large": 8e8,
    "GPT-like (6M)": 6e6,
    "LaMDA (100M)": 1e8,
    "LaMDA (2B)": 2e9,
    "LaMDA (8B)": 8e9,
}
LEVIATHAN_TARGETS = {"T5-XXL": (1.1e10, 1e12), "LaMDA": (1.37e11, 2.81e12), "GPT-like": (9.7e7, None)}


def enrich(row: Observation) -> Observation:
    """Add the parameter counts and training tokens that the names stand for."""
    if "2211.17192" in row.provenance.source:
        return _leviathan(row)
    facts: dict = {}
    for side, name in (("target", row.target), ("draft", row.draft)):
        if name and (side == "target" or row.method == "draft_model"):
            try:
                target_shape = shape(name)
            except ValueError:
                continue
            facts |= {f"{side}_params": float(target_shape.params), f"{side}_tokens": target_shape.training_tokens}
    return msgspec.structs.replace(row, **{k: v for k, v in facts.items() if getattr(row, k) is None})


def _leviathan(row: Observation) -> Observation:
    params, tokens = next(v for k, v in LEVIATHAN_TARGETS.items() if row.target.startswith(k))
    if row.draft not in LEVIATHAN:  # unigram and bigram tables are not language models of a size
        return msgspec.structs.replace(
            row, method="ngram_table", accept_kind="sampled", target_params=params, target_tokens=tokens
        )
    return msgspec.structs.replace(
        row,
        method="draft_model",
        accept_kind="sampled",
        target_params=params,
        target_tokens=tokens,
        draft_params=LEVIATHAN[row.draft],
        draft_tokens=tokens,
    )


def main(folder: str) -> None:
    rows = [
        enrich(row) for name in sorted(TRUST) for row in read_table(Path(folder) / f"{name}.csv", trust=TRUST[name])[0]
    ]
    rows = [
        msgspec.structs.replace(row, machine=re.sub(r"LRZ partition \S+ \((.*)\)", r"\1", row.machine or "") or None)
        for row in rows
    ]
    records.write_lines(HERE / "observations.jsonl", rows)
    laws = evidence.fit_position_laws(rows)
    records.write(HERE / "position_laws.json", laws)
    print(
        f"{len(rows)} observations; position laws from {', '.join(f'{law.num_curves} curves' for law in laws.values())}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
