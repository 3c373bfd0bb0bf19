"""Write a trained draft as the folder that an engine loads, with its launch settings and a model card.

Promises: a folder appears whole, after it was read back by the rules of the loaders it is for, or not at all; what an engine
could not compute is refused with the reason. Refuses to know: how the draft was trained.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors.torch
import torch

from foredraft import records, shapes
from foredraft.data.tokenizer import copy_files, vocabulary
from foredraft.deploy.card import card
from foredraft.deploy.check import check
from foredraft.deploy.draft import TrainedDraft, read_draft, target_embedding, target_lm_head, token_keys
from foredraft.deploy.findings import Finding, errors
from foredraft.deploy.folder import CONFIG, RECORD, SERVE, TOKEN_MAP, Deployed
from foredraft.deploy.target_rules import config_of
from foredraft.engines import ENGINES, LOADERS, USUAL, for_format, lengths, operations, speculators
from foredraft.engines.engine import ServingEngine
from foredraft.kinds import CHECKPOINTS, Kind, of_name
from foredraft.models.block_head import BlockHead
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead, HeadLayout
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.heads import save_head
from foredraft.models.save import save
from foredraft.records import Observation, Plan, Record
from foredraft.runs import name_of
from foredraft.shapes.absent import SINGLE

PLAIN = "hf"  # for whoever loads Hugging Face folders
FORMATS = (*(form for engine in ENGINES.values() for form in engine.formats), PLAIN)
LOOKAHEAD = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ExportSettings(Record, frozen=True):
    """How to export. `dtype`: of the weights, as they are stored where None. `lookahead`: without a plan; None for 4, or of a head of blocks
    for all that a block drafts. `verifier`: the target's
    name in a speculators config, its folder where None. `note`: words for the card.
    """

    format: str = USUAL.name
    dtype: str | None = None
    lookahead: int | None = None
    verifier: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.lookahead is not None and self.lookahead < 1:
            raise ValueError(f"lookahead must be at least 1, got {self.lookahead}")


class Exported(NamedTuple):
    """What was written, and what to mind: warnings of the check, and what was done to the vocabulary."""

    record: Deployed
    files: list[str]
    warnings: list[Finding]
    notes: list[str]


def export(
    draft: str | Path, target: str | Path, out: str | Path, settings: ExportSettings, *, plan: Plan | None = None,
    observations: Sequence[Observation] = (),
) -> Exported:  # fmt: skip
    """Write the draft as an engine's folder. Raises ValueError where the format cannot hold it or the folder does not pass `check`."""
    config = config_of(target)
    if plan is not None:
        _check_target(plan, Path(target))
    trained = read_draft(draft, target)
    if plan is not None:
        _check_plan(plan, trained.kind)
    engine = for_format(settings.format)
    _refuse(trained, settings.format, engine)
    settings = msgspec.structs.replace(settings, lookahead=_lookahead(trained, settings, plan))
    launched = _launched(trained.kind, engine, plan, settings.lookahead or 0, os.path.realpath(out))
    trained, token_map, notes = _uncut(trained, engine)
    if engine is not None and token_map:
        launched |= {engine.token_map_flag: TOKEN_MAP}
    name = Path(target).resolve().name
    record = Deployed(
        kind=trained.kind.name, format=settings.format, engines=_engines(trained, settings.format),
        dtype=settings.dtype or str(trained.dtype).removeprefix("torch."), target=name, draft=name_of(draft), planned=plan is not None,
    )  # fmt: skip
    with records.whole_folder(out) as folder:
        if engine is not None:
            settings = msgspec.structs.replace(settings, lookahead=engine.lookahead(launched))
            _write_launch(folder, Path(target), record, engine, launched, plan)
            _write_operations(folder, Path(os.path.realpath(out)), Path(target), engine, trained.kind, launched, plan)
        if token_map:
            torch.save(token_map, folder / TOKEN_MAP)
        notes += _weights(trained, Path(target), config, folder, settings, DTYPES[record.dtype])
        copy_files(target, folder)
        records.write(folder / RECORD, record)
        text = card(trained, record, plan, observations, settings.note, launched, notes)
        records.write_bytes(folder / "README.md", text.encode())
        findings = check(folder, target)
        if bad := errors(findings):
            raise ValueError(f"{out}: not written, since it would not serve: {bad[0]}")
        files = sorted(path.name for path in folder.iterdir())
    return Exported(record, files, findings, notes)


def _lookahead(draft: TrainedDraft, settings: ExportSettings, plan: Plan | None) -> int:
    """Tokens per step without a plan. Raises ValueError where these, or a plan's, are more than a block of the head has."""
    block = draft.model.block if isinstance(draft.model, BlockHead) else None
    stated = settings.lookahead or block or LOOKAHEAD
    most = max((step.lookahead for step in plan.schedule), default=0) if plan else stated
    if block and most > block:
        raise ValueError(f"lookahead {most} is more than the {block} tokens that a block of this head has; lower it")
    return stated


def _launched(
    kind: Kind, engine: ServingEngine | None, plan: Plan | None, lookahead: int, folder: str
) -> dict[str, Any]:
    """The engine's settings for a draft in `folder`: what the plan holds for it, else a chain; {} of a folder for no engine."""
    if engine is None:
        return {}
    if plan is not None and engine.name not in plan.settings:
        raise ValueError(
            f"the plan speculates at no load on {engine.label}: serve the target alone, or leave out --plan"
        )
    planned = lengths.adapted(engine, plan.settings[engine.name], plan, kind) if plan else engine.chain(lookahead)
    return engine.launched(planned, kind, folder)


def _check_target(plan: Plan, target: Path) -> None:
    """Raise where a plan is of another target: neither of its name nor, where that is a public model's, of its sizes."""
    shape, name = shapes.from_config(target), plan.target.rstrip("/").split("/")[-1].lower()
    if name in (shape.name.split("/")[-1].lower(), target.resolve().name.lower()):
        return
    try:
        planned = shapes.shape(plan.target)
    except ValueError:
        planned = None
    sizes = [(of.num_layers, of.hidden_size, of.vocab_size) for of in (shape, planned) if of is not None]
    if sizes[0] not in sizes[1:]:
        raise records.with_hint(
            ValueError(f"--plan: it is for {plan.target}, and this target is {shape.name}"),
            f"foredraft plan {target} --out DIR, then --plan DIR/Plan.json",
        )


def _check_plan(plan: Plan, kind: Kind) -> None:
    """Raise where a plan is for another kind of draft, or speculates nowhere."""
    if plan.draft is None or not any(step.lookahead for step in plan.schedule):
        raise ValueError("the plan speculates at no load: serve the target alone, or leave out --plan")
    if plan.draft.kind != kind.role:
        raise ValueError(
            f"the plan is for a draft of kind {plan.draft.kind} ({plan.draft.name}), but this draft is {kind.name}"
        )


def _refuse(draft: TrainedDraft, format: str, engine: ServingEngine | None) -> None:
    """What a format has no place for."""
    shape, kind, owner = draft.shape, draft.kind, engine or USUAL
    if kind.role == "lm" and shape.draft_vocab_size:
        raise ValueError(
            f"draft_vocab {shape.draft_vocab_size}: engines run a draft model over its whole vocabulary, most of which this one was never "
            "taught to draft; train one whose recipe leaves draft_vocab out"
        )
    if format == "speculators" and kind.name not in speculators.CLASSES:
        labels = ", ".join(head.label for name, head in CHECKPOINTS.items() if name in speculators.CLASSES)
        raise ValueError(
            f"format {format}: {owner.label} reads {labels} heads from it, not {kind.name}; use --format {USUAL.name}, or {PLAIN}"
        )
    if kind.role != "head":
        return
    if kind.name in owner.unjudged:
        raise ValueError(
            f"format {format}: {owner.label} serves {kind.label} heads, but what its loader asks of one is not known here; use --format {USUAL.name}"
        )
    if not owner.loads(kind):
        raise ValueError(f"format {format}: {owner.label} has no class for heads of kind {kind.label}")
    loader = owner.heads[kind.name]
    if shape.qk_norm and loader.qk_norm is None:
        able = [
            f"{head.label} on {other.label}"
            for head in CHECKPOINTS.values()
            for other in LOADERS.values()
            if other.norms_qk(head)
        ]
        raise ValueError(f"format {format}: no class there norms queries and keys of a head; {', '.join(able)} does")
    if _cut_block(draft) and not loader.cut_block:
        raise ValueError(
            f"format {format}: whether {owner.label} maps the words of a {kind.label} head of {shape.draft_vocab_size:,} is not known here; "
            f"use --format {USUAL.name}, or train one without draft_vocab"
        )
    if isinstance(draft.model, Eagle3Head) and draft.model.reads_last_alone and draft.model.fc is not None:
        raise ValueError(
            "eagle_config.use_aux_hidden_state is false, but the head has an fc, which every engine would leave out"
        )
    if isinstance(draft.model, Eagle3Head) and (variant := _variant(draft.model, owner)):
        raise ValueError(f"format {format}: {owner.label}'s EAGLE-3 class has no {variant}; use --format {USUAL.name}")
    if (shape.qkv_bias or shape.mlp_bias) and not loader.layer_biases:
        raise ValueError(
            f"format {format}: its {kind.label} layers have no biases and would skip them; use --format {USUAL.name}"
        )


def _variant(head: Eagle3Head, owner: ServingEngine) -> str | None:
    """What a head computes that an engine's class does not, by its config key."""
    return next((name for name in owner.lacks if getattr(head.switches, name)), None)


def _uncut(draft: TrainedDraft, engine: ServingEngine | None) -> tuple[TrainedDraft, list[int], list[str]]:
    """An EAGLE-1/2 head without its draft vocabulary, whose LM head is its target's all the same: the ids as a list for the engine that
    cuts it there, none for others, and what was done.
    """
    head = draft.model
    if not isinstance(head, EagleHead) or (ids := head.draft_ids) is None:
        return draft, [], []
    whole, size = (
        draft._replace(model=head.uncut().requires_grad_(False).eval()),
        f"{len(ids):,} of {head.shape.vocab_size:,}",
    )
    if engine is not None and engine.token_map_flag:
        return whole, ids.tolist(), [f"draft vocabulary: {size} tokens, in {TOKEN_MAP} for {engine.token_map_flag}"]
    note = f"draft vocabulary: of {size} tokens in training, left out here: the head drafts by all rows of its target's LM head"
    return whole, [], [note]


def _engines(draft: TrainedDraft, format: str) -> tuple[str, ...]:
    """Engines whose rules such a folder keeps: models and plain EAGLE-3 heads load in all, but a strict one refuses an identity map."""
    owner = for_format(format) or USUAL
    if draft.kind.role != "head":
        return tuple(LOADERS)
    if format == "speculators" or _own_class(draft):
        return (owner.name,)
    loaders = {name: engine.heads[draft.kind.name] for name, engine in LOADERS.items() if engine.loads(draft.kind)}
    if format == PLAIN and _maps_nothing(draft):
        return tuple(name for name, loader in loaders.items() if loader.identity_map)
    form = loaders[owner.name].architectures[0]
    alike = {name: loader for name, loader in loaders.items() if loader.architectures[0] == form}
    return tuple(name for name, loader in alike.items() if loader.cut_block or not _cut_block(draft))


def _cut_block(draft: TrainedDraft) -> bool:
    """Whether a head of blocks drafts some of its target's words alone."""
    return draft.kind.passes == "block" and draft.shape.draft_vocab_size is not None


def _own_class(draft: TrainedDraft) -> bool:
    """Whether a head with its own LM head has what one engine alone computes: biases, or norms of queries and keys."""
    shape = draft.shape
    if isinstance(draft.model, Eagle3Head) and any(_variant(draft.model, engine) for engine in LOADERS.values()):
        return True
    return draft.kind.own_lm_head and (shape.qkv_bias or shape.mlp_bias or shape.qk_norm)


def _weights(
    draft: TrainedDraft,
    target: Path,
    config: dict[str, Any],
    folder: Path,
    settings: ExportSettings,
    dtype: torch.dtype,
) -> list[str]:
    """Weights and config; give what was done that was not asked for."""
    if isinstance(draft.model, Decoder):
        return _write_model(draft, draft.model, target, config, folder, dtype)
    loader = (for_format(settings.format) or USUAL).heads[draft.kind.name]
    architecture = (draft.shape.qk_norm and loader.qk_norm) or loader.architectures[0]
    layout = HeadLayout(architecture, fc_bias=loader.fc_bias)
    save_head(draft.model, folder, dtype=dtype, layout=layout, more=token_keys(config))
    if draft.model.lm_head is None and (
        _cut_block(draft) or (isinstance(draft.model, Eagle3Head) and not draft.model.maps_nothing)
    ):
        _with_lm_head(draft.model, target, folder, dtype)
    if settings.format in (PLAIN, "speculators"):
        notes = _with_embedding(draft.model, target, folder, dtype)
        if settings.format == "speculators":
            _as_speculators(folder, draft.kind, settings, target, config)
        elif _maps_nothing(draft):
            _with_map(folder, draft.shape.vocab_size)
        return notes
    return []


def _write_model(
    draft: TrainedDraft, model: Decoder, target: Path, config: dict[str, Any], folder: Path, dtype: torch.dtype
) -> list[str]:
    """A standalone model: the target's vocabulary, token ids and tokenizer."""
    words, target_words = vocabulary(draft.folder), vocabulary(target)
    if words is not None and target_words is not None and words != target_words:
        raise ValueError(f"{draft.folder}: its tokenizer is not the target's; a draft model must share it")
    rows, have = int(config["vocab_size"]), model.shape.vocab_size
    if (words is None or target_words is None) and abs(have / rows - 1) > 0.01:
        raise ValueError(f"{draft.folder}: vocab_size {have} is not the target's {rows}, and no tokenizer.json says that they agree")  # fmt: skip
    state = dict(model.state_dict())
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = fit_rows(state[name], rows)
    ids = {key: value for key, value in token_keys(config).items() if key != "max_position_embeddings"}
    shape = msgspec.structs.replace(model.shape, vocab_size=rows)
    save(state, shape, model.config, folder, dtype=dtype, more=ids | {"torch_dtype": str(dtype).removeprefix("torch.")})
    if (target / "generation_config.json").is_file():
        shutil.copyfile(target / "generation_config.json", folder / "generation_config.json")
    if rows == have:
        return []
    return [f"vocabulary: {have} rows {'filled up to' if rows > have else 'cut to'} the target's {rows}"]


def fit_rows(table_VC: torch.Tensor, rows: int) -> torch.Tensor:
    """A table of `rows` rows: cut, or filled up with its mean row, whose logit is the mean of the others and so never the largest."""
    missing = rows - len(table_VC)
    if missing <= 0:
        return table_VC[:rows].clone()
    mean = table_VC.float().mean(0, keepdim=True).to(table_VC.dtype)
    return torch.cat((table_VC, mean.expand(missing, -1)))


def _with_embedding(head: DraftHead, target: Path, folder: Path, dtype: torch.dtype) -> list[str]:
    """The target's embedding into a head's file, which then stands alone."""
    if head.embed_tokens is not None:
        return []
    table = target_embedding(target)
    if table is None:
        return [f"embed_tokens.weight left out: {target} holds no weights to copy it from, and {USUAL.label} shares the target's"]  # fmt: skip
    tensors = safetensors.torch.load_file(folder / SINGLE) | {"embed_tokens.weight": table.to(dtype).contiguous()}
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return []


def _with_lm_head(head: DraftHead, target: Path, folder: Path, dtype: torch.dtype) -> None:
    """The rows of the target's LM head that a head drafts by, in the order of its map: an engine that maps its words reads them from its file."""
    table = target_lm_head(target)
    if table is None or head.d2t is None:
        raise ValueError(
            f"{target} holds no weights: the LM head of the draft's words is copied from it; give the target's whole folder"
        )
    tensors = safetensors.torch.load_file(folder / SINGLE) | {
        "lm_head.weight": table[head.target_ids(torch.arange(len(head.d2t)))].to(dtype).contiguous()
    }
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def _maps_nothing(draft: TrainedDraft) -> bool:
    """Whether a plain EAGLE-3 head drafts the whole vocabulary, each token under its own id."""
    return isinstance(draft.model, Eagle3Head) and draft.model.maps_nothing and not _own_class(draft)


def _with_map(folder: Path, vocab_size: int) -> None:
    """The map that maps nothing: OpenVINO's exporter (optimum-intel 2.2) leaves one that is missing as memory held it."""
    tensors = safetensors.torch.load_file(folder / SINGLE)
    maps = {"d2t": torch.zeros(vocab_size, dtype=torch.int64), "t2d": torch.ones(vocab_size, dtype=torch.bool)}
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors | maps, metadata={"format": "pt"}))


def _as_speculators(folder: Path, kind: Kind, settings: ExportSettings, target: Path, config: dict[str, Any]) -> None:
    """A head's flat folder in the speculators format: config nested, layer 0 as `layers.0.`, norms once."""
    tensors = safetensors.torch.load_file(folder / SINGLE)
    named = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    tensors = {
        name: tensor for name, tensor in named.items() if ".hidden_norm" not in name or name.startswith("layers.0.")
    }
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    flat, verifier = records.read(dict[str, Any], folder / CONFIG), settings.verifier or str(target)
    nested = speculators.nested_config(
        flat, kind, settings.lookahead or LOOKAHEAD, verifier, config.get("architectures") or []
    )
    records.write(folder / CONFIG, nested)


def _write_launch(
    folder: Path, target: Path, record: Deployed, engine: ServingEngine, launched: dict[str, Any], plan: Plan | None
) -> None:
    """Settings and script of the format's own engine; of a plan with a line on lengths that follow the draft's confidence."""
    records.write(folder / engine.launch_file, launched)
    script = engine.script(record.target, str(target.resolve()), launched, plan)
    if plan is not None:
        first, rest = script.split("\n", 1)
        script = f"{first}\n# {lengths.note(engine, plan.settings[engine.name], plan, of_name(record.kind))}\n{rest}"
    records.write_bytes(folder / SERVE, script.encode())
    (folder / SERVE).chmod(0o755)


def _write_operations(
    folder: Path,
    out: Path,
    target: Path,
    engine: ServingEngine,
    kind: Kind,
    launched: dict[str, Any],
    plan: Plan | None,
) -> None:
    """Snippets for Docker Compose and Helm, and of a plan its alerts."""
    settings = engine.drafting(launched, kind, "", str(out))
    if engine.token_map_flag in settings:
        settings[engine.token_map_flag] = str(out / settings[engine.token_map_flag])
    thresholds = operations.planned_thresholds(plan.schedule) if plan else None
    for name, text in operations.texts(engine, str(target.resolve()), settings, thresholds).items():
        if text:
            records.write_bytes(folder / name, text.encode())
