"""A step of the run: its time, its figures, and the file they go to. Refuses to know: what is measured."""

import os
import platform
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foredraft import records

TRACE_LINES = 12  # of a failure's traceback that are recorded
MODELS = "models"


class Settings(NamedTuple):
    """What the command line says. `work`: a folder for what need not come back. `small`: everything in miniature."""

    out: Path
    work: Path
    device: str = "cuda"
    small: bool = False
    target: Path | None = None
    drafts: tuple[Path, ...] = ()
    grid: Path | None = None
    data: Path | None = None
    workers: int = 8


class Step:
    """One step at work: figures are written as soon as they are known, so that a step that is stopped leaves what it has."""

    def __init__(self, name: str, settings: Settings, budget_s: float) -> None:
        self.name, self.settings, self.budget_s = name, settings, budget_s
        self.device = torch.device(settings.device)
        self.began = time.monotonic()
        self.figures: dict[str, Any] = {}
        self.left: dict[str, str] = {}
        self._write("running")

    @property
    def time_left(self) -> float:
        """Seconds of the budget."""
        return self.budget_s - (time.monotonic() - self.began)

    def record(self, name: str, figures: Any, *, quiet: bool = False) -> None:
        if not quiet:
            print(f"{self.name}: {name}: {figures}", flush=True)
        self.figures[name] = figures
        self._write("running")

    def attempt(self, name: str, work: Any, needs_s: float) -> Any:
        """Record what `work()` gives, or why it gave nothing: too little time, or the last line of what it raised."""
        if self.time_left < needs_s:
            self.left[name] = (
                f"{max(self.time_left, 0):.0f} s of {self.budget_s:.0f} were left, {needs_s:.0f} are needed"
            )
        else:
            try:
                figures = work()
            except Exception as error:
                traceback.print_exc()
                self.left[name] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                )
            else:
                self.record(name, figures)
                return figures
        self._write("running")
        return None

    def end(self, error: BaseException | None = None) -> None:
        if error is None:
            self._write("done")
            return
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        self._write("failed", lines[-TRACE_LINES:])

    def _write(self, state: str, error: list[str] | None = None) -> None:
        record = {
            "step": self.name, "state": state, "seconds": round(time.monotonic() - self.began, 2), "budget_s": round(self.budget_s, 1),
            "error": error, "figures": self.figures, "left": self.left,
        }  # fmt: skip
        records.write(self.settings.out / f"{self.name}.json", record)


def machine(device: torch.device) -> dict[str, Any]:
    """What decides a figure: the device and the versions."""
    import transformers

    name, memory = platform.processor() or platform.machine(), None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return {
        "device": name, "memory_bytes": memory, "cpus": os.cpu_count(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
        "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip
