"""A GGUF file's header: its metadata, and where its tensors lie and in which format.

Promises: the header alone is read, in a moment, however long the vocabulary; a file that is none, of another byte order, one part of
several, cut off or in a format that cannot be read is one line that names the file and the remedy. Refuses to know: what the metadata
means, how blocks of values are unpacked. Source: docs/gguf.md of ggml, versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.records import is_file, with_hint

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9

# By number: name, values per block, bytes per block. All that the gguf package (0.19) turns into floats.
FORMATS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


class GgufTensor(NamedTuple):
    """A tensor as the header describes it: `shape` as torch writes it, `start` in bytes from the beginning of the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class _Array(NamedTuple):
    """A list in the metadata, read when it is asked for."""

    kind: int
    length: int
    start: int


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, by its ending; a folder is none."""
    return str(path).endswith(".gguf") and not Path(path).is_dir()


class GgufFile:
    """The header of the file at `path`. Raises ValueError, one line, where it cannot be a model's."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not is_file(path):
            raise ValueError(f"{path}: no such file")
        self._bytes = _mapped(self.path)
        self._at = 4
        num_tensors, num_keys = self._begin()
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        self._refuse_parts()
        self.tensors = self._tensors(num_tensors)

    @cached_property
    def architecture(self) -> str:
        return str(self.need("general.architecture"))

    def need(self, key: str) -> Any:
        """A key of the metadata. Raises ValueError where it is missing."""
        if self.metadata.get(key) is None:
            raise self.fail(f"the metadata lacks {key}; convert the model to GGUF again")
        return self.metadata[key]

    def setting(self, key: str, default: Any = None) -> Any:
        """A key of the architecture's own part of the metadata."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def entries(self, key: str) -> list[Any]:
        """A list of the metadata, empty where it is missing."""
        array = self.metadata.get(key)
        if array is None:
            return []
        if not isinstance(array, _Array):
            raise self.fail(f"{key} is no list; convert the model to GGUF again")
        self._at = array.start
        if array.kind == _STRING:
            return [self._string() for _ in range(array.length)]
        return self._numbers(array.kind, array.length)

    def values(self, name: str) -> memoryview:
        """The bytes of a tensor, a view into the file."""
        tensor = self.tensors[name]
        return memoryview(self._bytes)[tensor.start : tensor.start + tensor.size]

    def fail(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {problem}")

    def _begin(self) -> tuple[int, int]:
        """How many tensors and keys follow."""
        start = bytes(self._bytes[:4])
        if start != MAGIC:
            raise self.fail(f"not a GGUF file (it begins with {start!r}); download it again")
        version = self._number("I")
        if version & 0xFFFF == 0 and version:
            raise self.fail("big-endian; convert the model to GGUF again without --bigendian")
        if version not in VERSIONS:
            raise self.fail(f"GGUF version {version} (have 2 and 3); convert the model to GGUF again")
        return self._number("Q"), self._number("Q")

    def _refuse_parts(self) -> None:
        parts = self.metadata.get("split.count") or 1
        if parts > 1:
            part = int(self.metadata.get("split.no") or 0) + 1
            error = self.fail(f"part {part} of {parts}; merge the parts into one file")
            raise with_hint(error, "llama-gguf-split --merge FIRST-PART.gguf MERGED.gguf, then give MERGED.gguf")

    def _tensors(self, count: int) -> Mapping[str, GgufTensor]:
        table = [self._tensor_entry() for _ in range(count)]
        alignment = int(self.metadata.get("general.alignment") or ALIGNMENT)
        begin = -(-self._at // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in table:
            if kind not in FORMATS:
                have = ", ".join(name for name, *_ in FORMATS.values())
                raise self.fail(f"tensor {name} is of format {kind}, which cannot be read (have {have})")
            _, values, size = FORMATS[kind]
            if not shape or shape[-1] % values:
                raise self.fail(
                    f"tensor {name} is {list(shape)}, whose rows are no whole blocks; download the file again"
                )
            tensors[name] = GgufTensor(kind, shape, begin + offset, prod(shape) // values * size)
            if begin + offset + tensors[name].size > len(self._bytes):
                raise self._cut(f"tensor {name} ends at byte {begin + offset + tensors[name].size:,}")
        return tensors

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self._string(), self._number("I")
        dims = [self._number("Q") for _ in range(num_dims)]
        return name, tuple(reversed(dims)), self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skipped()
        return self._numbers(kind, 1)[0]

    def _skipped(self) -> _Array:
        array = _Array(self._number("I"), self._number("Q"), 0)
        array = array._replace(start=self._at)
        if array.kind == _STRING:
            for _ in range(array.length):
                self._take(self._number("Q"))
        else:
            self._take(array.length * struct.calcsize(f"<{self._letter(array.kind)}"))
        return array

    def _numbers(self, kind: int, count: int) -> list[Any]:
        form = f"<{count}{self._letter(kind)}"
        numbers = struct.unpack(form, self._take(struct.calcsize(form)))
        return [shortest(number) for number in numbers] if kind == _FLOAT else [*numbers]

    def _letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.fail(f"the metadata holds a value of type {kind}, which cannot be read; download the file again")
        return _SCALARS[kind]

    def _number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _string(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise self.fail(f"a text before byte {self._at:,} is not UTF-8; download the file again") from None

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            raise self._cut("its header does not end")
        return self._bytes[start : self._at]

    def _cut(self, why: str) -> ValueError:
        return self.fail(f"truncated: {why}, the file at byte {len(self._bytes):,}; download it again")


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The file in memory as far as it is read; an empty one cannot be mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def shortest(number: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    if not -3e38 < number < 3e38:
        return number
    single = struct.pack("<f", number)
    digits = (float(f"{number:.{places}g}") for places in range(1, 10))
    return next((value for value in digits if struct.pack("<f", value) == single), number)
