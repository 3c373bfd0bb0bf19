"""What each engine's loader expects of a draft's file: names and shapes, and what it does with the rest.

Read from vLLM 0.32 (llama_eagle, llama_eagle3, qwen3_eagle3, AutoWeightsLoader) and SGLang of August 2026 (llama_eagle,
llama_eagle3), whose rules differ: vLLM stops at a tensor it does not know, SGLang skips it without a word; neither stops
at one that is missing.

Refuses to know: files, targets.

Shapes: H draft hidden, Ht target hidden, V target vocabulary, Vd draft vocabulary, A query width, K key width, I MLP.
"""

from typing import Any, NamedTuple

Shape = tuple[int, ...]
IDS = "eagle_aux_hidden_state_layer_ids"


class Sizes(NamedTuple):
    """The numbers behind a head's tensors, as a loader reads its config."""

    layers: int
    hidden: int
    target_hidden: int
    vocab: int
    draft_vocab: int
    queries: int
    keys: int
    inner: int
    streams: int
    head_dim: int
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool
    fc_norm: bool
    norm_before_fc: bool


REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def lacking(config: dict[str, Any]) -> list[str]:
    """Sizes that a config does not give as positive whole numbers."""
    return [key for key in REQUIRED if not _whole(config.get(key))]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def sizes_of(config: dict[str, Any], kind: str) -> Sizes:
    """The sizes of a config that lacks none. A null is taken for an absence: it is told of by itself."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    eagle = config.get("eagle_config") or {}
    ids = eagle.get(IDS) or config.get(IDS)
    qwen2, qwen3 = config.get("model_type") == "qwen2", config.get("model_type") == "qwen3"
    return Sizes(
        layers=config["num_hidden_layers"], hidden=hidden, target_hidden=config.get("target_hidden_size") or hidden,
        vocab=config["vocab_size"], draft_vocab=config.get("draft_vocab_size") or config["vocab_size"], queries=heads * width,
        keys=(config.get("num_key_value_heads") or heads) * width, inner=config["intermediate_size"],
        streams=config.get("num_aux_hidden_states") or (len(ids) if ids else 3), head_dim=width,
        attention_bias=bool(config.get("attention_bias") or (qwen2 and config.get("qkv_bias", False))),
        mlp_bias=bool(config.get("mlp_bias")), qk_norm=qwen3 and kind == "eagle3",
        fc_norm=bool(config.get("fc_norm") or config.get("use_aux_norm")),
        norm_before_fc=bool(eagle.get("norm_before_fc", config.get("norm_before_fc"))),
    )  # fmt: skip


class Wanted(NamedTuple):
    """`needed`: tensors without which the loader computes something else; `optional`: those it takes if they are there."""

    needed: dict[str, Shape]
    optional: dict[str, Shape]


def wanted(sizes: Sizes, kind: str, engine: str) -> Wanted:
    """The tensors of a head as `engine` loads them, by their names inside."""
    return _eagle3(sizes, engine) if kind == "eagle3" else _eagle(sizes, engine)


def _eagle3(s: Sizes, engine: str) -> Wanted:
    needed: dict[str, Shape] = {"fc.weight": (s.hidden, s.streams * s.target_hidden), "norm.weight": (s.hidden,)}
    needed |= {"lm_head.weight": (s.draft_vocab, s.hidden)}
    optional: dict[str, Shape] = {"t2d": (s.vocab,)}
    for i in range(s.layers):
        needed |= _layer(s, i, engine, 2 * s.hidden if i == 0 else s.hidden, biases=engine == "vllm")
        norms = {f"layers.{i}.{name}.weight": (s.hidden,) for name in ("input_layernorm", "hidden_norm")}
        unused = f"layers.{i}.{'hidden_norm' if engine == 'vllm' else 'input_layernorm'}.weight"
        needed |= {name: shape for name, shape in norms.items() if i == 0 or name != unused}
        optional |= {unused: norms[unused]} if i else {}
    if s.fc_norm:
        needed |= {f"fc_norm.{i}.weight": (s.target_hidden,) for i in range(s.streams)}
    if s.norm_before_fc and engine == "vllm":
        needed |= {"input_norm.weight": (s.streams * s.target_hidden,)}
    table = {"embed_tokens.weight": (s.vocab, s.hidden)}
    (optional if s.hidden == s.target_hidden else needed).update(table)
    if s.draft_vocab != s.vocab:
        needed["d2t"] = (s.draft_vocab,)
    elif engine == "sglang":
        optional["d2t"] = (s.draft_vocab,)
    return Wanted(needed, optional)


def _eagle(s: Sizes, engine: str) -> Wanted:
    needed: dict[str, Shape] = {"fc.weight": (s.hidden, 2 * s.hidden)}
    needed |= {"fc.bias": (s.hidden,)} if engine == "sglang" else {}
    for i in range(s.layers):
        needed |= _layer(s, i, engine, s.hidden, biases=True)
        needed |= {f"layers.{i}.input_layernorm.weight": (s.hidden,)} if i else {}
    return Wanted(needed, {"embed_tokens.weight": (s.vocab, s.hidden)})


def _layer(s: Sizes, index: int, engine: str, entry: int, *, biases: bool) -> dict[str, Shape]:
    """Attention, MLP and the norm between them. `biases` False: this class has none, whatever the config says."""
    widths = {"q_proj": (s.queries, entry), "k_proj": (s.keys, entry), "v_proj": (s.keys, entry), "o_proj": (s.hidden, s.queries)}  # fmt: skip
    inner = {"gate_proj": (s.inner, s.hidden), "up_proj": (s.inner, s.hidden), "down_proj": (s.hidden, s.inner)}
    found: dict[str, Shape] = {}
    for part, matrices, biased in (("self_attn", widths, s.attention_bias), ("mlp", inner, s.mlp_bias)):
        for name, shape in matrices.items():
            found[f"layers.{index}.{part}.{name}.weight"] = shape
            if biased and biases:
                found[f"layers.{index}.{part}.{name}.bias"] = shape[:1]
    if s.qk_norm and engine == "vllm":
        found |= {f"layers.{index}.self_attn.{name}.weight": (s.head_dim,) for name in ("q_norm", "k_norm")}
    return found | {f"layers.{index}.post_attention_layernorm.weight": (s.hidden,)}
