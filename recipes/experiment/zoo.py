"""The zoo from the experiment: its target and some of its drafts in bfloat16, each with a model card of what was recorded.

    python recipes/experiment/zoo.py TARGET_RUN SWEEP OBSERVATIONS.jsonl ZOO NAME=CELL [NAME=CELL …]

TARGET_RUN and the cells are folders of training runs; a card says what their recipes and the observations say and nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from foredraft import records, shapes
from foredraft.records import Observation

TARGET = "tales-11m"
SOURCES = """| domain | source | licence |
|---|---|---|
| stories | children's classics; uci-soe/FairytaleQAData; African Storybook (global-asp/asp-source, CC-BY files) | public domain; Apache-2.0; CC-BY |
| books | Arthur Conan Doyle, H. G. Wells, Jerome K. Jerome, Shakespeare | public domain |
| news | English Wikinews | CC-BY-2.5 |
| math | GSM8K (openai/grade-school-math), training split | MIT |
| code | the standard library of CPython 3.11.7 | PSF-2.0 |
| questions | FairytaleQA, training split | Apache-2.0 |
| headlines | English Wikinews | CC-BY-2.5 |"""
KINDS = {"lm": "an independent language model", "eagle": "an EAGLE-1/2 head", "eagle3": "an EAGLE-3 head"}


def copied(source: Path, out: Path) -> None:
    """The served folder with its floating tensors in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            records.write_bytes(out / path.name, path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    halved = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(halved, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    records.write_bytes(out / "config.json", json.dumps(config | {key: "bfloat16"}, indent=1).encode())


def card(name: str, run: Path, weights: Path, measured: list[Observation], target: str | None) -> str:
    """A model card in Hugging Face's form."""
    recipe = json.loads((run / "recipe.json").read_text())
    kind, layers = recipe["model"]["kind"], recipe["model"].get("layers", 1)
    what = f"{KINDS[kind]} of {layers} layers" if layers > 1 else KINDS[kind]
    if target is None:
        what = "a small Llama to try speculative decoding on"
    base = f"base_model: {target}\n" if target else ""
    lines = [
        f"---\nlicense: other\nlanguage: en\n{base}tags: [speculative-decoding, foredraft]\n---\n# {name}\n",
        f"{what[0].upper()}{what[1:]}{f' that drafts for {target}' if target else ''}. {parameters(weights)} It is for trying Foredraft out, "
        "and its text is not to be relied on for anything.\n",
        f"**Data.** English text of the sources below; no text is part of this repository.\n\n{SOURCES}\n",
        *(f"**{'Then' if i else 'Training'}.** {trained(recipe)}\n" for i, recipe in enumerate(runs(run))),
    ]
    if figures := held_out(run):
        lines.append(f"**Held out.** {figures}\n")
    if measured:
        lines.append(f"**Measured acceptance** (teacher-forced on held-out prompts, chains).\n\n{table(measured)}\n")
    return "\n".join(lines)


def parameters(weights: Path) -> str:
    numbers = sum(t.numel() for t in load_file(weights / "model.safetensors").values())
    return f"{numbers:,} stored parameters, bfloat16."


def runs(run: Path) -> list[Path]:
    """The trainings behind a draft, the first first: a recipe's `init` names the cell that it goes on from."""
    init = Path(json.loads((run / "recipe.json").read_text())["model"].get("init") or "")
    if "cells" not in init.parts:
        return [run]
    return [*runs(run.parent / init.parts[init.parts.index("cells") + 1]), run]


def trained(run: Path) -> str:
    recipe = json.loads((run / "recipe.json").read_text())
    budgets = " and then ".join(f"{stage['tokens']:,.0f} tokens" for stage in recipe["stages"])
    cell = run / "cell.json"
    words = json.loads(cell.read_text())["definition"]["words"] if cell.is_file() else []
    data = f" of `{words[words.index('--data') + 1]}`" if "--data" in words else ""
    return f"{budgets}{data}, seed {recipe.get('seed', 0)}. The recipe:\n\n```json\n{json.dumps(shown(recipe), indent=1)}\n```"


def shown(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without paths and what is merely looked at."""
    stages = [{key: value for key, value in stage.items() if key != "data"} for stage in recipe["stages"]]
    model = {key: value for key, value in recipe["model"].items() if key != "init"}
    return {key: value for key, value in recipe.items() if key != "watch"} | {"stages": stages, "model": model}


def held_out(run: Path) -> str | None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next((line for line in reversed(lines) if "held_out_loss" in line), None)
    return last and f"Loss {last['held_out_loss']:.3f} after {last['tokens']:,} tokens."


def table(measured: list[Observation]) -> str:
    head = ["temperature", "lookahead", "tokens per step", "α per token", "kind", "requests"]
    rows = [head, ["---"] * len(head)]
    for row in measured:
        alpha = "–" if row.accept_prob is None else f"{row.accept_prob:.3f}"
        tau, kind = f"{row.tokens_per_step:.2f}", row.accept_kind or "–"
        rows.append([f"{row.temperature:g}", f"{row.lookahead}", tau, alpha, kind, f"{row.num_requests}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(target_run: Path, sweep: Path, observations: Path, zoo: Path, names: list[str]) -> None:
    rows = records.read_lines(Observation, observations)
    copied(target_run / "final", zoo / TARGET)
    assert shapes.from_config(json.loads((zoo / TARGET / "config.json").read_text())).params
    records.write_bytes(zoo / TARGET / "README.md", card(TARGET, target_run, zoo / TARGET, [], None).encode())
    for name, cell in (item.split("=") for item in names):
        run = sweep / "cells" / cell
        copied(run / "final", zoo / name)
        of = [r for r in rows if r.target == TARGET and (r.draft or "").split("/")[0] == cell and r.accept_kind]
        of.sort(key=lambda r: (r.temperature or 0, r.lookahead or 0))
        records.write_bytes(zoo / name / "README.md", card(name, run, zoo / name, of, TARGET).encode())


if __name__ == "__main__":
    target_run, sweep, observations, zoo, *names = sys.argv[1:]
    main(Path(target_run), Path(sweep), Path(observations), Path(zoo), names)
