"""Turn a folder of published measurement tables (CSV) into the records that ship with the package.

    python recipes/published_observations.py FOLDER

Writes src/foredraft/published/observations.jsonl.gz and position_laws.json, and prints which rows of each table were left out and why.
The folder's README says what each table is and how far to trust it; `tables/` beside this file holds curves by position that people
gave in the issues of serving engines, with the thread as their source.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from foredraft import records
from foredraft.plan import evidence
from foredraft.published.tables import Reading, read_csv
from foredraft.records import Observation
from foredraft.shapes import shape

HERE = Path(__file__).parents[1] / "src/foredraft/published"
OURS = Path(__file__).parent / "tables"
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
    "accept_by_k_method": "card_or_issue",
    "accept_vs_depth_size": "paper_digest",
    "accept_vs_training": "card_or_issue",
    "scylla_accept": "paper_digest",
    "per_position": "card_or_issue",
    "dspark_conditional_acceptance": "read_off_plot",
    "throughput_validation": "card_or_issue",
    "public_points": "card_or_issue",
    "issue_positions": "issue",
    "dspark_table1": "paper",
    "specbench_by_task": "derived",
    "served_reports": "issue",
}
LEFT_OUT = {  # table -> (column, what a cell of it holds, why the row does not ship)
    "accept_by_k_method": (("source", r"^AngelSlim@", "stands in angelslim_eagle3_qwen3"),),
    "accept_vs_training": (
        ("source", r"^EAGLE-3 paper Fig 1", "stands in eagle3_data_scaling_fig1"),
        ("draft_tokens", r"^random [12]-layer", "stands in accept_vs_depth_size"),
        ("target", r"^\?$", "its target is not named"),
    ),
    "scylla_accept": (
        ("note", r"VALUE OF THE FITTED LAW", "a law's value, no measurement"),
        ("target", r"^\?$", "its target is not named"),
    ),
    "throughput_validation": (("note", r"^(ratio |base_tok_s = )", "its ratio is not over decoding without a draft"),),
}
METHODS = {  # what the tables of 2026 call a method -> our spelling
    "EAGLE-3.1": "eagle3",
    "DFlash+D-PACE": "dflash",
    "MTP post-trained": "mtp",
    "block draft": "dspark",
    "mamba_attn_hybrid": "hspec",
}
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
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


def read(path: Path, trust: str) -> Reading:
    """A table's rows as records, under the line numbers of its file; what was left out is named in the reading."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        lines = [(reader.line_num, row) for row in reader]
        columns = list(reader.fieldnames or ())
    kept, left_out = [], {}
    for line, row in lines:
        if reason := _unfit(path.stem, row):
            left_out.setdefault(reason, []).append(str(line))
        else:
            kept.append((line, row))
    if "position" in columns:
        kept, columns = _by_position(kept, columns)
    reading = read_csv(path, _written(columns, [(line, _plain(row)) for line, row in kept]), trust=trust)
    for reason, places in left_out.items():
        for place in places:
            reading.leave_out(place, reason)
    return reading


def _unfit(table: str, row: Mapping[str, str]) -> str | None:
    matches = (why for column, pattern, why in LEFT_OUT.get(table, ()) if re.search(pattern, row.get(column) or ""))
    return next(matches, None)


def _by_position(
    lines: list[tuple[int, dict[str, str]]], columns: list[str]
) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """A table of one row per position as one of one row per curve, where its first position stands."""
    shares = next(name for name in ("joint_acceptance", "survival") if name in columns)
    dropped = ("position", shares, "domain", "conditional_acceptance", "tau_if_k_is_position", "note")
    own = [name for name in columns if name not in dropped]
    curves: dict[tuple[str, ...], list[tuple[int, dict[str, str]]]] = {}
    for line, row in lines:
        curves.setdefault(tuple(row[name] for name in (*own, *({"domain"} & row.keys()))), []).append((line, row))
    merged = [
        (
            rows[0][0],
            rows[0][1] | {"k": str(len(rows)), "per_position_acceptance": ";".join(row[shares] for _, row in rows)},
        )
        for rows in curves.values()
    ]
    return merged, [*own, "k", "per_position_acceptance", "note"]


def _plain(row: Mapping[str, str]) -> dict[str, str]:
    """A row whose cells hold plain numbers: sizes without their unit, a tree's nodes, devices apart from the machine."""
    out = {name: (cell or "").strip() for name, cell in row.items()}
    if domain := out.get("domain"):
        out["dataset"] = domain
    out["method"] = METHODS.get(out.get("method", ""), out.get("method", ""))
    out["source"] = re.sub(r"^HF (?:dataset )?(?:cards? )?\(?(.*?)\)?$", r"huggingface.co/\1", out.get("source", ""))
    if size := re.fullmatch(r"([\d.]+)([KMB]?)", out.get("draft_params", "")):
        out["draft_params"] = repr(float(size[1]) * UNITS[size[2]])
    if layers := re.match(r"\d+", out.get("draft_layers", "")):
        out["draft_layers"] = layers[0]
    if "draft_layers" in out and "draft_tokens" in out:
        stated = out["draft_tokens"]
        count = re.fullmatch(r"([\d.]+e\d+)(?: tokens)?(?: x ?(\d+) epochs?.*)?", stated)
        out["draft_tokens"] = repr(float(count[1]) * float(count[2] or 1)) if count else ""
        out["note"] = "; ".join(filter(None, (out.get("note"), f"trained on {stated}" if stated and not count else "")))
    if nodes := re.match(r"tree (\d+)(?: depth \d+)?$", out.get("tree", "")):
        out["tree_nodes"] = nodes[1]
    if devices := re.fullmatch(r"(\d+)x(\S+)(?: TP\d+)?", out.get("hardware", "")):
        out["hardware"], out["tp"] = devices[2], devices[1]
    if out["method"] == "none":
        out |= dict.fromkeys(({"gain", "tokens_per_step"} & out.keys()), "")
    return out


def _written(columns: list[str], lines: list[tuple[int, dict[str, str]]]) -> bytes:
    """The rows as CSV, each on the line that it has in its file; the lines between are blank."""
    text = io.StringIO()
    added = {
        name: None
        for _, row in lines
        for name in row
        if name not in columns and name in ("dataset", "tree_nodes", "tp")
    }
    columns = [*columns, *added]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    at = 1
    for line, row in lines:
        text.write("\n" * (line - at - 1))
        writer.writerow(row)
        at = line
    return text.getvalue().encode()


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


def readings(folder: Path) -> Iterator[Reading]:
    """Every table that ships, from `folder` or beside this file, in the order of their names."""
    for name in sorted(TRUST):
        path = next(place for place in (OURS / f"{name}.csv", folder / f"{name}.csv") if place.exists())
        yield read(path, TRUST[name])


def main(folder: str) -> None:
    rows: list[Observation] = []
    for reading in readings(Path(folder)):
        drafted = {row.run for row in reading.rows if row.method != "none"}
        rows += (
            msgspec.structs.replace(row, run=f"{row.run} plain") if row.method == "none" and row.run in drafted else row
            for row in map(enrich, reading.rows)
        )
        print(reading)
    rows = [
        msgspec.structs.replace(row, machine=re.sub(r"LRZ partition \S+ \((.*)\)", r"\1", row.machine or "") or None)
        for row in rows
    ]
    records.write_lines(HERE / "observations.jsonl.gz", rows)
    laws = evidence.fit_position_laws(rows)
    records.write(HERE / "position_laws.json", laws)
    print(
        f"{len(rows)} observations; position laws from {', '.join(f'{law.num_curves} curves' for law in laws.values())}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
