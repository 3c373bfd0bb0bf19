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

from foredraft.decode.sampling import Sampling, probabilities
from foredraft.decode.verify import verify_chain, verify_tree


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


def test_temperature_zero_is_the_first_of_the_largest() -> None:
    assert probabilities(torch.tensor([[1.0, 3.0, 3.0]]), Sampling()).tolist() == [[0.0, 1.0, 0.0]]


def test_the_most_probable_token_is_always_kept() -> None:
    probs = probabilities(torch.tensor([[0.0, 5.0, 1.0]]), Sampling(temperature=1.0, top_p=1e-6))
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


@pytest.mark.parametrize("sampling", [Sampling(temperature=1e-40), Sampling(temperature=1.0, top_p=1e-46)])
def test_settings_too_small_for_float32_are_refused(sampling: Sampling) -> None:
    """The quotient overflows, or no mass is below the border: once the vocabulary's last token, again and again."""
    with pytest.raises(
        ValueError, match=r"of row 0 are NaN or sum to nothing at temperature .* these settings too small"
    ):
        probabilities(torch.tensor([[3.0, 1.0, 2.0]]), sampling)


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
