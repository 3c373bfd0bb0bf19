"""A training run as it lies on disk: its name, its recipe's folder and the tokens behind an export, from a draft's folder.

Refuses to know: torch, how a run is trained.
"""

from pathlib import Path

from foredraft import records
from foredraft.recipe import Recipe

RECIPE = "recipe.json"
EXPORTS = "exports"
RUN_PARTS = ("final", "best", EXPORTS)  # folders inside a run's folder, which bear no name of their own


def name_of(folder: str | Path) -> str:
    """A folder's own name, or a GGUF file's without its ending; of what a training run exported, the run's before it: "eagle3/final",
    "lm/exports/tokens-1e6"; org/model of a snapshot in the Hub's cache.
    """
    if name := records.hub_name(folder):
        return name
    path = Path(folder).resolve()
    parts = (path.with_suffix("") if path.suffix == ".gguf" and path.is_file() else path).parts
    start = len(parts) - 1
    while start > 1 and (parts[start] in RUN_PARTS or parts[start - 1] == EXPORTS):
        start -= 1
    return "/".join(parts[start:])


def run_name(folder: str | Path) -> str:
    """The name of the run that made a folder: all exports of one run are one cluster of a bootstrap over runs."""
    return records.hub_name(folder) or name_of(folder).split("/")[0]


def run_folder(folder: str | Path) -> Path | None:
    """The folder of the run that a draft comes from, where its recipe lies; None where there is none."""
    path = Path(folder).resolve()
    return next((parent for parent in (path, *path.parents[:2]) if (parent / RECIPE).is_file()), None)


def trained_tokens(folder: str | Path) -> float | None:
    """Tokens that an export's weights have seen, as its run's recipe says; None where there is no recipe, where it was the best of
    several exports, or where the run went on from other weights.
    """
    run = run_folder(folder)
    if run is None:
        return None
    *parents, export = Path(folder).resolve().relative_to(run).parts or ("",)
    if not (parents == [EXPORTS] or (not parents and export == "final")):
        return None
    recipe = records.read(Recipe, run / RECIPE)
    if recipe.model.init is not None:
        return None
    return _budget(export) if parents else float(recipe.tokens)


def _budget(export: str) -> float | None:
    """The budget in an export's name, "tokens-1e+06"."""
    try:
        return float(export.removeprefix("tokens-"))
    except ValueError:
        return None
