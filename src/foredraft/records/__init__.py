"""The nouns on the arrows between the rooms, as typed documents on disk.

Promises: every record is frozen, an unknown key is an error, a value that was not measured is None (never 0), and a
file or folder is written whole or not at all. Refuses to know: how anything in a record is computed.
"""

from foredraft.records.files import (
    decode,
    lock,
    read,
    read_lines,
    read_text,
    whole_folder,
    write,
    write_bytes,
    write_lines,
)
from foredraft.records.judged import DraftRegret, HeldOutPrediction, Hindsight, JudgedCell
from foredraft.records.measured import (
    DTYPE_SPELLINGS,
    MOST_CLIENTS,
    RATES,
    TASKS,
    Estimate,
    Machine,
    Measurement,
    Observation,
    Provenance,
    StepRecord,
    Workload,
    concurrency_of,
    dtype_name,
)
from foredraft.records.planned import BreakEven, DraftChoice, Fit, NextRun, Plan, Rival, RunnerUp, ScheduleStep
from foredraft.records.record import Record, require, with_hint

__all__ = [
    "DTYPE_SPELLINGS",
    "MOST_CLIENTS",
    "RATES",
    "TASKS",
    "BreakEven",
    "DraftChoice",
    "DraftRegret",
    "Estimate",
    "Fit",
    "HeldOutPrediction",
    "Hindsight",
    "JudgedCell",
    "Machine",
    "Measurement",
    "NextRun",
    "Observation",
    "Plan",
    "Provenance",
    "Record",
    "Rival",
    "RunnerUp",
    "ScheduleStep",
    "StepRecord",
    "Workload",
    "concurrency_of",
    "decode",
    "dtype_name",
    "lock",
    "read",
    "read_lines",
    "read_text",
    "require",
    "whole_folder",
    "with_hint",
    "write",
    "write_bytes",
    "write_lines",
]
