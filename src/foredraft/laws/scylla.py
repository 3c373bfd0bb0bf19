"""Scylla's three theorems as published (arXiv 2505.07858): the coefficients as printed, under every reading that the print leaves open.

Promises: a value comes with what the rounding of the printed coefficients leaves of it. Refuses to know: our own fits of the same dials
(`laws.forms`), and costs.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike

from foredraft.laws.law import Array
from foredraft.records import Record, decode


class StatedValue(Record, frozen=True):
    """A value that the paper states: at `at`, or (`over`) the step from there to `at`; `rounding`: half a unit of its last digit."""

    what: str
    at: float
    value: float
    rounding: float
    over: float | None = None


class LogReading(Record, frozen=True):
    """One way to read a printed logarithm: its base, and the unit of what it is taken of."""

    name: str
    base: float
    unit: float


class SizePairing(Record, frozen=True):
    """Which layers the printed sizes (`params`, parameters) are taken to have."""

    name: str
    params: tuple[float, ...]
    layers: tuple[float, ...]


class LogTheorem(Record, frozen=True):
    """τ = intercept + slope·log(x), x a dial of the draft's making; the first of `readings` is the one that fits best."""

    name: str
    formula: str
    about: str
    intercept: float
    slope: float
    intercept_rounding: float
    slope_rounding: float
    domain: tuple[float, float]
    readings: tuple[LogReading, ...]
    stated: tuple[StatedValue, ...]
    ambiguities: tuple[str, ...]
    pairings: tuple[SizePairing, ...] = ()

    def tokens_per_step(self, at: ArrayLike, reading: LogReading | None = None) -> Array:
        """τ at `at`, tokens or layers."""
        return self.intercept + self.slope * self._log(at, reading)

    def rounding(self, at: ArrayLike, reading: LogReading | None = None) -> Array:
        """How far τ at `at` may lie off for the rounding of the coefficients."""
        return self.intercept_rounding + self.slope_rounding * np.abs(self._log(at, reading))

    def says(self, stated: StatedValue, reading: LogReading | None = None) -> tuple[float, float]:
        """What the law gives for a stated value, and the rounding of both."""
        if stated.over is None:
            value, off = self.tokens_per_step(stated.at, reading), self.rounding(stated.at, reading)
        else:
            rise = self._log(stated.at, reading) - self._log(stated.over, reading)
            value, off = self.slope * rise, self.slope_rounding * abs(rise)
        return float(value), float(off) + stated.rounding

    def _log(self, at: ArrayLike, reading: LogReading | None) -> Array:
        reading = reading or self.readings[0]
        return np.log(np.asarray(at, dtype=float) / reading.unit) / np.log(reading.base)


class BatchTheorem(Record, frozen=True):
    """k_opt(b) = scale·√(1 + load/b) − shift paths, and the throughput that the paper gives with it, tokens/s."""

    name: str
    formula: str
    about: str
    scale: float
    load: float
    shift: float
    scale_rounding: float
    load_rounding: float
    shift_rounding: float
    throughput_slope: float
    throughput_intercept: float
    domain: tuple[float, float]
    stated: tuple[StatedValue, ...]
    ambiguities: tuple[str, ...]

    def best_paths(self, batch: ArrayLike) -> Array:
        """k_opt at each batch size."""
        return self.scale * np.sqrt(1 + self.load / np.asarray(batch, dtype=float)) - self.shift

    def rounding(self, batch: ArrayLike) -> Array:
        """How far k_opt may lie off for the rounding of the coefficients: each by itself at its worst."""
        root = np.sqrt(1 + self.load / np.asarray(batch, dtype=float))
        return (
            self.scale_rounding * root
            + self.shift_rounding
            + self.scale * self.load_rounding / (2 * root * np.asarray(batch, dtype=float))
        )

    def says(self, stated: StatedValue) -> tuple[float, float]:
        """What the law gives for a stated value, and the rounding of that value alone: the coefficients are exact here."""
        return float(self.best_paths(stated.at)), stated.rounding

    def throughput(self, batch: ArrayLike) -> Array:
        """The published line, tokens/s; it does not reproduce Table 5."""
        return self.throughput_slope * np.log2(np.asarray(batch, dtype=float)) + self.throughput_intercept

    def as_intensity(self) -> tuple[float, float, float]:
        """The same law squared out: k·(1 + k/span) = critical/b + cache, so (span, critical, cache).

        `critical`: tokens per pass at which compute takes as long as reading the weights; `cache`: what each sequence's cache adds
        to that; `span`: context at which attention among the k tokens costs as much as the weights.
        """
        span = 2 * self.shift
        return span, self.scale**2 * self.load / span, (self.scale**2 - self.shift**2) / span


class AcceptPair(Record, frozen=True):
    """Published τ of EAGLE-2 and Scylla on a target, mean of six tasks at temperature 0, in EAGLE-2's trees."""

    target: str
    eagle2: float
    scylla: float


class Table5(Record, frozen=True):
    """Tokens/s by batch without a draft, with EAGLE-2 and with Scylla, and what they were measured on."""

    target: str
    machine: str
    devices: int
    input_len: float
    batch: tuple[int, ...]
    none: tuple[float, ...]
    eagle2: tuple[float, ...]
    scylla: tuple[float, ...]


class PublishedScylla(Record, frozen=True):
    """What the paper states."""

    source: str
    theorem_1_1: LogTheorem
    theorem_1_2: LogTheorem
    theorem_1_3: BatchTheorem
    accept: tuple[AcceptPair, ...]
    table_5: Table5

    @property
    def theorems(self) -> tuple[LogTheorem | BatchTheorem, ...]:
        return self.theorem_1_1, self.theorem_1_2, self.theorem_1_3

    def lines(self) -> dict[str, str]:
        """Each theorem in one line, with its ambiguities, under a name of its own: for people."""
        return {
            f"scylla_{each.name}": f"{each.formula}: {each.about} ({self.source}). Open: {'; '.join(each.ambiguities)}"
            for each in self.theorems
        }


@cache
def published_scylla() -> PublishedScylla:
    """The paper's statements that ship with the package."""
    text = (files("foredraft") / "published" / "scylla.json").read_text(encoding="utf-8")
    return decode(PublishedScylla, text, name="scylla.json")
