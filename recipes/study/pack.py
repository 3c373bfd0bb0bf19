"""The whole study as one archive: observations, machine, grids, the corpus' recipe, scripts, environment, and what rebuild.py makes of them.

    python recipes/study/pack.py build/foredraft-study-0.2.0.tar.gz

The same tree and environment give the same bytes: members are sorted, without owner or time. README.md in the archive says how to use it.
"""

import gzip
import hashlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from rebuild import DRAWS, rebuild

ROOT = Path(__file__).parents[2]
NEEDS = "foredraft[report]"
# By place in the archive: what is copied there.
CONTENTS = {
    "README.md": "recipes/study/README.md",
    "rebuild.py": "recipes/study/rebuild.py",
    "studies/tales-11m/observations.jsonl.gz": "results/experiment/observations.jsonl.gz",
    "studies/tales-11m/machine.json": "results/experiment/machine.json",
    "studies/tales-11m/target": "results/experiment/tales-11m",
    "studies/smollm2/observations.jsonl.gz": "results/smollm2/observations.jsonl.gz",
    "studies/smollm2/observations-kinds.jsonl.gz": "results/smollm2/kinds.jsonl.gz",
    "grids/tales-11m.json": "recipes/experiment/grid.json",
    "grids/smollm2.json": "recipes/smollm2/grid.json",
    "grids/smollm2-kinds.json": "recipes/smollm2/kinds.json",
    "grids/smollm2-rates.json": "recipes/smollm2/rates.json",
    "corpus/corpus.json": "recipes/study/corpus.json",
    "corpus/experiment": "recipes/experiment",
    "corpus/smollm2": "recipes/smollm2",
    "scripts/laws.py": "recipes/laws.py",
    "scripts/plans.py": "recipes/plans.py",
    "scripts/compare.py": "recipes/compare.py",
}


def pack(path: Path, contents: Mapping[str, str], root: Path = ROOT, draws: int = DRAWS) -> Path:
    """Write the archive of `contents` below `root` and of what its observations come to; its folder is named as the archive."""
    files = {place: read.read_bytes() for place, read in sorted(_files(contents, root))}
    files["environment.lock"] = "".join(f"{line}\n" for line in lock(NEEDS)).encode()
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        for place in (place for place in files if place.startswith("studies/")):
            (staged / place).parent.mkdir(parents=True, exist_ok=True)
            (staged / place).write_bytes(files[place])
        rebuild(staged / "studies", staged / "rebuilt", draws)
        made = sorted(made for made in (staged / "rebuilt").rglob("*") if made.is_file())
        files |= {str(made.relative_to(staged)): made.read_bytes() for made in made}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {place}\n" for place, data in sorted(files.items()))
    files["CHECKSUMS"] = sums.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive(files, path.name.removesuffix(".tar.gz")))
    return path


def _files(contents: Mapping[str, str], root: Path) -> Iterator[tuple[str, Path]]:
    """Place in the archive and path of every file; folders file by file. Raises ValueError where one is missing."""
    for place, source in contents.items():
        path = root / source
        if path.is_file():
            yield place, path
            continue
        below = [each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
        if not below:
            raise ValueError(f"{path}: no such file or folder; the study is packed from a checkout of the repository")
        yield from ((f"{place}/{each.relative_to(path)}", each) for each in below)


def archive(files: Mapping[str, bytes], folder: str) -> bytes:
    """A .tar.gz of `files` in `folder`, the same bytes for the same files."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for place, data in sorted(files.items()):
            member = tarfile.TarInfo(f"{folder}/{place}")
            member.size, member.mode = len(data), 0o755 if place.endswith(".sh") else 0o644
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def lock(needs: str) -> list[str]:
    """Every distribution that `needs` comes to here, as name==version."""
    pending, locked = [Requirement(needs)], {}
    while pending:
        requirement = pending.pop()
        key = (requirement.name.lower().replace("_", "-"), tuple(sorted(requirement.extras)))
        if key in locked:
            continue
        distribution = metadata.distribution(requirement.name)
        locked[key] = distribution.version
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                pending.append(needed)
    return sorted({f"{name}=={version}" for (name, _), version in locked.items()})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(pack(Path(sys.argv[1]), CONTENTS))
