"""Rows of what training runs said of their held-out answers at the end: greedy, teacher-forced, a chain; for `fit`, `plan` and `laws.py`.

    python recipes/smollm2/held_out_rows.py TARGET OUT.jsonl.gz HELD_OUT DEVICE RUN [RUN …]

RUN is the folder of a training run that is done, with the target's answers as its last stage's data and HELD_OUT as its held-out token folder.
A sweep's second training, NAME-then, is of a family of its own, and its tokens are its stem's budget, as a sweep has it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from foredraft import kinds, records, runs, shapes
from foredraft.data.tokens import TokenFolder
from foredraft.recipe import Recipe
from foredraft.records import Observation, Provenance

TARGET = "SmolLM2-135M-Instruct"
THEN, EXPORTED = "-then", "tokens-"  # what a sweep calls a second training, and a run its export at a budget
FAMILIES = {"scylla": "scylla", "lm": "lm"}  # of a run's name up to the first dash, where the kind does not say it


def row(run: Path, target: Path, held_out: TokenFolder, device: str) -> Observation:
    """Raises SystemExit where the run has no held-out figures."""
    recipe = json.loads((run / runs.RECIPE).read_bytes())
    figures = last_figures(run)
    shape = shape_of(run, target)
    kind, name = kinds.of_shape(shape), run.resolve().name
    drafted = [figures[f"survival_{i}"] for i in range(1, 100) if f"survival_{i}" in figures]
    then = name.endswith(THEN)
    tokens = sum((0.0 if then else tokens_of(recipe), *before(recipe)))
    family = FAMILIES.get(name.split("-")[0], kind.name) + (THEN if then else "")
    low, high = figures["tokens_per_step_low"], figures["tokens_per_step_high"]
    rates = ", ".join(f"{stage.get('learning_rate', 1e-3):g}" for stage in recipe["stages"])
    return Observation(
        run=name, draft=f"{name}/final", target=TARGET, method=kind.name, family=family,
        provenance=Provenance(
            source="foredraft train",
            note=f"held-out greedy answers, teacher-forced, at the end of training; {low:.3f} to {high:.3f}; learning rate {rates}",
        ),
        dataset=held_out.path.name, temperature=0.0, engine="foredraft", machine=device, dtype=recipe.get("precision", "bfloat16"),
        target_params=float(shapes.named(str(target)).params), draft_params=float(shape.params), draft_tokens=float(tokens),
        draft_layers=shape.num_layers, lookahead=len(drafted), topk=1, tree_nodes=len(drafted), num_requests=num_judged(recipe, held_out),
        tokens_per_step=figures["tokens_per_step"], survival=tuple(drafted), pooling="steps", loss=figures["ce"] if kind is kinds.LM else None,
    )  # fmt: skip


def shape_of(run: Path, target: Path) -> shapes.Shape:
    """Of the draft on file, or as the recipe has it, where its weights are gone."""
    if (run / "final" / "model.safetensors").is_file():
        return kinds.shape_of_folder(run / "final")
    from foredraft.train.objectives import trainee_of

    return trainee_of(records.read(Recipe, run / runs.RECIPE), target).shape


def last_figures(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next((line for line in reversed(lines) if "held_out_tokens_per_step" in line), None)
    if last is None:
        raise SystemExit(f"{run}: its metrics.jsonl has no held-out figures; train it with --held-out")
    return {key.removeprefix("held_out_"): value for key, value in last.items()}


def num_judged(recipe: dict[str, Any], held_out: TokenFolder) -> int:
    """How many of the held-out documents a run judges, by their tokens."""
    share = recipe["watch"]["held_out_tokens"] / held_out.data.num_tokens
    return max(round(held_out.data.num_documents * min(share, 1.0)), 1)


def tokens_of(recipe: dict[str, Any]) -> float:
    """In whole steps."""
    stages = ((stage, stage.get("length", 512) * stage.get("batch", 16)) for stage in recipe["stages"])
    return sum(round(stage["tokens"] / step) * step for stage, step in stages)


def before(recipe: dict[str, Any]) -> list[float]:
    """Tokens of the runs that it went on from, as far as these had come."""
    init = recipe["model"].get("init")
    run = runs.run_folder(init) if init else None
    if run is None:
        return []
    earlier, (_, _, budget) = json.loads((run / runs.RECIPE).read_bytes()), Path(init).name.rpartition(EXPORTED)
    return [float(budget) if budget.isdigit() else tokens_of(earlier), *before(earlier)]


if __name__ == "__main__":
    target, out, held_out, device, *names = sys.argv[1:]
    folder = TokenFolder.open(held_out)
    rows = [row(Path(name), Path(target), folder, device) for name in names]
    records.write_lines(Path(out), rows)
    print(f"wrote {out}: {len(rows)} rows")
