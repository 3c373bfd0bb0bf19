"""Rows of docs/results.md on SmolLM2 are those of its files, and none without them."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/smollm2_results.py, which is no package."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "recipes")
    return importlib.import_module("smollm2_results")


def chosen(outcome: str, heat: float, error: float) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "temperature": heat,
        "family": None,
        "held_out": 10,
        "error": error,
        "relative_error": error,
        "inside_90": 9,
    }


OVER = {"vllm/e@2": {"value": 1.3, "low": 1.2, "high": 1.4}, "openvino/plain": {"value": 1.6}}
REPORTS: dict[str, Any] = {
    "laws": {
        "chosen": [chosen("tokens_per_step", 0.0, 0.025), chosen("tokens_per_step", 1.0, 0.031), chosen("accept_prob", 0.0, 0.0125)],
        "plans": {
            "choices": [{"batch": 1, "regret": 0.012}, {"batch": 8, "regret": 0.0}],
            "last_budget": [{"temperature": 0.0, "drafts": {"relative_error": 0.08}}, {"temperature": 1.0, "drafts": None}],
        },
    },
    "peers": {
        "machine": {"instructions": ["avx2"]},
        "races": {
            "float32": {"fastest": {"foredraft": "s@3"}, "ours_over": OVER},
            "bfloat16": {"fastest": {"foredraft": "s@2"}, "ours_over": {}},
        }
    },
    "served": {
        "conditions": {"planned": "scylla-L2", "published": "eagle2"}, "acceptance": {"s": {"most_apart": 0.0071}, "e": {"most_apart": 0.004}},
        "throughput": {"planned_over_none": {"8": 1.1, "1": 1.45, "32": 1.0}},
    },
}  # fmt: skip


def test_rows_are_those_of_the_files(module: Any, tmp_path: Path) -> None:
    for name, report in REPORTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    names, figures = zip(*module.rows(tmp_path), strict=True)
    assert list(figures) == [
        "2.5%, 3.1%; 9 of 10, 9 of 10", "0.013; 9 of 10", "1.2%, 0.0%", "8.0%", "vllm/e@2 1.30× (1.20 to 1.40); openvino/plain 1.60×", "0.007",
        "1.45×, 1.10×, 1.00×",
    ]  # fmt: skip
    assert names[4].startswith("SmolLM2, float32, batch 1, without AMX: our fastest (s@3)")


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_what_was_not_measured_has_no_row(module: Any, tmp_path: Path, name: str) -> None:
    assert module.rows(tmp_path) == []
    (tmp_path / f"{name}.json").write_text(json.dumps(REPORTS[name]))
    assert module.rows(tmp_path)
