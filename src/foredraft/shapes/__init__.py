"""The shape of a transformer: of targets, drafts and draft heads, from configs, by a public name, or sized for a target.

Refuses to know: torch, tokenizers, how fast anything runs, and which kinds of draft head there are (`kinds` does).
"""

from foredraft.shapes.blocks import Block, Cache
from foredraft.shapes.config import as_head, folder_name, from_config, read_config, tensor_names, unfolded
from foredraft.shapes.counts import MtpLayers, Shape
from foredraft.shapes.drafts import LEAST_BODY, head, mtp_head, scaled
from foredraft.shapes.families import dense_family
from foredraft.shapes.folder import check_folder, check_same_tokenizer, config_file, decodable
from foredraft.shapes.formats import FORMATS, bytes_per_value, compute_dtype, number_format
from foredraft.shapes.heads import HeadMatrix, HeadParts
from foredraft.shapes.public import known_name, known_shapes, named, shape, stated, trained_models

__all__ = [
    "FORMATS", "LEAST_BODY", "Block", "Cache", "HeadMatrix", "HeadParts", "MtpLayers", "Shape", "as_head", "bytes_per_value",
    "check_folder",
    "check_same_tokenizer", "compute_dtype", "config_file", "decodable",
    "dense_family", "folder_name", "from_config", "head", "known_name", "known_shapes", "mtp_head", "named",
    "number_format", "read_config", "scaled", "shape", "stated", "tensor_names", "trained_models", "unfolded",
]  # fmt: skip
