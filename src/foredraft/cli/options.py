"""What options may be: ranges of numbers, devices, and the options that mean the same everywhere.

Promises: a value out of range is one line that names the option as typed, before anything is loaded. Refuses to know: any verb, and any room.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MOST = 10**12  # of what nothing limits: tokens, parameters, requests
PROCESSES = 4096  # threads, workers, devices

Check = Callable[[typer.Context, typer.CallbackParam, Any], Any]


def whole(least: int = 1, most: int = MOST) -> Check:
    """A whole number from `least` to `most`; None, where an option is left out, passes."""
    return _checked(lambda value: least <= value <= most, f"a whole number from {least:,} to {_shown(most)}")


def real(*, above: float | None = None, least: float | None = None, most: float = MOST) -> Check:
    """A finite number above `above` or of at least `least`, and of at most `most`."""
    low = -math.inf if least is None else least
    bound = f"above {_shown(above)}" if above is not None else f"of at least {_shown(low)}"
    return _checked(
        lambda value: math.isfinite(value) and low <= value <= most and (above is None or value > above),
        f"a number {bound} and at most {_shown(most)}",
    )


def each(kind: type, check: Check) -> Check:
    """A list such as 1,8, of numbers that `check` passes; an empty one is left to the verb."""

    def checked(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        for part in value.split(",") if value else ():
            try:
                number = kind(part)
            except ValueError:
                raise ValueError(f"{_name(param)} must be a number or a list such as 1,8, got {value!r}") from None
            check(ctx, param, number)
        return value

    return checked


def numbers(text: str, kind: type) -> tuple[Any, ...]:
    """The numbers of a list that `each` has passed, none of an empty text."""
    return tuple(kind(part) for part in text.split(",")) if text else ()


def one_of(*words: str) -> Check:
    """One of a few words; None passes."""
    return _checked(lambda value: value in words, f"one of {', '.join(words)}")


def _checked(passes: Callable[[Any], bool], words: str) -> Check:
    def checked(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not passes(value):
            raise ValueError(f"{_name(param)} must be {words}, got {value}")
        return value

    return checked


def concurrencies(ctx: typer.Context, param: typer.CallbackParam, value: str) -> str:
    """A list or range of numbers of clients, as `records.concurrency_of` reads it."""
    from foredraft.records import concurrency_of

    if value is not None:
        concurrency_of(value)
    return value


def task_word(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """One of `records.TASKS`; None passes."""
    from foredraft.records import TASKS

    return one_of(*TASKS)(ctx, param, value)


def loads(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """A histogram such as 1:0.2,8:0.5,64:0.3: clients, and the share of the time at which so many are at once; None passes."""
    if value is not None:
        histogram(value, _name(param))
    return value


def histogram(text: str, name: str = "--load") -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Clients, and the shares of the time. Raises ValueError, which calls the text `name`, where it is no such list."""
    from foredraft.records import MOST_CLIENTS

    shares: dict[int, float] = {}
    try:
        for part in text.split(","):
            clients, share = part.split(":")
            number, weight = int(clients), float(share)
            if number in shares or not (0 < number <= MOST_CLIENTS and 0 < weight <= MOST):
                raise ValueError
            shares[number] = weight
    except ValueError:
        words = "clients with the share of the time at which so many are at once, each once, such as 1:0.2,8:0.5,64:0.3"
        raise ValueError(f"{name} must be {words}; got {text[:99]!r}") from None
    return tuple(sorted(shares)), tuple(shares[number] for number in sorted(shares))


def number_format(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """A number format in our spelling; None passes."""
    if value is None:
        return None
    from foredraft.records import dtype_name
    from foredraft.shapes import number_format as format_of

    try:
        format_of(dtype_name(value))
    except ValueError as error:
        raise ValueError(f"{_name(param)}{str(error).removeprefix('dtype')}") from None
    return dtype_name(value)


def _device(ctx: typer.Context, param: typer.CallbackParam, value: str) -> str:
    """cpu; or cuda, cuda:1, …, where torch sees that many."""
    words = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", value)
    if not words:
        raise ValueError(f"{_name(param)} must be cpu, cuda or cuda:N, got {value!r}")
    if value != "cpu":
        import torch

        if int(words[1] or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(
                f"{_name(param)} {value}: this torch sees {count or 'no'} GPU{'s' * (count > 1)}; leave {_name(param)} out"
            )
    return value


def _name(param: typer.CallbackParam) -> str:
    """As typed: --devices, TARGET."""
    return max(param.opts, key=len) if param.opts[0].startswith("-") else param.opts[0].upper()


def _shown(value: float) -> str:
    return f"{value:,}" if abs(value) < 1e6 else f"{value:.9g}"


SEED = whole(0, 2**32 - 1)  # NumPy's and torch's seeds have 32 bits
DRAWS = whole(2, 100_000)
TEMPERATURE = real(least=0, most=100)  # beyond, a distribution over any vocabulary is uniform
SHARE = real(above=0, most=1)
BATCH, LOOKAHEAD, CONTEXT = whole(1, 2**16), whole(0, 2**16), whole(1, 10**8)

JSON = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.", callback=_device)]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16.", callback=one_of("float32", "bfloat16", "float16"))
]
Threads = Annotated[
    int | None, typer.Option(help="Torch threads; torch's own choice by default.", callback=whole(1, PROCESSES))
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for documents and figures; nothing is written without it.")
]
TargetNames = Annotated[
    list[str] | None,
    typer.Option("--target-name", help="A name under which rows know the target, such as a server's; repeat for more."),
]
MachineName = Annotated[
    str | None,
    typer.Option(
        "--machine",
        "-m",
        help="Accelerator, e.g. H100 or 8xH100 (measure: what --endpoint runs on); plan takes a Machine record as JSON too.",
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        "-n",
        help="Over how many devices the target is spread; as --machine (8xH100) or the --endpoint says, or 1 by default.",
        callback=whole(1, PROCESSES),
    ),
]
NumberFormat = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Weights: bfloat16, fp8, int4, nvfp4, …; as the checkpoint has them when left out.",
        callback=number_format,
    ),
]
ObservationFiles = Annotated[
    list[Path] | None,
    typer.Option("--observations", help="Own measurements, or another benchmark's file; repeat for more."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of all that is drawn.", callback=SEED)]
Figures = Annotated[
    bool, typer.Option("--figures/--no-figures", help="Draw figures into --out (needs matplotlib: foredraft[plot]).")
]
