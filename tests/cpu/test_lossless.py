"""Losslessness of every kind of draft that the engine runs, by enumeration: whatever the drafter drafts, the law of the answers is the target's.

The whole engine runs, with the drafter of a folder, as `generate` runs it. Only chance is not left to chance: each uniform number that a
request uses is taken from every stretch of [0, 1) in which it has the same effect, so that the answers' probabilities are sums of products of
such stretches' lengths. What a number's stretches are is learned by listening, while it has some value, to what is drawn with it and against
which ratio a drafted token is tested; a number whose effect is not heard of leaves the law wrong, and the test fails.

The kinds are those of `kinds.KINDS`: one that is new is either run by the engine, and enumerated here, or refused.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foredraft import kinds
from foredraft.decode import drafters, proposals, verify
from foredraft.decode import engine as engines
from foredraft.decode.batch import Request
from foredraft.decode.drafters import DRAFTERS, drafter_for, machine_name, rule_for
from foredraft.decode.engine import Engine
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.proposals import Budget, Proposal
from foredraft.decode.sampling import Sampling, probabilities
from foredraft.models.decoder import Decoder, cut
from foredraft.models.draft_vocab import offsets
from foredraft.models.heads import HEADS, new_head, save_head
from foredraft.models.layers import ModelConfig
from foredraft.models.save import save
from foredraft.records import Confidence, DraftLengths, Provenance, StepCosts, StepRecord, write
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config

VOCAB, PROMPT, BATCH = 4, (1, 2, 3, 1, 2), 256
DRAFT_VOCAB = (0, 2, 3)  # by drafts of a vocabulary of their own
OPTIONS: dict[str, dict[str, Any]] = {"dflash": {"block": 3}, "dspark": {"block": 3, "rank": 4}}
Law = dict[tuple[int, ...], float]


def model(seed: int, layers: int) -> Decoder:
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 100.0,
        "hidden_act": "silu",
    }  # fmt: skip
    torch.manual_seed(seed)
    decoder = Decoder(
        from_config(config, name="tiny"), ModelConfig(norm_eps=1e-5, activation="silu", rope=rope_from_config(config))
    )
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return decoder.requires_grad_(False).eval()


TARGET = model(0, 4)


# The drafts, by kind


def folder_of(kind: kinds.Kind, own_vocab: bool, folder: Path, stored: torch.dtype = torch.float32) -> str:
    """A draft of the kind as it is asked for, written to `folder` where it has weights."""
    if kind.role == "lookup":
        return kind.name
    if kind.role == "lm":
        draft = model(1, 1)
        draft = cut(draft, offsets(DRAFT_VOCAB, VOCAB)) if own_vocab else draft
        save(draft.state_dict(), draft.shape, draft.config, folder, dtype=stored)
        return str(folder)
    layers = 1 if kind.name == kind.checkpoint else 2
    head = new_head(
        TARGET, kind.checkpoint, layers, DRAFT_VOCAB if own_vocab else None, **OPTIONS.get(kind.checkpoint, {})
    )
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_head(head, folder, dtype=stored)
    return str(folder)


def runs_here(kind: kinds.Kind) -> bool:
    """Whether the engine drafts with the kind, itself or as a deeper head of another kind."""
    return kinds.OURS in kinds.of_name(kind.checkpoint).engine_names


RUN = [kind for kind in kinds.KINDS if runs_here(kind)]
CHAIN, DYNAMIC, STATIC = Budget(2), Budget(2, 2, 4), Budget(2, tree=((-1, 0), (-1, 1), (1, 0), (0, 1)))
ALL, FEW = Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2)
NUCLEUS = Sampling(temperature=0.8, top_p=0.8)


class Case(NamedTuple):
    """A draft, in the way that it is asked for, and how requests are sampled, of `num` tokens each."""

    kind: kinds.Kind
    own_vocab: bool
    ending: str
    budget: Budget
    sampling: Sampling
    num: int

    def __str__(self) -> str:
        budget = {CHAIN: "chain", DYNAMIC: "tree", STATIC: "static-tree"}[self.budget]
        settings = {ALL: "all", FEW: "top-k", NUCLEUS: "top-p"}[self.sampling]
        return f"{self.kind.name}{'-cut' * self.own_vocab}{self.ending}-{budget}-{settings}"


BEFORE = f"{kinds.BESIDE}:2,2"  # a look-up before the draft, which finds nothing in some steps
FEWEST = ("", CHAIN, FEW, 2)
ALONE = ("", CHAIN, ALL, 2), ("", CHAIN, NUCLEUS, 2)
DRAFTED = (  # by what a look-up does not do: trees, confidence, a look-up before it
    ("", DYNAMIC, ALL, 2), ("", STATIC, FEW, 3), (BEFORE, CHAIN, FEW, 3), (BEFORE, DYNAMIC, NUCLEUS, 3), (kinds.ADAPTIVE, CHAIN, FEW, 2),
)  # fmt: skip
CASES = [
    Case(kind, own_vocab, *way)
    for kind in RUN
    for own_vocab in ((False,) if kind.role == "lookup" else (False, True))
    for way in (ALONE if kind.role == "lookup" else ALONE + DRAFTED)
]


# Chance, enumerated


class Chance:
    """The uniforms of a request: those given, then others that no request has, with the places where what they do changes."""

    def __init__(self, given: list[float], listener: "Listener") -> None:
        self.values, self.listener, self.at = list(given), listener, 0
        self.cuts: dict[float, set[float]] = {}
        self.sequence: Any = None

    def uniforms(self, num: int) -> Tensor:
        while len(self.values) < self.at + num:
            value = self.listener.new_value(self)
            self.values.append(value)
            self.cuts[value] = set()
        self.at += num
        return torch.tensor(self.values[self.at - num : self.at], dtype=torch.float64)

    def get_state(self) -> int:
        return self.at

    def set_state(self, at: int) -> None:
        self.at = at

    @property
    def room(self) -> int:
        """Tokens that the answer still takes."""
        return self.sequence.request.max_tokens - len(self.sequence.answer)

    def stretches(self, value: float) -> list[tuple[float, float]]:
        edges = sorted({0.0, 1.0, *(cut for cut in self.cuts[value] if 0 < cut < 1)})
        return [(low, high) for low, high in pairwise(edges) if high - low > 1e-12]


class Listener:
    """Hears what is drawn, and against what a drafted token is tested, with the uniforms that no request has been given. `place`: how many
    tokens of a step have been drawn. What would be the answer's after its end is left out.
    """

    def __init__(self) -> None:
        self.of_value: dict[float, Chance] = {}
        self.place = 0

    def new_value(self, chance: Chance) -> float:
        value = ((len(self.of_value) + 1) * 0.6180339887498949) % 1.0
        self.of_value[value] = chance
        return value

    def hear(self, place: int, uniform: float, cuts: list[float]) -> None:
        chance = self.of_value.get(uniform)
        if chance and place < chance.room:
            chance.cuts[uniform].update(cuts)

    def draw(self, draw: Any, p_BV: Tensor, uniforms_B: Tensor) -> Tensor:
        for uniform, cuts in zip(uniforms_B.tolist(), p_BV.cumsum(-1).tolist(), strict=True):
            self.hear(self.place, uniform, cuts)
        self.place += 1
        return draw(p_BV, uniforms_B)

    def verify_tree(self, verify_tree: Any, p_BNV: Tensor, tokens: Tensor, parents: Any, uniforms_BD: Tensor) -> Any:
        verdict, self.place = verify_tree(p_BNV, tokens, parents, uniforms_BD), 0
        for cuts, path, uniforms in zip(p_BNV.cumsum(-1).tolist(), verdict.path, uniforms_BD.tolist(), strict=True):
            for place, node in enumerate([0, *(node + 1 for node in path)]):
                self.hear(place, uniforms[place], cuts[node])
        return verdict

    def verify_by_level(
        self, verify_by_level: Any, p_of: Any, tokens: Tensor, parents: Any, uniforms_BD: Tensor
    ) -> Any:
        levels = count()

        def heard(rows: list[int], nodes: list[int]) -> Tensor:
            p_RV, level = p_of(rows, nodes), next(levels)
            for row, cuts in zip(rows, p_RV.cumsum(-1).tolist(), strict=True):
                self.hear(level, float(uniforms_BD[row, level]), cuts)
            return p_RV

        verdict, self.place = verify_by_level(heard, tokens, parents, uniforms_BD), 0
        return verdict

    def verify_chain(self, verify_chain: Any, p_BNV: Tensor, q_BKV: Tensor, tokens: Tensor, uniforms_BD: Tensor) -> Any:
        verdict, self.place = verify_chain(p_BNV, q_BKV, tokens, uniforms_BD), 0
        rows, nums = torch.arange(len(tokens)), torch.tensor(list(map(len, verdict.path)))
        none_left = functional.pad(q_BKV, (0, 0, 0, 1))  # behind the last drafted token p itself is drawn from
        ends = verify.residual(p_BNV[rows, nums], none_left[rows, nums]).cumsum(-1).tolist()
        ratios = (p_BNV[:, :-1] / q_BKV).gather(-1, tokens[..., None])[..., 0].tolist()
        for num, cuts, ratio, uniforms in zip(nums.tolist(), ends, ratios, uniforms_BD.tolist(), strict=True):
            for place, uniform in enumerate(uniforms[:-1][: num + 1]):
                self.hear(place, uniform, [ratio[place]])
            self.hear(num, uniforms[-1], cuts)
        return verdict


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """One that hears every drafter and verifier."""
    listener = Listener()
    rooms = [module for name, module in sys.modules.items() if name.startswith("foredraft.decode.")]
    for name in ("draw", "verify_tree", "verify_by_level", "verify_chain"):
        spy = partial(getattr(listener, name), getattr(verify, name))
        for room in rooms:
            if hasattr(room, name) and (room is not verify or name != "draw"):  # by which the verifiers draw
                monkeypatch.setattr(room, name, spy)
    return listener


def law_of(engine: Engine, request: Request, listener: Listener) -> tuple[Law, list[StepRecord]]:
    """The law of the answers, and the steps taken."""
    law: Law = defaultdict(float)
    open_ends, steps = [(list[float](), 1.0)], list[StepRecord]()
    while open_ends:
        listener.of_value.clear()
        chances = [Chance(given, listener) for given, _ in open_ends]
        for chance in chances:
            chance.sequence = engine.add(request)
            chance.sequence.uniforms, chance.sequence.generator = chance.uniforms, chance
        steps += engine.run()
        more = []
        for chance, (given, weight) in zip(chances, open_ends, strict=True):
            for i, value in list(enumerate(chance.values))[len(given) :]:
                stretches = chance.stretches(value)
                others = [(low, high) for low, high in stretches if not low <= value < high]
                more += [([*chance.values[:i], (low + high) / 2], weight * (high - low)) for low, high in others]
                weight *= next(high - low for low, high in stretches if low <= value < high)
            law[tuple(chance.sequence.answer)] += weight
        open_ends = more
    return law, steps


@cache
def by_target(sampling: Sampling, num: int) -> Law:
    """The law of answers without a draft, of whole passes."""
    law: Law = {(): 1.0}
    for _ in range(num):
        texts = torch.tensor([[*PROMPT, *answer] for answer in law])
        probs = probabilities(TARGET(texts).logits_BTV[:, -1], sampling).double()
        law = {
            (*answer, token): weight * p
            for (answer, weight), row in zip(law.items(), probs.tolist(), strict=True)
            for token, p in enumerate(row)
            if p
        }
    return law


def distance(law: Law, other: Law) -> float:
    return max(abs(law.get(answer, 0.0) - other.get(answer, 0.0)) for answer in law | other)


class Told:
    """Lengths that never end a chain; what each step's chains were told."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []

    def begin(self, temperatures: list[float], most: int) -> "Told":
        self.lengths = [most] * len(temperatures)
        self.steps.append([])
        return self

    def tell(self, confidence_B: list[float]) -> bool:
        self.steps[-1] += confidence_B
        return len(self.steps[-1]) < self.lengths[0]

    def threshold(self) -> float:
        """The confidence by which chains end at as many different lengths as may be."""

        def lengths(least: float) -> list[int]:
            return [len(list(takewhile(lambda told: told > least, step))) for step in self.steps]

        confidences = sorted({told for step in self.steps for told in step})
        return max(
            (sum(pair) / 2 for pair in pairwise(confidences)),
            key=lambda least: (len({*lengths(least)}), sum(lengths(least))),
        )


STEEP = 100.0  # so that a confidence means yes or no


def write_lengths(engine: Engine, draft: str, sampling: Sampling) -> None:
    """What the rule goes by: a longer chain pays where the draft is surer than it usually is."""
    told: Any = Told()
    engine.lengths = told
    engine.generate([Request(PROMPT, 2, msgspec.structs.replace(sampling, seed=seed)) for seed in range(9)])
    confidence = Confidence(
        temperature=1.0, here=(-STEEP * told.threshold(), STEEP, 0.0, 0.0), ahead=(9.0, 0.0, 0.0, 0.0), num=1, survival=(0.5,), shared_sd=0.0,
        single_sd=0.0, rates={1: 1.0}, fixed={1: (0.9, 0.9, 0.9)},
    )  # fmt: skip
    costs = StepCosts({num: 1 + 0.3 * num for num in range(1, 9)}, {1: (0.0, 0.0)})
    measured = DraftLengths(
        draft="d", method="m", target="t", lookahead=2, machine=machine_name(TARGET.device), dtype="float32", threads=torch.get_num_threads(),
        confidences=(confidence,), costs=costs, provenance=Provenance(source="test"),
    )  # fmt: skip
    write(Path(draft) / kinds.LENGTHS, measured)


def engine_of(case: Case, folder: Path, stored: torch.dtype = torch.float32) -> Engine:
    folder_or_name = folder_of(case.kind, case.own_vocab, folder, stored)
    adaptive, draft = case.ending == kinds.ADAPTIVE, folder_or_name + case.ending
    batch = 1 if adaptive else BATCH  # lengths hang on what else runs
    engine = Engine(
        TARGET, drafter_for(TARGET, draft, batch, 32), lookahead=case.budget, max_batch=batch, max_context=32
    )
    if adaptive:
        write_lengths(engine, folder_or_name, case.sampling)
        engine.lengths = rule_for(TARGET, draft)
    return engine


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_law_of_answers_is_the_targets(case: Case, listener: Listener, tmp_path: Path):
    engine = engine_of(case, tmp_path)
    law, steps = law_of(engine, Request(PROMPT, case.num, case.sampling), listener)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    assert distance(law, by_target(case.sampling, case.num)) < 1e-6
    accepted, drafted = (sum(map(sum, of)) for of in ([s.accepted for s in steps], [s.drafted for s in steps]))
    assert 0 < accepted < drafted
    if case.ending == BEFORE:
        assert {any(step.looked_up) for step in steps} == {True, False}
    if case.ending == kinds.ADAPTIVE:
        assert len({length for step in steps for length in step.drafted}) > 1


@pytest.mark.parametrize("kind", [kind for kind in RUN if kind.role != "lookup"], ids=lambda kind: kind.name)
def test_a_draft_in_bfloat16_beside_a_target_in_float32(
    kind: kinds.Kind, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A chain, drawn from what the draft says in its own type."""
    monkeypatch.setattr(drafters, "_narrowed", lambda draft, target: draft.to(torch.bfloat16))
    case = Case(kind, True, "", CHAIN, ALL, 2)
    engine = engine_of(case, tmp_path)
    drafter: Any = engine.drafter
    assert drafter.cache.kv.dtype == torch.bfloat16
    law, steps = law_of(engine, Request(PROMPT, case.num, case.sampling), listener)
    assert distance(law, by_target(case.sampling, case.num)) < 1e-6
    assert sum(sum(step.accepted) for step in steps) > 0


@pytest.mark.parametrize("kind", [kind for kind in RUN if kind.role != "lookup"], ids=lambda kind: kind.name)
def test_a_draft_in_eight_bits(kind: kinds.Kind, listener: Listener, tmp_path: Path):
    case = Case(kind, True, "", CHAIN, ALL, 2)
    engine = engine_of(case, tmp_path, torch.int8)
    drafter: Any = engine.drafter
    assert (drafter.model if kind.role == "lm" else drafter.head).in_eight
    law, steps = law_of(engine, Request(PROMPT, case.num, case.sampling), listener)
    assert distance(law, by_target(case.sampling, case.num)) < 1e-6
    assert sum(sum(step.accepted) for step in steps) > 0


def test_kinds_that_are_not_enumerated_are_not_run():
    assert {kind.role for kind in RUN} == set(DRAFTERS)
    assert {kind.checkpoint for kind in RUN if kind.role == "head"} == set(HEADS)
    others = [kind for kind in kinds.KINDS if kind not in RUN and kind is not kinds.NONE]
    assert {kind.role for kind in others} == {"head"}
    for kind in others:
        with pytest.raises(ValueError, match="kind must be one of"):
            new_head(TARGET, kind.name)


def refused_from_p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "residual", lambda p, q: p)


def first_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of the root is accepted whatever was drawn."""
    walk = verify._walk

    def taking(drawn: Any, tokens: Tensor, parents: Any) -> verify.Verdict:
        first = tokens[:, 0].tolist()

        def first_at_root(rows: list[int], nodes: list[int], level: int) -> list[int]:
            found = drawn(rows, nodes, level)
            return [first[row] for row in rows] if level == 0 else found

        return walk(first_at_root, tokens, parents)

    monkeypatch.setattr(verify, "_walk", taking)


def dropped_when_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths that hang on the token whose place they decide on: an improbable one is not verified."""
    shortened = proposals.shortened

    def looked_at(proposal: Proposal, lengths: list[int]) -> Proposal:
        assert proposal.q is not None
        probs = proposal.q[range(len(lengths)), 0, proposal.tokens[:, 0]].tolist()
        return shortened(proposal, [num if prob > 0.5 else 0 for num, prob in zip(lengths, probs, strict=True)])

    monkeypatch.setattr(engines, "shortened", looked_at)


def stated_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A q that is not what tokens were drawn from."""
    monkeypatch.setattr(ModelDrafter, "_kept", lambda self, probs: (probs + 1) / (probs + 1).sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("fault", "kind", "way"),
    [
        (refused_from_p, kinds.LM, FEWEST), (refused_from_p, kinds.DSPARK, FEWEST), (first_taken, kinds.EAGLE3, DRAFTED[1]),
        (dropped_when_seen, kinds.LM, DRAFTED[-1]), (stated_flat, kinds.LM, FEWEST),
    ],
)  # fmt: skip
def test_what_is_not_lossless_is_noticed(
    fault: Callable[[pytest.MonkeyPatch], None], kind: kinds.Kind, way: Any, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    fault(monkeypatch)
    case = Case(kind, False, *way)
    law, _ = law_of(engine_of(case, tmp_path), Request(PROMPT, case.num, case.sampling), listener)
    assert distance(law, by_target(case.sampling, case.num)) > 1e-3
