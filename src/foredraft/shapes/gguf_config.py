"""The Hugging Face config that a GGUF file's metadata and tensors mean.

Promises: Llama, Mistral, Qwen2 and Qwen3, with rotations as llama.cpp turns them; whatever else the file says that would change the
numbers is an error that names it. Refuses to know: torch, values of weights but for the rotation's factors.
"""

import math
import re
import struct
from pathlib import Path
from typing import Any

from foredraft.records import with_hint
from foredraft.shapes.gguf import GgufFile

FAMILIES = ("llama", "qwen2", "qwen3")  # architectures as llama.cpp names them; Mistral's is llama
ROPE_FACTORS = "rope_freqs.weight"
_TOLERANCE = 1e-4  # of a rotation's factor, whose file holds it in float32
_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
# Keys that would change the numbers, and the value at which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,), "attention.causal": (True,), "logit_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0), "attention.scale": (0.0,), "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0,), "attention.temperature_scale": (0.0, 1.0), "attention.clamp_kqv": (0.0,),
}  # fmt: skip


def gguf_config(path: str | Path) -> dict[str, Any]:
    """The keys of the config.json that the file stands for. Raises ValueError, one line that names the file."""
    return config_of(GgufFile(path))


def config_of(file: GgufFile) -> dict[str, Any]:
    """`gguf_config` of a header that has been read."""
    _refuse(file)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise file.fail("lacks tensor token_embd.weight; give a whole model's file, not a vocabulary or an adapter")
    sizes = {key: _whole(file, name) for key, name in _SIZES.items()}
    heads, family = sizes["num_attention_heads"], _family(file)
    head_dim = _head_dim(file, sizes["hidden_size"] // max(heads, 1))
    config = {
        "architectures": [_CLASSES[family]], "model_type": family, "vocab_size": embedding.shape[0], **sizes,
        "num_key_value_heads": _whole(file, "attention.head_count_kv", heads), "head_dim": head_dim, "hidden_act": "silu",
        "rms_norm_eps": file.need(f"{file.architecture}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors, "attention_dropout": 0.0, "use_cache": True,
    }  # fmt: skip
    return config | _switches(file, family) | _rope(file, head_dim) | _token_ids(file)


_SIZES = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "max_position_embeddings": "context_length",
}  # fmt: skip
_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"
}  # fmt: skip


def _refuse(file: GgufFile) -> None:
    """Other families, and settings of these that our decoder does not compute."""
    if file.architecture not in FAMILIES:
        error = file.fail(
            f"architecture {file.architecture!r} cannot be read from GGUF (have llama, mistral, qwen2, qwen3)"
        )
        raise with_hint(error, "give the model's original Hugging Face folder")
    for key, plain in _PLAIN.items():
        value = file.setting(key)
        if value is not None and value not in plain:
            what = "mixtures of experts" if key == "expert_count" else f"{file.architecture}.{key} = {value}"
            raise file.fail(f"{what} cannot be read from GGUF; give the model's original Hugging Face folder")
    longrope = next((name for name in file.tensors if name.startswith("rope_factors_")), None)
    if longrope:
        raise file.fail(f"tensor {longrope} (longrope) is not supported; give another model")


def _whole(file: GgufFile, name: str, default: int | None = None) -> int:
    """A size that is one number for all layers."""
    value = file.need(f"{file.architecture}.{name}") if default is None else file.setting(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise file.fail(f"{file.architecture}.{name} differs from layer to layer, which is not supported")
    return value


def _head_dim(file: GgufFile, default: int) -> int:
    """The width of a head, of its keys and values alike and all of it rotated."""
    width = _whole(file, "attention.key_length", 0) or _whole(file, "rope.dimension_count", default)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := file.setting(name, width)) != width:
            raise file.fail(
                f"{file.architecture}.{name} {other} is not the head's width {width}, which is not supported"
            )
    return width


def _family(file: GgufFile) -> str:
    """llama.cpp writes Mistral as llama: it is told by its window or its name."""
    names = " ".join(
        str(file.metadata.get(key) or "") for key in ("general.name", "general.basename", "general.base_model.0.name")
    )
    mistral = file.setting("attention.sliding_window") or re.search(r"mistral", names, re.IGNORECASE)
    return "mistral" if file.architecture == "llama" and mistral else file.architecture


def _switches(file: GgufFile, family: str) -> dict[str, Any]:
    """Biases by the tensors that are there, windows by the metadata."""
    window = file.setting("attention.sliding_window") or None
    biases = {"attention_bias": "blk.0.attn_q.bias" in file.tensors}
    if family == "mistral":
        return {"sliding_window": window}
    if window:
        raise file.fail(
            f"{file.architecture}.attention.sliding_window is not supported; give the original Hugging Face folder"
        )
    if family == "llama":
        return biases | {"mlp_bias": "blk.0.ffn_up.bias" in file.tensors}
    return {"use_sliding_window": False} | (biases if family == "qwen3" else {})


def _token_ids(file: GgufFile) -> dict[str, Any]:
    ids = {ours: file.metadata.get(f"tokenizer.ggml.{name}") for name, ours in _TOKEN_IDS.items()}
    return {name: token for name, token in ids.items() if token is not None}


def generation_keys(file: GgufFile) -> dict[str, Any]:
    """The keys of a generation_config.json: every id that ends an answer (of text, turn or message) as the file states them."""
    ends = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in ends if token is not None))
    keys = _token_ids(file)
    return keys | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """Base and stretching of the rotation: `rope.scaling` keys, or Llama 3's factors, a tensor."""
    theta = float(file.setting("rope.freq_base", 10000.0))
    kind = file.setting("rope.scaling.type") or "linear"
    factor = file.setting("rope.scaling.factor") or file.setting("rope.scale_linear") or 1.0
    if ROPE_FACTORS in file.tensors:
        scaling = _llama3(file, theta, head_dim)
    elif kind == "yarn":
        scaling = _yarn(file, factor)
    elif kind in ("none", "linear"):
        scaling = {} if kind == "none" or factor == 1.0 else {"rope_type": "linear", "factor": factor}
    else:
        raise file.fail(f"rope scaling of type {kind!r} is not supported (have linear, yarn and Llama 3's factors)")
    return {"rope_theta": theta} | ({"rope_scaling": scaling} if scaling else {})


def _yarn(file: GgufFile, factor: float) -> dict[str, Any]:
    """llama.cpp multiplies yarn's temperature, 1 + 0.1 ln(factor), by a factor of its own."""
    original = file.setting("rope.scaling.original_context_length") or file.setting("context_length")
    temperature = file.setting("rope.scaling.yarn_attn_factor") or file.setting("rope.scaling.attn_factor") or 1.0
    betas = {name: file.setting(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if temperature != 1.0:
        scaling["attention_factor"] = temperature * (1 + 0.1 * math.log(factor))
    return scaling | {name: beta for name, beta in betas.items() if beta is not None}


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling out of the factors by which llama.cpp divides each frequency.

    Between them the factors blend, with s = (original / wavelength - low) / (high - low): two numbers tell all, so that low is set
    to 1, as all published models have it. Raises ValueError where no such scaling gives these factors.
    """
    kind = file.tensors[ROPE_FACTORS]
    if kind.kind != 0:
        raise file.fail(f"tensor {ROPE_FACTORS} is not F32; convert the model to GGUF again")
    factors = struct.unpack(f"<{kind.shape[-1]}f", file.values(ROPE_FACTORS))
    turns = [theta ** (-2 * i / head_dim) / (2 * math.pi) for i in range(head_dim // 2)]  # per position
    factor = max(factors)
    if len(factors) != len(turns) or min(factors) < 1 - _TOLERANCE:
        raise file.fail(f"tensor {ROPE_FACTORS} holds no Llama 3 factors, which alone are supported")
    if factor < 1 + _TOLERANCE:
        return {}
    for scaling in (*_published(factor), *_fitted(factors, turns, factor)):
        if all(
            math.isclose(f, g, rel_tol=_TOLERANCE) for f, g in zip(factors, llama3_factors(scaling, turns), strict=True)
        ):
            return {"rope_type": "llama3", **scaling}
    raise file.fail(f"tensor {ROPE_FACTORS} holds no Llama 3 factors, which alone are supported")


def llama3_factors(scaling: dict[str, Any], turns: list[float]) -> list[float]:
    """By what each frequency, in turns per position, is divided under a Llama 3 scaling."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    blends = [(scaling["original_max_position_embeddings"] * turn - low) / (high - low) for turn in turns]
    return [1 / ((1 - s) / factor + s) for s in (min(max(blend, 0.0), 1.0) for blend in blends)]


def _scaling(factor: float, high: float, original: int) -> dict[str, Any]:
    return {
        "factor": round(factor, 4), "low_freq_factor": 1.0, "high_freq_factor": high, "original_max_position_embeddings": original
    }  # fmt: skip


def _published(factor: float) -> list[dict[str, Any]]:
    """Llama 3.1, 3.2 and 3.3 differ in the factor alone."""
    return [_scaling(factor, 4.0, 8192)]


def _fitted(factors: tuple[float, ...], turns: list[float], factor: float) -> list[dict[str, Any]]:
    """The line through the first and last blended factor: s is linear in the turns."""
    inner = [(turn, (1 / f - 1 / factor) / (1 - 1 / factor)) for f, turn in zip(factors, turns, strict=True)]
    inner = [(turn, s) for turn, s in inner if 1e-3 < s < 1 - 1e-3]
    if len(inner) < 2:
        return []
    (turn_a, s_a), (turn_b, s_b) = inner[0], inner[-1]
    slope = (s_a - s_b) / (turn_a - turn_b)
    offset = slope * turn_a - s_a  # low / (high - low)
    if slope <= 0 or offset <= 0:
        return []
    return [_scaling(factor, round(1 + 1 / offset, 4), round(slope / offset))]
