"""What is held out is the largest along each dial; a planted law predicts it, a wrong one is caught out."""

import json

import msgspec
import pytest
from typer.testing import CliRunner

from foredraft import records
from foredraft.cli.main import app
from foredraft.laws.fit import fit
from foredraft.laws.forms import LAW_1_1
from foredraft.laws.held_out import judge, without_largest
from foredraft.records import Observation, Provenance

OWN = Provenance(source="test")


def row(run: str, method: str = "eagle3", **fields) -> Observation:
    return Observation(run=run, target="T", method=method, provenance=OWN, **fields)


def budgets(slope: float = 0.5, bend: float = 0.0, method: str = "eagle3") -> list[Observation]:
    """Eight budgets of three runs with a little noise; the last lies `bend` off the line."""
    rows = []
    for i in range(8):
        for j in range(3):
            tau = 1.2 + slope * i / 4 + 0.004 * ((7 * i + 3 * j) % 5 - 2) + (bend if i == 7 else 0.0)
            rows.append(row(f"{method}{i}.{j}", method, draft_tokens=1e5 * 10 ** (i / 4), tokens_per_step=tau))
    return rows


def test_the_largest_of_every_method_is_held_out_and_nothing_else():
    rows = [*budgets(), *budgets(method="draft_model")[:9], row("chain", tree_nodes=5), row("tree", tree_nodes=8)]
    training_rows, held_out = without_largest(rows)
    assert {row.run for row in held_out} == {
        "eagle37.0",
        "eagle37.1",
        "eagle37.2",
        *(f"draft_model2.{j}" for j in range(3)),
    }
    assert len(training_rows) + len(held_out) == len(rows)
    assert without_largest(rows, ("tree_nodes",)) == (rows, [])
    with pytest.raises(ValueError, match="hold_out must be among draft_params"):
        without_largest(rows, ("size",))


def test_a_chain_has_no_width():
    """Where the widest tree is held out, chains stay whatever their lookahead; a tree says how wide it chose."""

    def row(i: int, topk: int) -> Observation:
        return msgspec.structs.replace(budgets()[0], run=f"{i}", tree_nodes=i, lookahead=i, topk=topk)

    chains, trees = [row(i, 1) for i in (1, 3, 5)], [row(i, 4) for i in (2, 4, 5)]
    assert without_largest([*chains, *trees], ("tree_nodes",)) == ([*chains, *trees[:2]], trees[2:])
    assert without_largest(chains, ("tree_nodes",)) == (chains, [])


def test_every_family_has_a_largest_of_its_own():
    short = [msgspec.structs.replace(row, family="answers only") for row in budgets()[:9]]
    held_out = without_largest([*budgets(), *short])[1]
    assert {(row.family, row.draft_tokens) for row in held_out} == {
        (None, 1e5 * 10 ** (7 / 4)),
        ("answers only", 1e5 * 10**0.5),
    }


def test_a_law_is_held_to_what_it_did_not_see():
    for bend, caught in ((0.0, False), (-0.4, True)):
        training_rows, held_out = without_largest(budgets(bend=bend), ("draft_tokens",))
        judged = judge(fit(LAW_1_1, training_rows), held_out)
        assert len(judged) == 3
        assert all(judgement.predicted.covers(judgement.measured) is not caught for judgement in judged)
        assert all(judgement.predicted.extrapolates == ("draft_tokens",) for judgement in judged)


def test_fit_holds_out_on_request(tmp_path):
    path = tmp_path / "observations.jsonl"
    records.write_lines(path, budgets())
    result = CliRunner().invoke(app, ["fit", str(path), "--hold-out", "all", "--json", "--out", str(tmp_path), "--no-figures"])  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {judgement["law"] for judgement in report["held_out"]} >= {"law_1_1"}
    assert all(1 < judgement["predicted"]["value"] < 4 for judgement in report["held_out"])
    assert len(records.read(list, tmp_path / "held_out.json")) == len(report["held_out"])
    assert report["r_squared"][0] > 0.9
    assert "inside 90 %" in CliRunner().invoke(app, ["fit", str(path), "--hold-out", "draft_tokens"]).stdout
    with pytest.raises(ValueError, match="no run is the largest of at least three in tree_nodes"):
        CliRunner().invoke(app, ["fit", str(path), "--hold-out", "tree_nodes"], catch_exceptions=False)
