"""The code blocks of README and docs: what each promises, and whether it holds; with --write, outputs that are shown are written anew.

| fence | what is checked |
|---|---|
| `console` | what follows "$ " is run here, in a folder that holds `examples/`; below stands what it prints, a line "…" for lines left out |
| `bash` | commands, run alike, whose output is not shown |
| `python` | run, on the face of the package |
| `json` | read; as a recipe or a grid where its title says so |
| any with `title="needs …"` | not run: its verbs and options, its targets of make, its files and extras are looked up |

Numbers may differ by `LAST_DIGITS`, as on another processor. python recipes/docs_blocks.py [--write] [FILE …]
"""

import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/plan.ipynb"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]*)\")? *$")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
LAST_DIGITS = 0.02  # relative, and absolute
GAP, PROMPT = "…", "$ "
RUN = "console", "bash", "python"


STALE = "something else is printed now; python recipes/docs_blocks.py --write takes it over"

Changes = dict[tuple[Path, int], tuple[list[str], list[str]]]  # by page and line: what is shown, and what is printed


@dataclass(frozen=True)
class Block:
    """One fenced block; `line`: of its first line of text, from 0."""

    page: Path
    line: int
    language: str
    title: str
    lines: tuple[str, ...]

    @property
    def needs(self) -> bool:
        """Whether its title says that it needs what is not here."""
        return self.title.startswith("needs ")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README and docs, in the order of the navigation, which is the order in which blocks are run; the log, a record, stays out."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = [ROOT / "docs" / name for name in re.findall(r"[\w/-]+\.md", nav)]
    return [
        ROOT / "README.md",
        *(page for page in named if page.is_file() and page.name not in ("log.md", "results.md")),
    ]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    start: tuple[int, re.Match[str]] | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if fence := FENCE.match(line):
            if start is None:
                start = number + 1, fence
            else:
                first, opening = start
                text = tuple(each.removeprefix(opening["indent"]) for each in lines[first:number])
                yield Block(page, first, opening["language"], opening["title"] or "", text)
                start = None


def sessions(block: Block) -> Iterator[tuple[str, int, list[str]]]:
    """Of a `console` block each command, the line where its output begins, from 0, and that output; of a `bash` block the commands."""
    if block.language == "bash":
        for command in joined(block.lines):
            yield command, 0, []
        return
    starts = [number for number, line in enumerate(block.lines) if line.startswith(PROMPT)]
    for start, end in zip(starts, [*starts[1:], len(block.lines)], strict=True):
        first = start + 1
        while block.lines[first - 1].endswith("\\"):
            first += 1
        command = joined([block.lines[start].removeprefix(PROMPT), *block.lines[start + 1 : first]])[0]
        yield command, first, list(block.lines[first:end])


def joined(lines: Sequence[str]) -> list[str]:
    """Command lines, each whole; without comments alone and empty ones."""
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line for line in whole if line.strip() and not line.lstrip().startswith("#")]


def parts(command: str) -> Iterator[list[str]]:
    """The words of each simple command in a line, without assignments before and redirections behind it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    skipped = False
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;()"):
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            skipped = True
        elif skipped:
            skipped = False
        else:
            words.append(word)


def foredraft_words(words: list[str]) -> list[str] | None:
    """What follows `foredraft`, or `-m foredraft` of any program; None of another command."""
    if words[0] == "foredraft":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "foredraft":
        return words[words.index("-m") + 2 :]
    return None


@cache
def command_line() -> Any:
    """The whole of the typer app."""
    import typer

    from foredraft.cli.main import app

    return typer.main.get_command(app)


def check_words(words: list[str]) -> None:
    """Raise an error where the command line has no such verb or option, or takes fewer words."""
    command = command_line()
    context = command.context_class(command, info_name="foredraft")
    while hasattr(command, "commands"):
        if words and words[0] not in command.commands and words[0].startswith("-"):
            break
        if command.name == "deploy" and words and words[0] not in command.commands:
            words = ["export", *words]
        if not words or words[0] not in command.commands:
            raise ValueError(f"no verb {words[:1]}")
        command, words = command.commands[words[0]], words[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
    _, rest, _ = command.make_parser(context).parse_args(args=[*words])
    if rest:
        raise ValueError(f"{command.name} takes no {rest[0]!r}")


def check_named(block: Block) -> Iterator[str]:
    """What a block that is not run names and what is not there: verbs, options, targets of make, files, extras."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [command for command, *_ in sessions(block)] if block.language == "console" else joined(block.lines)
    for line in lines:
        for extra in re.findall(r"foredraft\[([\w,]+)\]", line):
            if missing := set(extra.split(",")) - set(project["optional-dependencies"]):
                yield f"{block}: no extra {missing}"
        for path in re.findall(r"\b((?:recipes|benchmarks|examples)/[\w./-]+\.\w+)", line):
            if not (ROOT / path).is_file():
                yield f"{block}: no file {path}"
        for target in re.findall(r"(?:^|&& |; )make ([a-z-]+)", line):
            if f"\n{target}:" not in makefile:
                yield f"{block}: no target {target} of make"
        if "foredraft " in line:
            for words in map(foredraft_words, parts(line)):
                try:
                    if words is not None:
                        check_words(words)
                except Exception as error:  # the command line's own complaints have a class of their own
                    yield f"{block}: {line.strip()}: {error}"


class Session:
    """Commands run one after another in a folder that holds `examples/`; an equal one is run once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: dict[str, list[str]] = {}
        shutil.copytree(ROOT / "examples", folder / "examples", dirs_exist_ok=True)

    def run(self, command: str) -> list[str]:
        """What it prints, stdout and stderr together, a list of lines. Raises ValueError where it fails."""
        if command not in self.printed:
            out = io.StringIO()
            for words in parts(command):
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.chdir(self.folder):
                    self._run(words, out)
            self.printed[command] = [line.rstrip() for line in out.getvalue().strip("\n").splitlines()]
        return self.printed[command]

    def _run(self, words: list[str], out: io.StringIO) -> None:
        if words[0] in ("cat", "head"):
            lines = Path(words[-1]).read_text(encoding="utf-8").splitlines()
            print(*(lines if words[0] == "cat" else lines[: int(words[-2].lstrip("-n "))]), sep="\n")
            return
        from foredraft.cli.main import main

        words_of_ours = foredraft_words(words)
        if words_of_ours is None:
            raise ValueError(f'{words[0]} is not run here; say what it needs: title="needs …"')
        try:
            with patch.object(sys, "argv", ["foredraft", *words_of_ours]):
                main()
        except SystemExit as end:
            if end.code not in (0, None, 1):
                raise ValueError(f"{' '.join(words)} ends with {end.code}: {out.getvalue()[-300:]}") from None

    def python(self, lines: Sequence[str], names: dict[str, Any] | None = None) -> list[str]:
        """What a block of Python prints; `names`: what blocks before it have bound."""
        text, out = "\n".join(lines), io.StringIO()
        if names is None and text in self.printed:
            return self.printed[text]
        with contextlib.redirect_stdout(out), contextlib.chdir(self.folder):
            exec(text, {"__name__": "__docs__"} if names is None else names)
        self.printed[text] = [line.rstrip() for line in out.getvalue().splitlines()]
        return self.printed[text]


def refreshed(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """`shown` with the lines that were printed in their place: in order, none left out but at a "…" line; of a line that ends in "…" so
    many words. Raises ValueError at the first that has no match.
    """
    lines: list[str] = []
    at, gap = 0, False
    for line in shown:
        if line.strip() == GAP:
            lines.append(line)
            gap = True
            continue
        ahead = range(at, len(printed) if gap else min(at + 1, len(printed)))
        alike_lines = [number for number in ahead if _shape(_cut(printed[number], line)) == _shape(line)]
        match = min(alike_lines, key=lambda number: _differing(printed[number], line), default=None)
        if match is None:
            raise ValueError(f"not printed{' there' if at else ''}: {line!r}")
        lines.append(_cut(printed[match], line))
        at, gap = match + 1, False
    if not gap and any(line.strip() for line in printed[at:]):
        raise ValueError(f"more is printed: {next(line for line in printed[at:] if line.strip())!r}")
    return lines


def _differing(line: str, other: str) -> int:
    """How many of their words are not the same."""
    return sum(word != there for word, there in zip(line.split(), other.split(), strict=False))


def _cut(printed: str, shown: str) -> str:
    """So many words of a printed line as are shown of it, where it is shown in part."""
    if not shown.endswith(f" {GAP}"):
        return printed
    end = list(re.finditer(r"\S+", printed))[: len(shown.split()) - 1]
    return f"{printed[: end[-1].end()]} {GAP}" if end else GAP


def _shape(line: str) -> str:
    return " ".join(NUMBER.sub("0", line).split())


def alike(lines: Sequence[str], others: Sequence[str]) -> bool:
    """Whether lines say the same but for blanks and the last digits of their numbers."""
    if [*map(_shape, lines)] != [*map(_shape, others)]:
        return False
    numbers = ([float(n.replace(",", "")) for n in NUMBER.findall("\n".join(each))] for each in (lines, others))
    return all(math.isclose(a, b, rel_tol=LAST_DIGITS, abs_tol=LAST_DIGITS) for a, b in zip(*numbers, strict=True))


def faults(block: Block, session: Session, changes: Changes) -> Iterator[str]:
    """What does not hold of a block; outputs that are printed otherwise go to `changes`, by page and line."""
    if block.language == "json":
        yield from _json_faults(block)
    elif block.needs:
        yield from check_named(block)
    elif block.language == "python":
        try:
            session.python(block.lines)
        except Exception as error:
            yield f"{block}: {type(error).__name__}: {error}"
    elif block.language in RUN:
        for command, first, shown in sessions(block):
            lines = shown
            try:
                printed = session.run(command if block.language == "console" else _sooner(command))
                if block.language == "console":
                    lines = refreshed(shown, printed)
            except ValueError as error:
                if block.language == "bash" or any(GAP in line for line in shown) or not shown:
                    yield f"{block}: {command}: {error}"
                    continue
                lines = printed  # which is shown whole
            if not alike(shown, lines):
                yield f"{block}: {command}: {STALE}"
            if shown != lines:
                changes[block.page, block.line + first] = shown, lines


def _sooner(command: str) -> str:
    """A plan whose output is not shown, on few draws."""
    return f"{command} --draws 16" if command.startswith("foredraft plan ") else command


def _json_faults(block: Block) -> Iterator[str]:
    import msgspec

    from foredraft.recipe import Recipe
    from foredraft.sweep.grid import Grid

    try:
        value = json.loads("\n".join(block.lines))
        if block.title in ("recipe", "grid"):
            msgspec.convert(value, {"recipe": Recipe, "grid": Grid}[block.title])
    except (ValueError, msgspec.ValidationError) as error:
        yield f"{block}: {error}"


def notebook_faults(path: Path, session: Session, write: bool = False) -> Iterator[str]:
    """What does not hold of a notebook, whose cells are run in order: an error, or another output than it shows, written anew on demand."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__docs__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        printed = session.python("".join(cell["source"]).splitlines(), names)
        shown = "".join(line for output in cell["outputs"] for line in output["text"]).splitlines()
        text = [f"{line}\n" for line in printed]
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
        if not write and not alike(shown, printed):
            yield f"{path.name}, cell {number}: {STALE}"
    if write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(*words: str) -> None:
    named = [Path(word).resolve() for word in words if not word.startswith("--")]
    changes: Changes = {}
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        wrong = [
            fault for page in named or pages() for block in blocks(page) for fault in faults(block, session, changes)
        ]
        if not named:
            wrong += notebook_faults(NOTEBOOK, session, "--write" in words)
    if "--write" in words:
        for (page, first), (shown, lines) in sorted(changes.items(), reverse=True):
            text = page.read_text(encoding="utf-8").splitlines()
            text[first : first + len(shown)] = lines
            page.write_text("\n".join(text) + "\n", encoding="utf-8")
        wrong = [fault for fault in wrong if not fault.endswith(STALE)]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
