"""The benchmarks of other engines, without those engines: who runs what, what becomes of replies, and our side of a race from end to end."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import served
import zoo_drafts

from foredraft import text
from foredraft.data.prompts import Encoding, read_prompts
from foredraft.data.sources import Skips
from foredraft.models.heads import new_head, save_head
from foredraft.models.load import load

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """benchmarks/peers/drafted.py, which is no package, with no other engine installed."""
    monkeypatch.syspath_prepend(PEERS)
    import drafted
    import run

    monkeypatch.setattr(run, "BUILD", tmp_path / "build")
    for module in (run, drafted):
        monkeypatch.setattr(module, "VENVS", tmp_path / "none")
    yield drafted
    for name in ("drafted", "run"):  # benchmarks/gpu has a run.py too
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, zoo_drafts.Draft]:
    folder, target = tmp_path_factory.mktemp("drafts"), load(checkpoint)
    for name, kind, layers in (("eagle2", "eagle", 1), ("eagle3", "eagle3", 1), ("scylla-L2", "eagle", 2)):
        save_head(new_head(target, kind, layers, range(64)), folder / name)
    return zoo_drafts.drafts_of([f"{path.name}={path}" for path in sorted(folder.iterdir())])


def exports(drafted: Any, target: Path, drafts: dict[str, zoo_drafts.Draft], folder: Path) -> Any:
    ours = ("scylla-L2@3", "eagle3@2,2,3", "eagle3+ngram@3")
    return drafted.Exports(folder, target, drafts, (2, 4), ours, "float32", folder / "t.gguf", folder / "llama.cpp")


def test_a_draft_is_what_its_folder_says(drafts: dict[str, zoo_drafts.Draft]) -> None:
    assert [(draft.method, draft.layers) for draft in drafts.values()] == [("eagle", 1), ("eagle3", 1), ("eagle", 2)]
    assert drafts["scylla-L2"].shape.draft_vocab_size == 64
    assert drafts["scylla-L2"].served_shape.draft_vocab_size is None  # vLLM gives it all of its target's words
    assert drafts["eagle3"].served_shape.draft_vocab_size == 64
    with pytest.raises(SystemExit, match="no draft in nowhere"):
        zoo_drafts.drafts_of(["x=nowhere"])


def test_prompts_are_taken_of_each_category_in_turn(tmp_path: Path) -> None:
    lines = [{"prompt": f"{category}{i}", "category": category} for category in ("qa", "code") for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out").mkdir()
    file = zoo_drafts.first_of_each(tmp_path / "p.jsonl", 2, tmp_path / "out")
    assert [json.loads(line)["prompt"] for line in file.open()] == ["qa0", "code0", "qa1", "code1"]


def test_every_engine_runs_the_drafts_that_it_loads(
    drafted: Any, checkpoint: Path, drafts: dict[str, zoo_drafts.Draft], tmp_path: Path
) -> None:
    methods = {engine: exports(drafted, checkpoint, drafts, tmp_path).methods(engine) for engine in drafted.ENGINES}
    assert methods["foredraft"] == ["plain", "ngram@5", "scylla-L2@3", "eagle3@2,2,3", "eagle3+ngram@3"]
    assert methods["openvino"] == ["plain", "ngram@5", "eagle3@2", "eagle3@4"]
    assert set(methods["vllm"]) == {"plain", "ngram@5", *(f"{name}@{k}" for name in drafts for k in (2, 4))}
    assert methods["llama_cpp"] == ["plain", "eagle3@2", "eagle3@4", "plain-q8_0", "plain-q4_1"]


def test_ours_runs_a_race_and_what_is_not_installed_is_named(
    drafted: Any, checkpoint: Path, drafts: dict[str, zoo_drafts.Draft], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("the quick brown fox jumps\nover the lazy dog the quick\n")
    prompts = read_prompts(tmp_path / "p.txt", Encoding(text.tokenizer_of(checkpoint)), Skips("stop"))
    lengths = drafted.answer_lengths(checkpoint, prompts, 8)
    race = drafted.race(
        exports(drafted, checkpoint, drafts, tmp_path), prompts, lengths, re.compile(""), 1, quiet=False
    )
    assert {name: arm["same_answers"] for name, arm in race["arms"].items()} == {
        f"foredraft/{method}": 2 for method in ("plain", "ngram@5", "scylla-L2@3", "eagle3@2,2,3", "eagle3+ngram@3")
    }  # fmt: skip
    assert {name.split("/")[0] for name in race["not_run"]} == {"openvino", "vllm", "llama_cpp"}
    assert "docs/guides/runtimes.md" in race["not_run"]["llama_cpp/plain"]


def test_a_race_is_told_by_pooled_tokens_and_paired_ratios(drafted: Any) -> None:
    """Ours takes half a peer's seconds on every prompt, whatever it takes; a peer's 4 bits are no rival in this precision."""
    spent = np.random.default_rng(0).uniform(1, 5, size=12)

    def replies(factor: float, answer: int = 1) -> list[dict[str, Any]]:
        return [{"seconds": factor * s, "answers": [[answer]], "steps": 4, "foreign": 0.0} for s in spent]

    report = drafted.figures(
        {
            ("foredraft", "plain"): replies(1), ("foredraft", "s@3"): replies(0.5), ("vllm", "plain"): replies(1.5), ("vllm", "e@2"): replies(1, 2),
            ("llama_cpp", "plain"): replies(1), ("llama_cpp", "plain-q4_1"): replies(0.25),
        },
        [8] * 12,
    )  # fmt: skip
    assert report["fastest"] == {"foredraft": "s@3", "vllm": "e@2", "llama_cpp": "plain"}
    assert report["ours_over"]["vllm/e@2"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    assert report["arms"]["vllm/e@2"]["over_plain"]["value"] == pytest.approx(1.5)
    assert report["arms"]["foredraft/s@3"]["tok_s"]["value"] == pytest.approx(96 / (0.5 * spent.sum()))
    assert [report["arms"][name]["same_answers"] for name in ("foredraft/s@3", "vllm/e@2")] == [12, 0]
    assert report["arms"]["foredraft/s@3"]["tokens_per_step"] == 2.0
    assert msgspec.json.decode(msgspec.json.encode(report)) == report  # plain values, as the record is written


def test_a_server_is_measured_after_the_one_that_it_is_planned_from(
    drafts: dict[str, zoo_drafts.Draft], tmp_path: Path
) -> None:
    bench = served.Bench(
        tmp_path,
        tmp_path,
        drafts,
        "scylla-L2",
        "eagle2",
        tmp_path,
        Path(sys.executable),
        "bfloat16",
        2,
        False,
        2,
        (1, 8),
        96,
    )
    names = [setting.name for setting in bench.settings(quick=False)]
    assert {"accept-eagle2", "accept-eagle3", "accept-scylla-L2", "eagle2@5", "scylla-L2@1"} < set(names)
    assert names.index(bench.known) < names.index(served.PLANNED)
    assert len(bench.settings(quick=True)) == 5
