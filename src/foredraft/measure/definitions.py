"""A server's running totals of its speculation."""

from foredraft.records import Record, require


class Counters(Record, frozen=True):
    """A server's running totals since it started, as SGLang and vLLM keep them: `steps` of sequences that drafted, `drafted`
    and `accepted` tokens, and by position how many steps accepted at least so many.
    """

    steps: int
    drafted: int
    accepted: int
    by_position: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self, non_negative=("steps", "drafted", "accepted", "by_position"))
        if self.accepted > self.drafted:
            raise ValueError(f"accepted ({self.accepted}) must not exceed drafted ({self.drafted})")

    def since(self, earlier: "Counters") -> "Counters":
        """What came between two readings. Raises ValueError where a total fell: the server was started anew in between."""
        if len(self.by_position) != len(earlier.by_position):
            raise ValueError(
                f"by_position has {len(self.by_position)} positions, and had {len(earlier.by_position)} before"
            )
        parts = {name: getattr(self, name) - getattr(earlier, name) for name in ("steps", "drafted", "accepted")}
        places = tuple(now - then for now, then in zip(self.by_position, earlier.by_position, strict=True))
        if fell := [name for name, value in (*parts.items(), ("by_position", min(places, default=0))) if value < 0]:
            raise ValueError(
                f"{fell[0]} fell between the readings: the server was started anew; read it before and after one load"
            )
        return Counters(**parts, by_position=places)
