"""What all verbs share at the terminal: JSON or tables on stdout, an error's line and hint on stderr.

Refuses to know: any verb, and any room.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from foredraft.records import Observation

WIDTH = 110  # columns of tables into a pipe or file
FULL = "pip install 'foredraft[full]'"
SHOWN = 300  # characters of another program's message
PLOT = "pip install 'foredraft[plot]'"
ENDPOINT = "pip install 'foredraft[endpoint]'"


def fail(error: BaseException, options: Mapping[str, str] | None = None) -> NoReturn:
    """End with exit code 2, or the error's own (130 of a stop that was asked for): the error as one line on stderr, then its notes as
    hints (see `records.with_hint`); control characters in it, which may be others', are shown.

    `options`: by a field's name the option that sets it, as it is typed; a message that begins with a field begins with its option.
    """
    from foredraft.records import visible

    field, space, rest = " ".join(_message(error).split()).partition(" ")
    print(f"error: {visible((options or {}).get(field, field))}{space}{visible(rest)}", file=sys.stderr)
    hints = ("check the path",) if isinstance(error, FileNotFoundError) else ()
    for hint in getattr(error, "__notes__", hints):
        print(f"\nhint: {visible(hint)}", file=sys.stderr)
    raise SystemExit(getattr(error, "exit_code", 2))


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs {error.name}: {ENDPOINT if error.name == 'httpx2' else FULL}"
    return str(error)


def fail_memory(error: BaseException) -> NoReturn:
    """The same where memory ran out, whoever asked for it."""
    reason = next(iter(str(error).splitlines()), "") or "Python could not allocate"
    failure = MemoryError(f"out of memory ({reason[:SHOWN]})")
    failure.add_note("lower --batch or --context, choose a smaller --dtype, or give a smaller file")
    fail(failure)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python's words or in torch's."""
    words = ("can't allocate memory", "out of memory", "Unable to allocate")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def fail_bug(error: BaseException, command: str) -> NoReturn:
    """End with exit code 1 where the fault is this program's: what failed and where, in one line, and how to report it.

    `command`: the verb and the names of its options, without what they were given.
    """
    import platform
    import traceback

    from foredraft import __version__
    from foredraft.records import visible

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "foredraft" in Path(frame.filename).parts]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    reason = " ".join(str(error).split())[:SHOWN]
    program = f"{visible(command)} (version {__version__}, Python {platform.python_version()})"
    print(
        f"error: {visible(f'{type(error).__name__}: {reason}')}{where}: a bug of foredraft, or a file it misreads, in {program}",
        file=sys.stderr,
    )
    print(
        f"\nhint: report this line at {_tracker()}, with what the same command says with --debug; leave out what is secret",
        file=sys.stderr,
    )
    raise SystemExit(1)


def _tracker() -> str:
    """Where bugs are reported, as the package's own metadata says."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        lines = metadata("foredraft").get_all("Project-URL") or []
    except PackageNotFoundError:
        lines = []
    urls = {name.strip().lower(): url.strip() for name, _, url in (line.partition(",") for line in lines)}
    return next(
        (urls[name] for name in ("issues", "repository", "homepage") if name in urls), "the project's issue tracker"
    )


def command_of(app: typer.Typer, words: Sequence[str]) -> str:
    """The verb and the names of the options that `words` hold; not what they are given, which may be secret."""
    command: Any = typer.main.get_command(app)
    verbs = []
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        verbs.append(word)
    known = {name for param in command.params for name in param.opts}
    options = [name for word in words if (name := word.partition("=")[0]) in known and name.startswith("-")]
    return " ".join(("foredraft", *verbs, *options))


def one_at_a_time(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that has its output, where --out names one, to itself: a second run on the same one ends with who has it, in one line."""

    @functools.wraps(verb)
    def run(*words: Any, **options: Any) -> None:
        from foredraft.records import reserved

        with reserved(options["out"]) if options.get("out") else nullcontext():
            verb(*words, **options)

    return run


def fail_usage(error: Any) -> NoReturn:
    """The same for what typer finds on a command line: a mistyped option in one line, all of the help where no verb is named."""
    if "\n" in error.format_message():
        error.show()
        raise SystemExit(2)
    verb = f"{error.ctx.command_path} --help" if getattr(error, "ctx", None) else "foredraft --help"
    usage = ValueError(error.format_message())
    usage.add_note(verb)
    fail(usage)


def options_of(app: typer.Typer, words: Sequence[str]) -> dict[str, str]:
    """By parameter, the options of the verb that `words` name, as they are typed."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return {param.name: max(param.opts, key=len) for param in command.params if param.opts[0].startswith("-")}


def print_json(record: Any) -> None:
    """A record, or anything of records, on stdout."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(record), indent=1).decode())


def print_blocks(blocks: Iterable[Any], width: int = WIDTH) -> None:
    """Tables and texts on stdout, to the terminal's width, or to `width` columns into a pipe or file; bare strings as they are, for commands
    that are copied.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else width)
    for block in blocks:
        console.print(block, soft_wrap=isinstance(block, str), markup=False)


def progress_bar() -> "Progress":
    """A bar on stderr, gone when done; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def dtype_of(name: str) -> "torch.dtype":
    """The torch type that an option of type `Dtype` names."""
    import torch

    return getattr(torch, name)


def set_threads(threads: int | None) -> None:
    """Let torch compute with that many; None leaves its own choice."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def names(text: str) -> tuple[str, ...]:
    """The words of a list such as head,lm."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def prompts_of(prompt: str | None, file: Path | None) -> str:
    """The prompt, or what stands on stdin; "" where a file has them. Raises ValueError where there is none or two of them."""
    if prompt is not None and file is not None:
        raise ValueError("prompt and --file: give one of them")
    if file is not None:
        return ""
    words = prompt if prompt is not None else "" if sys.stdin.isatty() else sys.stdin.read()
    if not words.strip():
        raise ValueError("prompt: give one as an argument, with --file or on stdin")
    if any("\ud800" <= character <= "\udfff" for character in words):
        raise ValueError("prompt: it is not UTF-8")
    return words


def check_models(
    target: str | Path, drafts: Iterable[str] = (), *, tokenizer: bool = True, gguf: bool = True, weights: bool = True
) -> None:  # fmt: skip
    """Raise ValueError where the target's folder or a draft's (DIR, DIR@5, DIR+ngram@5, …) is missing or none, before anything heavy is
    loaded; where not `gguf`, for a GGUF file too. `weights`: whether the target needs them.
    """
    from foredraft.kinds import NGRAM, parted
    from foredraft.shapes import check_folder, check_same_tokenizer

    check_folder(target, tokenizer=tokenizer, gguf=gguf, weights=weights)
    for draft in drafts:
        folder, _, budget = draft.rpartition("@")
        folder, _ = parted(folder or budget)
        if folder != NGRAM.name and not draft.startswith("@"):
            check_folder(folder, gguf=gguf)
            check_same_tokenizer(target, folder)


def refuse(ctx: typer.Context, options: Iterable[str], why: str) -> None:
    """Raise ValueError, naming them and `why`, if any of these options or arguments stand on the command line."""
    sources = {name: ctx.get_parameter_source(name) for name in options}
    typed = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if typed:
        shown = (name.upper() if name == "target" else f"--{name.replace('_', '-')}" for name in typed)
        raise ValueError(f"{', '.join(shown)}: {why}")


def command() -> str:
    """The command line as typed, for a record's provenance."""
    import shlex

    return shlex.join(["foredraft", *sys.argv[1:]])


def rows_by_file(
    files: Iterable[Path], names: Iterable[str] | None = None, target: str | None = None
) -> "dict[str, list[Observation]]":
    """The measurements in each file, by its name; on stderr how many there are, and what was not used and why. Targets in `names`
    count as `target`, or as the first of them.
    """
    from foredraft.published.readers import joined, read

    readings = read(files)
    for reading in readings:
        print(reading, file=sys.stderr)
    rows = joined([row for reading in readings for row in reading.rows], tuple(names or ()), target)
    by_file, start = {}, 0
    for reading in readings:
        by_file.setdefault(reading.name, []).extend(rows[start : start + len(reading.rows)])
        start += len(reading.rows)
    return by_file


def drawn(draw: Callable[[], list[Path]]) -> list[Path]:
    """The figures that `draw` wrote; none without matplotlib, and a line on stderr that says how to get it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print(f"no figures: they need matplotlib ({PLOT})", file=sys.stderr)
        return []
    return draw()


def say_written(paths: Iterable[Path]) -> None:
    """Name on stderr the files that were written, of figures the PNG alone."""
    print("wrote " + ", ".join(str(path) for path in paths if path.suffix != ".svg"), file=sys.stderr)
