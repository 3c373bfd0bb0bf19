"""Heads of blocks (DFlash, DSpark): the published files, a forward pass by the definition, lossless drafting, and training."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from grammar import write_folder
from safetensors.torch import load_file
from scipy.stats import chisquare
from torch import Tensor

from foredraft import kinds
from foredraft.data.tokens import Batch, TokenFolder
from foredraft.decode.batch import Request, Sequence
from foredraft.decode.block_drafter import BlockDrafter
from foredraft.decode.engine import Engine
from foredraft.decode.lookup_first import LookupFirst
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling, probabilities
from foredraft.decode.verify import verify_chain
from foredraft.deploy.check import check
from foredraft.deploy.export import ExportSettings, export
from foredraft.feature_layers import block_feature_layers
from foredraft.models.block_head import BlockHead
from foredraft.models.decoder import Decoder
from foredraft.models.dspark import DSparkHead
from foredraft.models.heads import load_head, new_head, save_head
from foredraft.models.layers import ModelConfig
from foredraft.models.save import save
from foredraft.recipe import DFlash, DSpark, EvalSchedule, Recipe, Stage, block_decay
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config
from foredraft.teacher.acceptance import acceptance
from foredraft.teacher.blocks import PackedHead
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.hidden_states import OnlineHiddenStates
from foredraft.teacher.teacher_forced import tallies
from foredraft.train.blocks import BlockObjective, drawn_anchors
from foredraft.train.devices import Devices
from foredraft.train.flops import EVERYTHING, BlockSettings, Computed, block_training_flops
from foredraft.train.launch import launch
from foredraft.train.objectives import trainee_of

VOCAB, THETA, EPS = 64, 500.0, 1e-5
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": THETA, "hidden_act": "silu",
}  # fmt: skip
CUT = tuple(range(1, VOCAB, 2))  # of a draft vocabulary
OPTIONS: dict[str, dict[str, Any]] = {"dflash": {"block": 5}, "dspark": {"block": 4, "rank": 8}}
HEADS = [("dflash", None), ("dflash", CUT), ("dspark", None), ("dspark", CUT)]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def model(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    config = ModelConfig(norm_eps=EPS, activation="silu", rope=rope_from_config(CONFIG))
    decoder = Decoder(from_config(CONFIG, name="tiny"), config)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return decoder.requires_grad_(False).eval()


TARGET = model()


@cache
def random_head(kind: str, cut: tuple[int, ...] | None = None, layers: int = 2) -> Any:
    """A head whose weights and norms are far from what they are at first."""
    head = new_head(TARGET, kind, layers, cut, **OPTIONS[kind])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return head.requires_grad_(False).eval()


@pytest.fixture(params=HEADS, ids=lambda p: p[0] + ("-cut" if p[1] else ""))
def head(request: pytest.FixtureRequest) -> Any:
    return random_head(*request.param)


def joined(head: BlockHead, tokens: list[int]) -> Tensor:
    return torch.cat(TARGET(torch.tensor([tokens]), hidden_states=head.feature_layers).hidden_states, -1)[0]


# Where training begins


@pytest.mark.parametrize(("kind", "cut"), HEADS)
def test_a_head_begun_by_hand_takes_over_the_state_just_before_its_block(
    kind: str, cut: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
):
    """recipes/smollm2/begin.py: how much each token's hidden states move what a block's first and last rows give, by their gradients."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "recipes" / "smollm2")
    import begin  # type: ignore[import-not-found]

    tokens = np.random.default_rng(0).integers(0, VOCAB - 1, 3000)
    plain: Any = new_head(TARGET, kind, 1, cut, **OPTIONS[kind])
    begun = begin.with_all_key_heads(plain)
    folder: Any = SimpleNamespace(tokens=tokens)
    begin.look_back(begun, folder)
    assert (plain.shape.num_kv_heads, begun.shape.num_kv_heads) == (2, 4)
    anchor, batch = 40, _batch(torch.from_numpy(tokens[:64])[None])
    latest = {}
    for name, head in {"plain": plain, "begun": begun}.items():
        given = OnlineHiddenStates(TARGET, head.feature_layers)(batch)
        aux = given.aux_BTF.clone().requires_grad_()
        states_kC = PackedHead(head).states(batch, given._replace(aux_BTF=aux), torch.tensor([[anchor]]))[0, 0]
        for row in (0, -1):
            (moved,) = torch.autograd.grad(states_kC[row].square().sum(), aux, retain_graph=True)
            norms = moved[0].norm(dim=1)
            assert not norms[anchor:].any()
            latest[name, row] = float(norms[anchor - 1] / norms.sum())
    assert all(latest["begun", row] > 4 * latest["plain", row] for row in (0, -1))


def _batch(tokens_BT: Tensor) -> Batch:
    """One document of labels."""
    return Batch(
        tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), torch.zeros_like(tokens_BT, dtype=torch.int32)
    )


# The files


LAYER = {
    "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32), "self_attn.q_norm": (8,), "self_attn.k_norm": (8,),
    "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64),
}  # fmt: skip
ENDS = {"fc.weight": (32, 96), "hidden_norm.weight": (32,), "norm.weight": (32,)}
MORE = {
    "dflash": {},
    "dspark": {
        "markov_head.markov_w1.weight": (64, 8), "markov_head.markov_w2.weight": (64, 8), "confidence_head.proj.weight": (1, 40),
        "confidence_head.proj.bias": (1,),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_file_has_the_published_names_and_keys(kind: str, tmp_path: Path):
    save_head(random_head(kind), tmp_path)
    tensors = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    layers = {f"layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in LAYER.items()}
    assert tensors == ENDS | MORE[kind] | layers
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert (config["model_type"], config["num_target_layers"], config["num_hidden_layers"]) == ("qwen3", 4, 2)
    assert "null" not in json.dumps(config)
    inner = config["dflash_config"] if kind == "dflash" else config
    assert (inner["mask_token_id"], inner["target_layer_ids"]) == (63, [0, 1, 2])
    names = {"dflash": (["DFlashDraftModel"], 6, False), "dspark": (["Qwen3DSparkModel"], 4, True)}
    assert (config["architectures"], config["block_size"], config["sample_from_anchor"]) == names[kind]
    shape = kinds.shape_of_folder(tmp_path)
    assert shape.params == sum(int(np.prod(shape)) for shape in tensors.values())
    assert kinds.of_shape(shape).name == kind


def test_a_head_of_five_layers_has_the_58_tensors_of_the_published_file(tmp_path: Path):
    save_head(new_head(TARGET, "dflash", 5), tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) == 58


def test_a_saved_head_is_read_back_to_the_same_numbers(head: BlockHead, tmp_path: Path):
    save_head(head, tmp_path)
    again = load_head(tmp_path, TARGET)
    assert (type(again), again.config, again.feature_layers) == (type(head), head.config, head.feature_layers)
    assert (again.shape.head, again.shape.params) == (head.shape.head, head.shape.params)
    assert again.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), head.state_dict().values(), strict=True))
    assert (again.mask_token, again.rows, again.first_row) == (head.mask_token, head.rows, head.first_row)  # type: ignore[attr-defined]


def edited(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **tensors: Tensor) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_bytes()))))
    stored = load_file(folder / "model.safetensors")
    safetensors.torch.save_file(
        stored | {f"{name}.weight": tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def test_tables_on_file_are_the_targets_where_they_are_copies_of_its_own(tmp_path: Path):
    save_head(random_head("dspark"), tmp_path)
    table, lm_head = TARGET.embed_tokens.weight, TARGET.head_weight_VC
    assert (
        shared := load_head(edited(tmp_path, dict, embed_tokens=table, lm_head=lm_head), TARGET)
    ).embed_tokens is None
    assert shared.lm_head is None
    own = load_head(edited(tmp_path, dict, embed_tokens=table, lm_head=lm_head * 2), TARGET)
    assert own.lm_head is not None
    assert torch.equal(own.head_weight_VC, lm_head * 2)


def _nested(config: dict[str, Any]) -> dict[str, Any]:
    names = (
        "block_size",
        "mask_token_id",
        "target_layer_ids",
        "markov_rank",
        "markov_head_type",
        "enable_confidence_head",
    )
    inner = {name: config.pop(name) for name in names} | {"projector_type": "dspark"}
    return config | {"architectures": ["DSparkDraftModel"], "dflash_config": inner}


def _speculators(config: dict[str, Any]) -> dict[str, Any]:
    outer = (
        "architectures",
        "block_size",
        "mask_token_id",
        "draft_vocab_size",
        "sample_from_anchor",
        "markov_rank",
        "markov_head_type",
    )
    kept = {name: config.pop(name) for name in outer if name in config}
    layers = [i + 1 for i in config.pop("target_layer_ids")]
    return kept | {
        "speculators_model_type": "dspark", "architectures": ["DSparkSpeculator"], "transformer_layer_config": config,
        "aux_hidden_state_layer_ids": layers,
    }  # fmt: skip


@pytest.mark.parametrize("spelt", [_nested, _speculators])
def test_other_published_spellings_are_the_same_head(spelt: Callable[..., dict[str, Any]], tmp_path: Path):
    head = random_head("dspark")
    save_head(head, tmp_path)
    again = load_head(edited(tmp_path, spelt), TARGET)
    assert isinstance(again, DSparkHead)
    assert (again.feature_layers, again.block, again.from_anchor) == (head.feature_layers, head.block, True)
    assert again.shape.head == head.shape.head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dflash_config": {"target_layer_ids": [0, 1, 2]}}, "mask_token_id is missing"),
        (
            {"dflash_config": {"mask_token_id": 99, "target_layer_ids": [0, 1, 2]}},
            "an id below the target's vocab_size 64",
        ),
        ({"dflash_config": {"mask_token_id": 9, "target_layer_ids": [0, 1, 3]}}, "hidden states from 0 to 3"),
        ({"is_causal": True}, "is_causal is true: blocks whose rows see no later ones"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding layers of a head of blocks"),
        ({"hidden_size": 64, "target_hidden_size": 64}, "made for a target of hidden_size 64"),
    ],
)
def test_what_is_not_built_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path):
    save_head(random_head("dflash"), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_head(edited(tmp_path, lambda config: config | changes), TARGET)


def test_options_of_new_heads_are_checked():
    with pytest.raises(ValueError, match="rank is not an option of this kind"):
        new_head(TARGET, "dflash", rank=8)
    with pytest.raises(ValueError, match="block is not an option of this kind"):
        new_head(TARGET, "eagle", block=8)
    with pytest.raises(ValueError, match="mask_token must be an id below"):
        new_head(TARGET, "dspark", mask_token=64)
    assert [new_head(TARGET, kind).block for kind in OPTIONS] == [15, 7]  # type: ignore[attr-defined]
    plain = new_head(TARGET, "dspark", rank=0)
    assert (plain.markov_head, plain.confidence_head) == (None, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("depth", "left"),
    [(36, [1, 9, 17, 25, 33]), (24, [1, 6, 11, 16, 21]), (32, [1, 8, 15, 22, 29]), (4, [0, 1, 2]), (1, [-1])],
)
def test_hidden_states_are_spread_as_in_published_heads(depth: int, left: list[int]):
    assert [layer - 1 for layer in block_feature_layers(depth)] == left


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    save(TARGET.state_dict(), TARGET.shape, TARGET.config, folder)
    return folder


def test_exported_heads_pass_the_check_of_the_engines_that_load_them(head: Any, target_folder: Path, tmp_path: Path):
    """One of a draft vocabulary carries its rows of the target's LM head; launch settings draft a whole block; more is refused."""
    save_head(head, tmp_path / "head")
    written = export(tmp_path / "head", target_folder, tmp_path / "out", ExportSettings())
    settings = json.loads((tmp_path / "out/speculative_config.json").read_bytes())
    assert (settings["method"], settings["num_speculative_tokens"]) == (kinds.of_shape(head.shape).name, head.block)
    stored, cut = load_file(tmp_path / "out/model.safetensors"), head.draft_ids is not None
    assert ("lm_head.weight" in stored) == cut
    if cut:
        assert torch.equal(stored["lm_head.weight"], TARGET.head_weight_VC[list(CUT)])
    assert load_head(tmp_path / "out", TARGET).lm_head is None
    assert not check(tmp_path / "out", target_folder)
    assert written.record.engines == (("vllm", "sglang") if (head.reads_drafts, cut) == (False, False) else ("vllm",))
    with pytest.raises(ValueError, match=f"is more than the {head.block} tokens that a block of this head has"):
        export(tmp_path / "head", target_folder, tmp_path / "long", ExportSettings(lookahead=9))
    spoilt = load_file(tmp_path / "out/model.safetensors")
    spoilt["layers.0.mlp.spare.weight"] = spoilt.pop("hidden_norm.weight")
    safetensors.torch.save_file(spoilt, tmp_path / "out/model.safetensors")
    assert {finding.code for finding in check(tmp_path / "out", target_folder, "vllm")} == {"missing", "unknown"}


def test_the_speculators_format_holds_heads_of_blocks(head: Any, target_folder: Path, tmp_path: Path):
    """Hidden states by the layers entered, the block and its layout said; read back it computes the same."""
    save_head(head, tmp_path / "head")
    export(tmp_path / "head", target_folder, tmp_path / "out", ExportSettings(format="speculators"))
    config, back = json.loads((tmp_path / "out/config.json").read_bytes()), load_head(tmp_path / "out", TARGET)
    assert config["aux_hidden_state_layer_ids"] == list(head.feature_layers)
    assert (config["block_size"], config["sample_from_anchor"]) == (head.rows, head.from_anchor)
    assert (config["speculators_model_type"], config["mask_token_id"]) == (head.kind.name, head.mask_token)
    assert (back.block, back.feature_layers, back.from_anchor) == (head.block, head.feature_layers, head.from_anchor)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in head.state_dict().items())
    assert not check(tmp_path / "out", target_folder)
    for key in ("mask_token_id", "aux_hidden_state_layer_ids"):
        (tmp_path / "out/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        assert key in {finding.where for finding in check(tmp_path / "out", target_folder) if finding.level == "error"}


def test_a_head_that_an_engine_serves_by_rules_unknown_here_is_not_condemned(target_folder: Path, tmp_path: Path):
    save_head(random_head("dspark"), tmp_path)
    findings = check(tmp_path, target_folder, "sglang")
    assert [(finding.code, finding.level) for finding in findings] == [("not-judged", "note")]
    assert findings[0].effect.startswith("not judged: this is a DSpark head for vLLM, SGLang")
    with pytest.raises(ValueError, match="what its loader asks of one is not known here; use --format vllm"):
        export(tmp_path, target_folder, tmp_path / "out", ExportSettings(format="sglang"))


# The forward pass, by the definition


class Definition:
    """One block behind one text, row by row and key by key, from the tensors of the head's file and nothing of the package."""

    def __init__(self, head: BlockHead, folder: Path) -> None:
        save_head(head, folder)
        self.weights, self.head = load_file(folder / "model.safetensors"), head
        self.ids = head.draft_ids.tolist() if head.draft_ids is not None else list(range(VOCAB))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * self.weights[f"{name}.weight"]

    def turned(self, x_HD: Tensor, place: int) -> Tensor:
        """Heads as complex numbers, turned by the place's angles."""
        angles = place / THETA ** (torch.arange(4) / 4)
        pairs = torch.complex(*x_HD.chunk(2, -1)) * torch.polar(torch.ones(4), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    def key_value(self, x: Tensor, layer: str, place: int) -> tuple[Tensor, Tensor]:
        key = self.norm((self.weights[f"{layer}.k_proj.weight"] @ x).view(2, 8), f"{layer}.k_norm")
        return self.turned(key, place), (self.weights[f"{layer}.v_proj.weight"] @ x).view(2, 8)

    def states(self, tokens: list[int]) -> list[Tensor]:
        """What the LM head reads at each drafted place, the last of `tokens` being the anchor."""
        head, known = self.head, len(tokens) - 1
        fused = [
            self.norm(self.weights["fc.weight"] @ x, "hidden_norm")
            for x in (joined(head, tokens[:-1]) if known else [])
        ]
        embed = TARGET.embed_tokens.weight
        rows = [embed[tokens[-1]], *[embed[head.mask_token]] * (head.rows - 1)]
        for i in range(head.shape.num_layers):
            layer = f"layers.{i}.self_attn"
            normed = [self.norm(x, f"layers.{i}.input_layernorm") for x in rows]
            seen = [self.key_value(x, layer, t) for t, x in enumerate(fused)]
            seen += [self.key_value(x, layer, known + j) for j, x in enumerate(normed)]
            for j, x in enumerate(normed):
                query = self.norm((self.weights[f"{layer}.q_proj.weight"] @ x).view(4, 8), f"{layer}.q_norm")
                query, mixed = self.turned(query, known + j), []
                for n in range(4):
                    share = torch.stack([query[n] @ key[n // 2] for key, _ in seen]).div(8**0.5).softmax(0)
                    mixed.append(sum(s * value[n // 2] for s, (_, value) in zip(share, seen, strict=True)))
                rows[j] = rows[j] + self.weights[f"{layer}.o_proj.weight"] @ torch.cat(mixed)  # type: ignore[arg-type]
            for j, x in enumerate(rows):
                inner = self.norm(x, f"layers.{i}.post_attention_layernorm")
                gate, up = (self.weights[f"layers.{i}.mlp.{name}_proj.weight"] @ inner for name in ("gate", "up"))
                rows[j] = x + self.weights[f"layers.{i}.mlp.down_proj.weight"] @ (F.silu(gate) * up)
        return [self.norm(x, "norm") for x in rows][-head.block :]

    def logits(self, state: Tensor, previous: int) -> Tensor:
        """Over the head's vocabulary, the token before being `previous`."""
        logits = TARGET.head_weight_VC[self.ids] @ state
        if "markov_head.markov_w1.weight" in self.weights:
            logits = (
                logits
                + self.weights["markov_head.markov_w2.weight"] @ self.weights["markov_head.markov_w1.weight"][previous]
            )
        return logits

    def greedy(self, tokens: list[int]) -> list[int]:
        drafted, previous = [], tokens[-1]
        for state in self.states(tokens):
            previous = self.ids[int(self.logits(state, previous).argmax())]
            drafted.append(previous)
        return drafted


def sequence_of(tokens: list[int], sampling: Sampling | None = None) -> Sequence:
    return Sequence.of(1, Request(prompt=tuple(tokens), max_tokens=50, sampling=sampling or Sampling()))


TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


def test_drafts_from_a_cache_are_those_of_the_definition(head: BlockHead, tmp_path: Path):
    """Over steps that accept none, some and all of what was drafted, a text of one token first; rejected rows leave nothing behind."""
    definition, drafter = Definition(head, tmp_path), BlockDrafter(head, head.new_cache(2, 64))
    sequence = sequence_of(TEXT[:1])
    drafter.admit(0, sequence)
    for known in (1, 2, 5, 6, 10, 14):
        old = len(sequence.tokens)
        sequence.tokens = TEXT[:known]
        if known > old:  # as the engine has it: hidden states of what entered the target's cache
            sequence.fresh = joined(head, TEXT[: known - 1])[old - 1 :]
        proposal = drafter.propose([sequence], Budget(head.block))
        assert proposal.tokens[0].tolist() == definition.greedy(TEXT[:known]), known
    fewer = drafter.propose([sequence], Budget(2)).tokens[0].tolist()
    assert fewer == definition.greedy(TEXT)[:2]
    with pytest.raises(ValueError, match=rf"drafts blocks of {head.block} tokens; lower lookahead \(9\)"):
        drafter.propose([sequence], Budget(9))


def test_packed_blocks_are_those_of_the_definition(head: BlockHead, tmp_path: Path):
    """Many anchors of two texts at once: no block sees another, nor the context from its anchor on."""
    definition = Definition(head, tmp_path)
    tokens = torch.tensor([TEXT, TEXT[::-1]])
    batch = _batch(tokens)
    hidden_states = OnlineHiddenStates(TARGET, head.feature_layers)(batch)
    anchors = torch.tensor([[0, 3, 4, 12], [1, 2, 9, 13]])
    states = PackedHead(head).states(batch, hidden_states, anchors)
    for row, text in enumerate((TEXT, TEXT[::-1])):
        for i, anchor in enumerate(anchors[row].tolist()):
            expected = torch.stack(definition.states(text[: anchor + 1]))
            torch.testing.assert_close(states[row, i], expected, **CLOSE)


def test_blocks_inside_documents_are_those_of_documents_alone():
    head = random_head("dspark")
    tokens = torch.tensor([TEXT])
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([[0] * 6 + [1] * 8]).int())
    source = OnlineHiddenStates(TARGET, head.feature_layers, within_documents=True)
    states = PackedHead(head, within_documents=True).states(batch, source(batch), torch.tensor([[6, 9, 12]]))
    alone = Batch(*(part[:, 6:] for part in batch))
    expected = PackedHead(head).states(
        alone, OnlineHiddenStates(TARGET, head.feature_layers)(alone), torch.tensor([[0, 3, 6]])
    )
    torch.testing.assert_close(states, expected, **CLOSE)


def test_the_confidence_head_reads_the_token_before_and_never_the_one_drafted(tmp_path: Path):
    head, definition = random_head("dspark"), Definition(random_head("dspark"), tmp_path)
    state, before = definition.states(TEXT)[1], 7
    joint = torch.cat((state, definition.weights["markov_head.markov_w1.weight"][before]))
    expected = (
        definition.weights["confidence_head.proj.weight"][0] @ joint
        + definition.weights["confidence_head.proj.bias"][0]
    )
    torch.testing.assert_close(head.acceptance(state[None, None], torch.tensor([[before]]))[0, 0], expected, **CLOSE)


# Drafting is lossless


PROMPTS = [(1, 2, 3, 4, 5, 1, 2, 3), (7,), (9, 8, 9, 8, 9, 8), tuple(range(20)), (5, 5, 5), (63, 0)]
DRAFTERS = {
    "dflash": ("dflash", None, Budget(5)), "dflash-short": ("dflash", None, Budget(3)), "dspark": ("dspark", None, Budget(4)),
    "dspark-cut": ("dspark", CUT, Budget(4)), "dflash-tree": ("dflash", None, Budget(4, 3, 9)), "dspark-tree": ("dspark", CUT, Budget(4, 3, 9)),
    "dspark-static": ("dspark", None, Budget(3, tree=((-1, 0), (-1, 2), (0, 0), (0, 1), (1, 0), (2, 1)))),
}  # fmt: skip


@cache
def taught(kind: str, cut: tuple[int, ...] | None) -> Any:
    """A head that has learned some of its target's greedy answers here by our own objective."""
    head = new_head(TARGET, kind, 1, cut, **OPTIONS[kind])
    answers = [[*prompt, *plain(prompt)] for prompt in PROMPTS]
    width = max(map(len, answers))
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in answers])
    mask = torch.tensor([[i < len(text) for i in range(width)] for text in answers])
    batch = Batch(tokens, mask, torch.where(mask, 0, -1).int())
    settings = BlockSettings(anchors=0.3, loss=LOSSES[kind], confidence=float(kind == "dspark"), lookahead=4)
    objective = BlockObjective(TARGET, head, settings)
    optimiser = torch.optim.Adam(objective.trained.parameters(), lr=2e-2)
    for step in range(30):
        loss = objective.loss(batch, step)
        optimiser.zero_grad()
        (loss.total / loss.weight).backward()
        optimiser.step()
    return head.requires_grad_(False).eval()


LOSSES = {"dflash": {"ce": 1.0}, "dspark": {"ce": 0.1, "tv": 1.8}}


def plain(prompt: tuple[int, ...], max_tokens: int = 24) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(int(TARGET(torch.tensor([tokens])).logits_BTV[0, -1].argmax()))  # type: ignore[index]
    return tokens[len(prompt) :]


@cache
def greedy() -> list[list[int]]:
    return [plain(prompt) for prompt in PROMPTS]


def requests(sampling: Sampling | None = None) -> list[Request]:
    return [Request(prompt=prompt, max_tokens=24, sampling=sampling or Sampling()) for prompt in PROMPTS]


def engine_with(name: str, max_batch: int = 3, lookup: bool = False) -> Engine:
    kind, cut, budget = DRAFTERS[name]
    head = taught(kind, cut)
    drafter: Any = BlockDrafter(head, head.new_cache(max_batch, 300))
    drafter = LookupFirst(drafter, kinds.Lookup(2)) if lookup else drafter
    return Engine(TARGET, drafter, lookahead=budget, max_batch=max_batch, max_context=128)


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_is_token_for_token_that_of_the_target(name: str):
    """In batches of three of which some end and others enter, alone and behind a look-up; some is accepted and some refused."""
    for lookup in (False, True):
        engine = engine_with(name, 3, lookup)
        sequences, steps = [engine.add(request) for request in requests()], list(engine.run())
        assert [sequence.answer for sequence in sequences] == greedy()
        tau = 1 + sum(sum(step.accepted) for step in steps) / sum(len(step.accepted) for step in steps)
        assert 1.1 < tau < 5.9, tau


@pytest.mark.parametrize("name", ["dflash", "dspark-cut", "dspark-tree"])
def test_a_sampled_batch_equals_its_requests_alone(name: str):
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=3)
    together = engine_with(name).generate(requests(sampling))
    for request, sequence in zip(requests(sampling), together, strict=True):
        (alone,) = engine_with(name, 1).generate([request])
        assert alone.answer == sequence.answer


@pytest.mark.parametrize("name", ["dflash", "dspark-tree"])
def test_sampled_tokens_follow_the_targets_distribution(name: str):
    """Pairs of tokens after one prompt, 500 seeds, against the exact distribution of pairs; false-alarm rate 1e-4 a case (fixed seeds)."""
    prompt, num, sampling = (1, 2, 3), 500, Sampling(temperature=0.7, top_k=3)
    asked = [
        Request(prompt=prompt, max_tokens=2, sampling=msgspec.structs.replace(sampling, seed=s)) for s in range(num)
    ]
    samples = [tuple(sequence.answer) for sequence in engine_with(name, 64).generate(asked)]
    exact = by_target(list(prompt), sampling, 2)
    assert set(samples) <= set(exact)
    counts = [samples.count(pair) for pair in exact]
    scale = num / sum(exact.values())
    assert chisquare(counts, [scale * p for p in exact.values()]).pvalue > 1e-4


@cache
def probs_after(tokens: tuple[int, ...], sampling: Sampling) -> np.ndarray:
    logits = TARGET(torch.tensor([tokens]), logits="last").logits_BTV
    assert logits is not None
    return probabilities(logits[0, -1:], sampling)[0].double().numpy()


def by_target(prompt: list[int], sampling: Sampling, length: int) -> dict[tuple[int, ...], float]:
    """P of every continuation of `length` tokens under the target alone."""
    out: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        out = {
            (*tokens, int(t)): weight * p[t]
            for tokens, weight in out.items()
            for p in [probs_after((*prompt, *tokens), sampling)]
            for t in np.flatnonzero(p)
        }
    return out


class Chosen(Sequence):
    """A sequence whose chance is what the test says."""

    picked: list[float]

    def uniforms(self, num: int) -> Tensor:
        assert num == 1
        return torch.tensor([self.picked.pop(0)], dtype=torch.float64)


def middles(cuts: list[float]) -> list[tuple[float, float]]:
    """(a uniform inside, measure) of each stretch of [0, 1) between cut points."""
    edges = sorted({0.0, 1.0, *(cut for cut in cuts if 0 < cut < 1)})
    return [((low + high) / 2, high - low) for low, high in pairwise(edges)]


@pytest.mark.parametrize("cut", [None, (*CUT,)])
def test_a_step_of_a_drawn_block_is_enumerated_to_the_targets_distribution(cut: tuple[int, ...] | None):
    """Every block that DSpark can draw, through the drafter itself, by the measure of the uniforms that draw it, with every outcome of
    verification by the q that the drafter states: what a step emits, followed by the target, is the target's distribution.
    """
    head, sampling, prompt, k = taught("dspark", cut), Sampling(temperature=0.9, top_k=3), [1, 2, 3, 4], 2
    emitted: dict[tuple[int, ...], float] = defaultdict(float)
    drafter = BlockDrafter(head, head.new_cache(1, 64))
    sequence = Chosen.of(1, Request(prompt=tuple(prompt), max_tokens=9, sampling=sampling))
    assert isinstance(sequence, Chosen)
    sequence.fresh = joined(head, prompt[:-1])
    drafter.admit(0, sequence)

    def drawn(picked: list[float]) -> tuple[list[int], np.ndarray]:
        sequence.picked = list(picked)
        proposal = drafter.propose([sequence], Budget(len(picked)))
        assert proposal.q is not None
        return proposal.tokens[0].tolist(), proposal.q[0].double().numpy()

    for u0, measure0 in middles(np.cumsum(drawn([0.5])[1][0]).tolist()):
        for u1, measure1 in middles(np.cumsum(drawn([u0, 0.5])[1][1]).tolist()):
            tokens, q = drawn([u0, u1])
            weight = measure0 * measure1
            p = np.stack([probs_after((*prompt, *tokens[:i]), sampling) for i in range(k + 1)])
            ratios = [p[i][t] / q[i][t] for i, t in enumerate(tokens)]
            residuals = [np.maximum(p[i] - q[i], 0) for i in range(k)]
            finals = [np.cumsum(x / x.sum()) for x in (*residuals, *p) if x.sum()]
            outcomes = [middles([ratio]) for ratio in ratios] + [middles([c for cuts in finals for c in cuts])]
            for picked in itertools.product(*outcomes):
                uniforms = np.array([[u for u, _ in picked]])
                verdict = verify_chain(p[None], q[None], np.array([tokens]), uniforms)
                emitted[(*tokens[: len(verdict.path[0])], verdict.bonus[0])] += weight * float(
                    np.prod([m for _, m in picked])
                )
    assert sum(emitted.values()) == pytest.approx(1, abs=1e-6)
    completed: dict[tuple[int, ...], float] = defaultdict(float)
    for tokens, weight in emitted.items():
        for rest, more in by_target([*prompt, *tokens], sampling, k + 1 - len(tokens)).items():
            completed[(*tokens, *rest)] += weight * more
    exact = by_target(prompt, sampling, k + 1)
    assert {key for key, weight in completed.items() if weight > 1e-9} <= set(exact)
    assert max(abs(completed[key] - exact[key]) for key in exact) < 1e-6


# Training


def test_teacher_forced_acceptance_is_the_engines_own():
    for name in ("dflash", "dspark", "dspark-cut"):
        kind, cut, budget = DRAFTERS[name]
        engine = engine_with(name)
        sequences, steps = [engine.add(request) for request in requests()], list(engine.run())
        rows = sum(len(step.accepted) for step in steps)
        emitted_per_step = sum(sum(step.emitted) for step in steps) / rows
        texts = [
            ([*s.request.prompt, *s.answer], [False] * len(s.request.prompt) + [True] * len(s.answer))
            for s in sequences
        ]
        sums = tallies(taught(kind, cut), TargetCache(TARGET), texts, budget.lookahead)
        judged = acceptance({key: torch.stack([row[key] for row in sums]).sum(0) for key in sums[0]})
        assert judged.emitted_per_step == pytest.approx(emitted_per_step, abs=1e-12), name
        assert judged.tokens_per_step.value > 1.1


def test_anchors_follow_the_window_and_the_step_alone():
    tokens = torch.randint(0, VOCAB, (4, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :10], mask[3] = False, False
    mask[3, 20:23] = True
    batch = Batch(tokens, mask, torch.tensor([[0] * 25 + [1] * 15] * 4).int())
    anchors, valid = drawn_anchors(batch, 8, 3)
    for row, alone in enumerate(drawn_anchors(Batch(*(part[i : i + 1] for part in batch)), 8, 3) for i in range(4)):
        assert torch.equal(alone[0][0], anchors[row])
    assert valid.sum(1).tolist() == [8, 8, 8, 3]
    assert (anchors.diff(dim=1) > 0).all()
    assert all(mask[row, a + 1] and a != 24 for row in range(4) for a in anchors[row][valid[row]].tolist())
    assert not torch.equal(drawn_anchors(batch, 8, 4)[0], anchors)


@pytest.mark.parametrize(("kind", "cut"), HEADS)
def test_the_loss_and_its_gradients_are_the_written_ones(kind: str, cut: tuple[int, ...] | None):
    """As the papers write it, place by place over all logits, tokens before each place being the text's."""
    head = trainable_copy(random_head(kind, cut))
    tokens = torch.randint(0, VOCAB, (3, 18), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :6], mask[1, 12] = False, False
    batch = Batch(tokens, mask, torch.tensor([[0] * 11 + [1] * 7] * 3).int())
    settings = BlockSettings(
        anchors=0.4, decay=0.7, loss=LOSSES[kind], confidence=0.5 * (kind == "dspark"), lookahead=3
    )
    objective = BlockObjective(TARGET, head, settings)
    loss = objective.loss(batch, 5)
    grads = torch.autograd.grad(loss.total, list(objective.trained.parameters()))
    total, weight = written(head, batch, settings, 5)
    torch.testing.assert_close(loss.total, total, **CLOSE)
    torch.testing.assert_close(loss.weight, weight, **CLOSE)
    for ours, theirs in zip(grads, torch.autograd.grad(total, list(objective.trained.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    halves = [objective.loss(Batch(*(part[rows] for part in batch)), 5) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(halves[0].total + halves[1].total, loss.total, **CLOSE)


def test_what_the_cache_knows_of_logits_gives_the_same_loss(tmp_path: Path):
    """The target's argmax and the sum of its exponents from files, so that only the rows of what can be drafted are multiplied."""
    head = trainable_copy(random_head("dspark", CUT))
    tokens = torch.randint(0, VOCAB, (2, 18), generator=torch.Generator().manual_seed(3))
    batch = _batch(tokens)
    settings = BlockSettings(anchors=0.4, loss=LOSSES["dspark"], confidence=1.0, lookahead=3)
    cached = TargetCache(TARGET, tmp_path).hidden_states(head.feature_layers, argmax=True, log_sum=True)
    online, known = (BlockObjective(TARGET, head, settings, source=source).loss(batch, 0) for source in (None, cached))
    assert len(list(tmp_path.glob("logsum-*"))) == len(list(tmp_path.glob("argmax-*"))) == 2
    assert online.weight == known.weight
    torch.testing.assert_close(known.total, online.total, **CLOSE)


def trainable_copy(head: Any) -> Any:
    """A copy whose weights may be trained."""
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    return head.with_weights(state).requires_grad_(True)


def written(head: Any, batch: Batch, settings: BlockSettings, step: int) -> tuple[Tensor, Tensor]:
    anchors, valid = drawn_anchors(batch, settings.num(18), step)
    hidden_states = OnlineHiddenStates(TARGET, head.feature_layers)(batch)
    states = PackedHead(head).states(batch, hidden_states, anchors)
    ids = torch.arange(VOCAB) if head.draft_ids is None else head.draft_ids
    total, weight = torch.zeros(()), torch.zeros(())
    for row, (texts, places) in enumerate(zip(batch.tokens_BT.tolist(), anchors.tolist(), strict=True)):
        for i, anchor in enumerate(places):
            for j in range(head.block if valid[row, i] else 0):
                at = anchor + j + 1
                if (
                    at == 18
                    or not batch.mask_BT[row, at]
                    or batch.documents_BT[row, at] != batch.documents_BT[row, anchor]
                ):
                    break
                before, share = torch.tensor(texts[at - 1]), settings.decay**j
                logits = head.corrected(TARGET.head_weight_VC[ids] @ states[row, i, j], before)
                truth = TARGET.head_weight_VC @ hidden_states.final_BTW[row, at - 1]
                q, p, whole = logits.softmax(0), truth[ids].softmax(0), truth.softmax(0)[ids]
                if settings.confidence:
                    label = torch.minimum(q, whole).sum().detach()
                    confidence = head.acceptance(states[row, i, j][None], before[None])[0].sigmoid()
                    bce = -(label * confidence.log() + (1 - label) * (1 - confidence).log())
                    total = total + share * settings.confidence * bce
                label_at = (ids == texts[at]).nonzero()[:, 0]
                judged = settings.confidence and int(truth.argmax()) not in ids.tolist()
                if not len(label_at) or judged:
                    continue
                losses = {"ce": -q[label_at[0]].log(), "tv": (p - q).abs().sum() / 2}
                total = total + share * sum(part * losses[name] for name, part in settings.loss.items())
                weight = weight + share
    return total, weight


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("blocks")
    target = model(3)
    save(target.state_dict(), target.shape, target.config, root / "target")
    return root / "target", write_folder(root / "train", 6000), write_folder(root / "held", 1000, seed=1)


def recipe_of(kind: str, steps: int = 24, **more: Any) -> Recipe:
    models: dict[str, Any] = {
        "dflash": DFlash(layers=1, block=5, draft_vocab=40), "dspark": DSpark(layers=1, block=4, rank=8, draft_vocab=40),
    }  # fmt: skip
    return Recipe(
        model=models[kind], stages=(Stage(tokens=steps * 4 * 48, length=48, batch=4, micro_batch=2, learning_rate=3e-3),),
        precision="float32", watch=EvalSchedule(log_every=1, held_out_every=24, held_out_tokens=192, save_every=10, lookahead=4), **more,
    )  # fmt: skip


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_run_learns_from_cached_states_and_goes_on_bit_for_bit(
    kind: str, run_folders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, train, held = run_folders
    recipe = recipe_of(kind)
    given: dict[str, Any] = {"target": target, "data": [train], "held_out": held, "features": tmp_path / "states"}
    launch(recipe, tmp_path / "whole", Devices(), **given)
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "whole") if "loss" in line}
    early, late = (np.mean([losses[i] for i in steps]) for steps in (range(1, 6), range(20, 25)))
    assert late < early - 0.1
    assert [
        line["held_out_tokens_per_step"] for line in lines(tmp_path / "whole") if "held_out_tokens_per_step" in line
    ]
    import foredraft.train.loop as loop

    stopped = loop.TrainingRun.step

    def step(self: Any, meter: Any, stop_requested: bool = False) -> None:
        stopped(self, meter, self.state.step == 13)

    monkeypatch.setattr(loop.TrainingRun, "step", step)
    with pytest.raises(loop.Stopped):
        launch(recipe, tmp_path / "parts", Devices(), **given)
    monkeypatch.undo()
    launch(recipe, tmp_path / "parts", Devices(), **given)
    ours, theirs = (load_file(tmp_path / run / "final/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert kinds.shape_of_folder(tmp_path / "whole/final").head.kind == kind  # type: ignore[union-attr]


def test_the_mask_token_of_a_run_is_one_that_its_text_does_not_hold(run_folders: tuple[Path, Path, Path]):
    target, train, _ = run_folders
    trainee = trainee_of(recipe_of("dflash"), target)
    folder = TokenFolder.open(train)
    stages = type("Data", (), {"stages": (type("P", (), {"folder": folder})(),), "packings": ()})()
    head = trainee.head(TARGET, stages)  # type: ignore[attr-defined]
    held = np.bincount(folder.tokens, minlength=VOCAB)
    assert held[head.mask_token] == held.min()


def test_flops_count_rows_places_and_what_is_frozen():
    head, settings = (
        new_head(TARGET, "dspark", 2, CUT, block=4, rank=8),
        BlockSettings(anchors=0.25, loss=LOSSES["dspark"], confidence=1.0),
    )
    shape, length = head.shape, 64
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    attention = 2 * 2 * 2 * 32 * length / 2  # two products of all heads, in two layers
    context = 2 * (96 * 32 + 2 * 2 * 32 * 16)
    chain = 2 * (8 * 32 + 40 + 1)
    rows = 0.25 * 4
    blocks = 3 * (context + rows * (2 * 2 * layer + attention)) - 2 * 96 * 32
    of_place, of_target = 3 * chain + 4 * 32 * 32, TARGET.shape.flops_per_token(length / 2) - 2 * 64 * 32
    stated = [
        block_training_flops(shape, TARGET.shape, settings, length, computed)
        for computed in (EVERYTHING, Computed(0.125), Computed(0.125, cached=True))
    ]
    expected = blocks + of_target + rows * (of_place + 2 * 64 * 32)
    few = rows / 2  # places, where an eighth of the tokens are to be predicted and a quarter would begin blocks
    assert stated == pytest.approx(
        [expected, blocks + of_target + few * (of_place + 2 * 64 * 32), blocks + few * (of_place + 2 * 32 * 32)]
    )


def test_weights_by_position_are_the_published_ones():
    assert [round(-1 / np.log(block_decay(block)), 2) for block in (7, 8, 16)] == [4, 4, 7]
    assert recipe_of("dspark").losses == {"ce": 0.1, "tv": 1.8}
    assert recipe_of("dflash").losses == {"ce": 1.0}
    with pytest.raises(ValueError, match=r"lookahead \(5\) must not exceed the block's 4"):
        BlockObjective(TARGET, new_head(TARGET, "dspark", block=4, rank=8), BlockSettings(confidence=1.0))
