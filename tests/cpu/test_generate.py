"""Text in, text out: the command, stop strings, streaming, drafters from folders, refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foredraft import text
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling
from foredraft.models import new_head, save_head

PROMPT = "the quick brown"
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> list[int]:
    """transformers' own greedy tokens."""
    from transformers import LlamaForCausalLM

    tokenizer: Any = text.tokenizer_of(checkpoint)
    model: Any = LlamaForCausalLM.from_pretrained(checkpoint)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :].tolist()


def test_greedy_tokens_are_those_of_transformers(cli: Cli, checkpoint: Path, oracle: list[int]) -> None:
    for draft in ("", "ngram"):
        done = cli(
            "generate", str(checkpoint), PROMPT, "--max-tokens", "30", "--json", *(("--draft", draft) if draft else ())
        )
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)
        assert answer["tokens"] == oracle


def test_a_head_from_its_folder_changes_nothing(checkpoint: Path, oracle: list[int], tmp_path: Path) -> None:
    engine = text.load_engine(checkpoint)
    save_head(new_head(engine.target, "eagle3", 2, range(200), feature_layers=(1, 2, 3)), tmp_path)
    for budget in (Budget(3), Budget(3, 3, 8)):
        generation = text.generate(
            text.load_engine(checkpoint, str(tmp_path), lookahead=budget),
            text.tokenizer_of(checkpoint), [PROMPT, "dog"], max_tokens=30,
        )  # fmt: skip
        assert generation[0][1].answer == oracle


def test_text_streams_whole_characters_and_ends_before_a_stop_string(checkpoint: Path) -> None:
    tokenizer, sampling = text.tokenizer_of(checkpoint), Sampling(temperature=1.5, seed=4)
    pieces: list[str] = []
    ((all_text, _),) = text.generate(
        text.load_engine(checkpoint, "ngram"), tokenizer, [PROMPT], max_tokens=60, sampling=sampling,
        on_text=lambda _, piece, __: pieces.append(piece),
    )  # fmt: skip
    assert "".join(pieces) == all_text.text
    assert len(pieces) > 10
    stop = all_text.text[20:23]
    shown: list[str] = []
    ((cut, sequence),) = text.generate(
        text.load_engine(checkpoint, "ngram"), tokenizer, [PROMPT], max_tokens=60, sampling=sampling, stops=(stop,),
        on_text=lambda _, piece, __: shown.append(piece),
    )  # fmt: skip
    assert stop not in cut.text
    assert "".join(shown) == cut.text
    assert sequence.finish == "stop"


def test_prompts_of_a_file_and_of_stdin(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the fox\n\nlazy dog\n")
    both = cli("generate", str(checkpoint), "--file", str(tmp_path / "prompts.txt"), "--max-tokens", "5", "--json")
    alone = cli("generate", str(checkpoint), "--max-tokens", "5", "--json", stdin="lazy dog")
    assert json.loads(both.stdout)[1]["tokens"] == json.loads(alone.stdout)[0]["tokens"]


def test_stats_stand_on_stderr(cli: Cli, checkpoint: Path) -> None:
    done = cli("generate", str(checkpoint), PROMPT, "--draft", "ngram", "--max-tokens", "20", "--stats")
    assert "tokens per step" in done.stderr
    assert "tokens per step" not in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--max-tokens", "600"), "max_context is 512"),
        (("--lookahead", "600"), "lookahead (600) must be less than the context"),
        (("--lookahead", "100", "--draft", "ngram"), "lookahead must lie in 0…64"),
        (("--lookahead", "-1", "--draft", "ngram"), "--lookahead must be a whole number from 0"),
        (("--dtype", "int3"), "dtype must be one of"),
        (("--tree", "four"), "tree must be TOPK,NODES"),
        (("--temperature", "-1"), "temperature"),
        (("--cache-gb", "0.000001"), "cache_bytes"),
        (("--cache-gb", "inf"), "--cache-gb must be a number above 0"),
        (("--context", "100000000"), "GB, and this machine has"),
        (("--device", "xyz"), "--device must be cpu, cuda or cuda:N"),
        (("--chat", "always"), "no chat_template"),
        (("--chat", "maybe"), "--chat must be one of"),
        (("--system", "Be brief."), "asked as it stands, without a chat template"),
    ],
)
def test_impossible_requests_are_one_line(cli: Cli, checkpoint: Path, args: tuple[str, ...], says: str) -> None:
    done = cli("generate", str(checkpoint), PROMPT, *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_draft_as_large_as_its_target_is_refused(cli: Cli, checkpoint: Path) -> None:
    done = cli("generate", str(checkpoint), PROMPT, "--draft", str(checkpoint))
    assert "must be smaller than its target" in done.stderr


def test_a_plan_sets_the_lookahead_by_running_requests(
    cli: Cli, checkpoint: Path, tmp_path: Path, oracle: list[int]
) -> None:
    from foredraft import machines, records, shapes
    from foredraft.plan.plan import plan
    from foredraft.plan.problem import PlanSettings

    load = records.Workload(input_len=64, output_len=64, concurrency=(1, 64, 256))
    served_plan = plan(shapes.shape("Llama-3.1-8B"), machines.machine("H100"), load, PlanSettings(draws=16))
    schedule = text.schedule_of(served_plan)
    assert [schedule(n).lookahead for n in (1, 2, 64, 65, 256, 1000)] == [
        served_plan.schedule[i].lookahead for i in (0, 1, 1, 2, 2, 2)
    ]
    records.write(tmp_path / "Plan.json", served_plan)
    done = cli(
        "generate", str(checkpoint), PROMPT, "--draft", "ngram", "--plan", str(tmp_path / "Plan.json"), "--max-tokens", "30",
        "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)[0]["tokens"] == oracle
    wrong = cli("generate", str(checkpoint), PROMPT, "--draft", "ngram", "--plan", str(checkpoint / "config.json"))
    assert wrong.returncode == 2
    assert "config.json" in wrong.stderr


OWN_PYTHON = """open({mark!r}, "w").write("x")
from transformers import PreTrainedTokenizerFast
class Tok(PreTrainedTokenizerFast): pass
"""


def test_python_that_a_folder_brings_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own, with an answer for all that it asks: transformers would ask on stdin whether to run it, and here the answer is yes."""
    folder, mark = tmp_path / "evil", tmp_path / "RUN"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(checkpoint / name)
    keys = json.loads((checkpoint / "tokenizer_config.json").read_bytes())
    keys |= {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))
    (folder / "evil.py").write_text(OWN_PYTHON.format(mark=str(mark)))
    command = [sys.executable, "-m", "foredraft", "generate", str(folder), "Once upon a time", "--max-tokens", "2"]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, timeout=300, check=False)
    assert not mark.exists()
    assert done.returncode != 0
    assert "no tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, {"eos_token_id": 5}, {5}),
        ({"eos_token_id": [6, 7]}, {"eos_token_id": 5}, {5, 6, 7}),
        ({}, {"text_config": {"eos_token_id": [8, 9]}}, {8, 9}),
        ({"eos_token_id": None}, {"eos_token_id": None}, set()),
    ],
)
def test_end_ids_of_every_file_count(tmp_path: Path, generation: Any, config: Any, ends: set[int]) -> None:
    """A model whose end stands in config.json alone runs on into invented turns otherwise."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert text.stop_ids(tmp_path, SimpleNamespace(eos_token_id=0)) == ends | {0}
    assert text.stop_ids(tmp_path, SimpleNamespace(eos_token_id=None)) == ends


def test_a_generation_config_that_is_no_object_is_told(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json: expected a JSON object"):
        text.stop_ids(tmp_path, SimpleNamespace(eos_token_id=0))
