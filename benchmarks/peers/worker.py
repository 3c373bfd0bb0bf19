"""One engine's process: a request per line of standard input, its answer and its time per line of standard output.

Promises: standard output carries nothing else, whatever an engine prints; between requests the process waits for a line and computes
nothing. Refuses to know: engines, checkpoints and what is compared. It runs in every peer's environment: standard library only.

The settings are the JSON of the only argument: `target` and `drafts` (method -> folder), `dtype`, `threads`, `batch`, `context`,
`methods` to prepare, `kinds` (ngram, draft_model, eagle, eagle3; plain where absent) and `lookahead` of each. The first line out tells
`versions`, and why each `failed` method did; then {"method", "prompts", "max_tokens"} is answered by {"seconds", "first_s", "answers",
"steps"} or {"error"}.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple


class Answered(NamedTuple):
    """Tokens of every prompt, seconds to the first token, and target passes that gave tokens (missing where the engine does not tell)."""

    answers: list[list[int]]
    first_s: float | None
    steps: int | None


Run = Callable[[list[list[int]], int], Answered]


def serve(prepare: Callable[[dict[str, Any], str], Run], packages: tuple[str, ...]) -> None:
    """Prepare every method of the settings, then answer until standard input ends."""
    end_with_parent()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines that print do so on standard error
    settings = json.loads(sys.argv[1])
    runs, failed = _prepared(prepare, settings)
    print(json.dumps({"versions": {name: version(name) for name in packages}, "failed": failed}), file=out)
    for line in sys.stdin:
        print(json.dumps(_answer(runs, json.loads(line))), file=out)


def _prepared(
    prepare: Callable[[dict[str, Any], str], Run], settings: dict[str, Any]
) -> tuple[dict[str, Run], dict[str, str]]:
    runs, failed = {}, {}
    for method in settings["methods"]:
        try:
            runs[method] = prepare(settings, method)
        except Exception as error:
            failed[method] = _failure(error)
    return runs, failed


def _failure(error: Exception) -> str:
    """One line for the record, everything for the log."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"


def end_with_parent() -> None:
    """A stopped process does not see its input end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _answer(runs: dict[str, Run], request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        answered = runs[request["method"]](request["prompts"], request["max_tokens"])
    except Exception as error:
        return {"error": _failure(error)}
    return {"seconds": time.perf_counter() - start} | answered._asdict()


class FirstToken:
    """A clock that stops at its first `tick`."""

    def __init__(self) -> None:
        self.start, self.seconds = time.perf_counter(), None

    def tick(self) -> None:
        if self.seconds is None:
            self.seconds = time.perf_counter() - self.start
