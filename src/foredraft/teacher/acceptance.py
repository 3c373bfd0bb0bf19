"""How much of a draft its target accepts on given texts: teacher-forced, joint over the chain, by the engine's greedy rule.

A step begun with n tokens known accepts drafts while the draft's argmax is the target's, given a prefix of
accepted tokens. The text stands for that prefix, so a chain can be followed as far as the text is what the target
would say: on the target's own greedy answers always, on other texts up to the first departure.

**Walk.** Steps are not uniform over places: a step begins where the last one ended. So the steps of an answer are
walked: from its first token, each step takes what it accepts and one token more. On greedy answers these are the
engine's own steps, one by one, and `emitted_per_step` is its count.
**Cut chains.** A chain that accepts a token which the text does not hold is followed no further: it is at risk at the
positions up to there and at none beyond (Kaplan and Meier 1958), likewise at the end of an answer. `survival[i]` is the
product of accepted/at risk up to i, `tokens_per_step` one more than its sum. That is exact for greedy texts; elsewhere
it assumes that where a text departs says nothing of what would have been accepted, and departures are told.
**Intervals** resample documents by Poisson weights, which can be added up batch by batch (Chamandy et al. 2012).

Promises: sums that add over batches and devices. Refuses to know: models.

Shapes: S places of a chain, B texts, T tokens, D documents, R weightings (the first is 1 for every document).
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from foredraft.records import Estimate, Record, require
from foredraft.teacher.predictions import Predictions, TokenProbs

DRAWS = 200
SOURCE = "teacher-forced"


class TeacherForcedAcceptance(Record, frozen=True):
    """`tokens_per_step` (τ, bonus token included), `survival` S_i and `accept_given_prefix` α_i at temperature 0.

    `emitted_per_step`: tokens over steps as an engine counts them, ends of answers included and cut steps left out;
    None without a whole step. `uniform_tokens_per_step`: τ if steps began everywhere alike. `accept_prob`: greedy α of
    the first drafted token over all places. `departures`: share of the texts' tokens that the target would not say;
    `cut`: share of the steps whose chain they cut.
    """

    lookahead: int
    documents: int
    tokens: int
    steps: int
    tokens_per_step: Estimate
    emitted_per_step: float | None
    uniform_tokens_per_step: float
    survival: tuple[float, ...]
    accept_given_prefix: tuple[float, ...]
    accept_prob: float
    departures: float
    cut: float

    def __post_init__(self) -> None:
        require(self, positive=("lookahead", "tokens", "steps"), unit=("survival", "accept_given_prefix", "cut"))


def tally(predicted: Predictions, tokens_BT: Tensor, emitted_BT: Tensor, documents_BT: Tensor) -> dict[str, Tensor]:
    """Sums over a batch of texts, float64 on the texts' device; those of two batches may be added. `acceptance` reads them."""
    chains = _Chains(predicted, emitted_BT)
    starts = chains.walk()
    clusters, weights_RD = _documents(tokens_BT, documents_BT)

    def summed(values: Tensor, where: Tensor) -> Tensor:
        """[…, B, T] to [R, …]: the sum of every document, then of the weighted documents."""
        by_place = (values * where).double().flatten(-2)
        by_document = torch.zeros(*by_place.shape[:-1], weights_RD.shape[1], dtype=torch.float64, device=values.device)
        by_document.index_add_(-1, clusters, by_place)
        return torch.movedim(by_document @ weights_RD.T, -1, 0)

    uncut = starts & ~chains.cut_BT
    sums = {
        "risk": summed(chains.risk_SBT, starts), "accepted": summed(chains.accepted_SBT, starts),
        "steps": summed(torch.ones_like(starts), starts), "cut": summed(chains.cut_BT, starts),
        "whole": summed(torch.ones_like(starts), uncut), "emitted": summed(chains.gained_BT, uncut),
        "all_risk": summed(chains.risk_SBT, emitted_BT), "all_accepted": summed(chains.accepted_SBT, emitted_BT),
        "tokens": summed(torch.ones_like(starts), emitted_BT), "departed": summed(~predicted.greedy, emitted_BT),
        "documents": _count(clusters, emitted_BT).repeat(len(weights_RD)),
    }  # fmt: skip
    if predicted.probs is not None:
        sums |= {name: summed(x, emitted_BT) for name, x in _chance(predicted, predicted.probs, emitted_BT).items()}
    return sums


class _Chains:
    """Chains begun at every place of every text: how far each can be followed, and what it accepts.

    `risk_SBT`: position s is drafted, and all before were accepted as the text has them; `accepted_SBT`: it is too.
    """

    def __init__(self, predicted: Predictions, emitted_BT: Tensor) -> None:
        steps = len(predicted.agrees)
        self.emitted_BT = emitted_BT
        alive, risk, accepted = emitted_BT, [], []
        cut = torch.zeros_like(alive)
        for step in range(steps):
            alive = alive & ahead(emitted_BT, step)
            risk.append(alive & predicted.drafted[step])
            accepted.append(risk[-1] & predicted.agrees[step])
            greedy = ahead(predicted.greedy, step)
            if step + 1 < steps:
                cut = cut | (accepted[-1] & ~greedy)
            alive = accepted[-1] & greedy
        self.risk_SBT, self.accepted_SBT, self.cut_BT = torch.stack(risk), torch.stack(accepted), cut
        self.num_accepted_BT = self.accepted_SBT.sum(0)
        self.gained_BT = torch.minimum(self.num_accepted_BT + 1, _remaining(emitted_BT))

    def walk(self) -> Tensor:
        """Where the steps of every answer begin, [B, T] bool. A cut chain is taken up again behind the departure."""
        gains = (self.num_accepted_BT + 1 - self.cut_BT.long()).tolist()
        remaining = _remaining(self.emitted_BT).tolist()
        starts = torch.zeros_like(self.emitted_BT, device="cpu").numpy()
        for row, (gain, ahead_of) in enumerate(zip(gains, remaining, strict=True)):
            place = 0
            while place < len(gain):
                if not ahead_of[place]:
                    place += 1
                    continue
                starts[row, place] = True
                place += min(gain[place], ahead_of[place])
        return torch.from_numpy(starts).to(self.emitted_BT.device)


def ahead(values_BT: Tensor, step: int) -> Tensor:
    """Values `step` tokens on; False beyond the end."""
    return torch.nn.functional.pad(values_BT[:, step:], (0, min(step, values_BT.shape[1])))


def _remaining(emitted_BT: Tensor) -> Tensor:
    """How many emitted tokens follow without a gap, the one at hand included, [B, T]."""
    places = torch.arange(emitted_BT.shape[1], device=emitted_BT.device).expand(emitted_BT.shape)
    gaps = torch.where(emitted_BT, emitted_BT.shape[1], places)
    return gaps.flip(1).cummin(1).values.flip(1) - places


def _documents(tokens_BT: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each document of each text, by place [B·T], and the weights of the documents [R, D] (Poisson of mean
    1, from the document's own tokens, so that a sum does not depend on batches).
    """
    first, last = documents_BT.min(), documents_BT.max()
    rows_B1 = torch.arange(len(documents_BT), device=documents_BT.device)[:, None]
    keys_BT = documents_BT.long() - first + rows_B1 * (last - first + 1)
    keys, clusters = keys_BT.flatten().unique(return_inverse=True)
    order, sizes = clusters.sort(stable=True).indices, clusters.bincount(minlength=len(keys))
    pieces = tokens_BT.flatten()[order].cpu().split(sizes.tolist())
    weights = np.stack([_poisson(piece.numpy()) for piece in pieces], 1)
    return clusters, torch.from_numpy(weights).to(tokens_BT.device)


def _poisson(tokens: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(zlib.crc32(tokens.tobytes())).poisson(1.0, DRAWS)
    return np.concatenate(([1.0], weights))


def _count(clusters: Tensor, emitted_BT: Tensor) -> Tensor:
    """Documents with anything to predict, [1]."""
    return torch.tensor([len(clusters[emitted_BT.flatten()].unique())], dtype=torch.float64, device=clusters.device)


def _chance(predicted: Predictions, probs: TokenProbs, emitted_BT: Tensor) -> dict[str, Tensor]:
    """Terms whose means are the survivals under chance, by position, and how many places have the position.

    Of a text drawn from p: E[Π_{j<i} 1(x_j = x̂_j) · p_i(x̂_i)] = P(a deterministic chain's first i are accepted), and
    E[Π_{j<i} min(1, q/p)(x_j) · Σ min(p_i, q_i)] = P(a drawn chain's are): the products undo that x follows p.
    """
    point, sampled, at_risk = [], [], []
    reached_point = reached_sampled = torch.ones_like(emitted_BT, dtype=probs.point.dtype)
    alive = emitted_BT
    for step in range(len(probs.point)):
        alive = alive & ahead(emitted_BT, step) & predicted.drafted[step]
        at_risk.append(alive)
        point.append(reached_point * probs.point[step] * alive)
        sampled.append(reached_sampled * probs.overlap[step] * alive)
        reached_point = reached_point * predicted.in_text[step]
        reached_sampled = reached_sampled * probs.ratio[step]
    return {"point": torch.stack(point), "sampled": torch.stack(sampled), "there": torch.stack(at_risk)}


def acceptance(sums: Mapping[str, Tensor]) -> TeacherForcedAcceptance:
    """What added sums of `tally` say, the interval at 90 % (with a single document: all that is possible).

    Raises ValueError where nothing was drafted.
    """
    totals = {name: value.cpu().numpy() for name, value in sums.items()}
    if not totals["risk"][0].any():
        raise ValueError(
            "no drafted token to judge: the texts hold no predicted token behind two others; check the loss masks"
        )
    given_prefix = _rates(totals["accepted"], totals["risk"])
    survival, whole_steps = np.cumprod(given_prefix, -1), totals["whole"][0]
    tokens_per_step = 1 + survival.sum(-1)
    uniform = 1 + np.cumprod(_rates(totals["all_accepted"][0], totals["all_risk"][0])).sum()
    documents, resampled = int(totals["documents"][0]), tokens_per_step[1:][totals["risk"][1:, 0] > 0]
    low, high = np.quantile(resampled, (0.05, 0.95)) if documents > 1 else (1.0, len(given_prefix[0]) + 1.0)
    return TeacherForcedAcceptance(
        lookahead=len(given_prefix[0]),
        documents=documents,
        tokens=int(totals["tokens"][0]),
        steps=int(totals["steps"][0]),
        tokens_per_step=Estimate(
            value=float(tokens_per_step[0]), low=float(low), high=float(high), unit="tokens/step", source=SOURCE
        ),
        emitted_per_step=float(totals["emitted"][0] / whole_steps) if whole_steps else None,
        uniform_tokens_per_step=float(uniform),
        survival=tuple(survival[0].tolist()),
        accept_given_prefix=tuple(given_prefix[0].tolist()),
        accept_prob=float(totals["all_accepted"][0, 0] / totals["all_risk"][0, 0]),
        departures=float(totals["departed"][0] / totals["tokens"][0]),
        cut=float(totals["cut"][0] / totals["steps"][0]),
    )


def _rates(accepted: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """accepted/risk; 0 where nothing was at risk: what was never reached is not credited."""
    return np.divide(accepted, risk, out=np.zeros_like(accepted), where=risk > 0)
