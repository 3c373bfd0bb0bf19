"""The law that is sampled, against transformers' own warpers; and verification on torch tensors."""

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
def test_law_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(6, 1, dtype=torch.long), logits.clone()).softmax(-1)  # type: ignore[arg-type]
    found = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(found, expected, atol=1e-6)


def test_temperature_zero_is_the_first_of_the_largest() -> None:
    assert probabilities(torch.tensor([[1.0, 3.0, 3.0]]), Sampling()).tolist() == [[0.0, 1.0, 0.0]]


def test_the_most_probable_token_is_always_kept() -> None:
    law = probabilities(torch.tensor([[0.0, 5.0, 1.0]]), Sampling(temperature=1.0, top_p=1e-6))
    assert law.tolist() == [[0.0, 1.0, 0.0]]


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


def test_nan_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        probabilities(torch.tensor([[0.0, float("nan")]]), Sampling(temperature=1.0))


def test_verification_is_the_same_on_torch_and_numpy() -> None:
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(7), (16, 5)), rng.dirichlet(np.ones(7), (16, 4))
    tokens, uniforms = rng.integers(0, 7, (16, 4)), rng.random((16, 5))
    parents = [[-1, 0, 1, 2]] * 16
    p_t, q_t, tokens_t, uniforms_t = map(torch.from_numpy, (p, q, tokens, uniforms))
    assert verify_chain(p, q, tokens, uniforms) == verify_chain(p_t, q_t, tokens_t, uniforms_t)
    assert verify_tree(p, tokens, parents, uniforms) == verify_tree(p_t, tokens_t, parents, uniforms_t)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_emitted_tokens_follow_the_law(temperature: float) -> None:
    """Chi-square over 200,000 first tokens of sampled chains, draft unlike the target; seed 11, false-alarm rate 1e-4 a case."""
    from scipy.stats import chisquare

    generator = torch.Generator().manual_seed(11)
    sampling = Sampling(temperature=temperature, top_p=0.9)
    p, q = (probabilities(torch.randn(1, 1, 12, generator=generator), sampling) for _ in range(2))
    num = 200_000
    tokens = torch.multinomial(q[0, 0], num, replacement=True, generator=generator)[:, None]
    uniforms = torch.rand(num, 2, generator=generator)
    verdict = verify_chain(p.expand(num, 2, -1), q.expand(num, 1, -1), tokens, uniforms)
    kept = torch.tensor([len(path) for path in verdict.path])
    first = torch.where(kept > 0, tokens[:, 0], torch.tensor(verdict.bonus))
    counts = torch.bincount(first, minlength=12).numpy()
    possible = p[0, 0].numpy() > 0
    assert counts[~possible].sum() == 0
    assert 0.05 < float(kept.float().mean()) < 0.95
    expected = p[0, 0].double().numpy()[possible]
    assert chisquare(counts[possible], num * expected / expected.sum()).pvalue > 1e-4
