"""GGUF files where there is no torch: planned from their metadata, and what is wrong with one told in a line."""

import subprocess
import sys
from math import pi
from pathlib import Path
from typing import Any

import pytest
from gguf_bytes import LLAMA, TENSORS, gguf_bytes, write_gguf

from foredraft import kinds
from foredraft.shapes import check_folder, named, read_config
from foredraft.shapes.gguf import FORMATS, shortest
from foredraft.shapes.gguf_config import llama3_factors


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in LLAMA.items() if name != key}


def test_the_metadata_is_a_config(tmp_path):
    keys = read_config(write_gguf(tmp_path / "tiny.Q8_0.gguf"))
    assert keys == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "use_cache": True, "eos_token_id": 2,
    }  # fmt: skip


def test_a_model_is_named_by_its_file(tmp_path):
    path = write_gguf(tmp_path / "tiny.Q8_0.gguf")
    assert named(str(path)).name == kinds.shape_named(str(path)).name == "tiny.Q8_0"
    check_folder(path, tokenizer=True)


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "gguf", "safetensors"):
            raise ImportError(f"{name} is heavy")
sys.meta_path.insert(0, Block())
sys.argv = ["foredraft", "plan", sys.argv[1], "-m", "H100", "-c", "1", "--draws", "64"]
from foredraft.cli.main import main
main()
"""


def test_a_file_is_planned_without_torch_and_gguf(tmp_path):
    metadata = LLAMA | {"llama.embedding_length": 2048, "llama.block_count": 16, "llama.feed_forward_length": 8192}
    metadata |= {"llama.attention.head_count": 32, "llama.attention.head_count_kv": 8, "llama.context_length": 8192}
    path = write_gguf(tmp_path / "planned.gguf", metadata, {"token_embd.weight": (96, 2048)})
    done = subprocess.run(
        [sys.executable, "-c", BLOCK, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "for planned" in done.stdout


def test_numbers_are_the_shortest_of_their_float32():
    assert [shortest(x) for x in (9.999999747378752e-06, 0.10000000149011612, 1e6, 0.0, -1.5)] == [
        1e-5,
        0.1,
        1e6,
        0.0,
        -1.5,
    ]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a GGUF file"),
        (b"version https://git-lfs", "not a GGUF file .*b'vers'.*download it again"),
        (gguf_bytes(order=">"), "big-endian; convert .* without --bigendian"),
        (gguf_bytes(version=1), "GGUF version 1 .*have 2 and 3"),
        (gguf_bytes()[:300], "truncated: its header does not end, the file at byte 300; download it again"),
        (gguf_bytes()[:-64], "truncated: tensor output_norm.weight ends at byte .*download it again"),
        (gguf_bytes(LLAMA | {"split.count": 3, "split.no": 1}), "part 2 of 3; merge the parts"),
        (gguf_bytes(kind=41), r"tensor token_embd.weight is of format 41, which cannot be read \(have F32, F16"),
        (gguf_bytes(tensors={"token_embd.weight": (96, 65)}, kind=2), "rows are no whole blocks"),
        (gguf_bytes(LLAMA | {"general.architecture": "gemma3"}), "architecture 'gemma3' cannot be read from GGUF .*have llama"),
        (gguf_bytes(without("general.architecture")), "the metadata lacks general.architecture"),
        (gguf_bytes(without("llama.block_count")), "the metadata lacks llama.block_count; convert"),
        (gguf_bytes(tensors={"output_norm.weight": (64,)}), "lacks tensor token_embd.weight"),
        (gguf_bytes(LLAMA | {"llama.expert_count": 8}), "mixtures of experts cannot be read"),
        (gguf_bytes(LLAMA | {"llama.attention.head_count_kv": 2, "llama.feed_forward_length": [128, 64]}), "differs from layer to layer"),
        (gguf_bytes(LLAMA | {"llama.rope.scaling.type": "longrope"}), "rope scaling of type 'longrope'"),
        (gguf_bytes(tensors=TENSORS | {"rope_factors_long.weight": (8,)}), "longrope"),
        (gguf_bytes(LLAMA | {"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}), "dimension_count 8 is not the head"),
        (gguf_bytes(tensors=TENSORS | {"rope_freqs.weight": (8,)}), "holds no Llama 3 factors"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, data, match):
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        check_folder(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        check_folder(tmp_path / "none.gguf")


@pytest.mark.parametrize("cut", range(4, 700, 7))
def test_a_file_cut_anywhere_is_told(tmp_path, cut):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_bytes()[:cut])
    with pytest.raises(ValueError, match="truncated"):
        check_folder(path)


@pytest.mark.parametrize(
    ("name", "family", "window"),
    [("Mistral-7B", "mistral", None), ("Zephyr", "llama", None), ("Zephyr", "mistral", 64)],
)
def test_mistral_is_told_by_its_name_or_window(tmp_path, name, family, window):
    metadata = LLAMA | {"general.name": name} | ({"llama.attention.sliding_window": window} if window else {})
    keys = read_config(write_gguf(tmp_path / "m.gguf", metadata))
    assert (keys["model_type"], keys.get("sliding_window")) == (family, window)


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({}, None),
        ({"scaling.type": "none", "scaling.factor": 2.0}, None),
        ({"scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 128},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_the_rotation_is_stretched_as_llama_cpp_does(tmp_path, more, scaling):
    metadata = LLAMA | {f"llama.rope.{key}": value for key, value in more.items()}
    assert read_config(write_gguf(tmp_path / "rope.gguf", metadata)).get("rope_scaling") == scaling


@pytest.mark.parametrize(("factor", "high", "original"), [(8.0, 4.0, 8192), (32.0, 4.0, 8192), (4.0, 8.0, 2048)])
def test_llama_3_factors_are_read_back(tmp_path, factor, high, original):
    import struct

    scaling = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    turns = [500000.0 ** (-2 * i / 128) / (2 * pi) for i in range(64)]
    values = {"rope_freqs.weight": struct.pack("<64f", *llama3_factors(scaling, turns))}
    metadata = LLAMA | {"llama.attention.key_length": 128}
    path = write_gguf(tmp_path / "llama3.gguf", metadata, TENSORS | {"rope_freqs.weight": (64,)}, values=values)
    assert read_config(path)["rope_scaling"] == {"rope_type": "llama3", **scaling}


def test_formats_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    sizes = {int(kind): (kind.name, *size) for kind, size in constants.GGML_QUANT_SIZES.items()}
    assert {kind: sizes[kind] for kind in FORMATS} == FORMATS


@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_pickles_are_told_how_to_be_converted(tmp_path: Path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"never loaded here.*foredraft convert {tmp_path} OUT/"):
        check_folder(tmp_path)
