"""A plan tried before its draft is trained: a folder that serves its target with drafts that are accepted as predicted.

Promises: what is written asks the engine for the plan's acceptance, or for one that is stated, and says beside it what was predicted at
each load. Refuses to know: torch, how a plan is made, how a server is measured, what an engine calls it (`engines`). vLLM on a CPU has no
such switch: there a proposer of our own drafts (`replay`).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foredraft import kinds, records, shapes
from foredraft.deploy import replay
from foredraft.deploy.answers import token_answers
from foredraft.engines import ENGINES, SERVERS, USUAL
from foredraft.engines.engine import STATED, ServingEngine
from foredraft.kinds import Kind
from foredraft.laws.acceptance import survival_through
from foredraft.laws.stated import SPELLING, Accepted, stated_acceptance
from foredraft.records import Plan, Record, ScheduleStep, require, with_hint
from foredraft.shapes import Shape
from foredraft.shapes.families import runnable

RECORD, SERVE, PLAN, CONFIG = "simulate.json", "serve.sh", "Plan.json", "config.json"
MODULE = "foredraft_replay"
SIMULATORS = {name: engine for name, engine in ENGINES.items() if engine.launch_file}


class SimulateSettings(Record, frozen=True):
    """`accept`: in place of the plan's, as `SPELLING` says. `cpu`: by the proposer of `replay`, whose passes cost `draft_cost` seconds, or
    as many by requests as in 1:0.002,8:0.003. `method`: the kind of a head that neither plan nor folder names.
    """

    engine: str = USUAL.name
    accept: str | None = None
    method: str = kinds.USUAL_HEAD.name
    cpu: bool = False
    draft_cost: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, non_negative=("seed",))
        if self.engine not in SIMULATORS:
            raise ValueError(f"--engine must be one of {', '.join(SIMULATORS)}, got {self.engine!r}")
        if self.draft_cost is not None and not self.cpu:
            raise ValueError(
                "--draft-cost goes with --cpu alone: elsewhere a draft of random weights takes the time that it takes"
            )


class Simulated(Record, frozen=True):
    """What `simulate.json` says: what the server is asked for, and what a plan predicted of it at each load."""

    engine: str
    target: str
    kind: str
    survival: tuple[float, ...]
    tokens_per_step: dict[int, float]
    settings: dict[str, Any]
    variables: dict[str, str]
    predicted: tuple[ScheduleStep, ...] = ()
    notes: tuple[str, ...] = ()


class DraftSource(NamedTuple):
    """Whose draft is simulated: a plan's, that of a folder with this config, or any of a kind."""

    kind: Kind
    plan: Plan | None = None
    config: dict[str, Any] | None = None


class Asked(NamedTuple):
    """The acceptance, and the launch settings of as long a chain, or of a plan's schedule."""

    accepted: Accepted
    launched: Mapping[str, Any]


def simulate(
    source: str | Path | None, out: str | Path, settings: SimulateSettings, *, target: str | None = None,
    answers: str | Path | None = None,
) -> Simulated:  # fmt: skip
    """Write the folder `out`. `source`: a plan, its folder, or a draft's folder. `target`: a public name or the folder that is served.

    Raises ValueError, one line, where the acceptance is none, the engine cannot simulate it, or the plan speculates at no load.
    """
    subject, engine = subject_of(source, settings.method), ENGINES[settings.engine]
    name = target or (subject.plan.target if subject.plan else None)
    if name is None:
        raise ValueError("--target is missing: state a public name, or the folder that is served")
    if answers is not None and not settings.cpu:
        raise ValueError("--answers is for --cpu alone: elsewhere the engine accepts whatever is drafted")
    asked = asked_of(subject, engine, settings)
    with records.whole_folder(out) as folder:
        if settings.cpu:
            launched, variables = _replay(folder, engine, asked, settings, name, answers), {}
        else:
            launched, variables = engine.simulated(asked.launched, asked.accepted)
            if engine.heads:
                records.write(folder / CONFIG, subject.config or draft_config(subject, shapes.named(name), engine))
        simulated = Simulated(
            engine=engine.name, target=name, kind=subject.kind.name, survival=asked.accepted.survival,
            tokens_per_step={k: asked.accepted.tokens_per_step(k) for k in _lookaheads(engine, asked.launched)},
            settings=launched, variables=variables, notes=tuple(_notes(engine, settings, name, answers)),
            predicted=subject.plan.schedule if subject.plan and settings.accept is None else (),
        )  # fmt: skip
        _write_launch(folder, engine, simulated, subject.plan)
    return simulated


def subject_of(source: str | Path | None, method: str) -> DraftSource:
    """What a path holds: a plan that speculates with a draft that can be trained, or a draft's config. None: a head of kind `method`."""
    if source is None:
        kind = kinds.CHECKPOINTS.get(method)
        if kind is None or kind.parts is None:
            heads = [name for name, kind in kinds.CHECKPOINTS.items() if kind.parts]
            raise ValueError(f"--method must be one of {', '.join(heads)}, got {method!r}")
        return DraftSource(kind)
    path = Path(source)
    if path.is_dir() and not (path / PLAN).is_file():
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: holds neither {PLAN} nor a draft's {CONFIG}")
        config = shapes.unfolded(shapes.read_config(path))
        return DraftSource(kinds.of_checkpoint(config, shapes.tensor_names(path)), config=shapes.read_config(path))
    plan = records.read(Plan, path / PLAN if path.is_dir() else path)
    if plan.draft is None or not any(step.lookahead for step in plan.schedule):
        raise with_hint(
            ValueError(f"{path}: the plan speculates at no load, so that nothing is to be simulated"),
            "foredraft plan --always plans the best draft even so",
        )
    kind = kinds.of_choice(plan.draft)
    if kind.passes == "none":
        raise ValueError(f"{path}: the plan's draft is {plan.draft.name}, which needs no training: serve it as it is")
    return DraftSource(kind, plan)


def asked_of(subject: DraftSource, engine: ServingEngine, settings: SimulateSettings) -> Asked:
    """What is stated, for a chain at every load, else the plan's schedule with its acceptance."""
    kind = subject.kind
    if engine.name not in kind.engine_names and not settings.cpu:
        raise ValueError(f"--engine {engine.name}: {engine.label} serves no drafts of kind {kind.label}")
    if settings.accept is not None:
        accepted = stated_acceptance(settings.accept)
        return Asked(accepted, _as_launched(engine, engine.chain(len(accepted.survival)), kind))
    if subject.plan is None:
        raise with_hint(ValueError("--accept is missing: only a plan predicts it"), f"--accept {SPELLING}")
    steps = [step for step in subject.plan.schedule if step.lookahead]
    taus: dict[int, list[float]] = {}
    for step in steps:
        taus.setdefault(step.lookahead, []).append(step.tokens_per_step.value)
    accepted = Accepted(survival_through({k: sum(values) / len(values) for k, values in taus.items()}))
    planned = subject.plan.settings.get(engine.name) or engine.chain(steps[0].lookahead)
    return Asked(accepted, _as_launched(engine, planned, kind))


def _as_launched(engine: ServingEngine, settings: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
    return engine.launched(settings, kind, ".") if engine.name in kind.engine_names else settings


def _lookaheads(engine: ServingEngine, launched: Mapping[str, Any]) -> list[int]:
    return sorted({k for *_, k in engine.ranges(launched)} - {0})


def draft_config(subject: DraftSource, target: Shape, engine: ServingEngine) -> dict[str, Any]:
    """A config.json from which the engine makes the draft with random weights; what changes no time (rope, norms) is Llama's default."""
    draft = _draft_shape(subject, target)
    head, vocab = draft.head, draft.draft_vocab_size or draft.vocab_size
    if head and subject.kind.name not in engine.heads:
        raise ValueError(
            f"{engine.label}: no class of {subject.kind.label} heads is known here, so that none can be made; give a draft's folder"
        )
    architecture = engine.heads[subject.kind.name].architectures[0] if head else runnable(draft.family).architecture
    own_head = {"draft_vocab_size": vocab, "target_hidden_size": draft.target_hidden_size or draft.hidden_size}
    keys = {
        "architectures": [architecture], "model_type": draft.family, "hidden_size": draft.hidden_size, "num_hidden_layers": draft.num_layers,
        "intermediate_size": draft.intermediate_size, "num_attention_heads": draft.num_heads, "num_key_value_heads": draft.num_kv_heads,
        "head_dim": draft.head_dim, "vocab_size": draft.vocab_size, "max_position_embeddings": draft.max_position_embeddings,
        "tie_word_embeddings": not head and draft.tie_embeddings, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "torch_dtype": subject.plan.dtype if subject.plan and subject.plan.dtype in STATED else "bfloat16",
    }  # fmt: skip
    keys |= own_head if subject.kind.own_lm_head else {}
    return {key: value for key, value in keys.items() if value is not None}


def _draft_shape(subject: DraftSource, target: Shape) -> Shape:
    """The planned draft's, else that of a usual head of one layer."""
    choice, kind = (subject.plan.draft if subject.plan else None), subject.kind
    if choice is None:
        return kind.shape(target)
    if kind.parts is None:
        return (
            shapes.shape(choice.name)
            if choice.name in shapes.known_shapes()
            else shapes.scaled(target, choice.non_embedding_params)
        )
    vocab = round((choice.params - choice.non_embedding_params) / choice.hidden_size) if choice.hidden_size else 0
    return kind.shape(target, max(1, choice.num_layers), vocab or None)


def _replay(
    folder: Path, engine: ServingEngine, asked: Asked, settings: SimulateSettings, target: str, answers: str | Path | None
) -> dict[str, Any]:  # fmt: skip
    """The proposer with what it knows; its launch settings."""
    launched = engine.replayed(asked.launched, f"{MODULE}.{replay.Replay.__name__}")
    shutil.copyfile(replay.__file__, folder / f"{MODULE}.py")
    ranges = engine.ranges(asked.launched)
    known = replay.Settings(asked.accepted.survival, ranges, costs_of(settings.draft_cost), settings.seed)
    records.write(folder / replay.SETTINGS, known._asdict())
    if answers is not None:
        records.write_lines(folder / replay.ANSWERS, token_answers(Path(answers), target))
    return launched


def costs_of(text: str | None) -> list[tuple[float, float]]:
    """[requests, seconds] of 0.002 or of 1:0.002,8:0.003, by requests."""
    if text is None:
        return []
    try:
        pairs = [part.rpartition(":") for part in text.split(",")]
        points = sorted((float(requests or 1), float(seconds)) for requests, _, seconds in pairs)
    except ValueError:
        points = []
    if not points or not all(requests > 0 and 0 <= seconds < float("inf") for requests, seconds in points):
        raise ValueError(
            f"--draft-cost must be seconds of a draft's pass such as 0.002, or by requests 1:0.002,8:0.003; got {text!r}"
        )
    return points


def _notes(engine: ServingEngine, settings: SimulateSettings, target: str, answers: str | Path | None) -> Iterator[str]:
    if not Path(target).is_dir():
        yield f"TARGET=FOLDER sh {SERVE}: {target} is a name, not a folder"
    if not settings.cpu:
        yield "texts are not the target's: drafted tokens are taken whether right or wrong, so judge speed alone"
        if not engine.heads:
            yield f"DRAFT=FOLDER sh {SERVE}: the draft needs weights there, of any training"
        if engine.name not in SERVERS:
            yield f"measure tokens/s with {engine.label}'s own client, since foredraft measure does not know its server"
        return
    yield "texts are the target's own; acceptance holds for greedy requests (temperature 0)"
    if settings.draft_cost is None:
        yield "drafts cost no time, so that speeds are above a real draft's; --draft-cost says seconds of a pass"
    if answers is None:
        yield "no --answers: a prompt is accepted as asked from its second asking on, so ask every prompt once first"


def _write_launch(folder: Path, engine: ServingEngine, simulated: Simulated, plan: Plan | None) -> None:
    """Settings, script, record and a page for people."""
    path = Path(simulated.target)
    script = engine.script(
        path.name, str(path.resolve()) if path.exists() else simulated.target, simulated.settings, plan
    )
    first, rest = script.split("\n", 1)
    exports = [f"export {name}={value}" for name, value in simulated.variables.items()]
    records.write(folder / engine.launch_file, simulated.settings)
    records.write_bytes(
        folder / SERVE, "\n".join([first, "# Acceptance is simulated: see README.md.", *exports, rest]).encode()
    )
    (folder / SERVE).chmod(0o755)
    records.write(folder / RECORD, simulated)
    records.write_bytes(folder / "README.md", _page(simulated, engine).encode())


def _page(simulated: Simulated, engine: ServingEngine) -> str:
    lines = [f"# {Path(simulated.target).name} on {engine.label}, acceptance simulated", ""]
    lines += [f"- at lookahead {k}: {tau:.4g} tokens per step" for k, tau in simulated.tokens_per_step.items()]
    lines += [f"- {note}" for note in simulated.notes]
    if simulated.predicted:
        lines += ["", "Measured speeds are to be held against the plan's:", ""]
        lines += ["| clients | draft tokens | tokens per step | tokens/s | gain |", "|---|---|---|---|---|"]
    for step in simulated.predicted:
        cells = [
            f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"
            for value, form in ((step.tokens_per_step, ".2f"), (step.output_tok_s, ",.0f"), (step.speedup, ".2f"))
        ]
        lines.append(" | ".join([f"| {step.concurrency}", str(step.lookahead), *cells]) + " |")
    return "\n".join([*lines, "", "```sh", *next_commands(simulated, Path()), "```", ""])


def next_commands(simulated: Simulated, folder: Path) -> list[str]:
    """To serve the folder, and to measure what it serves where its engine's server is known to `measure`."""
    serve = f"sh {folder / SERVE} --port 8000"
    if simulated.engine not in SERVERS:
        return [serve]
    loads = ",".join(str(step.concurrency) for step in simulated.predicted) or "1,8"
    endpoint = "foredraft measure --endpoint http://localhost:8000 --prompts PROMPTS"
    return [serve, f"{endpoint} --concurrency {loads} --out {folder / 'measured'}"]
