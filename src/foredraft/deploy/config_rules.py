"""What a loader would misread in a draft's config.json.

Refuses to know: tensors, targets, what one engine alone does.
"""

from collections.abc import Iterator
from typing import Any

from foredraft.deploy.findings import Finding, finding
from foredraft.deploy.folder import CONFIG, DraftFolder
from foredraft.engines import speculators
from foredraft.engines.engine import ServingEngine
from foredraft.engines.loading import lacking
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, aux_layer_ids

# Keys that engines ask for with hasattr or as an attribute, so that null is a value to them: they compute null × 3, or pass it on.
NEVER_NULL = {
    "target_hidden_size": "the loader multiplies null by the number of hidden states and stops",
    "num_hidden_layers": "the loader cannot count layers",
    "hidden_act": "the loader finds no activation",
    "rms_norm_eps": "the loader cannot build a norm",
    "vocab_size": "the loader cannot size the embedding",
}


def config_rules(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    """Findings of config.json alone, as `engine` reads it."""
    yield from _missing(folder)
    yield from _nulls(folder, engine)
    if folder.config.get("quantization_config"):
        yield Finding(
            code="quantised", where="quantization_config", effect="its tensors cannot be judged here", level="warning",
            remedy="judge the draft before it is quantised",
        )  # fmt: skip
    if folder.kind.role != "head":
        return
    yield from _architecture(folder, engine)
    yield from _flags(folder.config, engine)
    yield from _hidden_states(folder)
    for fault in engine.config_faults(folder):
        yield finding(fault, engine.name)


def _missing(folder: DraftFolder) -> Iterator[Finding]:
    for key in lacking(folder.config):
        if key in folder.config or folder.config.get("model_type") != "opt":
            yield Finding(
                code="key-missing", where=key, effect=f"is {folder.config.get(key)!r}, so that the model has no size",
                remedy=f"write {key} into {CONFIG} as a positive whole number",
            )  # fmt: skip


def _nulls(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    inner = folder.raw.get("transformer_layer_config")
    parts = [folder.raw, *([inner] if isinstance(inner, dict) else [])]
    for part in parts:
        for key, effect in (NEVER_NULL | dict(engine.never_null)).items():
            excused = folder.speculators and part is folder.raw and key in speculators.MAY_BE_NULL
            if key in part and part[key] is None and not excused:
                yield Finding(
                    code="null-key", where=key, effect=f"is null: {effect}", engine=engine.name, remedy="give it a value or leave it out"
                )  # fmt: skip


def _architecture(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    names, accepted = folder.raw.get("architectures"), engine.heads[folder.kind.name].architectures
    if folder.speculators and speculators.ARCHITECTURE not in accepted:
        return  # which `config_faults` tells
    if isinstance(names, list) and names and names[0] in accepted:
        return
    yield Finding(
        code="architecture", where="architectures", engine=engine.name, remedy=f"write [{accepted[0]!r}]",
        effect=f"{names!r} names no class for an {folder.kind.name} head there",
    )  # fmt: skip


def _flags(config: dict[str, Any], engine: ServingEngine) -> Iterator[Finding]:
    if config.get("bias"):
        yield Finding(
            code="bias-flag", where="bias", engine=engine.name, effect=f"is true: {engine.bias_key}, for which there is no tensor",
            remedy="leave the key out; attention_bias says what the layers have",
        )  # fmt: skip
    if config.get("tie_word_embeddings"):
        yield Finding(
            code="tied-head", where="tie_word_embeddings", engine=engine.name, remedy="write false",
            effect="is true: the embedding takes the place of the head's own lm_head",
        )  # fmt: skip


def _hidden_states(folder: DraftFolder) -> Iterator[Finding]:
    """Where the two ways to say which of the target's hidden states are read say different things."""
    entering, leaving = aux_layer_ids(folder.config)
    if folder.kind.hidden_states > 1 and entering and leaving and [i + 1 for i in leaving] != list(entering):
        yield Finding(
            code="stream-ids", where=AUX_LAYER_IDS, effect=f"{entering} and {AUX_CONFIG}'s {leaving} mean different hidden states",
            remedy=f"{AUX_CONFIG} counts one less: [1, 15, 28] beside [2, 16, 29]; or leave both out where they are the default",
        )  # fmt: skip
