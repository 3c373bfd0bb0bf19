"""The zoo's EAGLE-3 head, as `deploy` exports it, in other runtimes: do they say what ours says, in as many steps?

    python benchmarks/runtimes.py openvino|llama-cpp OUT.json [--lookahead K] [--prompts N] [--venvs DIR] [--llama-cpp DIR]

The head is exported (--format hf), target and head are converted by the runtime's own converter, and prompts are asked of the target alone
and of both: greedy, float32, one at a time, token ids in and out. A step is a pass of the target behind the prompt's own, which gives
the first token undrafted there; ours begins behind that token. OpenVINO is also run with the hidden states of its own default.
OpenVINO comes from `make peers`, the needs of llama.cpp's converter from `make .venv-peers/llama-cpp/.ready`, llama.cpp as docs/deploy.md says.

Promises: the record holds the commands as they ran, programs by their names alone. Refuses to know: speed.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import vllm_server

from foredraft import records, text
from foredraft.data.prompts import Encoding, read_prompts
from foredraft.data.sources import Skips
from foredraft.decode.batch import Request
from foredraft.models.decoder import Decoder
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.heads import load_head

ROOT = Path(__file__).parents[1]
TARGET, DRAFT, PROMPTS, WORK = "zoo/tales-11m", "zoo/eagle3", "zoo/prompts.jsonl", "build/runtimes"
EXPORTED = f"{WORK}/head"
NUM_PROMPTS, NEW, CONTEXT = 12, 64, 512
END = frozenset({0})  # the zoo's end of text

# The converter knows a tokenizer by its hash. The zoo's is not among them, and splits words as GPT-2's does.
CONVERT = (
    "import runpy, conversion.base as base; base.TextModel.get_vocab_base_pre = lambda *_: 'gpt-2'; "
    "runpy.run_path('{source}/convert_hf_to_gguf.py', run_name='__main__')"
)
VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"

Answers = Sequence[Sequence[int]]


class Task(NamedTuple):
    """What every runtime is asked, and where it lies."""

    target: Decoder
    prompts: list[list[int]]
    lookahead: int
    venvs: Path
    llama_cpp: str


class DecodingRun(NamedTuple):
    """Answers, the steps of each behind its first token, and what was drafted and accepted in all, None where not told."""

    answers: Answers
    steps: list[int]
    drafted: int | None = None
    accepted: int | None = None


class RuntimeReport(NamedTuple):
    """A runtime's answers without and with the head, its versions, at what tokens it stops, and more of its own."""

    plain: Answers
    drafted: DecodingRun
    versions: dict[str, str]
    ends: frozenset[int]
    more: dict[str, Any]


class Commands:
    """Runs programs in the repository's root, and keeps what was run."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep(self, *words: str | Path) -> None:
        self.kept.append(shlex.join([Path(words[0]).name, *map(str, words[1:])]))

    def run(self, *words: str | Path, stdin: str = "", **environment: str) -> str:
        self.keep(*words)
        return _output(*words, stdin=stdin, **environment)


def _output(*words: str | Path, stdin: str = "", **environment: str) -> str:
    """What a program says. Raises SystemExit, one line, where there is none and where it fails."""
    name = Path(words[0]).name
    if not Path(words[0]).exists():
        raise SystemExit(f"no {words[0]}; hint: docs/deploy.md, Other runtimes, says how {name} is installed")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env = variables | {"HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(words, cwd=ROOT, input=stdin, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {((done.stderr or done.stdout).strip().splitlines() or ['no word'])[-1]}")
    return done.stdout or done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-peers", help="where make puts the environments")
    parser.add_argument(
        "--llama-cpp", default="build/llama.cpp", help="llama.cpp's source, with build/bin/llama-server"
    )
    arguments = parser.parse_args()
    out, venvs, commands = arguments.out.resolve(), arguments.venvs.resolve(), Commands()
    os.chdir(ROOT)
    target = text.load_engine(TARGET, max_batch=1, max_context=CONTEXT).target
    prompts = read_prompts(PROMPTS, Encoding(text.tokenizer_of(TARGET)), Skips("stop"))[: arguments.prompts]
    task = Task(target, [list(prompt.ids) for prompt in prompts], arguments.lookahead, venvs, arguments.llama_cpp)
    shutil.rmtree(WORK, ignore_errors=True)
    foredraft = Path(sys.executable).with_name("foredraft")
    deploy = ("deploy", DRAFT, "--target", TARGET, "--format", "hf", "--out", EXPORTED)
    commands.run(foredraft, *deploy, PYTHONPATH=str(ROOT / "src"))
    report = RUNTIMES[arguments.runtime](task, commands)
    record = _record(arguments.runtime, task, report) | {"commands": commands.kept}
    records.write(out, record)
    print(json.dumps(record, indent=1))


def openvino(task: Task, commands: Commands) -> RuntimeReport:
    """OpenVINO GenAI, which names the hidden states by the layers they leave; it counts passes with the prompt's."""
    exporter, python = (task.venvs / name / "bin" for name in ("openvino-export", "openvino"))
    target, head, other = (f"{WORK}/openvino/{name}" for name in ("target", "head", "default"))
    export = ("export", "openvino", "--task", "text-generation-with-past", "--weight-format", "fp32", "--model")
    commands.run(exporter / "optimum-cli", *export, TARGET, target)
    commands.run(exporter / "optimum-cli", *export, EXPORTED, "--trust-remote-code", head)
    shutil.copytree(ROOT / head, ROOT / other)
    draft_head = load_head(DRAFT, task.target)
    assert isinstance(draft_head, Eagle3Head)
    for folder, less in ((head, 1), (other, 0)):
        layers = " ".join(str(layer - less) for layer in draft_head.feature_layers)
        edit = f's|<eagle3_mode value="True" */>|&<hidden_layers_list value="{layers}" />|'
        commands.run(shutil.which("sed") or "sed", "-i", edit, f"{folder}/openvino_model.xml")
    settings = {
        "target": target, "drafts": {"stated": head, "default": other}, "dtype": "float32", "threads": os.cpu_count(), "batch": 1,
        "context": CONTEXT, "methods": ["plain", "stated", "default"], "lookahead": {"stated": task.lookahead, "default": task.lookahead},
    }  # fmt: skip
    requests = [{"method": method, "prompts": [ids], "max_tokens": NEW} for method in settings["methods"] for ids in task.prompts]  # fmt: skip
    stdin = "".join(json.dumps(request) + "\n" for request in requests)
    lines = commands.run(python / "python", "benchmarks/peers/openvino_worker.py", json.dumps(settings), stdin=stdin)
    ready, *replies = map(json.loads, lines.splitlines())
    for why in (*ready["failed"].values(), *(reply["error"] for reply in replies if "error" in reply)):
        raise SystemExit(f"openvino failed: {why}")
    n = len(task.prompts)
    configurations = (replies[i : i + n] for i in range(0, len(replies), n))
    runs = [
        DecodingRun([reply["answers"][0] for reply in configuration], [reply["steps"] - 1 for reply in configuration])
        for configuration in configurations
    ]
    versions = ready["versions"] | _versions(exporter / "python", "optimum-intel", "transformers", "torch")
    more = {"tokens_per_step_default_streams": _tokens_per_step(runs[2])}
    return RuntimeReport(runs[0].answers, runs[1], versions, frozenset(), more)


def llama_cpp(task: Task, commands: Commands) -> RuntimeReport:
    """llama.cpp's server, which counts what it drafted and accepted, and drafts no further than an answer's end."""
    python, source = task.venvs / "llama-cpp" / "bin" / "python", task.llama_cpp
    server = Path(source, "build", "bin", "llama-server")
    version = _output(server, "--version").splitlines()[0].removeprefix("version: ")
    target, head = f"{WORK}/target.gguf", f"{WORK}/head.gguf"
    for words in ((TARGET, "--outfile", target), (EXPORTED, "--target-model-dir", TARGET, "--outfile", head)):
        commands.run(python, "-c", CONVERT.format(source=source), *words, "--outtype", "f32", PYTHONPATH=source)
    plain = (server, "-m", target, "-c", str(CONTEXT), "-np", "1", "-ctk", "f32", "-ctv", "f32")
    drafts = ("-md", head, "--spec-type", "draft-eagle3", "--spec-draft-n-max", str(task.lookahead), "-ctkd", "f32", "-ctvd", "f32")  # fmt: skip
    alone, both = (_served(task, commands, words) for words in (plain, (*plain, *drafts)))
    drafted, accepted = ([reply["timings"][name] for reply in both] for name in ("draft_n", "draft_n_accepted"))
    answers = [reply["tokens"] for reply in both]
    steps = [len(answer) - 1 - num for answer, num in zip(answers, accepted, strict=True)]
    versions = {"llama.cpp": version} | _versions(python, "transformers", "torch")
    run = DecodingRun(answers, steps, sum(drafted), sum(accepted))
    return RuntimeReport([reply["tokens"] for reply in alone], run, versions, END, {})


def _served(task: Task, commands: Commands, words: Sequence[str | Path]) -> list[dict[str, Any]]:
    """A server's replies to the prompts, in turn."""
    commands.keep(*words)
    replies = []
    with vllm_server.serving(words, os.environ, Path(WORK, "llama-server.log")) as url:
        for ids in task.prompts:
            body = {"prompt": ids, "n_predict": NEW, "temperature": 0, "cache_prompt": False, "return_tokens": True}
            sent = urllib.request.Request(
                f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(sent, timeout=300) as reply:
                replies.append(json.load(reply))
    return replies


def _versions(python: Path, *names: str) -> dict[str, str]:
    return dict(zip(names, _output(python, "-c", VERSIONS, *names).split(), strict=True))


RUNTIMES = {"openvino": openvino, "llama-cpp": llama_cpp}


def _ours(task: Task, ends: frozenset[int]) -> tuple[Answers, DecodingRun]:
    """Our engine's answers: the target's alone, and with the head behind the first token of those."""
    alone = text.engine_on(task.target, max_batch=1, max_context=CONTEXT)
    requests = [Request(prompt=tuple(ids), max_tokens=NEW, stop_ids=ends) for ids in task.prompts]
    plain = [sequence.answer for sequence in alone.generate(requests)]
    engine = text.engine_on(task.target, DRAFT, lookahead=task.lookahead, max_batch=1, max_context=CONTEXT)
    begun = [
        engine.add(Request(prompt=(*request.prompt, answer[0]), max_tokens=NEW - 1, stop_ids=ends))
        for request, answer in zip(requests, plain, strict=True)
    ]
    drafted = sum(sum(step.drafted) for step in engine.run())
    answers = [[answer[0], *sequence.answer] for answer, sequence in zip(plain, begun, strict=True)]
    steps = [sequence.steps for sequence in begun]
    return plain, DecodingRun(answers, steps, drafted, sum(map(len, answers)) - len(answers) - sum(steps))


def _record(runtime: str, task: Task, report: RuntimeReport) -> dict[str, Any]:
    """Theirs beside ours."""
    plain, our_run = _ours(task, report.ends)
    record: dict[str, Any] = {
        "runtime": runtime, "versions": report.versions, "target": Path(TARGET).name, "draft": Path(DRAFT).name, "dtype": "float32",
        "answers": len(task.prompts), "new_tokens": NEW, "lookahead": task.lookahead,
        "same_with_and_without_head": _same(report.plain, report.drafted.answers), "same_as_ours": _same(plain, report.drafted.answers),
        "same_steps_as_ours": sum(a == b for a, b in zip(report.drafted.steps, our_run.steps, strict=True)),
    }  # fmt: skip
    for name, run in (("", report.drafted), ("_ours", our_run)):
        record |= {f"steps{name}": sum(run.steps), f"tokens_per_step{name}": _tokens_per_step(run)}
        if report.drafted.drafted is not None:
            record |= {f"drafted{name}": run.drafted, f"accepted{name}": run.accepted}
    return record | report.more


def _same(first: Answers, second: Answers) -> int:
    return sum(list(answer) == list(other) for answer, other in zip(first, second, strict=True))


def _tokens_per_step(run: DecodingRun) -> float:
    return sum(len(answer) - 1 for answer in run.answers) / sum(run.steps)


if __name__ == "__main__":
    main()
