"""`foredraft calibrate` on vLLM's own server: does it predict loads that it has not seen, and does its schedule lose to a fixed lookahead?

    python benchmarks/calibrate.py OUT.json [--target DIR] [--draft NAME=DIR] [--prompts FILE] [--lookaheads 1,3] [--loads 1,2,4,8,16]
        [--known 1,4,16] [--max-tokens N] [--requests N] [--minutes M] [--dtype D] [--threads N] [--compiled] [--python PATH]

One server without a draft and one at each lookahead, all at once and asked in turn. The command is typed as a user would, for the loads of
--known; then the server that its own serve.sh starts stands beside the others, and all are asked at every load, round after round, while
--minutes last, one round at least. Judged: tokens/s predicted at the loads that it did not see, and what the schedule loses at every load to
the best of the fixed ones. Times mean something on a quiet machine only. What was measured lies in the folder OUT/; OUT.json has the figures
and a verdict in a line, which is printed. vLLM comes from `make peers` or `make test-engine`.
"""

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vllm_server
import zoo_drafts
from served import PYTHON, preload, say
from zoo_drafts import Draft

from foredraft import records
from foredraft.calibrate.runs import CalibrationSettings, measure_runs
from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.deploy.export import ExportSettings, export
from foredraft.records import Observation, ServerCalibration
from foredraft.serving.endpoint_http import address_of

GOAL_ERROR, GOAL_LOSS = 0.08, 0.02
CONTEXT = 1024
CALIBRATED, FIXED, SCHEDULED = "calibrated", "fixed", "scheduled"


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers are ended too
    zoo_drafts.at_hand(arguments.target, arguments.prompts)
    if not arguments.python.is_file():
        raise SystemExit(f"no {arguments.python}; hint: make peers, or --python PATH")
    draft = next(iter(zoo_drafts.drafts_of(arguments.draft).values()))
    folder = Path(arguments.out).with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    with contextlib.ExitStack() as running:
        passing = Path(running.enter_context(tempfile.TemporaryDirectory()))
        urls = [
            running.enter_context(_fixed(arguments, draft, k, passing)) for k in (0, *_numbers(arguments.lookaheads))
        ]
        _calibrate(arguments, draft, urls, folder / CALIBRATED)
        calibration = records.read(ServerCalibration, folder / CALIBRATED / "calibration.json")
        schedule_url = running.enter_context(_scheduled(arguments, calibration, folder / CALIBRATED, passing))
        _judge(arguments, urls, schedule_url, folder, start + 60 * arguments.minutes)
    figures = figures_of(
        calibration,
        _rows(folder / FIXED),
        _rows(folder / SCHEDULED),
        _numbers(arguments.loads),
        _numbers(arguments.known),
    )
    conditions = {
        "target": arguments.target.name, "draft": draft.name, "lookaheads": [0, *_numbers(arguments.lookaheads)], "known_loads": arguments.known,
        "max_tokens": arguments.max_tokens, "dtype": arguments.dtype, "threads": arguments.threads, "eager": not arguments.compiled,
        "versions": calibration.provenance.versions, "minutes": (time.monotonic() - start) / 60,
    }  # fmt: skip
    records.write(arguments.out, {"conditions": conditions} | figures)
    print(figures["verdict"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    zoo_drafts.add_options(parser)
    parser.set_defaults(draft=[f"eagle2={zoo_drafts.ZOO / 'eagle2'}"])
    parser.add_argument("--lookaheads", default="1,3", help="of the drafted servers")
    parser.add_argument("--loads", default="1,2,4,8,16", help="clients that are judged")
    parser.add_argument("--known", default="1,4,16", help="clients that are calibrated on")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--requests", type=int, default=3, help="of each client at a load, eight in all at least")
    parser.add_argument("--minutes", type=float, default=9.0, help="from the start; after that no further round begins")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of each server; one core is the client's")
    parser.add_argument("--compiled", action="store_true", help="vLLM with its compiler, which starts minutes later")
    parser.add_argument("--python", type=Path, default=PYTHON, help="vLLM's interpreter")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


# Servers.


def _fixed(
    arguments: argparse.Namespace, draft: Draft, lookahead: int, folder: Path
) -> contextlib.AbstractContextManager[str]:
    """A server of one lookahead: the draft's own serve.sh, or the bare target."""
    if lookahead == 0:
        command: list[str | Path] = [
            arguments.python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            arguments.target.resolve(),
        ]
    else:
        export(draft.folder, arguments.target, folder / f"k{lookahead}", ExportSettings(lookahead=lookahead))
        command = ["sh", folder / f"k{lookahead}" / "serve.sh"]
    return _serving(arguments, command, folder / f"k{lookahead}.log", f"lookahead {lookahead}")


def _scheduled(
    arguments: argparse.Namespace, calibration: ServerCalibration, calibrated: Path, folder: Path
) -> contextlib.AbstractContextManager[str]:
    """The server that calibrate's own serve.sh starts."""
    say(f"schedule: {calibration.settings or 'no draft'}")
    return _serving(arguments, ["sh", calibrated / "serve.sh"], folder / "scheduled.log", "the schedule")


def _serving(
    arguments: argparse.Namespace, command: Sequence[str | Path], log: Path, name: str
) -> contextlib.AbstractContextManager[str]:
    say(f"starting vLLM: {name}")
    more = [
        "--dtype", arguments.dtype, "--max-model-len", str(CONTEXT), "--no-enable-prefix-caching", "--max-num-seqs",
        str(max(_numbers(arguments.loads))), "--uvicorn-log-level", "warning", *([] if arguments.compiled else ["--enforce-eager"]),
    ]  # fmt: skip
    environment = vllm_server.environment(arguments.python, arguments.threads) | preload(arguments.python)
    return vllm_server.serving([*command, *more], environment, log)


# Loads.


def _calibrate(arguments: argparse.Namespace, draft: Draft, urls: Sequence[str], folder: Path) -> None:
    """The command as a user types it. vLLM does not say where its draft lies, so the exported one is named."""
    exported = Path(folder.parent / "draft")
    export(draft.folder, arguments.target, exported, ExportSettings(lookahead=max(_numbers(arguments.lookaheads))))
    words: list[object] = [
        "calibrate", *urls, "--out", folder, "-c", arguments.known, "--prompts", arguments.prompts, "--requests", arguments.requests,
        "--max-tokens", arguments.max_tokens, "--no-stop", "--draft", exported.resolve(), "--method", draft.method,
    ]  # fmt: skip
    say("foredraft calibrate")
    subprocess.run([sys.executable, "-m", "foredraft", *map(str, words)], check=True, stdout=sys.stderr)


def _judge(
    arguments: argparse.Namespace, urls: Sequence[str], schedule_url: str, folder: Path, deadline: float
) -> None:
    """Rounds of all loads on all servers, into folders of their own."""
    questions, number = read_questions(arguments.prompts, Skips("stop")), 0
    while number == 0 or time.monotonic() < deadline:
        number += 1
        for load in _numbers(arguments.loads):
            if number > 1 and time.monotonic() > deadline:
                return
            settings = CalibrationSettings(
                loads=(load,),
                rounds=number,
                requests_per_client=arguments.requests,
                max_tokens=arguments.max_tokens,
                stop=False,
            )
            asked = _asked(questions, settings.num_requests(load))
            servers = [([*urls], FIXED), ([schedule_url], SCHEDULED)]
            for addresses, name in servers[:: 1 if number % 2 else -1]:
                measure_runs(
                    [address_of(url) for url in addresses],
                    asked,
                    settings,
                    folder / name,
                    {"dataset": arguments.prompts.stem},
                    _say_row,
                )


def _asked(questions: Sequence[Question], num: int) -> list[Question]:
    return [questions[i % len(questions)] for i in range(num)]


def _say_row(row: Observation, warnings: Sequence[str]) -> None:
    say(f"k {row.lookahead}, {row.concurrency} at once: {row.output_tok_s or 0:.0f} tokens/s {'; '.join(warnings)}")


def _rows(folder: Path) -> list[Observation]:
    return records.read_lines(Observation, folder / "observations.jsonl")


# Figures.


def _means(rows: Sequence[Observation]) -> dict[int, float]:
    by_load: dict[int, list[float]] = {}
    for row in rows:
        if row.concurrency and row.output_tok_s:
            by_load.setdefault(row.concurrency, []).append(row.output_tok_s)
    return {load: float(np.mean(speeds)) for load, speeds in sorted(by_load.items())}


def figures_of(
    calibration: ServerCalibration, fixed: Sequence[Observation], schedule: Sequence[Observation], loads: Sequence[int], known: Sequence[int]
) -> dict[str, Any]:  # fmt: skip
    """Predictions against the mean of the rounds, and the schedule's loss to the best fixed lookahead, with a verdict in a line."""
    measured = {k: _means([row for row in fixed if row.lookahead == k]) for k in calibration.lookaheads}
    cells = []
    for each in calibration.loads:
        for k, speeds in measured.items():
            if each.concurrency in speeds:
                estimate, speed = each.predicted[k], speeds[each.concurrency]
                cells.append({
                    "load": each.concurrency, "lookahead": k, "seen": each.concurrency in known, "measured": speed, "predicted": estimate.value,
                    "low": estimate.low, "high": estimate.high, "error": estimate.value / speed - 1,
                })  # fmt: skip
    unseen = [cell for cell in cells if not cell["seen"]]
    inside = [cell["low"] <= cell["measured"] <= cell["high"] for cell in unseen]
    error = float(np.mean([abs(cell["error"]) for cell in unseen])) if unseen else None
    losses = _losses(measured, _means(schedule), loads)
    loss = float(np.mean(list(losses.values()))) if losses else None
    return {
        "verdict": _verdict(error, max((abs(cell["error"]) for cell in unseen), default=None), loss, losses),
        "error_unseen": error,
        "inside_unseen": float(np.mean(inside)) if inside else None,
        "loss": loss, "losses": {str(load): value for load, value in losses.items()},
        "loss_of_fixed": {str(k): _mean_loss(speeds, measured, loads) for k, speeds in measured.items()},
        "gain_predicted": calibration.gain, "schedule": {str(each.concurrency): each.scheduled for each in calibration.loads},
        "settings": calibration.settings, "scheduled_tok_s": {str(load): speed for load, speed in _means(schedule).items()},
        "own_error": calibration.error, "rounds": _rounds(fixed), "spread": _spread(fixed), "cells": cells,
    }  # fmt: skip


def _losses(
    measured: Mapping[int, Mapping[int, float]], schedule: Mapping[int, float], loads: Sequence[int]
) -> dict[int, float]:
    """1 - schedule / best fixed, by load; below 0 it won."""
    return {
        load: 1 - schedule[load] / max(speeds[load] for speeds in measured.values())
        for load in loads
        if load in schedule and all(load in speeds for speeds in measured.values())
    }


def _mean_loss(
    speeds: Mapping[int, float], measured: Mapping[int, Mapping[int, float]], loads: Sequence[int]
) -> float | None:
    losses = _losses(measured, speeds, loads)
    return float(np.mean(list(losses.values()))) if losses else None


def _rounds(rows: Sequence[Observation]) -> int:
    cells = [(row.lookahead, row.concurrency) for row in rows]
    return max(map(cells.count, cells), default=0)


def _spread(rows: Sequence[Observation]) -> float | None:
    """The greatest ratio less 1 between two rounds of a cell; None of one round."""
    by_cell: dict[Any, list[float]] = {}
    for row in rows:
        by_cell.setdefault((row.lookahead, row.concurrency), []).append(row.output_tok_s or np.nan)
    return max((max(speeds) / min(speeds) - 1 for speeds in by_cell.values() if len(speeds) > 1), default=None)


def _verdict(error: float | None, worst: float | None, loss: float | None, losses: Mapping[int, float]) -> str:
    parts = []
    if error is not None and worst is not None:
        parts.append(
            f"{_met(error, GOAL_ERROR)}: tokens/s at unmeasured loads {error:.1%} off on average ({worst:.1%} at worst; goal {GOAL_ERROR:.0%})"
        )
    if loss is not None:
        parts.append(
            f"{_met(loss, GOAL_LOSS)}: the schedule loses {loss:.1%} to the best fixed lookahead of each load "
            f"({max(losses.values()):.1%} at worst; goal {GOAL_LOSS:.0%})"
        )
    return "; ".join(parts) or "nothing could be judged"


def _met(value: float, goal: float) -> str:
    return "met" if value <= goal else "MISSED"


if __name__ == "__main__":
    main()
