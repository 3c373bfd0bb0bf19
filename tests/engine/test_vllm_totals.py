"""A vLLM server that tells its totals alone, as most do: Scylla's two layers, measured by the command line."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ours
import pytest
from vllm_here import post, serving

from foredraft import records
from foredraft.models.decoder import Decoder
from foredraft.records import Measurement

WITHIN = 0.02  # absolute, of acceptance at every position


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    ours.foredraft("deploy", ours.ZOO / "scylla-L2", "-t", ours.TARGET, "-o", folder / "scylla", "-k", ours.LOOKAHEAD)
    with serving(folder / "scylla", folder / "log") as url:
        yield url


def measured(url: str, out: Path, *more: object) -> list[Measurement]:
    """By the command line."""
    ours.foredraft(
        "measure", "--endpoint", url, "--prompts", ours.PROMPTS, "--out", out, "--max-tokens", ours.NEW, "--no-stop", "--draft",
        ours.ZOO / "scylla-L2", "--method", "eagle", "--machine", "here", *more,
    )  # fmt: skip
    return records.read_lines(Measurement, out / "measurements.jsonl")


def test_totals_by_difference_are_what_our_engine_measures(
    server: str, tmp_path: Path, target: Decoder, prompts: Any, own_answers: Any
) -> None:
    rows = measured(server, tmp_path / "served", "--concurrency", "4")
    assert len(rows) == 1
    observation = rows[0].observation
    assert "difference of the server's totals" in (observation.provenance.note or "")
    assert (observation.target, observation.draft, observation.draft_layers, observation.lookahead) == (
        "target",
        "scylla-L2",
        2,
        ours.LOOKAHEAD,
    )
    our_steps = ours.steps(target, ours.ZOO / "scylla-L2", prompts, [answer[:1] for answer in own_answers])
    assert abs((observation.steps or 0) - sum(map(len, our_steps))) <= 0.02 * sum(map(len, our_steps))
    assert max(abs(a - b) for a, b in zip(ours.survival(our_steps), observation.survival or (), strict=True)) <= WITHIN


def test_other_traffic_is_told(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's request in the middle of a load stands in the totals, and so in a warning and in the row."""
    body = {"model": str(ours.TARGET), "prompt": "Once", "max_tokens": ours.NEW, "ignore_eos": True, "temperature": 0}
    stranger = threading.Timer(1.5, post, (f"{server}/v1/completions", body))
    stranger.start()
    rows = measured(server, tmp_path / "served", "--concurrency", "1")
    stranger.join()
    assert "other traffic is mixed in" in capsys.readouterr().err
    assert "other traffic is mixed in" in (rows[0].observation.provenance.note or "")
