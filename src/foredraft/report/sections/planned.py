"""What the plan chose: the draft, how to run it at each load, what it should gain, what lost and what to measure next.

Promises: every number is the Plan's. Refuses to know: what was measured.
"""

from foredraft.machines import device_time
from foredraft.records import DraftChoice, Plan, without_draft
from foredraft.report import style
from foredraft.report.documents import Documents
from foredraft.report.parts import NONE, Picture, Section, Table, count, number
from foredraft.report.plan import painters

FILLED_BY = "Plan.json, which `foredraft plan TARGET --out DIR` writes"
PICTURES = {
    "speedup": ("Gain at each load", "Predicted gain over plain decoding by the number of requests served at once; labels "
                "say how the draft runs there (k tokens drafted per step, w tree nodes verified)."),
    "tokens_per_step": ("Tokens gained per step, and the schedule", "Above: predicted tokens per target step, bonus token "
                        "included; 1 is plain decoding. Below: what is drafted at each load."),
    "throughput_latency": ("Throughput against latency", "Predicted output tokens per second against the time per output "
                           "token; numbers at points are the requests served at once."),
}  # fmt: skip


def section(documents: Documents) -> Section | None:
    if not documents.plans:
        return None
    plans = sorted(documents.plans, key=lambda plan: -plan.speedup.value)
    which = {id(plan): f", {plan.draft.name if plan.draft else 'no draft'}" if len(plans) > 1 else "" for plan in plans}
    pictures = [picture for i, plan in enumerate(plans) for picture in _pictures(plan, i, which[id(plan)])]
    tables = [table for plan in plans for table in _tables(plan, which[id(plan)])]
    notes = dict.fromkeys(f"Assumed{which[id(plan)]}: {note}" for plan in plans for note in plan.assumptions)
    title = "What the plan chose" if len(plans) == 1 else "What the plans chose"
    return Section("plan", title, " ".join(map(lede, plans)), pictures, tables, list(notes))


def lede(plan: Plan) -> str:
    """The choice in a sentence or two."""
    machine = f"{plan.devices} × {plan.machine}" if plan.devices > 1 else plan.machine
    what = f"For {plan.target} on {machine}, "
    if plan.draft is None or not any(step.lookahead for step in plan.schedule):
        return what + "the plan is to decode without a draft: no candidate gained anything."
    verb = f"to {plan.action.verb} " if plan.action else ""
    without = without_draft(plan)
    return (
        f"{what}the plan is {verb}{_long_name(plan.draft)}. Weighted over the loads asked for, it should gain "
        f"{number(plan.speedup)} {plan.speedup.unit}; the bracket is a {style.percent(plan.speedup.level)} interval."
        + (f" {without[0].upper()}{without[1:]}." if without else "")
    )


def _long_name(draft: DraftChoice) -> str:
    size = f" of {style.count(draft.params)} parameters" if draft.params else ""
    tokens = f", trained on {style.count(draft.draft_tokens)} tokens" if draft.draft_tokens else ""
    return f"{draft.name}{size}{tokens}"


def _pictures(plan: Plan, i: int, which: str) -> list[Picture]:
    """By load; of a single load the table says all."""
    if len(plan.schedule) < 2:
        return []
    load = plan.workload
    lengths = f"prompts of {load.input_len:g} and answers of {load.output_len:g} tokens"
    workload = f"{plan.target}, {plan.engine}, {plan.dtype}, {lengths}, temperature {load.temperature:g}"
    pictures = []
    for name, paint in painters(plan).items():
        if name not in PICTURES:
            continue
        title, about = PICTURES[name]
        level = style.percent(plan.schedule[0].speedup.level)
        caption = f"{about} Predicted, not measured: {workload}. {level} intervals from bootstrap draws of the laws."
        pictures.append(
            Picture(
                f"plan-{i}-{name.replace('_', '-')}", title + which, caption, paint, 4.4 if "tokens" in name else 3.9
            )
        )
    return pictures


def _tables(plan: Plan, which: str) -> list[Table]:
    tables = [_schedule(plan, which)]
    if plan.runners_up:
        head = ("draft", "parameters", "training tokens", "mean gain", "why it lost")
        tables.append(Table(f"Drafts that lost, for {plan.target}{which}", head, [
            (run.draft.name, count(run.draft.params or None), count(run.draft.draft_tokens), number(run.speedup), run.reason)
            for run in plan.runners_up
        ]))  # fmt: skip
    if plan.next_runs:
        head = ("run", "settles", "interval narrowed by", "cost")
        tables.append(Table(f"Runs that would narrow the plan{which}, most per device-hour first", head, [
            (run.run, run.settles, style.percent(run.narrows), device_time(run.gpu_hours)) for run in plan.next_runs
        ]))  # fmt: skip
    return tables


def _schedule(plan: Plan, which: str) -> Table:
    head = ("requests at once", "drafted per step", "tokens per step", "gain", "tokens/s", "ms per token")
    rows = [
        (
            f"{step.concurrency}", _drafting(step.lookahead, step.tree_nodes), number(step.tokens_per_step),
            number(step.speedup), number(step.output_tok_s, ",.0f"), number(step.tpot_s, ".3g", 1e3),
        )
        for step in plan.schedule
    ]  # fmt: skip
    level = f", {style.percent(plan.schedule[0].speedup.level)} intervals" if plan.schedule else ""
    return Table(f"Schedule for {plan.target}{which}: predicted{level}", head, rows)


def _drafting(lookahead: int, nodes: int) -> str:
    if not lookahead:
        return NONE
    return f"{lookahead}" if nodes == lookahead else f"{nodes} in a tree {lookahead} deep"
