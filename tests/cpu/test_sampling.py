"""The distribution that is sampled, against transformers' own warpers; and verification on torch tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foredraft.decode.sampling import Sampling, first_largest, probabilities
from foredraft.decode.verify import draw, first_reached, verify_chain, verify_tree
from foredraft.models import kernels


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.5, 5, 1.0), (0.8, 7, 0.6)]
)
def test_distribution_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(6, 1, dtype=torch.long), logits.clone()).softmax(-1)  # type: ignore[arg-type]
    probs = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(probs, expected, atol=1e-6)


@pytest.mark.parametrize("top_p", [1e-3, 0.5, 0.9, 0.999, 1 - 1e-6])
@pytest.mark.parametrize("spread", [0.0, 0.05, 4.0])
def test_a_nucleus_is_that_of_a_whole_row_sorted(top_p: float, spread: float) -> None:
    """Of a long vocabulary, flat and steep, with ties, which are taken in its order."""
    logits = (torch.randn(3, 5000, generator=torch.Generator().manual_seed(2)) * spread).round(decimals=1)
    probs = logits.softmax(-1)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered
    kept = torch.zeros_like(probs, dtype=torch.bool).scatter_(-1, order, before < top_p)
    nucleus = probabilities(logits, Sampling(temperature=1.0, top_p=top_p))
    assert torch.equal(nucleus > 0, kept)
    assert torch.allclose(nucleus, probs.where(kept, 0) / probs.where(kept, 0).sum(-1, keepdim=True), atol=1e-7)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_of_the_largest_stands_where_torch_finds_it(
    dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among many equal ones, in rows that fill registers and that do not, by our kernels and by numpy."""
    if not kernel:
        monkeypatch.setattr(kernels, "able", lambda *_: False)
    for size in (1, 7, 16, 100, 49152):
        logits = torch.randn(3, 4, size, generator=torch.Generator().manual_seed(size)).mul(4).round().to(dtype)
        logits[2, 1] = -torch.inf
        logits[2, 2, size // 2] = torch.inf
        largest, ids = first_largest(logits[:, 1:])  # rows that do not lie together
        assert torch.equal(largest, logits[:, 1:].amax(-1).float())
        assert torch.equal(ids, (logits[:, 1:] == largest[..., None].to(dtype)).int().argmax(-1))
        logits[0, 1, size - 1] = torch.nan
        assert first_largest(logits)[0].isnan().nonzero().tolist() == [[0, 1]]


def test_temperature_zero_is_the_first_of_the_largest() -> None:
    assert probabilities(torch.tensor([[1.0, 3.0, 3.0]]), Sampling()).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("top_p", [1e-6, 1e-46])
def test_the_most_probable_token_is_always_kept(top_p: float) -> None:
    probs = probabilities(torch.tensor([[0.0, 5.0, 1.0]]), Sampling(temperature=1.0, top_p=top_p))
    assert probs.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.5, top_p=0.5, top_k=1)]
)
@pytest.mark.parametrize("logits", [[0.0, math.nan], [math.nan, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_without_a_distribution_are_refused(logits: list[float], sampling: Sampling) -> None:
    with pytest.raises(ValueError, match=r"^draft tiny: the (logits|probabilities) of row 1 are NaN"):
        probabilities(torch.tensor([[0.0, 1.0], logits]), sampling, "draft tiny")


def test_a_temperature_too_small_for_float32_is_refused() -> None:
    """The quotient overflows: once the vocabulary's last token, again and again."""
    with pytest.raises(
        ValueError, match=r"of row 0 are NaN or sum to nothing at temperature .* these settings too small"
    ):
        probabilities(torch.tensor([[3.0, 1.0, 2.0]]), Sampling(temperature=1e-40))


@pytest.mark.parametrize("array", [np.array, lambda rows: torch.tensor(rows)])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_verification_draws_nothing_from_what_is_no_distribution(array: Any, value: float) -> None:
    """Not the last token of the vocabulary, which the fallback of rounding would give."""
    p, q = array([[[0.5, 0.5], [value, value]]]), array([[[1.0, 0.0]]])
    tokens, uniforms = array([[0]]), array([[0.1, 0.9]])
    for verify in (lambda: verify_chain(p, q, tokens, uniforms), lambda: verify_tree(p, tokens, [[-1]], uniforms)):
        with pytest.raises(ValueError, match="probabilities of row 0 are NaN or sum to nothing"):
            verify()


def test_verification_is_the_same_on_torch_and_numpy() -> None:
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(7), (16, 5)), rng.dirichlet(np.ones(7), (16, 4))
    tokens, uniforms = rng.integers(0, 7, (16, 4)), rng.random((16, 5))
    parents = [[-1, 0, 1, 2]] * 16
    p_t, q_t, tokens_t, uniforms_t = map(torch.from_numpy, (p, q, tokens, uniforms))
    assert verify_chain(p, q, tokens, uniforms) == verify_chain(p_t, q_t, tokens_t, uniforms_t)
    assert verify_tree(p, tokens, parents, uniforms) == verify_tree(p_t, tokens_t, parents, uniforms_t)


def test_a_draw_is_the_same_whoever_adds() -> None:
    """By numpy, by torch, and where sums are made in any order; most words are impossible."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.ones(3000), 64) * (rng.random((64, 3000)) < 0.3)
    p[0], uniforms = 0, rng.random(64)
    uniforms[1:9] = 1 - 1e-16
    tokens = draw(p, uniforms)
    p_t, uniforms_t = torch.from_numpy(p), torch.from_numpy(uniforms)
    assert tokens.tolist() == draw(p_t, uniforms_t).tolist() == first_reached(p_t, uniforms_t).tolist()
    assert tokens[0] == -1
    assert all(p[row, token] > 0 for row, token in enumerate(tokens) if row)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_emitted_tokens_follow_the_distribution(temperature: float) -> None:
    """Chi-square over 200,000 first tokens of sampled chains, draft unlike the target; seed 11, false-alarm rate 1e-4 a case."""
    from scipy.stats import chisquare

    generator = torch.Generator().manual_seed(11)
    sampling = Sampling(temperature=temperature, top_p=0.9)
    p, q = (probabilities(torch.randn(1, 1, 12, generator=generator), sampling) for _ in range(2))
    num = 200_000
    tokens = torch.multinomial(q[0, 0], num, replacement=True, generator=generator)[:, None]
    uniforms = torch.rand(num, 2, generator=generator)
    verdict = verify_chain(p.expand(num, 2, -1), q.expand(num, 1, -1), tokens, uniforms)
    num_accepted = torch.tensor([len(path) for path in verdict.path])
    first = torch.where(num_accepted > 0, tokens[:, 0], torch.tensor(verdict.bonus))
    counts = torch.bincount(first, minlength=12).numpy()
    possible = p[0, 0].numpy() > 0
    assert counts[~possible].sum() == 0
    assert 0.05 < float(num_accepted.float().mean()) < 0.95
    expected = p[0, 0].double().numpy()[possible]
    assert chisquare(counts[possible], num * expected / expected.sum()).pvalue > 1e-4
