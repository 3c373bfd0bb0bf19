"""GGUF files against transformers' own reading of them and against the models that they were made of; folders out of files and pickles."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_models import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from foredraft import text
from foredraft.models import Decoder, load
from foredraft.models import convert as room
from foredraft.models.convert import RECORD, convert
from foredraft.models.gguf import GgufCheckpoint, _dequantised
from foredraft.shapes import read_config
from foredraft.shapes.gguf import FORMATS

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama-tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=True),
}
SMALL = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16, Kind.F32)
LARGE = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)


def random_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # biases and norms that are no zeros and ones
            weight.data = torch.randn(weight.shape) / 3 + ("norm" in name)
    return model.eval()


def theirs(path: Path) -> Any:
    """transformers' reading of a file."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    """Of a transformers model or a decoder of ours on the same ids."""
    ids = torch.arange(3, 63).reshape(2, 30) * 7 % 128
    with torch.no_grad():
        output = model(ids)
    return output.logits_BTV if isinstance(model, Decoder) else output.logits


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_logits_are_those_that_transformers_reads(tmp_path, family):
    path = write_model(tmp_path / "tiny.gguf", random_model(FAMILIES[family]()), SMALL)
    expected, checkpoint = theirs(path), GgufCheckpoint(path)
    state = expected.state_dict()
    if expected.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    assert set(checkpoint.stored) == set(state)
    assert [name for name in state if not torch.equal(checkpoint.tensor(name), state[name])] == []
    torch.testing.assert_close(logits(load(path)), logits(expected), atol=2e-4, rtol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_float32_is_the_model_it_was_made_of(tmp_path, family):
    """The oracle is not the file's reader: rows, biases, norms and the rotation must all be right."""
    model = random_model(FAMILIES[family]())
    path = write_model(tmp_path / "tiny.gguf", model)
    torch.testing.assert_close(logits(load(path)), logits(model), atol=2e-4, rtol=0.0)
    keys = read_config(path)
    assert (keys["model_type"], keys["rms_norm_eps"]) == (model.config.model_type, 1e-5)


def test_rows_that_are_left_turned_are_noticed(tmp_path, monkeypatch):
    """Negative control."""
    model = random_model(FAMILIES["llama"]())
    path = write_model(tmp_path / "tiny.gguf", model)
    monkeypatch.setattr("foredraft.models.gguf._unturned", lambda tensor, num_heads: tensor)
    assert (logits(load(path)) - logits(model)).abs().max() > 0.1


def test_k_quants_are_read_as_transformers_does(tmp_path):
    sizes: dict[str, Any] = SIZES | {"hidden_size": 256, "intermediate_size": 256}
    config = LlamaConfig(**sizes)
    path = write_model(tmp_path / "tiny.gguf", random_model(config), LARGE)
    checkpoint, state = GgufCheckpoint(path), theirs(path).state_dict()
    assert [name for name in state if not torch.equal(checkpoint.tensor(name), state[name])] == []
    assert state["model.embed_tokens.weight"].isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind > 1])  # beyond F32 and F16, which numpy has
def test_every_format_that_a_header_may_name_can_be_read(kind):
    _, values, size = FORMATS[kind]
    read = _dequantised(np.zeros((3, 2 * size), np.uint8), kind)
    assert (read.shape, read.dtype) == ((3, 2 * values), np.float32)


ROPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 16},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        {},
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_a_stretched_rotation_is_read_though_transformers_leaves_it_out(tmp_path, kind):
    scaling, metadata = ROPES[kind]
    parameters = {"rope_type": kind, "rope_theta": 5e5, **scaling}
    model = random_model(LlamaConfig(**SIZES, head_dim=64, rope_parameters=parameters))
    factors = None
    if kind == "llama3":  # llama.cpp stores by what each frequency is divided
        plain = 5e5 ** (-np.arange(0, 64, 2) / 64)
        factors = plain / model.model.rotary_emb.inv_freq.numpy()
        assert factors.max() > 7.9
    path = write_model(tmp_path / "tiny.gguf", model, more=metadata, factors=factors)
    torch.testing.assert_close(logits(load(path)), logits(model), atol=5e-4, rtol=0.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_model(path, random_model(FAMILIES["qwen3"]()), SMALL)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_converted_folder_is_the_file_for_us_and_for_transformers(tmp_path, file, dtype):
    convert(file, tmp_path / "out", dtype=dtype)
    state = theirs(file).state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype)
    assert all(torch.equal(weight, state[name].to(loaded.dtype)) for name, weight in loaded.state_dict().items())
    ours, expected = load(tmp_path / "out"), load(file)
    if dtype == "float32":
        assert torch.equal(logits(ours), logits(expected))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("abc")["input_ids"]
        == text.tokenizer_of(file)("abc")["input_ids"]
    )


def test_a_conversion_is_whole_and_done_once(tmp_path, file, monkeypatch):
    out = tmp_path / "out"
    first = convert(file, out)
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert convert(file, out) == first
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds tiny.gguf as bfloat16; choose another folder, or --force"):
        convert(file, out, dtype="float16")
    monkeypatch.setattr(room, "_write_weights", lambda *_: (_ for _ in ()).throw(ValueError("stop")))
    with pytest.raises(ValueError, match="stop"):
        convert(file, out, dtype="float16", force=True)
    assert json.loads((out / RECORD).read_bytes())["dtype"] == "bfloat16"
    monkeypatch.undo()
    assert convert(file, out, dtype="float16", force=True).dtype == "float16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_force_replaces_models_alone(tmp_path, file):
    (tmp_path / "letters.txt").write_text("dear all")
    with pytest.raises(ValueError, match="is no model's folder, which --force does not replace"):
        convert(file, tmp_path, force=True)


def test_large_models_are_cut_into_shards(tmp_path, file, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    convert(file, whole)
    monkeypatch.setattr(room, "SHARD_BYTES", 50_000)
    convert(file, cut)
    assert len(list(cut.glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(load(cut)), logits(load(whole)))
    assert AutoModelForCausalLM.from_pretrained(cut).num_parameters() == load(cut).shape.params


def test_what_a_file_lacks_is_told_in_its_words(tmp_path, file):
    checkpoint = GgufCheckpoint(file)
    del checkpoint.stored["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"tiny.gguf: lacks tensor blk.1.ffn_up.weight$"):
        room._check_whole(checkpoint)


def pickled(folder: Path, model: Any, parts: int = 1) -> Path:
    """`model` as old checkpoints have it."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    placed = {name: f"pytorch_model-{i % parts + 1:05}-of-{parts:05}.bin" for i, name in enumerate(state)}
    for part in set(placed.values()):
        torch.save({name: tensor for name, tensor in state.items() if placed[name] == part}, folder / part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_pickles_become_safetensors(tmp_path, parts):
    model = random_model(FAMILIES["llama"]())
    source = pickled(tmp_path / "source", model, parts)
    convert(source, tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(model), atol=2e-4, rtol=0.0)


def test_parts_that_lack_a_tensor_of_the_index_are_refused(tmp_path):
    """Rather than converted without it."""
    source = pickled(tmp_path / "source", random_model(FAMILIES["llama"]()), 3)
    index = source / "pytorch_model.bin.index.json"
    placed = json.loads(index.read_bytes())["weight_map"]
    name = next(iter(placed))
    part = torch.load(source / placed[name], weights_only=True)
    torch.save({other: tensor for other, tensor in part.items() if other != name}, source / placed[name])
    with pytest.raises(ValueError, match=rf"{placed[name]}: lacks tensor {name}, though {index.name} places it there"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (source / placed[name]).unlink()
    with pytest.raises(ValueError, match=rf"{placed[name]}: no such file, though .* download the missing shard"):
        convert(source, tmp_path / "out")


def test_a_pickled_head_keeps_its_ids(tmp_path):
    source = tmp_path / "head"
    source.mkdir()
    (source / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"})
    )
    torch.save(
        {"fc.weight": torch.ones(4, 12, dtype=torch.float16), "d2t": torch.arange(8)}, source / "pytorch_model.bin"
    )
    convert(source, tmp_path / "out", dtype="bfloat16")
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert (tensors["d2t"].dtype, tensors["fc.weight"].dtype) == (torch.int64, torch.bfloat16)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_pickled_head_drafts_for_a_file(tmp_path, file, kind):
    """As published: EAGLE's heads are pickles, and a GGUF file may be all that there is of a target."""
    from safetensors.torch import load_file

    from foredraft.models import load_head, new_head, save_head

    target = load(file)
    save_head(
        head := new_head(target, kind, 1, feature_layers=None if kind == "eagle" else (0, 1, 2)), tmp_path / "head"
    )
    torch.save(load_file(tmp_path / "head" / "model.safetensors"), tmp_path / "head" / "pytorch_model.bin")
    (tmp_path / "head" / "model.safetensors").unlink()
    convert(tmp_path / "head", tmp_path / "out")
    ours = load_head(tmp_path / "out", target).state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in head.state_dict().items())
    tokenizer = text.tokenizer_of(file)
    engines = (text.load_engine(file, draft) for draft in (None, str(tmp_path / "out")))
    answers = [text.generate(engine, tokenizer, ["abc"], max_tokens=12)[0][1].answer for engine in engines]
    assert answers[0] == answers[1]


class Trap:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"weight": Trap()}, "holds more than tensors, and unpickling that can run code"),
        ({"state_dict": {"weight": torch.ones(2)}}, "holds no plain table of tensors by name"),
        (b"PK and no more", "truncated or corrupt"),
        (b"", "truncated or corrupt"),
    ],
)
def test_a_pickle_that_is_no_table_of_tensors_is_refused(tmp_path, capsys, content, match):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=match) as caught:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_a_folder_of_safetensors_needs_no_conversion(tmp_path):
    folder = pickled(tmp_path / "source", random_model(FAMILIES["llama"]()))
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(ValueError, match="holds safetensors already"):
        convert(folder, tmp_path / "out")


def test_a_file_answers_and_prepares_data_as_its_folder_does(tmp_path, file):
    """Wherever a folder is taken, its file is: the same tokens, hashes of the tokenizer and names."""
    from foredraft.data import regenerate as answers
    from foredraft.data.prepare import prepare
    from foredraft.data.sources import Skips
    from foredraft.runs import name_of

    convert(file, tmp_path / "tiny", dtype="float32")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"text": "abc"}) + "\n")
    settings, rows = answers.RegenerateSettings(max_tokens=8, plain=True, temperature=1.0), []
    for target in (file, tmp_path / "tiny"):
        out = tmp_path / f"answers-{len(rows)}.jsonl"
        prompts = answers.prompts([str(questions)], True, Skips("stop"))
        answers.regenerate(prompts, target, out, settings)
        rows.append(json.loads(out.read_text()))
        prepare([str(out)], tmp_path / f"data-{len(rows)}", target)
    assert rows[0] == rows[1]
    assert rows[0]["regenerated"]["tokens"]
    assert name_of(file) == name_of(tmp_path / "tiny") == "tiny"


def test_a_draft_may_be_a_file(tmp_path, file):
    sizes: dict[str, Any] = SIZES | {"num_hidden_layers": 1}
    config = Qwen3Config(**sizes, head_dim=128, tie_word_embeddings=True)
    draft = write_model(tmp_path / "draft.gguf", random_model(config))
    tokenizer, answered = text.tokenizer_of(file), []
    for name in (None, str(draft)):
        ((_, sequence),) = text.generate(text.load_engine(file, name), tokenizer, ["abc"], max_tokens=12)
        answered.append(sequence.answer)
    assert answered[0] == answered[1]
    assert len(answered[0]) == 12


def test_folders_that_engines_load_are_asked_for(file):
    from foredraft.cli.console import check_models

    with pytest.raises(ValueError, match="a GGUF file, where a Hugging Face folder is needed") as caught:
        check_models(file, gguf=False)
    assert caught.value.__notes__ == [f"foredraft convert {file} OUT/, then give OUT/"]


def test_without_the_gguf_package_a_line_says_how_to_get_it(file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(ModuleNotFoundError, match="need the gguf package") as caught:
        load(file)
    assert caught.value.__notes__ == ["pip install 'foredraft[full]'"]
