"""The same words for different numbers: what tools and papers call acceptance, with their definitions, and the way between them.

A number carries its definition. What follows from it is converted; what would need counts that it has lost is a ValueError with
the reason, never a guess. `TOOLS` says what each tool's figure counts.

Promises: converting there and back gives the number again. Refuses to know: where a number was measured.
"""

import math
from collections.abc import Sequence

from foredraft.records import Record, require

POOLINGS = ("steps", "requests")
KINDS = ("greedy", "point", "sampled")
HALVINGS = 60  # of an interval within [0, 1]: past a float's own grain


class TokensPerStep(Record, frozen=True):
    """Tokens per target step. `bonus`: the target's own token of each step is counted. `pooling`: "steps", all tokens over all
    steps, or "requests", the mean of each request's own ratio; None where the source does not say.
    """

    value: float
    bonus: bool = True
    pooling: str | None = "steps"

    def __post_init__(self) -> None:
        require(self, non_negative=("value",))
        if self.pooling not in (*POOLINGS, None):
            raise ValueError(f"pooling must be steps, requests or None, got {self.pooling!r}")
        if self.bonus and self.value < 1:
            raise ValueError(f"value {self.value} is less than the bonus token it counts; is bonus false?")

    def with_bonus(self, bonus: bool = True) -> "TokensPerStep":
        """The same, the bonus token counted or not: one token in every step, under either pooling."""
        return TokensPerStep(value=self.value + bonus - self.bonus, bonus=bonus, pooling=self.pooling)

    def pooled(self, pooling: str) -> "TokensPerStep":
        """Itself where it is pooled so; ValueError otherwise, since a mean has forgotten how many steps each request took."""
        if self.pooling == pooling:
            return self
        said = "does not say its pooling" if self.pooling is None else f"is pooled over {self.pooling}"
        raise ValueError(
            f"tokens per step {said}, not over {pooling}: the steps and tokens of each request are needed (Requests)"
        )


class Requests(Record, frozen=True):
    """Steps and emitted tokens, bonus included, of each request: what every pooling can be had from."""

    steps: tuple[int, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        require(self, positive=("steps", "tokens"))
        if not self.steps or len(self.steps) != len(self.tokens):
            raise ValueError(f"steps ({len(self.steps)}) and tokens ({len(self.tokens)}) must be of the same requests")

    def tokens_per_step(self, pooling: str = "steps") -> TokensPerStep:
        """Σ tokens / Σ steps, or the mean over requests of tokens / steps."""
        if pooling == "steps":
            return TokensPerStep(value=sum(self.tokens) / sum(self.steps))
        means = [tokens / steps for tokens, steps in zip(self.tokens, self.steps, strict=True)]
        return TokensPerStep(value=sum(means) / len(means), pooling=pooling)


class ByPosition(Record, frozen=True):
    """Acceptance at drafted positions 1, 2, …: `joint`, P(at least i accepted), as vLLM tells it, or
    conditional, P(i accepted | all before), as specdec_bench does.
    """

    values: tuple[float, ...]
    joint: bool

    def __post_init__(self) -> None:
        require(self, unit=("values",))
        if self.joint and any(later > earlier for earlier, later in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("values rise with position, which no joint acceptance does; is joint false?")

    def as_joint(self) -> "ByPosition":
        """P(at least i accepted): products of the conditional ones."""
        if self.joint:
            return self
        return ByPosition(values=tuple(math.prod(self.values[: i + 1]) for i in range(len(self.values))), joint=True)

    def as_conditional(self) -> "ByPosition":
        """P(i accepted | all before): each joint one over the one before. Raises ValueError behind a position that nothing
        reached, where there is no such share.
        """
        if not self.joint:
            return self
        before = (1.0, *self.values[:-1])
        if 0 in before:
            raise ValueError(
                f"values: nothing was accepted at position {before.index(0)}, so none is conditional on it; cut there"
            )
        return ByPosition(values=tuple(now / then for now, then in zip(self.values, before, strict=True)), joint=False)

    def tokens_per_step(self) -> TokensPerStep:
        """τ = 1 + Σ P(at least i accepted), of a chain drafted to its full length in every step."""
        return TokensPerStep(value=1 + sum(self.as_joint().values))


class AcceptanceRate(Record, frozen=True):
    """Accepted over drafted tokens of chains of `lookahead`, all of them drafted in every step: what vLLM calls draft
    acceptance rate and SDSL TAR. It is no α: a refusal wastes all that was drafted behind it.
    """

    value: float
    lookahead: int

    def __post_init__(self) -> None:
        require(self, unit=("value",), positive=("lookahead",))

    def tokens_per_step(self) -> TokensPerStep:
        """τ = 1 + k · rate."""
        return TokensPerStep(value=1 + self.lookahead * self.value)

    def accept_prob(self) -> float:
        """The constant α with Σ_{i=1..k} α^i / k = rate (arXiv 2603.11053), which rises from 0 to 1 with α: by bisection."""
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if rate_of(middle, self.lookahead).value < self.value else (low, middle)
        return (low + high) / 2 if 0 < self.value < 1 else self.value


def rate_of(accept_prob: float, lookahead: int) -> AcceptanceRate:
    """Accepted over drafted of a constant α at a lookahead."""
    if not 0 <= accept_prob <= 1:
        raise ValueError(f"accept_prob must lie in [0, 1], got {accept_prob}")
    if lookahead < 1:
        raise ValueError(f"lookahead must be at least 1, got {lookahead}")
    return AcceptanceRate(
        value=min(sum(accept_prob**i for i in range(1, lookahead + 1)) / lookahead, 1.0), lookahead=lookahead
    )


def rate_of_steps(tokens: TokensPerStep, lookahead: int) -> AcceptanceRate:
    """Accepted over drafted behind a τ at a lookahead. Raises ValueError on one that is not pooled over steps, as rates are."""
    accepted = tokens.pooled("steps").with_bonus(False).value
    if accepted > lookahead:
        raise ValueError(
            f"{accepted:g} accepted tokens per step exceed lookahead {lookahead}: was it a tree, or another lookahead?"
        )
    return AcceptanceRate(value=accepted / lookahead, lookahead=lookahead)


class AcceptProb(Record, frozen=True):
    """α of a kind (see DESIGN's names): "greedy" P(argmax p = argmax q), "point" E[p(x̂)], "sampled" Σ min(p, q)."""

    value: float
    kind: str

    def __post_init__(self) -> None:
        require(self, unit=("value",))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def of_kind(self, kind: str) -> "AcceptProb":
        """Itself where it is of that kind; ValueError otherwise: no kind says what another is."""
        if kind != self.kind:
            raise ValueError(
                f"α is {self.kind}, not {kind}: they are different expectations of p and q; measure it (foredraft measure)"
            )
        return self


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

    def tokens_per_step(self) -> TokensPerStep:
        """τ, pooled over the steps. Raises ValueError without a step."""
        return TokensPerStep(value=1 + self.accepted / self._positive("steps"))

    def rate(self, lookahead: int) -> AcceptanceRate:
        """Accepted over drafted tokens."""
        return AcceptanceRate(value=self.accepted / self._positive("drafted"), lookahead=lookahead)

    def by_positions(self) -> ByPosition:
        """Joint acceptance by position."""
        steps = self._positive("steps")
        return ByPosition(values=tuple(count / steps for count in self.by_position), joint=True)

    def _positive(self, name: str) -> int:
        count: int = getattr(self, name)
        if not count:
            raise ValueError(f"{name} is 0: nothing was drafted between the readings")
        return count


class Speedup(Record, frozen=True):
    """How much faster than plain decoding. `of`: "throughput", output tokens/s, or "tpot", time per token after the first.
    `mean`: "ratio of means", over all requests together, or "mean of ratios", of each request's own. `prefill`: the time of
    prompts is in it.
    """

    value: float
    of: str
    mean: str
    prefill: bool

    def __post_init__(self) -> None:
        require(self, positive=("value",))
        for name, allowed in (("of", ("throughput", "tpot")), ("mean", ("ratio of means", "mean of ratios"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.of == "tpot" and self.prefill:
            raise ValueError("prefill must be false for tpot, which counts from the first token on")


def comparable(values: Sequence[TokensPerStep] | Sequence[AcceptProb] | Sequence[Speedup]) -> None:
    """Raise ValueError, with what differs, unless all values are of one definition and may stand in one table or fit.

    Of tokens per step the bonus token does not matter, since it converts; a pooling that is not stated matters.
    """
    kinds = {type(value).__name__ for value in values}
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(sorted(kinds))} are different things")
    told = {name: {getattr(value, name) for value in values} for name in _DEFINING.get(next(iter(kinds), ""), ())}
    for name, found in told.items():
        if len(found) > 1:
            raise ValueError(f"{name} differs ({', '.join(sorted(map(str, found)))}): {_WHY[name]}")
        if found == {None} and len(values) > 1:
            raise ValueError(f"{name} is not stated: {_WHY[name]}")


_DEFINING = {"TokensPerStep": ("pooling",), "AcceptProb": ("kind",), "Speedup": ("of", "mean", "prefill")}
_WHY = {
    "pooling": "pooled and mean of requests part by a fifth on the same data; the counts of each request are needed",
    "kind": "greedy, point and sampled α are different expectations of p and q",
    "of": "tokens/s moves with the batch and the queue, time per token does not; the times of each request are needed",
    "mean": "short answers weigh more in a mean of ratios; the times of each request are needed",
    "prefill": "prompts take as long with a draft as without; the share of their time is needed",
}

# What each tool's figure counts; `value` is left to be filled in by `read_as`.
TOOLS: dict[str, tuple[bool, str | None]] = {
    "foredraft tokens per step": (True, "steps"),
    "Spec-Bench mean accepted tokens": (True, "steps"),
    "vLLM mean acceptance length": (True, "steps"),
    "SGLang accept length": (True, "steps"),
    "EAGLE tau": (True, None),
    "specdec_bench AL": (True, "requests"),
    "AIC nextn_accepted": (False, None),
    "TensorRT-LLM forced acceptance": (False, None),
    "transformers accepted": (False, None),
}


def read_as(tool: str, value: float) -> TokensPerStep:
    """A tool's figure with its definition. Raises ValueError naming the tools there are."""
    if tool not in TOOLS:
        raise ValueError(f"tool must be one of {', '.join(TOOLS)}; got {tool!r}")
    bonus, pooling = TOOLS[tool]
    return TokensPerStep(value=value, bonus=bonus, pooling=pooling)
