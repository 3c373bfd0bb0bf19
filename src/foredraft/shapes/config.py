"""Shapes from Hugging Face configs. Sizes are required; a switch that a config leaves out takes transformers' default.

Promises: a config that cannot be counted is an error that says what it lacks. Refuses to know: torch, tokenizers.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from foredraft.shapes.counts import HeadParts, Shape

_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
_QWEN_MOE_SIZES = {
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
}
# Per model_type: further required sizes, and the class defaults of num_key_value_heads and head_dim (None: derived).
_FAMILIES: dict[str, tuple[dict[str, str], int | None, int | None]] = {
    "llama": ({}, None, None),
    "mistral": ({}, 8, None),
    "qwen2": ({}, 32, None),
    "qwen3": ({}, 32, 128),
    "opt": ({"intermediate_size": "ffn_dim"}, None, None),
    "mixtral": ({"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}, 8, None),
    "qwen2_moe": (_QWEN_MOE_SIZES | {"shared_intermediate_size": "shared_expert_intermediate_size"}, 16, None),
    "qwen3_moe": (_QWEN_MOE_SIZES, 4, None),
    "seed_oss": ({}, 8, 128),
}


def from_config(config: dict[str, Any] | str | Path, name: str | None = None, *, where: str = "config") -> Shape:
    """The shape behind a Hugging Face config: a dict (`where` it is from, for errors), a `config.json`, or the directory that holds one."""
    if not isinstance(config, dict):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        where, name = str(path), name or path.resolve().parent.name
        config = read_config(path)
    try:
        return _shape_of(_text_part(config), name)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def as_head(shape: Shape, parts: HeadParts, config: dict[str, Any]) -> Shape:
    """A folder's model as a draft head of such parts; `config` is its unfolded config.json. Raises ValueError."""
    head_fields = {
        "head": parts, "tie_embeddings": False, "target_hidden_size": config.get("target_hidden_size"),
        "draft_vocab_size": config.get("draft_vocab_size") if parts.own_lm_head else None,
    }  # fmt: skip
    try:
        return msgspec.convert(msgspec.structs.asdict(shape) | head_fields, Shape)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def tensor_names(folder: str | Path) -> frozenset[str]:
    """The names of a folder's tensors by its file's header or the index of its shards; none where it holds no weights.

    Raises ValueError where these are broken.
    """
    file, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    try:
        if file.is_file():
            return frozenset(json.loads(_header(file))) - {"__metadata__"}
        return frozenset(json.loads(index.read_bytes())["weight_map"]) if index.is_file() else frozenset()
    except (ValueError, KeyError, TypeError):
        broken = file if file.is_file() else index
        raise ValueError(f"{broken}: truncated or corrupt; export or download it again") from None


def _header(file: Path) -> bytes:
    """The header of a safetensors file, or as much of it as is there."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        return stored.read(min(length, file.stat().st_size))


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys of a config.json, or of the directory that holds one, as they stand there."""
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a config.json, a directory that holds one, or shape(name)")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download the config again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def unfolded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the speculators format with its `transformer_layer_config` beside its own keys; any other as it is.

    There an absent `norm_before_residual` means true, and a null key is an absent one.
    """
    inner = config.get("transformer_layer_config")
    if not isinstance(inner, dict):
        return config
    own = {key: value for key, value in config.items() if value is not None and key != "transformer_layer_config"}
    return {"norm_before_residual": True} | inner | own


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model of a multimodal config, which nests it under `text_config`, or of a speculators draft."""
    config = unfolded(config)
    if "hidden_size" in config or not isinstance(config.get("text_config"), dict):
        return config
    outer = {key: config[key] for key in ("tie_word_embeddings", "_name_or_path") if key in config}
    return outer | config["text_config"]


def _shape_of(config: dict[str, Any], name: str | None) -> Shape:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        lacks = [key for key in _SIZES.values() if config.get(key) is None]
        reason = f"it lacks {', '.join(lacks)}" if lacks else "its biases, norms and experts are unknown"
        raise ValueError(f"model_type {family!r} is not supported (have {', '.join(_FAMILIES)}); {reason}")
    extra, default_kv_heads, default_head_dim = _FAMILIES[family]
    sizes = _SIZES | extra
    missing = [key for key in sizes.values() if config.get(key) is None]
    if missing:
        raise ValueError(f"{family} config lacks {', '.join(missing)}")
    fields = {field: config[key] for field, key in sizes.items()}
    fields["num_kv_heads"] = config.get("num_key_value_heads", default_kv_heads) or fields["num_heads"]
    fields["head_dim"] = config.get("head_dim", default_head_dim) or _divide(fields["hidden_size"], fields["num_heads"])
    fields["tie_embeddings"] = config.get("tie_word_embeddings", family == "opt")
    fields["max_position_embeddings"] = config.get("max_position_embeddings")
    fields |= _switches(family, config)
    name = name or config.get("_name_or_path") or family
    return msgspec.convert({"name": name, "family": family, **fields}, Shape)


def _divide(hidden_size: Any, num_heads: Any) -> Any:
    """HF's default head_dim; what is not a positive whole number is left for the validation of its own field."""
    if not (isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads > 0 and hidden_size > 0):
        return 1
    if hidden_size % num_heads:
        raise ValueError(f"head_dim is missing, and hidden_size/num_attention_heads = {hidden_size}/{num_heads}")
    return hidden_size // num_heads


def _switches(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """Biases, norms and the layout of experts, family by family (transformers' modeling files)."""
    get = config.get
    if family == "llama":
        bias = get("attention_bias", False)
        return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": get("mlp_bias", False)}
    if family == "seed_oss":
        return {
            "qkv_bias": get("attention_bias", True),
            "o_bias": get("attention_out_bias", False),
            "mlp_bias": get("mlp_bias", False),
        }
    if family == "opt":
        return _opt_switches(config)
    if family == "mixtral":
        return {"moe_intermediate_size": config["intermediate_size"]}
    moe = {"sparse_step": get("decoder_sparse_step", 1), "dense_layers": get("mlp_only_layers") or ()}
    if family in ("qwen2", "qwen2_moe"):
        return {"qkv_bias": get("qkv_bias", True)} | (moe if family == "qwen2_moe" else {})
    if family in ("qwen3", "qwen3_moe"):
        bias = get("attention_bias", False)
        return {"qkv_bias": bias, "o_bias": bias, "qk_norm": True} | (moe if family == "qwen3_moe" else {})
    return {}


def _opt_switches(config: dict[str, Any]) -> dict[str, Any]:
    """OPT: biases everywhere, LayerNorm, learned positions plus two rows; OPT-350m is post-norm and narrower."""
    bias, positions = config.get("enable_bias", True), config.get("max_position_embeddings") or 2048
    width = config.get("word_embed_proj_dim")
    pre_norm = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    return {
        "gated_mlp": False, "layer_norm": True, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias,
        "max_position_embeddings": positions, "position_rows": positions + 2 if isinstance(positions, int) else 0,
        "embed_dim": None if width == config["hidden_size"] else width, "final_norm": pre_norm,
    }  # fmt: skip
