"""README's first figure says what results/smollm2 holds, column by column, and nothing where nothing was measured."""

import importlib
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foredraft import records

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """recipes/smollm2_figure.py, and recipes/smollm2/speeds.py, whose records it reads."""
    for folder in (RECIPES / "smollm2", RECIPES):
        monkeypatch.syspath_prepend(folder)
    for name in ("smollm2_figure", "speeds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("smollm2_figure"), importlib.import_module("speeds")


def speeds_of(speeds: Any, gain: float) -> Any:
    """Plain decoding, a draft and a look-up at batch 1 in float32, on two categories."""

    def configuration(tok_s: float, over: float | None, group: str | None) -> Any:
        def figures(value: float | None) -> Any:
            return speeds.Figures(
                num_requests=3, tok_s=speeds.Interval(tok_s), speedup=value and speeds.Interval(value)
            )

        by_category = {"qa": figures(over), "open_writing": figures(over and over - 0.2)}
        mean = over and speeds.Interval(over, over - 0.1, over + 0.1)
        return speeds.Configuration(all=figures(over), by_category=by_category, group=group, speedup_mean=mean)

    load = speeds.Load(
        configurations={"plain": configuration(30.0, None, None), "eagle@3": configuration(30.0 * gain, gain, "draft"),
                        "ngram@3": configuration(31.0, 1.05, "lookup"), "eagle+ngram@3": configuration(54.0, 1.8, "beside")},
        best=(fastest := {"draft": "eagle@3", "lookup": "ngram@3", "beside": "eagle+ngram@3"}), chosen=fastest,
    )  # fmt: skip
    known = {"target": "SmolLM2", "machine": "a CPU", "threads": 2, "prompts": "p", "max_tokens": 64, "categories": {"qa": 3, "open_writing": 3},
             "versions": {}, "measured": "today", "drafts": {}, "counted": {}, "forced": {}}  # fmt: skip
    return speeds.Speeds(**known, speed={"float32": {"1": load}})


def test_nothing_stands_where_nothing_was_measured(modules: tuple[Any, Any], tmp_path: Path) -> None:
    assert modules[0].figure(tmp_path) == ""


def test_the_draft_chosen_before_stands_beside_plain_decoding(modules: tuple[Any, Any], tmp_path: Path) -> None:
    figure, speeds = modules
    records.write(tmp_path / "speed.json", speeds_of(speeds, 1.62))
    lines = figure.figure(tmp_path).removeprefix(figure.OPENING + "\n").splitlines()
    assert lines[0] == "| SmolLM2 on 2 threads of a CPU, T = 0, answers of at most 64 tokens | float32, 1 at once |"
    assert lines[2:] == [
        "| without a draft | 30.0 tokens/s |", "| with a draft | **48.6 tokens/s** |", "| which | `eagle@3` |",
        "| gain, mean over 2 categories | **1.62× (1.52 to 1.72)** |", "| the least of them | 1.42×, open writing |",
        "| a draft behind a look-up, the mean | 1.80× (1.70 to 1.90) |", "| prompt look-up instead, the mean | 1.05× (0.95 to 1.15) |", "",
    ]  # fmt: skip


def test_each_machine_has_its_table(modules: tuple[Any, Any], tmp_path: Path) -> None:
    figure, speeds = modules
    for name, machine, gain in zip(figure.SPEEDS, ("with tiles", "without"), (1.7, 1.5), strict=True):
        records.write(tmp_path / name, msgspec.structs.replace(speeds_of(speeds, gain), machine=machine))
    text = figure.figure(tmp_path)
    assert text.index("of with tiles") < text.index("**1.70×") < text.index("of without") < text.index("**1.50×")


def test_where_drafting_loses_a_line_says_so(modules: tuple[Any, Any], tmp_path: Path) -> None:
    figure, speeds = modules
    gaining, losing = speeds_of(speeds, 1.62).speed["float32"]["1"], speeds_of(speeds, 0.87).speed["float32"]["1"]
    records.write(
        tmp_path / "speed.json",
        msgspec.structs.replace(speeds_of(speeds, 1.0), speed={"float32": {"1": gaining, "8": losing}}),
    )
    text = figure.figure(tmp_path)
    assert "| **1.62× (1.52 to 1.72)** | **0.87× (0.77 to 0.97)** |" in text
    assert "\nDrafting loses here in float32 at 8 at once" in text
