"""Requests, the sequences they become, and the batch of those that run.

Promises: running sequences are rows 0 … n-1 of every cache, so that a pass reads a view and copies nothing; a row that
leaves is filled by the last. Refuses to know: models and verification.

A sequence of n tokens has n - 1 of them in the caches: the last token is the root of the next step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foredraft.decode.sampling import Sampling
from foredraft.records import Record


class Request(Record, frozen=True):
    """What to continue, and until when. `stop_ids` end the answer and are part of it; so does `max_tokens`."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must hold at least one token")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(eq=False)
class Sequence:
    """A request on its way. `tokens` are prompt and answer; `gained` the target's features of the tokens that entered its cache since its drafter
    read any; `admitted`, whether that has read its prompt.
    """

    id: int
    request: Request
    tokens: list[int]
    generator: torch.Generator
    on_tokens: Callable[[list[int]], None] | None = None
    gained: list[Tensor] = field(default_factory=list)
    admitted: bool = False
    finish: str | None = None
    steps: int = 0
    accepted_at: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, number: int, request: Request, on_tokens: Callable[[list[int]], None] | None = None) -> "Sequence":
        generator = torch.Generator().manual_seed(request.sampling.seed)
        return cls(number, request, list(request.prompt), generator, on_tokens)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the caches."""
        return len(self.tokens) - 1

    @property
    def fresh(self) -> Tensor | None:
        """All that was gained as one, [M, F]; put together when it is asked for: where nothing is drafted nobody does."""
        if len(self.gained) > 1:
            self.gained = [torch.cat(self.gained)]
        return self.gained[0] if self.gained else None

    @fresh.setter
    def fresh(self, features: Tensor | None) -> None:
        self.gained = [] if features is None else [features]

    @property
    def answer(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    def uniforms(self, num: int) -> Tensor:
        """Numbers in [0, 1) from the request's own seed, so that its chance does not depend on the batch."""
        return torch.rand(num, generator=self.generator, dtype=torch.float64)

    def extend(self, tokens: list[int]) -> int:
        """Take what a step emitted, up to a stop; give how many tokens were taken."""
        room = self.request.max_tokens - len(self.answer)
        accepted = tokens[:room]
        stop = next((i for i, token in enumerate(accepted) if token in self.request.stop_ids), None)
        if stop is not None:
            accepted, self.finish = accepted[: stop + 1], "stop"
        elif len(accepted) == room:
            self.finish = "length"
        self.tokens += accepted
        if self.on_tokens:
            self.on_tokens(accepted)
        return len(accepted)
