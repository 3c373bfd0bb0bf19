"""Measurements out of files: our own records, tables, and what other benchmarks write, told by their contents.

A new tool is a file here with LABEL, KNOWN, `is_mine` and `records`, and a word in `TOOLS`. Promises: every row is used, or counted
and named with the reason; so is every column that nothing is read from. Refuses to know: what the rows are used for.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from foredraft.published.cells import listed
from foredraft.published.opened import utf8_of
from foredraft.published.readers import aiperf, angelslim, guidellm, sglang_bench, specbench, specforge, vllm_bench
from foredraft.published.tables import UNSTATED, Reading, add_records, read_csv
from foredraft.records import Measurement, Observation, Provenance, TooDeepError, decode, dtype_name, parse, with_hint

TOOLS = (sglang_bench, vllm_bench, specforge, angelslim, aiperf, guidellm)
FORMS = "observations as JSON lines, CSV, " + ", ".join(
    (*(tool.LABEL for tool in TOOLS), specbench.LABEL, "/metrics pages of vLLM and SGLang")
)


def read(paths: Iterable[str | Path]) -> list[Reading]:
    """Read files one after another. Raises ValueError, one line, where one is broken or nothing in it is known."""
    return [_read(Path(path)) for path in paths]


def read_observations(paths: Iterable[str | Path]) -> list[Observation]:
    """The rows of files, without what was not used of them."""
    return [row for reading in read(paths) for row in reading.rows]


def joined(rows: Sequence[Observation], names: Sequence[str], target: str | None = None) -> list[Observation]:
    """`rows` with the targets in `names` under the one name `target`, the first of them by default.

    Raises ValueError on a name that no row has.
    """
    if not names:
        return list(rows)
    targets = dict.fromkeys(row.target for row in rows)
    if unknown := [name for name in names if name not in targets and name != target]:
        raise ValueError(f"target_name {unknown[0]!r}: no row is of it; they name {listed(list(targets)) or 'nothing'}")
    common_name = target or names[0]
    return [msgspec.structs.replace(row, target=common_name) if row.target in names else row for row in rows]


def _read(path: Path) -> Reading:
    data = utf8_of(path)
    start = data[:4096].lstrip()
    if start[:1] in (b"{", b"["):
        return _observations(path, data) if _is_ours(data) else _documents(path, data)
    if start[:1] == b"#" or b":" in start.split(b"{", 1)[0].split(b"\n", 1)[0]:
        text = data.decode()
        from foredraft.published.readers import prometheus

        if prometheus.is_page(text):
            return _page(path, text)
    reading = read_csv(path, data)
    if reading.columns.keys() >= vllm_bench.FLAT:
        reading.form = vllm_bench.LABEL
        reading.columns = {name: None for name in reading.columns if not vllm_bench.KNOWN.fullmatch(name)}
    return reading


def _is_ours(data: bytes) -> bool:
    """Whether the first line is an Observation or a Measurement of ours."""
    first = data.lstrip().split(b"\n", 1)[0]
    try:
        keys = parse(first, dict[str, msgspec.Raw]).keys()
    except ValueError:
        return b'"provenance"' in first
    return keys >= {"run", "target", "method"} or keys >= {"observation", "way"}


def _observations(path: Path, data: bytes) -> Reading:
    """Observations a line, or Measurements, of which those of one category alone stand beside their sum."""
    reading, share = Reading(path.name, "observations"), _sharing()
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.startswith(b'{"observation"'):
            measurement = decode(Measurement, line, name=f"{path}:{number}")
            if measurement.category is None:
                reading.rows.append(share(measurement.observation))
            else:
                reading.leave_out(str(number), "of one category, whose requests the row of all categories counts")
        elif not line.isspace():
            reading.rows.append(share(decode(Observation, line, name=f"{path}:{number}")))
    return reading


def _sharing() -> Callable[[Observation], Observation]:
    """Gives a row its dtype by its usual name, and equal provenances of rows as one, so that 100,000 rows hold few."""
    origins: dict[Provenance, Provenance] = {}
    dtypes: dict[str | None, str | None] = {None: None}
    force = msgspec.structs.force_setattr

    def share(row: Observation) -> Observation:
        origin = origins.setdefault(row.provenance, row.provenance)
        if origin is not row.provenance and origin.versions == row.provenance.versions:
            force(row, "provenance", origin)
        if row.dtype not in dtypes:
            dtypes[row.dtype] = dtype_name(row.dtype or "")
        if row.dtype != dtypes[row.dtype]:
            force(row, "dtype", dtypes[row.dtype])
        return row

    return share


def _page(path: Path, text: str) -> Reading:
    from foredraft.published.readers import prometheus

    reading = Reading(path.name, prometheus.LABEL)
    add_records(reading, prometheus.records(text))
    reading.columns = dict.fromkeys(prometheus.unread(text))
    reading.remarks["totals since the server's start"] = len(reading.rows)
    return reading


def _documents(path: Path, data: bytes) -> Reading:
    """JSON of other tools: one document, one a line, or one after another, and lists of them."""
    reading, answers, labels = Reading(path.name), [], {}
    unknown: dict[str, Any] = {}
    for number, document in _json(path.name, data.decode()):
        tool = next((tool for tool in TOOLS if tool.is_mine(document)), None)
        if tool is not None:
            labels[tool.LABEL] = None
            _add(reading, tool, str(number), document)
        elif specbench.is_mine(document):
            answers.append(document)
        else:
            unknown |= document
            reading.leave_out(str(number), "of no known tool")
    if answers:
        labels[specbench.LABEL] = None
        add_records(reading, specbench.pooled(answers), specbench.KNOWN)
    if not labels:
        keys = ", ".join(list(unknown)[:8]) or "none"
        raise with_hint(ValueError(f"{path.name}: JSON of no known tool (its keys: {keys})"), f"what is read: {FORMS}")
    reading.form = ", ".join(labels)
    return reading


def _add(reading: Reading, tool: Any, place: str, document: Mapping[str, Any]) -> None:
    try:
        records = [(f"{place}:{within}" if within else place, record) for within, record in tool.records(document)]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{reading.name}:{place}: not as {tool.LABEL} writes it ({error})") from None
    if not records:
        reading.leave_out(place, getattr(tool, "left_out", lambda _: None)(document) or "no run in it")
    add_records(reading, records, tool.KNOWN)
    if not any(record.get("method") or record.get("k") is not None for _, record in records):
        plain = sum(row.method != UNSTATED for row in reading.rows[-len(records) :])
        if plain:
            what = "nothing said of speculation, read as plain decoding"
            reading.remarks[what] = reading.remarks.get(what, 0) + plain


def _json(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each JSON object with the line that it begins in."""
    decoder, position, line = json.JSONDecoder(), 0, 1
    while True:
        space = len(text) - len(text[position:].lstrip()) - position if position < len(text) else 0
        line += text.count("\n", position, position + space)
        position += space
        if position >= len(text):
            return
        try:
            value, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", None) or TooDeepError()
            raise ValueError(f"{name}:{line}: not JSON ({reason})") from None
        for document in value if isinstance(value, list) else [value]:
            if not isinstance(document, dict):
                raise ValueError(f"{name}:{line}: a JSON object is needed, got {type(document).__name__}")
            yield line, document
        line += text.count("\n", position, end)
        position = end
