"""How much of a text lies outside a vocabulary's most frequent words: what a draft that knows these alone can never draft.

The law: outside = c · (1 - ln w / ln V)^p for the w most frequent of V words. Its form was chosen with all ten curves of `coverage.json` in
sight, one tokenizer's of 49,152 words; domains lie off it by a factor each (log-normal), the same at every w. Kept out: another tokenizer's
figure, of Llama 3 (128,256 words), a quarter of whose words hold 95 % of SlimPajama (arXiv 2502.14856): the law says 95.8 %.

Promises: counted where the user counted, else the law with the scatter of a domain left out. Refuses to know: drafts, acceptance.

Shapes: S draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foredraft.records import Record, decode

Array = NDArray[np.float64]

LEAST_VOCABULARY = 16384  # of a tokenizer that the law may speak for: a third of that it was fitted on


class Curve(Record, frozen=True):
    """The share of `tokens` tokens of one domain outside the words most frequent elsewhere, by the file's numbers of words."""

    domain: str
    tokens: int
    outside: tuple[float, ...]


class Curves(Record, frozen=True):
    """Curves of one tokenizer of `vocab_size` words at `words` words each, ranked on `counted_on` tokens."""

    vocab_size: int
    words: tuple[int, ...]
    counted_on: int
    curves: tuple[Curve, ...]
    source: str


class Coverage(Protocol):
    """What says how much lies outside; `source`: what that is, for people."""

    @property
    def source(self) -> str: ...

    def outside(self, words: int, vocab_size: int, normal: ArrayLike = 0.0) -> Array:
        """The share of tokens outside the `words` most frequent of `vocab_size`, 0 of all; `normal` [S]: how far off the middle it lies."""
        ...


class CoverageLaw(NamedTuple):
    """`level` log c, `power` p, and `sd` of the log of the share, of a domain that was left out."""

    level: float
    power: float
    sd: float
    source: str

    def outside(self, words: int, vocab_size: int, normal: ArrayLike = 0.0) -> Array:
        if words >= vocab_size:
            return np.zeros_like(np.asarray(normal, dtype=float))
        log_share = self.level + self.power * np.log(1 - np.log(words) / np.log(vocab_size))
        return np.minimum(np.exp(log_share + self.sd * np.asarray(normal, dtype=float)), 1.0)


@dataclass(frozen=True)
class CountedCoverage:
    """Of the user's own tokens: (words, share outside, the same with ranking and counting halves changed about), words ascending."""

    points: tuple[tuple[int, float, float], ...]
    source: str = "counted on the training tokens"

    def outside(self, words: int, vocab_size: int, normal: ArrayLike = 0.0) -> Array:
        """Between two counts along the logs; the spread is what the halves of the text differ by."""
        normal = np.asarray(normal, dtype=float)
        if words >= vocab_size:
            return np.zeros_like(normal)
        sizes, first, second = (np.log(np.maximum(column, TINY)) for column in zip(*self.points, strict=True))
        middle = np.interp(np.log(words), sizes, (first + second) / 2)
        sd = np.interp(np.log(words), sizes, np.abs(first - second) / np.sqrt(2))
        return np.minimum(np.exp(middle + sd * normal), 1.0)


TINY = 1e-9  # a share of which no token was seen


@cache
def coverage_law() -> CoverageLaw:
    """The law fitted on the shipped curves."""
    text = (files("foredraft") / "published" / "coverage.json").read_text(encoding="utf-8")
    return fitted(decode(Curves, text, name="coverage.json"))


def fitted(curves: Curves) -> CoverageLaw:
    """By least squares in logs; `sd` over the curves, each left out in turn."""
    left = np.concatenate(
        [residuals(curves.curves[i], _line(_without(curves, i)), curves) for i in range(len(curves.curves))]
    )
    level, power = _line(curves)
    sd = float(np.sqrt(np.mean(left**2)))
    return CoverageLaw(level, power, sd, f"by a law fitted on {len(curves.curves)} domains of text")


def residuals(curve: Curve, line: tuple[float, float], curves: Curves) -> Array:
    """How far a curve lies above the law's line, in logs."""
    return np.log(curve.outside) - line[0] - line[1] * np.log(_places(curves))


def _without(curves: Curves, index: int) -> Curves:
    others: Sequence[Curve] = [curve for i, curve in enumerate(curves.curves) if i != index]
    return Curves(curves.vocab_size, curves.words, curves.counted_on, tuple(others), curves.source)


def _places(curves: Curves) -> Array:
    return 1 - np.log(curves.words) / np.log(curves.vocab_size)


def _line(curves: Curves) -> tuple[float, float]:
    """Level and power."""
    places = np.tile(np.log(_places(curves)), len(curves.curves))
    shares = np.log(np.concatenate([curve.outside for curve in curves.curves]))
    power, level = np.polyfit(places, shares, 1)
    return float(level), float(power)
