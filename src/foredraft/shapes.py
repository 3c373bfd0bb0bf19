"""The shape of a transformer: parameters, FLOPs per token, weight and KV bytes, for targets, drafts and draft heads.

Promises: counts are exact for the families named in `_FAMILIES` (checked against the published totals), and a config
that cannot be counted is an error that says what it lacks. Refuses to know: torch, tokenizers, how fast anything runs.
"""

import difflib
import json
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from foredraft.records import Record, require

if TYPE_CHECKING:
    import numpy.typing as npt

    Count = TypeVar("Count", float, npt.NDArray[Any])
else:
    Count = TypeVar("Count")

BYTES_PER_VALUE = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


def bytes_per_value(dtype: str) -> float:
    """Bytes of one stored weight or cache entry; the scales of quantised formats (a few per cent) are left out."""
    if dtype not in BYTES_PER_VALUE:
        raise ValueError(f"dtype must be one of {', '.join(BYTES_PER_VALUE)}, got {dtype!r}")
    return BYTES_PER_VALUE[dtype]


class Shape(Record, frozen=True):
    """What a transformer is made of. Sizes as in a Hugging Face `config.json`; `family` is its model_type.

    `embed_dim` is the embedding's width where it is not `hidden_size` (OPT-350m), which adds two projections.
    `position_rows` is the length of a learned position table (OPT: 2050). `layer_norm`: LayerNorm with bias or RMSNorm.
    `draft_head` is None for a language model, else "eagle" or "eagle3": a head that borrows its target's embedding (and
    "eagle" its LM head) and reads features of width `target_hidden_size`; `draft_vocab_size`: rows of its own LM head.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool = False
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    final_norm: bool = True
    embed_dim: int | None = None
    position_rows: int = 0
    max_position_embeddings: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int | None = None
    shared_intermediate_size: int = 0
    sparse_step: int = 1
    dense_layers: tuple[int, ...] = ()
    draft_head: str | None = None
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    training_tokens: float | None = None
    training_source: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size",
                "embed_dim", "max_position_embeddings", "moe_intermediate_size", "sparse_step", "draft_vocab_size",
                "target_hidden_size", "training_tokens",
            ),
            non_negative=(
                "position_rows", "num_experts", "experts_per_token", "shared_intermediate_size", "dense_layers",
            ),
        )  # fmt: skip
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must not exceed num_experts ({self.num_experts})"
            )
        if self.num_experts and not (self.experts_per_token and self.moe_intermediate_size):
            raise ValueError("num_experts > 0 needs experts_per_token and moe_intermediate_size, both positive")
        if self.draft_head not in (None, "eagle", "eagle3"):
            raise ValueError(f"draft_head must be None, 'eagle' or 'eagle3', got {self.draft_head!r}")
        if self.draft_head and self.embed_dim:
            raise ValueError("embed_dim must be None for a draft head: its target's embedding must be hidden_size wide")

    # the parts, in numbers of weights

    @property
    def num_sparse_layers(self) -> int:
        """Layers with a mixture of experts: every `sparse_step`-th but for `dense_layers` (HF's rule for Qwen)."""
        if not self.num_experts:
            return 0
        return sum((i + 1) % self.sparse_step == 0 and i not in self.dense_layers for i in range(self.num_layers))

    @property
    def embed_width(self) -> int:
        """Width of one row of the embedding and of the LM head."""
        return self.embed_dim or self.hidden_size

    @property
    def head_params(self) -> int:
        """Weights of the LM head that a forward pass multiplies by, whoever stores them."""
        return (self.draft_vocab_size or self.vocab_size) * self.embed_width

    @property
    def fc_params(self) -> int:
        """Weights of a draft head's entry: EAGLE-3 takes 3 features (3H → H), EAGLE embedding and feature (2H → H)."""
        feature = self.target_hidden_size or self.hidden_size
        widths = {None: 0, "eagle": self.hidden_size + feature, "eagle3": 3 * feature}
        return widths[self.draft_head] * self.hidden_size

    @property
    def expert_params(self) -> int:
        """Weights of one expert of one layer."""
        return 3 * self.hidden_size * (self.moe_intermediate_size or 0)

    def _layer_weights(self, experts: Any) -> Any:
        """Matrix weights of all layers when each sparse layer touches `experts` experts."""
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.num_layers * (hidden * (queries + 2 * keys) + queries * hidden)
        if self.draft_head == "eagle3":  # layer 0 projects the embedding beside the feature
            attention += hidden * (queries + 2 * keys)
        mlp = (3 if self.gated_mlp else 2) * hidden * self.intermediate_size
        router = hidden * self.num_experts
        shared = 3 * hidden * self.shared_intermediate_size + (hidden if self.shared_intermediate_size else 0)
        sparse = self.num_sparse_layers
        return attention + (self.num_layers - sparse) * mlp + sparse * (router + shared + experts * self.expert_params)

    @property
    def _vectors(self) -> int:
        """Norm weights and biases."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norms = 2 * self.num_layers + self.final_norm + {None: 0, "eagle": -1, "eagle3": 1}[self.draft_head]
        layer = self.qkv_bias * (queries + 2 * keys) + self.o_bias * self.hidden_size + self.qk_norm * 2 * self.head_dim
        mlp_bias = self.mlp_bias * ((1 + self.gated_mlp) * self.intermediate_size + self.hidden_size)
        dense = self.num_layers - self.num_sparse_layers
        return norms * self.hidden_size * (1 + self.layer_norm) + self.num_layers * layer + dense * mlp_bias

    @property
    def _projections(self) -> int:
        """OPT-350m's project_in and project_out."""
        return 2 * self.embed_dim * self.hidden_size if self.embed_dim else 0

    # the totals

    @property
    def embedding_params(self) -> int:
        """Stored token embedding, position table and LM head; a tied head counts once, a borrowed table not at all."""
        head = 0 if self.tie_embeddings or self.draft_head == "eagle" else self.head_params
        table = 0 if self.draft_head else self.vocab_size * self.embed_width + self.position_rows * self.hidden_size
        return table + head

    @property
    def non_embedding_params(self) -> int:
        """Stored weights of everything else: layers, norms, a draft head's fc. The N of the loss laws."""
        return self._layer_weights(self.num_experts) + self._vectors + self.fc_params + self._projections

    @property
    def params(self) -> int:
        """All stored weights."""
        return self.embedding_params + self.non_embedding_params

    @property
    def active_params(self) -> int:
        """Weights that serve one token: `params` less the experts it is not routed to."""
        return self.params - self.num_sparse_layers * (self.num_experts - self.experts_per_token) * self.expert_params

    def flops_per_token(self, context: Count, *, recurrent: bool = False) -> Count:
        """Forward FLOPs of one token that attends to `context` tokens.

        2 per matrix weight touched (LM head included, embedding look-up not) plus 4·layers·heads·head_dim·context for
        the scores and the weighted sum. `recurrent`: as in `read_bytes`.
        """
        ends = self._projections + self.head_params + self._fc(recurrent)
        attention = 4.0 * self.num_layers * self.num_heads * self.head_dim
        return 2.0 * (self._layer_weights(self.experts_per_token) + ends) + attention * context

    def _fc(self, recurrent: bool) -> int:
        """The fc as one forward uses it: EAGLE-3's serves the target's features, so later draft forwards skip it."""
        return 0 if recurrent and self.draft_head == "eagle3" else self.fc_params

    def weight_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of the stored weights."""
        return self.params * bytes_per_value(dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> float:
        """Bytes of keys and values that one token leaves in the cache, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value(dtype)

    def experts_touched(self, tokens: Count) -> Count:
        """Expected distinct experts that `tokens` uniformly routed tokens use in a layer: E·(1 − (1 − k/E)^tokens)."""
        idle: Any = 1.0 - self.experts_per_token / (self.num_experts or 1)
        return self.num_experts * (1.0 - idle**tokens)

    def read_bytes(self, tokens: Count, dtype: str = "bfloat16", *, recurrent: bool = False) -> Count:
        """Weight bytes that one forward pass over `tokens` tokens reads (all sequences together; arrays broadcast).

        Every matrix once; of an untied or borrowed embedding and a position table only the tokens' rows; of each sparse
        layer the expected distinct experts. An "eagle" head reads its target's LM head though it does not store it.
        `recurrent` is a draft head's later forward pass of a step, fed by its own output.
        """
        if (tokens < 0) if isinstance(tokens, int | float) else (tokens < 0).any():
            raise ValueError("tokens must not be negative")
        rows = (0 if self.tie_embeddings else self.embed_width) + (self.hidden_size if self.position_rows else 0)
        fixed = self._vectors + self._projections + self.head_params + self._fc(recurrent)
        return (self._layer_weights(self.experts_touched(tokens)) + fixed + rows * tokens) * bytes_per_value(dtype)


# From a Hugging Face config. Sizes are required; a switch that a config leaves out takes transformers' default.

_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
_QWEN_MOE_SIZES = {
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
}
# Per model_type: further required sizes, and the class defaults of num_key_value_heads and head_dim (None: derived).
_FAMILIES: dict[str, tuple[dict[str, str], int | None, int | None]] = {
    "llama": ({}, None, None),
    "mistral": ({}, 8, None),
    "qwen2": ({}, 32, None),
    "qwen3": ({}, 32, 128),
    "opt": ({"intermediate_size": "ffn_dim"}, None, None),
    "mixtral": ({"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}, 8, None),
    "qwen2_moe": (_QWEN_MOE_SIZES | {"shared_intermediate_size": "shared_expert_intermediate_size"}, 16, None),
    "qwen3_moe": (_QWEN_MOE_SIZES, 4, None),
    "seed_oss": ({}, 8, 128),
}


def from_config(config: dict[str, Any] | str | Path, name: str | None = None) -> Shape:
    """The shape behind a Hugging Face config: a dict, a `config.json`, or the directory that holds one."""
    where = "config"
    if not isinstance(config, dict):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        where, name = str(path), name or path.resolve().parent.name
        config = _read_config(path)
    try:
        return _shape_of(_text_part(config), name)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def of_draft(folder: str | Path) -> Shape:
    """The shape behind the folder of a trained draft, or behind its config.json; a head by its tensors where its config names a
    model, as vLLM's EAGLE-1/2 do.
    """
    found = from_config(folder)
    return as_eagle(found) if found.draft_head is None and b'"fc.weight"' in _tensor_names(Path(folder)) else found


def _tensor_names(folder: Path) -> bytes:
    """What lists a folder's tensors: the index of its shards, or its file's header; nothing where it holds no weights."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not file.is_file():
        return index.read_bytes() if index.is_file() else b""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file}: truncated or corrupt; export or download it again")
        return stored.read(length)


def as_eagle(shape: Shape) -> Shape:
    """A folder's model as the EAGLE-1/2 head that its tensors show it to be."""
    return msgspec.structs.replace(shape, draft_head="eagle", final_norm=False, tie_embeddings=False)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a config.json, a directory that holds one, or shape(name)")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download the config again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def unfolded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the speculators format with its `transformer_layer_config` beside its own keys; any other as it is.

    There an absent `norm_before_residual` means true, and a null key is an absent one.
    """
    inner = config.get("transformer_layer_config")
    if not isinstance(inner, dict):
        return config
    own = {key: value for key, value in config.items() if value is not None and key != "transformer_layer_config"}
    return {"norm_before_residual": True} | inner | own


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model of a multimodal config, which nests it under `text_config`, or of a speculators draft."""
    config = unfolded(config)
    if "hidden_size" in config or not isinstance(config.get("text_config"), dict):
        return config
    outer = {key: config[key] for key in ("tie_word_embeddings", "_name_or_path") if key in config}
    return outer | config["text_config"]


def _shape_of(config: dict[str, Any], name: str | None) -> Shape:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        lacks = [key for key in _SIZES.values() if config.get(key) is None]
        reason = f"it lacks {', '.join(lacks)}" if lacks else "its biases, norms and experts are unknown"
        raise ValueError(f"model_type {family!r} is not supported (have {', '.join(_FAMILIES)}); {reason}")
    extra, default_kv_heads, default_head_dim = _FAMILIES[family]
    sizes = _SIZES | extra
    missing = [key for key in sizes.values() if config.get(key) is None]
    if missing:
        raise ValueError(f"{family} config lacks {', '.join(missing)}")
    fields = {field: config[key] for field, key in sizes.items()}
    fields["num_kv_heads"] = config.get("num_key_value_heads", default_kv_heads) or fields["num_heads"]
    fields["head_dim"] = config.get("head_dim", default_head_dim) or _divide(fields["hidden_size"], fields["num_heads"])
    fields["tie_embeddings"] = config.get("tie_word_embeddings", family == "opt")
    fields["max_position_embeddings"] = config.get("max_position_embeddings")
    fields |= _switches(family, config) | _draft_fields(config)
    name = name or config.get("_name_or_path") or family
    return msgspec.convert({"name": name, "family": family, **fields}, Shape)


def _divide(hidden_size: Any, num_heads: Any) -> Any:
    """HF's default head_dim; what is not a positive whole number is left for the validation of its own field."""
    if not (isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads > 0 and hidden_size > 0):
        return 1
    if hidden_size % num_heads:
        raise ValueError(f"head_dim is missing, and hidden_size/num_attention_heads = {hidden_size}/{num_heads}")
    return hidden_size // num_heads


def _switches(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """Biases, norms and the layout of experts, family by family (transformers' modeling files)."""
    get = config.get
    if family == "llama":
        bias = get("attention_bias", False)
        return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": get("mlp_bias", False)}
    if family == "seed_oss":
        return {
            "qkv_bias": get("attention_bias", True),
            "o_bias": get("attention_out_bias", False),
            "mlp_bias": get("mlp_bias", False),
        }
    if family == "opt":
        return _opt_switches(config)
    if family == "mixtral":
        return {"moe_intermediate_size": config["intermediate_size"]}
    moe = {"sparse_step": get("decoder_sparse_step", 1), "dense_layers": get("mlp_only_layers") or ()}
    if family in ("qwen2", "qwen2_moe"):
        return {"qkv_bias": get("qkv_bias", True)} | (moe if family == "qwen2_moe" else {})
    if family in ("qwen3", "qwen3_moe"):
        bias = get("attention_bias", False)
        return {"qkv_bias": bias, "o_bias": bias, "qk_norm": True} | (moe if family == "qwen3_moe" else {})
    return {}


def _opt_switches(config: dict[str, Any]) -> dict[str, Any]:
    """OPT: biases everywhere, LayerNorm, learned positions plus two rows; OPT-350m is post-norm and narrower."""
    bias, positions = config.get("enable_bias", True), config.get("max_position_embeddings") or 2048
    width = config.get("word_embed_proj_dim")
    pre_norm = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    return {
        "gated_mlp": False, "layer_norm": True, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias,
        "max_position_embeddings": positions, "position_rows": positions + 2 if isinstance(positions, int) else 0,
        "embed_dim": None if width == config["hidden_size"] else width, "final_norm": pre_norm,
    }  # fmt: skip


# "LlamaForCausalLMEagle3" in the flat format; "Eagle3Qwen3ForCausalLM", "Eagle3Speculator" in vLLM's and speculators'.
_HEAD = re.compile(r"^Eagle3?(?=[A-Z])|Eagle3?$")


def _draft_fields(config: dict[str, Any]) -> dict[str, Any]:
    """An EAGLE head's own config (flat format) names itself in `architectures`."""
    for architecture in config.get("architectures") or ():
        if found := _HEAD.search(architecture):
            eagle3 = found[0].endswith("3")
            return {
                "draft_head": "eagle3" if eagle3 else "eagle",
                "draft_vocab_size": config.get("draft_vocab_size") if eagle3 else None,
                "target_hidden_size": config.get("target_hidden_size"),
                "final_norm": eagle3,
                "tie_embeddings": False,
            }
    return {}


# The table of public families, kept as their own configs in published/shapes.json.


class _Row(Record, frozen=True):
    config: dict[str, Any]
    training_tokens: float | None = None
    training_source: str | None = None


class _Table(Record, frozen=True):
    shapes: dict[str, _Row]
    aliases: dict[str, str]


@cache
def _table() -> _Table:
    return msgspec.json.decode((resources.files("foredraft") / "published" / "shapes.json").read_bytes(), type=_Table)


# Words that name a training stage or a file format of the same shape, then versions and date codes.
_NOISE = re.compile(r"\b(instruct|chat|base|hf|it|meta|thinking|sft|dpo|fp8|awq|gptq|int4|int8|bf16|fp16)\b")
_VERSION = re.compile(r"\bv\d+(\.\d+)?\b|\b2[345]\d\d\b")
_TOKEN = re.compile(r"\d+x\d+b|a\d+(?:\.\d+)?b|\d+(?:\.\d+)?[bm](?![a-z])|v?\d+(?:\.\d+)?|[a-z]+")


def _keys(name: str) -> tuple[tuple[str, ...], ...]:
    """Keys of a name from strict to lenient, each indifferent to case, organisation, punctuation and word order."""
    text = re.sub(r"[\s_\-/]+", " ", name.strip().rstrip("/").rsplit("/", 1)[-1].lower())
    texts = (text, _NOISE.sub(" ", text), _VERSION.sub(" ", _NOISE.sub(" ", text)))
    return tuple(tuple(sorted(_TOKEN.findall(item))) for item in texts)


@cache
def _index() -> dict[tuple[str, ...], str]:
    table = _table()
    return {_keys(name)[0]: name for name in table.shapes} | {_keys(a)[0]: name for a, name in table.aliases.items()}


def known_shapes() -> tuple[str, ...]:
    """Names that `shape` knows, aliases left out."""
    return tuple(_table().shapes)


def shape(name: str) -> Shape:
    """Look up a public model: "Qwen/Qwen3-32B", "LLaMA-Instruct-3.1-8B", "vicuna-7b-v1.3" all find theirs."""
    found = next((_index()[key] for key in _keys(name) if key in _index()), None)
    if found is None:
        near = _nearest(name)
        raise ValueError(f"no shape named {name!r}; nearest: {', '.join(near)}; or give its config.json to from_config")
    row = _table().shapes[found]
    built = from_config(row.config, found)
    return msgspec.structs.replace(built, training_tokens=row.training_tokens, training_source=row.training_source)


def _nearest(name: str) -> list[str]:
    """The three known names most like `name`."""
    names = {known.lower(): known for known in (*_table().shapes, *_table().aliases)}
    return [names[near] for near in difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), names, n=3, cutoff=0.0)]


# Drafts for a target.


def eagle3_head(target: Shape, num_layers: int = 1, draft_vocab: int = 32000) -> Shape:
    """EAGLE-3 head (arXiv:2503.01840): fc 3H → H, q/k/v of layer 0 from 2H, own LM head over `draft_vocab` tokens.

    Llama-style layers of the target's widths, without biases; the embedding is the target's.
    """
    if draft_vocab > target.vocab_size:
        raise ValueError(f"draft_vocab ({draft_vocab}) must not exceed the target's vocab_size ({target.vocab_size})")
    return _head(target, "eagle3", num_layers, draft_vocab)


def eagle_head(target: Shape, num_layers: int = 1) -> Shape:
    """EAGLE-1/2 head (arXiv:2401.15077): fc 2H → H, no input norm in layer 0, no final norm, both tables borrowed."""
    return _head(target, "eagle", num_layers, None)


def _head(target: Shape, kind: str, num_layers: int, draft_vocab: int | None) -> Shape:
    if target.embed_dim:
        raise ValueError(f"{target.name}: an EAGLE head needs embed_dim equal to hidden_size ({target.hidden_size})")
    return Shape(
        name=f"{target.name}-{kind}-{num_layers}L", family="llama", draft_head=kind, num_layers=num_layers,
        hidden_size=target.hidden_size, num_heads=target.num_heads, num_kv_heads=target.num_kv_heads,
        head_dim=target.head_dim, intermediate_size=target.intermediate_size, vocab_size=target.vocab_size,
        draft_vocab_size=draft_vocab, target_hidden_size=target.hidden_size, final_norm=kind == "eagle3",
        max_position_embeddings=target.max_position_embeddings,
    )  # fmt: skip


LEAST_BODY = 5e4  # non-embedding parameters of the smallest model that `scaled` builds
_DENSE_SIBLING = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}


def scaled(target: Shape, params: float) -> Shape:
    """A buildable small LM of the target's family and vocabulary with about `params` non-embedding parameters.

    Within 5 % from 5e6 on. Width over depth grows from 64 at 1e8 to 128 at 1e10 parameters, as in the public families;
    grouped queries as in the target; dense where the target is a mixture of experts. The embedding is tied where it
    exceeds a tenth of `params`, about where Llama-3.2, Qwen2.5 and Qwen3 stop tying theirs.
    """
    if not (math.isfinite(params) and params >= LEAST_BODY):
        raise ValueError(f"params must be at least 5e4 non-embedding parameters, got {params}")
    widths = (*range(64, 1024, 64), *range(1024, 32769, 128))
    candidates = [c for hidden in widths for c in _of_width(target, hidden, params)]
    best = min(candidates, key=lambda c: _misfit(c, target, params))
    tied = target.tie_embeddings or best.vocab_size * best.hidden_size > 0.1 * params
    return msgspec.structs.replace(best, name=f"{target.name}-scaled-{params:.3g}", tie_embeddings=tied)


def _of_width(target: Shape, hidden: int, params: float) -> list[Shape]:
    """The shapes of one width at the two depths around the request, the MLP's width taking up the rest."""
    step = 16 if hidden < 512 else 64
    draft = _with_width(target, hidden, max(step, round(_mlp_ratio(target) * hidden / step) * step))
    ends = draft.non_embedding_params - _layers_only(draft)
    depth = (params - ends) / _layers_only(draft)
    found = []
    for num_layers in {math.floor(depth), math.ceil(depth)}:
        if 1 <= num_layers <= 160:
            slope = (3 if draft.gated_mlp else 2) * hidden
            short = ((params - ends) / num_layers - _layers_only(draft)) / slope
            mlp = max(step, draft.intermediate_size + round(short / step) * step)
            found.append(msgspec.structs.replace(draft, num_layers=num_layers, intermediate_size=mlp))
    return found or [draft]


def _layers_only(draft: Shape) -> int:
    """Parameters of one layer, from the difference that a second one makes."""
    more = msgspec.structs.replace(draft, num_layers=draft.num_layers + 1)
    return more.non_embedding_params - draft.non_embedding_params


def _mlp_ratio(target: Shape) -> float:
    """MLP width over hidden size, held to what small models of the public families use."""
    low, high = (2.5, 4.0) if target.gated_mlp else (4.0, 4.0)
    return min(max(target.intermediate_size / target.hidden_size, low), high)


def _with_width(target: Shape, hidden: int, intermediate: int) -> Shape:
    """One layer of the target's kind at another width."""
    head_dim = 128 if hidden >= 1024 and target.head_dim >= 128 else 64
    num_heads, group = hidden // head_dim, target.num_heads // target.num_kv_heads
    group = max(g for g in range(1, group + 1) if num_heads % g == 0)
    return msgspec.structs.replace(
        target, family=_DENSE_SIBLING.get(target.family, target.family), num_layers=1,
        hidden_size=hidden, num_heads=num_heads, num_kv_heads=num_heads // group, head_dim=head_dim,
        intermediate_size=intermediate, embed_dim=None, final_norm=True, num_experts=0, experts_per_token=0,
        moe_intermediate_size=None, shared_intermediate_size=0, sparse_step=1, dense_layers=(),
        training_tokens=None, training_source=None,
    )  # fmt: skip


def _misfit(draft: Shape, target: Shape, params: float) -> float:
    """What to minimise: log distances from the usual aspect, the target's MLP and query ratios, above all the size."""
    doublings = min(max((math.log10(params) - 8) / 2, 0.0), 1.0)
    aspect = math.log(draft.hidden_size / draft.num_layers / (64 * 2**doublings))
    mlp = math.log(draft.intermediate_size / draft.hidden_size / _mlp_ratio(target))
    size = math.log(draft.non_embedding_params / params)
    group = math.log(draft.num_heads / draft.num_kv_heads * target.num_kv_heads / target.num_heads)
    return abs(aspect) + abs(mlp) + abs(group) + 50 * abs(size)
