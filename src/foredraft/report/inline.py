"""A picture as SVG inside a page: its ink follows the page's light and dark, its text is text.

Promises: ids unique to the picture, a label for screen readers, nothing fetched. Refuses to know:
what is drawn.
"""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any
from xml.etree import ElementTree

from foredraft.report import style
from foredraft.report.parts import Picture

WIDTH_IN = 5.0  # a phone held upright shows its 10 points as 10 pixels, a column of the page as 14
LABEL_WIDTH = 34  # characters of an upright label
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# Ink to the page's variables; what is not listed (colour maps) is the same on both grounds.
INKS = {
    style.BLACK: "ink", "#ffffff": "paper", style.GREY: "grey", "#b0b0b0": "rule", "#cccccc": "rule",
    style.BLUE: "blue", style.SKY: "sky", style.GREEN: "green", style.ORANGE: "orange",
    style.VERMILION: "vermilion", style.PURPLE: "purple",
}  # fmt: skip
VARIABLES = {colour.lower(): f"var(--{name})" for colour, name in INKS.items()}
LOOK: dict[Any, Any] = {
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.fontsize": 9.5,
    "axes.grid": True, "grid.color": "#b0b0b0", "grid.alpha": 0.35, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": style.GREY, "xtick.color": style.GREY,
    "ytick.color": style.GREY, "xtick.labelcolor": style.BLACK, "ytick.labelcolor": style.BLACK, "xtick.major.size": 3,
    "ytick.major.size": 3, "axes.linewidth": 0.8, "lines.linewidth": 1.6, "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "foredraft",
}  # fmt: skip


def figure(picture: Picture) -> Any:
    """The painted matplotlib figure, without the title that the page sets in its own type."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'foredraft[report]'") from None
    painted = Figure(figsize=(WIDTH_IN, picture.height_in), layout="constrained")
    picture.paint(painted)
    painted.suptitle("")
    style.mark_log_axes(painted)
    for axes in painted.axes:
        axes.set_ylabel(style.wrap(axes.get_ylabel(), LABEL_WIDTH))
    return _plain(painted)


def _plain(figure: Any) -> Any:
    """Names of records are not mathematics, whatever dollars they hold."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def svg(picture: Picture) -> str:
    """The picture as an <svg> element."""
    from matplotlib import rc_context

    with rc_context(LOOK):
        buffer = io.BytesIO()
        figure(picture).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), picture.name, picture.title)


def files(picture: Picture) -> Callable[[Any], None]:
    """The same picture for `style.draw`: a file that stands alone and so bears its title."""

    def paint(figure: Any) -> None:
        picture.paint(figure)
        style.title(figure, picture.title, 80)
        _plain(figure)

    return paint


def inline(drawn: bytes, name: str, title: str) -> str:
    """A figure of matplotlib's as an element without prolog, metadata or style; ids begin with `name`, described by `name`-caption."""
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("metadata") or child.tag == f"{SVG}style":
                parent.remove(child)
    body = "".join(_element(child, name) for child in root)
    view = " ".join(f"{float(part):g}" for part in root.attrib["viewBox"].split())
    label = f'role="img" aria-label="{escape(title)}" aria-describedby="{name}-caption"'
    return f'<svg viewBox="{view}" {label}>{body}</svg>'


def _element(node: ElementTree.Element, name: str) -> str:
    """One element and what it holds, as HTML takes it: without namespaces."""
    tag = node.tag.removeprefix(SVG)
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in _attributes(node, name).items())
    inner = escape(node.text or "", quote=False) if tag in ("text", "tspan") else ""
    inner += "".join(_element(child, name) for child in node)
    return f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"


def _attributes(node: ElementTree.Element, name: str) -> dict[str, str]:
    """Ids and references made the picture's own, colours the page's, coordinates rounded to what is seen."""
    attributes = {}
    for key, value in node.attrib.items():
        key = key.removeprefix(XLINK)
        if key == "id":
            if node.tag == f"{SVG}g":
                continue  # groups bear ids that nothing refers to
            value = f"{name}-{value}"
        elif key == "href":
            value = value.replace("#", f"#{name}-", 1) if value.startswith("#") else value
        elif key == "clip-path":
            value = value.replace("url(#", f"url(#{name}-")
        elif key == "style":
            value = _ink(value)
        elif key == "d":
            value = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
        attributes[key] = value
    return attributes


def _ink(value: str) -> str:
    """Colours as variables; fonts as the page's."""
    value = re.sub(r"font-family: [^;]*;?", "", value)
    value = re.sub(r"font: ([\d.]+px) [^;]*;?", r"font-size: \1;", value)
    value = re.sub(r"#[0-9a-fA-F]{6}", lambda match: VARIABLES.get(match[0].lower(), match[0]), value)
    return re.sub(r"\s+", " ", value).strip()
