"""The machine: what it can compute and read, and what verifying more tokens at once costs on it.

Promises: every number is the Machine's, as probed or as its maker states, and the caption says which. Refuses to know: models.
"""

from typing import Any

import numpy as np

from foredraft.records import Machine
from foredraft.report import style
from foredraft.report.documents import Documents
from foredraft.report.marks import COLOURS
from foredraft.report.parts import Picture, Section, Table

FILLED_BY = "machine.json, which `foredraft probe --out machine.json` writes"
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1, "fp4": 0.5, "int4": 0.5}


def section(documents: Documents) -> Section | None:
    if not documents.machines:
        return None
    lede = (
        "Decoding reads every weight once per step, however few tokens it computes: to the left of a roof's bend more tokens per "
        "step cost almost nothing, which is what speculation lives on; to its right each token costs its share."
    )
    pictures = [
        p for i, machine in enumerate(documents.machines) for p in (_roofline(machine, i), _verify(machine, i)) if p
    ]
    return Section("machine", "The machine", lede, pictures, [_table(machine) for machine in documents.machines])


def _origin(machine: Machine) -> str:
    how = "measured by foredraft probe" if machine.measured else "as stated by"
    threads = f", {style.plural(machine.threads, 'thread')}" if machine.threads else ""
    return f"{machine.name}{threads}; {how}{'' if machine.measured else ' ' + machine.source}."


def _roofline(machine: Machine, i: int) -> Picture | None:
    """Reachable FLOP/s against FLOPs per byte, a roof per type, with the bend of each."""
    rates = {dtype: rate for dtype, rate in machine.flops_per_s.items() if dtype in BYTES}
    if not rates:
        return None
    bends = {dtype: rate / machine.bandwidth_bytes_per_s for dtype, rate in rates.items()}

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        x = np.geomspace(0.25, 8 * max(bends.values()), 200)
        for n, (dtype, rate) in enumerate(rates.items()):
            axes.plot(
                x,
                np.minimum(x * machine.bandwidth_bytes_per_s, rate),
                color=COLOURS[n % len(COLOURS)],
                label=f"{dtype}: {_si(rate)}FLOP/s",
            )
            tokens = bends[dtype] * BYTES[dtype] / 2
            axes.plot(bends[dtype], rate, "o", color=COLOURS[n % len(COLOURS)], ms=6)
            axes.annotate(f"{tokens:.0f} tokens", (bends[dtype], rate), (5, -12), textcoords="offset points")
        axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte read", ylabel="FLOP/s that can be reached")
        style.log_axis(axes.xaxis)
        style.log_axis(axes.yaxis, _si)
        style.legend(figure, [axes], most=2)

    caption = (
        f"{_origin(machine)} Reading {_si(machine.bandwidth_bytes_per_s)}B/s. Numbers at the bends: tokens in one step at which "
        "reading a dense layer's weights and computing with them take equally long (2 FLOPs per weight and token)."
        " Medians or best of repeats, no intervals."
    )  # fmt: skip
    return Picture(f"machine-{i}-roofline", "Roofline", caption, paint, 4.0)


def _verify(machine: Machine, i: int) -> Picture | None:
    """Seconds of a pass by its number of tokens, beside what unshared passes would take."""
    if len(machine.verify_s) < 2:
        return None
    tokens = np.array(sorted(machine.verify_s), dtype=float)
    seconds = np.array([machine.verify_s[int(number)] for number in tokens])

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(tokens, 1e3 * seconds, "o-", color=style.BLUE, label="measured")
        axes.plot(
            tokens, 1e3 * seconds[0] * tokens / tokens[0], "--", color=style.GREY, label="if each token cost a pass"
        )
        if machine.step_overhead_s is not None:
            axes.axhline(
                1e3 * machine.step_overhead_s, color=style.VERMILION, ls=":", label="a step that computes nothing"
            )
        axes.set(yscale="log", ylabel="ms per pass", xlabel="tokens verified in one pass")
        style.load_axis(axes, tokens.tolist())
        style.log_axis(axes.yaxis)
        style.legend(figure, [axes], most=2)

    how = machine.measured.get("verify_s")
    caption = f"{_origin(machine)} {how + '. ' if how else ''}The gap between the lines is what speculation can win. No intervals."
    return Picture(f"machine-{i}-verify", "Cost of verifying more tokens at once", caption, paint, 4.0)


def _si(value: float) -> str:
    """25 G, 1.2 T: a rate before its unit."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}\u00a0{letter}"
    return f"{value:.3g}\u00a0"


def _table(machine: Machine) -> Table:
    rows = [("memory", f"{_si(machine.memory_bytes)}B", machine.measured.get("memory_bytes", ""))]
    rows.append(
        ("reads", f"{_si(machine.bandwidth_bytes_per_s)}B/s", machine.measured.get("bandwidth_bytes_per_s", ""))
    )
    if machine.write_bytes_per_s is not None:
        rows.append(("writes", f"{_si(machine.write_bytes_per_s)}B/s", machine.measured.get("write_bytes_per_s", "")))
    if machine.cache_bytes is not None:
        rows.append(("cache", f"{_si(machine.cache_bytes)}B", machine.measured.get("cache_bytes", "")))
    how = machine.measured.get("flops_per_s", "")
    rows += [(f"matrix products, {dtype}", f"{_si(rate)}FLOP/s", how) for dtype, rate in machine.flops_per_s.items()]
    if machine.step_overhead_s is not None:
        rows.append(
            (
                "overhead of a step",
                f"{1e3 * machine.step_overhead_s:.3g} ms",
                machine.measured.get("step_overhead_s", ""),
            )
        )
    return Table(f"{machine.name}: {machine.source}", ("what", "rate", "how it was measured"), rows)
