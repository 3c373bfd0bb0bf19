"""A decoder as a Hugging Face folder: config.json and model.safetensors, as transformers and the engines read them.

Promises: what is written loads here and in transformers to the same numbers. Refuses to know: tokenizers, training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from foredraft.models.decoder import INIT_STD
from foredraft.models.eight_bits import config_keys, stored
from foredraft.models.layers import ModelConfig
from foredraft.models.load import stored_name
from foredraft.records import make_readable, write
from foredraft.shapes import Shape
from foredraft.shapes.absent import SINGLE
from foredraft.shapes.families import prefixes, runnable
from foredraft.shapes.rope import Rope, rope_to_config


def save(
    state: Mapping[str, Tensor], shape: Shape, model_config: ModelConfig, folder: str | Path, *,
    dtype: torch.dtype = torch.float32, more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the weights `state` (named as `Decoder`'s parameters) in `dtype`; `more` are further keys, such as token ids.

    `dtype` int8 and int4: matrices in so few bits (see `eight_bits`, `four_bits`).
    """
    folder, prefix = Path(folder), prefixes(shape.family)[0]
    tensors = stored({stored_name(name, shape, prefix): tensor for name, tensor in state.items()}, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{SINGLE}.partial"
    try:
        safetensors.torch.save_file(tensors, partial, {"format": "pt"})
        make_readable(partial)
        partial.replace(folder / SINGLE)
    finally:
        partial.unlink(missing_ok=True)
    config = config_of(shape, model_config) | config_keys(dtype, "dtype")
    write(folder / "config.json", config | dict(more or {}))


def config_of(shape: Shape, model_config: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config that `shapes.from_config` and `layers.model_config_of` read back to the same values."""
    sizes = {
        "model_type": shape.family, "architectures": [runnable(shape.family).architecture], "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads,
        "tie_word_embeddings": shape.tie_embeddings, "use_cache": True,
    }  # fmt: skip
    if shape.draft_vocab_size:
        sizes["draft_vocab_size"] = shape.draft_vocab_size
    return sizes | (
        _opt(shape, model_config) if model_config.rope is None else _llama(shape, model_config, model_config.rope)
    )


def _opt(shape: Shape, model_config: ModelConfig) -> dict[str, Any]:
    return {
        "ffn_dim": shape.intermediate_size, "word_embed_proj_dim": shape.embed_width, "enable_bias": shape.qkv_bias,
        "max_position_embeddings": shape.max_position_embeddings, "activation_function": model_config.activation,
        "do_layer_norm_before": model_config.pre_norm, "_remove_final_layer_norm": model_config.pre_norm and not shape.final_norm,
        "layer_norm_elementwise_affine": True, "dropout": 0.0, "init_std": INIT_STD,
    }  # fmt: skip


def _llama(shape: Shape, model_config: ModelConfig, rope: Rope) -> dict[str, Any]:
    config = {
        "intermediate_size": shape.intermediate_size, "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim, "hidden_act": model_config.activation, "rms_norm_eps": model_config.norm_eps,
        "initializer_range": INIT_STD, **rope_to_config(rope),
    }  # fmt: skip
    if shape.max_position_embeddings:
        config["max_position_embeddings"] = shape.max_position_embeddings
    return config | _biases(shape) | _window(shape, model_config)


def _biases(shape: Shape) -> dict[str, Any]:
    """Each family's switches, by the first field that they set."""
    return {key: getattr(shape, fields[0]) for key, (fields, _) in runnable(shape.family).switches.items()}


def _window(shape: Shape, model_config: ModelConfig) -> dict[str, Any]:
    """Some families slide unless told otherwise, some only if told."""
    family = runnable(shape.family)
    if family.slides == "always":
        return {"sliding_window": model_config.window}
    if family.slides == "switched":
        slides = model_config.window is not None
        return {"use_sliding_window": slides} | (
            {"sliding_window": model_config.window, "max_window_layers": 0} if slides else {}
        )
    return {}
