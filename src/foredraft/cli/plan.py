"""The verb `foredraft plan`."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from foredraft.cli import plan_options as of_plan
from foredraft.cli.console import drawn, names, one_at_a_time, print_blocks, print_json, rows_by_file, say_written
from foredraft.cli.options import (
    JSON,
    Devices,
    Figures,
    MachineName,
    NumberFormat,
    ObservationFiles,
    Out,
    Seed,
    TargetNames,
    histogram,
)

if TYPE_CHECKING:
    from foredraft.plan.session import PlanArguments
    from foredraft.plan.terms import Terms
    from foredraft.records import Plan
    from foredraft.shapes import Shape

USUAL_MACHINE, USUAL_LOADS = "H100", "1-64"


@one_at_a_time
def plan(
    target: of_plan.Target,
    shape_file: of_plan.ShapeFile = None,
    draft: of_plan.DraftName = None,
    beside: of_plan.Beside = None,
    accept: of_plan.Accept = None,
    vocab_overlap: of_plan.VocabOverlap = None,
    machine: MachineName = USUAL_MACHINE,
    devices: Devices = None,
    data_parallel: of_plan.DataParallel = 1,
    expert_parallel: of_plan.ExpertParallel = False,
    concurrency: of_plan.Concurrency = None,
    load: of_plan.Load = None,
    input_len: of_plan.InputLen = 512,
    output_len: of_plan.OutputLen = 256,
    temperature: of_plan.Temperature = 0.0,
    task: of_plan.Task = None,
    ttft: of_plan.TTFT = None,
    tpot: of_plan.TPOT = None,
    rate: of_plan.Rate = None,
    objective: of_plan.Objective = "throughput",
    engine: of_plan.Engine = "vllm",
    dtype: NumberFormat = None,
    kv_dtype: of_plan.KVDtype = None,
    max_lookahead: of_plan.MaxLookahead = 8,
    served_tokens: of_plan.ServedTokens = 1e11,
    train_machine: of_plan.TrainMachine = None,
    max_gpu_hours: of_plan.MaxHours = 1e5,
    answers: of_plan.Answers = True,
    device_hour: of_plan.DeviceHour = None,
    train_device_hour: of_plan.TrainDeviceHour = None,
    kinds: of_plan.Kinds = "head,lm,lookup",
    always: of_plan.Always = False,
    words: of_plan.Words = None,
    observations: ObservationFiles = None,
    target_name: TargetNames = None,
    draws: of_plan.Draws = 4096,
    seed: Seed = 0,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Which draft to download or train for TARGET, how to run it at each load, what it will gain, and how sure that is."""
    options = dict(locals())
    from foredraft import api

    _show(api.plan(*plan_arguments(options)), out, figures=figures, json=json)


def plan_arguments(options: Mapping[str, Any], shape: "Shape | None" = None) -> "PlanArguments":
    """What the planner is asked by the verb's `options`, all of them by parameter; `shape`: the target's, where it is known already."""
    from foredraft import machines
    from foredraft.plan.at_hand import draft_at_hand
    from foredraft.plan.problem import PlanSettings
    from foredraft.plan.session import PlanArguments
    from foredraft.records import Workload

    option = SimpleNamespace(**options)
    target = shape or _shape(option.target, option.shape_file)
    place, num_devices = machines.placed(option.machine or USUAL_MACHINE, option.devices)
    name = option.target
    at_hand = draft_at_hand(
        option.draft, target, target_name=name, accept=option.accept, vocab_overlap=option.vocab_overlap
    )
    others = [given for each in option.beside or () if (given := draft_at_hand(each, target, target_name=name))]
    if option.draft and others:
        raise ValueError(
            "--draft and --beside: the one is weighed alone, the others with all that there are; give either"
        )
    clients, weights = _loads(option.concurrency, option.load)
    workload = Workload(
        input_len=option.input_len, output_len=option.output_len, concurrency=clients, weights=weights,
        temperature=option.temperature, task=option.task,
    )  # fmt: skip
    settings = PlanSettings(
        objective=option.objective, engine=option.engine, devices=num_devices, data_parallel=option.data_parallel,
        expert_parallel=option.expert_parallel, dtype=option.dtype, kv_dtype=option.kv_dtype, max_lookahead=option.max_lookahead,
        horizon_tokens=option.served_tokens, max_training_gpu_hours=option.max_gpu_hours, kinds=names(option.kinds), always=option.always,
        draws=option.draws, seed=option.seed, outside=_outside(option.words, target),
        terms=_terms(
            option.train_machine, answers=option.answers, device_hour=option.device_hour, train_device_hour=option.train_device_hour,
            ttft_s=option.ttft, tpot_s=option.tpot, rate=option.rate,
        ),
    )  # fmt: skip
    rows = [
        row
        for part in rows_by_file(option.observations or (), option.target_name, target.name).values()
        for row in part
    ]
    return PlanArguments(target, place, workload, settings, rows, at_hand, others)


def _shape(target: str, shape_file: Path | None) -> "Shape":
    """The target's, as its config or the user says."""
    from foredraft import shapes

    if shape_file is None:
        return shapes.named(target)
    return shapes.stated(shapes.read_config(shape_file), str(shape_file), target)


def _outside(words: Path | None, shape: "Shape") -> tuple[tuple[int, float, float], ...]:
    """What lies outside the most frequent words of a token folder; () without one."""
    if words is None:
        return ()
    from foredraft.data.draft_vocab import outside
    from foredraft.data.tokens import TokenFolder

    folder = TokenFolder.open(words)
    if folder.data.vocab_size > shape.vocab_size:
        raise ValueError(
            f"--words {words}: tokens of a vocabulary of {folder.data.vocab_size:,}, but {shape.name} has {shape.vocab_size:,}"
        )
    return outside(folder)


def _terms(train_machine: str | None, **stated: Any) -> "Terms":
    """Of training and service; without a training machine of its own, on the serving one."""
    from foredraft import machines
    from foredraft.plan.terms import Terms

    if train_machine is None:
        return Terms(**stated)
    machine, devices = machines.placed(train_machine, option="--train-machine")
    return Terms(train_machine=machine, train_devices=devices, **stated)


def _loads(concurrency: str | None, load: str | None) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """Clients, and their weights where a histogram is given."""
    from foredraft.records import concurrency_of

    if load is None:
        return concurrency_of(concurrency or USUAL_LOADS), None
    if concurrency is not None:
        raise ValueError("--load and --concurrency both say how many requests are at once; give one of them")
    return histogram(load)


def _show(plan: "Plan", out: Path | None, *, figures: bool, json: bool) -> None:
    """Into the folder `out`, if any, and on the screen."""
    if out:
        _write(plan, out, figures)
    if json:
        print_json(plan)
        return
    from foredraft.report.plan_tables import plan_tables

    print_blocks(plan_tables(plan, out))


def _write(plan: "Plan", out: Path, figures: bool) -> None:
    from foredraft import records
    from foredraft.engines import ENGINES

    written = [out / "Plan.json"]
    records.write(written[0], plan)
    for engine, settings in plan.settings.items():
        written.append(out / ENGINES[engine].plan_file)
        records.write(written[-1], settings)
    if figures:
        from foredraft.report.plan import draw_plan

        written += drawn(lambda: draw_plan(plan, out))
    say_written(written)
