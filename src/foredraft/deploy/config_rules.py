"""What a loader would misread in a draft's config.json.

Refuses to know: tensors, targets.
"""

from collections.abc import Iterator
from typing import Any

from foredraft.deploy.findings import Finding
from foredraft.deploy.folder import CONFIG, Folder
from foredraft.deploy.loaders import IDS, lacking

# Keys that engines ask for with hasattr or as an attribute, so that null is a value to them: vLLM or SGLang computes null × 3,
# or passes it on.
NEVER_NULL = {
    "target_hidden_size": "the loader multiplies null by the number of streams and stops",
    "draft_vocab_size": "SGLang takes null for 'load the target's LM head' and leaves the draft's own",
    "use_cache": "vLLM refuses the config",
    "num_hidden_layers": "the loader cannot count layers",
    "hidden_act": "the loader finds no activation",
    "rms_norm_eps": "the loader cannot build a norm",
    "vocab_size": "the loader cannot size the embedding",
}
SPECULATORS_MAY = ("target_hidden_size", IDS, "draft_vocab_size")  # there null is an absence
FAMILIES = ("llama", "qwen3")  # that vLLM's speculators reader maps to a class
LLAMA_CLASSES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLM", "PEagleDraftModel")
NAMES = {
    ("eagle3", "vllm"): (*LLAMA_CLASSES, "Eagle3Qwen3ForCausalLM", "Qwen3ForCausalLM", "Eagle3Speculator"),
    ("eagle3", "sglang"): ("LlamaForCausalLMEagle3",),
    ("eagle", "vllm"): ("LlamaForCausalLM", "EagleLlamaForCausalLM"),
    ("eagle", "sglang"): ("LlamaForCausalLMEagle",),
}


def config_rules(folder: Folder, engine: str) -> Iterator[Finding]:
    """Findings of config.json alone, as `engine` reads it."""
    yield from _missing(folder)
    yield from _nulls(folder, engine)
    if folder.config.get("quantization_config"):
        yield Finding(
            code="quantised", where="quantization_config", effect="its tensors cannot be judged here", level="warning",
            remedy="judge the draft before it is quantised",
        )  # fmt: skip
    if folder.kind == "lm":
        return
    yield from _architecture(folder, engine)
    yield from _flags(folder.config, folder.kind, engine)
    yield from _streams(folder, engine)
    if folder.speculators:
        yield from _speculators(folder, engine)


def _missing(folder: Folder) -> Iterator[Finding]:
    for key in lacking(folder.config):
        if key in folder.config or folder.config.get("model_type") != "opt":
            yield Finding(
                code="key-missing", where=key, effect=f"is {folder.config.get(key)!r}, so that the model has no size",
                remedy=f"write {key} into {CONFIG} as a positive whole number",
            )  # fmt: skip
    if folder.kind == "eagle3" and "draft_vocab_size" not in folder.config:
        yield Finding(
            code="key-missing", where="draft_vocab_size", engine="sglang", effect="SGLang reads it as an attribute and stops",
            remedy="write it; over the whole vocabulary it equals vocab_size",
        )  # fmt: skip


def _nulls(folder: Folder, engine: str) -> Iterator[Finding]:
    inner = folder.raw.get("transformer_layer_config")
    parts = [folder.raw, *([inner] if isinstance(inner, dict) else [])]
    for part in parts:
        for key, effect in NEVER_NULL.items():
            excused = folder.speculators and part is folder.raw and key in SPECULATORS_MAY
            if key in part and part[key] is None and not excused:
                yield Finding(
                    code="null-key", where=key, effect=f"is null: {effect}", engine=engine, remedy="give it a value or leave it out"
                )  # fmt: skip


def _architecture(folder: Folder, engine: str) -> Iterator[Finding]:
    named = folder.raw.get("architectures")
    allowed = NAMES[folder.kind, engine]
    if folder.speculators and engine == "sglang":
        return  # told by _speculators
    if isinstance(named, list) and named and named[0] in allowed:
        return
    yield Finding(
        code="architecture", where="architectures", engine=engine, remedy=f"write [{allowed[0]!r}]",
        effect=f"{named!r} names no class for an {folder.kind} head there",
    )  # fmt: skip


def _flags(config: dict[str, Any], kind: str, engine: str) -> Iterator[Finding]:
    if config.get("bias"):
        effect = "vLLM adds biases to the attention" if engine == "vllm" else "SGLang adds a bias to fc"
        yield Finding(
            code="bias-flag", where="bias", engine=engine, effect=f"is true: {effect}, for which there is no tensor",
            remedy="leave the key out; attention_bias says what the layers have",
        )  # fmt: skip
    if config.get("tie_word_embeddings"):
        yield Finding(
            code="tied-head", where="tie_word_embeddings", engine=engine, remedy="write false",
            effect="is true: the embedding takes the place of the head's own lm_head",
        )  # fmt: skip
    if engine == "sglang" and config.get("norm_before_residual"):
        yield Finding(
            code="norm-before-residual", where="norm_before_residual", engine="sglang", remedy="serve it on vLLM",
            effect="is true, but SGLang's residual is always the raw hidden state: it computes something else",
        )  # fmt: skip
    if engine == "sglang" and config.get("norm_before_fc"):
        yield Finding(
            code="norm-before-fc", where="norm_before_fc", engine="sglang", remedy="serve it on vLLM",
            effect="is true, but SGLang has no such norm and skips its weights",
        )  # fmt: skip
    if engine == "sglang" and config.get("attention_bias") and kind == "eagle3":
        yield Finding(
            code="attention-bias", where="attention_bias", engine="sglang", remedy="serve it on vLLM",
            effect="is true, but SGLang's EAGLE-3 layers have none and skip them",
        )  # fmt: skip


def _streams(folder: Folder, engine: str) -> Iterator[Finding]:
    """Which of the target's hidden states are read: vLLM counts them by the layer entered, SGLang by the layer left."""
    if folder.kind != "eagle3":
        return
    config = folder.config
    eagle = config.get("eagle_config")
    if engine == "vllm" and isinstance(eagle, dict) and eagle.get("use_aux_hidden_state", True) is False:
        yield Finding(
            code="streams-off", where="eagle_config.use_aux_hidden_state", engine="vllm", remedy="write true, or leave it out",
            effect="is false: vLLM leaves fc out and hands on the target's last hidden state",
        )  # fmt: skip
    entering, leaving = config.get(IDS), eagle.get(IDS) if isinstance(eagle, dict) else None
    if entering and leaving:
        if [i + 1 for i in leaving] != list(entering):
            yield Finding(
                code="stream-ids", where=IDS, effect=f"{entering} and eagle_config's {leaving} mean different streams",
                remedy="eagle_config counts one less: [1, 15, 28] beside [2, 16, 29]; or leave both out where they are the default",
            )  # fmt: skip
    elif leaving and engine == "vllm":
        yield Finding(
            code="stream-ids-alone", where=f"eagle_config.{IDS}", engine="vllm",
            effect=f"vLLM takes {leaving} as its own count and reads each stream one layer too early",
            remedy=f"write {IDS} {[i + 1 for i in leaving]} beside it",
        )  # fmt: skip
    elif entering and engine == "sglang":
        yield Finding(
            code="stream-ids-alone", where=IDS, engine="sglang", effect=f"SGLang does not see {entering} and reads the default streams",
            remedy=f"write eagle_config with {IDS} {[i - 1 for i in entering]} beside it",
        )  # fmt: skip
    if engine == "sglang" and (config.get("num_aux_hidden_states") == 1 or len(leaving or (0, 0)) == 1):
        yield Finding(
            code="fc-skipped", where="num_aux_hidden_states", engine="sglang", remedy="train on three streams, or serve on vLLM",
            effect="with one stream as wide as the head, SGLang leaves fc out",
        )  # fmt: skip


def _speculators(folder: Folder, engine: str) -> Iterator[Finding]:
    if engine == "sglang":
        yield Finding(
            code="architecture", where="speculators_config", engine="sglang", remedy="export it with --format sglang",
            effect="SGLang has no class for this format",
        )  # fmt: skip
        return
    raw = folder.raw
    for where, why in _broken(raw):
        yield Finding(
            code="speculators", where=where, engine="vllm", effect=f"{why}: vLLM refuses the folder",
            remedy="export it again with --format speculators",
        )  # fmt: skip
    if "norm_before_residual" not in raw:
        yield Finding(
            code="norm-default", where="norm_before_residual", engine="vllm",
            effect="is absent, which means true here and false in the flat format", remedy="write it as the head was trained",
        )  # fmt: skip


def _broken(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the structure departs from what vLLM walks through."""
    inner = raw.get("transformer_layer_config")
    if not isinstance(inner, dict):
        yield "transformer_layer_config", "is no object"
    elif inner.get("model_type", "llama") not in FAMILIES:
        yield "transformer_layer_config.model_type", f"{inner.get('model_type')!r} is none of {', '.join(FAMILIES)}"
    if raw.get("speculators_model_type") != "eagle3":
        yield "speculators_model_type", f"is {raw.get('speculators_model_type')!r}, not 'eagle3'"
    held = raw.get("speculators_config")
    held = held if isinstance(held, dict) else {}
    methods = held.get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods and isinstance(methods[0], dict) else {}
    if not isinstance(first.get("speculative_tokens"), int):
        yield "speculators_config.proposal_methods", "gives no speculative_tokens"
    verifier = held.get("verifier")
    if not (isinstance(verifier, dict) and verifier.get("name_or_path")):
        yield "speculators_config.verifier", "names no name_or_path"
