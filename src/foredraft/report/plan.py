"""The figures of a plan, as PNG and SVG: what it gains, how it runs, which drafts lost and why, what to run next.

Promises: every number drawn is in the Plan, with its interval where it has one; a part that the plan lacks has no
figure. Refuses to know: how a plan is made.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.records import DraftChoice, Plan, ScheduleStep
from foredraft.report import style
from foredraft.report.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION

REASON_WIDTH, NAME_WIDTH, RUN_WIDTH = 42, 28, 44  # characters


def draw_plan(plan: Plan, directory: str | Path) -> list[Path]:
    """Draw the figures that `plan` allows into `directory` and return the paths of the files, PNG and SVG of each."""
    return style.draw(directory, painters(plan))


def painters(plan: Plan) -> dict[str, Callable[[Any], None]]:
    """What draws each figure that `plan` allows, by name."""
    figures: dict[str, Callable[..., None]] = {}
    if plan.schedule:
        figures |= {"speedup": _speedup, "tokens_per_step": _tokens_per_step, "throughput_latency": _throughput}
    if plan.runners_up:
        figures["runners_up"] = _runners_up
    if plan.next_runs:
        figures["next_runs"] = _next_runs
    return {name: partial(paint, plan=plan) for name, paint in figures.items()}


def _title(figure: Any, plan: Plan, what: str, width: int = 88) -> None:
    """What is shown, of which plan, and which inputs left the data behind it."""
    devices = f"{plan.devices} × {plan.machine}" if plan.devices > 1 else plan.machine
    setup = f"{plan.target}, {devices}, {plan.engine}, {_draft_name(plan.draft)}, objective {plan.objective.replace('_', ' ')}"
    outside = f"\nbeyond the range of the data: {', '.join(plan.extrapolates)}" if plan.extrapolates else ""
    style.title(figure, f"{what}\n{setup}{outside}", width)


def _draft_name(draft: DraftChoice | None) -> str:
    if draft is None:
        return "no speculation"
    return f"{draft.name} of {style.count(draft.params)}" if draft.params else draft.name


def _mode(step: ScheduleStep) -> str:
    """How a step drafts, in a few characters: none, k = 5, or a tree's depth and nodes."""
    if not step.lookahead:
        return "none"
    return f"k={step.lookahead}" if step.tree_nodes == step.lookahead else f"k={step.lookahead}\nw={step.tree_nodes}"


def _modes_key(plan: Plan) -> str:
    trees = any(step.tree_nodes != step.lookahead for step in plan.schedule)
    return "k: lookahead, draft passes per step" + ("; w: tree nodes verified" if trees else "")


def _band(axes: Any, x: np.ndarray, ends: tuple[np.ndarray, np.ndarray, np.ndarray], label: str) -> None:
    """The interval as a band, in a frame that starts at zero."""
    _, low, high = ends
    axes.fill_between(x, low, high, color=SKY, alpha=0.3, lw=0, label=label)
    axes.set_ylim(0, 1.15 * high.max())


def _speedup_unit(plan: Plan) -> str:
    """What a schedule's speedup counts: the headline says it in the objective's terms, except where those are FLOPs."""
    return plan.schedule[0].speedup.unit if plan.objective == "tokens_per_flop" else plan.speedup.unit


def _speedup(figure: Any, plan: Plan) -> None:
    """Speedup against concurrency with its band, each point labelled with how it drafts."""
    axes = figure.subplots()
    loads = np.array([step.concurrency for step in plan.schedule], dtype=float)
    ends = style.values(step.speedup for step in plan.schedule)
    _band(axes, loads, ends, f"{_level(plan)} interval")
    axes.axhline(1, color=BLACK, lw=1, ls="--", label="no speculation")
    axes.plot(loads, ends[0], "o-", color=BLUE, label="the plan")
    for step, load, value in zip(plan.schedule, loads, ends[0], strict=True):
        _note(axes, _mode(step), load, value, (0, 7), "center", "bottom")
    style.load_axis(axes, loads.tolist())
    axes.set(xlabel="concurrency, requests", ylabel=f"speedup, {_speedup_unit(plan)}")
    _title(figure, plan, f"Gain over the workload: {style.interval(plan.speedup)} {plan.speedup.unit}")
    style.legend(figure, [axes], title=_modes_key(plan))


def _level(plan: Plan) -> str:
    return style.percent(plan.schedule[0].speedup.level)


def _note(axes: Any, text: str, x: float, y: float, offset: tuple[float, float], ha: str, va: str) -> None:
    """A label beside a point, with a white rim to be read over lines."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.5, foreground="white")]
    axes.annotate(text, (x, y), offset, textcoords="offset points", ha=ha, va=va, zorder=6, path_effects=rim)


def _tokens_per_step(figure: Any, plan: Plan) -> None:
    """τ with its interval above, the schedule as steps below."""
    figure.set_figheight(5)
    tau, dial = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    loads = np.array([step.concurrency for step in plan.schedule], dtype=float)
    ends = style.values(step.tokens_per_step for step in plan.schedule)
    _band(tau, loads, ends, f"{_level(plan)} interval")
    tau.axhline(1, color=BLACK, lw=1, ls="--", label="no speculation")
    tau.plot(loads, ends[0], "o-", color=BLUE, label="τ, bonus token included")
    tau.set_ylabel(f"τ, {plan.schedule[0].tokens_per_step.unit}")
    lookahead = [step.lookahead for step in plan.schedule]
    dial.step(loads, lookahead, "o-", where="mid", color=VERMILION, label="lookahead k")
    nodes = [step.tree_nodes for step in plan.schedule]
    if nodes != lookahead:
        dial.step(loads, nodes, "s--", where="mid", color=ORANGE, mec=BLACK, label="tree nodes w")
    dial.set(ylabel="drafted per step", ylim=(0, max(*nodes, *lookahead, 1) * 1.25), xlabel="concurrency, requests")
    dial.yaxis.get_major_locator().set_params(integer=True)
    style.load_axis(dial, loads.tolist())
    _title(figure, plan, "Tokens gained per target step, and the schedule behind them")
    style.legend(figure, [tau, dial])


def _throughput(figure: Any, plan: Plan) -> None:
    """Output tokens/s against TPOT along the schedule, labelled by concurrency."""
    axes = figure.subplots()
    tpot = style.values((step.tpot_s for step in plan.schedule), scale=1e3)
    speed = style.values(step.output_tok_s for step in plan.schedule)
    axes.errorbar(tpot[0], speed[0], xerr=style.bars(*tpot), yerr=style.bars(*speed), fmt="none", ecolor=SKY, lw=1.2,
                  alpha=0.8, label=f"{_level(plan)} intervals")  # fmt: skip
    axes.plot(tpot[0], speed[0], "o-", color=BLUE, label="the plan", zorder=4)
    if plan.objective == "throughput" and any(step.lookahead for step in plan.schedule):
        without = _no_speculation(plan, tpot[0], speed[0])
        axes.plot(
            *without, "s--", color=VERMILION, mfc="white", zorder=3, label="no speculation, from tokens/s ÷ speedup"
        )
        _note_loads(axes, plan, *without, (7, -3), "left", "top")
    _note_loads(axes, plan, tpot[0], speed[0], (-7, 4), "right", "bottom")
    axes.margins(0.12)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="TPOT, ms per output token",
        ylabel=f"output {plan.schedule[0].output_tok_s.unit}",
    )
    style.log_axis(axes.xaxis)
    style.log_axis(axes.yaxis)
    _title(figure, plan, "Throughput against latency; numbers at points are the concurrency")
    style.legend(figure, [axes])


def _note_loads(
    axes: Any, plan: Plan, x: np.ndarray, y: np.ndarray, offset: tuple[float, float], ha: str, va: str
) -> None:
    """Concurrencies beside their points; a full server puts several at one."""
    places: dict[tuple[str, str], tuple[float, float, list[str]]] = {}
    for step, right, up in zip(plan.schedule, x.tolist(), y.tolist(), strict=True):
        places.setdefault((f"{right:.2g}", f"{up:.2g}"), (right, up, []))[2].append(f"{step.concurrency}")
    for right, up, loads in places.values():
        _note(axes, loads[0] if len(loads) == 1 else f"{loads[0]}–{loads[-1]}", right, up, offset, ha, va)


def _no_speculation(plan: Plan, tpot_ms: np.ndarray, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPOT (ms) and output tokens/s without a draft: every running sequence waits longer by what the server is slower."""
    gain = style.values(step.speedup for step in plan.schedule)[0]
    running = np.array([step.running for step in plan.schedule])
    return tpot_ms + 1e3 * running * (gain - 1) / speed, speed / gain


def _runners_up(figure: Any, plan: Plan) -> None:
    """Mean speedup of the winner and of what lost to it, with the largest reason of each."""
    names = [_long_name(plan.draft), *(_long_name(run.draft) for run in plan.runners_up)]
    gains, low, high = style.values([plan.speedup, *(run.speedup for run in plan.runners_up)])
    reasons = [
        "chosen: " + style.interval(plan.speedup),
        *(f"{style.interval(run.speedup)}\n{run.reason}" for run in plan.runners_up),
    ]
    figure.set_size_inches(9, 1.7 + 0.6 * len(names))
    axes, beside = figure.subplots(1, 2, width_ratios=(5, 4), sharey=True)
    rows = np.arange(len(names))
    axes.barh(rows, gains, color=[BLUE] + [SKY] * (len(names) - 1), height=0.6)
    axes.errorbar(gains, rows, xerr=style.bars(gains, low, high), color=BLACK, capsize=4, lw=1.2, fmt="none")
    axes.axvline(1, color=BLACK, lw=1, ls="--")
    axes.set_yticks(rows, names)
    axes.set(xlabel=f"mean speedup, {plan.speedup.unit}", ylim=(len(names) - 0.5, -0.5))
    axes.grid(False, axis="y")
    beside.set_axis_off()
    for row, reason in zip(rows, reasons, strict=True):
        beside.text(0, row, style.wrap_lines(reason, REASON_WIDTH), va="center", ha="left")
    _title(figure, plan, "The draft chosen, and why the others lost (dashed: no speculation)", 110)


def _long_name(draft: DraftChoice | None) -> str:
    """Name, size and training tokens, which together tell drafts of one name apart."""
    if draft is None or not draft.params:
        return style.wrap(_draft_name(draft), NAME_WIDTH)
    name = style.wrap(f"{draft.name}, {style.count(draft.params)}", NAME_WIDTH)
    return name + (f"\n{style.count(draft.draft_tokens)} training tokens" if draft.draft_tokens else "")


def _next_runs(figure: Any, plan: Plan) -> None:
    """The share of the interval that each run is expected to remove, and what it costs."""
    labels = [style.wrap(run.run, RUN_WIDTH) for run in plan.next_runs]
    shares = np.array([100 * run.narrows for run in plan.next_runs])
    figure.set_size_inches(9, 1.9 + 0.65 * len(labels))
    axes = figure.subplots()
    rows = np.arange(len(labels))
    axes.barh(rows, shares, color=SKY, height=0.6)
    for row, share, run in zip(rows, shares, plan.next_runs, strict=True):
        text = f"{share:.0f} %, {run.gpu_hours:.3g} device-hours\nsettles {run.settles}"
        axes.annotate(style.wrap_lines(text, 30), (share, row), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, labels)
    axes.set(xlabel="share of the speedup interval's width removed, %", ylim=(len(labels) - 0.5, -0.5))
    room = max(shares.max() * 1.9, 1)  # for the labels beside the bars
    axes.set_xlim(0, room)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= min(room, 100)])
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelcolor=BLACK, color=GREY)
    _title(figure, plan, "Runs that would narrow the plan, most per device-hour first", 110)
