"""From a Hugging Face folder or a GGUF file to a `Decoder`.

Promises: the decoder holds every weight of it, in the type asked for. Refuses to know: how a tensor file is read.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import torch

from foredraft import shapes
from foredraft.models.checkpoint import Checkpoint, fill
from foredraft.models.decoder import Decoder
from foredraft.models.draft_vocab import stored_offsets
from foredraft.models.gguf import GgufCheckpoint
from foredraft.models.layers import ModelConfig, model_config_of
from foredraft.shapes import Shape
from foredraft.shapes.families import prefixes, runnable
from foredraft.shapes.gguf import is_gguf


def load(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    config: tuple[Shape, ModelConfig] | None = None,
) -> Decoder:
    """The decoder in a Hugging Face folder (config.json and safetensors) or a GGUF file, frozen, in evaluation mode.

    `config`: what `read_config` says of the folder, where it has been asked.
    """
    shape, model_config = config or read_config(path)
    checkpoint = opened(path)
    checkpoint.check_depth(shape.num_layers)
    d2t = stored_offsets(shape, checkpoint) if shape.draft_vocab_size else None
    with torch.device("meta"):
        decoder = Decoder(shape, model_config, d2t)
    prefix = _prefix(shape, checkpoint)
    fill(
        decoder, checkpoint, lambda name: stored_name(name, shape, prefix), lambda name: _spare(name, shape), dtype,
        device,
    )  # fmt: skip
    if shape.tie_embeddings and "lm_head.weight" in checkpoint.stored:
        _check_tied(checkpoint, prefix)
    return decoder.to(device).requires_grad_(False).eval()


def opened(path: str | Path) -> Checkpoint:
    """The tensors of a folder or of a GGUF file."""
    return GgufCheckpoint(path) if is_gguf(path) else Checkpoint(path)


def read_config(path: str | Path) -> tuple[Shape, ModelConfig]:
    """Shape and model config of a folder's config.json or of a GGUF file. Raises ValueError, one line that names the file."""
    return parse_config(shapes.unfolded(shapes.read_config(path)), path)


def parse_config(keys: dict[str, Any], folder: str | Path) -> tuple[Shape, ModelConfig]:
    """`read_config` of the keys that were read from the folder's config.json, unfolded (see `shapes.unfolded`)."""
    shape = shapes.decodable(keys, folder)
    try:
        return shape, model_config_of(keys, shape)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{shapes.config_file(folder)}: {error}") from None


def _prefix(shape: Shape, checkpoint: Checkpoint) -> str:
    places = prefixes(shape.family)
    return next((p for p in places if f"{p}embed_tokens.weight" in checkpoint.stored), places[0])


def stored_name(name: str, shape: Shape, prefix: str) -> str:
    """A parameter's name on file."""
    if name == "d2t" or name.startswith("lm_head."):
        return name
    for ours, theirs in runnable(shape.family).tensors:
        name = re.sub(ours, theirs, name)
    return prefix + name


def _spare(name: str, shape: Shape) -> bool:
    """What checkpoints carry beyond the weights: frequencies and a tied head's copy of old, a draft vocabulary's map."""
    tied_copy, mapped = name == "lm_head.weight" and shape.tie_embeddings, bool(shape.draft_vocab_size)
    return name.endswith("rotary_emb.inv_freq") or tied_copy or (mapped and name in ("d2t", "t2d"))


def _check_tied(checkpoint: Checkpoint, prefix: str) -> None:
    embedding, head = checkpoint.tensor(f"{prefix}embed_tokens.weight"), checkpoint.tensor("lm_head.weight")
    if not torch.equal(embedding, head):
        raise checkpoint.fail(
            "lm_head.weight", "differs from the embedding; set tie_word_embeddings to false in config.json"
        )
