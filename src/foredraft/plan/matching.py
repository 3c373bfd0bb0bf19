"""Which own rows speak of the server that is planned: those of its target, machine, engine, dtype and devices.

Promises: what a row does not say is taken from the plan, and said; a row that is left out is named with the reason. Refuses to know:
costs, acceptance, search.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.machines import count_in
from foredraft.machines import machine as known_machine
from foredraft.plan.served import Place, load
from foredraft.plan.study import draft_shapes, on_target
from foredraft.records import Machine, Observation, dtype_name
from foredraft.shapes import Shape

UNSTATED = ("unstated", "unknown")
MISSING = (None, *UNSTATED)
CLOCKLESS = "without tokens/s"
NAMED = 3  # rows that a reason names
WORDS = {"input_len": "prompt length", "output_len": "answer length", "tensor_parallel": "devices"}


@dataclass
class Matched:
    """Own rows of a place, whole; how many took which field from the plan, and the others' runs by the reason."""

    rows: list[Observation] = field(default_factory=list)
    assumed: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, row: Observation, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(row.run)

    def assume(self, row: Observation, facts: dict[str, Any]) -> Observation:
        """`row` with what it does not say."""
        facts = {name: facts[name] for name in facts if getattr(row, name) in MISSING and facts[name] is not None}
        for name in facts:
            word = WORDS.get(name, name)
            self.assumed[word] = self.assumed.get(word, 0) + 1
        return msgspec.structs.replace(row, **facts) if facts else row

    def notes(self) -> tuple[str, ...]:
        """What was taken from the plan, a line for each number of rows."""
        by_count: dict[int, list[str]] = {}
        for name, count in self.assumed.items():
            by_count.setdefault(count, []).append(name)
        return tuple(
            f"{count} own row{'s do' if count > 1 else ' does'} not say {', '.join(names)}: taken from the plan"
            for count, names in by_count.items()
        )

    def reasons(self, calibrates: bool = True) -> str:
        """Why rows do not calibrate the cost law, the reason of most rows first, the first rows of each by name; "" where all do. `calibrates`
        False: those of this place do not, without plain decoding among them.
        """
        left_out = dict(self.left_out)
        if self.rows and not calibrates:
            left_out["without a row of plain decoding beside them"] = [row.run for row in self.rows]
        parts = []
        for reason, runs in sorted(left_out.items(), key=lambda each: -len(each[1])):
            more = ", …" if len(runs) > NAMED else ""
            parts.append(f"{len(runs)} {reason} ({', '.join(dict.fromkeys(runs[:NAMED]))}{more})")
        return "; ".join(parts)


def completed(
    target: Shape, observations: Sequence[Observation], draft: Shape | None = None, beside: Sequence[Shape] = ()
) -> Matched:
    """All of `observations`, with the plan's target where a row names none; its draft's method, or the usual head's, where a row
    of that target says only that it speculated; and the words that a draft at hand, `draft` or one `beside` it, may draft, where a row was
    measured with as many layers and parameters and does not say.
    """
    matched, method = Matched(), next(iter(kinds.of_shape(draft).methods)) if draft else kinds.USUAL_HEAD.name
    words = {
        (float(shape.params), shape.num_layers): shape.draft_vocab_size
        for shape in (*beside, *((draft,) if draft else ()))
        if shape.draft_vocab_size
    }
    for row in observations:
        named = matched.assume(row, {"target": target.name}) if row.target in UNSTATED else row
        if row.draft_params and row.draft_vocab is None and on_target(named, target):
            named = msgspec.structs.replace(named, draft_vocab=words.get((row.draft_params, row.draft_layers or 1)))
        if row.method in UNSTATED and row.draft_params is None and on_target(named, target):
            named = matched.assume(named, {"method": method})
        matched.rows.append(named)
    return matched


DIALS = (
    "target", "method", "draft", "family", "dataset", "temperature", "engine", "target_params", "target_tokens", "draft_params",
    "draft_tokens", "draft_layers", "lookahead", "topk", "tree_nodes", "concurrency", "batch_size", "pooling", "accept_kind", "cost_ratio",
    "target_tokenizer", "draft_tokenizer",
)  # fmt: skip
ACCEPTANCE = "tokens_per_step", "accept_prob", "loss", "target_perplexity", "draft_perplexity"


def without_repeats(observations: Sequence[Observation]) -> list[Observation]:
    """A row for those that differ in no dial of acceptance, with the means of what they measured: a log of 100,000 rows is few.
    Of drafts whose training is stated only rows of one run are repeats, since laws in their dials resample runs.
    """
    repeats: dict[tuple[Any, ...], list[Observation]] = {}
    dials = attrgetter(*DIALS)
    for row in observations:
        run = row.run if row.draft_tokens else None
        repeats.setdefault((*dials(row), run, row.survival and len(row.survival)), []).append(row)
    return [rows[0] if len(rows) == 1 else _mean(rows) for rows in repeats.values()]


def _mean(rows: Sequence[Observation]) -> Observation:
    facts: dict[str, Any] = {}
    for name in ACCEPTANCE:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        facts |= {name: sum(values) / len(values)} if values else {}
    if survivals := [row.survival for row in rows if row.survival]:
        facts["survival"] = tuple(sum(shares) / len(shares) for shares in zip(*survivals, strict=True))
    return msgspec.structs.replace(rows[0], **facts, steps=None, drafted=None, accepted=None)


def match(
    place: Place, observations: Iterable[Observation], temperature: float, lengths: tuple[float, float] | None = None
) -> Matched:
    """Rows with a throughput at a stated load, measured at `place`: of the temperature's class (0 or not), whose steps differ, or
    where that has none of the other. `lengths`: prompt and answer of rows that state none.
    """
    matched, rows, reason_of = Matched(), [], _reasons(place, lengths)
    for row in observations:
        if reason := reason_of(row):
            matched.leave_out(row, reason)
        else:
            rows.append(row)
    alike = [row for row in rows if ((row.temperature or 0.0) > 0) == (temperature > 0)] or rows
    for row in rows if len(alike) < len(rows) else ():
        if ((row.temperature or 0.0) > 0) != (temperature > 0):
            matched.leave_out(row, f"at temperature {row.temperature or 0:g}")
    prompt, answer = lengths or (None, None)
    facts = {
        "engine": place.engine, "machine": place.machine.name, "dtype": place.weight_format, "input_len": prompt, "output_len": answer,
    } | ({"tensor_parallel": place.layout.tensor} if place.layout.tensor > 1 else {})  # fmt: skip
    matched.rows = [matched.assume(row, facts) for row in alike]
    return matched


def _reasons(place: Place, lengths: tuple[float, float] | None) -> Callable[[Observation], str]:
    """Why a row says nothing of the costs at `place`, "" where it does; asked once of rows that differ in nothing that decides it."""
    draft_of, known = draft_shapes(place.target), {}

    def reason(row: Observation) -> str:
        key = (
            row.target, row.target_params, row.method, row.engine, row.machine, row.dtype, row.tensor_parallel, row.draft, row.draft_params,
            row.draft_layers,
        )  # fmt: skip
        if key not in known:
            known[key] = _elsewhere(place, row) or _undrawn(row, draft_of(row))
        return known[key] or _lacking(row, lengths)

    return reason


def _lacking(row: Observation, lengths: tuple[float, float] | None) -> str:
    """What a row has too little of to be timed."""
    if not row.output_tok_s:
        return CLOCKLESS
    if not load(row):
        return "without clients or batch size"
    if lengths is None and not (row.input_len and row.output_len):
        return "without prompt and answer lengths"
    if row.method != "none" and not row.lookahead:
        return "without k"
    return "" if row.method == "none" or row.tokens_per_step else "without tokens per step"


def _elsewhere(place: Place, row: Observation) -> str:
    """In what a row was measured elsewhere, against the plan."""
    if not on_target(row, place.target):
        return f"of {row.target} (--target-name {row.target} if that is this target)"
    if row.engine is not None and place.engine not in row.engine.lower():
        return f"of engine {row.engine}, planned for {place.engine}{_uses(_engine(row.engine))}"
    if not _is_machine(row.machine, place.machine):
        known = _known_name(row.machine) if row.machine else None
        option = f"-m {known or 'RECORD.json'}"
        return f"of machine {row.machine}, planned for {place.machine.name}{_uses(option)}"
    if row.dtype is not None and not _same_dtype(row.dtype, place):
        return f"of dtype {row.dtype}, planned for {place.weight_format}{_uses(f'--dtype {row.dtype}')}"
    layout, counted = place.layout, count_in(row.machine) if row.machine else None
    devices = row.tensor_parallel or counted or layout.devices
    if devices in (layout.tensor, layout.devices):
        return ""
    return f"on {devices} devices, planned for {layout.devices}{_uses(f'--devices {devices}')}"


def _uses(option: str | None) -> str:
    """What would plan for where such rows were measured."""
    return f": {option} plans for them" if option else ""


def _engine(name: str) -> str | None:
    return next((f"--engine {known}" for known in ENGINES if known in name.lower()), None)


def _same_dtype(dtype: str, place: Place) -> bool:
    """Blocks and channels of one format are not told apart: rows say fp8 of whatever scales."""
    return dtype_name(dtype).split("-")[0] == dtype_name(place.weight_format).split("-")[0]


def _undrawn(row: Observation, draft: Shape | None) -> str:
    """Whose draft cannot be told."""
    if kinds.role_of(row.method) in ("none", "lookup") or draft is not None:
        return ""
    return f"of a draft without a known shape (method {row.method}, draft {row.draft})"


@cache
def _known_name(name: str) -> str | None:
    try:
        return known_machine(name).name
    except ValueError:
        return None


def _is_machine(name: str | None, machine: Machine) -> bool:
    return name is None or machine.name in (name, _known_name(name))
