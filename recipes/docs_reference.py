"""Pages of docs/reference that are made of the code when mkdocs builds the site (a hook of mkdocs.yml): the command line as typer describes
it, and the documents with their fields and examples. It lists links to elsewhere in build/external_links.txt; none is asked for.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

os.environ.setdefault("TERM", "dumb")

ROOT = Path(__file__).parents[1]
EXTERNAL = re.compile(r"https?://[^\s)>\"'`\]]+")
HERE = re.compile(r"https?://(localhost|127\.0\.0\.1)")
links: dict[str, set[str]] = {}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here to those of docs/."""
    from mkdocs.structure.files import File

    for name, text in (("cli", command_line()), ("documents", documents())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for link in EXTERNAL.findall(markdown):
        links.setdefault(link.rstrip(".,;"), set()).add(page.file.src_uri)
    return markdown


def on_post_build(config: Any) -> None:
    elsewhere = "".join(
        f"{link}  {', '.join(sorted(pages))}\n" for link, pages in sorted(links.items()) if not HERE.match(link)
    )
    (Path(config["site_dir"]).parent / "external_links.txt").write_text(elsewhere, encoding="utf-8")


def command_line() -> str:
    """Every verb with its options, of the typer app."""
    import typer
    from typer.cli import get_docs_for_click

    from foredraft.cli.main import app

    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="foredraft")
    text = get_docs_for_click(obj=command, ctx=context, name="foredraft", title="Command line")
    for name, verb in command.commands.items():
        first = " ".join((verb.help or "").split("\n\n")[0].split())
        text = re.sub(rf"(?m)^\* `{name}`: .*$", f"* [`{name}`](#{name}): {first}", text, count=1)
    text = re.sub(r"(?m)^\* `--help`: Show this message and exit\.\n", "", text)
    text = text.replace("hf:NAME[@CONFIG][:SPLIT[:COLUMN]]", "`hf:NAME[@CONFIG][:SPLIT[:COLUMN]]`")
    text = re.sub(r"(?m)^\*\*Options\*\*:\n\n(?=#|\Z)", "", text)
    text = re.sub(r"(?m)^(#+) `foredraft (.*)`$", r"\1 \2", text)
    return re.sub(r"\*\*Usage\*\*:\n\n```console\n\$ (.*?)\n```", r"```text\n\1\n```", text)


SHOWN_OF_PLAN = (
    "target",
    "machine",
    "workload",
    "objective",
    "draft",
    "speedup",
    "schedule",
    "settings",
    "action",
    "next_runs",
)
DOCUMENTS_INTRO = """# Documents

What passes from verb to verb is a document on disk: JSON, or JSON lines. Each is a frozen record of
[msgspec](https://jcristharif.com/msgspec/): an unknown key is an error, a field that says nothing is left out, and **a value that was not
measured is missing, never 0**. Units stand in names: `_s` seconds, `_bytes`, `_tok_s` tokens per second, `flops_per_s`.

In Python: `foredraft.records.read(path, Plan)`; in `foredraft.recipe` and `foredraft.sweep.grid` the records of recipes and grids.

"""


def documents() -> str:
    """Each document with its fields, and an example."""
    import msgspec

    from foredraft import machines, recipe, records
    from foredraft.sweep import grid

    observation, machine = (
        msgspec.json.encode(each).decode() for each in (_first_observation(), machines.named("H100"))
    )
    groups: list[tuple[str, str, str, tuple[type, ...]]] = [
        ("Observation", "A line of `observations.jsonl`: what `measure` writes, and what `plan`, `fit` and `validate` read.", observation,
         (records.Observation, records.Provenance)),
        ("Measurement", "A line of `measurements.jsonl`: an observation with its intervals.", "", (records.Measurement, records.Estimate)),
        ("Machine", "What `probe --out` writes and `plan --machine` reads.", machine, (records.Machine,)),
        ("Workload", "What a server is asked to do; part of a plan.",
         '{"input_len": 512, "output_len": 256, "concurrency": [1, 8, 64], "weights": [0.2, 0.5, 0.3], "temperature": 0.7, "task": "chat"}',
         (records.Workload,)),
        ("Plan", "`Plan.json`, which `plan --out` writes; `train`, `deploy`, `generate --plan`, `report` and `sweep` read it.", _plan(),
         (records.Plan, records.DraftChoice, records.ScheduleStep, records.RunnerUp, records.Rival, records.NextRun)),
        ("Recipe", "What `train` reads: `examples/recipe.json`.", (ROOT / "examples/recipe.json").read_text(encoding="utf-8"),
         (recipe.Recipe, *_models(recipe), recipe.Stage, recipe.EvalSchedule)),
        ("Grid", "What `sweep` reads: `examples/grid.json`.", (ROOT / "examples/grid.json").read_text(encoding="utf-8"),
         (grid.Grid, grid.Drafts, grid.Then, grid.Rate, grid.Measure, grid.Named)),
    ]  # fmt: skip
    return DOCUMENTS_INTRO + "\n".join(_group(*group) for group in groups)


def _first_observation() -> Any:
    from foredraft.published.readers import read_observations

    return next(row for row in read_observations([ROOT / "examples/runs.csv"]) if row.tokens_per_step)


def _plan() -> str:
    """A plan of one kind of draft, without what is long."""
    import msgspec

    import foredraft
    from foredraft.plan.problem import PlanSettings
    from foredraft.records import Workload

    load = Workload(input_len=512, output_len=256, concurrency=(8,))
    plan = foredraft.plan("Llama-3.1-8B", "H100", load, PlanSettings(draws=64, kinds=("lookup",)))
    whole = msgspec.json.decode(msgspec.json.encode(plan).replace(plan.speedup.source.encode(), "…".encode()))
    return json.dumps({name: whole[name] for name in SHOWN_OF_PLAN if name in whole})


def _models(recipe: Any) -> tuple[type, ...]:
    """The kinds of model that a recipe may be of."""
    return get_args(recipe.Recipe.__annotations__["model"])


def _group(name: str, what: str, example: str, records: tuple[type, ...]) -> str:
    text = f"## {name}\n\n{what}\n\n"
    if example:
        text += f"```json\n{_short(example)}\n```\n\n"
    for record in records:
        title = "" if record.__name__ == name else f"### {record.__name__}\n\n"
        text += title + _described(record) + "\n"
    return text


def _short(example: str) -> str:
    """JSON with a line for each outer key, and what is long cut in the middle of no value."""
    value = json.loads(example)
    rows = (f" {json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" for key, each in value.items())
    return "{\n" + ",\n".join(rows) + "\n}"


def _described(record: type) -> str:
    doc = "\n".join(line.strip() for line in (record.__doc__ or "").splitlines())
    rows = "".join(f"| `{name}` | {kind} | {default} |\n" for name, kind, default in _fields(record))
    return f"{doc}\n\n| field | type | when left out |\n|---|---|---|\n{rows}"


def _fields(record: type) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each field of a msgspec record."""
    import msgspec

    tag = getattr(record, "__struct_config__", None)
    if tag is not None and tag.tag is not None:
        yield tag.tag_field, f'"{tag.tag}"', "required"
    for field in msgspec.structs.fields(record):
        if field.required:
            default = "required"
        elif field.default is msgspec.NODEFAULT:
            default = "empty" if field.default_factory in (dict, list, tuple) else "its own defaults"
        else:
            default = _default(field.default)
        yield field.encode_name, _type(field.type), default


def _default(value: Any) -> str:
    if value is None or value in ((), "", {}):
        return "–"
    if hasattr(value, "__struct_fields__"):
        return "its own defaults"
    return f"`{json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | list | tuple) else format(value, '.4g')}`"


def _type(kind: Any) -> str:
    """A type in words: float, or list of float."""
    name = getattr(kind, "__name__", str(kind))
    inner = [each for each in get_args(kind) if each is not type(None) and each is not Ellipsis]
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in inner))
    if name == "tuple":
        return f"list of {' or '.join(dict.fromkeys(_type(each) for each in inner))}"
    if name == "dict":
        return f"object of {_type(inner[-1])}" if inner else "object"
    return {"str": "text", "float": "number", "int": "whole number", "bool": "true or false", "Any": "any"}.get(
        name, f"`{name}`"
    )
