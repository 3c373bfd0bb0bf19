"""Families of models, a row each by their model_type: what their configs and files call things, and their classes' defaults.

Promises: a family that differs from Llama in switches alone is a row here and nothing else. Refuses to know: torch, sizes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from foredraft.shapes.mixers import Keys
from foredraft.shapes.stack import Traits


class ModelFamily(NamedTuple):
    """One family; what is left out is Llama's.

    `architecture`: transformers' class, None where our decoder cannot run it. `sizes`: fields of a `Shape` and the config keys
    they come from, beyond the usual. `num_kv_heads`, `head_dim`: the class's defaults (None: derived). `tied`: it ties its
    embeddings by default. `rotary`: positions are rotations, not learned. `switches`: config keys, with the fields of a `Shape` that
    each sets and its default. `fields`: of a `Shape`, from a whole config. `slides`: whether attention slides over a window,
    "switched" where the config decides.
    `prefixes`: where a checkpoint may hang its decoder, the usual first; a bare model has none. `tensors`: patterns of our names
    (Llama's) and what they are on file. `dense`: the family of a smaller model of plain layers, whose public models draft for it.
    `traits`: of a family whose layers are read one by one (`stack`), because they are no plain ones or not all alike.
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
    traits: Traits | None = None


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
NORMED_HEAD_FAMILY = "qwen3"  # of one whose layers norm queries and keys
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

_DEEPSEEK = ModelFamily(dense="llama", traits=Traits(router_bias=True))
_QWEN_HYBRID = ModelFamily(dense="qwen3", traits=Traits(qk_norm="head", gate="double", shared_gate=True))
_TIED = {"tie_word_embeddings": True}
_GEMMA = _TIED | {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
_STEP = ModelFamily(dense="llama", traits=Traits(qk_norm="head", gate="heads", router_bias=True))


def _llama_like(**traits: Any) -> ModelFamily:
    return ModelFamily(dense="llama", traits=Traits(**traits))


# Read layer by layer; sources: transformers 5 and, for those that it does not have (mimo, nemotron-nas), the code beside their checkpoints.
FAMILIES |= {
    "qwen3_vl": ModelFamily(dense="qwen3", traits=Traits(qk_norm="head")),
    "qwen3_vl_moe": ModelFamily(dense="qwen3", traits=Traits(qk_norm="head")),
    "qwen3_omni_moe": ModelFamily(dense="qwen3", traits=Traits(qk_norm="head")),
    "qwen2_vl": ModelFamily(dense="qwen2", traits=Traits(qkv_bias=True)),
    "qwen2_5_vl": ModelFamily(dense="qwen2", traits=Traits(qkv_bias=True)),
    "qwen3_next": _QWEN_HYBRID, "qwen3_5": _QWEN_HYBRID, "qwen3_5_moe": _QWEN_HYBRID,
    "deepseek_v2": _llama_like(), "deepseek_v3": _DEEPSEEK, "deepseek_v32": _DEEPSEEK, "deepseek_v4": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK, "kimi_linear": _DEEPSEEK, "glm_moe_dsa": _DEEPSEEK, "glm4_moe_lite": _DEEPSEEK,
    "glm4": _llama_like(norms=4, o_bias=False), "glm4_moe": _llama_like(qk_norm="head", o_bias=False, router_bias=True),
    "llama4": _llama_like(defaults={"n_shared_experts": 1, "no_rope_layer_interval": 4}),
    "gemma2": _llama_like(norms=4, defaults=_GEMMA | {"sliding_window_pattern": 2, "sliding_window": 4096}),
    "gemma3": _llama_like(
        norms=4, qk_norm="head", defaults=_GEMMA | {"sliding_window_pattern": 6, "sliding_window": 4096, "vocab_size": 262208}
    ),
    "gemma4": _llama_like(
        norms=4, qk_norm="head", defaults=_GEMMA | {"sliding_window_pattern": 6, "sliding_window": 1024, "global_head_dim": 512}
    ),
    "gpt_oss": _llama_like(
        qkv_bias=True, o_bias=True, sinks=True, router_bias=True, expert_bias=True,
        defaults={"head_dim": 64, "sliding_window_pattern": 2, "sliding_window": 128},
    ),
    "minimax": _llama_like(), "minimax_m2": _llama_like(qk_norm="full", router_bias=True),
    "mimo": ModelFamily(dense="qwen2", traits=Traits(qkv_bias=True, o_bias=False)),
    "mimo_v2_flash": _llama_like(router_bias=True, defaults={"swa_num_key_value_heads": 8}),
    "step3p5": _STEP, "step3p7": _STEP,
    "nemotron_h": _llama_like(norms=1, gated_mlp=False, router_bias=True),
    "nemotron-nas": _llama_like(), "nemotron": _llama_like(gated_mlp=False),
    "ministral3": ModelFamily(dense="mistral", traits=Traits()), "mistral4": _llama_like(),
    "olmo2": _llama_like(qk_norm="full"), "olmo3": _llama_like(qk_norm="full"), "exaone4": _llama_like(qk_norm="head"),
    "smollm3": _llama_like(), "granite": _llama_like(), "phi3": _llama_like(), "cohere2": _llama_like(norms=1, defaults=_TIED),
    "ernie4_5_moe": _llama_like(router_bias=True, defaults=_TIED), "dots1": _llama_like(qk_norm="head", router_bias=True),
    "hunyuan_v1_moe": _llama_like(qk_norm="head", defaults=_TIED), "solar_open": _DEEPSEEK,
    "afmoe": _llama_like(norms=4, qk_norm="head", gate="full", router_bias=True),
    "bamba": _llama_like(), "granitemoehybrid": _llama_like(),
}  # fmt: skip

# Other names of a family: that of a text_config, and of the code beside a checkpoint.
OTHER_NAMES = {
    "kimi_k25": "deepseek_v3", "deepseek_ref": "deepseek_v4", "nemotron_nas": "nemotron-nas", "deci": "nemotron-nas", "step3p5_flash": "step3p5",
    "minimax_text_01": "minimax", "minimax_m1": "minimax",
}  # fmt: skip
_BY_CLASS = {
    "DeepseekV4": "deepseek_v4",
    "DeepseekV32": "deepseek_v32",
    "DeepseekV3": "deepseek_v3",
    "DeciLM": "nemotron-nas",
    "MiMo": "mimo",
}


def family_name(keys: Keys) -> str:
    """The family of a config by its model_type, by another name of it, or by the class that reads its checkpoint."""
    model_type = str(keys.get("model_type") or "").lower()
    for name in (model_type, model_type.removesuffix("_text"), OTHER_NAMES.get(model_type, "")):
        if name in FAMILIES:
            return name
    classes = [str(name) for name in keys.get("architectures") or () if name]
    by_class = (family for start, family in _BY_CLASS.items() for name in classes if name.startswith(start))
    return next(by_class, model_type)


def runs(model_type: str) -> bool:
    """Whether our decoder runs models of that family."""
    return FAMILIES.get(model_type, ModelFamily()).architecture is not None


def runnable(model_type: str) -> ModelFamily:
    """The family of a model that our decoder runs and writes. Raises ValueError on any other."""
    family = FAMILIES.get(model_type, ModelFamily())
    if family.architecture is None:
        names = ", ".join(name for name, row in FAMILIES.items() if row.architecture)
        raise ValueError(f"model_type {model_type!r} cannot be run (have {names})")
    return family


def dense_family(model_type: str) -> str:
    """The family of smaller models of plain layers beside a model: its own where it has no other, and Llama's for one that is not known."""
    family = FAMILIES.get(model_type)
    return HEAD_FAMILY if family is None else family.dense or model_type


def prefixes(model_type: str) -> tuple[str, ...]:
    """Where the checkpoint of a model of any family may hang its decoder."""
    return FAMILIES.get(model_type, ModelFamily()).prefixes
