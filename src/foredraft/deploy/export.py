"""Write a trained draft as the folder that an engine loads, with its launch settings and a model card.

Promises: a folder appears whole, after it was read back by the rules of the loaders it is for, or not at all; what an engine
could not compute is refused with the reason. Refuses to know: how the draft was trained.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors.torch
import torch

from foredraft import records
from foredraft.deploy import launch
from foredraft.deploy.card import card
from foredraft.deploy.check import check
from foredraft.deploy.draft import Draft, read_draft, target_embedding, token_keys
from foredraft.deploy.findings import Finding, errors
from foredraft.deploy.folder import CONFIG
from foredraft.deploy.target_rules import config_of
from foredraft.deploy.vocabulary import copy_tokenizer, fitted, vocabulary
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead, HeadLayout
from foredraft.models.eagle3 import IDS, Eagle3Head
from foredraft.models.heads import save_head
from foredraft.models.save import save
from foredraft.records import Observation, Plan, Record
from foredraft.runs import name_of
from foredraft.shapes.folder import SINGLE

FORMATS = ("vllm", "sglang", "speculators", "hf")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VERSION = "0.1.0"  # of the speculators format that is written


class Settings(Record, frozen=True):
    """How to export. `dtype`: of the weights, as they are stored where None. `lookahead`: without a plan. `verifier`: the target's
    name in a speculators config, its folder where None. `note`: words for the card.
    """

    format: str = "vllm"
    dtype: str | None = None
    lookahead: int = 4
    verifier: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.lookahead < 1:
            raise ValueError(f"lookahead must be at least 1, got {self.lookahead}")


class Deployed(Record, frozen=True):
    """What `deploy.json` says of the folder it lies in."""

    kind: str
    format: str
    engines: tuple[str, ...]
    dtype: str
    target: str
    draft: str
    planned: bool


class Exported(NamedTuple):
    """What was written, and what to mind: warnings of the check, and what was done to the vocabulary."""

    record: Deployed
    files: list[str]
    warnings: list[Finding]
    notes: list[str]


def export(
    draft: str | Path,
    target: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    plan: Plan | None = None,
    observations: Sequence[Observation] = (),
) -> Exported:
    """Write the draft in a folder for an engine. Raises ValueError where the format cannot hold it, and where the folder written
    does not pass `check`.
    """
    config, held = config_of(target), read_draft(draft, target)
    _refuse(held, settings.format)
    if plan is not None:
        launch.check_plan(plan, held.kind)
        settings = msgspec.structs.replace(settings, lookahead=max(step.lookahead for step in plan.schedule))
    name = Path(target).resolve().name
    record = Deployed(
        kind=held.kind, format=settings.format, engines=_engines(held, settings.format),
        dtype=settings.dtype or str(held.dtype).removeprefix("torch."), target=name, draft=name_of(draft), planned=plan is not None,
    )  # fmt: skip
    with records.whole_folder(out) as folder:
        notes = _weights(held, Path(target), config, folder, settings, DTYPES[record.dtype])
        copy_tokenizer(target, folder)
        _launch(folder, Path(out), Path(target), record, plan, settings.lookahead)
        records.write(folder / launch.DEPLOY, record)
        text = card(held, record, plan, observations, settings.note, settings.lookahead)
        records.write_bytes(folder / "README.md", text.encode())
        found = check(folder, target)
        if bad := errors(found):
            raise ValueError(f"{out}: not written, since it would not serve: {bad[0]}")
        files = sorted(path.name for path in folder.iterdir())
    if plan is not None and Path(plan.target).name != name:
        notes.append(f"the plan is for {plan.target}, this target is {name}: its schedule may not suit")
    return Exported(record, files, found, notes)


def _refuse(draft: Draft, format: str) -> None:
    """What a format has no place for."""
    shape = draft.shape
    if format == "speculators" and draft.kind != "eagle3":
        raise ValueError(
            f"format speculators: vLLM reads EAGLE-3 heads from it, not {draft.kind}; use --format vllm, or hf"
        )
    if draft.kind == "lm":
        return
    if shape.qk_norm and (format == "sglang" or draft.kind == "eagle"):
        raise ValueError(f"format {format}: no class there norms queries and keys of a head; EAGLE-3 on vLLM does")
    if format == "sglang" and draft.kind == "eagle3" and (shape.qkv_bias or shape.mlp_bias):
        raise ValueError("format sglang: its EAGLE-3 layers have no biases and would skip them; use --format vllm")


def _engines(draft: Draft, format: str) -> tuple[str, ...]:
    """The engines whose rules a folder of this format keeps: models and plain EAGLE-3 heads load in both, but vLLM stops at a map
    that maps nothing.
    """
    if (draft.kind == "eagle" and format == "sglang") or (format == "hf" and _maps_nothing(draft)):
        return ("sglang",)
    return ("vllm",) if format == "speculators" or draft.kind == "eagle" or _own_class(draft) else ("vllm", "sglang")


def _own_class(draft: Draft) -> bool:
    """Whether an EAGLE-3 head has what vLLM alone computes: biases, or norms of queries and keys."""
    shape = draft.shape
    return draft.kind == "eagle3" and (shape.qkv_bias or shape.mlp_bias or shape.qk_norm)


def _weights(
    draft: Draft, target: Path, config: dict[str, Any], folder: Path, settings: Settings, dtype: torch.dtype
) -> list[str]:
    """Weights and config; give what was done that was not asked for."""
    if isinstance(draft.model, Decoder):
        return _write_model(draft, draft.model, target, config, folder, dtype)
    layout = (
        HeadLayout("LlamaForCausalLMEagle", fc_bias=True)
        if (settings.format, draft.kind) == ("sglang", "eagle")
        else None
    )
    more = token_keys(config)
    if draft.shape.qk_norm:
        more["architectures"] = ["Eagle3Qwen3ForCausalLM"]
    save_head(draft.model, folder, dtype=dtype, layout=layout, more=more)
    if settings.format in ("hf", "speculators"):
        notes = _with_embedding(draft.model, target, folder, dtype)
        if settings.format == "speculators":
            _as_speculators(folder, settings, target, config)
        elif _maps_nothing(draft):
            _with_map(folder, draft.shape.vocab_size)
        return notes
    return []


def _write_model(
    draft: Draft, model: Decoder, target: Path, config: dict[str, Any], folder: Path, dtype: torch.dtype
) -> list[str]:
    """A standalone model: the target's vocabulary, token ids and tokenizer."""
    own, theirs = vocabulary(draft.folder), vocabulary(target)
    if own is not None and theirs is not None and own != theirs:
        raise ValueError(f"{draft.folder}: its tokenizer is not the target's; a draft model must share it")
    rows, have = int(config["vocab_size"]), model.shape.vocab_size
    if (own is None or theirs is None) and abs(have / rows - 1) > 0.01:
        raise ValueError(f"{draft.folder}: vocab_size {have} is not the target's {rows}, and no tokenizer.json says that they agree")  # fmt: skip
    state = dict(model.state_dict())
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = fitted(state[name], rows)
    ids = {key: value for key, value in token_keys(config).items() if key != "max_position_embeddings"}
    shape = msgspec.structs.replace(model.shape, vocab_size=rows)
    save(
        state,
        shape,
        model.config,
        folder,
        dtype=dtype,
        more=ids | {"torch_dtype": str(dtype).removeprefix("torch.")},
    )
    if (target / "generation_config.json").is_file():
        shutil.copyfile(target / "generation_config.json", folder / "generation_config.json")
    if rows == have:
        return []
    return [f"vocabulary: {have} rows {'filled up to' if rows > have else 'cut to'} the target's {rows}"]


def _with_embedding(head: DraftHead, target: Path, folder: Path, dtype: torch.dtype) -> list[str]:
    """The target's embedding into a head's file, which then stands alone."""
    if head.embed_tokens is not None:
        return []
    table = target_embedding(target)
    if table is None:
        return [f"embed_tokens.weight left out: {target} holds no weights to copy it from, and vLLM shares the target's"]  # fmt: skip
    tensors = safetensors.torch.load_file(folder / SINGLE) | {"embed_tokens.weight": table.to(dtype).contiguous()}
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return []


def _maps_nothing(draft: Draft) -> bool:
    """Whether a plain EAGLE-3 head drafts the whole vocabulary, each token under its own id."""
    head = draft.model
    whole = isinstance(head, Eagle3Head) and len(head.d2t) == draft.shape.vocab_size and not bool(head.d2t.any())
    return whole and not _own_class(draft)


def _with_map(folder: Path, vocab_size: int) -> None:
    """The map that maps nothing: OpenVINO's exporter (optimum-intel 2.2) leaves one that is missing as memory held it."""
    tensors = safetensors.torch.load_file(folder / SINGLE)
    maps = {"d2t": torch.zeros(vocab_size, dtype=torch.int64), "t2d": torch.ones(vocab_size, dtype=torch.bool)}
    records.write_bytes(folder / SINGLE, safetensors.torch.save(tensors | maps, metadata={"format": "pt"}))


def _as_speculators(folder: Path, settings: Settings, target: Path, config: dict[str, Any]) -> None:
    """The flat folder of an EAGLE-3 head in the speculators format: config nested, layer 0 as `layers.0.`, norms once."""
    tensors = safetensors.torch.load_file(folder / SINGLE)
    named = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    kept = {name: one for name, one in named.items() if "hidden_norm" not in name or name.startswith("layers.0.")}
    records.write_bytes(folder / SINGLE, safetensors.torch.save(kept, metadata={"format": "pt"}))
    flat = records.read(dict[str, Any], folder / CONFIG)
    records.write(folder / CONFIG, speculators_config(flat, settings, str(target), config))


OWN_KEYS = (
    "draft_vocab_size", "target_hidden_size", "norm_before_residual", "fc_norm", "norm_output", IDS, "tie_word_embeddings",
    "torch_dtype",
)  # fmt: skip


def speculators_config(
    flat: dict[str, Any], settings: Settings, target: str, target_config: dict[str, Any]
) -> dict[str, Any]:
    """The nested config of a flat one. Every switch is written: an absent norm_before_residual would mean true."""
    dropped = (*OWN_KEYS, "architectures", "eagle_config")
    own = {key: flat[key] for key in OWN_KEYS if key in flat}
    method = {"proposal_type": "greedy", "speculative_tokens": settings.lookahead, "verifier_accept_k": 1, "accept_tolerance": 0.0}  # fmt: skip
    verifier = {"name_or_path": settings.verifier or target, "architectures": target_config.get("architectures") or []}
    return own | {
        "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "speculators_version": VERSION,
        "norm_before_fc": False, "embed_requires_grad": False,
        "transformer_layer_config": {key: value for key, value in flat.items() if key not in dropped},
        "speculators_config": {
            "algorithm": "eagle3", "default_proposal_method": "greedy", "proposal_methods": [method], "verifier": verifier,
        },
    }  # fmt: skip


def _launch(folder: Path, out: Path, target: Path, record: Deployed, plan: Plan | None, lookahead: int) -> None:
    """Settings and script of the format's own engine; a plain Hugging Face folder is for whoever loads those."""
    path = str(target.resolve())
    if record.format == "sglang":
        flags = launch.sglang_flags(record.kind, plan, lookahead)
        records.write(folder / launch.FLAGS, flags)
        script = launch.sglang_script(record.target, path, flags, plan)
    elif record.format in ("vllm", "speculators"):
        config = launch.speculative_config(record.kind, plan, lookahead, str(out.resolve()))
        records.write(folder / launch.SPECULATIVE, config)
        script = launch.vllm_script(record.target, path, plan)
    else:
        return
    records.write_bytes(folder / launch.SERVE, script.encode())
    (folder / launch.SERVE).chmod(0o755)
