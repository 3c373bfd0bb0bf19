"""The zoo's drafts on vLLM's own server: acceptance there and here, tokens/s under load, and what was predicted of both.

    python benchmarks/served.py OUT.json [--quick] [--only PATTERN] [--rounds N] [--dtype D] [--threads N] [--eager] [--python PATH]

Three questions. Acceptance: each draft's chain by vLLM (float32), by our engine, and our tree, on the same prompts. Throughput: no
speculation, EAGLE-2 and Scylla at fixed lookaheads, and Scylla with the planner's schedule, each under every concurrency. Prediction: the
cost law, calibrated on no speculation and one lookahead, against the other cells; the schedule against each fixed lookahead.

A setting is a server, in turn with one of the bare target, whose tokens/s are thus known over the whole run: they swing most. What a setting
gave lies in the folder OUT/ and is not measured again (delete its file to repeat it). PATTERN is a regular expression on settings, such as
scylla@ or accept. The planner sees what its user would: one lookahead, no speculation beside it, and our own engine's acceptance. Times mean
something on a quiet machine only; on two cores, --threads 1 leaves one to the client. vLLM comes from `make peers` or `make test-engine`.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import served_figures
import vllm_server

from foredraft import kinds, records, shapes
from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.deploy.export import ExportSettings, export
from foredraft.measure.endpoint import LoadSettings, OfferedLoad, one_round, started
from foredraft.measure.endpoint_http import address_of
from foredraft.measure.endpoint_rows import base_of, rows_of
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.records import Machine, Observation, Plan, Workload

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "zoo"
TARGET, PROMPTS = ZOO / "tales-11m", ZOO / "prompts.jsonl"
PYTHON = ROOT / ".venv-peers" / "vllm" / "bin" / "python"

DRAFTS = {
    "lm": ("draft_model", 1),
    "eagle2": ("eagle", 1),
    "eagle3": ("eagle3", 1),
    "scylla-L2": ("eagle", 2),
}  # method, layers
EAGLE, SCYLLA = "eagle2", "scylla-L2"
PUBLISHED = 5  # draft passes of EAGLE-2 as its authors' code sets them (depth=5), and SGLang for Llama; their tree is a chain in vLLM
CHAIN = 5  # lookahead at which acceptance is compared
TREES = ("5,4,16", "5,10,60")  # ours: as wide as pays here, and as EAGLE-2 is published
LOOKAHEADS = (1, 2, 3, PUBLISHED)
PLANNED = "planned"
NONE = "none"
KNOWN = f"{SCYLLA}@{max(LOOKAHEADS)}"  # calibrated on beside none, so that the others lie between what was seen
LOADS, QUICK_LOADS = (1, 2, 4, 8, 16, 32), (1, 4)
NEW, QUICK_NEW = 96, 24
CONTEXT = 512
COMMAND = "python benchmarks/served.py"


class Setting(NamedTuple):
    """A server: its draft, None for plain decoding; its lookahead, None as planned; whether it is there for acceptance alone."""

    name: str
    draft: str | None = None
    lookahead: int | None = None
    accept: bool = False


ACCEPT = [Setting(f"accept-{draft}", draft, CHAIN, True) for draft in DRAFTS]
FIXED = [Setting(f"{draft}@{k}", draft, k) for draft in (SCYLLA, EAGLE) for k in LOOKAHEADS]
SETTINGS = [
    *ACCEPT, *sorted(FIXED, key=lambda setting: setting.name != KNOWN), Setting(PLANNED, SCYLLA),
]  # fmt: skip
QUICK = (f"accept-{SCYLLA}", KNOWN, f"{SCYLLA}@2", f"{EAGLE}@{PUBLISHED}", PLANNED)


class Bench(NamedTuple):
    """How everything is measured."""

    folder: Path
    python: Path
    dtype: str
    threads: int
    eager: bool
    rounds: int
    loads: tuple[int, ...]
    new: int

    def of(self, setting: str) -> Path:
        return self.folder / f"{setting}.jsonl"


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server under way is ended too
    out = Path(arguments.out)
    bench = Bench(
        out.with_suffix(""), arguments.python, arguments.dtype, arguments.threads, arguments.eager or arguments.quick,
        1 if arguments.quick else arguments.rounds,
        QUICK_LOADS if arguments.quick else LOADS, QUICK_NEW if arguments.quick else NEW,
    )  # fmt: skip
    if not bench.python.is_file():
        raise SystemExit(f"no {bench.python}; hint: make peers, or --python PATH")
    machine = machine_here(bench)
    for draft in DRAFTS:
        _measure_ours(bench, draft)
    names = [setting.name for setting in SETTINGS if not arguments.quick or setting.name in QUICK]
    for setting in SETTINGS:
        if setting.name in names and re.search(arguments.only, setting.name) and not bench.of(setting.name).is_file():
            records.write_lines(bench.of(setting.name), _measured(bench, setting, machine))
            say(f"wrote {bench.of(setting.name)}")
    rows = {setting.name: _rows(bench.of(setting.name)) for setting in SETTINGS if bench.of(setting.name).is_file()}
    our_rows = {draft: _rows(bench.of(f"own-{draft}")) for draft in DRAFTS}
    _write(out, bench, machine, rows, our_rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--quick", action="store_true", help="few settings, loads and tokens, to try it")
    parser.add_argument("--only", default="", help="settings to measure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", help="of throughput; acceptance is in float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--eager", action="store_true", help="vLLM without its compiler")
    parser.add_argument("--python", type=Path, default=PYTHON, help="vLLM's interpreter")
    return parser.parse_args()


def _write(
    out: Path,
    bench: Bench,
    machine: Machine,
    rows: dict[str, list[Observation]],
    our_rows: dict[str, list[Observation]],
) -> None:
    """All that was measured as observations, and the figures."""
    records.write_lines(
        bench.folder / "observations.jsonl.gz", [row for of in (*our_rows.values(), *rows.values()) for row in of]
    )
    target = shapes.from_config(TARGET)
    figures = {"conditions": conditions(bench, rows), "acceptance": served_figures.acceptance(our_rows, rows)}
    speeds = _by_setting({name: of for name, of in rows.items() if not name.startswith("accept-")})
    figures["throughput"] = served_figures.throughput(speeds, f"{EAGLE}@{PUBLISHED}", PLANNED)
    if KNOWN in speeds:
        fixed = {name: of for name, of in speeds.items() if name == NONE or name.startswith(f"{SCYLLA}@")}
        figures["prediction"] = served_figures.prediction(
            target, machine, bench.dtype, fixed, (NONE, KNOWN), our_rows[SCYLLA]
        )
    if PLANNED in speeds:
        schedule_plan = records.read(Plan, bench.folder / "Plan.json")
        figures["schedule"] = served_figures.schedule(schedule_plan, speeds, PLANNED, f"{SCYLLA}@")
    records.write(out, msgspec.to_builtins(figures, str_keys=True))
    say(f"wrote {out}, {bench.folder / 'observations.jsonl.gz'}")


def _by_setting(rows: dict[str, list[Observation]]) -> dict[str, list[Observation]]:
    """No speculation apart, as it was measured beside every setting."""
    drafted = {name: [row for row in of if row.method != "none"] for name, of in rows.items()}
    return {NONE: [row for of in rows.values() for row in of if row.method == "none"]} | drafted


def conditions(bench: Bench, rows: dict[str, list[Observation]]) -> dict[str, Any]:
    versions = next((row.provenance.versions for of in rows.values() for row in of), {})
    return {
        "target": TARGET.name, "prompts": PROMPTS.name, "new_tokens": bench.new, "rounds": bench.rounds, "dtype": bench.dtype,
        "threads": bench.threads, "eager": bench.eager, "loads": bench.loads, "versions": versions,
        "preloaded": [Path(path).name for path in preload(bench.python).values()],
        "prefix_cache": False, "requests": {str(load): _num_requests(load) for load in bench.loads},
    }  # fmt: skip


# Ours.


def machine_here(bench: Bench) -> Machine:
    """This machine as `foredraft probe` sees it, once."""
    file = bench.folder / "machine.json"
    if not file.is_file():
        foredraft("probe", "--out", file, "--threads", bench.threads)
    return records.read(Machine, file)


def _measure_ours(bench: Bench, draft: str) -> None:
    """Our engine's chain, at the longest lookahead too, and its trees."""
    if bench.of(f"own-{draft}").is_file():
        return
    specs = [f"{CHAIN}", "8", *(TREES if draft != "lm" else TREES[:1])]
    with tempfile.TemporaryDirectory() as folder:
        foredraft(
            "measure", TARGET, "--prompts", PROMPTS, "--out", folder, "--way", "live", "--max-tokens", bench.new, "--no-stop",
            "--threads", bench.threads, *(word for spec in specs for word in ("--draft", f"{ZOO / draft}@{spec}")),
        )  # fmt: skip
        rows = _rows(Path(folder) / "observations.jsonl")
    records.write_lines(bench.of(f"own-{draft}"), [_by_us(row) for row in rows if row.method != "none"])


def _by_us(row: Observation) -> Observation:
    """With this script as its command, in place of one with passing folders."""
    return msgspec.structs.replace(row, provenance=msgspec.structs.replace(row.provenance, command=COMMAND))


def foredraft(*words: object) -> None:
    say("foredraft " + " ".join(map(str, words[:2])))
    subprocess.run([sys.executable, "-m", "foredraft", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _plan(bench: Bench, machine: Machine) -> Plan:
    """Scylla's schedule, from the settings of CALIBRATION and our own engine's acceptance."""
    if not bench.of(KNOWN).is_file():
        raise SystemExit(f"{PLANNED} needs {KNOWN}: leave out --only, or measure it first")
    known_rows = _rows(bench.of(KNOWN))
    chains = [row for row in _rows(bench.of(f"own-{SCYLLA}")) if (row.topk or 1) == 1]
    target = shapes.from_config(TARGET)
    workload = Workload(
        input_len=_mean(row.input_len for row in known_rows), output_len=_mean(row.output_len for row in known_rows), concurrency=bench.loads
    )  # fmt: skip
    head = kinds.EAGLE.shape(target, DRAFTS[SCYLLA][1])
    schedule_plan = plan(
        target, machine, workload, PlanSettings(engine="vllm", dtype=bench.dtype), [*known_rows, *chains], head
    )
    records.write(bench.folder / "Plan.json", schedule_plan)
    return schedule_plan


def _mean(values: Iterable[float | None]) -> float:
    known_values = [value for value in values if value is not None]
    return sum(known_values) / len(known_values)


# vLLM's.


def _measured(bench: Bench, setting: Setting, machine: Machine) -> list[Observation]:
    """A row for each round and load of a setting, and of the bare target in turn."""
    environment = vllm_server.environment(bench.python, bench.threads) | preload(bench.python)
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        settings = [setting] if setting.accept else [Setting(NONE), setting]
        urls = []
        for load_setting in settings:
            say(f"starting vLLM: {load_setting.name}")
            command = _command(bench, load_setting, machine, folder)
            urls.append(
                running.enter_context(vllm_server.serving(command, environment, folder / f"{load_setting.name}.log"))
            )
        return asyncio.run(_loads(bench, list(zip(settings, urls, strict=True)), machine))


def preload(python: Path) -> dict[str, str]:
    """Intel's OpenMP, without which vLLM warns of slow speculation, where its environment has it."""
    library = python.parents[1] / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library)} if library.is_file() else {}


def _command(bench: Bench, setting: Setting, machine: Machine, folder: Path) -> list[str | Path]:
    """The draft's own serve.sh, or the bare server."""
    dtype = "float32" if setting.accept else bench.dtype
    more: list[str | Path] = [
        "--dtype", dtype, "--max-model-len", str(CONTEXT), "--no-enable-prefix-caching", "--max-num-seqs", str(max(LOADS)),
        "--uvicorn-log-level", "warning", *(["--enforce-eager"] if bench.eager or setting.accept else []),
    ]  # fmt: skip
    if setting.draft is None:
        return [bench.python, "-m", "vllm.entrypoints.openai.api_server", "--model", TARGET, *more]
    schedule_plan = _plan(bench, machine) if setting.lookahead is None else None
    if schedule_plan is not None and "vllm" not in schedule_plan.settings:
        raise SystemExit("the plan speculates at no load: there is no schedule to serve")
    export(
        ZOO / setting.draft,
        TARGET,
        folder / "draft",
        ExportSettings(lookahead=setting.lookahead or 1),
        plan=schedule_plan,
    )
    if setting.accept:
        more += ["--per-request-spec-decode-metrics", "summary"]
    return ["sh", folder / "draft" / "serve.sh", *more]


def _num_requests(load: int) -> int:
    """So many that the load's beginning and end weigh little."""
    return max(16, 4 * load)


async def _loads(bench: Bench, servers: list[tuple[Setting, str]], machine: Machine) -> list[Observation]:
    """Of one server its acceptance; of two every load, on each in turn, and the gain of the second over the first."""
    questions = read_questions(PROMPTS, Skips("stop"))
    for setting, url in servers:
        await measured_load(
            bench, setting, machine, url, questions, 1 if setting.accept else max(bench.loads), 8
        )  # warms up
    if len(servers) == 1:
        ((setting, url),) = servers
        return [await measured_load(bench, setting, machine, url, questions, 1, bench.new)]
    rows = []
    for number in range(bench.rounds):
        for load in bench.loads:
            pair = {}
            for setting, url in servers[:: 1 if number % 2 else -1]:
                pair[setting.name] = await measured_load(bench, setting, machine, url, questions, load, bench.new)
            bare, drafted = (pair[setting.name] for setting, _ in servers)
            if drafted.output_tok_s and bare.output_tok_s:
                drafted = msgspec.structs.replace(drafted, speedup=drafted.output_tok_s / bare.output_tok_s)
                say(
                    f"{servers[1][0].name}, concurrency {load}: {drafted.output_tok_s:.0f} tokens/s, × {drafted.speedup:.2f}"
                )
            rows += [bare, drafted]
    return rows


async def measured_load(
    bench: Bench, setting: Setting, machine: Machine, url: str, questions: list[Question], load: int, new: int
) -> Observation:
    """One load's row, with what the server cannot tell."""
    num = len(questions) if setting.accept else _num_requests(load)
    requested = [questions[i % len(questions)] for i in range(num)]
    settings = LoadSettings(concurrency=(load,), max_tokens=new, stop=False)
    async with started(address_of(url), requested, settings) as running:
        round = await one_round(running, settings, OfferedLoad(0.0, concurrency=load))
    fields = {"machine": machine.name, "dataset": PROMPTS.stem, "command": COMMAND}
    if setting.draft:
        fields |= {
            "draft": setting.draft,
            "method": DRAFTS[setting.draft][0],
            "draft_layers": DRAFTS[setting.draft][1],
        }
    load_rows = rows_of(round, base_of(running.server, round, fields), 0.1)
    if round.failures:
        raise SystemExit(f"{setting.name}: {load_rows.warnings}")
    for warning in load_rows.warnings:
        say(f"warning: {setting.name}: {warning}")
    return msgspec.structs.replace(load_rows.rows[0].observation, dtype="float32" if setting.accept else bench.dtype)


def _rows(file: Path) -> list[Observation]:
    return records.read_lines(Observation, file)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
