"""Shapes are checked against published totals, memory reports of a real engine, and their own arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
from given import given

from foredraft import kinds, shapes
from foredraft.shapes import Shape, from_config, known_shapes, scaled, shape

# Parameter totals of the checkpoints, as Hugging Face's safetensors index gives them.
EXACT = {
    "OPT-125M": 125_239_296,
    "OPT-350M": 331_196_416,
    "OPT-1.3B": 1_315_758_080,
    "OPT-2.7B": 2_651_596_800,
    "OPT-6.7B": 6_658_473_984,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3-70B": 70_553_706_496,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.3-70B": 70_553_706_496,
    "TinyLlama-1.1B": 1_100_048_384,
    "Qwen1.5-0.5B": 463_987_712,
    "Qwen1.5-1.8B": 1_836_828_672,
    "Qwen1.5-7B": 7_721_324_544,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Mistral-7B": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B": 46_702_792_704,
    "Seed-OSS-36B": 36_151_104_512,
}
# Totals as the model cards round them, for the rest of the table.
ROUNDED = {
    "OPT-13B": 12.85e9,
    "OPT-30B": 29.97e9,
    "OPT-66B": 65.72e9,
    "LLaMA-7B": 6.74e9,
    "LLaMA-13B": 13.02e9,
    "LLaMA-33B": 32.53e9,
    "LLaMA-65B": 65.29e9,
    "Llama-68M": 68.0e6,
    "Llama-160M": 162.4e6,
    "Qwen1.5-4B": 3.95e9,
    "Qwen1.5-14B": 14.17e9,
    "Qwen1.5-32B": 32.5e9,
    "Qwen1.5-72B": 72.3e9,
    "Qwen1.5-110B": 111.2e9,
    "Qwen1.5-MoE-A2.7B": 14.3e9,
    "Qwen2-0.5B": 0.494e9,
    "Qwen2-1.5B": 1.54e9,
    "Qwen2-7B": 7.62e9,
    "Qwen2-72B": 72.7e9,
    "Qwen2-57B-A14B": 57.4e9,
    "Qwen3-1.7B": 1.72e9,
    "Qwen3-Coder-480B-A35B": 480.2e9,
    "Mistral-Small-24B": 23.57e9,
    "Mixtral-8x22B": 140.6e9,
    "Mixtral-8x22B-Instruct": 140.6e9,
}
# Tensors of the reference implementation (transformers 5.24), with the experts' correction biases; see test_targets.py. GLM-4.5's with its MTP
# layer and the copies of its embedding and LM head are the Hub's 358,337,791,296 and 110,468,824,832, Gemma 3's with its tower the Hub's too.
LAYERED = {
    "Qwen3-VL-8B": 8_190_735_360, "Qwen3-VL-32B": 32_762_123_264, "Qwen3-VL-30B-A3B": 30_532_122_624,
    "Qwen3-Next-80B-A3B": 79_674_391_296, "Qwen3.5-27B": 26_895_998_464, "Qwen3.5-35B-A3B": 34_660_610_688,
    "Qwen3.5-122B-A10B": 122_111_526_912, "Qwen3.5-397B-A17B": 396_346_350_336, "MiMo-7B": 7_622_619_136,
    "DeepSeek-V3": 671_026_419_200, "DeepSeek-V3.2": 671_877_944_064, "DeepSeek-V4-Pro": 1_572_997_202_910,
    "DeepSeek-V4-Flash": 284_332_241_234, "gemma-4-26B-A4B": 25_233_141_760, "gemma-3-4B": 4_300_079_472 - 419_816_304,
    "gemma-3-12B": 12_187_325_040 - 421_290_864, "gemma-3-27B": 27_432_406_640 - 423_060_336,
    "Llama-4-Maverick-17B-128E": 400_711_848_960, "Llama-4-Scout-17B-16E": 107_769_861_120, "Kimi-K2": 1_026_408_232_448,
    "Kimi-K2.5": 1_026_408_232_448, "Nemotron-H-56B": 56_324_350_464, "Nemotron-3-Nano-30B-A3B": 31_577_940_288,
    "Nemotron-3-Super-120B-A12B": 120_668_707_840, "Nemotron-3-Ultra-550B-A55B": 549_308_993_536,
    "Nemotron-3.5-Lightning-30B-A3B": 31_577_940_288, "gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672,
    "MiniMax-M2.5": 228_689_764_864, "Step-3.7-Flash": 195_844_508_736, "GLM-4.5": 358_337_791_296 - 5_539_962_272,
    "GLM-4.5-Air": 110_468_824_832 - 3_616_573_568, "GLM-5.2": 743_377_019_904,
}  # fmt: skip
# What the model cards call non-embedding, and active for the mixtures of experts.
NON_EMBEDDING = {
    "Qwen2.5-0.5B": 0.36e9,
    "Qwen2.5-1.5B": 1.31e9,
    "Qwen2.5-7B": 6.53e9,
    "Qwen2.5-32B": 31.0e9,
    "Qwen3-0.6B": 0.44e9,
    "Qwen3-8B": 6.95e9,
}
ACTIVE = {
    "Qwen3-30B-A3B": 3.3e9,
    "Qwen3-235B-A22B": 22e9,
    "Qwen3-Coder-480B-A35B": 35e9,
    "Mixtral-8x7B": 12.9e9,
    "Qwen1.5-MoE-A2.7B": 2.7e9,
}
TINY = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "num_key_value_heads": 2,
}


def test_every_known_shape_has_a_published_total():
    assert set(known_shapes()) == EXACT.keys() | ROUNDED.keys() | LAYERED.keys()


@pytest.mark.parametrize("name", LAYERED)
def test_params_match_the_reference_implementation(name):
    assert shape(name).params == LAYERED[name]


@pytest.mark.parametrize("name", EXACT)
def test_params_match_the_checkpoint_exactly(name):
    assert shape(name).params == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_params_match_the_model_card(name):
    assert shape(name).params == pytest.approx(ROUNDED[name], rel=5e-3)


@pytest.mark.parametrize("name", NON_EMBEDDING)
def test_non_embedding_params_match_the_model_card(name):
    assert shape(name).non_embedding_params == pytest.approx(NON_EMBEDDING[name], rel=0.02)


@pytest.mark.parametrize("name", known_shapes())
def test_parts_add_up(name):
    public_shape = shape(name)
    assert public_shape.embedding_params + public_shape.non_embedding_params == public_shape.params
    assert public_shape.active_params <= public_shape.params
    assert (public_shape.active_params == public_shape.params) == (public_shape.num_experts == 0)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_params_of_mixtures(name):
    assert shape(name).active_params == pytest.approx(ACTIVE[name], rel=0.02)


# Logs of a server with Qwen3-32B alone and with either draft beside it.
@pytest.mark.parametrize(
    ("name", "model_load_gib"),
    [("Qwen3-32B", 61.03), ("Qwen3-1.7B", 64.24 - 61.03), ("Qwen3-4B", 68.58 - 61.03)],
)
def test_weight_bytes_match_what_vllm_loads(name, model_load_gib):
    assert shape(name).weight_bytes() / 2**30 == pytest.approx(model_load_gib, rel=0.01)


def test_kv_bytes():
    assert shape("Qwen3-32B").kv_bytes_per_token() == 262_144
    assert shape("Qwen3-32B").kv_bytes_per_token("fp8") == 131_072
    assert shape("Llama-3.1-8B").kv_bytes_per_token() == 131_072
    assert shape("OPT-13B").kv_bytes_per_token("float32") == 2 * 40 * 5120 * 4


def test_flops_are_twice_the_matrices_plus_attention():
    tiny = from_config(TINY)
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 100 * 64
    assert tiny.flops_per_token(0) == 2 * matrices
    assert tiny.flops_per_token(10) == 2 * matrices + 4 * 2 * 64 * 10
    llama = shape("Llama-2-7B")
    assert llama.flops_per_token(0) == pytest.approx(2 * llama.params, rel=0.03)
    mixture = shape("Qwen3-30B-A3B")
    assert mixture.flops_per_token(0) < 2 * mixture.active_params < mixture.flops_per_token(4096)


def test_read_bytes_leave_out_an_untied_embedding():
    untied = from_config(TINY)
    tied = from_config(TINY | {"tie_word_embeddings": True})
    assert untied.weight_bytes() - untied.read_bytes(1) == 2 * (100 - 1) * 64
    assert tied.read_bytes(7) == tied.weight_bytes() == tied.read_bytes(1)
    assert untied.read_bytes(3, "float32") == 2 * untied.read_bytes(3)


def test_a_quantised_dtype_leaves_what_engines_leave_in_16_bits():
    tiny = from_config(TINY)
    linear, rest = 2 * (4 * 64 * 64 + 3 * 64 * 128), 2 * 100 * 64 + 5 * 64
    assert tiny.weight_bytes() == 2 * (linear + rest)
    assert tiny.weight_bytes("fp8") == linear + 4 * 2 * 7 + 2 * rest
    # an int4 weight has a 16-bit scale and a 4-bit zero point for each 128 (or the last few) inputs
    assert tiny.weight_bytes("int4") == linear / 2 + 2.5 * 2 * (4 * 64 + 2 * 128 + 64) + 2 * rest


def test_read_bytes_of_a_mixture_grow_with_tokens_and_saturate():
    mixture = shape("Mixtral-8x7B")
    tokens = np.array([[1, 2, 4], [16, 64, 4096]])
    read = mixture.read_bytes(tokens)
    assert read.shape == tokens.shape
    assert (np.diff(read.ravel()) > 0).all()
    assert mixture.experts_touched(1) == pytest.approx(2)
    assert mixture.experts_touched(2) == pytest.approx(8 * (1 - 0.75**2))
    unused_rows = (32000 - 4096) * 4096
    assert read[1, 2] == pytest.approx(mixture.weight_bytes() - 2 * unused_rows, rel=1e-9)
    assert read[0, 0] == pytest.approx(2 * mixture.active_params, rel=0.02)
    assert read[0, 1] == pytest.approx(mixture.read_bytes(2))


def test_read_bytes_refuses_negative_tokens():
    with pytest.raises(ValueError, match=r"tokens must not be negative"):
        shape("Qwen3-8B").read_bytes(np.array([1, -1]))


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"dtype must be one of float32.*'bf17'"):
        shape("Qwen3-8B").weight_bytes("bf17")


# from_config


def test_a_config_round_trips_through_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    from_dict = from_config(TINY, tmp_path.name)
    assert from_config(tmp_path) == from_config(tmp_path / "config.json") == from_config(str(tmp_path)) == from_dict
    assert from_dict.name == tmp_path.name
    assert (from_dict.num_kv_heads, from_dict.head_dim, from_dict.tie_embeddings) == (4, 16, False)


def test_defaults_are_those_of_transformers():
    assert from_config(TINY | {"model_type": "mistral", "num_attention_heads": 16}).num_kv_heads == 8
    assert from_config(TINY | {"model_type": "qwen3", "num_key_value_heads": 2}).head_dim == 128
    assert from_config(TINY | {"model_type": "qwen2", "num_key_value_heads": None}).num_kv_heads == 4
    assert from_config(TINY | {"model_type": "opt", "ffn_dim": 256}).tie_embeddings
    seed = from_config(TINY | {"model_type": "seed_oss", "num_key_value_heads": 2, "head_dim": 16})
    assert (seed.qkv_bias, seed.o_bias, seed.mlp_bias) == (True, False, False)
    biased = from_config(TINY | {"attention_bias": True, "mlp_bias": True})
    assert biased.params - from_config(TINY).params == 2 * (4 * 64 + 2 * 128 + 64)


def test_some_layers_may_be_dense():
    config = TINY | MOE | {"model_type": "qwen3_moe", "num_hidden_layers": 6, "decoder_sparse_step": 2}
    assert from_config(config).num_sparse_layers == 3
    assert from_config(config | {"mlp_only_layers": [1]}).num_sparse_layers == 2


def test_nested_text_config():
    nested = {"model_type": "mistral3", "text_config": TINY | {"model_type": "mistral", "num_key_value_heads": 2}}
    assert from_config(nested).family == "mistral"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "seed_oss"])
def test_missing_fields_are_named_exactly(family):
    config = {key: TINY[key] for key in TINY if key not in ("hidden_size", "vocab_size")} | {"model_type": family}
    with pytest.raises(ValueError, match=rf"config: {family} config lacks hidden_size, vocab_size$"):
        from_config(config)


def test_missing_expert_fields_are_named():
    with pytest.raises(ValueError, match=r"lacks num_experts, num_experts_per_tok, moe_intermediate_size$"):
        from_config(TINY | {"model_type": "qwen3_moe"})


def test_unknown_model_type_says_what_is_supported():
    with pytest.raises(ValueError, match=r"model_type 'mamba' is not supported; it lacks num_attention_heads"):
        from_config({k: v for k, v in TINY.items() if k != "num_attention_heads"} | {"model_type": "mamba"})
    with pytest.raises(ValueError, match=r"model_type None"):
        from_config({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": -64}, "hidden_size must be positive, got -64"),
        ({"num_attention_heads": 0}, "num_heads must be positive"),
        ({"num_key_value_heads": 3}, "num_heads .4. must be a multiple of num_kv_heads .3."),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 5}, "head_dim is missing"),
        ({"num_hidden_layers": 2.5}, "num_layers"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "opt", "ffn_dim": 8, "max_position_embeddings": "2k"}, "max_position_embeddings"),
        ({"model_type": "qwen2_moe"} | MOE | {"mlp_only_layers": 3}, "dense_layers"),
    ],
)
def test_nonsense_is_one_line_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_config(TINY | change)
    assert "\n" not in str(caught.value)


def test_more_experts_per_token_than_experts():
    config = TINY | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}
    with pytest.raises(ValueError, match=r"experts_per_token .5. must not exceed num_experts .4."):
        from_config(config | {"num_key_value_heads": 2})


@pytest.mark.parametrize("text", ["{not json", "", "[1, 2]", "\x00\xff"])
def test_a_corrupt_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|expected a JSON object)") as caught:
        from_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        from_config(tmp_path)


# lookup


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Qwen/Qwen3-32B", "Qwen3-32B"),
        ("qwen3-30b-a3b-instruct-2507", "Qwen3-30B-A3B"),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "Qwen3-Coder-480B-A35B"),
        ("LLaMA-Instruct-3.1-8B", "Llama-3.1-8B"),
        ("LLaMA-Instruct-3.3-70B", "Llama-3.3-70B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("data/llama3.1-8B", "Llama-3.1-8B"),
        ("LLaMA3-70B", "Llama-3-70B"),
        ("LLaMA2-Chat-7B", "Llama-2-7B"),
        ("meta-llama/Llama-2-13b-chat-hf", "Llama-2-13B"),
        ("LLaMA 7B", "LLaMA-7B"),
        ("Vicuna-7B", "LLaMA-7B"),
        ("lmsys/vicuna-13b-v1.3", "LLaMA-13B"),
        ("Vicuna-33B-v1.3", "LLaMA-33B"),
        ("vicuna-7b-v1.5", "Llama-2-7B"),
        ("double7/vicuna-68m", "Llama-68M"),
        ("DeepSeek-R1-Distill-LLaMA-8B", "Llama-3.1-8B"),
        ("facebook/opt-125m", "OPT-125M"),
        ("OPT-13B", "OPT-13B"),
        ("Qwen/Qwen1.5-110B-Chat", "Qwen1.5-110B"),
        ("Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral-7B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.3"),
        ("Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x7B"),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", "Mixtral-8x22B-Instruct"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "Mistral-Small-24B"),
        ("ByteDance-Seed/Seed-OSS-36B-Instruct", "Seed-OSS-36B"),
        ("deepseek-ai/DeepSeek-R1-0528", "DeepSeek-V3"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "DeepSeek-V3"),
        ("moonshotai/Kimi-K2-Instruct-0905", "Kimi-K2"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama-4-Scout-17B-16E"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Nemotron-3-Nano-30B-A3B"),
        ("google/gemma-3-27b-it", "gemma-3-27B"),
        ("XiaomiMiMo/MiMo-7B-RL", "MiMo-7B"),
        ("zai-org/GLM-4.6-FP8", "GLM-4.5"),
        ("Qwen/Qwen3-Next-80B-A3B-Thinking", "Qwen3-Next-80B-A3B"),
    ],
)
def test_lookup_is_forgiving(alias, name):
    assert shape(alias).name == name


@pytest.mark.parametrize("name", known_shapes())
def test_every_known_name_finds_itself(name):
    assert shape(name).name == shape(name.upper()).name == shape(name.lower()).name == name


@pytest.mark.parametrize("name", ["Qwen3-33B", "Llama-4-Behemoth", "Qwen2.5-Coder-7B", "", "GPT-like (97M)"])
def test_an_unknown_name_gets_three_neighbours(name):
    with pytest.raises(ValueError, match=r"no shape named") as caught:
        shape(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).split("nearest: ")[1].split(";")[0].split(", ")) == 3


def test_training_tokens_come_with_a_source():
    assert shape("OPT-13B").training_tokens == 1.8e11
    assert shape("Qwen2.5-7B").training_tokens == 1.8e13
    for public_shape in map(shape, known_shapes()):
        assert (public_shape.training_tokens is None) == (public_shape.training_source is None)


# drafts


def test_eagle3_head_counts_its_tensors():
    head = kinds.EAGLE3.shape(shape("Llama-3.1-8B"))
    h, kv, mlp = 4096, 1024, 14336
    layer = 2 * h * (h + 2 * kv) + h * h + 3 * h * mlp
    assert head.non_embedding_params == 3 * h * h + layer + 4 * h  # input, hidden, post-attention and final norm
    assert head.embedding_params == 32000 * h
    assert head.kv_bytes_per_token() == shape("Llama-3.1-8B").kv_bytes_per_token() / 32
    assert head.read_bytes(1) == head.weight_bytes() + 2 * h
    assert head.read_bytes(1) - head.read_bytes(1, recurrent=True) == 2 * 3 * h * h
    assert head.flops_per_token(0) == 2 * (3 * h * h + layer + 32000 * h)


def test_eagle3_extra_layers_take_the_plain_width():
    target = shape("Llama-3.1-8B")
    extra = kinds.EAGLE3.shape(target, num_layers=3).params - kinds.EAGLE3.shape(target, num_layers=2).params
    assert extra == (target.non_embedding_params - 4096) / 32


def test_eagle3_head_matches_the_memory_vllm_gives_it():
    # Qwen3-32B with RedHatAI's head: 63.94 - 61.03 GiB loaded; that format carries a copy of the target's embedding.
    target = shape("Qwen3-32B")
    embedding = 2 * target.vocab_size * target.hidden_size
    assert (kinds.EAGLE3.shape(target).weight_bytes() + embedding) / 2**30 == pytest.approx(63.94 - 61.03, rel=0.01)


def test_eagle_head_reads_the_lm_head_that_it_does_not_store():
    target = shape("Llama-2-7B")
    head = kinds.EAGLE.shape(target)
    h, mlp = 4096, 11008
    assert head.params == head.non_embedding_params == 2 * h * h + 4 * h * h + 3 * h * mlp + h
    assert head.read_bytes(1) - head.weight_bytes() == 2 * (32000 + 1) * h
    assert head.read_bytes(1) == head.read_bytes(1, recurrent=True)
    assert kinds.EAGLE.shape(target, 2).params - head.params == (target.non_embedding_params - h) / 32


def test_a_heads_own_config_is_recognised(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 50, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(TINY | config))
    head = kinds.shape_of_folder(tmp_path)
    assert (kinds.of_shape(head), head.draft_vocab_size) == (kinds.EAGLE3, 50)
    assert head.params == kinds.EAGLE3.shape(from_config(TINY), draft_vocab=50).params


def test_heads_refuse_what_cannot_be():
    with pytest.raises(ValueError, match=r"draft_vocab .200. must not exceed"):
        kinds.EAGLE3.shape(from_config(TINY), draft_vocab=200)
    with pytest.raises(ValueError, match=r"num_layers must be positive"):
        kinds.EAGLE.shape(from_config(TINY), num_layers=0)
    with pytest.raises(ValueError, match=r"embed_dim"):
        kinds.EAGLE.shape(shape("OPT-350M"))


SIZES = [5e6, 1e7, 2.3e7, 6e7, 1.17e8, 1.89e8, 3.13e8, 4.1e8, 1e9, 3e9, 8e9, 3e10, 7e10]
TARGETS = [
    "Llama-3.1-8B",
    "OPT-66B",
    "OPT-350M",
    "Qwen3-32B",
    "Qwen3-30B-A3B",
    "Mixtral-8x7B",
    "Qwen2.5-72B",
    "Seed-OSS-36B",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("params", SIZES)
def test_scaled_is_close_and_buildable(target, params):
    draft = scaled(shape(target), params)
    assert draft.non_embedding_params == pytest.approx(params, rel=0.05)
    assert draft.vocab_size == shape(target).vocab_size
    assert draft.hidden_size % 64 == 0
    assert draft.hidden_size == draft.num_heads * draft.head_dim
    assert draft.head_dim in (64, 128)
    assert draft.intermediate_size % 16 == 0
    assert draft.params == draft.active_params
    assert 16 < draft.hidden_size / draft.num_layers < 192
    assert draft.training_tokens is None


def test_scaled_keeps_the_family_and_ties_small_embeddings():
    assert scaled(shape("Qwen3-30B-A3B"), 1e8).family == "qwen3"
    assert scaled(shape("Mixtral-8x7B"), 1e8).family == "mistral"
    assert scaled(shape("Qwen3-32B"), 1e8).qk_norm
    assert scaled(shape("OPT-66B"), 1e8).position_rows == 2050
    assert scaled(shape("Llama-3.1-8B"), 1e9).tie_embeddings
    assert not scaled(shape("Llama-3.1-8B"), 2e10).tie_embeddings


@pytest.mark.parametrize("params", [0, -1e9, 10.0, float("nan"), float("inf")])
def test_scaled_refuses_what_cannot_be_built(params):
    with pytest.raises(ValueError, match=r"params must be at least"):
        scaled(shape("Qwen3-8B"), params)


def test_a_shape_is_frozen_and_strict():
    with pytest.raises(TypeError, match="Unexpected keyword"):
        Shape(**(dict.fromkeys(TINY, 1)))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        shape("Qwen3-8B").num_layers = 1  # type: ignore[misc]


def test_a_trained_head_is_told_by_its_tensors(tmp_path: Path) -> None:
    """vLLM's EAGLE-1/2 folders name a model in their config; `fc` gives them away. A model stays one."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kinds.shape_of_folder(tmp_path).head is None
    for names, kind in (
        (("fc.weight", "layers.0.mlp.up_proj.weight"), kinds.EAGLE),
        (("model.norm.weight",), kinds.LM),
    ):
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in names}).encode()
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert kinds.of_shape(kinds.shape_of_folder(tmp_path)) is kind
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(ValueError, match="truncated or corrupt"):
        kinds.shape_of_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name, kind in (("fc.weight", kinds.EAGLE), ("model.norm.weight", kinds.LM)):
        shards = {"metadata": {}, "weight_map": {name: "model-00001-of-00002.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
        assert kinds.of_shape(kinds.shape_of_folder(tmp_path)) is kind


# Parameters of DFlash heads of five layers on five hidden states, embedding and LM head left out, in millions (TorchSpec says 1.05 B of
# Qwen3-8B's; the others were counted from z-lab's tensors), and Domino's beside Qwen3-8B (SpecForge's benchmarks: 1.1 B).
@pytest.mark.parametrize(
    ("target", "millions"),
    [("Qwen2.5-0.5B", 78.6), ("Qwen3-0.6B", 83.9), ("Qwen3-1.7B", 273), ("Qwen3-4B", 537), ("Qwen3-8B", 1050)],
)
def test_heads_of_blocks_have_the_parameters_of_published_ones(target, millions):
    assert kinds.DFLASH.shape(shape(target)).params == pytest.approx(1e6 * millions, rel=0.005)


def test_parts_of_heads_of_blocks_are_counted():
    target = shape("Qwen3-0.6B")
    V, H, r = target.vocab_size, target.hidden_size, 256
    body = kinds.DFLASH.shape(target)
    more = {kind.name: kind.shape(target).params - body.params for kind in (kinds.DSPARK, kinds.DFLASH2, kinds.DOMINO)}
    assert more["dspark"] == 2 * V * r + (
        H + r + 1
    )  # 77.8 M of the Markov head's two matrices, and the confidence head with its bias
    conv = 5 * 2 * (4 * H * H // 16 + 4 * H)
    assert more["dflash2"] == 2 * V * r + r * H + conv
    assert conv / body.params == pytest.approx(0.03, abs=0.01)
    assert more["domino"] == 3 * 1024 * (H + 1024) + (H + 1024) * 256 + 256 * V
    assert kinds.DOMINO.shape(shape("Qwen3-8B")).params == pytest.approx(1.1e9, rel=0.01)
    assert body.kv_bytes_per_token() == 20480


def test_a_pass_of_a_block_leaves_out_what_context_and_chain_take():
    drafts = {kind.name: kind.shape(shape("Qwen3-8B")) for kind in (kinds.DFLASH, kinds.DSPARK)}
    alone = {name: draft.flops_per_token(0, recurrent=True) for name, draft in drafts.items()}
    assert alone["dflash"] == alone["dspark"]
    chain = sum(a * b for a, b in drafts["dspark"].chain.values())
    assert drafts["dspark"].flops_per_token(0) - drafts["dflash"].flops_per_token(0) == 2 * chain
    assert drafts["dspark"].dense_read_bytes(recurrent=True) == drafts["dflash"].dense_read_bytes(recurrent=True)
    assert drafts["dflash"].context_weights == 5 * 4096 * 4096 + 5 * 2 * 4096 * 1024


def test_a_head_that_reads_embeddings_runs_its_layers_over_the_context():
    head = kinds.P_EAGLE.shape(shape("Llama-3.1-8B"))
    assert head.num_layers == 4
    assert head.context_weights == head.fc_params + sum(block.count * block.weights for block in head.layers)


@pytest.mark.parametrize(
    "target", ["DeepSeek-V3", "Qwen3.5-35B-A3B", "MiMo-7B", "Step-3.7-Flash", "Nemotron-3-Super-120B-A12B"]
)
def test_mtp_layers_are_passes_of_the_targets_own_layers(target):
    whole = shape(target)
    draft = kinds.MTP.shape(whole)
    depth = {"Step-3.7-Flash": 3}.get(target, 1)
    assert draft.params * depth == given(whole.mtp_layers).params
    assert draft.weight_format == whole.weight_format
    assert bool(draft.num_experts) == bool(whole.num_experts)
    assert draft.flops_per_token(0) > 2 * whole.head_params


def test_a_target_without_mtp_layers_has_none_to_pass():
    with pytest.raises(ValueError, match=r"Llama-3\.1-8B has no multi-token prediction layers"):
        shapes.mtp_head(shape("Llama-3.1-8B"), given(kinds.MTP.parts))
