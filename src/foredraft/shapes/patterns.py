"""Names of modules in quantisation configs: which matrix of ours, in which layer, is meant.

Promises: names, parts of names, globs and expressions as transformers, vLLM, modelopt and compressed-tensors read them, whatever a tool writes
before `layers.`. Refuses to know: formats.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

_ASIDE = ("mtp", "model.mtp", "visual", "model.visual", "vision", "model.vision", "mm_", "multi_modal")  # counted apart
_IN_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)(.*)$")
_EVERY_LAYER = re.compile(r"^(?:[\w.]*\.)?layers\.\*\.")
_ENDS = {"head": "lm_head", "embed": "embed_tokens", "embeddings": "embed_tokens"}


class Patterns(NamedTuple):
    """`anywhere`: names that say no layer; `of_layer`: by a layer's digits what is meant in it; `starts`: digits that any layer's number may
    begin with (`layers.6*`); `expressions`: the rest, on whole names.
    """

    anywhere: frozenset[str]
    of_layer: Mapping[str, frozenset[str]]
    starts: tuple[str, ...]
    expressions: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, spelt: Iterable[str]) -> "Patterns":
        """From names as configs spell them. Raises ValueError for an expression that does not compile."""
        anywhere, of_layer, starts, expressions = set(), {}, [], []
        for name in spelt:
            if name.startswith(_ASIDE):
                continue
            name = _EVERY_LAYER.sub("", name)
            if name.startswith(("re:", "-:")):
                expressions.append(_compiled(name[3:] if name.startswith("re:") else name[2:]))
            elif (inside := _IN_LAYER.match(name)) and inside[2].startswith((".", "*")) | (not inside[2]):
                starts += [inside[1]] if inside[2].startswith("*") else []
                of_layer.setdefault(inside[1], set()).add(inside[2].removeprefix(".") or "*")
            elif "*" in name:
                tail = name[name.index("layers.") :] if "layers." in name else name
                expressions.append(
                    re.compile(fnmatch.translate("*" + tail) + "|" + fnmatch.translate("*" + tail + ".*"))
                )
            else:
                anywhere.add(_ENDS.get(name.rsplit(".", 1)[-1], name))
        return cls(
            frozenset(anywhere),
            {digits: frozenset(names) for digits, names in of_layer.items()},
            tuple(starts),
            tuple(expressions),
        )

    def in_layer(self, layer: int | None) -> frozenset[str]:
        """What is meant in that layer alone."""
        digits = str(layer)
        whole = {"*"} if any(digits.startswith(start) for start in self.starts) else set()
        return self.of_layer.get(digits, frozenset()) | whole

    @property
    def numbered(self) -> bool:
        """Whether an expression may tell layers apart."""
        return any("layers" in expression.pattern for expression in self.expressions)

    def match(self, names: Iterable[str], layer: int | None) -> bool:
        """Whether a matrix is meant by any of its `names` (without `layers.N.`): itself, or what it is part of."""
        meant = self.in_layer(layer)
        return any(self._matches(name, meant, layer) for name in names)

    def _matches(self, name: str, meant: frozenset[str], layer: int | None) -> bool:
        if not self.anywhere.isdisjoint(parts(name)) or any(_is_part(name, tail) for tail in meant):
            return True
        whole = name if layer is None else f"model.layers.{layer}.{name}"
        return any(expression.search(whole) for expression in self.expressions)


def _is_part(name: str, tail: str) -> bool:
    return name == tail or name.startswith(tail + ".") or ("*" in tail and fnmatch.fnmatchcase(name, tail))


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(re.sub(r"^\^?[\w\\.]*?(?=layers)", "", expression).removeprefix("^"))
    except re.error as error:
        raise ValueError(f"quantization_config: {expression!r} is no regular expression ({error})") from None


@cache
def parts(name: str) -> tuple[str, ...]:
    """Every run of words of a name: a.b.c, a.b, a, b.c, b, c."""
    words = name.split(".")
    return tuple(".".join(words[i:j]) for i in range(len(words)) for j in range(len(words), i, -1))


_CONTAINERS = {
    "self_attn": ("self_attn", "attn", "attention", "mixer"), "linear_attn": ("linear_attn", "mixer", "mamba", "self_attn"),
    "mlp": ("mlp", "ffn", "mixer", "feed_forward", "block_sparse_moe"),
}  # fmt: skip
_WORDS = {
    "gate_proj": ("gate_proj", "gate_up_proj", "w1"), "up_proj": ("up_proj", "gate_up_proj", "w3"), "down_proj": ("down_proj", "w2"),
    "q_proj": ("q_proj", "qkv_proj"), "k_proj": ("k_proj", "qkv_proj"), "v_proj": ("v_proj", "qkv_proj"), "gate": ("gate", "router"),
    "shared_expert": ("shared_expert", "shared_experts"), "experts": ("experts", "experts.0"),
}  # fmt: skip


@cache
def spellings(name: str) -> tuple[str, ...]:
    """What a matrix of ours may be called on file, without its layer."""
    head, *rest = name.split(".")
    names = list(_CONTAINERS.get(head, (head,)))
    for word in rest:
        names = [f"{start}.{other}" for start in names for other in _WORDS.get(word, (word,))]
    return tuple(names)
