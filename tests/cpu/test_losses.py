"""Losses against formulas in float64, their slopes against finite differences, and what must hold of them exactly."""

import numpy as np
import pytest
import torch

from foredraft.teacher import read_out as reading
from foredraft.teacher.read_out import Reading, read_out
from foredraft.train.losses import against_text, divergence

NAMES = ("soft_ce", "kl", "rkl", "tv", "nla")
ROWS, VOCAB, WIDTH = 7, 11, 5


def law(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def formula(name, draft, target):
    """The textbook form of each loss, numpy in float64, [..., V] to [...]."""
    q, p = law(draft), law(target)
    accept = np.minimum(p, q).sum(-1)
    return {
        "soft_ce": -(p * np.log(q)).sum(-1),
        "kl": (p * np.log(p / q)).sum(-1),
        "rkl": (q * np.log(q / p)).sum(-1),
        "tv": np.abs(p - q).sum(-1) / 2,
        "nla": -np.log(accept),
    }[name]


def logits(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape)).float()


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_textbook_formula(name):
    draft, target = logits(0, ROWS, VOCAB), logits(1, ROWS, VOCAB)
    wanted = formula(name, draft.double().numpy(), target.double().numpy())
    np.testing.assert_allclose(divergence({name: 1.0})(draft, target).numpy(), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("loss", [*({name: 1.0} for name in NAMES), {"kl": 0.3, "rkl": 0.2, "tv": 0.4, "nla": 0.1}])
def test_slope_is_that_of_finite_differences(loss):
    draft, target = logits(2, ROWS, VOCAB).requires_grad_(), logits(3, ROWS, VOCAB)
    divergence(loss)(draft, target).sum().backward()
    at, step, wanted = draft.detach().double().numpy(), 1e-6, np.zeros((ROWS, VOCAB))
    for token in range(VOCAB):
        moved = np.zeros(VOCAB)
        moved[token] = step
        up, down = (
            sum(weight * formula(name, at + sign * moved, target.double().numpy()) for name, weight in loss.items())
            for sign in (1, -1)
        )
        wanted[:, token] = (up - down) / (2 * step)
    assert draft.grad is not None
    np.testing.assert_allclose(draft.grad.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_total_variation_and_acceptance_add_up_to_one():
    draft, target = logits(4, 50, VOCAB), logits(5, 50, VOCAB)
    tv, nla = (divergence({name: 1.0})(draft, target) for name in ("tv", "nla"))
    torch.testing.assert_close(tv, 1 - (-nla).exp(), rtol=0, atol=1e-6)
    q, p = draft.softmax(-1), target.softmax(-1)
    torch.testing.assert_close(tv, (p - q).abs().sum(-1) / 2, rtol=0, atol=1e-6)


def test_cross_entropy_exceeds_divergence_by_the_targets_entropy():
    draft, target = logits(6, 50, VOCAB), logits(7, 50, VOCAB)
    soft, kl = (divergence({name: 1.0})(draft, target) for name in ("soft_ce", "kl"))
    p = target.softmax(-1)
    torch.testing.assert_close(soft - kl, -(p * p.log()).sum(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["kl", "rkl", "tv", "nla"])
def test_a_draft_that_is_the_target_has_no_loss_and_no_slope(name):
    target = logits(8, ROWS, VOCAB)
    draft = target.clone().requires_grad_()
    value = divergence({name: 1.0})(draft, target)
    value.sum().backward()
    assert value.detach().abs().max() < 1e-6
    assert draft.grad is not None
    assert draft.grad.abs().max() < 1e-6


def test_one_target_serves_drafts_of_several_steps():
    drafts, target = logits(9, 3, ROWS, VOCAB), logits(10, ROWS, VOCAB)
    loss = divergence({"tv": 1.0, "kl": 0.5})
    whole = loss(drafts, target)
    assert whole.shape == (3, ROWS)
    for step in range(3):
        torch.testing.assert_close(whole[step], loss(drafts[step], target))


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="jsd"):
        divergence({"jsd": 1.0})(logits(0, 1, 3), logits(1, 1, 3))


def test_cross_entropy_with_text_is_torchs():
    rows, labels = logits(11, ROWS, VOCAB).requires_grad_(), torch.arange(ROWS) % VOCAB
    value, slope = against_text(rows.detach(), labels)
    wanted = torch.nn.functional.cross_entropy(rows, labels, reduction="none")
    wanted.sum().backward()
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(slope, rows.grad)


# Through the LM head.


def case(loss, seed=20, rows=37):
    """Random states, matrices, labels and weights, and the loss over all logits at once with torch's own gradient."""
    states, matrix, wide = logits(seed, rows, WIDTH), logits(seed + 1, VOCAB, WIDTH), logits(seed + 2, VOCAB, WIDTH + 2)
    taught, labels = (
        logits(seed + 3, rows, WIDTH + 2),
        torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, rows)),
    )
    weights = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, 2, rows)).float()
    states, matrix = states.requires_grad_(), matrix.requires_grad_()
    made = states @ matrix.T
    values = loss.get("ce", 0.0) * torch.nn.functional.cross_entropy(made, labels, reduction="none")
    soft = {name: weight for name, weight in loss.items() if name != "ce"}
    target = Reading(taught, wide) if soft else None
    if soft:
        values = values + divergence(soft)(made, taught @ wide.T)
    total = (values * weights).sum()
    return states, matrix, labels, weights, target, total, torch.autograd.grad(total, (states, matrix))


@pytest.mark.parametrize("loss", [{"ce": 1.0}, {"kl": 1.0}, {"ce": 0.1, "tv": 0.9}])
@pytest.mark.parametrize("rows_at_once", [1000, 8, 1])
def test_pieces_give_the_value_and_slopes_of_the_whole(loss, rows_at_once, monkeypatch):
    monkeypatch.setitem(reading.GROUP_BYTES, "cpu", 4 * VOCAB * rows_at_once * 2)
    monkeypatch.setitem(reading.CHUNK_BYTES, "cpu", 4 * VOCAB * rows_at_once)
    states, matrix, labels, weights, target, wanted, slopes = case(loss)
    total, terms = read_out(Reading(states, matrix), labels, weights, loss, target)
    torch.testing.assert_close(total, wanted)
    (3.0 * total).backward()  # the loss of a part of a larger sum
    torch.testing.assert_close(states.grad, 3.0 * slopes[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matrix.grad, 3.0 * slopes[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(weight * terms[name] for name, weight in loss.items()), wanted.detach())


def test_rows_of_no_weight_do_not_count():
    states, matrix, labels, weights, _, _, _ = case({"ce": 1.0})
    total, _ = read_out(Reading(states, matrix), labels, weights, {"ce": 1.0})
    kept = weights > 0
    assert 0 < kept.sum() < len(kept)
    alone, _ = read_out(Reading(states[kept], matrix), labels[kept], weights[kept], {"ce": 1.0})
    torch.testing.assert_close(total, alone)
    (slope,) = torch.autograd.grad(total, states)
    assert slope[~kept].abs().max() == 0


def test_a_loss_against_a_target_needs_one():
    states, matrix, labels, weights, *_ = case({"ce": 1.0})
    with pytest.raises(ValueError, match="tv needs a target"):
        read_out(Reading(states, matrix), labels, weights, {"tv": 1.0})


def test_with_a_target_the_acceptance_is_told():
    states, matrix, labels, weights, target, _, _ = case({"tv": 1.0})
    _, terms = read_out(Reading(states, matrix), labels, weights, {"tv": 1.0}, target)
    torch.testing.assert_close(terms["accept_prob"] + terms["tv"], weights.sum())


def test_no_more_logits_live_than_the_room_allows(monkeypatch):
    """Negative control included: with room for all rows, all are made at once."""
    seen = []

    def rows(made, *rest):
        seen.append(len(made))
        return weighted(made, *rest)

    weighted = reading.weighted_rows
    monkeypatch.setattr(reading, "weighted_rows", rows)
    states, matrix, labels, weights, *_ = case({"ce": 1.0})
    for room, largest in ((4 * VOCAB * 5, 5), (4 * VOCAB * 1000, 37)):
        monkeypatch.setitem(reading.GROUP_BYTES, "cpu", room)
        monkeypatch.setitem(reading.CHUNK_BYTES, "cpu", room)
        seen.clear()
        read_out(Reading(states, matrix), labels, weights, {"ce": 1.0})
        assert max(seen) == largest
        assert sum(seen) == 37


def test_under_autocast_products_are_narrow_and_slopes_come_back_wide():
    states, matrix, labels, weights, _, wanted, slopes = case({"ce": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = read_out(Reading(states, matrix), labels, weights, {"ce": 1.0})
    total.backward()
    assert states.grad is not None
    assert matrix.grad is not None
    assert states.grad.dtype == matrix.grad.dtype == torch.float32
    assert abs(total - wanted) / wanted < 0.02
    assert not torch.equal(total, wanted)
    assert (matrix.grad - slopes[1]).norm() / slopes[1].norm() < 0.03
