"""The shape of a transformer: of targets, drafts and draft heads, from configs, by a public name, or sized for a target.

Refuses to know: torch, tokenizers, how fast anything runs.
"""

from foredraft.shapes.config import as_head, from_config, of_draft, read_config, unfolded
from foredraft.shapes.counts import BYTES_PER_VALUE, Shape, bytes_per_value
from foredraft.shapes.drafts import LEAST_BODY, eagle3_head, eagle_head, scaled
from foredraft.shapes.public import known_shapes, named, named_draft, shape

__all__ = [
    "BYTES_PER_VALUE", "LEAST_BODY", "Shape", "as_head", "bytes_per_value", "eagle3_head", "eagle_head", "from_config", "known_shapes",
    "named", "named_draft", "of_draft", "read_config", "scaled", "shape", "unfolded",
]  # fmt: skip
