"""Measuring a running server: against a small one that speaks the documented forms of vLLM and SGLang, and misbehaves on demand."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from foredraft import records
from foredraft.cli import main as cli
from foredraft.data.prompts import Question
from foredraft.engines import SERVERS
from foredraft.engines.counters import RequestCounts, samples
from foredraft.laws.fit import fit_all
from foredraft.records import Measurement, Observation
from foredraft.serving import endpoint, endpoint_wire
from foredraft.serving.endpoint import TRIAL, LoadSettings, OfferedLoad, Round, rounds, started
from foredraft.serving.endpoint_http import Address, Connections, address_of
from foredraft.serving.endpoint_rows import base_of, rows_of
from foredraft.serving.endpoint_wire import Endpoint, find_server

STEPS = ((3, 2), (3, 0), (3, 3), (3, 1))  # drafted and accepted, over and over, in every answer
MODEL = "org/model"


class Fake(ThreadingHTTPServer):
    """A server with running totals. What it is, and how it misbehaves, stands in its fields."""

    daemon_threads = True

    def __init__(self, engine: str = "vllm") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.lock, self.together = engine, threading.Lock(), 0
        self.enough = threading.Condition(self.lock)
        self.root = MODEL
        self.speculates, self.per_request, self.openai_spec, self.template = True, False, True, True
        self.broken: set[str] = set()  # words of prompts whose stream is cut off
        self.refused: set[str] = set()  # … that get an HTTP 400
        self.erring: set[str] = set()  # … whose stream ends in an error event
        self.strangers = 0  # tokens that others ask for during every answer
        self.open = self.most_open = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.drafts = self.drafted = self.accepted = self.generated = self.requests = 0
        self.by_position = [0, 0, 0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own affair."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def page(self) -> str:
        if self.engine == "sglang":
            return f"# TYPE x counter\nsglang:generation_tokens_total {self.generated}\nsglang:num_requests_total {self.requests}\n"
        lines = ["# HELP vllm:x y", f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}} {float(self.generated)}']  # fmt: skip
        finished = {"stop": 0.0, "length": float(self.requests)}
        lines += [
            f'vllm:request_success_total{{engine="0",finished_reason="{why}"}} {n}' for why, n in finished.items()
        ]
        lines += [f'vllm:num_requests_running{{engine="0"}} {float(self.open)}']
        if self.speculates:
            for name, value in (("drafts", self.drafts), ("draft_tokens", self.drafted), ("accepted_tokens", self.accepted)):  # fmt: skip
                lines.append(f'vllm:spec_decode_num_{name}_total{{engine="0",model_name="{MODEL}"}} {float(value)}')
                lines.append(f'vllm:spec_decode_num_{name}_created{{engine="0"}} 1.7e+09')
            for i, value in enumerate(self.by_position):
                lines.append(f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{i}"}} {float(value)}')  # fmt: skip
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.server
        vllm = fake.engine == "vllm"
        pages = {
            "/v1/models": {
                "object": "list",
                "data": [{"id": MODEL, "object": "model", "owned_by": fake.engine, "root": fake.root}],
            }
        }
        if vllm:
            pages["/version"] = {"version": "0.32.0"}
        else:
            pages["/server_info"] = {
                "version": "0.5.12", "model_path": MODEL, "tp_size": 2, "speculative_algorithm": "EAGLE3" if fake.speculates else None,
                "speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4,
            }  # fmt: skip
        if self.path == "/metrics":
            self.reply(200, fake.page().encode(), "text/plain; version=0.0.4")
        elif self.path in pages:
            self.reply(200, json.dumps(pages[self.path]).encode())
        else:
            self.reply(404, b'{"detail":"Not Found"}')

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        fake = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.asked.append((self.path, body))
        words = body.get("text") or body.get("prompt") or body["messages"][0]["content"]
        if words in fake.refused or (self.path.endswith("chat/completions") and not fake.template):
            message = "no chat template" if words not in fake.refused else "the prompt is too long"
            self.reply(
                400, json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode()
            )
            return
        with fake.lock:
            fake.open += 1
            fake.most_open = max(fake.most_open, fake.open)
            fake.enough.notify_all()
            if words != TRIAL:  # answers when so many have asked
                fake.enough.wait_for(lambda: fake.most_open >= fake.together, timeout=120)
        try:
            self.stream(words, body)
        finally:
            with fake.lock:
                fake.open -= 1

    def stream(self, words: str, body: dict[str, Any]) -> None:
        fake, native = self.server, self.path == "/generate"
        most = body["sampling_params"]["max_new_tokens"] if native else body["max_tokens"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        counted, spec = self.decode(words, most)
        text = ""
        if self.path.endswith("chat/completions"):
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        done = 0
        for i, num in enumerate(counted):
            done += num
            piece = "word " * num
            text += piece
            if i == 1 and words in fake.broken:
                self.close_connection = True
                return
            if i == 1 and words in fake.erring:
                self.event({"error": {"message": "out of memory", "code": 500}})
                break
            if native:
                last = {"completion_tokens": done, "prompt_tokens": 5, "id": "x"}
                end = done == sum(counted)
                self.event({"text": text, "meta_info": last | (spec_meta(spec) if end and fake.speculates else {})})
            elif "messages" in body:
                self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            else:
                self.event({"choices": [{"index": 0, "text": piece}]})
        if not native:
            self.closing(body, done, spec)
        self.raw(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def closing(self, body: dict[str, Any], done: int, spec: dict[str, int]) -> None:
        fake = self.server
        self.event({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]})
        if fake.engine == "sglang" and fake.openai_spec and fake.speculates and body.get("return_spec_tokens_details"):
            self.event({"choices": [], "sglext": {"spec_tokens_details": spec_meta(spec)}})
        usage: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": done}}
        if fake.engine == "vllm" and fake.per_request:
            usage["metrics"] = {"speculative_decoding": {
                "num_spec_steps": spec["steps"], "num_draft_tokens": spec["drafted"], "num_accepted_draft_tokens": spec["accepted"],
                "num_spec_tokens": 3, "acceptance_histogram": histogram(spec["steps"]), "mean_acceptance_length": 0, "draft_acceptance_rate": 0,
            }}  # fmt: skip
        if body["stream_options"]["include_usage"]:
            self.event(usage)

    def decode(self, words: str, most: int) -> tuple[list[int], dict[str, int]]:
        """Tokens of each piece: the prompt's own, then those of each step; the totals grow as an engine's would."""
        fake, counted = self.server, [1]
        steps = 3 + len(words) % 3 if most > 8 else 1
        spec = {"steps": steps, "drafted": 0, "accepted": 0}
        for i in range(steps):
            drafted, accepted = STEPS[i % len(STEPS)]
            counted.append(accepted + 1)
            spec["drafted"] += drafted
            spec["accepted"] += accepted
        with fake.lock:
            fake.generated += sum(counted) + fake.strangers
            fake.requests += 1 + bool(fake.strangers)
            if fake.speculates:
                fake.drafts += steps
                fake.drafted += spec["drafted"]
                fake.accepted += spec["accepted"]
                for i in range(3):
                    fake.by_position[i] += sum(STEPS[j % len(STEPS)][1] > i for j in range(steps))
        return counted, spec

    def event(self, payload: dict[str, Any]) -> None:
        self.raw(b"data: " + json.dumps(payload).encode() + b"\n\n")

    def raw(self, data: bytes) -> None:
        """In two chunks, so that a line does not end where a chunk does."""
        for part in (data[:7], data[7:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.flush()


def histogram(steps: int) -> list[int]:
    accepted_by_step = [STEPS[i % len(STEPS)][1] for i in range(steps)]
    return [accepted_by_step.count(i) for i in range(4)]


def spec_meta(spec: dict[str, int]) -> dict[str, Any]:
    return {
        "spec_verify_ct": spec["steps"], "spec_num_correct_drafts": spec["accepted"], "spec_num_proposed_drafts": spec["drafted"],
        "spec_correct_drafts_histogram": histogram(spec["steps"]), "spec_accept_rate": 0.5, "spec_accept_length": 2.5,
    }  # fmt: skip


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


QUESTIONS = [Question(f"p:{i}", "x" * (i + 1), "even" if i % 2 == 0 else "odd", "raw") for i in range(12)]
TAU = 1 + sum(sum(STEPS[j % 4][1] for j in range(3 + (i + 1) % 3)) for i in range(12)) / sum(3 + (i + 1) % 3 for i in range(12))  # fmt: skip


def load(fake: Fake, questions: list[Question] = QUESTIONS, **settings: Any) -> list[Round]:
    async def run() -> list[Round]:
        fields: dict[str, Any] = {"max_tokens": 64} | settings
        load_settings = LoadSettings(**fields)
        async with started(address_of(fake.url), questions, load_settings) as running:
            return [round async for round in rounds(running, load_settings)]

    return asyncio.run(run())


def server_of(fake: Fake) -> Endpoint:
    async def find() -> Endpoint:
        async with Connections(address_of(fake.url)) as connections:
            return await find_server(connections)

    return asyncio.run(find())


def rows(fake: Fake, measured_round: Round, **fields: Any) -> list[Measurement]:
    return rows_of(measured_round, base_of(server_of(fake), measured_round, {"dataset": "set", **fields}), 0.1).rows


def test_vllms_totals_by_difference(fake: Fake) -> None:
    """Between two readings, whatever came before; without an interval, since totals know no requests."""
    fake.drafts, fake.drafted, fake.accepted, fake.by_position = 1000, 3000, 9, [9, 0, 0]
    fake.together = 4
    (measured_round,) = load(fake, concurrency=(4,))
    measured_rows = rows(fake, measured_round, method="eagle3", draft=["head"])
    (row,) = measured_rows
    observation = row.observation
    assert observation.tokens_per_step == pytest.approx(TAU)
    steps = [STEPS[j % 4][1] for i in range(12) for j in range(3 + (i + 1) % 3)]
    assert observation.survival == pytest.approx(
        [sum(accepted > i for accepted in steps) / len(steps) for i in range(3)]
    )
    assert (observation.steps, observation.accepted, observation.drafted) == (len(steps), sum(steps), 3 * len(steps))
    assert (observation.lookahead, observation.concurrency, observation.num_requests, observation.engine) == (
        3,
        4,
        12,
        "vllm",
    )
    assert observation.provenance.versions["vllm"] == "0.32.0"
    assert observation.provenance.source == "foredraft measure --endpoint"
    assert "tokens_per_step" not in row.intervals
    assert row.survival == ()
    assert fake.most_open == 4


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_loads_share_no_prefix_cache_unless_it_is_to_be_warm(fake: Fake, engine: str) -> None:
    """Each load's requests bear a salt that no other load has; SGLang's own API calls it extra_key."""
    fake.engine, fake.openai_spec = engine, engine == "vllm"

    def salts(**settings: Any) -> list[set[Any]]:
        fake.asked.clear()
        measured = load(fake, concurrency=(1, 2), **settings)
        bodies = [body for _, body in fake.asked if (body.get("prompt") or body.get("text")) != TRIAL]
        keys = [body.get("cache_salt", body.get("extra_key")) for body in bodies]
        notes = [rows(fake, each)[0].observation.provenance.note or "" for each in measured]
        words = "cache_salt of its own" if not settings else "left warm"
        assert all(words in note for note in notes)
        return [set(keys[:12]), set(keys[12:])]

    first, second = salts()
    assert (len(first), len(second), len(first | second)) == (1, 1, 2)
    assert None not in first | second
    assert salts(prefix_cache="warm") == [{None}, {None}]


def test_later_turns_of_chats_stand_behind_the_servers_own_answers(fake: Fake) -> None:
    """A question each, under the load as the others are; the system and tools go with what they stand beside."""
    system, tools = {"role": "system", "content": "S"}, ({"type": "function", "function": {"name": "f"}},)
    questions = [
        Question("p:1", "Who?", "qa", "chat", later=("And then?", "And?")), Question("p:2", "x", "qa", "raw", later=("no chat",)),
        Question("p:3", "y", "qa", "chat", before=(system,), tools=tools),
    ]  # fmt: skip
    (measured_round,) = load(fake, questions, concurrency=(5,))
    assert [answer.question.where for answer in measured_round.answers] == [
        "p:1",
        "p:2",
        "p:3",
        "p:1, turn 2",
        "p:1, turn 3",
    ]
    third = next(body for _, body in fake.asked[::-1] if body.get("messages", [{}])[-1].get("content") == "And?")
    assert [turn["role"] for turn in third["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert {turn["content"] for turn in third["messages"][1::2]} == {"".join("word " * num for num in (1, 3, 1, 2, 4))}
    beside = next(body for _, body in fake.asked[::-1] if body.get("tools"))
    assert beside["messages"] == [system, {"role": "user", "content": "y"}]
    with pytest.raises(ValueError, match="concurrency 6 needs as many prompts, got 5"):
        load(fake, questions, concurrency=(6,))
    with pytest.raises(ValueError, match="p:3: a system or tools, which --chat never would leave out"):
        load(fake, questions[2:], chat="never")


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/models/SmolLM2-135M", "SmolLM2-135M"),
        ("build/models/SmolLM2-135M", "SmolLM2-135M"),
        ("org/SmolLM2-135M", "org/SmolLM2-135M"),
    ],
)
def test_a_row_names_the_model_behind_a_servers_name_and_what_the_user_says(fake: Fake, root: str, name: str) -> None:
    fake.root = root
    (measured_round,) = load(fake, concurrency=(1,))
    (row,) = rows(fake, measured_round, machine="cpu", dtype="bfloat16", devices=2)
    observation = row.observation
    assert (observation.target, observation.machine, observation.dtype, observation.tensor_parallel) == (
        name, "cpu", "bfloat16", 2,
    )  # fmt: skip
    assert (observation.provenance.note or "").count(f"served as {MODEL}") == 1


def test_requests_that_tell_their_own_counts_give_intervals_and_categories(fake: Fake) -> None:
    fake.per_request = True
    (measured_round,) = load(fake, concurrency=(2,))
    overall, *parts = rows(fake, measured_round)
    assert overall.observation.tokens_per_step == pytest.approx(TAU)
    interval = overall.intervals["tokens_per_step"]
    assert interval.low < TAU < interval.high
    assert [interval.value for interval in overall.survival] == pytest.approx(list(overall.observation.survival or ()))
    assert [row.category for row in parts] == ["even", "odd"]
    assert sum(row.observation.steps or 0 for row in parts) == overall.observation.steps
    assert {row.observation.dataset for row in parts} == {"set/even", "set/odd"}
    assert all(row.observation.output_tok_s is None for row in parts)


@pytest.mark.parametrize("openai", [True, False])
def test_sglang_tells_each_response(fake: Fake, openai: bool) -> None:
    """Through the OpenAI API where the server can, else through its own."""
    fake.engine, fake.openai_spec = "sglang", openai
    (measured_round,) = load(fake, concurrency=(3,))
    (row, *_) = rows(fake, measured_round, draft=["head"])
    observation = row.observation
    assert observation.tokens_per_step == pytest.approx(TAU)
    assert row.intervals["tokens_per_step"].low < TAU
    setting = (
        observation.method,
        observation.lookahead,
        observation.topk,
        observation.tree_nodes,
        observation.tensor_parallel,
    )
    assert setting == ("eagle3", 3, 1, 3, 2)
    assert observation.provenance.versions["sglang"] == "0.5.12"
    assert fake.asked[-1][0] == ("/v1/completions" if openai else "/generate")
    steps = [3 + (i + 1) % 3 for i in range(12)]
    assert observation.output_len == pytest.approx(
        sum(1 + num + sum(STEPS[j % 4][1] for j in range(num)) for num in steps) / 12
    )


class Clock:
    """A second passes each time that it is read, and at no other."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def test_times_are_the_clients_own(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads its clock when it asks and at every event, of which the last two of an answer bring no text."""
    clock = Clock()
    for room in (endpoint, endpoint_wire):
        monkeypatch.setattr(room, "time", clock)
    (measured_round,) = load(fake, QUESTIONS[:4], concurrency=(1,))
    (row, *_) = rows(fake, measured_round)
    observation = row.observation
    pieces = [1 + 3 + (i + 1) % 3 for i in range(4)]
    tokens = measured_round.tokens
    assert tokens is not None
    assert row.ttot_s is not None
    assert (observation.ttft_s, observation.itl_s) == pytest.approx((1.0, 1.0))
    assert observation.tpot_s == pytest.approx((sum(pieces) - 4) / (tokens - 4))
    assert row.ttot_s.value == pytest.approx(sum(pieces) / 4)
    assert measured_round.seconds == pytest.approx(sum(1 + num + 2 for num in pieces) + 1)
    assert observation.output_tok_s == pytest.approx(tokens / measured_round.seconds)
    assert (row.intervals["ttft_s"].low, row.intervals["ttft_s"].high) == pytest.approx((1.0, 1.0))


def sent(fake: Fake, monkeypatch: pytest.MonkeyPatch, rate: float, seed: int = 1) -> tuple[Round, list[float]]:
    """A load at a rate, and the seconds after which each request was to be sent; nobody sleeps."""
    waits: list[float] = []
    at_once = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await at_once(0)

    with monkeypatch.context() as patch:
        patch.setattr("foredraft.serving.endpoint.asyncio.sleep", noted)
        (measured_round,) = load(fake, concurrency=(), rates=(rate,), seed=seed)
    return measured_round, [wait for wait in waits if wait != endpoint.STEP_S]


def test_a_request_rate_sends_at_its_own_times(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """At seeded random times of the rate asked for; the server answers none before all twelve are open, so no answer is waited
    for.
    """
    fake.together = 12
    measured_round, waits = sent(fake, monkeypatch, 40.0)
    assert len(measured_round.answers) == fake.most_open == 12
    gaps = [late - early for early, late in pairwise(waits)]
    assert len(waits) == 12
    assert waits[0] == 0
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 40, rel=0.5)  # of this seed: eleven of mean 1/40
    assert max(gaps) > 3 * min(gaps) > 0
    assert sent(fake, monkeypatch, 80.0)[1] == pytest.approx([wait / 2 for wait in waits])
    assert sent(fake, monkeypatch, 40.0)[1] == waits
    assert sent(fake, monkeypatch, 40.0, seed=2)[1] != waits
    (row, *_) = rows(fake, measured_round)
    assert row.observation.concurrency is None
    assert "40 requests/s" in (row.observation.provenance.note or "")


def test_a_server_without_speculation_is_measured_as_plain(fake: Fake) -> None:
    fake.speculates = False
    (measured_round,) = load(fake, concurrency=(2,))
    (row, *_) = rows(fake, measured_round)
    observation = row.observation
    assert (observation.method, observation.lookahead, observation.tokens_per_step, observation.survival) == (
        "none",
        0,
        None,
        None,
    )
    assert observation.output_tok_s


def test_other_traffic_is_told_of(fake: Fake) -> None:
    (quiet,) = load(fake)
    assert rows_of(quiet, base_of_vllm(fake, quiet), 0.1).warnings == []
    fake.strangers = 5
    (busy,) = load(fake)
    warnings = rows_of(busy, base_of_vllm(fake, busy), 0.1).warnings
    assert any(re.search(r"generated \d+ tokens and our answers have \d+: other traffic is mixed in", warning) for warning in warnings)  # fmt: skip
    assert any("finished 24 requests and 12 were ours" in warning for warning in warnings)


def base_of_vllm(fake: Fake, measured_round: Round) -> dict[str, Any]:
    return base_of(server_of(fake), measured_round, {"dataset": "set"})


def test_a_schedule_that_changes_under_way_has_no_one_lookahead(fake: Fake) -> None:
    (measured_round,) = load(fake)
    assert measured_round.after is not None
    assert measured_round.after.spec is not None
    changed = measured_round.after.spec.__class__(
        steps=measured_round.after.spec.steps, drafted=measured_round.after.spec.drafted - 20, accepted=measured_round.after.spec.accepted,
        by_position=measured_round.after.spec.by_position,
    )  # fmt: skip
    (row, *_) = rows(fake, measured_round._replace(after=measured_round.after._replace(spec=changed)))
    assert row.observation.lookahead is None
    assert row.observation.tokens_per_step == pytest.approx(TAU)


# Failures: one clear line each, and what was answered is kept.


def test_failures_are_counted_named_and_cost_nothing_else(fake: Fake) -> None:
    fake.broken, fake.refused, fake.erring = {"x" * 3}, {"x" * 5}, {"x" * 7}
    (measured_round,) = load(fake, concurrency=(2,))
    why = {failure.question.where: failure.reason for failure in measured_round.failures}
    assert set(why) == {"p:2", "p:4", "p:6"}
    assert "broke off" in why["p:2"]
    assert "HTTP 400: the prompt is too long" in why["p:4"]
    assert "the server says: out of memory" in why["p:6"]
    result = rows_of(measured_round, base_of_vllm(fake, measured_round), 0.1)
    assert result.rows[0].observation.num_requests == 9
    assert any("3 of 12 requests failed, the first p:2" in warning for warning in result.warnings)
    assert "3 of 12 requests failed" in (result.rows[0].observation.provenance.note or "")


def test_a_server_that_answers_nothing_is_an_error(fake: Fake) -> None:
    fake.refused = {question.words for question in QUESTIONS}
    (measured_round,) = load(fake)
    with pytest.raises(ValueError, match=r"none of 12 requests was answered: .*the prompt is too long"):
        rows_of(measured_round, base_of_vllm(fake, measured_round), 0.1)


def test_a_prompt_without_a_format_is_a_chat_where_the_server_has_a_template(fake: Fake) -> None:
    plain = [question._replace(format=None) for question in QUESTIONS]
    load(fake, plain)
    assert fake.asked[-1][0] == "/v1/chat/completions"
    assert fake.asked[-1][1]["messages"] == [{"role": "user", "content": "x" * 12}]
    fake.template = False
    load(fake, plain)
    assert fake.asked[-1][0] == "/v1/completions"
    with pytest.raises(ValueError, match="HTTP 400: no chat template"):
        load(fake, plain, chat="always")


def test_what_cannot_be_asked_is_refused_before_the_load(fake: Fake) -> None:
    with pytest.raises(ValueError, match="concurrency 13 needs as many prompts, got 12"):
        load(fake, concurrency=(13,))
    faults: list[dict[str, Any]] = [
        {"concurrency": (0,)}, {"concurrency": ()}, {"rates": (-1.0,)}, {"max_tokens": 0}, {"chat": "maybe"},
    ]  # fmt: skip
    for wrong in faults:
        with pytest.raises(ValueError, match=r"must|at least"):
            LoadSettings(**wrong)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999999"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        address_of(url)


def test_an_address_may_end_in_v1_and_have_a_prefix() -> None:
    assert address_of("localhost:8000/v1").prefix == ""
    assert str(address_of("https://host/api/v1")) == "https://host:443/api"


# Forms, as engines write them.


def test_a_prometheus_page_is_read_line_by_line() -> None:
    page = '# HELP a b\na{x="1",y="q\\"}"} 2.5\nb 1e3 1700000000\nc{} NaN\nbroken\n'
    assert [(s.name, s.labels, s.value) for s in samples(page)[:2]] == [("a", {"x": "1", "y": 'q\\"}'}, 2.5), ("b", {}, 1e3)]  # fmt: skip
    counts = {"drafts": 2.0, "draft_tokens": 6.0, "accepted_tokens": 3.0}
    lines = [f'vllm:spec_decode_num_{name}_total{{engine="{e}"}} {n}' for e in (0, 1) for name, n in counts.items()]
    two = "\n".join(lines)
    spec = SERVERS["vllm"].totals(two).spec
    assert spec is not None
    assert (spec.steps, spec.drafted, spec.accepted) == (4, 12, 6)
    assert SERVERS["vllm"].totals("").spec is None


def test_each_form_of_a_response_gives_its_counts() -> None:
    counts = {"num_spec_steps": 5, "num_draft_tokens": 15, "num_accepted_draft_tokens": 4, "num_spec_tokens": 3}
    sparse = counts | {"acceptance_histogram": {"0": 2, "1": 2, "2": 1}}
    vllm, sglang = SERVERS["vllm"].request_counts, SERVERS["sglang"].request_counts
    assert vllm({"metrics": {"speculative_decoding": sparse}}) == RequestCounts(5, 15, 4, (3, 1, 0))
    older = {"spec_accept_token_num": 4, "spec_draft_token_num": 15, "spec_accept_histogram": [2, 2, 1]}
    assert sglang({"meta_info": {"spec_verify_ct": 5, **older}}) == RequestCounts(5, 15, 4, (3, 1))
    choice = {"choices": [{"meta_info": {"spec_verify_ct": 7}}]}
    assert sglang(choice) == RequestCounts(7, None, None)
    assert vllm({"choices": [{"text": "x"}], "usage": None}) is None
    assert sglang({"choices": [{"text": "x"}], "usage": None}) is None


def test_an_sglang_that_tells_steps_alone_gives_its_accept_length(fake: Fake) -> None:
    (measured_round,) = load(fake)
    bare = [answer._replace(counts=RequestCounts(4, None, None)) for answer in measured_round.answers]
    (row, *_) = rows(fake, measured_round._replace(answers=bare))
    tokens = measured_round.tokens
    assert tokens is not None
    assert row.observation.tokens_per_step == pytest.approx(tokens / 48)
    assert row.observation.accepted is None


# The command line.


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["foredraft", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps({"turns": [question.words], "category": question.category, "format": "raw"}) for question in QUESTIONS]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


def test_the_verb_writes_observations_that_laws_can_be_fitted_to(
    fake: Fake, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    arguments = ["measure", "--endpoint", f"{fake.url}/v1", "--prompts", str(prompts), "--out", str(out), "--concurrency", "1,4"]  # fmt: skip
    assert run_cli(monkeypatch, *arguments, "--method", "eagle3", "--draft", "head", "--machine", "H100") == 0
    rows = records.read_lines(Observation, out / "observations.jsonl")
    assert [(row.concurrency, row.draft, row.method, row.machine, row.target) for row in rows] == [
        (1, "head", "eagle3", "H100", MODEL), (4, "head", "eagle3", "H100", MODEL)
    ]  # fmt: skip
    assert "concurrency 4" in capsys.readouterr().out
    fit_all(rows, draws=4)
    assert records.read_lines(Measurement, out / "measurements.jsonl")[0].way == "live"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "other"], "serves no model 'other', but org/model"),
        (["--chat", "always"], "HTTP 400: no chat template"),
        (["--concurrency", "99"], "needs as many prompts"),
        (["--draft", "a", "--draft", "b"], "a server has one"),
    ],
)
def test_the_verb_fails_in_one_line(
    fake: Fake,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: list[str],
    message: str,
) -> None:
    fake.template = False
    arguments = ["measure", "--endpoint", fake.url, "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert run_cli(monkeypatch, *arguments, *more) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ")
    assert message in error


def test_no_server_at_all(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    server = Fake()
    url = server.url
    server.server_close()
    arguments = ["measure", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert run_cli(monkeypatch, *arguments, "--endpoint", url) == 2
    assert "no server answers" in capsys.readouterr().err.splitlines()[0]
    assert run_cli(monkeypatch, *arguments) == 2
    assert "TARGET is missing" in capsys.readouterr().err


def test_rows_of_the_first_load_survive_a_server_that_dies_in_the_second(
    fake: Fake, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answered = Handler.stream

    def dying(self: Handler, words: str, body: dict[str, Any]) -> None:
        if len(self.server.asked) > 13:  # a trial and the first load
            self.server.refused = {question.words for question in QUESTIONS}
            self.close_connection = True
            return
        answered(self, words, body)

    monkeypatch.setattr(Handler, "stream", dying)
    out = tmp_path / "out"
    arguments = [
        "measure",
        "--endpoint",
        fake.url,
        "--prompts",
        str(prompts),
        "--out",
        str(out),
        "--concurrency",
        "1,2",
    ]
    assert run_cli(monkeypatch, *arguments) == 2
    assert "none of 12 requests was answered" in capsys.readouterr().err
    assert [row.concurrency for row in records.read_lines(Observation, out / "observations.jsonl")] == [1]


def test_a_folder_that_is_served_by_its_path_is_named_as_our_own_runs_name_it() -> None:
    """vLLM names a local model by its path; rows of one target must agree. A name on the Hub stays whole."""
    measured_round = Round(OfferedLoad(0.0, 1), [], [], 1.0, None, None)
    for model, target in (
        ("/models/org/tales", "tales"),
        ("/runs/small/final", "small/final"),
        ("org/tales", "org/tales"),
    ):
        server = Endpoint(Connections(address_of("http://localhost")), SERVERS["vllm"], model)
        fields = base_of(server, measured_round, {"draft_layers": 2})
        assert (fields["target"], fields["draft_layers"]) == (target, 2)


# The client, against servers that mean no good.


def answered(pieces: list[bytes], *, then: str = "close", path: str = "/x", timeout_s: float = 60.0) -> Any:
    """What the client makes of a server that sends these bytes, and then closes, waits or repeats the last for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
            while then == "repeat":
                writer.write(pieces[-1])
                await writer.drain()
            if then == "wait":
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def ask() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=timeout_s)
        async with server, Connections(address) as connections:
            if path != "/events":
                return await connections.get_json(path)
            async with connections.ask(path) as reply:
                return [event async for event in reply.events()]

    return asyncio.run(ask())


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HOSTILE: dict[str, tuple[list[bytes], bool, str, str]] = {  # name: bytes, for ever, path, words of the error
    "a redirect": ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"], False, "/x", "HTTP 302"),
    "a body without end": ([OK + b"\r\n", b"x" * 2**20], True, "/x", "longer than"),
    "a line without end": ([OK + b"\r\ndata: ", b"x" * 2**20], True, "/events", "line of the answer is longer"),
    "headers without end": ([OK, b"A: b\r\n" * 4096], True, "/x", "no HTTP server"),
    "an error without end": ([b"HTTP/1.1 500 X\r\n\r\n", b"no " * 2**16], True, "/x", "HTTP 500: no no"),
    "a length that is none": ([OK + b"Content-Length: abc\r\n\r\nxx"], False, "/x", "no HTTP server"),
    "another protocol": ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], False, "/x", "no HTTP server"),
    "silence and the end": ([b""], False, "/x", "without an answer"),
    "an answer cut short": ([OK + b"Content-Length: 10\r\n\r\n{}"], False, "/x", "broke off"),
    "a chunk cut short": ([CHUNKED + b"ff\r\ndata: {}"], False, "/events", "broke off"),
    "a stream without [DONE]": ([OK + b"\r\ndata: {}\n\n"], False, "/events", r"without \[DONE\]"),
    "an event that is no JSON": ([OK + b"\r\ndata: {\n\n"], False, "/events", "no JSON"),
    "JSON too deep": ([OK + b"\r\n" + b"[" * 10**5], False, "/x", "no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_line_about_the_server(name: str) -> None:
    pieces, forever, path, words = HOSTILE[name]
    with pytest.raises(ValueError, match=words) as error:
        answered(pieces, then="repeat" if forever else "close", path=path)
    assert str(error.value).startswith("http://127.0.0.1:")
    assert "\n" not in str(error.value)


def test_a_server_that_falls_silent_is_given_up() -> None:
    with pytest.raises(ValueError, match=r"nothing came for 0.1 s"):
        answered([OK + b"Content-Length: 10\r\n\r\n"], then="wait", timeout_s=0.1)


def test_connections_are_opened_before_the_load_and_serve_all_of_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two connections for two clients and twelve questions; each request is timed from when it goes out."""
    opened: list[int] = []
    setup = Handler.setup

    def counted(self: Handler) -> None:
        opened.append(len(self.server.asked))
        setup(self)

    monkeypatch.setattr(Handler, "setup", counted)
    (measured_round,) = load(fake, concurrency=(2,))
    assert len(measured_round.answers) == 12
    assert len(opened) == 2
    assert max(opened) <= 1, "both before the load's own questions, behind at most the trial"
