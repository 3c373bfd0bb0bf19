"""Configs of targets as published, counted against the tensors of their reference implementations and the totals of the Hub.

`target_configs.json.gz` holds the configs (and hf_quant_config.json) with the keys that only tokenizers and generation read left out. Parameters:
transformers 5.24's class of each config built without memory and its tensors summed; where it has none (MiMo, Step 3.7's flat config, V4 by
another name) the class of its kind. Active ones: less the experts that a token does not use, the embedding included. Caches: by hand.
"""

import gzip
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from foredraft import kinds
from foredraft.plan.candidates import public
from foredraft.shapes import Shape, compute_dtype, from_config, head, known_shapes, named, scaled, shape, stated
from foredraft.shapes.formats import FORMATS, bytes_per_value, matrix_bytes
from foredraft.shapes.quantised import format_of_name

CONFIGS = json.loads(gzip.decompress((Path(__file__).parent / "target_configs.json.gz").read_bytes()))


def target(name: str, folder: Path) -> Shape:
    """The shape of a target's folder, named as the Hub names it."""
    place = folder / name.rsplit("/", 1)[-1]
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIGS[name]["config"]))
    if "hf_quant_config" in CONFIGS[name]:
        (place / "hf_quant_config.json").write_text(json.dumps(CONFIGS[name]["hf_quant_config"]))
    return from_config(place)


def full(layers, kv_heads, dim, size=2):
    """Bytes of a token's keys and values."""
    return layers * 2 * kv_heads * dim * size


def delta(layers, value_heads):
    """State of Gated DeltaNet: a float32 matrix of 128 x 128 a head, 3 steps of the convolution over q, k (16 heads) and v in 16 bits."""
    return layers * (4 * value_heads * 128 * 128 + 2 * 3 * (2 * 16 + value_heads) * 128)


def mamba(layers, heads, size=128, ssm=4):
    """State of Mamba-2: heads of 64 by the state's size, 3 steps of the convolution over x, B and C (8 groups) in 16 bits."""
    return layers * (ssm * heads * 64 * size + 2 * 3 * (heads * 64 + 2 * 8 * size))


V4_PRO = (
    61 * 2 * 512,
    31 * 2 * 512 / 128 + 30 * (2 * 512 + 128) / 4,
)  # a window's token, and what a token leaves for good
V4_FLASH = 43 * 2 * 512, 20 * 2 * 512 / 128 + 21 * (2 * 512 + 128) / 4
# parameters, active, embedding with LM head; cache bytes of a token, of 100,000 tokens (where windows bind or a state is held)
PUBLISHED = {
    "MiniMaxAI/MiniMax-M2.5": (228_689_748_992, 11_030_537_216, 1_229_193_216, full(62, 8, 128), None),
    "MiniMaxAI/MiniMax-M2.7": (228_689_748_992, 11_030_537_216, 1_229_193_216, full(62, 8, 128), None),
    "Qwen/Qwen3-0.6B": (596_049_920, 596_049_920, 155_582_464, full(28, 8, 128), None),
    "Qwen/Qwen3-1.7B": (1_720_574_976, 1_720_574_976, 311_164_928, full(28, 8, 128), None),
    "Qwen/Qwen3-235B-A22B": (235_093_634_560, 22_190_763_520, 1_244_659_712, full(94, 4, 128), None),
    "Qwen/Qwen3-235B-A22B-FP8": (235_093_634_560, 22_190_763_520, 1_244_659_712, full(94, 4, 128), None),
    "Qwen/Qwen3-30B-A3B-FP8": (30_532_122_624, 3_353_032_704, 622_329_856, full(48, 4, 128), None),
    "Qwen/Qwen3-8B": (8_190_735_360, 8_190_735_360, 1_244_659_712, full(36, 8, 128), None),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (30_532_122_624, 3_353_032_704, 622_329_856, full(48, 4, 128), None),
    "Qwen/Qwen3-VL-32B-Instruct": (32_762_123_264, 32_762_123_264, 1_555_824_640, full(64, 8, 128), None),
    "Qwen/Qwen3-VL-8B-Instruct": (8_190_735_360, 8_190_735_360, 1_244_659_712, full(36, 8, 128), None),
    "Qwen/Qwen3.5-122B-A10B": (122_111_526_912, 9_771_288_576, 1_525_678_080, full(12, 2, 256), 1e5 * full(12, 2, 256) + delta(36, 64)),
    "Qwen/Qwen3.5-27B": (26_895_998_464, 26_895_998_464, 2_542_796_800, full(16, 4, 256), 1e5 * full(16, 4, 256) + delta(48, 48)),
    "Qwen/Qwen3.5-35B-A3B": (34_660_610_688, 3_454_988_928, 1_017_118_720, full(10, 2, 256), 1e5 * full(10, 2, 256) + delta(30, 32)),
    "Qwen/Qwen3.5-397B-A17B": (396_346_350_336, 17_349_040_896, 2_034_237_440, full(15, 2, 256), 1e5 * full(15, 2, 256) + delta(45, 64)),
    "XiaomiMiMo/MiMo-7B-Base": (7_622_619_136, 7_622_619_136, 2 * 151_680 * 4096, full(36, 8, 128), None),
    "deepseek-ai/DeepSeek-V3.2": (671_877_929_216, 38_403_807_488, 1_853_358_080, 61 * (2 * 576 + 128), None),
    "deepseek-ai/DeepSeek-V4-Pro": (1_572_997_179_491, 49_779_058_787, 1_853_358_080, sum(V4_PRO), 128 * V4_PRO[0] + 1e5 * V4_PRO[1]),
    "google/gemma-4-26B-A4B": (
        25_233_141_760, 3_822_530_560, 738_197_504, full(25, 8, 256) + full(5, 2, 512), 1024 * full(25, 8, 256) + 1e5 * full(5, 2, 512),
    ),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (
        400_711_848_960, 17_184_691_200, 2_068_971_520, full(48, 8, 128), 8192 * full(36, 8, 128) + 1e5 * full(12, 8, 128),
    ),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (
        107_769_861_120, 17_172_894_720, 2_068_971_520, full(48, 8, 128), 8192 * full(36, 8, 128) + 1e5 * full(12, 8, 128),
    ),
    "meta-llama/Meta-Llama-3.1-70B": (70_553_706_496, 70_553_706_496, 2_101_346_304, full(80, 8, 128), None),
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, 12_879_925_248, 262_144_000, full(32, 8, 128), None),
    "moonshotai/Kimi-K2-Instruct": (1_026_408_209_408, 32_861_477_888, 2_348_810_240, 61 * 2 * 576, None),
    "moonshotai/Kimi-K2.5": (1_026_408_209_408, 32_861_477_888, 2_348_810_240, 61 * 2 * 576, None),
    "nvidia/DeepSeek-V3.1-NVFP4": (671_026_404_352, 37_552_282_624, 1_853_358_080, 61 * 576, None),
    "nvidia/DeepSeek-V3.2-NVFP4": (671_877_929_216, 38_403_807_488, 1_853_358_080, 61 * (576 + 128), None),
    "nvidia/DeepSeek-V4-Flash-NVFP4": (
        284_332_230_231, 13_799_622_231, 1_059_061_760, sum(V4_FLASH), 128 * V4_FLASH[0] + 1e5 * V4_FLASH[1],
    ),
    "nvidia/Kimi-K2.6-NVFP4": (1_026_408_209_408, 32_861_477_888, 2_348_810_240, 61 * 576, None),
    "nvidia/Llama-3.1-70B-Instruct-FP8": (70_553_706_496, 70_553_706_496, 2_101_346_304, full(80, 8, 128, 1), None),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": (
        31_577_937_344, 3_580_073_408, 704_643_072, full(6, 2, 128, 1), 1e5 * full(6, 2, 128, 1) + mamba(23, 64),
    ),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8": (
        120_668_687_360, 12_770_216_960, 1_073_741_824, full(8, 2, 128, 1), 1e5 * full(8, 2, 128, 1) + mamba(40, 128),
    ),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (
        549_308_968_960, 56_058_818_560, 2_147_483_648, full(12, 2, 128), 1e5 * full(12, 2, 128) + mamba(48, 256),
    ),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8": (
        549_308_968_960, 56_058_818_560, 2_147_483_648, full(12, 2, 128, 1), 1e5 * full(12, 2, 128, 1) + mamba(48, 256),
    ),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": (
        549_308_968_960, 56_058_818_560, 2_147_483_648, full(12, 2, 128, 1), 1e5 * full(12, 2, 128, 1) + mamba(48, 256),
    ),
    "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": (
        31_577_937_344, 3_580_073_408, 704_643_072, full(6, 2, 128, 1), 1e5 * full(6, 2, 128, 1) + mamba(23, 64),
    ),
    "nvidia/Nemotron-H-56B-Base-8K": (
        56_324_350_464, 56_324_350_464, 2_147_483_648, full(10, 8, 128), 1e5 * full(10, 8, 128) + mamba(54, 256, 256, 2),
    ),
    "nvidia/Qwen3-235B-A22B-NVFP4": (235_093_634_560, 22_190_763_520, 1_244_659_712, full(94, 4, 128, 1), None),
    "nvidia/Qwen3.5-122B-A10B-NVFP4": (
        122_111_526_912, 9_771_288_576, 1_525_678_080, full(12, 2, 256, 1), 1e5 * full(12, 2, 256, 1) + delta(36, 64),
    ),
    "nvidia/Qwen3.5-397B-A17B-NVFP4": (
        396_346_350_336, 17_349_040_896, 2_034_237_440, full(15, 2, 256, 1), 1e5 * full(15, 2, 256, 1) + delta(45, 64),
    ),
    "nvidia/Qwen3.6-35B-A3B-NVFP4": (
        34_660_610_688, 3_454_988_928, 1_017_118_720, full(10, 2, 256, 1), 1e5 * full(10, 2, 256, 1) + delta(30, 32),
    ),
    "openai/gpt-oss-120b": (
        116_829_156_672, 5_711_982_912, 1_158_266_880, full(36, 8, 64), 128 * full(18, 8, 64) + 1e5 * full(18, 8, 64),
    ),
    "openai/gpt-oss-20b": (
        20_914_757_184, 4_187_440_704, 1_158_266_880, full(24, 8, 64), 128 * full(12, 8, 64) + 1e5 * full(12, 8, 64),
    ),
    "sgl-project/DeepSeek-V4-Flash-FP8": (
        284_332_230_231, 13_799_622_231, 1_059_061_760, sum(V4_FLASH), 128 * V4_FLASH[0] + 1e5 * V4_FLASH[1],
    ),
    # its flat config has 81 rows more than the class's default
    "stepfun-ai/Step-3.7-Flash-FP8": (
        195_843_833_088 + 2 * 81 * 4096, 10_875_026_688 + 2 * 81 * 4096, 2 * 128_896 * 4096, full(45, 8, 128),
        512 * full(33, 8, 128) + 1e5 * full(12, 8, 128),
    ),
    "zai-org/GLM-5.2": (743_377_000_704, 41_250_511_104, 1_903_165_440, 78 * 2 * 576 + 21 * 128, None),
}  # fmt: skip


def test_every_config_has_its_numbers():
    assert PUBLISHED.keys() == CONFIGS.keys()
    assert len(CONFIGS) == 46


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_a_config(name, tmp_path):
    params, active, embedding, per_token, long = PUBLISHED[name]
    counted = target(name, tmp_path)
    assert counted.params == pytest.approx(params, rel=1e-6)  # but for the experts' correction biases
    assert counted.active_params == pytest.approx(active, rel=1e-5)
    assert counted.embedding_params == embedding
    assert counted.kv_bytes_per_token() == pytest.approx(per_token)
    assert counted.cache_bytes(1e5) == pytest.approx(1e5 * per_token if long is None else long)
    assert counted.notes == ()


# What the cards call active: of those that do not count the embedding table (gpt-oss: arXiv 2508.10925; DeepSeek-V4, Kimi-K2, GLM).
ACTIVE = {
    "openai/gpt-oss-120b": 5.13e9, "openai/gpt-oss-20b": 3.61e9, "deepseek-ai/DeepSeek-V4-Pro": 49e9, "moonshotai/Kimi-K2-Instruct": 32e9,
    "zai-org/GLM-5.2": 40e9, "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": 55e9,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVE)
def test_active_params_are_the_cards(name, tmp_path):
    counted = target(name, tmp_path)
    table = counted.vocab_size * counted.hidden_size
    assert counted.active_params - table == pytest.approx(ACTIVE[name], rel=5e-3 if "gpt" in name else 0.025)


# All tensors of the checkpoint by the Hub (safetensors.total), with MTP layers, vision towers and the scales of FP8 where they are stored.
TOTALS = {
    "Qwen/Qwen3.5-27B": 27_781_427_952,
    "Qwen/Qwen3.5-35B-A3B": 35_951_822_704,
    "Qwen/Qwen3.5-122B-A10B": 125_086_497_008,
    "Qwen/Qwen3.5-397B-A17B": 403_397_928_944,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": 31_577_940_288,  # of the BF16 checkpoint
    "XiaomiMiMo/MiMo-7B-Base": 7_833_409_536,
    "MiniMaxAI/MiniMax-M2.5": 228_703_644_928 - 13_880_064,  # less a scale for each 128 x 128
}


@pytest.mark.parametrize("name", TOTALS)
def test_parts_of_a_checkpoint_add_up_to_its_total(name, tmp_path):
    counted = target(name, tmp_path)
    mtp = counted.mtp_layers.params if counted.mtp_layers else 0
    assert counted.params + mtp + counted.vision_params == pytest.approx(TOTALS[name], rel=1e-6)


def test_glm_5_keeps_an_indexer_in_every_layer(tmp_path):
    """GLM-5.2 without its sharing of indexers is GLM-5, whose total is published: 753,864,139,008, MTP layer and all."""
    config = CONFIGS["zai-org/GLM-5.2"]["config"]
    own = from_config(
        {k: v for k, v in config.items() if not k.startswith(("indexer_types", "index_topk_freq", "index_skip"))}
    )
    assert own.mtp_layers
    assert own.params + own.mtp_layers.params == 753_864_139_008
    by_rule = from_config({k: v for k, v in config.items() if k != "indexer_types"})
    assert by_rule.params == from_config(config).params


# formats

BYTES = {
    # metadata.total_size of model.safetensors.index.json
    "openai/gpt-oss-120b": 65_248_815_744,
    "openai/gpt-oss-20b": 13_761_264_768,
    # stored elements of one byte each (U8 and F8) and of two (BF16) by the Hub, 393.6e9 with the MTP layer and its copies in BF16:
    # N (1/2 + 1/16) + B = 393.6e9 - 13.46e9 for N quantised and B other weights, N + B = 671.03e9
    "nvidia/DeepSeek-V3.1-NVFP4": (671.03e9 - 380.14e9) / 0.4375 * 0.5625
    + 2 * (671.03e9 - (671.03e9 - 380.14e9) / 0.4375),
}


@pytest.mark.parametrize("name", BYTES)
def test_weight_bytes_are_those_of_the_files(name, tmp_path):
    assert target(name, tmp_path).weight_bytes() == pytest.approx(BYTES[name], rel=2e-3)


def test_deepseek_v3_has_the_bytes_of_its_files():
    """FP8 680,571,043,840 weights with 166,161,984 bytes of scales, and 7,837,633,536 bytes else (file headers, with the MTP layer)."""
    v3 = shape("DeepSeek-V3")
    copies = 2 * 2 * 129_280 * 7168  # of the embedding and the LM head, in the MTP layer
    wide = 2 * (2 * 7168 * 7168 + 7168 * 256)
    assert v3.mtp_layers
    mtp = (v3.mtp_layers.params - wide / 2) * (1 + 4 / 128**2) + wide + copies
    assert v3.weight_bytes() + mtp == pytest.approx(680_571_043_840 + 166_161_984 + 7_837_633_536, rel=1e-4)


STORED = {
    "Qwen/Qwen3-235B-A22B-FP8": ("fp8-block", None, {}),
    "nvidia/Llama-3.1-70B-Instruct-FP8": ("fp8", "fp8", {}),
    "nvidia/Qwen3-235B-A22B-NVFP4": ("nvfp4", "fp8", {}),
    "moonshotai/Kimi-K2.5": ("int4-g32", None, {"self_attn.o_proj": "bfloat16", "mlp.shared_expert.up_proj": "bfloat16"}),
    "deepseek-ai/DeepSeek-V4-Pro": ("mxfp4", None, {"self_attn.q_b_proj": "fp8-block", "mlp.shared_expert.up_proj": "fp8-block"}),
    "nvidia/DeepSeek-V4-Flash-NVFP4": ("nvfp4", None, {"self_attn.q_b_proj": "fp8-block", "mlp.shared_expert.up_proj": "fp8-block"}),
    "nvidia/Qwen3.6-35B-A3B-NVFP4": ("nvfp4-w4a16", "fp8", {"lm_head": "nvfp4-w4a16", "linear_attn.out_proj": "fp8"}),
    "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": (
        "nvfp4-w4a16", "fp8", {"lm_head": "nvfp4-w4a16", "linear_attn.in_proj": "fp8", "self_attn.q_proj": "bfloat16"},
    ),
    "openai/gpt-oss-20b": ("mxfp4", None, {"self_attn.q_proj": "bfloat16"}),
    "zai-org/GLM-5.2": ("bfloat16", None, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_formats_of_a_config(name, tmp_path):
    main, cache, others = STORED[name]
    stored = target(name, tmp_path)
    assert (stored.weight_format, stored.kv_format) == (main, cache)
    assert others.items() <= stored.formats.items()
    assert stored.weight_bytes("bfloat16") == 2 * stored.params
    assert stored.expert_bytes() <= stored.read_bytes(1)


def test_layers_may_be_stored_differently(tmp_path):
    """Nemotron 3 Nano keeps 6 of its Mamba layers and all attention in 16 bits."""
    nano = target("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", tmp_path)
    wide = {(b.count, name) for b in nano.blocks for name, form in b.formats.items() if form == "bfloat16"}
    assert wide == {(6, f"linear_attn.{n}_proj") for n in ("in", "out")} | {(6, f"self_attn.{n}_proj") for n in "qkvo"}
    assert nano.weight_bytes() == pytest.approx(19.3e9, rel=5e-3)


PLAIN = {
    "model_type": "qwen2", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
    "intermediate_size": 2048, "vocab_size": 1000,
}  # fmt: skip
LINEAR = 4 * (4 * 1024**2 + 3 * 1024 * 2048)
COLUMNS = 4 * (4 * 1024 + 2 * 2048 + 1024)
QUANTISED = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", LINEAR * (4 + 20 / 128) / 8),
    "gptq g64": ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4-g64", LINEAR * (4 + 16 / 64) / 8),
    "gptq column": ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8-g0", LINEAR + 2 * COLUMNS),
    "fp8 block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block", LINEAR * (1 + 4 / 128**2)),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "fp8-channel", LINEAR + 4 * COLUMNS),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4", LINEAR * (4 + 32 / 64) / 8),
    "w8a8": (
        {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": {"num_bits": 8}, "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}},
        "int8", LINEAR + 4 * COLUMNS,
    ),
    "nvfp4a16": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
        "nvfp4-w4a16", LINEAR * 4.5 / 8,
    ),
    "quark": (
        {"quant_method": "quark", "exclude": ["lm_head"], "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
        "mxfp4", LINEAR * 4.25 / 8,
    ),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "fp8", LINEAR + 4 * 28),
}  # fmt: skip


@pytest.mark.parametrize("how", QUANTISED)
def test_methods_of_quantisation(how):
    config, form, expected = QUANTISED[how]
    stored = from_config(PLAIN | {"quantization_config": config})
    rest = 2 * (stored.params - LINEAR)
    assert stored.weight_format == form
    assert stored.weight_bytes() == pytest.approx(expected + rest, rel=1e-9)
    assert stored.blocks == ()


def test_a_layer_kept_out_is_told_from_its_like():
    out = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1", "lm_head"]}
    globs = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.layers.1.*"]}
    regex = {
        "quant_method": "compressed-tensors", "ignore": ["re:.*layers\\.1\\..*", "lm_head"],
        "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}, "targets": ["Linear"]}},
    }  # fmt: skip
    whole = from_config(PLAIN | {"quantization_config": {"quant_method": "fp8"}}).weight_bytes()
    for config in (out, globs, regex):
        stored = from_config(PLAIN | {"quantization_config": config})
        assert stored.weight_bytes() - whole == pytest.approx(LINEAR / 4 - 4 * 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "aqlm"}, "quant_method 'aqlm' is not known"),
        ("fp8", "quantization_config: a key has another type"),
        ({"quant_method": "fp8", "modules_to_not_convert": [None]}, "quantization_config: a key has another type"),
        ({"quant_method": "modelopt", "quant_algo": "FP3"}, "quant_algo 'FP3' is not known"),
        ({"quant_method": "gptq", "bits": 1.58}, "bits 1.58 is not known"),
        ({"quant_method": "compressed-tensors", "ignore": ["re:("], "config_groups": {}}, "no regular expression"),
    ],
)
def test_an_unknown_method_is_one_line(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_config(PLAIN | {"quantization_config": config})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Qwen/Qwen3-32B-FP8", "fp8"), ("Qwen/Qwen3-32B-AWQ", "int4"), ("Qwen2.5-72B-Instruct-GPTQ-Int4", "int4"),
        ("RedHatAI/Llama-3.3-70B-Instruct-NVFP4", "nvfp4"), ("Meta-Llama-3.1-70B-Instruct-quantized.w4a16", "int4"),
        ("Qwen2.5-7B-Instruct-quantized.w8a8", "int8"), ("amd/Llama-3.1-405B-Instruct-MXFP4", "mxfp4"), ("Qwen3-8B", None),
        ("unsloth/DeepSeek-V3-bf16", "bfloat16"),
    ],
)  # fmt: skip
def test_a_name_states_its_format(name, form):
    assert format_of_name(name) == form
    if form:
        assert shape(name.replace("-Instruct", "")).weight_format == form


def test_bytes_of_formats():
    assert bytes_per_value("mxfp4") == (4 + 8 / 32) / 8
    assert bytes_per_value("nvfp4") == (4 + 8 / 16) / 8
    assert bytes_per_value("int4-g32") == (4 + 16 / 32) / 8
    assert matrix_bytes("fp8-block", 200, 130) == 200 * 130 + 4 * 2 * 2
    assert matrix_bytes("fp8", 200, 130) == 200 * 130 + 4
    with pytest.raises(ValueError, match=r"dtype must be one of .*'int9-g8'"):
        bytes_per_value("int9-g8")


def test_what_formats_are_multiplied_in():
    ampere, hopper, blackwell = {"bfloat16"}, {"bfloat16", "fp8"}, {"bfloat16", "fp8", "fp4"}
    assert [compute_dtype("nvfp4", rates) for rates in (ampere, hopper, blackwell)] == ["bfloat16", "bfloat16", "fp4"]
    assert [compute_dtype("fp8-block", rates) for rates in (ampere, hopper)] == ["bfloat16", "fp8"]
    assert compute_dtype("int4", blackwell) == compute_dtype("nvfp4-w4a16", blackwell) == "bfloat16"
    assert compute_dtype("bfloat16", {"float16"}) == "float16"
    assert {dtype for form in FORMATS.values() for dtype in form.compute} <= FORMATS.keys()
    with pytest.raises(ValueError, match="fp8 needs a rate for"):
        compute_dtype("fp8", {"tf32"})


# what is read of a pass


def test_read_bytes_split_into_dense_and_experts():
    v3 = shape("DeepSeek-V3")
    touched = 256 * (1 - (1 - 8 / 256) ** 4.0)
    rows = 4 * 2 * 7168
    assert v3.num_sparse_layers == 58
    assert v3.read_bytes(4) == pytest.approx(v3.dense_read_bytes() + 58 * touched * v3.expert_bytes() + rows)
    assert v3.expert_bytes() == pytest.approx(3 * 2048 * 7168 * (1 + 4 / 128**2))
    assert v3.kv_replicated


def test_a_window_and_picked_tokens_bound_what_attention_reads():
    oss, picky = shape("gpt-oss-20b"), shape("DeepSeek-V3.2")
    contexts = np.array([100, 4000])
    per_layer = 2 * 2 * 8 * 64
    assert oss.cache_bytes(contexts).tolist() == [24 * per_layer * 100, 12 * per_layer * (128 + 4000)]
    assert picky.cache_bytes(4000) == 61 * 4000 * (2 * 576 + 128)
    assert picky.cache_read_bytes(4000) == 61 * (2048 * 2 * 576 + 4000 * 128)
    layer = 2 * 12 * 2 * 64 * 64 * (128 + 4000)
    assert oss.flops_per_token(4000) - oss.flops_per_token(0) == layer


def test_context_is_lengthened_by_yarn():
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    newer = {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "rope_theta": 1e6,
        }
    }
    qwen = CONFIGS["Qwen/Qwen3-8B"]["config"]
    assert from_config(qwen).max_position_embeddings == 40960
    assert (
        from_config(qwen | yarn).max_position_embeddings == from_config(qwen | newer).max_position_embeddings == 131072
    )
    assert from_config(qwen | {"rope_scaling": {"type": "linear", "factor": 4.0}}).max_position_embeddings == 163840
    assert from_config(qwen | {"rope_scaling": "yarn"}).max_position_embeddings == 40960
    llama3 = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}
    assert from_config(qwen | llama3).max_position_embeddings == 40960
    assert shape("gemma-3-27B").max_position_embeddings == 131072
    v32 = CONFIGS["deepseek-ai/DeepSeek-V3.2"]["config"]  # states the longer length itself
    assert from_config(v32).max_position_embeddings == 163840


# siblings: the same kinds by other keys


def test_a_searched_architecture_differs_layer_by_layer():
    """Llama-Nemotron: attention may be absent, and each MLP has a width of its own: 1.3125 x 2 x 64 / 3 = 56 comes to a multiple of 256."""
    plain = {"n_heads_in_group": 4, "no_op": False, "replace_with_linear": False}
    ffn = {"ffn_mult": 1.3125, "no_op": False, "replace_with_linear": False}
    config = {
        "model_type": "nemotron-nas", "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 100, "num_hidden_layers": 2,
        "block_configs": [{"attention": plain, "ffn": ffn}, {"attention": {"no_op": True}, "ffn": ffn}],
    }  # fmt: skip
    nas = from_config(config)
    mlp = 3 * 64 * 256
    assert nas.params == 2 * 100 * 64 + 64 + (2 * 64 * 64 + 2 * 64 * 16 + 64) + 2 * (mlp + 64)
    assert nas.kv_bytes_per_token() == 2 * 2 * 2 * 8


def test_other_spellings_of_a_sibling():
    """Qwen3-Next as transformers sizes it by default, and MiMo-V2-Flash's heads, which differ in sliding layers."""
    assert shape("Qwen3-Next-80B-A3B").params == 79_674_391_296
    flash = {
        "model_type": "mimo_v2_flash", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 24, "v_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 24,
        "swa_v_head_dim": 16, "hybrid_layer_pattern": [0, 1], "sliding_window": 8, "intermediate_size": 128, "vocab_size": 100,
    }  # fmt: skip
    two = from_config(flash)
    assert two.kv_bytes_per_token() == 2 * (40 + 80)
    assert two.cache_bytes(100) == 2 * (40 * 100 + 80 * 8)


# Others of these kinds, as their configs spell them, and the totals of their checkpoints by the Hub (Granite's and Hunyuan's by their cards).
SIBLINGS = {
    "MiniMax-Text-01": (456_089_655_296, {
        "model_type": "minimax_text_01", "hidden_size": 6144, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 9216, "vocab_size": 200_064, "num_local_experts": 32, "num_experts_per_tok": 2,
        "shared_intermediate_size": 0, "attn_type_list": ([0] * 7 + [1]) * 10,
    }),
    "NVIDIA-Nemotron-Nano-9B-v2": (8_888_227_328, {
        "model_type": "nemotron_h", "hidden_size": 4480, "intermediate_size": 15680, "num_hidden_layers": 56, "num_attention_heads": 40,
        "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", "num_key_value_heads": 8, "head_dim": 128,
        "mamba_num_heads": 128, "mamba_head_dim": 80, "n_groups": 8, "ssm_state_size": 128, "vocab_size": 131_072,
    }),
    "Kimi-Linear-48B-A3B": (49_122_681_728, {
        "model_type": "kimi_linear", "hidden_size": 2304, "num_hidden_layers": 27, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 72, "intermediate_size": 9216, "moe_intermediate_size": 1024, "num_experts": 256, "num_experts_per_token": 8,
        "num_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "vocab_size": 163_840, "linear_attn_config": {
            "kda_layers": [i for i in range(1, 27) if i % 4], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}}),
    "granite-4.0-h-small": (32.2e9, {
        "model_type": "granitemoehybrid", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 768,
        "shared_intermediate_size": 1536, "num_local_experts": 72, "num_experts_per_tok": 10, "vocab_size": 100_352,
        "tie_word_embeddings": True, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128,
        "layer_types": ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
    }),
    "Hunyuan-A13B": (80.4e9, {
        "model_type": "hunyuan_v1_moe", "hidden_size": 4096, "intermediate_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "attention_head_dim": 128, "moe_intermediate_size": [3072] * 32, "num_experts": 64, "moe_topk": [8] * 32,
        "num_shared_expert": [1] * 32, "vocab_size": 128_167,
    }),
    "EXAONE-4.0-32B": (32.0e9, {
        "model_type": "exaone4", "hidden_size": 5120, "intermediate_size": 27_392, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 102_400, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_of_the_same_kinds(name):
    total, config = SIBLINGS[name]
    assert from_config(config).params == pytest.approx(total, rel=5e-3 if total % 1e8 == 0 else 1e-5)


def test_an_unknown_family_of_plain_layers_is_counted_with_a_note():
    known = from_config(PLAIN | {"model_type": "llama"})
    unknown = from_config(PLAIN | {"model_type": "zephyr9", "architectures": [None]})
    assert unknown.params == known.params
    assert "zephyr9" in unknown.notes[0]
    assert scaled(unknown, 1e6).family == "llama"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "rwkv9", "rwkv_head_size": 64},
            r"model_type 'rwkv9' is not supported; its layers are not known",
        ),
        ({"model_type": "zephyr9", "hidden_size": None}, r"lacks hidden_size"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, r"deepseek_v3 config lacks qk_"),
        ({"model_type": "gpt_oss", "num_local_experts": 4}, r"lacks num_experts_per_tok"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"]}, r"has 1 of 4 layers"),
        ({"model_type": "qwen3_next", "layer_types": ["warp"] * 4}, r"layer type 'warp' is not known"),
        ({"model_type": "gemma3", "head_dim": -1}, r"head_dim must be a whole number from 1"),
        ({"model_type": "gemma3", "sliding_window_pattern": [6]}, r"another type, length or range"),
        (
            {"model_type": "gpt_oss", "num_local_experts": 4, "interleave_moe_layer_step": 0},
            r"another type, length or range",
        ),
        (
            {"model_type": "mimo", "num_nextn_predict_layers": 10**9},
            r"num_nextn_predict_layers must be from 0 to 10,000",
        ),
        ({"model_type": "mistral", "sliding_window": "wide"}, r"another type"),
        ({"model_type": "llama", "num_hidden_layers": 1_000_000}, r"num_layers must be at most 10,000"),
        ({"model_type": "gpt_oss", "num_hidden_layers": 1_000_000}, r"num_hidden_layers must be from 1 to 10,000"),
    ],
)
def test_what_cannot_be_read_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_config(PLAIN | change)
    assert "\n" not in str(caught.value)


# stated shapes, and drafts


@pytest.mark.parametrize("name", ["Qwen3-8B", "gpt-oss-20b", "Nemotron-3-Nano-30B-A3B", "Qwen3-32B-AWQ"])
def test_a_shape_round_trips_through_json(name, tmp_path):
    file = tmp_path / "shape.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(shape(name)), indent=1))
    assert named(str(file)) == shape(name)


def test_a_stated_shape_is_checked():
    keys = msgspec.to_builtins(shape("gpt-oss-20b"))
    assert stated(keys, "shape.json", "mine").name == "mine"
    with pytest.raises(ValueError, match=r"shape.json: num_layers .25. must be the sum of the blocks' counts .24."):
        stated(keys | {"num_layers": 25}, "shape.json")
    with pytest.raises(ValueError, match=r"shape.json: Object contains unknown field `layer`"):
        stated(keys | {"layer": 25}, "shape.json")


def test_a_folder_of_a_known_architecture_keeps_its_public_drafts(tmp_path):
    config = CONFIGS["Qwen/Qwen3-8B"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = named(str(tmp_path))
    assert folder.training_tokens == shape("Qwen3-8B").training_tokens
    assert (
        [s.name for s in public(folder)] == [s.name for s in public(shape("Qwen3-8B"))] == ["Qwen3-0.6B", "Qwen3-1.7B"]
    )
    assert {"Qwen3-0.6B", "Qwen3-4B"} <= {s.name for s in public(shape("Qwen3-30B-A3B"))}


@pytest.mark.parametrize("name", [name for name in known_shapes() if shape(name).blocks])
def test_drafts_for_layered_targets_can_be_built(name):
    of = shape(name)
    small = scaled(of, 3e8)
    assert small.blocks == ()
    assert small.weight_format == "bfloat16"
    assert small.non_embedding_params == pytest.approx(3e8, rel=0.05)
    assert kinds.EAGLE3.parts
    one = head(of, kinds.EAGLE3.parts)
    assert one.num_heads * one.head_dim <= 2 * of.hidden_size
    assert one.read_bytes(1) == one.weight_bytes() + 2 * of.hidden_size
