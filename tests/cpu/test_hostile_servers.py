"""Servers that drip, flood, lie and break off: `measure --endpoint` ends in a line or in rows, in bounded time and memory."""

import asyncio
import gzip
import json
import re
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foredraft.data.sources import Skips
from foredraft.records import Measurement
from foredraft.serving import endpoint, endpoint_http
from foredraft.serving.endpoint import LoadSettings
from foredraft.serving.endpoint_http import address_of
from foredraft.serving.served import measure_server, server_subject_of

TIMEOUT_S, SLOWEST_S, MEMORY_KB = 0.3, 60.0, 2**17
OK, TEXT = b"HTTP/1.1 200 OK\r\n", {"choices": [{"text": "hi", "delta": {"content": "hi"}}]}
USAGE = {"usage": {"completion_tokens": 2, "prompt_tokens": 3}}
COUNTERS = "vllm:spec_decode_num_drafts_total {0}\nvllm:spec_decode_num_draft_tokens_total {1}\nvllm:spec_decode_num_accepted_tokens_total {2}\n"
Reply = bytes | Callable[[], AsyncIterator[bytes]]


def whole(body: bytes | str | Any, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    body = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return b"HTTP/1.1 " + status + b"\r\n" + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def stream(*events: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    lines = (event if isinstance(event, bytes) else json.dumps(event).encode() for event in events)
    return whole(b"".join(b"data: " + line + b"\n\n" for line in lines) + end)


def spec(**counts: Any) -> bytes:
    return stream(TEXT | {"metrics": {"speculative_decoding": {"num_spec_steps": 1} | counts}})


def flood(begin: bytes, piece: bytes, pause_s: float = 0.0) -> Callable[[], AsyncIterator[bytes]]:
    """A beginning, and then a piece again and again, until the client has had enough."""

    async def pieces() -> AsyncIterator[bytes]:
        yield begin
        while True:
            yield piece
            await asyncio.sleep(pause_s)

    return pieces


MODELS: dict[str, Reply] = {
    "endless": flood(OK + b"\r\n", b"x" * 2**20),
    "negative length": flood(OK + b"Content-Length: -5\r\n\r\n", b"x" * 2**20),
    "huge chunk": flood(OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffff\r\n", b"x" * 2**20),
    "no chunk": whole(b"zz\r\n", more=b"Transfer-Encoding: chunked\r\n"),
    "endless headers": flood(OK, b"A" * 50 + b": b\r\n"),
    "a header without end": flood(OK + b"X: ", b"y" * 2**16),
    "slow drip": flood(OK + b"Content-Length: 100000\r\n\r\n", b"x", 0.05),
    "a drip of headers": flood(OK, b"X: y\r\n", 0.05),
    "nothing": flood(b"", b"", 0.05),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "status of 5,000 digits": b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n",
    "elsewhere": whole(b"", b"302 Found", b"Location: http://192.0.2.1/evil\r\n"),
    "round about": whole(b"", b"307 Temporary Redirect", b"Location: /v1/models\r\n"),
    "deep": whole(b"[" * 100_000),
    "no UTF-8": whole(b"\xff\xfe\x80"),
    "a page": whole(b"<html>hi</html>", more=b"Content-Type: text/html\r\n"),
    "a bomb": whole(gzip.compress(b"\0" * 2**24), more=b"Content-Encoding: gzip\r\n"),
    "a list": whole(b"[]"),
    "data a number": whole({"data": 5}),
    "an id of 5,000 digits": whole(b'{"data":[{"id":' + b"9" * 5000 + b"}]}"),
    "an id NaN": whole(b'{"data":[{"id":NaN}]}'),
    "escapes": whole({"error": {"message": "\x1b]0;owned\x07\x1b[2Jboo"}}, b"500 X"),
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "closed": b"",
}  # fmt: skip
ANSWERS: dict[str, Reply] = {
    "endless": flood(OK + b"\r\n", b'data: {"choices":[{"text":"a"}]}\n\n' * 200),
    "endless without text": flood(OK + b"\r\n", b'data: {"choices":[]}\n\n' * 2000),
    "slow without text": flood(OK + b"\r\n", b'data: {"choices":[]}\n\n', 0.05),
    "keeping alive": flood(OK + b"\r\n", b": still here\n", 0.05),
    "a line without end": flood(OK + b"\r\ndata: ", b"x" * 2**16),
    "deep": stream(b"[" * 100_000),
    "half": stream(b'{"choi'),
    "no UTF-8": stream(b"\xff\xfe"),
    "choices a number": stream({"choices": 5}),
    "choices words": stream({"choices": ["a"]}),
    "delta a word": stream({"choices": [{"delta": "abc"}]}),
    "no text": stream({}),
    "cut": stream(TEXT, end=b""),
    "more than asked for": stream(*[TEXT] * 40, USAGE),
    "counts more than asked for": stream(TEXT | {"usage": {"completion_tokens": 10**30, "prompt_tokens": 3}}),
    "counts less than nothing": stream(TEXT | {"usage": {"completion_tokens": -5, "prompt_tokens": -1}}),
    "counts NaN": stream(b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":NaN}}'),
    "steps infinite": stream(b'{"choices":[{"text":"a"}],"metrics":{"speculative_decoding":{"num_spec_steps":Infinity}}}'),
    "steps a word": spec(num_spec_steps="x"),
    "a histogram of nothing": spec(acceptance_histogram={"0": None}),
    "a histogram beyond memory": spec(acceptance_histogram={"100000000000": 1}),
    "tokens beyond memory": spec(num_spec_tokens=10**12, acceptance_histogram=[1]),
    "an error with escapes": stream({"error": {"message": "\x1b]0;owned\x07\x1b[31mred"}}),
    "refused": whole({"error": {"message": "no\n\nwords"}}, b"400 Bad Request"),
    "a bomb": whole(gzip.compress(b"\0" * 2**24), more=b"Content-Encoding: gzip\r\n"),
}  # fmt: skip
PAGES: dict[str, Reply] = {  # of counters; what is wrong with them is said, or they are left out
    "infinite": whole(COUNTERS.format("Inf", 1, 1)),
    "NaN": whole(COUNTERS.format("NaN", 1, 1)),
    "negative": whole(COUNTERS.format(-5, -1, -1)),
    "more accepted than drafted": whole(COUNTERS.format(1, 1, 5)),
    "a position beyond memory": whole(
        COUNTERS.format(1, 1, 1) + 'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="99999999999"} 1\n'
    ),
    "a label without end": whole("a{" + 'b="\\\\' * 20_000 + "\n"),
    "20,000 counters": whole("".join(f"m{i} {i}\n" for i in range(20_000))),
    "endless": flood(OK + b"\r\n", b"a 1\n" * 2**16),
    "slow drip": flood(OK + b"Content-Length: 100000\r\n\r\n", b"a", 0.05),
}
GOOD = {
    "models": whole({"data": [{"id": "m", "owned_by": "vllm"}]}),
    "metrics": whole(b"{}", b"404 N"),
    "answer": stream(TEXT | USAGE),
}
CASES = (
    [("models", name) for name in MODELS]
    + [("answer", name) for name in ANSWERS]
    + [("metrics", name) for name in PAGES]
)
REPLIES = {"models": MODELS, "answer": ANSWERS, "metrics": PAGES}


class Hostile:
    """A server whose paths begin with what is wrong with it: /models/slow%20drip/v1/…"""

    def __init__(self) -> None:
        self.ready, self.page, self.port = threading.Event(), 0, 0
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        assert self.ready.wait(10)

    async def serve(self) -> None:
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        self.port, self.stop = server.sockets[0].getsockname()[1], asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.ready.set()
        await self.stop.wait()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            sound = True
            while sound:
                head = await reader.readuntil(b"\r\n\r\n")
                if length := re.search(
                    rb"(?i)content-length: *(\d+)", head
                ):  # what is not read would reset the connection
                    await reader.readexactly(int(length[1]))
                _, what, index, *rest = head.split()[1].decode().split("/")
                asked = {"v1/models": "models", "metrics": "metrics"}.get(
                    "/".join(rest), "answer" if rest[0] == "v1" else "info"
                )
                reply, sound = self.reply(what, int(index), asked), what != asked
                if isinstance(reply, bytes):
                    writer.write(reply)
                    await writer.drain()
                else:
                    async for piece in reply():
                        writer.write(piece)
                        await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def reply(self, what: str, index: int, asked: str) -> Reply:
        if asked == "info":
            return whole(b"{}", b"404 N")
        if what == "falling" and asked == "metrics":
            self.page -= 10
            return whole(COUNTERS.format(1000 + self.page, 1000 + self.page, 500))
        return list(REPLIES[what].values())[index] if what == asked else GOOD[asked]


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.loop.call_soon_threadsafe(hostile.stop.set)


class Ended(NamedTuple):
    """What came of a measurement: rows and warnings, or an error in one line."""

    rows: list[Measurement]
    warnings: list[str]
    error: str | None = None


@pytest.fixture
def measured(server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The server that behaves so, measured as `measure --endpoint` does, with bounds as much lower as its time is."""
    for name, value in (("CONNECT_S", 0.3), ("BODY_LIMIT", 2**22), ("STREAM_LIMIT", 2**22), ("LINE_LIMIT", 2**18)):
        monkeypatch.setattr(endpoint_http, name, value)
    monkeypatch.setattr(endpoint, "SETTLE_S", 0.2)
    (tmp_path / "prompts.txt").write_text("hello there\n")

    def run(what: str, index: int = 0, timeout_s: float = TIMEOUT_S) -> Ended:
        warnings: list[str] = []
        settings = LoadSettings(max_tokens=4)
        address = address_of(f"http://127.0.0.1:{server.port}/{what}/{index}", timeout_s=timeout_s)
        try:
            subject = server_subject_of(address, tmp_path / "prompts.txt", settings, Skips("stop"), {})
            rows = measure_server(subject, settings, lambda _, more: warnings.extend(more))
        except ValueError as error:
            return Ended([], warnings, str(error))
        return Ended(rows, warnings)

    return run


@pytest.mark.parametrize(("what", "name"), CASES, ids=lambda word: word.replace(" ", "_"))
def test_a_hostile_server_is_one_line_in_bounded_time_and_memory(
    what: str, name: str, measured: Callable[..., Ended]
) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = measured(what, list(REPLIES[what]).index(name))
    assert time.monotonic() - began < SLOWEST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB
    for line in (end.error or "", *end.warnings):
        assert len(line) < 600
        assert line.isprintable(), "neither lines nor escape sequences"
    if what == "metrics":  # the answers are whole: rows without the server's own counts, or one line
        assert end.error or all(row.observation.tokens_per_step is None for row in end.rows)
    else:
        assert end.error
        assert not end.rows


def test_a_server_that_does_what_it_should_is_measured_and_one_whose_counters_fall_is_told(
    measured: Callable[..., Ended],
) -> None:
    assert measured("nothing", timeout_s=60.0).error is None
    end = measured("falling", timeout_s=60.0)
    assert end.error is None
    assert any("fell between the readings" in warning for warning in end.warnings)
