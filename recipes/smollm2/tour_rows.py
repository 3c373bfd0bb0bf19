"""What the tour plans from: rows of runs of `foredraft measure` that timed the zoo's drafts, one of each precision.

    python recipes/smollm2/tour_rows.py ZOO OBSERVATIONS.jsonl.gz MEASURED/observations.jsonl [MEASURED/observations.jsonl …]

A draft's rows go into its folder in the zoo, in place of those with a clock of the same machine; what was read of held-out answers there stays, and
what other machines measured. Those of plain decoding and of the look-up alone go into OBSERVATIONS likewise. Rows of single categories are left out:
they say what the others say.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from foredraft import kinds, records
from foredraft.records import Observation

ROWS = "observations.jsonl"


def by_folder(rows: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Rows of all categories together by the draft's name, that of a look-up before it left out; "" of no model."""
    of: dict[str, list[Observation]] = defaultdict(list)
    for row in rows:
        if "/" not in (row.dataset or ""):
            model = row.draft if row.draft_params else None
            of[(model or "").removesuffix(kinds.BESIDE)].append(row)
    return of


def main(zoo: Path, out: Path, *measured: Path) -> None:
    of = by_folder([row for file in measured for row in records.read_lines(Observation, file)])
    if not any(row.method == kinds.NONE.name for row in of[""]):
        raise SystemExit("no row of plain decoding, which every gain is over; measure it in the same run")
    _replace(out, of.pop(""))
    for name, rows in of.items():
        file = zoo / name / ROWS
        if not file.is_file():
            raise SystemExit(f"{file}: no such draft in the zoo; name those that were measured by its folders")
        _replace(file, rows)


def _replace(file: Path, rows: Sequence[Observation]) -> None:
    machines = {row.machine for row in rows}
    there = records.read_lines(Observation, file) if file.is_file() else ()
    stay = [row for row in there if not row.output_tok_s or row.machine not in machines]
    records.write_lines(file, [*stay, *rows])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
