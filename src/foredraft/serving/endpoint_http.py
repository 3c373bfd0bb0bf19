"""A server over HTTP: whole answers and server-sent events as they arrive, on connections that stay open between requests.

Promises: every failure is one line that names the server; a stream that breaks off is an error, never a short answer; no answer
fills the memory. Refuses to know: what is asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx2

from foredraft.records import parse_loosely, visible

LINE_LIMIT, BODY_LIMIT, STREAM_LIMIT = (
    2**20,
    2**26,
    2**30,
)  # bytes of a line (an event may fill it), an answer, a stream
END_LIMIT, END_S = 2**16, 1.0  # what is read behind a stream's end, so that its connection can serve again
CONNECT_S = 10.0
IDLE_S = 4.0  # then a connection is dropped, before a server does (uvicorn: 5 s) and fails the next request
SHOWN = 300  # characters of a server's own message
SENDING = "http11.send_request_headers.started"  # httpx2's name for the moment when a connection is open


class Refused(ValueError):
    """An answer with another status than 200: `status`, and the server's message in the text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NotJson(ValueError):
    """An answer that is no JSON."""


class CutOff(ValueError):
    """An answer that ended before its end, or did not end where it should."""


class Address(NamedTuple):
    """Where a server answers. `prefix` goes before every path; `key` is sent as a bearer token; `timeout_s`: between two pieces."""

    host: str
    port: int
    secure: bool = False
    prefix: str = ""
    key: str | None = None
    timeout_s: float = 600.0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.prefix}"


def address_of(url: str, key: str | None = None, timeout_s: float = 600.0) -> Address:
    """An address from a URL such as http://localhost:8000, with or without /v1 at its end."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint must be a URL such as http://localhost:8000, got {url!r}")
    secure = parts.scheme == "https"
    try:
        port = parts.port or (443 if secure else 80)
    except ValueError:
        raise ValueError(f"endpoint {url!r}: the port must be a number up to 65535") from None
    return Address(parts.hostname, port, secure, parts.path.rstrip("/").removesuffix("/v1"), key, timeout_s)


class Connections:
    """The open connections to one server; an async context manager, which closes them."""

    def __init__(self, address: Address) -> None:
        self.address = address
        headers = {"User-Agent": "foredraft", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {address.key}"} if address.key else {}
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=httpx2.Timeout(address.timeout_s, connect=CONNECT_S, pool=None), trust_env=False, verify=address.secure,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_S),
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def ask(
        self, path: str, body: dict[str, Any] | None = None, on_send: Callable[[], object] | None = None
    ) -> AsyncIterator["Reply"]:
        """GET `path`, or POST `body` to it; `on_send` is called when the connection is open and the request goes out.

        Raises Refused on another status than 200, ValueError where no server answers.
        """

        async def trace(event: str, _: Any) -> None:
            if event == SENDING and on_send is not None:
                on_send()

        url, method = f"{self.address}{path}", "GET" if body is None else "POST"
        request = self._client.build_request(method, url, json=body, extensions={"trace": trace})
        try:
            async with asyncio.timeout(CONNECT_S + self.address.timeout_s):  # headers that drip in are no answer either
                response = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise self._failure(error) from None
        except TimeoutError:
            raise CutOff(f"{self.address}: no answer for {self.address.timeout_s:g} s") from None
        try:
            reply = Reply(response, self.address)
            if response.status_code != 200:
                raise Refused(response.status_code, f"{url}: HTTP {response.status_code}: {await reply.message()}")
            yield reply
        finally:
            await response.aclose()

    def _failure(self, error: httpx2.HTTPError) -> ValueError:
        """Why there was no answer."""
        address, reason = self.address, visible(str(error) or type(error).__name__)[:SHOWN]
        if isinstance(error, httpx2.ConnectTimeout):
            reason = f"no connection within {CONNECT_S:g} s"
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return ValueError(f"{address}: no server answers ({reason}); start it, or check --endpoint")
        if isinstance(error, httpx2.TimeoutException):
            return CutOff(f"{address}: no answer for {address.timeout_s:g} s")
        if isinstance(error, httpx2.RemoteProtocolError) and "disconnected" not in reason:
            return CutOff(f"{address}: is no HTTP server ({reason})")
        return CutOff(f"{address}: the connection closed without an answer ({reason})")

    async def get_json(self, path: str) -> Any:
        """The JSON at a path. Raises NotJson where it is none."""
        async with self.ask(path) as reply:
            body = await reply.body()
        try:
            return parse_loosely(body)
        except ValueError:
            raise NotJson(f"{self.address}{path}: the answer is no JSON; is this a server of the OpenAI API?") from None

    async def get_text(self, path: str) -> str:
        async with self.ask(path) as reply:
            return (await reply.body()).decode("utf-8", "replace")

    async def warm(self, path: str, num: int) -> None:
        """Open `num` connections, by that many requests at once."""
        await asyncio.gather(*(self.get_text(path) for _ in range(num)))


class Reply:
    """The body of an answer as it arrives."""

    def __init__(self, response: httpx2.Response, address: Address) -> None:
        self.response, self.address = response, address

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises CutOff where the connection closes before the body is whole."""
        try:
            async for piece in self.response.aiter_raw():
                yield piece
        except httpx2.TimeoutException:
            raise CutOff(f"{self.address}: nothing came for {self.address.timeout_s:g} s") from None
        except httpx2.HTTPError as error:
            raise CutOff(f"{self.address}: the answer broke off ({type(error).__name__})") from None

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines without their ends; a last one that has no end comes too. Raises CutOff on one too long, or on too many."""
        begun, size = b"", 0
        async for piece in self.pieces():
            *lines, begun = (begun + piece).split(b"\n")
            for line in lines:
                self._bound("a line of the answer", len(line), LINE_LIMIT)
                yield line.rstrip(b"\r")
            size += len(piece)
            self._bound("a line of the answer", len(begun), LINE_LIMIT)
            self._bound("the answer", size, STREAM_LIMIT)
        if begun:
            yield begun

    async def body(self) -> bytes:
        """Raises CutOff on one beyond BODY_LIMIT, and on one that is not whole in the address's time."""
        body, began = bytearray(), time.monotonic()
        async for piece in self.pieces():
            body += piece
            self._bound("the answer", len(body), BODY_LIMIT)
            self._in_time(began, "the answer was not whole")
        return bytes(body)

    def _bound(self, name: str, size: int, most: int) -> None:
        if size > most:
            raise CutOff(f"{self.address}: {name} is longer than {most} bytes")

    def _in_time(self, began: float, what: str) -> None:
        if time.monotonic() - began > self.address.timeout_s:
            raise CutOff(
                f"{self.address}: {what} within {self.address.timeout_s:g} s; raise --timeout if it needs more"
            )

    async def message(self) -> str:
        """What the server says is wrong, as far as it can be read: the message in its JSON, or the beginning of its text."""
        body, began = bytearray(), time.monotonic()
        with suppress(CutOff):
            async for piece in self.pieces():
                body += piece
                self._in_time(began, "no message")
                if len(body) > END_LIMIT:
                    break
        return _message(bytes(body))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The JSON of each server-sent event, up to [DONE]. Raises CutOff where that never comes, or no event for the address's time."""
        lines, last = self.lines(), time.monotonic()
        async for line in lines:
            self._in_time(last, "no event of the stream came")
            if not line.startswith(b"data:"):
                continue
            last = time.monotonic()
            data = line[5:].strip()
            if data == b"[DONE]":
                await self._finish(lines)
                return
            try:
                event = parse_loosely(data)
            except ValueError:
                raise CutOff(f"{self.address}: an event of the stream is no JSON: {data[:80]!r}") from None
            yield event if isinstance(event, dict) else {}
        raise CutOff(f"{self.address}: the stream ended without [DONE]")

    async def _finish(self, lines: AsyncIterator[bytes]) -> None:
        """Read a finished stream to the end of its body, if that is near."""
        size = 0
        with suppress(CutOff, TimeoutError):
            async with asyncio.timeout(END_S):
                async for line in lines:
                    size += len(line) + 1
                    if size > END_LIMIT:
                        return


def _message(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        answer = parse_loosely(text)
    except ValueError:
        return visible(" ".join(text.split()))[:SHOWN] or "no message"
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return visible(" ".join(str(words or text).split()))[:SHOWN]
