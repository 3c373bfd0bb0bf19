"""Configs of heads as SpecForge and AngelSlim publish them (`published_configs.json`), shrunk to a target of 64: no fault is claimed that
is none, and what we run is loaded, drafts, and is exported. Tensors are random, by the names that these trainers save.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foredraft import text
from foredraft.decode.batch import Request
from foredraft.deploy.check import check
from foredraft.deploy.export import ExportSettings, export
from foredraft.deploy.findings import errors
from foredraft.models import Decoder, load

FACTS = json.loads((Path(__file__).parent / "published_configs.json").read_bytes())
V, H, MLP, CUT, DEPTH, RANK = 300, 64, 96, 100, 8, 8
Tensors = dict[str, Tensor]


def published(facts: dict[str, Any]) -> dict[str, Any]:
    """A config as published; "-" stands for a key that it has not."""
    return {key: value for key, value in (FACTS["bases"][facts["base"]] | facts["keys"]).items() if value != "-"}


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The same keys at a width of 64: heads as wide together as before, or wider, or narrower; hidden states in the same order."""
    hidden, heads, keys = config["hidden_size"], config["num_attention_heads"], config.get("num_key_value_heads")
    width = config.get("head_dim")
    new_heads = 4 if width or hidden % heads == 0 else 6
    new_width = 16 if not width or heads * width == hidden else 32 if heads * width > hidden else 8
    sizes = {
        "hidden_size": H, "intermediate_size": MLP, "num_attention_heads": new_heads, "head_dim": new_width, "vocab_size": V,
        "num_key_value_heads": new_heads if keys == heads else 1 if keys == 1 else 2, "max_position_embeddings": 512, "target_hidden_size": H,
        "num_hidden_layers": min(config["num_hidden_layers"], 2), "mask_token_id": V - 1,
        "draft_vocab_size": V if config.get("draft_vocab_size") == config["vocab_size"] else CUT,
    }  # fmt: skip
    new = {key: _smaller(key, value, new_width if width else H // new_heads) for key, value in config.items()}
    return new | {key: value for key, value in sizes.items() if config.get(key) is not None}


def _smaller(key: str, value: Any, width: int) -> Any:
    if isinstance(value, dict):
        return {name: _smaller(name, part, width) for name, part in value.items()}
    if key == "layer_types":
        return value[:2]
    if key.endswith("layer_ids"):
        return [1 + 5 * i // max(1, len(value) - 1) for i in range(len(value))]
    if key == "mrope_section":
        rest = [width // 2 * part // sum(value) for part in value[1:]]
        return [width // 2 - sum(rest), *rest]
    if key in ("long_factor", "short_factor"):
        return (value * width)[: width // 2]
    if key in ("markov_rank", "emb_dim", "gru_hidden_dim", "selector_rank"):
        return RANK
    return V - 1 if key == "mask_token_id" else [0, 7] if key == "eos_token_id" and isinstance(value, list) else value


def layer(prefix: str, config: dict[str, Any], entry: int, norms: tuple[str, ...], qk_norm: bool = False) -> Tensors:
    heads, width = config["num_attention_heads"], config.get("head_dim") or H // config["num_attention_heads"]
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    shapes = {
        "self_attn.q_proj": (queries, entry), "self_attn.k_proj": (keys, entry), "self_attn.v_proj": (keys, entry),
        "self_attn.o_proj": (H, queries), "mlp.gate_proj": (MLP, H), "mlp.up_proj": (MLP, H), "mlp.down_proj": (H, MLP),
    }  # fmt: skip
    tensors = {f"{prefix}{name}.weight": 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"{prefix}{name}.weight": torch.ones(H) for name in norms}
    return tensors | {f"{prefix}self_attn.{name}.weight": torch.ones(width) for name in ("q_norm", "k_norm") if qk_norm}


def of_eagle3(config: dict[str, Any]) -> Tensors:
    """As SpecForge saves it: without an embedding, and with both maps whatever the vocabulary."""
    words = config["draft_vocab_size"]
    ids = torch.arange(words) * (V // words)
    tensors = layer("midlayer.", config, 2 * H, ("input_layernorm", "hidden_norm", "post_attention_layernorm"))
    tensors |= {"fc.weight": 0.1 * torch.randn(H, 3 * H), "norm.weight": torch.ones(H), "lm_head.weight": 0.1 * torch.randn(words, H)}  # fmt: skip
    tensors |= {
        "d2t": ids - torch.arange(words), "t2d": torch.zeros(V, dtype=torch.bool).index_fill(0, ids, value=True)
    }  # fmt: skip
    return tensors | ({f"fc_norm.{i}.weight": torch.ones(H) for i in range(3)} if config.get("fc_norm") else {})


def of_blocks(config: dict[str, Any]) -> Tensors:
    """As SpecForge saves a head of blocks, without embedding and LM head where it drafts all words."""
    tensors: Tensors = {}
    norms = ("input_layernorm", "post_attention_layernorm")
    for i in range(config["num_hidden_layers"]):
        tensors |= layer(f"layers.{i}.", config, H, norms, qk_norm=True)
    keys = config["dflash_config"] | config.get("dspark_config", {})
    ids = keys["target_layer_ids"]
    tensors |= {"fc.weight": 0.1 * torch.randn(H, len(ids) * H), "hidden_norm.weight": torch.ones(H), "norm.weight": torch.ones(H)}  # fmt: skip
    words = config.get("draft_vocab_size", V)
    if words != V:
        tensors |= {key: value for key, value in of_eagle3(config).items() if key in ("d2t", "t2d", "lm_head.weight")}
    if keys.get("projector_type") == "dspark":
        tensors |= {"markov_head.markov_w1.weight": torch.randn(V, RANK), "markov_head.markov_w2.weight": torch.randn(words, RANK)}  # fmt: skip
        if keys["enable_confidence_head"]:
            wide = H + RANK * bool(keys["confidence_head_with_markov"])
            tensors |= {"confidence_head.proj.weight": torch.randn(1, wide), "confidence_head.proj.bias": torch.zeros(1)}  # fmt: skip
    return tensors


def of_others(config: dict[str, Any]) -> Tensors:
    """Of heads with layers of their own: some of the tensors by which they are known."""
    name, wide = config["architectures"][0], torch.ones(8, H)
    if "kv_lora_rank" in config or name == "DSparkV4DraftModel":
        return {"layers.0.self_attn.kv_a_proj_with_mqa.weight": wide}
    if any("expert" in key for key in config):
        return {"layers.0.mlp.experts.0.gate_proj.weight": wide}
    if "linear_attn_config" in config:
        return {"layers.0.self_attn.A_log": wide}
    return {
        "PEagleDraftModel": {"mask_hidden": torch.ones(1, 1, 3 * H)}, "EdsdDraftModel": {"edfuse.up_proj.weight": wide},
        "DSpineDraftModel": {"injection.readouts.0.weight": wide}, "HSpecDraftModel": {"layers.0.mixer.in_proj.weight": wide},
        "QwenDFlareDraftModel": {"layer_fusion_weights": torch.ones(2, 9), "layers.0.self_attn.k_proj_target.weight": wide},
    }.get(name, {"candidate_selector.hidden_projection.weight": wide} if "selector_rank" in str(config) else {})  # fmt: skip


class Head(NamedTuple):
    """A head's folder, the folder of a target of its rotation, and what the facts say of its config."""

    folder: Path
    target: Path
    told: set[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, Decoder]:
    """A target of as many layers as the heads ask for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=MLP, num_hidden_layers=DEPTH, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, eos_token_id=[0, 7], bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    return folder, load(folder)


def head(facts: dict[str, Any], model: Path, out: Path) -> Head:
    torch.manual_seed(0)
    config, torch_dtype = shrunk(published(facts)), torch.float32
    if facts["base"] == "blocks":  # whose trainer fills these in
        stated = {key: value for key, value in config.get("dflash_config", {}).items() if value is not None}
        config["dflash_config"] = {"mask_token_id": V - 1, "target_layer_ids": [1, 2, 3, 4, 6]} | stated
    for key in ("torch_dtype", "dtype"):
        torch_dtype = getattr(torch, config.get(key, "")) if key in config else torch_dtype
    tensors = of_others(config)
    if "intermediate_size" in config and not config["architectures"][0].endswith("MTPDraftModel"):
        tensors |= of_blocks(config) if facts["base"] == "blocks" else of_eagle3(config)
    (out / "head").mkdir()
    (out / "head/config.json").write_text(json.dumps(config))
    stored = {
        name: tensor.to(torch_dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    save_file(stored, out / "head/model.safetensors")
    (out / "target").mkdir()
    for file in model.iterdir():
        (out / "target" / file.name).symlink_to(file)
    rotation = {key: value for key, value in config.items() if key.startswith("rope")}
    plain = {
        key: value
        for key, value in json.loads((model / "config.json").read_bytes()).items()
        if not key.startswith("rope")
    }
    (out / "target/config.json").unlink()
    (out / "target/config.json").write_text(json.dumps(plain | rotation))
    return Head(out / "head", out / "target", set(facts.get("told", ())))


def first_of_each_form() -> list[dict[str, Any]]:
    """A config of each form that we run, as it is once shrunk: of those alike, the first."""
    forms: dict[str, dict[str, Any]] = {}
    for facts in FACTS["configs"]:
        config = shrunk(published(facts))
        runs = config["architectures"][0] in RUN and set(facts.get("told", ())) <= RUNS_ALL_THE_SAME
        if runs and not of_others(config) and not any(word in json.dumps(config) for word in NOT_RUN):
            said = {key: value for key, value in config.items() if key not in SAME_TO_US}
            forms.setdefault(json.dumps(said, sort_keys=True), facts)
    return list(forms.values())


RUN = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "DFlashDraftModel", "DSparkDraftModel")
NOT_RUN = (
    '"domino"',
    '"longrope"',
    '"is_causal": true',
    '"num_attention_heads": 6',
)  # refused by our loader, each in a line
RUNS_ALL_THE_SAME = {"d2t-spare", "tied-head", "nested-key"}  # what an engine stumbles over and we do not
SAME_TO_US = {
    "torch_dtype", "dtype", "rope_theta", "rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers", "pretraining_tp",
    "target_model_type", "rms_norm_eps", "architectures", "num_target_layers", "block_size", "eos_token_id", "bos_token_id", "auto_map",
    "use_mrope", "modal_type", "attention_bias", "mlp_bias", "use_cache", "model_type", "target_hidden_size", "layer_types",
}  # fmt: skip


def name_of(facts: dict[str, Any]) -> str:
    return f"{facts['from']}-{facts['name']}"


@pytest.mark.parametrize("facts", FACTS["configs"], ids=name_of)
def test_no_fault_is_claimed_that_is_none(facts: dict[str, Any], model: tuple[Path, Decoder], tmp_path: Path) -> None:
    """`told`: errors that are true, each where an engine would stop or compute something else."""
    published_head = head(facts, model[0], tmp_path)
    findings = check(published_head.folder, published_head.target)
    assert {finding.code for finding in errors(findings)} == published_head.told
    assert {finding.code for finding in findings if finding.level == "warning"} <= {"stream-ids-alone"}


@pytest.mark.parametrize("facts", first_of_each_form(), ids=name_of)
def test_a_head_of_a_published_config_runs_and_is_exported(
    facts: dict[str, Any], model: tuple[Path, Decoder], tmp_path: Path
) -> None:
    path, decoder = model
    published_head = head(facts, path, tmp_path)
    request = Request(prompt=(5, 9, 12), max_tokens=4)
    plain, drafted = (
        next(iter(text.engine_on(decoder, draft, lookahead=2, max_batch=1, max_context=40).generate([request]))).answer
        for draft in (None, str(published_head.folder))
    )
    assert drafted == plain
    export(published_head.folder, published_head.target, tmp_path / "out", ExportSettings())
    assert errors(check(tmp_path / "out", published_head.target)) == []
