"""All that a GPU is needed for, in one command of a few minutes on a bare machine with an NVIDIA GPU, torch and transformers.

    python benchmarks/gpu/run.py --out OUT --target MODEL.gguf --grid recipes/smollm2/kinds.json --data DATA [--site DIR] [--minutes 8]

Steps, each in a process of its own with its own time; what it knows it writes at once to OUT/STEP.json, what it says to OUT/STEP.log:
    rates    the device's ceilings: copy, triad, matrix products
    checks   tests/gpu
    decode   plain, chain and tree decoding against transformers, of the target and of a random Llama of 1 B parameters
    train    tokens per second and MFU of a 100 M model and of an EAGLE-3 head
    answers  the target's answers to DATA's prompts
    grid     the document's drafts, all kinds at the same tokens, until the time is spent
A step that fails or runs out of time is recorded with its last lines, and the others go on. See README.md beside this for what must
lie beside it, what comes back, and where the time goes.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src")]

from parcels import join, pack, use_site  # noqa: E402

# Share of the whole time that a step may take at most; the last takes what is left.
SHARES = {"rates": 0.06, "checks": 0.15, "decode": 0.32, "train": 0.17, "answers": 0.2, "grid": 1.0}
RESERVE_S, GRACE_S, POLL_S = 8.0, 8.0, 0.1
PACKED_FIRST = ("recipe.json", "metrics.jsonl", "done.json")


def options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What needs a GPU, in one command; see the file's head and README.md.")
    parser.add_argument("--out", type=Path, required=True, help="folder for STEP.json and STEP.log")
    parser.add_argument("--work", type=Path, help="folder for what need not come back (default: a temporary one)")
    parser.add_argument("--steps", default=",".join(SHARES), help="comma-separated, in this order")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="everything in miniature, its inputs made on the spot")
    parser.add_argument("--target", type=Path, help="a Hugging Face folder or a GGUF file")
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        default=[],
        metavar="PART",
        help="parts of --target, joined by their names' order",
    )
    parser.add_argument(
        "--draft", type=Path, action="append", default=[], help="a trained draft of the target, to be timed too; repeat"
    )
    parser.add_argument("--grid", type=Path, help="a sweep document")
    parser.add_argument("--data", type=Path, help="folder of what the document's paths name last")
    parser.add_argument("--workers", type=int, default=8, help="trainings at once")
    parser.add_argument("--site", type=Path, help="folder of packages or wheels that this Python lacks")
    parser.add_argument("--pack", type=Path, help="folder for all results in one archive, in parts of 15 MiB")
    parser.add_argument(
        "--pack-mib", type=float, default=58.0, help="of the archive at most; the most worthwhile first"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Number of steps that are not done."""
    began, given = time.monotonic(), options(words)
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.work or Path(mkdtemp(prefix="foredraft-gpu-"))
    work.mkdir(parents=True, exist_ok=True)
    beside = use_site(given.site, work) if given.site else []
    paths = [str(ROOT / "src"), *beside, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of the processes that steps start
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    steps = [name for name in SHARES if name in given.steps.split(",")]
    unknown = set(given.steps.split(",")) - set(SHARES)
    if unknown or not steps:
        raise SystemExit(f"error: --steps must be of {', '.join(SHARES)}; got {given.steps}")
    settings = settings_of(given, work)
    total, states = given.minutes * 60, {}
    for name in steps:
        left = total - (time.monotonic() - began) - RESERVE_S
        budget = left if name == steps[-1] else min(SHARES[name] * total, left)
        states[name] = run_step(name, settings, budget) if budget > 1 else {"state": "not begun", "seconds": 0.0}
        print(f"{name}: {states[name]['state']} after {states[name]['seconds']:.0f} s", flush=True)
    summary = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1), "minutes": given.minutes,
        "small": given.small, "device": given.device, "steps": states, "driver": driver_version(given.device),
    }  # fmt: skip
    summary |= packed(given, settings) if given.pack else {}
    write_summary(given, summary)
    print(last_line(states))
    return sum(state["state"] != "done" for state in states.values())


def settings_of(given: argparse.Namespace, work: Path) -> Any:
    """The command line as the steps take it; in miniature, inputs that are made here."""
    from bench import Settings

    inputs: dict[str, Any] = {"target": target_of(given, work), "grid": given.grid, "data": given.data}
    if given.small:
        if forked(lambda: make_miniature(work)):
            raise SystemExit("error: the miniature's inputs could not be made")
        made = {"target": work / "tiny-target", "data": work / "tiny-data", "grid": work / "tiny-grid.json"}
        inputs = {name: value or made[name] for name, value in inputs.items()}
    return Settings(
        out=given.out, work=work, device=given.device, small=given.small, drafts=tuple(given.draft),
        workers=given.workers, **inputs,
    )  # fmt: skip


def make_miniature(work: Path) -> None:
    from miniature import miniature

    miniature(work)


def target_of(given: argparse.Namespace, work: Path) -> Path | None:
    """The target's folder; a GGUF file is converted, which takes seconds."""
    target = join(given.join, work / (given.target or Path("target.gguf")).name) if given.join else given.target
    if target is None or target.is_dir():
        return target
    folder = work / target.stem.split(".")[0]
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "foredraft", "convert", str(target), str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (given.out / "convert.log").write_text(done.stdout)
        if done.returncode:
            print(
                f"the target could not be converted, so that what needs it will not be done: {done.stdout.strip()[-300:]}"
            )
            return None
    return folder


# A step


def forked(task: Callable[[], object]) -> int:
    """Do it in a process forked from this one, in which no thread has ever computed, and wait; its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        task()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_step(name: str, settings: Any, budget: float) -> dict[str, Any]:
    """Run a step in a process forked from this one, which has never touched the GPU; end it when its time is spent."""
    import msgspec
    import torch  # noqa: F401  so that no step spends its time on it

    began, path = time.monotonic(), settings.out / f"{name}.json"
    path.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_work(name, settings, budget))
    ended = _waited(child, budget)
    record = (
        msgspec.json.decode(path.read_bytes())
        if path.is_file()
        else {"state": "failed", "error": ["it left no record"]}
    )
    if record["state"] == "running":
        record["state"] = "its process ended" if ended else "stopped: its time was spent"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return {
        "state": record["state"],
        "seconds": round(time.monotonic() - began, 1),
        "error": (record.get("error") or [None])[-1],
    }


def _work(name: str, settings: Any, budget: float) -> int:
    """In the child: the step, its output in its log."""
    os.setsid()
    log = os.open(settings.out / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from bench import Step

    step = Step(name, settings, budget)
    try:
        work(name)(step)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        step.end(error)
        code = 1
    else:
        step.end()
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def work(name: str) -> Callable[[Any], None]:
    """The step's function; imported here, where a failure is the step's own."""
    import importlib

    modules = {
        "rates": "rates",
        "checks": "checks",
        "decode": "decoding",
        "train": "training",
        "answers": "answers",
        "grid": "drafts",
    }
    return importlib.import_module(modules[name]).run


def _waited(child: int, budget: float) -> bool:
    """Wait for the child; False where it had to be ended."""
    until = time.monotonic() + budget
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            os.killpg(child, number)
            until = time.monotonic() + GRACE_S
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return number is None
            time.sleep(POLL_S)
    os.waitpid(child, 0)
    return False


# What comes back


def packed(given: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """All records and logs, the drafts that are done, in the order of the document, then the answers."""
    import msgspec

    entries = [(path, path.name) for path in sorted(given.out.iterdir()) if path.is_file()]
    drafts = sorted((settings.work / "drafts").glob("*/done.json"), key=lambda path: path.stat().st_mtime)
    drafts = [path.parent for path in drafts]
    if given.grid:
        order = list(msgspec.json.decode(given.grid.read_bytes()).get("cells", {}))
        drafts.sort(key=lambda folder: order.index(folder.name) if folder.name in order else len(order))
    entries += [(path, f"drafts/{folder.name}/{path.name}") for folder in drafts for path in packed_first(folder)]
    for folder in drafts:
        files = sorted(
            path for path in (folder / "final").rglob("*") if path.is_file() and path.name != "tokenizer.json"
        )
        entries += [(path, f"drafts/{folder.name}/{path.relative_to(folder)}") for path in files]
    answers = sorted(settings.work.glob("answers-t*.jsonl"))
    entries += [(path, path.name) for path in answers if not path.name.endswith("-prompts.jsonl")]
    parts, left = pack(entries, given.pack, int(given.pack_mib * 2**20))
    return {"packed": [part.name for part in parts], "left_out_of_the_archive": left}


def packed_first(folder: Path) -> list[Path]:
    return [path for name in PACKED_FIRST if (path := folder / name).is_file()]


def write_summary(given: argparse.Namespace, summary: dict[str, Any]) -> None:
    from foredraft import records

    for folder in filter(None, (given.out, given.pack)):
        records.write(folder / "run.json", summary)


def driver_version(device: str) -> str | None:
    if device != "cuda":
        return None
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def last_line(states: dict[str, dict[str, Any]]) -> str:
    done = [name for name, state in states.items() if state["state"] == "done"]
    others = [
        f"{name} ({state['state']}{': ' + state['error'] if state.get('error') else ''})"
        for name, state in states.items()
        if name not in done
    ]
    return f"done: {', '.join(done) or 'nothing'}; not done: {'; '.join(others) or 'nothing'}"


if __name__ == "__main__":
    sys.exit(min(main(), 1))
