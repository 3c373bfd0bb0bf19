"""Foredraft: say which draft to train before training it, then train, decode, measure and serve it."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`foredraft.Engine` and its parts, without importing torch until they are asked for."""
    homes = {
        "Engine": "engine",
        "Request": "batch",
        "Sampling": "sampling",
        "NGramDrafter": "ngram",
        "ModelDrafter": "model_drafter",
    }
    if name not in homes:
        raise AttributeError(f"module 'foredraft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foredraft.decode.{homes[name]}"), name)
