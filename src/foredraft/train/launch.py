"""From a recipe and folders to a run: opens the data, builds what is trained, measures the ceiling, starts the loop.

Promises: what does not fit together is said before anything is computed. Refuses to know: the command line, the loop's
inside, kinds of model.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

from foredraft import records
from foredraft.data.tokens import DATA, Packing, TokenFolder
from foredraft.hardware import matmul_rate
from foredraft.recipe import Recipe
from foredraft.train.checkpoints import State
from foredraft.train.devices import Devices
from foredraft.train.loop import Data, train
from foredraft.train.objectives import trainee_of
from foredraft.train.sizes import TeacherChoice


def launch(
    recipe: Recipe, out: Path, devices: Devices, *, target: Path | None = None, data: Sequence[Path] = (),
    held_out: Path | None = None, features: Path | None = None, teacher: TeacherChoice | None = None,
) -> State:  # fmt: skip
    """Run `recipe` in `out`. `data`: token folders, one per stage; the last serves those that follow, a stage's own goes first.
    `features`: a folder to cache a head's hidden states in, instead of computing them as each batch comes. `teacher`: what computes
    them, our decoder where it is left out.

    Raises ValueError where a target is lacking, where data and target do not match, and as `loop.train` does.
    """
    trainee, packings = trainee_of(recipe, target, teacher), open_data(recipe, data, held_out)
    with records.reserved(out) if devices.first else nullcontext():
        objective = trainee.objective(packings, devices, features)
        return train(recipe, objective, packings, out, devices, matmul_rate(devices.device, recipe.precision))


def open_data(recipe: Recipe, data: Sequence[Path], held_out: Path | None) -> Data:
    """Packings of every stage's folder and of the held-out one."""
    stages, digests = [], []
    for i, stage in enumerate(recipe.stages):
        path = Path(stage.data) if stage.data else data[min(i, len(data) - 1)] if data else None
        if path is None:
            raise ValueError(f"stages[{i}].data is missing: name a token folder there or with --data")
        stages.append(Packing(TokenFolder.open(path), stage.length, recipe.seed + i, recipe.within_documents))
        digests.append(sha256((path / DATA).read_bytes()).hexdigest()[:16])
    folder = TokenFolder.open(held_out) if held_out else None
    packing = Packing(folder, recipe.stages[0].length, 0, recipe.within_documents) if folder else None
    return Data(stages, tuple(digests), packing)
