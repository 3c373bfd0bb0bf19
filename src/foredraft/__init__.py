"""Foredraft: say which draft to train before training it, then train, decode, measure and serve it.

On its face: `plan`, `fit`, `train`, `measure` and `load_engine` (see `api`), and the engine's parts. Nothing is imported until it is
asked for, so that `plan` and `fit` need no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

_ROOMS = ("plan", "train", "measure")
_HOMES = {
    "Engine": "decode.engine", "Request": "decode.batch", "Sampling": "decode.sampling", "NGramDrafter": "decode.ngram",
    "ModelDrafter": "decode.model_drafter", "fit": "api", "load_engine": "api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"foredraft.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'foredraft' has no attribute {name!r}")
    return getattr(import_module(f"foredraft.{_HOMES[name]}"), name)


class _Room(ModuleType):
    """A room that is also its verb: `foredraft.plan(…)` beside `foredraft.plan.search`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        verb = getattr(import_module("foredraft.api"), self.__name__.removeprefix("foredraft."))
        return verb(*args, **options)


def callable_room(name: str) -> None:
    """Let the room of that module name be called as the verb of the same name in `api`."""
    sys.modules[name].__class__ = _Room
