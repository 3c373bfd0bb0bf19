"""Which matrices a checkpoint stores in which format: from `quantization_config`, `hf_quant_config.json`, or a model's name.

Promises: a method that is not known is one line. Refuses to know: sizes. Sources: the readers of transformers, vLLM (compressed-tensors,
modelopt, fp8, mxfp4, awq, gptq, quark, bitsandbytes) and the configs as published.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from foredraft.records import with_hint
from foredraft.shapes.blocks import SIXTEEN_BIT_MODULES, Block, Matrices, grouped
from foredraft.shapes.counts import Shape
from foredraft.shapes.formats import FORMATS, UNQUANTISED
from foredraft.shapes.patterns import Patterns, spellings

Keys = Mapping[str, Any]


class Quantisation(NamedTuple):
    """What formats matrices are stored in: `format_of` a name in a layer (None: not quantised), `named` the same of those alone that the
    config names one by one, which may be what quantisers leave alone by rule; `alike`: what is equal for layers that are stored alike;
    `cache`: the format of keys and values where it is stated; `note`: what was assumed.
    """

    format_of: Callable[[str, int | None], str | None]
    alike: Callable[[int], Hashable]
    named: Callable[[str, int | None], str | None] = lambda name, layer: None
    cache: str | None = None
    expert_format: str | None = None
    note: str | None = None

    def of_matrix(self, name: str, layer: int | None = None) -> str | None:
        """The format of one matrix, None where it is not quantised."""
        form = self.named(name, layer) if name in SIXTEEN_BIT_MODULES else self.format_of(name, layer)
        return None if form in UNQUANTISED else form


def _uniform(form: str, excluded: Patterns, cache: str | None = None) -> Quantisation:
    """All matrices in one format but for those excluded."""
    return Quantisation(
        lambda name, layer: None if excluded.match(spellings(name), layer) else form, _alike(excluded), cache=cache
    )


def _alike(*patterns: Patterns) -> Callable[[int], Hashable]:
    if any(one.numbered for one in patterns):
        return lambda layer: layer
    return lambda layer: tuple(one.in_layer(layer) for one in patterns)


def read_quantisation(config: Keys, inner: Keys, stated: Keys | None, name: str) -> Quantisation | None:
    """The quantisation of a config (`inner`: of its language model), of the hf_quant_config.json beside it, or by its name.

    Raises ValueError for a method that is not known.
    """
    try:
        return _read(config, inner, stated, name)
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"quantization_config: a key has another type than its method's ({error})") from None


def _read(config: Keys, inner: Keys, stated: Keys | None, name: str) -> Quantisation | None:
    outer = config.get("quantization_config") or inner.get("quantization_config") or config.get("compression_config")
    experts = {"fp4": "mxfp4"}.get(str(inner.get("expert_dtype")))
    if stated and stated.get("quantization", stated).get("quant_algo"):
        return _modelopt(_with_outer(stated.get("quantization", stated), outer))
    if outer:
        return _of_config(outer)._replace(expert_format=None if outer.get("quantized_layers") else experts)
    by_name = format_of_name(name)
    if by_name in UNQUANTISED:
        return None
    taken = f"no config says what its weights are stored in; by its name they are taken for {by_name}"
    return _uniform(by_name, Patterns.of(()))._replace(note=taken) if by_name else None


def _with_outer(inner: Keys, outer: Keys | None) -> Keys:
    """modelopt's own file, and where it leaves matrices to another method of the config (DeepSeek-V4's experts alone) that method."""
    return {**inner, "rest": outer} if outer and outer.get("quant_method") == "fp8" else inner


PACKED = "_packed"  # what compressed-tensors adds to the name of a matrix in four bits
_READ_HERE = {  # by format, the bits and the strategies of scales that our own reader has
    "int-quantized": (8, ("channel",)),
    "pack-quantized": (4, ("channel", "group")),
}


def in_few_bits(keys: Any) -> bool:
    """Whether a `quantization_config` is what our own reader has: of weights alone, in eight bits with a scale for each row, or in four with
    one for each group of a row.
    """
    known = _READ_HERE.get(str(keys.get("format"))) if isinstance(keys, Mapping) else None
    if known is None or not isinstance(groups := keys.get("config_groups"), Mapping) or not groups:
        return False
    return all(_is_read(group, *known) for group in groups.values())


def _is_read(group: Any, bits: int, strategies: tuple[str, ...]) -> bool:
    weights = group.get("weights") if isinstance(group, Mapping) and not group.get("input_activations") else None
    if not isinstance(weights, Mapping) or weights.get("strategy") not in strategies or weights.get("actorder"):
        return False
    return all(weights.get(key) == value for key, value in {"num_bits": bits, "type": "int", "symmetric": True}.items())


_NAMES = (
    (r"nvfp4|fp4", "nvfp4"), (r"mxfp4", "mxfp4"), (r"awq|gptq|int4|w4a16|4bit|q4", "int4"), (r"int8|w8a8|8bit", "int8"), (r"w8a16", "int8-g128"),
    (r"fp8", "fp8"), (r"bf16", "bfloat16"),
)  # fmt: skip


def format_of_name(name: str) -> str | None:
    """The format that a model's name states: Qwen3-32B-AWQ, …-FP8, …-GPTQ-Int4, …-NVFP4, …-quantized.w4a16."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    words = re.split(r"[-_. ]+", last)
    return next((form for pattern, form in _NAMES if any(re.fullmatch(pattern, word) for word in words)), None)


def _unknown(what: str, value: Any) -> ValueError:
    error = ValueError(f"quantization_config: {what} {value!r} is not known")
    return with_hint(error, "say what its weights are stored in: --dtype int4 and the like, or --shape shape.json")


def _of_config(keys: Keys) -> Quantisation:
    """A config's own `quantization_config`."""
    method = str(keys.get("quant_method") or "modelopt").lower().replace("-", "_")
    if keys.get("quant_algo") or (keys.get("quantized_layers") and method == "fp8"):
        return _modelopt(_with_outer(keys, keys) if method == "fp8" else keys)
    if method == "compressed_tensors" or (keys.get("config_groups") and method not in ("modelopt",)):
        return _compressed_tensors(keys)
    if method == "modelopt":
        return _modelopt(keys)
    if method == "quark":
        return _quark(keys)
    return _uniform(_simple_format(method, keys), Patterns.of(_excluded(keys)))


def _excluded(keys: Keys) -> list[str]:
    """The modules that a config keeps out, by each name that its key has."""
    names = (
        "modules_to_not_convert",
        "ignored_layers",
        "ignore",
        "exclude_modules",
        "llm_int8_skip_modules",
        "exclude",
    )
    spelt = [name for key in names for name in keys.get(key) or ()]
    apart = [name for name, how in (keys.get("extra_config") or {}).items() if how.get("bits", 4) >= 16]
    return spelt + apart + [name for name in keys.get("dynamic") or () if name.startswith("-:")]


def _simple_format(method: str, keys: Keys) -> str:
    """The one format of a method whose config names no groups."""
    bits, group = keys.get("bits", keys.get("w_bit", 4)), keys.get("group_size", keys.get("q_group_size", 128))
    if method in (
        "awq",
        "gptq",
        "auto_round",
        "intel/auto_round",
        "gptq_marlin",
        "awq_marlin",
        "moe_wna16",
        "auto_gptq",
    ):
        return _integers(bits, group)
    if method in ("fp8", "fbgemm_fp8", "ptpc_fp8"):
        return _eight(keys.get("weight_block_size"), "channel" if method != "fp8" else None)
    if method == "bitsandbytes":
        return "nf4" if keys.get("load_in_4bit") else "int8"
    if method in ("mxfp4", "mxfp8", "nvfp4", "int8"):
        return method
    raise _unknown("quant_method", keys.get("quant_method"))


def _integers(bits: int, group: int | None) -> str:
    """Weight-only integers: AWQ's and GPTQ's usual group of 128, another, or a scale a column."""
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise _unknown("bits", bits)
    return "int4" if (bits, group) == (4, 128) else f"int{bits}-g{max(group or 0, 0)}"


def _eight(block: Sequence[int] | None, strategy: str | None) -> str:
    if block and tuple(block) == (1, 32):
        return "mxfp8"
    return "fp8-block" if block or strategy == "block" else "fp8-channel" if strategy == "channel" else "fp8"


def _group_format(weights: Keys, activations: Keys | None) -> str:
    """The format of a group of compressed-tensors."""
    bits, kind, group = weights.get("num_bits"), weights.get("type", "int"), weights.get("group_size")
    if kind == "float" and bits == 8:
        return _eight(weights.get("block_structure"), weights.get("strategy"))
    if kind == "float" and bits == 4:
        return "mxfp4" if group == 32 else "nvfp4" if activations else "nvfp4-w4a16"
    if kind == "int" and bits == 8 and activations:
        return "int8"
    if kind == "int":
        return _integers(bits or 0, group)
    raise _unknown("a group's weights", f"{kind} of {bits} bits")


def _compressed_tensors(keys: Keys) -> Quantisation:
    excluded = Patterns.of(_excluded(keys))
    groups = []
    for group in (keys.get("config_groups") or {}).values():
        targets = [t for t in group.get("targets") or ("Linear",) if t not in ("Linear", "FusedMoE", "Embedding")]
        form = _group_format(group.get("weights") or {}, group.get("input_activations"))
        groups.append((Patterns.of(targets) if targets else None, form))

    def named(name: str, layer: int | None) -> str | None:
        return next((form for patterns, form in groups if patterns and patterns.match(spellings(name), layer)), None)

    def format_of(name: str, layer: int | None) -> str | None:
        if excluded.match(spellings(name), layer):
            return None
        return named(name, layer) or next((form for patterns, form in groups if patterns is None), None)

    return Quantisation(format_of, _alike(excluded, *(p for p, _ in groups if p)), named, _cache_format(keys))


def _cache_format(keys: Keys) -> str | None:
    """What keys and values are stored in: compressed-tensors' scheme, or modelopt's algorithm."""
    scheme = keys.get("kv_cache_scheme")
    bits = scheme.get("num_bits") if isinstance(scheme, Mapping) else None
    stated = str(keys.get("kv_cache_quant_algo") or ("FP8" if bits == 8 else "")).upper()
    return {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4"}.get(stated)


_ALGORITHMS = {
    "FP8": "fp8", "FP8_PB_WO": "fp8-block", "FP8_PB_REAL": "fp8-block", "FP8_BLOCK_SCALES": "fp8-block", "FP8_PER_CHANNEL_PER_TOKEN": "fp8-channel",
    "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "W4A16_NVFP4": "nvfp4-w4a16", "W4A8_NVFP4_FP8": "nvfp4", "MXFP4": "mxfp4", "W4A8_MXFP4_FP8": "mxfp4",
    "MXFP8": "mxfp8", "W4A16_AWQ": "int4", "W4A8_AWQ": "int4", "INT4_AWQ": "int4", "W4A16": "int4", "W8A16": "int8", "INT8": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8", "INT8_SQ": "int8",
}  # fmt: skip


def _algorithm(name: Any) -> str:
    if str(name).upper() not in _ALGORITHMS:
        raise _unknown("quant_algo", name)
    return _ALGORITHMS[str(name).upper()]


def _modelopt(keys: Keys) -> Quantisation:
    """NVIDIA's: one algorithm but for what is excluded, or (MIXED_PRECISION) an algorithm for each matrix that is named."""
    excluded, cache = Patterns.of(_excluded(keys)), _cache_format(keys)
    algorithm = keys.get("quant_algo") or (keys.get("config_groups") and _group_of(keys)) or "?"
    if str(algorithm).upper() != "MIXED_PRECISION":
        return _uniform(algorithm if algorithm in FORMATS else _algorithm(algorithm), excluded, cache)
    by_form: dict[str, list[str]] = {}
    for name, how in (keys.get("quantized_layers") or {}).items():
        by_form.setdefault(_algorithm(how.get("quant_algo")), []).append(name)
    groups = [(Patterns.of(names), form) for form, names in by_form.items()]
    other = _simple_format("fp8", keys["rest"]) if "rest" in keys else None

    def named(name: str, layer: int | None) -> str | None:
        return next((form for patterns, form in groups if patterns.match(spellings(name), layer)), None)

    return Quantisation(lambda name, layer: named(name, layer) or other, _alike(*(p for p, _ in groups)), named, cache)


def _group_of(keys: Keys) -> str:
    group = next(iter(keys["config_groups"].values()))
    return _group_format(group.get("weights") or {}, group.get("input_activations"))


def _quark(keys: Keys) -> Quantisation:
    """AMD's: one format for all but what is excluded or configured by layer."""
    excluded = Patterns.of(_excluded(keys))

    def form_of(config: Keys) -> str | None:
        weight = config.get("weight")
        weight = weight[0] if isinstance(weight, list) else weight
        if not weight:
            return None
        dtype, group = str(weight.get("dtype")), weight.get("group_size")
        if dtype.startswith("fp8"):
            return "fp8-channel" if weight.get("qscheme") == "per_channel" else "fp8"
        if dtype.startswith(("fp4", "mx")):
            return "mxfp4"
        if dtype.startswith(("int", "uint")):
            bits = int(re.sub(r"\D", "", dtype) or 0)
            return "int8" if bits == 8 and config.get("input_tensors") else _integers(bits, group)
        raise _unknown("dtype", dtype)

    main = form_of(keys.get("global_quant_config") or {})
    layers = [(Patterns.of([name]), form_of(how)) for name, how in (keys.get("layer_quant_config") or {}).items()]

    def format_of(name: str, layer: int | None) -> str | None:
        if excluded.match(spellings(name), layer):
            return None
        return next((form for patterns, form in layers if patterns.match(spellings(name), layer)), main)

    cache = "fp8" if keys.get("kv_cache_quant_config") or (keys.get("export") or {}).get("kv_cache_group") else None
    return Quantisation(format_of, _alike(excluded, *(patterns for patterns, _ in layers)), cache=cache)


def formats_of(block: Block, quantisation: Quantisation, layer: int) -> dict[str, str]:
    """The format of each matrix of a layer, 16-bit ones left out."""
    formats = {}
    for name in (*block.matrices, *block.expert):
        if name in block.expert and quantisation.expert_format:
            formats[name] = quantisation.expert_format
        elif form := quantisation.of_matrix(name, layer):
            formats[name] = form
    return formats


def weights_by_format(matrices: Matrices, formats: Mapping[str, str]) -> dict[str, int]:
    """How many weights each format holds."""
    totals: dict[str, int] = {}
    for name, (inputs, outputs) in matrices.items():
        if name in formats:
            totals[formats[name]] = totals.get(formats[name], 0) + inputs * outputs
    return totals


def quantised_blocks(layers: list[Block], quantisation: Quantisation) -> tuple[list[Block], str | None]:
    """Layers with their formats, of which the main one, which most weights have, goes unsaid; None where nothing is quantised."""
    totals: dict[str, int] = {}
    formats: list[dict[str, str]] = []
    known: dict[Hashable, dict[str, str]] = {}
    for index, block in enumerate(layers):
        key = quantisation.alike(index), *block.matrices, *block.expert
        if key not in known:
            known[key] = formats_of(block, quantisation, index)
        formats.append(by_name := known[key])
        for matrices, number in ((block.matrices, 1), (block.expert, block.num_experts)):
            for form, count in weights_by_format(matrices, by_name).items():
                totals[form] = totals.get(form, 0) + number * count
    if not totals:
        return layers, None
    main = max(totals, key=lambda form: totals[form])
    return [_formatted(block, by_name, main) for block, by_name in zip(layers, formats, strict=True)], main


def _formatted(block: Block, by_name: dict[str, str], main: str) -> Block:
    stored = {}
    for name in (*block.matrices, *block.expert):
        form, unsaid = by_name.get(name, "bfloat16"), "bfloat16" if name in SIXTEEN_BIT_MODULES else main
        if form != unsaid:
            stored[name] = form
    return msgspec.structs.replace(block, formats=stored)


def with_formats(shape: Shape, layers: list[Block], quantisation: Quantisation) -> Shape:
    """The shape with what its weights are stored in: by name where all layers agree, else layer by layer."""
    layers, main = quantised_blocks(layers, quantisation)
    notes = shape.notes + ((quantisation.note,) if quantisation.note else ())
    shape = msgspec.structs.replace(shape, kv_format=quantisation.cache, notes=notes)
    if main is None:
        return shape
    ends = {name: form for name in ("lm_head", "embed_tokens") if (form := quantisation.of_matrix(name))}
    by_name: dict[str, set[str]] = {}
    for block in layers:
        for name in (*block.matrices, *block.expert):
            by_name.setdefault(name, set()).add(block.formats.get(name, ""))
    if any(len(forms) > 1 for forms in by_name.values()):
        return msgspec.structs.replace(shape, weight_format=main, formats=ends, blocks=grouped(layers))
    said = {name: form for name, (form,) in by_name.items() if form}
    silent = grouped([msgspec.structs.replace(block, formats={}) for block in layers]) if shape.blocks else ()
    return msgspec.structs.replace(shape, weight_format=main, formats=ends | said, blocks=silent)
