"""A calibration as files: the record, the schedule in the engine's words, what starts the server, and what watches it.

Refuses to know: how anything in them came about.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foredraft import records
from foredraft.engines import ENGINES
from foredraft.engines.operations import SCRIPT, Thresholds, script, texts
from foredraft.records import Plan, ServerCalibration

RECORD, PLAN = "calibration.json", "Plan.json"


def write_files(calibration: ServerCalibration, folder: Path, plan: Plan | None = None) -> list[Path]:
    """All of them; what launches a server only where runs with and without a draft were measured, a draft's settings only where one pays. Files of
    an earlier calibration that do not hold any more are removed.
    """
    engine, settings, target = ENGINES[calibration.engine], calibration.settings, calibration.path
    whole = calibration.is_whole
    thresholds = thresholds_of(calibration) if settings else None
    files = {
        SCRIPT: script(engine, target, settings),
        **texts(engine, target, settings, thresholds, calibration.version),
    }
    documents: Mapping[str, Any] = {
        RECORD: calibration, PLAN: plan if whole else None, engine.plan_file: settings if whole and settings else None,
    }  # fmt: skip
    written = []
    for name, document in documents.items():
        if document is not None:
            records.write(folder / name, document)
            written.append(folder / name)
    for name, text in files.items():
        if text and whole:
            records.write_bytes(folder / name, text.encode())
            written.append(folder / name)
    for name in {*documents, *files}:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)
    if folder / SCRIPT in written:
        (folder / SCRIPT).chmod(0o755)
    return written


def thresholds_of(calibration: ServerCalibration) -> Thresholds:
    """Of the lookahead that is scheduled at the usual load."""
    usual = next((each for each in calibration.loads if each.concurrency == calibration.usual_load), None)
    tau = calibration.tokens_per_step.get(usual.scheduled) if usual else None
    break_even = calibration.break_even
    return Thresholds(
        break_even if tau and break_even and 1 < break_even < tau else None, tau, calibration.off_above or None
    )
