"""A model's shape in words: a line, or its facts.

Refuses to know: where a shape comes from.
"""

from foredraft.shapes import Block, Shape


def shape_line(shape: Shape) -> str:
    """A model in a line: parameters, format, cache."""
    active = f" ({shape.active_params / 1e9:.3g} B active)" if shape.num_experts else ""
    weights = "" if shape.weight_format in ("bfloat16", "float16") else f" in {shape.weight_format}"
    return f"{shape.params / 1e9:.3g} B parameters{active}{weights}, {shape.kv_bytes_per_token() / 1024:.0f} KiB of cache per token"


def shape_facts(shape: Shape) -> dict[str, str]:
    """What a model's shape comes to: parameters, bytes, cache."""
    facts = {
        "parameters": f"{shape.params:,}", "active, embedding included": f"{shape.active_params:,}",
        "embedding and LM head": f"{shape.embedding_params:,}", "layers": "; ".join(map(_block_line, shape.layers)),
        "weights": f"{shape.weight_bytes() / 1e9:.4g} GB, {shape.weight_format}",
        "stored otherwise": ", ".join(f"{name} {form}" for name, form in shape.formats.items()),
        "cache per token": f"{shape.kv_bytes_per_token():,.0f} bytes" + (f" in {shape.kv_format}" if shape.kv_format else ""),
        "state per sequence": f"{shape.state_bytes():,.0f} bytes" if shape.state_bytes() else "",
        "cache of 8,192 tokens": f"{shape.cache_bytes(8192) / 1e6:,.4g} MB",
        "context": f"{shape.max_position_embeddings:,} tokens" if shape.max_position_embeddings else "",
        "MTP layers, counted apart": f"{shape.mtp_layers.params:,} parameters" if shape.mtp_layers else "",
        "vision tower, counted apart": f"{shape.vision_params:,} parameters" if shape.vision_params else "",
        "assumed": "; ".join(shape.notes),
    }  # fmt: skip
    return {fact: value for fact, value in facts.items() if value}


def _block_line(block: Block) -> str:
    windows = [cache.window for cache in block.caches]
    kind = (
        "attention"
        if None in windows
        else f"window of {windows[0]:,}"
        if windows
        else "recurrent"
        if block.state
        else "no attention"
    )
    return f"{block.count} x {kind}" + (
        f", {block.experts_per_token} of {block.num_experts} experts" if block.num_experts else ""
    )
