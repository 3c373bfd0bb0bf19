"""vLLM: costs, `--speculative-config`, what its loader does (vLLM 0.32: llama_eagle, llama_eagle3, qwen3_eagle3,
AutoWeightsLoader), and its counters at /metrics (forms as its sources have them, August to October 2026).

It verifies chains only, changes their length with the batch, and stops at a tensor that it does not know.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

from foredraft.engines import speculators
from foredraft.engines.counters import (
    Counters,
    PageSample,
    RequestCounts,
    Totals,
    finite,
    nested,
    position_of,
    reached,
    samples,
    total,
    whole_number,
)
from foredraft.engines.engine import (
    PLACEHOLDER,
    Adaptive,
    ServerMetrics,
    ServingEngine,
    SettingVersion,
    Simulation,
    dtype_flags,
    lines_of,
    one_line,
    quoted,
)
from foredraft.engines.loading import Fault, HeadFolder, HeadLoader
from foredraft.kinds import BLOCK_CONFIG, CHAIN_CONFIG, Kind, block_keys, from_anchor, of_choice
from foredraft.laws.stated import Accepted
from foredraft.records import DraftChoice, Plan, ScheduleStep

_SCRIPT = """#!/bin/sh
# Serves {target} on vLLM with the draft in this folder. Further arguments go to the server; TARGET and PYTHON can be set.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${{PYTHON:-python3}}
config=$("$python" -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])) | {{"model": sys.argv[2]}}))' \\
  "$here/{config}" "$here") || exit 1
exec "$python" -m vllm.entrypoints.openai.api_server --model "${{TARGET:-{path}}}" \\
  --speculative-config "$config"{more} "$@"
"""
_REPLAY_SCRIPT = """#!/bin/sh
# Serves {target} on vLLM with the proposer in this folder. Further arguments go to the server; TARGET and PYTHON can be set.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export PYTHONPATH="$here${{PYTHONPATH:+:$PYTHONPATH}}"
exec "${{PYTHON:-python3}}" -m vllm.entrypoints.openai.api_server --model "${{TARGET:-{path}}}" \\
  --speculative-config "$(cat "$here/{config}")"{more} "$@"
"""
_BY_BATCH = "num_speculative_tokens_per_batch_size"
_ADAPTIVE = "enable_adaptive_verification"
# Classes of heads by method: it puts "Eagle3" or "Eagle" before a name that has it not.
_LLAMA_LIKE = ("Llama", "MiniMaxM2", "Qwen2_5vl", "Qwen3vl")
_LLAMA = (
    "LlamaForCausalLMEagle3",
    *(f"{prefix}{name}ForCausalLM" for name in _LLAMA_LIKE for prefix in ("Eagle3", "")),
)
_QWEN3 = ("Eagle3Qwen3ForCausalLM", "Qwen3ForCausalLM")
_MLA = ("Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
_EAGLE_OTHERS = tuple(
    f"{prefix}{name}ForCausalLM" for name in ("Llama4", "MiniCPM", "Cohere", "Mistral", "MistralLarge3") for prefix in ("Eagle", "")
)  # fmt: skip
_DFLASH_OTHERS = (
    "DFlashLagunaForCausalLM", "LagunaForCausalLM", "MuseGlimmerAssistantModel", "DFlashMuseGlimmerAssistantModel", "LiLiCorrDraftModel",
)  # fmt: skip
_DSPARK_OTHERS = ("Gemma4DSparkModel", "K3DSparkModel", "Qwen3OmniDSparkModel", "DSparkV41DraftModel")
_CHAIN_KEYS = ("markov_rank", "enable_confidence_head", "confidence_head_with_markov")
_DRAFTED = "vllm:spec_decode_num_"


class VLLM(ServingEngine):
    name, label = "vllm", "vLLM"

    draft_vocabularies: ClassVar = frozenset(
        {"eagle3", "dflash", "dspark"}
    )  # all by d2t and an LM head of the words in their file
    maps_vocabularies = True
    idle_draft = True

    def adaptive(self, kind: Kind) -> Adaptive | None:
        """Of drafts that are models: DSpark's learnt confidence (#47808), others' estimated from their logits (#52228)."""
        if kind.role not in ("lm", "head") or self.name not in kind.engine_names:
            return None
        return Adaptive(
            _ADAPTIVE, "sequence", "Model Runner V2, captured graphs, an attention backend of lengths that the device decides"
        )  # fmt: skip

    def with_adaptive(self, settings: Mapping[str, Any], kind: Kind) -> dict[str, Any] | None:
        """The longest lookahead is drafted at every load, and the rule chooses what is verified: no schedule beside it (#47808)."""
        if self.adaptive(kind) is None:
            return None
        return {key: value for key, value in settings.items() if key != _BY_BATCH} | {_ADAPTIVE: True}

    # A plan's settings.

    plan_file = "vllm_speculative_config.json"

    def settings(self, draft: DraftChoice | None, schedule: Sequence[ScheduleStep], tensor: int) -> dict[str, Any]:
        """`--speculative-config`: the longest lookahead, and by running batch [first, last, lookahead]; a tree's depth stands for it."""
        if draft is None or not any(step.lookahead for step in schedule):
            return {}
        ranges, kind = batch_ranges(schedule), of_choice(draft)
        config = {"method": kind.engine_names[self.name], **self.chain(max(k for *_, k in ranges)), _BY_BATCH: ranges}
        config |= kind.engine_settings.get(self.name, {})
        if kind.role == "lookup":
            return config | {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
        if kind.in_target:
            return config
        if draft.vocab_overlap is not None:
            config["use_heterogeneous_vocab"] = True
        return config | {"model": draft.hub_id or PLACEHOLDER, "draft_tensor_parallel_size": tensor}

    # Launch.

    formats: ClassVar = {"vllm": "vLLM", "speculators": "vLLM (speculators format)"}
    launch_file = "speculative_config.json"

    def chain(self, lookahead: int) -> dict[str, Any]:
        return {"num_speculative_tokens": lookahead}

    def launched(self, settings: Mapping[str, Any], kind: Kind, folder: str) -> dict[str, Any]:
        """Under data parallelism vLLM ignores the schedule by batch, and drafts `num_speculative_tokens`."""
        return {**settings, "method": kind.engine_names[self.name], "model": folder}

    def lookahead(self, settings: Mapping[str, Any]) -> int:
        return settings["num_speculative_tokens"]

    def serving_note(self, kind: Kind, settings: Mapping[str, Any], plan: Plan) -> str:
        return f"vLLM runs it by method `{kind.engine_names[self.name]}` and drafts chains."

    def script(self, target: str, path: str, settings: Mapping[str, Any], plan: Plan | None) -> str:
        more = lines_of(_plan_flags(plan) if plan else [])
        script = _REPLAY_SCRIPT if settings.get("method") == "custom_class" else _SCRIPT
        return script.format(target=one_line(target), path=quoted(path), config=self.launch_file, more=more)

    def command(self, plan: Plan, target: str, draft: str | None) -> str:
        settings = plan.settings.get(self.name, {})
        if draft and "model" in settings:
            settings = {**settings, "model": draft}
        config = [f"--speculative-config '{json.dumps(settings, separators=(',', ':'))}'"] if settings else []
        return " ".join([f"vllm serve {target}", *_plan_flags(plan), *config])

    versions = (
        SettingVersion(_BY_BATCH, "0.24", "vllm-project/vllm#32374, in use with 0.24.0 in vllm-project/vllm-metal#463"),
        SettingVersion(_ADAPTIVE, "0.32", "vllm-project/vllm#47808, vllm/config/speculative.py of 0.32"),
        SettingVersion("use_heterogeneous_vocab", "0.32", "vllm/config/speculative.py of 0.32"),
        SettingVersion(
            "--per-request-spec-decode-metrics", "0.32", "docs.vllm.ai/en/v0.32.0/features/speculative_decoding/acceptance_metrics"
        ),
        SettingVersion(f"{_DRAFTED}*_total", "0.9.2", "docs.vllm.ai/en/v0.9.2/api/vllm/v1/spec_decode/metrics.html"),
    )  # fmt: skip
    module, image, image_starts = "vllm.entrypoints.openai.api_server", "vllm/vllm-openai", True
    chart = "Values of vllm-project/production-stack (helm/values.yaml): helm upgrade --install vllm vllm/vllm-stack -f helm-values.yaml"
    metrics = ServerMetrics(
        f"1 + sum(rate({_DRAFTED}accepted_tokens_total[{{window}}])) / sum(rate({_DRAFTED}drafts_total[{{window}}]))",
        "sum(avg_over_time(vllm:num_requests_running[{window}]))", "sum(avg_over_time(vllm:num_requests_waiting[{window}]))",
        "sum(rate(vllm:generation_tokens_total[{window}]))", f"sum(rate({_DRAFTED}drafts_total[{{window}}]))",
    )  # fmt: skip

    def by_batch(self, ranges: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """{} where nothing is to be drafted."""
        longest = max((k for *_, k in ranges), default=0)
        return {**self.chain(longest), _BY_BATCH: [list(each) for each in ranges]} if longest else {}

    def drafting(self, settings: Mapping[str, Any], kind: Kind | None, method: str, draft: str) -> dict[str, Any]:
        if kind is None:
            return {"method": method, "model": draft, **settings}
        alone = kind.role == "lookup" or kind.in_target
        config = {"method": kind.engine_names[self.name], **kind.engine_settings.get(self.name, {})}
        return config | ({} if alone else {"model": draft}) | dict(settings)

    def arguments(self, target: str, settings: Mapping[str, Any]) -> list[str]:
        drafted = ["--speculative-config", json.dumps(settings, separators=(",", ":"))] if settings else []
        return ["--model", target, *drafted]

    def simulated(self, settings: Mapping[str, Any], accepted: Accepted) -> Simulation:
        """`rejection_sample_method: synthetic`, on a GPU. A length, bonus token included, means all or nothing at every position but one,
        so that a schedule of several lookaheads has to say rates, which are P(at least i accepted).
        """
        most, ranges = self.lookahead(settings), self.ranges(settings)
        asked: dict[str, Any] = {"synthetic_acceptance_length": round(accepted.tokens_per_step(most), 4)}
        if accepted.by_position or {k for *_, k in ranges} - {0, most}:
            asked = {"synthetic_acceptance_rates": [round(share, 6) for share in accepted.survival[:most]]}
        random_weights = {"draft_load_config": {"load_format": "dummy"}}
        return Simulation({**settings, **random_weights, "rejection_sample_method": "synthetic", **asked}, {})

    def replayed(self, settings: Mapping[str, Any], proposer: str) -> dict[str, Any]:
        """The proposer minds the batch itself."""
        return {"method": "custom_class", "model": proposer, **self.chain(self.lookahead(settings))}

    def ranges(self, settings: Mapping[str, Any]) -> list[list[int]]:
        return settings.get(_BY_BATCH) or super().ranges(settings)

    def settings_faults(self, settings: Mapping[str, Any], kind: Kind) -> Iterator[Fault]:
        for key, reason in self._wrong_settings(settings, kind):
            yield Fault("schedule", f"{self.launch_file}: {key}", reason, "write it with foredraft deploy --plan")

    def _wrong_settings(self, settings: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, str]]:
        method = kind.engine_names.get(self.name)
        if settings.get("method") != method:
            yield "method", f"is {settings.get('method')!r}, but this draft is run by {method!r}"
        most = settings.get("num_speculative_tokens")
        if not (isinstance(most, int) and most > 0):
            yield "num_speculative_tokens", f"is {most!r}, and vLLM wants a positive whole number"
        elif (ranges := settings.get(_BY_BATCH)) is not None:
            for reason in _range_faults(ranges if isinstance(ranges, list) else [ranges], most):
                yield _BY_BATCH, reason

    # Loading.

    heads: ClassVar = {
        "eagle": HeadLoader(("LlamaForCausalLM", "EagleLlamaForCausalLM"), unjudged=_EAGLE_OTHERS),
        "eagle3": HeadLoader(
            (*_LLAMA, *_QWEN3), qk_norm=_QWEN3[0], qk_normed=_QWEN3, unjudged=_MLA, shares_lm_head=True, norm_before_fc=True
        ),
        "dflash": HeadLoader(("DFlashDraftModel",), qk_norm="DFlashDraftModel", unjudged=_DFLASH_OTHERS),
        "dspark": HeadLoader(("Qwen3DSparkModel", "DSparkDraftModel"), qk_norm="Qwen3DSparkModel", unjudged=_DSPARK_OTHERS),
    }  # fmt: skip
    strict = True
    equal_vocab = True
    bias_key = "vLLM adds biases to the attention"
    never_null: ClassVar = {"use_cache": "vLLM refuses the config"}

    def refusal(self, head: HeadFolder) -> Fault | None:
        return speculators.unread(head.raw)

    def config_faults(self, head: HeadFolder) -> Iterator[Fault]:
        if head.kind.passes == "block":
            yield from self._blocks(head)
        if speculators.is_one(head.raw):
            yield from speculators.faults(head.raw)

    def _blocks(self, head: HeadFolder) -> Iterator[Fault]:
        """DFlash predicts from the masks' rows alone; the token before the block is always the target's own."""
        if head.kind.engine_names[self.name] == "dflash" and from_anchor(block_keys(head.config), head.kind):
            yield Fault(
                "from-anchor", "sample_from_anchor",
                "is true, which vLLM's dflash refuses, or older versions do not see and read each row one too late",
                "serve it by a class that samples from the anchor (dspark), or train without",
            )  # fmt: skip
        keys = block_keys(head.config)
        nested = [key for key in _CHAIN_KEYS if key in keys and key not in head.config]
        if head.kind.engine_names[self.name] == "dspark" and nested:
            yield Fault(
                "nested-key", nested[0], f"stands in {' or '.join((BLOCK_CONFIG, CHAIN_CONFIG))}, where vLLM's dspark does not look: "
                "without markov_rank it stops, without the others it builds no confidence head",
                f"write {', '.join(nested)} beside the other keys, as foredraft deploy export does",
            )  # fmt: skip

    def name_faults(self, head: HeadFolder) -> Iterator[Fault]:
        older = next(
            (name for name in head.names.values() if name.removeprefix("model.").startswith("aux_norm_")), None
        )
        if older:
            yield Fault(
                "unknown", older.removeprefix("model."), "is SGLang's older name: vLLM stops at it", "rename it fc_norm.0, 1, 2"
            )  # fmt: skip

    # Its server.

    info_paths = ("/version",)

    def answers(self, info: Mapping[str, Any]) -> bool:
        return bool(info)

    def totals(self, page: str) -> Totals:
        lines = samples(page)
        return Totals(
            counters_of(lines), total(lines, "vllm:generation_tokens_total"), total(lines, "vllm:request_success_total"),
            total(lines, "vllm:prompt_tokens_total"), total(lines, "vllm:prefix_cache_hits_total"), total(lines, "vllm:num_requests_running"),
            total(lines, "vllm:num_requests_waiting"),
        )  # fmt: skip

    def request_counts(self, event: Mapping[str, Any]) -> RequestCounts | None:
        """Told where the server was started with --per-request-spec-decode-metrics."""
        counts = nested(nested(event, "metrics"), "speculative_decoding")
        if not counts:
            return None
        return RequestCounts(
            whole_number(counts, "num_spec_steps") or 0, whole_number(counts, "num_draft_tokens"), whole_number(counts, "num_accepted_draft_tokens"),
            reached(counts.get("acceptance_histogram"), whole_number(counts, "num_spec_tokens")),
        )  # fmt: skip


def _plan_flags(plan: Plan) -> list[str]:
    flags = [f"--tensor-parallel-size {plan.devices // plan.data_parallel}"]
    flags += [f"--data-parallel-size {plan.data_parallel}"] * (plan.data_parallel > 1)
    return flags + ["--enable-expert-parallel"] * plan.expert_parallel + dtype_flags(plan, {"fp8": "fp8"})


def batch_ranges(schedule: Sequence[ScheduleStep]) -> list[list[int]]:
    """[first batch, last batch, lookahead] from 1 up to the largest batch planned for; a change lies midway between two plans."""
    by_batch: dict[int, int] = {}
    for step in sorted(schedule, key=lambda step: step.running):
        by_batch.setdefault(round(step.running), step.lookahead)
    runs = [(k, [batch for batch, _ in group]) for k, group in groupby(by_batch.items(), key=lambda item: item[1])]
    ranges, start = [], 1
    for i, (k, batches) in enumerate(runs):
        end = batches[-1] if i + 1 == len(runs) else (batches[-1] + runs[i + 1][1][0]) // 2
        ranges.append([start, end, k])
        start = end + 1
    return ranges


def _range_faults(ranges: Sequence[Any], most: int) -> Iterator[str]:
    end = 0
    for entry in ranges:
        if not (isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, int) for part in entry)):
            yield f"{entry!r} is no [first batch, last batch, tokens]"
            return
        first, last, tokens = entry
        if first <= end or last < first:
            yield f"{entry} begins before {end + 1} or ends before it begins"
        elif end == 0 and first != 1:
            yield f"begins at {first}; vLLM wants a schedule from batch 1 on"
        if not 0 <= tokens <= most:
            yield f"{tokens} tokens are cut to num_speculative_tokens {most}"
        end = last


def counters_of(lines: Sequence[PageSample]) -> Counters | None:
    """The counters of speculation, summed over engines."""
    counts = [total(lines, f"{_DRAFTED}{name}_total") for name in ("drafts", "draft_tokens", "accepted_tokens")]
    if None in counts:
        return None
    steps, drafted, accepted = (round(count) for count in counts if count is not None)
    places: dict[int, float] = {}
    for sample in lines:
        if sample.name == f"{_DRAFTED}accepted_tokens_per_pos_total" and "position" in sample.labels:
            place = position_of(sample.labels["position"])
            places[place] = places.get(place, 0.0) + finite(sample)
    by_position = tuple(round(places.get(i, 0.0)) for i in range(max(places, default=-1) + 1))
    return Counters(steps=steps, drafted=drafted, accepted=accepted, by_position=by_position)
