"""Where own rows' time goes: passes by the probe's stack, prompts and drafting by their shares, drafts by the words that they may draft."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from own_study import KNOWN_COSTS, LENGTHS, MACHINE, TARGET, true_server

from foredraft import kinds, records
from foredraft.engines import named_in
from foredraft.laws.calibration import CostRow, adjusted, calibrate_served
from foredraft.laws.passes import Layout
from foredraft.laws.stack import LEAST_ROWS, reached_rates
from foredraft.plan.at_hand import DraftAtHand
from foredraft.plan.hindsight import each_left_out
from foredraft.plan.matching import completed
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.plan.served import Place, calibrated, timed
from foredraft.records import Observation, Provenance, Workload

ROWS, BYTES = (1, 2, 4, 8, 16, 32, 64), 2.0**28
WORDS = 512
EAGLE = kinds.EAGLE.shape(TARGET, 1, WORDS)
COSTS = tuple((KNOWN_COSTS | {"draft_fixed": 3.0, "prefill": 2.0}).items())
PLACE = Place(TARGET, MACHINE, "foredraft", Layout(), "float32")


def stack(bandwidth: float, rate: float, blend: float, bytes_per_weight: float = 4.0) -> dict[int, float]:
    memory, row_s = BYTES / bandwidth, 2 * BYTES / bytes_per_weight / rate
    return {num: (memory**blend + (num * row_s) ** blend) ** (1 / blend) for num in ROWS}


def test_a_stacks_rates_are_those_that_it_was_made_of():
    for bandwidth, rate, blend in ((2e10, 6e10, 1.6), (1.5e10, 3e11, 4.0)):
        assert reached_rates(BYTES, 4.0, stack(bandwidth, rate, blend)) == pytest.approx(
            (bandwidth, rate, blend), rel=0.02
        )
    rng = np.random.default_rng(0)
    noisy = {
        num: seconds * float(np.exp(0.05 * rng.standard_normal())) for num, seconds in stack(2e10, 6e10, 1.6).items()
    }
    rates = reached_rates(BYTES, 4.0, noisy)
    assert rates is not None
    assert rates[:2] == pytest.approx((2e10, 6e10), rel=0.15)
    assert reached_rates(BYTES, 4.0, dict(list(noisy.items())[: LEAST_ROWS - 1])) is None


def test_our_engine_takes_the_rates_of_the_stack_in_the_weights_format_where_it_was_timed():
    stacks = {"float32": stack(1.3e10, 6e10, 1.6)}
    machine = msgspec.structs.replace(MACHINE, stack_bytes=BYTES, stack_s=stacks)
    ours = named_in("foredraft").efficiency(machine, "float32")
    assert ours.bandwidth == pytest.approx(1.3e10 / MACHINE.bandwidth_bytes_per_s, rel=0.02)
    assert ours.compute == ours.prompt_compute == pytest.approx(6e10 / MACHINE.flops_per_s["float32"], rel=0.02)
    assert ours.blend == pytest.approx(1.6, rel=0.02)
    assert named_in("foredraft").efficiency(machine, "float16") == named_in("foredraft").efficiency(MACHINE, "float16")
    first = PLACE.server(None, **LENGTHS, speculate=False).load(1, 0, 1.0)
    assert float(first.ttft_s) > float(first.tpot_s), "the first token comes of a step behind the prompt's pass"


def row(depth: int, tau: float, *, shares: bool = True, words: bool = True, **fields) -> Observation:
    """A row of the simulated world at `depth`, measured with an EAGLE head of WORDS words; with its parts, and its words, where it says them."""
    server = true_server(EAGLE if depth else None, COSTS)
    speed = float(server.load(1, depth, tau).output_tok_s)
    prompt, drafting = map(float, server.shares(1, depth, tau))
    step_s = float(server.step_s(1, depth))
    draft_s = drafting / (1 - prompt) * step_s
    parts = {
        "draft_s": draft_s,
        "target_s": step_s - draft_s,
        "other_s": 0.0,
        "prompt_s": prompt * LENGTHS["output_len"] / speed,
    }
    draft = {
        "draft": "head",
        "draft_params": float(EAGLE.params),
        "draft_layers": 1,
        "draft_vocab": WORDS if words else None,
    }
    return Observation(
        **{
            "run": "run", "target": TARGET.name, "target_params": float(TARGET.params), "method": "eagle" if depth else "none",
            "provenance": Provenance(source="simulated"), "temperature": 0.0, "engine": "foredraft", "machine": MACHINE.name,
            "dtype": "float32", "batch_size": 1, "lookahead": depth, "tokens_per_step": tau, "output_tok_s": speed, **LENGTHS,
            **(draft if depth else {}), **(parts if shares else {}), **fields,
        }
    )  # fmt: skip


TAU = {0: 1.0, 1: 1.6, 2: 1.9, 3: 2.1, 5: 2.3}


def test_shares_part_prompts_and_drafting_from_targets_passes():
    """Rows at one k leave open which part takes the time; their shares close it."""
    seen = [row(depth, TAU[depth]) for depth in (0, 2)]
    blind = [row(depth, TAU[depth], shares=False) for depth in (0, 2)]
    truth = true_server(EAGLE, COSTS)
    parts = {}
    for name, rows in {"seen": seen, "blind": blind}.items():
        costs = calibrated(PLACE, timed(PLACE, rows))
        assert costs is not None
        server = PLACE.server(EAGLE, **LENGTHS, speculate=True)
        parts[name] = adjusted(server, costs.multipliers).shares(1, 2, TAU[2])
    off = {name: np.abs(np.subtract(shares, truth.shares(1, 2, TAU[2]))).max() for name, shares in parts.items()}
    assert off["seen"] < 0.01
    assert off["blind"] > 2 * off["seen"]


def test_shares_that_are_missing_change_nothing():
    server, plain = PLACE.server(EAGLE, **LENGTHS, speculate=True), PLACE.server(None, **LENGTHS, speculate=False)
    rows = [CostRow(1, 0, 1.0, 90.0), CostRow(1, 2, 1.9, 110.0)]
    again = [each._replace(prompt_share=np.nan, draft_share=np.nan) for each in rows]
    assert calibrate_served([plain, server], rows).multipliers == calibrate_served([plain, server], again).multipliers


def test_a_cell_is_predicted_from_those_of_other_lookaheads_alone():
    rows = timed(PLACE, [row(depth, TAU[depth]) for depth in TAU])
    cells = {cell.lookahead: cell for cell in each_left_out(PLACE, rows)}
    assert list(cells) == [1, 2, 3, 5]
    plain = rows[0].cost.output_tok_s
    for depth, cell in cells.items():
        assert cell.measured == pytest.approx(rows[list(TAU).index(depth)].cost.output_tok_s / plain)
        assert cell.predicted == pytest.approx(cell.measured, rel=0.04)
    wrong = [
        each._replace(cost=each.cost._replace(output_tok_s=2.0)) if each.cost.depth == 3 else each for each in rows
    ]
    lied = {cell.lookahead: cell for cell in each_left_out(PLACE, wrong)}
    assert lied[3].predicted == pytest.approx(cells[3].predicted), "it is not fitted on the cell that it predicts"
    assert each_left_out(PLACE, rows[1:]) == []


def test_a_look_up_is_held_to_the_nodes_that_it_verified():
    """Where it finds no match a step is a plain one; before a draft it takes the place of passes."""
    alone = row(0, 1.3, method="ngram", lookahead=5, steps=100, drafted=200)
    before = row(5, 2.3, method="eagle+ngram", lookup_min_match=2, steps=100, drafted=480, lookup_steps=25)
    first, second = (each.cost for each in timed(PLACE, [alone, before]))
    assert (first.depth, first.nodes) == (5, 2)
    assert (second.depth, second.nodes) == (3.75, 4.8)


def test_a_draft_behind_a_look_up_may_deviate_from_the_cost_law_otherwise_than_the_draft_alone():
    """In a batch the widest look-up may cost a whole tile of rows, which the law does not know."""
    alone = [row(depth, TAU[depth]) for depth in (0, 1, 2, 3)]
    known = {"method": "eagle+ngram", "lookup_min_match": 2, "steps": 100, "lookup_steps": 25, "shares": False}
    behind = [row(depth, TAU[depth], drafted=120 * depth, **known) for depth in (1, 2, 3)]
    slower = [msgspec.structs.replace(each, output_tok_s=0.75 * (each.output_tok_s or 0.0)) for each in behind]
    rows = timed(PLACE, [*alone, *slower])
    costs = calibrated(PLACE, rows)
    assert costs is not None
    off = costs.output_tok_s([each.measured for each in rows])[0] / [each.cost.output_tok_s for each in rows] - 1
    assert np.abs(off).max() < 0.04


def test_rows_of_a_draft_at_hand_have_its_words_and_count_for_costs():
    silent = row(2, TAU[2], words=False)
    assert completed(TARGET, [silent]).rows[0].draft_vocab is None
    assert completed(TARGET, [silent], beside=[EAGLE]).rows[0].draft_vocab == WORDS
    other = msgspec.structs.replace(silent, draft_layers=2)
    assert completed(TARGET, [other], beside=[EAGLE]).rows[0].draft_vocab is None
    folder = tuple(row(depth, TAU[depth], words=False, target="runs/of-another-name") for depth in (1, 3))
    at_hand = DraftAtHand(kinds.EAGLE, EAGLE, folder="zoo/head", observations=folder)
    workload = Workload(input_len=LENGTHS["input_len"], output_len=LENGTHS["output_len"], concurrency=(1,))
    settings = PlanSettings(
        engine="foredraft", dtype="float32", draws=64, kinds=("head",), always=True, max_training_gpu_hours=1e-3
    )
    best = plan(TARGET, MACHINE, workload, settings, [row(0, 1.0)], beside=[at_hand])
    assert any("calibrated on 3 own rows" in note for note in best.assumptions)
    (step,) = best.schedule
    truth = true_server(EAGLE, COSTS).load(1, step.lookahead, step.tokens_per_step.value).output_tok_s
    plain = true_server(None, COSTS).load(1, 0, 1.0).output_tok_s
    if step.topk == 1:
        assert step.speedup.covers(float(truth / plain))


def test_the_tours_rows_go_to_their_drafts_and_those_of_none_to_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "recipes" / "smollm2")
    import tour_rows  # type: ignore[import-not-found]

    forced = row(5, 2.3, output_tok_s=None)
    records.write_lines(tmp_path / "zoo" / "head" / "observations.jsonl", [forced, row(1, 1.1)])
    plain, drafted = row(0, 1.0), row(2, 1.9)
    behind = row(2, 2.0, method="eagle+ngram", draft="head+ngram")
    measured = [plain, drafted, behind, row(2, 1.8, dataset="prompts/qa")]
    records.write_lines(tmp_path / "observations.jsonl", measured)
    tour_rows.main(tmp_path / "zoo", tmp_path / "out.jsonl.gz", tmp_path / "observations.jsonl")
    assert records.read_lines(Observation, tmp_path / "out.jsonl.gz") == [plain]
    assert records.read_lines(Observation, tmp_path / "zoo" / "head" / "observations.jsonl") == [
        forced,
        drafted,
        behind,
    ]
    records.write_lines(tmp_path / "observations.jsonl", [drafted])
    with pytest.raises(SystemExit, match="no row of plain decoding"):
        tour_rows.main(tmp_path / "zoo", tmp_path / "out.jsonl.gz", tmp_path / "observations.jsonl")
