"""Accelerators as their makers describe them: memory, bandwidth, dense peaks, links.

Promises: dense rates (never the doubled "with sparsity" ones), a source beside every machine, and an error where a
name does not settle which machine is meant. Refuses to know what fraction of a peak anything reaches; `laws.cost` does.

Conventions. `memory_bytes` is the total that the driver reports (nvidia-smi's MiB, rocm-smi's bytes); engines see half
a GiB less. `float16` and `fp8` are tensor rates with float32 accumulation, `float32` is the plain rate, `tf32` the
tensor one. `link_bytes_per_s` is one way, summed over a device's links to its peers. No datasheet gives
`link_latency_s`: it is an assumed order of magnitude for one small message, and every `source` says so.
"""

import re

from foredraft.records import Machine, read, with_hint

MIB = 2.0**20
NVLINK_LATENCY_S, PCIE_LATENCY_S = 3e-6, 8e-6
PCIE4_BYTES_PER_S = 32e9
ASSUMED = "; link latency assumed"


def device_time(hours: float) -> str:
    """Hours of one device in the unit that people would say them in: "132 device-hours", "4.5 device-minutes"."""
    units = ("hours", hours), ("minutes", 60 * hours), ("seconds", 3600 * hours)
    unit, number = next(((unit, number) for unit, number in units if number >= 1), units[-1])
    return f"{number:,.0f} device-{unit}" if number >= 10 else f"{number:.2g} device-{unit}"


def _tera(**rates: float) -> dict[str, float]:
    """Peaks given in tera-operations per second; bfloat16 and float16 have one tensor rate on all machines here."""
    return {"float16": rates["bfloat16"] * 1e12} | {dtype: rate * 1e12 for dtype, rate in rates.items()}


_A100 = _tera(bfloat16=312, tf32=156, float32=19.5, int8=624)
_H100_SXM = _tera(bfloat16=989.4, fp8=1978.9, tf32=494.7, float32=66.9, int8=1978.9)

_ALL = (
    Machine(
        name="A100-40GB", aliases=("A100 40GB", "A100 PCIe 40GB", "A100 SXM 40GB"),
        memory_bytes=40960 * MIB, bandwidth_bytes_per_s=1555e9, flops_per_s=_A100,
        link_bytes_per_s=300e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA A100 Tensor Core GPU datasheet (2020)" + ASSUMED,
    ),
    Machine(
        name="A100-SXM-80GB", aliases=("A100", "A100 80GB", "A100 SXM"),
        memory_bytes=81920 * MIB, bandwidth_bytes_per_s=2039e9, flops_per_s=_A100,
        link_bytes_per_s=300e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA A100 Tensor Core GPU datasheet (2021), SXM column" + ASSUMED,
    ),
    Machine(
        name="A100-PCIe-80GB", aliases=("A100 PCIe",),
        memory_bytes=81920 * MIB, bandwidth_bytes_per_s=1935e9, flops_per_s=_A100,
        link_bytes_per_s=300e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA A100 Tensor Core GPU datasheet (2021), PCIe column (pairs bridged by NVLink)" + ASSUMED,
    ),
    Machine(
        name="H100-SXM-80GB", aliases=("H100", "H100 80GB", "H100 SXM"),
        memory_bytes=81559 * MIB, bandwidth_bytes_per_s=3.35e12, flops_per_s=_H100_SXM,
        link_bytes_per_s=450e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA H100 Tensor Core GPU datasheet, SXM column, halved where sparse" + ASSUMED,
    ),
    Machine(
        name="H100-PCIe-80GB", aliases=("H100 PCIe",),
        memory_bytes=81559 * MIB, bandwidth_bytes_per_s=2.0e12,
        flops_per_s=_tera(bfloat16=756, fp8=1513, tf32=378, float32=51, int8=1513),
        link_bytes_per_s=300e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA H100 PCIe GPU product brief PB-11133 and H100 datasheet (pairs bridged by NVLink)" + ASSUMED,
    ),
    Machine(
        name="H100-NVL-94GB", aliases=("H100 NVL",),
        memory_bytes=95830 * MIB, bandwidth_bytes_per_s=3.9e12,
        flops_per_s=_tera(bfloat16=835.5, fp8=1670.5, tf32=417.5, float32=60, int8=1670.5),
        link_bytes_per_s=300e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA H100 Tensor Core GPU datasheet, NVL column, halved where sparse" + ASSUMED,
    ),
    # The HBM2e variant on the HGX H100 4-GPU board of computing centres (LRZ, TSUBAME 4.0): more memory than the 80 GB
    # part, but slower. A bare "H100 94GB" means this one; the PCIe card of that size is called NVL.
    Machine(
        name="H100-SXM-94GB", aliases=("H100 94GB",),
        memory_bytes=95830 * MIB, bandwidth_bytes_per_s=2.396e12, flops_per_s=_H100_SXM,
        link_bytes_per_s=450e9, link_latency_s=NVLINK_LATENCY_S,
        source="TSUBAME 4.0 hardware guide, H100 SXM5 94GB HBM2e at 2,395.87 GB/s; "
        "memory as of H100 NVL" + ASSUMED,
    ),
    Machine(
        name="H200-SXM-141GB", aliases=("H200", "H200 141GB", "H200 SXM"),
        memory_bytes=143771 * MIB, bandwidth_bytes_per_s=4.8e12, flops_per_s=_H100_SXM,
        link_bytes_per_s=450e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA H200 Tensor Core GPU datasheet, SXM column, halved where sparse" + ASSUMED,
    ),
    Machine(
        name="B200", aliases=("B200 180GB", "B200 SXM"),
        memory_bytes=183359 * MIB, bandwidth_bytes_per_s=8e12,
        flops_per_s=_tera(bfloat16=2250, fp8=4500, tf32=1125, float32=75, int8=4500),
        link_bytes_per_s=900e9, link_latency_s=NVLINK_LATENCY_S,
        source="NVIDIA DGX/HGX B200 datasheet per GPU, halved where sparse" + ASSUMED,
    ),
    Machine(
        name="L40S", aliases=("L40S 48GB",),
        memory_bytes=46068 * MIB, bandwidth_bytes_per_s=864e9,
        flops_per_s=_tera(bfloat16=362.05, fp8=733, tf32=183, float32=91.6, int8=733),
        link_bytes_per_s=PCIE4_BYTES_PER_S, link_latency_s=PCIE_LATENCY_S,
        source="NVIDIA L40S datasheet, PCIe 4.0 x16" + ASSUMED,
    ),
    Machine(
        name="L4", aliases=("L4 24GB",),
        memory_bytes=23034 * MIB, bandwidth_bytes_per_s=300e9,
        flops_per_s=_tera(bfloat16=121, fp8=242.5, tf32=60, float32=30.3, int8=242.5),
        link_bytes_per_s=PCIE4_BYTES_PER_S, link_latency_s=PCIE_LATENCY_S,
        source="NVIDIA L4 datasheet, halved where sparse, PCIe 4.0 x16" + ASSUMED,
    ),
    Machine(
        name="RTX-3090", aliases=("3090", "3090 24GB"),
        memory_bytes=24576 * MIB, bandwidth_bytes_per_s=936e9,
        flops_per_s=_tera(bfloat16=71.2, tf32=35.6, float32=35.6, int8=284.7),
        link_bytes_per_s=PCIE4_BYTES_PER_S, link_latency_s=PCIE_LATENCY_S,
        source="NVIDIA Ampere GA102 architecture whitepaper, PCIe 4.0 x16 without the NVLink bridge" + ASSUMED,
    ),
    Machine(
        name="RTX-4090", aliases=("4090", "4090 24GB"),
        memory_bytes=24564 * MIB, bandwidth_bytes_per_s=1008e9,
        flops_per_s=_tera(bfloat16=165.2, fp8=330.3, tf32=82.6, float32=82.6, int8=660.6),
        link_bytes_per_s=PCIE4_BYTES_PER_S, link_latency_s=PCIE_LATENCY_S,
        source="NVIDIA Ada GPU architecture whitepaper, PCIe 4.0 x16" + ASSUMED,
    ),
    Machine(
        name="MI300X", aliases=("MI300X 192GB",),
        memory_bytes=206141652992.0, bandwidth_bytes_per_s=5.3e12,
        flops_per_s=_tera(bfloat16=1307.4, fp8=2614.9, tf32=653.7, float32=163.4, int8=2614.9),
        link_bytes_per_s=448e9, link_latency_s=NVLINK_LATENCY_S,
        source="AMD Instinct MI300X datasheet, xGMI 7 links of 64 GB/s one way" + ASSUMED,
    ),
)  # fmt: skip

MACHINES: dict[str, Machine] = {machine.name: machine for machine in _ALL}

# Words that make another machine of a name: they must be the machine's own.
_VARIANT = re.compile(r"\d+gb|pcie|nvl|laptop|mobile|mig|ti|super|d|ada")


def _words(name: str) -> frozenset[str]:
    """The words of a machine's name that matter: makers and counts left out, "94x4" (four of 94 GB) read as 94gb."""
    text = re.sub(r"nvidia|amd|instinct|geforce|rtx|tensor core|gpu", " ", name.lower().replace("×", "x"))
    text = re.sub(r"\b(\d{2,3})x\d{1,2}\b", r" \1gb ", text)
    text = re.sub(r"(?<=[a-z\d])x\d{1,2}\b|\b\d{1,2}\s*x\s*(?=\w)", " ", text)
    text = re.sub(r"(\d+)\s*gi?b\b", r" \1gb ", text)
    text = re.sub(r"(sxm)\d?|(pcie|nvl)", r" \1\2 ", text)
    return frozenset(re.findall(r"[a-z0-9]+", text))


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
        problem = f"could be {' or '.join(sorted(best))}" if best else f"is not known; have {', '.join(MACHINES)}"
        message = f"machine {name!r} {problem}; name one, or describe yours in a Machine record"
        raise with_hint(ValueError(message), "foredraft list machines")
    return MACHINES[best.pop()]


def named(name: str) -> Machine:
    """A known accelerator, or the Machine record in a .json file."""
    return read(Machine, name) if name.endswith(".json") else machine(name)


def _labels(record: Machine) -> list[frozenset[str]]:
    return [_words(label) for label in (record.name, *record.aliases)]
