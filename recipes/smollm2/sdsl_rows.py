"""Rows of independent models with all that SDSL's chain asks for, for laws.py: their acceptance beside their held-out loss, and what was timed.

    python recipes/smollm2/sdsl_rows.py OUT.jsonl.gz FORCED.jsonl.gz GRID.jsonl.gz TIMED.jsonl[.gz] …

FORCED has each model's acceptance, GRID its held-out loss (held_out_rows.py), whose runs are each budget's own, TIMED rows with a clock. A model
that drafts some of its words alone has no perplexity on texts that hold others, so that e to its held-out loss, over the words that it drafts,
stands for it.
"""

import math
import sys

import msgspec

from foredraft import kinds, records
from foredraft.records import Observation


def main() -> None:
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    forced, grid, *timed = (records.read_lines(Observation, file) for file in sys.argv[2:])
    lost = {row.draft: (row.run, row.loss) for row in grid if row.loss is not None}
    joined = [
        msgspec.structs.replace(row, run=run, loss=loss, draft_perplexity=math.exp(loss))
        for row in forced
        if kinds.role_of(row.method) == "lm" and row.draft in lost
        for run, loss in [lost[row.draft]]
    ]
    if not joined:
        raise SystemExit(f"{sys.argv[3]}: no held-out loss of a model of {sys.argv[2]}")
    records.write_lines(sys.argv[1], [*joined, *(row for rows in timed for row in rows)])


if __name__ == "__main__":
    main()
