"""Hidden states that a serving engine wrote to files, and of the target its tables alone: for targets that nothing here can run.

A file is a safetensors file of one text, as vLLM's `extract_hidden_states` writes it and the speculators project keeps it (`hs_0.safetensors`,
…): `token_ids` [T] and `hidden_states` [T, n, W], the states of n layers by the index of the layer that they enter, as Hugging Face counts
them; the last one's, as many as there are layers, before the final norm, which is applied here.
Sources: vllm `example_hidden_states_connector.py`, speculators `train/data.py`, both of autumn 2026.

Promises: each window gets the states of its own documents, found by their tokens. Refuses to know: who wrote a file, and when.

Shapes: B windows, T tokens, n states of a token on file, W hidden size.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from foredraft.data.tokens import Batch, Packing
from foredraft.models.forward import Output
from foredraft.models.target import Target
from foredraft.records import with_hint
from foredraft.shapes.tensors import FLOATS, header_of
from foredraft.teacher.hidden_states import HiddenStates, runs
from foredraft.teacher.transformers_target import TransformersFolder, TransformersTarget, check_size, ends, loaded


class StateFolder(TransformersFolder):
    """A target of which `states` holds what a serving engine computed, `layers` by the index of each state, and `path` the checkpoint."""

    def __init__(self, path: str | Path, states: str | Path, layers: tuple[int, ...] | None = None) -> None:
        super().__init__(path)
        depth = self.shape.num_layers
        self.states, self.layers = Path(states), layers or (2, depth // 2, depth - 3, depth)
        if not self.states.is_dir():
            raise ValueError(
                f"{states}: no such folder; --teacher takes foredraft, transformers or a folder of hidden states"
            )
        if depth not in self.layers or not all(0 <= layer <= depth for layer in self.layers):
            raise ValueError(
                f"--state-layers {','.join(map(str, self.layers))}: states 0 to {depth} of {self.shape.name}, the last, {depth}, among them"
            )

    def load(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "TargetTables":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The tables alone. Raises ValueError where the checkpoint lacks one, or where the logits are not made of them."""
        check_size(self.path, self.shape.params - self.shape.non_embedding_params)
        model, lacking = loaded(self.path, dtype, cut_to_one_layer)
        parts = TransformersTarget(model.to(device), self.shape, self.config, self.path, layers=1)
        if parts.trunk_norm is None:
            raise ValueError(
                f"{self.path}: no final norm is seen at work in its model, so states from before it are of no use"
            )
        for module in (*ends(model)[:2], parts.trunk_norm):
            name = next(name for name, part in model.named_modules() if part is module)
            if absent := [key for key in lacking if key.rpartition(".")[0] == name]:
                raise ValueError(f"{self.path}: lacks tensor {absent[0]}; download it again")
        return TargetTables(parts)


class TargetTables(Target):
    """The embedding, final norm and LM head of a target that is not run."""

    def __init__(self, parts: TransformersTarget) -> None:
        super().__init__()
        self.shape, self.config, self.path = parts.shape, parts.config, parts.path
        self.embed_tokens, self.norm, self.trunk_norm = parts.embed_tokens, parts.norm, parts.trunk_norm
        self._head, self.logits_form = parts.head_weight_VC, parts.logits_form

    @property
    def head_weight_VC(self) -> Tensor:
        return self._head

    def forward(self, *_: Any, **__: Any) -> Output:
        """Raises ValueError: there is nothing to compute states with."""
        raise ValueError(f"{self.path}: is not run here; its hidden states are on file")


def cut_to_one_layer(config: Any) -> None:
    """Leave the trunk one layer, in full precision: all that finds out how the two ends work."""
    text = config.get_text_config()
    depth = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(text, name, value[:1])
    text.num_hidden_layers = 1
    for part in (config, text):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


_OTHERS = (
    (".zst", "packed by vLLM's online connector", "unpack them (zstd -d --rm *.zst), or leave use_compression out"),
    (".pt", "pickles, the first format of speculators", "have the states written again, as docs/guides/train.md says"),
)


class StatePlace(NamedTuple):
    """Where a window begins in a token folder."""

    packing: Packing
    start: int


class StateFiles:
    """A `HiddenStateSource` of windows of `packings`: the states `layers`, and the final one, of the target's files.

    Raises ValueError, before anything is trained, where a document of the windows that are read has no file, where a file has another
    number of states or another width, or where `layers` are not among those on file.
    """

    def __init__(
        self, folder: StateFolder, target: TargetTables, layers: Sequence[int], read: Iterable[tuple[Packing, int]]
    ) -> None:
        self.folder, self.target, self.layers = folder, target, tuple(layers)
        absent = [layer for layer in self.layers if layer not in folder.layers]
        if absent:
            raise with_hint(
                ValueError(
                    f"{folder.states}: holds states {list(folder.layers)}, and the head reads {list(self.layers)}"
                ),
                f'"feature_layers": {[i for i in folder.layers if i != folder.shape.num_layers]} in the recipe\'s model, or --state-layers',
            )
        self._columns = [folder.layers.index(layer) for layer in self.layers]
        self._last, self._files = folder.layers.index(folder.shape.num_layers), _by_tokens(folder)
        self._places: dict[bytes, StatePlace] = {}
        for packing, windows in read:
            self._add(packing, windows)

    def __call__(self, batch: Batch) -> HiddenStates:
        device, dtype = batch.tokens_BT.device, self.target.dtype
        states_BTnW = torch.zeros(
            *batch.tokens_BT.shape, len(self.folder.layers), self.folder.shape.hidden_size, dtype=dtype
        )
        keys = _keys(batch)
        for row, start, length in runs(batch.documents_BT):
            place = self._places[keys[row]]
            document, begin = _document_at(place.packing, place.start + start)
            part = self._read(self._file(place.packing, document), begin, begin + length).to(dtype)
            states_BTnW[row, start : start + len(part)] = part
        states_BTnW = states_BTnW.to(device)
        assert self.target.trunk_norm is not None, "it was seen at work"
        with torch.no_grad():
            final_BTW = self.target.trunk_norm(states_BTnW[:, :, self._last])
        parts = [final_BTW if i == self._last else states_BTnW[:, :, i] for i in self._columns]
        return HiddenStates(torch.cat(parts, -1), final_BTW)

    def _add(self, packing: Packing, windows: int) -> None:
        lacking, documents = [], set[int]()
        for sample in range(min(windows, len(packing))):
            start = int(packing.windows(sample, 1)[0]) * packing.length
            self._places[_keys(packing.batch(sample, 1))[0]] = StatePlace(packing, start)
            first, last = (_document_at(packing, place)[0] for place in (start, start + packing.length - 1))
            documents |= set(range(first, last + 1))
        for document in sorted(documents):
            if self._file(packing, document) is None:
                lacking.append(document)
        if lacking:
            raise ValueError(
                f"{self.folder.states}: holds no states of {len(lacking):,} of the {len(documents):,} documents of {packing.folder.path} "
                f"that are read, the first of them document {lacking[0]}"
            )

    def _file(self, packing: Packing, document: int) -> Path | None:
        """Of a document's tokens, or of these without its end token, whose state predicts nothing of the document."""
        tokens = packing.folder.document(document)[0]
        return self._files.get(_digest(tokens)) or self._files.get(_digest(tokens[:-1]))

    def _read(self, path: Path | None, start: int, stop: int) -> Tensor:
        assert path is not None, "every document was found before"
        with safe_open(path, framework="pt") as file:
            states_TnW: Tensor = file.get_slice("hidden_states")[start:stop].clone()
        if not bool(states_TnW.isfinite().all()):
            raise ValueError(f"{path}: holds hidden states that are not finite; have the engine write it again")
        return states_TnW


def _by_tokens(folder: StateFolder) -> dict[bytes, Path]:
    """The files of a folder by a digest of their tokens."""
    files, width = {}, (len(folder.layers), folder.shape.hidden_size)
    for path in sorted(folder.states.rglob("*.safetensors")):
        entries, _ = header_of(path)
        if lacking := [name for name in ("token_ids", "hidden_states") if name not in entries]:
            holds = ", ".join(sorted(entries)[:4]) or "nothing"
            raise ValueError(f"{path}: no file of hidden states (it lacks {' and '.join(lacking)}, and holds {holds})")
        kinds = [entries[name]["dtype"] for name in ("token_ids", "hidden_states")]
        if kinds[0] not in ("I64", "I32") or kinds[1] not in FLOATS or len(entries["token_ids"]["shape"]) != 1:
            raise ValueError(
                f"{path}: token_ids {kinds[0]} {entries['token_ids']['shape']} and hidden_states {kinds[1]}, "
                f"not integers [tokens] and {', '.join(FLOATS)}"
            )
        with safe_open(path, framework="pt") as file:
            tokens: Tensor = file.get_tensor("token_ids").clone()
        states = tuple(entries["hidden_states"]["shape"])
        if states != (len(tokens), *width):
            raise ValueError(
                f"{path}: hidden_states is {list(states)}, not [tokens {len(tokens)}, states {width[0]}, width {width[1]}]; "
                f"name the states on file with --state-layers"
            )
        files[_digest(tokens.numpy())] = path
    if not files:
        others = {path.suffix for path in folder.states.rglob("*.*")}
        more, hint = next(
            ((f"; its {ending} files are {what}", hint) for ending, what, hint in _OTHERS if ending in others), ("", "")
        )
        error = ValueError(f"{folder.states}: holds no safetensors files of hidden states{more}")
        raise with_hint(error, hint) if hint else error
    return files


def _document_at(packing: Packing, place: int) -> tuple[int, int]:
    """The document in which a token of the folder lies, and its place there."""
    document = int(np.searchsorted(packing.folder.offsets, place, side="right")) - 1
    return document, place - int(packing.folder.offsets[document])


def _digest(tokens: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).digest()


def _keys(batch: Batch) -> list[bytes]:
    """A digest of each window's tokens, and of where its documents begin."""
    parts = (part.cpu().numpy() for part in (batch.tokens_BT, batch.documents_BT))
    return [_digest(np.concatenate((ids, documents))) for ids, documents in zip(*parts, strict=True)]
