"""A CSV of measurements, one row each, read into Observations.

Promises: column names of the field's usual tables are recognised; a blank cell is missing, a NaN or a word where a
number belongs is an error that names file, row and column; nothing is guessed from a value. Refuses to know: what the
rows will be used for.
"""

import csv
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from foredraft import kinds
from foredraft.records import Observation, Provenance, read_lines, with_hint

# Observation field -> the column names under which tables carry it (compared in lower case, spaces and dashes as underscores).
COLUMNS: dict[str, tuple[str, ...]] = {
    "target": ("target", "target_model", "model", "base_model"),
    "method": ("method", "algorithm", "spec_method", "speculative_method"),
    "draft": ("draft", "draft_model", "speculator", "drafter"),
    "dataset": ("dataset", "task", "benchmark", "workload"),
    "engine": ("engine", "framework", "server"),
    "machine": ("hardware", "gpu", "machine", "device", "accelerator"),
    "dtype": ("dtype",),
    "temperature": ("temperature", "temp"),
    "tensor_parallel": ("tp", "tensor_parallel", "tp_size", "tensor_parallel_size"),
    "target_params": ("target_params",),
    "draft_params": ("draft_params",),
    "lookahead": (
        "k", "lookahead", "gamma", "num_speculative_tokens", "num_spec_tokens", "speculative_tokens", "num_steps",
        "chain_length", "max_chain_length", "draft_length", "speculative_num_steps", "spec_tokens", "draft_len",
        "n_draft", "n_spec", "spec_k",
    ),
    "topk": ("topk", "top_k", "eagle_topk", "speculative_eagle_topk"),
    "concurrency": ("concurrency", "max_concurrency", "num_concurrent", "concurrent_requests", "clients"),
    "batch_size": ("batch_size", "batch", "bs"),
    "num_requests": ("n_requests", "num_requests", "requests", "num_prompts"),
    "steps": ("steps", "drafts", "num_drafts"),
    "drafted": ("drafted", "num_draft_tokens_total"),
    "accepted": ("accepted", "accepted_tokens", "num_accepted_tokens"),
    "tokens_per_step": (
        "tokens_per_step", "mean_acceptance_length", "acceptance_length", "mean_accept_length", "accept_length",
        "accept_len", "al", "tau", "mean_tokens_per_step", "mean_accepted_tokens", "average_acceptance_length",
        "avg_acceptance_length", "acceptance_len", "mean_accepted_length", "accepted_length", "avg_accept_length",
        "avg_accept_len", "mean_al", "acc_length", "acc_len",
    ),
    "accept_prob": ("accept_prob", "alpha"),
    "cost_ratio": ("cost_ratio", "c"),
    "output_tok_s": (
        "output_tok_s", "output_throughput", "output_tokens_per_s", "output_tokens_per_second", "throughput",
        "throughput_tok_s", "tok_s", "tokens_per_s", "tokens_per_second", "tps", "measured_tok_s",
        "output_token_throughput", "total_output_tok_s", "tokens_s", "tok_per_s", "toks_per_s", "toks_s",
        "output_tokens_s", "output_tok_per_s", "output_tps", "throughput_tps", "throughput_tokens_per_s",
        "throughput_tokens_per_second", "output_throughput_tok_s",
    ),
    "speedup": (
        "speedup", "overall_speedup", "speedup_empirical", "speedup_ratio", "throughput_ratio", "ratio", "speed_up",
    ),
    "input_len": ("input_len", "isl", "mean_input_len", "prompt_len"),
    "output_len": ("output_len", "osl", "mean_output_len"),
    "kv_cache_tokens": ("kv_cache_tokens",),
}  # fmt: skip
MILLISECONDS = {
    "ttft_s": ("mean_ttft_ms", "ttft_ms"),
    "tpot_s": ("mean_tpot_ms", "tpot_ms"),
    "itl_s": ("mean_itl_ms", "itl_ms"),
}
WHOLE = {
    "tensor_parallel", "lookahead", "topk", "concurrency", "batch_size", "num_requests", "steps", "drafted", "accepted",
    "kv_cache_tokens",
}  # fmt: skip
TEXT = {"target", "method", "draft", "dataset", "engine", "machine", "dtype"}
COLUMNS_HELP = "foredraft validate --help lists the columns of each kind"
OUTCOMES = ("tokens_per_step", "survival", "accept_prob", "output_tok_s", "speedup", "kv_cache_tokens")
# EAGLE-3's figure 1 counts training data in ShareGPTs: 68 k dialogues of about 1,500 tokens. The product is an assumption and its rows say so.
SHAREGPT_TOKENS = 1.0e8


def read_observations(paths: Iterable[Path]) -> list[Observation]:
    """Rows of CSV tables and of JSONL files of observations, one file after another."""
    return [
        row
        for path in paths
        for row in (read_table(path)[0] if path.suffix == ".csv" else read_lines(Observation, path))
    ]


def read_table(path: str | Path, *, trust: str = "repository") -> tuple[list[Observation], list[str]]:
    """Read a CSV into Observations; also return the columns that were not recognised.

    Raises ValueError, one line naming file, row and column, on: no rows, no outcome column, a row without a value, a
    NaN, a word where a number belongs, an impossible value.
    """
    name = Path(path).name
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        # a unit in parentheses is not part of the name
        header = {_key(re.sub(r"\(.*?\)", "", column)): column for column in reader.fieldnames or () if column}
        rows = [(reader.line_num, row) for row in reader]
    columns = {field: alias for field, aliases in COLUMNS.items() for alias in reversed(aliases) if alias in header}
    cells = _Cells(name, header, columns)
    if not rows:
        raise ValueError(f"{name}: no rows below the header")
    if not any(cells.has(field) for field in OUTCOMES):
        message = f"{name}: no outcome column; one of tau / acceptance_length, per_position_acceptance, throughput, speedup or alpha is needed"
        raise with_hint(ValueError(message), COLUMNS_HELP)
    observations, source = [], name
    for number, row in rows:
        if None in row:
            raise ValueError(f"{name}:{number}: more cells than columns; quote a cell that holds a comma")
        if not any((value or "").strip() for key, value in row.items() if key):
            raise ValueError(f"{name}:{number}: the row is empty; remove it")
        written = (row.get(header.get("source", ""), "") or "").strip()
        source = source if written in ("", "same") else written
        observations.append(
            _observation(cells, number, row, Provenance(source=source, trust=trust, note=cells.text(row, "note")))
        )
    return observations, [column for key, column in header.items() if key not in cells.used]


class _Cells:
    """Typed access to the cells of one table; remembers which columns were looked at."""

    def __init__(self, name: str, header: dict[str, str], columns: dict[str, str]) -> None:
        self.name, self.header, self.columns = name, header, columns
        self.used = set(columns.values()) | {"source", "note"}

    def has(self, field: str) -> bool:
        return field in self.columns or (field == "survival" and any(map(_by_position, self.header)))

    def text(self, row: dict, key: str) -> str | None:
        self.used.add(key)
        return (row.get(self.header.get(key, "")) or "").strip() or None

    def number(self, row: dict, key: str, number: int) -> float | None:
        """The cell in column `key` as a finite number, or None when it is blank or there is no such column."""
        cell = self.text(row, key)
        if cell is None:
            return None
        try:
            value = float(cell.rstrip("%x×"))
        except ValueError:
            raise ValueError(f"{self.name}:{number}: column {key}: {cell!r} is not a number") from None
        if not math.isfinite(value):
            raise ValueError(
                f"{self.name}:{number}: column {key}: {cell!r} is not a finite number; leave the cell blank if it was not measured"
            )
        return value


def _observation(cells: _Cells, number: int, row: dict, provenance: Provenance) -> Observation:
    fields: dict = {}
    for field, key in cells.columns.items():
        fields[field] = (
            cells.text(row, key) if field in TEXT else _as_int(cells, field, cells.number(row, key, number), number)
        )
    fields |= _derived(cells, number, row, fields)
    fields |= {"method": _method(fields, "method" in cells.columns), "target": fields.get("target") or "unstated"}
    if variant := cells.text(row, "thinking"):
        fields["dataset"] = f"{fields.get('dataset') or ''} [{variant}]".strip()
    try:
        return Observation(run=f"{Path(cells.name).stem}:{number}", provenance=provenance, **fields)
    except ValueError as error:
        raise ValueError(f"{cells.name}:{number}: {error}") from None


def _derived(cells: _Cells, number: int, row: dict, fields: dict) -> dict:
    """What a table states in other units or as totals."""

    def cell(key: str) -> float | None:
        return cells.number(row, key, number)

    out: dict = {
        name: value / 1e3 for name, keys in MILLISECONDS.items() for key in keys if (value := cell(key)) is not None
    }
    if (survival := _survival(cells, number, row)) is not None:
        out["survival"] = survival
    requests, nodes, counts, gib, scale = (
        fields.get("num_requests"), cell("num_draft_tokens"), cell("draft_tokens"), cell("model_load_gib"),
        cell("data_scale_x_sharegpt"),
    )  # fmt: skip
    if nodes is not None and {"steps", "accepted"} <= set(cells.columns):  # vLLM's counters go by this name too
        out["drafted"], nodes = int(nodes), None
    if nodes is not None and fields.get("lookahead") is None:  # a table without steps counts its chain so
        out["lookahead"], nodes = int(nodes), None
    for total, mean in (("input_tokens", "input_len"), ("output_tokens", "output_len")):
        if requests and (value := cell(total)) is not None:
            out[mean] = value / requests
    if nodes is not None:
        out["tree_nodes"] = int(nodes) - 1  # SGLang counts the root
    if counts is not None:  # vLLM's counter where accepted tokens stand beside it, else the draft's training tokens
        out["drafted" if "accepted" in cells.columns else "draft_tokens"] = int(counts)
    if gib is not None:
        out["model_bytes"] = gib * 2**30
    if scale is not None:
        out["draft_tokens"] = scale * SHAREGPT_TOKENS
    return out


def _survival(cells: _Cells, number: int, row: dict) -> tuple[float, ...] | None:
    """Joint acceptance by position from a cell such as '72.8;51.3' (per cent where the column says pct); conditional ones are chained."""
    for key in filter(_by_position, cells.header):
        cell = cells.text(row, key)
        if cell is None:
            continue
        try:
            values = [
                float(v) / (100 if "pct" in key or "percent" in key else 1)
                for v in re.split(r"[;,|\s]+", cell.strip("[]() "))
            ]
        except ValueError:
            raise ValueError(f"{cells.name}:{number}: column {key}: {cell!r} is not a list of numbers") from None
        if "conditional" in key:
            values = [math.prod(values[: i + 1]) for i in range(len(values))]
        if any(b > a + 0.005 for a, b in pairwise(values)):
            raise ValueError(
                f"{cells.name}:{number}: column {key}: joint acceptance cannot rise with position; name a conditional column so"
            )
        return tuple(values)
    return None


def _method(fields: dict, stated: bool) -> str:
    """One spelling per method; k = 0 is no speculation under any name, and without a method column the draft decides."""
    key = re.sub(r"_?\(.*?\)", "", _key(fields.get("method") or ""))
    if fields.get("lookahead") == 0 or (not stated and not fields.get("draft") and fields.get("lookahead") is None):
        return "none"
    return kinds.SPELLINGS.get(key, key) if stated else "unstated"


def _by_position(key: str) -> bool:
    return "per_position" in key or "position_acceptance" in key


def _as_int(cells: _Cells, field: str, value: float | None, number: int) -> float | int | None:
    """The value, as an int where the field counts something."""
    if field not in WHOLE or value is None:
        return value
    if not value.is_integer():
        raise ValueError(f"{cells.name}:{number}: column {cells.columns[field]}: {value} is not a whole number")
    return int(value)


def _key(name: str) -> str:
    """Column names and methods compared in lower case, with every run of other signs as one underscore."""
    return re.sub(r"[^a-z0-9()]+", "_", name.strip().lower()).strip("_")
