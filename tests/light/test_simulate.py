"""`deploy simulate`: each engine's own words for a predicted acceptance, by hand; and the proposer that replays answers, on a batch of ours."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from foredraft import records
from foredraft.cli.main import app
from foredraft.data import tokenizer
from foredraft.deploy import replay
from foredraft.deploy.answers import token_answers
from foredraft.deploy.simulate import SimulateSettings, costs_of, simulate
from foredraft.engines import ENGINES
from foredraft.laws.acceptance import survival_through
from foredraft.laws.stated import stated_acceptance
from foredraft.records import DraftChoice, Estimate, Plan, ScheduleStep, Workload
from foredraft.shapes import from_config

TARGET = "Llama-3.1-8B"


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=0.9 * value, high=1.1 * value, unit="x", source="a test")


def plan_of(steps: dict[int, tuple[int, float]], **fields: Any) -> Plan:
    """Of (lookahead, τ) by concurrency."""
    schedule = tuple(
        ScheduleStep(
            concurrency=load, running=load, lookahead=k, topk=1, tree_nodes=k, tokens_per_step=estimate(tau), speedup=estimate(1.5),
            output_tok_s=estimate(100.0 * load), tpot_s=estimate(0.01), ttft_s=estimate(0.1),
        )
        for load, (k, tau) in steps.items()
    )  # fmt: skip
    draft = DraftChoice(
        kind="head", method="eagle3", name="EAGLE-3 head", params=350e6, non_embedding_params=350e6 - 32000 * 4096, num_layers=1,
        hidden_size=4096,
    )  # fmt: skip
    plan = Plan(
        objective="throughput", engine="vllm", target=TARGET, machine="H100", devices=1, dtype="bfloat16", draft=draft,
        workload=Workload(input_len=64, output_len=64, concurrency=tuple(steps)), speedup=estimate(1.5), schedule=schedule,
    )  # fmt: skip
    settings = {name: ENGINES[name].settings(draft, schedule, 1) for name in ("vllm", "sglang")}
    return msgspec.structs.replace(plan, **{"settings": settings} | fields)


def folder_of(tmp_path: Path, plan: Plan, engine: str = "vllm", **settings: Any) -> Path:
    records.write(tmp_path / "Plan.json", plan)
    simulate(tmp_path, tmp_path / "out", SimulateSettings(engine=engine, **settings))
    return tmp_path / "out"


def environment_of(script: Path) -> dict[str, str]:
    lines = [line.removeprefix("export ") for line in script.read_text().splitlines() if line.startswith("export ")]
    return dict(line.split("=", 1) for line in lines)


ONE = {
    1: (3, 2.6),
    8: (3, 2.6),
}  # three drafted tokens at every load, 2.6 tokens a step, of which one is the target's own


# Each engine's words.


def test_vllm_takes_the_length_with_the_bonus_token(tmp_path: Path) -> None:
    config = json.loads((folder_of(tmp_path, plan_of(ONE)) / "speculative_config.json").read_text())
    assert config["rejection_sample_method"] == "synthetic"
    assert config["synthetic_acceptance_length"] == 2.6
    assert "synthetic_acceptance_rates" not in config, "vLLM refuses both"
    assert (config["method"], config["num_speculative_tokens"]) == ("eagle3", 3)
    assert config["draft_load_config"] == {"load_format": "dummy"}


def test_vllm_takes_rates_where_the_lookahead_falls_with_the_load(tmp_path: Path) -> None:
    """τ = 1.7 at k = 1 and 2.19 at k = 2: P(1) = 0.7 and P(2) = 0.49. A length of 2.19 would accept every first token at large loads."""
    config = json.loads(
        (folder_of(tmp_path, plan_of({1: (2, 2.19), 8: (1, 1.7)})) / "speculative_config.json").read_text()
    )
    assert config["synthetic_acceptance_rates"] == pytest.approx([0.7, 0.49])
    assert "synthetic_acceptance_length" not in config
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 4, 2], [5, 8, 1]]


def test_sglang_takes_the_length_with_the_bonus_token(tmp_path: Path) -> None:
    out = folder_of(tmp_path, plan_of(ONE), "sglang")
    assert environment_of(out / "serve.sh") == {
        "SGLANG_SIMULATE_ACC_LEN": "2.6", "SGLANG_SIMULATE_ACC_METHOD": "match-expected", "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
    }  # fmt: skip
    flags = json.loads((out / "sglang_flags.json").read_text())
    assert flags["--speculative-draft-load-format"] == "dummy"
    assert [flags[f"--speculative-{name}"] for name in ("num-steps", "eagle-topk", "num-draft-tokens")] == [3, 1, 4]


def test_tensorrt_llm_takes_it_without_the_bonus_token(tmp_path: Path) -> None:
    out = folder_of(tmp_path, plan_of(ONE), "tensorrt-llm")
    assert environment_of(out / "serve.sh") == {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": "1.6"}
    options = json.loads((out / "options.yaml").read_text())["speculative_config"]
    assert (options["decoding_type"], options["max_draft_len"]) == ("Eagle3", 3)


def test_shares_by_position_are_vllms_rates(tmp_path: Path) -> None:
    config = json.loads((folder_of(tmp_path, plan_of(ONE), accept="0.8,0.6") / "speculative_config.json").read_text())
    assert config["synthetic_acceptance_rates"] == [0.8, 0.6]
    assert config["num_speculative_tokens"] == 2


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_scripts_are_shell(tmp_path: Path, engine: str) -> None:
    script = folder_of(tmp_path, plan_of(ONE), engine) / "serve.sh"
    assert subprocess.run(["sh", "-n", script], capture_output=True).stderr == b""
    assert script.stat().st_mode & 0o100


def test_what_was_predicted_lies_beside_it(tmp_path: Path) -> None:
    out = folder_of(tmp_path, plan_of(ONE))
    record = json.loads((out / "simulate.json").read_text())
    assert record["tokens_per_step"] == {"3": pytest.approx(2.6)}
    assert [step["output_tok_s"]["value"] for step in record["predicted"]] == [100.0, 800.0]
    assert "| 8 | 3 | 2.60 (2.34 to 2.86) | 800 (720 to 880) | 1.50 (1.35 to 1.65) |" in (out / "README.md").read_text()


def test_the_drafts_config_is_the_planned_heads(tmp_path: Path) -> None:
    """An EAGLE-3 head of Llama-3.1-8B's widths over 32,000 words."""
    config = json.loads((folder_of(tmp_path, plan_of(ONE)) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    widths = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )
    assert [config[name] for name in widths] == [4096, 14336, 32, 8, 128, 128256]
    assert (config["num_hidden_layers"], config["draft_vocab_size"]) == (1, 32000)
    assert None not in config.values()


EAGLE2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 1, "vocab_size": 320, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_drafts_folder_needs_no_plan(tmp_path: Path) -> None:
    head = tmp_path / "head"
    records.write(head / "config.json", EAGLE2)
    save_file({"fc.weight": np.zeros((64, 128), np.float16)}, head / "model.safetensors")
    simulate(head, tmp_path / "out", SimulateSettings(accept="2@2"), target="its target")
    config = json.loads((tmp_path / "out" / "speculative_config.json").read_text())
    assert (config["method"], config["synthetic_acceptance_length"]) == ("eagle", 2.0)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((head / "config.json").read_text())


# From τ to positions.


@pytest.mark.parametrize(
    ("curve", "survival"),
    [
        ({3: 1 + 0.5 + 0.25 + 0.125}, (0.5, 0.25, 0.125)),  # constant acceptance 1/2
        ({1: 1.7, 2: 2.19}, (0.7, 0.49)),
        ({2: 3.0}, (1.0, 1.0)),
        ({2: 1.0}, (0.0, 0.0)),
        (
            {2: 1.8, 3: 2.2},
            (0.4, 0.4, 0.4),
        ),  # constant acceptance would end at 0.30, below the 0.4 that the third is to have
    ],
)
def test_survival_gives_the_taus_back(curve: dict[int, float], survival: tuple[float, ...]) -> None:
    assert survival_through(curve) == pytest.approx(survival, abs=1e-9)


# What cannot be.

BAD = {
    ("--accept", "5@3"): "--accept 5@3: tokens_per_step 5.0 at lookahead 3 must lie in [1, 4]",
    ("--accept", "0.5@3"): "--accept 0.5@3: tokens_per_step 0.5",
    ("--accept", "nan@3"): "--accept nan@3",
    ("--accept", "2@0"): "--accept 2@0: lookahead 0",
    ("--accept", "0.5,0.8"): "--accept: shares by position must fall",
    ("--accept", "1.5,0.8"): "--accept: shares by position must fall",
    ("--accept", "nan"): "--accept: shares by position must fall",
    ("--accept", "often"): "--accept must be 2.6@3",
    ("--accept", ""): "--accept must be 2.6@3",
    ("--accept", "2@2", "--engine", "trtllm"): "--engine must be one of vllm, sglang, tensorrt-llm",
    ("--accept", "2@2", "--engine", "foredraft"): "--engine must be one of vllm, sglang, tensorrt-llm",
    ("--accept", "1@2", "--engine", "tensorrt-llm"): "--engine tensorrt-llm: 1 token per step cannot be simulated",
    (
        "--accept",
        "2@2",
        "--engine",
        "tensorrt-llm",
        "--method",
        "eagle",
    ): "TensorRT-LLM serves no drafts of kind EAGLE-1/2",
    ("--accept", "2@2", "--method", "medusa"): "--method must be one of dspark, dflash, eagle, eagle3",
    ("--accept", "2@2", "--engine", "sglang", "--cpu"): "--cpu: SGLang takes no proposer",
    ("--accept", "2@2", "--draft-cost", "0.1"): "--draft-cost goes with --cpu alone",
    ("--accept", "2@2", "--cpu", "--draft-cost", "-1"): "--draft-cost must be seconds",
    ("--accept", "2@2", "--cpu", "--draft-cost", "nan"): "--draft-cost must be seconds",
    ("--accept", "2@2", "--cpu", "--draft-cost", "fast"): "--draft-cost must be seconds",
    ("--accept", "2@2", "--cpu", "--seed", "-1"): "--seed must be a whole number",
    ("--accept", "2@2", "--answers", "a.jsonl"): "--answers is for --cpu alone",
    (): "--accept is missing",
    ("nowhere",): "nowhere",
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_is_one_line(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["deploy", "simulate", *words, "--target", TARGET, "--out", "out"])
    assert isinstance(done.exception, ValueError | OSError)
    assert BAD[words] in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_plan_that_speculates_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speculates at no load"):
        folder_of(tmp_path, plan_of({1: (0, 1.0)}, settings={}))


def test_a_target_must_be_named() -> None:
    with pytest.raises(ValueError, match="--target is missing"):
        simulate(None, "out", SimulateSettings(accept="2@2"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"text": "a"}, "neither regenerated tokens"), ({"prompt_ids": [1], "answer_ids": []}, "has no tokens")],
)
def test_answers_name_the_row_that_is_none(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    records.write_lines(tmp_path / "answers.jsonl", [{"prompt_ids": [1], "answer_ids": [2]}, row])
    with pytest.raises(ValueError, match=rf"answers.jsonl:2: .*{reason}"):
        simulate(
            None,
            tmp_path / "out",
            SimulateSettings(accept="2@2", cpu=True),
            target=TARGET,
            answers=tmp_path / "answers.jsonl",
        )


def test_regenerated_answers_come_as_their_tokens(tmp_path: Path) -> None:
    """Two turns of a conversation: the second's prompt is all before its answer."""
    target = tmp_path / "target"
    records.write(target / "tokenizer.json", {})
    regenerated = {"tokens": [1, 2, 3, 4, 5, 6], "answers": [[2, 3], [4, 6]], "finish": ["stop", "stop"]}
    row = {"id": "a", "messages": [], "regenerated": regenerated | {"tokenizer_sha256": tokenizer.sha256(target)}}
    records.write_lines(tmp_path / "answers.jsonl", [row])
    assert list(token_answers(tmp_path / "answers.jsonl", str(target))) == [
        {"prompt": [1, 2], "answer": [3]}, {"prompt": [1, 2, 3, 4], "answer": [5, 6]},
    ]  # fmt: skip
    parts = [
        row["regenerated"] | {"answers": [[2, 3]]},
        row["regenerated"] | {"tokens": [1, 7, 8], "answers": [[2, 3]]},
    ]
    records.write_lines(
        tmp_path / "parts.jsonl", [row | {"regenerated": parts}]
    )  # of a template that rewrites what was said
    assert [pair["prompt"] for pair in token_answers(tmp_path / "parts.jsonl", str(target))] == [[1, 2], [1, 7]]
    records.write_lines(tmp_path / "other.jsonl", [row | {"regenerated": regenerated | {"tokenizer_sha256": "0"}}])
    with pytest.raises(ValueError, match="another tokenizer"):
        list(token_answers(tmp_path / "other.jsonl", str(target)))


def test_a_plans_schedule_is_the_proposers(tmp_path: Path) -> None:
    """Two tokens up to 4 requests, one up to 12, none above, where vLLM is told the longest alone."""
    plan = plan_of({1: (2, 2.19), 8: (1, 1.7), 16: (0, 1.0)})
    out = folder_of(tmp_path, plan, cpu=True, draft_cost="0.001", seed=7)
    launched = json.loads((out / "speculative_config.json").read_text())
    assert launched == {"method": "custom_class", "model": "foredraft_replay.Replay", "num_speculative_tokens": 2}
    settings = replay.Settings(**json.loads((out / "settings.json").read_text()))
    assert settings.survival == pytest.approx([0.7, 0.49])
    assert [settings.lookahead(requests) for requests in (1, 4, 5, 12, 13, 40)] == [2, 2, 1, 1, 0, 0]
    assert (settings.seconds(1), settings.seconds(40), settings.seed) == (0.002, 0.0, 7)
    assert (out / "foredraft_replay.py").read_text() == Path(replay.__file__).read_text()


def test_an_independent_models_config_is_its_own(tmp_path: Path) -> None:
    """As wide as planned, over the target's words: within the 5 % of `shapes.scaled`."""
    draft = DraftChoice(kind="lm", name="a small model", params=1.5e8, non_embedding_params=1e8)
    plan = plan_of(ONE, draft=draft, settings={"vllm": {"method": "draft_model", "num_speculative_tokens": 3}})
    config = json.loads((folder_of(tmp_path, plan) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == 128256
    assert from_config(config).non_embedding_params == pytest.approx(1e8, rel=0.05)


def test_costs_by_requests() -> None:
    assert costs_of("0.002") == [(1.0, 0.002)]
    assert costs_of("8:0.003,1:0.002") == [(1.0, 0.002), (8.0, 0.003)]
    settings = replay.Settings((0.5, 0.25), [(1, 4, 2), (5, 9, 1)], costs_of("8:0.003,1:0.002"))
    assert settings.seconds(1) == pytest.approx(2 * 0.002)
    assert settings.seconds(8) == pytest.approx(0.003)
    assert (settings.lookahead(4), settings.lookahead(5), settings.lookahead(99)) == (2, 1, 1)


# The proposer, on a batch of ours: a target that answers 100, 101, 102, …

VOCAB, PROMPTS = 1000, [[1, 2, 3], [1, 2, 3, 4], [9]]


@pytest.fixture
def proposer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> replay.Replay:
    """Over PROMPTS whose answers are known but for the last."""
    monkeypatch.setattr(replay, "HERE", tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(replay.Settings((0.8, 0.5, 0.3), [(1, 1, 3)], seed=5)._asdict()))
    answers = [{"prompt": prompt, "answer": list(range(100, 200))} for prompt in PROMPTS[:2]]
    records.write_lines(tmp_path / "answers.jsonl", answers)
    model = SimpleNamespace(get_vocab_size=lambda: VOCAB, max_model_len=256)
    return replay.Replay(SimpleNamespace(model_config=model))


def step(proposer: replay.Replay, contexts: list[list[int]], news: list[int]) -> list[list[int]]:
    ids = np.zeros((len(contexts), 256), np.int32)
    for row, context in zip(ids, contexts, strict=True):
        row[: len(context)] = context
    return proposer.propose(
        [context[len(context) - n :] for context, n in zip(contexts, news, strict=True)],
        [len(c) for c in contexts],
        ids,
    )


def right(draft: list[int], answered: int) -> int:
    """How many tokens a target accepts that has answered so many."""
    return next((i for i, token in enumerate(draft) if token != 100 + answered + i), len(draft))


def decode(proposer: replay.Replay, prompt: list[int], length: int = 80) -> list[int]:
    """What each step accepted."""
    answered, new, accepted = 1, 1, []
    while answered < length:
        (draft,) = step(proposer, [[*prompt, *range(100, 100 + answered)]], [new])
        assert len(draft) == 3
        accepted.append(right(draft, answered))
        new = accepted[-1] + 1
        answered += new
    return accepted


def test_drafts_are_accepted_as_asked(proposer: replay.Replay) -> None:
    """By position within 4.5 standard errors of what was asked, seed 5: false alarms below 1e-4 over three positions."""
    accepted = [num for _ in range(40) for prompt in PROMPTS[:2] for num in decode(proposer, prompt)]
    for i, share in enumerate((0.8, 0.5, 0.3)):
        error = math.sqrt(share * (1 - share) / len(accepted))
        assert np.mean([num > i for num in accepted]) == pytest.approx(share, abs=4.5 * error)
    assert proposer.counts == {"drafts": len(accepted), "unknown": 0}


def test_an_unknown_answer_is_learnt(proposer: replay.Replay) -> None:
    assert sum(decode(proposer, PROMPTS[2])) == 0
    assert proposer.counts["unknown"] > 40, "79 steps, of which 0.8 were to accept one"
    assert np.mean(decode(proposer, PROMPTS[2])) > 1.0, "1.6 is asked; seed 5"


def test_rows_that_change_places_are_told_apart(proposer: replay.Replay) -> None:
    """Everything is to be accepted, of answers that differ by their prompts alone."""
    proposer.settings = proposer.settings._replace(survival=(1.0, 1.0, 1.0))
    proposer.changed = (replay.HERE / "settings.json").stat().st_mtime_ns
    proposer.answers.add([*PROMPTS[2], *range(500, 560)], 1)
    contexts = [[*PROMPTS[0], 100, 101], [*PROMPTS[2], 500]]
    assert step(proposer, contexts, [1, 1]) == [[102, 103, 104], [501, 502, 503]]
    assert step(proposer, contexts[::-1], [1, 1]) == [[501, 502, 503], [102, 103, 104]]


def test_no_draft_before_the_prompts_end_or_beyond_the_context(proposer: replay.Replay) -> None:
    long = [*PROMPTS[0], *range(100, 199)] + [7] * 153
    assert step(proposer, [PROMPTS[0][:2], long], [0, 1])[0] == []
    assert len(step(proposer, [long], [1])[0]) == 256 - len(long)


def test_the_settings_can_change_under_a_running_server(proposer: replay.Replay) -> None:
    (replay.HERE / "settings.json").write_text(json.dumps(replay.Settings((0.0,), [(1, 1, 1)])._asdict()))
    assert len(step(proposer, [[*PROMPTS[0], 100]], [1])[0]) == 1


def test_acceptance_stated_by_position_stays_as_stated() -> None:
    assert stated_acceptance("0.8,0.6,0.4") == ((0.8, 0.6, 0.4), True)
    assert stated_acceptance("0.8,0.6,0.4").tokens_per_step(2) == pytest.approx(2.4)
