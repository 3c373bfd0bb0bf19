"""Shapes of public models by name: the table of families, kept as their own configs in published/shapes.json."""

import difflib
import re
from collections.abc import Collection
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from foredraft.records import Record, with_hint
from foredraft.shapes.absent import download, is_hub_id
from foredraft.shapes.config import from_config, read_config
from foredraft.shapes.counts import Shape
from foredraft.shapes.quantised import format_of_name


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
_NOISE = re.compile(
    r"\b(instruct|chat|base|hf|it|meta|nvidia|thinking|sft|dpo|exp|preview|8k|bf16|fp16|(nv|mx)?fp[48]|awq|gptq|int[48]|[48]bit|w[48]a(8|16)|"
    r"rl|quantized|dynamic|block|autoround)\b"
)
_VERSION = re.compile(r"\bv\d+(\.\d+)?\b|\b2[3456]\d\d\b|\b(0[1-9]|1[0-2])[0-3]\d\b")
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
    """Look up a public model: "Qwen/Qwen3-32B", "LLaMA-Instruct-3.1-8B", "vicuna-7b-v1.3" all find theirs.

    A format in the name (-FP8, -AWQ, -NVFP4, …) is what its weights are stored in, whatever those of the model so named are.
    """
    if (public_name := known_name(name)) is None:
        near = _nearest(name)
        message = f"no shape named {name!r}; nearest: {', '.join(near)}"
        hint = (
            f"{download(name, 'config.json')}; or foredraft list models"
            if is_hub_id(name)
            else "foredraft list models; or pass the folder of a Hugging Face config.json"
        )
        raise with_hint(ValueError(message), hint)
    return _built(public_name, format_of_name(name))


def known_name(name: str) -> str | None:
    """The public model that `name` stands for in `shape`; None where there is none, which is sooner known than what is nearest."""
    return next((_index()[key] for key in _keys(name) if key in _index()), None)


@cache
def _built(known_name: str, stored: str | None) -> Shape:
    """The shape of a known model, in the format that its name says or in its own."""
    row = _table().shapes[known_name]
    config = (
        {k: v for k, v in row.config.items() if k not in ("quantization_config", "expert_dtype")}
        if stored
        else row.config
    )
    built = from_config(config, f"{known_name}-{stored}" if stored else known_name)
    return msgspec.structs.replace(
        built, name=known_name, training_tokens=row.training_tokens, training_source=row.training_source
    )


def named(name: str) -> Shape:
    """The shape of a public model, of the config.json at a path, or of a Shape as JSON (`foredraft list models NAME --json`)."""
    path = Path(name)
    if not path.exists():
        return shape(name)
    if path.is_file() and path.name != "config.json" and "family" in (keys := read_config(path)):
        return stated(keys, name)
    return trained(from_config(name))


def stated(keys: dict[str, Any], where: str, name: str | None = None) -> Shape:
    """A Shape that a user states, by its own name or another. Raises ValueError, one line that names the field."""
    try:
        return msgspec.convert(keys | ({"name": name} if name else {}), Shape)
    except (msgspec.ValidationError, ValueError) as error:
        raise with_hint(
            ValueError(f"{where}: {error}"), "foredraft list models NAME --json prints one to edit"
        ) from None


def trained_models(families: Collection[str]) -> list[Shape]:
    """The known models of these families whose training tokens are published."""
    rows = _table().shapes.items()
    return [
        _built(name, None) for name, row in rows if row.training_tokens and row.config.get("model_type") in families
    ]


def trained(of: Shape) -> Shape:
    """A config's shape with the training tokens of the public model that has the same sizes, by which its drafts are judged."""
    for known in trained_models({of.family}):
        if _sizes(known) == _sizes(of):
            return msgspec.structs.replace(
                of, training_tokens=known.training_tokens, training_source=known.training_source
            )
    return of


def _sizes(of: Shape) -> tuple[Any, ...]:
    return (
        of.family,
        of.num_layers,
        of.hidden_size,
        of.vocab_size,
        of.num_heads,
        of.intermediate_size,
        of.num_experts,
        of.params,
    )


def _nearest(name: str) -> list[str]:
    """The three known names most like `name`."""
    names = {name.lower(): name for name in (*_table().shapes, *_table().aliases)}
    return [names[near] for near in difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), names, n=3, cutoff=0.0)]
