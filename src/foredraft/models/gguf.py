"""The tensors of a GGUF file under the names and in the layout of a Hugging Face checkpoint.

Promises: the numbers of the gguf package's dequantisation, row for row those that were there before llama.cpp reordered queries and keys;
one tensor at a time is read. Refuses to know: the header (`shapes.gguf`), the config (`shapes.gguf_config`).
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foredraft.models.checkpoint import Checkpoint
from foredraft.records import with_hint
from foredraft.shapes.gguf import FORMATS, GgufFile
from foredraft.shapes.gguf_config import ROPE_FACTORS, config_of
from foredraft.shapes.tensors import StoredTensor

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_TURNED = re.compile(r"self_attn\.([qk])_proj\.(weight|bias)$")
_SPARE = (ROPE_FACTORS, "rope_freqs")  # the config holds them


class GgufCheckpoint(Checkpoint):
    """The tensors of the file at `path`, as float32. Raises ValueError, one line, where the file is none that can be read."""

    config = "its metadata"

    def __init__(self, path: str | Path) -> None:
        self.file, self.where = GgufFile(path), Path(path)
        self.folder = self.where.parent
        self.keys = config_of(self.file)
        self._names = {_name(self.file, name): name for name in self.file.tensors if name not in _SPARE}
        self.stored = {
            ours: StoredTensor(self.where, "F32", self.file.tensors[name].shape) for ours, name in self._names.items()
        }

    def tensor(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self._values(self._names[name]))
        turned = _TURNED.search(name)
        if turned is None or self.file.architecture != "llama":
            return tensor
        return _unturned(tensor, self.keys["num_attention_heads" if turned[1] == "q" else "num_key_value_heads"])

    def spelled(self, name: str) -> str:
        """The name in the file of a tensor that it may lack."""
        part, _, end = name.rpartition(".")
        whole = {ours: theirs for theirs, ours in _WHOLE.items()}.get(part)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", part)
        inner = {ours: theirs for theirs, ours in _LAYER.items()}.get(layer[2]) if layer else None
        return f"{whole}.{end}" if whole else f"blk.{layer[1]}.{inner}.{end}" if layer and inner else name

    def _values(self, name: str) -> np.ndarray:
        """A tensor of the file, dequantised, float32."""
        tensor, values = self.file.tensors[name], self.file.values(name)
        kind, per_block, block_bytes = FORMATS[tensor.kind]
        if kind == "F32":
            return np.frombuffer(values, np.float32).reshape(tensor.shape).copy()
        if kind == "F16":
            return np.frombuffer(values, np.float16).astype(np.float32).reshape(tensor.shape)
        rows = np.frombuffer(values, np.uint8).reshape(*tensor.shape[:-1], tensor.shape[-1] // per_block * block_bytes)
        return _dequantised(rows, tensor.kind)


def _dequantised(rows: np.ndarray, kind: int) -> np.ndarray:
    """Rows of blocks as rows of float32, by the gguf package."""
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        error = ModuleNotFoundError("quantised GGUF files need the gguf package, which is not installed")
        raise with_hint(error, "pip install 'foredraft[full]'") from None
    return dequantize(rows, GGMLQuantizationType(kind))


def _name(file: GgufFile, name: str) -> str:
    """The name of one of the file's tensors in a Hugging Face checkpoint."""
    if layer := _IN_LAYER.fullmatch(name):
        if layer[2] in _LAYER:
            return f"model.layers.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"
    else:
        part, _, end = name.rpartition(".")
        if part in _WHOLE and end in ("weight", "bias"):
            return f"{_WHOLE[part]}.{end}"
    raise file.fail(
        f"tensor {name} belongs to no plain {file.architecture} model; give its original Hugging Face folder"
    )


def _unturned(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows as Hugging Face has them: llama.cpp turns neighbouring rows of a Llama's head together, they turn halves."""
    pairs = tensor.unflatten(0, (num_heads, -1, 2))
    return pairs.transpose(1, 2).reshape(tensor.shape)
