"""OpenVINO GenAI, for worker.py: paged attention (the faster of its two back ends here), caches in the precision of the weights, no prefix cache."""

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import Answered, Run, serve

PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def prepare(settings: dict[str, Any], method: str) -> Run:
    precision, lookahead, kind = (
        PRECISION[settings["dtype"]],
        settings["lookahead"].get(method),
        settings["kinds"].get(method),
    )
    device = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": settings["threads"],
    }
    options = dict(device)
    if kind == "ngram":
        options["prompt_lookup"] = True
    elif kind:
        options["draft_model"] = genai.draft_model(settings["drafts"][method], "CPU", **device)
    pipeline = genai.LLMPipeline(settings["target"], "CPU", scheduler_config=_scheduler(settings), **options)

    def run(prompts: list[list[int]], max_tokens: int) -> Answered:
        ids = np.array(prompts, dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        result = pipeline.generate(inputs, _greedy(max_tokens, lookahead, kind))
        metrics = result.perf_metrics
        return Answered(result.tokens, metrics.get_ttft().mean / 1e3, len(metrics.raw_metrics.m_new_token_times))

    return run


def _scheduler(settings: dict[str, Any]) -> genai.SchedulerConfig:
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_seqs = settings["batch"]
    scheduler.max_num_batched_tokens = settings["batch"] * settings["context"]
    return scheduler


def _greedy(max_tokens: int, lookahead: int | None, kind: str | None) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
    if lookahead:
        config.num_assistant_tokens = lookahead
    if kind == "ngram":
        config.max_ngram_size = 3
    return config


if __name__ == "__main__":
    serve(prepare, ("openvino", "openvino-genai"))
