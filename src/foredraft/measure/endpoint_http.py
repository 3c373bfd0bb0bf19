"""A small HTTP/1.1 client over asyncio: whole answers, and server-sent events as they arrive.

Promises: every failure is one line that names the server; a stream that breaks off is an error, never a short answer.
Refuses to know: what is asked.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LIMIT = 2**24  # bytes of one line, which a chunk of JSON may fill
CONNECT_S = 10.0
SHOWN = 300  # characters of a server's own message


class Refused(ValueError):
    """An answer with another status than 200: `status`, and the server's message in the text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NotJson(ValueError):
    """An answer that is no JSON."""


class CutOff(ValueError):
    """A stream that ended before its end."""


class Address(NamedTuple):
    """Where a server answers. `prefix` goes before every path; `key` is sent as a bearer token; `timeout_s`: between two pieces."""

    host: str
    port: int
    secure: bool = False
    prefix: str = ""
    key: str | None = None
    timeout_s: float = 600.0

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}{self.prefix}"


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


class Reply:
    """The body of an answer as it arrives, its transfer coding undone."""

    def __init__(self, reader: asyncio.StreamReader, headers: dict[str, str], address: Address) -> None:
        self.reader, self.headers, self.address = reader, headers, address

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises CutOff where the connection closes before the body is whole."""
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                async for piece in self._chunks():
                    yield piece
            elif "content-length" in self.headers:
                left = int(self.headers["content-length"])
                while left:
                    piece = await self._timed(self.reader.read(min(left, 2**16)))
                    if not piece:
                        raise CutOff(f"{self.address}: the answer broke off, {left} bytes short")
                    left -= len(piece)
                    yield piece
            else:
                while piece := await self._timed(self.reader.read(2**16)):
                    yield piece
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError) as error:
            raise CutOff(f"{self.address}: the answer broke off ({type(error).__name__})") from None

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            head = await self._timed(self.reader.readline())
            if not head.endswith(b"\n"):
                raise CutOff(f"{self.address}: the answer broke off between two chunks")
            size = int(head.split(b";")[0].strip() or b"0", 16)
            if size == 0:
                return
            data = await self._timed(self.reader.readexactly(size + 2))
            yield data[:-2]

    async def _timed(self, reading: Any) -> bytes:
        try:
            return await asyncio.wait_for(reading, self.address.timeout_s)
        except TimeoutError:
            raise CutOff(f"{self.address}: nothing came for {self.address.timeout_s:g} s") from None

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines without their ends; a last one that has no end comes too."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The JSON of each server-sent event, up to [DONE]. Raises CutOff where that never comes."""
        async for line in self.lines():
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                raise CutOff(f"{self.address}: an event of the stream is no JSON: {data[:80]!r}") from None
            yield event if isinstance(event, dict) else {}
        raise CutOff(f"{self.address}: the stream ended without [DONE]")


@asynccontextmanager
async def ask(address: Address, path: str, body: dict[str, Any] | None = None) -> AsyncIterator[Reply]:
    """GET `path`, or POST `body` to it. Raises Refused on another status than 200, ValueError where no server answers."""
    reader, writer = await _connected(address)
    try:
        writer.write(_request(address, path, body))
        try:
            await writer.drain()
            status, headers = await asyncio.wait_for(_head(reader, address), address.timeout_s)
        except TimeoutError:
            raise CutOff(f"{address}: no answer for {address.timeout_s:g} s") from None
        except (ConnectionError, ssl.SSLError) as error:
            raise CutOff(f"{address}: the connection broke ({type(error).__name__})") from None
        reply = Reply(reader, headers, address)
        if status != 200:
            raise Refused(status, f"{address}{path}: HTTP {status}: {_message(await reply.whole())}")
        yield reply
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), CONNECT_S)


async def _connected(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context() if address.secure else None
    try:
        opening = asyncio.open_connection(address.host, address.port, ssl=context, limit=LIMIT)
        return await asyncio.wait_for(opening, CONNECT_S)
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or str(error) or f"no connection within {CONNECT_S:g} s"
        raise ValueError(f"{address}: no server answers ({why}); start it, or check --endpoint") from None


def _request(address: Address, path: str, body: dict[str, Any] | None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {address.prefix}{path} HTTP/1.1", f"Host: {address.host}:{address.port}",
        "User-Agent: foredraft", "Accept: */*", "Connection: close",
    ]  # fmt: skip
    lines += [f"Authorization: Bearer {address.key}"] if address.key else []
    lines += [] if body is None else ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def _head(reader: asyncio.StreamReader, address: Address) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    first = (await reader.readline()).decode("latin-1").split(maxsplit=2)
    if len(first) < 2 or not first[0].startswith("HTTP/") or not first[1].isdigit():
        raise CutOff(f"{address}: the connection closed without an answer" if not first else f"{address}: is no HTTP server")  # fmt: skip
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(first[1]), headers


def _message(body: bytes) -> str:
    """What a server says is wrong: the message in its JSON, or the beginning of its text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        held = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:SHOWN] or "no message"
    error = held.get("error", held) if isinstance(held, dict) else held
    said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return " ".join(str(said if said else text).split())[:SHOWN]


async def get_json(address: Address, path: str) -> Any:
    """The JSON at a path. Raises ValueError where it is none."""
    async with ask(address, path) as reply:
        body = await reply.whole()
    try:
        return json.loads(body)
    except ValueError:
        raise NotJson(f"{address}{path}: the answer is no JSON; is this a server of the OpenAI API?") from None


async def get_text(address: Address, path: str) -> str:
    async with ask(address, path) as reply:
        return (await reply.whole()).decode("utf-8", "replace")
