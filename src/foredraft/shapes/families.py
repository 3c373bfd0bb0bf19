"""Families of models, a row each by their model_type: what their configs and files call things, and their classes' defaults.

Promises: a family that differs from Llama in switches alone is a row here and nothing else. Refuses to know: torch, sizes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Keys = Mapping[str, Any]  # of a config.json


class ModelFamily(NamedTuple):
    """One family; what is left out is Llama's.

    `architecture`: transformers' class, None where our decoder cannot run it. `sizes`: fields of a `Shape` and the config keys
    they come from, beyond the usual. `num_kv_heads`, `head_dim`: the class's defaults (None: derived). `tied`: it ties its
    embeddings by default. `rotary`: positions are rotations, not learned. `switches`: config keys, with the fields of a `Shape` that
    each sets and its default. `fields`: of a `Shape`, from a whole config. `slides`: whether attention slides over a window,
    "switched" where the config decides.
    `prefixes`: where a checkpoint may hang its decoder, the usual first; a bare model has none. `tensors`: patterns of our names
    (Llama's) and what they are on file. `dense`: the family of a smaller model without experts.
    """

    architecture: str | None = None
    sizes: Mapping[str, str] = {}
    num_kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    rotary: bool = True
    switches: Mapping[str, tuple[tuple[str, ...], bool]] = {}
    fields: Callable[[Keys], dict[str, Any]] = lambda keys: {}
    slides: Literal["never", "always", "switched"] = "never"
    prefixes: tuple[str, ...] = ("model.", "")
    tensors: tuple[tuple[str, str], ...] = ()
    dense: str | None = None


def _experts(keys: Keys) -> dict[str, Any]:
    """Which layers have them (Qwen)."""
    return {"sparse_step": keys.get("decoder_sparse_step", 1), "dense_layers": keys.get("mlp_only_layers") or ()}


def _qwen2(keys: Keys) -> dict[str, Any]:
    return {"qkv_bias": keys.get("qkv_bias", True)}


def _opt(keys: Keys) -> dict[str, Any]:
    """Biases everywhere, LayerNorm, learned positions plus two rows; OPT-350m is post-norm and narrower."""
    bias, positions = keys.get("enable_bias", True), keys.get("max_position_embeddings") or 2048
    width = keys.get("word_embed_proj_dim")
    pre_norm = keys.get("do_layer_norm_before", True) and not keys.get("_remove_final_layer_norm", False)
    return {
        "gated_mlp": False, "layer_norm": True, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias,
        "max_position_embeddings": positions, "position_rows": positions + 2 if isinstance(positions, int) else 0,
        "embed_dim": None if width == keys["hidden_size"] else width, "final_norm": pre_norm,
    }  # fmt: skip


_QWEN_EXPERTS = {
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
}
_ATTENTION_BIAS = {"attention_bias": (("qkv_bias", "o_bias"), False)}
_MLP_BIAS = {"mlp_bias": (("mlp_bias",), False)}
_OPT_TENSORS = (
    (r"self_attn\.o_proj", "self_attn.out_proj"), (r"mlp\.up_proj", "fc1"), (r"mlp\.down_proj", "fc2"),
    (r"input_layernorm", "self_attn_layer_norm"), (r"post_attention_layernorm", "final_layer_norm"),
    (r"^norm\.", "final_layer_norm."),
)  # fmt: skip

HEAD_FAMILY = "llama"  # of the layers of a new draft head
FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily("LlamaForCausalLM", switches=_ATTENTION_BIAS | _MLP_BIAS),
    "mistral": ModelFamily("MistralForCausalLM", num_kv_heads=8, slides="always"),
    "qwen2": ModelFamily("Qwen2ForCausalLM", num_kv_heads=32, fields=_qwen2, slides="switched"),
    "qwen3": ModelFamily(
        "Qwen3ForCausalLM", num_kv_heads=32, head_dim=128, switches=_ATTENTION_BIAS,
        fields=lambda keys: {"qk_norm": True}, slides="switched",
    ),
    "opt": ModelFamily(
        "OPTForCausalLM", sizes={"intermediate_size": "ffn_dim"}, tied=True, rotary=False, fields=_opt,
        prefixes=("model.decoder.", "decoder.", ""), tensors=_OPT_TENSORS,
    ),
    "mixtral": ModelFamily(
        sizes={"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}, num_kv_heads=8,
        fields=lambda keys: {"moe_intermediate_size": keys["intermediate_size"]}, dense="mistral",
    ),
    "qwen2_moe": ModelFamily(
        sizes=_QWEN_EXPERTS | {"shared_intermediate_size": "shared_expert_intermediate_size"}, num_kv_heads=16,
        fields=lambda keys: _qwen2(keys) | _experts(keys), dense="qwen2",
    ),
    "qwen3_moe": ModelFamily(
        sizes=_QWEN_EXPERTS, num_kv_heads=4, switches=_ATTENTION_BIAS,
        fields=lambda keys: {"qk_norm": True} | _experts(keys), dense="qwen3",
    ),
    "seed_oss": ModelFamily(
        "SeedOssForCausalLM", num_kv_heads=8, head_dim=128,
        switches={"attention_bias": (("qkv_bias",), True), "attention_out_bias": (("o_bias",), False)} | _MLP_BIAS,
    ),
}  # fmt: skip


def runnable(model_type: str) -> ModelFamily:
    """The family of a model that our decoder runs and writes. Raises ValueError on any other."""
    family = FAMILIES.get(model_type, ModelFamily())
    if family.architecture is None:
        names = ", ".join(name for name, row in FAMILIES.items() if row.architecture)
        raise ValueError(f"model_type {model_type!r} cannot be run (have {names})")
    return family


def prefixes(model_type: str) -> tuple[str, ...]:
    """Where the checkpoint of a model of any family may hang its decoder."""
    return FAMILIES.get(model_type, ModelFamily()).prefixes
