"""The zoo: trained drafts in eight bits, each with a model card of what was recorded and the rows that were measured of it.

    python recipes/smollm2/zoo.py ZOO NAME=RUN[:DATA] [NAME=RUN[:DATA] …] [MEASUREMENTS.jsonl …]

RUN is the folder of a training run, or an export in it (RUN/exports/tokens-N). Of a cell of a sweep, SWEEP/cells/CELL, rows are read from
SWEEP/measurements.jsonl; of others from the files of `foredraft measure` that are named. DATA is the token folder that it was trained on, where no
sweep says. A card says what recipes, data and measurements say and nothing else. ZOO is held to 30 MB in all.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from safetensors.torch import save_file

from foredraft import kinds, records, runs
from foredraft.data.tokens import TokenData
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.eight_bits import config_keys, stored
from foredraft.models.four_bits import INT4
from foredraft.records import Measurement
from foredraft.shapes.tensors import FLOATS

MOST_BYTES = 30e6
TARGET, HUB_ID, LICENCE = "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
WEIGHTS, CARD, ROWS = "model.safetensors", "README.md", "observations.jsonl"
LEFT_OUT = "tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges"  # the target's own
SOURCES = """| domain | source | licence |
|---|---|---|
| stories | children's classics; uci-soe/FairytaleQAData; African Storybook (global-asp/asp-source, CC-BY files) | public domain; Apache-2.0; CC-BY |
| books | Arthur Conan Doyle, H. G. Wells, Jerome K. Jerome, Shakespeare | public domain |
| news | English Wikinews | CC-BY-2.5 |
| math | GSM8K (openai/grade-school-math), training split | MIT |
| code_stdlib | the standard library of CPython 3.11 | PSF-2.0 |
| qa | FairytaleQA, training split, passages with questions | Apache-2.0 |
| summarize | English Wikinews, headlines to write | CC-BY-2.5 |
| topics | topics and questions named in recipes/smollm2/topics.json | Apache-2.0 |"""


def copied(source: Path, out: Path, bits: int = 8) -> None:
    """The served folder with its matrices in so few bits and without the tokenizer, which is the target's."""
    out.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != WEIGHTS and not path.name.startswith(LEFT_OUT):
            shutil.copyfile(path, out / path.name)
    import torch

    dtype = {8: torch.int8, 4: INT4}[bits]
    checkpoint = Checkpoint(source)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.stored}
    save_file(stored(tensors, dtype), out / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_bytes())
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    records.write(out / "config.json", config | config_keys(dtype, key))


class Trained(NamedTuple):
    """A draft's weights, the run that they come from, the token folder it was trained on, where that is stated, and the bits it is stored in."""

    weights: Path
    run: Path
    data: Path | None
    bits: int = 8

    @classmethod
    def named(cls, words: str) -> "Trained":
        """By RUN[:DATA][@4], of four bits. Raises SystemExit where there is no such run."""
        words, _, bits = words.partition("@")
        folder, _, data = words.partition(":")
        weights = (Path(folder) / "final" if (Path(folder) / "final").is_dir() else Path(folder)).resolve()
        run = runs.run_folder(weights)
        if run is None or not (weights / WEIGHTS).is_file():
            raise SystemExit(
                f"{folder}: no training run that is done, nor an export of one; give the --out of foredraft train"
            )
        return cls(weights, run, Path(data) if data else None, int(bits or 8))


def measured_rows(name: str, weights: Path, files: Sequence[Path]) -> list[Measurement]:
    """What was measured of these weights, under the draft's name in the zoo and the target's own, without the commands."""
    rows: list[Measurement] = []
    for file in files:
        for row in records.read_lines(Measurement, file):
            folder, beside, lookup = (row.observation.draft or "").partition(kinds.BESIDE)
            if folder == runs.name_of(weights):
                provenance = msgspec.structs.replace(row.observation.provenance, command=None)
                renamed = msgspec.structs.replace(
                    row.observation, draft=name + beside + lookup, run=name, target=TARGET, provenance=provenance
                )
                rows.append(msgspec.structs.replace(row, observation=renamed))
    return rows


def card(name: str, draft: Trained, rows: Sequence[Measurement]) -> str:
    """A model card in Hugging Face's form."""
    run = draft.run
    model = json.loads((run / runs.RECIPE).read_bytes())["model"]
    kind, layers = kind_of(model), model.get("layers", 1)
    what = f"{kind.label_at(layers)} head" if kind.role == "head" else kinds.LM.label
    deep = f" of {layers} layers" if layers > 1 and kind.role == "head" else ""
    parts = [
        f"---\nlicense: {LICENCE}\nlanguage: en\nbase_model: {HUB_ID}\ntags: [speculative-decoding, foredraft]\n---\n# {name}\n",
        f"{what[0].upper()}{what[1:]}{deep} that drafts for [{HUB_ID}](https://huggingface.co/{HUB_ID}) (Apache-2.0). "
        f"{parameters(draft.weights, draft.bits)} The text stays the target's own, token for token, whatever it drafts.\n",
        usage(name, kind, json.loads((draft.weights / "config.json").read_bytes()).get("draft_vocab_size")),
        "**Data.** English text of the sources below, and answers of the target to prompts made of them "
        f"(recipes/smollm2/prompts.py). Of all this only answers to the topics lie in this repository, in zoo/answers.\n\n{SOURCES}\n",
        *(f"**{'Then' if i else 'Training'}.** {trained(each, draft)}\n" for i, each in enumerate(trainings(run))),
    ]
    if loss := held_out(run):
        parts.append(f"**Held out.** {loss}\n")
    if table := by_category(rows):
        parts.append(
            f"**Acceptance on held-out prompts**, teacher-forced, a chain; 90 % intervals over prompts.\n\n{table}\n"
        )
    if table := by_speed(rows):
        parts.append(f"**In our engine**, plain and drafted in one run, all categories.\n\n{table}\n")
    return "\n".join(parts)


def usage(name: str, kind: kinds.Kind, draft_vocab: int | None) -> str:
    """Commands that run it. Engines draft by the whole vocabulary of an independent model, so one of fewer words is for ours."""
    draft = f"--draft zoo/{name} --stats"
    lines = [
        f"foredraft generate {TARGET}/ 'Why is the sky blue?' {draft}   # make tour leaves {TARGET}/ in build/smollm2"
    ]
    if kind.role == "head" or not draft_vocab:
        lines.append(
            f"foredraft deploy zoo/{name} --target {TARGET}/ --out served     # for vLLM, checked, with its launch script"
        )
    return "\n".join(("```sh", *lines, "```\n"))


def kind_of(model: dict[str, Any]) -> kinds.Kind:
    """Of a recipe's model."""
    return kinds.CHECKPOINTS[model.get("kind", kinds.LM.name)]


def parameters(weights: Path, bits: int) -> str:
    number = sum(prod(each.shape) for each in Checkpoint(weights).stored.values() if each.kind in (*FLOATS, "I8", "I4"))
    return f"{number:,} stored parameters, matrices in {'four' if bits == 4 else 'eight'} bits."


def trainings(run: Path) -> list[Path]:
    """The trainings behind a draft, the first first: a recipe's `init` names the run that it goes on from, if it is one."""
    init = Path(json.loads((run / runs.RECIPE).read_bytes())["model"].get("init") or "")
    if "cells" in init.parts:
        return [*trainings(run.parent / init.parts[init.parts.index("cells") + 1]), run]
    before = runs.run_folder(init) if init.parts else None
    return [*([] if before is None else trainings(before)), run]


def trained(run: Path, draft: Trained) -> str:
    """Tokens, data and recipe of one training."""
    recipe = json.loads((run / runs.RECIPE).read_bytes())
    init = Path(recipe["model"].get("init") or "")
    begun = f", from weights set by hand, `{init.name}`" if init.parts and len(trainings(run)) == 1 else ""
    budgets = " and then ".join(f"{stage['tokens']:,.0f} tokens" for stage in recipe["stages"])
    export = draft.weights.relative_to(draft.run).parts
    if run == draft.run and export[0] == runs.EXPORTS:
        budgets = f"{float(export[1].removeprefix('tokens-')):,.0f} of {budgets}"
    said = f"{budgets}{_data(run, draft)}, seed {recipe.get('seed', 0)}{begun}."
    return f"{said} The recipe:\n\n```json\n{json.dumps(shown(recipe), indent=1)}\n```"


def _data(run: Path, draft: Trained) -> str:
    """What a run was trained on: as was stated of the last one, else as its cell says."""
    if run == draft.run and draft.data:
        data = records.read(TokenData, draft.data / "data.json")
        answers = f", {data.predicted_tokens:,} of them in answers" if data.regenerated_tokens else ""
        return f" of `{draft.data.name}` ({data.num_tokens:,} tokens of {data.num_documents:,} documents{answers})"
    cell = run / "cell.json"
    words = json.loads(cell.read_bytes())["definition"]["words"] if cell.is_file() else []
    folders = [Path(words[i + 1]).name for i, word in enumerate(words) if word == "--data"]
    return f" of {' and '.join(f'`{folder}`' for folder in folders)}" if folders else ""


def shown(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without paths and what is merely looked at."""
    stages = [{key: value for key, value in stage.items() if key != "data"} for stage in recipe["stages"]]
    model = {key: value for key, value in recipe["model"].items() if key != "init"}
    return {key: value for key, value in recipe.items() if key != "watch"} | {"stages": stages, "model": model}


def held_out(run: Path) -> str | None:
    """The last held-out loss that the run wrote down."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next((line for line in reversed(lines) if "held_out_loss" in line), None)
    return last and f"Loss {last['held_out_loss']:.3f} after {last['tokens']:,} tokens."


def by_category(rows: Sequence[Measurement]) -> str:
    """Teacher-forced figures at the longest lookahead, a line for each category and temperature; all together first."""
    forced = [row for row in rows if row.way == "forced" and (row.observation.topk or 1) == 1]
    longest = max((row.observation.lookahead or 0 for row in forced), default=0)
    forced = [row for row in forced if row.observation.lookahead == longest]
    lines = [("category", "temperature", f"tokens per step, {longest} drafted", "α per token", "kind", "prompts")]
    for row in sorted(forced, key=lambda row: (row.category or "", row.observation.temperature or 0.0)):
        seen = row.observation
        alpha = "–" if seen.accept_prob is None else f"{seen.accept_prob:.3f}"
        lines.append(
            (row.category or "all", f"{seen.temperature or 0:g}", figure(row, "tokens_per_step"), alpha, seen.accept_kind or "–",
             f"{seen.num_requests or '–'}")
        )  # fmt: skip
    return markdown(lines)


def by_speed(rows: Sequence[Measurement]) -> str:
    """The engine's own steps, a line for each way of drafting, batch and temperature."""
    live = [row for row in rows if row.way == "live" and row.category is None]
    lines = [("drafted", "batch", "temperature", "tokens per step", "gain over plain", "type", "prompts")]
    for row in sorted(live, key=_dials):
        seen = row.observation
        tree = f"tree of {seen.tree_nodes}" if (seen.topk or 1) > 1 else f"{seen.lookahead}"
        beside = " behind a look-up" if seen.method.endswith(kinds.BESIDE) else ""
        tiles = " with AMX" if (seen.machine or "").endswith(" with AMX") else ""
        lines.append(
            (tree + beside, f"{seen.batch_size}", f"{seen.temperature or 0:g}", figure(row, "tokens_per_step"), figure(row, "speedup"),
             f"{seen.dtype or '–'}{tiles}", f"{seen.num_requests or '–'}")
        )  # fmt: skip
    return markdown(lines)


def _dials(row: Measurement) -> tuple[Any, ...]:
    seen = row.observation
    return (
        seen.method,
        seen.batch_size or 0,
        seen.temperature or 0.0,
        seen.topk or 1,
        seen.lookahead or 0,
        seen.tree_nodes or 0,
    )


def figure(row: Measurement, field: str) -> str:
    """A value with its interval, where it has one."""
    value, interval = getattr(row.observation, field), row.intervals.get(field)
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" ({interval.low:.2f} to {interval.high:.2f})" if interval else "")


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """A table; "" of a head alone."""
    if len(lines) < 2:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ("---",) * len(lines[0]), *lines[1:]))


def check_size(folders: dict[str, Path], zoo: Path) -> None:
    """Raise SystemExit with the size of each draft where they and what else lies in the zoo take more than MOST_BYTES."""
    others = {path.name: path for path in zoo.iterdir() if path.name not in folders} if zoo.is_dir() else {}
    sizes = {name: num_bytes(path) for name, path in {**folders, **others}.items()}
    if sum(sizes.values()) > MOST_BYTES:
        each = ", ".join(
            f"{name} {size / 1e6:.1f} MB" for name, size in sorted(sizes.items(), key=lambda item: -item[1])
        )
        total = sum(sizes.values()) / 1e6
        raise SystemExit(
            f"{zoo}: {total:.1f} MB are more than {MOST_BYTES / 1e6:.0f} MB: {each}; leave one out, or train it with fewer draft words"
        )


def num_bytes(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )


def main(zoo: Path, drafts: dict[str, Trained], files: Sequence[Path]) -> None:
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=zoo.resolve().parent, prefix=".zoo-") as work:
        folders = {name: Path(work) / name for name in drafts}
        for name, draft in drafts.items():
            copied(draft.weights, folders[name], draft.bits)
            own = draft.run.parent.parent / "measurements.jsonl"
            rows = measured_rows(name, draft.weights, [*([own] if own.is_file() else []), *files])
            records.write_bytes(folders[name] / CARD, card(name, draft, rows).encode())
            if together := [row.observation for row in rows if row.category is None]:
                records.write_lines(folders[name] / ROWS, together)
        check_size(folders, zoo)
        for name, folder in folders.items():
            shutil.rmtree(zoo / name, ignore_errors=True)
            shutil.move(folder, zoo / name)


if __name__ == "__main__":
    zoo, *words = sys.argv[1:]
    drafts = dict(word.split("=", 1) for word in words if "=" in word)
    files = [Path(word) for word in words if "=" not in word]
    main(Path(zoo), {name: Trained.named(run) for name, run in drafts.items()}, files)
