"""The first thing a newcomer reads: what was predicted, what came out, how far apart they are.

Promises: plain words; a prediction that was not measured is called one. Refuses to know: figures.
"""

from foredraft.report import style
from foredraft.report.configurations import (
    at_least_load,
    best,
    by_setting,
    config_of,
    drafted,
    load_of,
    metric,
    names,
    online,
)
from foredraft.report.documents import Documents, Row, Span
from foredraft.report.parts import Headline, Tile, number, rate, signed
from foredraft.report.sections.compared import Pair, pairs


def headline(documents: Documents) -> Headline:
    """Predicted against measured where both are there; else whichever is; else what lies in the folders."""
    if planned_pairs := pairs(documents):
        return _compared(planned_pairs)
    rows = best(drafted(_first_setting(documents)), 1)
    if documents.plans:
        return _planned(documents, measured=bool(rows))
    if rows:
        return _measured(rows[0], documents)
    kinds = (("fitted law", documents.fits), ("training run", documents.runs), ("machine", documents.machines), ("sweep", documents.sweeps),
             ("observation", documents.rows))  # fmt: skip
    contents = [style.plural(len(things), name) for name, things in kinds if things]
    return Headline(
        f"These folders hold {', '.join(contents)}; neither a plan nor a measured draft, so nothing is compared."
    )


def _first_setting(documents: Documents) -> list[Row]:
    settings = by_setting(online(documents.rows))
    return at_least_load(settings[0][1]) if settings else []


def _compared(planned_pairs: list[Pair]) -> Headline:
    """The headline at the smallest load, where waiting is felt most; the gain where it was measured."""
    least = min(pair.step.concurrency for pair in planned_pairs)
    here = {pair.quantity: pair for pair in planned_pairs if pair.step.concurrency == least}
    main = here.get("speedup") or here["tokens_per_step"]
    times = "times as fast as the target alone" if main.quantity == "speedup" else "tokens per pass of the target"
    verdict = "within" if main.covered else "outside"
    text = (
        f"With the planned draft, {main.plan.target} was predicted to decode {_short(main.predicted)} {times}. "
        f"It measured {_short(main.measured)}: {verdict} the predicted interval, the prediction {_off(main.error)}."
    )
    tiles = [tile for name in ("speedup", "tokens_per_step") if name in here for tile in _tiles(here[name], least)]
    return Headline(text, tiles)


def _short(span: Span) -> str:
    return f"{span.value:.2f}"


def _off(error: float) -> str:
    if abs(error) < 0.005:
        return "off by less than 0.5\u00a0%"
    return f"{100 * abs(error):.1f}\u00a0% too {'high' if error > 0 else 'low'}"


def _tiles(pair: Pair, load: int) -> list[Tile]:
    what = "Times as fast" if pair.quantity == "speedup" else "Tokens per step"
    ends = pair.predicted
    inside = "" if ends.low is None or ends.high is None else f"between {ends.low:.2f} and {ends.high:.2f}"
    return [
        Tile(
            f"{what}, predicted",
            _short(pair.predicted),
            f"{inside} ({style.percent(ends.level or 0)} interval), {_at_once(load)}",
        ),
        Tile(f"{what}, measured", _short(pair.measured), _interval_words(pair.measured)),
        Tile(f"{what}, error", signed(pair.error), "predicted over measured"),
    ]


def _at_once(load: int) -> str:
    return "one request at a time" if load == 1 else f"{load} requests at once"


def _interval_words(span: Span) -> str:
    if span.low is None or span.high is None or span.level is None:
        return "no interval recorded"
    return f"between {span.low:.2f} and {span.high:.2f} ({style.percent(span.level)} interval)"


def _planned(documents: Documents, measured: bool) -> Headline:
    plan = documents.plans[0]
    beside = (
        "Drafts were measured too, but none is the planned one at a load and lookahead of its schedule."
        if measured
        else "It has not been measured yet: `foredraft measure` writes what to compare it with."
    )
    low, high = plan.speedup.low, plan.speedup.high
    if plan.draft is None or not any(step.lookahead for step in plan.schedule):
        text = f"The plan for {plan.target} is to decode without a draft; none would gain anything."
        return Headline(f"{text} {beside}")
    text = (
        f"With {plan.draft.name} as its draft, {plan.target} should reach {plan.speedup.value:.2f} "
        f"{plan.speedup.unit} ({style.percent(plan.speedup.level)} interval: {low:.2f} to {high:.2f}). {beside}"
    )
    first = plan.schedule[0]
    tau = first.tokens_per_step
    tiles = [
        Tile("Gain, predicted", f"{plan.speedup.value:.2f}", f"between {low:.2f} and {high:.2f}, over the loads asked for"),
        Tile("Tokens per step, predicted", f"{tau.value:.2f}", f"between {tau.low:.2f} and {tau.high:.2f}, {_at_once(first.concurrency)}"),
        Tile("Measured", "not yet", "no record of the planned draft"),
    ]  # fmt: skip
    return Headline(text, tiles)


def _measured(row: Row, documents: Documents) -> Headline:
    o, name = row.observation, names([config_of(row)])[config_of(row)]
    gain, tau = row.span("speedup"), row.span("tokens_per_step")
    at = f"at batch {load_of(row)}" if load_of(row) else "at a load not recorded"
    parts = [
        f"{number(gain)} times as fast as the target alone" if gain else "",
        f"{number(tau)} tokens per step" if tau else "",
    ]
    gains = " and ".join(part for part in parts if part) or "no gain recorded"
    ranked = "speedup" if metric([row]) == "speedup" else "tokens per step"
    text = f"Of what was measured on {o.target}, {name} has the most {ranked}: {gains}, {at}. No plan lies beside it to compare with."
    spans = {"Times as fast, measured": gain, "Tokens per step, measured": tau}
    tiles = [Tile(label, _short(span), _interval_words(span)) for label, span in spans.items() if span]
    if o.output_tok_s:
        tiles.append(Tile("Tokens per second", rate(o.output_tok_s), at))
    return Headline(text, tiles)
