"""The page says what the records say, compares only like with like, shows text as text, and fetches nothing."""

import builtins
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from report_records import estimate, measurement, observation, plan, step, write_all

from foredraft import records
from foredraft.laws.fit import fit
from foredraft.laws.forms import LAW_1_1
from foredraft.laws.held_out import judge, r_squared
from foredraft.records import Estimate, Machine, Observation, Provenance

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from foredraft.report import inline, style
from foredraft.report.configurations import at_least_load, by_setting, config_of, names, online
from foredraft.report.documents import Documents, Row, read_documents
from foredraft.report.page import write_page
from foredraft.report.parts import NONE, number
from foredraft.report.sections import compared, fitted, headline, machine, measured, theory, trained

VOID = {"meta", "link", "br", "img", "input", "hr"}
ALL = {"compared", "plan", "measured", "laws", "machine", "training", "theory", "sweep"}


class Reader(HTMLParser):
    """Elements with their attributes, and text that is not style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"<{tag}> is closed out of turn"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u00a0", " "))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("all"))
    page = write_page([folder], folder / "report.html", folder / "figures")
    return page, Reader(page.path.read_text(encoding="utf-8"))


# --- The page as a document ---


def test_every_record_has_its_section_and_nothing_is_said_to_be_lacking(full_page):
    _, html = full_page
    assert {attributes.get("id") for attributes in html.of("section")} == ALL
    assert html.open == []


def test_ids_are_unique_and_every_reference_leads_somewhere(full_page):
    _, html = full_page
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in html.elements:
        for name, value in attributes.items():
            if name == "href" and tag != "link":
                assert value.startswith("#"), f"<{tag} href={value}>"
                assert value[1:] in ids
            if name in ("aria-labelledby", "aria-describedby"):
                assert set(value.split()) <= set(ids)
            for reference in re.findall(r"url\(([^)]*)\)", value):
                assert reference.removeprefix("#") in ids


def test_each_figure_is_there_once_with_a_label_and_a_caption_of_its_conditions(full_page):
    page, html = full_page
    drawn = [attributes for attributes in html.of("svg") if attributes.get("role") == "img"]
    assert len(drawn) == len(page.pictures) > 15
    assert [attributes["aria-label"] for attributes in drawn] == [picture.title for picture in page.pictures]
    for picture in page.pictures:
        assert re.search(r"interval", picture.caption), f"{picture.name} says nothing of intervals"
    assert len({picture.name for picture in page.pictures}) == len(page.pictures)


def test_nothing_is_fetched_and_nothing_runs(full_page):
    page, html = full_page
    source = page.path.read_text(encoding="utf-8")
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", source)
    assert not re.search(r"url\((?!#)", source)
    assert "@import" not in source
    assert not [tag for tag, _ in html.elements if tag in ("script", "iframe", "object", "img", "audio", "video")]
    assert not [name for _, attributes in html.elements for name in attributes if name.startswith("on")]
    assert [attributes["href"] for attributes in html.of("link")] == ["data:,"]


def test_ink_follows_the_page_and_text_stays_text(full_page):
    page, html = full_page
    source = page.path.read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", source, re.S)
    for colour in ("#000000", "#ffffff", "#0072b2", "#666666"):
        assert not [drawing for drawing in drawings if colour in drawing.lower()], f"{colour} is the same in the dark"
    assert not re.search(r"font-family", "".join(drawings))
    assert "tokens verified in one pass" in html.text
    sheet = (files("foredraft") / "report" / "page.css").read_text(encoding="utf-8")
    defined = set(re.findall(r"(--[a-z]+):", sheet))
    assert set(re.findall(r"var\((--[a-z]+)\)", source)) <= defined
    dark = sheet.split("prefers-color-scheme: dark")[1].split("}\n}")[0]
    assert set(re.findall(r"(--[a-z]+):", dark)) == defined, "a colour without its dark twin"


def test_figures_are_written_as_png_and_svg_with_their_title(full_page):
    page, _ = full_page
    assert sorted(path.name for path in page.figures) == sorted(
        f"{picture.name}{suffix}" for picture in page.pictures for suffix in (".png", ".svg")
    )
    assert all(path.stat().st_size > 3000 for path in page.figures)


def test_the_template_and_the_sheet_are_files_of_the_package():
    """What a wheel must carry: hatchling takes all that lies in the package's folder."""
    for name in ("template.html.j2", "page.css"):
        assert (files("foredraft") / "report" / name).is_file()


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & $x^2$"


def test_text_of_records_is_shown_as_text(tmp_path):
    target = {"target": EVIL, "dataset": EVIL, "machine": EVIL}
    rows = [measurement(category, method=name, draft=f"{EVIL}{name}", speedup=2.0 + i, **target)
            for i, name in enumerate(("eagle3", EVIL)) for category in (None, f"math{EVIL}", "news")]  # fmt: skip
    records.write_lines(tmp_path / "measurements.jsonl", rows)
    records.write(tmp_path / "Plan.json", plan(target=EVIL, engine=EVIL, assumptions=(EVIL, f"`{EVIL}`")))
    records.write(tmp_path / "sweep.json", {"cells": [{"name": EVIL, "verb": EVIL, "state": EVIL, "error": EVIL}]})
    records.write(tmp_path / "machine.json", Machine(name=EVIL, memory_bytes=1e9, bandwidth_bytes_per_s=1e9,
                                                     flops_per_s={"float32": 1e9}, source=EVIL))  # fmt: skip
    records.write_lines(tmp_path / "run" / "metrics.jsonl", [{"step": i, "tokens": i, "loss": 1.0} for i in (1, 2)])
    records.write(tmp_path / "run" / "recipe.json", {"model": {"kind": EVIL}})
    page = write_page([tmp_path], tmp_path / "report.html")
    html = Reader(page.path.read_text(encoding="utf-8"))
    assert not [tag for tag, _ in html.elements if tag in ("script", "img")]
    assert not [name for _, attributes in html.elements for name in attributes if name.startswith("on")]
    assert html.text.count("<script>alert(1)</script>") > 5


def test_the_reader_sees_what_would_run():
    """Negative control of the tests above."""
    html = Reader("<p>a<script>b</script><b onclick='c'>d</b></p>")
    assert [tag for tag, _ in html.elements] == ["p", "script", "b"]
    assert html.of("b") == [{"onclick": "c"}]


# --- What is found ---


def test_an_observation_in_several_files_counts_once(tmp_path):
    rows = [measurement(), measurement(batch_size=2), measurement("math", dataset="prompts/math")]
    records.write_lines(tmp_path / "a/measurements.jsonl", rows)
    other = [msgspec.structs.replace(row.observation, provenance=observation(run="b").provenance) for row in rows]
    records.write_lines(tmp_path / "a/observations.jsonl", other)
    records.write_lines(tmp_path / "b/observations.jsonl", [observation(), observation(batch_size=4)])
    documents = read_documents([tmp_path])
    assert [(row.observation.batch_size, row.category) for row in documents.rows] == [(1, None), (2, None), (1, "math"), (4, None)]  # fmt: skip


@pytest.mark.parametrize("cells", [[""], [{"seconds": "x"}], "x"])
def test_a_sweep_of_another_form_is_named(tmp_path, cells):
    records.write(tmp_path / "sweep.json", {"cells": cells})
    with pytest.raises(ValueError, match=r"sweep\.json: Expected") as caught:
        read_documents([tmp_path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_sweep_speaks_for_its_cells(tmp_path, packed):
    records.write(tmp_path / "sweep.json", {"cells": []})
    records.write_lines(tmp_path / f"observations.jsonl{packed}", [observation(run="cell-1")])
    records.write_lines(tmp_path / "cells/cell-1/observations.jsonl", [observation(run="elsewhere")])
    records.write_lines(tmp_path / "cells/cell-2/run/metrics.jsonl", [{"step": 1, "tokens": 5, "loss": 2.0}])
    documents = read_documents([tmp_path])
    assert [row.observation.run for row in documents.rows] == ["cell-1"]
    assert [run.name for run in documents.runs] == ["cell-2"]


def test_folders_without_records_and_broken_records_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no records there; a report is made of Plan\.json"):
        read_documents([tmp_path])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_documents([tmp_path / "nowhere"])
    (tmp_path / "Plan.json").write_text('{"objective": "throughput", "surprise": 1}')
    with pytest.raises(ValueError, match=r"Plan\.json: "):
        read_documents([tmp_path])


def test_a_torn_last_line_of_a_run_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "run/metrics.jsonl"
    records.write_lines(path, [{"step": 1, "tokens": 10, "loss": 2.0}])
    path.write_bytes(path.read_bytes() + b'{"step": 2, "tok')
    assert len(read_documents([tmp_path]).runs[0].lines) == 1
    whole = path.read_bytes()
    for broken in (b'{"step": 1, "tok\n', b'{"tokens": "many"}\n', b'{"seconds": null}\n', b'{"loss": []}\n'):
        path.write_bytes(broken + whole)
        with pytest.raises(ValueError, match=r"metrics\.jsonl:1: "):
            read_documents([tmp_path])


@pytest.mark.parametrize(
    "recipe", [{"model": None}, {"model": {"layers": "x"}}, {"predicted": 1}, {"predicted": {"tokens_per_step": 2}}]
)
def test_a_recipe_that_is_none_is_named(tmp_path, recipe):
    records.write_lines(tmp_path / "run/metrics.jsonl", [{"step": 1, "tokens": 10, "loss": 2.0}])
    records.write(tmp_path / "run/recipe.json", recipe)
    with pytest.raises(ValueError, match=r"recipe\.json: .*(model|predicted)"):
        read_documents([tmp_path])
    (tmp_path / "run/recipe.json").unlink()
    (tmp_path / "run/recipe.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises((OSError, ValueError), match=r"recipe\.json"):
        read_documents([tmp_path])
    (tmp_path / "run/recipe.json").unlink()
    (tmp_path / "run/sweep.json").mkdir()
    with pytest.raises((OSError, ValueError), match=r"sweep\.json"):
        read_documents([tmp_path])


def test_a_part_without_records_says_which_would_fill_it(tmp_path):
    records.write(tmp_path / "machine.json", Machine(name="M", memory_bytes=1e9, bandwidth_bytes_per_s=1e9,
                                                     flops_per_s={"float32": 1e9}, source="maker"))  # fmt: skip
    html = Reader(write_page([tmp_path], tmp_path / "report.html").path.read_text(encoding="utf-8"))
    assert {attributes.get("id") for attributes in html.of("section")} == {"machine", "lacking"}
    for part in ("foredraft plan", "foredraft measure", "foredraft fit", "foredraft train", "foredraft sweep"):
        assert part in html.text
    assert "foredraft probe" not in html.text


def test_without_jinja2_one_line_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match=r"pip install 'foredraft\[report\]'"):
        write_page([write_all(tmp_path)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# --- Predicted against measured ---


def beside(*rows, **fields) -> Documents:
    return Documents((), (), plans=(plan(**fields),), rows=tuple(Row(row.observation, row) for row in rows))


def test_the_first_screen_has_the_verdict_what_was_predicted_the_command_and_the_fastest_on_top():
    command = "foredraft measure zoo/target --draft ngram@4 --draft 'my runs/eagle3/final@4' --prompts p.jsonl"
    typed: dict[str, Any] = {"provenance": Provenance(source="foredraft measure", command=command)}
    plain = {"draft": None, "lookahead": None, "tree_nodes": None, "draft_params": None, "draft_tokens": None}
    rows = (
        measurement(method="ngram", speedup=1.5, **{**plain, "lookahead": 4}, **typed),
        measurement(method="none", speedup=1.0, **plain, **typed),
        measurement(speedup=2.0, **typed),
        measurement(method="draft_model", draft="lm", speedup=0.8, **typed),
    )
    top = headline.headline(beside(*rows))
    assert top.text.startswith("Decode zoo/target with EAGLE-3, k\u00a0=\u00a04: 2.00\u00a0(1.80–2.20) times as fast")
    assert "A plan predicted 2.20\u00a0(1.76–2.64): the measured value lies inside." in top.remarks
    assert top.commands == ("foredraft generate zoo/target --draft 'my runs/eagle3/final' --lookahead 4 \"PROMPT\"",)
    assert top.arms is not None
    assert [row[0][:7] for row in top.arms.rows] == ["EAGLE-3", "n-gram,", "no draf", "lm (lan"]
    assert [row[-1] for row in top.arms.rows] == ["2.20\u00a0(1.76–2.64)", NONE, NONE, NONE]


def test_a_faster_way_than_the_planned_one_is_named_first():
    ngram = measurement(method="ngram", draft=None, draft_params=None, draft_tokens=None, speedup=2.3)
    top = headline.headline(beside(measurement(speedup=1.0), ngram))
    assert "with n-gram, k\u00a0=\u00a04: 2.30" in top.text
    assert "The plan had chosen EAGLE-3, k\u00a0=\u00a04, which measured 1.00\u00a0(0.90–1.10)." in top.remarks


@pytest.mark.parametrize(
    ("speedup", "words"),
    [(2.0, "Decode zoo/target with"), (1.05, "No draft is surely faster"), (0.9, "Decode zoo/target without a draft")],
)
def test_a_draft_is_recommended_only_where_its_interval_lies_above_plain_decoding(speedup, words):
    top = headline.headline(beside(measurement(speedup=speedup)))
    assert top.text.startswith(words)
    assert ("--draft" in top.commands[0]) == (speedup > 1)


def test_from_which_load_on_no_draft_gains_is_said():
    loads = [measurement(batch_size=batch, speedup=gain) for batch, gain in ((1, 2.0), (2, 1.3), (4, 0.9), (8, 0.7))]
    remarks = " ".join(headline.headline(beside(*loads)).remarks)
    assert "From 4 requests at once no draft gains: EAGLE-3, k\u00a0=\u00a04 is the best there with 0.90" in remarks


def test_a_prediction_outside_its_interval_is_said_to_be():
    assert "lies outside." in " ".join(headline.headline(beside(measurement(speedup=1.0))).remarks)
    assert not compared.pairs(beside(measurement(speedup=1.0, tokens_per_step=None)))[0].covered


@pytest.mark.parametrize(
    "other",
    [
        {"target": "zoo/other"}, {"draft_params": 2e6}, {"draft_tokens": 1e6}, {"lookahead": 5, "tree_nodes": 5},
        {"tree_nodes": 16, "topk": 4}, {"temperature": 1.0}, {"batch_size": 2}, {"method": "draft_model"}, {"draft_params": None},
    ],
)  # fmt: skip
def test_only_like_is_compared_with_like(other):
    assert compared.pairs(beside(measurement()))
    assert compared.pairs(beside(measurement(**other))) == []
    assert "none is the planned draft" in " ".join(headline.headline(beside(measurement(**other))).remarks)


def test_categories_and_forced_rows_are_not_compared_with_a_plan():
    assert compared.pairs(beside(measurement("math"), measurement(way="forced"))) == []


def test_a_plan_for_latency_is_not_compared_in_throughput():
    pairs = compared.pairs(beside(measurement(), objective="latency"))
    assert {pair.quantity for pair in pairs} == {"tokens_per_step"}


def test_an_unmeasured_plan_is_called_so():
    top = headline.headline(beside())
    assert top.text.startswith("Use: EAGLE-3 head, 1.2 M, for target: predicted 1.90")
    assert "not measured yet" in top.text
    assert [tile.value for tile in top.tiles][-1] == "none yet"
    none = headline.headline(beside(draft=None, schedule=(step(1, lookahead=0),)))
    assert none.text.startswith("Nothing: ")


def test_every_kind_of_folder_has_a_verdict_and_a_command(tmp_path):
    """A fit, a sweep, a training run, a machine, and rows without a draft, each alone."""
    write_all(tmp_path)
    plain = measurement(method="none", draft=None, lookahead=None, tree_nodes=None, draft_params=None)
    records.write_lines(tmp_path / "plain/observations.jsonl", [plain.observation])
    (tmp_path / "probe").mkdir()
    (tmp_path / "machine.json").rename(tmp_path / "probe/machine.json")
    words = {"fit": "Tokens per step follows draft tokens", "sweep": "The sweep has 3 cells", "train": "eagle3, EAGLE-3 head after 5",
             "probe": "CPU reads 25.0", "plain": "Only decoding without a draft", "plan": "Use: "}  # fmt: skip
    for folder, start in words.items():
        top = headline.headline(read_documents([tmp_path / folder]))
        assert top.text.startswith(start), top.text
        assert top.commands[0].startswith("foredraft ")
        assert top.tiles[-1].value == "none yet"


def test_log_axes_say_so_and_have_ticks_to_read(full_page):
    page, _ = full_page
    seen = 0
    for picture in page.pictures:
        painted = inline.figure(picture)
        painted.draw_without_rendering()  # which writes the ticks
        for axes in painted.axes:
            for axis in (axes.xaxis, axes.yaxis):
                label, log = " ".join(axis.get_label_text().split()), axis.get_scale() == "log"
                assert (log and bool(label)) == label.endswith(style.LOG.strip()), f"{picture.name}: {label!r}"
                if log:
                    low, high = sorted(axis.get_view_interval())
                    named = [t for t in axis.get_major_ticks() if t.label1.get_text() and low <= t.get_loc() <= high]
                    assert len(named) >= 2, f"{picture.name}: {label!r}"
                    seen += 1
    assert seen > 8


# --- What was measured ---


def test_settings_never_share_a_figure_and_titles_tell_them_apart():
    both = [{"temperature": heat, "method": name} for heat in (0.0, 1.0) for name in ("eagle3", "ngram")]
    rows = tuple(Row(row.observation, row) for row in (measurement(**fields) for fields in both))
    assert [len(of) for _, of in by_setting(online(rows))] == [2, 2]
    section = measured.section(Documents((), (), rows=rows))
    assert section is not None
    titles = [picture.title for picture in section.pictures]
    assert len(set(titles)) == len(titles)
    assert any("temperature 1" in title for title in titles)


def test_a_missing_value_is_missing_and_an_interval_is_shown_only_where_there_is_one():
    assert number(None) == NONE
    assert number(estimate(2.0)) == "2.00\u00a0(1.80–2.20)"
    assert number(estimate(-2.0)) == "−2.00\u00a0(−1.80\u00a0to\u00a0−2.20)"
    bare = observation(speedup=None, ttft_s=None)
    section = measured.section(Documents((), (), rows=(Row(bare),)))
    assert section is not None
    row = section.tables[0].rows[0]
    assert row[2:4] == ("3.00", NONE)
    assert row[5] == NONE
    assert all("No intervals" in picture.caption for picture in section.pictures)


def test_alphas_of_different_kinds_stay_apart():
    greedy = measurement(way="forced", accept_probs={"greedy": 0.8})
    rows = (greedy, measurement(way="forced", temperature=1.0, accept_probs={"sampled": 0.6}), measurement())
    section = measured.section(Documents((), (), rows=tuple(Row(row.observation, row) for row in rows)))
    assert section is not None
    table = next(table for table in section.tables if "Acceptance per token" in table.caption)
    assert [[cell[:5] for cell in row[1:]] for row in table.rows] == [["0.800", NONE, "0.600"]]


def test_conditional_acceptance_comes_from_joint_survival():
    assert [span.value for span in Row(observation(survival=(0.8, 0.4, 0.1))).accept_given_prefix()] == pytest.approx([0.8, 0.5, 0.25])  # fmt: skip
    assert len(Row(observation(survival=(0.8, 0.0, 0.0))).accept_given_prefix()) == 2


def test_a_row_per_configuration_at_the_smallest_load_that_most_share():
    rows = [Row(observation(batch_size=b)) for b in (1, 2, 4)] + [Row(observation(batch_size=b, method="ngram")) for b in (2, 4)]  # fmt: skip
    assert [row.observation.batch_size for row in at_least_load(rows)] == [2, 2]


def test_names_tell_drafts_apart_and_scylla_from_eagle_3():
    configurations = [config_of(Row(row)) for row in (
        observation(), observation(draft="eagle3/exports/tokens-2000000"), observation(draft="deep/final", draft_layers=3),
        observation(draft="deep/final", draft_layers=3, tree_nodes=16), observation(method="none", draft=None),
    )]  # fmt: skip
    labels = [name.replace("\u00a0", " ") for name in names(configurations).values()]
    assert labels == [
        "eagle3, k = 4",
        "eagle3, 2 M tokens, k = 4",
        "Scylla, k = 4",
        "Scylla, k = 4, w = 16",
        "no draft",
    ]
    drawn = measured.looks(configurations)
    assert drawn[configurations[0]]["color"] == drawn[configurations[1]]["color"] != drawn[configurations[2]]["color"]
    assert len({str(look) for look in drawn.values()}) == len(configurations)


def test_a_head_is_called_after_its_family():
    """EAGLE-2 and a one-layer Scylla are the same architecture."""
    rows = [
        observation(method="eagle", family=family, draft_layers=1) for family in ("eagle2", "scylla-then", "mine", None)
    ]
    assert [config_of(Row(row)).method for row in rows] == ["eagle2", "scylla", "eagle", "eagle"]
    assert config_of(Row(observation(method="draft_model", family="scylla-then"))).method == "draft_model"


def test_no_two_methods_look_alike():
    configurations = [config_of(Row(observation(method=f"m{i}"))) for i in range(9)] + [
        config_of(Row(observation(method="ngram")))
    ]
    assert len({(look["color"], look["marker"]) for look in measured.looks(configurations).values()}) == len(
        configurations
    )


# --- Laws ---


def line(tokens: float, shift: float = 0.0, **fields) -> Observation:
    noise = 0.01 * math.sin(tokens)
    return observation(run=f"{tokens:g}", draft_tokens=tokens, tokens_per_step=1 + 0.3 * math.log10(tokens) + noise + shift, **fields)  # fmt: skip


def test_rows_beyond_the_range_are_predictions_that_a_law_is_held_to():
    rows = [line(tokens) for tokens in (1e5, 2e5, 4e5, 8e5, 1.6e6, 3.2e6)]
    law = fit(LAW_1_1, rows[:5], draws=100)
    (judgement,) = judge(law, rows)
    assert judgement.measured == rows[5].tokens_per_step
    assert judgement.predicted.covers(judgement.measured)
    assert judgement.predicted.value == pytest.approx(judgement.measured, abs=0.03)
    (missed,) = judge(law, [*rows[:5], line(3.2e6, shift=1.0)])
    assert not missed.predicted.covers(missed.measured)
    section = fitted.section(Documents((), (), fits=(law,), rows=tuple(map(Row, rows))))
    assert section is not None
    assert "White diamonds (1)" in section.pictures[0].caption
    assert section.tables[1].rows[0][-1] == "1 of 1"


def test_r_squared_is_of_the_rows_behind_the_fit_or_missing():
    rows = [line(tokens) for tokens in (1e5, 2e5, 4e5, 8e5, 1.6e6)]
    law = fit(LAW_1_1, rows, draws=40)
    tau = [row.tokens_per_step or 0.0 for row in rows]
    predictions = [float(LAW_1_1.predict(law.parameters, draft_tokens=row.draft_tokens or 0.0)) for row in rows]
    missed = sum((t - p) ** 2 for t, p in zip(tau, predictions, strict=True))
    spread = sum((t - sum(tau) / len(tau)) ** 2 for t in tau)
    assert r_squared(law, rows) == pytest.approx(1 - missed / spread)
    assert r_squared(law, rows[1:]) is None


# --- Machine, training, theory ---


def test_a_bend_is_where_reading_and_computing_take_equally_long():
    even_machine = Machine(
        name="M", memory_bytes=1e9, bandwidth_bytes_per_s=1e10, flops_per_s={"float32": 2e11}, source="maker"
    )
    section = machine.section(Documents((), (), machines=(even_machine,)))
    assert section is not None
    (picture,) = section.pictures  # no verification times: no second figure
    figure = inline.figure(picture)
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "40 tokens"
    ]  # 2e11/1e10 FLOP per byte, 4 bytes, 2 FLOP


def test_training_figures_are_the_lines_of_the_run(tmp_path):
    run = read_documents([write_all(tmp_path)]).runs[0]
    figure_line = trained.line(run, "held_out_tokens_per_step")
    assert [(x, span.value) for x, span in figure_line] == [(0.0, 1.0), (5000.0, 2.5)]
    assert (figure_line[1][1].low, figure_line[1][1].high) == (2.0, 3.0)
    assert trained.predicted(run) is None
    expected = Estimate(2.0, 1.5, 2.5, unit="tokens", source="x")
    with_plan = run._replace(recipe={"predicted": {"tokens_per_step": expected}})
    assert trained.predicted(with_plan) == (2.0, 1.5, 2.5, 0.9)


def test_the_best_size_is_the_measured_one_and_distances_start_there(tmp_path):
    rows = read_documents([write_all(tmp_path)]).rows
    optima = theory.optima(online(rows))
    (points,) = optima.values()
    assert points == [(tokens, 3e5, 1e7) for tokens in (1e6, 2e6, 4e6, 8e6)]
    star = next(row for row in rows if row.observation.draft_params == 3e5)
    other = next(row for row in rows if row.observation.draft_params == 1e6)
    assert theory.distance(star, star) == 0
    assert theory.distance(other, star) == pytest.approx(0.07)


def test_the_counted_gain_takes_the_alpha_of_its_temperature():
    rows = [Row(m.observation, m) for m in (measurement(), measurement(way="forced", accept_probs={"greedy": 0.5}),
            measurement(way="forced", temperature=1.0, accept_probs={"sampled": 0.9}))]  # fmt: skip
    alphas = theory.alphas(rows)
    n, m = 9e5, 1e7
    best = max((1 - 0.5 ** (k + 1)) / 0.5 / (k * n + m) * m for k in range(9))
    assert theory.counted_gain(rows[0], alphas) == pytest.approx(best)
    hot = Row(observation(temperature=1.0))
    assert (theory.counted_gain(hot, alphas) or 0) > best
    assert theory.counted_gain(Row(observation(draft="other")), alphas) is None


def test_perplexities_of_two_tokenizers_share_no_figure():
    fields = {"accept_kind": "sampled", "target_perplexity": 9.0, "target_tokenizer": "a"}
    drafts = [{"draft": f"d{i}", "draft_perplexity": 10.0 + i, "draft_tokenizer": "b"} for i in range(4)]
    rows = tuple(Row(observation(accept_prob=0.5, **draft, **fields)) for draft in drafts)
    assert theory.section(Documents((), (), rows=rows)) is None
    same = tuple(Row(msgspec.structs.replace(row.observation, draft_tokenizer="a")) for row in rows)
    section = theory.section(Documents((), (), rows=same))
    assert section is not None
    assert [picture.name for picture in section.pictures] == ["sdsl-3-acceptance"]
