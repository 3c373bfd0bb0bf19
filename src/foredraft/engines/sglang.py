"""SGLang: costs, flags, what its loader does (August 2026: llama_eagle, llama_eagle3), and what its server tells: `meta_info` of
its own API, `sglext.spec_tokens_details` of the OpenAI one, as its sources have them (August to October 2026).

It keeps one setting for every batch, and skips a tensor that it does not know without a word.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from foredraft.engines import speculators
from foredraft.engines.counters import RequestCounts, Totals, nested, reached, samples, total, whole_number
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
from foredraft.engines.loading import Fault, HeadFolder, HeadLoader, norms_before_fc
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, KINDS, Kind, aux_layer_ids, last_state_alone, of_choice
from foredraft.laws.passes import Efficiency
from foredraft.laws.stated import Accepted
from foredraft.records import DraftChoice, Machine, Plan, ScheduleStep, dtype_name

_SCRIPT = """#!/bin/sh
# Serves {target} on SGLang with the draft in this folder. Further arguments go to the server; TARGET and PYTHON can be set.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec "${{PYTHON:-python3}}" -m sglang.launch_server --model-path "${{TARGET:-{path}}}" \\
  --speculative-draft-model-path "$here" \\
  {flags}{more} "$@"
"""
_ALGORITHM, _DRAFT = "--speculative-algorithm", "--speculative-draft-model-path"
_STEPS, _TOPK, _TOKENS = (f"--speculative-{part}" for part in ("num-steps", "eagle-topk", "num-draft-tokens"))
_ADAPTIVE = "--speculative-adaptive"
# How it is told the tokens of a block, by its name of the method: the flag, and whether it counts the token before them.
_BLOCKS = {"DFLASH": (_TOKENS, 1), "DSPARK": ("--speculative-dspark-block-size", 0)}


class SGLang(ServingEngine):
    name, label = "sglang", "SGLang"
    one_mode = True
    draft_vocabularies: ClassVar = frozenset({"eagle3", "eagle"})
    note = "chains only: the published SGLang trees of 5 to 7 nodes measured below chains of the same size"

    def efficiency(self, machine: Machine | None = None, dtype: str = "bfloat16") -> Efficiency:
        """The draft's passes are captured in graphs; the host's part of a speculative step is not overlapped with the devices' (until spec v2),
        and grows with the devices that agree on it. Fitted by recipes/speculation_cost.py.
        """
        return Efficiency(
            draft_fixed_s=2e-4, draft_layer_s=2.2e-5, speculation_s=1.9e-3, speculation_rank_s=3e-3, tree_level_s=9e-5
        )

    def adaptive(self, kind: Kind) -> Adaptive | None:
        """EAGLE's steps follow what the batch accepted of late (#21599); DSpark's verified tokens the confidence of each request."""
        name = kind.engine_names.get(self.name)
        if name == "DSPARK":
            return Adaptive("SGLANG_RAGGED_VERIFY_MODE=compact with --speculative-dspark-sps-table-path", "sequence")
        return Adaptive(_ADAPTIVE, "batch") if name in ("EAGLE", "EAGLE3", "NEXTN") else None

    def with_adaptive(self, settings: Mapping[str, Any], kind: Kind) -> dict[str, Any] | None:
        """Of EAGLE's chains; DSpark's needs a table of step times measured on the server."""
        adaptive = self.adaptive(kind)
        if adaptive is None or adaptive.setting != _ADAPTIVE or settings.get(_TOPK) != 1:
            return None
        return {**settings, _ADAPTIVE: True}

    # A plan's settings.

    plan_file = "sglang_flags.json"

    def settings(self, draft: DraftChoice | None, schedule: Sequence[ScheduleStep], tensor: int) -> dict[str, Any]:
        """Flags: steps, branching and verified tokens, root included; of a draft of blocks the block."""
        step = next((step for step in schedule if step.lookahead), None)
        if draft is None or step is None:
            return {}
        kind = of_choice(draft)
        algorithm = kind.engine_names[self.name]
        flags: dict[str, Any] = {_ALGORITHM: algorithm}
        if algorithm in _BLOCKS:
            flag, before = _BLOCKS[algorithm]
            flags[flag] = step.lookahead + before
        else:
            flags |= {_STEPS: step.lookahead, _TOPK: step.topk, _TOKENS: step.tree_nodes + 1}
        alone = kind.role == "lookup" or kind.in_target
        return flags if alone else flags | {_DRAFT: draft.hub_id or PLACEHOLDER}

    # Launch.

    formats: ClassVar = {"sglang": "SGLang"}
    launch_file = "sglang_flags.json"
    token_map_flag = "--speculative-token-map"  # ids in a list, as torch saves it; EAGLE-3 heads bring their own map

    def chain(self, lookahead: int) -> dict[str, Any]:
        return {_STEPS: lookahead, _TOPK: 1, _TOKENS: lookahead + 1}

    def launched(self, settings: Mapping[str, Any], kind: Kind, folder: str) -> dict[str, Any]:
        """The script gives the draft's folder, wherever it lies; so it does for a file in it (a token map)."""
        algorithm = kind.engine_names[self.name]
        flags = {flag: value for flag, value in settings.items() if flag not in (_ALGORITHM, _DRAFT)}
        if algorithm in _BLOCKS and _STEPS in flags:
            flag, before = _BLOCKS[algorithm]
            flags = {flag: flags[_STEPS] + before}
        return {_ALGORITHM: algorithm, **flags}

    def lookahead(self, settings: Mapping[str, Any]) -> int:
        if settings.get(_ALGORITHM) in _BLOCKS:
            flag, before = _BLOCKS[settings[_ALGORITHM]]
            return settings[flag] - before
        return settings[_STEPS]

    def serving_note(self, kind: Kind, settings: Mapping[str, Any], plan: Plan) -> str:
        if plan.engine == self.name:
            return "SGLang has one setting for all loads: that of the first row that speculates."
        return f"The rows are of {plan.engine}. SGLang has one setting for all loads: {self.lookahead(settings)} draft tokens."

    def script(self, target: str, path: str, settings: Mapping[str, Any], plan: Plan | None) -> str:
        values = {flag: shlex.quote(str(value)) for flag, value in settings.items()}
        if self.token_map_flag in settings:
            values[self.token_map_flag] = f'"$here"/{values[self.token_map_flag]}'
        flags = " \\\n  ".join(flag if settings[flag] is True else f"{flag} {value}" for flag, value in values.items())
        more = lines_of(_plan_flags(plan) if plan else [])
        return _SCRIPT.format(target=one_line(target), path=quoted(path), flags=flags, more=more)

    def command(self, plan: Plan, target: str, draft: str | None) -> str:
        settings = plan.settings.get(self.name, {})
        if draft and _DRAFT in settings:
            settings = {**settings, _DRAFT: draft}
        flags = (f"{flag} {shlex.quote(str(value))}" for flag, value in settings.items())
        return " ".join([f"python -m sglang.launch_server --model-path {target}", *_plan_flags(plan), *flags])

    versions = (
        SettingVersion(_ADAPTIVE, "pull request 21599 (2026)", "sgl-project/sglang#21599; with spec v2 #23336"),
        SettingVersion("--enable-metrics", "not told", "docs.sglang.io/references/production_metrics.html"),
    )  # fmt: skip
    module, image = "sglang.launch_server", "lmsysorg/sglang"
    metrics = ServerMetrics(
        "avg(avg_over_time(sglang:spec_accept_length[{window}]))", "sum(avg_over_time(sglang:num_running_reqs[{window}]))",
        "sum(avg_over_time(sglang:num_queue_reqs[{window}]))", "sum(rate(sglang:generation_tokens_total[{window}]))", needs="--enable-metrics",
    )  # fmt: skip

    def by_batch(self, ranges: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """The lookahead of the first range that drafts; {} where none does."""
        return next((self.chain(k) for *_, k in ranges if k), {})

    def drafting(self, settings: Mapping[str, Any], kind: Kind | None, method: str, draft: str) -> dict[str, Any]:
        if kind is None:
            return {_ALGORITHM: method, **settings, _DRAFT: draft}
        alone = kind.role == "lookup" or kind.in_target
        return self.launched(settings, kind, draft) | ({} if alone else {_DRAFT: draft})

    def arguments(self, target: str, settings: Mapping[str, Any]) -> list[str]:
        words = [
            part for flag, value in settings.items() for part in ((flag,) if value is True else (flag, str(value)))
        ]
        return ["--model-path", target, "--enable-metrics", *words]

    def simulated(self, settings: Mapping[str, Any], accepted: Accepted) -> Simulation:
        """A length, bonus token included, drawn anew for each step of the whole batch. `match-expected` has that mean (`multinomial`, the
        default, is a rounded and cut normal); a chain's own tokens are taken as they are, a tree's are all token 100.
        """
        length = accepted.tokens_per_step(self.lookahead(settings))
        mode = "real-draft-token" if settings.get(_TOPK, 1) == 1 else "fixed"
        variables = {"LEN": f"{round(length, 4):g}", "METHOD": "match-expected", "TOKEN_MODE": mode}
        random_weights = {"--speculative-draft-load-format": "dummy"}
        return Simulation(
            {**settings, **random_weights}, {f"SGLANG_SIMULATE_ACC_{name}": value for name, value in variables.items()}
        )

    def settings_faults(self, settings: Mapping[str, Any], kind: Kind) -> Iterator[Fault]:
        for flag, reason in self._wrong_flags(settings):
            remedy = "set all three or none; a chain of k has k + 1 draft tokens"
            yield Fault("flags", f"{self.launch_file}: {flag}", reason, remedy)

    def _wrong_flags(self, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if settings.get(_ALGORITHM) in _BLOCKS:
            return
        missing = [flag for flag in (_STEPS, _TOPK, _TOKENS) if flag not in settings]
        stated = [flag for flag in (_STEPS, _TOPK, _TOKENS) if flag in settings]
        mistyped = [flag for flag in stated if type(settings[flag]) is not int]
        if mistyped:
            yield mistyped[0], f"is {settings[mistyped[0]]!r}, no whole number, at which the server stops"
        elif stated and missing:
            yield stated[0], f"stands without {', '.join(missing)}, which SGLang refuses"
        elif stated and settings[_TOPK] == 1 and settings[_TOKENS] != settings[_STEPS] + 1:
            steps = settings[_STEPS]
            yield _TOKENS, f"is {settings[_TOKENS]}, but a chain of {steps} steps has {steps + 1} with its root"

    # Loading.

    heads: ClassVar = {
        "eagle": HeadLoader(("LlamaForCausalLMEagle",), fc_bias=True),
        "eagle3": HeadLoader(
            ("LlamaForCausalLMEagle3",), layer_biases=False, later_norm="hidden_norm", identity_map=True, prefixed=True
        ),
        "dflash": HeadLoader(("DFlashDraftModel",), qk_norm="DFlashDraftModel", cut_block=False),
    }  # fmt: skip
    unjudged: ClassVar = frozenset({"dspark"})
    bias_key = "SGLang adds a bias to fc"
    ties_lm_head = True
    keeps_embedding = False
    counts_entered = False
    lacks = ("norm_before_residual", "norm_before_fc")

    def refusal(self, head: HeadFolder) -> Fault | None:
        if not speculators.is_one(head.raw):
            return None
        where, effect = "speculators_config", "SGLang has no class for this format"
        return Fault("architecture", where, effect, "export it with --format sglang")

    def config_faults(self, head: HeadFolder) -> Iterator[Fault]:
        config = head.config
        if head.kind.own_lm_head and "draft_vocab_size" not in config:
            yield Fault(
                "key-missing", "draft_vocab_size", "SGLang reads it as an attribute and stops",
                "write it; over the whole vocabulary it equals vocab_size",
            )  # fmt: skip
        if config.get("draft_vocab_size", 0) is None and "lm_head.weight" in head.names:
            effect = "is null, which SGLang takes for 'load the target's LM head': it leaves the draft's own"
            yield Fault("null-key", "draft_vocab_size", effect, "write the rows of lm_head.weight")
        if config.get("norm_before_residual"):
            yield Fault(
                "norm-before-residual", "norm_before_residual",
                "is true, but SGLang's residual is always the raw hidden state: it computes something else", "serve it on vLLM",
            )  # fmt: skip
        if norms_before_fc(config):
            effect = "is true, but SGLang has no such norm and skips its weights"
            yield Fault("norm-before-fc", "norm_before_fc", effect, "serve it on vLLM")
        if config.get("attention_bias") and not self.heads[head.kind.name].layer_biases:
            effect = "is true, but SGLang's EAGLE-3 layers have none and skip them"
            yield Fault("attention-bias", "attention_bias", effect, "serve it on vLLM")
        if head.kind.own_lm_head and not last_state_alone(config):
            yield from self._hidden_states(config)

    def _hidden_states(self, config: dict[str, Any]) -> Iterator[Fault]:
        """SGLang counts the target's hidden states by the layer left, under `eagle_config`."""
        entering, leaving = aux_layer_ids(config)
        if entering and not leaving:
            yield Fault(
                "stream-ids-alone", AUX_LAYER_IDS, f"SGLang does not see {entering} and reads the default hidden states",
                f"write {AUX_CONFIG} with {AUX_LAYER_IDS} {[i - 1 for i in entering]} beside it",
            )  # fmt: skip
        if config.get("num_aux_hidden_states") == 1 or len(leaving) == 1:
            yield Fault(
                "fc-skipped", "num_aux_hidden_states", "with one hidden state as wide as the head, SGLang leaves fc out",
                "train on three hidden states, or serve on vLLM",
            )  # fmt: skip

    def name_faults(self, head: HeadFolder) -> Iterator[Fault]:
        names = [name.removeprefix("model.") for name in head.names.values()]
        first = next((name for name in names if name.startswith("layers.0.")), None)
        if first and head.kind.own_lm_head:
            yield Fault(
                "midlayer", first, "SGLang knows layer 0 by this name since pull request 24663; older ones skip it in silence",
                "export with --format sglang, which writes midlayer.", level="warning",
            )  # fmt: skip

    # Its server.

    info_paths = ("/server_info", "/get_server_info")
    request_fields: ClassVar = {"return_spec_tokens_details": True}
    native_path = "/generate"
    native_salt = "extra_key"

    def answers(self, info: Mapping[str, Any]) -> bool:
        return bool(info.get("model_path"))

    def running(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Newer versions nest what the scheduler says. A method that no kind has stays unknown."""
        settings: dict[str, Any] = {"tensor_parallel": _positive(info, "tp_size"), "target": info.get("model_path")}
        if info.get("dtype") not in (None, "auto"):
            settings["dtype"] = dtype_name(str(info["dtype"]))
        algorithm = str(info.get("speculative_algorithm") or "").upper()
        if not algorithm:
            return settings
        kind = next((kind for kind in KINDS if kind.engine_names.get(self.name) == algorithm), None)
        return settings | {
            "method": next(iter(kind.methods)) if kind else "unknown",
            "lookahead": _positive(info, "speculative_num_steps"), "topk": _positive(info, "speculative_eagle_topk"),
            "tree_nodes": (_positive(info, "speculative_num_draft_tokens") or 1) - 1 or None,
        }  # fmt: skip

    def totals(self, page: str) -> Totals:
        """No counters of speculation, which each response tells, but τ of late. None of all this without --enable-metrics."""
        lines = samples(page)
        lengths = [sample.value for sample in lines if sample.name == "sglang:spec_accept_length" and sample.value >= 1]
        return Totals(
            None, total(lines, "sglang:generation_tokens_total"), total(lines, "sglang:num_requests_total"),
            total(lines, "sglang:prompt_tokens_total"), total(lines, "sglang:cached_tokens_total"), total(lines, "sglang:num_running_reqs"),
            total(lines, "sglang:num_queue_reqs"), sum(lengths) / len(lengths) if lengths else None,
        )  # fmt: skip

    def request_counts(self, event: Mapping[str, Any]) -> RequestCounts | None:
        choices = event.get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        places = (
            nested(nested(event, "sglext"), "spec_tokens_details"),
            nested(event, "meta_info"),
            nested(first, "meta_info"),
        )
        return next((_counts(place) for place in places if place.get("spec_verify_ct")), None)

    def native_body(self, words: str, max_tokens: int, temperature: float, *, stop: bool) -> dict[str, Any]:
        params = {"max_new_tokens": max_tokens, "temperature": temperature, "ignore_eos": not stop}
        return {"text": words, "sampling_params": params, "stream": True}


def _plan_flags(plan: Plan) -> list[str]:
    """With experts on all devices the replicas share attention alone, and `--tp-size` counts every device."""
    shared = plan.expert_parallel and plan.data_parallel > 1
    flags = [f"--tp-size {plan.devices if shared else plan.devices // plan.data_parallel}"]
    flags += [f"--dp-size {plan.data_parallel}"] * (plan.data_parallel > 1) + ["--enable-dp-attention"] * shared
    return flags + [f"--ep-size {plan.devices}"] * plan.expert_parallel + dtype_flags(plan, {"fp8": "fp8_e4m3"})


def _positive(info: Mapping[str, Any], key: str) -> int | None:
    value = info.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _counts(place: Mapping[str, Any]) -> RequestCounts:
    """Newer and older names of the same counts."""
    accepted = whole_number(place, "spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
    drafted = whole_number(place, "spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
    by_position = reached(place.get("spec_correct_drafts_histogram") or place.get("spec_accept_histogram"))
    if accepted is None and by_position:
        accepted = sum(by_position)
    return RequestCounts(whole_number(place, "spec_verify_ct") or 0, drafted, accepted, by_position)
