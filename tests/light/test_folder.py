"""What a wrong model folder is told: one line, at once, before torch or a tokenizer is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foredraft.shapes import check_folder
from foredraft.shapes.folder import TOKENIZER_FILES


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
    assert caught.value.__notes__ == [f"give {snapshot}"]


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is a file"):
        check_folder(folder_with(tmp_path, "config.json") / "config.json")


def test_nothing_heavy_is_loaded_for_it():
    code = "import sys; from foredraft.shapes import check_folder; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
