"""What more training tokens and layers bring a head: from own runs or published series, and how far it may be carried."""

from typing import Any

import numpy as np
import pytest

from foredraft import kinds
from foredraft.laws.fit import far_outside, fit, predict, run_sd
from foredraft.laws.forms import LAW_1_1, TOKENS_POWER
from foredraft.machines import machine
from foredraft.plan import dials
from foredraft.plan.candidate import Candidate
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.heads import REFERENCE_TOKENS
from foredraft.records import Observation, Provenance
from foredraft.shapes import shape

SOURCE = Provenance(source="test")


def heads(tokens: list[float], taus: list[float], **fields: Any) -> list[Observation]:
    base: dict[str, Any] = {"target": "T", "method": "eagle3", "provenance": SOURCE} | fields
    return [
        Observation(run=f"{i}", draft_tokens=at, tokens_per_step=tau, **base)
        for i, (at, tau) in enumerate(zip(tokens, taus, strict=True))
    ]


def test_figure_1_is_better_told_by_the_saturating_form() -> None:
    """5.21, 5.59, 5.91 at 1, 2, 4 times the data foretell 6.13 at 8: log-linear misses by 0.14, the power law by 0.01."""
    law = dials.tokens_law(())
    assert law.law == "tokens_power"
    assert law.held_out_error is not None
    assert law.held_out_error < 0.02
    assert law.rivals["law_1_1"] > 0.1


def test_own_runs_that_are_straight_in_log_tokens_are_told_by_law_1_1() -> None:
    tokens = [1e8, 2e8, 4e8, 8e8, 1.6e9]
    straight = (1 + 0.8 * np.log10(tokens) - 5).tolist()
    assert dials.tokens_law(heads(tokens, straight)).law == "law_1_1"


def test_rows_that_do_not_compare_are_not_pooled() -> None:
    """The pool with the most budgets speaks; one of two budgets does not, and published rows take its place."""
    tokens = [1e8, 2e8, 4e8, 8e8]
    rows = heads(tokens, [2.0, 2.5, 2.9, 3.2]) + heads([1e8, 2e8], [4.0, 4.1], dataset="other")
    assert dials.tokens_law(rows).num_observations == 4
    assert dials.tokens_law(rows[4:]) == dials.tokens_law(())


def test_a_law_widens_by_the_octave_beyond_its_data() -> None:
    rng = np.random.default_rng(0)
    tokens = [1e8, 2e8, 4e8, 8e8, 1.6e9]
    law = fit(
        TOKENS_POWER, heads(tokens, (6 - 2000 * np.array(tokens) ** -0.4 + rng.normal(0, 0.05, 5)).tolist()), draws=50
    )
    inside, near, far, farther = (run_sd(law, draft_tokens=1.6e9 * 2.0**n) for n in (0, 1, 3, 6))
    assert inside <= near < far < farther
    assert farther == pytest.approx(2 * far)
    assert not far_outside(law, draft_tokens=3.2e9)
    assert far_outside(law, draft_tokens=3.3e9) == ("draft_tokens",)
    assert far_outside(law, draft_tokens=4e7) == ("draft_tokens",)
    beyond = [predict(law, new_run=True, draft_tokens=at) for at in (3.2e9, 1.2e10)]
    assert beyond[1].high - beyond[1].low > 2 * (beyond[0].high - beyond[0].low)


def test_a_law_of_few_tokens_is_warned_of_where_the_known_curve_had_many() -> None:
    rows = heads([1e8, 2e8, 4e8], [2.0, 2.4, 2.7])
    small = heads([1e6, 2e6, 4e6, 8e6], [2.0, 2.4, 2.7, 2.9])
    law = fit(LAW_1_1, rows, draws=50)
    assert dials.tokens_outside(law, 4e8, REFERENCE_TOKENS) == ()
    assert dials.tokens_outside(dials.tokens_law(small), 8e6, REFERENCE_TOKENS) == ("draft_tokens",)


def test_heads_to_train_carry_the_warning() -> None:
    """A known curve of 8e8 tokens is an octave from the data's end at 4e8, and more than that at 2.4e8."""

    def trained(rows: list[Observation]) -> list[Candidate]:
        weighed, _ = candidates(Basis(shape("Llama-3.1-8B"), machine("H100"), rows, 0.0))
        return [draft for draft in weighed if draft.choice.method == "eagle3" and draft.choice.draft_tokens]

    near = trained(heads([1e8, 2e8, 4e8], [2.0, 2.6, 3.0]))
    far = trained(heads([1e8, 1.4e8, 2e8, 2.4e8], [2.0, 2.6, 3.0, 3.2]))
    assert near
    assert far
    assert not any("draft_tokens" in draft.extrapolates for draft in near)
    assert all("draft_tokens" in draft.extrapolates for draft in far)
    assert all(any("more than an octave beyond its data" in note for note in draft.notes) for draft in far)


def test_deeper_heads_are_weighed_without_own_runs() -> None:
    basis = Basis(shape("Llama-3.1-8B"), machine("H100"), (), 0.0)
    choices = [candidate.choice for candidate in candidates(basis)[0]]
    depths = {choice.num_layers for choice in choices if choice.method == "eagle3" and choice.draft_tokens}
    assert depths == set(dials.DEPTHS)
    gains = dials.layer_gains(kinds.EAGLE3, (), 50)
    assert (gains[1] == 1).all()
    assert np.median(gains[2]) < np.median(gains[4])
    assert np.ptp(gains[2]) < np.ptp(gains[4])
