"""A draft's model card: what it is, what it was trained on as far as its run says, what was measured, how to serve it.

Promises: every figure stands in a file; what none says is left out. Refuses to know: weights.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foredraft.deploy.draft import TrainedDraft
from foredraft.deploy.folder import SERVE, Deployed
from foredraft.engines import for_format
from foredraft.records import Observation, Plan, read_json, without_draft
from foredraft.runs import RECIPE, run_folder

CARDS = ("CARD.md", "card.md", "README.md")  # where a run speaks of its data and licences
ANY_RUNTIME = "any runtime that reads Hugging Face folders"


def card(
    draft: TrainedDraft, record: Deployed, plan: Plan | None, observations: Sequence[Observation], note: str | None,
    settings: Mapping[str, Any], changes: Sequence[str] = (),
) -> str:  # fmt: skip
    """README.md of a deployed draft; `settings`: as it is launched, `changes`: what is other than it was trained."""
    about = [f"{change[0].upper()}{change[1:]}.\n" for change in changes]
    parts = [
        _head(draft, record),
        _table(draft, record),
        *about,
        _training(draft.folder),
        _measured(record, observations),
    ]
    parts += [_serving(draft, record, plan, settings), _note(draft.folder, note)]
    return "\n".join(part for part in parts if part) + "\n"


def _head(draft: TrainedDraft, record: Deployed) -> str:
    kind, layers, engine = draft.kind, draft.shape.num_layers, for_format(record.format)
    tags = ["speculative-decoding", kind.name if kind.role == "head" else "draft-model"]
    lines = ["---", f"base_model: {json.dumps(record.target)}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    name = f"{kind.label} draft head" if kind.role == "head" else "Independent draft model"
    deep = f" of {layers} layers ({kind.deep_label})" if kind.deep_label and layers > 1 else ""
    runtime = engine.formats[record.format] if engine else ANY_RUNTIME
    lines += [f"# {record.draft}", "", f"{name}{deep} for speculative decoding of {record.target}, for {runtime}.", ""]
    return "\n".join(lines)


def _table(draft: TrainedDraft, record: Deployed) -> str:
    shape = draft.shape
    rows = {
        "target": record.target,
        "layers, hidden size": f"{shape.num_layers}, {shape.hidden_size}",
        "heads (key/value heads)": f"{shape.num_heads} ({shape.num_kv_heads})",
        "parameters (stored weights)": f"{shape.params:,}",
        "vocabulary": f"{shape.vocab_size:,}",
    }
    if draft.kind.own_lm_head:
        rows["draft vocabulary"] = f"{shape.draft_vocab_size or shape.vocab_size:,}"
        rows["target's hidden states read"] = ", ".join(map(str, getattr(draft.model, "feature_layers", ())))
    rows["weights"] = record.dtype
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""])


def _training(folder: Path) -> str:
    run = run_folder(folder)
    if run is None:
        return ""
    try:
        recipe = read_json(run / RECIPE)
        lines = list(_recipe(recipe, folder))
    except (ValueError, KeyError, TypeError):
        return ""
    return "\n".join(["## Training", "", *lines, "", "The recipe:", "", "```json", json.dumps(recipe, indent=1), "```", ""])  # fmt: skip


def _recipe(recipe: dict[str, Any], folder: Path) -> Iterator[str]:
    """Budget, stages and loss as the recipe has them. An export at a budget says its own."""
    tokens = sum(float(stage["tokens"]) for stage in recipe["stages"])
    exported = folder.resolve().name
    if exported.startswith("tokens-"):
        yield f"- tokens seen: {exported.removeprefix('tokens-')} of a budget of {tokens:.3g}"
    else:
        yield f"- budget: {tokens:.3g} tokens in {len(recipe['stages'])} stage{'s' if len(recipe['stages']) > 1 else ''}"
    if recipe.get("loss"):
        yield "- loss: " + ", ".join(f"{name} × {weight:g}" for name, weight in recipe["loss"].items())
    init = recipe.get("model", {}).get("init")
    if init:
        yield f"- began from: {Path(init).name}"


def _measured(record: Deployed, observations: Sequence[Observation]) -> str:
    """Rows that are of this draft on this target, as they were measured; of another draft none."""
    rows = [row for row in observations if _is_of(row, record)]
    if not rows:
        return ""
    header = "| data | engine | temperature | lookahead | tokens per step | requests |"
    lines = ["## Measured acceptance", "", header, "|---|---|---|---|---|---|"]
    for row in rows:
        tree = f" (tree of {row.tree_nodes})" if (row.topk or 1) > 1 else ""
        cells = [row.dataset, row.engine, row.temperature, f"{row.lookahead}{tree}" if row.lookahead else None]
        cells += [f"{row.tokens_per_step:.2f}", row.num_requests]
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", "Tokens per step count the target's own token.", ""])


def _is_of(row: Observation, record: Deployed) -> bool:
    return row.tokens_per_step is not None and row.draft is not None and row.draft == record.draft


def _serving(draft: TrainedDraft, record: Deployed, plan: Plan | None, settings: Mapping[str, Any]) -> str:
    engine = for_format(record.format)
    if engine is None:
        return ""
    lines = ["## Serving", "", "```sh", f"sh {SERVE}", "```", ""]
    if plan is None:
        chain = f"Set to {engine.lookahead(settings)} draft tokens per step, planned for no load"
        return "\n".join([*lines, f"{chain}; `foredraft deploy --plan` takes a plan's schedule.", ""])
    load = f"{plan.workload.input_len:g} prompt and {plan.workload.output_len:g} answer tokens"
    lines += [f"Planned for {plan.devices} × {plan.machine}, {load}:", ""]
    lines += ["| clients | draft tokens | predicted speedup |", "|---|---|---|"]
    for step in plan.schedule:
        gain = step.speedup
        lines.append(
            f"| {step.concurrency} | {step.lookahead} | {gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f}) |"
        )
    without = without_draft(plan, always=engine.one_mode)
    about = [f"{without[0].upper()}{without[1:]}.", ""] if without else []
    return "\n".join([*lines, "", *about, engine.serving_note(draft.kind, settings, plan), ""])


def _note(folder: Path, note: str | None) -> str:
    """What was passed in, or what the run's own card says."""
    text = note or _own_card(folder)
    return f"## Data and licences\n\n{text.strip()}\n" if text and text.strip() else ""


def _own_card(folder: Path) -> str | None:
    run = run_folder(folder)
    for place in (folder, *([run] if run else [])):
        for name in CARDS:
            if (place / name).is_file():
                return _body((place / name).read_text(encoding="utf-8"))
    return None


def _body(text: str) -> str:
    """A card without its front matter and its title."""
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        text = text[4:].split("\n---\n", 1)[1]
    lines = text.strip().splitlines()
    return "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines)
