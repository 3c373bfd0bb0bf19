"""What a person sees of a run, and what is logged of it: a bar, lines of JSON, TensorBoard on request.

Promises: metrics.jsonl has one line per figure and step, also after a crash and a resume; the bar is quiet unless stderr is
a terminal. Refuses to know: how figures come about.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foredraft.records import parse, write_bytes

METRICS = "metrics.jsonl"


class Metrics:
    """metrics.jsonl of a run. Opening it drops what lies beyond `step`, where a resumed run begins; all of it where that is the beginning."""

    def __init__(self, path: Path, step: int) -> None:
        write_bytes(path, b"".join(line for line in _lines(path) if step and _step(line) <= step))
        self._file = path.open("ab")

    def write(self, figures: Mapping[str, Any]) -> None:
        self._file.write(msgspec.json.encode(figures) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _step(line: bytes) -> float:
    """The step of a line; a torn one, or one without a step, belongs to none and so is dropped."""
    try:
        step = parse(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        step = None
    return step if isinstance(step, int | float) else float("inf")


class TensorBoard:
    """TensorBoard's event files in `folder`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("watch.tensorboard needs the package tensorboard: pip install tensorboard") from None
        self._writer = SummaryWriter(str(folder))

    def write(self, figures: Mapping[str, Any]) -> None:
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, figures["step"])

    def close(self) -> None:
        self._writer.close()


class Meter:
    """Tokens per second since the last reading, and the share of the devices' measured rate of matrix products (MFU)."""

    def __init__(self, flops_per_token: float, ceiling_flops_per_s: float) -> None:
        self._flops, self._ceiling = flops_per_token, ceiling_flops_per_s
        self._tokens, self._seconds = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds

    def read(self) -> dict[str, float]:
        rate = self._tokens / self._seconds if self._seconds else 0.0
        self._tokens, self._seconds = 0, 0.0
        return {"tokens_per_s": rate, "mfu": rate * self._flops / self._ceiling}


class RunLogger:
    """The bar, and the places where figures are logged. `speaks` is False on all processes but the first."""

    def __init__(self, out: Path, steps: int, step: int, *, speaks: bool = True, tensorboard: bool = False) -> None:
        self._speaks = speaks
        board = [TensorBoard(out / "tensorboard")] if speaks and tensorboard else []
        self._sinks = [Metrics(out / METRICS, step), *board] if speaks else []
        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        hidden = not (speaks and sys.stderr.isatty())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True)
        self._task = self._bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> "RunLogger":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for sink in self._sinks:
            sink.close()

    def advance(self) -> None:
        self._bar.advance(self._task)

    def log(self, figures: Mapping[str, Any]) -> None:
        """A line of figures; `figures` has "step"."""
        for sink in self._sinks:
            sink.write(figures)
        if "tokens_per_s" in figures:
            text = f"loss {figures['loss']:.3f} · {figures['tokens_per_s']:,.0f} tokens/s · MFU {figures['mfu']:.0%}"
            self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        """A line for the person, above the bar."""
        if self._speaks:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
