"""vLLM's own LLM class, a process per job: greedy answers to token ids, and what it counted of its speculation.

A line of standard input names a JOB.json and an OUT.json; when OUT is there, its name comes back on standard output. Jobs run one after
another, each in a fork of this process, which imports vLLM once (half of a start) and does nothing else.

JOB: `target` and `speculative` (its --speculative-config, null for none), `context`, `sequences` (at most so many at once), `modules` (folders
of Python that it may import), and `loads`, each of `prompts` (token ids), `max_tokens` of each and `stop` (whether the end token ends an
answer). OUT: vLLM's `version`, and of each load `answers`, of each request `drafted` and `accepted` by step, and `counters`, the growth of the
totals that /metrics shows. Of a fault OUT holds the `error`, one line.

Promises: float32, eager, without prefix cache; nothing is timed. Runs where vLLM is: standard library and vLLM only.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

KV_BYTES = 64 << 20
PREFIX, BY_POSITION = "vllm:spec_decode_num_", "accepted_tokens_per_pos"


def main() -> None:
    # In this process, so that a fault of the loader is raised here; no thread is bound to a core, which others may use.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines that print do so on standard error
    import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]

    for line in sys.stdin:
        job, out = line.split()
        child = os.fork()
        if child == 0:
            os._exit(done(Path(job), Path(out)))
        os.waitpid(child, 0)
        print(out, file=output)


def done(job: Path, out: Path) -> int:
    """A job in its fork; its exit code is not read, since a process that dies writes nothing."""
    try:
        report = answered(json.loads(job.read_bytes()))
    except BaseException as error:
        traceback.print_exception(error)
        report = {"error": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"}
    out.write_text(json.dumps(report))
    sys.stderr.flush()
    return 0


def answered(settings: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, __version__  # pyright: ignore[reportMissingImports]

    speculative = settings["speculative"]
    sys.path += settings["modules"]
    stats_options = {"per_request_spec_decode_metrics": "detailed"} if speculative else {}
    llm = LLM(
        settings["target"], skip_tokenizer_init=True, dtype="float32", max_model_len=settings["context"], enforce_eager=True, seed=0,
        max_num_seqs=settings["sequences"], enable_prefix_caching=False, kv_cache_memory_bytes=KV_BYTES, disable_log_stats=False,
        speculative_config=speculative, **stats_options,
    )  # fmt: skip
    return {"version": __version__, "loads": [one_load(llm, load) for load in settings["loads"]]}


def one_load(llm: Any, load: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    before = counters(llm)
    requests = [
        SamplingParams(temperature=0, max_tokens=num, ignore_eos=not load["stop"], detokenize=False)
        for num in load["max_tokens"]
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in load["prompts"]], requests, use_tqdm=False)
    ends = [output.outputs[0] for output in outputs]
    steps = [getattr(end, "spec_decode_metrics", None) for end in ends]
    return {
        "answers": [list(end.token_ids) for end in ends],
        "drafted": [step.per_step_drafted if step else [] for step in steps],
        "accepted": [step.per_step_accepted if step else [] for step in steps],
        "counters": {name: grown(value, before.get(name)) for name, value in counters(llm).items()},
    }  # fmt: skip


def counters(llm: Any) -> dict[str, Any]:
    """Steps, drafted and accepted tokens, and those accepted by position."""
    totals: dict[str, Any] = {}
    for metric in llm.get_metrics():
        if metric.name.startswith(PREFIX):
            name = metric.name.removeprefix(PREFIX)
            totals[name] = list(metric.values) if name == BY_POSITION else metric.value
    return totals


def grown(after: Any, before: Any) -> Any:
    if isinstance(after, list):
        return [total - then for total, then in zip(after, before or [0] * len(after), strict=True)]
    return after - (before or 0)


if __name__ == "__main__":
    main()
