"""The command line as a user meets it: exit codes, one-line errors with a hint, JSON on stdout, talk on stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = ("plan", "Llama-3.1-8B", "--machine", "H100", "--concurrency", "1,64", "--draws", "16")


def foredraft(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "foredraft", *args], capture_output=True, text=True, cwd=cwd)


def test_plan_writes_its_documents_and_prints_the_answer(tmp_path: Path) -> None:
    done = foredraft(*PLAN, "--out", str(tmp_path), "--no-figures")
    assert done.returncode == 0, done.stderr
    assert "Schedule" in done.stdout
    assert "Plan.json" in done.stderr
    plan = json.loads((tmp_path / "Plan.json").read_text())
    ranges = json.loads((tmp_path / "vllm_speculative_config.json").read_text())[
        "num_speculative_tokens_per_batch_size"
    ]
    assert ranges[0][0] == 1
    assert [step["concurrency"] for step in plan["schedule"]] == [1, 64]


def test_json_is_the_record_and_nothing_else() -> None:
    done = foredraft(*PLAN, "--json")
    assert json.loads(done.stdout)["target"] == "Llama-3.1-8B"


def test_config_folder_stands_for_a_model(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = foredraft("plan", str(tmp_path), "--concurrency", "1", "--draws", "16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == tmp_path.name


@pytest.mark.parametrize(
    ("args", "says", "hints"),
    [
        (("plan", "Llama-3.1-700B"), "no shape named", "foredraft list models"),
        (("plan", "Llama-3.1-8B", "-m", "H10"), "machine 'H10' is not known", "foredraft list machines"),
        (("plan", "Llama-3.1-70B", "-m", "H100"), "the KV cache holds 0 tokens", "raise --devices"),
        (("plan", "Llama-3.1-8B", "-c", "many"), "concurrency must be a list", ""),
        (("plan", "Llama-3.1-8B", "-c", "0-8"), "concurrency must be a list", ""),
        (("plan", "Llama-3.1-8B", "--objective", "fame"), "objective must be one of", ""),
        (("plan", "Qwen3-1.7B", "-d", "Qwen3-4B"), "must be smaller than target", ""),
        (("plan", "Llama-3.1-8B", "--input-len", "-5"), "input_len must be positive", ""),
        (("plan", "OPT-13B", "--input-len", "4000"), "exceeds the context", "lower --input-len"),
        (("plan", "Llama-3.1-8B", "--observations", "nowhere.jsonl"), "nowhere.jsonl: No such file", "check the path"),
        (("fit", "nowhere.jsonl"), "nowhere.jsonl: No such file", "check the path"),
        (("validate", "nowhere.csv"), "nowhere.csv: No such file", "check the path"),
        (("reproduce", "scylla"), "nothing named 'scylla'", "foredraft reproduce sdsl"),
        (("list", "dragons"), "nothing named 'dragons'", ""),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_a_hint(args: tuple[str, ...], says: str, hints: str, tmp_path: Path) -> None:
    done = foredraft(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    error, *rest = done.stderr.strip().split("\n\n")
    assert says in error
    assert "\n" not in error
    assert hints in "".join(rest)
    assert list(tmp_path.iterdir()) == []


def test_fit_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(
        "target,method,draft_tokens,tau\nT,eagle3,1e8,2.5\nT,eagle3,1e9,3.0\nT,eagle3,1e10,3.5\n"
    )
    done = foredraft("fit", str(tmp_path / "runs.csv"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    fitted = {fit["law"]: fit for fit in found["fits"]}
    assert fitted["law_1_1"]["parameters"]["c1"] == pytest.approx(0.5, abs=1e-6)
    assert "draft_layers" in found["lacking"]["law_1_2"]


def test_validate_judges_a_table_and_counts_what_it_lacks(tmp_path: Path) -> None:
    rows = "".join(f"M,eagle3,{k},{1 + sum(0.7**i for i in range(1, k + 1)):.4f}\n" for k in (1, 2, 4, 6))
    (tmp_path / "al.csv").write_text("target,method,k,mean_acceptance_length\n" + rows + "N,eagle3,5,3.1\n")
    done = foredraft("validate", str(tmp_path / "al.csv"), "--json")
    summary = json.loads(done.stdout)["tables"]["al.csv"]
    assert summary["curve_points"] == 2
    assert summary["lacking"] == {"τ at k ≤ 2 (for τ at larger k)": 1}


def test_validate_refuses_a_table_without_outcomes(tmp_path: Path) -> None:
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    done = foredraft("validate", str(tmp_path / "no.csv"))
    assert done.returncode == 2
    assert "no outcome column" in done.stderr


def test_reproduce_sdsl_is_within_one_per_cent() -> None:
    report = json.loads(foredraft("reproduce", "sdsl", "--json").stdout)
    assert report["table_5_worst_relative_error"] < 0.01
