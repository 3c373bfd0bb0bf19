"""What was measured, the fastest first, and the command that decodes with it: what a page opens with.

Promises: only rows of one setting and one load are ranked; "faster" is said where the interval says so; paths of a command are those that
the measurement was typed with. Refuses to know: figures.
"""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from foredraft import kinds
from foredraft.records import Plan
from foredraft.report.configurations import (
    RowConfiguration,
    at_least_load,
    by_setting,
    config_of,
    draft_name,
    drafted,
    label_of,
    load_of,
    metric,
    names,
    online,
    requests,
    setting_of,
)
from foredraft.report.documents import Documents, Row, Span
from foredraft.report.parts import Table, levels, number
from foredraft.report.sections.compared import Pair, pairs

MOST = 6  # rows of the first screen's table
OURS = "foredraft"  # the engine of `generate`


class Ranking(NamedTuple):
    """The configurations measured in one setting at one load, fastest first; `name`: of the quantity that ranks them."""

    rows: tuple[Row, ...]
    name: str
    pairs: tuple[Pair, ...]
    others: tuple[Row, ...] = ()  # of the same setting at other loads

    @property
    def best(self) -> Row:
        """The fastest draft."""
        return next(row for row in self.rows if not config_of(row).plain)

    def predicted(self, row: Row) -> Span | None:
        """What a plan gave for the row's gain."""
        return next((p.predicted for p in self.pairs if p.row is row and p.quantity == "speedup"), None)

    def planned(self) -> Row | None:
        """The fastest draft that a plan had chosen."""
        return next((row for row in self.rows if any(pair.row is row for pair in self.pairs)), None)


def ranking(documents: Documents) -> Ranking | None:
    """Of the setting that a plan was measured in, else of the one with the most rows; None where no draft was measured."""
    compared = pairs(documents)
    settings = by_setting(online(documents.rows))
    measured = {setting_of(pair.row) for pair in compared}
    for _, rows in sorted(settings, key=lambda item: item[0] not in measured):
        name = metric(rows)
        here = [row for row in rows if config_of(row).plain or row.span(name)]
        least = at_least_load(here)
        if any(not config_of(row).plain for row in least):
            first = sorted(least, key=lambda row: -_speed(row, name))
            others = [row for row in here if load_of(row) != load_of(first[0])]
            return Ranking(tuple(first), name, tuple(compared), tuple(others))
    return None


def _speed(row: Row, name: str) -> float:
    """What ranks a row; plain decoding is as fast as itself, and gains its own token."""
    return 1.0 if config_of(row).plain else getattr(row.observation, name)


# --- Words ---


def called(config: RowConfiguration) -> str:
    """A draft by its folder's name, with its kind and how it drafts: eagle2 (EAGLE, k = 1)."""
    words = names([config])[config]
    draft = draft_name(config.draft) if config.draft else config.method
    return words if draft in (config.method, label_of(config.method)) else f"{draft} ({words})"


def at_once(load: int | None) -> str:
    if load is None:
        return "at a load that was not recorded"
    return "one request at a time" if load == 1 else f"at {load} requests at once"


def verdict(ranking: Ranking) -> str:
    """Which way to decode, in one sentence: a draft only where its interval lies above plain decoding."""
    best, target = ranking.best, ranking.best.observation.target
    name, where = called(config_of(best)), at_once(load_of(best))
    gain = best.span("speedup")
    if gain is None:
        tau = number(best.span("tokens_per_step"))
        return f"Of the drafts measured on {target}, {name} gains the most: {tau} tokens per step {where}. Its speed was not measured."
    times = f"{number(gain)} times as fast as without a draft, {where}"
    if (gain.low if gain.low is not None else gain.value) > 1:
        return f"Decode {target} with {name}: {times}."
    if gain.value > 1:
        return f"No draft is surely faster on {target}: the best measured, {name}, is {times}."
    return f"Decode {target} without a draft: the best measured, {name}, is only {times}."


def remarks(ranking: Ranking) -> Iterator[str]:
    """What the verdict must be read with: ties, the plan beside it, other loads; a sentence each."""
    best, gain = ranking.best, ranking.best.span("speedup")
    tied = [
        row
        for row in ranking.rows
        if row is not best and not config_of(row).plain and _overlap(row, best, ranking.name)
    ]
    if tied:
        yield f"Its interval overlaps that of {', '.join(called(config_of(row)) for row in tied[:3])}."
    if (span := ranking.predicted(best)) and gain:
        inside = span.low is not None and span.high is not None and span.low <= gain.value <= span.high
        yield f"A plan predicted {number(span)}: the measured value lies {'inside' if inside else 'outside'}."
    planned = ranking.planned()
    if planned is not None and planned is not best:
        yield f"The plan had chosen {called(config_of(planned))}, which measured {number(planned.span(ranking.name))}."
    yield from _by_load(ranking)


def _by_load(ranking: Ranking) -> Iterator[str]:
    """From which load on no draft gains any more; else what is left at the largest."""
    if ranking.name != "speedup":
        return
    rows = [row for row in drafted(ranking.others) if (load_of(row) or 0) > (load_of(ranking.best) or 0)]
    loads = sorted({load_of(row) or 0 for row in rows})
    best = [
        max((row for row in rows if load_of(row) == load), key=lambda row: _speed(row, ranking.name)) for load in loads
    ]
    ends = [row for i, row in enumerate(best) if all(_speed(later, ranking.name) <= 1 for later in best[i:])]
    if best:
        first = ends[0] if ends else best[-1]
        gain = f"{called(config_of(first))} is the best there with {number(first.span('speedup'))}"
        yield (
            f"From {load_of(first)} requests at once no draft gains: {gain}."
            if ends
            else f"{at_once(load_of(first)).capitalize()} {gain}."
        )


def _overlap(row: Row, best: Row, name: str) -> bool:
    span, over = row.span(name), best.span(name)
    return bool(span and over and span.high is not None and over.low is not None and span.high > over.low)


def table(ranking: Ranking) -> Table:
    """All ways to decode beside each other, the fastest on top."""
    predicted = any(ranking.predicted(row) for row in ranking.rows)
    head = (
        "way to decode",
        "times as fast",
        "tokens/s",
        "tokens per step",
        *(("predicted, times as fast",) if predicted else ()),
    )
    shown = _shown(ranking.rows)
    rows = [
        (
            "no draft" if config_of(row).plain else called(config_of(row)), number(Span(1.0) if config_of(row).plain else row.span("speedup")),
            number(row.span("output_tok_s"), ",.1f"), number(row.span("tokens_per_step")),
            *((number(ranking.predicted(row)),) if predicted else ()),
        )
        for row in shown
    ]  # fmt: skip
    spans = [span for row in shown if not config_of(row).plain and (span := row.span(ranking.name))]
    more = len(ranking.rows) - len(shown)
    omitted = f" {more} slower ones are further down." if more else ""
    setting = setting_of(ranking.best)
    by = f" Source: {ranking.best.observation.provenance.source}." if ranking.best.observation.provenance.source else ""
    return Table(
        f"Measured, fastest first: {setting.words()}, {at_once(load_of(ranking.best))}; {requests(shown)}. {levels(spans)}{by}{omitted}",
        head,
        rows,
    )


def _shown(rows: Sequence[Row]) -> list[Row]:
    """The fastest, and plain decoding wherever it stands."""
    first = list(rows[:MOST])
    return first + [row for row in rows[MOST:] if config_of(row).plain][:1]


# --- The command ---


def command(ranking: Ranking, plan: Plan | None) -> tuple[str, ...]:
    """What to type to decode with the fastest; in capitals what the records do not tell."""
    best = ranking.best
    o = best.observation
    gain = best.span("speedup")
    words = typed(best)
    target = words.target or "TARGET"
    if gain is not None and gain.value <= 1:
        return (f'foredraft generate {target} "PROMPT"',) if o.engine == OURS else ()
    draft = words.draft or o.draft or o.method
    if o.engine == OURS:
        drafts = [f"--draft {shlex.quote(draft)}", *([f"--lookahead {o.lookahead}"] if o.lookahead is not None else [])]
        if (o.topk or 1) > 1 and o.tree_nodes:
            drafts.append(f"--tree {o.topk},{o.tree_nodes}")
        return (f'foredraft generate {shlex.quote(target) if words.target else target} {" ".join(drafts)} "PROMPT"',)
    if plan and plan.action:
        return plan.action.commands
    if kinds.of_method(o.method).role == kinds.NGRAM.role:
        return ()
    return (f"foredraft deploy export {shlex.quote(draft)} --target {target} --out served",)


class Typed(NamedTuple):
    """The paths that a measurement was typed with; None where its record does not say."""

    target: str | None = None
    draft: str | None = None


def typed(row: Row) -> Typed:
    """The target's path and the draft's of `foredraft measure TARGET --draft DIR@K`, from the row's provenance."""
    try:
        words = shlex.split(row.observation.provenance.command or "")
    except ValueError:  # a quotation that was cut
        return Typed()
    if words[:2] != ["foredraft", "measure"] or len(words) < 3 or words[2].startswith("-"):
        return Typed()
    specs = [after for option, after in itertools.pairwise(words) if option in ("--draft", "-d")]
    drafts = [spec.rpartition("@")[0] or spec for spec in specs]
    name = row.observation.draft or row.observation.method
    return Typed(words[2], next((draft for draft in drafts if draft.rstrip("/").endswith(name)), None))
