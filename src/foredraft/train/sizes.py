"""What a recipe trains, in numbers: its shape, its forward passes and its FLOPs, from config.json alone.

A new kind of head is a row of `HEADS`. Promises: no weight is read. Refuses to know: torch, losses, the loop.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from foredraft import kinds, shapes
from foredraft.feature_layers import block_feature_layers
from foredraft.recipe import DFlash, DSpark, Eagle, Eagle3, LanguageModel, Recipe
from foredraft.records import with_hint
from foredraft.shapes import Shape
from foredraft.shapes.gguf import is_gguf
from foredraft.train.flops import (
    BlockSettings,
    Computed,
    HeadSettings,
    block_training_flops,
    head_training_flops,
    model_training_flops,
)

OURS = "foredraft"


class TeacherChoice(NamedTuple):
    """What computes the target's hidden states: `name` is "foredraft" (our decoder), "transformers", or the path of a folder of files that a
    serving engine wrote, of which `layers` are the states (None for 2, L/2, L−3 and L of L layers).
    """

    name: str = OURS
    layers: tuple[int, ...] | None = None


class TargetSize(NamedTuple):
    """A recipe's target in numbers. `on_file`: its hidden states are, so that nothing but its tables is loaded; `quantised`: its weights are
    held as stored.
    """

    shape: Shape
    on_file: bool = False
    quantised: bool = False


class TrainedSize(NamedTuple):
    """`shape`: of what is trained; `draft_vocab`: words that it may draft, None for all; `passes`: forward passes of it for a token of a
    window; `flops_per_token`: training FLOPs of one token of a window, by its length; `settings`: of a head's training.
    """

    shape: Shape
    draft_vocab: int | None
    passes: int
    flops_per_token: Callable[[int], float]
    settings: Any = None


class HeadKind(NamedTuple):
    """A kind of head in a recipe: what is made of the model that it states.

    `flops`: of training; `settings`: of its objective, beside those that all have; `options`: what `models.heads.new_head` is told; `parts`:
    fields of its `HeadParts`, from its target's number of layers; `passes`: of the head for a token of a window.
    """

    kind: kinds.Kind
    flops: Callable[[Shape, Shape, Any, int, Computed], float]
    settings: Callable[[Any, Mapping[str, Any]], Any]
    options: Callable[[Any], Mapping[str, Any]] = lambda model: {}
    parts: Callable[[Any, int], Mapping[str, Any]] = lambda model, num_layers: {}
    passes: Callable[[Any, Any], int] = lambda model, settings: settings.unroll


def _block_options(model: Any) -> dict[str, Any]:
    fields = ("draft_vocab", "feature_layers", "block", "mask_token")
    return {name: getattr(model, name) for name in fields}


def _block_parts(model: Any, num_layers: int) -> dict[str, Any]:
    stated = {"block": model.block} | ({"rank": model.rank} if isinstance(model, DSpark) else {})
    layers = model.feature_layers or block_feature_layers(num_layers)
    return {"hidden_states": len(layers)} | {name: value for name, value in stated.items() if value is not None}


HEADS: dict[type, HeadKind] = {
    Eagle: HeadKind(
        kinds.EAGLE,
        head_training_flops,
        lambda model, shared: HeadSettings(
            unroll=model.unroll,
            decay=model.decay,
            noise=model.noise,
            feature_weight=model.feature_weight,
            token_weight=model.token_weight,
            **shared,
        ),
        lambda model: {"draft_vocab": model.draft_vocab},
    ),
    Eagle3: HeadKind(
        kinds.EAGLE3,
        head_training_flops,
        lambda model, shared: HeadSettings(unroll=model.unroll, decay=model.decay, **shared),
        lambda model: {"draft_vocab": model.draft_vocab, "feature_layers": model.feature_layers},
    ),
    DFlash: HeadKind(
        kinds.DFLASH,
        block_training_flops,
        lambda model, shared: BlockSettings(anchors=model.anchors, decay=model.position_decay, **shared),
        _block_options,
        _block_parts,
        lambda model, settings: math.ceil(settings.anchors * (model.block + 1)),
    ),
    DSpark: HeadKind(
        kinds.DSPARK,
        block_training_flops,
        lambda model, shared: BlockSettings(
            anchors=model.anchors, decay=model.position_decay, confidence=model.confidence, **shared
        ),
        lambda model: _block_options(model) | {"rank": model.rank},
        _block_parts,
        lambda model, settings: math.ceil(settings.anchors * model.block),
    ),
}


def target_size(target: Path, teacher: TeacherChoice) -> TargetSize:
    """Of a target's folder or GGUF file. Raises ValueError, which says what else can compute its states, on one that our decoder does not run.
    What another teacher opens is opened by it, which takes torch.
    """
    if teacher != TeacherChoice():
        from foredraft.train.objectives import size_of, target_folder

        return size_of(target_folder(target, teacher))
    try:
        return TargetSize(shapes.decodable(shapes.unfolded(shapes.read_config(target)), target))
    except ValueError as error:
        raise not_ours(error, target) from None


def not_ours(error: ValueError, target: Path) -> ValueError:
    """`error` with what else can compute the states of a target that our decoder does not run; nothing else reads a GGUF file."""
    others = "for a draft head: --teacher transformers, or --teacher FOLDER of states that its server wrote"
    return error if is_gguf(target) else with_hint(error, others)


def check_target(recipe: Recipe, target: Path | None, teacher: TeacherChoice) -> None:
    """Raise ValueError where the recipe learns from a target and there is none, where only a head could learn from it in this way, or where
    the draft to go on from has another tokenizer.
    """
    if recipe.needs_target and target is None:
        raise with_hint(
            ValueError("this recipe learns from a target: give --target"), "--target DIR, a Hugging Face folder"
        )
    if target and teacher.name != OURS and isinstance(recipe.model, LanguageModel):
        raise ValueError(
            "--teacher is for draft heads; a language model learns from a target of our own decoder, or from text"
        )
    if target and recipe.model.init:
        shapes.check_same_tokenizer(target, recipe.model.init)


def tokenizer_folder(recipe: Recipe, target: Path | None) -> Path | None:
    """The folder of the model whose tokenizer the data must have: the target's, or that of the model to go on from."""
    return target or (Path(recipe.model.init) if recipe.model.init else None)


def sizes_of(recipe: Recipe, target: TargetSize | None, init: Shape | None = None) -> TrainedSize:
    """Of `recipe` beside `target`. `init`: the shape of the model that a language model begins from, where it is known already."""
    if isinstance(recipe.model, LanguageModel):
        return _model_sizes(recipe, recipe.model, target, init)
    assert target is not None, "check_target came first"
    return _head_sizes(recipe, target)


def _model_sizes(recipe: Recipe, model: LanguageModel, target: TargetSize | None, init: Shape | None) -> TrainedSize:
    """Of a decoder of its own, as its config says, or that it begins from, or of about `params` in that one's family and vocabulary."""
    if model.config is not None:
        shape = shapes.from_config(model.config, name=str(model.config.get("_name_or_path") or "trained"))
    else:
        base = init or (target.shape if target else None)
        if model.init is not None and init is None:
            base = shapes.from_config(model.init)
        if base is None:
            raise ValueError("model.params is relative to a target: give --target, or model.config instead")
        shape = base if model.params is None else shapes.scaled(base, model.params)
    words = model.draft_vocab if (model.draft_vocab or 0) < shape.vocab_size else None
    if words and shape.draft_vocab_size:
        raise ValueError(
            f"model.draft_vocab: {model.init or 'config'} has a draft vocabulary of {shape.draft_vocab_size} already; leave it out"
        )
    shape = msgspec.structs.replace(shape, draft_vocab_size=words) if words else shape
    taught = target.shape if target and recipe.needs_target else None
    return TrainedSize(shape, words, 1, lambda length: model_training_flops(shape, taught, length))


def _head_sizes(recipe: Recipe, target: TargetSize) -> TrainedSize:
    """Of a head on the hidden states of its target."""
    model: Any = recipe.model
    row, vocab_size = HEADS[type(model)], target.shape.vocab_size
    shared = {
        "loss": recipe.losses, "within_documents": recipe.within_documents, "lookahead": recipe.watch.lookahead,
    }  # fmt: skip
    settings, asked = row.settings(model, shared), row.options(model).get("draft_vocab")
    words = asked if asked and asked < vocab_size else (vocab_size if row.kind.own_lm_head else None)
    shape = (
        kinds.shape_of_folder(model.init)
        if model.init is not None
        else row.kind.shape(target.shape, model.layers, words, **row.parts(model, target.shape.num_layers))
    )
    computed = Computed(cached=target.on_file, known=not target.on_file)

    def flops(length: int) -> float:
        return row.flops(shape, target.shape, settings, length, computed)

    return TrainedSize(shape, asked, row.passes(model, settings), flops, settings)
