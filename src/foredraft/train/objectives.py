"""What a recipe trains, by its kind: the one place where a recipe's model is taken apart.

A new kind of head is a row of `sizes.HEADS` and of `OBJECTIVES`. Promises: shape and cost are known before a weight is loaded, a folder's
config.json is read once. Refuses to know: the loop, how a loss is computed.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from foredraft import shapes
from foredraft.data.draft_vocab import coverage, most_frequent, unused_token
from foredraft.data.tokens import check
from foredraft.models.decoder import Decoder, cut, new_decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.draft_vocab import offsets
from foredraft.models.heads import load_head, new_head
from foredraft.models.layers import ModelConfig, model_config_of
from foredraft.models.load import load, parse_config
from foredraft.models.target import Target
from foredraft.recipe import DFlash, DSpark, Eagle, Eagle3, HeadModel, LanguageModel, Recipe
from foredraft.shapes import Shape
from foredraft.shapes.gguf import is_gguf
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import HiddenStateSource
from foredraft.teacher.state_files import StateFiles, StateFolder, TargetTables
from foredraft.teacher.transformers_target import NAME, TransformersFolder
from foredraft.train.blocks import BlockObjective
from foredraft.train.devices import Devices
from foredraft.train.flops import Computed
from foredraft.train.heads import HeadObjective
from foredraft.train.language_model import LanguageModelObjective, Served
from foredraft.train.loop import Data
from foredraft.train.objective import Objective
from foredraft.train.sizes import (
    HEADS,
    OURS,
    TargetSize,
    TeacherChoice,
    TrainedSize,
    check_target,
    not_ours,
    sizes_of,
    tokenizer_folder,
)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class ModelFolder:
    """A checkpoint's folder and its config.json, read once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys = shapes.unfolded(shapes.read_config(path))
        self.shape, self.config = parse_config(self.keys, path)

    def load(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
        return load(self.path, dtype, device, config=(self.shape, self.config))


TargetFolder = ModelFolder | TransformersFolder  # by what computes the target's hidden states


def target_folder(target: Path, teacher: TeacherChoice) -> TargetFolder:
    """The target's folder as `teacher` opens it. Raises ValueError, one line, where it cannot."""
    if teacher.layers and teacher.name in (OURS, NAME):
        raise ValueError("--state-layers names the states in a folder of files: give it with --teacher FOLDER")
    if teacher.name == OURS:
        try:
            return ModelFolder(target)
        except ValueError as error:
            raise not_ours(error, target) from None
    if is_gguf(target):
        raise ValueError(f"{target}: a GGUF file, which --teacher {teacher.name} does not read; leave --teacher out")
    return TransformersFolder(target) if teacher.name == NAME else StateFolder(target, teacher.name, teacher.layers)


def size_of(folder: TargetFolder) -> TargetSize:
    quantised = isinstance(folder, TransformersFolder) and folder.quantised
    return TargetSize(folder.shape, isinstance(folder, StateFolder), quantised)


class Trainee(ABC):
    """A recipe's model beside its target. `shape`: what is trained; `sizes`: all that is known of it before a weight is loaded."""

    sizes: TrainedSize

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        self.recipe, self.target = recipe, target

    @property
    def shape(self) -> Shape:
        return self.sizes.shape

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs of one token of a window of `length`."""
        return self.sizes.flops_per_token(length)

    @abstractmethod
    def objective(self, data: Data, devices: Devices, cache_folder: Path | None = None) -> Objective:
        """On the device, its folders checked against the vocabulary; a head's hidden states in `cache_folder` where given."""

    @property
    def served_dtype(self) -> torch.dtype:
        return getattr(torch, self.recipe.watch.export_dtype)

    def teacher(self, devices: Devices) -> Target | None:
        """The target, its weights in the type it computes in."""
        dtype = torch.bfloat16 if self.recipe.precision == "bfloat16" else torch.float32
        return self.target.load(dtype, devices.device) if self.target else None

    def check(self, data: Data, vocab_size: int) -> None:
        """Raise ValueError where a token folder is of another vocabulary."""
        model = tokenizer_folder(self.recipe, self.target.path if self.target else None)
        for packing in data.packings:
            check(packing.folder, vocab_size, model)


def trainee_of(recipe: Recipe, target: Path | None, teacher: TeacherChoice | None = None) -> Trainee:
    """Raises ValueError where the recipe learns from a target and there is none, or one that `teacher` cannot open."""
    choice = teacher or TeacherChoice()
    check_target(recipe, target, choice)
    return TRAINEES[type(recipe.model)](recipe, target_folder(target, choice) if target else None)


class LanguageModelTrainee(Trainee):
    """A decoder of its own; a target that is there without being learned from judges it on held-out text."""

    target: ModelFolder | None

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        super().__init__(recipe, target)
        model = recipe.model
        assert isinstance(model, LanguageModel)
        assert not isinstance(target, TransformersFolder), "check_target came first"
        self.init = None if model.init is None else ModelFolder(model.init)
        self.sizes = sizes_of(recipe, size_of(target) if target else None, self.init.shape if self.init else None)
        self.draft_vocab = self.sizes.draft_vocab
        self.config, self.keys = (
            (model_config_of(model.config, self.shape), model.config)
            if model.config is not None
            else self._of_folder(model.params)
        )

    def _of_folder(self, params: float | None) -> tuple[ModelConfig, Mapping[str, Any]]:
        """Of `init` or of the target; of a new model of so many `params`, with norms before attention and MLP."""
        folder = self.init or self.target
        assert folder is not None, "there were sizes of it"
        new = {} if params is None else {"pre_norm": True}
        return msgspec.structs.replace(folder.config, **new), folder.keys

    def objective(self, data: Data, devices: Devices, cache_folder: Path | None = None) -> Objective:
        if cache_folder:
            raise ValueError("--features are a draft head's; a language model reads none")
        recipe, teacher = self.recipe, self.teacher(devices)
        assert teacher is None or isinstance(teacher, Decoder)
        self.check(data, self.shape.vocab_size)
        decoder = self.decoder(data)
        return LanguageModelObjective(
            decoder.requires_grad_(True).train(), recipe.losses, length=recipe.stages[0].length, target=teacher,
            within_documents=recipe.within_documents, lookahead=recipe.watch.lookahead,
            served=Served(self.served_dtype, data.stages[0].folder.path, token_ids(self.keys)),
        )  # fmt: skip

    def decoder(self, data: Data) -> Decoder:
        """The model to train, float32: new or from `init`, its draft vocabulary counted over the last stage's folder."""
        d2t = None
        if self.draft_vocab:
            d2t = offsets(draft_vocab(self.draft_vocab, self.shape.vocab_size, data), self.shape.vocab_size)
        if self.init is None:
            return new_decoder(self.shape, self.config, self.recipe.seed, d2t)
        decoder = self.init.load()
        return decoder if d2t is None else cut(decoder, d2t)


# The objective of each kind of head (`sizes.HEADS`).
OBJECTIVES: dict[type, type[HeadObjective]] = {
    Eagle: HeadObjective, Eagle3: HeadObjective, DFlash: BlockObjective, DSpark: BlockObjective,
}  # fmt: skip


class HeadTrainee(Trainee):
    """A head on the hidden states of its target."""

    target: TargetFolder

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        super().__init__(recipe, target)
        assert target is not None, "trainee_of came first"
        assert not isinstance(recipe.model, LanguageModel)
        self.model: HeadModel = recipe.model
        row, self.sizes = HEADS[type(recipe.model)], sizes_of(recipe, size_of(target))
        self.kind, self.options, self.settings = row.kind, dict(row.options(self.model)), self.sizes.settings
        self.draft_vocab = self.options.pop("draft_vocab", None)

    @property
    def _computed(self) -> Computed:
        """Of files that a server wrote nothing but states is known."""
        on_file = isinstance(self.target, StateFolder)
        return Computed(cached=on_file, known=not on_file)

    def objective(self, data: Data, devices: Devices, cache_folder: Path | None = None) -> Objective:
        teacher = self.teacher(devices)
        assert teacher is not None
        self.check(data, teacher.shape.vocab_size)
        head, on_disk = self.head(teacher, data), cache_folder is not None or self._computed.cached
        on_file = self._on_file(teacher, head, data, cache_folder)
        return OBJECTIVES[type(self.model)](
            teacher, head, self.settings, length=self.recipe.stages[0].length, dtype=self.served_dtype, held_out=on_file,
            keys=token_ids(self.target.keys),
            tokenizer=data.stages[0].folder.path, computed=self._computed._replace(labelled=labelled_share(data), cached=on_disk),
            source=on_file or (cached(self.recipe, head, data, devices, cache_folder) if cache_folder else None),
        )  # fmt: skip

    def _on_file(self, teacher: Target, head: DraftHead, data: Data, cache_folder: Path | None) -> StateFiles | None:
        """The states that a serving engine wrote of all that the run reads; None where the target computes them."""
        if not isinstance(self.target, StateFolder):
            return None
        assert isinstance(teacher, TargetTables)
        if cache_folder:
            raise ValueError("--features: the hidden states are on file already")
        if not self.recipe.within_documents:
            raise ValueError(
                "within_documents must be true with --teacher FOLDER: each file holds the states of one document alone"
            )
        stages = zip(data.stages, (stage.steps * stage.batch for stage in self.recipe.stages), strict=True)
        held_out = ((packing, len(packing)) for packing in (data.held_out,) if packing)
        return StateFiles(self.target, teacher, head.feature_layers, (*stages, *held_out))

    def head(self, teacher: Target, data: Data) -> DraftHead:
        """The head to train, float32: new, its draft vocabulary counted over the last stage's folder, or from `init`."""
        if self.model.init is not None:
            return load_head(self.model.init, teacher, torch.float32, teacher.device)
        ids = draft_vocab(self.draft_vocab, teacher.shape.vocab_size, data) if self.draft_vocab else None
        options = dict(self.options)
        if options.get("mask_token", 0) is None:
            options["mask_token"] = unused_token(data.stages[0].folder)
        return new_head(teacher, self.kind.name, self.model.layers, ids, seed=self.recipe.seed, **options)


TRAINEES: Mapping[type, type[Trainee]] = {LanguageModel: LanguageModelTrainee} | dict.fromkeys(OBJECTIVES, HeadTrainee)


def token_ids(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids of a config, which a trained model's own config must name too."""
    return {key: keys[key] for key in TOKEN_IDS if keys.get(key) is not None}


def labelled_share(data: Data) -> float:
    """The share of the first stage's tokens that are to be predicted."""
    counts = data.stages[0].folder.data
    return counts.predicted_tokens / counts.num_tokens


def cached(recipe: Recipe, head: DraftHead, data: Data, devices: Devices, folder: Path) -> HiddenStateSource:
    """The hidden states of all that the stages read, written to `folder` by the first process where they are not there."""
    cache, error, within = TargetCache(head.target, folder), None, recipe.within_documents
    try:
        for stage, packing in zip(recipe.stages, data.stages, strict=True) if devices.first else ():
            windows = min(len(packing), stage.steps * stage.batch)
            cache.fill(packing, windows, head.feature_layers, within_documents=within, say=_say)
    except (ValueError, OSError) as met:
        error = str(met)
    devices.agree(error)
    judged = head.draft_ids is not None and set(recipe.losses) != {"ce"}
    return cache.hidden_states(
        head.feature_layers, within_documents=within, complete=True, argmax=judged,
        log_sum=judged and isinstance(recipe.model, DSpark),
    )  # fmt: skip


def draft_vocab(size: int, vocab_size: int, data: Data) -> list[int]:
    """The tokens a draft may draft, by the last stage's folder, which is nearest to what it will serve; says what share of each folder's labels
    they are, which bounds what it can draft rightly."""
    ids = most_frequent(data.stages[-1].folder, size)
    folders = {packing.folder.path: packing.folder for packing in data.packings}
    shares = ", ".join(f"{coverage(folder, ids):.1%} of {path}" for path, folder in folders.items())
    _say(f"draft vocabulary: {len(ids):,} of {vocab_size:,} ids hold {shares}")
    return ids


def _say(line: str) -> None:
    print(line, file=sys.stderr)
