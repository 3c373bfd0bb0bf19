"""A study of a small target as it would be measured, from a known law of acceptance and a known cost law: for tests of what is
planned from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.special import expit

from foredraft import kinds
from foredraft.laws.calibration import MULTIPLIERS, adjusted
from foredraft.laws.cost import ServerCost
from foredraft.laws.passes import Layout
from foredraft.laws.speedup import best_tree, rank_acceptance
from foredraft.plan.served import Place
from foredraft.records import Machine, Observation, Provenance
from foredraft.shapes import Shape, from_config, scaled

TARGET = from_config(
    {
        "model_type": "llama", "hidden_size": 320, "intermediate_size": 896, "num_attention_heads": 5, "num_hidden_layers": 8,
        "vocab_size": 4096, "head_dim": 64, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "tales",
)  # fmt: skip
MACHINE = Machine(
    name="a desk's CPU", memory_bytes=2.5e10, bandwidth_bytes_per_s=1.7e10, flops_per_s={"float32": 1.2e11}, source="probe",
    step_overhead_s=2.7e-4, threads=2,
)  # fmt: skip
SIZES, LM_BUDGETS = (5e4, 1.2e5, 2.5e5, 6e5, 1.4e6, 3e6), (1.5e5, 3.6e5, 8.7e5, 2.1e6, 5e6)
DEPTHS, HEAD_BUDGETS = (1, 2, 3, 4), (1e5, 2.4e5, 5.6e5, 1.35e6, 3.2e6)
LENGTHS = {"input_len": 40.0, "output_len": 90.0}
KNOWN_COSTS = {
    "memory": 1.2, "experts": 1.0, "compute": 0.8, "target_fixed": 1.3, "draft_weight": 0.85, "draft_fixed": 1.6, "speculation": 0.6, "tree": 1.4,
    "capacity": 1.0, "prefill": 1.3, "blend": 0.8,
}  # fmt: skip
POSITIONS = 16
TAIL = 1.8


@dataclass(frozen=True)
class Truth:
    """What holds in the simulated world. Exponents as the laws' names have them; `fade` moves logits by position."""

    size: dict[str, float] = field(default_factory=lambda: {"c0": 2.4, "A": 90.0, "B": 60.0, "a": 0.32, "b": 0.32})
    head: dict[str, float] = field(default_factory=lambda: {"c0": 1.9, "A": 0.9, "B": 30.0, "a": 0.7, "b": 0.27})
    fade: float = 0.3
    multipliers: dict[str, float] = field(default_factory=lambda: KNOWN_COSTS)
    alpha_noise: float = 0.03
    speed_noise: float = 0.015

    def level(self, shape: Shape, tokens: float) -> float:
        """Logit of the first position."""
        law, dial = (self.head, shape.num_layers) if shape.head else (self.size, shape.params)
        lower = 0.5 if kinds.of_shape(shape) is kinds.EAGLE else 0.0
        return law["c0"] - law["A"] * dial ** -law["a"] - law["B"] * tokens ** -law["b"] - lower

    def accept(self, shape: Shape, tokens: float, temperature: float = 0.0, moved: float = 0.0) -> np.ndarray:
        """accept_given_prefix [K]: heads fall with position, models rise a little; sampling costs half a logit."""
        drift = -self.fade if shape.head else 0.3 * self.fade
        fading = drift * (1 - 0.6 ** np.arange(POSITIONS))
        return expit(self.level(shape, tokens) + fading - (0.5 if temperature else 0.0) + moved)

    def speed(
        self, shape: Shape | None, batch: int, depth: int, tau: float, width: int = 1, nodes: int | None = None
    ) -> float:
        """Output tokens/s."""
        server = true_server(shape, self.knobs_key)
        return float(server.load(batch, depth, tau, width=width, nodes=depth if nodes is None else nodes).output_tok_s)

    @property
    def knobs_key(self) -> tuple[tuple[str, float], ...]:
        return tuple(self.multipliers.items())


@cache
def true_server(shape: Shape | None, multipliers: tuple[tuple[str, float], ...]) -> ServerCost:
    place = Place(TARGET, MACHINE, "foredraft", Layout(), "float32")
    plain = place.server(shape, LENGTHS["input_len"], LENGTHS["output_len"], speculate=shape is not None)
    assert set(dict(multipliers)) == set(MULTIPLIERS)
    return adjusted(plain, dict(multipliers))


def tau_of(accept: np.ndarray, depth: int, width: int = 1, nodes: int | None = None) -> float:
    if width == 1:
        return float(1 + np.cumprod(accept)[:depth].sum())
    curve = best_tree(rank_acceptance(accept[:depth], width, TAIL), nodes or depth, depth, width).tokens_per_step
    return float(curve[-1])


def drafts() -> Iterator[tuple[str, str, Shape, float]]:
    """Name, method, shape and tokens of every draft of the study."""
    for size in SIZES:
        for tokens in LM_BUDGETS:
            yield f"lm-n{size:.2g}-d{tokens:.2g}", "draft_model", scaled(TARGET, size), tokens
    yield "eagle2", "eagle", kinds.EAGLE.shape(TARGET), 2e6
    for depth in DEPTHS:
        for tokens in HEAD_BUDGETS:
            yield f"scylla-L{depth}-d{tokens:.2g}", "eagle3", kinds.EAGLE3.shape(TARGET, depth, 4096), tokens


def observed(
    truth: Truth | None = None, *, seed: int = 0, batches: tuple[int, ...] = (1, 8, 32), temperature: float = 0.0,
    kinds: tuple[str, ...] = ("draft_model", "eagle", "eagle3"),
) -> list[Observation]:  # fmt: skip
    """Rows as `foredraft measure` writes them: plain, chains of 1, 3 and 5 and for heads a tree, live by batch; and forced."""
    truth, rng = truth or Truth(), np.random.default_rng(seed)
    base = {
        "target": "runs/tales", "target_params": float(TARGET.params), "dataset": "prompts", "temperature": temperature,
        "engine": "foredraft", "machine": MACHINE.name, "dtype": "float32", "provenance": Provenance(source="simulated"),
        "pooling": "steps", **LENGTHS,
    }  # fmt: skip

    def noisy(speed: float) -> float:
        return speed * float(np.exp(truth.speed_noise * rng.standard_normal()))

    observations = []
    for name, method, shape, tokens in (draft for draft in drafts() if draft[1] in kinds):
        accept = truth.accept(shape, tokens, temperature, truth.alpha_noise * rng.standard_normal())
        fields = base | {
            "run": name, "draft": f"{name}/final", "method": method, "draft_params": float(shape.params),
            "draft_layers": shape.num_layers, "draft_tokens": tokens,
        }  # fmt: skip
        for batch in batches:
            plain = noisy(truth.speed(None, batch, 0, 1.0))
            observations.append(
                Observation(run=name, method="none", batch_size=batch, output_tok_s=plain, **_less(base, "run"))
            )
            specs = [(k, 1, k) for k in (1, 3, 5)] + ([(5, 4, 15)] if shape.head else [])
            for depth, width, nodes in specs:
                tau = tau_of(accept, depth, width, nodes)
                speed = noisy(truth.speed(shape, batch, depth, tau, width, nodes))
                survival = tuple(np.cumprod(accept)[:depth].tolist()) if width == 1 else None
                observations.append(
                    Observation(
                        lookahead=depth, topk=width, tree_nodes=nodes, batch_size=batch, tokens_per_step=tau,
                        survival=survival, output_tok_s=speed, speedup=speed / plain, steps=2000, **fields,
                    )
                )  # fmt: skip
        observations.append(
            Observation(
                lookahead=5, topk=1, tree_nodes=5, tokens_per_step=tau_of(accept, 5), steps=2000,
                survival=tuple(np.cumprod(accept)[:5].tolist()), **_less(fields, "output_len"),
            )
        )  # fmt: skip
    return observations


def _less(fields: dict, name: str) -> dict:
    return {key: value for key, value in fields.items() if key != name}


def best_speed(truth: Truth, batch: int, method: str | None = None, temperature: float = 0.0) -> tuple[float, str]:
    """The greatest throughput of any draft of the study with any chain of 0 to 8, and whose."""
    able = [
        (
            truth.speed(shape, batch, k, tau_of(truth.accept(shape, tokens, temperature), k))
            if k
            else truth.speed(None, batch, 0, 1.0),
            name,
        )
        for name, how, shape, tokens in drafts()
        if method in (None, how)
        for k in range(9)
    ]
    return max(able)
