"""One self-contained HTML page of all records in some folders.

Promises: a section for whatever is there and a line for what is not; nothing is fetched and nothing needs a script; text
from records is shown as text. Refuses to know: how records are made.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.resources import files as resources
from pathlib import Path
from typing import NamedTuple

from foredraft import __version__
from foredraft.records import Provenance, write_bytes
from foredraft.report import inline, style
from foredraft.report.documents import Documents, read_documents
from foredraft.report.parts import Headline, Picture, Section, Table
from foredraft.report.sections import compared, fitted, headline, machine, measured, planned, swept, theory, trained

SECTIONS = (compared, planned, measured, fitted, machine, trained, theory, swept)
TEMPLATE, SHEET = "template.html.j2", "page.css"
MOST_SOURCES = 30


class Page(NamedTuple):
    """What was written: the page, and the files of its figures."""

    path: Path
    pictures: tuple[Picture, ...]
    figures: tuple[Path, ...] = ()


def write_page(folders: Iterable[str | Path], out: str | Path, figures: str | Path | None = None) -> Page:
    """Write the page of all records in `folders` to `out`, atomically; into `figures` each figure as PNG and SVG.

    Raises ValueError where there are no records or one cannot be read, ImportError where the extra `report` is missing.
    """
    documents = read_documents(folders)
    parts = {part: part.section(documents) for part in SECTIONS}
    sections = [section for section in parts.values() if section]
    lacking = [part.FILLED_BY for part, section in parts.items() if section is None]
    html = render(headline.headline(documents), sections, lacking, facts(documents), sources(documents))
    pictures = tuple(picture for section in sections for picture in section.pictures)
    drawn = style.draw(figures, {picture.name: inline.files(picture) for picture in pictures}) if figures else []
    write_bytes(out, html.encode())
    return Page(Path(out), pictures, tuple(drawn))


def render(
    top: Headline, sections: Sequence[Section], lacking: Sequence[str], facts: Sequence[tuple[str, str]], sources: Table | None
) -> str:  # fmt: skip
    """The page as a string; `lacking`: of each part that it leaves out, which record would fill it."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ImportError("the report page needs jinja2: pip install 'foredraft[report]'") from None
    here = resources("foredraft") / "report"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / TEMPLATE).read_text(encoding="utf-8"))
    pictures = {picture.name: Markup(inline.svg(picture)) for section in sections for picture in section.pictures}
    return template.render(
        sheet=Markup((here / SHEET).read_text(encoding="utf-8")), headline=top,
        sections=sections, svg=pictures, lacking=lacking, facts=facts, sources=sources,
    )  # fmt: skip


def facts(documents: Documents) -> list[tuple[str, str]]:
    """When, from where, and with which versions."""
    versions = {name: number for origin in _origins(documents) for name, number in origin.versions.items()}
    lines = [
        ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by foredraft {__version__}"),
        ("folders", ", ".join(path.name or str(path) for path in documents.folders)),
        ("documents", ", ".join(f"{many} × {name}" if many > 1 else name for name, many in _tally(documents).items())),
    ]
    if versions:
        lines.append(("measured with", ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))))
    return lines


def _tally(documents: Documents) -> dict[str, int]:
    names = ("Fit*.json" if path.name.startswith("Fit") else path.name for path in documents.paths)
    return dict(Counter(names).most_common())


def _origins(documents: Documents) -> list[Provenance]:
    """The provenance of every record that has one, each once."""
    origins: list[Provenance] = [row.observation.provenance for row in documents.rows]
    origins += [origin for record in (*documents.fits, *documents.plans) for origin in record.provenance]
    origins += [machine.provenance for machine in documents.machines if machine.provenance]
    return list(dict.fromkeys(origins))


def sources(documents: Documents) -> Table | None:
    """Where the numbers come from, those with the most rows first."""
    tally = Counter((row.observation.provenance.source, row.observation.provenance.trust) for row in documents.rows)
    tally.update((origin.source, origin.trust) for fit in documents.fits for origin in fit.provenance)
    if not tally:
        return None
    rows = [(source, trust.replace("_", " "), f"{many}") for (source, trust), many in tally.most_common(MOST_SOURCES)]
    omitted = f"; {len(tally) - MOST_SOURCES} more" if len(tally) > MOST_SOURCES else ""
    return Table(f"Sources of observations and laws{omitted}", ("source", "trust", "records"), rows)
