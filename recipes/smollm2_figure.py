"""README's first figure: SmolLM2-135M-Instruct with and without a draft, from results/smollm2; nothing where that has not been measured.

`speed.json` is of recipes/smollm2/speeds.py: every configuration in turn in one run. `tour.json` is what a tour leaves. The draft shown is the one
that was chosen on other prompts. Refuses to know: how it was measured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

TYPES = "float32", "bfloat16"
BATCHES = "1", "8"
OPENING = (
    "**SmolLM2-135M-Instruct with and without a draft** of `zoo/`, trained and measured here. The text is the model's own, token for token;\n"
    "`make tour` shows it on your machine.\n"
)
DRAFT, LOOKUP = "draft", "lookup"


def figure(folder: Path) -> str:
    """Markdown; "" without measurements."""
    measured = {
        name: msgspec.json.decode(path.read_bytes())
        for name in ("speed", "tour")
        if (path := folder / f"{name}.json").is_file()
    }
    parts = [
        part
        for name, part in (("speed", _speeds), ("tour", _tour))
        if name in measured
        for part in part(measured[name])
    ]
    return "\n".join([OPENING, *parts]) + "\n" if parts else ""


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
        (f"{speeds['target']} on {machine}, T = 0", heads),
        ("without a draft", [_tok_s(load["configurations"]["plain"]) for *_, load in columns]),
        ("with a draft", [f"**{_tok_s(load['configurations'][load['chosen'][DRAFT]])}**" for *_, load in columns]),
        ("which", [f"`{load['chosen'][DRAFT]}`" for *_, load in columns]),
        (
            f"gain, mean over {len(speeds['categories'])} categories",
            [f"**{_gain(load, DRAFT)}**" for *_, load in columns],
        ),
        ("the least of them", [_least(load) for *_, load in columns]),
        ("prompt look-up instead, the mean", [_gain(load, LOOKUP) for *_, load in columns]),
    ]
    for number, (what, cells) in enumerate(rows):
        yield f"| {what} | {' | '.join(cells)} |"
        if number == 0:
            yield "|---" * (1 + len(cells)) + "|"
    yield ""


def _tok_s(configuration: dict[str, Any]) -> str:
    speed = configuration["all"].get("tok_s")
    return "–" if speed is None else f"{speed['value']:.1f} tokens/s"


def _gain(load: dict[str, Any], group: str) -> str:
    name = load["chosen"].get(group)
    gain = load["configurations"][name].get("speedup_mean") if name else None
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


def _tour(tour: dict[str, Any]) -> Iterator[str]:
    """What the tour measured, and what it had been told."""
    best, trained = tour["shipped"], tour["trained"]
    yield (
        f"`make tour` on {tour['machine']}, {tour['prompts']} prompts, {tour['dtype']}: {tour['plain_tok_s']:.1f} tokens/s without a draft, "
        f"**{best['output_tok_s']:.1f}** with `{best['draft']}`, {_beside(best['speedup'], best['predicted_speedup'])}; a draft trained there in a "
        f"minute {_beside(trained['speedup'], trained['predicted_speedup'])}. The texts shown are the same with each draft and without, "
        f"{tour['same_tokens']} tokens."
    )


def _beside(measured: dict[str, Any], predicted: dict[str, Any]) -> str:
    return (
        f"{measured['value']:.2f}× ({measured['low']:.2f} to {measured['high']:.2f}), predicted {predicted['value']:.2f}× "
        f"({predicted['low']:.2f} to {predicted['high']:.2f})"
    )
