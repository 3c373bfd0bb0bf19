"""Kinds of draft, a row each: what differs from one to the next and which other rooms would otherwise decide for themselves.

A new kind is a row here, its module (`models`), its objective (`train`) and its drafter (`decode`). Refuses to know: torch, and
how well a kind drafts.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from foredraft import shapes
from foredraft.records import DraftChoice
from foredraft.shapes import HeadParts, Shape

Role = Literal["none", "lookup", "lm", "head"]
Prior = Literal["lookup", "lm", "head", "mtp", "block"]  # of acceptance by position, see laws.acceptance


@dataclass(frozen=True)
class Kind:
    """One kind of draft.

    `name`: as recipes, plans, configs and checkpoints write it. `role`: none, lookup (prompt lookup and kin: no model), lm (an
    independent model) or head (on the target's hidden states). `methods`: how measurements spell it, with the label of each
    spelling. `passes`: forward passes of the draft per step: none, one per drafted "token", or one per "block". `unrolled`:
    trained on its own outputs, so that a training token costs several passes. `parts`: what makes a head of a transformer; None
    for what is no head, and for heads of no known shape. `draft_vocab`: the usual rows of its own LM head, None for all of the
    target's. `deep_label`: label of one with two or more layers. `engine_names`: what each engine calls it.
    """

    name: str
    label: str
    role: Role
    methods: Mapping[str, str]
    passes: Literal["none", "token", "block"] = "token"
    unrolled: bool = False
    parts: HeadParts | None = None
    draft_vocab: int | None = None
    deep_label: str | None = None
    engine_names: Mapping[str, str] = field(default_factory=dict)
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

    def label_at(self, num_layers: int | None) -> str:
        """The label of a draft of so many layers."""
        return self.deep_label if self.deep_label and (num_layers or 1) > 1 else self.label

    def shape(self, target: Shape, num_layers: int = 1, draft_vocab: int | None = None) -> Shape:
        """The shape of such a head beside `target`; `draft_vocab` None is the usual one.

        Raises ValueError, which names what is lacking, where the kind is none or its shape is not known.
        """
        if self.parts is None:
            raise ValueError(f"a shape for method {self.name}")
        usual = min(self.draft_vocab, target.vocab_size) if self.draft_vocab else None
        return shapes.head(target, self.parts, num_layers, draft_vocab or usual)


_EAGLE = HeadParts(kind="eagle", hidden_states=1, fc_embedding=True, wide_layer=False, norms=-1, own_lm_head=False)
_EAGLE3 = HeadParts(kind="eagle3", hidden_states=3, fc_embedding=False, wide_layer=True, norms=2, own_lm_head=True)

NONE = Kind("none", "no draft", "none", {"none": "no draft"}, passes="none", prior="lookup")
NGRAM = Kind(
    "ngram", "n-gram", "lookup", {"ngram": "n-gram", "suffix": "suffix", "lookahead": "Lookahead", "rest": "REST"},
    passes="none", engine_names={"vllm": "ngram", "sglang": "NGRAM", "foredraft": "ngram"}, prior="lookup",
)  # fmt: skip
LM = Kind(
    "lm", "independent model", "lm", {"draft_model": "language model", "lm": "language model", "unstated": "language model"},
    engine_names={"vllm": "draft_model", "sglang": "STANDALONE", "tensorrt-llm": "DraftTarget", "foredraft": "draft_model"},
    prior="lm",
)  # fmt: skip
EAGLE = Kind(
    "eagle", "EAGLE-1/2", "head", {"eagle": "EAGLE", "eagle1": "EAGLE", "eagle2": "EAGLE-2"}, parts=_EAGLE,
    engine_names={"vllm": "eagle", "sglang": "EAGLE", "foredraft": "eagle"},
)  # fmt: skip
EAGLE3 = Kind(
    "eagle3", "EAGLE-3", "head", {"eagle3": "EAGLE-3", "eagle_3": "EAGLE-3", "hass": "HASS", "griffin": "GRIFFIN"},
    unrolled=True, parts=_EAGLE3, draft_vocab=32000, deep_label="Scylla",
    engine_names={"vllm": "eagle3", "sglang": "EAGLE3", "tensorrt-llm": "Eagle3", "foredraft": "eagle3"},
)  # fmt: skip
# Measured by others; costed as an EAGLE-3 head of as many layers, one decoder layer on the target's hidden states.
MULTI_LAYER = replace(EAGLE3, name="scylla", label="Scylla", methods={"scylla": "Scylla"}, engine_names={})
MTP = replace(
    EAGLE3, name="mtp", label="MTP", methods={"mtp": "MTP", "nextn": "MTP"}, unrolled=False, deep_label=None,
    engine_names={"vllm": "mtp", "sglang": "NEXTN"}, prior="mtp",
)  # fmt: skip
BLOCK = replace(
    EAGLE3, name="block", label="block-parallel", methods={"dflash": "DFlash", "dspark": "DSpark"}, passes="block", unrolled=False,
    deep_label=None, engine_names={}, prior="block",
)  # fmt: skip
MEDUSA = Kind("medusa", "Medusa", "head", {"medusa": "Medusa", "hydra": "Hydra"}, passes="block")

KINDS = (NONE, NGRAM, LM, EAGLE, EAGLE3, MULTI_LAYER, MTP, BLOCK, MEDUSA)
USUAL = (EAGLE3, MULTI_LAYER, EAGLE, LM, NGRAM)  # those most met, first of all
USUAL_HEAD = EAGLE3  # planned where own runs are of no other, and what other heads are held against
CHECKPOINTS = {kind.name: kind for kind in (LM, EAGLE, EAGLE3)}  # kinds that a folder of weights can be
LABELS = {method: label for kind in KINDS for method, label in kind.methods.items()}
_SPELLINGS = {  # of one method in tables, in lower case with every other sign an underscore
    "none": (
        "", "vanilla", "baseline", "autoregressive", "nosd", "no_draft", "ar", "no_sd", "no_spec", "nospec", "no_speculation",
        "off", "target_only", "plain",
    ),
    "eagle3": ("eagle_3",),
    "eagle2": ("eagle_2",),
    "eagle": ("eagle_1", "eagle1"),
    "draft_model": ("sps", "standalone"),
    "ngram": ("n_gram", "pld", "prompt_lookup"),
}  # fmt: skip
SPELLINGS = {spelling: method for method, spellings in _SPELLINGS.items() for spelling in spellings}
_BY_METHOD = {method: kind for kind in KINDS for method in kind.methods}


@cache
def of_method(method: str) -> Kind:
    """The kind that a measurement's `method` names, itself or by a word of it (samd_eagle2); an unknown one is a head without a shape."""
    if method in _BY_METHOD:
        return _BY_METHOD[method]
    words = re.split(r"[_\-]", method)
    heads = (kind for kind in (EAGLE3, MULTI_LAYER, MTP, BLOCK, EAGLE) if any(word in kind.methods for word in words))
    return next(heads, Kind(method, method, "head", {method: method}))


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
    """The kind of a plan's draft. Raises ValueError on a head that does not say which, or on a kind that no folder can be."""
    if draft.kind == "lookup":
        return NGRAM
    if draft.kind == "head" and draft.method is None:
        raise ValueError(
            f"draft.method is missing: this plan is too old to say which kind of head {draft.name} is; plan again"
        )
    name = draft.method if draft.kind == "head" else draft.kind
    if name not in CHECKPOINTS:
        raise ValueError(f"draft.kind must be lookup or one of {', '.join(CHECKPOINTS)}, got {name!r}")
    return CHECKPOINTS[str(name)]


def of_shape(shape: Shape) -> Kind:
    """The kind of a model or head of that shape."""
    return of_name(shape.head.kind) if shape.head else LM


def of_role(role: str) -> tuple[Kind, ...]:
    """The kinds of a role that can be trained, the usual one first."""
    return tuple(kind for kind in reversed(CHECKPOINTS.values()) if kind.role == role)


# Where a head's config says which of the target's hidden states it reads: by the layer entered, and nested by the layer left.
AUX_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
AUX_CONFIG = "eagle_config"


def aux_layer_ids(config: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
    """The hidden states that a head's config names, by the layers entered and by the layers left; () where it does not say."""
    inner = config.get(AUX_CONFIG)
    return config.get(AUX_LAYER_IDS) or (), (inner.get(AUX_LAYER_IDS) if isinstance(inner, dict) else None) or ()


_HEAD_NAME = re.compile(r"^Eagle3?(?=[A-Z])|Eagle3?$|^Eagle3?Speculator$")


def of_checkpoint(config: Mapping[str, Any], tensors: Collection[str] = ()) -> Kind:
    """What a folder's weights are: LM, EAGLE or EAGLE3, by the names of its tensors, and where they do not say by its config.

    Only a head joins hidden states (`fc`); only EAGLE-3 norms them, maps a draft vocabulary or says its size. `config` is
    unfolded (see `shapes.unfolded`); published heads call themselves LlamaForCausalLM as often as not.
    """
    names = {name.removeprefix("model.") for name in tensors}
    architectures = [str(name) for name in config.get("architectures") or ()]
    spelt = [match[0] for name in architectures if (match := _HEAD_NAME.search(name))]
    third = any("3" in name for name in spelt) or config.get("draft_vocab_size") is not None
    marks = any(".hidden_norm." in name or name.startswith("midlayer.") or name in ("d2t", "t2d") for name in names)
    if "fc.weight" in names:
        return EAGLE3 if third or marks or "norm.weight" in names else EAGLE
    if third or marks:
        return EAGLE3
    return EAGLE if spelt else LM


def shape_of_folder(folder: str | Path) -> Shape:
    """The shape of the model or head in a folder, or behind its config.json. Raises ValueError as `shapes.from_config`."""
    file = Path(folder) / "config.json" if Path(folder).is_dir() else Path(folder)
    config = shapes.unfolded(shapes.read_config(file))
    shape = shapes.from_config(config, file.resolve().parent.name, where=str(file))
    parts = of_checkpoint(config, shapes.tensor_names(file.parent)).parts
    return shapes.as_head(shape, parts, config) if parts else shape


def shape_named(name: str) -> Shape:
    """The shape of a public model, of the draft in the folder at a path, a head included, or of a Shape as JSON."""
    path = Path(name)
    return shape_of_folder(name) if path.is_dir() or path.name == "config.json" else shapes.named(name)
