"""The published SDSL results from the chain of laws, and the figures drawn from them."""

import builtins
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from foredraft.cli import reproduce as verb
from foredraft.cli.main import app
from foredraft.laws.forms import loss_laws
from foredraft.laws.speedup import tokens_per_flop
from foredraft.plan import parting, sdsl
from foredraft.report import reproduced as both
from foredraft.report import sdsl as figures

ONE_POINT = sdsl.RegressionGrid(name="one", target_params=(1e10,), draft_tokens=(1e11,), target_tokens=(1e11,))


@pytest.fixture(scope="module")
def reproduced():
    return sdsl.reproduce()


@pytest.mark.parametrize("row", sdsl.table_5(), ids=lambda row: row["target"])
def test_table_5_within_one_percent(row):
    expected = {13e9: 117e6, 30e9: 189e6, 66e9: 301e6, 70e9: 313e6, 110e9: 410e6}[row["target_params"]]
    assert row["draft_params"] == pytest.approx(expected, rel=0.01)


def test_optimum_beats_a_brute_force_grid_over_size_and_whole_lookahead():
    best = sdsl.optimal_draft(13e9)
    sizes = np.geomspace(2e7, 1e9, 3000)
    chain = sdsl.throughput(sizes, 13e9)
    assert best.tokens_per_flop >= chain.tokens_per_flop.max()
    assert best.draft_params == pytest.approx(sizes[chain.tokens_per_flop.argmax()], rel=0.003)
    values = tokens_per_flop(chain.accept_prob[:, None], np.arange(30), sizes[:, None], 13e9)
    assert values.max() <= best.tokens_per_flop
    assert values.max() == pytest.approx(best.tokens_per_flop, rel=1e-3)


def test_negative_controls_miss_table_5():
    """A plane that hardly sees the draft, and another fit of the same loss data, give other sizes."""
    flat = sdsl.optimal_draft(13e9, plane=sdsl.AcceptPlane(A1=-0.00067))
    besiroglu = sdsl.optimal_draft(13e9, loss_law=loss_laws()["besiroglu"])
    assert flat.draft_params < 0.5 * 117e6
    assert 1.01 < besiroglu.draft_params / 117e6 < 1.1


def test_table_9_line_lies_within_the_published_intervals(reproduced):
    line, compared = reproduced["table_9"], reproduced["table_9_comparison"]
    assert compared["mu_within_paper_interval"]
    assert compared["intercept_within_paper_interval"]
    assert line["draft_tokens_slope"][2] < 0  # second order and negative
    assert line["target_tokens_slope"][1] < 0 < line["target_tokens_slope"][2]  # negligible
    assert line["num_points"] == np.prod([len(values) for name, values in line["grid"].items() if name != "name"])


def test_line_recovers_a_planted_law():
    rng = np.random.default_rng(5)
    size = np.linspace(1e10, 1e11, 200)
    low_high = []
    for _ in range(200):
        noisy = 2.7e-3 * size + 9e7 + rng.normal(0, 1e7, size.size)
        intercept, slope = sdsl._least_squares([np.ones(size.size), size], noisy)
        low_high.append((intercept[1] <= 9e7 <= intercept[2], slope[1] <= 2.7e-3 <= slope[2]))
    covered = np.mean(low_high, axis=0)  # 95 % of 200 at seed 5; 90 % or less has a false-alarm rate under 1 %
    assert np.all(covered > 0.9)


def test_reproduction_is_plain_json(reproduced):
    again = json.loads(json.dumps(reproduced, allow_nan=False))
    assert again == reproduced
    assert reproduced["table_5_worst_relative_error"] <= 0.01


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sdsl.optimal_draft(13), "target_params must exceed 1e\\+06"),
        (lambda: sdsl.optimal_draft(13e9, draft_tokens=0), "draft_tokens must be positive"),
        (lambda: sdsl.optimal_draft(13e9, plane=sdsl.AcceptPlane(C1=-1)), "gains from no draft"),
        (lambda: sdsl.table_9(ONE_POINT), "add target_params"),
    ],
)
def test_impossible_questions_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    paths = figures.draw(tmp_path)
    assert len(paths) == 10
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert all(path.stat().st_size > 5000 for path in paths)


def test_figures_without_matplotlib(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'foredraft\[plot\]'"):
        figures.draw(tmp_path)


# --- Both papers side by side ---


@pytest.fixture(scope="module")
def papers(reproduced):
    """The documents of both; where N* parts, of one case made up here."""
    share = {cause: 1.0 + 0.1 * i for i, cause in enumerate(parting.CAUSES)}
    case = {"target": "OPT-13B", "machine": "A100-SXM-80GB", "devices": 1, "sdsl": 1.16e8, "ours": 1.27e8, "low": 6e7, "high": 3.6e8,
            "at_edge": False, "gain": 1.73, "gain_at_sdsl": 1.72, "share": share}  # fmt: skip
    parted = {"causes": parting.CAUSES, "cases": [case], "words": list(parting.words([case], share)), "assumes": "so"}
    return {"sdsl": reproduced | {"parting": parted}, "scylla": verb.COMPUTED["scylla"]()}


def test_without_a_paper_both_stand_side_by_side(papers, monkeypatch, tmp_path):
    monkeypatch.setattr(verb, "COMPUTED", {name: lambda name=name: papers[name] for name in papers})
    done = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path), "--no-figures"])
    assert done.exit_code == 0, done.output
    for words in (
        "N* of Qwen1.5-110B",
        "k_opt at batch 64",
        "Scylla at batch 64",
        "Not reproduced",
        "fixed costs",
        "cost law fitted",
        "N* × 1.30",
    ):
        assert words in done.output.replace("\u00a0", " ")
    assert json.loads((tmp_path / "papers.json").read_text()) == json.loads(json.dumps(papers))


def test_the_page_of_both_has_every_published_number_and_what_is_missing(papers, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in ("sdsl_4_latency",)})
    html = both.write_reproduction(tmp_path / "papers.html", papers).read_text(encoding="utf-8")
    for published in ("117 M", "313 M", "0.00271", "5.43", "36.6", "2150", "910"):
        assert f">{published}<" in html, published
    for section in ("sdsl", "scylla", "parting", "missing"):
        assert f'<section id="{section}"' in html
    assert html.count('role="img"') == 6
    assert "beyond rounding" in html  # theorem 1.1's 5.13
