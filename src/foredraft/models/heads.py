"""Draft heads by the name of their kind: a new one for a target, one out of a folder, and its folder in the flat format of
vLLM and SGLang (config.json and model.safetensors).

Promises: what is written can be read back to the same numbers, has the names and shapes of the published formats and no null
in its config. Refuses to know: how one kind differs from another, how a head was trained.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from foredraft import kinds, shapes
from foredraft.models.block_head import BlockHead
from foredraft.models.checkpoint import Checkpoint, TensorError, fill
from foredraft.models.decoder import INIT_STD
from foredraft.models.draft_head import DraftHead, HeadLayout
from foredraft.models.dspark import DSparkHead
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.load import parse_config
from foredraft.models.rope import Rope, rope_to_config
from foredraft.models.target import Target
from foredraft.records import write, write_bytes
from foredraft.shapes import Shape
from foredraft.shapes.absent import SINGLE

HEADS: dict[str, type[DraftHead]] = {
    kinds.EAGLE3.name: Eagle3Head, kinds.EAGLE.name: EagleHead, kinds.DFLASH.name: BlockHead, kinds.DSPARK.name: DSparkHead,
}  # fmt: skip
# Variants that change the numbers and are not built here; absent means false.
_VARIANTS = ("norm_before_residual", "norm_before_fc", "fc_norm", "use_aux_norm", "norm_output")


def new_head(
    target: Target, kind: str = kinds.EAGLE3.name, num_layers: int = 1, draft_vocab: Iterable[int] | None = None, *,
    seed: int = 0, feature_layers: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32,
    **options: Any,
) -> DraftHead:  # fmt: skip
    """An untrained head for `target` in its widths and rope: normal weights of deviation 0.02, norms of one.

    `kind` is a name of `HEADS`. `draft_vocab` are the target ids it may draft, all by default. `options` are the kind's own (`new`).
    """
    if kind not in HEADS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, HEADS))}, got {kind!r}")
    head = HEADS[kind].new(target, num_layers, draft_vocab, feature_layers, **options)
    head.initialise(seed)
    return head.to(device=target.device, dtype=dtype)


def load_head(
    folder: str | Path, target: Target, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> DraftHead:
    """The draft head in a folder, frozen, beside the target whose embedding (and, EAGLE-1/2, LM head) it borrows."""
    checkpoint, file = Checkpoint(folder), Path(folder) / "config.json"
    keys = shapes.unfolded(shapes.read_config(folder))
    shape, config = parse_config(keys, folder)
    kind = kinds.of_checkpoint(keys, checkpoint.stored)
    try:
        if kind.parts is None:
            raise ValueError("not a draft head: architectures names none, and there is no tensor fc.weight")
        if kind.name not in HEADS:
            raise ValueError(f"a {kind.label} head, which foredraft plans but does not run; it runs {', '.join(HEADS)}")
        parts = kinds.parts_of(keys, kind, checkpoint.stored) if kind.passes == "block" else kind.parts
        shape = shapes.as_head(shape, parts or kind.parts, keys)
        _check_fit(shape, kind, keys, target, checkpoint)
        head = HEADS[kind.name].from_checkpoint(shape, config, target, keys, checkpoint)
    except TensorError:
        raise
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = head.names_on_file(checkpoint)
    fill(head, checkpoint, names.of_parameter, names.is_spare, dtype, device)
    names.check()
    return head.to(device).requires_grad_(False).eval()


def _check_fit(shape: Shape, kind: kinds.Kind, keys: Mapping[str, Any], target: Target, checkpoint: Checkpoint) -> None:
    """The head is one of those built here, and made for this target."""
    variants = [key for key in _VARIANTS if keys.get(key) and kind.passes == "token"]
    if variants:
        raise ValueError(f"{variants[0]} is true, which is not supported")
    width, hidden = target.shape.hidden_size, shape.target_hidden_size or shape.hidden_size
    if hidden != width:
        raise ValueError(f"made for a target of hidden_size {hidden}, but {target.shape.name} has {width}")
    if shape.vocab_size != target.shape.vocab_size:
        raise ValueError(f"vocab_size {shape.vocab_size}, but {target.shape.name} has {target.shape.vocab_size}")
    if shape.hidden_size != target.shape.embed_width and "embed_tokens.weight" not in checkpoint.stored:
        raise ValueError(f"hidden_size {shape.hidden_size}, not the target's {width}, needs tensor embed_tokens.weight")


def save_head(
    head: DraftHead, folder: str | Path, *, dtype: torch.dtype | None = None, layout: HeadLayout | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write config.json and model.safetensors, weights as `dtype` (the head's own by default).

    `layout`: what the engine wants that is to load it, its kind's own by default. `more` adds config keys, such as
    bos_token_id and eos_token_id.
    """
    dtype, folder, layout = dtype or head.dtype, Path(folder), layout or head.layout
    tensors = {name: _on_disk(tensor, dtype) for name, tensor in head.tensors_on_file(layout).items()}
    keys = head_config(head, dtype, layout) | {key: value for key, value in (more or {}).items() if value is not None}
    write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write(folder / "config.json", keys)


def _on_disk(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, since two names may share memory; offsets and masks keep their type."""
    stored_dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device="cpu", dtype=stored_dtype, copy=True).contiguous()


def head_config(head: DraftHead, dtype: torch.dtype, layout: HeadLayout) -> dict[str, Any]:
    """The config.json of the flat format."""
    shape, config = head.shape, head.config
    keys = {
        "architectures": [layout.architecture], "model_type": shape.family, "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim,
        "hidden_act": config.activation, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": shape.max_position_embeddings, "attention_bias": shape.qkv_bias,
        "mlp_bias": shape.mlp_bias, "vocab_size": shape.vocab_size, "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True, "initializer_range": INIT_STD,
    }  # fmt: skip
    keys |= rope_to_config(config.rope or Rope()) | head.keys_on_file()
    return {key: value for key, value in keys.items() if value is not None}
