"""Heads as others publish them: every form is loaded, or refused in a line; judged by the loader that will read it; exported; and run.

Forms rebuilt here from public configs and files, tiny, with random weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foredraft import kinds, text
from foredraft.decode.batch import Request
from foredraft.deploy.check import check
from foredraft.deploy.export import ExportSettings, export
from foredraft.deploy.findings import errors
from foredraft.models import Decoder, load, load_head
from foredraft.models.convert import convert

V, H, MLP, D = 300, 64, 96, 16  # as conftest's target has them, but for the head's own MLP
CUT = 100
Tensors = dict[str, Tensor]
CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": H, "intermediate_size": MLP, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "vocab_size": V,
    "draft_vocab_size": CUT, "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
IDS = kinds.AUX_LAYER_IDS


def layer(prefix: str, entry: int, norms: tuple[str, ...], width: int = H) -> Tensors:
    matrices = {
        "self_attn.q_proj": (64, entry), "self_attn.k_proj": (32, entry), "self_attn.v_proj": (32, entry), "self_attn.o_proj": (width, 64),
        "mlp.gate_proj": (MLP, width), "mlp.up_proj": (MLP, width), "mlp.down_proj": (width, MLP),
    }  # fmt: skip
    tensors = {f"{prefix}{name}.weight": 0.2 * torch.randn(shape) for name, shape in matrices.items()}
    return tensors | {f"{prefix}{name}.weight": 1 + 0.1 * torch.randn(width) for name in norms}


def eagle3(states: int = 3, words: int = CUT, prefix: str = "midlayer.", width: int = H) -> Tensors:
    torch.manual_seed(5)
    ids = torch.arange(words) * (V // words)
    tensors = layer(prefix, 2 * width, ("input_layernorm", "hidden_norm", "post_attention_layernorm"), width)
    tensors |= {"fc.weight": 0.2 * torch.randn(width, states * H), "norm.weight": torch.ones(width)}
    tensors["lm_head.weight"] = 0.2 * torch.randn(words, width)
    if words != V:
        tensors |= {
            "d2t": ids - torch.arange(words),
            "t2d": torch.zeros(V, dtype=torch.bool).index_fill(0, ids, value=True),
        }
    return tensors


def eagle1() -> Tensors:
    torch.manual_seed(6)
    return layer("layers.0.", H, ("post_attention_layernorm",)) | {"fc.weight": 0.2 * torch.randn(H, 2 * H)}


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(tensors: Tensors, name_of: Callable[[str], str]) -> Tensors:
    return {name_of(name): tensor for name, tensor in tensors.items()}


def speculators(**keys: Any) -> dict[str, Any]:
    inner = {
        key: value
        for key, value in CONFIG.items()
        if key not in ("architectures", "draft_vocab_size", "tie_word_embeddings")
    }
    method = {"proposal_type": "greedy", "speculative_tokens": 3}
    outer = {
        "algorithm": "eagle3",
        "proposal_methods": [method],
        "verifier": {"name_or_path": "x/y", "architectures": ["LlamaForCausalLM"]},
    }
    return {
        "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3", "draft_vocab_size": CUT, "norm_before_residual": False,
        "target_hidden_size": None, "transformer_layer_config": inner, "speculators_config": outer, **keys,
    }  # fmt: skip


def nested(tensors: Tensors) -> Tensors:
    return renamed(tensors, lambda name: name.replace("midlayer.", "layers.0."))


NORMS = {f"fc_norm.{i}.weight": torch.rand(H) + 0.5 for i in range(3)}
INPUT = {"input_norm.weight": torch.rand(3 * H) + 0.5}
ONE_STATE = {"draft_vocab_size": V, "eagle_config": {IDS: [], "use_aux_hidden_state": False}}
# Forms that run: tensors, config (keys beside CONFIG), the engine that it is for, codes of what is told of it.
RUN: dict[str, tuple[Tensors, dict[str, Any], set[str]]] = {
    "EAGLE's own class": (eagle3(), {"architectures": ["LlamaForCausalLM"]}, set()),
    "AngelSlim's class, tied": (eagle3(), {"architectures": ["Eagle3LlamaForCausalLM"], "tie_word_embeddings": True}, set()),
    "the target's own family": (eagle3(), {"model_type": "llama4_text", "intermediate_size": MLP}, set()),
    "a class of no engine": (eagle3(), {"architectures": ["SomethingForCausalLM"]}, {"architecture"}),
    "EAGLE-3.1": (eagle3() | NORMS, {"fc_norm": True, "norm_output": True}, set()),
    "older names of its norms": (
        eagle3() | dict(zip((f"aux_norm_{n}.weight" for n in ("low", "mid", "high")), NORMS.values(), strict=True)), {"use_aux_norm": True},
        {"unknown"},
    ),
    "speculators": (nested(eagle3()), speculators(), set()),
    "normed before the residual": (nested(eagle3()), speculators(norm_before_residual=True), set()),
    "normed before fc": (nested(eagle3()) | INPUT, speculators(norm_before_fc=True), set()),
    "four hidden states": (nested(eagle3(4)), speculators(**{IDS: [0, 1, 2, 3]}), {"stream-count"}),
    "two hidden states": (eagle3(2), {"num_aux_hidden_states": 2, IDS: [1, 3], "eagle_config": {IDS: [0, 2]}}, set()),
    "ids by the layer left alone": (eagle3(), {"eagle_config": {IDS: [0, 1, 2]}}, {"stream-ids-alone"}),
    "ids that only the layer entered can mean": (
        eagle3(), {"eagle_config": {IDS: [1, 2, 4]}}, {"stream-ids-alone", "stream-last", "stream-range"},
    ),
    "the last state alone": (without(eagle3(words=V), "fc.weight"), ONE_STATE, set()),
    "no LM head": (without(eagle3(words=V), "lm_head.weight"), {"draft_vocab_size": None}, set()),
    "no LM head, its rows said": (without(eagle3(words=V), "lm_head.weight"), {"draft_vocab_size": V}, {"lm-head"}),
    "another width": (
        eagle3(width=32) | {"embed_tokens.weight": torch.randn(V, 32)}, {"hidden_size": 32, "head_dim": 16, "target_hidden_size": H}, set()
    ),
    "a random table": (eagle3() | {"embed_tokens.weight": torch.randn(V, H)}, {}, {"embedding-differs"}),
    "names of a whole model": (
        renamed(eagle3(), lambda name: name if name in ("d2t", "t2d", "lm_head.weight") else f"model.{name}"), {}, {"prefix"},
    ),
    "t2d of numbers": ((tensors := eagle3()) | {"t2d": tensors["t2d"].long()}, {}, {"t2d-kind"}),
    "a padded vocabulary": (eagle3(), {"vocab_size": V + 20}, {"vocab-differs", "t2d"}),
    "a short context": (eagle3(), {"max_position_embeddings": 64}, {"positions"}),
    "HunYuan's positions": (eagle3(), {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}, {"rope"}),
    "positions of images": (eagle3(), {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, set()),
    "EAGLE-1 under EAGLE-3's class": (eagle1(), {"draft_vocab_size": ...}, {"architecture", "fc-bias"}),
    "speculators' EAGLE-1": (
        renamed(eagle1(), lambda name: name.replace("layers.0.", "transformer.").replace("fc.", "fusion_fc.")),
        speculators(speculators_model_type="eagle", architectures=["EagleSpeculator"], draft_vocab_size=None), {"speculators"},
    ),
    "an LM head that nobody reads": (
        eagle1() | {"lm_head.weight": torch.randn(V, H), "fc.bias": torch.zeros(H)},
        {"architectures": ["LlamaForCausalLMEagle"], "draft_vocab_size": ...}, {"lm-head-spare"},
    ),
    "vLLM's first EAGLE under EAGLE-3's class": (
        renamed(eagle1(), "model.{}".format),
        {"model_type": "eagle", "architectures": ["EAGLEModel"], "model": CONFIG | {"draft_vocab_size": None}}, {"architecture", "prefix", "fc-bias"},
    ),
    "vLLM's first EAGLE": (
        renamed(eagle1(), "model.{}".format),
        {"model_type": "eagle", "architectures": ["EAGLEModel"], "model": CONFIG | {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": None}},
        {"prefix"},
    ),
}  # fmt: skip
SERVED = {  # codes of RUN that are errors, each where an engine would stop or compute something else
    "architecture", "fc-bias", "unknown", "stream-count", "stream-range", "lm-head", "prefix", "speculators",
}  # fmt: skip


def write(folder: Path, tensors: Tensors, keys: dict[str, Any], file: str = "model.safetensors") -> Path:
    config = keys if "speculators_model_type" in keys or "model" in keys else CONFIG | keys
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    return folder


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> Decoder:
    return load(checkpoint)


@pytest.mark.parametrize("form", RUN)
def test_a_published_form_is_judged_and_runs(form: str, target: Decoder, checkpoint: Path, tmp_path: Path) -> None:
    """Its text is the target's; what an engine would misread is an error, and nothing else is."""
    tensors, keys, codes = RUN[form]
    findings = check(write(tmp_path, tensors, keys), checkpoint)
    assert {finding.code for finding in findings} == codes
    assert {finding.code for finding in errors(findings)} == codes & SERVED
    request = Request(prompt=(5, 9, 12), max_tokens=6)
    plain, drafted = (
        next(iter(text.engine_on(target, draft, lookahead=3, max_batch=1, max_context=40).generate([request]))).answer
        for draft in (None, str(tmp_path))
    )
    assert drafted == plain


EXPORTED = (
    "EAGLE-3.1", "normed before the residual", "normed before fc", "four hidden states", "two hidden states", "the last state alone",
    "no LM head, its rows said", "another width", "names of a whole model",
)  # fmt: skip


@pytest.mark.parametrize("form", EXPORTED)
def test_a_published_form_is_exported_as_it_is(form: str, target: Decoder, checkpoint: Path, tmp_path: Path) -> None:
    """Flat and nested; read back it computes the same, and no fault is left."""
    before = load_head(write(tmp_path / "head", *RUN[form][:2]), target)
    tokens, generator = torch.arange(8)[None], torch.Generator().manual_seed(2)
    aux = torch.randn(1, 8, len(before.feature_layers) * H, generator=generator)
    for format in ("vllm", "speculators"):
        export(tmp_path / "head", checkpoint, tmp_path / format, ExportSettings(format=format))
        after = load_head(tmp_path / format, target)
        assert after.feature_layers == before.feature_layers
        for output in ("logits_BTV", "pre_norm_BTC"):
            expected, got = (getattr(head(tokens, head.combine(aux)), output) for head in (before, after))  # pyright: ignore[reportArgumentType]
            assert torch.equal(expected, got)
        assert errors(check(tmp_path / format, checkpoint)) == []


def test_each_switch_of_eagle3_changes_what_is_computed(target: Decoder, tmp_path: Path) -> None:
    """By hand: where the norms stand, and what is fed back."""
    tensors = eagle3() | NORMS | INPUT
    keys = {"norm_before_fc": True, "fc_norm": True, "norm_output": True, "norm_before_residual": True}
    head = load_head(write(tmp_path, tensors, keys), target)
    aux = torch.randn(1, 5, 3 * H, generator=torch.Generator().manual_seed(3))

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    whole = normed(aux, INPUT["input_norm.weight"])
    parts = [normed(part, NORMS[f"fc_norm.{i}.weight"]) for i, part in enumerate(whole.chunk(3, -1))]
    assert torch.allclose(head.combine(aux), torch.cat(parts, -1) @ tensors["fc.weight"].T, atol=1e-5)
    output = head(torch.arange(5)[None], head.combine(aux))  # pyright: ignore[reportArgumentType]
    assert torch.equal(output.pre_norm_BTC, output.final_BTC)
    raw = load_head(write(tmp_path, tensors, keys | {"norm_before_residual": False}), target)
    other = raw(torch.arange(5)[None], raw.combine(aux))  # pyright: ignore[reportArgumentType]
    assert not torch.allclose(output.final_BTC, other.final_BTC, atol=1e-2)


SPECULATIVE = {"hidden_size": H, "vocab_size": V}
NOT_JUDGED: dict[str, tuple[Tensors, dict[str, Any], str, str]] = {
    "P-EAGLE": (
        eagle3() | {"mask_hidden": torch.randn(1, 1, 3 * H)}, {"architectures": ["PEagleDraftModel"]}, "model.safetensors",
        "a P-EAGLE head for vLLM",
    ),
    "P-EAGLE of speculators": (
        nested(eagle3()) | {"mask_hidden": torch.randn(1, 1, 3 * H)}, speculators(speculators_model_type="peagle", mask_token_id=3),
        "model.safetensors", "a P-EAGLE head for vLLM",
    ),
    "latent attention": (
        {"fc.weight": torch.randn(H, 3 * H), "midlayer.self_attn.kv_a_proj_with_mqa.weight": torch.ones(8, H)},
        {"architectures": ["Eagle3DeepseekV2ForCausalLM"], "model_type": "kimi_k2"}, "model.safetensors",
        "an EAGLE-3 head with multi-head latent attention for vLLM, SGLang",
    ),
    "Medusa": (
        {"0.0.linear.weight": torch.randn(H, H)}, SPECULATIVE | {"medusa_num_heads": 4, "architectures": None}, "medusa_lm_head.safetensors",
        "a Medusa head, whose loaders are not known here",
    ),
    "MLP speculator": (
        {"speculator.emb.0.weight": torch.randn(V, H)}, {"architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator"},
        "model.safetensors", "an MLP speculator head, whose loaders",
    ),
    "MTP": (
        layer("mtp.layers.0.", H, ("input_layernorm",)), {"architectures": ["Qwen3_5MTP"], "model_type": "qwen3_5_mtp"}, "model.safetensors",
        "an MTP head for vLLM, SGLang",
    ),
    "a design of no engine": (
        eagle3() | {"edfuse.up_proj.weight": torch.randn(H, H)}, {"architectures": ["EdsdDraftModel"]}, "model.safetensors",
        "an EAGLE-3 head of class EdsdDraftModel, which no engine here has\n",
    ),
    "Hydra": (
        {"0.0.linear.weight": torch.randn(H, H)}, SPECULATIVE | {"hydra_num_heads": 4, "architectures": None}, "hydra_lm_head.safetensors",
        "a Medusa head",
    ),
    "another DSpark": (
        {"fc.weight": torch.randn(H, H), "markov_head.markov_w1.weight": torch.randn(V, 4)}, {"architectures": ["Gemma4DSparkModel"]},
        "model.safetensors", "a DSpark head of class Gemma4DSparkModel for vLLM",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", NOT_JUDGED)
def test_a_head_whose_loader_is_not_known_is_not_condemned(
    form: str, checkpoint: Path, tmp_path: Path, cli: Any
) -> None:
    tensors, keys, file, words = NOT_JUDGED[form]
    ran = cli("deploy", "check", write(tmp_path, tensors, keys, file), "--target", checkpoint)
    assert ran.returncode == 0
    assert f"not judged: this is {words}" in ran.stdout
    assert "0 errors, 0 warnings" in ran.stderr


def test_pickled_heads_are_judged_and_run_once_converted(target: Decoder, checkpoint: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "bin", *RUN["EAGLE's own class"][:2], "pytorch_model.bin")
    findings = check(folder, checkpoint)
    assert [(finding.code, finding.level) for finding in findings] == [("pickle", "warning")]
    assert f"foredraft convert {folder}" in findings[0].remedy
    convert(folder, tmp_path / "safe")
    assert load_head(tmp_path / "safe", target).shape.draft_vocab_size == CUT
    assert load_file(tmp_path / "safe/model.safetensors")["d2t"].dtype == torch.int64


TARGETS = {
    "mixture of experts": {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "FP8": {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2},
    "Llama 4": {
        "model_type": "llama4", "text_config": {"model_type": "llama4_text", "num_local_experts": 4, "num_experts_per_tok": 1},
    },
    "Gemma": {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_a_head_is_exported_for_targets_that_are_not_run_here(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """Of a target its config and tokenizer alone: no weights are there."""
    sizes = {
        "hidden_size": H, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": D,
        "vocab_size": V, "max_position_embeddings": 512, "eos_token_id": 7,
    }  # fmt: skip
    stated = TARGETS[name]
    config = {**stated, "text_config": sizes | stated["text_config"]} if "text_config" in stated else sizes | stated
    (tmp_path / "target").mkdir()
    (tmp_path / "target/config.json").write_text(json.dumps(config))
    (tmp_path / "target/tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    write(tmp_path / "head", eagle3(), {})
    export(tmp_path / "head", tmp_path / "target", tmp_path / "out", ExportSettings())
    assert json.loads((tmp_path / "out/config.json").read_bytes())["eos_token_id"] == 7
    assert errors(check(tmp_path / "out", tmp_path / "target")) == []


def test_a_shape_counts_what_a_head_has(target: Decoder, tmp_path: Path) -> None:
    for form in ("four hidden states", "two hidden states", "the last state alone", "no LM head"):
        folder = write(tmp_path / form, *RUN[form][:2])
        head, shape = load_head(folder, target), kinds.shape_of_folder(folder)
        assert sum(parameter.numel() for parameter in head.parameters()) == head.shape.params == shape.params
        assert msgspec.structs.replace(shape, name="") == msgspec.structs.replace(head.shape, name="")
