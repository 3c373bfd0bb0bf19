"""What the published measurements say that a prediction may lean on, with the judged documents left out.

Refuses to know: what will be predicted with it.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from foredraft import kinds, published
from foredraft.laws import acceptance, acceptance_fit
from foredraft.laws.acceptance import PositionLaw
from foredraft.laws.acceptance_fit import Lesson
from foredraft.laws.adaptive import AdaptiveLaw
from foredraft.records import Observation, decode
from foredraft.shapes import Shape, known_name, shape

NOTHING: frozenset[str] = frozenset()


@cache
def observations(without: frozenset[str] = NOTHING) -> tuple[Observation, ...]:
    """Published observations, less those of the documents in `without` (see `published.document`)."""
    return tuple(row for row in published.observations() if published.document(row.provenance.source) not in without)


def documents(rows: Sequence[Observation]) -> frozenset[str]:
    """The documents that `rows` come from."""
    return frozenset(published.document(row.provenance.source) for row in rows)


@cache
def position_law(without: frozenset[str] = NOTHING) -> PositionLaw:
    """The position law over published curves but those of `without`: a shipped fit for one document, a fresh one (2 s) for several."""
    laws = decode(
        dict[str, PositionLaw],
        (files("foredraft.published") / "position_laws.json").read_bytes(),
        name="position_laws.json",
    )
    left_out = sorted(without & laws.keys())
    return laws["+".join(left_out)] if len(left_out) < 2 else fit_position_law(observations(without))


@cache
def adaptive_law(without: str = "") -> AdaptiveLaw:
    """The law of adaptive lengths over published cases, less those of one document."""
    data = (files("foredraft.published") / "adaptive_laws.json").read_bytes()
    laws = decode(dict[str, AdaptiveLaw], data, name="adaptive_laws.json")
    return laws.get(without, laws[""])


def lessons(rows: Sequence[Observation]) -> list[Lesson]:
    """Every curve in `rows` that has three or more lookaheads.

    Each weighs 1/√n, n the curves of its document: one document's habits must not drown the others, nor one curve count as much as
    forty.
    """
    home = {acceptance.curve_key(row): published.document(row.provenance.source) for row in rows}
    curves = {key: curve for key, curve in acceptance.chain_curves(rows).items() if len(curve) >= 3}
    sizes, single_runs = Counter(home[key] for key in curves), acceptance.single_runs(rows)
    return [
        Lesson(curve, sizes[home[key]] ** -0.5, kinds.of_method(key[1]).prior, key in single_runs)
        for key, curve in curves.items()
    ]


def fit_position_law(rows: Sequence[Observation]) -> PositionLaw:
    """The position law from every curve in `rows`."""
    return acceptance_fit.fit_position_law(lessons(rows))


def fit_position_laws(rows: Sequence[Observation]) -> dict[str, PositionLaw]:
    """The law from all of `rows` under "", and without each document that teaches a curve under that document's name."""
    by_document: dict[str, list[Observation]] = {}
    for row in rows:
        by_document.setdefault(published.document(row.provenance.source), []).append(row)
    laws = {"": fit_position_law(rows)}
    for name in sorted(name for name, own in by_document.items() if lessons(own)):
        laws[name] = fit_position_law([row for row in rows if published.document(row.provenance.source) != name])
    return laws


def names(name: str, target: Shape) -> bool:
    """Whether `name` stands for `target`'s shape: by its own name, or as a public model of its size."""
    return name == target.name or ((params := _params(name)) is not None and params == target.params)


@cache
def _params(name: str) -> int | None:
    return shape(name).params if known_name(name) else None
