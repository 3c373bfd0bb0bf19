"""The first screen: what to do, what to type, and the ways to decode that were measured, the fastest first.

Promises: plain words; a prediction that was not measured is called one; where nothing was measured the best of what lies in the folders.
Refuses to know: figures.
"""

import shlex
from collections import Counter

from foredraft.laws.forms import law_named
from foredraft.records import Estimate, Machine, Plan, without_draft
from foredraft.report import plan_tables, style
from foredraft.report.configurations import at_least_load, config_of, drafted, load_of, online
from foredraft.report.documents import Documents, RunLog
from foredraft.report.parts import Headline, Tile, count, number
from foredraft.report.sections import arms, fitted, swept, trained

NOT_YET = Tile("Best way measured", "none yet", "`foredraft measure` writes what to compare with")


def headline(documents: Documents) -> Headline:
    """By what lies there: measured drafts first, then a plan, training, laws, a sweep, a machine."""
    if ranking := arms.ranking(documents):
        return _measured(ranking, documents)
    if documents.plans:
        return _planned(documents)
    if documents.runs:
        return _trained(documents)
    if documents.fits:
        return _fitted(documents)
    if documents.sweeps:
        return _swept(documents)
    if documents.machines:
        return _machine(documents.machines[0], documents)
    return _plain(documents)


def _measured(ranking: arms.Ranking, documents: Documents) -> Headline:
    """The fastest measured, and what was planned where a plan lies there."""
    remarks = list(arms.remarks(ranking))
    if not documents.plans:
        remarks.append("No plan lies beside it to compare with.")
    elif not ranking.pairs:
        plan = documents.plans[0]
        remarks.append(
            f"The plan was to {_lowered(plan_tables.what_to_do(plan))}: predicted {number(plan.speedup)} {plan.speedup.unit}. "
            "Of what was measured none is the planned draft at a load and lookahead of its schedule."
        )
    planned = [pair.plan for pair in ranking.pairs if pair.row is ranking.best]
    return Headline(
        arms.verdict(ranking), remarks=remarks, commands=arms.command(ranking, planned[0] if planned else None), arms=arms.table(ranking)
    )  # fmt: skip


def _planned(documents: Documents) -> Headline:
    """What the best plan says to do; the loads that it is for stand in its tiles."""
    plan = max(documents.plans, key=lambda plan: plan.speedup.value)
    folders = [path.parent for path in documents.paths if path.name == "Plan.json"]
    commands = plan.action.commands if plan.action else ()
    folder = shlex.quote(str(folders[0])) if len(folders) == 1 else plan_tables.FOLDER
    commands = tuple(line.replace(f"{plan_tables.FOLDER}/", f"{folder}/") for line in commands)
    drafts = plan.draft is not None and any(step.lookahead for step in plan.schedule)
    if not drafts:
        return Headline(_sentence(plan_tables.what_to_do(plan)), (NOT_YET,), (), commands)
    if plan.action is None:  # of an older plan
        depth = max(step.lookahead for step in plan.schedule)
        use = f"foredraft measure TARGET --draft DRAFT@{depth} --prompts PROMPTS --out measured"
        train = f"foredraft train {folder}/Plan.json --target TARGET --data DATA --out run"
        commands = (train if plan.draft and plan.draft.training_flops else use,)
    elif not commands:  # trained by other tools
        commands = (f"foredraft deploy simulate {folder} --out simulated",)
    first, _, rest = plan_tables.what_to_do(plan).partition(f" for {plan.target}")
    text = f"{first} for {plan.target}: predicted {number(plan.speedup)} {plan.speedup.unit}, not measured yet"
    remarks = [_sentence(rest.strip(" ,()"))] if rest.strip(" ,()") else []
    if without := without_draft(plan):
        remarks.append(_sentence(without))
    if plan.rival:
        remarks.append(_sentence(plan_tables.or_rival(plan.rival)))
    if plan.trust:
        remarks.append(f"Acceptance rests on: {plan.trust.acceptance}. Costs rest on: {plan.trust.costs}.")
    return Headline(_sentence(text), _tiles(plan), remarks, commands)


def _tiles(plan: Plan) -> tuple[Tile, ...]:
    loads = [step.concurrency for step in plan.schedule]
    least, most = plan.schedule[0], plan.schedule[-1]
    level = style.percent(plan.speedup.level)
    mean = Tile(
        "Gain, predicted",
        f"{plan.speedup.value:.2f}\u00a0×",
        f"{level} interval {_ends(plan.speedup)}, mean over {style.plural(len(loads), 'load')}",
    )
    if len(loads) == 1:
        tau = least.tokens_per_step
        return (
            mean,
            Tile(
                "Tokens per step, predicted",
                f"{tau.value:.2f}",
                f"{level} interval {_ends(tau)}, {arms.at_once(loads[0])}",
            ),
            NOT_YET,
        )
    ends = Tile(
        f"From {least.concurrency} to {most.concurrency} requests at once", f"{least.speedup.value:.2f} to {most.speedup.value:.2f}\u00a0×",
        f"{_ends(least.speedup)} and {_ends(most.speedup)}",
    )  # fmt: skip
    return mean, ends, NOT_YET


def _ends(estimate: Estimate) -> str:
    return f"{estimate.low:.2f}–{estimate.high:.2f}"


def _trained(documents: Documents) -> Headline:
    """The run whose draft gains the most tokens per step on held-out text."""
    taus = [(points[-1][1], run) for run in documents.runs if (points := trained.line(run, "held_out_tokens_per_step"))]
    if not taus:
        losses = [
            (points[-1][1], run) for run in documents.runs if (points := trained.line(run, *trained.NLL, "ce", "loss"))
        ]
        what = f": {losses[0][1].name} ends at a loss of {number(losses[0][0], '.3f')}" if losses else ""
        return Headline(
            f"{_runs(documents)}{what}. No run says how much of its draft is accepted.",
            (NOT_YET,),
            commands=_measure(documents.runs[0]),
        )
    span, run = max(taus, key=lambda pair: pair[0].value)
    tokens = count(max((row.get("tokens", 0) for row in run.lines), default=None))
    first = "" if len(documents.runs) == 1 else f", the most of {style.plural(len(documents.runs), 'run')}"
    remarks = [
        "Teacher-forced on text that training never saw: what a chain of drafts would gain there, not a speed.",
        *(
            [f"The plan had predicted {number(trained.predicted(run))} tokens per step as decoded."]
            if trained.predicted(run)
            else []
        ),
    ]
    text = f"{run.name}, {trained.kind(run)} after {tokens} tokens of training: {number(span)} tokens per step on held-out text{first}."
    return Headline(text, (NOT_YET,), remarks, _measure(run))


def _runs(documents: Documents) -> str:
    return style.plural(len(documents.runs), "training run")


def _measure(run: RunLog) -> tuple[str, ...]:
    return (
        f"foredraft measure TARGET --draft {shlex.quote(str(run.folder / 'final'))}@4 --prompts PROMPTS --out measured",
    )


def _fitted(documents: Documents) -> Headline:
    """Of the laws of tokens per step (else of all) that miss least of what they never saw, the one with the most data."""
    fits = fitted.ranked(documents.fits)
    best = next((fit for fit in fits if fit.output == "tokens_per_step"), fits[0])
    output, dial = best.output.replace("_", " "), law_named(best.law).leading.replace("_", " ")
    error = (
        ""
        if best.held_out_error is None
        else f"; it misses the largest run, left out of a fit of its own, by {best.held_out_error:.3g}"
    )
    text = f"{output.capitalize()} follows {dial} by {best.formula}, from {style.plural(best.num_observations, 'observation')}{error}."
    remarks = [
        f"{style.plural(len(fits), 'law')} were fitted; this one has the most data."
        if len(fits) > 1
        else "The only law fitted."
    ]
    if best.held_out_error is None:
        remarks.append("It was not tried on a run that it never saw.")
    if best.at_bound:
        remarks.append(
            f"Parameters at the end of their range, so not to be trusted beyond the data: {', '.join(best.at_bound)}."
        )
    rows = _path(documents, "observations.jsonl", "ROWS.jsonl")
    return Headline(text, (NOT_YET,), remarks, (f"foredraft plan TARGET --observations {rows}",))


def _path(documents: Documents, name: str, otherwise: str) -> str:
    """The only file of that name, as a word of a command."""
    paths = [path for path in documents.paths if path.name.removesuffix(".gz") == name]
    return shlex.quote(str(paths[0])) if len(paths) == 1 else otherwise


def _swept(documents: Documents) -> Headline:
    cells = [cell for sweep in documents.sweeps for cell in sweep.get("cells", ())]
    tally = Counter(swept.state(cell) for cell in cells)
    taus = [(tau, cell.get("name", "")) for cell in cells if (tau := cell.get("tokens_per_step"))]
    best = f" The most tokens per step so far: {max(taus)[0]:.2f}, {max(taus)[1]}." if taus else ""
    states = ", ".join(f"{tally[state]} {state}" for state in swept.ORDER if tally[state])
    return Headline(
        f"The sweep has {style.plural(len(cells), 'cell')}: {states or 'none'}.{best}",
        (NOT_YET,),
        commands=("foredraft sweep GRID.json --out DIR",),
    )


def _machine(machine: Machine, documents: Documents) -> Headline:
    rates = ", ".join(f"{rate / 1e9:,.0f}\u00a0GFLOP/s in {dtype}" for dtype, rate in machine.flops_per_s.items())
    text = f"{machine.name} reads {machine.bandwidth_bytes_per_s / 1e9:,.1f}\u00a0GB/s and computes {rates}."
    remarks = []
    if len(machine.verify_s) > 1:
        first, last = (sorted(machine.verify_s)[i] for i in (0, 1))
        times = machine.verify_s[last] / machine.verify_s[first]
        remarks.append(
            f"A pass over {last} tokens takes {times:.2f} times as long as over {first}: what verifying drafts costs."
        )
    return Headline(
        text,
        (NOT_YET,),
        remarks,
        (f"foredraft plan TARGET --machine {_path(documents, 'machine.json', 'MACHINE.json')}",),
    )


def _plain(documents: Documents) -> Headline:
    """Rows without a draft."""
    rows = at_least_load(online(documents.rows))
    speeds = [row.span("output_tok_s") for row in rows if config_of(row).plain and row.span("output_tok_s")]
    target = documents.rows[0].observation.target if documents.rows else "nothing"
    told = f": {number(speeds[0], ',.1f')} tokens/s, {arms.at_once(load_of(rows[0]))}" if speeds else ""
    kind = "Acceptance of drafts was" if drafted(documents.rows) else "Only decoding without a draft was"
    command = f"foredraft plan TARGET --observations {_path(documents, 'observations.jsonl', 'ROWS.jsonl')}"
    return Headline(f"{kind} measured on {target}{told}.", (NOT_YET,), ["No draft's speed was measured."], (command,))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _lowered(text: str) -> str:
    return text.replace(": ", " ", 1)
