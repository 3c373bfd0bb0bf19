"""Files in parts, for machines that take and give small ones, and packages that lie beside as wheels.

Promises: parts joined in the order of their names are the file; what is packed first is what comes first. Refuses to know: steps.
"""

import io
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PART_BYTES = 15 * 2**20


def join(parts: Iterable[Path], out: Path) -> Path:
    """One file of parts, in the order of their names. Raises ValueError where a part is missing."""
    ordered = sorted(parts, key=lambda part: part.name)
    lacking = [str(part) for part in ordered if not part.is_file()]
    if lacking:
        raise ValueError(f"--join {lacking[0]}: no such file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as whole:
        for part in ordered:
            whole.write(part.read_bytes())
    return out


def use_site(site: Path, work: Path) -> list[str]:
    """Let Python import what lies in `site`: unpacked packages, and wheels, which are unpacked into `work`; the paths added."""
    wheels = sorted(site.glob("*.whl"))
    unpacked = work / "site"
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    paths = [str(site.resolve()), *([str(unpacked.resolve())] if wheels else [])]
    sys.path[1:1] = paths
    return paths


def pack(entries: Iterable[tuple[Path, str]], folder: Path, most_bytes: int) -> tuple[list[Path], list[str]]:
    """Write (file, name) `entries` to packed.tar in parts of PART_BYTES; what would exceed `most_bytes` is left out, and named."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer, left, size = io.BytesIO(), [], 0
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, name in entries:
            padded = 1024 + -(-path.stat().st_size // 512) * 512
            if size + padded > most_bytes:
                left.append(name)
                continue
            size += padded
            archive.add(path, arcname=name, recursive=False)
    data, parts = buffer.getvalue(), []
    for i, start in enumerate(range(0, len(data), PART_BYTES)):
        parts.append(folder / f"packed.tar.{i:02}")
        parts[-1].write_bytes(data[start : start + PART_BYTES])
    return parts, left
