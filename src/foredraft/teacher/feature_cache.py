"""A target's features on disk, for runs that see the same windows many times, or where the target itself has no room.

A cached token takes F + W values: for EAGLE-3 on a target of width 4,096, 4 × 4,096 × 2 bytes in bfloat16 are 32 KiB, so
64 k tokens are 2 GiB. The size is told, and checked against the disk, before anything is written.

Windows are found by what they hold (a digest of tokens and documents), so a cache cannot serve another text's features.

Promises: what is read, from mapped files, is what the target said, in the type it was written; a write that was stopped
goes on from its last whole batch. Refuses to know: heads, losses.

Shapes: B windows, T tokens, F width of all streams together (0 where the final state is the only one), W the target's
hidden size.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from foredraft.data.tokens import Batch, Packing
from foredraft.models.decoder import Decoder
from foredraft.records import Record, read, require, write
from foredraft.teacher.features import Features, Online

VALUES, KEYS, CACHE = "features.bin", "keys.bin", "cache.json"
KEY_BYTES = 16
SPARE_BYTES = 2**20  # that the disk keeps
STORED = {"bfloat16": np.dtype(np.int16), "float32": np.dtype(np.float32)}  # numpy has no bfloat16: its bits are kept


class FeatureSet(Record, frozen=True):
    """What a cache holds: `done` of `windows` windows of `length` tokens. `target` is a digest of its weights."""

    windows: int
    length: int
    streams_width: int
    final_width: int
    dtype: str
    feature_layers: tuple[int, ...]
    within_documents: bool
    target: str
    done: int = 0

    def __post_init__(self) -> None:
        require(self, positive=("windows", "length", "final_width"), non_negative=("streams_width", "done"))
        if self.dtype not in STORED:
            raise ValueError(f"dtype must be one of {', '.join(STORED)}, got {self.dtype!r}")

    @property
    def width(self) -> int:
        return self.streams_width + self.final_width

    @property
    def num_bytes(self) -> int:
        """Of the whole set on disk."""
        return self.windows * (self.length * self.width * STORED[self.dtype].itemsize + KEY_BYTES)


def planned(
    target: Decoder,
    packing: Packing,
    feature_layers: tuple[int, ...],
    windows: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    within_documents: bool = False,
) -> FeatureSet:
    """The set of the first `windows` samples of `packing`; its `num_bytes` are what `write_features` will write."""
    if not 1 <= windows <= len(packing):
        raise ValueError(f"windows must lie in 1…{len(packing)}, what {packing.folder.path} holds; got {windows}")
    width, alone = target.shape.hidden_size, feature_layers == (target.shape.num_layers,)
    return FeatureSet(
        windows=windows, length=packing.length, streams_width=0 if alone else len(feature_layers) * width,
        final_width=width, dtype=str(dtype).removeprefix("torch."), feature_layers=feature_layers,
        within_documents=within_documents, target=fingerprint(target),
    )  # fmt: skip


def fingerprint(target: Decoder) -> str:
    """A digest of the first values of every weight, in float32."""
    found = hashlib.sha256()
    for name, parameter in target.named_parameters():
        found.update(name.encode() + parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:KEY_BYTES]


def write_features(
    folder: str | Path,
    plan: FeatureSet,
    target: Decoder,
    packing: Packing,
    *,
    say: Callable[[str], object],
    batch: int = 8,
) -> None:
    """Write the set into `folder`, going on where an earlier call stopped; `say` is told the size first.

    Raises ValueError, with nothing written, where the disk lacks the room or the folder holds another set.
    """
    folder = Path(folder)
    done = _done(folder, plan)
    rest = plan.num_bytes * (plan.windows - done) // plan.windows
    say(f"{folder}: {plan.num_bytes:,} bytes of features for {plan.windows * plan.length:,} tokens, {rest:,} to write")
    _check_room(folder, rest)
    source = Online(target, plan.feature_layers, within_documents=plan.within_documents)
    for first in range(done, plan.windows, batch):
        count = min(batch, plan.windows - first)
        windows = Batch(*(part.to(target.device) for part in packing.batch(first, count)))
        found = source(windows)
        parts = (found.final_BTW,) if not plan.streams_width else found
        _put(folder / VALUES, first * plan.length * plan.width, _bits(torch.cat(parts, -1), plan.dtype))
        _put(folder / KEYS, first * KEY_BYTES, np.frombuffer(b"".join(digests(windows)), np.uint8))
        write(folder / CACHE, msgspec.structs.replace(plan, done=first + count))


def _done(folder: Path, plan: FeatureSet) -> int:
    """How many windows of the set are there already."""
    if not (folder / CACHE).is_file():
        return 0
    there = read(FeatureSet, folder / CACHE)
    if msgspec.structs.replace(there, done=0) != plan:
        raise ValueError(f"{folder}: holds features of another target, text or setting; choose another folder")
    return there.done


def _check_room(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes + SPARE_BYTES > free:
        raise ValueError(
            f"{folder}: {num_bytes:,} bytes of features do not fit the {free:,} free there; cache fewer windows, or compute features online"
        )


def _put(path: Path, at: int, values: np.ndarray[Any, Any]) -> None:
    """Write at the item `at`. By the file, not a map: a full disk is an OSError here, the end of the process there."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(at * values.itemsize)
        file.write(values.tobytes())


def _bits(values: Tensor, dtype: str) -> np.ndarray[Any, Any]:
    values = values.to(getattr(torch, dtype)).cpu().contiguous()
    return (values.view(torch.int16) if dtype == "bfloat16" else values).numpy()


def digests(batch: Batch) -> list[bytes]:
    """What each window holds, in KEY_BYTES bytes: its tokens, and where its documents begin."""
    tokens, documents = batch.tokens_BT.cpu().numpy(), batch.documents_BT.cpu().numpy()
    return [
        hashlib.blake2b(ids.tobytes() + places.tobytes(), digest_size=KEY_BYTES).digest()
        for ids, places in zip(tokens, documents, strict=True)
    ]


class CachedFeatures:
    """A `FeatureSource` that reads whole caches; their files are mapped, a batch is copied from them."""

    def __init__(self, target: Decoder, *folders: str | Path) -> None:
        """Raises ValueError where a folder holds no whole set, or another target's."""
        self.folders, self._values, self._rows = folders, [], {}
        for number, folder in enumerate(map(Path, folders)):
            held = _whole_set(folder, target)
            shape = (held.windows, held.length, held.width)
            self._values.append(np.memmap(folder / VALUES, STORED[held.dtype], "r", shape=shape))
            keys = (folder / KEYS).read_bytes()
            self._rows |= {keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]: (number, i) for i in range(held.windows)}
            self.dtype, self.streams_width = held.dtype, held.streams_width

    def __call__(self, batch: Batch) -> Features:
        found = torch.from_numpy(np.stack([self._window(key) for key in digests(batch)]))
        values = (found.view(torch.bfloat16) if self.dtype == "bfloat16" else found).to(batch.tokens_BT.device)
        final = values[..., self.streams_width :]
        return Features(values[..., : self.streams_width] if self.streams_width else final, final)

    def _window(self, key: bytes) -> np.ndarray[Any, Any]:
        if key not in self._rows:
            raise ValueError(f"{self.folders[0]}: holds no features of a window of the batch; cache that data too")
        number, row = self._rows[key]
        return self._values[number][row]


def _whole_set(folder: Path, target: Decoder) -> FeatureSet:
    if not (folder / CACHE).is_file():
        raise ValueError(f"{folder}: no features ({CACHE} is missing); write them first")
    held = read(FeatureSet, folder / CACHE)
    if held.done < held.windows:
        raise ValueError(f"{folder}: {held.done} of {held.windows} windows are there; finish writing them")
    if held.target != fingerprint(target):
        raise ValueError(f"{folder}: features of another target than {target.shape.name}; write them anew")
    return held
