"""A real Chromium for the tests of pages, and what a page complained of or asked for.

Where none is at hand the tests are skipped, and say how to get one; where FOREDRAFT_BROWSER=required (as in .ci/run) they fail.
"""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing is asked of the network but the page; the sandbox needs rights that root in a container lacks.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium. It ends with the module: while playwright runs, no other test of the thread can start an event loop."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _absent("no Chromium on the path: apt-get install chromium (make browser)")
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=path, args=[*FLAGS, *sandbox])
        yield chromium
        chromium.close()


def _absent(reason: str) -> NoReturn:
    (pytest.fail if os.environ.get("FOREDRAFT_BROWSER") == "required" else pytest.skip)(reason)


def opened(browser: "Browser", url: str, allowed: str | None = None, **options: Any) -> "tuple[Page, list[str]]":
    """The page at this address in a context of its own, and its console's lines, its errors, and the requests to
    anything but itself or what begins with `allowed`. Close `page.context` at the end.
    """
    page = browser.new_context(**options).new_page()
    messages: list[str] = []

    def ask(request: Any) -> None:
        if request.url != url and not (allowed and request.url.startswith(allowed)):
            messages.append(request.url)

    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", ask)
    page.goto(url)
    return page, messages
