"""Rows of measurements under the column names of the field's usual tables, read into Observations: a CSV, or flat records of
another tool's file.

Promises: a blank cell is missing, a NaN or a word where a number belongs is an error that names file, row and column; nothing is
guessed from a value; a row without a figure is named. Refuses to know: what the rows will be used for.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec

from foredraft import kinds
from foredraft.published.cells import Column, key_of, listed, number_of, shortened, survival_of, values_of, whole_of
from foredraft.published.opened import utf8_of
from foredraft.records import Observation, Provenance, dtype_name, with_hint

# Observation field -> the column names under which tables carry it (compared in lower case, spaces and dashes as underscores).
COLUMNS: dict[str, tuple[str, ...]] = {
    "target": ("target", "target_model", "model", "base_model", "model_id", "model_name"),
    "method": ("method", "algorithm", "spec_method", "speculative_method"),
    "draft": ("draft", "draft_model", "speculator", "drafter"),
    "dataset": ("dataset", "dataset_name", "task", "benchmark", "workload"),
    "engine": ("engine", "framework", "server"),
    "machine": ("hardware", "gpu", "machine", "device", "accelerator"),
    "dtype": ("dtype",),
    "temperature": ("temperature", "temp"),
    "tensor_parallel": ("tp", "tensor_parallel", "tp_size", "tensor_parallel_size", "devices", "num_devices", "gpus", "num_gpus"),
    "target_params": ("target_params",),
    "draft_params": ("draft_params",),
    "draft_layers": ("draft_layers",),
    "lookahead": (
        "k", "lookahead", "gamma", "num_speculative_tokens", "num_spec_tokens", "speculative_tokens", "num_steps",
        "chain_length", "max_chain_length", "draft_length", "speculative_num_steps", "spec_tokens", "draft_len",
        "n_draft", "n_spec", "spec_k",
    ),
    "tree_nodes": ("tree_nodes",),
    "topk": ("topk", "top_k", "eagle_topk", "speculative_eagle_topk"),
    "concurrency": ("concurrency", "max_concurrency", "num_concurrent", "concurrent_requests", "clients", "batch_or_concurrency"),
    "batch_size": ("batch_size", "batch", "bs"),
    "num_requests": ("n_requests", "num_requests", "requests", "completed", "num_prompts"),
    "steps": ("steps", "drafts", "num_drafts", "spec_decode_num_drafts"),
    "drafted": ("drafted", "num_draft_tokens_total", "spec_decode_draft_tokens"),
    "accepted": ("accepted", "accepted_tokens", "num_accepted_tokens", "spec_decode_accepted_tokens"),
    "tokens_per_step": (
        "tokens_per_step", "mean_acceptance_length", "acceptance_length", "mean_accept_length", "accept_length",
        "accept_len", "al", "tau", "mean_tokens_per_step", "mean_accepted_tokens", "average_acceptance_length",
        "avg_acceptance_length", "acceptance_len", "mean_accepted_length", "accepted_length", "avg_accept_length",
        "avg_accept_len", "mean_al", "acc_length", "acc_len", "spec_decode_acceptance_length",
    ),
    "accept_prob": ("accept_prob", "alpha"),
    "cost_ratio": ("cost_ratio", "c"),
    "output_tok_s": (
        "output_tok_s", "output_throughput", "output_tokens_per_s", "output_tokens_per_second", "throughput",
        "throughput_tok_s", "tok_s", "tokens_per_s", "tokens_per_second", "tps", "measured_tok_s",
        "output_token_throughput", "total_output_tok_s", "tokens_s", "tok_per_s", "toks_per_s", "toks_s",
        "output_tokens_s", "output_tok_per_s", "output_tps", "throughput_tps", "throughput_tokens_per_s",
        "throughput_tokens_per_second", "output_throughput_tok_s", "spec_tok_s", "eagle3_tok_s",
    ),
    "speedup": (
        "speedup", "overall_speedup", "speedup_empirical", "speedup_ratio", "throughput_ratio", "ratio", "speed_up", "gain",
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
    "tensor_parallel", "lookahead", "topk", "tree_nodes", "draft_layers", "concurrency", "batch_size", "num_requests", "steps", "drafted",
    "accepted", "kv_cache_tokens",
}  # fmt: skip
TEXT = {"target", "method", "draft", "dataset", "engine", "machine", "dtype"}
COLUMNS_HELP = "foredraft validate --help lists the columns of each kind"
OUTCOMES = (
    "tokens_per_step", "survival", "accept_prob", "cost_ratio", "output_tok_s", "speedup", "ttft_s", "tpot_s", "itl_s",
    "kv_cache_tokens", "model_bytes",
)  # fmt: skip
FIGURES = frozenset(OUTCOMES)
# EAGLE-3's figure 1 counts training data in ShareGPTs: 68 k dialogues of about 1,500 tokens. The product is an assumption and its rows say so.
SHAREGPT_TOKENS = 1.0e8
UNSTATED = "unstated"
TREE = re.compile(r"tree (\d+)/(\d+)/(\d+)", re.IGNORECASE)  # SGLang's steps, topk and draft tokens in one cell
TIMES = {name: of for of, names in MILLISECONDS.items() for name in reversed(names)}
MEANS = {
    "input_tokens": "input_len", "total_input_tokens": "input_len", "output_tokens": "output_len", "total_output_tokens": "output_len",
}  # fmt: skip
PLAIN = (
    "plain_tok_s",
    "base_tok_s",
    "baseline_tok_s",
    "vanilla_tok_s",
)  # tokens/s without speculation, beside a speculative row
TOTALS = (*MEANS, *PLAIN, "num_draft_tokens", "draft_tokens", "model_load_gib", "data_scale_x_sharegpt")
OF_A_DRAFT = (
    "draft", "draft_params", "draft_tokens", "lookahead", "topk", "tree_nodes", "tokens_per_step", "survival", "accept_prob", "cost_ratio",
    "steps", "drafted", "accepted", "speedup", "ttft_s", "tpot_s", "itl_s", "kv_cache_tokens", "model_bytes",
)  # fmt: skip

CHANGING = re.compile(
    r"adaptive|dynamic|auto|variable|schedule"
)  # what tables write for a length that changes from step to step
LONGEST_CELL = 2**30  # characters; Python's own limit, 131,072, is shorter than a column of per-request times


@dataclass
class Reading:
    """A file's rows, and what in it was not used: rows by reason with their places, and columns. `remarks`: what was done to rows."""

    name: str
    form: str = "table"
    rows: list[Observation] = field(default_factory=list)
    unused: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)

    def leave_out(self, place: str, reason: str) -> None:
        self.unused.setdefault(reason, []).append(place)

    def remark(self, what: str) -> None:
        self.remarks[what] = self.remarks.get(what, 0) + 1

    def __str__(self) -> str:
        """One line for people: rows read, rows left out and why, columns that nothing was read from."""
        parts = [f"{self.name}: {len(self.rows)} row{'s' * (len(self.rows) != 1)} read ({self.form})"]
        parts += [f"{len(places)} not used: {reason} ({listed(places)})" for reason, places in self.unused.items()]
        parts += [f"{what} ({count})" for what, count in self.remarks.items()]
        if self.columns:
            parts.append(f"not used: {', '.join(map(shortened, self.columns))}")
        return "; ".join(parts)


def read_table(path: str | Path, *, trust: str = "repository") -> tuple[list[Observation], list[str]]:
    """Read a CSV into Observations; also return the columns that were not recognised. Raises ValueError as `read_csv`."""
    reading = read_csv(path, utf8_of(path), trust=trust)
    return reading.rows, list(reading.columns)


def read_csv(path: str | Path, data: bytes, *, trust: str = "repository") -> Reading:
    """Read a table whose cells are parted by commas, semicolons, tabs or bars, as its header says.

    Raises ValueError, one line naming file, row and column, on: no rows, no outcome column, an empty row, a NaN, a word where a
    number belongs, an impossible value.
    """
    reading = Reading(Path(path).name)
    delimiter, lines = _dialect(data)
    earlier = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        table = SourceTable(reading, next(reader, []), trust=trust, decimal_comma=delimiter != ",")
        empty = True
        for cells in reader:
            if cells:
                table.add(str(reader.line_num), cells)
                empty = False
    except csv.Error as error:
        raise ValueError(f"{reading.name}:{reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(earlier)
    if empty:
        raise ValueError(f"{reading.name}: no rows below the header")
    return reading


def add_records(
    reading: Reading, records: Iterable[tuple[str, Mapping[str, Any]]], known: re.Pattern[str] | None = None
) -> None:
    """Add flat records of a tool's file, each at its place; columns that match `known` are the tool's, and say nothing to us."""
    tables: dict[tuple[str, ...], SourceTable] = {}
    for place, record in records:
        key = tuple(record)
        if key not in tables:
            tables[key] = SourceTable(reading, key, trust="own", known=known)
        tables[key].add(place, [str(cell) if isinstance(cell, list | dict) else cell for cell in record.values()])


def _dialect(data: bytes) -> tuple[str, io.TextIOBase]:
    """What parts the cells, and the lines. Excel may say it in a first line "sep=;"."""
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    first = lines.readline()
    if match := re.fullmatch(r"sep=(.)\s*", first):
        return match[1], lines
    lines.seek(0)
    names = re.sub(r'"[^"]*"', "", first)
    return max(",;\t|", key=names.count), lines


class SourceTable:
    """A header and how to read the rows below it: which column holds which field, looked up once."""

    def __init__(
        self, reading: Reading, header: Sequence[str], *, trust: str, decimal_comma: bool = False,
        known: re.Pattern[str] | None = None,
    ) -> None:  # fmt: skip
        self.reading, self.width, self.trust, self.decimal_comma = reading, len(header), trust, decimal_comma
        # a unit in parentheses is not part of the name
        self.places = {key_of(re.sub(r"\(.*?\)", "", name)): i for i, name in enumerate(header) if name}
        self.columns = _fields_of(self.places)
        self.positions = [name for name in self.places if _by_position(name)]
        self.totals = [name for name in TOTALS if name in self.places]
        times = [name for name in TIMES if name in self.places]
        self.direct = [self._cell(name, of) for of, name in self.columns.items()]
        self.direct += [self._cell(name, TIMES[name], per=1e3) for name in times]
        self.derived = [self._cell(name, name) for name in (*self.positions, *self.totals)]
        self.source = reading.name
        self.stem = Path(reading.name.removesuffix(".gz").removesuffix(".zst")).stem
        self.origin = Provenance(source=reading.name, trust=trust)
        self.origins: dict[tuple[str | None, ...], Provenance] = {}
        self.plain_rows: set[Observation] = set()
        used = {*self.columns.values(), *self.positions, *self.totals, *times, "source", "note", "thinking", "tree"}
        unread = [header[i] for name, i in self.places.items() if name not in used]
        reading.columns |= dict.fromkeys(name for name in unread if known is None or not known.fullmatch(name))
        if not (self.positions or times or self.columns.keys() & FIGURES):
            self._refuse_header(header)

    def _refuse_header(self, header: Sequence[str]) -> None:
        if not any(header):
            raise ValueError(f"{self.reading.name}: no rows below the header")
        message = (
            f"{self.reading.name}: no outcome column; one of tau / acceptance_length, per_position_acceptance, throughput, speedup or "
            f"alpha is needed; its columns are {listed(header)}"
        )
        raise with_hint(ValueError(message), COLUMNS_HELP)

    def _cell(self, name: str, of: str, per: float = 1.0) -> Column:
        if of in self.positions:
            return Column(self.places[name], name, of, lambda cell: survival_of(cell, name))
        if of in TEXT or of in WHOLE:
            return Column(self.places[name], name, of, str if of in TEXT else whole_of)
        return Column(
            self.places[name], name, of, partial(number_of, decimal_comma=self.decimal_comma), real=True, per=per
        )

    def add(self, place: str, cells: Sequence[Any]) -> None:
        """Read a row into the reading's. Raises ValueError as `read_csv`."""
        where = f"{self.reading.name}:{place}"
        if len(cells) != self.width:
            if len(cells) > self.width:
                raise ValueError(f"{where}: more cells than columns; quote a cell that holds a comma")
            cells = [*cells, *[""] * (self.width - len(cells))]
        depth = str(cells[self.places[self.columns["lookahead"]]]) if "lookahead" in self.columns else ""
        if depth[:1].isalpha() and CHANGING.match(depth.lower()):
            self.reading.leave_out(place, f"its k is no number but {shortened(depth)!r}")
            return
        fields = values_of(self.direct, cells, where)
        if self.derived:
            fields |= self._derived(values_of(self.derived, cells, where), fields)
        if not fields and not any(str(cell).strip() for cell in cells):
            raise ValueError(f"{where}: the row is empty; remove it")
        fields["method"] = self._method_of(fields)
        plain_tok_s = fields.pop("plain_tok_s", None)
        self._complete(fields, cells)
        if plain_tok_s is not None and fields["method"] == "none":
            fields.setdefault("output_tok_s", plain_tok_s)
        has_figure = not FIGURES.isdisjoint(fields)
        if not has_figure and plain_tok_s is None:
            self.reading.leave_out(place, "no figure in it")
            return
        try:
            row = Observation(run=f"{self.stem}:{place}", provenance=self._origin(cells), **fields)
            if plain_tok_s is not None and row.method != "none":
                self._add_plain(row, plain_tok_s)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if has_figure:
            self.reading.rows.append(row)

    def _add_plain(self, row: Observation, plain_tok_s: float) -> None:
        """A row of its own for the speed without speculation beside `row`, once where several rows repeat it."""
        bare = msgspec.structs.replace(row, method="none", output_tok_s=plain_tok_s, **dict.fromkeys(OF_A_DRAFT))
        alike = msgspec.structs.replace(bare, run="", provenance=Provenance(source=""))
        if alike not in self.plain_rows:
            self.plain_rows.add(alike)
            self.reading.rows.append(bare)

    def _method_of(self, fields: Mapping[str, Any]) -> str:
        """The method; by the draft's name where that names a kind of head and the method none (Qwen3-8B-DFlash as draft_model)."""
        method = _method(fields, "method" in self.columns)
        by_name = _head_named(fields["draft"]) if method in ("draft_model", UNSTATED) and fields.get("draft") else None
        if by_name and method != UNSTATED:
            self.reading.remark(f"method {method} read as {by_name}, by the draft's name")
        return by_name or method

    def _complete(self, fields: dict[str, Any], cells: Sequence[Any]) -> None:
        """What other cells of a row say of its target, dataset, dtype and speed."""
        fields["target"] = fields.get("target") or UNSTATED
        if dtype := fields.get("dtype"):
            fields["dtype"] = dtype_name(dtype)
        if "thinking" in self.places and (variant := self._text(cells, "thinking")):
            fields["dataset"] = f"{fields.get('dataset') or ''} [{variant}]".strip()
        depth, survival = fields.get("lookahead"), fields.get("survival")
        if depth and survival and len(survival) > depth:
            fields["survival"] = survival[:depth]  # the server's chain may be longer than this row's
        written = self._text(cells, "tree") if "tree" in self.places and fields.get("topk") is None else None
        if tree := TREE.fullmatch(written or ""):
            depth, width, nodes = (int(number) for number in tree.groups())
            fields |= {
                "lookahead": fields.get("lookahead") or depth,
                "topk": width,
                "tree_nodes": nodes - 1,
            }  # the root counts
        clients, tpot_s = fields.get("concurrency") or fields.get("batch_size"), fields.get("tpot_s")
        if clients and tpot_s and fields.get("output_tok_s") is None:
            fields["output_tok_s"] = _speed(clients, tpot_s, fields.get("ttft_s"), fields.get("output_len"))
            self.reading.remark("tokens/s worked out from TPOT")

    def _text(self, cells: Sequence[Any], name: str) -> str | None:
        place = self.places.get(name)
        return None if place is None else str(cells[place]).strip() or None

    def _origin(self, cells: Sequence[Any]) -> Provenance:
        if "source" not in self.places and "note" not in self.places:
            return self.origin
        written, note = self._text(cells, "source"), self._text(cells, "note")
        self.source = self.source if written in (None, "same") else written
        if (self.source, note) not in self.origins:
            self.origins[self.source, note] = Provenance(source=self.source, trust=self.trust, note=note)
        return self.origins[self.source, note]

    def _derived(self, values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """What a table states in other units or as totals."""
        out: dict[str, Any] = {}
        if survivals := [values[name] for name in self.positions if name in values]:
            out["survival"] = survivals[0]
        if plain := [values[name] for name in PLAIN if name in values]:
            out["plain_tok_s"] = plain[0]
        requests, nodes, counts = fields.get("num_requests"), values.get("num_draft_tokens"), values.get("draft_tokens")
        if nodes is not None and {"steps", "accepted"} <= self.columns.keys():  # vLLM's counters go by this name too
            out["drafted"], nodes = int(nodes), None
        if nodes is not None and fields.get("lookahead") is None:  # a table without steps counts its chain so
            out["lookahead"], nodes = int(nodes), None
        if nodes:
            out["tree_nodes"] = int(nodes) - 1  # SGLang counts the root
        if counts is not None:  # vLLM's counter where accepted tokens stand beside it, else the draft's training tokens
            out["drafted" if "accepted" in self.columns else "draft_tokens"] = int(counts)
        out |= {mean: values[name] / requests for name, mean in MEANS.items() if requests and name in values}
        if (gib := values.get("model_load_gib")) is not None:
            out["model_bytes"] = gib * 2**30
        if (scale := values.get("data_scale_x_sharegpt")) is not None:
            out["draft_tokens"] = scale * SHAREGPT_TOKENS
        return out


def _fields_of(places: Mapping[str, int]) -> dict[str, str]:
    """Field -> the column that holds it, the first of its names that the header has."""
    columns = {of: name for of, names in COLUMNS.items() for name in reversed(names) if name in places}
    beside = {"topk", "num_draft_tokens"} & (places.keys() | columns.keys())
    if columns.get("steps") == "steps" and beside and not columns.keys() & {"lookahead", "accepted", "drafted"}:
        columns["lookahead"] = columns.pop("steps")  # SGLang's three settings: steps, topk, num_draft_tokens
    return columns


def _speed(clients: int, tpot_s: float, ttft_s: float | None, output_len: float | None) -> float:
    """Output tokens/s of `clients` that always wait for an answer; without its first token's time and length, of decoding alone."""
    if ttft_s is None or output_len is None or output_len <= 1:
        return clients / tpot_s
    return clients * output_len / (ttft_s + (output_len - 1) * tpot_s)


def _method(fields: Mapping[str, Any], stated: bool) -> str:
    """One spelling per method; k = 0 is no speculation under any name, and without a method column the draft decides."""
    if fields.get("lookahead") == 0:
        return "none"
    if stated:
        return _spelling(fields.get("method") or "")
    drafted = (
        fields.get("draft") or fields.get("lookahead") is not None or fields.get("survival") or fields.get("drafted")
    )
    return UNSTATED if drafted or (fields.get("tokens_per_step") or 1) > 1 else "none"


@cache
def _head_named(draft: str) -> str | None:
    """The method of a head that a word of a draft's name is."""
    words = key_of(draft).split("_")
    return next((word for word in words if word in kinds.LABELS and kinds.role_of(word) == "head"), None)


@cache
def _spelling(method: str) -> str:
    key = re.sub(r"_?\(.*?\)", "", key_of(method))
    return kinds.SPELLINGS.get(key, key)


def _by_position(name: str) -> bool:
    return "per_position" in name or "position_acceptance" in name
