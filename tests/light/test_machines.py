"""Machines: every number has a source, a name finds one machine or says why not, and a document in other units is told so."""

import json
import re
from typing import Any

import pytest

from foredraft.machines import MACHINES, compute_rate, count_in, machine, named, placed
from foredraft.records import Machine

RECORD: dict[str, Any] = {
    "name": "H20", "memory_bytes": 1.03e11, "bandwidth_bytes_per_s": 4e12, "flops_per_s": {"bf16": 148e12}, "source": "x",
}  # fmt: skip


@pytest.mark.parametrize("card", MACHINES.values(), ids=MACHINES)
def test_every_machine_states_its_source(card):
    assert re.search("datasheet|whitepaper|guide", card.source)
    assert card.link_latency_s is None or "latency assumed" in card.source
    assert (card.link_latency_s is None) == (card.link_bytes_per_s is None)


@pytest.mark.parametrize("card", MACHINES.values(), ids=MACHINES)
def test_numbers_are_of_one_order(card):
    """Bounds that a sparse rate, both directions of a link or a digit too many would leave."""
    rates = card.flops_per_s
    sixteen = compute_rate(card, "bfloat16")[0]
    assert 20 < sixteen / card.bandwidth_bytes_per_s < 1000
    assert rates.get("float16", sixteen) == rates.get("bfloat16", sixteen)
    order = [rates[name] for name in ("float32", "tf32", "bfloat16") if name in rates]
    assert order == sorted(order)
    assert {round(rates[name] / sixteen, 1) for name in ("fp8", "int8") if name in rates} <= {1.0, 2.0, 4.0}
    if "fp4" in rates:
        assert 1.9 < rates["fp4"] / rates["fp8"] < 4.1  # GeForce's fp4 has no halved accumulation
    assert 14e9 < card.memory_bytes < 900e9
    assert (card.link_bytes_per_s or 0) < card.bandwidth_bytes_per_s


@pytest.mark.parametrize("card", MACHINES.values(), ids=MACHINES)
def test_memory_agrees_with_the_size_in_the_name(card):
    sizes = [int(word[:-2]) for word in card.name.split("-") if word.endswith("GB")]
    for size in sizes:
        assert card.memory_bytes / 1e9 == pytest.approx(size, rel=0.10)


# From the makers' tables, dense: bfloat16 (float16 of T4 and V100), bandwidth, memory in GB.
PUBLISHED = {
    "H20": (148e12, 4.0e12, 96), "A800": (312e12, 2.039e12, 80), "H800": (989.4e12, 3.35e12, 80), "GH200": (989.4e12, 4.0e12, 96),
    "GB200": (2500e12, 8e12, 192), "B300": (2250e12, 7.75e12, 288), "MI325X": (1307.4e12, 6e12, 256), "MI355X": (2516.6e12, 8e12, 288),
    "RTX 5090": (209.5e12, 1.792e12, 32), "RTX PRO 6000": (503.8e12, 1.792e12, 96), "A10G": (70e12, 600e9, 24), "T4": (65e12, 320e9, 16),
    "L40": (181.05e12, 864e9, 48), "A6000": (154.8e12, 768e9, 48), "V100": (125e12, 900e9, 32), "DGX Spark": (125e12, 273e9, 128),
    "M4 Max": (16.16e12, 546e9, 128), "M2 Ultra": (27.2e12, 800e9, 192), "EPYC 9654": (14.75e12, 460.8e9, 768), "TPU v6e": (918e12, 1.638e12, 32),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_are_the_makers(name):
    rate, bandwidth, gigabytes = PUBLISHED[name]
    card = machine(name)
    assert compute_rate(card, "bfloat16")[0] == pytest.approx(rate, rel=1e-3)
    assert card.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
    assert card.memory_bytes == pytest.approx(gigabytes * 1e9, rel=0.08)


def test_there_are_thirty_two_at_least_and_the_export_variants_have_narrower_links():
    assert len(MACHINES) >= 32
    for variant, whole in (("A800", "A100"), ("H800", "H100")):
        assert machine(variant).flops_per_s == machine(whole).flops_per_s
        assert machine(variant).link_bytes_per_s == 200e9 < (machine(whole).link_bytes_per_s or 0)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("H100", "H100-SXM-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("8xH100", "H100-SXM-80GB"),
        ("8×H100", "H100-SXM-80GB"),
        ("H100-94GB", "H100-SXM-94GB"),
        ("H100 94GB TP1", "H100-SXM-94GB"),
        ("LRZ partition lrz-hgx-h100-94x4 (H100 94GB)", "H100-SXM-94GB"),
        ("lrz-hgx-h100-94x4", "H100-SXM-94GB"),
        ("NVIDIA H100 NVL", "H100-NVL-94GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("A100", "A100-SXM-80GB"),
        ("A100 80GB", "A100-SXM-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("H200-SXM-141GBx8", "H200-SXM-141GB"),
        ("H200 NVL", "H200-NVL-141GB"),
        ("NVIDIA GH200 480GB", "GH200-96GB"),
        ("nvidia b200", "B200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("4xB300 TP4", "B300"),
        ("RTX-5090", "RTX-5090"),
        ("rtx5090", "RTX-5090"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
        ("2xRTX 4090", "RTX-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-Server"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX-PRO-6000-Max-Q"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("L4", "L4"),
        ("l40s", "L40S"),
        ("Tesla V100-SXM2-32GB", "V100-SXM-32GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GB10", "GB10"),
        ("AMD Instinct MI300X 192 GB", "MI300X"),
        ("1xMI355X", "MI355X"),
        ("Apple M2 MPS", "Apple-M2"),
        ("AMD EPYC 9654 96-Core Processor", "EPYC-9654"),
        ("Intel(R) Xeon(R) Platinum 8480+", "Xeon-8480"),
        ("Ascend 910b", "Ascend-910B"),
        ("4xH800 in-house engine", "H800-SXM-80GB"),
    ],
)
def test_lookup_is_forgiving(query, name):
    assert machine(query).name == name


@pytest.mark.parametrize("card", MACHINES.values(), ids=MACHINES)
def test_every_name_and_alias_finds_its_machine(card):
    for label in (card.name, *card.aliases):
        assert machine(label) is machine(label.upper()) is card


@pytest.mark.parametrize(
    "query",
    ["TPU-v4 bs=1", "", "H100 64GB", "RTX 4090 Laptop", "RTX 4090 D", "RTX 3090 Ti", "M2 Pro", "6000", "A100 40GB NVL"],
)
def test_an_unknown_machine_is_one_line(query):
    with pytest.raises(ValueError, match="is not known") as caught:
        machine(query)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_mistyped_machine_is_told_the_closest_ones():
    with pytest.raises(ValueError, match="closest: RTX-4090"):
        machine("RTX 4090 Laptop")


def test_two_machines_in_one_name_are_refused():
    with pytest.raises(ValueError, match="could be A100-SXM-80GB or H100-SXM-80GB"):
        machine("A100 vs H100")


COUNTS = {
    "8xH100": 8, "8×H100": 8, "8x H100": 8, "8 x H100": 8, "2xRTX 4090": 2, "2x RTX 5090": 2, "16*MI325X": 16, "H100x8": 8, "RTX 3090x2": 2,
    "H200-SXM-141GBx8": 8, "4xB300 TP4": 4, "B300 TP4": 4, "H100 94GB TP1": 1, "8x80GB H100": 8, "H100": None, "rtx5090": None,
    "MI300X": None, "H100-94GB": None, "lrz-hgx-h100-94x4": None, "RTX-5090": None,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_name_says_how_many(name):
    assert count_in(name) == COUNTS[name]


def test_devices_come_from_the_name_or_the_option_and_must_agree():
    stated: list[tuple[str, int | None]] = [("8xH100", None), ("H100", 2), ("8xH100", 8), ("H100", None)]
    assert [placed(name, devices)[1] for name, devices in stated] == [8, 2, 8, 1]
    with pytest.raises(ValueError, match="--machine 8xH100 says 8 devices, --devices 4; give one"):
        placed("8xH100", 4)
    for devices in (0, -1):
        with pytest.raises(ValueError, match="--devices must be at least 1"):
            placed("H100", devices)
    with pytest.raises(ValueError, match="at least 1 is needed"):
        placed("0xH100")
    with pytest.raises(ValueError, match="Apple-M4-Max states no link between devices; add link_bytes_per_s"):
        placed("M4 Max", 2)


# machine, weights, what it is multiplied in: vLLM widens fp8 and fp4 weights to 16 bits where the card lacks them.
COMPUTED = [
    ("A100", "fp8", "bfloat16"), ("A100", "int8", "int8"), ("H100", "fp8", "fp8"), ("H100", "nvfp4", "bfloat16"), ("B200", "nvfp4", "fp4"),
    ("MI355X", "mxfp4", "fp4"), ("H100", "int4", "bfloat16"), ("T4", "bfloat16", "float16"), ("V100", "fp8", "float16"),
    ("H100", "bf16", "bfloat16"), ("H100", "float32", "float32"), ("EPYC 9654", "float16", "bfloat16"), ("T4", "int4", "float16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "computed"), COMPUTED)
def test_a_format_that_a_machine_lacks_is_computed_in_a_wider_one(name, dtype, computed):
    card = machine(name)
    assert compute_rate(card, dtype) == (card.flops_per_s[computed], computed)


def test_a_machine_of_float32_alone_computes_all_in_it_and_one_of_fp8_alone_says_what_is_missing():
    plain = Machine(**dict(RECORD, flops_per_s={"float32": 1e13}))
    assert {compute_rate(plain, dtype) for dtype in ("bfloat16", "float16", "fp8", "int4")} == {(1e13, "float32")}
    with pytest.raises(
        ValueError,
        match="machine H20: dtype bfloat16 needs a rate for bfloat16 or float16 or float32, and the machine has fp8; add one",
    ) as caught:
        compute_rate(Machine(**dict(RECORD, flops_per_s={"fp8": 3e14})), "bfloat16")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["bf16", "BF16", "bfloat16", "torch.bfloat16"])
def test_formats_have_one_name_in_a_machine_document(tmp_path, key):
    path = tmp_path / "h20.json"
    path.write_text(json.dumps(RECORD | {"flops_per_s": {key: 148e12, "fp8_e4m3": 296e12, "nvfp4": 592e12}}))
    assert named(str(path)).flops_per_s == {"bfloat16": 148e12, "fp8": 296e12, "fp4": 592e12}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"flops_per_s": {"bfloat16": 148}}, r"flops_per_s\[bfloat16\] 148: it is in FLOP/s; 148e12\?"),
        ({"flops_per_s": {"bfloat16": 148000}}, r"148000e9\?"),
        ({"flops_per_s": {"bfloat16": 1e24}}, r"flops_per_s\[bfloat16\] 1e\+24: .* no machine has more"),
        ({"flops_per_s": {"bfloat16": 0}}, r"flops_per_s\[bfloat16\] must be positive"),
        ({"flops_per_s": {"bfloat16": -1e12}}, r"flops_per_s\[bfloat16\] must be positive"),
        ({"flops_per_s": {"q4_k": 1e14}}, r"flops_per_s\[q4_k\]: rates are by float32, .*; name one"),
        ({"flops_per_s": {"bf16": 1e14, "bfloat16": 2e14}}, "names bfloat16 twice"),
        ({"flops_per_s": {}}, "flops_per_s is empty; give"),
        ({"memory_bytes": 96}, r"memory_bytes 96: it is in bytes; 96e9\?"),
        ({"memory_bytes": 97871}, r"memory_bytes 97871: .*97871e6\?"),
        ({"memory_bytes": 0}, "memory_bytes must be positive"),
        ({"bandwidth_bytes_per_s": 4000}, r"bandwidth_bytes_per_s 4000: it is in bytes/s; 4000e9\?"),
        ({"bandwidth_bytes_per_s": 4.8}, r"bandwidth_bytes_per_s 4.8: .*4.8e12\?"),
        ({"bandwidth_bytes_per_s": -1e12}, "bandwidth_bytes_per_s must be positive"),
        ({"link_bytes_per_s": 900}, r"link_bytes_per_s 900: .*900e9\?"),
        ({"link_latency_s": 3}, r"link_latency_s 3: in seconds; 3e-6\?"),
        ({"bandwith": 1}, "bandwith"),
        ({"memory_bytes": None}, "memory_bytes"),
    ],
)  # fmt: skip
def test_a_document_in_other_units_is_one_line_that_names_the_field(tmp_path, fields, says):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(RECORD | fields))
    with pytest.raises(ValueError, match=says) as caught:
        named(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_94_gb_by_name():
    assert machine("H100 NVL").bandwidth_bytes_per_s == 3.9e12
    assert machine("H100 94GB").bandwidth_bytes_per_s == pytest.approx(2.396e12)
    # Qwen3-32B decodes there at 33.97 ms per token, which is 80 % of this bandwidth and could not be 120 % of any.
    assert 0.6 < 65.5e9 / 33.97e-3 / machine("H100 94GB").bandwidth_bytes_per_s < 1
