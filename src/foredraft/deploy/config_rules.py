"""What a loader would misread in a draft's config.json.

Refuses to know: tensors, targets, what one engine alone does.
"""

from collections.abc import Iterator

from foredraft.deploy.findings import Finding, finding
from foredraft.deploy.folder import CONFIG, DraftFolder
from foredraft.engines import speculators
from foredraft.engines.engine import ServingEngine
from foredraft.engines.loading import lacking
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, aux_layer_ids, last_state_alone
from foredraft.shapes.quantised import in_few_bits

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
    if how := folder.config.get("quantization_config"):
        ours = in_few_bits(how)
        yield Finding(
            code="quantised", where="quantization_config", effect="its tensors cannot be judged here", level="warning",
            remedy="export it by foredraft deploy, which writes 16 bits" if ours else "judge the draft before it is quantised",
        )  # fmt: skip
    if folder.kind.role != "head":
        return
    yield from _architecture(folder, engine)
    yield from _flags(folder, engine)
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
            excused |= (
                key == "target_hidden_size" and folder.kind.passes == "block"
            )  # whose loaders take the head's own width
            if key in part and part[key] is None and not excused:
                yield Finding(
                    code="null-key", where=key, effect=f"is null: {effect}", engine=engine.name, remedy="give it a value or leave it out"
                )  # fmt: skip


def _architecture(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    """Of a flat config; that of the speculators format is overwritten by its reader."""
    loader = engine.heads[folder.kind.name]
    if folder.speculators or loader.takes(folder.config):
        return
    normed = loader.qk_norm if "layers.0.self_attn.q_norm.weight" in folder.names else None
    yield Finding(
        code="architecture", where="architectures", engine=engine.name, remedy=f"write [{(normed or loader.architectures[0])!r}]",
        effect=f"{folder.config.get('architectures')!r} names no class for an {folder.kind.label} head there",
    )  # fmt: skip


def _flags(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    if folder.config.get("bias"):
        yield Finding(
            code="bias-flag", where="bias", engine=engine.name, effect=f"is true: {engine.bias_key}, for which there is no tensor",
            remedy="leave the key out; attention_bias says what the layers have",
        )  # fmt: skip
    if folder.config.get("tie_word_embeddings") and folder.kind.own_lm_head and engine.ties_lm_head:
        yield Finding(
            code="tied-head", where="tie_word_embeddings", engine=engine.name, remedy="write false",
            effect="is true: the embedding takes the place of the head's own lm_head",
        )  # fmt: skip


def _hidden_states(folder: DraftFolder) -> Iterator[Finding]:
    """Where the two ways to say which of the target's hidden states are read say different things, or one stands alone; and heads that
    read the last state alone, a design in which both engines leave `fc` out.
    """
    entering, leaving = aux_layer_ids(folder.config)
    if not folder.kind.own_lm_head:
        return
    if entering and leaving and [i + 1 for i in leaving] != list(entering):
        yield Finding(
            code="stream-ids", where=AUX_LAYER_IDS, effect=f"{entering} and {AUX_CONFIG}'s {leaving} mean different hidden states",
            remedy=f"{AUX_CONFIG} counts one less: [1, 15, 28] beside [2, 16, 29]; or leave both out where they are the default",
        )  # fmt: skip
    if leaving and not entering:
        yield Finding(
            code="stream-ids-alone", where=f"{AUX_CONFIG}.{AUX_LAYER_IDS}", level="warning",
            effect=f"{leaving} alone is ambiguous: SGLang counts by the layer left, vLLM by the layer entered, so that one of them reads each "
            "hidden state a layer off, and nothing says for which the head was trained",
            remedy=f"if by the layer left, write {AUX_LAYER_IDS} {[i + 1 for i in leaving]} beside it; else {leaving}, and one less each here",
        )  # fmt: skip
    if last_state_alone(folder.config) and "fc.weight" in folder.names:
        yield Finding(
            code="streams-off", where=f"{AUX_CONFIG}.use_aux_hidden_state", level="warning",
            effect="is false: engines leave fc out and hand on the target's last hidden state, but the file has an fc.weight",
            remedy="write true where it was trained on hidden states, or leave fc.weight out",
        )  # fmt: skip
