"""What `foredraft probe` and `foredraft measure` found, as tables for a terminal. Refuses to know: how it was measured."""

from collections.abc import Sequence

from rich.text import Text

from foredraft.records import Estimate, Machine, Measurement, Observation
from foredraft.report.terminal import Blocks, Titled


def machine_tables(machine: Machine) -> Blocks:
    """A machine's figures, and how each was measured."""
    table = Titled(machine.name, "figure", "value", "")
    rows = {
        "memory_bytes": _scaled(machine.memory_bytes, 2**30, "GiB"),
        "cache_bytes": _scaled(machine.cache_bytes, 2**20, "MiB"),
        "bandwidth_bytes_per_s": _scaled(machine.bandwidth_bytes_per_s, 1e9, "GB/s read"),
        "write_bytes_per_s": _scaled(machine.write_bytes_per_s, 1e9, "GB/s written"),
        "step_overhead_s": _scaled(machine.step_overhead_s, 1e-6, "µs per step"),
    }
    rates = [(f"flops_per_s {name}", _scaled(rate, 1e9, "GFLOP/s")) for name, rate in machine.flops_per_s.items()]
    for name, value in (*rows.items(), *rates):
        table.add_row(name, value, machine.measured.get(name.split()[0], ""))
    blocks: Blocks = [table]
    if machine.verify_s:
        first = machine.verify_s[min(machine.verify_s)]
        verified = Titled("Verification: " + machine.measured.get("verify_s", ""), "tokens", "ms", "× of the first")
        for num, took in sorted(machine.verify_s.items()):
            verified.add_row(str(num), f"{1e3 * took:.3f}", f"{took / first:.2f}")
        blocks.append(verified)
    if source := machine.provenance:
        versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
        threads = f"{machine.threads} threads; " if machine.threads else ""
        blocks.append(Text(f"\n{threads}{versions}; {source.created}", style="dim"))
    return blocks


def measurement_tables(measurements: Sequence[Measurement]) -> Blocks:
    """Online rows by temperature and batch, then acceptance by position, each with categories below the whole."""
    blocks: Blocks = []
    online, forced = ([row for row in measurements if row.way == way] for way in ("live", "forced"))
    for title, rows in _by_setting(online).items():
        blocks += [_gains(title, rows), _times([row for row in rows if row.category is None])]
    if forced:
        blocks.append(_acceptance(forced))
    positions = [row for row in measurements if row.category is None and row.survival]
    if positions:
        blocks.append(_positions(positions))
    notes = dict.fromkeys(row.observation.provenance.note or "" for row in measurements if row.category is None)
    legend = "intervals: 90 %, over requests; wanted: requests for the width of τ asked for; PPL: perplexity of target p and draft q"
    return [*blocks, Text("\n" + "\n".join((legend, *notes)), style="dim")]


def _load(o: Observation) -> str:
    """What ran at once: of our engine a batch, of a server its clients, or requests that came by themselves."""
    if o.batch_size is not None:
        return f"batch {o.batch_size}"
    return "requests at a rate" if o.concurrency is None else f"concurrency {o.concurrency}"


def _by_setting(rows: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        o = row.observation
        groups.setdefault(f"{o.target}, {_load(o)}, temperature {o.temperature:g}", []).append(row)
    return groups


def _gains(title: str, rows: Sequence[Measurement]) -> Titled:
    table = Titled(title, "draft", "category", "n", "τ", "wanted", "speedup", "tokens/s")
    for row in rows:
        o, within = row.observation, row.intervals
        table.add_row(
            _configuration(row), row.category or "all", str(o.num_requests), _value(o.tokens_per_step, within.get("tokens_per_step")),
            str(row.wanted_requests or "–"), _value(o.speedup, within.get("speedup")),
            _value(o.output_tok_s, within.get("output_tok_s"), 0),
        )  # fmt: skip
    return table


def _times(rows: Sequence[Measurement]) -> Titled:
    table = Titled("Times, all categories", "draft", "TTFT ms", "TPOT ms", "TTOT s")
    for row in rows:
        o, within = row.observation, row.intervals
        table.add_row(
            _configuration(row), _value(o.ttft_s, within.get("ttft_s"), 1, 1e3), _value(o.tpot_s, within.get("tpot_s"), 2, 1e3),
            _value(row.ttot_s.value if row.ttot_s else None, row.ttot_s),
        )  # fmt: skip
    return table


def _acceptance(rows: Sequence[Measurement]) -> Titled:
    """The α of each row's own kind with its interval; of a model that draws, also that of its argmax."""
    table = Titled("Teacher-forced, chains", "draft", "category", "T", "τ", "kind", "α", "point α", "PPL p", "PPL q")
    for row in rows:
        o, alphas = row.observation, row.accept_probs
        kind = o.accept_kind or "–"
        point = alphas["point"].value if kind == "sampled" and "point" in alphas else None
        table.add_row(
            _configuration(row), row.category or "all", f"{o.temperature:g}",
            _value(o.tokens_per_step, row.intervals.get("tokens_per_step")), kind, _value(o.accept_prob, alphas.get(kind), 3),
            _value(point, None, 3), _value(o.target_perplexity, None, 1), _value(o.draft_perplexity, None, 1),
        )  # fmt: skip
    return table


def _positions(rows: Sequence[Measurement]) -> Titled:
    most = max(len(row.survival) for row in rows)
    table = Titled(
        "Accepted given all before, by position", "draft", "way", "T", "batch", *map(str, range(1, most + 1))
    )
    for row in rows:
        o = row.observation
        shares = [f"{share.value:.3f}" for share in row.accept_given_prefix]
        batch = str(o.batch_size) if o.batch_size else "–"
        table.add_row(_configuration(row), row.way, f"{o.temperature:g}", batch, *shares, *["–"] * (most - len(shares)))
    return table


def _configuration(row: Measurement) -> str:
    o = row.observation
    if o.method == "none":
        return "plain"
    tree = f",{o.topk},{o.tree_nodes}" if (o.topk or 1) > 1 else ""
    depth = f"@{o.lookahead}" if o.lookahead is not None else ""
    return f"{o.draft or o.method}{depth}{tree}"


def _scaled(value: float | None, unit: float, name: str) -> str:
    return "–" if value is None else f"{value / unit:,.1f} {name}"


def _value(value: float | None, interval: Estimate | None, digits: int = 2, scale: float = 1.0) -> str:
    """A value with its interval where there is one; a dash for what was not measured."""
    if value is None:
        return "–"
    text = f"{value * scale:,.{digits}f}"
    if interval is None:
        return text
    return f"{text} [{interval.low * scale:,.{digits}f}, {interval.high * scale:,.{digits}f}]"
