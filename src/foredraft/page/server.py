"""The page on this machine: its HTML, answers to its inputs, and the plan as JSON.

Promises: bound to the loopback; only a browser that asks it by a name of this machine is answered, and no other site's pages; nothing of
the file system is read for an address, nothing is fetched; what is asked is bounded, and dropped when its asker goes. Refuses to know: how a
plan is made, what the page looks like.
"""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from foredraft.page import inputs as of_page
from foredraft.page.html import answer_html, page_html, policy, turns_html
from foredraft.page.planner import BadInput, Dropped, Planner

HOSTS = ("127.0.0.1", "localhost")
MOST_QUERY = 4096  # bytes of an address
MOST_WAITING = 12  # requests at once
WATCH_S = 0.02  # between looks whether the asker is still there
HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]


def application(
    planner: Planner, defaults: Mapping[str, str], targets: Sequence[str], machines: Sequence[str]
) -> Starlette:
    """The page of `planner`; `defaults`: inputs from the start; `targets`, `machines`: the user's own, by name."""
    page = page_html(defaults, targets, machines)
    workers, waiting = ThreadPoolExecutor(1, "planner"), asyncio.Semaphore(MOST_WAITING)

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy(page)})

    def inputs_of(request: Request) -> dict[str, str]:
        """Raises BadInput."""
        inputs, faults = of_page.asked(request.query_params.multi_items())
        if faults:
            raise BadInput(faults)
        return {**defaults, **inputs}

    async def watched(request: Request, work: Callable[[threading.Event], Result]) -> Result:
        """What `work` makes on the planner's thread, which is told to stop when the asker goes. Raises BadInput, Dropped."""
        stop = threading.Event()
        job = asyncio.get_running_loop().run_in_executor(workers, work, stop)
        while not job.done():
            await asyncio.wait({job}, timeout=WATCH_S)
            if await request.is_disconnected():
                stop.set()
        return await job

    def answered(work: Callable[[Request], Awaitable[Response]]) -> Handler:
        async def handle(request: Request) -> Response:
            if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return PlainTextResponse("only this page itself may ask", 403)
            if len(request.url.query) > MOST_QUERY:
                return JSONResponse({"faults": {"": f"the address is longer than {MOST_QUERY} characters"}}, 414)
            if waiting.locked():
                return JSONResponse({"faults": {"": "too many plans are asked for at once"}}, 503)
            async with waiting:
                try:
                    return await work(request)
                except BadInput as error:
                    return JSONResponse({"faults": error.faults}, 422)
                except Dropped:
                    return Response(status_code=204)
                except Exception as error:  # the page says so; the terminal has the traceback
                    traceback.print_exc()
                    return JSONResponse(
                        {"faults": {"": f"a bug of foredraft: {type(error).__name__}; its terminal says where"}}, 500
                    )

        return handle

    @answered
    async def answer(request: Request) -> Response:
        inputs, sketch = inputs_of(request), request.headers.get("foredraft-sketch") == "1"
        answer = await watched(request, lambda stop: planner.answer(inputs, sketch=sketch, stop=stop))
        html = answer_html(answer.plan, inputs, planner.own, draws=answer.draws, full=answer.full, files=planner.files)
        return HTMLResponse(html, headers={"Foredraft-Full": "1" if answer.full else "0"})

    @answered
    async def turns(request: Request) -> Response:
        inputs = inputs_of(request)
        return HTMLResponse(turns_html(await watched(request, lambda stop: planner.turns(inputs, stop))))

    @answered
    async def document(request: Request) -> Response:
        inputs = inputs_of(request)
        answer = await watched(request, lambda stop: planner.answer(inputs, sketch=False, stop=stop))
        body = msgspec.json.format(msgspec.json.encode(answer.plan), indent=1)
        attached = {"Content-Disposition": 'attachment; filename="Plan.json"'}
        return Response(body, media_type="application/json", headers=attached)

    routes = [Route("/", show), Route("/answer", answer), Route("/turns", turns), Route("/Plan.json", document)]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts, Middleware(_Headed)])


class _Headed:
    """Every answer with `HEADERS`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def headed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in HEADERS.items()),
                ]
            await send(message)

        await self.app(scope, receive, headed if scope["type"] == "http" else send)


def serve(app: Starlette, port: int) -> None:
    """Until it is stopped, on 127.0.0.1. Raises OSError where the port is taken."""
    import uvicorn

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        log_level="warning",
        server_header=False,
        date_header=False,
        limit_concurrency=64,
    )
