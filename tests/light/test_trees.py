"""The tail of a draft's trees: a planted one is read off its trees, and a plan that was given them says so."""

import numpy as np
import pytest

from foredraft.plan import study
from foredraft.plan.trees import PUBLISHED, RANGE, Tree, fitted, grown
from foredraft.records import Observation, Provenance
from foredraft.shapes import shape

LLAMA = shape("Llama-3.1-8B")
ACCEPT = {"a": np.array([0.5, 0.45, 0.4, 0.4, 0.4]), "b": np.array([0.7, 0.65, 0.6, 0.6, 0.6])}
DIALS = (3, 2, 6), (5, 4, 16), (5, 8, 32)


def trees(accept: np.ndarray, tail: float) -> list[Tree]:
    return [Tree(d, k, w, grown(accept[:d], k, tail, [w])[0]) for d, k, w in DIALS]


@pytest.mark.parametrize("tail", [0.3, 0.9, 2.5])
def test_a_planted_tail_is_read_off_its_trees(tail: float):
    planted_tail = fitted({name: (accept, trees(accept, tail)) for name, accept in ACCEPT.items()}, "a test")
    assert planted_tail is not None
    assert planted_tail.middle == pytest.approx(tail, rel=0.01)
    assert planted_tail.sd == pytest.approx(0.05)


def test_trees_that_no_tail_gives_stand_at_its_ends():
    accept = ACCEPT["a"]
    ends = {"none": [Tree(3, 2, 6, 1.0)], "all": [Tree(3, 2, 6, 4.0)]}
    for name, end in zip(ends, RANGE, strict=True):
        tail = fitted({name: (accept, ends[name])}, "a test")
        assert tail is not None
        assert tail.middle == pytest.approx(end)
    assert fitted({"deep": (accept, [Tree(9, 2, 20, 2.0)])}, "a test") is None


def test_a_study_with_trees_has_a_tail_of_its_own():
    base = {
        "target": LLAMA.name,
        "method": "eagle",
        "provenance": Provenance(source="own"),
        "temperature": 0.0,
        "dataset": "d",
    }
    rows = []
    for name, accept in ACCEPT.items():
        of = base | {"run": name, "draft": name, "draft_tokens": 1e8 * len(rows) + 1e8, "draft_layers": 1}
        chain = {k: 1 + float(np.cumprod(accept)[:k].sum()) for k in (1, 2, 3, 4, 5)}
        rows += [Observation(**of, lookahead=k, topk=1, tokens_per_step=tau) for k, tau in chain.items()]
        rows += [
            Observation(**of, lookahead=t.depth, topk=t.topk, tree_nodes=t.nodes, tokens_per_step=t.tokens_per_step)
            for t in trees(accept, 0.6)
        ]
    tree_study = study.study_of(LLAMA, tuple(rows), 0.0, "head")
    assert tree_study is not None
    assert tree_study.tail.middle == pytest.approx(0.6, rel=0.1)
    assert tree_study.tail.source == "6 own trees of 2 drafts"
    chains = study.study_of(LLAMA, tuple(row for row in rows if row.topk == 1), 0.0, "head")
    assert chains is not None
    assert chains.tail == PUBLISHED
