"""The inputs of the page: which of the planner's options a person may set there, and how each is shown.

Promises: a field's name is the option's, so that a page's address is a command line; no option that names a file is among them. Refuses to
know: what an option may be (the command line checks it), what a plan makes of it.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foredraft import machines, shapes
from foredraft.engines import ENGINES
from foredraft.plan.problem import OBJECTIVES
from foredraft.records import TASKS
from foredraft.shapes.formats import FORMATS

MOST_VALUE = 400  # characters of a value
LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # bars of the histogram
MOST_BARS = 16
USUAL_TARGET, USUAL_LOAD = "Llama-3.1-8B", "1:5,2:7,4:11,8:15,16:18,32:13,64:8"
VERSION = "engine_version"  # the field that is no option: by it the measured rows are chosen that stand first


class Field(NamedTuple):
    """One input. `kind`: text, number, select, check or load; `choices`: values with their labels, the first being what is taken when it is
    left out; `usual`: what that is in words; `unit` stands behind the box; `about`: a line of help.
    """

    name: str
    label: str
    kind: str
    usual: str = ""
    choices: Sequence[tuple[str, str]] = ()
    unit: str = ""
    about: str = ""
    step: str = "any"


class Fieldset(NamedTuple):
    """Fields under a heading; `open`: shown from the start."""

    title: str
    fields: Sequence[Field]
    open: bool = False


def _words(names: Sequence[str], first: str) -> list[tuple[str, str]]:
    return [("", first), *((name, name) for name in names)]


def groups(machine_names: Sequence[str] = ()) -> list[Fieldset]:
    """The form, from what most people set to what few do; `machine_names`: machines of the user's own."""
    machine_choices = [(name, name) for name in (*machine_names, *machines.MACHINES)]
    engines = [(name, engine.label) for name, engine in ENGINES.items()]
    return [
        Fieldset("Your server", [
            Field("target", "Model you serve", "text", USUAL_TARGET, about="A public model by name or id."),
            Field("machine", "Accelerator", "select", "H100-SXM-80GB", [("", "H100-SXM-80GB"), *machine_choices]),
            Field("devices", "How many", "number", "1", step="1"),
            Field("dtype", "Weights in", "select", "as stored", _words(tuple(FORMATS), "as stored")),
            Field("engine", "Engine", "select", engines[0][1], [("", engines[0][1]), *engines[1:]]),
            Field(VERSION, "Its version", "text", "any"),
        ], open=True),
        Fieldset("Load", [
            Field("load", "Requests at once", "load", USUAL_LOAD, about="How much of the time so many requests run at once. Drag the bars."),
            Field("input_len", "Prompt", "number", "512", unit="tokens"),
            Field("output_len", "Answer", "number", "256", unit="tokens"),
            Field("temperature", "Temperature", "number", "0"),
            Field("task", "Prompts are of", "select", "a mix", _words(TASKS, "a mix")),
        ], open=True),
        Fieldset("Service levels", [
            Field("ttft", "First token within", "number", "not asked", unit="s, TTFT"),
            Field("tpot", "Each token within", "number", "not asked", unit="s, TPOT"),
            Field("rate", "Rate to be served", "number", "not asked", unit="requests/s"),
        ]),
        Fieldset("Costs and training", [
            Field("device_hour", "A device-hour", "number", "not stated", unit="money"),
            Field("max_gpu_hours", "Training budget", "number", "100000", unit="device-hours"),
            Field("train_machine", "Train on", "text", "as above, or 8xH100"),
            Field("train_device_hour", "Its price", "number", "the same", unit="money"),
            Field("served_tokens", "Paid back over", "number", "1e11", unit="tokens"),
            Field("no_answers", "I have the target’s own answers", "check"),
        ]),
        Fieldset("More", [
            Field("objective", "Aim for", "select", OBJECTIVES[0], [("", OBJECTIVES[0]), *((o, o.replace("_", " ")) for o in OBJECTIVES[1:])]),
            Field("kv_dtype", "Cache in", "select", "the model’s 16 bits", _words(tuple(FORMATS), "the model’s 16 bits")),
            Field("data_parallel", "Replicas", "number", "1", step="1", about="That the devices make."),
            Field("expert_parallel", "Experts whole on all devices together", "check"),
            Field("max_lookahead", "Longest lookahead", "number", "8", step="1"),
        ]),
    ]  # fmt: skip


FIELDS: dict[str, Field] = {field.name: field for group in groups() for field in group.fields}


def asked(query: Sequence[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """The page's inputs of an address, without those left empty; and by field why others are none of it."""
    inputs: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name, value in query:
        if name not in FIELDS:
            faults[""] = f"{name[:40]!r} is no input of this page"
        elif name in inputs:
            faults[name] = "stands in the address twice"
        elif len(value) > MOST_VALUE or not value.isprintable():
            faults[name] = f"must be at most {MOST_VALUE} characters of plain text"
        elif name == "target" and value.lstrip().startswith("-"):
            faults[name] = "must be a model's name"  # on a command line it would be an option
        elif name == "load" and value.count(",") >= MOST_BARS:
            faults[name] = f"must be at most {MOST_BARS} loads"
        elif value.strip():
            inputs[name] = value.strip()
    return inputs, faults


def words(inputs: Mapping[str, str]) -> list[str]:
    """The command line of `foredraft plan` that asks the same."""
    line = [inputs.get("target", USUAL_TARGET)]
    for name, value in ({"load": USUAL_LOAD} | dict(inputs)).items():
        if name not in ("target", VERSION):
            flag = f"--{name.replace('_', '-')}"
            line += [flag] if FIELDS[name].kind == "check" else [flag, value]
    return line


def command(inputs: Mapping[str, str], files: Sequence[str] = ()) -> str:
    """The same as it is typed, with the user's `files` of observations."""
    own = [word for file in files for word in ("--observations", file)]
    return shlex.join(["foredraft", "plan", *words(inputs), *own, "--out", "PLAN"])


def suggestions(own: Sequence[str]) -> list[str]:
    """Targets by name: the user's own, then public ones."""
    return [*own, *shapes.known_shapes()]
