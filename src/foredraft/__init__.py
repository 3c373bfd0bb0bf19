"""Foredraft: say which draft to train before training it, then train, decode, measure and serve it.

The verbs as functions, plan, fit, train and measure, are in `foredraft.api`: `foredraft.plan`, `train` and `measure` are rooms.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`foredraft.Engine` and its parts, without importing torch until they are asked for."""
    homes = {
        "Engine": "decode.engine",
        "Request": "decode.batch",
        "Sampling": "decode.sampling",
        "NGramDrafter": "decode.ngram",
        "ModelDrafter": "decode.model_drafter",
        "load_engine": "text",
    }
    if name not in homes:
        raise AttributeError(f"module 'foredraft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foredraft.{homes[name]}"), name)
