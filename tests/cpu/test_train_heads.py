"""Training heads: what is unrolled is what is drafted, the loss is the written one, and heads learn what their target says."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foredraft.data import draft_vocab as vocabularies
from foredraft.data.draft_vocab import coverage, most_frequent
from foredraft.data.tokens import Batch, Packing, TokenFolder
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import TokenHead
from foredraft.models.heads import load_head, new_head
from foredraft.models.layers import ModelConfig
from foredraft.recipe import Eagle
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config
from foredraft.teacher import chains
from foredraft.teacher.acceptance import TeacherForcedAcceptance, acceptance
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.chains import joint
from foredraft.teacher.group_bytes import GROUP_BYTES
from foredraft.teacher.hidden_states import OnlineHiddenStates, document_places
from foredraft.teacher.teacher import Teacher
from foredraft.teacher.teacher_forced import tallies
from foredraft.teacher.unroll import unroll
from foredraft.train.flops import EAGLE, EAGLE3, Computed, HeadSettings
from foredraft.train.heads import HeadObjective, TrainedHead
from foredraft.train.lm_head import lm_head_loss
from foredraft.train.sizes import HEADS

VOCAB, DRAFTABLE = 48, range(2, 46)
KINDS = {"eagle": ("eagle", 1), "eagle-cut": ("eagle-cut", 1), "eagle3": ("eagle3", 1), "scylla": ("eagle3", 2)}


def model(seed: int, std: float, tie: bool = False) -> Decoder:
    config = {
        "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": tie,
    }  # fmt: skip
    torch.manual_seed(seed)
    decoder = Decoder(
        from_config(config, name="tiny"), ModelConfig(norm_eps=1e-5, activation="silu", rope=rope_from_config(config))
    )
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return decoder


def head_for(
    target: Decoder, kind: str, layers: int, std: float = 0.0, draft_vocab: range | None = DRAFTABLE
) -> TokenHead:
    eagle3 = kind == "eagle3"
    layers_read, ids = (1, 2, 3) if eagle3 else None, None if kind == "eagle" else draft_vocab
    head = new_head(target, kind.removesuffix("-cut"), layers, ids, feature_layers=layers_read)
    assert isinstance(head, TokenHead)
    for parameter in head.parameters():
        if parameter.dim() > 1 and std:
            torch.nn.init.normal_(parameter, std=std)
    return head


RANDOM = model(0, 0.2).requires_grad_(False).eval()


@pytest.fixture(params=KINDS)
def random_head(request: pytest.FixtureRequest) -> TokenHead:
    torch.manual_seed(5)
    return head_for(RANDOM, *KINDS[request.param], std=0.15).requires_grad_(False).eval()


def windows(rows: int, length: int, seed: int = 0, documents: list[int] | None = None) -> Batch:
    tokens = torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    places = torch.zeros_like(tokens) if documents is None else torch.tensor([documents] * rows)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), places.int())


# What is unrolled


def test_the_unrolled_head_is_the_head_that_drafts(random_head: TokenHead):
    """Logits of step s at row t are those of the head drafting from a cache after token t + 1, s tokens accepted."""
    head, steps, batch = random_head, 4, windows(2, 12)
    aux = OnlineHiddenStates(RANDOM, head.feature_layers)(batch).aux_BTF
    states = unroll(head, RANDOM.embed_tokens.weight, head.combine(aux), batch.tokens_BT, steps)
    compared = 0
    for row in range(8):
        cache, ahead = head.new_cache(2, 20), batch.tokens_BT[:, 1:]
        places = torch.arange(row + 1).expand(2, -1)
        output = head(ahead[:, : row + 1], head.combine(aux[:, : row + 1]), places, cache)
        for step in range(steps):
            assert output.logits_BTV is not None
            torch.testing.assert_close(head.head(states[step][:, row]), output.logits_BTV[:, -1], rtol=1e-4, atol=1e-4)
            compared += 1
            if row + step + 1 == ahead.shape[1]:
                break
            at = torch.full((2, 1), row + step + 1)
            output = head(ahead[:, row + step + 1 : row + step + 2], output.pre_norm_BTC[:, -1:], at, cache)
    assert compared == 32


def test_the_unrolled_head_reads_its_own_chain(random_head: TokenHead, monkeypatch: pytest.MonkeyPatch):
    """Negative control: without the keys of the chain, or at the wrong token, step 2 says something else."""
    batch = windows(1, 12)
    aux = OnlineHiddenStates(RANDOM, random_head.feature_layers)(batch).aux_BTF
    inputs = RANDOM.embed_tokens.weight, random_head.combine(aux)
    right = unroll(random_head, *inputs, batch.tokens_BT, 3)[2][:, :7]
    moved = batch.tokens_BT.roll(1, 1)
    assert (unroll(random_head, *inputs, moved, 3)[2][:, :7] - right).abs().max() > 1e-2
    alone = chains.Chains.attend
    monkeypatch.setattr(chains.Chains, "attend", lambda self, layer, q, k, v: alone(chains.Chains(), layer, q, k, v))
    assert (unroll(random_head, *inputs, batch.tokens_BT, 3)[2][:, :7] - right).abs().max() > 1e-2


def laid_out(q: Tensor, key_parts: list[Tensor], documents: Tensor | None) -> Tensor:
    """One softmax over all keys with a mask [T, T·steps]."""
    length, groups = q.shape[2], q.shape[1] // key_parts[0].shape[1]
    keys, values = (
        torch.cat([x.repeat_interleave(groups, 1) for x in part], 2) for part in (key_parts[::2], key_parts[1::2])
    )
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if documents is not None:
        causal = causal & (documents[:, :, None] == documents[:, None])[:, None]
    diagonal = torch.eye(length, dtype=torch.bool).expand(len(causal), 1, -1, -1)
    mask = torch.cat([causal, *[diagonal] * (len(key_parts) // 2 - 1)], -1)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


@pytest.mark.parametrize("kernel", ["library", "blocks"])
@pytest.mark.parametrize("split", [False, True])
def test_merged_attention_is_one_softmax(kernel: str, split: bool, monkeypatch: pytest.MonkeyPatch):
    """Values and all gradients, over more than one block, with the library's kernel and without."""
    if kernel == "blocks":
        monkeypatch.setattr(chains, "_kernel", lambda q, documents: "blocks")
    torch.manual_seed(0)
    q = torch.randn(2, 4, 150, 8, requires_grad=True)
    tensors = [torch.randn(2, 2, 150, 8, requires_grad=True) for _ in range(6)]
    documents = torch.tensor([[0] * 5 + [1] * 145, [0] * 140 + [3] * 10]) if split else None
    ours, theirs = joint(q, tensors, documents), laid_out(q, tensors, documents)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    towards = torch.randn_like(ours)
    for ours_g, theirs_g in zip(*(torch.autograd.grad(o, [q, *tensors], towards) for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(ours_g, theirs_g, rtol=1e-4, atol=1e-5)


def kept_bytes(head: TokenHead, length: int, steps: int) -> int:
    """Bytes that a training pass keeps for its backward, each piece of memory once."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    objective = HeadObjective(RANDOM, head, EAGLE3._replace(unroll=steps))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.loss(windows(1, length), 0)
    assert loss.total.requires_grad
    return sum(sizes.values())


def test_memory_grows_with_tokens_and_steps_not_with_their_squares():
    head = head_for(RANDOM, "eagle3", 1)
    base = kept_bytes(head, 256, 2)
    assert kept_bytes(head, 1024, 2) < 4.1 * base
    assert kept_bytes(head, 256, 8) < 4.1 * base


# The loss


def written(head: TokenHead, batch: Batch, settings: HeadSettings) -> tuple[Tensor, Tensor]:
    """The loss and its weight as `drafts.md` has them: step by step, row by row, all logits at once."""
    read_states = OnlineHiddenStates(RANDOM, head.feature_layers)(batch)
    states = unroll(
        head, RANDOM.embed_tokens.weight, head.combine(read_states.aux_BTF), batch.tokens_BT, settings.unroll
    )
    truth = RANDOM.head(read_states.final_BTW)
    ids = torch.arange(VOCAB) if head.d2t is None else torch.tensor(DRAFTABLE)
    powers = [settings.decay**step for step in range(settings.unroll)]
    total, weight = torch.zeros(()), 0.0
    for step, state in enumerate(states):
        log_q = head.head(state).log_softmax(-1)
        for b in range(len(batch.tokens_BT)):
            for t in range(batch.tokens_BT.shape[1] - 2 - step):
                place, documents = t + 1 + step, batch.documents_BT[b]
                if not batch.mask_BT[b, place + 1] or documents[t] != documents[place + 1]:
                    continue
                p, share = truth[b, place, ids].softmax(-1), powers[step] / sum(powers)
                if settings.feature_weight:
                    apart = F.smooth_l1_loss(state[b, t], read_states.final_BTW[b, place])
                    total = total + share * settings.feature_weight * apart
                if int(truth[b, place].argmax()) not in ids:
                    continue
                term = -settings.token_weight * (p * log_q[b, t]).sum()
                total, weight = total + share * term, weight + share
    return total, torch.tensor(weight)


@pytest.mark.parametrize(
    ("name", "unroll"), [("eagle", 1), ("eagle", 3), ("eagle-cut", 1), ("eagle3", 3), ("scylla", 3)]
)
def test_the_loss_and_its_gradients_are_the_written_ones(name: str, unroll: int):
    settings = (EAGLE._replace(noise=0.0) if KINDS[name][0] != "eagle3" else EAGLE3)._replace(unroll=unroll)
    batch = windows(2, 11, documents=[0] * 4 + [1] * 7)
    batch.mask_BT[0, 3:6] = False
    head = head_for(RANDOM, *KINDS[name], std=0.15)
    objective = HeadObjective(RANDOM, head, settings)
    loss = objective.loss(batch, 0)
    total, weight = written(head, batch, settings)
    torch.testing.assert_close(loss.total, total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.weight, weight, rtol=1e-5, atol=1e-5)
    parameters = [p for p in head.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss.total, total))
    for our_gradient, other in zip(ours, theirs, strict=True):
        assert our_gradient is not None
        torch.testing.assert_close(our_gradient, other, rtol=1e-3, atol=1e-4)


def test_sums_of_halves_are_the_sum_of_the_whole():
    objective = HeadObjective(RANDOM, head_for(RANDOM, "eagle3", 1), EAGLE3._replace(unroll=3))
    whole_batch, (first, second) = (
        windows(4, 20),
        (Batch(*(x[rows] for x in windows(4, 20))) for rows in (slice(2), slice(2, 4))),
    )
    total, *two = (objective.loss(batch, 0) for batch in (whole_batch, first, second))
    torch.testing.assert_close(total.total, two[0].total + two[1].total, rtol=1e-5, atol=0)
    torch.testing.assert_close(total.weight, two[0].weight + two[1].weight, rtol=1e-6, atol=0)


def test_a_document_in_a_window_is_trained_as_if_it_stood_alone():
    head, settings = head_for(RANDOM, "eagle3", 2), EAGLE3._replace(unroll=3, within_documents=True)
    packed = windows(1, 20, documents=[0] * 8 + [1] * 12)
    parts = [Batch(*(x[:, rows] for x in packed)) for rows in (slice(8), slice(8, 20))]
    packed_loss, *alone = (HeadObjective(RANDOM, head, settings).loss(batch, 0) for batch in (packed, *parts))
    torch.testing.assert_close(packed_loss.total, alone[0].total + alone[1].total, rtol=1e-5, atol=0)
    torch.testing.assert_close(packed_loss.weight, alone[0].weight + alone[1].weight, rtol=1e-6, atol=0)
    mixed = HeadObjective(RANDOM, head, settings._replace(within_documents=False)).loss(packed, 0)
    assert abs((mixed.total / packed_loss.total).item() - 1) > 1e-3


def test_documents_apart_begin_at_position_0_and_see_only_themselves():
    positions, sees = document_places(torch.tensor([[0, 0, 3, 3, 3]]))
    assert positions.tolist() == [[0, 1, 0, 1, 2]]
    assert [row.nonzero()[:, 0].tolist() for row in sees[0]] == [[0], [0, 1], [2], [2, 3], [2, 3, 4]]


@pytest.mark.parametrize(
    "loss", [{"soft_ce": 1.0}, {"soft_ce": 0.5}, {"soft_ce": 0.1, "tv": 0.9}, {"kl": 1.0}, {"nla": 1.0}]
)
def test_losses_do_not_depend_on_groups_and_follow_their_names(loss: dict[str, float], monkeypatch: pytest.MonkeyPatch):
    """In one group and in many; values and gradients against the formulas over all logits at once."""
    torch.manual_seed(0)
    states, matrix = torch.randn(2, 30, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    teacher = Teacher(torch.randn(30, 6), torch.randn(14, 6), torch.arange(2, 12))
    counted, weights = torch.rand(2, 30) < 0.7, torch.tensor([0.6, 0.4])
    full = teacher.final_MW @ teacher.head_UW.T
    p, q = full[:, 2:12].softmax(-1), (states @ matrix.T).softmax(-1)
    alpha = torch.minimum(p, q).sum(-1)
    terms = {"soft_ce": -(p * q.log()).sum(-1), "kl": (p * (p / q).log()).sum(-1), "tv": 1 - alpha, "nla": -alpha.log()}
    live = counted & (full.argmax(-1) >= 2) & (full.argmax(-1) < 12)
    expected = sum(weights @ (share * terms[name] * live).sum(1) for name, share in loss.items())
    expected_gradients = torch.autograd.grad(torch.as_tensor(expected), [states, matrix], retain_graph=True)
    for room in (300, 2**25):
        monkeypatch.setitem(GROUP_BYTES, "cpu", room)
        result = lm_head_loss(states, matrix, counted, loss, teacher=teacher, weights_S=weights, monitor="agree")
        torch.testing.assert_close(result.total, expected)
        for gradient, other in zip(
            torch.autograd.grad(result.total, [states, matrix]), expected_gradients, strict=True
        ):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
        assert result.terms["places"].tolist() == live.sum(1).tolist()
        hits = ((states @ matrix.T).argmax(-1) == full.argmax(-1) - 2) & live
        assert result.terms["agree"].tolist() == hits.sum(1).tolist()


def test_a_batch_without_a_label_has_a_loss_of_nothing():
    head = head_for(RANDOM, "eagle3", 1, std=0.1)
    objective, batch = HeadObjective(RANDOM, head, EAGLE3._replace(unroll=2)), windows(2, 24)
    batch = batch._replace(mask_BT=torch.zeros_like(batch.mask_BT))
    result = objective.loss(batch, 0)
    result.total.backward()
    assert (result.total.item(), result.weight.item()) == (0, 0)
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_eagles_noise_is_there_in_training_only():
    head = head_for(RANDOM, "eagle", 1, std=0.1)
    objective, batch = HeadObjective(RANDOM, head, EAGLE), windows(2, 24)
    torch.manual_seed(0)
    assert not torch.equal(objective.loss(batch, 0).total, objective.loss(batch, 0).total)
    assert torch.equal(*(objective.held_out(batch)["loss"] for _ in range(2)))
    assert objective.trained.training


def test_settings_that_do_not_fit_are_refused():
    head = head_for(RANDOM, "eagle3", 1)
    with pytest.raises(ValueError, match=r"unroll \(0\)"):
        HeadObjective(RANDOM, head, EAGLE3._replace(unroll=0))
    with pytest.raises(ValueError, match="feature_weight is EAGLE-1/2's"):
        HeadObjective(RANDOM, head, EAGLE)
    with pytest.raises(ValueError, match="another target"):
        HeadObjective(model(1, 0.1), head)


def test_bfloat16_rounds_products_and_no_sums():
    """Over 5,000 places, where a rounded count would be off by up to 16."""
    batch, narrow = windows(20, 260), model(0, 0.2).to(torch.bfloat16).requires_grad_(False).eval()
    wide = HeadObjective(RANDOM, head_for(RANDOM, "eagle3", 2, draft_vocab=None), EAGLE3._replace(unroll=3)).loss(
        batch, 0
    )
    objective = HeadObjective(narrow, head_for(narrow, "eagle3", 2, draft_vocab=None), EAGLE3._replace(unroll=3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(batch, 0)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in objective.trained.parameters())
    assert torch.equal(loss.weight, wide.weight)
    torch.testing.assert_close(loss.total, wide.total, rtol=2e-3, atol=0)
    mean = sum(0.8**s * loss.terms[f"loss_{s}"] for s in range(3)) / sum(0.8**s for s in range(3))
    torch.testing.assert_close(loss.total.detach(), torch.as_tensor(mean), rtol=1e-4, atol=0)


# Learning


def grammar(rng: np.random.Generator, length: int) -> list[int]:
    """Words of a fixed dictionary that follow one another by fixed odds, with a stray token now and then."""
    fixed = np.random.default_rng(0)
    words = [fixed.integers(2, VOCAB, fixed.integers(2, 7)).tolist() for _ in range(24)]
    follows = fixed.dirichlet(np.full(24, 0.08), 24)
    text, word = [1], int(rng.integers(24))
    while len(text) < length:
        text += words[word] + ([int(rng.integers(2, VOCAB))] if rng.random() < 0.05 else [])
        word = int(rng.choice(24, p=follows[word]))
    return text[:length]


def spoken(rng: np.random.Generator, rows: int = 16, length: int = 48) -> Batch:
    tokens = torch.tensor([grammar(rng, length) for _ in range(rows)])
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.int32))


def fit(parameters: list[Tensor], loss: Callable[[Batch, int], Tensor], steps: int) -> None:
    optimiser, rng = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95)), np.random.default_rng(1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10) * (1 - 0.9 * step / steps)
        optimiser.zero_grad()
        loss(spoken(rng), step).backward()
        optimiser.step()


@cache
def speaker() -> Decoder:
    """A target that has learned the grammar."""
    decoder = model(0, 0.05)

    def loss(batch: Batch, step: int) -> Tensor:
        logits = decoder(batch.tokens_BT[:, :-1]).logits_BTV
        assert logits is not None
        return F.cross_entropy(logits.flatten(0, 1), batch.tokens_BT[:, 1:].flatten())

    fit(list(decoder.parameters()), loss, 150)
    return decoder.requires_grad_(False).eval()


REQUESTS = [Request(prompt=tuple(grammar(np.random.default_rng(100 + i), 8)), max_tokens=48) for i in range(16)]


@cache
def answers() -> list[list[int]]:
    return [sequence.answer for sequence in Engine(speaker(), max_batch=8, max_context=64).generate(REQUESTS)]


def drafted(head: TokenHead) -> tuple[list[list[int]], float, float]:
    """Answers, 1 + accepted per step, and tokens emitted per step, at chains of 4."""
    engine = Engine(speaker(), HeadDrafter(head, head.new_cache(8, 160)), lookahead=4, max_batch=8, max_context=64)
    sequences = [engine.add(request) for request in REQUESTS]
    steps = list(engine.run())
    rows = sum(len(step.accepted) for step in steps)
    accepted, emitted = (sum(sum(getattr(step, name)) for step in steps) for name in ("accepted", "emitted"))
    return [sequence.answer for sequence in sequences], 1 + accepted / rows, emitted / rows


@pytest.mark.parametrize("name", KINDS)
def test_training_raises_acceptance_and_the_engine_agrees(name: str, tmp_path: Path):
    """Acceptance rises by half a token or more, decoding stays lossless, teacher-forced τ is the live one within 2 %,
    and the served file reads back to the same head.
    """
    head, target = head_for(speaker(), *KINDS[name]).requires_grad_(False).eval(), speaker()
    served, before, _ = drafted(head)
    assert served == answers()
    eagle = head.predicts_hidden_state
    objective = HeadObjective(target, head, EAGLE if eagle else EAGLE3._replace(unroll=3))

    def loss(batch: Batch, step: int) -> Tensor:
        good_loss = objective.loss(batch, step)
        return good_loss.total / good_loss.weight

    fit(list(objective.trained.parameters()), loss, 60)
    head.requires_grad_(False).eval()
    served, after, emitted = drafted(head)
    assert served == answers()
    assert after > before + 0.5
    texts = [([*r.prompt, *a], [False] * 8 + [True] * len(a)) for r, a in zip(REQUESTS, answers(), strict=True)]
    judged_acceptance = judged(head, texts, 4)
    assert judged_acceptance.emitted_per_step == pytest.approx(emitted, abs=1e-12)
    assert judged_acceptance.tokens_per_step.value == pytest.approx(after, rel=0.02)
    objective.save(tmp_path, objective.trained.state_dict())
    again = load_head(tmp_path, target)
    assert isinstance(again, TokenHead)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True))
    assert judged(again, texts[:2], 4) == judged(head, texts[:2], 4)


def judged(head: TokenHead, texts: list, lookahead: int) -> TeacherForcedAcceptance:
    """Of texts that stand alone."""
    rows = tallies(head, TargetCache(head.target), texts, lookahead)
    return acceptance({name: torch.stack([row[name] for row in rows]).sum(0) for name in rows[0]})


def test_held_out_figures_are_those_of_texts_alone():
    """The sums of two batches added up, documents apart, say what the same texts say one by one."""
    target, rng = speaker(), np.random.default_rng(5)
    head = head_for(target, "eagle3", 1)
    objective = HeadObjective(target, head, EAGLE3._replace(unroll=2, lookahead=3, within_documents=True))
    texts = [grammar(rng, 20) for _ in range(6)]
    rows = [texts[i] + texts[i + 1] for i in range(0, 6, 2)]
    parts = []
    for row in rows:
        tokens, documents = torch.tensor([row]), torch.tensor([[0] * 20 + [1] * 20], dtype=torch.int32)
        parts.append(objective.held_out(Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), documents)))
    figures = objective.figures({name: sum(part[name] for part in parts) for name in parts[0]})  # type: ignore[misc]
    judged_alone = judged(head, [(text, [True] * 20) for text in texts], 3)
    assert figures["tokens_per_step"] == pytest.approx(judged_alone.tokens_per_step.value, abs=1e-9)
    assert figures["tokens_per_step_low"] == pytest.approx(judged_alone.tokens_per_step.low, abs=1e-9)
    assert [figures[f"survival_{i}"] for i in (1, 2, 3)] == pytest.approx(list(judged_alone.survival), abs=1e-9)
    assert set(objective.loss(windows(1, 40), 0).terms) == {"loss_0", "loss_1", "agree_0", "agree_1"}
    assert figures["loss"] == pytest.approx((figures["loss_0"] + 0.8 * figures["loss_1"]) / 1.8, rel=0.02)


# Files


def test_a_trained_heads_file_is_one_that_engines_serve(tmp_path: Path):
    target = RANDOM
    objective = HeadObjective(target, head_for(target, "eagle3", 2), dtype=torch.bfloat16, keys={"eos_token_id": 1})
    objective.save(tmp_path, objective.trained.state_dict())
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_bytes())
    names = {
        "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d", "midlayer.hidden_norm.weight",
        *(f"layers.1.{norm}.weight" for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
        *(f"midlayer.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")),
        *(f"{layer}.self_attn.{x}_proj.weight" for layer in ("midlayer", "layers.1") for x in "qkvo"),
        *(f"{layer}.mlp.{x}_proj.weight" for layer in ("midlayer", "layers.1") for x in ("gate", "up", "down")),
    }  # fmt: skip
    assert set(tensors) == names
    assert config["norm_before_residual"] is False
    assert config["max_position_embeddings"] == target.shape.max_position_embeddings
    assert (config["eos_token_id"], config["torch_dtype"], config["draft_vocab_size"]) == (
        1,
        "bfloat16",
        len(DRAFTABLE),
    )
    assert "null" not in json.dumps(config)
    read = load_head(tmp_path, target, torch.bfloat16)
    assert torch.equal(read.fc.weight, objective.trained.get_parameter("head.fc.weight").bfloat16())


def token_folder(path: Path, tokens: list[int], mask: list[int], offsets: list[int]) -> TokenFolder:
    """A folder as `foredraft data prepare` writes it."""
    path.mkdir()
    np.array(tokens, "<u2").tofile(path / "tokens.bin")
    np.array(mask, np.uint8).tofile(path / "mask.bin")
    np.array(offsets, "<i8").tofile(path / "documents.bin")
    data = {
        "version": 1, "vocab_size": VOCAB, "eos_id": 0, "tokenizer_sha256": "0" * 64, "dtype": "uint16",
        "num_tokens": len(tokens), "num_documents": len(offsets) - 1, "raw_tokens": len(tokens), "regenerated_tokens": 0,
        "predicted_tokens": sum(mask), "sources": [],
    }  # fmt: skip
    (path / "data.json").write_text(json.dumps(data))
    return TokenFolder.open(path)


def test_the_draft_vocabulary_is_what_labels_hold_most(tmp_path: Path):
    """Token 7 is frequent but never to be predicted; ties go to the lower id."""
    tokens, mask = [7, 7, 7, 7, 3, 3, 3, 9, 9, 5, 5, 8], [0, 0, 0, 0] + [1] * 8
    folder = token_folder(tmp_path / "data", tokens, mask, [0, 12])
    assert most_frequent(folder, 2) == [3, 5]
    assert most_frequent(folder, 3) == [3, 5, 9]
    assert coverage(folder, [3, 5]) == pytest.approx(5 / 8)
    assert most_frequent(folder, 6) == [0, 1, 3, 5, 8, 9]
    with pytest.raises(ValueError, match=r"must lie in 1…48"):
        most_frequent(folder, 49)
    with pytest.raises(ValueError, match="no token is to be predicted"):
        most_frequent(token_folder(tmp_path / "none", tokens, [0] * 12, [0, 12]), 3)


def test_words_outside_are_counted_where_they_were_not_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first half holds 1 six times and 2 twice, the second 1 twice, 3 five times and 2 once."""
    monkeypatch.setattr(vocabularies, "LEAST_WORDS", 1)
    folder = token_folder(tmp_path / "data", [1] * 6 + [2] * 2 + [1] * 2 + [3] * 5 + [2], [1] * 16, [0, 16])
    (words, first, second), (two, *shares), *_ = vocabularies.outside(folder)
    assert (words, first, second) == (1, pytest.approx(6 / 8), pytest.approx(1.0))
    assert (two, shares) == (2, [pytest.approx(5 / 8), pytest.approx(2 / 8)])


@pytest.fixture
def packing(tmp_path: Path) -> Packing:
    tokens = np.random.default_rng(0).integers(0, VOCAB, 200).tolist()
    return Packing(token_folder(tmp_path / "data", tokens, [1] * 200, [0, 90, 200]), 16, 0)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["eagle", "eagle-cut", "eagle3"])
def test_cached_hidden_states_train_as_those_computed_online(name: str, packing: Packing, tmp_path: Path):
    """In any order of windows; the size is told before anything is written, and is what is written."""
    head, cache, messages = head_for(RANDOM, *KINDS[name]), TargetCache(RANDOM, tmp_path / "states"), []

    def say(line: str) -> None:
        assert not (tmp_path / "states").exists()
        messages.append(line)

    cache.fill(packing, 12, head.feature_layers, say=say, batch_size=5)
    files = all_bytes(tmp_path / "states")
    states = {*head.feature_layers, RANDOM.shape.num_layers}  # the final one is written once
    on_disk, values = sum(map(len, files.values())), 16 * 48 * 4 * len(states)
    assert on_disk == 12 * cache.window_bytes(16, head.feature_layers)
    assert 12 * values < on_disk < 12 * (values + 256 * len(states))
    assert messages == [
        f"{tmp_path / 'states'}: {on_disk:,} bytes of hidden states for 192 tokens, {on_disk:,} to write"
    ]
    settings = EAGLE3._replace(unroll=2) if name == "eagle3" else EAGLE._replace(noise=0.0)
    for argmax in (False, True):
        source = cache.hidden_states(head.feature_layers, complete=True, argmax=argmax)
        cached = HeadObjective(RANDOM, head, settings, source=source)
        for first in (0, 7, 30):
            batch = packing.batch(first, 4)
            losses = HeadObjective(RANDOM, head, settings).loss(batch, 0), cached.loss(batch, 0)
            online, stored = ({"total": each.total, "weight": each.weight} | each.terms for each in losses)
            torch.testing.assert_close(stored, online, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no hidden states of a window"):
        cached.loss(windows(1, 16), 0)


def test_a_cache_goes_on_where_it_stopped_and_is_no_other_ones(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither another target's, nor of other layers, nor of documents seen otherwise."""
    TargetCache(RANDOM, tmp_path / "whole").fill(packing, 12, (1, 2, 3), say=print, batch_size=4)
    cache, computed, forward = TargetCache(RANDOM, tmp_path / "parts"), [], type(RANDOM).forward

    def counted(target: Decoder, tokens: Tensor, *arguments: object, **options: object):
        computed.append(len(tokens))
        return forward(target, tokens, *arguments, **options) if len(computed) != 3 else 1 / 0  # type: ignore[arg-type]

    monkeypatch.setattr(type(RANDOM), "forward", counted)
    with pytest.raises(ZeroDivisionError):
        cache.fill(packing, 12, (1, 2, 3), say=print, batch_size=4)
    assert len(list((tmp_path / "parts").iterdir())) == 8 * 3
    with pytest.raises(ValueError, match="no hidden states of a window"):
        cache.hidden_states((1, 2, 3), complete=True)(packing.batch(0, 12))
    cache.fill(packing, 12, (1, 2, 3), say=print, batch_size=4)
    assert computed == [4, 4, 4, 4]
    assert all_bytes(tmp_path / "parts") == all_bytes(tmp_path / "whole")
    for path in sorted((tmp_path / "parts").iterdir())[::3]:
        path.unlink()
    cache.hidden_states((1, 2, 3))(packing.batch(0, 4))  # what is lacking of these four comes of a pass over all four
    cache.fill(packing, 12, (1, 2, 3), say=print, batch_size=4)
    assert all_bytes(tmp_path / "parts") == all_bytes(tmp_path / "whole"), "to the last bit"
    cache.hidden_states((1, 2, 3), complete=True)(packing.batch(0, 12))
    for other in (
        TargetCache(model(1, 0.2), tmp_path / "parts").hidden_states((1, 2, 3), complete=True),
        cache.hidden_states((0, 2, 3), complete=True),
        cache.hidden_states((1, 2, 3), within_documents=True, complete=True),
    ):
        with pytest.raises(ValueError, match="no hidden states of a window"):
            other(packing.batch(0, 12))


def test_heads_share_the_states_that_they_have_in_common(packing: Packing, tmp_path: Path):
    """What is there of a window is not written again, and is the same to each head."""
    cache, messages = TargetCache(RANDOM, tmp_path / "states"), []
    cache.fill(packing, 12, (1, 2, 3), say=messages.append)
    before = all_bytes(tmp_path / "states")
    cache.fill(packing, 12, (3,), say=messages.append)
    assert all_bytes(tmp_path / "states") == before
    assert messages[-1].endswith(" 0 to write")
    cache.fill(packing, 12, (0, 2, 3), say=messages.append)
    assert messages[-1].endswith(f" {12 * cache.window_bytes(16, (3,)):,} to write")
    batch = packing.batch(0, 4)
    for layers in ((1, 2, 3), (0, 2, 3), (3,), None):
        states = cache.hidden_states(layers, complete=True)(batch)
        torch.testing.assert_close(states.aux_BTF, TargetCache(RANDOM).hidden_states(layers)(batch).aux_BTF)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_written(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = TargetCache(RANDOM, tmp_path / "states")
    num_bytes = 12 * cache.window_bytes(16, (1, 2, 3))
    usage = type("Usage", (), {"free": num_bytes})
    monkeypatch.setattr("foredraft.teacher.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=rf"{num_bytes:,} bytes of hidden states do not fit the {num_bytes:,} free"):
        cache.fill(packing, 12, (1, 2, 3), say=print)
    assert list((tmp_path / "states").iterdir()) == []
    with pytest.raises(ValueError, match=r"windows must lie in 1…12"):
        cache.fill(packing, 13, (1, 2, 3), say=print)


def test_flops_count_target_and_steps():
    """More steps cost more by three later passes each, and the target's pass is in; nothing goes back into the hidden states that are given."""
    head = head_for(RANDOM, "eagle3", 1)
    one_step, two, three = (
        HeadObjective(RANDOM, head, EAGLE3._replace(unroll=n), length=64).flops_per_token for n in (1, 2, 3)
    )
    assert three - two == two - one_step == 3 * head.shape.flops_per_token(32, recurrent=True)
    of_head = 3 * head.shape.flops_per_token(32) - 2 * head.shape.fc_params
    assert one_step == RANDOM.shape.flops_per_token(32) + of_head
    assert isinstance(HeadObjective(RANDOM, head).trained, TrainedHead)


def test_a_recipe_of_eagle_states_its_steps():
    settings = HEADS[Eagle].settings(Eagle(unroll=3, decay=0.5), {})
    assert (settings.unroll, settings.decay, settings.feature_weight) == (3, 0.5, 1.0)
    assert HEADS[Eagle].settings(Eagle(), {}).unroll == 1


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("eagle", EAGLE),
        ("eagle", EAGLE._replace(unroll=3)),
        ("eagle-cut", EAGLE),
        ("eagle3", EAGLE3._replace(unroll=3)),
    ],
)
def test_flops_are_those_that_torch_counts(kind: str, settings: HeadSettings, from_disk: bool, tmp_path: Path):
    """With a quarter of the tokens to be predicted, hidden states computed or on disk. A window's last two tokens have no rows and fused
    attention is not counted by torch: 20 % of windows this short. States on disk counted as computed would say twice as much.
    """
    head, batch = head_for(RANDOM, *KINDS[kind]).requires_grad_(True), windows(4, 48)
    batch.mask_BT[:, 12:] = False
    source = TargetCache(RANDOM, tmp_path).hidden_states(head.feature_layers, argmax=True) if from_disk else None
    if source:
        source(batch)
    objective = HeadObjective(RANDOM, head, settings, source=source, length=48, computed=Computed(0.25, from_disk))
    with FlopCounterMode(display=False) as counter:
        objective.loss(batch, 0).total.backward()
    assert objective.flops_per_token == pytest.approx(counter.get_total_flops() / batch.tokens_BT.numel(), rel=0.2)
