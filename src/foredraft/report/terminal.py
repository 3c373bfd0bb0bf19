"""Records as tables for a terminal. Refuses to know: how anything in them is computed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from foredraft.laws.fit import sample_words
from foredraft.laws.held_out import HeldOut
from foredraft.machines import device_time
from foredraft.records import DraftChoice, Estimate, Fit, Plan, with_hint

WRAPPED = ("lost by", "run", "tokens/step", "gain", "setting", "")  # columns of prose
Blocks = list[RenderableType]


class Titled:
    """A table under its title, which may be wider than the table."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title = Text(f"\n{title}", style="bold")
        self.table = Table(box=None, pad_edge=False, header_style="dim")
        for column in columns:
            self.table.add_column(column, no_wrap=column not in WRAPPED)
        self.add_row = self.table.add_row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        yield self.title
        yield self.table


def plan_tables(plan: Plan) -> Blocks:
    """The plan: a headline, the schedule, who lost and why, what to run next, and the caveats."""
    blocks: Blocks = [Text(headline(plan), style="bold"), _schedule(plan)]
    if plan.runners_up:
        table = Titled("Runners-up", "draft", "trained on", "mean gain", "lost by")
        for lost in plan.runners_up:
            table.add_row(
                describe(lost.draft, short=True),
                _count(lost.draft.draft_tokens),
                interval(lost.speedup, ".2f"),
                lost.reason,
            )
        blocks.append(table)
    if plan.next_runs:
        table = Titled("What would narrow this plan most per device-hour", "run", "removes", "costs")
        for run in plan.next_runs:
            table.add_row(run.run, f"{run.narrows:.0%} of the width", device_time(run.gpu_hours))
        blocks.append(table)
    notes = [f"extrapolates in {', '.join(plan.extrapolates)}"] if plan.extrapolates else []
    notes += [f"not considered: {name}: {why}" for name, why in plan.not_considered.items()]
    notes += [f"assumes: {note}" for note in plan.assumptions]
    return [*blocks, Text("\n".join(notes), style="dim")]


def headline(plan: Plan) -> str:
    """The answer in three lines."""
    where = f"{plan.target} on {plan.devices}×{plan.machine} ({plan.engine}, {plan.objective})"
    if plan.draft is None:
        return f"{where}: do not speculate; no draft pays at these loads."
    lines = [
        f"{where}: {describe(plan.draft)}"
        + (f", trained on {_count(plan.draft.draft_tokens)} tokens" if plan.draft.draft_tokens else ""),
        f"gain {interval(plan.speedup, '.2f')} {plan.speedup.unit}, mean over the concurrencies",
    ]
    if paid := plan.break_even:
        lines.append(
            f"training {plan.draft.training_flops:.1e} FLOPs, {device_time(plan.draft.training_gpu_hours)}: paid back after "
            f"{paid.tokens:.1e} [{paid.low:.1e}, {'∞' if paid.high is None else format(paid.high, '.1e')}] served tokens"
        )
    if plan.continuous_params and plan.theory_params:
        lines.append(
            f"best independent model N* {interval(plan.continuous_params, '.2e')} parameters (SDSL's tokens per FLOP: {plan.theory_params:.2e})"
        )
    if plan.buildable:
        lines.append(
            "nearest shapes: "
            + "; ".join(
                describe(draft, short=True) + (f" ({draft.num_layers} layers of {draft.hidden_size})")
                for draft in plan.buildable
            )
        )
    return "\n".join(lines)


def _schedule(plan: Plan) -> Titled:
    """The schedule; how many run at once is shown only where the cache cannot hold all clients."""
    crowded = any(round(step.running) < step.concurrency for step in plan.schedule)
    table = Titled(
        "Schedule (with 90 % intervals)", "clients", *(["running"] if crowded else []), "k", "tokens/step", "gain",
        "tokens/s", "TPOT", "TTFT",
    )  # fmt: skip
    for step in plan.schedule:
        tree = "" if step.topk == 1 else f" (top-{step.topk}, {step.tree_nodes} nodes)"
        running = [f"{step.running:.0f}"] if crowded else []
        table.add_row(
            str(step.concurrency), *running, f"{step.lookahead or 'off'}{tree}", interval(step.tokens_per_step, ".2f"),
            interval(step.speedup, ".2f"), f"{step.output_tok_s.value:,.0f}", f"{1e3 * step.tpot_s.value:.1f} ms",
            f"{1e3 * step.ttft_s.value:,.0f} ms",
        )  # fmt: skip
    return table


def describe(draft: DraftChoice, *, short: bool = False) -> str:
    """A draft in a few words."""
    if not draft.params:
        return draft.name
    return f"{draft.name}, {_count(draft.params)}" if short else f"{draft.name} of {_count(draft.params)} parameters"


def interval(estimate: Estimate, form: str, scale: float = 1.0) -> str:
    """value [low, high]."""
    value, low, high = (format(number * scale, form) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def fit_tables(fits: Sequence[Fit], lacking: Mapping[str, str]) -> Blocks:
    """Fitted laws with 90 % intervals, and for each law that was not fitted the reason."""
    blocks: Blocks = []
    best = best_by_pool(fits)
    for fit in fits:
        pool = _pool(fit)
        table = Titled(f"{fit.law}: {fit.formula}\n{sample_words(fit)}; {pool}", "parameter", "value", "90 % interval")
        for i, (name, value) in enumerate(fit.parameters.items()):
            draws = sorted(draw[i] for draw in fit.draws)
            low, high = draws[round(0.05 * (len(draws) - 1))], draws[round(0.95 * (len(draws) - 1))]
            table.add_row(
                name + (" (at its bound)" if name in fit.at_bound else ""), f"{value:.4g}", f"[{low:.4g}, {high:.4g}]"
            )
        blocks.append(table)
        domain = ", ".join(f"{name} {low:.3g}…{high:.3g}" for name, (low, high) in fit.domain.items())
        error = "none: too few runs to hold one out" if fit.held_out_error is None else f"{fit.held_out_error:.3g}"
        rivals = "".join(f", {name} {value:.3g}" for name, value in fit.rivals.items())
        chosen = "; predicts it best of its rivals" if fit is best.get((pool, fit.output)) and len(fits) > 1 else ""
        blocks.append(
            Text(f"domain {domain}; error on the largest run, held out: {error}{rivals}{chosen}", style="dim")
        )
    if lacking:
        blocks.append(Text("not fitted:\n" + "\n".join(f"  {law}: {why}" for law, why in lacking.items()), style="dim"))
    return blocks


def held_out_table(judged: Sequence[HeldOut]) -> Titled:
    """How far predictions lay from what was held out, by law, target, kind of draft and temperature."""
    table = Titled(
        "Held out: one further run as predicted", "law", "for", "rows", "mean error", "relative", "inside 90 %"
    )
    groups: dict[tuple[str, str], list[HeldOut]] = {}
    for row_out in judged:
        row = row_out.row
        heat = "" if row.temperature is None else f", T {row.temperature:g}"
        groups.setdefault((row_out.law, f"{row.target}: {row.family or row.method}{heat}"), []).append(row_out)
    for (law, which), group in groups.items():
        away = [abs(row_out.predicted.value - row_out.measured) for row_out in group]
        share = [gap / row_out.measured for gap, row_out in zip(away, group, strict=True) if row_out.measured]
        inside = sum(row_out.predicted.covers(row_out.measured) for row_out in group)
        table.add_row(
            law, which, str(len(group)), f"{sum(away) / len(away):.3g} {group[0].predicted.unit}",
            f"{sum(share) / len(share):.1%}" if share else "–", f"{inside} of {len(group)}",
        )  # fmt: skip
    return table


def best_by_pool(fits: Sequence[Fit]) -> dict[tuple[str, str], Fit]:
    """The law with the smallest held-out error among those fitted to one pool and output, where at least two have one."""
    rivals: dict[tuple[str, str], list[Fit]] = {}
    for fit in fits:
        if fit.held_out_error is not None:
            rivals.setdefault((_pool(fit), fit.output), []).append(fit)
    return {
        key: min(group, key=lambda fit: fit.held_out_error or 0.0) for key, group in rivals.items() if len(group) > 1
    }


def _pool(fit: Fit) -> str:
    return (fit.provenance[0].note if fit.provenance else None) or "all"


def sdsl_tables(report: Mapping[str, Any]) -> Blocks:
    """Table 5 and the line of Table 9 beside the paper's."""
    table = Titled("SDSL Table 5: N* in parameters", "target", "paper", "ours", "error", "γ*", "α")
    for row in report["table_5"]:
        paper, error = row["paper_draft_params"], row["relative_error"]
        table.add_row(
            row["target"], f"{paper / 1e6:.0f} M" if paper else "not in Table 5", f"{row['draft_params'] / 1e6:.1f} M",
            f"{error:+.2%}" if error is not None else "", f"{row['lookahead']:.2f}", f"{row['accept_prob']:.3f}",
        )  # fmt: skip
    ours, paper = report["table_9"], report["table_9_paper"]
    line = Titled(
        f"SDSL Table 9: N* = μM + M₀ on the grid {ours['grid']['name']} ({ours['num_points']} points)",
        "",
        "ours (95 %)",
        "paper (95 %)",
    )
    for label, key, form in (("μ", "mu", ".3e"), ("M₀", "intercept", ".3e")):
        line.add_row(
            label, *(f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]" for value in (ours[key], paper[key]))
        )
    line.add_row("slope of N*/M in ln D", f"{ours['draft_tokens_slope'][0]:.1e}", f"{paper['draft_tokens_slope']:.1e}")
    other_grids = "\n".join(
        f"  {g['grid']['name']}: μ {g['mu'][0]:.2e}, M₀ {g['intercept'][0]:.2e}" for g in report["table_9_other_grids"]
    )
    return [
        table,
        line,
        Text(f"The paper does not state its grid; the line hangs on it. Other grids:\n{other_grids}", style="dim"),
    ]


def bench_tables(configs: Sequence[Any], conditions: Mapping[str, Any]) -> Blocks:
    """Configurations of a bench beside each other, and what they ran under."""
    table = Titled(
        "Decoding (90 % intervals over prompts)", "configuration", "tokens/s", "× plain", "tokens/step", "TTFT", "TPOT",
        "GB/s", "same text",
    )  # fmt: skip
    for config in configs:
        table.add_row(
            config.name, interval(config.output_tok_s, ".1f"), interval(config.ratio, ".2f"),
            interval(config.tokens_per_step, ".2f"), f"{1e3 * config.ttft_s.value:.1f} ms",
            f"{1e3 * config.tpot_s.value:.2f} ms", f"{config.gb_s:.1f} of {config.ceiling_gb_s:.1f}",
            "yes" if config.same_tokens else "no",
        )  # fmt: skip
    return [table, Text(", ".join(f"{name} {value}" for name, value in conditions.items()), style="dim")]


def named_things(what: str, name: str | None = None) -> dict[str, str]:
    """What `foredraft list` shows: names (or one of them) and a line about each. Raises ValueError for a list that there is none of."""
    from foredraft.laws.forms import laws
    from foredraft.machines import MACHINES
    from foredraft.report.shapes import shape_line
    from foredraft.shapes import known_shapes, shape

    things = {
        "models": lambda: {known: shape_line(shape(known)) for known in known_shapes()},
        "machines": lambda: {
            known: f"{m.memory_bytes / 1e9:.0f} GB, {m.bandwidth_bytes_per_s / 1e12:.2f} TB/s; {m.source}"
            for known, m in MACHINES.items()
        },
        "laws": lambda: {known: f"{law.formula} ({law.source})" for known, law in laws().items()},
    }
    if what not in things:
        raise ValueError(f"nothing named {what!r} to list; models, machines or laws")
    lines = things[what]()
    if name is not None and name not in lines:
        raise with_hint(ValueError(f"{what}: none is named {name!r}"), f"foredraft list {what}")
    return {name: lines[name]} if name else lines


def listing(what: str, things: Mapping[str, str]) -> Titled:
    """Names and what there is to say of them."""
    table = Titled(what, "name", "")
    for name, about in things.items():
        table.add_row(name, about)
    return table


def _count(number: float | None) -> str:
    """1.4 B, 310 M: a count as people say it."""
    if number is None:
        return ""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
