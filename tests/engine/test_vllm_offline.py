"""Drafts of every kind in the real vLLM: the same text and the same accepted tokens as in our engine; and what its loader does with faults.

In float32, greedy, eager, on a CPU. Where two engines' texts part, the target's two logits must be a near-tie.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ours
import pytest
import safetensors.torch
import tiny_zoo
import torch
from torch import Tensor
from vllm_here import Offline

from foredraft import records
from foredraft.deploy.check import check
from foredraft.deploy.export import ExportSettings, export
from foredraft.models import load_head, new_head, save_head
from foredraft.models.decoder import Decoder
from foredraft.models.eagle3 import Eagle3Head
from foredraft.records import DraftChoice, Estimate, Plan, ScheduleStep, Workload

WITHIN = 0.02  # absolute, of acceptance at every position
Ids = list[list[int]]


def deployed(draft: Path, out: Path) -> Path:
    """The folder that the command line writes."""
    ours.foredraft("deploy", draft, "--target", ours.TARGET, "--out", out, "--lookahead", ours.LOOKAHEAD)
    return out


def speculative(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "speculative_config.json").read_bytes()) | {"model": str(folder)}


def load_of(prompts: Ids, *max_tokens: int) -> dict[str, Any]:
    """Answers of so many tokens each, of NEW without a word."""
    return {"prompts": prompts, "max_tokens": max_tokens or [ours.NEW] * len(prompts), "stop": False}


@pytest.fixture(scope="module")
def halved(target: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The EAGLE-3 head over every second word of the vocabulary, which needs its map to be read."""
    head = load_head(ours.ZOO / "eagle3", target, torch.float32)
    assert isinstance(head, Eagle3Head)
    every_second = slice(None, None, 2)
    words = (torch.arange(len(head.d2t)) + head.d2t)[every_second].tolist()
    small = new_head(target, draft_vocab=words)
    remaining = {
        name: tensor for name, tensor in head.state_dict().items() if name not in ("d2t", "t2d", "lm_head.weight")
    }
    small.load_state_dict(
        remaining | {"lm_head.weight": head.state_dict()["lm_head.weight"][every_second]}, strict=False
    )
    folder = tmp_path_factory.mktemp("drafts") / "eagle3-halved"
    save_head(small, folder, more={"eos_token_id": 0})
    return folder


KINDS = ("lm", "eagle2", "eagle3", "scylla-L2", "eagle3-halved")


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, offline: Offline, prompts: Ids, folders: Path, halved: Path
) -> tuple[Path, dict[str, Any]]:
    """A draft of ours, and what vLLM answered with it."""
    draft = halved if request.param == "eagle3-halved" else ours.ZOO / request.param
    out = deployed(draft, folders / request.param)
    report = offline(ours.TARGET, speculative(out), load_of(prompts))
    assert "error" not in report, report["error"]
    return draft, report["loads"][0]


def test_text_is_our_engines(served: Any, target: Decoder, prompts: Ids, own_answers: Ids) -> None:
    """Token for token; a text may part from ours at a near-tie alone."""
    gaps = [ours.gap(target, *pair) for pair in zip(prompts, own_answers, served[1]["answers"], strict=True)]
    apart = [gap for gap in gaps if gap is not None]
    assert max(apart, default=0.0) <= ours.NEAR
    assert len(apart) <= 1, "near-ties are rare"


def test_steps_accept_what_ours_accept(served: Any, target: Decoder, prompts: Ids) -> None:
    """By position within WITHIN; and step for step, but for near-ties of the draft's own logits."""
    draft, report = served
    our_steps = ours.steps(target, draft, prompts, [answer[:1] for answer in report["answers"]])
    far = [abs(a - b) for a, b in zip(ours.survival(our_steps), ours.survival(report["accepted"]), strict=True)]
    assert max(far) <= WITHIN
    assert ours.survival(our_steps)[0] > 0.1, "something is accepted at all: a map misread would leave nothing"
    same = sum(a == b for a, b in zip(our_steps, report["accepted"], strict=True))
    assert same >= len(prompts) - 2


def test_totals_are_the_requests_own(served: Any) -> None:
    """What /metrics shows, and what requests are told, count the same steps; every step drafts as many tokens as asked."""
    report = served[1]
    steps = [num for request in report["accepted"] for num in request]
    by_position = [sum(num > i for num in steps) for i in range(ours.LOOKAHEAD)]
    assert report["counters"] == {
        "drafts": len(steps), "draft_tokens": ours.LOOKAHEAD * len(steps), "accepted_tokens": sum(steps), "accepted_tokens_per_pos": by_position,
    }  # fmt: skip
    assert {num for request in report["drafted"] for num in request} == {ours.LOOKAHEAD}
    emitted = [1 + sum(1 + num for num in request) for request in report["accepted"]]
    assert all(ours.NEW <= num < ours.NEW + 1 + ours.LOOKAHEAD for num in emitted)


# A schedule of lookahead by running requests.


def plan_of(schedule: list[list[int]]) -> Plan:
    estimate = Estimate(value=1.0, low=1.0, high=1.0, unit="x", source="a test")
    steps = tuple(
        ScheduleStep(
            concurrency=start, running=start, lookahead=k, topk=1, tree_nodes=k, tokens_per_step=estimate, speedup=estimate, output_tok_s=estimate,
            tpot_s=estimate, ttft_s=estimate,
        )
        for start, _, k in schedule
    )  # fmt: skip
    most = max(k for *_, k in schedule)
    return Plan(
        objective="throughput", engine="vllm", target="target", machine="here", devices=1, dtype="float32",
        workload=Workload(input_len=64, output_len=64, concurrency=(1, 4)), speedup=estimate, schedule=steps,
        draft=DraftChoice(kind="head", name="EAGLE head", params=1.0, non_embedding_params=1.0),
        settings={"vllm": {
            "num_speculative_tokens": most, "num_speculative_tokens_per_batch_size": schedule, "draft_tensor_parallel_size": 1,
        }},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scheduled(offline: Offline, prompts: Ids, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Loads of one, two and three requests, of which two end early: 4 draft tokens alone, 2 for two, none for more."""
    folder = tmp_path_factory.mktemp("scheduled")
    records.write(folder / "Plan.json", plan_of([[1, 1, 4], [2, 2, 2], [3, 4, 0]]))
    ours.foredraft(
        "deploy", ours.ZOO / "eagle2", "-t", ours.TARGET, "-o", folder / "out", "--plan", folder / "Plan.json"
    )
    loads = load_of(prompts[:1]), load_of(prompts[:2]), load_of(prompts[:3], ours.NEW, SHORT, SHORT)
    report = offline(ours.TARGET, speculative(folder / "out"), *loads)
    assert "error" not in report, report["error"]
    return report["loads"]


SHORT = 24


def test_schedule_sets_the_lookahead_by_running_requests(scheduled: Any) -> None:
    """vLLM acts on `num_speculative_tokens_per_batch_size`: what is drafted depends on how many run."""
    alone, two, three = (load["drafted"] for load in scheduled)
    assert set(alone[0]) == {4}
    assert all(steps == sorted(steps) and steps[0] == 2 for steps in two), "2 each, and 4 for the one that is left"
    assert sorted(map(len, three))[:2] == [0, 0], "no draft while three run"
    assert set(three[0]) == {4}
    assert sum(1 + num for num in scheduled[2]["accepted"][0]) >= ours.NEW - SHORT - 2, (
        "all tokens behind were drafted for"
    )


def test_schedule_leaves_the_text_as_it_is(scheduled: Any, target: Decoder, prompts: Ids, own_answers: Ids) -> None:
    for load in scheduled:
        for prompt, our_answer, answer in zip(prompts, own_answers, load["answers"], strict=False):
            gap = ours.gap(target, prompt, our_answer[: len(answer)], answer)
            assert gap is None or gap <= ours.NEAR


def test_a_draft_that_was_left_out_for_a_while_drafts_as_before(scheduled: Any, target: Decoder, prompts: Ids) -> None:
    """Steps without a draft keep its cache: what it drafts behind them is what ours drafts there."""
    answer, accepted = scheduled[2]["answers"][0], scheduled[2]["accepted"][0]
    begins = range(SHORT - 2, SHORT + 3)
    assert accepted in [ours.steps(target, ours.ZOO / "eagle2", prompts[:1], [answer[:begin]])[0] for begin in begins]


# What `deploy check` says of a fault, and what the loader does.

Change = Callable[[dict[str, Tensor]], Any]
MLP = "layers.0.mlp"


def broken(folder: Path, out: Path, change: Change) -> Path:
    """A deployed folder with its tensors changed."""
    shutil.copytree(folder, out)
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def whole_head(offline: Offline, prompts: Ids, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The EAGLE-2 head without a fault: it passes the check, and this is what is accepted of it."""
    folder = tmp_path_factory.mktemp("whole") / "eagle2"
    export(ours.ZOO / "eagle2", ours.TARGET, folder, ExportSettings(lookahead=ours.LOOKAHEAD))
    assert not check(folder, ours.TARGET)
    return folder, offline(ours.TARGET, speculative(folder), load_of(prompts[:8]))["loads"][0]


def codes(folder: Path) -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in check(folder, ours.TARGET) if finding.level == "error"}


def test_a_missing_tensor_is_skipped_in_silence_and_costs_acceptance(
    whole_head: Any, offline: Offline, prompts: Ids, tmp_path: Path
) -> None:
    folder = broken(whole_head[0], tmp_path / "draft", lambda tensors: tensors.pop(f"{MLP}.down_proj.weight"))
    assert codes(folder) == {("missing", f"{MLP}.down_proj.weight")}
    report = offline(ours.TARGET, speculative(folder), load_of(prompts[:8]))
    assert "error" not in report, "vLLM says nothing"
    load = report["loads"][0]
    assert load["answers"] == whole_head[1]["answers"], "the text is the target's own all the same"
    assert ours.survival(load["accepted"])[0] < ours.survival(whole_head[1]["accepted"])[0] - 0.05


def test_a_bias_that_the_class_lacks_is_dropped_in_silence(
    whole_head: Any, offline: Offline, prompts: Ids, tmp_path: Path
) -> None:
    """A head trained with such a bias would run without it: steps are those of the head that has none."""
    folder = broken(
        whole_head[0],
        tmp_path / "draft",
        lambda tensors: tensors.update({"fc.bias": torch.full((tiny_zoo.WIDTH,), 1.0)}),
    )
    assert codes(folder) == {("fc-bias", "fc.bias")}
    report = offline(ours.TARGET, speculative(folder), load_of(prompts[:8]))
    assert "error" not in report, "vLLM says nothing"
    assert report["loads"][0]["accepted"] == whole_head[1]["accepted"]


def test_a_renamed_tensor_stops_the_loader(whole_head: Any, offline: Offline, prompts: Ids, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors[f"{MLP}.up.weight"] = tensors.pop(f"{MLP}.up_proj.weight")

    folder = broken(whole_head[0], tmp_path / "draft", rename)
    assert codes(folder) == {("missing", f"{MLP}.up_proj.weight"), ("unknown", f"{MLP}.up.weight")}
    assert f"{MLP}.up" in offline(ours.TARGET, speculative(folder), load_of(prompts[:8]))["error"]
