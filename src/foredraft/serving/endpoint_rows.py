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
from foredraft.engines.counters import Counters, RequestCounts, chain_length
from foredraft.records import Estimate, Measurement, Observation, Provenance
from foredraft.runs import name_of
from foredraft.serving.bootstrap import Array, Figure, divided, figure, figures, requests_for_width
from foredraft.serving.endpoint import Round, grown, traffic
from foredraft.serving.endpoint_wire import Endpoint, StreamedAnswer

SOURCE = "foredraft measure --endpoint"
SHARES = (0.0, 1.0)
Fields = Mapping[str, Any]


class LoadRows(NamedTuple):
    """Rows of a round, and what to mind about it."""

    rows: list[Measurement]
    warnings: list[str]


def base_of(server: Endpoint, load: Round, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a server share: what the user says, and what the server says of itself. Unknown stays unknown."""
    counted = any(answer.counts for answer in load.answers) or bool(load.after and load.after.spec)
    return base_facts(server, facts, drafts=counted)


def base_facts(server: Endpoint, facts: Mapping[str, Any], *, drafts: bool) -> dict[str, Any]:
    """The same, where it is known whether the server's counters tell of drafts."""
    running = server.engine.running(server.info)
    behind = (
        server.root or running.get("target") or server.model
    )  # the model that a name of the server's own stands for
    model = _spelt(behind)
    stated = "method" in running
    method = facts.get("method") or running.get("method") or ("unknown" if drafts else "none")
    lookahead = running.get("lookahead") if stated else None if drafts else 0
    names = ("family", "dataset", "machine", "draft", "draft_params", "draft_tokens", "draft_layers")
    note = facts.get("note") if behind == server.model else f"served as {server.model}; {facts.get('note') or ''}"
    return {name: facts.get(name) for name in names} | {
        "run": facts.get("run") or facts.get("draft") or _spelt(server.model), "target": model, "method": method, "engine": server.engine.name,
        "tensor_parallel": running.get("tensor_parallel") or facts.get("devices"), "dtype": facts.get("dtype") or running.get("dtype"),
        "lookahead": lookahead, "topk": running.get("topk"),
        "tree_nodes": running.get("tree_nodes"), "provenance": _provenance(server, facts.get("command"), note),
    }  # fmt: skip


def _spelt(model: str) -> str:
    """A model's name; of a folder's path, which some servers tell, the folder's: an id of the Hub has one slash at most."""
    return name_of(model) if model.startswith(("/", ".")) or model.count("/") > 1 else model


def _provenance(server: Endpoint, command: str | None, note: str | None) -> Provenance:
    versions = {"foredraft": __version__, "python": platform.python_version()}
    versions |= {server.engine.name: server.version} if server.version else {}
    return Provenance(
        source=SOURCE, command=command, note=note, versions=versions, created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def rows_of(load: Round, base: Fields, width: float) -> LoadRows:
    """All categories together, then each by itself where requests tell their own counts. `base`: fields that rows share; what it
    gives goes before what the counters say. Raises ValueError where no request was answered.
    """
    if not load.answers:
        raise ValueError(f"{load.load}: none of {len(load.failures)} requests was answered: {load.failures[0].reason}")
    warnings = traffic(load) + _failures(load)
    difference = _difference(load, warnings)
    rows = [_row(load, load.answers, base, None, difference, warnings, width)]
    categories = dict.fromkeys(answer.question.category for answer in load.answers)
    if len(categories) > 1 and all(answer.counts is not None for answer in load.answers):
        for name in (category for category in categories if category is not None):
            chosen = [answer for answer in load.answers if answer.question.category == name]
            rows.append(_row(load, chosen, base, name, None, warnings, width))
    return LoadRows(rows, warnings)


def _failures(load: Round) -> list[str]:
    if not load.failures:
        return []
    first, num = load.failures[0], len(load.failures) + len(load.answers)
    return [f"{len(load.failures)} of {num} requests failed, the first {first.question.where}: {first.reason}"]


def _difference(load: Round, warnings: list[str]) -> Counters | None:
    """vLLM's counters over the load; None where it has none. What is wrong with them goes to `warnings`."""
    if load.before is None or load.after is None or load.after.spec is None:
        return None
    try:
        earlier = load.before.spec or Counters(steps=0, drafted=0, accepted=0, by_position=(0,) * len(load.after.spec.by_position))  # fmt: skip
        return load.after.spec.since(earlier)
    except ValueError as error:
        warnings.append(f"counters: {error}")
        return None


def _row(
    load: Round, answers: Sequence[StreamedAnswer], base: Fields, category: str | None, totals: Counters | None, warnings: Sequence[str],
    width: float,
) -> Measurement:  # fmt: skip
    times, intervals = _times(answers)
    accepted, ttot = _accepted(answers, totals), _ttot(answers)
    measured: dict[str, Any] = accepted.fields | times | _load(load, answers, category)
    dataset = base.get("dataset")
    stated: dict[str, Any] = {key: value for key, value in base.items() if value is not None}
    fields: dict[str, Any] = (
        measured | stated | {"dataset": f"{dataset}/{category}" if category is not None else dataset}
    )
    fields["provenance"] = _noted(base["provenance"], load, accepted.how, warnings, category)
    intervals = intervals | dict(accepted.intervals)
    return Measurement(
        observation=Observation(**{key: value for key, value in fields.items() if value is not None}), way="live",
        category=category, intervals=intervals, survival=accepted.survival, accept_given_prefix=accepted.accept_given_prefix,
        wanted_requests=requests_for_width(intervals.get("tokens_per_step"), len(answers), width), ttot_s=ttot,
    )  # fmt: skip


def _load(load: Round, answers: Sequence[StreamedAnswer], category: str | None) -> dict[str, Any]:
    """Dials and sizes. Tokens/s are of all requests together, so of no category alone."""
    tokens = [answer.tokens for answer in answers if answer.tokens is not None]
    prompts = [answer.prompt_tokens for answer in answers if answer.prompt_tokens]
    rate = load.tokens / load.seconds if category is None and load.tokens else None
    return {
        "concurrency": load.load.concurrency, "temperature": load.load.temperature, "num_requests": len(answers),
        "output_len": float(np.mean(tokens)) if tokens and sum(tokens) else None,
        "input_len": float(np.mean(prompts)) if prompts else None, "output_tok_s": rate,
    }  # fmt: skip


# The client's clock.


def _times(answers: Sequence[StreamedAnswer]) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Means over requests: to the first token; between tokens, over tokens; and between pieces of the stream."""
    sums = np.array(
        [
            [1, answer.first_s, answer.whole_s - answer.first_s, (answer.tokens or 1) - 1, answer.chunks - 1]
            for answer in answers
        ]
    )
    ratios: dict[str, Figure] = {"ttft_s": _over(1, 0), "itl_s": _over(2, 4)}
    if all(answer.tokens is not None for answer in answers):
        ratios["tpot_s"] = _over(2, 3)
    values, intervals = {}, {}
    for name, of in ratios.items():
        value = float(of(sums.sum(0)))
        if np.isfinite(value) and value > 0:
            values[name] = value
            if (interval := figure(sums, of, "s", SOURCE)) is not None:
                intervals[name] = interval
    return values, intervals


def _ttot(answers: Sequence[StreamedAnswer]) -> Estimate | None:
    sums = np.array([[1, answer.whole_s] for answer in answers], dtype=float)
    return figure(sums, _over(1, 0), "s", SOURCE)


def _over(top: int, bottom: int) -> Figure:
    return lambda sums: divided(sums[..., top], sums[..., bottom])


# The engine's counts.


class AcceptedTokens(NamedTuple):
    """Acceptance: fields of an observation, intervals where requests tell their own counts, and how it was counted."""

    fields: dict[str, Any]
    how: str
    intervals: Mapping[str, Estimate] = {}
    survival: tuple[Estimate, ...] = ()
    accept_given_prefix: tuple[Estimate, ...] = ()


def _accepted(answers: Sequence[StreamedAnswer], totals: Counters | None) -> AcceptedTokens:
    counts = [answer.counts for answer in answers if answer.counts is not None]
    if len(counts) == len(answers) and sum(request.steps for request in counts):
        if all(request.accepted is not None and request.drafted is not None for request in counts):
            return _by_request(counts)
        return _by_tokens(answers, counts)
    if totals is not None and totals.steps:
        return _by_totals(totals)
    return AcceptedTokens({}, "acceptance not told by the server")


def _by_request(counts: Sequence[RequestCounts]) -> AcceptedTokens:
    """Each request's own counts, drawn whole."""
    places = max(len(request.by_position) for request in counts)
    padded = [[*request.by_position, *[0] * (places - len(request.by_position))] for request in counts]
    rows = [
        [request.steps, request.drafted, request.accepted, *row] for request, row in zip(counts, padded, strict=True)
    ]
    sums = np.array(rows, dtype=float)
    steps, drafted, accepted = (int(total) for total in sums[:, :3].sum(0))
    lookahead = chain_length(steps, drafted)
    positions = min(places, lookahead) if lookahead else places

    def tau(part: Array) -> Array:
        return 1 + divided(part[..., 2], part[..., 0])

    def joint(part: Array) -> Array:
        return divided(part[..., 3 : 3 + positions], part[..., :1])

    def conditional(part: Array) -> Array:
        before = np.concatenate((part[..., :1], part[..., 3 : 2 + positions]), -1)
        return divided(part[..., 3 : 3 + positions], before)

    interval = figure(sums, tau, "tokens/step", SOURCE, (1.0, 1.0 + lookahead) if lookahead else None)
    survival = figures(sums, joint, positions, "probability", SOURCE, SHARES) if positions else ()
    fields = _counted(steps, drafted, accepted, lookahead, [estimate.value for estimate in survival])
    return AcceptedTokens(
        fields, "acceptance by each request's own counts", {"tokens_per_step": interval} if interval else {}, survival,
        figures(sums, conditional, positions, "probability", SOURCE, SHARES) if positions else (),
    )  # fmt: skip


def _by_tokens(answers: Sequence[StreamedAnswer], counts: Sequence[RequestCounts]) -> AcceptedTokens:
    """Of a server that tells steps alone: its accept length, answer tokens over steps, which counts the prompt's own token too."""
    sums = np.array(
        [[request.steps, answer.tokens or 0] for request, answer in zip(counts, answers, strict=True)], dtype=float
    )
    steps, tokens = (int(total) for total in sums.sum(0))
    fields = {"steps": steps, "tokens_per_step": max(tokens / steps, 1.0), "pooling": "steps"}
    interval = figure(sums, _over(1, 0), "tokens/step", SOURCE)
    return AcceptedTokens(fields, "tokens per step by answer tokens over steps", {"tokens_per_step": interval} if interval else {})  # fmt: skip


def _by_totals(totals: Counters) -> AcceptedTokens:
    """The difference of a server's totals, which knows no requests and so no interval."""
    fields = _counted(totals.steps, totals.drafted, totals.accepted, totals.lookahead, totals.survival)
    return AcceptedTokens(fields, "acceptance by the difference of the server's totals, which give no interval")


def _counted(
    steps: int, drafted: int, accepted: int, lookahead: int | None, joint: Sequence[float]
) -> dict[str, Any]:  # fmt: skip
    return {
        "steps": steps, "drafted": drafted, "accepted": accepted, "tokens_per_step": 1 + accepted / steps, "pooling": "steps",
        "lookahead": lookahead, "survival": tuple(min(share, 1.0) for share in joint) or None,
    }  # fmt: skip


def _noted(provenance: Any, load: Round, how: str, warnings: Sequence[str], category: str | None) -> Any:
    parts = [str(load.load), f"{len(load.answers)} answers in {load.seconds:.2f} s", how]
    if load.before and load.after and (cached := grown(load.before, load.after, "cached")):
        parts.append(f"{cached:g} prompt tokens came out of the server's prefix cache")
    parts.append("each load under a cache_salt of its own" if load.salt else "the prefix cache left warm between loads")
    if category is None:
        parts += warnings
    note = "; ".join([*parts, *([provenance.note] if provenance.note else [])])
    return msgspec.structs.replace(provenance, note=note)
