"""The planner page: the same plan as the command line's, a first look that says so, one line beside each wrong field, nothing to be read
through it; and in a browser: dragged, copied, gone back to, by keys alone, on a phone, in the dark.
"""

import json
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from urllib.parse import urlencode

import msgspec
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

from page_server import DRAWS, KINDS, OneTurn, planner, served
from typer.testing import CliRunner

from browser import opened
from foredraft import records
from foredraft.cli.main import app as command_line
from foredraft.machines import machine
from foredraft.page import inputs as of_page
from foredraft.page import planner as planner_room
from foredraft.page.copies import copies
from foredraft.page.html import answer_html, plan_page
from foredraft.page.nearest import link, nearest
from foredraft.page.planner import SKETCH_DRAWS, Dropped, others
from foredraft.plan.candidates import Basis, candidates
from foredraft.records import Plan
from foredraft.shapes import shape

CASE = {"target": "Qwen3-4B", "load": "1:3,8:1", "max_lookahead": "5", "temperature": "0.7"}


@pytest.fixture(scope="module")
def plans():
    return planner()


@pytest.fixture(scope="module")
def address(plans):
    with served(OneTurn(plans.read, session=plans.session, plans=plans.plans)) as url:
        yield url


def asked(address, path="answer", headers=(), **inputs):
    """Status, headers and text of an answer."""
    request = urllib.request.Request(f"{address}{path}?{urlencode(inputs)}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def faults(address, **inputs):
    status, _, text = asked(address, **inputs)
    assert status == 422
    return json.loads(text)["faults"]


def test_its_plan_is_the_command_lines(address):
    """The command that the page gives to copy plans the same, from another session, to the last digit."""
    status, headers, text = asked(address, "Plan.json", **CASE)
    assert status == 200
    assert "attachment" in headers["content-disposition"]
    words = of_page.command(CASE).split()
    assert words[:2] == ["foredraft", "plan"]
    assert words[-2:] == ["--out", "PLAN"]
    typed = CliRunner().invoke(
        command_line, [*words[1:-2], "--draws", str(DRAWS), "--kinds", ",".join(KINDS), "--json"]
    )
    assert records.decode(Plan, typed.stdout.encode(), name="typed") == records.decode(Plan, text.encode(), name="page")


def test_a_first_look_says_so_and_full_draws_follow(plans):
    inputs = CASE | {"load": "1:1,8:3"}
    plans.answer(CASE, sketch=False)
    sketch = plans.answer(inputs, sketch=True)
    full = plans.answer(inputs, sketch=False)
    assert (sketch.full, sketch.draws, full.full, full.draws) == (False, SKETCH_DRAWS, True, DRAWS)
    assert sketch.plan.draft.name == full.plan.draft.name
    assert full.plan.speedup.covers(sketch.plan.speedup.value)
    assert plans.answer(inputs, sketch=True) is full  # what is known in full is not sketched again


def test_nobody_waits_for_a_dropped_plan(plans):
    """It stops between two drafts, and the next plan is whole."""

    class Soon(threading.Event):
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 5

    stop = Soon()
    with pytest.raises(Dropped):
        plans.answer(CASE | {"devices": "2"}, sketch=False, stop=stop)
    assert stop.asked == 6
    assert plans.answer(CASE, sketch=False).full


def test_other_cases_say_what_would_change(plans, monkeypatch):
    """Each is the sketch of its own inputs, and those that say otherwise are those of another draft."""
    cases = "nothing may be trained", "temperature 0", "four times as many requests at once"
    monkeypatch.setattr(planner_room, "others", lambda asked: {case: others(asked)[case] for case in cases})
    here = plans.answer(CASE, sketch=False).plan
    turns = {turn.case: turn for turn in plans.turns(CASE)}
    assert turns["nothing may be trained"].plan.draft.training_flops == 0
    assert all((turn.plan.draft.name != here.draft.name) <= turn.turns for turn in turns.values() if turn.plan)
    assert turns["temperature 0"].plan.workload.temperature == 0
    assert turns["four times as many requests at once"].plan.workload.concurrency == (4, 32)


def test_a_model_of_the_users_own_goes_by_the_path_that_was_typed(tmp_path):
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024}
    own = tmp_path / "mine"
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000} | sizes))
    plans = planner(targets={str(own): own})
    inputs = {"target": str(own), "load": "1:1"}
    answer = plans.answer(inputs, sketch=True)
    html = answer_html(answer.plan, inputs, draws=answer.draws, full=True, files=["runs.csv"])
    assert 'data-mark="stated"' in html
    assert f"foredraft plan {own} --load 1:1 --observations runs.csv --out PLAN" in html


@pytest.mark.parametrize(
    ("version", "is_told"), [("0.10.1", True), ("v0.24", False), ("0.32.0", False), ("nightly", False), (None, False)]
)
def test_settings_that_a_version_lacks_are_told(plans, version, is_told):
    plan = plans.answer(CASE, sketch=False).plan
    warnings = {copy.id: copy.warning for copy in copies(plan, CASE | ({of_page.VERSION: version} if version else {}))}
    assert ("num_speculative_tokens_per_batch_size is there since vLLM 0.24" in warnings["vllm"]) is is_told
    assert warnings["sglang"] == ""


@pytest.mark.parametrize(
    ("inputs", "field", "word"),
    [
        ({"tpot": "-1"}, "tpot", "must be a number above 0"),
        ({"devices": "many"}, "devices", "valid integer"),
        ({"devices": "3"}, "devices", "does not divide"),
        ({"load": "1:0.2,x"}, "load", "clients with the share"),
        ({"load": ",".join(f"{n}:1" for n in range(1, 40))}, "load", "at most 16 loads"),
        ({"task": "poetry"}, "task", "must be one of chat"),
        ({"target": "no-such-model"}, "target", "nearest"),
        ({"target": "--help"}, "target", "must be a model's name"),
        ({"target": "-d/etc"}, "target", "must be a model's name"),
        ({"machine": "H101"}, "machine", "is not known"),
        ({"input_len": "1e9"}, "input_len", "context"),
        ({"target": "Llama-3.1-405B"}, "devices", "raise --devices"),
        ({"train_device_hour": "2"}, "train_device_hour", "give --device-hour"),
        ({"engine": "exllama"}, "engine", "must be one of"),
        ({"dtype": "x" * 500}, "dtype", "at most 400 characters"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_one_line_beside_its_field(address, inputs, field, word):
    found = faults(address, **inputs)
    assert list(found) == [field]
    assert word in found[field]
    assert "\n" not in found[field]


def test_each_wrong_field_has_its_line(address):
    assert set(faults(address, tpot="-1", task="poetry", rate="x")) == {"tpot", "task", "rate"}


@pytest.mark.parametrize("name", ["observations", "shape", "out", "words", "draws", "draft"])
def test_no_input_names_a_file_or_its_own_cost(address, name):
    assert name in faults(address, **{name: "/etc/passwd"})[""]


def test_nothing_of_the_file_system_is_read(address, tmp_path):
    (tmp_path / "config.json").write_text('{"secret": 1}')
    (tmp_path / "secret.json").write_text('{"name": "secret"}')
    assert "no shape named" in faults(address, target=str(tmp_path))["target"]
    assert "is given when the page is started" in faults(address, machine=str(tmp_path / "secret.json"))["machine"]
    assert "is given" in faults(address, train_machine=f"8x{tmp_path}/secret.JSON")["train_machine"]
    assert asked(address, "../../etc/passwd")[0] == 404
    assert asked(address, "page.css")[0] == 404


def test_only_this_machines_own_page_is_answered(address):
    assert asked(address, "", {"Host": "rebound.example"})[0] == 400
    assert asked(address, "answer", {"Sec-Fetch-Site": "cross-site"}, tpot="-1")[0] == 403
    assert asked(address, task="x" * 5000)[0] == 414
    status, headers, _ = asked(address, "")
    assert status == 200
    assert "script-src 'sha256-" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("arXiv:2503.01840 Table 1", "https://arxiv.org/abs/2503.01840"),
        ("vllm-project/speculators#563", "https://github.com/vllm-project/speculators/issues/563"),
        ("github.com/o/r@abcdef12 docs/a.json", "https://github.com/o/r/blob/abcdef12/docs/a.json"),
        ("github.com/o/r@abcdef1:results/x/0_out.logs", "https://github.com/o/r/blob/abcdef1/results/x/0_out.logs"),
        ("huggingface.co/org/model (card)", "https://huggingface.co/org/model"),
        ("SafeAILab/EAGLE PR 173", "https://github.com/SafeAILab/EAGLE/issues/173"),
        ("arXiv:2602.06036 (DFlash), as summarised in github.com/o/r", "https://arxiv.org/abs/2602.06036"),
        ("a talk in May", None),
    ],
)
def test_a_source_is_a_link_where_it_names_a_page(source, page):
    assert link(source) == page


def test_measured_rows_of_the_very_target_stand_first(plans):
    plan = plans.answer(CASE, sketch=False).plan
    rows = nearest(plan)
    assert len(rows) == 8
    assert [row.same_target for row in rows] == sorted((row.same_target for row in rows), reverse=True)
    own = msgspec.structs.replace(
        rows[0].row,
        machine=plan.machine,
        engine=plan.engine,
        temperature=plan.workload.temperature,
        tokens_per_step=9.0,
    )
    assert nearest(plan, [own])[0][:1] + nearest(plan, [own])[0][-1:] == (own, True)


# In a browser.


def shown(browser, address, words="", **options):
    """The page with its full plan, and what it complained of."""
    page, messages = opened(browser, f"{address}{words}", allowed=address, **options)
    page.wait_for_selector("#plan.full", timeout=60_000)
    return page, messages


def settled(page, act):
    """After `act`, the full plan of the inputs as they then are."""
    page.evaluate("document.getElementById('plan').dataset.old = '1'")
    act()
    page.wait_for_selector("#plan.full:not([data-old])", timeout=60_000)


def test_a_load_is_dragged_an_input_changed_and_the_way_back_found(browser, address):
    page, messages = shown(browser, address, f"?{urlencode(CASE)}", viewport={"width": 1280, "height": 900})
    assert page.input_value("#target") == "Qwen3-4B"
    before, box = page.inner_text(".tiles"), page.locator(".bar[data-clients='64']").bounding_box()
    assert box

    def drag():
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.95)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.05, steps=4)
        page.mouse.up()

    settled(page, drag)
    assert "64%3A19" in page.url
    assert page.inner_text(".tiles") != before
    assert "Speed at 64" in page.inner_text(".tiles")
    page.click("summary:text('Service levels')")
    settled(page, lambda: page.fill("#tpot", "0.004"))
    assert page.locator("svg .missed").count() == 1
    assert "tpot=0.004" in page.url
    page.fill("#tpot", "-4")
    page.wait_for_selector("#tpot-fault:not([hidden])")
    assert "must be a number above 0" in page.inner_text("#tpot-fault")
    assert page.get_attribute("#tpot", "aria-invalid") is not None
    settled(page, lambda: page.evaluate("history.go(-3)"))
    assert page.input_value("#tpot") == ""
    assert page.inner_text(".tiles") == before
    assert page.locator(".fault:not([hidden])").count() == 0
    assert [line for line in messages if "422" not in line] == []  # the browser's own line on the refused input
    page.context.close()


def test_by_keys_alone_and_what_is_copied(browser, address):
    page, messages = shown(browser, address, f"?{urlencode(CASE)}", permissions=["clipboard-read", "clipboard-write"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.clients") == "1":
            break
    page.keyboard.press("ArrowRight")
    settled(page, lambda: page.keyboard.press("PageUp"))
    page.wait_for_selector("#turns table")
    assert "2%3A5" in page.url
    assert page.evaluate("document.activeElement.dataset.clients") == "2"
    button = page.locator("[data-copy='copy-command']")
    button.focus()
    page.keyboard.press("Enter")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.inner_text("#copy-command")
    assert copied.startswith("foredraft plan Qwen3-4B ")
    assert "--load 1:3,2:5,8:1" in copied
    assert {"copy-vllm", "copy-sglang"} <= set(
        page.eval_on_selector_all("[data-copy]", "all => all.map(e => e.dataset.copy)")
    )
    with page.expect_download() as download:
        page.click("#download")
    assert records.read(Plan, download.value.path()).workload.concurrency == (1, 2, 8)
    assert messages == []
    page.context.close()


CONTRAST = """() => {
  const parse = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; } };
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    if (['SCRIPT', 'STYLE', 'TITLE', 'title', 'OPTION'].includes(e.tagName)) continue;
    const style = getComputedStyle(e), ink = parse(e instanceof SVGElement ? style.fill : style.color), paper = ground(e);
    const [a, b] = [light(ink.slice(0, 3)), light(paper.slice(0, 3))], ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${e.tagName}.${e.getAttribute('class')} ${ratio.toFixed(2)} ${e.textContent.trim().slice(0, 30)}`);
  }
  return faint; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_text_stands_out(browser, address, scheme):
    words = f"?{urlencode(CASE | {'tpot': '0.01'})}"
    page, messages = shown(browser, address, words, color_scheme=scheme, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = page.evaluate("""[...document.querySelectorAll('.chart text')].map(t => parseFloat(getComputedStyle(t).fontSize)
      * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width)""")
    assert min(sizes) > 8.5
    page.evaluate(
        "document.querySelector('.lede').style.color = getComputedStyle(document.body).backgroundColor"
    )  # the check can fail
    assert page.evaluate(CONTRAST)
    assert messages == []
    page.context.close()


def test_a_plans_own_file_stands_alone(browser, plans, tmp_path):
    plan = plans.answer(CASE, sketch=False).plan
    path = tmp_path / "plan.html"
    path.write_text(plan_page(plan), encoding="utf-8")
    page, messages = opened(browser, path.as_uri(), offline=True)
    assert page.locator("svg.chart").count() == 2
    assert "Qwen3-4B" in page.inner_text("h2 + dl")
    with page.expect_download() as download:
        page.click("#download")
    assert records.read(Plan, download.value.path()) == plan
    assert [line for line in messages if not line.startswith("blob:")] == []
    page.context.close()


def test_the_missing_extra_is_one_line_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "starlette", None)
    done = CliRunner().invoke(command_line, ["page"])
    assert isinstance(done.exception, ImportError)
    assert str(done.exception) == "foredraft page needs starlette: pip install 'foredraft[page]'"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_first_look_at_what_is_new_weighs_a_few_of_each_kind(engine):
    """Drafts of the full search alone, all its kinds among them, and less than half as many."""
    fine = Basis(shape("Llama-3.1-8B"), machine("H100"), (), 0.0, None, engine, (512, 256))
    everybody, few = (
        {_told(each.choice) for each in candidates(basis)[0]} for basis in (fine, replace(fine, coarse=True))
    )
    assert few < everybody
    assert len(few) < len(everybody) / 2
    assert {told[:2] for told in few} == {told[:2] for told in everybody}


def _told(choice):
    return choice.kind, choice.method, choice.name, choice.params, choice.draft_tokens
