"""A plan for a terminal: what to do, the best of each kind, the schedule, what it costs, what to trust.

Promises: the first line is what to do, the next what it brings. Refuses to know: how anything in a plan is computed.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from foredraft.machines import device_time
from foredraft.records import CostSheet, DraftChoice, Plan, Rival, ScheduleStep, ServiceLevels, without_draft
from foredraft.report.lengths import length_table
from foredraft.report.terminal import Blocks, Titled, count, interval

FOLDER = "PLAN"  # in a plan's commands: where it was written
MOST_NOTES = 5  # of what was not considered; Plan.json has all
LEVELS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "rate": "rate"}


def plan_tables(plan: Plan, out: Path | None = None) -> Blocks:
    """The plan in the order in which it is read; `out`: the folder that it was written to."""
    blocks: Blocks = [Text(headline(plan), style="bold")]
    if commands := next_commands(plan, out):
        blocks.append(commands)
    blocks += [_kinds(plan), _schedule(plan), *length_table(plan)]
    if plan.costs:
        blocks.append(_costs(plan, plan.costs))
    blocks.append(Text("\n" + "\n".join(_trust(plan))))
    if plan.next_runs:
        table = Titled("What would narrow this plan most per device-hour", "run", "removes", "costs")
        for run in plan.next_runs:
            table.add_row(run.run, f"{run.narrows:.0%} of the width", device_time(run.gpu_hours))
        blocks.append(table)
    return [*blocks, Text("\n" + "\n".join(_notes(plan)), style="dim")]


# --- The first lines ---


def headline(plan: Plan) -> str:
    """What to do, what it brings and where, and whether it serves as asked."""
    lines = [what_to_do(plan)]
    loads = [step.concurrency for step in plan.schedule]
    clients = f"{loads[0]}" if len(loads) == 1 else f"{min(loads)} to {max(loads)}"
    where = f"{plan.devices}×{plan.machine} ({plan.engine}, {plan.objective}), {clients} clients"
    if plan.rival:
        lines.append(or_rival(plan.rival))
    lines.append(f"{interval(plan.speedup, '.2f')} {plan.speedup.unit}, on {where}" if plan.draft else f"on {where}")
    if without := without_draft(plan):
        lines.append(without)
    return "\n".join([*lines, *(level_lines(plan.service_levels) if plan.service_levels else ())])


def what_to_do(plan: Plan) -> str:
    """The action, the draft and what it costs to get, in one line."""
    action, draft = plan.action, plan.draft
    if draft is None:
        return f"nothing: {action.why if action else 'no draft pays at these loads'}"
    verb = action.verb if action else "train" if draft.training_flops else "use"
    text = f"{verb}: {describe(draft)}, for {plan.target}"
    if verb == "nothing":
        return f"nothing: {action.why if action else ''}"
    if verb != "train":
        return f"{verb}: {describe(draft)}, for {plan.target}" + (f" ({action.why})" if action else "")
    spent = f" ({plan.costs.spent:,.0f} in money)" if plan.costs and plan.costs.spent is not None else ""
    trainer = f", {action.why}" if action and not action.commands else ""
    return f"{text}, on {count(draft.draft_tokens)} tokens: {device_time(draft.training_gpu_hours)}{spent}{trainer}"


def or_rival(rival: Rival) -> str:
    """The draft that the draws do not tell from the planned one."""
    name = describe(rival.draft) if rival.draft else "no draft"
    train = f" on {count(rival.draft.draft_tokens)} tokens" if rival.draft and rival.draft.training_flops else ""
    return f"or: {name}{train}, {interval(rival.speedup, '.2f')}; it wins in {rival.ahead:.0%} of the draws and loses in {rival.behind:.0%}"


def next_commands(plan: Plan, out: Path | None) -> str:
    """The commands to type next; without a folder the plan has to be written first."""
    commands = plan.action.commands if plan.action else ()
    if not commands:
        return ""
    written = [command.replace(f"{FOLDER}/", f"{out}/" if out else f"{FOLDER}/") for command in commands]
    first = (
        ""
        if out or written == list(commands) == [c for c in commands if FOLDER not in c]
        else f" (after this with --out {FOLDER})"
    )
    return "\n".join([f"next{first}: {written[0]}", *(f"then: {command}" for command in written[1:])])


def level_lines(levels: ServiceLevels) -> Iterator[str]:
    """What was asked of the service, and how far it is met."""
    limits = {name: value for name in LEVELS if (value := getattr(levels, name)) is not None}
    asked = ", ".join(
        f"{LEVELS[name]} {'≥' if name == 'rate' else '≤'} {_level(name, value)}" for name, value in limits.items()
    )
    if levels.nearest:
        nearest = "; ".join(
            f"{LEVELS[name]} {_level(name, near.value)} at {near.clients} clients"
            for name, near in levels.nearest.items()
        )
        yield f"does not meet {asked}: the nearest is {nearest}"
        return
    parts = [f"meets {asked} up to {'at least ' if levels.searched else 'about '}{levels.clients:.0f} clients"]
    if levels.requests_per_s is not None:
        parts.append(f"{levels.requests_per_s:.3g} requests/s")
    if levels.rate_clients is not None:
        parts.append(f"the rate with about {levels.rate_clients:.0f} at once")
    without = (
        "at no load"
        if levels.plain_clients is None
        else f"up to {levels.plain_clients:.0f}, {levels.plain_requests_per_s:.3g} requests/s"
    )
    yield f"{', '.join(parts)} (without a draft {without})"


def _level(name: str, value: float) -> str:
    return f"{value:.3g} requests/s" if name == "rate" else f"{1e3 * value:,.3g} ms"


# --- Tables ---


def _kinds(plan: Plan) -> Titled:
    """The best draft of each kind, the chosen one first."""
    table = Titled("The best of each kind", "best of a kind", "trained on", "mean gain", "lost by")
    if plan.draft:
        table.add_row(describe(plan.draft), _dials(plan.draft, plan.edges), interval(plan.speedup, ".2f"), "chosen")
    for lost in plan.runners_up:
        table.add_row(
            describe(lost.draft), _dials(lost.draft, lost.edges), interval(lost.speedup, ".2f"), lost.reason
        )  # fmt: skip
    return table


def _dials(draft: DraftChoice, edges: dict[str, str]) -> str:
    """Training tokens, and which dials end where the search did; what is not to be trained is there."""
    if not draft.training_flops:
        there = "public" if draft.hub_id or draft.name.endswith("(public)") else "at hand"
        return "–" if draft.kind == "lookup" else there
    ends = [f"{end} {'size' if dial == 'params' else 'tokens'}" for dial, end in edges.items()]
    told = f" ({', '.join(ends)} searched)" if ends else ""
    return f"{count(draft.draft_tokens)}{told}"


def _schedule(plan: Plan) -> Titled:
    """The schedule; how many run at once is shown only where the cache cannot hold all clients."""
    crowded = any(round(step.running) < step.concurrency for step in plan.schedule)
    table = Titled(
        "Schedule (with 90 % intervals)", "clients", *(["running"] if crowded else []), "k", "tokens/step", "gain",
        "tokens/s", "TPOT", "TTFT",
    )  # fmt: skip
    for step in plan.schedule:
        running = [f"{step.running:.0f}"] if crowded else []
        table.add_row(
            str(step.concurrency), *running, _mode(step), interval(step.tokens_per_step, ".2f"),
            interval(step.speedup, ".2f"), f"{step.output_tok_s.value:,.0f}", f"{1e3 * step.tpot_s.value:.1f} ms",
            _first_token(step),
        )  # fmt: skip
    return table


def _first_token(step: ScheduleStep) -> str:
    """With its interval, which queues make wide; – where they make it too wide to tell."""
    if step.ttft_s is None:
        return "–"
    value, low, high = (f"{1e3 * number:,.3g}" for number in (step.ttft_s.value, step.ttft_s.low, step.ttft_s.high))
    return f"{value} [{low}, {high}] ms"


def _mode(step: ScheduleStep) -> str:
    tree = "" if step.topk == 1 else f" (top-{step.topk}, {step.tree_nodes} nodes)"
    return f"{step.lookahead or 'off'}{tree}"


def _costs(plan: Plan, costs: CostSheet) -> Titled:
    """What the draft costs to get and what it saves."""
    priced = costs.spent is not None and costs.train_device_hour is not None
    table = Titled(
        f"Costs (training on {costs.devices}×{costs.machine})" if costs.hours else "Costs",
        "what",
        "device time",
        *(["money"] if priced else []),
    )
    parts = {
        f"{plan.target} answers prompts, {count(costs.answer_tokens)} tokens": costs.answers_hours,
        "its passes over the training tokens": costs.passes_hours,
        "training the draft": costs.draft_hours,
    }
    for what, hours in parts.items():
        if hours:
            table.add_row(
                what, device_time(hours), *([f"{hours * (costs.train_device_hour or 0):,.2f}"] if priced else [])
            )
    if costs.per_million and costs.per_million_plain:
        with_draft, without = (interval(each, ".3g") for each in (costs.per_million, costs.per_million_plain))
        table.add_row("a million output tokens, with the draft", "", *([with_draft] if priced else []))
        table.add_row("and without", "", *([without] if priced else []))
    if paid := plan.break_even:
        high = "∞" if paid.high is None else f"{paid.high:.1e}"
        time = "" if paid.days is None else f", {serving_time(paid.days)} at these loads"
        table.add_row(f"paid back after {paid.tokens:.1e} [{paid.low:.1e}, {high}] served tokens{time}")
    return table


def serving_time(days: float) -> str:
    return f"{days:,.0f} days" if days >= 10 else f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours"


# --- Notes ---


def _trust(plan: Plan) -> Iterator[str]:
    """What was measured near the plan, and what is taken beyond it; N*, with what end of the search it lies at."""
    if plan.trust:
        yield f"measured near this, of acceptance: {plan.trust.acceptance}"
        yield f"measured near this, of speed: {plan.trust.costs}"
        if plan.trust.beyond:
            yield f"extrapolated: {'; '.join(plan.trust.beyond)}"
    if size := plan.continuous_params:
        edge = " (at the end of the sizes searched)" if size.extrapolates else ""
        theory = f"; SDSL's tokens per FLOP: {count(plan.theory_params)}" if plan.theory_params else ""
        low, value, high = (count(number) for number in (size.low, size.value, size.high))
        nearest = "; ".join(
            f"{describe(draft)}, {draft.num_layers} layers of {draft.hidden_size}" for draft in plan.buildable
        )
        yield f"best independent model: N* {value} [{low}, {high}] parameters{edge}{theory}" + (
            f"; nearest: {nearest}" if nearest else ""
        )


def _notes(plan: Plan) -> Iterator[str]:
    """What was left out and could be weighed, names of one reason together; and what is assumed."""
    names: dict[str, list[str]] = {}
    for name, why in plan.not_considered.items():
        names.setdefault(why, []).append(name)
    for why, left_out in list(names.items())[:MOST_NOTES]:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        yield f"not considered: {', '.join(left_out[:3])}{more}: {why}"
    if len(names) > MOST_NOTES:
        yield f"not considered for {len(names) - MOST_NOTES} more reasons: Plan.json has them"
    yield from (f"assumes: {note}" for note in plan.assumptions)


def describe(draft: DraftChoice) -> str:
    """A draft by name and size."""
    return f"{draft.name}, {count(draft.params)}" if draft.params else draft.name
