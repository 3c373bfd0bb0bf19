"""A simulated draft on vLLM's server on a CPU: tokens/s predicted, simulated, and with the real draft, which the simulation never sees.

    python benchmarks/simulated.py OUT.json [--target DIR] [--draft NAME=DIR …] [--published NAME] [--lookaheads 2,3] [--loads 1,4,8,16]
        [--prompts FILE] [--num N] [--rounds N] [--dtype D] [--threads N] [--eager] [--quick] [--python PATH]

What is known before a draft is trained: its shape, and an acceptance, here the one that our own engine measures of the published draft (the
zoo's EAGLE-2 head) at that lookahead on those prompts (it stands for a prediction). For each lookahead four servers are up together, of
`deploy` and `deploy simulate`:

- none: the bare target;
- untrained: a head of that shape with random weights, which costs what it costs and is hardly ever right;
- simulated: `--cpu`, first with free drafts that are accepted as seldom as the untrained head's, so that the difference of their steps is
  the seconds of a draft's passes, then with the acceptance asked and those seconds;
- real: the draft.

Then every load is put on none, real and simulated in turn. The cost law, calibrated on none and the untrained head at the first lookahead (and, as
served.py does, on none and the last simulated lookahead), predicts tokens/s with the acceptance asked. What a lookahead gave lies in the folder OUT/
and is not measured again. Times mean something on a quiet machine only; on two cores, --threads 1 leaves one to the client.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import served
import served_figures
import vllm_server
from zoo_drafts import Draft

from foredraft import records, shapes
from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.deploy import replay
from foredraft.deploy.export import ExportSettings, export
from foredraft.deploy.simulate import SimulateSettings, simulate
from foredraft.records import Machine, Observation, Record

NUM_PROMPTS = 8  # so that every load's requests are whole rounds over them
LOADS, QUICK_LOADS = (1, 4, 8, 16), (1, 4)
LEARNING = 3  # rounds over all prompts that teach the proposer the target's answers, whose near-ties differ from batch to batch
COST_ROUNDS = 2
SYNTHETIC = ("rejection_sample_method", "synthetic_acceptance_rates", "synthetic_acceptance_length")  # refused on a CPU


class Trial(Record, frozen=True):
    """What was measured at a lookahead. `ours`: a chain in our own engine, whose acceptance is asked. `draft_s`: [requests, seconds] of a draft's
    pass as measured, below 0 where free drafts took longer, which is spent as 0; `unknown`: share of drafts that could not be as asked.
    """

    lookahead: int
    ours: Observation
    draft_s: tuple[tuple[float, float], ...]
    unknown: float
    rows: dict[str, list[Observation]]


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers under way are ended too
    out = Path(arguments.out)
    bench = served.bench_of(arguments, out, arguments.loads, QUICK_LOADS)
    machine = served.machine_here(bench)
    for lookahead in arguments.lookaheads:
        file = bench.folder / f"lookahead-{lookahead}.json"
        if not file.is_file():
            records.write(file, asyncio.run(_trial(bench, machine, lookahead)))
            served.say(f"wrote {file}")
    trials = [records.read(Trial, bench.folder / f"lookahead-{k}.json") for k in arguments.lookaheads]
    records.write(out, msgspec.to_builtins(_figures(bench, machine, trials), str_keys=True))
    served.say(f"wrote {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--lookaheads", type=_whole_numbers, default=[2, 3])
    parser.add_argument("--loads", type=_whole_numbers, default=LOADS, help="clients")
    served.add_options(parser)
    return parser.parse_args()


def _whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def draft_of(bench: served.Bench) -> Draft:
    return bench.drafts[bench.published]


# A lookahead on four servers.


async def _trial(bench: served.Bench, machine: Machine, lookahead: int) -> Trial:
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        prompts = folder / "prompts.jsonl"
        records.write_bytes(prompts, b"".join(bench.prompts.read_bytes().splitlines(keepends=True)[:NUM_PROMPTS]))
        ours = _our_chain(bench, lookahead, prompts, folder)
        asked = ours.survival or ()
        urls = {name: running.enter_context(server) for name, server in _servers(bench, lookahead, asked, folder)}
        client = Client(bench, machine, lookahead, urls, read_questions(prompts, Skips("stop")))
        await client.warm_up()
        proposer = folder / "simulated"
        draft_s, untrained_rows = await _draft_cost(client, proposer)
        _set(proposer, survival=asked, draft_s=[(load, max(0.0, seconds)) for load, seconds in draft_s])
        before = _counted(proposer)
        rows = {"none": [], "real": [], "simulated": []}
        for number, load in itertools.product(range(bench.rounds), bench.loads):
            for name in list(rows)[:: 1 if number % 2 else -1]:
                rows[name].append(await client.load(name, load))
            served.say(
                f"k = {lookahead}, {load} clients: "
                + ", ".join(f"{n} {of[-1].output_tok_s:.0f}" for n, of in rows.items())
            )
        drafts, unknown = (after - then for after, then in zip(_counted(proposer), before, strict=True))
    return Trial(
        lookahead=lookahead, ours=ours, draft_s=draft_s, unknown=unknown / drafts, rows=rows | {"untrained": untrained_rows}
    )  # fmt: skip


def _our_chain(bench: served.Bench, lookahead: int, prompts: Path, folder: Path) -> Observation:
    """What our own engine measures of the head."""
    served.foredraft(
        "measure", bench.target, "--draft", f"{draft_of(bench).folder}@{lookahead}", "--prompts", prompts, "--out", folder / "ours",
        "--way", "live", "--max-tokens", bench.new, "--no-stop", "--threads", bench.threads,
    )  # fmt: skip
    rows = records.read_lines(Observation, folder / "ours" / "observations.jsonl")
    return next(row for row in rows if row.method != "none")


def _servers(
    bench: served.Bench, lookahead: int, asked: Sequence[float], folder: Path
) -> Iterator[tuple[str, contextlib.AbstractContextManager[str]]]:
    accept, target = ",".join(map(str, asked)), str(bench.target)
    export(draft_of(bench).folder, bench.target, folder / "real", ExportSettings(lookahead=lookahead))
    simulate(draft_of(bench).folder, folder / "untrained", SimulateSettings(accept=accept), target=target)
    simulate(draft_of(bench).folder, folder / "simulated", SimulateSettings(accept=accept, cpu=True), target=target)
    launch = folder / "untrained" / "speculative_config.json"
    config = {key: value for key, value in json.loads(launch.read_bytes()).items() if key not in SYNTHETIC}
    records.write(launch, config)
    environment = vllm_server.environment(bench.python, bench.threads) | served.preload(bench.python)
    more = [
        "--dtype", bench.dtype, "--max-model-len", str(served.CONTEXT), "--no-enable-prefix-caching", "--max-num-seqs", str(max(LOADS)),
        "--uvicorn-log-level", "warning", *(["--enforce-eager"] if bench.eager else []),
    ]  # fmt: skip
    plain = [bench.python, "-m", "vllm.entrypoints.openai.api_server", "--model", bench.target]
    for name in ("none", "untrained", "simulated", "real"):
        served.say(f"starting vLLM: {name}, k = {lookahead}")
        command = plain if name == "none" else ["sh", folder / name / "serve.sh"]
        yield name, vllm_server.serving([*command, *more], environment, folder / f"{name}.log")


class Client:
    """Loads on the servers of a trial."""

    def __init__(
        self, bench: served.Bench, machine: Machine, lookahead: int, urls: Mapping[str, str], questions: list[Question]
    ) -> None:
        self.bench, self.machine, self.lookahead, self.urls, self.questions = bench, machine, lookahead, urls, questions

    async def load(self, name: str, load: int, new: int | None = None) -> Observation:
        setting = served.Setting(name, None if name == "none" else self.bench.published, self.lookahead)
        return await served.measured_load(
            self.bench, setting, self.machine, self.urls[name], self.questions, load, new or self.bench.new
        )

    async def warm_up(self) -> None:
        """Every server once at its largest batch; the proposer hears the answers, beyond their end as far as a step reaches."""
        for name in self.urls:
            await self.load(name, max(self.bench.loads), 8)
        for load in (max(self.bench.loads), *self.bench.loads[:LEARNING]):
            await self.load("simulated", max(load, 4), self.bench.new + self.lookahead + 1)


async def _draft_cost(client: Client, proposer: Path) -> tuple[tuple[tuple[float, float], ...], list[Observation]]:
    """Seconds of a draft's pass by load: steps of the untrained head less those of free drafts, with as little accepted."""
    rows: dict[str, list[Observation]] = {"untrained": [], "simulated": []}
    points = []
    for load in client.bench.loads:
        seconds = []
        for _ in range(min(COST_ROUNDS, client.bench.rounds)):
            row = await client.load("untrained", load)
            _set(proposer, survival=row.survival or (), draft_s=())
            rows["untrained"].append(row)
            rows["simulated"].append(await client.load("simulated", load))
            seconds.append((_step_s(row) - _step_s(rows["simulated"][-1])) / client.lookahead)
        points.append((float(load), float(np.mean(seconds))))
        served.say(f"k = {client.lookahead}, {load} clients: a draft's pass takes {1e3 * points[-1][1]:.2f} ms")
    return tuple(points), rows["untrained"]


def _step_s(row: Observation) -> float:
    """Of a request: seconds per token by tokens per step."""
    return (row.tpot_s or np.nan) * (row.tokens_per_step or np.nan)


def _set(proposer: Path, **changes: Any) -> None:
    """The running proposer's settings."""
    file = proposer / replay.SETTINGS
    records.write(file, json.loads(file.read_bytes()) | changes)


def _counted(proposer: Path) -> tuple[int, int]:
    """Drafts, and those that could not be as asked, up to a second ago."""
    file = proposer / replay.COUNTS
    counts = json.loads(file.read_bytes())
    return counts["drafts"], counts["unknown"]


# Figures.


def _figures(bench: served.Bench, machine: Machine, trials: Sequence[Trial]) -> dict[str, Any]:
    target, first, last = shapes.from_config(bench.target), trials[0].lookahead, trials[-1].lookahead
    rows = {"none": [row for trial in trials for row in trial.rows["none"]]}
    for trial in trials:
        rows |= {f"{name}@{trial.lookahead}": of for name, of in trial.rows.items() if name != "none"}
    ours, cells = [trials[-1].ours], [cell for trial in trials for cell in _cells(trial)]
    predictions = {
        known: served_figures.prediction(target, machine, bench.dtype, rows, ("none", known), ours)
        for known in (f"untrained@{first}", f"simulated@{last}")
    }
    for known, prediction in predictions.items():
        foreseen = {(cell["setting"], cell["load"]): cell["foreseen"] for cell in prediction["cells"]}
        for cell in cells:
            cell[f"predicted from none and {known}"] = foreseen.get((f"simulated@{cell['lookahead']}", cell["load"]))
    return {
        "conditions": served.conditions(bench, rows) | {"draft": bench.published, "learning_rounds": LEARNING},
        "asked": {trial.lookahead: trial.ours.survival for trial in trials},
        "reached": {trial.lookahead: {name: _survival(trial.rows[name]) for name in ("simulated", "real")} for trial in trials},
        "unknown": {trial.lookahead: trial.unknown for trial in trials},
        "draft_s": {trial.lookahead: trial.draft_s for trial in trials},
        "cells": cells,
        "simulated_against_real": _error(cells, "simulated", "real"),
        **{
            f"{name}_against_{of}": _error(cells, name, of)
            for name in (f"predicted from none and {known}" for known in predictions) for of in ("simulated", "real")
        },
    }  # fmt: skip


def _cells(trial: Trial) -> Iterator[dict[str, Any]]:
    table = {name: served_figures.speeds(rows) for name, rows in trial.rows.items()}
    for load in table["real"]:
        yield {"lookahead": trial.lookahead, "load": load} | {name: table[name].get(load) for name in trial.rows}


def _survival(rows: Sequence[Observation]) -> list[float]:
    """By position, of all steps."""
    steps = np.array([row.steps for row in rows if row.steps and row.survival], dtype=float)
    shares = np.array([row.survival for row in rows if row.steps and row.survival])
    return (steps @ shares / steps.sum()).tolist()


def _error(cells: Sequence[Mapping[str, Any]], name: str, of: str) -> dict[str, float] | None:
    """Mean and worst relative error of tokens/s, and the mean signed one."""
    ratios = [cell[name] / cell[of] - 1 for cell in cells if cell.get(name) and cell.get(of)]
    return (
        {"mean": float(np.mean(np.abs(ratios))), "worst": max(map(abs, ratios)), "bias": float(np.mean(ratios))}
        if ratios
        else None
    )


if __name__ == "__main__":
    main()
