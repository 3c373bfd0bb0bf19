"""transformers' generate, for worker.py: its defaults (eager, dynamic cache, SDPA attention); drafts of a fixed length, as the others'."""

from functools import cache
from typing import Any

import torch
from transformers import LlamaForCausalLM
from worker import Answered, FirstToken, Run, serve


def prepare(settings: dict[str, Any], method: str) -> Run:
    torch.set_num_threads(settings["threads"])
    target, assist = _load(settings["target"], settings["dtype"]), _assist(settings, method)
    steps = [0]

    def count(*_: object) -> None:
        steps[0] += 1

    def run(prompts: list[list[int]], max_tokens: int) -> Answered:
        steps[0], streamer, ids = 0, _Streamer(), torch.tensor(prompts)
        hook = target.register_forward_hook(count)
        with torch.no_grad():
            out = target.generate(ids, max_new_tokens=max_tokens, do_sample=False, streamer=streamer, **assist)
        hook.remove()
        return Answered(out[:, ids.shape[1] :].tolist(), streamer.clock.seconds, steps[0])

    return run


class _Streamer:
    """Sees the prompt first, then tokens."""

    def __init__(self) -> None:
        self.clock, self.seen_prompt = FirstToken(), False

    def put(self, value: torch.Tensor) -> None:
        if self.seen_prompt:
            self.clock.tick()
        self.seen_prompt = True

    def end(self) -> None: ...


def _assist(settings: dict[str, Any], method: str) -> dict[str, Any]:
    lookahead = settings["lookahead"].get(method)
    if method == "plain":
        return {}
    if method == "ngram":
        return {"prompt_lookup_num_tokens": lookahead, "max_matching_ngram_size": 3}
    draft = LlamaForCausalLM.from_pretrained(settings["drafts"][method], dtype=getattr(torch, settings["dtype"]))
    draft.generation_config.update(
        num_assistant_tokens=lookahead, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    return {"assistant_model": draft}


@cache
def _load(folder: str, dtype: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


if __name__ == "__main__":
    serve(prepare, ("transformers", "torch"))
