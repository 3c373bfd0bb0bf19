"""Shapes of public models by name: the table of families, kept as their own configs in published/shapes.json."""

import difflib
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from foredraft.records import Record, with_hint
from foredraft.shapes.config import from_config
from foredraft.shapes.counts import Shape


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
    known_name = next((_index()[key] for key in _keys(name) if key in _index()), None)
    if known_name is None:
        near = _nearest(name)
        message = f"no shape named {name!r}; nearest: {', '.join(near)}"
        raise with_hint(ValueError(message), "foredraft list models; or pass the folder of a Hugging Face config.json")
    row = _table().shapes[known_name]
    built = from_config(row.config, known_name)
    return msgspec.structs.replace(built, training_tokens=row.training_tokens, training_source=row.training_source)


def named(name: str) -> Shape:
    """The shape of a public model, or of the config.json at a path."""
    return from_config(name) if Path(name).exists() else shape(name)


def _nearest(name: str) -> list[str]:
    """The three known names most like `name`."""
    names = {name.lower(): name for name in (*_table().shapes, *_table().aliases)}
    return [names[near] for near in difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), names, n=3, cutoff=0.0)]
