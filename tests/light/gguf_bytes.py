"""GGUF files byte by byte, so that a test can write broken ones; the layout is that of ggml's docs/gguf.md, version 3."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 512, "llama.embedding_length": 64,
    "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500000.0, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
}  # fmt: skip
TENSORS: dict[str, tuple[int, ...]] = {"token_embd.weight": (96, 64), "output_norm.weight": (64,)}


def gguf_bytes(
    metadata: Mapping[str, Any] = LLAMA, tensors: Mapping[str, tuple[int, ...]] = TENSORS, *, kind: int = 0,
    values: Mapping[str, bytes] | None = None, version: int = 3, order: str = "<",
) -> bytes:  # fmt: skip
    """A file of float32 zeros, or of `values`; `kind` is the format that its tensors claim."""
    bodies = {name: (values or {}).get(name, bytes(4 * math.prod(shape))) for name, shape in tensors.items()}
    header = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(metadata))
    header += b"".join(_text(key, order) + _value(value, order) for key, value in metadata.items())
    start = 0
    for name, shape in tensors.items():
        dims = struct.pack(f"{order}I{len(shape)}Q", len(shape), *reversed(shape))
        header += _text(name, order) + dims + struct.pack(f"{order}IQ", kind, start)
        start += -(-len(bodies[name]) // 32) * 32
    return _padded(header) + b"".join(map(_padded, bodies.values()))


def write_gguf(path: Path, *args: Any, **kwargs: Any) -> Path:
    path.write_bytes(gguf_bytes(*args, **kwargs))
    return path


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)


def _text(text: str, order: str) -> bytes:
    return struct.pack(f"{order}Q", len(text.encode())) + text.encode()


def _value(value: Any, order: str) -> bytes:
    if isinstance(value, bool):
        return struct.pack(f"{order}I?", 7, value)
    if isinstance(value, int):
        return struct.pack(f"{order}II", 4, value)
    if isinstance(value, float):
        return struct.pack(f"{order}If", 6, value)
    if isinstance(value, str):
        return struct.pack(f"{order}I", 8) + _text(value, order)
    kind = 8 if isinstance(value[0], str) else 4
    items = b"".join(_text(item, order) if kind == 8 else struct.pack(f"{order}I", item) for item in value)
    return struct.pack(f"{order}IIQ", 9, kind, len(value)) + items
