"""Reading safetensors: one file or shards, checked by name, shape and type before a module takes them.

Promises: a module is filled completely or not at all, and what is wrong is one line with the file and the tensor.
Refuses to know: pickle (loading one can run code), what the tensors mean.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from foredraft.models import pages
from foredraft.models.eight_bits import EightBits
from foredraft.models.four_bits import unpacked
from foredraft.models.linear import Linear
from foredraft.shapes.absent import INDEX, SINGLE, missing_weights
from foredraft.shapes.quantised import PACKED
from foredraft.shapes.tensors import FLOATS, SCALE, StoredTensor, in_words, layer_of, sharded


class TensorError(ValueError):
    """What is wrong with a tensor, with its file and name."""


class Checkpoint:
    """The tensors of a folder, by name. Only headers are read until a tensor is asked for. `config`: where its sizes stand. `scales`: of the
    tensors that are stored in eight bits or in four (`packed`), by their names on file.
    """

    config = "config.json"
    scales: Mapping[str, StoredTensor] = {}
    packed: Mapping[str, StoredTensor] = {}

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        single, index = self.folder / SINGLE, self.folder / INDEX
        if problem := missing_weights(self.folder):
            raise problem
        if single.is_file():
            self.where, self.stored = single, _header(single)
        elif index.is_file():
            self.where, self.stored = index, sharded(index, _header)
        else:
            raise ValueError(f"{self.folder}: holds no weights")
        self.packed = in_words(self.stored)
        eight = [name for name, each in self.stored.items() if each.kind == "I8" and name + SCALE in self.stored]
        self.scales = {name: self.stored.pop(name + SCALE) for name in (*eight, *self.packed)}
        for name, scale in self.scales.items():
            rows, *size = self.stored[name].shape
            groups = [n for n in range(1, size[0] + 1) if size[0] % n == 0] if name in self.packed else [1]
            if scale.kind not in FLOATS or scale.shape not in ((rows,), *((rows, n) for n in groups)):
                each = "group of a row" if name in self.packed else "row"
                raise TensorError(f"{scale.file}: tensor {name}{SCALE} must hold a number for each {each} of {name}")

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({tensor.file for tensor in self.stored.values()})

    def tensor(self, name: str) -> Tensor:
        return self.read(name, name)

    def read(self, name: str, on_file: str) -> Tensor:
        """The tensor `name`, which its file calls `on_file`."""
        if eight := self.eight_bits(name):
            return eight.weight
        return _tensor(self.stored[name], on_file)

    def eight_bits(self, name: str) -> EightBits | None:
        """The tensor `name` as it is stored, where that is in eight bits, or in four."""
        on_file = self.spelled(name)
        if (scale := self.scales.get(on_file)) is None:
            return None
        if words := self.packed.get(on_file):
            return EightBits.of(unpacked(_tensor(words, on_file + PACKED), _tensor(scale, on_file + SCALE)))
        values = _tensor(self.stored[name], on_file)
        return EightBits(values.clone(), _tensor(scale, on_file + SCALE).float().flatten().clone())

    def spelled(self, name: str) -> str:
        """A tensor's name as its file writes it."""
        return name

    def check_depth(self, num_layers: int) -> None:
        """Raise ValueError where the config has layers of which nothing is on file: before so many are built."""
        depth = 1 + max(map(layer_of, self.stored), default=-1)
        if depth < num_layers:
            raise ValueError(
                f"{self.where}: holds {depth:,} layers, but {self.config} has {num_layers:,}; download it again, or mend num_hidden_layers"
            )

    def fail(self, name: str, problem: str) -> TensorError:
        where = self.stored[name].file if name in self.stored else self.where
        return TensorError(f"{where}: tensor {self.spelled(name)} {problem}")


def _tensor(stored: StoredTensor, on_file: str) -> Tensor:
    with _opened(stored.file, on_file) as file:
        return file.get_tensor(on_file)


@contextmanager
def _opened(path: Path, name: str = "") -> Iterator[Any]:
    about = f" at tensor {name}" if name else ""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: truncated or corrupt{about} ({reason}); download or save it again") from None


def _header(path: Path) -> dict[str, StoredTensor]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
        return {name: StoredTensor(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def check(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], ignore: Callable[[str], bool]) -> None:
    """Raise unless the folder holds exactly the tensors `shapes` (name to shape), but for names that `ignore` excuses."""
    missing = [name for name in shapes if name not in checkpoint.stored]
    if missing:
        raise ValueError(f"{checkpoint.where}: lacks tensor {_first([*map(checkpoint.spelled, missing)])}")
    unexpected = [name for name in checkpoint.stored if name not in shapes and not ignore(name)]
    if unexpected:
        where = checkpoint.stored[unexpected[0]].file
        raise ValueError(
            f"{where}: unexpected tensor {_first([*map(checkpoint.spelled, unexpected)])}; {checkpoint.config} describes another model"
        )
    for name, shape in shapes.items():
        stored = checkpoint.stored[name]
        if stored.kind not in FLOATS and checkpoint.spelled(name) not in checkpoint.scales:
            raise checkpoint.fail(name, f"is {stored.kind}; weights must be {', '.join(FLOATS)}")
        if stored.shape != shape:
            raise checkpoint.fail(name, f"is {list(stored.shape)}, but {checkpoint.config} makes it {list(shape)}")


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    name_of: Callable[[str], str],
    ignore: Callable[[str], bool],
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give every parameter of `module`, built on the meta device, its tensor; `name_of` is a parameter's name on file."""
    names = {name: name_of(name) for name, _ in module.named_parameters()}
    shapes = {names[name]: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    check(checkpoint, shapes, ignore)
    # In memory of their own: what safetensors gives may be a view into the file, which can change or vanish.
    rooms = pages.zeros([shapes[stored] for stored in names.values()], dtype, device)
    state = {name: room.copy_(checkpoint.tensor(names[name])) for name, room in zip(names, rooms, strict=True)}
    module.load_state_dict(module.state_dict() | state, strict=True, assign=True)
    for name, part in module.named_modules():
        if isinstance(part, Linear):
            part.stored_eight = checkpoint.eight_bits(names[f"{name}.weight"])
