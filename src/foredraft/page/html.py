"""The page as HTML: the form with nothing answered yet, an answer, or both as one file.

Promises: text of records and addresses is shown as text; nothing is fetched but answers; script and style stand in the page, which says by
their digest that no other may run. Refuses to know: HTTP, how a plan is made.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files as resources
from typing import Any, NamedTuple

import msgspec

from foredraft import __version__
from foredraft.engines import ENGINES
from foredraft.machines import device_time
from foredraft.page import charts
from foredraft.page import inputs as of_page
from foredraft.page.copies import copies
from foredraft.page.nearest import Near, nearest, public_name
from foredraft.page.planner import SKETCH_DRAWS, Turn
from foredraft.plan import evidence
from foredraft.records import DraftChoice, Estimate, Observation, Plan, without_draft
from foredraft.report.parts import NONE, number
from foredraft.report.plan_tables import describe, level_lines, serving_time
from foredraft.report.style import count, percent

VERBS = {"download": "Download", "train": "Train", "use": "Use", "nothing": "No draft"}


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own script alone, requests to its own server alone."""
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def page_html(defaults: Mapping[str, str], targets: Sequence[str] = (), machines: Sequence[str] = ()) -> str:
    """The page with its form, which asks its server for answers."""
    return _render(
        "page.html.j2", groups=of_page.groups(machines), defaults=dict(defaults), targets=of_page.suggestions(targets), loads=of_page.LOADS,
        answer="", plan_json="", facts=(), title="Plan a draft model",
    )  # fmt: skip


def plan_page(plan: Plan, own: Sequence[Observation] = ()) -> str:
    """The page of one plan, which stands alone: what it was planned for, and the answer."""
    html = answer_html(plan, None, own, draws=None, full=True)
    document = msgspec.json.format(msgspec.json.encode(plan), indent=1).decode()
    page = _render(
        "page.html.j2", groups=(), defaults={}, targets=(), loads=(), answer=html, plan_json=document, facts=_facts(plan),
        title=f"A draft for {plan.target}",
    )  # fmt: skip
    guard = policy(page).removesuffix("; frame-ancestors 'none'")
    return page.replace("<meta name=", f'<meta http-equiv="Content-Security-Policy" content="{guard}">\n<meta name=', 1)


def answer_html(
    plan: Plan, inputs: Mapping[str, str] | None, own: Sequence[Observation] = (), *, draws: int | None, full: bool,
    files: Sequence[str] = (),
) -> str:  # fmt: skip
    """What the plan says. `inputs`: those of the page, None of a plan from a file; `draws`: joint draws behind it; `full`: no sketch;
    `files`: the user's observations, by their files as typed.
    """
    version = inputs.get(of_page.VERSION) if inputs else None
    near = nearest(plan, own, version) if full else []
    return _render(
        "answer.html.j2", plan=plan, verb=_verb(plan), name=describe(plan.draft) if plan.draft else "", tiles=_tiles(plan),
        trust=_trust(plan), nexts=_nexts(plan), rows=_kinds(plan), most=_most(plan), gain=charts.gain_chart(plan),
        latency=charts.latency_chart(plan), copies=copies(plan, inputs, files), near=[_near(each) for each in near], changes=_changes(plan),
        mark=_mark(plan, own), draws=draws, full=full, levels=list(level_lines(plan.service_levels)) if plan.service_levels else [],
        schedule=_schedule(plan), without=without_draft(plan), version=version,
        notes=plan.assumptions, left_out=plan.not_considered, sources=_sources(plan),
    )  # fmt: skip


def turns_html(turns: Sequence[Turn]) -> str:
    """What other cases come to, those that say otherwise first."""
    ordered = sorted(turns, key=lambda turn: not turn.turns)
    return _render(
        "turns.html.j2",
        turns=[(turn, _first(turn.plan) if turn.plan else "no answer") for turn in ordered],
        draws=SKETCH_DRAWS,
    )


def _first(plan: Plan) -> str:
    """What a plan says to do, in few words."""
    return (
        f"{_verb(plan)} {describe(plan.draft)}" if plan.draft and _verb(plan) != VERBS["nothing"] else VERBS["nothing"]
    )


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise ImportError("the page needs jinja2: pip install 'foredraft[page]'") from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_file)
    )
    environment.filters |= {"number": number, "count": count, "device_time": device_time, "range_bar": charts.range_bar}
    return environment


def _file(name: str) -> str:
    return (resources("foredraft") / "page" / name).read_text(encoding="utf-8")


def _render(template: str, /, **parts: Any) -> str:
    return (
        _environment()
        .get_template(template)
        .render(**parts, sheet=_file("page.css"), script=_file("page.js"), release=__version__)
    )


# --- The verdict ---


class Figure(NamedTuple):
    """A number that a person looks for: what it is, the number, its band, what it means or where it comes from."""

    label: str
    value: str
    band: str
    note: str


def _verb(plan: Plan) -> str:
    return VERBS[plan.action.verb if plan.action else "train" if plan.draft else "nothing"]


def _tiles(plan: Plan) -> list[Figure]:
    gain, level = plan.speedup, percent(plan.speedup.level)
    tiles = [
        Figure(
            "Gain",
            f"{gain.value:.2f}×",
            _band(gain, ".2f"),
            f"{gain.unit.removeprefix('× ')}, over your load; {level} band",
        )
    ]
    busiest = max(plan.schedule, key=lambda step: step.concurrency)
    speed = busiest.output_tok_s
    tiles.append(
        Figure(
            f"Speed at {busiest.concurrency:,} at once",
            f"{speed.value:,.0f}",
            _band(speed, ",.0f"),
            "output tokens/s of all requests together",
        )
    )
    tiles += [_cost(plan), _payback(plan)]
    if plan.costs and plan.costs.per_million and plan.costs.per_million_plain:
        price, plain = plan.costs.per_million, plan.costs.per_million_plain
        note = f"money per million output tokens; without a draft {plain.value:.3g} ({plain.low:.3g}–{plain.high:.3g})"
        tiles.append(Figure("A million tokens", f"{price.value:.3g}", _band(price, ".3g"), note))
    return tiles


def _band(estimate: Estimate, form: str, scale: float = 1.0) -> str:
    return f"{estimate.low * scale:{form}} to {estimate.high * scale:{form}}"


def _cost(plan: Plan) -> Figure:
    costs = plan.costs
    if not costs or not costs.hours:
        return Figure("Cost to get", "0", "", "nothing to train")
    money = f"; {costs.spent:,.0f} in money" if costs.spent is not None else ""
    parts = {"answers": costs.answers_hours, "hidden states": costs.passes_hours, "training": costs.draft_hours}
    split = ", ".join(f"{what} {hours:,.0f}" for what, hours in parts.items() if hours >= 0.5)
    number, _, unit = device_time(costs.hours).partition(" ")
    return Figure(
        "Cost to get",
        f"{number} {unit.removeprefix('device-')}",
        "",
        f"of {costs.machine}{money} ({split or 'training'}); counted, no band",
    )


def _payback(plan: Plan) -> Figure:
    paid = plan.break_even
    if paid is None:
        return Figure(
            "Paid back",
            "at once" if plan.draft else NONE,
            "",
            "nothing was spent" if plan.draft else "no draft is planned",
        )
    value = serving_time(paid.days) if paid.days is not None else f"{count(paid.tokens)} tokens"
    high = "never in some draws" if paid.high is None else count(paid.high)
    return Figure(
        "Paid back after", value, f"{count(paid.low)} to {high}", f"served tokens; the middle draw {count(paid.tokens)}"
    )


def _trust(plan: Plan) -> dict[str, Any]:
    """How far to trust it, in a word and in clauses."""
    if plan.trust is None:
        return {"grade": "unknown", "word": "not told", "lines": ()}
    borrowed = plan.trust.acceptance.startswith("none of")
    grade, word = (
        ("low", "beyond what was measured")
        if plan.trust.beyond
        else ("middle", "borrowed from other drafts")
        if borrowed
        else ("good", "measured near this")
    )
    lines = [("Acceptance", plan.trust.acceptance), ("Speed", plan.trust.costs)]
    return {
        "grade": grade,
        "word": word,
        "lines": lines + [("Beyond", "; ".join(plan.trust.beyond))] * bool(plan.trust.beyond),
    }


class Next(NamedTuple):
    """A draft to take instead."""

    name: str
    how: str
    gain: Estimate
    why: str


def _nexts(plan: Plan) -> list[Next]:
    """The next two: the rival that the draws do not tell from the planned one, then the best other kinds."""
    nexts: list[Next] = []
    if rival := plan.rival:
        why = f"wins in {percent(rival.ahead)} of the draws, loses in {percent(rival.behind)}"
        nexts.append(Next(describe(rival.draft) if rival.draft else "no draft", _how(rival.draft), rival.speedup, why))
    for lost in plan.runners_up:
        if not any(each.name == describe(lost.draft) for each in nexts):
            nexts.append(Next(describe(lost.draft), _how(lost.draft), lost.speedup, lost.reason))
    return nexts[:2]


def _how(draft: DraftChoice | None, edges: Mapping[str, str] | None = None) -> str:
    """What one does to have it; `edges`: of its dials, those that end where the search did."""
    if draft is None:
        return "nothing to do"
    if draft.training_flops:
        ends = ", ".join(
            f"{end} {'size' if dial == 'params' else 'tokens'} searched" for dial, end in (edges or {}).items()
        )
        tokens = f"train on {count(draft.draft_tokens or 0)} tokens, {device_time(draft.training_gpu_hours)}"
        return f"{tokens} ({ends})" if ends else tokens
    if draft.kind == "lookup":
        return "built into the engine"
    return "download" if draft.hub_id or draft.name.endswith("(public)") else "at hand"


def _most(plan: Plan) -> float:
    return max([1.2, plan.speedup.high, *(lost.speedup.high for lost in plan.runners_up)])


def _kinds(plan: Plan) -> list[dict[str, Any]]:
    """A row per kind, the planned one first."""
    rows = [(plan.draft, plan.speedup, "chosen", plan.edges)] if plan.draft else []
    rows += [(lost.draft, lost.speedup, lost.reason, lost.edges) for lost in plan.runners_up]
    return [
        {"name": describe(draft), "how": _how(draft, edges), "gain": gain, "why": why, "chosen": why == "chosen"}
        for draft, gain, why, edges in rows
    ]


def _schedule(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "clients": f"{step.concurrency:,}", "k": f"{step.lookahead or 'off'}" + (f" ({step.tree_nodes} nodes)" if step.topk > 1 else ""),
            "tau": number(step.tokens_per_step), "gain": number(step.speedup), "speed": number(step.output_tok_s, ",.0f"),
            "tpot": number(step.tpot_s, ".3g", 1e3), "ttft": number(step.ttft_s, ".3g", 1e3) if step.ttft_s else "queues: not told",
        }
        for step in plan.schedule
    ]  # fmt: skip


class Change(NamedTuple):
    """What may turn the answer, and the run that tells."""

    what: str
    run: str
    brings: str
    cost: str


def _changes(plan: Plan) -> list[Change]:
    return [
        Change(run.settles, run.run, f"{percent(run.narrows)} of the band’s width", device_time(run.gpu_hours))
        for run in plan.next_runs
    ]


# --- Evidence ---


def _near(near: Near) -> dict[str, Any]:
    row = near.row
    load = row.concurrency or row.batch_size
    where = [
        row.machine,
        row.engine,
        row.dataset,
        f"T = {row.temperature:g}" if row.temperature is not None else None,
        f"{load} at once" if load else None,
    ]
    return {
        "target": row.target, "draft": row.draft or row.method, "method": row.method, "where": ", ".join(filter(None, where)) or "not said",
        "k": row.lookahead or NONE, "tau": f"{row.tokens_per_step:.2f}" if row.tokens_per_step else NONE,
        "gain": f"{row.speedup:.2f}×" if row.speedup else NONE, "speed": f"{row.output_tok_s:,.0f}" if row.output_tok_s else NONE,
        "source": row.provenance.source[:130], "link": near.link, "trust": "yours" if near.is_own else row.provenance.trust.replace("_", " "),
        "same": [word for word, is_same in (("target", near.same_target), ("kind", near.same_kind)) if is_same],
    }  # fmt: skip


def _mark(plan: Plan, own: Sequence[Observation]) -> tuple[str, str]:
    """What is known of the target: measured, known or stated, and what that means here."""
    public = public_name(plan.target)
    rows = sum(row.target == plan.target or (public is not None and public_name(row.target) == public) for row in own)
    published_rows = _published_rows(public) if public else 0
    if rows or published_rows:
        whose = " and ".join([f"{rows} of yours"] * bool(rows) + [f"{published_rows} published"] * bool(published_rows))
        return "measured", f"drafts were measured on it: {whose} rows"
    if public:
        return "known", "its sizes are known; no draft was measured on it"
    return "stated", "by the sizes that you gave"


@cache
def _published_rows(public: str) -> int:
    return sum(row.method != "none" and public_name(row.target) == public for row in evidence.observations())


def _sources(plan: Plan) -> list[str]:
    return list(dict.fromkeys([origin.source for origin in plan.provenance] + [plan.speedup.source]))


def _facts(plan: Plan) -> list[tuple[str, str]]:
    """What a plan from a file was planned for."""
    load, levels = plan.workload, plan.service_levels
    shares = load.weights or (1.0,) * len(load.concurrency)
    facts = [
        ("Target", plan.target), ("Server", f"{plan.devices} × {plan.machine}, {ENGINES[plan.engine].label}"), ("Weights", plan.dtype),
        ("Load", ", ".join(f"{clients:,} ({share / sum(shares):.0%})" for clients, share in zip(load.concurrency, shares, strict=True))),
        ("Prompt, answer", f"{load.input_len:g} and {load.output_len:g} tokens"), ("Temperature", f"{load.temperature:g}"),
        ("Prompts are of", load.task or "a mix"), ("Aim", plan.objective.replace("_", " ")),
    ]  # fmt: skip
    asked = {"TTFT": levels.ttft_s, "TPOT": levels.tpot_s} if levels else {}
    return facts + [(name, f"at most {value:g} s") for name, value in asked.items() if value]
