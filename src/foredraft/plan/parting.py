"""Where SDSL's best draft size (arXiv 2603.11053) and ours part, and which cause moves it by how much.

Promises: both sizes come from one search over the same buildable models; causes are switched each by itself, in all combinations, so that
their shares are of no order and multiply to the whole ratio. Refuses to know: heads, trees, what training costs: an independent model
drafts a chain.

Shapes: N sizes, K lookaheads, S draws.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Polynomial

from foredraft import kinds, shapes
from foredraft.laws.cost import ServerCost, serve
from foredraft.laws.law import Array
from foredraft.laws.passes import Layout
from foredraft.machines import machine
from foredraft.plan import sdsl
from foredraft.plan.candidate import SizeAcceptance
from foredraft.plan.candidates import LM_TOKENS, Basis, buildable
from foredraft.plan.levels import any_draft
from foredraft.records import Fit, Machine
from foredraft.shapes import Shape

CAUSES = {
    "training tokens": f"the target's published tokens and drafts of {LM_TOKENS[-1]:.0e}, not 1e11 of both".replace(
        "e+", "e"
    ),
    "acceptance": "our law of published pairs by loss gap and position, not the plane over perplexities",
    "bandwidth": "seconds of a pass by bytes read and FLOPs on the machine, not FLOPs with a verification as one plain pass",
    "fixed costs": "what each pass, layer and speculative step takes however small the draft, not nothing",
    "batch": "32 sequences at once, not one",
}
COSTS = ("bandwidth", "fixed costs", "batch")  # the others are of acceptance
BATCH = {False: 1.0, True: 32.0}
TARGETS = ("OPT-13B", "OPT-30B", "OPT-66B", "Llama-3-70B", "Qwen1.5-110B")
MACHINES = ("A100-SXM-80GB", "H100-SXM-80GB")
INPUT_LEN, OUTPUT_LEN, TEMPERATURE = 512.0, 256.0, 1.0  # temperature 1: the plane's α is the sampled one
LOOKAHEADS = np.arange(1, 17)
BODIES = 30  # sizes searched
LEAST_BODY, MOST_SHARE = 3e6, 0.3  # non-embedding parameters of the least; the most as a share of the target
DEGREE, FINE = 4, 600  # of the polynomial over log sizes; points at which its peak is looked for
DRAWS, SEED = 64, 0
SAME = 0.01  # log of gains that are as good
On = frozenset[str]


class Peak(NamedTuple):
    """N* in parameters, the gain there, its lookahead, whether it is the least or the largest size searched, and the sizes `low` to `high`
    that gain as much within 1 %; `gain_at`: the gain at the size asked for.
    """

    params: float
    gain: float
    lookahead: int
    at_edge: bool
    low: float
    high: float
    gain_at: float | None = None


@dataclass(frozen=True)
class PairAcceptance:
    """Tokens per step of every size beside a target, whatever it runs on."""

    target: Shape
    laws: tuple[Fit, ...]

    @cached_property
    def drafts(self) -> tuple[Shape, ...]:
        most = MOST_SHARE * self.target.non_embedding_params
        return tuple(buildable(self.target, float(body)) for body in np.geomspace(LEAST_BODY, most, BODIES))

    @cached_property
    def log_sizes(self) -> Array:
        return np.log([float(draft.params) for draft in self.drafts])

    @cached_property
    def by_cause(self) -> dict[On, Array]:
        """Tokens per step [N, K] by those of the two causes that are switched."""
        switches = ((), ("training tokens",), ("acceptance",), ("training tokens", "acceptance"))
        return {frozenset(on): self._accepted(frozenset(on)) for on in switches}

    def _accepted(self, on: On) -> Array:
        tokens = "training tokens" in on
        target_tokens = float(self.target.training_tokens or 0) if tokens else 1e11
        draft_tokens = LM_TOKENS[-1] if tokens else 1e11
        sizes = np.exp(self.log_sizes)
        if "acceptance" in on:
            by_position = np.stack([self._drawn(float(size), draft_tokens, target_tokens) for size in sizes], axis=1)
        else:
            alpha = sdsl.throughput(sizes, float(self.target.params), draft_tokens, target_tokens).accept_prob
            by_position = np.repeat(alpha[:, None], len(LOOKAHEADS), axis=1)[None]
        return 1 + np.cumsum(np.cumprod(by_position, axis=-1), axis=-1).mean(axis=0)

    def _drawn(self, size: float, draft_tokens: float, target_tokens: float) -> Array:
        """α by position under joint draws, [S, K]."""
        inputs = {
            "draft_params": size,
            "draft_tokens": draft_tokens,
            "target_params": float(self.target.params),
            "target_tokens": target_tokens,
        }
        law = SizeAcceptance(self.laws, inputs, any_draft(kinds.LM.prior))
        return law.draws(DRAWS, np.random.default_rng(SEED), frozenset())[:, : len(LOOKAHEADS)]


@dataclass(frozen=True)
class PartingCase:
    """A target on the fewest devices that hold it beside its largest draft."""

    accepted: PairAcceptance
    machine_name: str

    @cached_property
    def machine(self) -> Machine:
        return machine(self.machine_name)

    @cached_property
    def layout(self) -> Layout:
        """Raises ValueError where 8 devices do not hold the target."""
        for devices in (1, 2, 4):
            try:
                self._server(self.accepted.drafts[-1], Layout(tensor=devices))
            except ValueError:
                continue
            return Layout(tensor=devices)
        return Layout(tensor=8)

    def _server(self, draft: Shape, layout: Layout) -> ServerCost:
        return serve(
            self.accepted.target, self.machine, input_len=INPUT_LEN, output_len=OUTPUT_LEN, draft=draft, layout=layout, dtype="bfloat16"
        )  # fmt: skip

    @cached_property
    def by_cause(self) -> dict[On, Array]:
        """Seconds of a step over those of plain decoding, [N, K], by those of the three causes of cost that are switched."""
        servers = [(self._server(draft, self.layout), float(draft.params)) for draft in self.accepted.drafts]
        return {on: np.stack([self._step(server, params, on) for server, params in servers]) for on in _subsets(COSTS)}

    def _step(self, server: ServerCost, params: float, on: On) -> Array:
        target, draft, batch = server.target, server.draft, BATCH["batch" in on]
        assert draft is not None
        plain = float(replace(target, fixed_s=0.0).seconds(batch, 1.0, server.blend))
        if "bandwidth" in on:
            verified = replace(target, fixed_s=0.0).seconds(batch, LOOKAHEADS + 1.0, server.blend)
            drafted = LOOKAHEADS * float(replace(draft, fixed_s=0.0).seconds(batch, 1.0, server.blend))
        else:
            verified, drafted = (
                np.full(len(LOOKAHEADS), plain),
                LOOKAHEADS * plain * params / float(self.accepted.target.params),
            )
        if "fixed costs" not in on:
            return (verified + drafted) / plain
        fixed = target.fixed_s + LOOKAHEADS * draft.fixed_s + server.speculation_s
        return (verified + drafted + fixed) / (plain + target.fixed_s)

    def gains(self, on: On) -> Array:
        """Over plain decoding at each size and lookahead, [N, K]."""
        return self.accepted.by_cause[on - set(COSTS)] / self.by_cause[on & set(COSTS)]

    def peak(self, on: On, at: float | None = None) -> Peak:
        """Of the polynomial through the log gains, which sizes in whole layers and heads scatter; `at`: a size whose gain is wanted too."""
        by_lookahead, log_sizes = self.gains(on), self.accepted.log_sizes
        gains = np.log(by_lookahead.max(axis=1))
        fine = np.linspace(log_sizes[0], log_sizes[-1], FINE)
        smooth = Polynomial.fit(log_sizes, gains, DEGREE)(fine)
        place = int(np.argmax(smooth))
        alike = np.exp(fine[smooth >= smooth[place] - SAME])
        nearest = int(np.argmin(np.abs(log_sizes - fine[place])))
        return Peak(
            float(np.exp(fine[place])), float(np.exp(smooth[place])), int(LOOKAHEADS[np.argmax(by_lookahead[nearest])]), place in (0, FINE - 1),
            float(alike.min()), float(alike.max()), float(np.exp(np.interp(math.log(at), fine, smooth))) if at else None,
        )  # fmt: skip


def shares(value: dict[On, float], causes: Sequence[str] = tuple(CAUSES)) -> dict[str, float]:
    """Each cause's mean over all orders of what switching it adds (Shapley); the sum is what all add together."""
    orders = math.factorial(len(causes))
    added = {}
    for cause in causes:
        others = [other for other in causes if other != cause]
        added[cause] = sum(
            (value[part | {cause}] - value[part]) * math.factorial(len(part)) * math.factorial(len(others) - len(part)) / orders
            for part in _subsets(others)
        )  # fmt: skip
    return added


def _subsets(causes: Iterable[str]) -> list[On]:
    causes = tuple(causes)
    return [frozenset(part) for size in range(len(causes) + 1) for part in itertools.combinations(causes, size)]


def part(case: PartingCase) -> dict[str, Any]:
    """SDSL's N* and ours, and by what factor each cause moves it: alone from SDSL's, last to ours, and its share over all orders."""
    peaks = {on: case.peak(on) for on in _subsets(CAUSES)}
    every = frozenset(CAUSES)
    none, full = peaks[frozenset()], peaks[every]
    share = shares({on: math.log(peak.params) for on, peak in peaks.items()})
    target = case.accepted.target
    return {
        "target": target.name, "machine": case.machine_name, "devices": case.layout.tensor,
        "sdsl_exact": sdsl.optimal_draft(float(target.params)).draft_params, "sdsl": none.params,
        "ours": full.params, "low": full.low, "high": full.high, "at_edge": full.at_edge, "gain": full.gain, "lookahead": full.lookahead,
        "gain_at_sdsl": case.peak(every, none.params).gain_at,
        "share": {cause: math.exp(share[cause]) for cause in CAUSES},
        "alone": {cause: peaks[frozenset({cause})].params / none.params for cause in CAUSES},
        "last": {cause: full.params / peaks[every - {cause}].params for cause in CAUSES},
    }  # fmt: skip


def parting(targets: Sequence[str] = TARGETS, machines: Sequence[str] = MACHINES) -> dict[str, Any]:
    """Every target on every machine, what each cause does on the whole, and that in words; plain JSON values."""
    laws = Basis(
        shapes.shape(targets[0]), machine(machines[0]), (), TEMPERATURE
    ).size_laws  # of published pairs, so of no target
    pairs = [PairAcceptance(shapes.shape(name), laws) for name in targets]
    cases = [part(PartingCase(pair, of)) for pair in pairs for of in machines]
    mean = {cause: math.exp(float(np.mean([math.log(case["share"][cause]) for case in cases]))) for cause in CAUSES}
    return {
        "causes": CAUSES, "cases": cases, "mean_share": mean, "words": list(words(cases, mean)),
        "assumes": f"independent models in chains of at most {LOOKAHEADS[-1]}, prompts of {INPUT_LEN:g} and answers of {OUTPUT_LEN:g} tokens, "
        f"temperature {TEMPERATURE:g}, bfloat16, vLLM's default costs; what training costs is left out of both",
    }  # fmt: skip


def words(cases: Sequence[dict[str, Any]], mean: dict[str, float]) -> Iterator[str]:
    """The same for people, the largest cause first."""
    ratios = [case["ours"] / case["sdsl"] for case in cases]
    lost = [1 - case["gain_at_sdsl"] / case["gain"] for case in cases]
    yield (
        f"Over {len(cases)} cases our best size is {min(ratios):.2g} to {max(ratios):.2g} times SDSL's. The optimum is flat: by our laws SDSL's "
        f"size loses {np.mean(lost):.1%} of the speed on average, {max(lost):.1%} at most."
    )
    for cause in sorted(mean, key=lambda cause: -abs(math.log(mean[cause]))):
        by_case = [case["share"][cause] for case in cases]
        yield f"{cause} ({CAUSES[cause]}): N* ×\u00a0{mean[cause]:.2f} on average, ×\u00a0{min(by_case):.2f} to {max(by_case):.2f} by case."
