"""What a frozen target said of texts, on disk: hidden states for training and measuring, answers, perplexities.

A cached token takes W values a state: for EAGLE-3 on a target of width 4,096, 4 × 4,096 × 2 bytes in bfloat16 are 32 KiB, so
64 k tokens are 2 GiB. What training will need is told and checked against the disk before anything is written.

A file holds one answer to one question, and its name is a digest of the question: the target's weights and type, the text,
the settings. So no text is served another's hidden states, and a write that was stopped goes on where it was. Of hidden states
a file is one state of one window: heads that read other states of the same text share those they have in common.

Promises: a file appears whole or not at all; what is read is what the target said, in its type. Refuses to know: drafts, losses.

Shapes: B windows, T tokens, F width of all auxiliary hidden states together, W the target's hidden size, D texts.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from foredraft.data.tokens import Batch, Packing
from foredraft.decode.batch import Request
from foredraft.models.target import Target
from foredraft.records import write_bytes
from foredraft.teacher.group_bytes import GROUP_BYTES
from foredraft.teacher.hidden_states import HiddenStates, HiddenStateSource, OnlineHiddenStates
from foredraft.teacher.teacher import Text

SPARE_BYTES = 2**20  # that the disk keeps

Tensors = dict[str, Tensor]
OF_LOGITS: dict[
    str, tuple[str, Callable[[Tensor], Tensor]]
] = {  # by name: the tensor on file, and how it comes of logits [n, U]
    "argmax": ("ids", lambda logits_nU: logits_nU.argmax(-1)),
    "log_sum": ("log_sum", lambda logits_nU: logits_nU.logsumexp(-1)),
}


class TargetCache:
    """Of one target, below `folder`; without one every question is put to the target."""

    def __init__(self, target: Target, folder: str | Path | None = None) -> None:
        self.target, self.folder = target, None if folder is None else Path(folder)
        self._target_key = b"" if folder is None else f"{fingerprint(target)} {target.dtype}".encode()

    def answers(self, requests: list[Request], generate: Callable[[list[Request]], list[list[int]]]) -> list[list[int]]:
        """The target's own answers to requests, tokens of each."""
        question = repr([(r.prompt, r.max_tokens, sorted(r.stop_ids), r.sampling) for r in requests]).encode()

        def compute() -> Tensors:
            answers = generate(requests)
            flat = torch.tensor([token for answer in answers for token in answer], dtype=torch.int64)
            return {"tokens": flat, "lengths": torch.tensor([len(answer) for answer in answers])}

        stored = self._through("answers", question, compute)
        return [part.tolist() for part in stored["tokens"].split(stored["lengths"].tolist())]

    def costs(
        self, texts: Sequence[Text], compute: Callable[[Sequence[Text]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Nats and tokens of each text, [D, 2]."""
        question = repr([(list(map(int, tokens)), list(map(bool, mask))) for tokens, mask in texts]).encode()
        return self._through("costs", question, lambda: {"costs": torch.from_numpy(compute(texts))})["costs"].numpy()

    def hidden_states(
        self,
        layers: tuple[int, ...] | None = None,
        *,
        within_documents: bool = False,
        complete: bool = False,
        argmax: bool = False,
        log_sum: bool = False,
    ) -> HiddenStateSource:
        """A source of the final hidden state and those of `layers` (None: the final one alone), a file per window and state.

        A window that is not there yet is computed and written; with `complete` it raises ValueError. `argmax`: the target's likeliest
        ids too, which come of the final state when they are first read; `log_sum`: and the logarithm of the sum of its exponents.
        """
        source = OnlineHiddenStates(self.target, layers or (self._final,), within_documents=within_documents)

        def cached(batch: Batch) -> HiddenStates:
            if self.folder is None:
                return source(batch)
            paths = self._state_paths(batch, source)
            missing = any(map(_lacks, paths))
            if missing and complete:
                raise ValueError(f"{self.folder}: holds no hidden states of a window of the batch; cache that data too")
            if missing:
                self._write_windows(batch, paths, source)
            device = batch.tokens_BT.device
            states = {i: torch.stack([_read(files[i])["state"] for files in paths]).to(device) for i in paths[0]}
            final_BTW = states[self._final]
            known = [name for name, wanted in (("argmax", argmax), ("log_sum", log_sum)) if wanted]
            more = {
                f"{name}_BT": torch.stack(
                    [self._of_logits(name, final_BTW[row], files[self._final]) for row, files in enumerate(paths)]
                ).to(device)
                for name in known
            }
            return HiddenStates(torch.cat([states[i] for i in source.layers], -1), final_BTW, **more)

        return cached

    def _of_logits(self, name: str, final_TW: Tensor, of: Path) -> Tensor:
        """What one window's logits say at each place [T], beside the file `of` its final states: the ids of "argmax", or "log_sum"."""
        path = of.with_name(f"{name.replace('_', '')}-{of.stem.removeprefix('state-')}.safetensors")
        key, reduce = OF_LOGITS[name]
        if not path.is_file():
            dtype = (
                torch.float32 if name == "log_sum" else final_TW.dtype
            )  # a sum of rounded logits is off, their order hardly
            head_UW, form = self.target.head_weight_VC.to(dtype), self.target.logits_form
            size = max(1, GROUP_BYTES["cpu"] // (4 * len(head_UW)))
            _write(path, {key: torch.cat([reduce(form(part.to(dtype) @ head_UW.T)) for part in final_TW.split(size)])})
        return _read(path)[key]

    def fill(
        self, packing: Packing, windows: int, layers: tuple[int, ...], *, within_documents: bool = False,
        say: Callable[[str], object], batch_size: int = 8,
    ) -> None:  # fmt: skip
        """Write the hidden states of the first `windows` samples of `packing` that are not there; `say` is told the size first.

        Raises ValueError, with nothing written, where the disk lacks the room or `packing` the windows.
        """
        if not 1 <= windows <= len(packing):
            raise ValueError(f"windows must lie in 1…{len(packing)}, what {packing.folder.path} holds; got {windows}")
        assert self.folder is not None, "there is nowhere to write to"
        source = OnlineHiddenStates(self.target, layers, within_documents=within_documents)
        missing = self._missing(packing, windows, source, batch_size)
        to_write = sum(missing.values()) * self._state_bytes(packing.length)
        say(
            f"{self.folder}: {windows * self.window_bytes(packing.length, layers):,} bytes of hidden states "
            f"for {windows * packing.length:,} tokens, {to_write:,} to write"
        )
        self._check_room(self.folder, to_write)
        for first in sorted({window // batch_size * batch_size for window in missing}):
            batch = packing.batch(first, min(batch_size, windows - first))
            batch = Batch(*(part.to(self.target.device) for part in batch))
            self._write_windows(batch, self._state_paths(batch, source), source)

    def window_bytes(self, length: int, layers: tuple[int, ...]) -> int:
        """Of one window's files, the final state's among them."""
        return len({*layers, self._final}) * self._state_bytes(length)

    def _state_bytes(self, length: int) -> int:
        return len(save({"state": torch.empty(length, self.target.shape.hidden_size, dtype=self.target.dtype)}))

    @property
    def _final(self) -> int:
        return self.target.shape.num_layers

    def _missing(self, packing: Packing, windows: int, source: OnlineHiddenStates, batch_size: int) -> dict[int, int]:
        """The windows that lack a state, with how many each lacks."""
        missing = {}
        for first in range(0, windows, batch_size):
            paths = self._state_paths(packing.batch(first, min(batch_size, windows - first)), source)
            missing |= {first + row: lacking for row, files in enumerate(paths) if (lacking := _lacks(files))}
        return missing

    def _check_room(self, folder: Path, num_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if num_bytes + SPARE_BYTES > free:
            raise ValueError(
                f"{folder}: {num_bytes:,} bytes of hidden states do not fit the {free:,} free there; cache fewer windows, or compute them online"
            )

    def _write_windows(self, batch: Batch, paths: list[dict[int, Path]], source: OnlineHiddenStates) -> None:
        """The states of the batch that are not there, by one pass of the target over all of it: what shares a batch may change the last bit
        of a state, and a write that was stopped is to go on with the same ones.
        """
        states = source(batch)
        parts = states.aux_BTF.split(self.target.shape.hidden_size, -1)
        by_layer = dict(zip(source.layers, parts, strict=True)) | {self._final: states.final_BTW}
        for row, files in enumerate(paths):
            for layer, path in files.items():
                if not path.is_file():
                    _write(path, {"state": by_layer[layer][row]})

    def _state_paths(self, batch: Batch, source: OnlineHiddenStates) -> list[dict[int, Path]]:
        """Of each window, by the state's index: a digest of its tokens and where its documents begin."""
        parts = (part.cpu().numpy() for part in (batch.tokens_BT, batch.documents_BT))
        windows = [ids.tobytes() + places.tobytes() for ids, places in zip(*parts, strict=True)]
        settings = {i: repr((i, source.within_documents)).encode() for i in (*source.layers, self._final)}
        return [{i: self._path("state", setting + window) for i, setting in settings.items()} for window in windows]

    def _through(self, kind: str, question: bytes, compute: Callable[[], Tensors]) -> Tensors:
        if self.folder is None:
            return compute()
        path = self._path(kind, question)
        if path.is_file():
            return _read(path)
        tensors = compute()
        _write(path, tensors)
        return tensors

    def _path(self, kind: str, question: bytes) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{hashlib.sha256(self._target_key + question).hexdigest()[:32]}.safetensors"


def fingerprint(target: Target) -> str:
    """A digest of every byte of every weight, as it is held."""
    digest = hashlib.sha256()
    for name, parameter in target.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]


def _lacks(files: dict[int, Path]) -> int:
    return sum(not path.is_file() for path in files.values())


def _write(path: Path, tensors: Tensors) -> None:
    write_bytes(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def _read(path: Path) -> Tensors:
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it, and it is made again") from None
