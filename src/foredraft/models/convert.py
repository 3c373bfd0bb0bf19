"""A GGUF file, or a folder of pickled weights, as a Hugging Face folder of safetensors.

Promises: the folder loads here and in transformers to the same numbers as the source, and appears under its name when it is whole.
Refuses to know: how sources are read.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from foredraft.models.checkpoint import Checkpoint, check
from foredraft.models.decoder import Decoder
from foredraft.models.gguf import GgufCheckpoint
from foredraft.models.gguf_tokenizer import gguf_tokenizer
from foredraft.models.load import parse_config, stored_name
from foredraft.models.pickles import PickleCheckpoint
from foredraft.records import Record, read, reserved, whole_folder, write
from foredraft.shapes.absent import INDEX, SINGLE
from foredraft.shapes.config import read_config
from foredraft.shapes.families import prefixes
from foredraft.shapes.folder import TOKENIZER_FILES
from foredraft.shapes.gguf import is_gguf
from foredraft.shapes.gguf_config import generation_keys

RECORD = "conversion.json"
SHARD_BYTES = 5 * 10**9  # of a file of weights at most, as transformers writes them: what is in memory at once
_TOKENIZER = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.*",
)
_BESIDE = (*_TOKENIZER, "generation_config.json", "LICENSE*", "NOTICE*")
Progress = Callable[[str, int, int], object]


class Conversion(Record, frozen=True):
    """What a folder was converted from. `sha256`: of the source's weights; `dtype` None: as each tensor was stored."""

    source: str
    sha256: str
    dtype: str | None
    num_tensors: int
    num_values: int
    tokenizer: str | None = None


def convert(
    source: str | Path, out: str | Path, *, dtype: str | None = None, tokenizer: str | Path | None = None, force: bool = False,
    progress: Progress = lambda work, part, total: None,
) -> Conversion:  # fmt: skip
    """Write the model or draft head `source` as the folder `out`; the record of it lies there as conversion.json.

    `dtype`: bfloat16 by default of a GGUF file, as stored of a pickle. `tokenizer`: a folder whose tokenizer goes in place of the
    source's. A folder of the very same conversion is left as it is. Raises ValueError, one line, where `out` holds anything else
    (unless `force`, which replaces a model's folder), where another run writes it, and where the source cannot be read.
    """
    source, out = Path(source), Path(out)
    checkpoint = GgufCheckpoint(source) if is_gguf(source) else _pickles(source)
    dtype = dtype or ("bfloat16" if isinstance(checkpoint, GgufCheckpoint) else None)
    if tokenizer is not None and not any((Path(tokenizer) / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{tokenizer}: no tokenizer (has none of {', '.join(TOKENIZER_FILES)})")
    with reserved(out):
        conversion = Conversion(
            source=source.name, sha256=_sha256(checkpoint, progress), dtype=dtype, num_tensors=len(checkpoint.stored),
            num_values=sum(prod(stored.shape) for stored in checkpoint.stored.values()),
            tokenizer=None if tokenizer is None else str(tokenizer),
        )  # fmt: skip
        if _is_done(out, conversion, force):
            return conversion
        with whole_folder(out, replace=True, locked=True) as folder:
            _write(checkpoint, folder, dtype, tokenizer, progress)
            write(folder / RECORD, conversion)
    return conversion


def _pickles(source: Path) -> PickleCheckpoint:
    if not source.is_dir():
        what = "is no .gguf file" if source.is_file() else "no such file or folder"
        raise ValueError(f"{source}: {what}; give a GGUF file or a folder with pytorch_model.bin")
    read_config(source)
    return PickleCheckpoint(source)


def _sha256(checkpoint: Checkpoint, progress: Progress) -> str:
    """Of all bytes of the source's weight files, in their order."""
    digest, done, total = hashlib.sha256(), 0, sum(file.stat().st_size for file in checkpoint.files)
    for path in checkpoint.files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
                done += len(chunk)
                progress("hashing", done, total)
    return digest.hexdigest()


def _is_done(out: Path, conversion: Conversion, force: bool) -> bool:
    """Whether `out` is this conversion already. Raises ValueError where it holds anything that may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    before = read(Conversion, out / RECORD) if (out / RECORD).is_file() else None
    if before == conversion and not force:
        return True
    if not force:
        what = f"holds {before.source} as {before.dtype}" if before else "exists already"
        raise ValueError(f"{out}: {what}; choose another folder, or --force to replace it")
    if before is None and not (
        (out / "config.json").is_file() and any((out / name).is_file() for name in (SINGLE, INDEX))
    ):
        raise ValueError(f"{out}: is no model's folder, which --force does not replace; choose another folder")
    return False


def _write(
    checkpoint: Checkpoint, folder: Path, dtype: str | None, tokenizer: str | Path | None, progress: Progress
) -> None:
    if isinstance(checkpoint, GgufCheckpoint):
        _check_whole(checkpoint)
        write(folder / "config.json", checkpoint.keys | {"dtype": dtype})
        write(folder / "generation_config.json", generation_keys(checkpoint.file))
        if tokenizer is None:
            gguf_tokenizer(checkpoint.where).save_pretrained(folder)
    else:
        config = read_config(checkpoint.folder)
        write(folder / "config.json", config | ({"dtype": dtype, "torch_dtype": dtype} if dtype else {}))
        _copy(checkpoint.folder, folder, _BESIDE)
    if tokenizer is not None:
        _copy(Path(tokenizer), folder, _TOKENIZER)
    kind = None if dtype is None else getattr(torch, dtype)
    _write_weights(folder, _converted(checkpoint, kind, progress))


def _check_whole(checkpoint: GgufCheckpoint) -> None:
    """Raise ValueError unless the file holds exactly the tensors that its metadata calls for."""
    shape, model_config = parse_config(checkpoint.keys, checkpoint.where)
    with torch.device("meta"):
        decoder = Decoder(shape, model_config)
    prefix = prefixes(shape.family)[0]
    sizes = {stored_name(name, shape, prefix): tuple(weight.shape) for name, weight in decoder.named_parameters()}
    check(checkpoint, sizes, lambda name: False)


def _copy(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    for file in {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, folder / file.name)


def _converted(checkpoint: Checkpoint, dtype: torch.dtype | None, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by name in memory of its own; numbers that are no floats, such as a head's ids, stay as they are."""
    for i, name in enumerate(checkpoint.stored):
        tensor = checkpoint.tensor(name)
        to = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        yield name, tensor.to(to, copy=True).contiguous()
        progress("converting", i + 1, len(checkpoint.stored))


def _write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """One file, or shards with their index, in files of at most `SHARD_BYTES` (or one tensor)."""
    shards: list[dict[str, int]] = []
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        safetensors.torch.save_file(shard, folder / f"shard-{len(shards)}", {"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        shard[name] = tensor
    flush()
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    for i, name in enumerate(names):
        (folder / f"shard-{i}").rename(folder / name)
    if len(shards) > 1:
        placed = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = sum(size for tensors in shards for size in tensors.values())
        write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
