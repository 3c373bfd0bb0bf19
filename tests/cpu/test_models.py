"""The decoder against transformers, draft heads against formulas written out here, files against every way to break them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from foredraft import shapes
from foredraft.feature_layers import eagle3_feature_layers
from foredraft.kinds import EAGLE3, LM, of_shape, shape_of_folder
from foredraft.models import Decoder, load, load_head, new_head, save_head
from foredraft.models.cache import KVCache
from foredraft.models.decoder import cut, new_decoder
from foredraft.models.draft_head import HeadLayout
from foredraft.models.draft_vocab import GatheredRows, offsets
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.eight_bits import EightBits
from foredraft.models.forward import causal_mask
from foredraft.models.rope import frequencies
from foredraft.models.save import save
from foredraft.shapes.rope import Rope, rope_from_config, rope_to_config

torch.set_num_threads(1)  # for tensors this small, threads cost more than they give

VOCAB, CONTEXT = 97, 64
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
LLAMA: dict[str, Any] = SIZES | {"num_hidden_layers": 3, "intermediate_size": 112, "num_key_value_heads": 2}
OPT: dict[str, Any] = SIZES | {"num_hidden_layers": 3, "ffn_dim": 112}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
OLD = {"original_max_position_embeddings": 32}


ONE_KEY: dict[str, Any] = LLAMA | {"num_key_value_heads": 1}


def rope(layers: int = 3, **scaling: Any) -> dict[str, Any]:
    return LLAMA | {"num_hidden_layers": layers, "rope_parameters": {"rope_theta": 500.0} | scaling}


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**LLAMA),
    "llama-biased-tied-gelu": lambda: LlamaConfig(
        **LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, hidden_act="gelu", rms_norm_eps=1e-2
    ),
    "llama-linear": lambda: LlamaConfig(**rope(rope_type="linear", factor=2.5)),
    "llama-llama3": lambda: LlamaConfig(**rope(**LLAMA3, **OLD)),
    "llama-yarn": lambda: LlamaConfig(**rope(**YARN)),
    "llama-yarn-mscale": lambda: LlamaConfig(
        **rope(**YARN, mscale=0.7, mscale_all_dim=1.3, beta_fast=8.0, truncate=False)
    ),
    "mistral": lambda: MistralConfig(**LLAMA, sliding_window=None, head_dim=32),
    "mistral-window": lambda: MistralConfig(**LLAMA, sliding_window=CONTEXT),
    "qwen2": lambda: Qwen2Config(**ONE_KEY),
    "qwen2-tied-yarn": lambda: Qwen2Config(**rope(**YARN), tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**LLAMA, head_dim=32),
    "seed_oss": lambda: SeedOssConfig(**LLAMA, head_dim=16),
    "opt": lambda: OPTConfig(**OPT),
    "opt-350m": lambda: OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=48),
    "opt-no-bias": lambda: OPTConfig(**OPT, enable_bias=False, activation_function="gelu"),
}


class Pair(NamedTuple):
    """transformers' model and ours, read from the folder that it saved."""

    theirs: Any
    ours: Decoder
    folder: Path

    def expected(self, tokens: Tensor) -> Tensor:
        """transformers' logits [T, V] of one sequence, scored alone and whole."""
        return self.theirs(tokens[None]).logits[0]


@pytest.fixture(autouse=True)
def _no_grad(request):
    torch.manual_seed(7)
    with torch.set_grad_enabled("trains" in request.node.name):
        yield


def build(config: Any) -> Any:
    """A model whose norms and biases are random too, with logits of order one."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" in name or "bias" in name else 0.1))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = build(FAMILIES[request.param]())
    theirs.save_pretrained(folder)
    return Pair(theirs, load(folder), folder)


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape)


# The decoder gives what transformers gives.


def test_logits_and_every_hidden_state_of_whole_sequences(pair):
    tokens = some_tokens(2, 40)
    body, last = getattr(pair.theirs.model, "decoder", pair.theirs.model), []
    hook = body.layers[-1].register_forward_hook(lambda module, inputs, result: last.append(result))
    theirs = pair.theirs(tokens, output_hidden_states=True)
    hook.remove()
    depth = pair.ours.shape.num_layers
    output = pair.ours(tokens, hidden_states=tuple(range(depth + 1)))
    torch.testing.assert_close(output.logits_BTV, theirs.logits, **CLOSE)
    assert len(theirs.hidden_states) == depth + 1
    for ours, expected in zip(output.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    torch.testing.assert_close(output.pre_norm_BTC, last[0].reshape(output.pre_norm_BTC.shape), **CLOSE)
    assert torch.equal(output.final_BTC, output.hidden_states[-1])
    assert theirs.logits.std() > 0.3, "negative control: logits all near zero would agree with anything"


def test_token_by_token_with_a_cache(pair):
    tokens, cache = some_tokens(2, 24), pair.ours.new_cache(2, 30)
    steps = [pair.ours(tokens[:, i : i + 1], torch.full((2, 1), i), cache).logits_BTV for i in range(24)]
    torch.testing.assert_close(torch.cat(steps, 1), pair.theirs(tokens).logits, **CLOSE)


def chunks(
    model: Decoder, rows: list[Tensor], cuts: list[list[int]], starts: list[int], shift: int = 0
) -> list[Tensor]:
    """Logits of sequences that are read chunk by chunk, right-padded to the widest; row b begins at slot `starts[b]`.

    `shift` displaces the positions of all chunks but the first.
    """
    cache, done, outputs = model.new_cache(len(rows), 48), [0] * len(rows), [[] for _ in rows]
    slot, first = torch.arange(48), torch.tensor(starts)
    for number, sizes in enumerate(cuts):
        width = max(sizes)
        parts = [
            torch.cat((row[d : d + n], row.new_zeros(width - n))) for row, d, n in zip(rows, done, sizes, strict=True)
        ]
        positions = torch.tensor(done)[:, None] + torch.arange(width)
        slots = positions + first[:, None]
        mask = causal_mask(slots, 48) & (slot >= first[:, None, None])
        placed = positions + (shift if number else 0)
        logits = model(torch.stack(parts), placed, cache, slots, mask).logits_BTV
        for b, size in enumerate(sizes):
            outputs[b].append(logits[b, :size])
            done[b] += size
    return [torch.cat(parts) for parts in outputs]


CUTS = [[5, 9, 14], [3, 1, 2], [1, 6, 1]]


@pytest.mark.parametrize("starts", [[0, 0, 0], [20, 3, 11]], ids=["first slots", "anywhere"])
def test_ragged_batches_with_padding(pair, starts):
    rows = [some_tokens(n) for n in (9, 16, 17)]
    for row, logits in zip(rows, chunks(pair.ours, rows, CUTS, starts), strict=True):
        torch.testing.assert_close(logits, pair.expected(row), **CLOSE)


def test_a_wrong_position_is_found(pair):
    """Negative control: rotary positions are relative, so the shift is between chunks."""
    rows = [some_tokens(n) for n in (9, 16, 17)]
    for row, logits in zip(rows, chunks(pair.ours, rows, CUTS, [0, 0, 0], shift=1), strict=True):
        assert (logits - pair.expected(row)).abs().max() > 1e-2


# A tree of seven nodes behind each of two contexts: 0 is its root, −1 the context.
PARENTS = (-1, 0, 0, 1, 1, 2, 5)


def path(node: int) -> list[int]:
    return [] if node < 0 else [*path(PARENTS[node]), node]


def tree_pass(model: Decoder, contexts: list[Tensor], nodes: Tensor, *, leaks: bool = False) -> tuple[Tensor, Any]:
    """Read the contexts, then score the nodes [B, 7] in one pass; logits [B, 7, V] and the cache. `leaks`: node 1 sees node 2."""
    cache, lengths = model.new_cache(len(contexts), 40), torch.tensor([len(c) for c in contexts])
    padded = torch.stack([torch.cat((c, c.new_zeros(12 - len(c)))) for c in contexts])
    model(padded, torch.arange(12).expand(len(contexts), -1), cache, logits="none")
    above = torch.zeros(7, 7, dtype=torch.bool)
    for node in range(7):
        above[node, path(node)] = True
    above[1, 2] = leaks
    mask = (torch.arange(40) < lengths[:, None, None]).repeat(1, 7, 1)
    for b, length in enumerate(lengths.tolist()):
        mask[b, :, length : length + 7] = above
    depths = torch.tensor([len(path(node)) - 1 for node in range(7)])
    slots = lengths[:, None] + torch.arange(7)
    return model(nodes, lengths[:, None] + depths, cache, slots, mask).logits_BTV, cache


@pytest.fixture
def tree() -> tuple[list[Tensor], Tensor]:
    return [some_tokens(6), some_tokens(10)], some_tokens(2, 7)


def test_a_tree_in_one_pass_equals_each_of_its_paths(pair, tree):
    contexts, nodes = tree
    logits, _ = tree_pass(pair.ours, contexts, nodes)
    for b in range(2):
        for node in range(7):
            alone = pair.expected(torch.cat((contexts[b], nodes[b, path(node)])))
            torch.testing.assert_close(logits[b, node], alone[-1], **CLOSE)


def test_a_tree_whose_nodes_see_their_siblings_is_found(pair, tree):
    """Negative control."""
    contexts, nodes = tree
    right, wrong = tree_pass(pair.ours, contexts, nodes)[0], tree_pass(pair.ours, contexts, nodes, leaks=True)[0]
    assert (right - wrong)[:, [1, 3, 4]].abs().max() > 1e-2
    torch.testing.assert_close(right[:, [0, 2, 5, 6]], wrong[:, [0, 2, 5, 6]], **CLOSE)


@pytest.mark.parametrize("compacts", [True, False], ids=["compacted", "control: left as it was"])
def test_after_compaction_the_cache_holds_the_accepted_path(pair, tree, compacts):
    """Row 0 accepts nodes 0, 2, 5, 6, row 1 only 0; then both read three more tokens."""
    contexts, nodes = tree
    _, cache = tree_pass(pair.ours, contexts, nodes)
    lengths = torch.tensor([6, 10])
    keep = lengths[:, None] + torch.tensor([[0, 2, 5, 6], [0, -99, -99, -99]])
    if compacts:
        cache.compact(keep.clamp(min=-1), lengths)
    more, ends = some_tokens(2, 3), lengths + torch.tensor([4, 1])
    logits = pair.ours(more, ends[:, None] + torch.arange(3), cache).logits_BTV
    kept_paths = [[0, 2, 5, 6], [0]]
    for b in range(2):
        expected = pair.expected(torch.cat((contexts[b], nodes[b, kept_paths[b]], more[b])))[-3:]
        error = float((logits[b] - expected).abs().max())
        assert error < 1e-4 if compacts or b == 1 else error > 1e-2


def test_a_row_is_copied_as_far_as_it_is_in_use():
    """So that long contexts cost memory and time where they are filled."""
    cache = KVCache(torch.randn(2, 2, 3, 1, 8, 4))
    before = cache.kv.clone()
    cache.copy_row(2, 0, 5)
    assert torch.equal(cache.kv[:, :, 0, :, :5], before[:, :, 2, :, :5])
    assert torch.equal(cache.kv[:, :, 0, :, 5:], before[:, :, 0, :, 5:])
    assert torch.equal(cache.kv[:, :, 1:], before[:, :, 1:])


def test_compaction_moves_rows_in_order_and_nothing_else():
    shape = shapes.from_config(LLAMA | {"model_type": "llama"})
    cache = Decoder(shape, model_config()).new_cache(3, 8)
    cache.kv[:] = torch.arange(8.0)[:, None]
    cache.compact(torch.tensor([[3, 4, 7], [2, 6, -1], [-1, -1, -1]]), torch.tensor([2, 1, 5]))
    cached = cache.kv[0, 0, :, 0, :, 0].tolist()
    assert cached == [[0, 1, 3, 4, 7, 5, 6, 7], [0, 2, 6, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert bool((cache.kv == cache.kv[:1, :1, :, :1, :, :1]).all())
    cache.compact(torch.empty(3, 0, dtype=torch.long), torch.tensor([1, 1, 1]))
    assert cache.num_bytes == cache.kv.numel() * 4 == shape.kv_bytes_per_token("float32") * 24


def model_config(**fields: Any) -> Any:
    from foredraft.models.layers import ModelConfig

    return ModelConfig(**({"norm_eps": 1e-6, "activation": "silu", "rope": Rope()} | fields))


def test_logits_of_chosen_rows_only(pair):
    tokens, rows = some_tokens(2, 12), torch.tensor([[3, 3], [11, 0]])
    every = pair.ours(tokens).logits_BTV
    some = pair.ours(tokens, logits=rows).logits_BTV
    torch.testing.assert_close(some, every[torch.arange(2)[:, None], rows], **CLOSE)
    torch.testing.assert_close(pair.ours(tokens, logits="last").logits_BTV, every[:, -1:], **CLOSE)
    assert pair.ours(tokens, logits="none").logits_BTV is None


def test_a_narrow_mask_reads_the_first_slots_and_other_rows_are_left_alone(pair):
    tokens, cache = some_tokens(1, 12), pair.ours.new_cache(3, CONTEXT)
    positions = torch.arange(12)[None]
    cache.kv[:, :, :, :, 12:] = math.nan  # whatever reads there shows it
    logits = pair.ours(tokens, positions, cache.rows(1, 2), mask_BTS=causal_mask(positions, 12)).logits_BTV
    torch.testing.assert_close(logits[0], pair.expected(tokens[0]), **CLOSE)
    assert not cache.kv[:, :, [0, 2], :, :12].any()


# Files.


def test_shards_types_and_old_configs_load_the_same(pair, tmp_path):
    pair.theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = json.loads((tmp_path / "config.json").read_bytes())
    scaling = config.pop("rope_parameters", None)
    if scaling:
        config["rope_theta"] = scaling.pop("rope_theta")
        scaling["type"] = scaling.pop("rope_type")
        config["rope_scaling"] = None if scaling["type"] == "default" else scaling
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load(tmp_path)
    assert ours.config == pair.ours.config
    expected = pair.ours.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert sum(tensor.numel() for tensor in ours.parameters()) == ours.shape.params


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_cast_as_asked(tmp_path, dtype):
    theirs = build(FAMILIES["llama"]()).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours, tokens = load(tmp_path), some_tokens(2, 20)
    assert ours.dtype == torch.float32
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    )  # theirs.float() keeps rounded frequencies
    torch.testing.assert_close(ours(tokens).logits_BTV, again(tokens).logits, **CLOSE)
    half = load(tmp_path, dtype=torch.bfloat16)
    logits = half(tokens).logits_BTV
    assert half.dtype == logits.dtype == half.new_cache(1, 4).kv.dtype == torch.bfloat16
    assert (logits - ours(tokens).logits_BTV).abs().max() < 0.2


def test_bare_models_and_leftovers_of_old_checkpoints_load(tmp_path):
    theirs = build(FAMILIES["llama-biased-tied-gelu"]())
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path).state_dict()
    tensors = {name.removeprefix("model."): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(tmp_path).state_dict().items())


def test_a_loaded_decoder_is_frozen_and_needs_its_files_no_more(tmp_path):
    build(FAMILIES["llama"]()).save_pretrained(tmp_path)
    ours, tokens = load(tmp_path), some_tokens(1, 5)
    before = ours(tokens).logits_BTV
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200_000)
    assert torch.equal(ours(tokens).logits_BTV, before)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training


@pytest.mark.parametrize(
    "kind", [{"kind": "default"}, {"kind": "linear", "factor": 2.0}, LLAMA3 | OLD, YARN | {"truncate": False}]
)
def test_rope_settings_survive_a_config(kind):
    read_rope = rope_from_config({"rope_theta": 500.0, "rope_scaling": kind if "rope_type" in kind else None})
    assert rope_from_config(rope_to_config(read_rope)) == read_rope
    assert "None" not in str(rope_to_config(read_rope))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        LLAMA3 | {"original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096, "truncate": False},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e9, "beta_slow": 1e8},
    ],
)
def test_frequencies_at_real_sizes_equal_transformers(scaling):
    """The last one's ramp has no width."""
    sizes: dict[str, Any] = rope(**scaling) | {"head_dim": 128, "max_position_embeddings": 131072}
    expected = LlamaRotaryEmbedding(LlamaConfig(**sizes))
    settings = {"max_position_embeddings": 131072, "rope_parameters": {"rope_theta": 500.0} | scaling}
    ours = rope_from_config(settings)
    torch.testing.assert_close(frequencies(ours, 128), expected.inv_freq, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(expected.attention_scaling)


def test_the_outer_original_context_wins_as_in_transformers():
    outer: dict[str, Any] = rope(**LLAMA3, **OLD) | {"original_max_position_embeddings": 16}
    expected = LlamaRotaryEmbedding(LlamaConfig(**outer)).inv_freq
    torch.testing.assert_close(frequencies(rope_from_config(outer), 16), expected)
    assert not torch.allclose(frequencies(rope_from_config(rope(**LLAMA3, **OLD)), 16), expected)


def test_a_cast_of_the_model_leaves_the_frequencies_alone():
    decoder = Decoder(shapes.from_config(LLAMA | {"model_type": "llama"}), model_config()).to(torch.bfloat16)
    assert decoder.rotary is not None
    assert torch.equal(decoder.rotary.frequencies, frequencies(Rope(), 16))


# What cannot be loaded says so in one line.


@pytest.fixture
def folder(tmp_path) -> Path:
    build(FAMILIES["llama"]()).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(match: str, call: Callable, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(UP), rf"model\.safetensors: lacks tensor {UP}$"),
        (lambda t: (t.pop(UP), t.pop(DOWN)), r"lacks tensor .* \(and 1 more\)"),
        (lambda t: t.update({UP + "2": t[UP].clone()}), rf"model\.safetensors: unexpected tensor {UP}2; config.json"),
        (
            lambda t: t.update({UP: t[UP][:5].clone()}),
            rf"tensor {UP} is \[5, 64\], but config.json makes it \[112, 64\]",
        ),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), rf"tensor {UP} is I8; weights must be F32, F16, BF16"),
        (lambda t: t.update({UP: t[UP].double()}), rf"tensor {UP} is F64"),
    ],
)
def test_wrong_tensors(folder, change, match):
    edit_tensors(folder, change)
    refused(match, load, folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "gpt2"}, "config.json: model_type 'gpt2' cannot be run .have llama"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "config.json: rope_type 'dynamic' is not supported .have default"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "type llama3 lacks low_freq_factor, high_freq_factor"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor .1.0. must exceed low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor must be a number, got '2'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "factor must be positive"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters must be one flat object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ({"hidden_act": "swiglu"}, "config.json: activation 'swiglu' is not supported .have silu"),
        ({"rms_norm_eps": None}, "config.json: .*norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not supported"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"layer_types": ["chunked_attention"]}, "layer_types 'chunked_attention' is not supported"),
    ],
)  # fmt: skip
def test_wrong_configs(folder, changes, match):
    edit_config(folder, **changes)
    refused(match, load, folder)


def test_families_that_can_be_counted_but_not_run(folder):
    edit_config(folder, model_type="mixtral", num_local_experts=2, num_experts_per_tok=1)
    refused("model_type 'mixtral' cannot be run .have llama", load, folder)
    edit_config(folder, model_type="opt", ffn_dim=8, layer_norm_elementwise_affine=False)
    refused("layer_norm_elementwise_affine must be true", load, folder)
    (folder / "config.json").write_text(json.dumps({"text_config": LLAMA | {"model_type": "llama"}}))
    refused("text_config: multimodal", load, folder)


def test_broken_files(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for broken in (content[:-1000], content[:100], b"", b"\xff" * 64):
        file.write_bytes(broken)
        refused(r"model\.safetensors: truncated or corrupt", load, folder)
    file.unlink()
    refused("holds neither model.safetensors nor model.safetensors.index.json", load, folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    refused(r"pytorch_model\.bin: pickled weights are never loaded.*convert them to safetensors", load, folder)
    refused("no such file", load, folder / "nowhere")


def test_broken_shards(tmp_path):
    build(FAMILIES["llama"]()).save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_bytes())["weight_map"]
    shard = tmp_path / placed[UP]

    def rewrite(value: Any) -> None:
        index.write_text(json.dumps(value))

    rewrite({"weight_map": placed | {UP: "../model.safetensors"}})
    refused("shard '../model.safetensors' must be the name of a file", load, tmp_path)
    other = next(name for name in placed.values() if name != shard.name)
    rewrite({"weight_map": placed | {UP: other}})
    refused(rf"{other}: lacks tensor {UP}, though model.safetensors.index.json", load, tmp_path)
    for wrong in ({}, [], {"weight_map": [1]}):
        rewrite(wrong)
        refused("index.json: no usable weight_map", load, tmp_path)
    rewrite({"weight_map": placed})
    shard.write_bytes(shard.read_bytes()[:-8])
    refused(rf"{shard.name}: truncated or corrupt", load, tmp_path)
    shard.unlink()
    refused(rf"{shard.name}: no such file, though .* download the missing shard", load, tmp_path)


def test_a_tied_head_that_differs(tmp_path):
    build(FAMILIES["qwen2-tied-yarn"]()).save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    refused("tensor lm_head.weight differs from the embedding; set tie_word_embeddings to false", load, tmp_path)


@pytest.mark.parametrize(
    ("config", "limit", "field"),
    [
        (lambda: MistralConfig(**LLAMA, sliding_window=16), 16, "sliding_window"),
        (
            lambda: Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=16, max_window_layers=1),
            16,
            "sliding_window",
        ),
        (lambda: Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=16, max_window_layers=3), None, ""),
        (lambda: Qwen2Config(**LLAMA, sliding_window=16), None, ""),
        (FAMILIES["opt"], CONTEXT, "max_position_embeddings"),
        (FAMILIES["llama"], None, ""),
    ],
)
def test_contexts_beyond_a_window_or_table_are_refused(tmp_path, config, limit, field):
    theirs = build(config())
    theirs.save_pretrained(tmp_path)
    ours, tokens = load(tmp_path), some_tokens(1, limit or CONTEXT)
    torch.testing.assert_close(ours(tokens).logits_BTV, theirs(tokens).logits, **CLOSE)
    if limit is None:
        ours.new_cache(1, 4 * CONTEXT)
        edit_config(tmp_path, layer_types=None)  # as old configs have it
        assert load(tmp_path).config.window is None
        return
    ours.new_cache(1, limit)
    edit_config(tmp_path, layer_types=None)
    assert load(tmp_path).config == ours.config
    refused(rf"{limit + 1} slots reach beyond {field} \({limit}\)", ours.new_cache, 1, limit + 1)
    refused(rf"{limit + 1} slots reach beyond {field}", ours, some_tokens(1, limit + 1))


def test_misuse_is_caught_at_the_border():
    decoder = Decoder(shapes.from_config(LLAMA | {"model_type": "llama"}), model_config())
    tokens, cache = some_tokens(2, 3), decoder.new_cache(2, 8)
    positions = torch.arange(3).expand(2, 3)
    for call in (
        lambda: decoder(tokens[0]),
        lambda: decoder(tokens, None, cache),
        lambda: decoder(tokens, positions[:1], cache),
        lambda: decoder(tokens, positions, decoder.new_cache(1, 8)),
        lambda: decoder(tokens, positions, cache, mask_BTS=torch.ones(2, 3, 8)),
        lambda: decoder(tokens, positions, cache, mask_BTS=torch.ones(2, 2, 8, dtype=torch.bool)),
        lambda: decoder(tokens, logits="first"),
        lambda: decoder(tokens, hidden_states=(4,)),
    ):
        with pytest.raises((AssertionError, IndexError)):  # the second by the kernels, in C
            call()
    with torch.enable_grad(), pytest.raises(AssertionError, match="for inference"):
        decoder(tokens, positions, cache)
    refused("batch and slots of at least 1", decoder.new_cache, 0, 8)


# Draft heads.

DRAFTABLE = (*range(0, 60, 3), 61, 62, 96)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Decoder:
    folder = tmp_path_factory.mktemp("target")
    build(LlamaConfig(**rope(**LLAMA3, **OLD, layers=6))).save_pretrained(folder)
    return load(folder)


def random_head(target: Decoder, kind: str, layers: int) -> Any:
    """A head whose norms are random too."""
    head = new_head(target, kind.removesuffix("-cut"), layers, None if kind == "eagle" else DRAFTABLE, seed=3)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" in name else 0.1))
    return head


HEADS = [("eagle3", 1), ("eagle3", 3), ("eagle", 1), ("eagle", 2), ("eagle-cut", 1)]


@pytest.fixture(params=HEADS, ids=lambda p: f"{p[0]}-{p[1]}")
def head(request, target) -> Any:
    return random_head(target, *request.param)


def aux_hidden_states(head: Any, tokens: Tensor) -> Tensor:
    return torch.cat(head.target(tokens, hidden_states=head.feature_layers, logits="none").hidden_states, -1)


class Naive:
    """One sequence through a head's file, row by row, from the formulas of the papers and nothing of the package."""

    def __init__(self, file: Path, embed: Tensor, lm_head: Tensor, eagle3: bool) -> None:
        self.weights, self.embed, self.lm_head, self.eagle3 = load_file(file), embed, lm_head, eagle3
        self.depth = len({name.split(".")[1] for name in self.weights if name.startswith("layers.")}) + eagle3

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean() + 1e-6).sqrt() * self.weights[name]

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Heads [n, 16] as complex numbers, turned by Llama 3.1's stretched angles."""
        turned = []
        for i in range(8):
            angle = 500.0 ** (-2 * i / 16)
            turns = 32 * angle / (2 * math.pi)
            blend = min(max((turns - 1) / 3, 0), 1)
            angle = position * angle * ((1 - blend) / 8 + blend)
            turned.append(torch.complex(x[:, i], x[:, i + 8]) * complex(math.cos(angle), math.sin(angle)))
        z = torch.stack(turned, -1)
        return torch.cat((z.real, z.imag), -1)

    def layer(self, prefix: str, inputs: list[Tensor], residuals: list[Tensor]) -> list[Tensor]:
        weights, out = self.weights, []
        at = {p: [weights[f"{prefix}self_attn.{p}_proj.weight"] @ x for x in inputs] for p in "qkv"}
        keys = [self.turn(k.view(2, 16), t) for t, k in enumerate(at["k"])]
        for t, (q, residual) in enumerate(zip(at["q"], residuals, strict=True)):
            q = self.turn(q.view(4, 16), t)
            rows = []
            for n in range(4):
                scores = torch.stack([q[n] @ keys[s][n // 2] for s in range(t + 1)]) / 4
                values = torch.stack([at["v"][s].view(2, 16)[n // 2] for s in range(t + 1)])
                rows.append(scores.softmax(0) @ values)
            x = residual + weights[f"{prefix}self_attn.o_proj.weight"] @ torch.cat(rows)
            y = self.norm(x, f"{prefix}post_attention_layernorm.weight")
            gate = weights[f"{prefix}mlp.gate_proj.weight"] @ y
            up = weights[f"{prefix}mlp.up_proj.weight"] @ y
            out.append(x + weights[f"{prefix}mlp.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * up))
        return out

    def run(self, tokens: list[int], hidden: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and hidden states, given each row's token and hidden state."""
        rows = [self.embed[token] for token in tokens]
        if self.eagle3:
            pairs = zip(rows, hidden, strict=True)
            norms = [f"midlayer.{name}.weight" for name in ("input_layernorm", "hidden_norm")]
            inputs = [torch.cat((self.norm(e, norms[0]), self.norm(h, norms[1]))) for e, h in pairs]
            x = self.layer("midlayer.", inputs, hidden)
        else:
            fused = [self.weights["fc.weight"] @ torch.cat((e, h)) for e, h in zip(rows, hidden, strict=True)]
            x = self.layer("layers.0.", fused, fused)
        for i in range(1, self.depth):
            x = self.layer(f"layers.{i}.", [self.norm(row, f"layers.{i}.input_layernorm.weight") for row in x], x)
        if self.eagle3:
            return [self.weights["lm_head.weight"] @ self.norm(row, "norm.weight") for row in x], x
        return [self.lm_head @ row for row in x], x


def test_heads_equal_the_papers_formulas_along_a_draft_chain(head, target, tmp_path):
    """Six rows of target hidden states, then three drafts on the head's own pre-norm output; cached against naive."""
    save_head(head, tmp_path)
    eagle3, tokens = isinstance(head, Eagle3Head), some_tokens(1, 7)
    matrix = target.head_weight_VC if head.d2t is None else target.head_weight_VC[list(DRAFTABLE)]
    naive = Naive(tmp_path / "model.safetensors", target.embed_tokens.weight, matrix, eagle3)
    aux_BTF = aux_hidden_states(head, tokens[:, :-1])
    ids, hidden = tokens[0, 1:].tolist(), list(aux_BTF[0])
    if eagle3:
        hidden = [naive.weights["fc.weight"] @ row for row in hidden]
    cache, positions = head.new_cache(1, 12), torch.arange(6)[None]
    output = head(tokens[:, 1:], head.combine(aux_BTF), positions, cache)
    torch.testing.assert_close(output.logits_BTV[0], torch.stack(naive.run(ids, hidden)[0]), **CLOSE)
    for position in range(6, 9):
        drafted = head.target_ids(output.logits_BTV[:, -1].argmax(-1))
        argmax = int(output.logits_BTV[0, -1].argmax())
        assert int(drafted) == (argmax if head.d2t is None else DRAFTABLE[argmax])
        ids.append(int(drafted))
        hidden.append(naive.run(ids[:-1], hidden)[1][-1])
        output = head(drafted[:, None], output.pre_norm_BTC[:, -1:], torch.tensor([[position]]), cache)
        torch.testing.assert_close(output.logits_BTV[0, -1], naive.run(ids, hidden)[0][-1], **CLOSE)


def test_the_naive_head_finds_swapped_inputs(target, tmp_path):
    """Negative control: an EAGLE-1 file whose fc expects (hidden, embed) differs."""
    head = random_head(target, "eagle", 1)
    tokens = some_tokens(1, 7)
    aux_BTF = aux_hidden_states(head, tokens[:, :-1])
    right = head(tokens[:, 1:], aux_BTF).logits_BTV
    head.fc.weight.copy_(head.fc.weight.roll(64, 1))
    assert (head(tokens[:, 1:], aux_BTF).logits_BTV - right).abs().max() > 1e-2


def test_heads_with_and_without_a_cache_agree_and_trees_too(head):
    tokens = some_tokens(2, 10)
    hidden = head.combine(aux_hidden_states(head, tokens[:, :-1]))
    full_output, cache = head(tokens[:, 1:], hidden), head.new_cache(2, 16)
    positions = torch.arange(9).expand(2, 9)
    ahead, halves = tokens[:, 1:], (slice(0, 5), slice(5, 9))
    parts = [head(ahead[:, s], hidden[:, s], positions[:, s], cache).logits_BTV for s in halves]
    torch.testing.assert_close(torch.cat(parts, 1), full_output.logits_BTV, **CLOSE)
    children, state = some_tokens(2, 2), full_output.pre_norm_BTC[:, -1:]
    mask = torch.zeros(1, 2, 11, dtype=torch.bool)
    mask[:, :, :9] = True
    mask[:, [0, 1], [9, 10]] = True
    same = torch.full((2, 2), 9)
    both = head(children, state.expand(-1, 2, -1), same, cache, torch.tensor([[9, 10]] * 2), mask).logits_BTV
    for i in range(2):
        alone = head(torch.cat((tokens[:, 1:], children[:, i : i + 1]), 1), torch.cat((hidden, state), 1))
        torch.testing.assert_close(both[:, i], alone.logits_BTV[:, -1], **CLOSE)


def test_a_head_over_the_whole_vocabulary_is_saved_without_a_map_and_loads(target, tmp_path):
    """vLLM 0.32 refuses a head with d2t whose draft vocabulary is the target's."""
    head = new_head(target, "eagle3", 1, None, seed=3)
    save_head(head, tmp_path)
    assert not {"d2t", "t2d"} & set(load_file(tmp_path / "model.safetensors"))
    assert load_head(tmp_path, target).state_dict()["d2t"].tolist() == [0] * target.shape.vocab_size


def test_a_cut_eagle_head_is_read_back_as_one_and_loses_its_map_alone(target, tmp_path):
    """Its file names no LM head, its logits are the whole head's at what it can draft; without its map it is the whole head."""
    head, tokens = random_head(target, "eagle-cut", 2), some_tokens(1, 7)
    save_head(head, tmp_path)
    again, features = load_head(tmp_path, target), aux_hidden_states(head, tokens[:, :-1])
    assert again.draft_ids is not None
    assert (type(again), again.draft_ids.tolist()) == (EagleHead, list(DRAFTABLE))
    assert shape_of_folder(tmp_path).draft_vocab_size == again.shape.draft_vocab_size == 23
    assert {name for name in load_file(tmp_path / "model.safetensors") if "layers" not in name} == {
        "fc.weight",
        "d2t",
        "t2d",
    }
    cut_logits, whole_logits = (
        again(tokens[:, 1:], features).logits_BTV,
        head.uncut()(tokens[:, 1:], features).logits_BTV,
    )
    torch.testing.assert_close(cut_logits, whole_logits[..., list(DRAFTABLE)], **CLOSE)
    save_head(head.uncut(), tmp_path)
    assert not {"d2t", "t2d", "draft_vocab_size"} & {
        *load_file(tmp_path / "model.safetensors"),
        *json.loads((tmp_path / "config.json").read_bytes()),
    }
    whole = load_head(tmp_path, target)
    torch.testing.assert_close(whole(tokens[:, 1:], features).logits_BTV, whole_logits, **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_a_draft_vocabulary_is_read_back_as_one(tied, tmp_path):
    """It reads all tokens; its logits are the whole model's at what it can draft, from a file with the whole model's parameters at most."""
    shape = msgspec.structs.replace(shapes.from_config(LLAMA | {"model_type": "llama"}), tie_embeddings=tied)
    whole = new_decoder(shape, model_config(), 0).requires_grad_(False).eval()
    model, tokens = cut(whole, offsets(DRAFTABLE, shape.vocab_size)), some_tokens(2, 7)
    torch.testing.assert_close(model(tokens).logits_BTV, whole(tokens).logits_BTV[..., list(DRAFTABLE)], **CLOSE)
    save(model.state_dict(), model.shape, model.config, tmp_path)
    again, stored = load(tmp_path), load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(again(tokens).logits_BTV, model(tokens).logits_BTV, **CLOSE)
    assert of_shape(shape_of_folder(tmp_path)) is LM
    assert (
        shape_of_folder(tmp_path).params
        == again.shape.params
        == sum(t.numel() for name, t in stored.items() if name != "d2t")
    )
    assert again.shape.params == whole.shape.params - (
        0 if tied else (shape.vocab_size - len(DRAFTABLE)) * shape.hidden_size
    )
    assert again.target_ids(torch.arange(23)).tolist() == list(DRAFTABLE)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("d2t"))
    refused(r"lacks tensor d2t, which draft_vocab_size 23 of \d+ needs", load, tmp_path)


def test_gathered_rows_follow_their_table():
    """Copied once while it is frozen, anew when it has changed in place, and with gradients while it is trained."""
    table, ids, rows = torch.randn(6, 3), torch.tensor([1, 4]), GatheredRows()
    d2t = offsets(ids.tolist(), 6)
    first = rows(table, d2t, table.dtype)
    assert rows(table, d2t, table.dtype) is first
    table[4] += 1
    assert torch.equal(rows(table, d2t, table.dtype), table[ids])
    narrow = rows(table, None, torch.bfloat16)
    assert rows(table, None, torch.bfloat16) is narrow
    assert torch.equal(narrow, table.bfloat16())
    assert rows(table, None, table.dtype) is table
    eight = rows(table, d2t, table.dtype, in_eight=True)
    assert rows.eight is not None
    assert torch.equal(eight, rows.eight.weight)
    assert torch.equal(eight, EightBits.of(table[ids]).weight)
    trained_table = table.clone().requires_grad_(True)
    with torch.enable_grad():
        rows(trained_table, d2t, table.dtype).sum().backward()
    assert trained_table.grad is not None
    assert trained_table.grad.sum(1).tolist() == [0, 3, 0, 0, 3, 0]


EAGLE3_LAYER = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (112, 64), "mlp.up_proj": (112, 64), "mlp.down_proj": (64, 112), "post_attention_layernorm": (64,),
}  # fmt: skip
LAYOUTS = {("eagle", "vllm"): None, ("eagle", "sglang"): HeadLayout("LlamaForCausalLMEagle", fc_bias=True)}
NORMS = {"input_layernorm": (64,), "hidden_norm": (64,)}
WIDE = {"self_attn.q_proj": (64, 128), "self_attn.k_proj": (32, 128), "self_attn.v_proj": (32, 128)}
EAGLE3_ENDS = {"fc.weight": (64, 192), "norm.weight": (64,), "lm_head.weight": (23, 64), "d2t": (23,), "t2d": (97,)}


def under(prefix: str, tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}.weight": shape for name, shape in tensors.items()}


def test_the_flat_eagle3_file_has_the_published_names_and_shapes(target, tmp_path):
    save_head(
        random_head(target, "eagle3", 2), tmp_path, dtype=torch.bfloat16, more={"bos_token_id": 1, "eos_token_id": None}
    )
    tensors = load_file(tmp_path / "model.safetensors")
    first, second = under("midlayer", EAGLE3_LAYER | WIDE | NORMS), under("layers.1", EAGLE3_LAYER | NORMS)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == EAGLE3_ENDS | first | second
    kinds = {"d2t": torch.int64, "t2d": torch.bool}
    assert all(tensor.dtype == kinds.get(name, torch.bfloat16) for name, tensor in tensors.items())
    assert torch.equal(tensors["layers.1.hidden_norm.weight"], tensors["layers.1.input_layernorm.weight"])
    assert (tensors["d2t"] + torch.arange(23)).tolist() == list(DRAFTABLE)
    assert tensors["t2d"].nonzero()[:, 0].tolist() == list(DRAFTABLE)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert "null" not in json.dumps(config)
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["draft_vocab_size"], config["vocab_size"], config["num_hidden_layers"]) == (23, 97, 2)
    assert (config["target_hidden_size"], config["torch_dtype"], config["bos_token_id"]) == (64, "bfloat16", 1)
    assert not {"eagle_config", "eagle_aux_hidden_state_layer_ids", "eos_token_id", "bias"} & set(config)
    assert [config[key] for key in ("norm_before_residual", "fc_norm", "norm_output")] == [False] * 3
    assert sum(t.numel() for name, t in tensors.items() if name not in (*kinds, "layers.1.hidden_norm.weight")) == (
        shape_of_folder(tmp_path).params
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_flat_eagle_file_has_the_published_names_and_shapes(target, tmp_path, engine):
    save_head(random_head(target, "eagle", 2), tmp_path, layout=LAYOUTS["eagle", engine])
    tensors = load_file(tmp_path / "model.safetensors")
    second = under("layers.1", EAGLE3_LAYER | {"input_layernorm": (64,)})
    bias = {"fc.bias": (64,)} if engine == "sglang" else {}
    expected = {"fc.weight": (64, 128)} | bias | under("layers.0", EAGLE3_LAYER) | second
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    names = {"vllm": "LlamaForCausalLM", "sglang": "LlamaForCausalLMEagle"}
    assert json.loads((tmp_path / "config.json").read_bytes())["architectures"] == [names[engine]]
    assert isinstance(load_head(tmp_path, target), EagleHead)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_saved_head_loads_to_the_same_numbers(head, target, tmp_path, engine):
    save_head(head, tmp_path, layout=LAYOUTS.get((of_shape(head.shape).name, engine)))
    back, tokens = load_head(tmp_path, target), some_tokens(2, 9)
    assert type(back) is type(head)
    assert (back.feature_layers, back.config) == (head.feature_layers, head.config)
    aux_BTF = aux_hidden_states(head, tokens[:, :-1])
    ours, theirs = head(tokens[:, 1:], head.combine(aux_BTF)), back(tokens[:, 1:], back.combine(aux_BTF))
    assert torch.equal(ours.logits_BTV, theirs.logits_BTV)
    assert torch.equal(ours.pre_norm_BTC, theirs.pre_norm_BTC)
    ids = torch.arange(ours.logits_BTV.shape[-1])
    assert torch.equal(head.target_ids(ids), back.target_ids(ids))


@pytest.mark.parametrize(
    "renames", [[("midlayer.", "layers.0.")], [("layers.1.input_layernorm", "")], [("layers.1.hidden_norm", "")]]
)
def test_other_spellings_of_a_head_load_too(target, tmp_path, renames):
    head = random_head(target, "eagle3", 2)
    save_head(head, tmp_path)
    for old, new in renames:
        edit_tensors(
            tmp_path,
            lambda t, old=old, new=new: [
                t.update({name.replace(old, new): tensor}) if new else None
                for name, tensor in [(name, t.pop(name)) for name in list(t) if name.startswith(old)]
            ],
        )
    back = load_head(tmp_path, target)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in head.state_dict().items())


def test_hidden_state_layers_that_are_not_the_default_are_written_as_both_engines_count(target, tmp_path):
    head = new_head(target, feature_layers=(1, 2, 5))
    assert torch.equal(head.target_ids(torch.arange(VOCAB)), torch.arange(VOCAB))
    save_head(head, tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    key = "eagle_aux_hidden_state_layer_ids"
    assert (config[key], config["eagle_config"][key]) == ([1, 2, 5], [0, 1, 4])
    assert load_head(tmp_path, target).feature_layers == (1, 2, 5)
    edit_config(tmp_path, **{key: None})
    assert load_head(tmp_path, target).feature_layers == (1, 2, 5)
    edit_config(tmp_path, **{key: [1, 2, 4]})
    refused(
        r"config.json: eagle_aux_hidden_state_layer_ids \[1, 2, 4\] must be one more than", load_head, tmp_path, target
    )
    edit_config(tmp_path, eagle_config={})
    edit_config(tmp_path, **{key: [1, 2, 7]})
    refused("feature_layers must be hidden states from 0 to 6, got .1, 2, 7.", load_head, tmp_path, target)


def test_a_head_of_another_width_brings_its_own_embedding(target, tmp_path):
    shape = msgspec.structs.replace(EAGLE3.shape(target.shape, 1, 23), hidden_size=32)
    d2t = torch.tensor(DRAFTABLE) - torch.arange(23)
    head = Eagle3Head(shape, model_config(), target, eagle3_feature_layers(6), d2t, own_embedding=True)
    save_head(head, tmp_path)
    back, tokens = load_head(tmp_path, target), some_tokens(1, 5)
    aux_BTF = aux_hidden_states(head, tokens)
    assert torch.equal(back(tokens, back.combine(aux_BTF)).logits_BTV, head(tokens, head.combine(aux_BTF)).logits_BTV)
    assert load_file(tmp_path / "model.safetensors")["embed_tokens.weight"].shape == (VOCAB, 32)
    edit_tensors(tmp_path, lambda t: t.pop("embed_tokens.weight"))
    refused("hidden_size 32, not the target's 64, needs tensor embed_tokens.weight", load_head, tmp_path, target)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("d2t"), r"model\.safetensors: lacks tensor d2t, which draft_vocab_size 23 of 97 needs"),
        (lambda t: t.update(d2t=t["d2t"].float()), r"tensor d2t is F32 \[23\]; it must be I64 \[23\]"),
        (
            lambda t: t.update(d2t=t["d2t"] + torch.arange(23)),
            "model.safetensors: d2t must hold offsets to ids below 97",
        ),
        (lambda t: t.update(d2t=-torch.arange(23)), "d2t must name each token once, got 1 tokens in 23 entries"),
        (lambda t: t.update(t2d=~t["t2d"]), "tensor t2d must mark the tokens of d2t"),
        (lambda t: t.update(t2d=t["t2d"].float()), r"tensor t2d is F32 \[97\]; it must be BOOL \[97\]"),
        (lambda t: t.pop("fc.weight"), "lacks tensor fc.weight"),
        (lambda t: t.pop("layers.1.mlp.up_proj.weight"), "lacks tensor layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"fc_norm.0.weight": torch.ones(64)}), "unexpected tensor fc_norm.0.weight"),
        (
            lambda t: t.update({"layers.1.hidden_norm.weight": torch.ones(64)}),
            "hidden_norm.weight differs from .*input_layernorm",
        ),
    ],
)
def test_wrong_tensors_in_a_head(target, tmp_path, change, match):
    save_head(random_head(target, "eagle3", 2), tmp_path)
    edit_tensors(tmp_path, change)
    refused(match, load_head, tmp_path, target)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fc_norm": True}, "lacks tensor fc_norm.0.weight"),
        ({"norm_before_fc": True}, "lacks tensor input_norm.weight"),
        ({"target_hidden_size": 80}, "made for a target of hidden_size 80, but .* has 64"),
        ({"vocab_size": 98, "draft_vocab_size": 98}, "vocab_size 98, but .* has 97"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
    ],
)
def test_wrong_configs_of_a_head(target, tmp_path, changes, match):
    save_head(new_head(target), tmp_path)
    edit_config(tmp_path, **changes)
    refused(match, load_head, tmp_path, target)


def test_folders_and_requests_that_are_no_head(folder, target, tmp_path_factory):
    refused("not a draft head: architectures names none, and there is no tensor fc.weight", load_head, folder, target)
    refused("an EAGLE-3 head reads hidden states 2, L/2 and L−3, but its target has 2 layers", eagle3_feature_layers, 2)
    refused("kind must be one of 'eagle3', 'eagle', 'dflash', 'dspark', got 'medusa'", new_head, target, "medusa")
    refused("draft_vocab must name at least one token", new_head, target, draft_vocab=())
    refused("d2t must name each token once", new_head, target, draft_vocab=(3, 3))
    refused("d2t must hold offsets to ids below 97", new_head, target, draft_vocab=(3, 97))
    refused("feature_layers are for 'eagle3'", new_head, target, "eagle", feature_layers=(1, 2, 3))
    refused("feature_layers must be hidden states from 0 to 6", new_head, target, feature_layers=(1, 7))
    head, out = new_head(target, "eagle"), tmp_path_factory.mktemp("bias")
    biased = EagleHead(head.shape, head.config, target, fc_bias=True)
    refused("fc.bias is not zero", save_head, biased, out)
    save_head(biased, out, layout=LAYOUTS["eagle", "sglang"])
    assert torch.equal(load_head(out, target).fc.bias, biased.fc.bias)


def test_new_heads_follow_their_seed_and_begin_as_the_targets_head(target):
    first_head, same, other = (new_head(target, draft_vocab=DRAFTABLE, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first_head.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first_head.fc.weight, other.fc.weight)
    assert isinstance(first_head, Eagle3Head)
    assert torch.equal(first_head.state_dict()["lm_head.weight"], target.head_weight_VC[list(DRAFTABLE)])
    assert first_head.config.rope == target.config.rope
    assert first_head.feature_layers == (2, 3, 3)
    assert sum(p.numel() for p in first_head.parameters()) == first_head.shape.params


@pytest.mark.parametrize("kind", ["eagle3", "eagle", "dflash", "dspark"])
def test_a_new_head_of_any_kind_takes_nothing_from_torchs_global_generator(target: Decoder, kind: str):
    states = [(torch.manual_seed(drawn_before), new_head(target, kind).state_dict())[1] for drawn_before in (1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["eagle3", "eagle"])
def test_heads_for_every_target(pair, kind):
    if pair.ours.shape.embed_dim:
        refused("needs embed_dim equal to hidden_size", new_head, pair.ours, kind)
        return
    head, tokens = new_head(pair.ours, kind), some_tokens(2, 6)
    output = head(tokens, head.combine(aux_hidden_states(head, tokens)))
    assert output.logits_BTV.shape == (2, 6, VOCAB)
    assert bool(output.logits_BTV.isfinite().all())


class Growing:
    """Keys and values that pass gradients: what a trainer may put in the cache's place."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.held:
            k_BKTD, v_BKTD = (
                torch.cat((old, new), 2) for old, new in zip(self.held[layer], (k_BKTD, v_BKTD), strict=True)
            )
        self.held[layer] = k_BKTD, v_BKTD
        return k_BKTD, v_BKTD


def test_a_head_trains_through_its_own_output(head, target):
    """Two steps of training-time test: at step 1 each row sees step 0 causally and its own key of step 1."""
    tokens, cache = some_tokens(2, 8), Growing()
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None]
    hidden = head.combine(aux_hidden_states(head, tokens[:, :6]))
    first = head(tokens[:, 1:7], hidden, torch.arange(6).expand(2, 6), cache, mask_BTS=causal)
    mask = torch.cat((causal, torch.eye(6, dtype=torch.bool)[None]), -1)
    second = head(tokens[:, 2:8], first.pre_norm_BTC, torch.arange(1, 7).expand(2, 6), cache, mask_BTS=mask)
    for row in range(6):
        sees = torch.cat((tokens[:, 1 : row + 2], tokens[:, row + 2 : row + 3]), 1)
        fed = torch.cat((hidden[:, : row + 1], first.pre_norm_BTC[:, row : row + 1]), 1)
        torch.testing.assert_close(second.logits_BTV[:, row], head(sees, fed).logits_BTV[:, -1], **CLOSE)
    second.logits_BTV.logsumexp(-1).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())
    assert not {id(p) for p in head.parameters()} & {id(p) for p in target.parameters()}
