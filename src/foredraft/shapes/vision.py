"""Weights of the vision tower of a multimodal checkpoint, which decoding never reads.

Promises: exact for Qwen's and Moonshot's towers, near (the tower being some per cent of the model) for others. Refuses to know: the language model.
"""

from collections.abc import Mapping
from typing import Any

from foredraft.shapes.stack import first

_GATED = ("gemma4_vision", "pixtral", "qwen2_5_vl", "glm4v", "glm4v_moe")


def vision_params(config: Mapping[str, Any], text_width: int) -> int:
    """Weights of the tower behind `vision_config` and of the projector to the text's width; 0 where there is none."""
    keys = config.get("vision_config")
    if not isinstance(keys, Mapping):
        return 0
    width = first(keys, "vt_hidden_size", "hidden_size", "embed_dim", "width")
    depth = first(keys, "vt_num_hidden_layers", "num_hidden_layers", "depth", "layers")
    if not (isinstance(width, int) and isinstance(depth, int)):
        return 0
    inner = first(keys, "vt_intermediate_size", "intermediate_size", default=int(width * (keys.get("mlp_ratio") or 4)))
    model_type = str(keys.get("model_type"))
    layer = 4 * width**2 + (3 if model_type in _GATED else 2) * width * inner + 9 * width + inner
    patch = (
        3 * first(keys, "patch_size", default=14) ** 2 * first(keys, "temporal_patch_size", default=1) * width + width
    )
    rows = first(keys, "num_position_embeddings", default=0) or 2 * first(keys, "position_embedding_size", default=0)
    rows = rows or first(keys, "init_pos_emb_height", default=0) * first(keys, "init_pos_emb_width", default=0)
    return (
        depth * layer + patch + rows * width + _merger(keys, width, first(keys, "out_hidden_size", default=text_width))
    )


def _merger(keys: Mapping[str, Any], width: int, out: int) -> int:
    """What joins patches and projects them; Qwen3-VL has one more for each of its deep layers."""
    side = first(keys, "spatial_merge_size", default=(keys.get("merge_kernel_size") or [1])[0])
    if side == 1:
        return width * out
    joined = side * side * width
    merger = joined * joined + joined + joined * out + out
    deep = len(keys.get("deepstack_visual_indexes") or ())
    return merger + 2 * width + deep * (merger + 2 * joined)
