"""The bench: arms paired in one run, one counter, honest conditions; never a test of how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foredraft import text
from foredraft.decode.batch import Request
from foredraft.measure.bench import bench, read_rate, spec_bench_prompts


def test_arms_answer_alike_and_are_counted_alike(checkpoint: Path) -> None:
    requests = [Request(prompt=(5, 6, 7, i), max_tokens=12) for i in range(6)]
    arms = {
        name: lambda draft=draft: text.load_engine(checkpoint, draft, max_batch=2, max_context=64)
        for name, draft in (("plain", None), ("ngram", "ngram"))
    }
    ticks: list[int] = []
    plain, ngram = bench(arms, requests, rounds=1, progress=lambda: ticks.append(1))
    assert len(ticks) == 2 * 3 * 2  # rounds with the warm-up, groups of 2, arms
    assert plain.ratio.value == plain.ratio.low == plain.ratio.high == 1
    assert plain.tokens_per_step.value == 1
    assert ngram.tokens_per_step.value >= 1
    assert ngram.same_tokens
    assert 0 <= plain.drafting_share <= ngram.drafting_share + 0.5
    assert plain.ttft_s.value > 0
    assert plain.gb_s > 0


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one arm"):
        bench({}, [])


def test_memory_is_read_at_a_believable_rate() -> None:
    assert 1e8 < read_rate(repeats=2) < 1e13


def test_spec_bench_files(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"question_id": 1, "category": "qa", "turns": ["Who?", "Why?"]}\n')
    bad.write_text('{"question_id": 1}\n')
    assert spec_bench_prompts(good) == ["Who?"]
    with pytest.raises(ValueError, match=r"bad.jsonl:1: not a Spec-Bench line"):
        spec_bench_prompts(bad)


def test_the_command(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the fox\nthe dog\n")
    given = ("--file", str(tmp_path / "prompts.txt"), "--max-tokens", "6", "--rounds", "1", "--threads", "1")
    command = [sys.executable, "-m", "foredraft", "bench", str(checkpoint), *given]
    table = subprocess.run([*command, "--draft", "ngram@2", "--out", str(tmp_path)], capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    assert "ngram@2" in table.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["plain", "ngram@2"]
    assert report["conditions"]["threads"] == 1
    wrong = subprocess.run([*command, "--draft", "ngram@x"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "lookahead, a whole number" in wrong.stderr
