"""Simulated acceptance in the real vLLM, on a CPU: the proposer of `deploy simulate --cpu` changes no text and is accepted as asked, and a
draft of random weights loads from the config that is written for a GPU.

In float32, greedy, eager, where no near-tie parts the texts of the prompts; answers are our own engine's.
"""

import json
import math
from pathlib import Path
from typing import Any

import ours
import pytest
from vllm_here import Offline, post, serving

from foredraft import records
from foredraft.models.decoder import Decoder

Ids = list[list[int]]
SURVIVAL = (0.8, 0.55, 0.4)
SEED = 3
BEYOND = 1 + len(SURVIVAL)  # tokens that a last step may accept past an answer's end


def load_of(prompts: Ids) -> dict[str, Any]:
    return {"prompts": prompts, "max_tokens": [ours.NEW] * len(prompts), "stop": False}


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "speculative_config.json").read_bytes())


@pytest.fixture(scope="module")
def replayed(target: Decoder, prompts: Ids, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the command line, over the target's own answers."""
    folder = tmp_path_factory.mktemp("simulated")
    answers = ours.answers(target, prompts, ours.NEW + BEYOND)
    rows = [{"prompt_ids": prompt, "answer_ids": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    records.write_lines(folder / "answers.jsonl", rows)
    ours.foredraft(
        "deploy", "simulate", "--out", folder / "out", "--target", ours.TARGET, "--accept", ",".join(map(str, SURVIVAL)), "--cpu",
        "--answers", folder / "answers.jsonl", "--seed", SEED,
    )  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def loads(offline: Offline, replayed: Path, prompts: Ids) -> list[dict[str, Any]]:
    report = offline(ours.TARGET, settings_of(replayed), *[load_of(prompts)] * 3, modules=replayed)
    assert "error" not in report, report["error"]
    return report["loads"]


def test_text_is_the_targets_own_token_for_token(loads: list[dict[str, Any]], own_answers: Ids) -> None:
    assert [load["answers"] for load in loads] == [own_answers] * 3


def test_acceptance_by_position_is_what_was_asked(loads: list[dict[str, Any]]) -> None:
    """By the totals of /metrics over three loads, some 1,600 steps: within 4 standard errors at each of three positions, seed 3. The draws are
    the seed's, so that a false alarm is one of the choice of seed: 2e-4.
    """
    num_drafts = sum(load["counters"]["drafts"] for load in loads)
    by_position = [sum(at) for at in zip(*(load["counters"]["accepted_tokens_per_pos"] for load in loads), strict=True)]
    for share, num in zip(SURVIVAL, by_position, strict=True):
        assert num / num_drafts == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / num_drafts))
    assert sum(load["counters"]["draft_tokens"] for load in loads) == len(SURVIVAL) * num_drafts


def test_a_server_learns_what_it_is_asked_twice(target: Decoder, prompts: Ids, tmp_path: Path) -> None:
    """By its own serve.sh, without answers: nothing of a first answer is accepted, and all of the second, whose text is the same."""
    ours.foredraft("deploy", "simulate", "--out", tmp_path / "out", "--target", ours.TARGET, "--accept", "1,1", "--cpu")
    body = {
        "model": str(ours.TARGET),
        "prompt": prompts[0],
        "max_tokens": ours.NEW,
        "temperature": 0,
        "ignore_eos": True,
    }
    option = ("--per-request-spec-decode-metrics", "summary")
    with serving(tmp_path / "out", tmp_path / "log", *option) as url:
        first, second = (post(f"{url}/v1/completions", body | {"return_token_ids": True}) for _ in range(2))
    (answer,) = ours.answers(target, prompts[:1])
    assert [reply["choices"][0]["token_ids"] for reply in (first, second)] == [answer, answer]
    lengths = [reply["metrics"]["speculative_decoding"]["mean_acceptance_length"] for reply in (first, second)]
    assert lengths[0] == 1.0
    assert lengths[1] > 2.8, "3 but for the answer's end"


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_a_draft_of_random_weights_loads_from_the_config(
    method: str, offline: Offline, prompts: Ids, own_answers: Ids, tmp_path: Path
) -> None:
    """The GPU's folder less its switch, which vLLM refuses on a CPU: the head runs at its full length and is hardly accepted."""
    ours.foredraft(
        "deploy", "simulate", "-o", tmp_path / "out", "-t", ours.TARGET, "--accept", "2@2", "--method", method
    )
    settings = settings_of(tmp_path / "out") | {"model": str(tmp_path / "out")}
    assert settings.pop("rejection_sample_method") == "synthetic"
    assert settings.pop("synthetic_acceptance_length") == 2.0
    report = offline(ours.TARGET, settings, load_of(prompts[:4]))
    assert "error" not in report, report["error"]
    load = report["loads"][0]
    assert load["answers"] == own_answers[:4]
    assert load["counters"]["draft_tokens"] == 2 * load["counters"]["drafts"]
    assert ours.survival(load["accepted"])[0] < 0.1
