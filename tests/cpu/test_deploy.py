"""Deploying: every kind of draft in every format computes what it computed before, and every planted fault is caught by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from foredraft import records
from foredraft.cli import main as cli
from foredraft.deploy.check import check
from foredraft.deploy.draft import TargetSizes, read_draft
from foredraft.deploy.export import ExportSettings, export, fit_rows
from foredraft.deploy.findings import errors
from foredraft.deploy.folder import SERVE
from foredraft.engines import LOADERS
from foredraft.kinds import AUX_LAYER_IDS as IDS
from foredraft.kinds import EAGLE3
from foredraft.models import Decoder, load, load_head, new_head, save_head
from foredraft.models.decoder import cut
from foredraft.models.draft_vocab import offsets
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.layers import ModelConfig
from foredraft.models.save import save
from foredraft.records import DraftChoice, Estimate, Observation, Plan, Provenance, ScheduleStep, Workload
from foredraft.shapes import Shape
from foredraft.shapes.rope import Rope

VOCAB = 300
HEADS = {
    "eagle": {"kind": "eagle"},
    "eagle two layers": {"kind": "eagle", "num_layers": 2},
    "eagle3": {"draft_vocab": range(0, VOCAB, 2)},
    "eagle3 whole vocabulary": {},
    "scylla": {"num_layers": 3, "draft_vocab": range(5, 205), "feature_layers": (1, 2, 4)},
}


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> Decoder:
    return load(checkpoint)


@pytest.fixture(scope="module")
def drafts(checkpoint: Path, target: Decoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of draft."""
    root = tmp_path_factory.mktemp("drafts")
    for name, how in HEADS.items():
        head = new_head(target, **how)
        with torch.no_grad():
            for i, parameter in enumerate(head.parameters()):  # norms too differ from layer to layer
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        save_head(head, root / name, more={"eos_token_id": 0})
    save_head(new_head(target, "eagle", 2, range(0, VOCAB, 3)), root / "eagle cut")
    save_own_embedding(target, root / "eagle3 own embedding")
    save_with_biases(target, root / "eagle3 biases", "qwen2")
    save_with_biases(target, root / "eagle biases", "qwen2", kind="eagle")
    save_with_biases(target, root / "eagle3 norms", "qwen3")
    for family, vocab in (("qwen2", VOCAB), ("qwen3", VOCAB - 12), ("opt", VOCAB)):
        small_model(root / f"lm {family}", family, vocab, checkpoint)
    return {path.name: path for path in root.iterdir()}


def save_own_embedding(target: Decoder, folder: Path) -> None:
    head = new_head(target, draft_vocab=range(100))
    assert isinstance(head, Eagle3Head)
    head_with_embedding = Eagle3Head(head.shape, head.config, target, head.feature_layers, head.d2t, own_embedding=True)
    head_with_embedding.load_state_dict(head.state_dict() | {"embed_tokens.weight": torch.randn(VOCAB, 64)})
    save_head(head_with_embedding, folder)


def save_with_biases(target: Decoder, folder: Path, family: str, kind: str = "eagle3") -> None:
    """A head of another family: biases of q, k and v alone (Qwen2), norms of queries and keys (Qwen3)."""
    plain = new_head(target, kind)
    bias, norms = family == "qwen2", family == "qwen3"
    shape = msgspec.structs.replace(plain.shape, family=family, qkv_bias=bias, qk_norm=norms)
    if isinstance(plain, Eagle3Head):
        head: Any = Eagle3Head(shape, plain.config, target, plain.feature_layers, plain.d2t)
    else:
        head = EagleHead(shape, plain.config, target)
    generator = torch.Generator().manual_seed(3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1, generator=generator)
    save_head(head, folder)


def small_model(folder: Path, family: str, vocab: int, tokenizer: Path) -> None:
    opt = family == "opt"
    shape = Shape(
        name="small", family=family, num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=2 if opt else 1, head_dim=16,
        intermediate_size=48, vocab_size=vocab, tie_embeddings=opt, qkv_bias=family in ("qwen2", "opt"), o_bias=opt, mlp_bias=opt,
        qk_norm=family == "qwen3", max_position_embeddings=512, gated_mlp=not opt, layer_norm=opt, position_rows=514 if opt else 0,
    )  # fmt: skip
    model_config = ModelConfig(norm_eps=1e-5, activation="relu" if opt else "silu", rope=None if opt else Rope())
    torch.manual_seed(1)
    model = Decoder(shape, model_config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3 if parameter.dim() == 1 else 0.0, 0.3)
    save(model.state_dict(), shape, model_config, folder)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")


def chain_of(head: Any, target: Decoder) -> Tensor:
    """Logits over the target's vocabulary of two steps, from hidden states that the target did not choose."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, VOCAB, (2, 9), generator=generator)
    width = target.shape.hidden_size * len(head.feature_layers)
    hidden = head.combine(torch.randn(2, 9, width, generator=generator))
    first = head(tokens, hidden)
    second = head(tokens.roll(-1, 1), first.pre_norm_BTC)
    logits = torch.cat((first.logits_BTV, second.logits_BTV), 1)
    full = torch.full((*logits.shape[:2], VOCAB), float("-inf"))
    full[..., head.target_ids(torch.arange(logits.shape[-1]))] = logits
    return full


def exported(drafts: dict[str, Path], name: str, checkpoint: Path, out: Path, **how: Any) -> Path:
    export(drafts[name], checkpoint, out, ExportSettings(**how))
    return out


REFUSED = {
    ("eagle3 biases", "sglang"), ("eagle3 norms", "sglang"), ("eagle", "speculators"), ("eagle two layers", "speculators"),
    ("eagle biases", "speculators"),
}  # fmt: skip

# What is told of heads as they are: one reads the target's last hidden state, one has a random table of its own.
BORNE = {"scylla": {"stream-last"}, "eagle3 own embedding": {"embedding-differs"}}


@pytest.mark.parametrize("form", ["vllm", "sglang", "speculators", "hf"])
@pytest.mark.parametrize(
    "name", [*HEADS, "eagle3 own embedding", "eagle3 biases", "eagle biases", "eagle3 norms"]
)  # fmt: skip
def test_a_head_computes_the_same_in_every_format(
    drafts: dict[str, Path], target: Decoder, checkpoint: Path, tmp_path: Path, name: str, form: str
) -> None:
    if (name, form) in REFUSED:
        with pytest.raises(ValueError, match=f"format {form}"):
            exported(drafts, name, checkpoint, tmp_path / "out", format=form)
        assert not list(tmp_path.iterdir())
        return
    out = exported(drafts, name, checkpoint, tmp_path / "out", format=form)
    before, after = load_head(drafts[name], target), load_head(out, target)
    assert torch.equal(chain_of(before, target), chain_of(after, target))
    assert before.feature_layers == after.feature_layers
    assert {finding.code for finding in check(out, checkpoint)} == BORNE.get(name, set())


@pytest.mark.parametrize("form", ["vllm", "sglang", "hf"])
@pytest.mark.parametrize("name", ["lm qwen2", "lm qwen3", "lm opt"])
def test_a_model_keeps_its_logits_and_takes_the_targets_vocabulary(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path, name: str, form: str
) -> None:
    out = exported(drafts, name, checkpoint, tmp_path / "out", format=form)
    before, after = load(drafts[name]), load(out)
    tokens = torch.randint(0, VOCAB - 12, (2, 8), generator=torch.Generator().manual_seed(0))
    draft_vocab = before.shape.vocab_size
    old, new = before(tokens).logits_BTV, after(tokens).logits_BTV
    assert torch.allclose(old, new[..., :draft_vocab], atol=1e-5)
    assert new.shape[-1] == VOCAB
    assert bool((new[..., draft_vocab:] < new[..., :draft_vocab].amax(-1, keepdim=True)).all()), "an added row is never the argmax"  # fmt: skip
    assert errors(check(out, checkpoint)) == []
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_transformers_loads_an_exported_model(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = exported(drafts, "lm qwen3", checkpoint, tmp_path / "out", format="hf")
    model, tokens = AutoModelForCausalLM.from_pretrained(out).eval(), torch.arange(20)[None]
    assert torch.allclose(model(tokens).logits, load(out)(tokens).logits_BTV, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out)("fox")["input_ids"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_written_in_the_type_asked_for(
    drafts: dict[str, Path], target: Decoder, checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    out = exported(drafts, "scylla", checkpoint, tmp_path / "out", dtype=dtype)
    kind = getattr(torch, dtype)
    cast = load_head(drafts["scylla"], target, kind).to(torch.float32)
    assert torch.equal(chain_of(cast, target), chain_of(load_head(out, target), target))
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    assert {t.dtype for name, t in tensors.items() if name not in ("d2t", "t2d")} == {kind}
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (torch.int64, torch.bool)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype


def test_names_and_keys_of_the_flat_format(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    out = exported(drafts, "scylla", checkpoint, tmp_path / "out", format="sglang")
    names = set(safetensors.torch.load_file(out / "model.safetensors"))
    assert {"midlayer.hidden_norm.weight", "layers.1.input_layernorm.weight", "layers.1.hidden_norm.weight", "d2t", "t2d"} <= names  # fmt: skip
    assert not any(name.startswith(("model.", "layers.0.")) or "embed" in name for name in names)
    config = json.loads((out / "config.json").read_text())
    assert None not in config.values()
    assert (config["vocab_size"], config["draft_vocab_size"], config["target_hidden_size"]) == (VOCAB, 200, 64)
    assert config["max_position_embeddings"] == 512
    ids = "eagle_aux_hidden_state_layer_ids"
    assert (config[ids], config["eagle_config"][ids]) == ([1, 2, 4], [0, 1, 3])
    default = exported(drafts, "eagle3", checkpoint, tmp_path / "default")
    assert ids not in (default / "config.json").read_text()
    mapped = exported(drafts, "eagle3 whole vocabulary", checkpoint, tmp_path / "whole")
    assert not {"d2t", "t2d"} & set(safetensors.torch.load_file(mapped / "model.safetensors"))


def test_the_engines_differ_in_eagle_ones_bias_and_name(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    flags = {}
    for form in ("vllm", "sglang"):
        out = exported(drafts, "eagle", checkpoint, tmp_path / form, format=form)
        tensors = safetensors.torch.load_file(out / "model.safetensors")
        flags[form] = (json.loads((out / "config.json").read_text())["architectures"], "fc.bias" in tensors)
        assert not {"lm_head.weight", "norm.weight", "layers.0.input_layernorm.weight"} & set(tensors)
    assert flags == {"vllm": (["LlamaForCausalLM"], False), "sglang": (["LlamaForCausalLMEagle"], True)}


def test_a_cut_eagle_head_is_whole_where_no_engine_cuts_it(
    drafts: dict[str, Path], target: Decoder, checkpoint: Path, tmp_path: Path
) -> None:
    """vLLM drafts by all rows of the target's LM head, SGLang by those of its token map; neither sees a map that it does not know."""
    trained = load_head(drafts["eagle cut"], target)
    for form in ("vllm", "sglang", "hf"):
        out = exported(drafts, "eagle cut", checkpoint, tmp_path / form, format=form)
        assert not {"d2t", "t2d"} & set(safetensors.torch.load_file(out / "model.safetensors"))
        assert "draft_vocab_size" not in json.loads((out / "config.json").read_text())
        whole, card_text = load_head(out, target), (out / "README.md").read_text()
        assert torch.allclose(chain_of(whole, target)[..., ::3], chain_of(trained, target)[..., ::3], atol=1e-5)
        assert "Draft vocabulary: " in card_text
    sglang = tmp_path / "sglang"
    assert torch.load(sglang / "token_map.pt", weights_only=True) == list(range(0, VOCAB, 3))
    assert json.loads((sglang / "sglang_flags.json").read_text())["--speculative-token-map"] == "token_map.pt"
    assert '--speculative-token-map "$here"/token_map.pt' in (sglang / "serve.sh").read_text()
    (sglang / "token_map.pt").unlink()
    assert {finding.code for finding in errors(check(sglang, checkpoint))} == {"token-map"}
    assert {finding.code for finding in errors(check(drafts["eagle cut"], checkpoint, "vllm"))} >= {"d2t-eagle"}


def test_a_model_of_a_draft_vocabulary_is_refused(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    model = cut(load(drafts["lm qwen2"]), offsets(range(50), VOCAB))
    save(model.state_dict(), model.shape, model.config, tmp_path / "cut")
    with pytest.raises(ValueError, match="draft_vocab 50: engines run a draft model over its whole vocabulary"):
        export(tmp_path / "cut", checkpoint, tmp_path / "out", ExportSettings())
    assert {finding.code for finding in errors(check(tmp_path / "cut"))} >= {"draft-vocab"}


def test_a_speculators_folder_is_nested_and_stands_alone(
    drafts: dict[str, Path], target: Decoder, checkpoint: Path, tmp_path: Path
) -> None:
    out = exported(drafts, "scylla", checkpoint, tmp_path / "out", format="speculators", verifier="org/target")
    config, tensors = (
        json.loads((out / "config.json").read_text()),
        safetensors.torch.load_file(out / "model.safetensors"),
    )
    assert config["norm_before_residual"] is False
    assert config["speculators_config"]["verifier"] == {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]}  # fmt: skip
    assert config["transformer_layer_config"]["model_type"] == "llama"
    assert {name for name in tensors if "hidden_norm" in name} == {"layers.0.hidden_norm.weight"}
    assert torch.equal(tensors["embed_tokens.weight"], target.embed_tokens.weight)


def test_a_head_over_the_whole_vocabulary_has_a_map_in_other_runtimes(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    whole_map = exported(drafts, "eagle3 whole vocabulary", checkpoint, tmp_path / "whole", format="hf")
    tensors = safetensors.torch.load_file(whole_map / "model.safetensors")
    assert torch.equal(tensors["d2t"], torch.zeros(VOCAB, dtype=torch.int64))
    assert torch.equal(tensors["t2d"], torch.ones(VOCAB, dtype=torch.bool))
    assert {finding.code for finding in errors(check(whole_map, checkpoint, "vllm"))} == {"d2t-spare"}, (
        "vLLM has --format vllm"
    )
    half = exported(drafts, "eagle3", checkpoint, tmp_path / "half", format="hf")
    assert errors(check(half, checkpoint, "vllm")) == []


# Faults, planted one by one in a good folder; each must be caught by its own code.

Change = Callable[[Path], object]


def config_with(**changes: Any) -> Change:
    """Keys set, or left out where the value is Ellipsis."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        remaining = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(remaining))

    return change


def tensors_with(edit: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(file)
        edit(tensors)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)

    return change


def renamed(old: str, new: str) -> Change:
    return tensors_with(lambda tensors: tensors.__setitem__(new, tensors.pop(old)))


def without(*names: str) -> Change:
    return tensors_with(lambda tensors: [tensors.pop(name) for name in names])


def added(name: str, tensor: Tensor) -> Change:
    return tensors_with(lambda tensors: tensors.__setitem__(name, tensor))


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def other_tokenizer(folder: Path) -> None:
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer_json["model"]["vocab"]
    first, second = list(words)[20:22]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))


def with_schedule(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / LOADERS["vllm"].launch_file).read_text()) | changes
        (folder / LOADERS["vllm"].launch_file).write_text(json.dumps(config))

    return change


def with_speculators(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def nan(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"][0, 0] = float("nan")


def absolute(tensors: dict[str, Tensor]) -> None:
    tensors["d2t"] = tensors["d2t"] + torch.arange(200)


FAULTS: dict[str, tuple[str, str, Change, str]] = {  # name: draft, format, change, code
    "renamed tensor": ("scylla", "vllm", renamed("midlayer.mlp.up_proj.weight", "midlayer.mlp.upproj.weight"), "unknown"),
    "renamed tensor leaves a gap": ("scylla", "sglang", renamed("midlayer.mlp.up_proj.weight", "midlayer.mlp.upproj.weight"), "missing"),
    "hidden states switched off": ("scylla", "vllm", config_with(eagle_config={"use_aux_hidden_state": False}), "streams-off"),
    "layer 0 by ModelOpt's name on SGLang": ("eagle3", "sglang", renamed("midlayer.hidden_norm.weight", "layers.0.hidden_norm.weight"), "midlayer"),
    "SGLang's older norms on vLLM": ("eagle3", "vllm", added("aux_norm_low.weight", torch.ones(64)), "unknown"),
    "prefixed names": ("eagle3", "vllm", renamed("midlayer.mlp.up_proj.weight", "model.midlayer.mlp.up_proj.weight"), "prefix"),
    "null key": ("scylla", "vllm", config_with(target_hidden_size=None), "null-key"),
    "null use_cache": ("eagle", "vllm", config_with(use_cache=None), "null-key"),
    "a size in words": ("eagle", "vllm", config_with(hidden_size="64"), "key-type"),
    "no draft_vocab_size": ("eagle3 whole vocabulary", "sglang", config_with(draft_vocab_size=...), "key-missing"),
    "layer ids that disagree": ("scylla", "vllm", config_with(**{IDS: [0, 1, 3]}), "stream-ids"),
    "SGLang's layer ids alone": ("scylla", "vllm", config_with(**{IDS: ...}), "stream-ids-alone"),
    "vLLM's layer ids alone": ("scylla", "sglang", config_with(eagle_config=...), "stream-ids-alone"),
    "hidden state beyond the target": ("scylla", "vllm", config_with(**{IDS: [1, 2, 9], "eagle_config": {IDS: [0, 1, 8]}}), "stream-range"),
    "an EAGLE-2 head without its fc": ("eagle", "vllm", without("fc.weight"), "fc"),
    "fc.bias missing for SGLang": ("eagle", "sglang", without("fc.bias"), "fc-bias"),
    "fc.bias present for vLLM": ("eagle", "vllm", added("fc.bias", torch.ones(64)), "fc-bias"),
    "a bias the config denies": ("eagle3", "vllm", added("midlayer.self_attn.q_proj.bias", torch.ones(64)), "bias-dropped"),
    "bias: true": ("eagle3", "sglang", config_with(bias=True), "bias-flag"),
    "short positions": ("eagle3", "vllm", config_with(max_position_embeddings=128), "positions"),
    "wrong vocabulary": ("eagle", "vllm", config_with(vocab_size=301), "vocab-differs"),
    "wrong draft vocabulary": ("eagle3", "vllm", config_with(draft_vocab_size=151), "draft-vocab"),
    "wrong type of weights": ("eagle", "vllm", tensors_with(lambda t: t.update({"fc.weight": t["fc.weight"].double()})), "dtype"),
    "another type than the config's": ("eagle", "vllm", config_with(torch_dtype="bfloat16"), "dtype-key"),
    "mixed types": ("eagle", "vllm", tensors_with(lambda t: t.update({"fc.weight": t["fc.weight"].half()})), "dtype-mixed"),
    "d2t out of range": ("scylla", "vllm", tensors_with(lambda t: t["d2t"].__setitem__(-1, 1000)), "d2t-range"),
    "d2t of ids, not offsets": ("scylla", "vllm", tensors_with(absolute), "d2t-range"),
    "d2t names a token twice": ("scylla", "vllm", tensors_with(lambda t: t["d2t"].__setitem__(1, t["d2t"][0] - 1)), "d2t-twice"),
    "d2t of floats": ("scylla", "vllm", tensors_with(lambda t: t.update(d2t=t["d2t"].float())), "d2t-kind"),
    "d2t missing": ("scylla", "sglang", without("d2t"), "d2t-missing"),
    "d2t over the whole vocabulary": ("eagle3 whole vocabulary", "vllm", added("d2t", torch.zeros(VOCAB, dtype=torch.int64)), "d2t-spare"),
    "t2d disagrees": ("scylla", "vllm", tensors_with(lambda t: t.update(t2d=t["t2d"].roll(1))), "t2d"),
    "lm_head missing": ("eagle3", "sglang", without("lm_head.weight"), "lm-head"),
    "lm_head in an EAGLE-2 head": ("eagle", "vllm", added("lm_head.weight", torch.zeros(VOCAB, 64)), "lm-head-spare"),
    "input norm in layer 0": ("eagle", "vllm", added("layers.0.input_layernorm.weight", torch.ones(64)), "layer0-norm"),
    "wrong hidden size": ("eagle3", "vllm", config_with(hidden_size=72, head_dim=16), "hidden-size"),
    "wrong size of target": ("eagle3", "vllm", config_with(target_hidden_size=72), "target-size"),
    "norm of a later layer missing for vLLM": ("scylla", "vllm", without("layers.1.input_layernorm.weight"), "twin-norm"),
    "norm of a later layer missing for SGLang": ("scylla", "sglang", without("layers.2.hidden_norm.weight"), "twin-norm"),
    "norms of a later layer differ": ("scylla", "vllm", added("layers.1.hidden_norm.weight", torch.ones(64)), "twin-norm-differs"),
    "wrong architecture": ("eagle3", "vllm", config_with(architectures=["LlamaEagle3DraftModel"]), "architecture"),
    "SGLang's name on vLLM": ("eagle", "vllm", config_with(architectures=["LlamaForCausalLMEagle"]), "architecture"),
    "too few layers": ("scylla", "vllm", config_with(num_hidden_layers=2), "layer-count"),
    "too many layers": ("scylla", "sglang", config_with(num_hidden_layers=4), "layer-count"),
    "wrong MLP width": ("eagle3", "vllm", config_with(intermediate_size=100), "shape"),
    "another tokenizer": ("lm qwen2", "vllm", other_tokenizer, "tokenizer"),
    "no tokenizer": ("lm qwen2", "vllm", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer-missing"),
    "an end beyond the vocabulary": ("eagle", "vllm", config_with(eos_token_id=VOCAB), "token-ids"),
    "truncated file": ("eagle3", "vllm", truncated, "truncated"),
    "no weights": ("eagle3", "vllm", lambda folder: (folder / "model.safetensors").unlink(), "weights"),
    "config is no JSON": ("eagle3", "vllm", lambda folder: (folder / "config.json").write_text("{"), "config"),
    "a pickle": ("eagle3", "vllm", lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pickle"),
    "another rotation": ("eagle3", "vllm", config_with(rope_theta=5e5), "rope"),
    "tied head": ("eagle3", "sglang", config_with(tie_word_embeddings=True), "tied-head"),
    "normed residual on SGLang": ("eagle3", "sglang", config_with(norm_before_residual=True), "norm-before-residual"),
    "norms of hidden states without weights": ("eagle3", "vllm", config_with(fc_norm=True), "fc-norm"),
    "nan": ("eagle", "vllm", tensors_with(nan), "not-finite"),
    "a model lacks a tensor": ("lm qwen3", "vllm", without("model.layers.0.self_attn.q_norm.weight"), "missing"),
    "a model of another vocabulary": ("lm qwen2", "vllm", config_with(vocab_size=320), "vocab-differs"),
    "speculators without the residual's rule": ("eagle3", "speculators", config_with(norm_before_residual=...), "norm-default"),
    "speculators without a verifier": ("eagle3", "speculators", with_speculators(lambda c: c["speculators_config"].pop("verifier")), "speculators"),
    "speculators without layers": ("eagle3", "speculators", config_with(transformer_layer_config=...), "speculators"),
    "method of another kind": ("eagle", "vllm", with_schedule(method="eagle3"), "schedule"),
    "schedule that overlaps": ("eagle3", "vllm", with_schedule(num_speculative_tokens_per_batch_size=[[1, 8, 4], [8, 16, 2]]), "schedule"),
    "a record of lists in lists": ("eagle3", "vllm", lambda folder: (folder / "deploy.json").write_text("[" * 3000 + "]" * 3000), "json"),
    "a record of quantisation that is cut off": ("eagle3", "vllm", lambda folder: (folder / "hf_quant_config.json").write_text("{"), "json"),
    "schedule from batch 2": ("eagle3", "vllm", with_schedule(num_speculative_tokens_per_batch_size=[[2, 8, 4]]), "schedule"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(
    drafts: dict[str, Path], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """A good folder of a draft and format, exported once."""
    root, folders = tmp_path_factory.mktemp("good"), {}

    def folder(name: str, form: str) -> Path:
        if (name, form) not in folders:
            folders[name, form] = exported(drafts, name, checkpoint, root / f"{name} {form}", format=form)
        return folders[name, form]

    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_its_code(
    fault: str, good: Callable[[str, str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    name, form, change, code = FAULTS[fault]
    engine = "sglang" if form == "sglang" else "vllm"
    assert code not in {finding.code for finding in check(good(name, form), checkpoint, engine)}
    folder = tmp_path / "faulty"
    shutil.copytree(good(name, form), folder)
    change(folder)
    faults = [finding for finding in check(folder, checkpoint, engine) if finding.code == code]
    assert faults, f"caught only {[finding.code for finding in check(folder, checkpoint, engine)]}"
    assert all(finding.where and finding.effect and finding.remedy for finding in faults)


def test_token_ids_are_the_targets(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    """An export takes them, from the target's generation_config.json too; a folder with others is told of."""
    target = tmp_path / "target"
    shutil.copytree(checkpoint, target)
    config_with(eos_token_id=3, pad_token_id=1)(target)
    (target / "generation_config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [3, 4]}))
    out = exported(drafts, "eagle", target, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert [config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")] == [2, 3, 1]
    config_with(eos_token_id=7)(out)
    assert [finding.where for finding in check(out, target) if finding.code == "token-ids"] == ["eos_token_id"]


def test_many_kinds_of_fault_have_codes_of_their_own() -> None:
    assert len({code for *_, code in FAULTS.values()}) >= 18


@pytest.mark.parametrize(
    ("name", "form"), [("scylla", "sglang"), ("scylla", "speculators"), ("eagle", "vllm"), ("lm qwen3", "vllm")]
)
def test_whatever_a_config_holds_ends_in_findings(
    good: Callable[[str, str], Path], checkpoint: Path, tmp_path: Path, name: str, form: str
) -> None:
    """Every key of a config, nested ones too, set to values of every type: no traceback."""
    folder = tmp_path / "odd"
    shutil.copytree(good(name, form), folder)
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("transformer_layer_config", {})
    for place, key in [("", key) for key in (*config, IDS, "eagle_config")] + [("in", key) for key in inner]:
        for value in (None, "x", [1], ["x"], {}, {IDS: "x"}, -1, 0, True, 1e400):
            changed = config | ({"transformer_layer_config": inner | {key: value}} if place else {key: value})
            (folder / "config.json").write_text(json.dumps(changed))
            assert isinstance(check(folder, checkpoint), list)


def test_a_head_of_other_makers_is_judged(target: Decoder, checkpoint: Path, tmp_path: Path) -> None:
    """ModelOpt's names (layers.0, no record of ours) pass; Automodel's prefix and class do not."""
    head = new_head(target, num_layers=1, draft_vocab=range(100))
    save_head(head, tmp_path / "theirs")
    renamed_all = tensors_with(
        lambda t: [t.__setitem__(name.replace("midlayer.", "layers.0."), t.pop(name)) for name in list(t)]
    )
    renamed_all(tmp_path / "theirs")
    assert errors(check(tmp_path / "theirs", checkpoint)) == []
    tensors_with(lambda t: [t.__setitem__(f"model.{name}", t.pop(name)) for name in list(t) if name[0] not in "dt"])(
        tmp_path / "theirs"
    )
    config_with(architectures=["LlamaEagle3DraftModel"])(tmp_path / "theirs")
    assert {"prefix", "architecture"} <= {finding.code for finding in check(tmp_path / "theirs", checkpoint, "vllm")}
    assert {finding.code for finding in errors(check(tmp_path / "theirs", checkpoint, "sglang"))} == {"architecture"}


# Launch settings, card, command line.


def plan_for(kind: str, target: Path) -> Plan:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.1, high=value + 0.1, unit="×", source="test")

    steps = tuple(
        ScheduleStep(
            concurrency=c, running=c, lookahead=k, topk=1, tree_nodes=k, tokens_per_step=estimate(2.0),
            speedup=estimate(1.5 if k else 0.9), output_tok_s=estimate(100.0),
            tpot_s=estimate(1.0), ttft_s=estimate(1.0),
        ) for c, k in ((1, 6), (8, 3), (32, 0))
    )  # fmt: skip
    ranges = [[1, 4, 6], [5, 20, 3], [21, 32, 0]]
    return Plan(
        objective="throughput", engine="vllm", target=target.name, machine="H100", devices=2, dtype="bfloat16",
        workload=Workload(input_len=64, output_len=32, concurrency=(1, 8, 32)), speedup=estimate(1.4), schedule=steps,
        draft=DraftChoice(kind=kind, name="planned", params=1e6, non_embedding_params=1e6),
        settings={
            "vllm": {
                "method": "eagle3", "model": "path/to/draft", "num_speculative_tokens": 6, "draft_tensor_parallel_size": 2,
                "num_speculative_tokens_per_batch_size": ranges,
            },
            "sglang": {
                "--speculative-algorithm": "EAGLE3", "--speculative-num-steps": 5, "--speculative-eagle-topk": 1,
                "--speculative-num-draft-tokens": 6, "--speculative-draft-model-path": "path/to/draft",
            },
        },
    )  # fmt: skip


def test_each_engine_gets_what_the_plan_holds_for_it(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_for("head", checkpoint)
    for form in ("vllm", "sglang"):
        export(drafts["scylla"], checkpoint, tmp_path / form, ExportSettings(format=form), plan=plan)
    config = json.loads((tmp_path / "vllm" / LOADERS["vllm"].launch_file).read_text())
    assert config == {
        "method": "eagle3", "model": str(tmp_path / "vllm"), "num_speculative_tokens": 6, "draft_tensor_parallel_size": 2,
        "num_speculative_tokens_per_batch_size": [[1, 4, 6], [5, 20, 3], [21, 32, 0]],
    }  # fmt: skip
    flags = json.loads((tmp_path / "sglang" / LOADERS["sglang"].launch_file).read_text())
    steps = {"num-steps": 5, "eagle-topk": 1, "num-draft-tokens": 6}
    assert flags == {"--speculative-algorithm": "EAGLE3"} | {f"--speculative-{name}": n for name, n in steps.items()}
    assert "SGLang has one setting for all loads: 5 draft tokens." in (tmp_path / "sglang" / "README.md").read_text()
    cards = {form: (tmp_path / form / "README.md").read_text() for form in ("vllm", "sglang")}
    assert "| 8 | 3 | 1.50 (1.40 to 1.60) |" in cards["vllm"]
    off = "Above about 20 clients a server without a draft is faster: 1.11"
    assert f"{off} [1.00, 1.25] × at 32; the schedule drafts nothing there (k = 0)." in cards["vllm"]
    assert f"{off} [1.00, 1.25] × at 32; serve such loads without one." in cards["sglang"]
    assert "running" in (alerts := (tmp_path / "vllm" / "alerts.yaml").read_text())
    assert "> 20" in alerts
    assert "# Lengths that follow the draft's confidence" in (tmp_path / "vllm" / SERVE).read_text()
    without = msgspec.structs.replace(plan, settings={"vllm": plan.settings["vllm"]})
    with pytest.raises(ValueError, match="at no load on SGLang"):
        export(drafts["scylla"], checkpoint, tmp_path / "none", ExportSettings(format="sglang"), plan=without)
    with pytest.raises(ValueError, match="kind head"):
        export(drafts["lm qwen2"], checkpoint, tmp_path / "lm", ExportSettings(), plan=plan)


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_the_script_passes_its_own_folder_wherever_it_lies(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path, form: str
) -> None:
    """Run with a PYTHON that prints its arguments, after the folder was moved to a name with a space and a quote."""
    out = exported(drafts, "eagle3", checkpoint, tmp_path / "out", format=form)
    moved = out.rename(tmp_path / "it's moved")
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\nfor a in "$@"; do echo "$a"; done\n')  # fmt: skip
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", moved / SERVE, "--port", "9"], env=os.environ | {"PYTHON": str(fake)}, capture_output=True, text=True
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[-2:] == ["--port", "9"]
    assert str(checkpoint.resolve()) in lines
    if form == "vllm":
        launched = json.loads(lines[lines.index("--speculative-config") + 1])
        assert launched == {"method": "eagle3", "model": str(moved), "num_speculative_tokens": 4}
    else:
        assert lines[lines.index("--speculative-draft-model-path") + 1] == str(moved)
        assert lines[lines.index("--speculative-num-draft-tokens") + 1] == "5"


def test_the_card_says_what_files_say_and_nothing_else(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(drafts["scylla"], run / "final")
    recipe = {"model": {"kind": "eagle3"}, "stages": [{"tokens": 2e6}, {"tokens": 1e6}], "loss": {"soft_ce": 1.0}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    observation = Observation(
        run="r", target="t", method="eagle3", draft="run/final", dataset="mt", engine="foredraft", temperature=0.0, lookahead=4,
        tokens_per_step=2.346, num_requests=80, provenance=Provenance(source="test"),
    )  # fmt: skip
    other = msgspec.structs.replace(observation, draft="another", tokens_per_step=9.0)
    export(run / "final", checkpoint, tmp_path / "out", ExportSettings(note="Trained on poems, CC0."), observations=[observation, other])  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# run/final" in text
    assert "budget: 3e+06 tokens in 2 stages" in text
    assert "| mt | foredraft | 0.0 | 4 | 2.35 | 80 |" in text
    assert "Trained on poems, CC0." in text
    assert "9.00" not in text
    export(drafts["scylla"], checkpoint, tmp_path / "bare", ExportSettings())
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert not any(word in bare for word in ("## Training", "## Measured", "## Data", "None"))


def test_a_folder_appears_whole_or_not_at_all(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(drafts["eagle"], broken)
    tensors_with(nan)(broken)
    with pytest.raises(ValueError, match="not-finite"):
        export(broken, checkpoint, tmp_path / "out", ExportSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    exported(drafts, "eagle", checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        exported(drafts, "eagle", checkpoint, tmp_path / "out")


def test_a_model_of_another_tokenizer_is_refused(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(drafts["lm qwen2"], tmp_path / "other")
    other_tokenizer(tmp_path / "other")
    with pytest.raises(ValueError, match="tokenizer is not the target's"):
        export(tmp_path / "other", checkpoint, tmp_path / "out", ExportSettings())


def test_a_table_is_cut_or_filled_with_its_mean() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert fit_rows(table, 1).tolist() == [[1.0, 2.0]]
    assert fit_rows(table, 4).tolist() == [[1.0, 2.0], [3.0, 6.0], [2.0, 4.0], [2.0, 4.0]]


def test_a_draft_is_read_without_the_targets_weights(drafts: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(checkpoint / "config.json", tmp_path / "config.json")
    assert read_draft(drafts["scylla"], tmp_path).kind is EAGLE3
    assert next(TargetSizes(tmp_path).parameters()).is_meta


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["foredraft", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


def test_the_verb_exports_and_checks(
    drafts: dict[str, Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, plan = tmp_path / "out", tmp_path / "Plan.json"
    records.write(plan, plan_for("head", checkpoint))
    arguments = [str(drafts["scylla"]), "--target", str(checkpoint), "--out", str(out)]
    assert run_cli(monkeypatch, "deploy", *arguments, "--plan", str(plan)) == 0
    assert capsys.readouterr().out == f"sh {out / 'serve.sh'}\n"
    assert run_cli(monkeypatch, "deploy", "check", str(out), "--target", str(checkpoint)) == 0
    config_with(target_hidden_size=None)(out)
    capsys.readouterr()
    assert run_cli(monkeypatch, "deploy", "check", str(out), "--json") == 1
    assert {finding["code"] for finding in json.loads(capsys.readouterr().out)} == {"null-key"}
    assert run_cli(monkeypatch, "deploy", *arguments, "--format", "onnx") == 2
    assert "format must be one of" in capsys.readouterr().err


def test_an_engine_without_a_class_for_a_head_says_so(
    good: Callable[[str, str], Path], drafts: dict[str, Path], checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, sglang = good("eagle3", "vllm"), LOADERS["sglang"]
    monkeypatch.setattr(type(sglang), "heads", {name: row for name, row in sglang.heads.items() if name != "eagle3"})
    assert [finding.code for finding in check(folder, checkpoint, "sglang")] == ["architecture"]
    export(drafts["eagle3"], checkpoint, tmp_path / "served", ExportSettings(format="vllm"))
    assert not check(tmp_path / "served", checkpoint)
    with pytest.raises(ValueError, match="SGLang has no class for heads of kind EAGLE-3"):
        export(drafts["eagle3"], checkpoint, tmp_path / "refused", ExportSettings(format="sglang"))
