"""Records as tables for a terminal. Refuses to know: how anything in them is computed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from foredraft.records import Estimate, with_hint
from foredraft.report import style

WRAPPED = (  # columns of prose
    "lost by", "run", "tokens/step", "gain", "setting", "what", "best of a kind", "trained on", "",
)  # fmt: skip
FOLDED = ("best of a kind",)  # whose words are broken rather than cut, such as ids
Blocks = list[RenderableType]


class Titled:
    """A table under its title, which may be wider than the table."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title = Text(f"\n{title}", style="bold")
        self.table = Table(box=None, pad_edge=False, header_style="dim")
        for column in columns:
            fold: OverflowMethod = "fold" if column in FOLDED else "ellipsis"
            self.table.add_column(column, no_wrap=column not in WRAPPED, overflow=fold)
        self.add_row = self.table.add_row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        yield self.title
        yield self.table


def interval(estimate: Estimate, form: str, scale: float = 1.0) -> str:
    """value [low, high]."""
    value, low, high = (format(number * scale, form) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def sdsl_tables(report: Mapping[str, Any]) -> Blocks:
    """Table 5 and the line of Table 9 beside the paper's."""
    table = Titled("SDSL Table 5: N* in parameters", "target", "paper", "ours", "error", "γ*", "α")
    for row in report["table_5"]:
        paper, error = row["paper_draft_params"], row["relative_error"]
        table.add_row(
            row["target"], f"{paper / 1e6:.0f} M" if paper else "not in Table 5", f"{row['draft_params'] / 1e6:.1f} M",
            f"{error:+.2%}" if error is not None else "", f"{row['lookahead']:.2f}", f"{row['accept_prob']:.3f}",
        )  # fmt: skip
    ours, paper = report["table_9"], report["table_9_paper"]
    line = Titled(
        f"SDSL Table 9: N* = μM + M₀ on the grid {ours['grid']['name']} ({ours['num_points']} points)",
        "",
        "ours (95 %)",
        "paper (95 %)",
    )
    for label, key, form in (("μ", "mu", ".3e"), ("M₀", "intercept", ".3e")):
        line.add_row(
            label, *(f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]" for value in (ours[key], paper[key]))
        )
    line.add_row("slope of N*/M in ln D", f"{ours['draft_tokens_slope'][0]:.1e}", f"{paper['draft_tokens_slope']:.1e}")
    other_grids = "\n".join(
        f"  {g['grid']['name']}: μ {g['mu'][0]:.2e}, M₀ {g['intercept'][0]:.2e}" for g in report["table_9_other_grids"]
    )
    return [
        table,
        line,
        Text(f"The paper does not state its grid; the line hangs on it. Other grids:\n{other_grids}", style="dim"),
    ]


def bench_tables(configs: Sequence[Any], conditions: Mapping[str, Any]) -> Blocks:
    """Configurations of a bench beside each other, and what they ran under."""
    table = Titled(
        "Decoding (90 % intervals over prompts)", "configuration", "tokens/s", "× plain", "tokens/step", "TTFT", "TPOT",
        "GB/s", "same text",
    )  # fmt: skip
    for config in configs:
        table.add_row(
            config.name, interval(config.output_tok_s, ".1f"), interval(config.ratio, ".2f"),
            interval(config.tokens_per_step, ".2f"), f"{1e3 * config.ttft_s.value:.1f} ms",
            f"{1e3 * config.tpot_s.value:.2f} ms", f"{config.gb_s:.1f} of {config.ceiling_gb_s:.1f}",
            "yes" if config.same_tokens else "no",
        )  # fmt: skip
    return [table, Text(", ".join(f"{name} {value}" for name, value in conditions.items()), style="dim")]


def named_things(what: str, name: str | None = None) -> dict[str, str]:
    """What `foredraft list` shows: names (or one of them) and a line about each. Raises ValueError for a list that there is none of."""
    from foredraft.kinds import PLANNED
    from foredraft.laws.forms import laws
    from foredraft.laws.scylla import published_scylla
    from foredraft.machines import MACHINES
    from foredraft.published.heads import public_heads
    from foredraft.report.shapes import shape_line
    from foredraft.shapes import known_shapes, shape

    things = {
        "models": lambda: {known: shape_line(shape(known)) for known in known_shapes()},
        "machines": lambda: {
            known: f"{m.memory_bytes / 1e9:.0f} GB, {m.bandwidth_bytes_per_s / 1e12:.2f} TB/s; {m.source}"
            for known, m in MACHINES.items()
        },
        "laws": lambda: (
            {known: f"{law.formula} ({law.source})" for known, law in laws().items()} | published_scylla().lines()
        ),
        "kinds": lambda: {known: kind.about for known, kind in PLANNED.items()},
        "heads": lambda: {head.id: f"{head.of_kind.label} for {head.target}; {head.source}" for head in public_heads()},
    }
    if what not in things:
        raise ValueError(f"nothing named {what!r} to list; models, machines, laws, kinds or heads")
    lines = things[what]()
    if name is not None and name not in lines:
        raise with_hint(ValueError(f"{what}: none is named {name!r}"), f"foredraft list {what}")
    return {name: lines[name]} if name else lines


def listing(what: str, things: Mapping[str, str]) -> Titled:
    """Names and what there is to say of them."""
    table = Titled(what, "name", "")
    for name, about in things.items():
        table.add_row(name, about)
    return table


def count(number: float | None) -> str:
    """1.4 B, 310 M: a count as people say it; "" where there is none."""
    return "" if number is None else style.count(number).replace("\u00a0", " ")
