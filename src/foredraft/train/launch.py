"""From a recipe and folders to a run: opens the data, builds what is trained, measures the ceiling, starts the loop.

Promises: what does not fit together is said before anything is computed. Refuses to know: the command line, the loop's
inside.
"""

import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch

from foredraft.data.tokens import DATA, TOKENIZER, Packing, TokenFolder, check
from foredraft.hardware import matmul_rate
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.heads import load_head, new_head
from foredraft.models.load import load
from foredraft.recipe import Eagle, Eagle3, LanguageModel, Recipe
from foredraft.records import with_hint
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import HiddenStateSource
from foredraft.train.checkpoints import State
from foredraft.train.devices import Devices
from foredraft.train.heads import HeadObjective, HeadSettings
from foredraft.train.language_model import LanguageModelObjective, Served, decoder_of, kept_keys
from foredraft.train.loop import Data, train
from foredraft.train.objective import Objective


def launch(
    recipe: Recipe,
    out: Path,
    devices: Devices,
    *,
    target: Path | None = None,
    data: Sequence[Path] = (),
    held_out: Path | None = None,
    features: Path | None = None,
) -> State:
    """Run `recipe` in `out`. `data`: token folders, one per stage; the last serves those that follow, a stage's own goes first.
    `features`: a folder to keep a head's features in, instead of computing them as each batch comes.

    Raises ValueError where a target is lacking, where data and target do not match, and as `loop.train` does.
    """
    check_target(recipe, target)
    read = opened(recipe, data, held_out)
    objective = objective_of(recipe, target, read, devices, features)
    return train(recipe, objective, read, out, devices, matmul_rate(devices.device, recipe.precision))


def check_target(recipe: Recipe, target: Path | None) -> None:
    if recipe.needs_target and target is None:
        raise with_hint(
            ValueError("this recipe learns from a target: give --target"), "--target DIR, a Hugging Face folder"
        )


def opened(recipe: Recipe, data: Sequence[Path], held_out: Path | None) -> Data:
    """Packings of every stage's folder and of the held-out one."""
    stages, prints = [], []
    for i, stage in enumerate(recipe.stages):
        path = Path(stage.data) if stage.data else data[min(i, len(data) - 1)] if data else None
        if path is None:
            raise ValueError(f"stages[{i}].data is missing: name a token folder there or with --data")
        stages.append(Packing(TokenFolder.open(path), stage.length, recipe.seed + i, recipe.within_documents))
        prints.append(sha256((path / DATA).read_bytes()).hexdigest()[:16])
    folder = TokenFolder.open(held_out) if held_out else None
    held = Packing(folder, recipe.stages[0].length, 0, recipe.within_documents) if folder else None
    return Data(stages, tuple(prints), held)


def objective_of(
    recipe: Recipe, target: Path | None, data: Data, devices: Devices, features: Path | None = None
) -> Objective:
    """What the recipe trains, on the device, its folders checked against the vocabulary."""
    if features and isinstance(recipe.model, LanguageModel):
        raise ValueError("--features are a draft head's; a language model reads none")
    teacher = load(target, _kind(recipe), devices.device) if target else None
    if isinstance(recipe.model, LanguageModel):
        decoder, keys = decoder_of(recipe.model, target, recipe.seed)
        _check(data, decoder, target)
        return LanguageModelObjective(
            decoder, recipe.losses, length=recipe.stages[0].length, target=teacher,
            within_documents=recipe.within_documents, lookahead=recipe.watch.lookahead,
            served=Served(_served(recipe), data.stages[0].folder.path, keys),
        )  # fmt: skip
    assert teacher is not None, "check_target came first"
    assert target is not None
    _check(data, teacher, target)
    keys = kept_keys(json.loads((target / "config.json").read_bytes()))
    head = head_of(recipe, teacher, data)
    return HeadObjective(
        teacher, head, head_settings(recipe), length=recipe.stages[0].length, dtype=_served(recipe), keys=keys,
        source=cached(recipe, head, data, devices, features) if features else None,
    )  # fmt: skip


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
    return cache.hidden_states(head.feature_layers, within_documents=within, complete=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def head_of(recipe: Recipe, target: Decoder, data: Data) -> DraftHead:
    """The head to train, float32: new, its draft vocabulary counted over the first stage's folder, or from `init`."""
    model = recipe.model
    assert isinstance(model, Eagle | Eagle3)
    if model.init is not None:
        return load_head(model.init, target, torch.float32, target.device)
    if isinstance(model, Eagle):
        return new_head(target, "eagle", model.layers, seed=recipe.seed)
    ids = draft_vocab(model.draft_vocab, target.shape.vocab_size, data) if model.draft_vocab else None
    return new_head(target, "eagle3", model.layers, ids, seed=recipe.seed, feature_layers=model.feature_layers)


def draft_vocab(size: int, whole: int, data: Data) -> list[int]:
    """The tokens a head may draft, and what share of each folder's labels they are, which bounds what it can draft rightly."""
    from foredraft.data.draft_vocab import coverage, most_frequent

    ids = most_frequent(data.stages[0].folder, size)
    folders = {
        packing.folder.path: packing.folder for packing in (*data.stages, *([data.held_out] if data.held_out else []))
    }
    shares = ", ".join(f"{coverage(folder, ids):.1%} of {path}" for path, folder in folders.items())
    print(f"draft vocabulary: {len(ids):,} of {whole:,} ids hold {shares}", file=sys.stderr)
    return ids


def head_settings(recipe: Recipe) -> HeadSettings:
    model = recipe.model
    shared = HeadSettings(
        loss=recipe.losses, within_documents=recipe.within_documents, lookahead=recipe.watch.lookahead
    )
    if isinstance(model, Eagle3):
        return shared._replace(unroll=model.unroll, decay=model.decay)
    assert isinstance(model, Eagle)
    weights = {"feature_weight": model.feature_weight, "token_weight": model.token_weight}
    return shared._replace(unroll=1, noise=model.noise, **weights)


def _kind(recipe: Recipe) -> torch.dtype:
    """A frozen target's weights are kept in the type it computes in."""
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


def _served(recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.watch.export_dtype)


def _check(data: Data, model: Decoder, target: Path | None) -> None:
    tokenizer = target if target is not None and (target / TOKENIZER).is_file() else None
    for packing in (*data.stages, *((data.held_out,) if data.held_out else ())):
        check(packing.folder, model.shape.vocab_size, tokenizer)
