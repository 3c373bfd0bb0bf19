"""What a wrong model folder is told: one line, at once, before torch or a tokenizer is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_bytes import LLAMA, write_gguf

from foredraft.runs import name_of, run_name
from foredraft.shapes import check_folder, check_same_tokenizer, folder_name
from foredraft.shapes.folder import TOKENIZER_FILES, check_tokenizer


def folder_with(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text(json.dumps({}))
    return tmp_path


def test_a_head_needs_no_tokenizer(tmp_path):
    check_folder(folder_with(tmp_path, "config.json", "model.safetensors"))


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), "config.json: no such file"),
        (("config.json",), "holds neither model.safetensors nor model.safetensors.index.json"),
        (("config.json", "pytorch_model.bin"), "pickled weights are never loaded"),
        (("config.json", "model.safetensors"), "no tokenizer .*copy tokenizer.json beside config.json"),
    ],
)
def test_what_a_folder_lacks_is_told(tmp_path, names, match):
    with pytest.raises(ValueError, match=match):
        check_folder(folder_with(tmp_path, *names), tokenizer=True)


def test_a_config_that_does_not_read_is_told(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        check_folder(tmp_path)


@pytest.mark.parametrize("tokenizer", TOKENIZER_FILES)
def test_any_file_of_a_tokenizer_will_do(tmp_path, tokenizer):
    check_folder(folder_with(tmp_path, "config.json", "model.safetensors", tokenizer), tokenizer=True)


def test_a_name_of_the_hub_is_told_how_to_fetch_it():
    with pytest.raises(ValueError, match="Qwen/Qwen3-8B: no such folder") as caught:
        check_folder("Qwen/Qwen3-8B")
    assert caught.value.__notes__ == ["hf download Qwen/Qwen3-8B --local-dir Qwen3-8B, then give Qwen3-8B"]


def test_the_cache_of_the_hub_is_told_which_folder_to_give(tmp_path):
    snapshot = tmp_path / "models--org--model" / "snapshots" / "9f8e7d6c"
    snapshot.mkdir(parents=True)
    folder_with(snapshot, "config.json", "model.safetensors")
    check_folder(snapshot)
    with pytest.raises(ValueError, match="Hub's cache") as caught:
        check_folder(tmp_path / "models--org--model")
    with pytest.raises(ValueError, match="a model of the Hub's cache, whose files lie deeper"):
        check_tokenizer(tmp_path / "models--org--model")
    assert caught.value.__notes__ == [f"give {snapshot}"]


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is a file"):
        check_folder(folder_with(tmp_path, "config.json") / "config.json")


def test_nothing_heavy_is_loaded_for_it():
    code = "import sys; from foredraft.shapes import check_folder; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CONFIG, ADAPTER, ONE_OF = {"config.json": "{}"}, "adapter_config.json", "model-00001-of-0000{}.safetensors"
WRONG = {
    "an adapter": ({ADAPTER: '{"base_model_name_or_path": "org/base"}'}, "an adapter .LoRA. of org/base", "merge_and_unload"),
    "an adapter with a config": (CONFIG | {ADAPTER: "{}"}, "an adapter .LoRA. of another model", "merge_and_unload"),
    "a pointer": (CONFIG | {"model.safetensors": LFS}, "model.safetensors: a pointer of Git LFS", "lfs pull"),
    "a config that is a pointer": ({"config.json": LFS}, "config.json: a pointer of Git LFS", "lfs pull"),
    "a tokenizer's pointer": (CONFIG | {"model.safetensors": "", "tokenizer.json": LFS}, "tokenizer.json: a pointer", "lfs pull"),
    "shards alone": (CONFIG | {ONE_OF.format(1): ""}, "holds 1 shards .*without their index", "hf download"),
    "some shards": (CONFIG | {ONE_OF.format(3): ""}, "holds 1 of 3 shards", "hf download"),
    "a shard's pointer": (CONFIG | {"model.safetensors.index.json": "{}", ONE_OF.format(1): LFS}, "a pointer of Git LFS", "lfs pull"),
    "a folder of models": ({"final/config.json": "{}"}, "models lie in its folders final", "final$"),
    "a GGUF file in it": ({"a.gguf": ""}, "holds GGUF files and no config.json", "a.gguf$"),
    "the maker's own format": ({"params.json": "{}", "consolidated.00.pth": ""}, "the maker's own format", "format of Hugging Face"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_true_cause_is_told_with_what_mends_it(tmp_path, name):
    files, match, hint = WRONG[name]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        check_folder(tmp_path, tokenizer=True)
    assert re.search(hint, caught.value.__notes__[0])


def test_a_model_of_the_hubs_cache_is_called_by_its_name_and_its_newest_snapshot_is_given(tmp_path):
    root = tmp_path / "models--org--a--b"
    for commit in ("aaaa", "bbbb"):
        folder_with_new = root / "snapshots" / commit
        folder_with_new.mkdir(parents=True)
        folder_with(folder_with_new, "config.json", "model.safetensors")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("aaaa")
    with pytest.raises(ValueError, match="Hub's cache") as caught:
        check_folder(root)
    assert caught.value.__notes__ == [f"give {root / 'snapshots' / 'aaaa'}"]
    assert folder_name(root / "snapshots" / "aaaa") == name_of(root / "snapshots" / "bbbb") == "org/a--b"
    assert run_name(root / "snapshots" / "aaaa") == "org/a--b"


def test_another_tokenizer_of_the_same_size_is_told(tmp_path):
    words = [f"w{i}" for i in range(200)]
    for name, order, more in (
        ("target", words, ["<a>"]),
        ("draft", words, ["<b>"]),
        ("other", words[::-1], ["<a>"]),
        ("none", [], []),
    ):
        (tmp_path / name).mkdir()
        document = {
            "model": {"vocab": {word: i for i, word in enumerate(order)}},
            "added_tokens": [{"id": 200, "content": word} for word in more],
        }
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document))
    for same in ("target", "draft", "none", "nowhere"):  # a special token may go by another name
        check_same_tokenizer(tmp_path / "target", tmp_path / same)
    with pytest.raises(ValueError, match="other: its tokenizer is not the target's: 200 of 201 ids are other words"):
        check_same_tokenizer(tmp_path / "target", tmp_path / "other")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.json").write_text(json.dumps({f"w{i}": i for i in range(200)}))
    check_same_tokenizer(tmp_path / "target", tmp_path / "words")
    gguf = write_gguf(tmp_path / "model.gguf", LLAMA | {"tokenizer.ggml.tokens": [f"w{i}" for i in range(200)]})
    check_same_tokenizer(gguf, tmp_path / "target")
    for draft in ("other", "target"):
        gguf = write_gguf(tmp_path / "model.gguf", LLAMA | {"tokenizer.ggml.tokens": [f"v{i}" for i in range(200)]})
        with pytest.raises(ValueError, match="200 of 200 ids are other words"):
            check_same_tokenizer(gguf, tmp_path / draft)
