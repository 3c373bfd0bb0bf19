"""The tensors of safetensors files without any framework: what headers say of them, and their values as arrays.

Promises: only headers are read until a value is asked for; a file that is not whole is one line that names it. Refuses to know: what the
tensors mean.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.records import no_file, other_than_file, parse_loosely, read_json
from foredraft.shapes.absent import INDEX, SINGLE, missing_weights
from foredraft.shapes.quantised import PACKED

FLOATS = ("F32", "F16", "BF16")
SCALE, SHAPE = "_scale", "_shape"  # what compressed-tensors adds to the name of a matrix in few bits, beside `PACKED`
PER_WORD = 8  # numbers of four bits
# Bytes of a value by its type on file, and how numpy reads it; bfloat16 and types of a byte as the integers that hold their bits.
KINDS: dict[str, tuple[float, str]] = {
    "F64": (8, "<f8"), "F32": (4, "<f4"), "F16": (2, "<f2"), "BF16": (2, "<u2"), "I64": (8, "<i8"), "I32": (4, "<i4"), "I16": (2, "<i2"),
    "I8": (1, "i1"), "U64": (8, "<u8"), "U32": (4, "<u4"), "U16": (2, "<u2"), "U8": (1, "u1"), "BOOL": (1, "?"), "F8_E4M3": (1, "u1"),
    "F8_E5M2": (1, "u1"), "F8_E8M0": (1, "u1"), "F4": (0.5, "u1"),
}  # fmt: skip
MOST_HEADER = 10**8  # bytes, as safetensors itself allows
# What other trainers and older versions call some tensors of heads.
ALIASES = {
    "midlayer.": "layers.0.", "transformer.": "layers.0.", "fusion_fc.": "fc.", "midlayers.": "layers.",
    "aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2.",
}  # fmt: skip


LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class StoredTensor(NamedTuple):
    """Where a tensor lies and what its file's header says of it; `kind` as safetensors spells it: F32, BF16, I64, …"""

    file: Path
    kind: str
    shape: tuple[int, ...]


def in_words(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Take the words of matrices in four bits, and their sizes, out of `stored`, put the matrices there by their own names, and give the words
    by these. Raises ValueError on words that are no matrix.
    """
    names = [name.removesuffix(PACKED) for name in stored if name.endswith(PACKED)]
    words = {name: stored.pop(name + PACKED) for name in names if name + SCALE in stored}
    for name, (file, kind, shape) in words.items():
        stored.pop(name + SHAPE, None)
        if kind != "I32" or len(shape) != 2:
            raise ValueError(f"{file}: tensor {name}{PACKED} is {kind} {list(shape)}; it must be I32 of two sizes")
        stored[name] = StoredTensor(file, "I4", (shape[0], PER_WORD * shape[1]))
    return words


class TensorFolder:
    """The tensors of a folder by name: their headers, and their values. Raises ValueError, one line, where there are none or a file is not whole."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        single, index = self.folder / SINGLE, self.folder / INDEX
        if problem := missing_weights(self.folder):
            raise problem
        self._offsets: dict[str, int] = {}
        if single.is_file():
            self.stored = self._header(single)
        elif index.is_file():
            self.stored = sharded(index, self._header)
        else:
            raise ValueError(f"{self.folder}: holds no weights")
        in_words(self.stored)

    def array(self, name: str) -> NDArray[Any]:
        """Its values; of bfloat16 as float32, of types that numpy lacks their bits."""
        file, kind, shape = self.stored[name]
        size, code = KINDS[kind]
        count = int(math.prod(shape) * size) // np.dtype(code).itemsize
        values = np.fromfile(file, code, count, offset=self._offsets[name])
        if kind == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(shape) if len(values) == math.prod(shape) else values

    def _header(self, path: Path) -> dict[str, StoredTensor]:
        entries, begin = header_of(path)
        self._offsets |= {name: begin + entry["data_offsets"][0] for name, entry in entries.items()}
        return {name: StoredTensor(path, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def header_of(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The entries of a file's header, and where its values begin. Raises ValueError where the file is not whole, or something else is there."""
    if what := other_than_file(path):
        raise no_file(path, what)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(MOST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = parse_loosely(file.read(length))
        entries.pop("__metadata__", None)
        end = max((_end_of(name, entry) for name, entry in entries.items()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes where the header asks for {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path}: truncated or corrupt ({reason}); download or save it again") from None
    return entries, 8 + length


def _end_of(name: str, entry: dict[str, Any]) -> int:
    """Where a tensor's values end, once its entry agrees with itself."""
    first, last = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(part) is int and part >= 0 for part in (*shape, first, last)):
        raise ValueError(f"tensor {name}: sizes {shape}, offsets {first}, {last}")
    if entry["dtype"] not in KINDS:
        raise ValueError(f"tensor {name}: of unknown type {entry['dtype']!r:.40}")
    if last - first != math.prod(shape) * KINDS[entry["dtype"]][0]:
        raise ValueError(f"tensor {name}: {last - first} bytes for {entry['dtype']} {shape}")
    return last


def sharded(index: Path, tensors_in: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """The index's tensors, once every shard is there and holds, as `tensors_in` reads it, what the index places in it."""
    try:
        placed = read_json(index)["weight_map"]
        shards = sorted({str(shard) for shard in placed.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: no usable weight_map ({type(error).__name__}: {error})") from None
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        stored |= tensors_in(_shard(index, shard))
    for name, shard in placed.items():
        if name not in stored or stored[name].file.name != shard:
            raise ValueError(f"{index.parent / shard}: lacks tensor {name}, though {index.name} places it there")
    return stored


def _shard(index: Path, shard: str) -> Path:
    if Path(shard).name != shard:
        raise ValueError(f"{index}: shard {shard!r} must be the name of a file in the same folder")
    if not (index.parent / shard).is_file():
        raise ValueError(
            f"{index.parent / shard}: no such file, though {index.name} names it; download the missing shard"
        )
    return index.parent / shard


def canonical(name: str) -> str:
    """A head's tensor as loaders name it inside."""
    name = name.removeprefix("model.")
    for old, new in ALIASES.items():
        name = re.sub(rf"^{re.escape(old)}", new, name)
    return name


def layer_of(name: str) -> int:
    """The layer that a tensor belongs to, by the name that a loader has for it; -1 for none."""
    match = LAYER.search(name)
    return int(match[1]) if match else -1


def table_name(stored: Mapping[str, StoredTensor], name: str, rows: int) -> str | None:
    """The language model's table of that name, wherever its checkpoint hangs it; the outermost of several, None without one."""
    names = [
        on_file
        for on_file, tensor in stored.items()
        if f".{on_file}".endswith(f".{name}")
        and len(tensor.shape) == 2
        and tensor.shape[0] == rows
        and tensor.kind in FLOATS
    ]
    return min(names, key=len) if names else None
