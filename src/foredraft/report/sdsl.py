"""The five figures of the SDSL reproduction, as PNG and SVG (arXiv 2603.11053).

Promises: every number drawn comes from `plan.sdsl`, computed or published, and each figure says which. Refuses to know:
how the numbers are computed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.plan import sdsl
from foredraft.report import style
from foredraft.report.style import BLACK, BLUE, COLOURS, GREEN, MARKERS, ORANGE, PURPLE, SKY, VERMILION

DRAFTS = {"OPT-125M": 125e6, "OPT-350M": 350e6, "OPT-1.3B": 1.3e9, "OPT-2.7B": 2.7e9, "OPT-6.7B": 6.7e9}

# Public families by nominal size: training tokens, drafts, targets.
FAMILIES = {
    "OPT": (1.8e11, (125e6, 350e6, 1.3e9, 2.7e9, 6.7e9), (13e9, 30e9, 66e9)),
    "Llama-3": (1.5e13, (1e9, 3e9, 8e9), (70e9,)),
    "Qwen2.5": (1.8e13, (0.5e9, 1.5e9, 3e9, 7e9), (14e9, 32e9, 72e9)),
}


def draw(directory: str | Path) -> list[Path]:
    """Draw all figures into `directory` and return the paths of the files, PNG and SVG of each."""
    return style.draw(directory, FIGURES)


def _plane(figure: Any) -> None:
    """Acceptance over the perplexities of draft and target; the paper's own points are not published."""
    axes = figure.subplots()
    x, y = np.meshgrid(np.linspace(6.5, 16, 200), np.linspace(6, 9, 200))
    levels = np.arange(0.61, 0.725, 0.01)
    filled = axes.contourf(x, y, sdsl.PLANE.accept_prob(x, y), levels=levels, cmap="cividis")
    figure.colorbar(filled, ax=axes, label="α, acceptance probability per token")
    looks = (("o", "white", 6), ("s", ORANGE, 9), ("^", SKY, 6))
    for (family, (tokens, drafts, targets)), (marker, colour, width) in zip(FAMILIES.items(), looks, strict=True):
        pairs = sdsl.throughput(np.array(drafts)[:, None], np.array(targets), tokens, tokens)
        draft, target = np.broadcast_arrays(pairs.draft_perplexity, pairs.target_perplexity)
        axes.plot(draft.ravel(), target.ravel(), marker, mfc=colour, mec=BLACK, ms=width, label=family)
    axes.set(xlabel="x, draft perplexity per token", ylabel="y, target perplexity per token")
    plane = f"α = {sdsl.PLANE.A1:+g}·x {sdsl.PLANE.B1:+g}·y {sdsl.PLANE.C1:+g}".replace("-", "−").replace("+", "+ ")
    figure.suptitle(f"Acceptance plane: {plane}", fontsize=10)
    title = "Our points: loss law, draft × target, D = D′ = tokens of the family"
    figure.legend(title=title, ncols=3, loc="outside lower center")


def _throughput(figure: Any) -> None:
    """T(N) per target, relative to decoding without a draft, N* starred, the OPT drafts marked."""
    axes = figure.subplots()
    sizes = np.geomspace(1e7, 1e10, 400)
    marked = np.array(list(DRAFTS.values()))
    for target, colour in zip(sdsl.TARGETS, COLOURS, strict=True):
        best = sdsl.optimal_draft(target.params)
        scale = 2 * target.params
        curve = sdsl.throughput(sizes, target.params).tokens_per_flop * scale
        axes.plot(sizes, curve, _style(target), color=colour, label=target.name)
        axes.plot(best.draft_params, best.speedup, "*", color=colour, mec=BLACK, ms=11, zorder=4)
        if target.name.startswith("OPT"):
            used = sdsl.throughput(marked, target.params).tokens_per_flop * scale
            axes.plot(marked, used, "o", mfc="white", mec=colour, ms=5, zorder=3)
    axes.set(xscale="log", xlim=(1e7, 1e10), xlabel="draft parameters N", ylabel="T(N, γ*)·2M  (1 = no draft)")
    style.log_axis(axes.xaxis, style.count)
    top = axes.secondary_xaxis("top")
    top.set_xticks(marked, list(DRAFTS), rotation=35, ha="left", rotation_mode="anchor")
    top.set_xticks([], minor=True)
    axes.plot([], [], "*", color="white", mec=BLACK, ms=11, label="N*")
    axes.plot([], [], "o", mfc="white", mec=BLACK, ms=5, label="OPT drafts")
    figure.suptitle("Tokens per FLOP against draft size, D = D′ = 10¹¹ tokens", fontsize=10)
    style.legend(figure, [axes])


def _style(target: sdsl.PublishedTarget) -> str:
    """OPT solid, others dashed: OPT-66B and LLaMA-3-70B nearly coincide."""
    return "-" if target.name.startswith("OPT") else "--"


def _acceptance(figure: Any) -> None:
    """α against the draft's perplexity, one line per target."""
    axes = figure.subplots()
    sizes = np.geomspace(5e7, 1e10, 300)
    for target, colour in zip(sdsl.TARGETS, COLOURS, strict=True):
        chain, best = sdsl.throughput(sizes, target.params), sdsl.optimal_draft(target.params)
        at_best = sdsl.throughput(best.draft_params, target.params)
        label = f"{target.name} (perplexity {float(chain.target_perplexity):.2f})"
        axes.plot(chain.draft_perplexity, chain.accept_prob, _style(target), color=colour, label=label)
        axes.plot(at_best.draft_perplexity, at_best.accept_prob, "*", color=colour, mec=BLACK, ms=11, zorder=4)
    axes.plot([], [], "*", color="white", mec=BLACK, ms=11, label="N*")
    axes.set(xlabel="draft perplexity per token", ylabel="α, acceptance probability per token")
    figure.suptitle("Acceptance against draft perplexity, D = D′ = 10¹¹ tokens", fontsize=10)
    figure.legend(ncols=2, loc="outside lower center")


def _latency(figure: Any) -> None:
    """Published latencies against the distance of the draft from N*."""
    narrow = figure.get_figwidth() < style.SIZE_IN[0]
    if narrow:
        figure.set_figheight(6.5)
    panels = figure.subplots(3, 1, sharex=True) if narrow else figure.subplots(1, 3)
    names = {"ttft_s": "TTFT, s", "ttot_s": "TTOT, s", "tpot_s": "TPOT, s per token"}
    for axes, (field, label) in zip(panels, names.items(), strict=True):
        same = [(run.distance, getattr(run, field)) for run in sdsl.LATENCIES if run.same_family]
        axes.plot(*np.array(same).T, "--", color="#888888", lw=1, zorder=1)
        for run, colour, marker in zip(sdsl.LATENCIES, (BLUE, GREEN, ORANGE, VERMILION), MARKERS, strict=False):
            axes.plot(run.distance, getattr(run, field), marker, color=colour, mec=BLACK, ms=8, label=run.draft)
        axes.set(xscale="log", yscale="log", ylabel=label, xlim=(3e-4, 0.2))
        if not narrow or axes is panels[-1]:
            axes.set_xlabel("|N − N*| / M")
        style.log_axis(axes.xaxis)
    _plain_ticks(panels[0], (0.04, 0.06, 0.08, 0.1, 0.12))
    _plain_ticks(panels[1], (2, 5, 10, 20, 40))
    _plain_ticks(panels[2], (0.01, 0.02, 0.05, 0.1, 0.15))
    title = f"Published latency, {sdsl.LATENCY_TARGET} target, {sdsl.LATENCY_OUTPUT_LEN} output tokens (Appendix F)"
    figure.suptitle(title, fontsize=10)
    style.legend(figure, panels[:1], title="draft; dashed: the target's own family")


def _plain_ticks(axes: Any, values: tuple[float, ...]) -> None:
    """A log axis under a decade with ticks a reader can name."""
    axes.set_yticks(values, [f"{value:g}" for value in values])
    axes.set_yticks([], minor=True)


def _scaling(figure: Any) -> None:
    """N* and N*/M against M, D and D'."""
    (size, share), (draft, target) = figure.subplots(2, 2)
    targets = np.linspace(10e9, 110e9, 21)
    for tokens, colour in zip((1e11, 1e12, 1e13), (BLUE, GREEN, VERMILION), strict=True):
        best = np.array([sdsl.optimal_draft(params, tokens, tokens).draft_params for params in targets])
        size.plot(targets / 1e9, best / 1e6, color=colour, label=f"D = D′ = {_power(tokens)}")
        share.plot(targets / 1e9, best / targets * 1e3, color=colour)
    line = sdsl.PAPER_LINE
    paper = line["mu"][0] * targets + line["intercept"][0]
    size.plot(targets / 1e9, paper / 1e6, "--", color=BLACK, label="paper, Table 9")
    share.plot(targets / 1e9, paper / targets * 1e3, "--", color=BLACK)
    size.set(xlabel="target parameters M, billions", ylabel="N*, millions")
    share.set(xlabel="target parameters M, billions", ylabel="N*/M, thousandths")
    _against_tokens(draft, "draft tokens D", lambda params, tokens: sdsl.optimal_draft(params, tokens, 1e12))
    _against_tokens(target, "target tokens D′", lambda params, tokens: sdsl.optimal_draft(params, 1e12, tokens))
    figure.suptitle("Optimal draft size; lower panels at 10¹² tokens of the other model", fontsize=10)
    style.legend(figure, [size, draft])


def _against_tokens(axes: Any, label: str, optimum: Callable[[float, float], sdsl.DraftOptimum]) -> None:
    """N*/M against training tokens at three target sizes."""
    tokens = np.geomspace(1e11, 1e13, 13)
    for params, colour, line in zip((13e9, 30e9, 70e9), (SKY, ORANGE, PURPLE), ("-", "--", "-."), strict=True):
        share = [optimum(params, float(count)).draft_params / params * 1e3 for count in tokens]
        axes.plot(tokens, share, line, color=colour, label=f"M = {params / 1e9:g} B")
    axes.set(xscale="log", xlabel=label, ylabel="N*/M, thousandths")
    style.log_axis(axes.xaxis, style.count, (1.0,))


def _power(value: float) -> str:
    """A power of ten as a reader writes it."""
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(round(np.log10(value))))


CAPTIONS = {
    "sdsl_1_acceptance_plane": (
        "1. The acceptance plane",
        "The paper's coefficients; the points are ours, for its own are not published. No intervals.",
    ),
    "sdsl_2_tokens_per_flop": (
        "2. Tokens per FLOP by draft size",
        "Computed from the paper's constants; N* starred. No intervals.",
    ),
    "sdsl_3_acceptance": (
        "3. Acceptance by the draft's perplexity",
        "Computed from the paper's constants; N* starred. No intervals.",
    ),
    "sdsl_4_latency": ("4. Latency by distance from N*", "As published (appendix F), not computed. No intervals."),
    "sdsl_5_scaling": (
        "5. How N* scales",
        "Computed from the paper's constants, beside its line of Table 9. No intervals.",
    ),
}
FIGURES: dict[str, Callable[[Any], None]] = {
    "sdsl_1_acceptance_plane": _plane, "sdsl_2_tokens_per_flop": _throughput, "sdsl_3_acceptance": _acceptance,
    "sdsl_4_latency": _latency, "sdsl_5_scaling": _scaling,
}  # fmt: skip
