"""What lengths that follow a draft's confidence rest on, measured: how confidence and acceptance go together, and what steps cost.

The engine decodes with chains of all lengths by turns, so that one run shows both: every other step drafts all positions and tells how
confident the draft was and how many tokens were accepted; the steps between draft 0, 1, 2 … tokens, and time the passes. Acceptance is
fitted by a logistic of the confidences along the chain (`decode.lengths.features`); then the rule is replayed on the measured steps under
the measured times, which gives the tokens per second ρ that it needs to know, and those of every fixed length beside it.

Promises: a step's accepted tokens are judged as they were, by position as far as they were reached; the AUC is of requests that the fit
did not see. Refuses to know: the laws, files.

Shapes: N steps of sequences that drafted k positions, F = 4 features, B sequences of a replayed step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from foredraft.decode.batch import Request
from foredraft.decode.drafters import machine_name
from foredraft.decode.engine import Engine, budgeted
from foredraft.decode.lengths import MOST_LOGIT, Choice, PassTimes, Regime, StepLengths, features
from foredraft.kinds import role_of
from foredraft.measure.configurations import EngineConfiguration
from foredraft.measure.live import groups_of
from foredraft.measure.measure import requests_of
from foredraft.measure.probe import provenance
from foredraft.measure.settings import MeasureSettings
from foredraft.measure.subject import Subject
from foredraft.models import kernels
from foredraft.records import Confidence, DraftLengths, StepCosts
from foredraft.runs import name_of

Array = NDArray[np.float64]

RIDGE = 0.1  # of the weights' squares: keeps them finite where all was accepted
NEWTON = 30
JUDGED = 1024  # steps of sequences that are replayed, drawn from all
REPLAYED = 192  # steps of a batch in a replay at least
ROUNDS = 5  # of the search for the rule's own rate
FEWEST = 2  # steps of so many tokens, for their time to count


class JudgedConfidence(NamedTuple):
    """Steps of sequences that drafted all k positions: confidences [N, k], how many tokens were accepted [N], and whose steps they were [N]."""

    told: Array
    accepted: NDArray[np.int64]
    sequence: NDArray[np.int64]

    def at(self, which: NDArray[Any]) -> "JudgedConfidence":
        """Some of the steps."""
        return JudgedConfidence(self.told[which], self.accepted[which], self.sequence[which])


class _Set:
    """Lengths that hang on nothing."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.told = lengths, list[Sequence[float]]()

    def tell(self, confidence_B: Sequence[float]) -> bool:
        self.told.append(confidence_B)
        return len(self.told) < max(self.lengths)


class Recorder:
    """Asks for k tokens in every other step; in those between by turns for as many of all sequences, 0, 1, 2 …, and for some number of each.
    Holds what the last step was told.
    """

    def __init__(self) -> None:
        self.turn, self.step, self.rng = -1, _Set([]), np.random.default_rng(0)

    def begin(self, temperatures: Sequence[float], most: int) -> StepLengths | int:
        self.turn += 1
        batch, between = len(temperatures), self.turn // 2
        if self.turn % 2 == 0:
            lengths = [most] * batch
        elif batch > 1 and between % 2:
            lengths = self.rng.integers(0, most + 1, batch).tolist()
        else:
            lengths = [(between if batch == 1 else between // 2) % most] * batch
        self.step = _Set(lengths)
        return self.step if any(self.step.lengths) else 0


class _Times(NamedTuple):
    """Seconds by tokens that a target's pass computes, and by sequences and drafted positions."""

    passes: dict[int, list[float]]
    drafting: dict[tuple[int, int], list[float]]


def learn(
    configuration: EngineConfiguration, requests: dict[float, list[Request]], batches: Sequence[int], *, target: str, draft: str,
    command: str | None = None, progress: Callable[[], object] | None = None,
) -> DraftLengths:  # fmt: skip
    """What lengths of the configuration's draft rest on, from its engine's decoding of `requests` at each temperature and batch.

    Raises ValueError where nothing was judged, too few steps were timed, or the draft is of a single token.
    """
    spec, engine = configuration.spec, configuration.engine
    if spec.budget.lookahead < 2:
        raise ValueError(
            f"--adaptive: {spec.name}: a draft of one token leaves no length to choose; give it more, such as @7"
        )
    times, judged = _Times(defaultdict(list), defaultdict(list)), dict[float, JudgedConfidence]()
    for temperature, asked in requests.items():
        rows = [row for batch in batches for row in _decode(engine, asked, batch, times, progress)]
        judged[temperature] = _judged(rows, spec.budget.lookahead, spec.name)
    pass_s = {num: float(np.median(each)) for num, each in times.passes.items() if len(each) >= FEWEST}
    draft_s = _drafting(times.drafting)
    if not pass_s or not draft_s:
        raise ValueError("--adaptive: too few steps to time them; give more prompts or longer answers")
    costs = StepCosts(pass_s=pass_s, draft_s=draft_s)
    pass_times, sizes = PassTimes(costs, kernels.most_rows(engine.target)), _sizes(max(batches))
    confidences = [_confidence(temperature, rows, pass_times, sizes) for temperature, rows in judged.items()]
    return DraftLengths(
        draft=draft, method=configuration.method, target=target, lookahead=spec.budget.lookahead, machine=machine_name(engine.target.device),
        dtype=str(engine.target.dtype)[6:], threads=torch.get_num_threads(), confidences=tuple(confidences), costs=costs,
        provenance=provenance("foredraft measure --adaptive", command),
    )  # fmt: skip


def learn_all(
    subject: Subject, settings: MeasureSettings, progress: Callable[[str], object], command: str | None = None
) -> dict[str, DraftLengths]:
    """`learn` for every draft that is a chain, by the folder that its spec names. Raises ValueError where there is none, or where a draft is
    given with two lookaheads.
    """
    chains, measured = _chains(subject.configurations), {}
    if not chains:
        raise ValueError("--adaptive needs a draft that is a model or a head, as a chain: give --draft DIR@7")
    for each in chains:
        folder = each.spec.draft or ""
        if folder in measured:
            raise ValueError(f"--adaptive: {folder} is given twice; give it once, with its longest lookahead")
        measured[folder] = learn(
            each, {temperature: requests_of(subject, settings, temperature) for temperature in settings.temperatures}, settings.batches,
            target=str(subject.fields["target"]), draft=name_of(folder), command=command, progress=partial(progress, each.spec.name),
        )  # fmt: skip
    return measured


def work_of_learning(subject: Subject, settings: MeasureSettings) -> int:
    """How often `learn_all` calls `progress`."""
    groups = sum(len(groups_of(len(subject.prompts), batch)) for batch in settings.batches)
    return len(_chains(subject.configurations)) * len(settings.temperatures) * groups


def _chains(configurations: Sequence[EngineConfiguration]) -> list[EngineConfiguration]:
    """Models and heads alone, in chains of a fixed length."""
    return [
        each for each in configurations
        if each.model is not None and role_of(each.method) != "mixed" and not each.spec.budget.branches and each.spec.budget.lookahead
    ]  # fmt: skip


# Decoding


def _decode(
    engine: Engine, requests: Sequence[Request], batch: int, times: _Times, progress: Callable[[], object] | None
) -> Iterator[tuple[Array, int, int]]:
    """(confidences, accepted, request) of each sequence's steps of full length; times go into `times`, those of the first group apart,
    which warms up.
    """
    recorder, packed, most = Recorder(), kernels.most_rows(engine.target), budgeted(engine.schedule(batch)).lookahead
    engine.lengths = recorder
    try:
        for number, group in enumerate(groups_of(len(requests), batch)):
            index = {engine.add(requests[i]).id: i for i in group}
            for step in engine.run():
                drafted, running = recorder.step.lengths, len(step.drafted)
                if number or len(requests) <= batch:
                    tokens = running + (sum(drafted) if running * (1 + most) <= packed else running * max(drafted))
                    times.passes[tokens].append(step.target_s + step.other_s)
                    if any(drafted):
                        times.drafting[running, max(drafted)].append(step.draft_s)
                if recorder.turn % 2 == 0:
                    told = np.array(recorder.step.told).T
                    for row, sequence in enumerate(engine.running):
                        if step.drafted[row]:
                            yield told[row], step.accepted[row], index[sequence.id]
            if progress:
                progress()
    finally:
        engine.lengths = None


def _judged(rows: Sequence[tuple[Array, int, int]], lookahead: int, name: str) -> JudgedConfidence:
    whole = [row for row in rows if len(row[0]) == lookahead]
    if not whole:
        raise ValueError(f"--adaptive: no step of {name} was judged; give more prompts or a larger --max-tokens")
    told, counts, sequence = zip(*whole, strict=True)
    return JudgedConfidence(
        np.clip(np.nan_to_num(np.stack(told)), -MOST_LOGIT, MOST_LOGIT), np.array(counts), np.array(sequence)
    )


def _drafting(seconds: dict[tuple[int, int], list[float]]) -> dict[int, tuple[float, float]]:
    """By running sequences what drafting takes whatever is drafted, and for each position: a straight line through the medians."""
    by_batch: dict[int, dict[int, float]] = defaultdict(dict)
    for (batch, num), each in seconds.items():
        if len(each) >= FEWEST:
            by_batch[batch][num] = float(np.median(each))
    out = {}
    for batch, medians in by_batch.items():
        nums, values = np.array(list(medians)), np.array(list(medians.values()))
        if len(nums) > 1:
            each = max(float(np.polyfit(nums, values, 1)[0]), 0.0)
            out[batch] = max(float(np.mean(values - each * nums)), 0.0), each
    return out


def _sizes(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)})


# Fitting


def _confidence(temperature: float, judged: JudgedConfidence, times: PassTimes, sizes: Sequence[int]) -> Confidence:
    here, ahead = weights_of(judged)
    survival = [(judged.accepted > i).mean() for i in range(judged.told.shape[1])]
    shared, single = _spread(here, judged.told)
    confidence = Confidence(
        temperature=temperature, here=_four(here), ahead=_four(ahead), num=len(_at_risk(judged, 0)[1]), survival=tuple(map(float, survival)),
        shared_sd=shared, single_sd=single, auc=held_out_auc(judged),
    )  # fmt: skip
    drawn = np.random.default_rng(0).permutation(len(judged.accepted))[:JUDGED]
    judged = judged.at(drawn)
    fixed = {batch: fixed_rates(judged, times, batch) for batch in sizes}
    rates = {batch: replayed_rate(confidence, judged, times, batch, max(fixed[batch])) for batch in sizes}
    return msgspec.structs.replace(confidence, fixed=fixed, rates=rates)


def _four(weights: Array) -> tuple[float, float, float, float]:
    a, b, c, d = weights.tolist()
    return a, b, c, d


def weights_of(judged: JudgedConfidence) -> tuple[Array, Array]:
    """Weights of the logit of acceptance where a token's own confidence is seen, and of the token behind the last one seen."""
    here = _logistic(*_at_risk(judged, 0))
    x_NF, accepted_N = _at_risk(judged, 1)
    return here, _logistic(x_NF, accepted_N) if len(x_NF) else here


def _at_risk(judged: JudgedConfidence, behind: int) -> tuple[Array, Array]:
    """Features [N, F] of all tokens that were judged, as they are `behind` positions before, and whether each was accepted."""
    parts, labels = [np.zeros((0, 4))], [np.zeros(0)]
    for place in range(behind, judged.told.shape[1]):
        at_risk = judged.accepted >= place
        parts.append(_features(judged.told[at_risk, : place + 1 - behind]))
        labels.append((judged.accepted[at_risk] > place).astype(float))
    return np.concatenate(parts), np.concatenate(labels)


def _features(told_Nk: Array) -> Array:
    """`features` of each row, [N, F]."""
    return np.array([features(told) for told in told_Nk.tolist()]).reshape(-1, 4)


def _sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def _logistic(x_NF: Array, accepted_N: Array) -> Array:
    """The weights of greatest likelihood, less RIDGE times their squares, by Newton's method."""
    weights = np.zeros(x_NF.shape[1])
    for _ in range(NEWTON):
        probs = _sigmoid(x_NF @ weights)
        slope = x_NF.T @ (accepted_N - probs) - 2 * RIDGE * weights
        bend = (x_NF * (probs * (1 - probs))[:, None]).T @ x_NF + 2 * RIDGE * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        weights = weights + step * min(1.0, 5 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _left_out(judged: JudgedConfidence) -> list[tuple[tuple[Array, Array], JudgedConfidence]]:
    """Each half of the requests with weights that the other half fits; all with their own where one half is empty."""
    halves = [judged.at(judged.sequence % 2 == half) for half in (0, 1)]
    if not all(len(half.accepted) for half in halves):
        return [(weights_of(judged), judged)]
    return [(weights_of(seen), left_out) for seen, left_out in (halves, halves[::-1])]


def held_out_auc(judged: JudgedConfidence) -> float | None:
    """How often an accepted token's predicted acceptance is above a refused one's, each half of the requests predicted from the other."""
    parts = _left_out(judged)
    if len(parts) == 1:
        return None
    scores, labels = [], []
    for (here, _), left_out in parts:
        x_NF, accepted_N = _at_risk(left_out, 0)
        scores.append(x_NF @ here)
        labels.append(accepted_N)
    score, label = np.concatenate(scores), np.concatenate(labels) > 0
    above, below = np.sort(score[label]), np.sort(score[~label])
    if not len(above) or not len(below):
        return None
    wins = (np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")).sum() / 2
    return float(wins / (len(above) * len(below)))


def _spread(weights: Array, told_Nk: Array) -> tuple[float, float]:
    """Sd of the logits of acceptance about their means by position: what a step's positions have in common, and each one's own."""
    logits = np.stack([_features(told_Nk[:, : i + 1]) @ weights for i in range(told_Nk.shape[1])], axis=1)
    covariance = np.atleast_2d(np.cov(logits, rowvar=False)) if len(logits) > 1 else np.zeros((told_Nk.shape[1],) * 2)
    own = float(np.diag(covariance).mean())
    apart = ~np.eye(len(covariance), dtype=bool)
    shared = min(max(float(covariance[apart].mean()), 0.0), own) if apart.any() else 0.0
    return shared**0.5, (own - shared) ** 0.5


# Replaying


def fixed_rates(judged: JudgedConfidence, times: PassTimes, batch: int) -> tuple[float, ...]:
    """Tokens/s of chains of 0, 1, … k tokens in a batch of such steps."""
    rates, (whole, each) = [], times.of_drafting(batch)
    for num in range(judged.told.shape[1] + 1):
        seconds = float(times.of_pass(batch * (1 + num))) + (whole + num * each if num else 0.0)
        rates.append(batch * (1 + float(np.minimum(judged.accepted, num).mean())) / seconds)
    return tuple(rates)


def replayed_rate(confidence: Confidence, judged: JudgedConfidence, times: PassTimes, batch: int, rate: float) -> float:
    """Tokens/s that the rule reaches on such steps, put together at random, when it is told that very rate and weights that were fitted to
    other requests; `rate` is where the search begins.
    """
    parts = [
        (msgspec.structs.replace(confidence, here=_four(here), ahead=_four(ahead)), left_out, _shuffled(len(left_out.accepted), batch))
        for (here, ahead), left_out in _left_out(judged)
    ]  # fmt: skip
    for _ in range(ROUNDS):
        tokens, seconds = np.sum([_replay(*part, times, rate) for part in parts], axis=0)
        before, rate = rate, float(tokens / seconds)
        if abs(rate / before - 1) < 1e-3:
            break
    return rate


def _shuffled(num: int, batch: int) -> NDArray[np.int64]:
    """Steps of sequences [S, B] put together at random, each of `num` about equally often, so that what is drawn sets no rate apart from another."""
    rng, rows = np.random.default_rng(0), max(-(-num // batch), REPLAYED)
    return np.concatenate([rng.permutation(num) for _ in range(-(-rows * batch // num))])[: rows * batch].reshape(
        rows, batch
    )


def _replay(
    confidence: Confidence, judged: JudgedConfidence, picked_SB: NDArray[np.int64], times: PassTimes, rate: float
) -> tuple[float, float]:
    """Tokens that the rule emits in these steps, and their seconds."""
    batch, most = picked_SB.shape[1], judged.told.shape[1]
    regime = Regime([confidence] * batch, rate, times, most)
    tokens = seconds = 0.0
    whole, each = times.of_drafting(batch)
    for steps in picked_SB:
        choice, place, told = Choice(regime), 0, judged.told[steps].T.tolist()
        while choice.tell(told[place]):
            place += 1
        verified = sum(choice.lengths) if times.packs(batch, most) else batch * max(choice.lengths)
        seconds += float(times.of_pass(batch + verified)) + whole + each * (place + 1)
        tokens += batch + float(np.minimum(judged.accepted[steps], choice.lengths).sum())
    return tokens, seconds
