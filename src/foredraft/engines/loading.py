"""What a loader expects of a draft head's file: names and shapes of tensors, out of its config.

How loaders differ stands in their engine's `HeadLoader` rows. Refuses to know: files, targets, engines by name.

Shapes: H draft hidden, Ht target hidden, V target vocabulary, Vd draft vocabulary, A query width, K key width, I MLP.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from foredraft.kinds import AUX_CONFIG, CONFIDENCE, Kind, aux_layer_ids, last_state_alone, parts_of
from foredraft.shapes.families import NORMED_HEAD_FAMILY

TensorShape = tuple[int, ...]
TensorShapes = dict[str, TensorShape]
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class HeadLoader(NamedTuple):
    """How one engine loads heads of one kind.

    `architectures`: class names that it takes, of which the first is written; `qk_norm`: the name of a head that norms queries and
    keys, None where no class does, and `qk_normed`: all names of that class. `unjudged`: names of its classes of other layers, whose
    tensors are not known here. `shares_lm_head`: a head without one reads its target's. `layer_biases`: attention and MLP may have
    biases; `fc_bias`: `fc` has one. `later_norm`: the name of the norm before layers from 1 on. `norm_before_fc`: may norm the hidden
    states before `fc`. `identity_map`: takes a d2t that maps nothing. `prefixed`: tensors may be called `model.…`. `cut_block`: a head of
    blocks may draft some of the words alone.
    """

    architectures: tuple[str, ...]
    qk_norm: str | None = None
    qk_normed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    shares_lm_head: bool = False
    layer_biases: bool = True
    fc_bias: bool = False
    later_norm: str = "input_layernorm"
    norm_before_fc: bool = False
    identity_map: bool = False
    prefixed: bool = False
    cut_block: bool = True

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether the class that a config names is one of its own."""
        names = config.get("architectures")
        return bool(isinstance(names, list) and names and names[0] in (*self.architectures, *self.unjudged))


class Fault(NamedTuple):
    """What one engine makes of a folder: a short `code`, the tensor or key, what its loader does about it, and the remedy.

    `level`: "error", it would not load or compute something else; "warning", it works but loses, or only some versions fail.
    """

    code: str
    where: str
    effect: str
    remedy: str
    level: str = "error"


class HeadFolder(Protocol):
    """A head's folder as rules read it: `config` unfolded, `raw` as it stands, `names` on file by the name in a loader."""

    @property
    def kind(self) -> Kind: ...
    @property
    def raw(self) -> dict[str, Any]: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def names(self) -> Mapping[str, str]: ...


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
    hidden_states: int
    head_dim: int
    attention_bias: bool
    mlp_bias: bool
    last_state: bool
    fc_norm: bool
    norm_before_fc: bool


def lacking(config: dict[str, Any]) -> list[str]:
    """Sizes that a config does not give as positive whole numbers."""
    return [key for key in REQUIRED if not _is_count(config.get(key))]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def sizes_of(config: dict[str, Any]) -> Sizes:
    """The sizes of a config that lacks none, of heads that join inner hidden states as vLLM's and SGLang's Llama classes count them. A null is
    taken for an absence: it is told of by itself.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    leaving, qwen2 = aux_layer_ids(config)[1], config.get("model_type") == "qwen2"
    return Sizes(
        layers=config["num_hidden_layers"], hidden=hidden, target_hidden=config.get("target_hidden_size") or hidden,
        vocab=config["vocab_size"], draft_vocab=config.get("draft_vocab_size") or config["vocab_size"], queries=heads * width,
        keys=(config.get("num_key_value_heads") or heads) * width, inner=config["intermediate_size"],
        hidden_states=config.get("num_aux_hidden_states") or len(leaving) or 3, head_dim=width,
        attention_bias=bool(config.get("attention_bias") or (qwen2 and config.get("qkv_bias", False))),
        mlp_bias=bool(config.get("mlp_bias")), last_state=last_state_alone(config),
        fc_norm=bool(config.get("fc_norm") or config.get("use_aux_norm")),
        norm_before_fc=norms_before_fc(config),
    )  # fmt: skip


def norms_before_fc(config: Mapping[str, Any]) -> bool:
    """Whether a head norms its hidden states, joined, before `fc`; ModelOpt nests the key."""
    nested = config.get(AUX_CONFIG)
    return bool((nested if isinstance(nested, dict) else {}).get("norm_before_fc", config.get("norm_before_fc")))


class ExpectedTensors(NamedTuple):
    """`needed`: tensors without which the loader computes something else; `optional`: those it takes if they are there."""

    needed: TensorShapes
    optional: TensorShapes


def head_tensors(sizes: Sizes, kind: Kind, loader: HeadLoader, config: Mapping[str, Any]) -> ExpectedTensors:
    """The tensors of a head as `loader` reads them, by their names inside; `config` is unfolded."""
    if kind.passes == "block":
        return _of_blocks(sizes, kind, loader, config)
    normed = _norms_qk(loader, config)
    if not kind.own_lm_head:
        return _without_lm_head(sizes, loader)
    if normed and (entering := aux_layer_ids(config)[0]) and not config.get("num_aux_hidden_states"):
        sizes = sizes._replace(hidden_states=len(entering))  # which the class counts too
    return _with_lm_head(
        sizes, loader, qk_norm=normed, null_rows="draft_vocab_size" in config and config["draft_vocab_size"] is None
    )


def _norms_qk(loader: HeadLoader, config: Mapping[str, Any]) -> bool:
    """Whether the class that a config names norms queries and keys; in the speculators format its layers' family says so."""
    if loader.qk_norm is None:
        return False
    if "speculators_model_type" in config:
        return config.get("model_type") == NORMED_HEAD_FAMILY
    names = config.get("architectures") or [""]
    return names[0] in loader.qk_normed


def _with_lm_head(s: Sizes, loader: HeadLoader, *, qk_norm: bool, null_rows: bool) -> ExpectedTensors:
    """Of a head on several of the target's hidden states, with an LM head of its own unless it drafts all tokens and the engine shares the
    target's; `null_rows`: its config asks for that.
    """
    needed: TensorShapes = {"norm.weight": (s.hidden,)}
    optional: TensorShapes = {"t2d": (s.vocab,)}
    if s.last_state:
        optional["fc.weight"] = (s.hidden, s.target_hidden)
    else:
        needed["fc.weight"] = (s.hidden, s.hidden_states * s.target_hidden)
    shared = s.draft_vocab == s.vocab and s.hidden == s.target_hidden and (loader.shares_lm_head or null_rows)
    (optional if shared else needed)["lm_head.weight"] = (s.draft_vocab, s.hidden)
    for i in range(s.layers):
        needed |= _layer(s, i, loader, 2 * s.hidden if i == 0 else s.hidden, qk_norm=qk_norm)
        for name in ("input_layernorm", "hidden_norm"):
            used = i == 0 or name == loader.later_norm
            (needed if used else optional)[f"layers.{i}.{name}.weight"] = (s.hidden,)
    if s.fc_norm:
        needed |= {f"fc_norm.{i}.weight": (s.target_hidden,) for i in range(s.hidden_states)}
    if s.norm_before_fc and loader.norm_before_fc:
        needed |= {"input_norm.weight": (s.hidden_states * s.target_hidden,)}
    (optional if s.hidden == s.target_hidden else needed)["embed_tokens.weight"] = (s.vocab, s.hidden)
    if s.draft_vocab != s.vocab:
        needed["d2t"] = (s.draft_vocab,)
    elif loader.identity_map:
        optional["d2t"] = (s.draft_vocab,)
    return ExpectedTensors(needed, optional)


def _without_lm_head(s: Sizes, loader: HeadLoader) -> ExpectedTensors:
    """Of a head on the target's last hidden state, which the target's LM head reads."""
    needed: TensorShapes = {"fc.weight": (s.hidden, 2 * s.hidden)}
    needed |= {"fc.bias": (s.hidden,)} if loader.fc_bias else {}
    for i in range(s.layers):
        needed |= _layer(s, i, loader, s.hidden, qk_norm=False)
        needed |= {f"layers.{i}.input_layernorm.weight": (s.hidden,)} if i else {}
    return ExpectedTensors(needed, {"embed_tokens.weight": (s.vocab, s.hidden)})


def _of_blocks(s: Sizes, kind: Kind, loader: HeadLoader, config: Mapping[str, Any]) -> ExpectedTensors:
    """Of a head that drafts blocks: its tables are its target's where it has none, and must be there where it has fewer words."""
    parts = parts_of(config, kind)
    assert parts is not None, kind.name
    needed: TensorShapes = {"fc.weight": (s.hidden, parts.hidden_states * s.target_hidden)}
    needed |= {f"{name}.weight": (s.hidden,) for name in ("hidden_norm", "norm")}
    for i in range(s.layers):
        needed |= _layer(s, i, loader, s.hidden, qk_norm=True) | {f"layers.{i}.input_layernorm.weight": (s.hidden,)}
    needed |= {f"{name}.weight": sizes for name, sizes in parts.sized(parts.tables, s.hidden, s.vocab).items()}
    chain, optional = parts.sized(parts.chain, s.hidden, s.draft_vocab), dict[str, TensorShape]()
    for name, (inputs, outputs) in chain.items():
        stored = {name: (outputs,)} if name.endswith(".bias") else {f"{name}.weight": (outputs, inputs)}
        (optional if name.startswith(CONFIDENCE) else needed).update(stored)
    optional["embed_tokens.weight"] = (s.vocab, s.hidden)
    if s.draft_vocab != s.vocab:
        needed |= {"d2t": (s.draft_vocab,), "lm_head.weight": (s.draft_vocab, s.hidden)}
        return ExpectedTensors(needed, optional | {"t2d": (s.vocab,)})
    return ExpectedTensors(needed, optional | {"lm_head.weight": (s.vocab, s.hidden)})


def _layer(s: Sizes, index: int, loader: HeadLoader, entry: int, *, qk_norm: bool) -> TensorShapes:
    """Attention, MLP and the norm between them; `entry`: width of what enters the attention."""
    widths = {"q_proj": (s.queries, entry), "k_proj": (s.keys, entry), "v_proj": (s.keys, entry), "o_proj": (s.hidden, s.queries)}  # fmt: skip
    inner = {"gate_proj": (s.inner, s.hidden), "up_proj": (s.inner, s.hidden), "down_proj": (s.hidden, s.inner)}
    shapes: TensorShapes = {}
    for part, matrices, biased in (("self_attn", widths, s.attention_bias), ("mlp", inner, s.mlp_bias)):
        for name, shape in matrices.items():
            shapes[f"layers.{index}.{part}.{name}.weight"] = shape
            if biased and loader.layer_biases:
                shapes[f"layers.{index}.{part}.{name}.bias"] = shape[:1]
    if qk_norm:
        shapes |= {f"layers.{index}.self_attn.{name}.weight": (s.head_dim,) for name in ("q_norm", "k_norm")}
    return shapes | {f"layers.{index}.post_attention_layernorm.weight": (s.hidden,)}
