"""Kinds of draft, a row each: what differs from one to the next and which other rooms would otherwise decide for themselves.

A new kind is a row here, its module (`models`), its objective (`train`) and its drafter (`decode`). Refuses to know: torch, and
how well a kind drafts.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from foredraft import shapes
from foredraft.draft_words import ADAPTIVE as ADAPTIVE
from foredraft.draft_words import BEHIND as BEHIND
from foredraft.draft_words import BESIDE as BESIDE
from foredraft.draft_words import LENGTHS as LENGTHS
from foredraft.draft_words import Lookup as Lookup
from foredraft.draft_words import lengths_file as lengths_file
from foredraft.draft_words import parted as parted
from foredraft.records import DraftChoice
from foredraft.shapes import HeadMatrix, HeadParts, Shape
from foredraft.shapes.gguf import is_gguf

Role = Literal["none", "lookup", "lm", "head", "mixed"]
Prior = Literal["lookup", "lm", "head", "mtp", "block"]  # of acceptance by position, see laws.acceptance
PRIORS: tuple[Prior, ...] = ("lookup", "lm", "head", "mtp", "block")
OURS = "foredraft"  # as a tool that trains
BLOCK_CONFIG = "dflash_config"  # keys that only heads of blocks have, nested or beside the others


class Training(NamedTuple):
    """How heads of a kind are trained: `passes` of the head for each token that is read, the `tools` that do it, the `tokens` that
    its published heads read, all epochs together (None where that is not published), and in how many `epochs` of the same answers.
    """

    passes: float
    tools: tuple[str, ...]
    tokens: float | None = None
    epochs: float = 1.0


@dataclass(frozen=True)
class Kind:
    """One kind of draft.

    `name`: as recipes, plans, configs and checkpoints write it. `role`: none, lookup (prompt lookup and kin: no model), lm (an
    independent model), head (on the target's hidden states) or mixed (one behind a look-up or of adaptive length). `methods`: how measurements
    spell it, with the label of each spelling. `passes`: forward passes of the draft per step: none, one per drafted "token", or one
    per "block". `unrolled`: trained on its own outputs. `parts`: what makes a head of a transformer; None for what is no head, and
    for heads of no known shape. `usual_layers`: of its published heads. `draft_vocab`: the usual rows of its own LM head, None for
    all of the target's. `deep_label`: label of one with two or more layers. `in_target`: it comes in the target's own checkpoint, where that has it.
    `spelt`, `tensors`, `keys`: words of a config's class names, beginnings of names of tensors, and config keys, that only it has.
    `engine_names`: what each engine that serves it calls it; `engine_settings`: what must stand beside that. `prior`: how its acceptance
    goes by position where nothing else is known.
    """

    name: str
    label: str
    role: Role
    methods: Mapping[str, str]
    passes: Literal["none", "token", "block"] = "token"
    unrolled: bool = False
    parts: HeadParts | None = None
    usual_layers: int = 1
    draft_vocab: int | None = None
    deep_label: str | None = None
    in_target: bool = False
    training: Training | None = None
    spelt: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    engine_names: Mapping[str, str] = field(default_factory=dict)
    engine_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prior: Prior = "head"

    @property
    def hidden_states(self) -> int:
        """How many of the target's hidden states it reads per token."""
        return self.parts.hidden_states if self.parts else 0

    @property
    def own_lm_head(self) -> bool:
        """Whether it is a head that reads its hidden states into tokens itself."""
        return self.parts is not None and self.parts.own_lm_head

    @property
    def checkpoint(self) -> str:
        """The name of the kind that a folder of such weights is: multi-layer heads and kin are EAGLE-3's."""
        return self.parts.kind if self.parts else self.name

    @property
    def about(self) -> str:
        """Its label, what it drafts in a pass, which engines serve it and what trains it, for people."""
        passes = {"none": "no model", "token": "a token a pass", "block": "a block a pass"}[self.passes]
        served = f"served by {', '.join(self.engine_names)}" if self.engine_names else "served by none"
        trained = f"trained by {', '.join(self.training.tools)}" if self.training else ""
        source = "in the target's checkpoint" if self.in_target else trained
        return "; ".join(part for part in (self.label, passes, served, source) if part)

    def label_at(self, num_layers: int | None) -> str:
        """The label of a draft of so many layers."""
        return self.deep_label if self.deep_label and (num_layers or 1) > 1 else self.label

    def shape(self, target: Shape, num_layers: int | None = None, draft_vocab: int | None = None, **differs: Any) -> Shape:  # fmt: skip
        """The shape of such a head beside `target`; None is the usual number of layers, and the usual draft vocabulary. `differs`: fields of
        `HeadParts` that are not the kind's usual ones; without a rank there are no tables and no chain.

        Raises ValueError, which names what is lacking, where the kind is none or its shape is not known.
        """
        if self.parts is None:
            raise ValueError(f"a shape for method {self.name}")
        if self.in_target and target.mtp_blocks:
            return shapes.mtp_head(target, self.parts)
        usual = min(self.draft_vocab, target.vocab_size) if self.draft_vocab else None
        layers = self.usual_layers if num_layers is None else num_layers
        parts = msgspec.structs.replace(self.parts, **(_RANKLESS if differs.get("rank") == 0 else {}), **differs)
        return shapes.head(target, parts, layers, draft_vocab or usual)


CONFIDENCE = "confidence_head.proj"
_RANKLESS: dict[str, Any] = {"tables": (), "chain": ()}
_EAGLE = HeadParts(kind="eagle", hidden_states=1, fc_embedding=True, wide_layer=False, norms=-1, own_lm_head=False)
_EAGLE3 = HeadParts(kind="eagle3", hidden_states=3, fc_embedding=False, wide_layer=True, norms=2, own_lm_head=True)
_MTP = HeadParts(kind="mtp", hidden_states=1, fc_embedding=True, wide_layer=False, norms=3, own_lm_head=False)
_DFLASH = HeadParts(
    kind="dflash", hidden_states=5, fc_embedding=False, wide_layer=False, norms=2, own_lm_head=False, block=15, qk_norm=True,
)  # fmt: skip
_DFLASH2 = msgspec.structs.replace(
    _DFLASH, kind="dflash2", rank=256, layer_vectors=8,
    layer=(HeadMatrix("attention_conv.kernel_projection", "H", "H/4"), HeadMatrix("mlp_conv.kernel_projection", "H", "H/4")),
    tables=(
        HeadMatrix("candidate_selector.predecessor_codebook", "V", "r"), HeadMatrix("candidate_selector.successor_codebook", "V", "r"),
    ),
    chain=(HeadMatrix("candidate_selector.hidden_projection", "H", "r"),),
)  # fmt: skip
_DSPARK = msgspec.structs.replace(
    _DFLASH, kind="dspark", block=7, rank=256, tables=(HeadMatrix("markov_head.markov_w1", "V", "r"),),
    chain=(HeadMatrix("markov_head.markov_w2", "r", "V"), HeadMatrix(CONFIDENCE, "H+r", 1), HeadMatrix(f"{CONFIDENCE}.bias", 1, 1)),
)  # fmt: skip
_DOMINO = msgspec.structs.replace(
    _DFLASH, kind="domino", rank=256,
    chain=(
        HeadMatrix("prefix_gru.weight_ih_l0", "H", 3072), HeadMatrix("prefix_gru.weight_hh_l0", 1024, 3072),
        HeadMatrix("embed_proj.0", "H+1024", "r"), HeadMatrix("embed_proj.2", "r", "V"),
    ),
)  # fmt: skip
_P_EAGLE = msgspec.structs.replace(
    _EAGLE3, kind="peagle", block=7, norms=5, tables=(HeadMatrix("embed_tokens", "V", "H"),)
)

NONE = Kind("none", "no draft", "none", {"none": "no draft"}, passes="none", prior="lookup")
NGRAM = Kind(
    "ngram", "n-gram", "lookup", {"ngram": "n-gram", "suffix": "suffix", "lookahead": "Lookahead", "rest": "REST"},
    passes="none", engine_names={"vllm": "ngram", "sglang": "NGRAM", "tensorrt-llm": "NGram", "foredraft": "ngram"},
    prior="lookup",
)  # fmt: skip
LM = Kind(
    "lm", "independent model", "lm", {"draft_model": "language model", "lm": "language model", "unstated": "language model"},
    training=Training(1, (OURS,)),
    engine_names={"vllm": "draft_model", "sglang": "STANDALONE", "tensorrt-llm": "DraftTarget", "foredraft": "draft_model"},
    prior="lm",
)  # fmt: skip
EAGLE = Kind(
    "eagle", "EAGLE-1/2", "head", {"eagle": "EAGLE", "eagle1": "EAGLE", "eagle2": "EAGLE-2"}, parts=_EAGLE,
    training=Training(1, (OURS,)), engine_names={"vllm": "eagle", "sglang": "EAGLE", "foredraft": "eagle"},
)  # fmt: skip
# Unrolled 7 times on the answers to ShareGPT and UltraChat, 8 times the ShareGPT set of about 1e8 tokens (arXiv 2503.01840).
EAGLE3 = Kind(
    "eagle3", "EAGLE-3", "head", {"eagle3": "EAGLE-3", "hass": "HASS", "griffin": "GRIFFIN"},
    unrolled=True, parts=_EAGLE3, draft_vocab=32000, deep_label="Scylla", training=Training(7, (OURS,), 8e8),
    engine_names={"vllm": "eagle3", "sglang": "EAGLE3", "tensorrt-llm": "Eagle3", "foredraft": "eagle3"},
)  # fmt: skip
# Measured by others; costed as an EAGLE-3 head of as many layers, one decoder layer on the target's hidden states.
MULTI_LAYER = replace(EAGLE3, name="scylla", label="Scylla", methods={"scylla": "Scylla"}, engine_names={})
MTP = Kind(
    "mtp", "MTP", "head", {"mtp": "MTP", "nextn": "MTP"}, parts=_MTP, in_target=True, spelt=("mtp", "nextn"),
    engine_names={"vllm": "mtp", "sglang": "NEXTN", "tensorrt-llm": "MTP"},
    prior="mtp",
)  # fmt: skip
# 512 blocks of 16 in 3,072 tokens (SpecForge); 800,000 samples of some 950 tokens, three times (TorchSpec's docs/dflash).
DFLASH = Kind(
    "dflash", "DFlash", "head",
    {"dflash": "DFlash", "dfly": "DFly", "dflare": "DFlare", "d_pace": "D-PACE", "ddtree": "DDTree", "jetspec": "JetSpec"},
    passes="block", parts=_DFLASH, usual_layers=5, training=Training(2.67, (OURS, "SpecForge", "speculators"), 2.3e9, 3),
    spelt=("dflash",), keys=(BLOCK_CONFIG,), engine_names={"vllm": "dflash", "sglang": "DFLASH", "foredraft": "dflash"},
    prior="block",
)  # fmt: skip
DFLASH2 = replace(
    DFLASH, name="dflash2", label="DFlash2", methods={"dflash2": "DFlash2"}, parts=_DFLASH2, spelt=("dflash2",), keys=(),
    tensors=("candidate_selector.",), training=Training(1.33, ("SpecForge", "speculators")),
    engine_names={"vllm": "dflash", "sglang": "DFLASH"},
)  # fmt: skip
# 512 blocks of 7 in 4,096 tokens; ten times the 1.24e9 tokens that a cache of 38 TB holds at Qwen3-4B (DeepSpec's README).
DSPARK = replace(
    DFLASH, name="dspark", label="DSpark", methods={"dspark": "DSpark", "dspine": "DSpine"}, parts=_DSPARK, spelt=("dspark",), keys=(),
    tensors=("markov_head.", "logit_head.", "markov_w1"), training=Training(0.875, (OURS, "DeepSpec", "SpecForge", "speculators"), 1.24e10, 10),
    engine_names={"vllm": "dspark", "sglang": "DSPARK", "tensorrt-llm": "DSpark", "foredraft": "dspark"},
)  # fmt: skip
DOMINO = replace(
    DFLASH, name="domino", label="Domino", methods={"domino": "Domino"}, parts=_DOMINO, spelt=("domino", "causal_v5"), keys=(),
    tensors=("prefix_gru.",), training=Training(1.33, ("SpecForge",)), engine_names={"sglang": "DFLASH"},
)  # fmt: skip
P_EAGLE = Kind(
    "peagle", "P-EAGLE", "head", {"peagle": "P-EAGLE"}, passes="block", parts=_P_EAGLE, usual_layers=4, draft_vocab=32000,
    training=Training(3.4, ("speculators",)), spelt=("peagle",), tensors=("mask_hidden",), engine_names={"vllm": "eagle3"},
    engine_settings={"vllm": {"parallel_drafting": True}},
    prior="block",
)  # fmt: skip
MEDUSA = Kind(
    "medusa", "Medusa", "head", {"medusa": "Medusa", "hydra": "Hydra"}, passes="block", spelt=("medusa", "hydra"), tensors=("lm_heads.",),
    keys=("medusa_num_heads", "hydra_num_heads"),
)  # fmt: skip
MLP_SPECULATOR = Kind(
    "mlp_speculator", "MLP speculator", "head", {"mlp_speculator": "MLP speculator", "arctic_lstm": "Arctic LSTM"},
    spelt=("mlp_speculator", "mlpspeculator"), tensors=("speculator.",),
)  # fmt: skip

KINDS = (
    NONE, NGRAM, LM, EAGLE, EAGLE3, MULTI_LAYER, MTP, DFLASH, DFLASH2, DSPARK, DOMINO, P_EAGLE, MEDUSA, MLP_SPECULATOR,
)  # fmt: skip
USUAL = (EAGLE3, MULTI_LAYER, EAGLE, LM, NGRAM)  # those most met, first of all
USUAL_HEAD = EAGLE3  # planned where own runs are of no other, and what other heads are held against
CHECKPOINTS = {kind.name: kind for kind in (LM, DSPARK, DFLASH, EAGLE, EAGLE3)}  # kinds that foredraft trains and runs
PLANNED = {kind.name: kind for kind in KINDS if kind.role == "lm" or (kind.parts and kind.parts.kind == kind.name)}
ANSWERS_SHARE = 0.1  # of the training tokens of a head of several layers: its second stage, on the target's own answers; of one layer all
LABELS = {method: label for kind in KINDS for method, label in kind.methods.items()}
_SPELLINGS = {  # of one method in tables, in lower case with every other sign an underscore
    "none": (
        "", "vanilla", "baseline", "autoregressive", "nosd", "no_draft", "ar", "no_sd", "no_spec", "nospec", "no_speculation",
        "off", "target_only", "plain",
    ),
    "eagle3": ("eagle_3", "eagle_3_1", "eagle3_1", "eagle31"),
    "eagle2": ("eagle_2",),
    "eagle": ("eagle_1", "eagle1"),
    "peagle": ("p_eagle", "parallel_eagle"),
    "dflash2": ("dflash_2",),
    "draft_model": ("sps", "standalone"),
    "ngram": ("n_gram", "pld", "prompt_lookup"),
}  # fmt: skip
SPELLINGS = {spelling: method for method, spellings in _SPELLINGS.items() for spelling in spellings}
_BY_METHOD = {method: kind for kind in KINDS for method in kind.methods}


@cache
def of_method(method: str) -> Kind:
    """The kind that a measurement's `method` names, itself or by a word of it (samd_eagle2); an unknown one is a head without a shape."""
    method = SPELLINGS.get(method, method)
    if method.endswith(BESIDE):
        return _changed(of_method(method.removesuffix(BESIDE)), BESIDE, f" + {NGRAM.label}")
    if method.endswith(ADAPTIVE):
        return _changed(of_method(method.removesuffix(ADAPTIVE)), ADAPTIVE, ", adaptive length")
    if method in _BY_METHOD:
        return _BY_METHOD[method]
    words = re.split(r"[_\-]", method)
    heads = (kind for kind in reversed(KINDS) if kind.role == "head" and any(word in kind.methods for word in words))
    return next(heads, Kind(method, method, "head", {method: method}))


def _changed(kind: Kind, ending: str, words: str) -> Kind:
    """A draft of `kind` with a look-up before it, or of adaptive length: a kind of its own, so that no law takes it for the draft alone."""
    methods = {method + ending: label + words for method, label in kind.methods.items()}
    return replace(
        kind, name=kind.name + ending, label=kind.label + words, role="mixed", methods=methods, parts=None, engine_names={}
    )  # fmt: skip


def role_of(method: str) -> Role:
    """The role of the kind that a measurement's `method` names."""
    return of_method(method).role


def of_name(name: str) -> Kind:
    """The kind of a recipe, plan or checkpoint by its own name. Raises ValueError on any other."""
    kind = next((kind for kind in KINDS if kind.name == name), None)
    if kind is None:
        raise ValueError(f"kind must be one of {', '.join(kind.name for kind in KINDS)}, got {name!r}")
    return kind


def of_choice(draft: DraftChoice) -> Kind:
    """The kind of a plan's draft. Raises ValueError on a head that does not say which, or on a kind that no plan weighs."""
    if draft.kind == "lookup":
        return NGRAM
    if draft.kind == "head" and draft.method is None:
        missing = f"draft.method is missing: this plan is too old to say which kind of head {draft.name} is; plan again"
        raise ValueError(missing)
    name = draft.method if draft.kind == "head" else draft.kind
    if name not in PLANNED:
        raise ValueError(f"draft.kind must be lookup or one of {', '.join(PLANNED)}, got {name!r}")
    return PLANNED[str(name)]


def of_shape(shape: Shape) -> Kind:
    """The kind of a model or head of that shape."""
    return of_name(shape.head.kind) if shape.head else LM


def of_role(role: str) -> tuple[Kind, ...]:
    """The kinds of a role that can be trained, the usual one first."""
    return tuple(kind for kind in reversed(CHECKPOINTS.values()) if kind.role == role)


# Where a head's config says which of the target's hidden states it reads: by the layer entered, and nested by the layer left.
AUX_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
AUX_CONFIG = "eagle_config"
CHAIN_CONFIG = "dspark_config"  # where newer DSpark heads have those of their chain


def aux_layer_ids(config: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
    """The hidden states that a head's config names, by the layers entered and by the layers left; () where it does not say."""
    inner = config.get(AUX_CONFIG)
    return config.get(AUX_LAYER_IDS) or (), (inner.get(AUX_LAYER_IDS) if isinstance(inner, dict) else None) or ()


def entered_layers(left: Sequence[int], depth: int) -> list[int]:
    """Hidden states named by the layers that they leave, by those that they enter. An id that no layer of a target of `depth` layers has
    can only be the last hidden state, counted by the layer entered, and then all are.
    """
    return list(left) if left and max(left) == depth else [i + 1 for i in left]


_HEAD_NAME = re.compile(r"^Eagle3?(?=[A-Z])|Eagle3?$|^Eagle3?Speculator$")


def of_checkpoint(config: Mapping[str, Any], tensors: Collection[str] = ()) -> Kind:
    """What a folder's weights are, by the names of its tensors, and where they do not say by its config.

    Only a head joins hidden states (`fc`); only EAGLE-3 norms them inside its first layer, whatever its class is called. A draft vocabulary
    is EAGLE-3's in all that is published; ours of other kinds say what they are: an EAGLE-1/2 head by its class, an independent model by its
    embedding and no `fc`. Kinds that have tensors or words of their own say so in their rows, the more special later. `config` is unfolded
    (see `shapes.unfolded`); published heads call themselves LlamaForCausalLM as often as not.
    """
    names = {name.removeprefix("model.") for name in tensors}
    architectures = [str(name) for name in config.get("architectures") or ()]
    marks = any(".hidden_norm." in name or name.startswith("midlayer.") for name in names)
    if special := _special(config, architectures, names, wide=marks):
        return special
    spelt = [match[0] for name in architectures if (match := _HEAD_NAME.search(name))]
    third = any("3" in name for name in spelt)
    mapped = config.get("draft_vocab_size") is not None or not names.isdisjoint(("d2t", "t2d"))
    joins = "fc.weight" in names
    plain = joins and not mapped and "norm.weight" not in names and any(name.startswith("layers.0.") for name in names)
    if (third and not plain) or marks or (joins and ("norm.weight" in names or (mapped and "lm_head.weight" in names))):
        return EAGLE3
    if spelt or (joins and not mapped):
        return EAGLE
    whole = not joins and any(name.endswith("embed_tokens.weight") for name in names)
    return EAGLE3 if mapped and not whole else LM


def _special(
    config: Mapping[str, Any], architectures: Sequence[str], names: Collection[str], *, wide: bool
) -> Kind | None:
    """The kind that a tensor, a key or a word of the config is of alone; `wide`: of those whose first layer is EAGLE-3's, whose tensors say so."""
    for kind in reversed(KINDS):
        if any(name.startswith(kind.tensors) for name in names if kind.tensors):
            return kind
    typed = (config.get(key) for key in ("model_type", "speculators_model_type"))
    said = *architectures, *typed, block_keys(config).get("projector_type")
    text = " ".join(map(str, said)).lower()
    able = (kind for kind in reversed(KINDS) if not wide or (kind.parts and kind.parts.wide_layer))
    alike = (k for k in able if any(word in text for word in k.spelt) or any(key in config for key in k.keys))
    return next(alike, None)


def block_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with the keys that only heads of blocks have beside the others, wherever they stand."""
    inner = [config.get(name) for name in (BLOCK_CONFIG, CHAIN_CONFIG)]
    return {**config, **{key: value for part in inner if isinstance(part, dict) for key, value in part.items()}}


def parts_of(config: Mapping[str, Any], kind: Kind, tensors: Collection[str] = ()) -> HeadParts | None:
    """The parts of a head of `kind` as its config has them: hidden states read, rank, tokens of a block, an LM head of its own.

    `config` is unfolded, `tensors` are the names on file, where they are known. A block of B tokens drafts B − 1, its first being the
    target's own, unless it samples from that one too.
    """
    parts, keys = kind.parts, block_keys(config)
    if parts is None or kind.in_target:
        return parts
    entering, leaving = aux_layer_ids(config)
    ids = keys.get("target_layer_ids") or keys.get("aux_hidden_state_layer_ids") or leaving or entering
    states = keys.get("num_aux_hidden_states") or (len(ids) if isinstance(ids, list | tuple) else 0)
    ranks = [keys[name] for name in ("markov_rank", "selector_rank", "emb_dim") if name in keys]
    fields: dict[str, Any] = {}
    if parts.hidden_states > 1 and (states or last_state_alone(config)):
        fields["hidden_states"] = states or 1
    if parts.wide_layer and tensors:
        stored = {name.removeprefix("model.") for name in tensors}
        fields |= {"hidden_states": 0} if last_state_alone(config) and "fc.weight" not in stored else {}
        fields["own_lm_head"] = "lm_head.weight" in stored
    if ranks and parts.rank:
        fields |= {"rank": ranks[0]} if ranks[0] else {"rank": 0, **_RANKLESS}
    if ranks and ranks[0] and keys.get("enable_confidence_head") is False:
        fields["chain"] = tuple(part for part in parts.chain if not part.name.startswith("confidence_head."))
    if parts.block:
        fields |= {"block": _drafted(keys, kind) or parts.block}
        cut = keys.get("draft_vocab_size") is not None and (
            not tensors or any(name.endswith("lm_head.weight") for name in tensors)
        )
        fields["own_lm_head"] = parts.own_lm_head or cut
    return msgspec.structs.replace(parts, **fields)


def last_state_alone(config: Mapping[str, Any]) -> bool:
    """Whether a head reads its target's last hidden state and no inner ones (`eagle_config.use_aux_hidden_state`)."""
    inner = config.get(AUX_CONFIG)
    return isinstance(inner, dict) and inner.get("use_aux_hidden_state") is False


def _drafted(keys: Mapping[str, Any], kind: Kind) -> int | None:
    """Tokens that a block's pass drafts, by its config; None where that does not say."""
    outer = keys.get("speculators_config")
    methods = outer.get("proposal_methods") if isinstance(outer, dict) else None
    stated = methods[0].get("speculative_tokens") if isinstance(methods, list) and methods else None
    if stated or not keys.get("block_size"):
        return stated
    return keys["block_size"] - (not from_anchor(keys, kind))


def from_anchor(keys: Mapping[str, Any], kind: Kind) -> bool:
    """Whether a block's first token is predicted by the anchor's own row, by its config's keys (`block_keys`)."""
    usual = kind is DSPARK and "speculators_model_type" not in keys  # whose reader takes an absent key for false
    return bool(keys.get("sample_from_anchor", keys.get("shift_label", usual)))


def shape_of_folder(folder: str | Path) -> Shape:
    """The shape of the model or head in a folder, or behind its config.json. Raises ValueError as `shapes.from_config`."""
    file = Path(folder) / "config.json" if Path(folder).is_dir() else Path(folder)
    place = file.parent if file.name == "config.json" else file
    config = shapes.unfolded(shapes.read_config(file))
    shape = shapes.from_config(config, shapes.folder_name(place), where=str(file))
    tensors = shapes.tensor_names(place)
    kind = of_checkpoint(config, tensors)
    if kind.in_target and kind.parts and shape.mtp_blocks:
        return shapes.mtp_head(shape, kind.parts)
    parts = parts_of(config, kind, tensors)
    return shapes.as_head(shape, parts, config) if parts else shape


def shape_named(name: str) -> Shape:
    """The shape of a public model, of the draft in the folder or GGUF file at a path, a head included, or of a Shape as JSON."""
    path = Path(name)
    return shape_of_folder(name) if path.is_dir() or path.name == "config.json" or is_gguf(path) else shapes.named(name)
