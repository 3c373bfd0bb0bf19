"""Shapes from Hugging Face configs. Sizes are required; a switch that a config leaves out takes transformers' default.

Promises: a config that cannot be counted is an error that says what it lacks. Refuses to know: torch, tokenizers.
"""

from pathlib import Path
from typing import Any

import msgspec

from foredraft.records import hub_name, is_lfs, lfs_pointer, parse_loosely, read_json
from foredraft.shapes.absent import no_config
from foredraft.shapes.blocks import Block, grouped
from foredraft.shapes.counts import Shape
from foredraft.shapes.families import FAMILIES, ModelFamily, family_name
from foredraft.shapes.gguf import GgufFile, is_gguf
from foredraft.shapes.gguf_config import gguf_config
from foredraft.shapes.heads import HeadParts
from foredraft.shapes.layered import context_length, layered_shape
from foredraft.shapes.plain import plain_block
from foredraft.shapes.quantised import PACKED, read_quantisation, with_formats
from foredraft.shapes.vision import vision_params

HEADER_BYTES = 10**8  # of a safetensors file's header at most, as its library has it
_SIZES = {
    "num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
}  # fmt: skip


def from_config(config: dict[str, Any] | str | Path, name: str | None = None, *, where: str = "config") -> Shape:
    """The shape behind a Hugging Face config: a dict (`where` it is from, for errors), a `config.json`, the directory that holds one, or
    a GGUF file.
    """
    stated = None
    if not isinstance(config, dict):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        where, name = str(path), name or folder_name(path if is_gguf(path) else path.parent)
        config, beside = read_config(path), path.parent / "hf_quant_config.json"
        stated = read_config(beside) if beside.is_file() else None
    try:
        return _shape_of(config, name, stated)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        what = f"a key has another type than its family's ({error})" if isinstance(error, TypeError) else error
        failure = ValueError(f"{where}: {what}")
        failure.__notes__ = list(getattr(error, "__notes__", ()))
        raise failure from None


_READ_BY_HEAD = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
)  # what reads the embedding beside the hidden state


def as_head(shape: Shape, parts: HeadParts, config: dict[str, Any]) -> Shape:
    """A folder's model as a draft head of such parts; `config` is its unfolded config.json. Raises ValueError.

    Some trainers count the hidden states, not the layers, of the target under `num_target_layers`.
    """
    depth = config.get("target_num_hidden_layers") or config.get("num_target_layers")
    head_fields = {
        "head": parts, "tie_embeddings": False, "target_hidden_size": config.get("target_hidden_size"),
        "draft_vocab_size": config.get("draft_vocab_size"),
        "target_num_layers": None if depth == parts.hidden_states else depth,
        "blocks": _with_layer_parts(shape, parts),
    }  # fmt: skip
    try:
        return msgspec.convert(msgspec.structs.asdict(shape) | head_fields, Shape)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _with_layer_parts(shape: Shape, parts: HeadParts) -> tuple[Block, ...]:
    """The stated layers of a head (sliding ones, say) with what its kind has beside attention and MLP; plain layers know it themselves."""
    more = parts.sized(parts.layer, shape.hidden_size, shape.vocab_size)
    vectors = parts.layer_vectors * shape.hidden_size
    blocks = [
        msgspec.structs.replace(block, matrices=block.matrices | more, vectors=block.vectors + vectors)
        for block in shape.blocks
    ]
    if not (blocks and parts.wide_layer):
        return tuple(blocks)
    first, *others = blocks
    wide = {
        name: (2 * inputs, outputs)
        for name, (inputs, outputs) in first.matrices.items()
        if name.endswith(_READ_BY_HEAD)
    }
    rest = [msgspec.structs.replace(first, count=first.count - 1)] if first.count > 1 else []
    return (msgspec.structs.replace(first, count=1, matrices=first.matrices | wide), *rest, *others)


def tensor_names(folder: str | Path) -> frozenset[str]:
    """The names of a folder's tensors by its file's header or the index of its shards, or those of a GGUF file; none where it holds no weights.
    A matrix in four bits goes by its own name.

    Raises ValueError where these are broken.
    """
    if is_gguf(folder):
        return frozenset(GgufFile(folder).tensors)
    file, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    try:
        there = (
            parse_loosely(_header(file))
            if file.is_file()
            else read_json(index)["weight_map"]
            if index.is_file()
            else ()
        )
        return frozenset(name.removesuffix(PACKED) for name in there if name != "__metadata__")
    except (ValueError, KeyError, TypeError):
        broken = file if file.is_file() else index
        if is_lfs(broken):
            raise lfs_pointer(broken) from None
        raise ValueError(f"{broken}: truncated or corrupt; export or download it again") from None


def _header(file: Path) -> bytes:
    """The header of a safetensors file, or as much of it as is there."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        return stored.read(min(length, file.stat().st_size, HEADER_BYTES))


def folder_name(path: str | Path) -> str:
    """The name of a model by its folder, or by its GGUF file; org/model of a snapshot in the Hub's cache."""
    resolved = Path(path).resolve()
    return hub_name(path) or (resolved.stem if is_gguf(path) else resolved.name)


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys of a config.json, or of the directory that holds one, as they stand there; those that a GGUF file stands for."""
    path = Path(path)
    if is_gguf(path):
        return gguf_config(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise no_config(path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    if not isinstance(config.get("architectures", []), list | None):
        raise ValueError(f"{path}: architectures must be a list of names, got {config['architectures']!r:.60}")
    return config


def unfolded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the speculators format with its `transformer_layer_config` beside its own keys, one of vLLM's older EAGLE format with its
    `model`; any other as it is.

    In the first an absent `norm_before_residual` means true of an EAGLE-3 head, and a null key is an absent one.
    """
    if config.get("model_type") == "eagle" and isinstance(model := config.get("model"), dict):
        return config | model
    inner = config.get("transformer_layer_config")
    if not isinstance(inner, dict):
        return config
    outer = {key: value for key, value in config.items() if value is not None and key != "transformer_layer_config"}
    normed = {"norm_before_residual": True} if config.get("speculators_model_type") == "eagle3" else {}
    return normed | inner | outer


_INNER = ("text_config", "language_config", "llm_config", "thinker_config")


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model of a multimodal config, which nests it under `text_config` or the like, or of a speculators draft."""
    config = unfolded(config)
    inner = next((config[key] for key in _INNER if isinstance(config.get(key), dict)), None)
    if "hidden_size" in config or inner is None:
        return config
    outer = {
        key: config[key]
        for key in ("tie_word_embeddings", "_name_or_path", "architectures", "quantization_config")
        if key in config
    }
    return text_part(outer | {key: value for key, value in inner.items() if key not in outer or value is not None})


def _shape_of(config: dict[str, Any], name: str | None, stated: dict[str, Any] | None) -> Shape:
    keys = text_part(config)
    family_type = family_name(keys)
    family = FAMILIES.get(family_type)
    name = str(name or keys.get("_name_or_path") or family_type)
    quantisation = read_quantisation(config, keys, stated, name)
    if family and family.traits is None:
        shape, layers = _plain(keys, family_type, family, name)
    else:
        shape, layers = layered_shape(keys, family_type, family, name)
    sixteen = "float16" if "float16" in (keys.get("torch_dtype"), keys.get("dtype")) else "bfloat16"
    shape = msgspec.structs.replace(
        shape, weight_format=sixteen, vision_params=vision_params(config, shape.hidden_size)
    )
    return with_formats(shape, layers, quantisation) if quantisation else shape


def _plain(keys: dict[str, Any], family_type: str, family: ModelFamily, name: str) -> tuple[Shape, list[Block]]:
    """A shape of plain layers, and these one by one."""
    if keys.get("num_local_experts"):  # transformers 5 writes num_experts so
        keys = {"num_experts": keys["num_local_experts"]} | keys
    sizes = _SIZES | dict(family.sizes)
    missing = [key for key in sizes.values() if keys.get(key) is None]
    if missing:
        raise ValueError(f"{family_type} config lacks {', '.join(missing)}")
    fields = {field: keys[key] for field, key in sizes.items()}
    fields["num_kv_heads"] = keys.get("num_key_value_heads", family.num_kv_heads) or fields["num_heads"]
    fields["head_dim"] = keys.get("head_dim", family.head_dim) or _divide(fields["hidden_size"], fields["num_heads"])
    fields["tie_embeddings"] = keys.get("tie_word_embeddings", family.tied)
    fields["max_position_embeddings"] = context_length(keys)
    fields["draft_vocab_size"] = keys.get("draft_vocab_size")
    for key, (names, default) in family.switches.items():
        fields |= dict.fromkeys(names, keys.get(key, default))
    fields |= family.fields(keys)
    shape = msgspec.convert({"name": name, "family": family_type, **fields}, Shape)
    windows = _windows(keys, family, shape.num_layers)
    plain = {
        sparse: plain_block(shape, sparse=sparse) for sparse in {shape.is_sparse(i) for i in range(shape.num_layers)}
    }
    layers = [_narrowed(plain[shape.is_sparse(i)], window) for i, window in enumerate(windows)]
    return (msgspec.structs.replace(shape, blocks=grouped(layers)) if any(windows) else shape), layers


def _windows(keys: dict[str, Any], family: ModelFamily, num_layers: int) -> list[int | None]:
    """The window of each plain layer, None where it attends to all; transformers' defaults of these classes."""
    window = keys.get("sliding_window", 4096)
    if family.slides == "never" or not window or (family.slides == "switched" and not keys.get("use_sliding_window")):
        return [None] * num_layers
    if types := keys.get("layer_types"):
        return [window if name == "sliding_attention" else None for name in types[:num_layers]]
    begin = keys.get("max_window_layers", 28) if family.slides == "switched" else 0
    return [window if i >= begin else None for i in range(num_layers)]


def _narrowed(block: Block, window: int | None) -> Block:
    if window is None:
        return block
    caches = tuple(msgspec.structs.replace(cache, window=window) for cache in block.caches)
    return msgspec.structs.replace(block, caches=caches)


def _divide(hidden_size: Any, num_heads: Any) -> Any:
    """HF's default head_dim; what is not a positive whole number is left for the validation of its own field."""
    if not (isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads > 0 and hidden_size > 0):
        return 1
    if hidden_size % num_heads:
        raise ValueError(f"head_dim is missing, and hidden_size/num_attention_heads = {hidden_size}/{num_heads}")
    return hidden_size // num_heads
