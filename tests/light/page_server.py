"""A served page for tests: the real server on a port of its own, with plans of few draws and kinds."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec

from foredraft.cli.page import _reader
from foredraft.page.planner import Planner, Turn

DRAWS, KINDS = 256, ("head", "lookup")  # more draws than a sketch has


def planner(rows=(), targets=None) -> Planner:
    """As `foredraft page` has it, but for the draws."""
    read = _reader({name: Path(path) for name, path in (targets or {}).items()}, {}, list(rows))

    def few(inputs):
        asked = read(inputs)
        return asked._replace(settings=msgspec.structs.replace(asked.settings, draws=DRAWS, kinds=KINDS))

    return Planner(few, rows)


class OneTurn(Planner):
    """Other cases are many plans; a browser is shown one, the case itself."""

    def turns(self, inputs, stop=None):
        return [Turn("the same", self.answer(inputs, sketch=False, stop=stop).plan, False)]


@contextmanager
def served(planner: Planner):
    """Its address, while it runs."""
    import uvicorn

    from foredraft.page.server import application

    app = application(planner, {}, (), ())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)
