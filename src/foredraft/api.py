"""What the verbs of the command line do, as functions: plan, fit, train, measure, load_engine.

They stand on the package's face: `foredraft.plan(…)`. Every function imports its room when it is called, so that `plan` and `fit`
need no torch. Refuses to know: how anything is computed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foredraft.decode.engine import Engine
    from foredraft.measure.settings import MeasureSettings
    from foredraft.plan.at_hand import DraftAtHand
    from foredraft.plan.problem import PlanSettings
    from foredraft.recipe import Recipe
    from foredraft.records import Fit, Machine, Measurement, Observation, Plan, Workload
    from foredraft.shapes import Shape
    from foredraft.train.checkpoints import State

__all__ = ["fit", "load_engine", "measure", "plan", "train"]


def plan(
    target: "Shape | str",
    machine: "Machine | str",
    workload: "Workload",
    settings: "PlanSettings | None" = None,
    observations: "Sequence[Observation]" = (),
    draft: "DraftAtHand | Shape | str | None" = None,
    beside: "Sequence[DraftAtHand | str]" = (),
) -> "Plan":
    """Say which draft to train for `target`, how to run it at each load, and what it will gain.

    `target` and `draft` (to weigh it alone): a shape, a public name or id, or a folder; `beside`: drafts to weigh with all others;
    `machine`: a record, its name or its file; `observations`: own measurements. Raises ValueError, one line, where the target does
    not fit or a name is not known.
    """
    from foredraft import machines, shapes
    from foredraft.plan import plan as room
    from foredraft.plan.at_hand import draft_at_hand

    if isinstance(target, str):
        target = shapes.named(target)
    if isinstance(draft, str):
        draft = draft_at_hand(draft, target)
    if isinstance(machine, str):
        machine = machines.named(machine)
    named = [draft_at_hand(each, target) if isinstance(each, str) else each for each in beside]
    return room.plan(target, machine, workload, settings, observations, draft, [each for each in named if each])


def fit(observations: "Sequence[Observation]", draws: int = 200, seed: int = 0) -> "tuple[list[Fit], dict[str, str]]":
    """Fit every law that `observations` can support; return the fits, and of each other law what it lacks."""
    from foredraft.laws.fit import fit_all

    return fit_all(observations, draws=draws, seed=seed)


def train(
    recipe: "Recipe",
    out: str | Path,
    *,
    target: str | Path | None = None,
    data: Sequence[str | Path] = (),
    held_out: str | Path | None = None,
    features: str | Path | None = None,
    device: str = "cpu",
    shard: bool = False,
) -> "State":
    """Train as `recipe` says into the folder `out`, to its budget of tokens; a run that was stopped goes on. Return its last state.

    `target`: the folder that a head learns from; `data`: a token folder per stage, where the recipe names none. Raises ValueError,
    one line, where a folder is missing or does not fit.
    """
    from foredraft.train.devices import started
    from foredraft.train.launch import launch

    target, held_out, features = (Path(path) if path else None for path in (target, held_out, features))
    with started(device, shard) as devices:
        return launch(
            recipe, Path(out), devices, target=target, data=[Path(folder) for folder in data], held_out=held_out, features=features,
        )  # fmt: skip


def measure(
    target: str | Path, drafts: Sequence[str], prompts: str | Path, settings: "MeasureSettings | None" = None
) -> "list[Measurement]":
    """Measure the folder `target` alone and with each of `drafts` on the prompts of a file: acceptance, tokens per step, times.

    A draft is "ngram" or a folder (DIR+ngram: behind a look-up), with @k for its lookahead ("DIR@5") or a tree ("DIR@5,4,16": depth,
    top-k, nodes). Raises ValueError, one line, before anything is decoded where something does not fit.
    """
    from foredraft.data.sources import Skips
    from foredraft.measure.measure import measure as rows_of
    from foredraft.measure.settings import MeasureSettings
    from foredraft.measure.subject import subject_of

    settings = settings or MeasureSettings()
    return rows_of(subject_of(target, drafts, prompts, settings, Skips("stop")), settings)


def load_engine(target: str | Path, draft: str | None = None, **options: Any) -> "Engine":
    """The engine for the folder `target`, drafted for by "ngram" or the model in the folder `draft`: `text.load_engine`."""
    from foredraft import text

    return text.load_engine(target, draft, **options)
