"""Ours, for worker.py."""

from functools import cache
from typing import Any

import torch
from worker import Answered, FirstToken, Run, serve

from foredraft import text
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.measure.configurations import spec_of
from foredraft.models.decoder import Decoder
from foredraft.models.load import load


def prepare(settings: dict[str, Any], method: str) -> Run:
    torch.set_num_threads(settings["threads"])
    engine = _with_itself(settings) if method == "self" else _on_target(settings, method)

    def run(prompts: list[list[int]], max_tokens: int) -> Answered:
        clock = FirstToken()
        sequences = [
            engine.add(Request(prompt=tuple(prompt), max_tokens=max_tokens), lambda tokens: clock.tick())
            for prompt in prompts
        ]
        for _ in engine.run():
            pass
        return Answered([s.answer for s in sequences], clock.seconds, max(s.steps for s in sequences))

    return run


def _on_target(settings: dict[str, Any], method: str) -> Engine:
    """The method's draft, or the spec of that name, on a target that all share."""
    spec = spec_of(settings["specs"][method]) if method in settings.get("specs", {}) else None
    draft = spec.draft if spec else "ngram" if method == "ngram" else settings["drafts"].get(method)
    lookahead = spec.budget if spec else settings["lookahead"].get(method, 0)
    target = _target(settings["target"], settings["dtype"])
    return text.engine_on(
        target, draft, lookahead=lookahead, max_batch=settings["batch"], max_context=settings["context"]
    )


@cache
def _target(folder: str, dtype: str) -> Decoder:
    return load(folder, getattr(torch, dtype))


def _with_itself(settings: dict[str, Any]) -> Engine:
    """The target drafts for itself, which `load_engine` refuses: a draft must be smaller."""
    target, draft = (load(settings["target"], getattr(torch, settings["dtype"])) for _ in range(2))
    drafter = ModelDrafter(draft, draft.new_cache(settings["batch"], settings["context"] + text.NODES))
    return Engine(
        target, drafter, lookahead=settings["lookahead"]["self"], max_batch=settings["batch"], max_context=settings["context"]
    )  # fmt: skip


if __name__ == "__main__":
    serve(prepare, ("foredraft", "torch"))
