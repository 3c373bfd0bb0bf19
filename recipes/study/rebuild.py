"""Fits, tables and figures of a study's archive, from its observations alone.

    python rebuild.py OUT [DRAWS]       beside `studies/`, where this file lies in the archive

For each study OUT/STUDY holds Fit.json (every law that its rows support), laws.csv, measured.csv and figures/. The same rows and as many bootstrap
draws give the same files.
"""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from foredraft import records
from foredraft.laws.fit import fit_all
from foredraft.laws.held_out import r_squared
from foredraft.records import Fit, Observation
from foredraft.report import inline, style
from foredraft.report.documents import read_documents
from foredraft.report.page import SECTIONS

DRAWS = 200
LAWS = ("law", "output", "formula", "parameters", "observations", "runs", "r_squared", "held_out_error")
MEASURED = (
    "run", "target", "method", "draft_params", "draft_layers", "draft_tokens", "lookahead", "tree_nodes", "temperature", "batch_size",
    "tokens_per_step", "speedup", "output_tok_s",
)  # fmt: skip


def rebuild(studies: Path, out: Path, draws: int = DRAWS) -> list[Path]:
    """The folders written, one for each study. Raises ValueError where a study has no observations."""
    return [
        _rebuild(study, out / study.name, draws)
        for study in sorted(path for path in studies.iterdir() if path.is_dir())
    ]


def _rebuild(study: Path, out: Path, draws: int) -> Path:
    rows = [
        row for path in sorted(study.glob("observations*.jsonl.gz")) for row in records.read_lines(Observation, path)
    ]
    if not rows:
        raise ValueError(f"{study}: no observations*.jsonl.gz there")
    fits, _ = fit_all(rows, draws=draws)
    records.write(out / "Fit.json", fits)
    _write(out / "laws.csv", LAWS, (_law(fit, rows) for fit in fits))
    _write(out / "measured.csv", MEASURED, ([getattr(row, name) for name in MEASURED] for row in rows))
    documents = read_documents([study, out])
    sections = [section for part in SECTIONS if (section := part.section(documents))]
    pictures = {picture.name: inline.files(picture) for section in sections for picture in section.pictures}
    style.draw(out / "figures", pictures, ("svg",))
    return out


def _law(fit: Fit, rows: Sequence[Observation]) -> list[object]:
    values = " ".join(f"{name}={value:.6g}" for name, value in fit.parameters.items())
    share = r_squared(fit, rows)
    return [
        fit.law, fit.output, fit.formula, values, fit.num_observations, fit.num_clusters, "" if share is None else f"{share:.4f}",
        "" if fit.held_out_error is None else f"{fit.held_out_error:.4g}",
    ]  # fmt: skip


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    for folder in rebuild(Path(__file__).parent / "studies", Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(folder)
