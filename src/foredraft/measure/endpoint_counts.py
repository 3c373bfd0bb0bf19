"""What a serving engine says of its speculation: vLLM's counters at /metrics, and what both tell of a single response.

Forms as documented and as their sources have them, August to October 2026. vLLM: running totals by Prometheus, per-request
`metrics.speculative_decoding` where the server was started with --per-request-spec-decode-metrics. SGLang: `meta_info` of
its own API, `sglext.spec_tokens_details` of the OpenAI one.

Promises: a total that is not there is None. Refuses to know: how a server is asked.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from foredraft.measure.definitions import Counters

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([^\s]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SPEC = "vllm:spec_decode_num_"


class Sample(NamedTuple):
    """One line of a Prometheus page."""

    name: str
    labels: Mapping[str, str]
    value: float


class Totals(NamedTuple):
    """A server's running totals. `spec` None: it does not speculate, or does not say. `cached`: prompt tokens out of its prefix cache."""

    spec: Counters | None
    generated: float | None
    requests: float | None
    prompts: float | None
    cached: float | None
    running: float | None


class Spec(NamedTuple):
    """One request's speculation. `accepted` None: only steps are told. `by_position[i]`: steps that accepted more than i; () where not told."""

    steps: int
    drafted: int | None
    accepted: int | None
    by_position: tuple[int, ...] = ()


def samples(page: str) -> list[Sample]:
    """The lines of a Prometheus page that hold a number."""
    found = []
    for line in page.splitlines():
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        found.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), value))
    return found


def totals(page: str, engine: str) -> Totals:
    """The totals of a page, over all engines behind the server."""
    held = samples(page)

    def total(*names: str) -> float | None:
        values = [one.value for one in held if one.name in names]
        return sum(values) if values else None

    if engine == "sglang":
        return Totals(
            None, total("sglang:generation_tokens_total"), total("sglang:num_requests_total"),
            total("sglang:prompt_tokens_total"), total("sglang:cached_tokens_total"), total("sglang:num_running_reqs"),
        )  # fmt: skip
    return Totals(
        _counters(held), total("vllm:generation_tokens_total"), total("vllm:request_success_total"),
        total("vllm:prompt_tokens_total"), total("vllm:prefix_cache_hits_total"), total("vllm:num_requests_running"),
    )  # fmt: skip


def _counters(held: list[Sample]) -> Counters | None:
    """vLLM's, summed over engines."""

    def total(name: str) -> int | None:
        values = [one.value for one in held if one.name == f"{_SPEC}{name}_total"]
        return round(sum(values)) if values else None

    steps, drafted, accepted = total("drafts"), total("draft_tokens"), total("accepted_tokens")
    if steps is None or drafted is None or accepted is None:
        return None
    places: dict[int, float] = {}
    for one in held:
        if one.name == f"{_SPEC}accepted_tokens_per_pos_total" and one.labels.get("position", "").isdigit():
            place = int(one.labels["position"])
            places[place] = places.get(place, 0.0) + one.value
    by_position = tuple(round(places.get(i, 0.0)) for i in range(max(places, default=-1) + 1))
    return Counters(steps=steps, drafted=drafted, accepted=accepted, by_position=by_position)


def spec_of(event: Mapping[str, Any]) -> Spec | None:
    """What an event of a stream, or a whole response, says of its request's speculation; None where it says nothing."""
    held = _object(_object(event, "metrics"), "speculative_decoding")
    if held:
        return _vllm(held)
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    places = (_object(_object(event, "sglext"), "spec_tokens_details"), _object(event, "meta_info"), _object(first, "meta_info"))  # fmt: skip
    return next((_sglang(place) for place in places if place.get("spec_verify_ct")), None)


def _object(held: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = held.get(key)
    return found if isinstance(found, dict) else {}


def _vllm(held: Mapping[str, Any]) -> Spec:
    return Spec(
        int(held.get("num_spec_steps") or 0), _whole(held, "num_draft_tokens"), _whole(held, "num_accepted_draft_tokens"),
        _reached(held.get("acceptance_histogram"), _whole(held, "num_spec_tokens")),
    )  # fmt: skip


def _sglang(held: Mapping[str, Any]) -> Spec:
    """Newer and older names of the same counts."""
    accepted = _whole(held, "spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
    drafted = _whole(held, "spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
    reached = _reached(held.get("spec_correct_drafts_histogram") or held.get("spec_accept_histogram"), None)
    if accepted is None and reached:
        accepted = sum(reached)
    return Spec(int(held["spec_verify_ct"]), drafted, accepted, reached)


def _whole(held: Mapping[str, Any], *names: str) -> int | None:
    return next((int(held[name]) for name in names if isinstance(held.get(name), int | float)), None)


def _reached(histogram: Any, longest: int | None) -> tuple[int, ...]:
    """From steps by how many tokens they accepted, dense or by number, to steps that accepted more than i."""
    if isinstance(histogram, dict):
        counts = {int(key): int(value) for key, value in histogram.items()}
    elif isinstance(histogram, list):
        counts = {i: int(value) for i, value in enumerate(histogram)}
    else:
        return ()
    most = max([*counts, longest or 0], default=0)
    return tuple(sum(count for accepted, count in counts.items() if accepted > i) for i in range(most))
