"""vLLM on the CPU, for worker.py; one method to a process, as an engine has one speculative configuration.

Compiled, its default; in this process rather than in one of its own, which is the faster here; on all threads given, where its own choice
leaves one core free; without prefix cache.
"""

import os
from typing import Any

from worker import Answered, FirstToken, Run, serve

KV_BYTES = 256 << 20


def prepare(settings: dict[str, Any], method: str) -> Run:
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    from vllm import LLM, SamplingParams

    llm = LLM(
        settings["target"], skip_tokenizer_init=True, dtype=settings["dtype"], max_model_len=settings["context"], max_num_seqs=settings["batch"],
        enable_prefix_caching=False, kv_cache_memory_bytes=KV_BYTES, seed=0, speculative_config=_speculative(settings, method),
    )  # fmt: skip
    steps = _Steps(llm)

    def run(prompts: list[list[int]], max_tokens: int) -> Answered:
        steps.num, steps.clock = 0, FirstToken()
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False)
        return Answered([list(output.outputs[0].token_ids) for output in outputs], steps.clock.seconds, steps.num)

    return run


def _speculative(settings: dict[str, Any], method: str) -> dict[str, Any] | None:
    lookahead, kind = settings["lookahead"].get(method), settings["kinds"].get(method)
    if kind is None:
        return None
    if kind == "ngram":
        return {"method": "ngram", "num_speculative_tokens": lookahead, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    return {"method": kind, "model": settings["drafts"][method], "num_speculative_tokens": lookahead}


class _Steps:
    """Counts the engine's steps that give tokens, which it does not tell itself when its statistics are off, as is the default."""

    def __init__(self, llm: Any) -> None:
        self.num, self.clock = 0, FirstToken()
        core = llm.llm_engine.engine_core
        self._get, core.get_output = core.get_output, self._counted

    def _counted(self) -> Any:
        out = self._get()
        if out.outputs:
            self.num += 1
            self.clock.tick()
        return out


if __name__ == "__main__":
    serve(prepare, ("vllm-cpu", "torch", "transformers"))
