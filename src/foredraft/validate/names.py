"""What follows from names alone, against what was measured: speed without speculation, time to the first token of an idle server,
tokens that the KV cache holds. Nothing of the judged table is used; the cost law stands with its defaults.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import numpy as np

from foredraft.laws.calibration import MULTIPLIERS, adjusted
from foredraft.laws.cost import ServerCost, mean_running
from foredraft.records import Observation
from foredraft.validate.findings import QUANTITIES, NamedPoint, Validation, setting
from foredraft.validate.servers import DEFAULT_LENGTHS, capacity, is_mixture, known_servers
from foredraft.validate.throughput import INTERVAL_SD, load

PLAIN_SPEED, FIRST_TOKEN, CACHE = QUANTITIES


def judge(rows: Sequence[Observation], machine: str | None, advance: Callable[[int], object] = int) -> Validation:
    """Predict plain tokens/s and, at one client, TTFT of every row without speculation, and the cache of every row that states it."""
    points: list[NamedPoint] = []
    lacking: Counter[str] = Counter()
    assumed: dict[str, None] = {}
    known: dict[Hashable, tuple[float, float]] = {}  # figures, with the sd of their logarithm, that rows share
    for row in rows:
        for quantity, measured in _measured(row).items():
            try:
                value, log_sd = _predicted(row, quantity, machine, known)
            except ValueError as error:
                lacking[f"{error} (for {quantity} from names)"] += 1
                continue
            width = float(np.exp(INTERVAL_SD * log_sd))
            points.append(
                NamedPoint(
                    setting=setting(row), quantity=quantity, load=load(row) or 1, measured=measured, predicted=value,
                    low=value / width, high=value * width, mixture=is_mixture(row.target),
                )
            )  # fmt: skip
            for note, missing in _assumed(row, quantity, machine):
                if missing:
                    assumed[note] = None
        advance(1)
    return Validation(named=tuple(points), lacking=dict(lacking), assumed=tuple(assumed))


def _measured(row: Observation) -> dict[str, float]:
    """The quantities that a row states and that can be told from names."""
    out: dict[str, float] = {}
    if row.method == "none" and row.output_tok_s and load(row):
        out[PLAIN_SPEED] = row.output_tok_s
    if row.method == "none" and row.ttft_s and load(row) == 1 and row.input_len:
        out[FIRST_TOKEN] = row.ttft_s
    if row.kv_cache_tokens:
        out[CACHE] = float(row.kv_cache_tokens)
    return out


def _assumed(row: Observation, quantity: str, machine: str | None) -> tuple[tuple[str, bool], ...]:
    lengths = quantity == PLAIN_SPEED and (row.input_len is None or row.output_len is None)
    return (
        (f"prompts of {DEFAULT_LENGTHS[0]:.0f} and answers of {DEFAULT_LENGTHS[1]:.0f} tokens", lengths),
        (f"machine {machine}", row.machine is None),
        ("weights as the checkpoint stores them", row.dtype is None),
    )


def _predicted(
    row: Observation, quantity: str, machine: str | None, known: dict[Hashable, tuple[float, float]]
) -> tuple[float, float]:
    """The figure and the sd of its logarithm. Raises ValueError naming what is not known."""
    if quantity == CACHE:
        return capacity(row, machine), MULTIPLIERS["capacity"]
    lengths = (row.input_len or DEFAULT_LENGTHS[0], row.output_len or DEFAULT_LENGTHS[1])
    servers = known_servers(row, lengths, machine)
    plain = servers.plain
    clients = float(mean_running(load(row), max(row.num_requests or 0, load(row))))
    key = (plain, clients, quantity)
    if key not in known:
        known[key] = with_log_sd(partial(_figure, plain, clients, quantity), servers.prior_width)
    return known[key]


def _figure(plain: ServerCost, clients: float, quantity: str, multipliers: Mapping[str, float]) -> float:
    served = adjusted(plain, multipliers).load(clients, 0.0, 1.0)
    return float(served.output_tok_s if quantity == PLAIN_SPEED else served.ttft_s)


def with_log_sd(figure: Callable[[Mapping[str, float]], float], prior_width: float = 1.0) -> tuple[float, float]:
    """A figure at the cost law's defaults, and the sd of its logarithm under the prior of MULTIPLIERS, `prior_width` times as wide, to
    first order.
    """
    defaults = dict.fromkeys(MULTIPLIERS, 1.0)
    slopes = [
        np.log(figure(defaults | {name: float(np.exp(sd))}) / figure(defaults | {name: float(np.exp(-sd))})) / 2
        for name, sd in MULTIPLIERS.items()
    ]
    return figure(defaults), prior_width * float(np.linalg.norm(slopes))
