"""An engine in service: the words that start it, as a shell script, for Docker Compose and for Helm, and the alerts that watch its speculation.

Promises: texts that need no other tool to write; every setting with the version that it needs. Refuses to know: how settings and thresholds came
about.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from foredraft.engines.engine import ServingEngine, SettingVersion
from foredraft.records import ScheduleStep, last_gaining

COMPOSE, HELM, ALERTS, SCRIPT = "compose.yaml", "helm-values.yaml", "alerts.yaml", "serve.sh"
WINDOW, PATIENCE = "10m", "15m"
DRIFTED = 0.9  # of the tokens per step that were measured: below, the prompts are others


class Thresholds(NamedTuple):
    """What an alert fires at: tokens per step at which speculation gains nothing, those that were measured or planned, and the most running
    requests at which it gains. None: not known.
    """

    break_even: float | None = None
    tokens_per_step: float | None = None
    off_above: int | None = None


def needed(engine: ServingEngine, settings: Mapping[str, Any]) -> list[SettingVersion]:
    """The versions that `settings` ask for."""
    return [each for each in engine.versions if each.setting in settings]


def needs_line(engine: ServingEngine, settings: Mapping[str, Any]) -> str:
    """A comment's words on them."""
    parts = [f"{each.setting} since {engine.label} {each.version} ({each.source})" for each in needed(engine, settings)]
    return "; ".join(parts) or f"no setting here is newer than {engine.label}'s speculative decoding itself"


def launch_words(engine: ServingEngine, target: str, settings: Mapping[str, Any]) -> str:
    """The command line that serves `target`."""
    return f"python3 -m {engine.module} {shlex.join(engine.arguments(target, settings))}"


def script(engine: ServingEngine, target: str, settings: Mapping[str, Any]) -> str:
    """A shell script of it; further arguments go to the server, PYTHON can be set."""
    words = f"-m {engine.module} {shlex.join(engine.arguments(target, settings))}"
    return f'#!/bin/sh\n# {needs_line(engine, settings)}\nexec "${{PYTHON:-python3}}" {words} "$@"\n'


def compose(engine: ServingEngine, target: str, settings: Mapping[str, Any], version: str | None = None) -> str:
    """A service for Docker Compose: its image and words; ports, volumes and devices are for the user to set."""
    start = [] if engine.image_starts else ["python3", "-m", engine.module]
    words = _list([*start, *engine.arguments(target, settings), "--host", "0.0.0.0", "--port", "8000"], 6)
    return f"""# docker compose -f {COMPOSE} up. Ports, volumes and devices are yours to set.
# {needs_line(engine, settings)}
services:
  {engine.name}:
    image: {json.dumps(_image(engine, version))}
    command:
{words}
    ports: ["8000:8000"]
    ipc: host
    volumes: {json.dumps(_volumes(target, settings))}
    deploy:
      resources:
        reservations:
          devices: [{{driver: nvidia, count: all, capabilities: [gpu]}}]
"""


def helm(engine: ServingEngine, target: str, settings: Mapping[str, Any], version: str | None = None) -> str:
    """Values for the engine's own chart; "" of an engine that has none here."""
    if not engine.chart:
        return ""
    words = engine.arguments(target, settings)[2:]  # the chart itself names the model
    repository, _, tag = _image(engine, version).partition(":")
    return f"""# {engine.chart}
# {needs_line(engine, settings)}
servingEngineSpec:
  modelSpec:
    - name: "target"
      repository: {json.dumps(repository)}
      tag: {json.dumps(tag)}
      modelURL: {json.dumps(target)}
      replicaCount: 1
      vllmConfig:
        extraArgs:
{_list(words, 10) if words else "          []"}
"""


def alerts(engine: ServingEngine, thresholds: Thresholds) -> str:
    """Prometheus rules: speculation that loses, is past its load, has drifted from what was measured, or has stopped. "" where the page of the
    engine's metrics is not known.
    """
    metrics = engine.metrics
    if metrics is None:
        return ""
    tau, running = (expression.format(window=WINDOW) for expression in (metrics.tokens_per_step, metrics.running))
    rules = []
    if thresholds.break_even is not None:
        rules.append(_rule(
            "SpeculationLoses", f"{tau} < {thresholds.break_even:.3f}", "critical",
            "tokens per step {{ $value | humanize }}: below " + f"{thresholds.break_even:.2f} no draft is faster; restart without one",
        ))  # fmt: skip
    if thresholds.tokens_per_step is not None:
        least = DRIFTED * thresholds.tokens_per_step
        rules.append(_rule(
            "SpeculationDrifted", f"{tau} < {least:.3f}", "warning",
            f"tokens per step {{{{ $value | humanize }}}}, {thresholds.tokens_per_step:.2f} when it was set: run foredraft calibrate again",
        ))  # fmt: skip
    if thresholds.off_above:
        rules.append(_rule(
            "SpeculationPastItsLoad", f"{running} > {thresholds.off_above}", "warning",
            f"{{{{ $value | humanize }}}} requests run: above {thresholds.off_above} a server without a draft is faster",
        ))  # fmt: skip
    if metrics.drafts:
        drafts, tokens = (expression.format(window=WINDOW) for expression in (metrics.drafts, metrics.tokens))
        rules.append(
            _rule(
                "SpeculationStopped",
                f"{drafts} == 0 and {tokens} > 0",
                "warning",
                "tokens are generated and none is drafted",
            )
        )
    needs = f"# Needs {metrics.needs} on the server.\n" if metrics.needs else ""
    return (
        f"# Rules for Prometheus (rule_files). Watch: {tau}; {running}.\n{needs}groups:\n  - name: speculation\n    rules:\n"
        + "".join(rules)
    )


def texts(
    engine: ServingEngine, target: str, settings: Mapping[str, Any], thresholds: Thresholds | None = None, version: str | None = None
) -> dict[str, str]:  # fmt: skip
    """All of them by the names of their files; alerts only where there are thresholds for them, "" for what there is none of."""
    return {
        COMPOSE: compose(engine, target, settings, version), HELM: helm(engine, target, settings, version),
        ALERTS: alerts(engine, thresholds) if thresholds else "",
    }  # fmt: skip


def planned_thresholds(schedule: Sequence[ScheduleStep]) -> Thresholds | None:
    """Of a plan's schedule: the tokens per step of its middle load that drafts, and the running requests above which none gains."""
    drafting = [step for step in sorted(schedule, key=lambda step: step.running) if step.lookahead]
    if not drafting:
        return None
    last = last_gaining([(step.running, step) for step in schedule])
    return Thresholds(None, drafting[len(drafting) // 2].tokens_per_step.value, round(last) if last else None)


def _rule(name: str, expression: str, severity: str, words: str) -> str:
    return f"""      - alert: {name}
        expr: {json.dumps(expression)}
        for: {PATIENCE}
        labels: {{severity: {severity}}}
        annotations: {{summary: {json.dumps(words)}}}
"""


def _volumes(target: str, settings: Mapping[str, Any]) -> list[str]:
    """The Hub's cache, and each folder of this machine that the words name, where it lies."""
    paths = {str(value) for value in (target, *settings.values()) if str(value).startswith("/")}
    folders = {path for path in paths if not any(path.startswith(f"{other}/") for other in paths)}
    return ["~/.cache/huggingface:/root/.cache/huggingface", *(f"{folder}:{folder}:ro" for folder in sorted(folders))]


def _image(engine: ServingEngine, version: str | None) -> str:
    return f"{engine.image}:{f'v{version}' if version else 'latest'}"


def _list(words: Sequence[str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}- {json.dumps(word)}" for word in words)
