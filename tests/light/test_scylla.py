"""Scylla's theorems as published, and its Table 5 from our cost law."""

import json

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from foredraft.cli.main import app
from foredraft.laws.forms import LAW_1_1, LAW_1_2
from foredraft.laws.scylla import published_scylla
from foredraft.plan import scylla
from foredraft.plan.scylla import OTHERS, TABLE, USUAL, Table5Costs
from foredraft.report.terminal import named_things

PAPER = published_scylla()


@pytest.fixture(scope="module")
def reproduced() -> dict:
    return scylla.reproduce()


def test_stated_values_within_rounding() -> None:
    """5.43 by the natural log in units of 1e9; 5.13 by no reading; 0.223 per doubling; 477, 36.6 and 14.4 paths."""
    at_1, at_100 = PAPER.theorem_1_1.stated
    agrees = {}
    for reading in PAPER.theorem_1_1.readings:
        for stated in (at_1, at_100):
            says, rounding = PAPER.theorem_1_1.says(stated, reading)
            agrees[reading.name, stated.value] = abs(says - stated.value) <= rounding
    assert agrees.pop((PAPER.theorem_1_1.readings[0].name, 5.43))
    assert not agrees[PAPER.theorem_1_1.readings[0].name, 5.13]
    assert float(PAPER.theorem_1_1.tokens_per_step(1e11)) == pytest.approx(5.05 + 0.08 * np.log(100))
    says, rounding = PAPER.theorem_1_2.says(PAPER.theorem_1_2.stated[0])
    assert says == pytest.approx(0.74 * np.log10(2))
    assert abs(says - 0.223) <= rounding
    assert [round(float(PAPER.theorem_1_3.best_paths(b)), 1) for b in (1, 16, 64)] == pytest.approx(
        [477.4, 36.6, 14.4], abs=0.05
    )


def test_no_reading_gives_both_ends_of_theorem_1_1() -> None:
    for reading in PAPER.theorem_1_1.readings:
        both = [PAPER.theorem_1_1.says(stated, reading) for stated in PAPER.theorem_1_1.stated]
        values = [stated.value for stated in PAPER.theorem_1_1.stated]
        assert not all(abs(says - value) <= off for (says, off), value in zip(both, values, strict=True))


def test_theorems_are_settings_of_our_own_laws() -> None:
    """Log-linear in tokens and layers: the same lines, in the units of laws 1.1 and 1.2."""
    tokens, layers = np.array([1e9, 1e10, 1e11]), np.array([1.0, 3.0, 10.0])
    c1 = 0.08 * np.log(10)
    np.testing.assert_allclose(
        LAW_1_1.predict([5.05 - 9 * c1, c1], draft_tokens=tokens), PAPER.theorem_1_1.tokens_per_step(tokens)
    )
    np.testing.assert_allclose(
        LAW_1_2.predict([4.61, 0.74 / np.log(10)], draft_layers=layers), PAPER.theorem_1_2.tokens_per_step(layers)
    )


def test_theorem_1_3_squared_out_is_the_same_law() -> None:
    span, critical, cache = PAPER.theorem_1_3.as_intensity()
    for batch in (1, 16, 64):
        k = float(PAPER.theorem_1_3.best_paths(batch))
        assert k * (1 + k / span) == pytest.approx(critical / batch + cache)
    assert cache == pytest.approx(7.0, abs=0.01)


def test_the_published_throughput_line_misses_table_5(reproduced: dict) -> None:
    line = np.array(reproduced["theorems"][2]["throughput"]["line"])
    at = dict(zip(TABLE.batch, line, strict=True))
    assert at[16] == pytest.approx(1155, abs=1)
    assert at[64] == pytest.approx(1728, abs=1)
    assert reproduced["theorems"][2]["throughput"]["mean_error_of"]["scylla"] > 0.2


def test_table_5_from_the_plain_column(reproduced: dict) -> None:
    table = reproduced["table_5"]
    assert table["none_mean_error"] < 0.03
    assert table["eagle2_mean_error"] < 0.15
    assert table["scylla_mean_error"] < 0.15
    below, published = (table[key] for key in ("eagle2_below_none", "eagle2_below_none_published"))
    assert published == 32
    assert abs(TABLE.batch.index(below) - TABLE.batch.index(published)) <= 1


def test_the_other_columns_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions stay as they are where EAGLE-2's and Scylla's tokens/s are others; the plain column's move them."""
    before = Table5Costs(USUAL).tok_s("scylla")
    halved = tuple(speed / 2 for speed in TABLE.scylla)
    monkeypatch.setattr(scylla, "TABLE", msgspec.structs.replace(TABLE, eagle2=halved, scylla=halved))
    np.testing.assert_allclose(Table5Costs(USUAL).tok_s("scylla"), before)
    slower = tuple(speed / 2 for speed in TABLE.none)
    monkeypatch.setattr(scylla, "TABLE", msgspec.structs.replace(TABLE, none=slower))
    assert (Table5Costs(USUAL).tok_s("scylla")[:3] < 0.8 * before[:3]).all()


def test_trees_keep_the_stated_tokens_per_step() -> None:
    costs = Table5Costs(USUAL)
    tau = costs.tau("scylla")
    assert tau[USUAL.nodes] == pytest.approx(USUAL.scylla, abs=1e-3)
    assert tau[0] == 1
    assert (np.diff(tau) >= -1e-12).all()
    nodes = costs.nodes("scylla")
    assert (np.diff(nodes) <= 0).all()
    assert nodes[0] == USUAL.nodes
    assert nodes[-1] < 16


def test_the_best_tree_shrinks_with_the_batch_under_either_law(reproduced: dict) -> None:
    rows = reproduced["table_5"]["rows"]
    for law in ([row["k_opt"] for row in rows], [row["scylla"]["best_nodes"] for row in rows]):
        assert (np.diff(law) <= 0).all()
        assert law[0] > 4 * law[-1]


def test_every_reading_and_assumption_is_told(reproduced: dict) -> None:
    assert [reading["name"] for reading in reproduced["other_readings"]] == [reading.name for reading in OTHERS]
    for word in ("16 bits", "in-house", "k_opt", "one layer", "not published"):
        assert any(word in note for note in reproduced["assumes"])
    assert json.loads(json.dumps(reproduced, allow_nan=False)) == reproduced


def test_theorems_are_listed_with_their_ambiguities() -> None:
    lines = named_things("laws")
    for name in ("scylla_theorem_1_1", "scylla_theorem_1_2", "scylla_theorem_1_3"):
        assert "2505.07858" in lines[name]
        assert "Open: " in lines[name]


def test_the_verb(tmp_path, reproduced: dict) -> None:
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(app, ["reproduce", "scylla", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "scylla.json").read_text()) == reproduced
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert "EAGLE-2 falls below no draft at" in done.output


def test_an_unknown_paper_names_those_there_are() -> None:
    done = CliRunner().invoke(app, ["reproduce", "medusa"])
    assert isinstance(done.exception, ValueError)
    assert "sdsl or scylla" in str(done.exception)
