"""The law of levels: what is planted is recovered, what is shared narrows, and nothing else does."""

import numpy as np
import pytest

from foredraft import published
from foredraft.laws.conditions import (
    DATASETS,
    EFFECTS,
    SCATTER,
    AcceptanceCell,
    Levels,
    Spreads,
    chain_level,
    fade,
    fit_spreads,
    is_mean,
    task_of,
)
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.plan.cells import cells, conditions, levels
from foredraft.records import TASKS

PROMPTS = {
    "HumanEval": "code",
    "MBPP": "code",
    "GSM8K": "math",
    "AIME25": "math",
    "MT-bench": "chat",
    "Alpaca": "chat",
    "CNN/DM": "summarisation",
}
SDS = {"head": 0.4, "target": 0.3, "task": 0.5, "prompts": 0.1, "prompts and head": 0.1}
SLOPE, BY_SIZE, NOISE = -0.6, 0.2, 0.03


def cell(**fields) -> AcceptanceCell:
    base = {
        "role": "head", "kind": "eagle3", "method": "eagle3", "target": "T", "log_size": 0.0, "head": "h", "document": "d", "task": "chat",
        "prompts": "MT-bench", "temperature": 0.0,
    }  # fmt: skip
    return AcceptanceCell(**base | fields)


def planted(rng: np.random.Generator, targets: int = 12, heads: int = 3) -> dict[AcceptanceCell, float]:
    """Levels at temperatures 0 and 1 of several heads of several targets on PROMPTS."""
    task = {name: SDS["task"] * rng.standard_normal() for name in set(PROMPTS.values())}
    prompts = {name: SDS["prompts"] * rng.standard_normal() for name in PROMPTS}
    out = {}
    for t in range(targets):
        log_size, target = rng.normal(0, 1), SDS["target"] * rng.standard_normal()
        for h in range(heads):
            head = SDS["head"] * rng.standard_normal()
            for name, of in PROMPTS.items():
                pair = SDS["prompts and head"] * rng.standard_normal()
                for temperature in (0.0, 1.0):
                    level = (
                        1.0
                        + target
                        + head
                        + task[of]
                        + prompts[name]
                        + pair
                        + temperature * (SLOPE + BY_SIZE * log_size)
                    )
                    key = cell(
                        target=f"T{t}",
                        log_size=log_size,
                        head=f"T{t}h{h}",
                        document=f"d{h}",
                        task=of,
                        prompts=name,
                        temperature=temperature,
                    )
                    out[key] = level + NOISE * rng.standard_normal()
    return out


@pytest.fixture(scope="module")
def study() -> tuple[dict[AcceptanceCell, float], Spreads]:
    measured = planted(np.random.default_rng(7))
    return measured, fit_spreads(list(measured), np.array(list(measured.values())))


def test_planted_scatter_is_recovered(study):
    """36 heads, 12 targets: a sd of n draws is off by 1/√(2n) of itself, so a factor of 1.5 is 3 sds of the heads' (seed 7; < 1 in 300)."""
    spreads = study[1].sds
    assert spreads["head"] == pytest.approx(SDS["head"], rel=0.5)
    assert spreads["prompts and head"] == pytest.approx(SDS["prompts and head"], rel=0.5)
    assert spreads[SCATTER] == pytest.approx(NOISE, rel=0.5)


def test_the_drop_with_temperature_of_a_target_left_out_is_predicted_from_the_others(study):
    measured, spreads = study
    rest = {key: level for key, level in measured.items() if key.target != "T3"}
    known = Levels(tuple(rest), np.array(list(rest.values())), spreads)
    asked = next(key for key in measured if key.target == "T3")._replace(temperature=0.0)
    mean, sd = known.shift([asked._replace(temperature=1.0)], [asked])
    assert mean == pytest.approx(SLOPE + BY_SIZE * asked.log_size, abs=max(3 * sd, 0.1))
    assert abs(mean - SLOPE) > 0.02, "the size of the target enters"


def test_what_is_shared_narrows_and_nothing_else(study):
    measured, spreads = study
    known = Levels(tuple(measured), np.array(list(measured.values())), spreads)
    head = next(iter(measured))

    def sd(asked: AcceptanceCell) -> float:
        return float(np.sqrt(known.of([asked])[1][0, 0]))

    same, new_prompts = sd(head), sd(head._replace(prompts="new"))
    new_head = sd(head._replace(head="new", prompts="new"))
    new_target = sd(head._replace(head="new", prompts="new", target="new"))
    nothing = sd(head._replace(head="new", prompts="new", target="new", task="new"))
    assert same < new_prompts < new_head < new_target < nothing
    assert new_head >= 0.9 * spreads.sds["head"]


def test_without_measured_cells_the_prior_is_all_there_is():
    spreads = conditions().spreads
    _, covariance = Levels((), np.zeros(0), spreads).of([cell()])
    total = sum(
        spreads.sds[name] ** 2 * effect.slope(cell()) ** 2 for name, effect in EFFECTS.items() if not effect.warm
    )
    assert covariance[0, 0] == pytest.approx(total)


def test_a_shift_to_where_one_is_is_none(study):
    measured, spreads = study
    known = Levels(tuple(measured), np.array(list(measured.values())), spreads)
    here = [next(iter(measured))]
    assert known.shift(here, list(here)) == (0.0, 0.0)
    assert known.shift([here[0]._replace(temperature=0.5)], here)[1] > 0


def test_too_few_cells_teach_nothing():
    with pytest.raises(ValueError, match="measured cells"):
        fit_spreads([cell()], np.array([1.0]))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("HumanEval", "code"), ("mbpp", "code"), ("LCB", "code"), ("livecodebench", "code"), ("SPEED-Bench Coding", "code"),
        ("InstructCoder", "code"), ("gsm8k", "math"), ("MATH-500", "math"), ("AIME25", "math"), ("MT-Bench math", "math"), ("MT-bench", "chat"),
        ("Alpaca", "chat"), ("Arena-Hard", "chat"), ("CNN/DM", "summarisation"), ("SPEED-Bench Summarization", "summarisation"),
        ("SPEED-Bench RAG", "rag"), ("translation", "translation"), ("SPEED-Bench QA", "qa"), ("SPEED-Bench Writing", "writing"),
        ("SPEED-Bench Multilingual", "multilingual"), ("gpqa", "reasoning"), ("SPEED-Bench Average", None), ("mean MT+HE+GSM8K", None),
        ("SPEED-Bench 1K/2K c64", None), (None, None),
    ],
)  # fmt: skip
def test_a_set_of_prompts_is_of_a_task(name, task):
    assert task_of(name) == task


def test_every_task_has_sets_of_prompts_and_means_are_none():
    assert set(DATASETS) == set(TASKS)
    assert is_mean("Mean")
    assert not is_mean("MT-bench")


def test_the_level_of_a_chain_gives_its_tokens_back():
    for k in (1, 4, 10):
        level = chain_level(1.0 + 0.3 * k, k)
        assert tokens_per_step_constant(1 / (1 + np.exp(-level)), k) == pytest.approx(1.0 + 0.3 * k, abs=0.01)


def test_acceptance_fades_beyond_the_context_alone():
    assert fade(1000, 500, 2048) == 0
    assert 0 < fade(1800, 500, 2048) < fade(4000, 500, 2048) < fade(30000, 500, 2048)
    assert conditions().fade.per_efold > 0
    assert conditions().fade.sources


# What ships.


def test_shipped_spreads_are_of_the_shipped_rows():
    measured = cells(published.observations())
    assert conditions().spreads.num_cells == len(measured)
    assert conditions().spreads.num_documents == len({key.document for key in measured})


def test_a_document_left_out_says_nothing():
    every = levels()
    document = next(key.document for key in every.cells if key.document)
    assert all(key.document != document for key in levels(frozenset({document})).cells)
