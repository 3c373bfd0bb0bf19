"""What a recipe trains, by its kind: the one place where a recipe's model is taken apart.

A new kind of head is a row of `HEADS`. Promises: shape and cost are known before a weight is loaded, a folder's config.json is
read once. Refuses to know: the loop, how a loss is computed.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from foredraft import kinds, shapes
from foredraft.data.draft_vocab import coverage, most_frequent, unused_token
from foredraft.data.tokens import TOKENIZER, check
from foredraft.models.block_head import BlockHead, default_feature_layers
from foredraft.models.decoder import Decoder, cut, new_decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.draft_vocab import offsets
from foredraft.models.dspark import DSparkHead
from foredraft.models.heads import load_head, new_head
from foredraft.models.layers import ModelConfig, model_config_of
from foredraft.models.load import load, parse_config
from foredraft.models.target import Target
from foredraft.recipe import DFlash, DSpark, Eagle, Eagle3, HeadModel, LanguageModel, Recipe
from foredraft.records import with_hint
from foredraft.shapes import Shape
from foredraft.shapes.gguf import is_gguf
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import HiddenStateSource
from foredraft.teacher.state_files import StateFiles, StateFolder, TargetTables
from foredraft.teacher.transformers_target import NAME, TransformersFolder
from foredraft.train import language_model
from foredraft.train.blocks import BlockObjective, BlockSettings
from foredraft.train.devices import Devices
from foredraft.train.heads import Computed, HeadObjective, HeadSettings
from foredraft.train.language_model import LanguageModelObjective, Served
from foredraft.train.loop import Data
from foredraft.train.objective import Objective

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
OURS = "foredraft"


class TeacherChoice(NamedTuple):
    """What computes the target's hidden states: `name` is "foredraft" (our decoder), "transformers", or the path of a folder of files that a
    serving engine wrote, of which `layers` are the states (None for 2, L/2, L−3 and L of L layers).
    """

    name: str = OURS
    layers: tuple[int, ...] | None = None

    def folder(self, target: Path) -> TargetFolder:
        """The target's, opened by it. Raises ValueError, one line, where it cannot."""
        if self.layers and self.name in (OURS, NAME):
            raise ValueError("--state-layers names the states in a folder of files: give it with --teacher FOLDER")
        if self.name == OURS:
            return _ours(target)
        if is_gguf(target):
            raise ValueError(f"{target}: a GGUF file, which --teacher {self.name} does not read; leave --teacher out")
        return TransformersFolder(target) if self.name == NAME else StateFolder(target, self.name, self.layers)


def _ours(target: Path) -> ModelFolder:
    """Raises ValueError, which says what else can compute its states, on one that our decoder does not run."""
    try:
        return ModelFolder(target)
    except ValueError as error:
        if is_gguf(target):
            raise
        raise with_hint(
            error, "for a draft head: --teacher transformers, or --teacher FOLDER of states that its server wrote"
        ) from None


class Trainee(ABC):
    """A recipe's model beside its target. `shape`: what is trained; `passes`: forward passes of it for a token of a window."""

    shape: Shape
    passes: int = 1

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        self.recipe, self.target = recipe, target

    @abstractmethod
    def flops_per_token(self, length: int) -> float:
        """Training FLOPs of one token of a window of `length`."""

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
        folder = self.target.path if self.target else None
        tokenizer = folder if folder is not None and (folder / TOKENIZER).is_file() else None
        for packing in data.packings:
            check(packing.folder, vocab_size, tokenizer)


def trainee_of(recipe: Recipe, target: Path | None, teacher: TeacherChoice | None = None) -> Trainee:
    """Raises ValueError where the recipe learns from a target and there is none, or one that `teacher` cannot open."""
    if recipe.needs_target and target is None:
        raise with_hint(
            ValueError("this recipe learns from a target: give --target"), "--target DIR, a Hugging Face folder"
        )
    folder = (teacher or TeacherChoice()).folder(target) if target else None
    return TRAINEES[type(recipe.model)](recipe, folder)


class LanguageModelTrainee(Trainee):
    """A decoder of its own; a target that is there without being learned from judges it on held-out text."""

    target: ModelFolder | None

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        super().__init__(recipe, target)
        model = recipe.model
        assert isinstance(model, LanguageModel)
        if isinstance(target, TransformersFolder):
            raise ValueError(
                "--teacher is for draft heads; a language model learns from a target of our own decoder, or from text"
            )
        self.init = None if model.init is None else ModelFolder(model.init)
        shape, self.config, self.keys = (
            _of_config(model.config) if model.config is not None else self._of_folder(model.params)
        )
        self.draft_vocab = model.draft_vocab if (model.draft_vocab or 0) < shape.vocab_size else None
        if self.draft_vocab and shape.draft_vocab_size:
            raise ValueError(
                f"model.draft_vocab: {model.init or 'config'} has a draft vocabulary of {shape.draft_vocab_size} already; leave it out"
            )
        self.shape = msgspec.structs.replace(shape, draft_vocab_size=self.draft_vocab) if self.draft_vocab else shape

    def _of_folder(self, params: float | None) -> tuple[Shape, ModelConfig, Mapping[str, Any]]:
        """Of `init`, or of about `params` parameters in the target's family and vocabulary."""
        folder = self.init or self.target
        if folder is None:
            raise ValueError("model.params is relative to a target: give --target, or model.config instead")
        if params is None:
            return folder.shape, folder.config, folder.keys
        return shapes.scaled(folder.shape, params), msgspec.structs.replace(folder.config, pre_norm=True), folder.keys

    def flops_per_token(self, length: int) -> float:
        target = self.target.shape if self.target and self.recipe.needs_target else None
        return language_model.training_flops(self.shape, target, length)

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


def _of_config(keys: dict[str, Any]) -> tuple[Shape, ModelConfig, Mapping[str, Any]]:
    shape = shapes.from_config(keys, name=str(keys.get("_name_or_path") or "trained"))
    return shape, model_config_of(keys, shape), keys


class HeadKind(NamedTuple):
    """A kind of head in a recipe: what is made of the model that it states.

    `settings`: of its objective, beside those that all have; `options`: what `models.heads.new_head` is told; `parts`: fields of its
    `HeadParts`, from its target's number of layers; `passes`: of the head for a token of a window.
    """

    kind: kinds.Kind
    objective: type[HeadObjective]
    settings: Callable[[Any, Mapping[str, Any]], Any]
    options: Callable[[Any], Mapping[str, Any]] = lambda model: {}
    parts: Callable[[Any, int], Mapping[str, Any]] = lambda model, num_layers: {}
    passes: Callable[[Any, Any], int] = lambda model, settings: settings.unroll


def _block_options(model: Any) -> dict[str, Any]:
    fields = ("draft_vocab", "feature_layers", "block", "mask_token")
    return {name: getattr(model, name) for name in fields}


def _block_parts(head: type[BlockHead], model: Any, num_layers: int, **options: Any) -> dict[str, Any]:
    return head.part_fields(len(model.feature_layers or default_feature_layers(num_layers)), model.block, **options)


HEADS: dict[type, HeadKind] = {
    Eagle: HeadKind(
        kinds.EAGLE,
        HeadObjective,
        lambda model, shared: HeadSettings(
            unroll=1, noise=model.noise, feature_weight=model.feature_weight, token_weight=model.token_weight, **shared
        ),
        lambda model: {"draft_vocab": model.draft_vocab},
    ),
    Eagle3: HeadKind(
        kinds.EAGLE3,
        HeadObjective,
        lambda model, shared: HeadSettings(unroll=model.unroll, decay=model.decay, **shared),
        lambda model: {"draft_vocab": model.draft_vocab, "feature_layers": model.feature_layers},
    ),
    DFlash: HeadKind(
        kinds.DFLASH,
        BlockObjective,
        lambda model, shared: BlockSettings(anchors=model.anchors, decay=model.position_decay, **shared),
        _block_options,
        lambda model, num_layers: _block_parts(BlockHead, model, num_layers),
        lambda model, settings: math.ceil(settings.anchors * (model.block + 1)),
    ),
    DSpark: HeadKind(
        kinds.DSPARK,
        BlockObjective,
        lambda model, shared: BlockSettings(
            anchors=model.anchors, decay=model.position_decay, confidence=model.confidence, **shared
        ),
        lambda model: _block_options(model) | {"rank": model.rank},
        lambda model, num_layers: _block_parts(DSparkHead, model, num_layers, rank=model.rank),
        lambda model, settings: math.ceil(settings.anchors * model.block),
    ),
}  # fmt: skip


class HeadTrainee(Trainee):
    """A head on the hidden states of its target."""

    target: TargetFolder

    def __init__(self, recipe: Recipe, target: TargetFolder | None) -> None:
        super().__init__(recipe, target)
        assert target is not None, "trainee_of came first"
        assert not isinstance(recipe.model, LanguageModel)
        row, vocab_size = HEADS[type(recipe.model)], target.shape.vocab_size
        self.model: HeadModel = recipe.model
        self.row, self.kind, self.options = row, row.kind, dict(row.options(self.model))
        shared = {
            "loss": recipe.losses,
            "within_documents": recipe.within_documents,
            "lookahead": recipe.watch.lookahead,
        }
        self.settings = row.settings(self.model, shared)
        self.passes, self.draft_vocab = row.passes(self.model, self.settings), self.options.pop("draft_vocab", None)
        whole = vocab_size if row.kind.own_lm_head else None
        draft_vocab = self.draft_vocab if self.draft_vocab and self.draft_vocab < vocab_size else whole
        parts = row.parts(self.model, target.shape.num_layers)
        self.shape = (
            kinds.shape_of_folder(self.model.init)
            if self.model.init is not None
            else row.kind.shape(target.shape, self.model.layers, draft_vocab, **parts)
        )

    def flops_per_token(self, length: int) -> float:
        return self.row.objective.flops(self.shape, self.target.shape, self.settings, length, self._computed)

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
        return self.row.objective(
            teacher, head, self.settings, length=self.recipe.stages[0].length, dtype=self.served_dtype, held_out=on_file,
            keys=token_ids(self.target.keys), computed=self._computed._replace(labelled=labelled_share(data), cached=on_disk),
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


TRAINEES: Mapping[type, type[Trainee]] = {LanguageModel: LanguageModelTrainee} | dict.fromkeys(HEADS, HeadTrainee)


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
