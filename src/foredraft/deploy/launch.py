"""Launch settings beside a draft: vLLM's speculative config with a plan's schedule, SGLang's flags, a script that starts each.

Refuses to know: how a schedule was found; it stands in the Plan.
"""

import shlex
from typing import Any

from foredraft.records import Plan

SPECULATIVE, FLAGS, SERVE, DEPLOY = "speculative_config.json", "sglang_flags.json", "serve.sh", "deploy.json"
METHODS = {"lm": "draft_model", "eagle": "eagle", "eagle3": "eagle3"}
ALGORITHMS = {"lm": "STANDALONE", "eagle": "EAGLE", "eagle3": "EAGLE3"}
STATED = ("bfloat16", "float16", "float32")  # dtypes of a plan that are also an engine's --dtype

_VLLM = """#!/bin/sh
# Serves {target} on vLLM with the draft in this folder. Further arguments go to the server; TARGET and PYTHON can be set.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${{PYTHON:-python3}}
config=$("$python" -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])) | {{"model": sys.argv[2]}}))' \\
  "$here/{config}" "$here") || exit 1
exec "$python" -m vllm.entrypoints.openai.api_server --model "${{TARGET:-{path}}}" \\
  --speculative-config "$config"{more} "$@"
"""
_SGLANG = """#!/bin/sh
# Serves {target} on SGLang with the draft in this folder. Further arguments go to the server; TARGET and PYTHON can be set.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec "${{PYTHON:-python3}}" -m sglang.launch_server --model-path "${{TARGET:-{path}}}" \\
  --speculative-draft-model-path "$here" \\
  {flags}{more} "$@"
"""


def check_plan(plan: Plan, kind: str) -> None:
    """Raise where a plan is for another kind of draft, or speculates nowhere."""
    if plan.draft is None or not any(step.lookahead for step in plan.schedule):
        raise ValueError("the plan speculates at no load: serve the target alone, or leave out --plan")
    planned = "lm" if plan.draft.kind == "lm" else "head" if plan.draft.kind == "head" else plan.draft.kind
    if planned != ("lm" if kind == "lm" else "head"):
        raise ValueError(f"the plan is for a draft of kind {planned} ({plan.draft.name}), but this draft is {kind}")


def speculative_config(kind: str, plan: Plan | None, lookahead: int, folder: str) -> dict[str, Any]:
    """vLLM's --speculative-config: with a plan its schedule of lookahead by running requests, else one lookahead.

    vLLM verifies chains only. It ignores a schedule under data parallelism, and then drafts `num_speculative_tokens`.
    """
    config: dict[str, Any] = {"method": METHODS[kind], "model": folder}
    if plan is None:
        return config | {"num_speculative_tokens": lookahead}
    schedule = plan.vllm.get("num_speculative_tokens_per_batch_size")
    most = plan.vllm.get("num_speculative_tokens") or max(step.lookahead for step in plan.schedule)
    config |= {"num_speculative_tokens": most, "draft_tensor_parallel_size": plan.devices}
    return config | ({"num_speculative_tokens_per_batch_size": schedule} if schedule else {})


def sglang_flags(kind: str, plan: Plan | None, lookahead: int) -> dict[str, Any]:
    """SGLang's flags: one setting for every batch, the plan's at its smallest load that speculates; draft tokens with the root."""
    step = next((one for one in plan.schedule if one.lookahead), None) if plan else None
    steps, topk, nodes = (step.lookahead, step.topk, step.tree_nodes) if step else (lookahead, 1, lookahead)
    return {
        "--speculative-algorithm": ALGORITHMS[kind], "--speculative-num-steps": steps, "--speculative-eagle-topk": topk,
        "--speculative-num-draft-tokens": (steps if topk == 1 else nodes) + 1,
    }  # fmt: skip


def vllm_script(target: str, path: str, plan: Plan | None) -> str:
    """The script that starts vLLM; `target` is the target's name, `path` where it lies."""
    more = _more(plan, "--tensor-parallel-size")
    return _VLLM.format(target=_one_line(target), path=_quoted(path), config=SPECULATIVE, more=more)


def sglang_script(target: str, path: str, flags: dict[str, Any], plan: Plan | None) -> str:
    """The script that starts SGLang with `flags`."""
    given = " \\\n  ".join(f"{name} {shlex.quote(str(value))}" for name, value in flags.items())
    return _SGLANG.format(target=_one_line(target), path=_quoted(path), flags=given, more=_more(plan, "--tp-size"))


def _more(plan: Plan | None, devices: str) -> str:
    if plan is None:
        return ""
    dtype = f" --dtype {plan.dtype}" if plan.dtype in STATED else ""
    return f" \\\n  {devices} {plan.devices}{dtype}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(path: str) -> str:
    """For inside double quotes and ${…:-…}."""
    return "".join(f"\\{letter}" if letter in '"$`\\}' else letter for letter in path)
