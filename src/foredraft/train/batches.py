"""A step's sequences among processes, and in pieces. Refuses to know: torch."""

from itertools import pairwise
from typing import NamedTuple

from foredraft.recipe import Stage


class Process(NamedTuple):
    """A process among `world`, on a kind of `device`. `shard`: weights, gradients and optimiser state are spread instead of copied."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    shard: bool = False

    def share(self, count: int, field: str) -> slice:
        """This process's part of `count` sequences."""
        if count % self.world:
            raise ValueError(f"{field} ({count}) must be a multiple of the {self.world} processes")
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)


def micro_batches(stage: Stage, place: Process) -> list[slice]:
    """This process's sequences of a step, in pieces of one size where that is possible."""
    share = place.share(stage.batch, "batch")
    count = share.stop - share.start
    pieces = -(-count // (stage.micro_batch or count))
    edges = [share.start + count * i // pieces for i in range(pieces + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
