"""Accelerators as their makers describe them: memory, bandwidth, dense peaks, links.

Promises: dense rates (never the doubled "with sparsity" ones), a source beside every machine, and an error where a
name does not settle which machine is meant. Refuses to know what fraction of a peak anything reaches; `laws.cost` does.

Conventions of `published/machines.json`. `memory_bytes` is the total that the driver reports (nvidia-smi's MiB, rocm-smi's bytes);
engines see half a GiB less. Tensor rates are with float32 accumulation, `float32` is the plain rate, `tf32` the
tensor one; a format that the machine does not multiply in is left out. `link_bytes_per_s` is one way, summed over a device's links
to its peers. No datasheet gives `link_latency_s`: it is an assumed order of magnitude for one small message (3 µs for NVLink and its
like, 8 µs for PCIe), and every `source` says so.
"""

import difflib
import re
from importlib import resources

import msgspec

from foredraft.records import Machine, dtype_name, read, with_hint
from foredraft.shapes.formats import compute_dtype

_ALL = msgspec.json.decode(
    (resources.files("foredraft") / "published" / "machines.json").read_bytes(), type=list[Machine]
)
MACHINES: dict[str, Machine] = {machine.name: machine for machine in _ALL}
_ALIASES = {alias: machine.name for machine in _ALL for alias in machine.aliases}


def compute_rate(machine: Machine, dtype: str) -> tuple[float, str]:
    """FLOP/s at which `machine` multiplies weights of `dtype`, and the type that it multiplies in (`shapes.formats`: a wider one where
    it lacks theirs). Raises ValueError where it has no rate for any of them.
    """
    try:
        computed = compute_dtype(dtype_name(dtype), machine.flops_per_s)
    except ValueError as error:
        message = f"machine {machine.name}: {error}; add one to its flops_per_s"
        raise with_hint(ValueError(message), "foredraft list machines --json shows records to copy") from None
    return machine.flops_per_s[computed], computed


def device_time(hours: float) -> str:
    """Hours of one device in the unit that people would say them in: "132 device-hours", "4.5 device-minutes"."""
    units = ("hours", hours), ("minutes", 60 * hours), ("seconds", 3600 * hours)
    unit, number = next(((unit, number) for unit, number in units if number >= 1), units[-1])
    return f"{number:,.0f} device-{unit}" if number >= 10 else f"{number:.2g} device-{unit}"


# Words that make another machine of a name: they must be the machine's own.
_VARIANT = re.compile(r"\d+gb|pcie|nvl|laptop|mobile|mig|ti|super|d|ada|max|ultra|pro|server")
_MAKERS = re.compile(r"nvidia|amd|instinct|geforce|rtx|tensor core|gpu")
_NODE = re.compile(r"\b(\d{2,3})x\d{1,2}\b")  # "94x4", in the names of partitions: four of 94 GB
# "8xH100", "8 × H100"; "H100x8"; "TP4", "TP=4".
_COUNT = re.compile(r"^\s*(\d{1,3})\s*[x*]\s*(?=[a-z\d])|(?<=[a-z\d\s])[x*]\s*(\d{1,3})\s*$|\btp\s*=?\s*(\d{1,3})\b")


def _plain(name: str) -> str:
    """Without makers, in lower case."""
    return _MAKERS.sub(" ", name.lower().replace("×", "x"))


def _words(name: str) -> frozenset[str]:
    """The words of a machine's name that matter: makers and counts left out, "94x4" read as 94gb."""
    text = _NODE.sub(r" \1gb ", _plain(name))
    text = re.sub(r"(?<=[a-z\d])x\d{1,2}\b|\b\d{1,2}\s*x\s*(?=\w)", " ", text)
    text = re.sub(r"(\d+)\s*gi?b\b", r" \1gb ", text)
    text = re.sub(r"(sxm)\d?|(pcie|nvl)", r" \1\2 ", text)
    return frozenset(re.findall(r"[a-z0-9]+", text))


def count_in(name: str) -> int | None:
    """How many machines a name speaks of: 8 in "8xH100", 2 in "2x RTX 4090", 4 in "B300 TP4"; None where it does not say."""
    text = _NODE.sub(" ", _plain(name))
    counts = {int(group) for match in _COUNT.finditer(text) for group in match.groups() if group}
    return counts.pop() if len(counts) == 1 else None


def machine(name: str) -> Machine:
    """Look up an accelerator by name or alias, inside a longer description too ("LRZ partition … (H100 94GB)").

    A size or variant in the name that is not the machine's own is an error: an "H100 64GB" is not an H100-SXM-80GB.
    """
    words = _words(name)
    variants = {word for word in words if _VARIANT.fullmatch(word)}
    able = [record for record in _ALL if variants <= frozenset().union(*_labels(record))]
    fits = [(len(label), record.name) for record in able for label in _labels(record) if label <= words]
    best = {machine_name for size, machine_name in fits if size == max(fits)[0]}
    if len(best) != 1:
        closest = difflib.get_close_matches(name, [*MACHINES, *_ALIASES], n=3, cutoff=0.4)
        near = (
            f"; closest: {', '.join(dict.fromkeys(_ALIASES.get(label, label) for label in closest))}" if closest else ""
        )
        problem = f"could be {' or '.join(sorted(best))}" if best else f"is not known{near}"
        message = f"machine {name!r} {problem}; name one, or describe yours in a Machine record"
        raise with_hint(ValueError(message), "foredraft list machines")
    return MACHINES[best.pop()]


def named(name: str) -> Machine:
    """A known accelerator, or the Machine record in a .json file."""
    return read(Machine, name) if name.lower().endswith(".json") else machine(name)


def placed(name: str, devices: int | None = None, option: str = "--machine") -> tuple[Machine, int]:
    """The machine of that name and how many of it: `devices`, or the count in the name ("8xH100"), or 1; `option` gave the name.

    Raises ValueError where both are stated and differ, or several are asked of a machine without a link.
    """
    count = None if name.lower().endswith(".json") else count_in(name)
    if devices is not None and devices < 1:
        raise ValueError(f"--devices must be at least 1, got {devices}")
    if count == 0 or (count and devices and count != devices):
        raise ValueError(
            f"{option} {name} says {count} devices"
            + (f", --devices {devices}; give one of them" if devices else "; at least 1 is needed")
        )
    try:
        record, number = named(name), devices or count or 1
    except ValueError as error:
        error.args = (str(error).replace("machine", option, 1),)
        raise
    if number > 1 and record.link_bytes_per_s is None:
        raise ValueError(
            f"{f'--devices {devices}' if devices else f'{option} {name}'}: machine {record.name} states no link between devices; "
            "add link_bytes_per_s and link_latency_s to its record"
        )
    return record, number


def _labels(record: Machine) -> list[frozenset[str]]:
    return [_words(label) for label in (record.name, *record.aliases)]
