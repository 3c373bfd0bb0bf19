"""Ours and its peers in one run: same checkpoint, prompts, precision and number of threads, in turn.

    python benchmarks/peers/run.py OUT.json [--quick] [--rounds N] [--minutes M] [--only PATTERN …]

A race is a checkpoint, a precision and a batch: every configuration (engine/method) answers the same prompts once a round, the order shifting with
each; ratios pair the times of a round. PATTERN is a regular expression on RACE/ENGINE/METHOD, such as 31m-float32-b1/openvino or b8. Races
that ran replace those of OUT.json, others stay. An engine's process is kept for the race, and stopped (SIGSTOP) while another runs. A time
during which strangers took more than FOREIGN of the machine is taken again, up to TRIES times; `foreign_most` is what was let pass.

Promises: all configurations get the same ids and settings (greedy, no end token, no prefix cache); tokens that differ are reported. Refuses to know:
how an engine works; that is its *_worker.py. Engines come from `make peers`; one whose venv is missing is named as not run.
"""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import figures
import machine
from checkpoints import NUM_PROMPTS, SIZES, Checkpoints, make

from foredraft.records import write

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
VENVS, BUILD = ROOT / ".venv-peers", ROOT / "build" / "peers"
METHODS = {
    "foredraft": ("plain", "self", "random", "ngram", "eagle3"),
    "transformers": ("plain", "self", "random", "ngram"),
    "openvino": ("plain", "self", "random", "ngram", "eagle3"),
    "vllm": ("plain", "self", "random", "ngram", "eagle3"),
}
KINDS = {"self": "draft_model", "random": "draft_model", "ngram": "ngram", "eagle3": "eagle3"}
LOOKAHEAD = {"self": 4, "random": 4, "ngram": 4, "eagle3": 3}
NOTES = {
    "all": "greedy; whole calls are timed, prompts included; drafts at batch 1 in float32; spreads are 5 to 95 % of rounds",
    "same_answers": "equal to transformers' plain decoding (of the first configuration where it did not run); in bfloat16 near-ties part engines",
    "self": "the target drafts for itself: always right",
    "random": "a random 2-layer draft: right by chance only",
    "eagle3": "an untrained head over a quarter of the vocabulary: right by chance only",
    "ngram": "prompt lookup of 3 tokens, then 2, then 1; the text repeats itself in part",
    "foredraft": "load_engine's defaults",
    "transformers": "generate's defaults: eager, dynamic cache, SDPA attention; drafts of fixed length",
    "openvino": "paged attention, caches in the precision of the weights",
    "vllm": "compiled, its default; engine in the caller's process",
}
NEW, ROUNDS = 96, 7
QUICK_NEW, QUICK_ROUNDS = 32, 2
CONTEXT, WARM = 256, 8
FOREIGN, TRIES = 0.08, 12


class Subjects(Protocol):
    """What engines run on."""

    def of(self, engine: str) -> dict[str, Any]:
        """The settings that an engine's worker gets beside those of the race: folders of target and drafts, and more of its own."""
        ...


class Race(NamedTuple):
    size: str
    dtype: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.dtype}-b{self.batch}"

    def configurations(self, patterns: list[re.Pattern[str]]) -> list[tuple[str, str]]:
        """(engine, method); drafts at batch 1 in float32 only."""
        drafted = self.batch == 1 and self.dtype == "float32"
        every = [(engine, method) for engine in METHODS for method in METHODS[engine] if drafted or method == "plain"]
        return [
            configuration
            for configuration in every
            if not patterns or any(p.search("/".join((self.name, *configuration))) for p in patterns)
        ]


RACES = [Race(size, dtype, batch) for size in SIZES for dtype in ("float32", "bfloat16") for batch in (1, NUM_PROMPTS)]


class Worker:
    """An engine's process, ready for its methods. Raises ValueError where it ends, with the last line of its log."""

    def __init__(self, race: Race, engine: str, methods: list[str], checkpoints: Subjects, threads: int) -> None:
        settings = {"context": CONTEXT, "lookahead": LOOKAHEAD, "kinds": KINDS} | checkpoints.of(engine)
        settings |= {"dtype": race.dtype, "batch": race.batch, "threads": threads, "methods": methods}
        self.log = BUILD / "logs" / f"{race.name}-{engine}-{'-'.join(methods)}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        python = python_of(engine)
        if not python.exists():
            raise ValueError(f"no {python.relative_to(ROOT)}; hint: make peers")
        self.process = subprocess.Popen(
            [python, HERE / f"{engine}_worker.py", json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open("w"), text=True, bufsize=1, env=environment,
        )  # fmt: skip
        ready = self._read()
        self.versions, self.failed = ready["versions"], ready["failed"]
        self.sleep()

    def sleep(self) -> None:
        """No thread spins and no loop polls beside the one that is timed."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def answer(self, method: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """The reply of a worker that is awake."""
        assert self.process.stdin
        print(json.dumps({"method": method, "prompts": prompts, "max_tokens": max_tokens}), file=self.process.stdin)
        reply = self._read()
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            errors = [text for text in self.log.read_text().splitlines() if "Error" in text] or ["ended without a word"]
            raise ValueError(f"{errors[-1].strip()} ({self.log.relative_to(ROOT)})")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def python_of(engine: str) -> Path:
    """Ours and transformers share this interpreter, as does what asks llama.cpp's server; others have theirs."""
    return (
        Path(sys.executable)
        if engine in ("foredraft", "transformers", "llama_cpp")
        else VENVS / engine / "bin" / "python"
    )


class Field:
    """The workers of a race, by configuration."""

    def __init__(self, race: Race, configurations: list[tuple[str, str]], checkpoints: Subjects, threads: int) -> None:
        self.workers: dict[tuple[str, str], Worker] = {}
        self.started: list[Worker] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.not_run: dict[str, str] = {}
        for engine, methods in _processes(configurations):
            _say(f"{race.name}: starting {engine} {' '.join(methods)}")
            try:
                self._enter(Worker(race, engine, methods, checkpoints, threads), engine, methods)
            except (OSError, ValueError) as error:
                for method in methods:
                    self.leave_out((engine, method), str(error))

    def _enter(self, worker: Worker, engine: str, methods: list[str]) -> None:
        self.started.append(worker)
        self.versions[engine] = worker.versions
        self.workers |= {(engine, method): worker for method in methods}
        for method, why in worker.failed.items():
            self.leave_out((engine, method), why)

    def leave_out(self, configuration: tuple[str, str], why: str) -> None:
        self.not_run["/".join(configuration)] = why
        self.workers.pop(configuration, None)
        _say(f"not run: {'/'.join(configuration)}: {why}")

    def answer(
        self, configuration: tuple[str, str], prompts: list[list[int]], max_tokens: int, timed: bool
    ) -> dict[str, Any]:
        """A configuration's reply; `timed`, the least disturbed of some."""
        worker = self.workers[configuration]
        worker.wake()
        try:
            return (self._timed if timed else Worker.answer)(worker, configuration[1], prompts, max_tokens)
        finally:
            worker.sleep()

    def _timed(self, worker: Worker, method: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        pids, replies = [os.getpid(), *machine.with_children(worker.process.pid)], []
        for attempt in range(TRIES):
            worker.answer(method, prompts, WARM)
            before = machine.Busy.read(pids)
            reply = worker.answer(method, prompts, max_tokens)
            replies.append(reply | {"foreign": machine.Busy.read(pids).foreign_since(before)})
            if replies[-1]["foreign"] <= FOREIGN:
                break
            time.sleep(min(0.5 * 2**attempt, 8))
        return min(replies, key=lambda reply: reply["foreign"])

    def end(self) -> None:
        for worker in self.started:
            worker.end()


def _processes(configurations: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """One process an engine; vLLM, whose engine has one method, one a configuration."""
    engines = dict.fromkeys(engine for engine, _ in configurations)
    together = {engine: [method for e, method in configurations if e == engine] for engine in engines}
    return [
        (engine, group)
        for engine, methods in together.items()
        for group in ([[method] for method in methods] if engine == "vllm" else [methods])
    ]


def run(
    race: Race, configurations: list[tuple[str, str]], checkpoints: Checkpoints, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One race to its end."""
    rounds, new = (QUICK_ROUNDS, QUICK_NEW) if arguments.quick else (arguments.rounds, NEW)
    field = Field(race, configurations, checkpoints, arguments.threads)
    try:
        replies = _rounds(race, field, checkpoints.prompts, rounds, new, arguments.minutes)
        described = machine.described(arguments.threads)
    finally:
        field.end()
    return {
        "arms": figures.configurations(replies, new, race.batch), "speed_over": figures.over_ours(replies),
        "speedup_over_own_plain": figures.over_plain(replies), "not_run": field.not_run, "versions": field.versions, "machine": described,
        "rounds": max(map(len, replies.values()), default=0), "new_tokens": new, "prompt_tokens": len(checkpoints.prompts[0]),
        "params_read": checkpoints.params_read, "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }  # fmt: skip


def _rounds(
    race: Race, field: Field, prompts: list[list[int]], rounds: int, new: int, minutes: float
) -> figures.Replies:
    """Replies of every configuration by round; a first, untimed round warms up and compiles what is compiled late."""
    replies: figures.Replies = {configuration: [] for configuration in field.workers}
    start = last = time.monotonic()
    for turn in range(-1, rounds):
        batch_prompts = prompts if race.batch > 1 else [prompts[turn % len(prompts)]]
        for configuration in _turned(list(field.workers), turn, rounds):
            try:
                reply = field.answer(configuration, batch_prompts, new, timed=turn >= 0)
            except (OSError, ValueError) as error:
                field.leave_out(configuration, str(error))
                del replies[configuration]
            else:
                replies[configuration] += [reply] if turn >= 0 else []
        clock = time.monotonic()
        _say(f"{race.name}: round {turn + 1} of {rounds}, {clock - last:.0f} s")
        if turn > 0 and clock - start + (clock - last) > minutes * 60:
            break
        last = clock
    return replies


def _turned(configurations: list[tuple[str, str]], turn: int, rounds: int) -> list[tuple[str, str]]:
    shift = max(turn, 0) * len(configurations) // rounds
    return configurations[shift:] + configurations[:shift]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="the first size, a few rounds of few tokens: does everything run?"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float, default=60, help="end the rounds of a race early, as far as they came")
    parser.add_argument("--only", nargs="+", type=re.compile, default=[], metavar="PATTERN")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    results = json.loads(options.out.read_text()) if options.out.exists() else {"races": {}}
    results["conditions"] = NOTES | {"lookahead": LOOKAHEAD}
    exporter = VENVS / "openvino-export" / "bin" / "python"
    for race in [race for race in RACES if not options.quick or race.size == RACES[0].size]:
        if configurations := race.configurations(options.only):
            checkpoints = make(race.size, BUILD, exporter if exporter.exists() else None)
            results["races"][race.name] = run(race, configurations, checkpoints, options)
            write(options.out, results)
            print(figures.table(race.name, results["races"][race.name]), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    main(sys.argv[1:])
