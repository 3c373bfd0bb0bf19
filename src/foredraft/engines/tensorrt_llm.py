"""TensorRT-LLM: the options and the variable of a server that accepts as asked (its PyTorch backend, as of October 2026).

It serves heads, MTP layers and independent models in chains of one length. Refuses to know: its costs, its loader.
"""

from collections.abc import Mapping
from typing import Any

from foredraft.engines.engine import ServingEngine, Simulation, one_line, quoted
from foredraft.kinds import Kind
from foredraft.laws.stated import Accepted
from foredraft.records import Plan

_SCRIPT = """#!/bin/sh
# Serves {target} on TensorRT-LLM. Further arguments go to the server; TARGET can be set, and DRAFT must name a draft's folder.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
options=$(mktemp) || exit 1
trap 'rm -f "$options"' EXIT
sed "s|PATH_OF_DRAFT|${{DRAFT:?must name the folder of a draft with weights, trained or not}}|" "$here/{options}" > "$options"
trtllm-serve "${{TARGET:-{path}}}" --config "$options"{more} "$@"
"""
_OPTIONS = "speculative_config"


class TensorRTLLM(ServingEngine):
    name, label = "tensorrt-llm", "TensorRT-LLM"
    one_mode = True
    note = "costs of TensorRT-LLM: those of vLLM, since no row of it was fitted"

    launch_file = "options.yaml"  # JSON is YAML

    def chain(self, lookahead: int) -> dict[str, Any]:
        return {_OPTIONS: {"max_draft_len": lookahead}}

    def launched(self, settings: Mapping[str, Any], kind: Kind, folder: str) -> dict[str, Any]:
        draft = {"decoding_type": kind.engine_names[self.name], "speculative_model": "PATH_OF_DRAFT"}
        return {_OPTIONS: {**settings[_OPTIONS], **draft}}

    def lookahead(self, settings: Mapping[str, Any]) -> int:
        return settings[_OPTIONS]["max_draft_len"]

    def script(self, target: str, path: str, settings: Mapping[str, Any], plan: Plan | None) -> str:
        more = f" --tp_size {plan.devices // plan.data_parallel}" if plan else ""
        return _SCRIPT.format(target=one_line(target), path=quoted(path), options=self.launch_file, more=more)

    def simulated(self, settings: Mapping[str, Any], accepted: Accepted) -> Simulation:
        """The variable counts drafted tokens alone, so τ less 1: its whole part in every step, one more by chance for the rest. Versions
        before fractions were read (2026) take a number such as 1.6 for 0, and 0 for no simulation.
        """
        length = round(accepted.tokens_per_step(self.lookahead(settings)) - 1, 4)
        if length <= 0:
            raise ValueError(
                "--engine tensorrt-llm: 1 token per step cannot be simulated, since 0 accepted tokens turn its simulation off"
            )
        return Simulation(dict(settings), {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": f"{length:g}"})
