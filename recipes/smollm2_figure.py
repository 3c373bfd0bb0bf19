"""README's first figure: SmolLM2-135M-Instruct with and without a draft, from results/smollm2; nothing where that has not been measured.

`SPEEDS` are of recipes/smollm2/speeds.py, of a machine each: every configuration in turn in one run. The draft shown is the one that was chosen on
other prompts. `tour.json` is what a tour leaves. Refuses to know: how it was measured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from foredraft import records, tour_outcome

TYPES = "float32", "bfloat16"
BATCHES = "1", "8"
OPENING = (
    "**SmolLM2-135M-Instruct with and without a draft** of `zoo/`, trained and measured here. The text is the model's own, token for token;\n"
    "`make tour` shows it on your machine. On a processor with tiles (AMX) one text in bfloat16 without a draft is faster by\n"
    "`FOREDRAFT_KERNELS=pairs` ([how much](docs/log.md#2026-11-28-tiles)); the gains are over what the engine does by itself.\n"
)
SPEEDS = "speed_amx.json", "speed.json"
DRAFT, LOOKUP, BESIDE = "draft", "lookup", "beside"


def figure(folder: Path) -> str:
    """Markdown; "" without measurements."""
    files = [folder / name for name in SPEEDS if (folder / name).is_file()]
    parts = [line for file in files for line in _speeds(msgspec.json.decode(file.read_bytes()))]
    return "\n".join([OPENING, *parts]) + "\n" if parts else ""


def toured(folder: Path) -> str:
    """What the tour printed at its end, as a block of the console."""
    lines = tour_outcome.lines(records.read(tour_outcome.TourOutcome, folder / "tour.json"))
    return "\n".join(['```console title="needs the network: 93 MB, once"', "$ make tour", "…", *lines, "```", ""])


def _speeds(speeds: dict[str, Any]) -> Iterator[str]:
    """A column for each type and batch at which a draft was chosen."""
    columns = [
        (dtype, batch, load)
        for dtype in TYPES
        for batch in BATCHES
        if (load := speeds["speed"].get(dtype, {}).get(batch)) and DRAFT in load["chosen"]
    ]
    if not columns:
        return
    machine = f"{speeds['threads']} threads of {speeds['machine']}"
    heads = [f"{dtype}, {batch} at once" for dtype, batch, _ in columns]
    rows = [
        (f"{speeds['target']} on {machine}, T = 0, answers of at most {speeds['max_tokens']} tokens", heads),
        ("without a draft", [_tok_s(load["configurations"]["plain"]) for *_, load in columns]),
        ("with a draft", [f"**{_tok_s(load['configurations'][load['chosen'][DRAFT]])}**" for *_, load in columns]),
        ("which", [f"`{load['chosen'][DRAFT]}`" for *_, load in columns]),
        (
            f"gain, mean over {len(speeds['categories'])} categories",
            [f"**{_gain(load, DRAFT)}**" for *_, load in columns],
        ),
        ("the least of them", [_least(load) for *_, load in columns]),
        ("a draft behind a look-up, the mean", [_gain(load, BESIDE) for *_, load in columns]),
        ("prompt look-up instead, the mean", [_gain(load, LOOKUP) for *_, load in columns]),
    ]
    for number, (what, cells) in enumerate(rows):
        yield f"| {what} | {' | '.join(cells)} |"
        if number == 0:
            yield "|---" * (1 + len(cells)) + "|"
    yield ""
    losing = [(dtype, batch) for dtype, batch, load in columns if (gain := _gain_of(load, DRAFT)) and gain["value"] < 1]
    if losing:
        where, batch = " and ".join(f"in {dtype} at {batch} at once" for dtype, batch in losing), losing[0][1]
        yield f"Drafting loses here {where}. `foredraft plan … --concurrency 1,{batch}` weighs that beforehand."
        yield ""


def _tok_s(configuration: dict[str, Any]) -> str:
    speed = configuration["all"].get("tok_s")
    return "–" if speed is None else f"{speed['value']:.1f} tokens/s"


def _gain_of(load: dict[str, Any], group: str) -> dict[str, Any] | None:
    """The mean over categories; of all together where several at once are of several categories."""
    name = load["chosen"].get(group)
    figures = load["configurations"][name] if name else {}
    return figures.get("speedup_mean") or figures.get("all", {}).get("speedup")


def _gain(load: dict[str, Any], group: str) -> str:
    gain = _gain_of(load, group)
    if gain is None:
        return "–"
    interval = f" ({gain['low']:.2f} to {gain['high']:.2f})" if gain.get("low") and gain.get("high") else ""
    return f"{gain['value']:.2f}×{interval}"


def _least(load: dict[str, Any]) -> str:
    """The category that gains the least."""
    gains = {
        category: figures["speedup"]["value"]
        for category, figures in load["configurations"][load["chosen"][DRAFT]]["by_category"].items()
        if figures.get("speedup") is not None
    }
    if not gains:
        return "–"
    category = min(gains, key=lambda name: gains[name])
    return f"{gains[category]:.2f}×, {category.replace('_', ' ')}"
