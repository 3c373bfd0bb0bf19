"""The engine's claims: lossless for every drafter, batch and schedule; batches equal requests alone; refusals with numbers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from foredraft.decode.batch import Request, Sequence
from foredraft.decode.drafter import Drafter
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.layout import ancestors
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramDrafter, NGramIndex
from foredraft.decode.proposals import PAD, Budget, Proposal
from foredraft.decode.sampling import Sampling, probabilities
from foredraft.models.decoder import Decoder, cut
from foredraft.models.draft_head import TokenHead
from foredraft.models.draft_vocab import offsets
from foredraft.models.forward import Output
from foredraft.models.graphs import rounded
from foredraft.models.heads import new_head
from foredraft.models.layers import ModelConfig, grouped_attention, grouped_bias
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config

VOCAB, ROWS = 64, 64  # rows: of the largest batch


def model(seed: int, layers: int = 2, hidden: int = 32) -> Decoder:
    """A small random Llama whose laws are sharp enough to be predictable in part."""
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu",
    }  # fmt: skip
    shape = from_config(config, name=f"tiny-{seed}")
    torch.manual_seed(seed)
    decoder = Decoder(shape, ModelConfig(norm_eps=1e-5, activation="silu", rope=rope_from_config(config)))
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return decoder.requires_grad_(False).eval()


TARGET = model(0)
OTHER = model(1, layers=1)


def blended(share: float) -> Decoder:
    """A draft near the target: its weights moved by noise, so that some tokens are accepted and some refused."""
    near = model(0)
    generator = torch.Generator().manual_seed(5)
    for parameter in near.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * share * parameter.abs().mean())
    return near


class Tree:
    """A deterministic draft in a tree: the two most probable next tokens of a model, and two below each."""

    name = "tree"
    reads: tuple[int, ...] = ()
    cache = None
    trees = True

    def __init__(self, draft: Decoder) -> None:
        self.draft, self.seen = draft, {}

    def admit(self, row: int, sequence: object) -> None: ...

    def move(self, source: int, row: int, num: int) -> None: ...

    def propose(self, running, budget: Budget, lengths=None) -> Proposal:
        tokens, parents = [], [-1, -1, 0, 0, 1, PAD]
        for sequence in running:
            first = self._top(sequence.tokens)
            tokens.append(
                [*first, *self._top([*sequence.tokens, first[0]]), self._top([*sequence.tokens, first[1]])[0], 0]
            )
        return Proposal(torch.tensor(tokens), [parents] * len(running))

    def _top(self, tokens: list[int]) -> list[int]:
        if (key := tuple(tokens)) not in self.seen:
            self.seen[key] = self.draft(torch.tensor([tokens])).logits_BTV[0, -1].topk(2).indices.tolist()
        return self.seen[key]


def lm(draft: Decoder) -> Drafter:
    return ModelDrafter(draft, draft.new_cache(ROWS, 300))


def trained(kind: str, layers: int = 1, steps: int = 60) -> TokenHead:
    """A head that has learned a little of its target's greedy answers here: enough for some tokens to be accepted."""
    head = new_head(TARGET, kind, layers, feature_layers=(0, 1, 2) if kind == "eagle3" else None)
    assert isinstance(head, TokenHead)
    texts = [torch.tensor([[*prompt, *plain(prompt)]]) for prompt in PROMPTS]
    joined = [torch.cat(TARGET(text, hidden_states=head.feature_layers).hidden_states, -1) for text in texts]
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(steps):
        outputs = [head(t[:, 1:-1], head.combine(f[:, :-2])).logits_BTV[0] for t, f in zip(texts, joined, strict=True)]
        loss = torch.nn.functional.cross_entropy(torch.cat(outputs), torch.cat([text[0, 2:] for text in texts]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.requires_grad_(False).eval()


@cache
def a_head(kind: str, layers: int = 1) -> TokenHead:
    return trained(kind, layers)


def headed(kind: str, layers: int = 1) -> HeadDrafter:
    head = a_head(kind, layers)
    return HeadDrafter(head, head.new_cache(ROWS, 300))


FREQUENT = tuple(range(0, VOCAB, 2))  # that drafts of a vocabulary of their own may draft


def cut_head() -> HeadDrafter:
    """The EAGLE head of these tests over half the vocabulary."""
    head = new_head(TARGET, "eagle", 1, FREQUENT)
    assert isinstance(head, TokenHead)
    head.load_state_dict(dict(head.state_dict()) | dict(a_head("eagle").state_dict()))
    return HeadDrafter(head.requires_grad_(False).eval(), head.new_cache(8, 300))


def cut_lm() -> ModelDrafter:
    model = cut(blended(0.1), offsets(FREQUENT, VOCAB)).requires_grad_(False).eval()
    return ModelDrafter(model, model.new_cache(8, 300))


DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "none": lambda: None,
    "ngram": NGramDrafter,
    "same": lambda: lm(TARGET),
    "near": lambda: lm(blended(0.1)),
    "other": lambda: lm(OTHER),
    "tree": lambda: Tree(blended(0.1)),
    "eagle": lambda: headed("eagle"),
    "eagle3": lambda: headed("eagle3"),
    "scylla": lambda: headed("eagle3", 2),
    "eagle2-tree": lambda: headed("eagle"),
    "eagle3-tree": lambda: headed("eagle3"),
    "scylla-tree": lambda: headed("eagle3", 2),
    "static-tree": lambda: headed("eagle3"),
    "lm-tree": lambda: lm(blended(0.1)),
    "lm-static-tree": lambda: lm(blended(0.1)),
    "eagle-cut": cut_head,
    "lm-cut": cut_lm,
    "lm-cut-tree": cut_lm,
}
STATIC = ((-1, 0), (-1, 2), (0, 0), (0, 1), (1, 0), (2, 1), (5, 0))
BUDGETS = {
    "eagle2-tree": Budget(4, 3, 10), "eagle3-tree": Budget(4, 4, 16), "scylla-tree": Budget(4, 2), "static-tree": Budget(4, tree=STATIC),
    "lm-tree": Budget(4, 3, 12), "lm-static-tree": Budget(4, tree=STATIC),
    "lm-cut-tree": Budget(4, 3, 12),
}  # fmt: skip


def engine_with(name: str, lookahead: int = 4, max_context: int = 128, max_batch: int = 8) -> Engine:
    budget = BUDGETS.get(name, Budget(lookahead))._replace(lookahead=lookahead)
    return Engine(TARGET, DRAFTERS[name](), lookahead=budget, max_batch=max_batch, max_context=max_context)


PROMPTS = [(1, 2, 3, 4, 5, 1, 2, 3), (7,), (9, 8, 9, 8, 9, 8), tuple(range(20)), (5, 5, 5), (63, 0)]


GREEDY = Sampling()


def requests(sampling: Sampling = GREEDY, max_tokens: int = 40) -> list[Request]:
    return [Request(prompt=prompt, max_tokens=max_tokens, sampling=sampling) for prompt in PROMPTS]


def plain(prompt: tuple[int, ...], max_tokens: int = 40) -> list[int]:
    """Greedy decoding without cache, engine or batch."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(int(TARGET(torch.tensor([tokens])).logits_BTV[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    return [plain(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_is_token_for_token_that_of_the_target(name: str, batch: int, greedy: list[list[int]]) -> None:
    engine, num = engine_with(name, 4, 128, batch), 3 if batch == 1 else len(PROMPTS)
    assert [sequence.answer for sequence in engine.generate(requests()[:num])] == greedy[:num]


@pytest.mark.parametrize("name", ["none", "near", "eagle3", "eagle", "scylla-tree"])
def test_captured_passes_change_nothing(name: str, greedy: list[list[int]]) -> None:
    """With a capture that computes anew from the buffers of the first pass of each shape, as a CUDA graph does; as requests end one
    by one, three sequences are rounded up to four."""
    engine, replays, lengths = engine_with(name, max_batch=5), [0], range(40, 10, -5)
    asked = [Request(prompt=prompt, max_tokens=num) for prompt, num in zip(PROMPTS, lengths, strict=True)]

    def again(compute: Callable[[], Output]) -> Callable[[], Output]:
        def replay() -> Output:
            replays[0] += 1
            return compute()

        return replay

    passes = [engine.score, *([engine.drafter.run] if isinstance(engine.drafter, HeadDrafter | ModelDrafter) else [])]
    for graphed in passes:
        graphed.capture, graphed.rounds = again, True
    if isinstance(engine.drafter, HeadDrafter | ModelDrafter):
        engine.drafter.kernel = None  # which no GPU has
    answers = [answer[:num] for answer, num in zip(greedy, lengths, strict=True)]
    assert [sequence.answer for sequence in engine.generate(asked)] == answers
    assert replays[0] > 20
    assert all(0 < len(graphed.graphs) < 40 for graphed in passes)
    assert {key[1] for key in engine.score.graphs} <= {5, 4, 2, 1}


@pytest.mark.parametrize("name", ["none", "eagle3"])
def test_prompts_read_together_change_nothing(name: str, greedy: list[list[int]]) -> None:
    """As on a GPU: several prompts in a pass, the longest alone, and free rows that wait for more of them."""
    engine = engine_with(name, max_batch=5)
    engine.prompt_tokens = 40
    assert [sequence.answer for sequence in engine.generate(requests())] == greedy


def test_batches_are_rounded_up_to_few_sizes() -> None:
    sizes = {batch: rounded(batch) for batch in range(1, 257)}
    assert all(batch <= size <= 1.6 * batch for batch, size in sizes.items())
    assert len(set(sizes.values())) == 14


def test_keys_shared_by_query_heads_are_read_as_one_heads_rows() -> None:
    """What attention under a mask is on a GPU, held to the library's grouped queries."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, num, 16, generator=generator) for heads, num in ((6, 5), (2, 9), (2, 9)))
    mask = torch.rand(2, 1, 5, 9, generator=generator) < 0.6
    mask[..., 0] = True
    grouped = grouped_attention(
        q.transpose(1, 2).contiguous().transpose(1, 2), k, v, grouped_bias(mask, 3, torch.float32)
    )
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(grouped, expected)


def test_the_drafts_of_these_tests_are_accepted_in_part() -> None:
    """Without refusals the tests above would prove little; without acceptances too."""
    for name, low, high in (
        ("same", 4.99, 5.0),
        ("near", 1.3, 4.9),
        ("tree", 1.3, 3.0),
        ("other", 1.0, 1.5),
        ("eagle3", 1.1, 4.9),
        ("eagle3-tree", 1.2, 5.0),
        ("lm-tree", 1.6, 4.99),
        ("eagle-cut", 1.02, 4.9),
        ("lm-cut", 1.1, 4.9),
    ):
        engine = engine_with(name, 4, 128, 4)
        for request in requests():
            engine.add(request)
        steps = list(engine.run())
        tau = 1 + sum(sum(s.accepted) for s in steps) / sum(len(s.accepted) for s in steps)
        assert low <= tau <= high, (name, tau)


def test_a_model_of_a_draft_vocabulary_says_what_it_draws_from() -> None:
    """q over the target's vocabulary is the softmax of its rows, nothing outside; its draws and trees name the target's tokens."""
    drafter = cut_lm()
    sampling, whole = Sampling(temperature=0.7, top_k=5), blended(0.1)
    (sequence,) = [Sequence.of(1, Request(prompt=PROMPTS[0], max_tokens=8, sampling=sampling))]
    drafter.admit(0, sequence)
    proposal = drafter.propose([sequence], Budget(3))
    assert proposal.q is not None
    text = list(PROMPTS[0])
    for q, token in zip(proposal.q[0], proposal.tokens[0].tolist(), strict=True):
        expected = torch.zeros(VOCAB)
        logits = whole(torch.tensor([text])).logits_BTV[0, -1, list(FREQUENT)]
        expected[list(FREQUENT)] = probabilities(logits, sampling)
        torch.testing.assert_close(q, expected, rtol=1e-4, atol=1e-5)
        assert q[token] > 0
        text.append(token)
    anew = cut_lm()
    anew.admit(0, sequence)
    assert set(anew.propose([sequence], Budget(3, 3, 8)).tokens.flatten().tolist()) <= set(FREQUENT)


def test_a_model_of_a_draft_vocabulary_is_no_target() -> None:
    with pytest.raises(ValueError, match=r"knows 32 of its 64 tokens: it is a draft"):
        Engine(cut_lm().model)


def test_lookahead_may_follow_the_number_running(greedy: list[list[int]]) -> None:
    engine = Engine(
        TARGET,
        lm(blended(0.1)),
        lookahead=lambda running: {1: 5, 2: 3}.get(running, 0),
        max_batch=4,
        max_context=128,
    )
    sequences = [engine.add(request) for request in requests()]
    observed = {(len(step.drafted), step.lookahead) for step in engine.run()}
    assert [sequence.answer for sequence in sequences] == greedy
    assert {k for _, k in observed} >= {0, 3, 5}
    assert all(k == {1: 5, 2: 3}.get(n, 0) for n, k in observed)


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name != "none"])
def test_a_draft_reads_a_prompt_once_it_is_to_draft(name: str, greedy: list[list[int]]) -> None:
    """Of five requests those that end while nothing is drafted are never read; the last two are, with what they have said since."""
    engine, lengths, read = engine_with(name, max_batch=5), (4, 6, 8, 20, 40), []
    assert engine.drafter is not None
    engine.schedule, admit = (lambda running: 4 if running <= 2 else 0), engine.drafter.admit
    engine.drafter.admit = lambda row, sequence: (read.append(sequence.id), admit(row, sequence))[1]
    asked = [Request(prompt=prompt, max_tokens=num) for prompt, num in zip(PROMPTS[:5], lengths, strict=True)]
    sequences = engine.generate(asked)
    assert [each.answer for each in sequences] == [
        answer[:num] for answer, num in zip(greedy[:5], lengths, strict=True)
    ]
    assert sorted(read) == [each.id for each in sequences[3:]]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_that_reads_late_drafts_what_whole_passes_would(kind: str) -> None:
    drafter = Checked(headed(kind))
    schedule = {1: 3, 2: 3}
    engine = Engine(TARGET, drafter, lookahead=lambda running: schedule.get(running, 0), max_batch=4, max_context=64)
    engine.generate([Request(prompt=PROMPTS[i], max_tokens=8 + 4 * i) for i in range(4)])
    assert drafter.seen > 3


@pytest.mark.parametrize("name", ["ngram", "near", "tree", "eagle3-tree", "lm-tree"])
def test_a_sampled_batch_equals_its_requests_alone(name: str) -> None:
    """Each request's chance comes from its own seed: who runs beside it changes nothing."""
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=3)
    together = engine_with(name, 4, 128, 4).generate(requests(sampling))
    for request, sequence in zip(requests(sampling), together, strict=True):
        (alone,) = engine_with(name, 4, 128, 1).generate([request])
        assert alone.answer == sequence.answer


@pytest.mark.parametrize("name", ["near", "tree"])
def test_sampled_tokens_follow_the_targets_distribution(name: str) -> None:
    """Pairs of tokens after one prompt, 3,000 seeds, against the exact distribution of pairs; false-alarm rate 1e-4 a case (fixed seeds).
    `test_lossless` enumerates every kind of draft, whatever is drawn; this is of what is drawn.
    """
    from scipy.stats import chisquare

    prompt, num = (1, 2, 3), 3000
    sampling = Sampling(temperature=0.7, top_k=3)
    engine = engine_with(name, 2, 32, ROWS)
    sampled_requests = [
        Request(prompt=prompt, max_tokens=2, sampling=Sampling(temperature=0.7, top_k=3, seed=s)) for s in range(num)
    ]
    samples = [tuple(sequence.answer) for sequence in engine.generate(sampled_requests)]
    probs = {}
    first = probabilities(TARGET(torch.tensor([prompt])).logits_BTV[0, -1:], sampling)[0]
    for a in first.nonzero()[:, 0].tolist():
        second = probabilities(TARGET(torch.tensor([[*prompt, a]])).logits_BTV[0, -1:], sampling)[0]
        probs |= {(a, b): float(first[a] * second[b]) for b in second.nonzero()[:, 0].tolist()}
    assert set(samples) <= set(probs)
    counts, expected = [samples.count(pair) for pair in probs], [num * p for p in probs.values()]
    scale = sum(counts) / sum(expected)
    assert chisquare(counts, [e * scale for e in expected]).pvalue > 1e-4


def test_stop_ids_end_an_answer_and_are_part_of_it(greedy: list[list[int]]) -> None:
    stop = greedy[0][7]
    cut = greedy[0].index(stop) + 1
    request = Request(prompt=PROMPTS[0], max_tokens=40, stop_ids=frozenset({stop}))
    for name in ("none", "same"):
        (sequence,) = engine_with(name, 4, 128, 1).generate([request])
        assert (sequence.answer, sequence.finish) == (greedy[0][:cut], "stop")


def test_tokens_stream_as_they_come_and_a_request_can_be_cancelled(greedy: list[list[int]]) -> None:
    engine = Engine(TARGET, DRAFTERS["near"](), max_batch=3, max_context=128)
    streamed: list[int] = []
    continuing = engine.add(requests()[0], streamed.extend)
    dropped = [engine.add(request) for request in requests()[1:]]
    for number, _ in enumerate(engine.run()):
        if number == 2:
            for sequence in dropped:
                engine.cancel(sequence)
    assert streamed == continuing.answer == greedy[0]
    assert {sequence.finish for sequence in dropped} == {"cancelled"}
    assert dropped[0].answer == greedy[1][: len(dropped[0].answer)]


def test_what_cannot_fit_is_refused_with_its_numbers() -> None:
    engine = Engine(TARGET, max_batch=1, max_context=64)
    with pytest.raises(ValueError, match="need 70 tokens, max_context is 64"):
        engine.add(Request(prompt=(1,) * 30, max_tokens=40))
    with pytest.raises(ValueError, match="outside the vocabulary of 64"):
        engine.add(Request(prompt=(64,), max_tokens=1))
    with pytest.raises(ValueError, match="cache_bytes 1,000 is less than"):
        Engine(TARGET, max_batch=1, max_context=64, cache_bytes=1000)
    budget = BUDGETS["eagle3-tree"]
    with pytest.raises(ValueError, match="may verify; got 16"):
        Engine(TARGET, DRAFTERS["eagle3-tree"](), lookahead=budget, max_batch=1, max_context=64, max_nodes=8)
    later = Engine(TARGET, headed("eagle3"), lookahead=lambda running: budget, max_batch=1, max_context=64, max_nodes=8)
    with pytest.raises(ValueError, match="may verify; got 16"):
        later.generate(requests(max_tokens=4)[:1])
    wide = Engine(TARGET, headed("eagle3"), lookahead=Budget(2, 5000, 16), max_batch=1, max_context=64)
    with pytest.raises(ValueError, match=r"5000 children of a node are more than the .* tokens that"):
        wide.generate(requests(max_tokens=4)[:1])
    with pytest.raises(ValueError, match=r"GB, and this machine has .*; lower --batch or --context"):
        Engine(TARGET, max_batch=2**16, max_context=10**8)
    with pytest.raises(ValueError, match="drafts no trees"):
        Engine(TARGET, NGramDrafter(), lookahead=budget, max_batch=1, max_context=64)
    with pytest.raises(ValueError, match="at least one token"):
        Request(prompt=(), max_tokens=1)


def test_every_step_is_counted_once(greedy: list[list[int]]) -> None:
    engine = Engine(TARGET, DRAFTERS["near"](), max_batch=3, max_context=128)
    sequences = [engine.add(request) for request in requests()]
    steps = list(engine.run())
    assert sum(sum(step.emitted) for step in steps) == sum(len(s.answer) for s in sequences)
    assert all(d >= a for step in steps for d, a in zip(step.drafted, step.accepted, strict=True))
    assert all(step.draft_s > 0 and step.target_s > 0 for step in steps)


def test_ancestors_of_a_tree() -> None:
    sees = ancestors([[-1, -1, 0, 2, PAD]])[0]
    assert [row.nonzero()[:, 0].tolist() for row in sees] == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4], [0, 5]]


def test_ngram_takes_the_latest_of_the_longest_matches() -> None:
    text = [1, 2, 3, 9, 1, 2, 3, 8, 2, 3]
    places = NGramIndex(range(3, 0, -1))
    assert places.after(text, 3) == [8, 2, 3]
    assert places.after([*text, 9], 2) == [1, 2]
    assert NGramIndex(range(3, 0, -1)).after([1, 2, 3], 3) == []


def test_ngram_goes_on_with_a_period_shorter_than_what_is_asked_for() -> None:
    assert NGramIndex(range(3, 0, -1)).after([5, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert NGramIndex(range(3, 0, -1)).after([7, 7], 3) == [7, 7, 7]


def test_ngram_agrees_with_a_search_of_the_whole_text() -> None:
    generator, text, places = torch.Generator().manual_seed(0), [0], NGramIndex(range(3, 0, -1))
    for _ in range(200):
        text += torch.randint(
            0, 4, (int(torch.randint(1, 4, (1,), generator=generator)),), generator=generator
        ).tolist()
        matches = (
            (size, end)
            for size in range(min(3, len(text) - 1), 0, -1)
            for end in range(len(text) - 1, size - 1, -1)
            if text[end - size : end] == text[-size:]
        )
        _, end = next(matches, (0, len(text)))
        assert places.after(text, 5) == (text[end:] * 5)[:5]


class Checked:
    """A head drafter whose every proposal is compared with one computed anew, without cache, batch or beam."""

    def __init__(self, drafter: HeadDrafter) -> None:
        self.drafter, self.name, self.reads, self.cache, self.trees, self.seen = (
            drafter,
            "checked",
            drafter.reads,
            drafter.cache,
            True,
            0,
        )

    def admit(self, row: int, sequence) -> None:
        self.drafter.admit(row, sequence)

    def move(self, source: int, row: int, num: int) -> None:
        self.drafter.move(source, row, num)

    def propose(self, running, budget: Budget, lengths=None) -> Proposal:
        has_fresh = [sequence.fresh is not None for sequence in running]
        proposal = self.drafter.propose(running, budget)
        for row, sequence in enumerate(running):
            if has_fresh[row]:
                self._check(sequence.tokens, proposal.tokens[row].tolist(), proposal.parents[row], budget)
                self.seen += 1
            else:
                assert set(proposal.parents[row]) == {PAD}
        return proposal

    def _check(self, tokens: list[int], drafted: list[int], parents: list[int], budget: Budget) -> None:
        paths: list[list[int]] = []
        for token, parent in zip(drafted, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
        assert len(set(map(tuple, paths))) == len(paths)
        assert max(map(len, paths)) <= budget.lookahead
        score = {(): 0.0} | {tuple(path): naive(self.drafter.head, tokens, path) for path in paths}
        if budget.tree:
            self._check_ranks(tokens, drafted, parents, paths, budget)
            return
        best = naive_best(self.drafter.head, tokens)
        assert drafted[0] == best or best in [path[0] for path in paths if len(path) == 1]
        assert all(score[tuple(path)] <= score[tuple(path[:-1])] + 1e-4 for path in paths)
        if not budget.branches:
            for path in paths:
                assert path[-1] == naive_best(self.drafter.head, tokens, path[:-1])

    def _check_ranks(
        self, tokens: list[int], drafted: list[int], parents: list[int], paths: list[list[int]], budget: Budget
    ) -> None:
        """Every node of the static tree is its parent's choice of its rank, whatever order the nodes come in."""
        expected_ranks: list[tuple[int, ...]] = []
        for parent, rank in budget.tree:
            above = expected_ranks[parent] if parent >= 0 else ()
            expected_ranks.append((*above, naive_ranked(self.drafter.head, tokens, list(above))[rank]))
        assert sorted(map(tuple, paths)) == sorted(expected_ranks)


def naive_ranked(head: TokenHead, tokens: list[int], path: list[int]) -> list[int]:
    return head.target_ids(naive_law(head, tokens, path).argsort(descending=True)).tolist()


def naive_law(head: TokenHead, tokens: list[int], path: list[int]) -> torch.Tensor:
    """log q of the token after `tokens` + `path`, from whole passes: true hidden states, then the head's own outputs."""
    hidden_states = TARGET(torch.tensor([tokens[:-1]]), hidden_states=head.feature_layers).hidden_states
    hidden = head.combine(torch.cat(hidden_states, -1))
    ids = torch.tensor([tokens[1:]])
    for token in path:
        output = head(ids, hidden)
        hidden = torch.cat((hidden, output.pre_norm_BTC[:, -1:]), 1)
        ids = torch.cat((ids, torch.tensor([[token]])), 1)
    return head(ids, hidden).logits_BTV[0, -1].log_softmax(-1)


def naive(head: TokenHead, tokens: list[int], path: list[int]) -> float:
    return sum(float(naive_law(head, tokens, path[:i])[token]) for i, token in enumerate(path))


def naive_best(head: TokenHead, tokens: list[int], path: list[int] | None = None) -> int:
    return int(head.target_ids(naive_law(head, tokens, path or []).argmax()))


@pytest.mark.parametrize(
    ("kind", "layers", "budget"),
    [
        ("eagle", 1, Budget(3)),
        ("eagle3", 2, Budget(3)),
        ("eagle3", 1, Budget(3, 3, 8)),
        ("eagle3", 2, Budget(4, tree=STATIC)),
    ],
)
def test_heads_draft_what_whole_passes_would(kind: str, layers: int, budget: Budget) -> None:
    drafter = Checked(headed(kind, layers))
    Engine(TARGET, drafter, lookahead=budget, max_batch=3, max_context=64).generate(requests(max_tokens=12))
    assert drafter.seen > 20


def broken(network: torch.nn.Module) -> Any:
    """The network with a NaN among its weights."""
    next(weight for name, weight in network.named_parameters() if "down_proj" in name)[0, 0] = torch.nan
    return network


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", [None, NGramDrafter()])
def test_a_broken_target_is_an_error_that_names_it(temperature: float, drafter: Drafter | None) -> None:
    """Never the vocabulary's last token again and again."""
    engine = Engine(broken(model(0)), drafter, max_batch=2, max_context=64)
    with pytest.raises(ValueError, match=r"^target tiny-0: the (logits|probabilities) of row 0 are NaN"):
        engine.generate([Request((1, 2, 1), 8, Sampling(temperature=temperature))])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [Budget(3), Budget(3, 3, 8)])
@pytest.mark.parametrize("kind", ["lm", "eagle", "eagle3"])
def test_a_broken_draft_is_an_error_that_names_it(kind: str, budget: Budget, temperature: float) -> None:
    layers = (0, 1, 2) if kind == "eagle3" else None
    network = broken(
        model(1, layers=1) if kind == "lm" else new_head(TARGET, kind, feature_layers=layers).requires_grad_(False)
    )
    cache = network.new_cache(8, 300)
    drafter = ModelDrafter(network, cache) if kind == "lm" else HeadDrafter(network, cache)
    engine = Engine(TARGET, drafter, lookahead=budget, max_batch=2, max_context=64)
    with pytest.raises(ValueError, match=r"^draft tiny-.*: the (logits|probabilities) of .* are NaN"):
        engine.generate([Request((1, 2, 1, 3), 8, Sampling(temperature=temperature))])
