"""Measurements that others published, as our records: `tables` reads a CSV, `observations()` gives what ships with
the package.

Refuses to know: what the numbers are used for.
"""

import csv
import gzip
import re
from functools import cache
from importlib.resources import files

import msgspec

from foredraft.records import LengthCase, Observation, decode


@cache
def observations() -> tuple[Observation, ...]:
    """Every published measurement that ships with the package, in the order of its file."""
    lines = gzip.decompress((files("foredraft.published") / "observations.jsonl.gz").read_bytes()).splitlines()
    return tuple(decode(Observation, line, name=f"observations.jsonl.gz:{i}") for i, line in enumerate(lines, 1))


def observations_by_table() -> dict[str, list[Observation]]:
    """The shipped observations by the table that they stand in."""
    by_table: dict[str, list[Observation]] = {}
    for row in observations():
        by_table.setdefault(row.run.rsplit(":", 1)[0], []).append(row)
    return by_table


def document(source: str) -> str:
    """The document or repository that a source string points into: what counts as one table when tables are held out
    of a fit.

    >>> document("github.com/SemiAnalysisAI/InferenceX@843c6254f golden_al_distribution/dsv4.yaml")
    'github.com/semianalysisai/inferencex'
    >>> document("huggingface.co/RedHatAI/Llama-4-Maverick-17B-128E-Instruct-speculator.eagle3 (card)")
    'huggingface.co/redhatai/llama-4-maverick-17b-128e-instruct-speculator.eagle3'
    """
    head = re.split(r"[@\s,;()]", source.strip().lower().removeprefix("https://"), maxsplit=1)[0]
    return "/".join(head.split("/")[:3]) if head.startswith(("github.com/", "huggingface.co/")) else head


@cache
def length_cases() -> tuple[LengthCase, ...]:
    """Published comparisons of fixed and adaptive lengths, in the order of their file."""
    text = (files("foredraft.published") / "length_cases.csv").read_text()
    return tuple(_length_case(row) for row in csv.DictReader(text.splitlines()))


def _length_case(row: dict[str, str]) -> LengthCase:
    cells: dict[str, object] = {name: cell for name, cell in row.items() if cell}
    if "survival" in cells:
        cells["survival"] = row["survival"].split()
    return msgspec.convert(cells, LengthCase, strict=False)
