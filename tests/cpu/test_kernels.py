"""Our own kernels: torch's numbers, and bits that do not depend on the company a row keeps."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foredraft.decode.batch import Request
from foredraft.decode.block_drafter import BlockDrafter
from foredraft.decode.drafters import drafter_for
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling
from foredraft.models import kernels
from foredraft.models.chain import Chain
from foredraft.models.decoder import Decoder, cut
from foredraft.models.draft_vocab import offsets
from foredraft.models.eight_bits import EightBits
from foredraft.models.forward import causal_mask
from foredraft.models.heads import load_head, new_head, save_head
from foredraft.models.kernels import TreePlan
from foredraft.models.layers import model_config_of
from foredraft.models.linear import linear
from foredraft.models.save import save
from foredraft.shapes import from_config

CONFIG = {
    "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "vocab_size": 101, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip
OPT = {
    "model_type": "opt", "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 101,
    "max_position_embeddings": 256, "word_embed_proj_dim": 64, "do_layer_norm_before": True, "activation_function": "relu",
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": CONFIG | {"model_type": "llama"},
    "llama with biases": CONFIG | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "sizes of 16": CONFIG
    | {
        "model_type": "llama",
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 176,
    },
    "five heads of 96 to a key head": CONFIG
    | {"model_type": "llama", "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 96},
    "three heads of 128 to a key head": CONFIG
    | {"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128},
    "qwen2": CONFIG | {"model_type": "qwen2"},
    "qwen3": CONFIG | {"model_type": "qwen3", "num_key_value_heads": 4},
    "opt": OPT,
    "opt with gelu": OPT | {"activation_function": "gelu"},
}
SMALL = {torch.float32: 2e-5, torch.bfloat16: 0.06}  # of the largest logit


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    reason = kernels.missing() or kernels.missing(torch.bfloat16)
    if reason and "no C compiler" in reason:
        pytest.skip(reason)
    assert reason is None


def random_decoder(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(0)
    shape = from_config(config, name="tiny")
    decoder = Decoder(shape, model_config_of(config, shape))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder.requires_grad_(False).eval().to(dtype)


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FEW_ROWS", {})


def a_pass(
    model: Decoder, tokens_BT: Tensor, contexts: list[int], mask: Tensor | None = None, *, row: int = 0
) -> Tensor:
    """Logits of T tokens of each sequence behind contexts of different lengths, all from one random text a sequence, from text `row` on."""
    batch, num = tokens_BT.shape
    cache = model.new_cache(batch, 64)
    texts = torch.randint(0, 101, (row + batch, 40), generator=torch.Generator().manual_seed(3))[row:]
    for b, length in enumerate(contexts):
        positions = torch.arange(length)[None]
        model(texts[b : b + 1, :length], positions, cache.rows(b, b + 1))
    positions = torch.tensor(contexts)[:, None] + torch.arange(num)
    logits = model(tokens_BT, positions, cache, positions, mask).logits_BTV
    assert logits is not None
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_gives_torchs_logits(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder(FAMILIES[family], dtype)
    if family == "sizes of 16" and dtype == torch.bfloat16:
        assert dtype not in model.kernel_dtypes  # pairs of 16
        return
    assert dtype in model.kernel_dtypes
    tokens = torch.randint(0, 101, (3, 7))
    ours = a_pass(model, tokens, [5, 30, 17])
    by_torch(monkeypatch)
    theirs = a_pass(model, tokens, [5, 30, 17])
    assert not torch.equal(ours, theirs)  # else the kernels did not run
    assert (ours - theirs).abs().max() <= SMALL[dtype] * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_a_rows_bits_do_not_depend_on_its_company(family: str, dtype: torch.dtype) -> None:
    """One token at a time, some, and beside other sequences: equal, not close. So drafted text is plain text, also in bfloat16."""
    model = random_decoder(FAMILIES[family] | {"hidden_size": 192, "word_embed_proj_dim": 192}, dtype)
    tokens = torch.randint(0, 101, (3, 20), generator=torch.Generator().manual_seed(1))
    together = a_pass(model, tokens, [9, 21, 4])
    for row, length in enumerate([9, 21, 4]):
        for num in (2, 5, 12, 20):
            alone = a_pass(model, tokens[row : row + 1, :num], [length], row=row)
            assert torch.equal(alone[0], together[row, :num])
        cache = model.new_cache(1, 64)
        text = torch.randint(0, 101, (3, 40), generator=torch.Generator().manual_seed(3))[row : row + 1, :length]
        model(text, torch.arange(length)[None], cache)
        for t in range(20):
            position = torch.tensor([[length + t]])
            alone = model(tokens[row : row + 1, t : t + 1], position, cache).logits_BTV
            assert torch.equal(alone[0, 0], together[row, t])


def test_a_path_of_a_tree_has_the_bits_of_its_chain() -> None:
    """Node 3 hangs on node 1, past the slots of nodes that it must not see."""
    model = random_decoder(FAMILIES["llama"])
    cache = model.new_cache(2, 64)
    context = torch.randint(0, 101, (1, 20)).expand(2, -1)
    model(context, torch.arange(20).expand(2, -1), cache)
    tokens, positions = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[20, 21, 21, 22]])
    mask = torch.zeros(1, 4, 24, dtype=torch.bool)
    mask[:, :, :21] = True
    for node, sees in enumerate(([], [1], [2], [1, 3])):
        mask[0, node, [20 + other for other in sees]] = True
    tree = model(tokens, positions, cache.rows(0, 1), torch.arange(20, 24)[None], mask).logits_BTV
    chain = model(torch.tensor([[5, 6, 8]]), torch.arange(20, 23)[None], cache.rows(1, 2)).logits_BTV
    assert torch.equal(tree[0, [0, 1, 3]], chain[0])


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_heads_run_by_kernel_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = random_decoder(FAMILIES["llama"])
    head = new_head(target, kind, 2, feature_layers=(0, 1, 2) if kind == "eagle3" else None)
    tokens, hidden = torch.randint(0, 101, (2, 4)), torch.randn(2, 4, 64)
    positions = torch.arange(4).expand(2, -1)

    def logits() -> Tensor:
        logits_BTV = head(tokens, hidden, positions, head.new_cache(2, 32)).logits_BTV
        assert logits_BTV is not None
        return logits_BTV

    ours = logits()
    by_torch(monkeypatch)
    assert not torch.equal(ours, logits())
    assert torch.allclose(ours, logits(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "out", "size"),
    [(1, 7, 32), (2, 64, 64), (3, 101, 96), (5, 4, 160), (16, 33, 64), (31, 16, 96), (61, 130, 128)],
)
def test_linear_of_any_size(rows: int, out: int, size: int, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(rows, size).to(dtype), torch.randn(out, size).to(dtype), torch.randn(out).to(dtype)
    assert kernels.fits_linear(x, weight) == (rows <= kernels.FEW_ROWS[dtype])
    eight = EightBits.of(weight)
    for more, of in itertools.product((None, bias), (None, eight)):
        exact = x.double() @ (weight if of is None else of.weight).double().T + (0 if more is None else more.double())
        product = linear(x, weight, more, of)
        assert product.dtype == dtype
        assert (product - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 0.01) * exact.abs().max()


def test_weights_that_move_are_found_again() -> None:
    model = random_decoder(FAMILIES["llama"])
    tokens = torch.randint(0, 101, (1, 3))
    before = a_pass(model, tokens, [8])
    assert torch.equal(a_pass(model.to(torch.float64).to(torch.float32), tokens, [8]), before)
    model.layers[1].mlp.up_proj.weight.mul_(2)  # type: ignore[union-attr]
    assert not torch.equal(a_pass(model, tokens, [8]), before)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "dspark", "lm"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_draft_that_bfloat16_holds_exactly_is_read_so(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    """The text is plain decoding's, token for token; where a weight would be rounded, nothing changes."""
    target = random_decoder(FAMILIES["llama"])
    if kind == "lm":
        draft = random_decoder(FAMILIES["llama"] | {"num_hidden_layers": 1})
        save(draft.state_dict(), draft.shape, draft.config, tmp_path, dtype=stored)
    else:
        save_head(new_head(target, kind, draft_vocab=range(40)), tmp_path, dtype=stored)
    requests = [Request(tuple(range(2 + i, 9 + i)), 12) for i in range(3)]
    drafter: Any = drafter_for(target, str(tmp_path), 3, 64)
    assert drafter.cache.kv.dtype == stored
    drafted = Engine(target, drafter, lookahead=3, max_batch=3, max_context=32).generate(requests)
    plain = Engine(target, max_batch=3, max_context=32).generate(requests)
    assert [each.answer for each in drafted] == [each.answer for each in plain]


class Telling:
    """A rule that drafts three positions at most, and what it was told."""

    def __init__(self, told: list[list[float]]) -> None:
        self.told, self.asked, self.lengths = told, 0, [3, 3, 3]

    def begin(self, temperatures: Sequence[float], most: int) -> "Telling":
        return Telling(self.told)

    def tell(self, confidence_B: Sequence[float]) -> bool:
        self.asked += 1
        self.told.append(list(confidence_B))
        self.lengths = [self.asked] * len(confidence_B)
        return self.asked < 3


def drafts_of(kind: str, dtype: torch.dtype, tmp_path: Path) -> tuple[Decoder, Any]:
    """A target and a draft of its own, random and frozen; one whose name ends in 8 was stored in eight bits."""
    target = random_decoder(FAMILIES["llama"], dtype)
    if kind.startswith("lm"):
        more = {"tie_word_embeddings": False} if kind == "lm-untied" else {"attention_bias": True}
        draft = random_decoder(FAMILIES["llama"] | {"num_hidden_layers": 2, "model_type": "llama"} | more, dtype)
        return target, cut(draft, offsets(range(0, 101, 2), 101)).requires_grad_(False) if kind == "lm-cut" else draft
    name = kind.rstrip("8").partition("-")[0]
    head = new_head(
        target, name, 2 if kind == "eagle-deep" else 1, range(0, 101, 3),
        feature_layers=(0, 1, 2) if name == "eagle3" else None, seed=3, dtype=dtype,
    )  # fmt: skip
    for parameter in head.parameters():
        parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    keys = {"norm_before_residual": True, "norm_output": True} if kind == "eagle3-switched" else {}
    save_head(head, tmp_path, dtype=torch.int8 if kind.endswith("8") else dtype, more=keys)
    return target, load_head(tmp_path, target, dtype)


CHAINS = ("lm", "lm-untied", "lm-cut", "eagle", "eagle8", "eagle-deep", "eagle3", "eagle38", "eagle3-switched")


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("kind", CHAINS)
def test_a_chain_in_one_call_drafts_what_the_drafts_own_passes_do(
    kind: str, asks: bool, batch: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sequences of different lengths that gain different numbers of tokens; asked behind each position and not."""
    target, draft = drafts_of(kind, dtype, tmp_path)
    requests, proposals, told = [Request(tuple(range(2 + i, 5 + 4 * i)), 14) for i in range(batch)], [], ([], [])
    for chained in (True, False):
        drafter: Any = (ModelDrafter if kind.startswith("lm") else HeadDrafter)(draft, draft.new_cache(batch, 64))
        assert drafter.kernel is not None
        drafter.kernel = drafter.kernel if chained else None
        drafted, propose = [], drafter.propose
        drafter.propose = lambda *a, propose=propose, drafted=drafted: drafted.append(propose(*a)) or drafted[-1]
        lengths: Any = Telling(told[chained]) if asks else None
        engine = Engine(target, drafter, lookahead=5, max_batch=batch, max_context=40, lengths=lengths)
        engine.generate(requests)
        proposals.append([(each.tokens.tolist(), each.parents) for each in drafted])
    tokens, others = (torch.tensor([row for rows, _ in steps for row in rows]) for steps in proposals)
    if dtype == torch.float32:
        assert proposals[0] == proposals[1]
        near = torch.tensor(
            [[min(c, 9.0) for step in each for c in step] for each in told]
        )  # surer ones are lost in rounding
        assert torch.allclose(near[0], near[1], atol=2e-3)
    else:  # a rounding apart
        assert (tokens[: len(others)] == others[: len(tokens)]).float().mean() > 0.8
    assert tokens.shape[1] == (3 if asks else 5)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "dials",
    [{"topk": 3, "nodes": 9}, {"topk": 2}, {"tree": ((-1, 0), (-1, 2), (0, 0), (0, 1), (1, 0), (2, 0))}],
    ids=["dynamic", "whole", "static"],
)
@pytest.mark.parametrize("kind", CHAINS)
def test_a_tree_in_one_call_is_that_of_the_drafts_own_passes(
    kind: str, dials: dict[str, Any], batch: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sequences of different lengths that gain different numbers of tokens, at T = 0 and above: a tree has no chance in it."""
    target, draft = drafts_of(kind, dtype, tmp_path)
    sampled = Sampling(temperature=0.8, seed=5)
    requests = [Request(tuple(range(2 + i, 5 + 4 * i)), 14, sampled if i else Sampling()) for i in range(batch)]
    trees: list[list[tuple[Any, Any]]] = []
    for by_kernel in (True, False):
        drafter: Any = (ModelDrafter if kind.startswith("lm") else HeadDrafter)(draft, draft.new_cache(batch, 64))
        drafter.kernel = drafter.kernel if by_kernel else None
        drafted, propose = [], drafter.propose
        drafter.propose = lambda *a, propose=propose, drafted=drafted: drafted.append(propose(*a)) or drafted[-1]
        engine = Engine(target, drafter, lookahead=Budget(3, **dials), max_batch=batch, max_context=40)
        engine.generate(requests)
        trees.append([(each.tokens.tolist(), each.parents) for each in drafted])
    if dtype == torch.float32:
        assert trees[0] == trees[1]
    else:  # a rounding apart, where the text before is the same
        (tokens, parents), (others, theirs) = trees[0][0], trees[1][0]
        pairs = zip(map(paths, tokens, parents), map(paths, others, theirs), strict=True)
        assert sum(len(ours & passes) for ours, passes in pairs) >= 0.7 * sum(map(len, tokens))


def paths(tokens: Sequence[int], parents: Sequence[int]) -> set[tuple[int, ...]]:
    """Of each node the tokens from the root to it."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)


@pytest.mark.parametrize("size", [3, 16, 127, 128, 129, 1000])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_a_trees_words_are_the_most_probable_the_first_of_equals(size: int, dtype: torch.dtype) -> None:
    """Logits in steps, many of them equal; where one is a NaN there is no tree."""
    keys = FAMILIES["llama"] | {"model_type": "llama", "vocab_size": size, "tie_word_embeddings": False}
    draft = random_decoder(keys, dtype)
    tokens, places, last = torch.tensor([[1, 2, 0]]), torch.arange(3)[None], torch.tensor([2])
    final = draft(tokens, places, draft.new_cache(1, 8), mask_BTS=causal_mask(places, 3)).final_BTC[0, 2].float()
    steps = torch.randint(-3, 4, (size,), generator=torch.Generator().manual_seed(size)).float()
    assert draft.lm_head is not None
    draft.lm_head.weight.copy_(steps[:, None] * final / final.square().sum())
    chain, num = Chain.of(draft), min(5, size)
    assert chain is not None
    words = chain.tree(tokens, None, places, last, draft.new_cache(1, 8), TreePlan(1, num, num))
    assert words is not None
    assert words[0].tolist() == [steps.sort(descending=True, stable=True).indices[:num].tolist()]
    assert words[1].tolist() == [[-1] * num]
    draft.lm_head.weight[size - 1] = float("nan")
    assert chain.tree(tokens, None, places, last, draft.new_cache(1, 8), TreePlan(1, num, num)) is None


def test_a_tree_that_leaves_its_cache_or_its_vocabulary_is_refused_before_it_writes(tmp_path: Path) -> None:
    _, draft = drafts_of("lm", torch.float32, tmp_path)
    chain = Chain.of(draft)
    assert chain is not None
    last = torch.tensor([0])
    for token, slot, children in ((5, 6, 2), (5, -1, 1), (5, 8, 1), (101, 0, 2), (-1, 0, 2), (5, 0, 102)):
        cache = draft.new_cache(1, 8)
        with pytest.raises(IndexError, match="leaves a cache of 1 × 8"):
            chain.tree(torch.tensor([[token]]), None, torch.tensor([[slot]]), last, cache, TreePlan(2, children, 2))
        assert not cache.kv.any()
    assert chain.tree(torch.tensor([[5]]), None, torch.tensor([[5]]), last, draft.new_cache(1, 8), TreePlan(2, 2, 3))


@pytest.mark.parametrize("kernel", [True, False])
def test_a_tree_of_more_children_than_words_or_of_no_numbers_says_so(kernel: bool, tmp_path: Path) -> None:
    target, draft = drafts_of("eagle", torch.float32, tmp_path)
    drafter = HeadDrafter(draft, draft.new_cache(1, 64))
    drafter.kernel = drafter.kernel if kernel else None
    engine = Engine(target, drafter, lookahead=Budget(2, topk=40, nodes=20), max_batch=1, max_context=40)
    with pytest.raises(ValueError, match="40 children of a node are more than the 34 tokens that draft"):
        engine.generate([Request((1, 2, 3), 4)])
    draft.fc.weight[3] = float("nan")
    engine = Engine(target, drafter, lookahead=Budget(2, topk=3), max_batch=1, max_context=40)
    with pytest.raises(ValueError, match="the logits of a drafted tree are NaN"):
        engine.generate([Request((1, 2, 3), 4)])


def blocks_of(name: str, dtype: torch.dtype, tmp_path: Path, **options: Any) -> tuple[Decoder, Any]:
    """A target and a head of blocks for it, random and frozen, of two layers; one whose name ends in 8 was stored in eight bits."""
    target, kind = random_decoder(FAMILIES["llama"], dtype), name.partition("-")[0]
    rank = {"rank": 32} if kind == "dspark" else {}
    options = {"block": 4, "seed": 3, "dtype": dtype} | rank | options
    head = new_head(target, kind, 2, range(0, 101, 3), feature_layers=(0, 1), **options)
    for parameter in head.parameters():
        parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    save_head(head, tmp_path, dtype=torch.int8 if name.endswith("8") else dtype)
    return target, load_head(tmp_path, target, dtype)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["dflash", "dspark", "dspark-8"])
def test_a_block_in_one_call_drafts_what_the_heads_own_pass_does(
    name: str, batch: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sequences of different lengths that gain different numbers of tokens; the cache is the same behind both."""
    target, head = blocks_of(name, dtype, tmp_path)
    requests, proposals = [Request(tuple(range(2 + i, 5 + 4 * i)), 14) for i in range(batch)], []
    for by_kernel in (True, False):
        drafter: Any = BlockDrafter(head, head.new_cache(batch, 64))
        assert drafter.kernel is not None
        drafter.kernel = drafter.kernel if by_kernel else None
        drafted, propose = [], drafter.propose
        drafter.propose = lambda *a, propose=propose, drafted=drafted: drafted.append(propose(*a)) or drafted[-1]
        drafter._block = refused if by_kernel else drafter._block
        Engine(target, drafter, lookahead=3, max_batch=batch, max_context=40).generate(requests)
        proposals.append([(each.tokens.tolist(), each.parents) for each in drafted])
    if dtype == torch.float32:
        assert proposals[0] == proposals[1]
    else:  # a rounding apart
        tokens, others = (torch.tensor([row for rows, _ in steps for row in rows]) for steps in proposals)
        assert (tokens[: len(others)] == others[: len(tokens)]).float().mean() > 0.8


def refused(*arguments: Any) -> None:
    raise AssertionError("drafted by passes")


def test_a_block_that_leaves_its_cache_or_its_vocabulary_is_refused_before_it_writes(tmp_path: Path) -> None:
    _, head = blocks_of("dspark", torch.float32, tmp_path)
    chain, context = Chain.of(head), torch.randn(1, 2, 128)
    assert chain is not None
    for token, slot, known, num in (
        (5, 6, 0, 3),
        (5, -1, 0, 3),
        (101, 2, 0, 3),
        (-1, 2, 0, 3),
        (5, 2, 7, 3),
        (5, 2, -1, 3),
        (5, 2, 0, 5),
    ):
        cache, slots = head.new_cache(1, 8), torch.tensor([[slot, slot + 1, slot + 2, slot + 3]])
        with pytest.raises(IndexError, match="leaves a cache of 1 × 8"):
            chain.block(
                torch.tensor([[token, 7, 7, 7]]),
                slots,
                context,
                torch.tensor([[known, known + 1]]),
                head.first_row,
                cache,
                num,
            )
        assert not cache.kv.any()
    tokens, slots = torch.tensor([[5, 7, 7, 7]]), torch.tensor([[2, 3, 4, 5]])
    ids, _ = chain.block(tokens, slots, context, torch.tensor([[0, 1]]), head.first_row, head.new_cache(1, 8), 3)
    assert ids.shape == (3, 1)


def test_a_block_of_a_rank_that_fills_no_register_is_drafted_by_passes(tmp_path: Path) -> None:
    _, head = blocks_of("dspark", torch.float32, tmp_path, rank=8)
    assert Chain.of(head) is None


def test_a_chain_that_leaves_its_cache_or_its_vocabulary_is_refused_before_it_writes(tmp_path: Path) -> None:
    _, draft = drafts_of("lm", torch.float32, tmp_path)
    chain = Chain.of(draft)
    assert chain is not None
    last = torch.tensor([0])
    for token, slot, num in ((5, 6, 3), (5, -1, 1), (101, 0, 1), (-1, 0, 1)):
        cache = draft.new_cache(1, 8)
        with pytest.raises(IndexError, match="leaves a cache of 1 × 8"):
            chain(torch.tensor([[token]]), None, torch.tensor([[slot]]), last, cache, num)
        assert not cache.kv.any()
    drafted = chain(torch.tensor([[5]]), None, torch.tensor([[5]]), last, draft.new_cache(1, 8), 3)
    assert drafted.ids_KB.shape == (3, 1)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_chain_whose_logits_are_no_numbers_says_so(broken: float, tmp_path: Path) -> None:
    target, draft = drafts_of("lm", torch.float32, tmp_path)
    draft.norm.weight[7] = broken
    drafter = ModelDrafter(draft, draft.new_cache(1, 64))
    assert drafter.kernel is not None
    with pytest.raises(ValueError, match="draft tiny"):
        Engine(target, drafter, lookahead=2, max_batch=1, max_context=40).generate([Request((1, 2, 3), 4)])


def test_what_these_kernels_do_not_know_is_drafted_by_passes(tmp_path: Path) -> None:
    opt = random_decoder(OPT)
    assert Chain.of(opt) is None  # learned positions
    _, draft = drafts_of("eagle", torch.float32, tmp_path)
    assert Chain.of(draft) is not None
    assert Chain.of(draft.requires_grad_(True)) is None  # its weights may change
    target, draft = drafts_of("eagle", torch.float32, tmp_path)
    target.embed_tokens.__class__ = type("Scaled", (torch.nn.Embedding,), {})
    assert Chain.of(draft) is None  # a table of another kind may scale what it looks up


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [32, 45, 177])
def test_a_prompt_is_read_as_torch_reads_it(
    family: str, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another order of sums than other passes, whose bits hang neither on what stands behind nor on the cache's other rows."""
    model = random_decoder(FAMILIES[family], dtype)
    if dtype not in model.kernel_dtypes:
        return
    tokens = torch.randint(0, 101, (1, rows))

    def read(num: int) -> tuple[Tensor, Tensor]:
        cache, places = model.new_cache(2, 200), torch.arange(num)[None]
        output = model(tokens[:, :num], places, cache.rows(1, 2), mask_BTS=causal_mask(places, num), logits="none")
        return output.final_BTC[0], cache.kv[:, :, 1, :, :num]

    final, stored = read(rows)
    for shorter in (32, rows - 1) if rows > 33 else ():
        again, stored_again = read(shorter)
        assert torch.equal(again, final[:shorter])
        assert torch.equal(stored_again, stored[..., :shorter, :])
    by_torch(monkeypatch)
    torchs, torchs_stored = read(rows)
    for ours, theirs in ((final, torchs), (stored, torchs_stored)):
        assert (ours - theirs).abs().max() <= SMALL[dtype] * theirs.abs().max()


def test_prompts_are_read_in_even_parts() -> None:
    cpu = torch.device("cpu")
    assert [kernels.chunk(num, torch.float32, cpu) for num in (0, 1, 128, 134, 191, 193, 300)] == [
        1,
        1,
        128,
        134,
        191,
        97,
        150,
    ]
    assert all(
        kernels.usable(kernels.chunk(num, torch.float32, cpu), torch.float32, cpu, prompt=True) for num in range(1000)
    )
    assert not kernels.usable(193, torch.float32, cpu, prompt=True)


def test_training_is_torchs_own() -> None:
    with torch.enable_grad():
        assert not kernels.usable(1, torch.float32, torch.device("cpu"))
    assert not kernels.usable(1, torch.float64, torch.device("cpu"))
    assert not kernels.usable(10_000, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"FOREDRAFT_KERNELS": "0"}, "FOREDRAFT_KERNELS=0"),
        ({"PATH": "", "CC": "/nowhere/cc"}, "no C compiler found"),
        ({"CC": "false"}, "could not build them"),
    ],
)
def test_without_them_the_reason_is_told_and_torch_computes(environment: dict[str, str], says: str, tmp_path) -> None:
    code = (
        "import torch; from foredraft.models import kernels; from foredraft.models.linear import linear; torch.set_grad_enabled(False);"
        "assert linear(torch.ones(1, 32), torch.ones(4, 32)).tolist() == [[32.0] * 4]; print(kernels.missing())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
    )
    assert says in run.stdout, run.stderr


def test_without_tiles_products_are_torchs_too(tmp_path) -> None:
    """Where there are tiles, `pairs` leaves other bits: sums have another order."""
    code = (
        "import sys, torch; from foredraft.models.linear import linear; torch.manual_seed(0); torch.set_grad_enabled(False);"
        "x, w = torch.randn(9, 576).bfloat16(), torch.randn(16384, 576).bfloat16(); y = linear(x, w);"
        "assert (y.double() - x.double() @ w.double().T).abs().max() < 0.01 * y.abs().max(); torch.save(y, sys.argv[1])"
    )
    products = []
    for kernels_asked in ("pairs", "1"):
        file, environment = tmp_path / f"{kernels_asked}.pt", {**os.environ, "FOREDRAFT_KERNELS": kernels_asked}
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=environment)
        products.append(torch.load(file, weights_only=True))
    assert torch.equal(*products) != bool(kernels._library(torch.bfloat16).tiled())


def test_they_are_built_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        kernels._library.cache_clear()
        assert kernels.missing() is None
    kernels._library.cache_clear()
    assert len(list((tmp_path / "foredraft").iterdir())) == 1


def test_a_pass_that_leaves_its_cache_is_refused_before_it_writes() -> None:
    """Checked in C, so that python -O, which drops asserts, writes beside no cache either."""
    model = random_decoder(FAMILIES["llama"])
    tokens, zeros = torch.tensor([[5, 6]]), torch.tensor([[0, 0]])
    for slots, seen in (([[0, 8]], 8), ([[0, -1]], 8), ([[0, 1]], 9)):
        mask = torch.ones(1, 2, seen, dtype=torch.bool)
        cache = model.new_cache(1, 8)
        with pytest.raises(IndexError, match="leaves a cache of 1 × 8"):
            model(tokens, zeros, cache, torch.tensor(slots), mask)
        assert not cache.kv.any()


def test_a_cached_library_that_changed_or_that_others_can_write_is_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._library.cache_clear()
    assert kernels.missing() is None
    (library,) = (tmp_path / "foredraft").iterdir()
    sound = library.read_bytes()
    for data, mode in ((sound[:-1] + b"!", 0o755), (sound, 0o777)):
        library.unlink()  # what is loaded stays as it is
        library.write_bytes(data)
        library.chmod(mode)
        kernels._library.cache_clear()
        assert kernels.missing() is None  # built anew in its place
        assert library.read_bytes() == sound
        assert not library.stat().st_mode & 0o022
    (tmp_path / "foredraft").chmod(0o777)
    kernels._library.cache_clear()
    assert "others can write there" in (kernels.missing() or "")
    kernels._library.cache_clear()
