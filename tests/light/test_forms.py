"""Every law through one contract, and what is published about them."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft.laws import forms
from foredraft.laws.law import IDENTITY, LOG_MINUS_LOG, LOGIT, Law, Link
from foredraft.records import Observation, Provenance

POINT = {
    "draft_params": [1e8, 1e9],
    "draft_tokens": [1e9, 1e11],
    "target_params": [8e9, 7e10],
    "target_tokens": [1e12, 1.5e13],
    "draft_layers": [1, 4],
    "tree_nodes": [0, 60],
    "draft_perplexity": [12.0, 20.0],
    "target_perplexity": [8.0, 10.0],
}
PARAMETERS = {
    "E": 1.7,
    "A": 400.0,
    "B": 90.0,
    "a": 0.33,
    "b": 0.28,
    "tau_inf": 6.0,
    "A1": -0.006,
    "B1": 0.01,
    "C1": 0.6,
}


def parameters_of(law: Law) -> dict[str, float]:
    values = {name: PARAMETERS.get(name, 0.1 * (i + 1)) for i, name in enumerate(law.parameters)}
    return values | {"tau_inf": 6.0, "B": 3.0} if law is forms.NODES_SATURATING else values


@pytest.mark.parametrize("law", forms.laws().values(), ids=lambda law: law.name)
def test_contract(law: Law) -> None:
    """Shapes, gradient against central differences, fields of Observation, and a source, for every law."""
    parameters, inputs = parameters_of(law), {name: POINT[name] for name in law.inputs}
    assert {law.output, law.leading, *law.inputs, *law.pool, *law.distinct} <= set(Observation.__struct_fields__)
    assert law.leading in law.inputs
    assert law.source
    assert law.formula
    assert set(law.bounds) <= set(law.parameters)
    assert set(law.shapes) <= set(law.bounds)
    value, theta = law.predict(parameters, **inputs), law.theta(parameters)
    assert value.shape == (2,)
    assert law.predict(np.stack([theta] * 3), **inputs).shape == (3, 2)
    assert law.predict(parameters, **{name: values[0] for name, values in inputs.items()}).shape == ()
    eta, slopes = law.linear_gradient(law.features(inputs), theta[None])
    gradient = law.link.slope(eta[0])[:, None] * slopes[0]
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-5 * abs(theta[i])
        numeric = (law.predict(theta + step, **inputs) - law.predict(theta - step, **inputs)) / (2 * step[i])
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-4, atol=1e-9 * abs(value).max())
    assert forms.law_named(law.name) is law


@pytest.mark.parametrize("link", [LOGIT, LOG_MINUS_LOG, IDENTITY], ids=lambda link: link.name)
def test_links_invert(link: Link) -> None:
    y = np.array([0.05, 0.5, 0.97])
    eta = link.forward(y)
    np.testing.assert_allclose(link.inverse(eta), y)
    np.testing.assert_allclose(link.slope(eta), (link.inverse(eta + 1e-6) - link.inverse(eta - 1e-6)) / 2e-6, rtol=1e-6)


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="law_1_1 takes draft_tokens; got nothing"):
        forms.LAW_1_1.predict([1.0, 1.0])
    with pytest.raises(ValueError, match="draft_tokens must be positive and finite"):
        forms.LAW_1_1.predict([1.0, 1.0], draft_tokens=float("nan"))
    with pytest.raises(ValueError, match="has parameters c0, c1; got c0"):
        forms.LAW_1_1.predict({"c0": 1.0}, draft_tokens=1e9)
    with pytest.raises(ValueError, match="law must be one of"):
        forms.law_named("law_9")


def test_published_loss_laws() -> None:
    """Every set gives the loss its source's formula gives, in whatever units it is printed; text sets agree to 5 %."""
    laws = forms.loss_laws()
    assert float(laws["hoffmann_rounded"].loss(7e10, 1.4e12)) == pytest.approx(
        1.69 + 406.4 / 7e10**0.34 + 410.7 / 1.4e12**0.28
    )
    huber = laws["scalefit_huber"]
    assert float(huber.loss(5e8, 2e10)) == pytest.approx(1.8267 + 3.7066 / 500**0.324 + 1.0386 / 20**0.408)
    assert float(huber.perplexity(5e8, 2e10)) == pytest.approx(math.exp(huber.loss(5e8, 2e10)))
    assert set(forms.TEXT_LOSS_LAWS) == {name for name, law in laws.items() if law.text}
    losses = [float(laws[name].loss(1e9, 1e11)) for name in forms.TEXT_LOSS_LAWS]
    assert max(losses) / min(losses) < 1.05
    assert not laws["soda_audio"].text


@pytest.mark.parametrize("name", forms.TEXT_LOSS_LAWS)
def test_accept_gap_is_one_for_the_target_itself(name: str) -> None:
    law, parameters = forms.accept_gap(name), {"c0": -0.5, "c1": 0.8}
    same = {"draft_params": 8e9, "draft_tokens": 1e12, "target_params": 8e9, "target_tokens": 1e12}
    assert float(law.predict(parameters, **same)) == 1.0
    sizes = law.predict(parameters, **(same | {"draft_params": np.array([1e8, 1e9, 4e9])}))
    assert (np.diff(sizes) > 0).all()
    assert (sizes < 1).all()


def test_refusals_name_the_field() -> None:
    base: dict[str, Any] = {
        "target": "T",
        "method": "draft_model",
        "provenance": Provenance(source="test"),
        "accept_prob": 0.7,
    }
    mixed = Observation(run="r1", target_tokenizer="llama", draft_tokenizer="opt", **base)
    with pytest.raises(
        ValueError, match="one named tokenizer, run r1 has target_tokenizer llama and draft_tokenizer opt"
    ):
        forms.ACCEPT_PLANE.refuse([mixed])
    row = Observation(run="a", **base)
    two = [row, msgspec.structs.replace(row, target="U")]
    with pytest.raises(ValueError, match=r"law_1_1 must not pool 2 values of target \(T, U\): fit each apart"):
        forms.LAW_1_1.refuse(two)
    with pytest.raises(ValueError, match="loss_law must be one of"):
        forms.accept_gap("nobody")
