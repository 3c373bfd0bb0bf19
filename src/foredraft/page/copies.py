"""What a person takes from the page: settings of engines, commands, the plan as a command.

Promises: settings are the plan's; those that a stated version lacks are named. Refuses to know: HTML.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from foredraft.engines import ENGINES
from foredraft.engines.engine import ServingEngine
from foredraft.engines.operations import needed
from foredraft.page import inputs as of_page
from foredraft.records import Plan


class Copy(NamedTuple):
    """Text to be copied under a name, and what it is."""

    id: str
    label: str
    text: str
    about: str
    warning: str = ""


def _too_new(engine: ServingEngine, settings: Mapping[str, Any], inputs: Mapping[str, str] | None) -> str:
    """Which settings the version that is stated lacks; "" where none, or none is stated or the plan is for another engine."""
    version = (inputs or {}).get(of_page.VERSION)
    if not version or (inputs or {}).get("engine", next(iter(ENGINES))) != engine.name:
        return ""
    lacking = [each for each in needed(engine, settings) if _release(each.version) > _release(version) > ()]
    return "; ".join(
        f"{each.setting} is there since {engine.label} {each.version}, and yours is {version}: leave it out, or update"
        for each in lacking
    )


def _release(version: str) -> tuple[int, ...]:
    """0.10.1 as (0, 10, 1); () of what is no release."""
    numbers = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in numbers[1].split(".")) if numbers else ()


def copies(plan: Plan, inputs: Mapping[str, str] | None, files: Sequence[str] = ()) -> list[Copy]:
    """Settings of the engines that a plan gives some, the commands to type next, and the plan's own."""
    texts = []
    for name, settings in plan.settings.items():
        engine = ENGINES[name]
        served = engine.command(plan, "TARGET", None) if name == plan.engine else ""
        text = served or _settings(settings)
        about = (
            "the command that serves it; TARGET and a draft’s folder are yours"
            if served
            else f"its settings, as foredraft plan --out writes them to {engine.plan_file}"
        )
        texts.append(Copy(name, engine.label, text, about, _too_new(engine, settings, inputs)))
    if plan.action and plan.action.commands:
        texts.append(
            Copy(
                "next",
                "Next steps",
                "\n".join(plan.action.commands),
                "what to type, in order; what only you know is in capitals",
            )
        )
    if inputs is not None:
        texts.append(
            Copy(
                "command",
                "This plan",
                of_page.command(inputs, files),
                "the same plan on the command line, which writes Plan.json",
            )
        )
    return texts


def _settings(settings: Mapping[str, Any]) -> str:
    """Flags as they are typed, or JSON."""
    if all(flag.startswith("--") for flag in settings):
        return " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in settings.items())
    return msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()
