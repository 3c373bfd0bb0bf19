"""What all verbs share at the terminal: the options that mean the same everywhere, JSON or tables on stdout, an error's line and
hint on stderr.

Refuses to know: any verb, and any room.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

JSON = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(help="Torch threads; torch's own choice by default.")]
WIDTH = 110  # columns of tables into a pipe or file
HINTS = {  # a word of the message -> the next command
    "no shape named": "foredraft list models; or pass the folder of a Hugging Face config.json",
    "machine": "foredraft list machines",
    "KV cache holds": "raise --devices, or lower --dtype, --input-len or --output-len",
    "foredraft[report]": "pip install 'foredraft[report]'",
    "foredraft[plot]": "pip install 'foredraft[plot]', or pass --no-figures",
    "no prediction can be judged": "foredraft validate --help lists the columns of each kind",
    "No such file": "check the path",
    "no outcome column": "foredraft validate --help lists the columns of each kind",
    "another --out": "a run goes on only with its own recipe and data",
    "no token folder": "foredraft data prepare FILES --tokenizer DIR --out DIR",
    "learns from a target": "--target DIR, a Hugging Face folder",
    "no tokenizer": "save the tokenizer into the model's folder",
    "foredraft[sweep]": "pip install 'foredraft[sweep]', or leave out --ray",
    "No module named": "pip install 'foredraft[full]'",
    "exceeds the context": "lower --input-len, --output-len or --max-lookahead",
    "no law can be fitted": "each line above says which dial to vary; foredraft list laws",
}


def fail(message: str, hint: str | None = None) -> NoReturn:
    """End with exit code 2: the message as one line, then `hint` or the one that a word of the message calls for."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    hint = hint or next((text for word, text in HINTS.items() if word in message), None)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
    raise SystemExit(2)


def print_json(record: Any) -> None:
    """A record, or anything of records, on stdout."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(record), indent=1).decode())


def print_blocks(blocks: Iterable[Any], width: int = WIDTH) -> None:
    """Tables and texts on stdout, to the terminal's width, or to `width` columns into a pipe or file."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else width)
    for block in blocks:
        console.print(block)


def progress_bar() -> "Progress":
    """A bar on stderr, gone when done; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def dtype_of(name: str) -> "torch.dtype":
    """The torch type of that name. Raises ValueError for any that models are not run in."""
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds:
        raise ValueError(f"dtype must be one of {', '.join(kinds)}, got {name}")
    return kinds[name]


def set_threads(threads: int | None) -> None:
    """Let torch compute with that many; None leaves its own choice. Raises ValueError below 1."""
    import torch

    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads:
        torch.set_num_threads(threads)
