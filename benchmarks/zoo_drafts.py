"""What the benchmarks run on: a target, prompts and drafts, by default SmolLM2-135M-Instruct as `make tour` leaves it and the zoo's drafts.

Promises: a folder that is not there is named before anything starts. Refuses to know: engines.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from foredraft import kinds, records
from foredraft.kinds import Kind
from foredraft.shapes import Shape

ROOT = Path(__file__).parents[1]
TARGET, ZOO = Path("build/smollm2/SmolLM2-135M-Instruct"), Path("zoo")
PROMPTS = ZOO / "prompts.jsonl"


class Draft(NamedTuple):
    """A draft's folder and what it is: `method` as measurements spell it."""

    name: str
    folder: Path
    kind: Kind
    shape: Shape

    @property
    def method(self) -> str:
        return next(iter(self.kind.methods))

    @property
    def served_shape(self) -> Shape:
        """On vLLM: a head without an LM head of its own drafts all of its target's tokens there."""
        cut = self.kind.role == "head" and not self.kind.own_lm_head
        return msgspec.structs.replace(self.shape, draft_vocab_size=None) if cut else self.shape

    @property
    def layers(self) -> int:
        return self.shape.num_layers


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, default=TARGET, help=f"its folder; {TARGET}, which make tour leaves")
    parser.add_argument("--draft", action="append", metavar="NAME=DIR", help="those of the zoo where left out")
    parser.add_argument("--prompts", type=Path, default=PROMPTS)


def drafts_of(words: Sequence[str] | None) -> dict[str, Draft]:
    """Drafts by name, of NAME=DIR or the zoo's. Raises SystemExit, one line, where a folder holds none."""
    folders = {config.parent.name: config.parent for config in sorted(ZOO.glob("*/config.json"))}
    if words:
        folders = {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}
    if lacking := [f"{folder}" for folder in folders.values() if not (folder / "config.json").is_file()]:
        raise SystemExit(f"no draft in {', '.join(lacking)}; --draft is NAME=DIR")
    return {name: _draft(name, folder) for name, folder in folders.items()}


def _draft(name: str, folder: Path) -> Draft:
    shape = kinds.shape_named(str(folder))
    return Draft(name, folder, kinds.of_shape(shape), shape)


def at_hand(target: Path, prompts: Path) -> None:
    """Raises SystemExit where either is not there."""
    if not (target / "config.json").is_file():
        raise SystemExit(f"no target in {target}; hint: make tour, or --target DIR")
    if not prompts.is_file():
        raise SystemExit(f"no {prompts}; hint: --prompts FILE")


def first_of_each(prompts: Path, num: int, folder: Path) -> Path:
    """A file of the first `num` prompts of each category, in turn, so that as few as are asked cover all."""
    lines: dict[str | None, list[bytes]] = {}
    for line in filter(None, prompts.read_bytes().splitlines()):
        lines.setdefault(json.loads(line).get("category"), []).append(line)
    turns = [of[i] for i in range(num) for of in lines.values() if i < len(of)]
    records.write_bytes(folder / prompts.name, b"".join(line + b"\n" for line in turns))
    return folder / prompts.name
