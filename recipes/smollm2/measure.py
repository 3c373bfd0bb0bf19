"""A target alone and with drafts, in one run after another on a quiet machine: tokens per step by category, and speed by precision and batch.

    python recipes/smollm2/measure.py TARGET OUT.json --prompts FILE --draft NAME=DIR [--draft NAME=DIR …] [--quick] [--work DIR]
        [--parts speed,counted,forced] [--dtypes float32,bfloat16] [--batches 1,8,32] [--max-tokens N] [--specs "@2 @3 …"]
        [--lookups "@5 …"] [--finalists N] [--threads N]

Speed, by precision and batch: first every draft in every spec, alone and behind a look-up, on prompts that are measured no more, which chooses
its N fastest specs; then plain decoding, those, and the look-up alone, in turn for each group of prompts, so that a slow minute hurts all alike.
Counted: tokens per step of a chain, of a tree as EAGLE-2 was published and of the chain behind a look-up, in the engine, at temperatures 0 and 1.
Forced: the same of chains, read from more of the target's own answers. FILE: prompts with categories, as `foredraft measure` reads them.

Everything is a sweep of `foredraft measure` below DIR: the same command goes on where it was interrupted; other drafts or settings need another
DIR. OUT.json holds the figures (speeds.py), OUT.jsonl.gz the rows.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import speeds

from foredraft import records
from foredraft.records import Measurement
from foredraft.runs import name_of

PARTS = ("speed", "counted", "forced")
CHAIN, TREE = "@7", "@6,10,60"
TEMPERATURES = ("0", "1")
MOST_VERIFIED = 128  # tokens that a step of all sequences verifies; beyond it no CPU gains
MEASUREMENTS = "measurements.jsonl"


class Size(NamedTuple):
    """How much is measured. `timed`, `counted`, `forced`: prompts of each category; `chosen_on`: prompts in all, on answers half as long;
    `max_tokens` of an answer; `specs`, and `lookups` (of drafts behind a look-up, and of the look-up alone), to choose from.
    """

    timed: int
    chosen_on: int
    counted: int
    forced: int
    max_tokens: int
    specs: str
    lookups: str
    batches: str
    parts: str


FULL = Size(3, 14, 2, 8, 80, "@1 @2 @3 @5 @7 @4,4,8 @5,4,16", "@3 @5 @7", "1,8,32", ",".join(PARTS))
QUICK = Size(1, 4, 1, 2, 48, "@2 @3 @5 @4,4,8", "@5", "1", "speed")


class Bench(NamedTuple):
    """What is measured, and where it is kept."""

    target: str
    drafts: dict[str, str]
    work: Path
    size: Size
    specs: tuple[str, ...]
    lookups: tuple[str, ...]
    finalists: int
    threads: int

    def words(self, prompts: str, drafts: Iterable[str], max_tokens: int, *more: str) -> list[str]:
        """A cell's command. Drafts are named as configurations are: NAME@5, NAME+ngram@5, ngram@5."""
        words = [
            "measure",
            self.target,
            "--prompts",
            str(self.work / f"{prompts}.jsonl"),
            "--out",
            "@.",
            "--max-tokens",
            str(max_tokens),
        ]
        return [
            *words,
            "--threads",
            str(self.threads),
            *more,
            *(word for draft in drafts for word in ("--draft", self.placed(draft))),
        ]

    def placed(self, draft: str) -> str:
        """A configuration with its draft's folder in place of its name."""
        name, at, spec = draft.partition("@")
        stem, beside, lookup = name.partition("+")
        return f"{self.drafts.get(stem, stem)}{beside}{lookup}{at}{spec}"


def main() -> None:
    arguments = _arguments()
    size = QUICK if arguments.quick else FULL
    size = size._replace(max_tokens=arguments.max_tokens or size.max_tokens)
    bench = Bench(
        arguments.target, _drafts(arguments.draft), arguments.work, size, tuple((arguments.specs or size.specs).split()),
        tuple((arguments.lookups or size.lookups).split()), arguments.finalists, arguments.threads,
    )  # fmt: skip
    batches = [int(batch) for batch in (arguments.batches or size.batches).split(",")]
    write_prompts(arguments.prompts, bench.work, size._replace(chosen_on=max(size.chosen_on, *batches)))
    if max(batches) > (num := len((bench.work / "timed.jsonl").read_bytes().splitlines())):
        raise SystemExit(
            f"--batches {max(batches)}: {num} prompts are timed, fewer than are to be decoded together; give more prompts"
        )
    loads = [(dtype, batch) for dtype in arguments.dtypes.split(",") for batch in batches]
    parts = (arguments.parts or size.parts).split(",")
    cells: dict[str, Any] = {}
    chosen: dict[str, dict[str, speeds.Configuration]] = {}
    if "speed" in parts:
        chosen = choose(bench, loads)
        for load in loads:
            finalists = speeds.finalists(chosen[place(*load)], bench.finalists)
            cells[f"speed-{place(*load)}"] = timed(bench, "timed", load, finalists)
    cells |= dict(counted(bench)) if "counted" in parts else {}
    cells |= dict(forced(bench)) if "forced" in parts else {}
    rows = swept(bench, "measured", cells)
    records.write(arguments.out, report(bench, arguments.prompts.name, rows, chosen))
    records.write_lines(arguments.out.with_suffix(".jsonl.gz"), [row for of in rows.values() for row in of])
    print(f"wrote {arguments.out}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--draft", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument(
        "--quick", action="store_true", help="speed alone: a prompt of each category, short answers, batch 1"
    )
    parser.add_argument("--parts", help=", ".join(PARTS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", help="1,8,32")
    parser.add_argument("--max-tokens", type=int, help="of an answer")
    parser.add_argument("--specs", help="chains and trees of every draft to choose from")
    parser.add_argument("--lookups", help="lengths to choose from of a look-up alone, and of every draft behind one")
    parser.add_argument("--finalists", type=int, default=2, help="specs of each draft that are measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="build/smollm2/full, or quick")
    arguments = parser.parse_args()
    arguments.work = arguments.work or Path("build/smollm2", "quick" if arguments.quick else "full")
    if unknown := set((arguments.parts or PARTS[0]).split(",")) - set(PARTS):
        parser.error(f"--parts must list some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return arguments


def _drafts(words: Sequence[str]) -> dict[str, str]:
    """Folders by name. Raises SystemExit where two cannot be told apart."""
    drafts = dict(word.split("=", 1) for word in words if "=" in word)
    if len(drafts) < len(words) or any(set(name) & set("@+=") for name in drafts):
        raise SystemExit("--draft is NAME=DIR, each name once and without @ and +")
    if len({name_of(folder) for folder in drafts.values()}) < len(drafts):
        raise SystemExit("two drafts' folders have one name, by which their rows are told apart; rename one")
    return drafts


def write_prompts(file: Path, folder: Path, size: Size) -> None:
    """Files of the prompts that are timed, counted and forced, so many of each category, and of those chosen on, of each category in turn.

    Those that are timed choose nothing: of a category of two or more, one at least is left to choose on. Raises SystemExit where none is.
    """
    of_category: dict[str | None, list[bytes]] = {}
    for line in filter(bytes.strip, file.read_bytes().splitlines()):
        of_category.setdefault(json.loads(line).get("category"), []).append(line)
    timed = [lines[: min(size.timed, max(len(lines) - 1, 1))] for lines in of_category.values()]
    left = [lines[len(first) :] for lines, first in zip(of_category.values(), timed, strict=True)]
    turns = [lines[i] for i in range(max(map(len, left))) for lines in left if i < len(lines)]
    if not turns:
        raise SystemExit(
            f"{file}: too few prompts: every category has one, and others than are timed must choose the specs"
        )
    parts = {
        name: [line for lines in of_category.values() for line in lines[: getattr(size, name)]]
        for name in ("counted", "forced")
    }
    parts |= {"timed": [line for lines in timed for line in lines], "chosen-on": turns[: size.chosen_on]}
    for name, lines in parts.items():
        records.write_bytes(folder / f"{name}.jsonl", b"".join(line + b"\n" for line in lines))


def place(dtype: str, batch: int) -> str:
    return f"{dtype}-b{batch}"


# Cells.


def choose(bench: Bench, loads: Sequence[tuple[str, int]]) -> dict[str, dict[str, speeds.Configuration]]:
    """By place, every configuration on prompts that are not timed later."""
    every = [f"{name}{spec}" for name in bench.drafts for spec in bench.specs]
    every += [
        f"{name}{spec}" for name in (*(f"{name}+ngram" for name in bench.drafts), "ngram") for spec in bench.lookups
    ]
    cells = {
        place(dtype, batch): timed(bench, "chosen-on", (dtype, batch), [name for name in every if fits(name, batch)])
        for dtype, batch in loads
    }
    rows = swept(bench, "chosen", cells)
    return {at: speeds.configurations(of, _names(bench)) for at, of in rows.items()}


def fits(configuration: str, batch: int) -> bool:
    """Whether a step of `batch` sequences verifies few enough tokens."""
    nodes = int(configuration.rpartition("@")[2].split(",")[-1])
    return batch == 1 or batch * (nodes + 1) <= MOST_VERIFIED


def timed(bench: Bench, prompts: str, load: tuple[str, int], configurations: Iterable[str]) -> dict[str, Any]:
    dtype, batch = load
    max_tokens = bench.size.max_tokens // (1 if prompts == "timed" else 2)
    return {
        "run": bench.words(
            prompts, configurations, max_tokens, "--way", "live", "--dtype", dtype, "--batch", str(batch)
        ),
        "alone": True,
    }


def counted(bench: Bench) -> Iterator[tuple[str, Any]]:
    """A cell per draft and temperature, decoded eight at once since nothing is timed."""
    for temperature in TEMPERATURES:
        more = ("--way", "live", "--batch", "8", "--temperature", temperature)
        for name in bench.drafts:
            configurations = f"{name}{CHAIN}", f"{name}{TREE}", f"{name}+ngram{CHAIN}"
            yield (
                f"counted-t{temperature}-{name}",
                {"run": bench.words("counted", configurations, bench.size.max_tokens, *more)},
            )
        yield (
            f"counted-t{temperature}-ngram",
            {"run": bench.words("counted", (f"ngram{CHAIN}",), bench.size.max_tokens, *more)},
        )


def forced(bench: Bench) -> Iterator[tuple[str, Any]]:
    """A cell per draft; what the target says is cached for the next."""
    more = ("--way", "forced", "--kept", str(bench.work / "target"))
    for name in bench.drafts:
        yield f"forced-{name}", {"run": bench.words("forced", (f"{name}{CHAIN}",), bench.size.max_tokens, *more)}


def swept(bench: Bench, name: str, cells: Mapping[str, Any]) -> dict[str, list[Measurement]]:
    """The cells' rows, once `foredraft sweep` has run those that were not run before. Raises SystemExit where one failed."""
    document, out = bench.work / f"{name}.json", bench.work / name
    records.write(document, {"cells": cells})
    command = [sys.executable, "-m", "foredraft", "sweep", document, "--out", out, "--retry-failed"]
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(code)
    return {cell: records.read_lines(Measurement, out / "cells" / cell / MEASUREMENTS) for cell in cells}


# Figures.


def _names(bench: Bench) -> dict[str, str]:
    return {name_of(folder): name for name, folder in bench.drafts.items()}


def report(
    bench: Bench,
    prompts: str,
    rows: Mapping[str, Sequence[Measurement]],
    chosen: Mapping[str, Mapping[str, speeds.Configuration]],
) -> speeds.Speeds:
    """All figures. `rows`: by cell."""
    names, first = _names(bench), next(iter(rows.values()))[0].observation
    every = [row for of in rows.values() for row in of]
    speed: dict[str, dict[str, speeds.Load]] = {}
    for cell, of in rows.items():
        part, _, at = cell.partition("-")
        if part == "speed":
            dtype, _, batch = at.rpartition("-b")
            figures = speeds.configurations(of, names)
            speed.setdefault(dtype, {})[batch] = speeds.Load(
                configurations=figures, best=speeds.best(figures), chosen=speeds.best(chosen[at])
            )
    return speeds.Speeds(
        target=first.target, machine=first.machine or "", threads=bench.threads, prompts=prompts, max_tokens=bench.size.max_tokens,
        categories=speeds.categories(every), versions=first.provenance.versions,
        measured=(first.provenance.created or "")[:10], drafts=speeds.facts(every, names),
        speed=speed, **{part: speeds.by_temperature(_of_part(rows, part), names) for part in ("counted", "forced")},
    )  # fmt: skip


def _of_part(rows: Mapping[str, Sequence[Measurement]], part: str) -> Iterator[Sequence[Measurement]]:
    yield from (of for cell, of in rows.items() if cell.startswith(part))


if __name__ == "__main__":
    main()
