"""Kinds of draft, a row each: what differs from one to the next and which other rooms would otherwise decide for themselves.

A new kind is a row here, its module (`models`), its objective (`train`) and its drafter (`decode`). Refuses to know: torch, and
how well a kind drafts.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foredraft.shapes import Shape, eagle3_head, eagle_head

Role = Literal["none", "lookup", "lm", "head"]
ShapeOf = Callable[[Shape, int, int | None], Shape]


@dataclass(frozen=True)
class Kind:
    """One kind of draft.

    `name`: as recipes, plans, configs and checkpoints write it. `role`: none, lookup (prompt lookup and kin: no model), lm (an
    independent model) or head (on the target's hidden states). `methods`: how measurements spell it, with the label of each
    spelling. `hidden_states`: how many of the target's it reads per token. `passes`: forward passes of the draft per step: none,
    one per drafted "token", or one per "block". `unrolled`: trained on its own outputs, so that a training token costs several
    passes. `shape_of`: its shape from the target's shape, its layers and its draft vocabulary (None: the usual one); None for
    what has no shape of its own. `deep_label`: label of one with two or more layers. `engine_names`: what each engine calls it.
    """

    name: str
    label: str
    role: Role
    methods: Mapping[str, str]
    hidden_states: int = 0
    passes: Literal["none", "token", "block"] = "token"
    unrolled: bool = False
    shape_of: ShapeOf | None = None
    deep_label: str | None = None
    engine_names: Mapping[str, str] = field(default_factory=dict)

    def label_at(self, num_layers: int | None) -> str:
        """The label of a draft of so many layers."""
        return self.deep_label if self.deep_label and (num_layers or 1) > 1 else self.label

    def shape(self, target: Shape, num_layers: int = 1, draft_vocab: int | None = None) -> Shape | None:
        """The shape of such a draft beside `target`; None where the kind has none of its own."""
        return self.shape_of(target, num_layers, draft_vocab) if self.shape_of else None


USUAL_DRAFT_VOCAB = 32000  # of published EAGLE-3 heads


def _eagle(target: Shape, num_layers: int, draft_vocab: int | None) -> Shape:
    return eagle_head(target, num_layers)


def _eagle3(target: Shape, num_layers: int, draft_vocab: int | None) -> Shape:
    return eagle3_head(target, num_layers, draft_vocab or min(USUAL_DRAFT_VOCAB, target.vocab_size))


NONE = Kind("none", "no draft", "none", {"none": "no draft"}, passes="none")
NGRAM = Kind(
    "ngram", "n-gram", "lookup", {"ngram": "n-gram", "suffix": "suffix", "lookahead": "Lookahead", "rest": "REST"},
    passes="none", engine_names={"vllm": "ngram", "sglang": "NGRAM", "foredraft": "ngram"},
)  # fmt: skip
LM = Kind(
    "lm", "independent model", "lm", {"draft_model": "language model", "lm": "language model", "unstated": "language model"},
    engine_names={"vllm": "draft_model", "sglang": "STANDALONE", "foredraft": "draft_model"},
)  # fmt: skip
EAGLE = Kind(
    "eagle", "EAGLE-1/2", "head", {"eagle": "EAGLE", "eagle1": "EAGLE", "eagle2": "EAGLE-2"}, hidden_states=1, shape_of=_eagle,
    deep_label="Scylla", engine_names={"vllm": "eagle", "sglang": "EAGLE", "foredraft": "eagle"},
)  # fmt: skip
EAGLE3 = Kind(
    "eagle3", "EAGLE-3", "head", {"eagle3": "EAGLE-3", "eagle_3": "EAGLE-3", "hass": "HASS", "griffin": "GRIFFIN"},
    hidden_states=3, unrolled=True, shape_of=_eagle3, deep_label="Scylla",
    engine_names={"vllm": "eagle3", "sglang": "EAGLE3", "foredraft": "eagle3"},
)  # fmt: skip
# Measured by others; costed as an EAGLE-3 head of as many layers, one decoder layer on the target's hidden states.
MULTI_LAYER = replace(EAGLE3, name="scylla", label="Scylla", methods={"scylla": "Scylla"}, engine_names={})
MTP = replace(
    EAGLE3, name="mtp", label="MTP", methods={"mtp": "MTP", "nextn": "MTP"}, unrolled=False, deep_label=None,
    engine_names={"vllm": "mtp", "sglang": "NEXTN"},
)  # fmt: skip
BLOCK = replace(
    EAGLE3, name="block", label="block-parallel", methods={"dflash": "DFlash", "dspark": "DSpark"}, passes="block", unrolled=False,
    deep_label=None, engine_names={},
)  # fmt: skip

KINDS = (NONE, NGRAM, LM, EAGLE, EAGLE3, MULTI_LAYER, MTP, BLOCK)
CHECKPOINTS = {kind.name: kind for kind in (LM, EAGLE, EAGLE3)}  # kinds that a folder of weights can be
LABELS = {method: label for kind in KINDS for method, label in kind.methods.items()}
_BY_METHOD = {method: kind for kind in KINDS for method in kind.methods}


def of_method(method: str) -> Kind:
    """The kind that a measurement's `method` names, by itself or by one of its words (samd_eagle2); an unknown one is a head whose
    shape nobody knows.
    """
    if method in _BY_METHOD:
        return _BY_METHOD[method]
    words = re.split(r"[_\-]", method)
    heads = (kind for kind in (EAGLE3, MULTI_LAYER, MTP, BLOCK, EAGLE) if any(word in kind.methods for word in words))
    return next(heads, Kind(method, method, "head", {method: method}))


def of_name(name: str) -> Kind:
    """The kind of a recipe, plan or checkpoint by its own name. Raises ValueError on any other."""
    found = next((kind for kind in KINDS if kind.name == name), None)
    if found is None:
        raise ValueError(f"kind must be one of {', '.join(kind.name for kind in KINDS)}, got {name!r}")
    return found


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
