"""Tiny GGUF files out of transformers' models, written as llama.cpp's converter writes them: its names, its order of q and k rows."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter, quants
from gguf import GGMLQuantizationType as Kind

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# Bytes of a K-quant's block that are its float16 scales, from which random blocks need sane values.
SCALES = {
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)
}  # fmt: skip


def write_model(
    path: Path, model: Any, kinds: Sequence[Kind] = (Kind.F32,), *, tokenizer: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None, factors: np.ndarray | None = None,
) -> Path:  # fmt: skip
    """`model` as the file `path`; matrices in `kinds` by turns, vectors in float32. `more`: metadata of the architecture's own."""
    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    writer = GGUFWriter(path, arch)
    writer.add_name(f"tiny {config.model_type}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(head_dim := model.model.layers[0].self_attn.head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    for key, value in (more or {}).items():
        add(writer, f"{arch}.{key}", value)
    for key, value in (tokenizer or words(config.vocab_size)).items():
        add(writer, f"tokenizer.{key}", value)
    rng, kind = np.random.default_rng(0), cycle(kinds)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            values = tensor.float().numpy()
            values = turned(values, name, config) if arch == "llama" else values
            stored(writer, gguf_name(name), values, next(kind) if values.ndim == 2 else Kind.F32, rng)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


def words(num: int) -> dict[str, Any]:
    """A byte-level vocabulary without merges: bytes first, then words that nothing makes."""
    letters = [chr(byte) for byte in range(33, 127)] + [chr(256 + i) for i in range(num)]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": [*letters[: num - 1], "ab"],
        "ggml.merges": ["a b"],
        "ggml.eos_token_id": 0,
    }


def gguf_name(name: str) -> str:
    part, _, end = name.rpartition(".")
    if part in NAMES:
        return f"{NAMES[part]}.{end}"
    _, _, layer, inner = part.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{end}"


def turned(values: np.ndarray, name: str, config: Any) -> np.ndarray:
    """Rows of queries and keys as llama.cpp has them: those that turn together side by side."""
    if ".q_proj" not in name and ".k_proj" not in name:
        return values
    heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def stored(writer: GGUFWriter, name: str, values: np.ndarray, kind: Kind, rng: np.random.Generator) -> None:
    if kind in SCALES:
        rows = rng.integers(0, 256, quants.quant_shape_to_byte_shape(values.shape, kind), np.uint8)
        size = GGML_QUANT_SIZES[kind][1]
        blocks = rows.reshape(-1, size)
        for at in SCALES[kind]:
            blocks[:, at : at + 2] = rng.uniform(-1e-3, 1e-3, (len(blocks), 1)).astype(np.float16).view(np.uint8)
        writer.add_tensor(name, rows, raw_dtype=kind)
    else:
        writer.add_tensor(name, values if kind == Kind.F32 else quants.quantize(values, kind), raw_dtype=kind)
