"""The bench: configurations paired in one run, one counter, honest conditions; never a test of how fast anything is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foredraft.hardware import read_rate
from foredraft.measure.bench import Bench, bench
from foredraft.measure.settings import MeasureSettings


@pytest.fixture(scope="module")
def result(checkpoint: Path) -> Bench:
    settings = MeasureSettings(max_tokens=12, batches=(2,), rounds=1)
    ticks: list[int] = []
    bench_of = bench(str(checkpoint), ["ngram"], [f"the fox {i}" for i in range(6)], settings, ticks.append)
    assert ticks == [(1 + 3) * 2] * (1 + 3) * 2  # the warm-up's group and those of 2 requests, on both configurations
    return bench_of


def test_configurations_answer_alike_and_are_counted_alike(result: Bench) -> None:
    plain, ngram = result.rows
    assert plain.ratio.value == plain.ratio.low == plain.ratio.high == 1
    assert plain.tokens_per_step.value == 1
    assert ngram.tokens_per_step.value >= 1
    assert ngram.same_tokens
    assert 0 <= plain.drafting_share <= ngram.drafting_share + 0.5
    assert plain.ttft_s.value > 0
    assert plain.gb_s > 0


def test_nothing_to_do_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        bench(str(checkpoint), [], [], MeasureSettings())


def test_memory_is_read_at_a_believable_rate() -> None:
    assert 1e8 < read_rate(repeats=2) < 1e13


def test_the_command(cli: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the fox\nthe dog\n")
    command = (
        "bench",
        checkpoint,
        "--file",
        tmp_path / "prompts.txt",
        "--max-tokens",
        6,
        "--rounds",
        1,
        "--threads",
        1,
    )
    table = cli(*command, "--draft", "ngram@2", "--out", tmp_path)
    assert table.returncode == 0, table.stderr
    assert "ngram@2" in table.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in report["arms"]] == ["plain", "ngram@2"]
    assert report["conditions"]["threads"] == 1
    wrong = cli(*command, "--draft", "ngram@x")
    assert wrong.returncode == 2
    assert "lookahead, a whole number" in wrong.stderr
