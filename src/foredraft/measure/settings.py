"""How to measure on our own engine. Refuses to know: targets, drafts, prompts."""

import math
from pathlib import Path

import torch

from foredraft.data.prompts import CHATS
from foredraft.records import Record

WAYS = ("both", "live", "forced")
UNTIMED = 16  # sequences decoded at once where no clock is read
DTYPES = ("float32", "bfloat16", "float16")


class MeasureSettings(Record, frozen=True):
    """How to measure. `way`: "live", online by the engine's own steps, "forced", teacher-forced on the target's own answers, or
    both. `width`: of the interval of tokens per step that `wanted_requests` answers for. `params`: "stored", all weights that a
    folder stores, as published Observations count, or "non_embedding".

    `num`: prompts of each category at most. `chat`: as in `Encoding`. `stop`: an end token ends an answer. `run`, `family`,
    `draft_tokens` and `draft_params` say of the drafts what their folders do not. `cache`: a folder in which what the target says
    of the prompts is kept for the next draft (teacher-forced).
    """

    max_tokens: int = 128
    batches: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    way: str = "both"
    rounds: int = 1
    seed: int = 0
    width: float = 0.1
    params: str = "stored"
    num: int | None = None
    chat: str = "auto"
    stop: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    run: str | None = None
    family: str | None = None
    draft_tokens: float | None = None
    draft_params: float | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        choices = {"way": WAYS, "params": ("stored", "non_embedding"), "dtype": DTYPES, "chat": CHATS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width must be a positive number of tokens per step, got {self.width}")
        for name, values, least in (("batch", self.batches, 1), ("temperature", self.temperatures, 0)):
            if not values or not all(math.isfinite(value) and value >= least for value in values):
                raise ValueError(f"{name} must list numbers of at least {least}, got {list(values)}")
        for name in ("max_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0…{2**32 - 1}, got {self.seed}")

    @property
    def together(self) -> int:
        """Most sequences that are decoded at once; where nothing is timed, as many as make answers cheap."""
        return UNTIMED if self.way == "forced" else max(self.batches)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)
