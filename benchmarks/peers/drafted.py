"""Trained drafts on our engine and on the others that run them, on real prompts: tokens/s and acceptance, each against its own plain decoding.

    python benchmarks/peers/drafted.py OUT.json [--target DIR] [--draft NAME=DIR …] [--prompts FILE] [--num N] [--ours "SPEC …"]
        [--lookaheads 2,3,4,5] [--dtypes float32,bfloat16] [--only PATTERN] [--threads N] [--gguf FILE] [--llama-cpp DIR] [--quick]

Ours runs plain, prompt lookup and what --ours names (scylla-L2@4,4,8); the others plain, prompt lookup where they have it, and the drafts that they
load as `deploy` exports them, at every lookahead: vLLM all heads, OpenVINO and llama.cpp EAGLE-3, llama.cpp also on its own weights in 4 and 8
bits (FILE, and as it converts the target). By turns each answers one prompt, as many tokens as the target's own greedy answer has and at most
NEW, whatever it writes: greedy, ids in and out, prompts included. A time is taken as run.py takes it. What was exported is kept below
build/peers and made anew for other weights. OpenVINO and vLLM come from `make peers`, llama.cpp as docs/guides/runtimes.md says; what lacks is named
under `not_run`.

`tok_s` are pooled over prompts with their interval over these; `over_plain`: over the same engine's plain decoding; `ours_over`: our fastest over
each engine's fastest, which is chosen as it was measured, to the others' favour. `same_answers`: equal to our plain decoding's in the same
precision. `tokens_per_step`: the other engines draft nothing for an answer's first token, ours does.
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
from run import BUILD, ROOT, VENVS, Field, Race

sys.path.append(str(Path(__file__).parents[1]))

import zoo_drafts
from zoo_drafts import Draft

from foredraft import records, text
from foredraft.data.prompts import Encoding, Prompt, read_prompts
from foredraft.data.sources import Skips
from foredraft.decode.batch import Request
from foredraft.deploy.export import ExportSettings, export
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.heads import load_head
from foredraft.models.load import load
from foredraft.serving.bootstrap import figure

ENGINES = ("foredraft", "vllm", "openvino", "llama_cpp")
QUANTISED = {"q8_0": "Q8_0", "q4_1": "Q4_1"}  # llama.cpp's own weights; the second as its file comes
NEW, QUICK_NEW, CONTEXT, LOOKUP = 64, 16, 1024, 5
GGUF = zoo_drafts.TARGET.parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
# The converter knows tokenizers by their hashes, and ids alone are asked for: which one it takes the tokenizer for is no matter.
CONVERT = (
    "import runpy, conversion.base as base; base.TextModel.get_vocab_base_pre = lambda *_: 'smollm'; "
    "runpy.run_path('{source}/convert_hf_to_gguf.py', run_name='__main__')"
)

Replies = dict[tuple[str, str], list[dict[str, Any]]]  # by engine and method, a reply for each prompt


class Exports(NamedTuple):
    """What the engines load in one precision, made where it is not there."""

    folder: Path
    target: Path
    drafts: dict[str, Draft]
    lookaheads: tuple[int, ...]
    ours: tuple[str, ...]
    dtype: str
    gguf: Path
    llama_cpp: Path

    def of(self, engine: str) -> dict[str, Any]:
        """Settings of an engine's worker."""
        specs = {spec: self._placed(spec) for spec in (*self.ours, f"ngram@{LOOKUP}")} if engine == "foredraft" else {}
        drafted = self.drafted(engine)
        kinds = {f"{name}@{k}": self.drafts[name].method for name, k in drafted} | {f"ngram@{LOOKUP}": "ngram"}
        lookahead = {f"{name}@{k}": k for name, k in drafted} | {f"ngram@{LOOKUP}": LOOKUP}
        settings: dict[str, Any] = {
            "context": CONTEXT,
            "kinds": kinds,
            "lookahead": lookahead,
            "specs": specs,
            "target": str(self.target),
            "drafts": {},
        }
        if engine == "llama_cpp":
            return settings | self._ggufs(drafted)
        if engine == "openvino":
            settings["target"] = str(self._openvino(None))
        placed = {"vllm": self._vllm, "openvino": self._openvino}.get(engine)
        return settings | (
            {"drafts": {f"{name}@{k}": str(placed(self.drafts[name])) for name, k in drafted}} if placed else {}
        )

    def methods(self, engine: str) -> list[str]:
        if engine == "foredraft":
            return ["plain", f"ngram@{LOOKUP}", *self.ours]
        drafted = [f"{name}@{k}" for name, k in self.drafted(engine)]
        if engine != "llama_cpp":
            return ["plain", f"ngram@{LOOKUP}", *drafted]
        return ["plain", *drafted, *(f"plain-{bits}" for bits in QUANTISED)]

    def drafted(self, engine: str) -> list[tuple[str, int]]:
        """Drafts that the engine loads, at each lookahead."""
        able = {
            "vllm": lambda draft: draft.kind.role == "head", "foredraft": lambda draft: False,
            "openvino": _is_eagle3, "llama_cpp": _is_eagle3,
        }[engine]  # fmt: skip
        return [(name, k) for name, draft in self.drafts.items() if able(draft) for k in self.lookaheads]

    def _placed(self, spec: str) -> str:
        """A spec with its draft's folder in place of its name."""
        name = _name(spec)
        return spec if name == "ngram" else f"{self.drafts[name].folder}{spec.removeprefix(name)}"

    def _vllm(self, draft: Draft) -> Path:
        return self._exported(draft, "vllm")

    def _exported(self, draft: Draft, format: str) -> Path:
        out = self.folder / format / _version(draft.folder)
        if not out.exists():
            export(draft.folder, self.target, out, ExportSettings(format=format))
        return out

    def _openvino(self, draft: Draft | None) -> Path:
        """The target or an EAGLE-3 head, its hidden states named by the layers that they leave."""
        source = self._exported(draft, "hf") if draft else self.target
        out = self.folder / "openvino" / (_version(draft.folder) if draft else "target")
        python = VENVS / "openvino-export" / "bin" / "python"
        if not out.exists():
            layers = _hidden_layers(self.target, draft.folder) if draft else ()
            _run([python, Path(__file__).with_name("export_openvino.py"), source, f"{out}.partial", *map(str, layers)])
            Path(f"{out}.partial").rename(out)
        return out

    def _ggufs(self, drafted: Sequence[tuple[str, int]]) -> dict[str, Any]:
        server = self.llama_cpp / "build" / "bin" / "llama-server"
        if not server.exists():
            raise ValueError(f"no {server}; docs/guides/runtimes.md says how it is built")
        bits = {"float32": "f32", "bfloat16": "bf16"}[self.dtype]
        heads = {name: self._gguf(self._exported(self.drafts[name], "hf"), bits, self.target) for name, _ in drafted}
        targets = {"plain-q8_0": str(self._gguf(self.target, "q8_0")), "plain-q4_1": str(self.gguf)}
        return {
            "server": str(server.resolve()), "target": str(self._gguf(self.target, bits)), "targets": targets,
            "drafts": {f"{name}@{k}": str(heads[name]) for name, k in drafted},
        }  # fmt: skip

    def _gguf(self, source: Path, bits: str, of_target: Path | None = None) -> Path:
        out = self.folder / "gguf" / f"{source.name}-{bits}.gguf"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            python, partial = VENVS / "llama-cpp" / "bin" / "python", out.with_suffix(".partial")
            beside = ["--target-model-dir", of_target] if of_target else []
            code = CONVERT.format(source=self.llama_cpp)
            _run(
                [python, "-c", code, source, *beside, "--outtype", bits, "--outfile", partial],
                PYTHONPATH=str(self.llama_cpp),
            )
            partial.rename(out)
        return out


def _is_eagle3(draft: Draft) -> bool:
    return draft.method == "eagle3" and draft.layers == 1


def _name(spec: str) -> str:
    return re.split(r"[@+]", spec)[0]


def _version(folder: Path) -> str:
    """A draft's folder by what it holds."""
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("config.json", "model.safetensors")))
    return f"{folder.name}-{digest.hexdigest()[:8]}"


def _hidden_layers(target: Path, draft: Path) -> tuple[int, ...]:
    """The layers that an EAGLE-3 head's hidden states enter."""
    head = load_head(draft, load(target))
    assert isinstance(head, Eagle3Head)
    return head.feature_layers


def _run(words: Sequence[str | Path], **environment: str) -> None:
    """Raises ValueError, one line, where the program is missing or fails."""
    if not Path(words[0]).exists():
        raise ValueError(f"no {words[0]}; docs/guides/runtimes.md says how it is installed")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, words)), env=variables | {"HF_HUB_OFFLINE": "1"} | environment, capture_output=True, text=True
    )
    if done.returncode:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no word"])[-1]
        raise ValueError(f"{Path(words[0]).name} failed: {last}")


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    out = arguments.out.resolve()
    zoo_drafts.at_hand(arguments.target, arguments.prompts)
    drafts, new = zoo_drafts.drafts_of(arguments.draft), QUICK_NEW if arguments.quick else NEW
    ours = tuple(arguments.ours.split() if arguments.ours else (f"{name}@{k}" for name in drafts for k in (2, 3)))
    if missing := {_name(spec) for spec in ours} - {"ngram", *drafts}:
        raise SystemExit(f"--ours: no draft {min(missing)}; there are {', '.join(drafts)}; name others with --draft")
    folder = BUILD / arguments.target.name
    file = zoo_drafts.first_of_each(arguments.prompts, arguments.num, folder)
    prompts = read_prompts(file, Encoding(text.tokenizer_of(arguments.target)), Skips("stop"))[
        : 2 if arguments.quick else None
    ]
    lengths = answer_lengths(arguments.target, prompts, new)
    results: dict[str, Any] = {
        "target": arguments.target.name, "prompts": [prompt.category for prompt in prompts], "new_tokens": lengths,
        "machine": machine.described(arguments.threads), "races": {},
    }  # fmt: skip
    for dtype in arguments.dtypes.split(","):
        exports = Exports(
            folder, arguments.target, drafts, tuple(map(int, arguments.lookaheads.split(","))), ours, dtype,
            arguments.gguf, arguments.llama_cpp.resolve(),
        )  # fmt: skip
        results["races"][dtype] = race(
            exports, prompts, lengths, arguments.only, arguments.threads, not arguments.quick
        )
        records.write(out, results)
        print(table(dtype, results["races"][dtype]), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    zoo_drafts.add_options(parser)
    parser.add_argument("--num", type=int, default=1, help="prompts of each category")
    parser.add_argument(
        "--ours",
        help="what our engine runs: NAME@K, NAME@K,TOPK,NODES, NAME+ngram@K; every draft at 2 and 3 where left out",
    )
    parser.add_argument("--lookaheads", default="2,3,4,5", help="of the others")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), help="engine/method to run beside our plain decoding"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gguf", type=Path, default=GGUF, help="the target in 4 bits")
    parser.add_argument(
        "--llama-cpp", type=Path, default=ROOT / "build" / "llama.cpp", help="its source, with build/bin/llama-server"
    )
    parser.add_argument("--quick", action="store_true", help="two prompts, few tokens: does everything run?")
    return parser.parse_args()


def answer_lengths(target: Path, prompts: Sequence[Prompt], new: int) -> list[int]:
    """Tokens of the target's own greedy answers, at most `new`."""
    engine = text.load_engine(str(target), max_batch=8, max_context=CONTEXT)
    stops = text.stop_ids(target, text.tokenizer_of(target))
    requests = [Request(prompt=prompt.ids, max_tokens=new, stop_ids=stops) for prompt in prompts]
    return [len(sequence.answer) for sequence in engine.generate(requests)]


def race(
    exports: Exports,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    only: re.Pattern[str],
    threads: int,
    quiet: bool = True,
) -> dict[str, Any]:
    """One precision: every configuration on each prompt, in an order that shifts with it; `quiet`: when strangers leave the machine alone."""
    configurations, settings = list(_configurations(exports, only)), _Prepared(exports)
    able = [configuration for configuration in configurations if settings.prepared(configuration[0])]
    field = Field(Race(exports.target.name, exports.dtype, 1), able, settings, threads)
    replies: Replies = {configuration: [] for configuration in field.workers}
    try:
        for turn, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            order = list(field.workers)
            for configuration in [*order[turn % len(order) :], *order[: turn % len(order)]]:
                try:
                    replies[configuration].append(field.answer(configuration, [list(prompt.ids)], length, timed=quiet))
                except (OSError, ValueError) as error:
                    field.leave_out(configuration, str(error))
                    del replies[configuration]
            print(f"{exports.dtype}: prompt {turn + 1} of {len(prompts)}", file=sys.stderr, flush=True)
    finally:
        field.end()
    not_run = {"/".join(c): settings.why[c[0]] for c in configurations if c[0] in settings.why} | field.not_run
    return figures(replies, lengths) | {"not_run": not_run, "versions": field.versions}


def _configurations(exports: Exports, only: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for engine in ENGINES:
        for method in exports.methods(engine):
            if (engine, method) == ("foredraft", "plain") or only.search(f"{engine}/{method}"):
                yield engine, method


class _Prepared:
    """Each engine's settings, exported once; `why` where that failed."""

    def __init__(self, exports: Exports) -> None:
        self.exports, self.why = exports, dict[str, str]()
        self._settings: dict[str, dict[str, Any]] = {}

    def prepared(self, engine: str) -> bool:
        if engine not in self._settings and engine not in self.why:
            try:
                self._settings[engine] = self.exports.of(engine)
            except (OSError, ValueError) as error:
                self.why[engine] = str(error)
                print(f"not run: {engine}: {error}", file=sys.stderr, flush=True)
        return engine in self._settings

    def of(self, engine: str) -> dict[str, Any]:
        return self._settings[engine]


# Figures.


def figures(replies: Replies, lengths: Sequence[int]) -> dict[str, Any]:
    """Of replies in the prompts' order; intervals are over prompts, drawn together for both sides of a ratio."""
    tokens = np.array(lengths, dtype=float)
    seconds = {
        configuration: np.array([reply["seconds"] for reply in of])
        for configuration, of in replies.items()
        if len(of) == len(lengths)
    }
    own = next((of for configuration, of in replies.items() if configuration == ("foredraft", "plain")), [])
    arms = {}
    for (engine, method), spent in seconds.items():
        of, plain = replies[engine, method], seconds.get((engine, "plain"))
        steps = sum(reply["steps"] or 0 for reply in of)
        arms[f"{engine}/{method}"] = {
            "tok_s": _pooled(tokens, spent), "over_plain": None if plain is None or method == "plain" else _pooled(plain, spent),
            "tokens_per_step": float(tokens.sum()) / steps if steps else None,
            "same_answers": sum(reply["answers"] == plain_reply["answers"] for reply, plain_reply in zip(of, own, strict=False)),
            "foreign_most": max((reply["foreign"] for reply in of if "foreign" in reply), default=None),
        }  # fmt: skip
    fastest = {engine: _fastest(seconds, engine) for engine in dict.fromkeys(engine for engine, _ in seconds)}
    ours = fastest.get("foredraft")
    over = {
        f"{engine}/{method}": _pooled(seconds[engine, method], seconds["foredraft", ours])
        for engine, method in fastest.items()
        if ours and engine != "foredraft"
    }
    return {"arms": arms, "fastest": fastest, "ours_over": over, "answers": len(lengths)}


def _fastest(seconds: Mapping[tuple[str, str], Any], engine: str) -> str:
    """In the precision of the race: the quantised stand by themselves."""
    methods = [method for e, method in seconds if e == engine and not method.endswith(tuple(QUANTISED))]
    return min(methods, key=lambda method: seconds[engine, method].sum())


def _pooled(top: Any, bottom: Any) -> dict[str, float]:
    """Σ top / Σ bottom with its 90 % interval over prompts."""
    estimate = figure(np.stack([top, bottom], axis=1), lambda sums: sums[..., 0] / sums[..., 1], "", "")
    return (
        {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        if estimate
        else {"value": float(top.sum() / bottom.sum())}
    )


def table(dtype: str, report: Mapping[str, Any]) -> str:
    """A race for people."""
    lines = [
        f"  {name:<28}{arm['tok_s']['value']:8.1f} tokens/s" + (f"  {arm['over_plain']['value']:.2f}× own plain" if arm["over_plain"] else "")
        + (f"  {arm['tokens_per_step']:.2f} tokens per step" if arm["tokens_per_step"] else "") + f"  same {arm['same_answers']}/{report['answers']}"
        for name, arm in report["arms"].items()
    ]  # fmt: skip
    lines += [f"  ours over {name}: {over['value']:.2f}×" for name, over in report["ours_over"].items()]
    return "\n".join([dtype, *lines, *(f"  {name}: not run: {why}" for name, why in report["not_run"].items())])


if __name__ == "__main__":
    main()
