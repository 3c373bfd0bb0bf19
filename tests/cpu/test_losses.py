"""Losses against formulas in float64, their slopes against finite differences, and what must hold of them exactly."""

import numpy as np
import pytest
import torch

from foredraft.teacher.group_bytes import GROUP_BYTES
from foredraft.teacher.teacher import Teacher
from foredraft.train import lm_head
from foredraft.train.lm_head import lm_head_loss
from foredraft.train.losses import against_target, against_text

NAMES = ("soft_ce", "kl", "rkl", "tv", "nla")
ROWS, VOCAB, WIDTH = 7, 11, 5


def probs(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def formula(name, draft, target):
    """The textbook form of each loss, numpy in float64, [..., V] to [...]."""
    q, p = probs(draft), probs(target)
    accept = np.minimum(p, q).sum(-1)
    return {
        "soft_ce": -(p * np.log(q)).sum(-1),
        "kl": (p * np.log(p / q)).sum(-1),
        "rkl": (q * np.log(q / p)).sum(-1),
        "tv": np.abs(p - q).sum(-1) / 2,
        "nla": -np.log(accept),
    }[name]


def weighted(loss, draft, target, **options):
    """The weighted sum of `loss` [..., V] to [...], and its gradient in the draft's logits."""
    values, slope = against_target(draft, target, loss, **options)
    assert slope is not None
    return torch.stack([share * values[name] for name, share in loss.items()]).sum(0), slope


def logits(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape)).float()


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_textbook_formula(name):
    draft, target = logits(0, ROWS, VOCAB), logits(1, ROWS, VOCAB)
    expected = formula(name, draft.double().numpy(), target.double().numpy())
    values, _ = weighted({name: 1.0}, draft, target)
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("loss", [*({name: 1.0} for name in NAMES), {"kl": 0.3, "rkl": 0.2, "tv": 0.4, "nla": 0.1}])
def test_slope_is_that_of_finite_differences(loss):
    draft, target = logits(2, ROWS, VOCAB), logits(3, ROWS, VOCAB)
    _, slope = weighted(loss, draft, target)
    at, step, expected = draft.double().numpy(), 1e-6, np.zeros((ROWS, VOCAB))
    for token in range(VOCAB):
        moved = np.zeros(VOCAB)
        moved[token] = step
        up, down = (
            sum(weight * formula(name, at + sign * moved, target.double().numpy()) for name, weight in loss.items())
            for sign in (1, -1)
        )
        expected[:, token] = (up - down) / (2 * step)
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_total_variation_and_acceptance_add_up_to_one():
    draft, target = logits(4, 50, VOCAB), logits(5, 50, VOCAB)
    tv, nla = (weighted({name: 1.0}, draft, target)[0] for name in ("tv", "nla"))
    torch.testing.assert_close(tv, 1 - (-nla).exp(), rtol=0, atol=1e-6)
    q, p = draft.softmax(-1), target.softmax(-1)
    torch.testing.assert_close(tv, (p - q).abs().sum(-1) / 2, rtol=0, atol=1e-6)


def test_cross_entropy_exceeds_divergence_by_the_targets_entropy():
    draft, target = logits(6, 50, VOCAB), logits(7, 50, VOCAB)
    soft, kl = (weighted({name: 1.0}, draft, target)[0] for name in ("soft_ce", "kl"))
    p = target.softmax(-1)
    torch.testing.assert_close(soft - kl, -(p * p.log()).sum(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["kl", "rkl", "tv", "nla"])
def test_a_draft_that_is_the_target_has_no_loss_and_no_slope(name):
    target = logits(8, ROWS, VOCAB)
    values, slope = weighted({name: 1.0}, target.clone(), target)
    assert values.abs().max() < 1e-6
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("options", [{"acceptance": True}, {"acceptance": False}])
@pytest.mark.parametrize("loss", [{"tv": 1.0, "kl": 0.5}, {"soft_ce": 0.5}])
def test_one_target_serves_drafts_of_several_steps(loss, options):
    """Soft cross-entropy alone has a shorter way: the same values and slopes by both."""
    drafts, target = logits(9, 3, ROWS, VOCAB), logits(10, ROWS, VOCAB)
    values, slopes = weighted(loss, drafts, target, **options)
    assert values.shape == (3, ROWS)
    for step in range(3):
        expected, slope = weighted(loss, drafts[step], target)
        torch.testing.assert_close(values[step], expected)
        torch.testing.assert_close(slopes[step], slope)


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="jsd"):
        against_target(logits(0, 1, 3), logits(1, 1, 3), {"jsd": 1.0})


def test_cross_entropy_with_text_is_torchs():
    rows, labels = logits(11, ROWS, VOCAB).requires_grad_(), torch.arange(ROWS) % VOCAB
    value, slope = against_text(rows.detach(), labels)
    expected = torch.nn.functional.cross_entropy(rows, labels, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, rows.grad)


# Through the LM head.


def by_torch(name, draft, target):
    """The textbook form of each loss, differentiable."""
    log_q, log_p = draft.log_softmax(-1), target.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    return (p * (log_p - log_q)).sum(-1) if name == "kl" else (p - q).abs().sum(-1) / 2


def case(loss, seed=20, rows=37):
    """Random states, matrices, labels and places that count, and the loss over all logits at once with torch's own gradient."""
    states, matrix, wide = logits(seed, rows, WIDTH), logits(seed + 1, VOCAB, WIDTH), logits(seed + 2, VOCAB, WIDTH + 2)
    taught, labels = (
        logits(seed + 3, rows, WIDTH + 2),
        torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, rows)),
    )
    counted = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, 2, rows)).bool()
    states, matrix = states.requires_grad_(), matrix.requires_grad_()
    logits_MV = states @ matrix.T
    values = loss.get("ce", 0.0) * torch.nn.functional.cross_entropy(logits_MV, labels, reduction="none")
    soft = {name: weight for name, weight in loss.items() if name != "ce"}
    teacher = Teacher(taught, wide) if soft else None
    for name, weight in soft.items():
        values = values + weight * by_torch(name, logits_MV, taught @ wide.T)
    total = (values * counted).sum()
    return states, matrix, labels, counted, teacher, total, torch.autograd.grad(total, (states, matrix))


def language_model_loss(states, matrix, labels, counted, loss, teacher=None):
    """Its total and terms, of a single step."""
    monitor = "accept_prob" if teacher else None
    result = lm_head_loss(states[None], matrix, counted[None], loss, teacher=teacher, labels_M=labels, monitor=monitor)
    return result.total, {name: by_step[0] for name, by_step in result.terms.items()}


@pytest.mark.parametrize("loss", [{"ce": 1.0}, {"kl": 1.0}, {"ce": 0.1, "tv": 0.9}])
@pytest.mark.parametrize("rows_at_once", [1000, 8, 1])
def test_pieces_give_the_value_and_slopes_of_the_whole(loss, rows_at_once, monkeypatch):
    monkeypatch.setitem(GROUP_BYTES, "cpu", 4 * VOCAB * rows_at_once * 2)
    monkeypatch.setitem(lm_head.CHUNK_BYTES, "cpu", 4 * VOCAB * rows_at_once)
    states, matrix, labels, counted, teacher, expected, slopes = case(loss)
    total, terms = language_model_loss(states, matrix, labels, counted, loss, teacher)
    torch.testing.assert_close(total, expected)
    (3.0 * total).backward()  # the loss of a part of a larger sum
    torch.testing.assert_close(states.grad, 3.0 * slopes[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matrix.grad, 3.0 * slopes[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(weight * terms[name] for name, weight in loss.items()), expected.detach())


def test_places_that_do_not_count_teach_nothing():
    states, matrix, labels, counted, _, _, _ = case({"ce": 1.0})
    total, terms = language_model_loss(states, matrix, labels, counted, {"ce": 1.0})
    assert 0 < terms["places"] == counted.sum() < len(counted)
    few = counted[counted]
    alone, _ = language_model_loss(states[counted], matrix, labels[counted], few, {"ce": 1.0})
    torch.testing.assert_close(total, alone)
    (slope,) = torch.autograd.grad(total, states)
    assert slope[~counted].abs().max() == 0


def test_a_loss_has_what_it_is_against():
    states, matrix, labels, counted, *_ = case({"ce": 1.0})
    with pytest.raises(ValueError, match="tv needs a target"):
        language_model_loss(states, matrix, labels, counted, {"tv": 1.0})
    with pytest.raises(ValueError, match="ce is a language model's"):
        lm_head_loss(states[None], matrix, counted[None], {"ce": 1.0})


def test_with_a_target_the_acceptance_is_told():
    states, matrix, labels, counted, teacher, _, _ = case({"tv": 1.0})
    _, terms = language_model_loss(states, matrix, labels, counted, {"tv": 1.0}, teacher)
    torch.testing.assert_close(terms["accept_prob"] + terms["tv"], terms["places"])


def test_no_more_logits_live_than_the_room_allows(monkeypatch):
    """Negative control included: with room for all places, all are computed at once."""
    widths, chunk_terms = [], lm_head.chunk_terms

    def recorded(rows, *arguments):
        widths.append(rows.shape[1])
        return chunk_terms(rows, *arguments)

    monkeypatch.setattr(lm_head, "chunk_terms", recorded)
    states, matrix, labels, counted, *_ = case({"ce": 1.0})
    for room, largest in ((4 * VOCAB * 5, 5), (4 * VOCAB * 1000, 37)):
        monkeypatch.setitem(GROUP_BYTES, "cpu", room)
        monkeypatch.setitem(lm_head.CHUNK_BYTES, "cpu", room)
        widths.clear()
        language_model_loss(states, matrix, labels, counted, {"ce": 1.0})
        assert max(widths) == largest
        assert sum(widths) == 37


def test_under_autocast_products_are_narrow_and_slopes_come_back_wide():
    states, matrix, labels, counted, _, expected, slopes = case({"ce": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = language_model_loss(states, matrix, labels, counted, {"ce": 1.0})
    total.backward()
    assert states.grad is not None
    assert matrix.grad is not None
    assert states.grad.dtype == matrix.grad.dtype == torch.float32
    assert abs(total - expected) / expected < 0.02
    assert not torch.equal(total, expected)
    assert (matrix.grad - slopes[1]).norm() / slopes[1].norm() < 0.03
