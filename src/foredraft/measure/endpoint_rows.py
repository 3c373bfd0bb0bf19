"""From a load on a server to Measurement rows: the client's times, the engine's acceptance, intervals where requests tell.

Promises: what neither clock nor counters say is left out; figures out of totals have no interval. Refuses to know: how the
server was asked.

Shapes: D requests, K sums.
"""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np

from foredraft import __version__
from foredraft.measure.bootstrap import Array, Figure, divided, figure, figures, requests_for_width
from foredraft.measure.definitions import Counters
from foredraft.measure.endpoint import Round, grown, traffic
from foredraft.measure.endpoint_counts import Spec
from foredraft.measure.endpoint_wire import Answer, Server
from foredraft.records import Estimate, Measurement, Observation, Provenance
from foredraft.runs import name_of

SOURCE = "foredraft measure --endpoint"
NEAR = 0.05  # how far drafted tokens per step may lie from a whole number that stands for all steps
SHARES = (0.0, 1.0)
Fields = Mapping[str, Any]


class Found(NamedTuple):
    """Rows of a round, and what to mind about it."""

    rows: list[Measurement]
    warnings: list[str]


METHODS = {"EAGLE": "eagle", "EAGLE3": "eagle3", "STANDALONE": "draft_model", "NGRAM": "ngram", "NEXTN": "mtp"}


def base_of(server: Server, made: Round, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a server share: what the user says, and what the server says of itself. Unknown stays unknown."""
    info = server.info
    model = (
        name_of(server.model) if server.model.startswith("/") else server.model
    )  # vLLM's name of a local folder is its path
    algorithm = str(info.get("speculative_algorithm") or "").upper()
    speculates = bool(algorithm) or any(one.spec for one in made.answers) or bool(made.after and made.after.spec)
    method = given.get("method") or METHODS.get(algorithm) or ("unknown" if speculates else "none")
    run = given.get("run") or given.get("draft") or model
    return {
        "run": run, "target": model, "method": method, "draft": given.get("draft"), "family": given.get("family"),
        "dataset": given.get("dataset"),
        "engine": server.engine, "machine": given.get("machine"), "draft_params": given.get("draft_params"),
        "draft_tokens": given.get("draft_tokens"), "draft_layers": given.get("draft_layers"), "tensor_parallel": _number(info, "tp_size"),
        "lookahead": _number(info, "speculative_num_steps") if algorithm else None if speculates else 0,
        "topk": _number(info, "speculative_eagle_topk") if algorithm else None,
        "tree_nodes": (_number(info, "speculative_num_draft_tokens") or 1) - 1 or None if algorithm else None,
        "provenance": _provenance(server, given.get("command"), given.get("note")),
    }  # fmt: skip


def _number(info: Mapping[str, Any], key: str) -> int | None:
    value = info.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _provenance(server: Server, command: str | None, note: str | None) -> Provenance:
    versions = {"foredraft": __version__, "python": platform.python_version()}
    versions |= {server.engine: server.version} if server.version else {}
    return Provenance(
        source=SOURCE, command=command, note=note, versions=versions, created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def rows_of(made: Round, base: Fields, width: float) -> Found:
    """All categories together, then each by itself where requests tell their own counts. `base`: fields that rows share; what it
    gives goes before what the counters say. Raises ValueError where no request was answered.
    """
    if not made.answers:
        raise ValueError(f"{made.load}: none of {len(made.failures)} requests was answered: {made.failures[0].why}")
    warnings = traffic(made) + _failures(made)
    difference = _difference(made, warnings)
    rows = [_row(made, made.answers, base, None, difference, warnings, width)]
    categories = dict.fromkeys(one.question.category for one in made.answers)
    if len(categories) > 1 and all(one.spec is not None for one in made.answers):
        for name in (one for one in categories if one is not None):
            chosen = [one for one in made.answers if one.question.category == name]
            rows.append(_row(made, chosen, base, name, None, warnings, width))
    return Found(rows, warnings)


def _failures(made: Round) -> list[str]:
    if not made.failures:
        return []
    first, num = made.failures[0], len(made.failures) + len(made.answers)
    return [f"{len(made.failures)} of {num} requests failed, the first {first.question.where}: {first.why}"]


def _difference(made: Round, warnings: list[str]) -> Counters | None:
    """vLLM's counters over the load; None where it has none. What is wrong with them goes to `warnings`."""
    if made.before is None or made.after is None or made.after.spec is None:
        return None
    try:
        earlier = made.before.spec or Counters(steps=0, drafted=0, accepted=0, by_position=(0,) * len(made.after.spec.by_position))  # fmt: skip
        return made.after.spec.since(earlier)
    except ValueError as error:
        warnings.append(f"counters: {error}")
        return None


def _row(
    made: Round, answers: Sequence[Answer], base: Fields, category: str | None, totals: Counters | None, warnings: Sequence[str],
    width: float,
) -> Measurement:  # fmt: skip
    times, intervals = _times(answers)
    accepted, ttot = _accepted(answers, totals), _ttot(answers)
    seen: dict[str, Any] = accepted.fields | times | _load(made, answers, category)
    dataset = base.get("dataset")
    given: dict[str, Any] = {key: value for key, value in base.items() if value is not None}
    fields: dict[str, Any] = seen | given | {"dataset": f"{dataset}/{category}" if category is not None else dataset}
    fields["provenance"] = _noted(base["provenance"], made, accepted.how, warnings, category)
    intervals = intervals | dict(accepted.intervals)
    return Measurement(
        observation=Observation(**{key: value for key, value in fields.items() if value is not None}), way="live",
        category=category, intervals=intervals, survival=accepted.survival, accept_given_prefix=accepted.given,
        wanted_requests=requests_for_width(intervals.get("tokens_per_step"), len(answers), width), ttot_s=ttot,
    )  # fmt: skip


def _load(made: Round, answers: Sequence[Answer], category: str | None) -> dict[str, Any]:
    """Dials and sizes. Tokens/s are of all requests together, so of no category alone."""
    tokens = [one.tokens for one in answers if one.tokens is not None]
    prompts = [one.prompt_tokens for one in answers if one.prompt_tokens]
    rate = made.tokens / made.seconds if category is None and made.tokens else None
    return {
        "concurrency": made.load.concurrency, "temperature": made.load.temperature, "num_requests": len(answers),
        "output_len": float(np.mean(tokens)) if tokens and sum(tokens) else None,
        "input_len": float(np.mean(prompts)) if prompts else None, "output_tok_s": rate,
    }  # fmt: skip


# The client's clock.


def _times(answers: Sequence[Answer]) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Means over requests: to the first token; between tokens, over tokens; and between pieces of the stream."""
    sums = np.array(
        [[1, one.first_s, one.whole_s - one.first_s, (one.tokens or 1) - 1, one.chunks - 1] for one in answers]
    )
    wanted: dict[str, Figure] = {"ttft_s": _over(1, 0), "itl_s": _over(2, 4)}
    if all(one.tokens is not None for one in answers):
        wanted["tpot_s"] = _over(2, 3)
    values, intervals = {}, {}
    for name, of in wanted.items():
        value = float(of(sums.sum(0)))
        if np.isfinite(value) and value > 0:
            values[name] = value
            if (interval := figure(sums, of, "s", SOURCE)) is not None:
                intervals[name] = interval
    return values, intervals


def _ttot(answers: Sequence[Answer]) -> Estimate | None:
    sums = np.array([[1, one.whole_s] for one in answers], dtype=float)
    return figure(sums, _over(1, 0), "s", SOURCE)


def _over(top: int, bottom: int) -> Figure:
    return lambda sums: divided(sums[..., top], sums[..., bottom])


# The engine's counts.


class Accepted(NamedTuple):
    """Acceptance: fields of an observation, intervals where requests tell their own counts, and how it was counted."""

    fields: dict[str, Any]
    how: str
    intervals: Mapping[str, Estimate] = {}
    survival: tuple[Estimate, ...] = ()
    given: tuple[Estimate, ...] = ()


def _accepted(answers: Sequence[Answer], totals: Counters | None) -> Accepted:
    specs = [one.spec for one in answers if one.spec is not None]
    if len(specs) == len(answers) and sum(spec.steps for spec in specs):
        if all(spec.accepted is not None and spec.drafted is not None for spec in specs):
            return _by_request(specs)
        return _by_tokens(answers, specs)
    if totals is not None and totals.steps:
        return _by_totals(totals)
    return Accepted({}, "acceptance not told by the server")


def _by_request(specs: Sequence[Spec]) -> Accepted:
    """Each request's own counts, drawn whole."""
    places = max(len(spec.by_position) for spec in specs)
    padded = [[*spec.by_position, *[0] * (places - len(spec.by_position))] for spec in specs]
    sums = np.array([[spec.steps, spec.drafted, spec.accepted, *row] for spec, row in zip(specs, padded, strict=True)], float)  # fmt: skip
    steps, drafted, accepted = (int(total) for total in sums[:, :3].sum(0))
    lookahead = _lookahead(steps, drafted)
    kept = min(places, lookahead) if lookahead else places

    def tau(part: Array) -> Array:
        return 1 + divided(part[..., 2], part[..., 0])

    def joint(part: Array) -> Array:
        return divided(part[..., 3 : 3 + kept], part[..., :1])

    def given(part: Array) -> Array:
        before = np.concatenate((part[..., :1], part[..., 3 : 2 + kept]), -1)
        return divided(part[..., 3 : 3 + kept], before)

    interval = figure(sums, tau, "tokens/step", SOURCE, (1.0, 1.0 + lookahead) if lookahead else None)
    survival = figures(sums, joint, kept, "probability", SOURCE, SHARES) if kept else ()
    fields = _counted(steps, drafted, accepted, lookahead, [one.value for one in survival])
    return Accepted(
        fields, "acceptance by each request's own counts", {"tokens_per_step": interval} if interval else {}, survival,
        figures(sums, given, kept, "probability", SOURCE, SHARES) if kept else (),
    )  # fmt: skip


def _by_tokens(answers: Sequence[Answer], specs: Sequence[Spec]) -> Accepted:
    """An SGLang that tells steps alone: its accept length, answer tokens over steps, which counts the prompt's own token too."""
    sums = np.array([[spec.steps, one.tokens or 0] for spec, one in zip(specs, answers, strict=True)], dtype=float)
    steps, tokens = (int(total) for total in sums.sum(0))
    fields = {"steps": steps, "tokens_per_step": max(tokens / steps, 1.0), "pooling": "steps"}
    interval = figure(sums, _over(1, 0), "tokens/step", SOURCE)
    return Accepted(fields, "tokens per step by answer tokens over steps", {"tokens_per_step": interval} if interval else {})  # fmt: skip


def _by_totals(totals: Counters) -> Accepted:
    """The difference of a server's totals, which knows no requests and so no interval."""
    lookahead = _lookahead(totals.steps, totals.drafted)
    joint = [min(count / totals.steps, 1.0) for count in totals.by_position][:lookahead]
    fields = _counted(totals.steps, totals.drafted, totals.accepted, lookahead, joint)
    return Accepted(fields, "acceptance by the difference of the server's totals, which give no interval")


def _counted(
    steps: int, drafted: int, accepted: int, lookahead: int | None, joint: Sequence[float]
) -> dict[str, Any]:  # fmt: skip
    return {
        "steps": steps, "drafted": drafted, "accepted": accepted, "tokens_per_step": 1 + accepted / steps, "pooling": "steps",
        "lookahead": lookahead, "survival": tuple(min(one, 1.0) for one in joint) or None,
    }  # fmt: skip


def _lookahead(steps: int, drafted: int) -> int | None:
    """Drafted tokens per step where that is a whole number; None of a schedule that changed under way."""
    mean = drafted / steps
    return round(mean) if round(mean) and abs(mean - round(mean)) <= NEAR else None


def _noted(provenance: Any, made: Round, how: str, warnings: Sequence[str], category: str | None) -> Any:
    parts = [str(made.load), f"{len(made.answers)} answers in {made.seconds:.2f} s", how]
    if made.before and made.after and (cached := grown(made.before, made.after, "cached")):
        parts.append(f"{cached:g} prompt tokens came out of the server's prefix cache")
    if category is None:
        parts += warnings
    note = "; ".join([*parts, *([provenance.note] if provenance.note else [])])
    return msgspec.structs.replace(provenance, note=note)
