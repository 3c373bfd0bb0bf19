"""The page in a browser: no error, no request, readable at every width, in the dark, and with scripts switched off."""

import pytest
from report_records import write_all

from browser import opened

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from foredraft.report.page import write_page

WIDTHS = {"page": 1280, "phone": 390}
SCREEN = 844  # pixels of height
SMALLEST = 8.5  # pixels of a figure's text on a phone


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("page"))
    return write_page([folder], folder / "report.html")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_an_error_or_a_request_and_fits(browser, page_file, scheme, width):
    tab, messages = opened(
        browser, page_file.path.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
    )
    assert messages == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    cut = tab.evaluate("[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)")
    assert width < 1280 or max(cut) <= 0
    for part in ("h1", ".command pre", ".arms tbody tr"):
        box = tab.evaluate(f"document.querySelector('{part}').getBoundingClientRect().toJSON()")
        assert 0 < box["top"] < box["bottom"] < SCREEN, f"{part} is not on the first screen"
    assert tab.inner_text(".arms tbody th >> nth=0") == "EAGLE-3, k\u00a0=\u00a04"
    boxes = tab.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == len(page_file.pictures)
    assert all(box["width"] > 0.7 * min(width, 450) and box["height"] > 100 for box in boxes)
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert (brightness(ground) > 128) is (scheme == "light")
    assert abs(brightness(ground) - brightness(ink)) > 150
    tab.context.close()


def brightness(colour: str) -> float:
    """Mean of rgb(r, g, b)."""
    parts = [float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]]
    return sum(parts) / 3


def test_text_of_figures_is_readable_on_a_phone_and_lies_within_them(browser, page_file):
    tab, _ = opened(browser, page_file.path.as_uri(), viewport={"width": 390, "height": 900})
    sizes, outside = tab.evaluate("""() => {
      const texts = [...document.querySelectorAll('svg text')].filter(t => t.textContent.trim());
      const scale = t => { const svg = t.ownerSVGElement; return svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; };
      const sizes = texts.map(t => parseFloat(getComputedStyle(t).fontSize) * scale(t));
      const outside = texts.filter(t => { const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
        return a.left < b.left - 12 || a.right > b.right + 12 || a.top < b.top - 12 || a.bottom > b.bottom + 12; });
      return [sizes, outside.map(t => t.textContent)]; }""")
    assert min(sizes) > SMALLEST
    assert outside == []
    tab.context.close()


def test_it_says_the_same_without_scripts(browser, page_file):
    texts = []
    for enabled in (True, False):
        tab, messages = opened(browser, page_file.path.as_uri(), java_script_enabled=enabled)
        assert messages == []
        texts.append(tab.inner_text("main"))
        tab.context.close()
    assert texts[0] == texts[1]
    assert "Predicted against measured" in texts[0]


def test_print_cuts_no_figure(browser, page_file):
    """No figure is split between pages, and tables are printed whole."""
    tab, _ = opened(browser, page_file.path.as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    styles = tab.evaluate("""() => [...document.querySelectorAll('figure.picture')].map(e => getComputedStyle(e).breakInside)
      .concat([...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e).maxHeight == 'none' ? 'avoid' : 'cut'))""")
    assert set(styles) == {"avoid"}
    assert brightness(tab.evaluate("getComputedStyle(document.body).backgroundColor")) == 255
    tab.context.close()


def test_what_is_watched_is_heard(browser, tmp_path):
    """Negative control: a page with a script that fails and an image from elsewhere."""
    path = tmp_path / "bad.html"
    wide = "<div class='scroll' style='overflow:auto'><p style='width: 5000px'>x</p></div>"
    path.write_text(f"<script>console.error('heard')</script><img src='https://example.invalid/x.png'>{wide}")
    tab, messages = opened(browser, path.as_uri())
    assert any("heard" in line for line in messages)
    assert any("example.invalid" in line for line in messages)
    assert tab.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))") > 0
    tab.context.close()
