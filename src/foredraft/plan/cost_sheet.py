"""What a draft costs to get, and what output tokens cost with it: the target's own answers, its hidden states, the training.

Promises: training lies on a machine of its own where one is named; a load counts by the share of time that the server spends at it, so
that a token counts where it is served. Refuses to know: how a draft is chosen, and any currency.

Shapes: C concurrencies, S draws.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.kinds import ANSWERS_SHARE, USUAL_HEAD
from foredraft.laws.passes import Layout
from foredraft.plan.candidate import Candidate, training_rate
from foredraft.plan.estimated import estimated
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored
from foredraft.plan.served import Place
from foredraft.records import BreakEven, CostSheet, DraftChoice, Estimate, with_hint

Array = NDArray[np.float64]

ANSWER_CLIENTS = 256  # prompts that the target answers at once for training: a batch job, at about full load
DAY_S = 86400.0


def with_answers(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same, with the hours of the target's own answers in what heads cost to train, where those are counted.

    Raises ValueError where the target does not fit the training machine.
    """
    if not problem.settings.terms.answers or not any(answer_tokens(problem, each.choice) for each in candidates):
        return list(candidates)
    token_s = answer_device_s(problem)
    return [replace(each, choice=_with_answers(problem, each.choice, token_s)) for each in candidates]


def _with_answers(problem: Problem, choice: DraftChoice, token_s: float) -> DraftChoice:
    hours = answer_tokens(problem, choice) * token_s / 3600
    return msgspec.structs.replace(choice, training_gpu_hours=choice.training_gpu_hours + hours)


def answer_tokens(problem: Problem, choice: DraftChoice) -> float:
    """Tokens that the target has to write for a head's training: the answers' share of the workload's tokens, of the training tokens that
    are answers and their prompts, each written once for all epochs; 0 where nothing learns from answers.
    """
    if choice.kind != "head" or not choice.training_flops or not choice.draft_tokens:
        return 0.0
    load, deep = problem.workload, choice.num_layers > 1 and choice.method == USUAL_HEAD.name
    training = kinds.of_choice(choice).training
    read_once = choice.draft_tokens / (training.epochs if training else 1.0)
    return (ANSWERS_SHARE if deep else 1.0) * read_once * load.output_len / (load.input_len + load.output_len)


def answer_device_s(problem: Problem) -> float:
    """Device-seconds in which the target writes a token on the training machine, prompts included, `ANSWER_CLIENTS` at once."""
    settings, load, terms = problem.settings, problem.workload, problem.settings.terms
    if terms.train_machine is None:
        server, devices = problem.server(None, speculate=False), settings.devices
    else:
        devices, name = terms.train_devices, terms.train_machine.name
        layout = Layout(tensor=devices)
        place = Place(problem.target, terms.train_machine, settings.engine, layout, settings.dtype, settings.kv_dtype)
        try:
            server = place.server(None, load.input_len, load.output_len, speculate=False)
        except ValueError as error:
            message = f"--train-machine {devices}x{name}: the target cannot answer there: {error}"
            raise with_hint(
                ValueError(message), "name more devices, such as 8xH100, or --no-answers where you have answers"
            ) from None
    return devices / float(server.load(ANSWER_CLIENTS, 0.0, 1.0).output_tok_s)


def cost_sheet(problem: Problem, best: Scored) -> CostSheet | None:
    """None without a draft, and where one neither has to be trained nor has a price."""
    terms, choice, outcome = problem.settings.terms, best.candidate.choice if best.candidate else None, best.outcome
    if choice is None or not (choice.training_flops or terms.device_hour):
        return None
    rate, tokens = training_rate(problem.train_machine), choice.draft_tokens or 0.0
    training_hours = choice.training_flops / rate / 3600
    reads_states = choice.kind == "head" and choice.training_flops > 0
    passes_hours = tokens * problem.target.flops_per_token(0) / rate / 3600 if reads_states else 0.0
    price, train_price = terms.device_hour, terms.train_device_hour or terms.device_hour
    per_million, per_million_plain = (
        _per_million(problem, best, speed) for speed in (outcome.output_tok_s, outcome.plain_tok_s)
    )
    return CostSheet(
        machine=problem.train_machine.name, devices=terms.train_devices if terms.train_machine else problem.settings.devices,
        draft_hours=max(training_hours - passes_hours, 0.0), passes_hours=passes_hours,
        answers_hours=max(choice.training_gpu_hours - training_hours, 0.0),
        answer_tokens=answer_tokens(problem, choice) or None if terms.answers else None,
        device_hour=price, train_device_hour=train_price, spent=None if train_price is None else choice.training_gpu_hours * train_price,
        per_million=per_million, per_million_plain=per_million_plain,
    )  # fmt: skip


def _per_million(problem: Problem, best: Scored, speed: Array) -> Estimate | None:
    """Money for a million output tokens at `speed` [C, S]; None without a price."""
    if (price := problem.settings.terms.device_hour) is None:
        return None
    spent_s = 1e6 * device_s(problem, speed, best.outcome.plain_tok_s)
    return estimated(price / 3600 * spent_s, "money per million output tokens", best)


def device_s(problem: Problem, speed: Array, plain: Array) -> Array:
    """Device-seconds of serving per output token [S] at `speed` [C, S], of traffic that keeps a server without a draft (`plain` [C, S])
    at each load for its share of the time: w·plain tokens are served at a load of share w, which take w·plain/speed of the time.
    """
    served = problem.weights[:, None] * plain
    return problem.settings.devices * (served / speed).sum(axis=0) / served.sum(axis=0)


def break_even(problem: Problem, best: Scored, level: float = 0.9) -> BreakEven | None:
    """None without training, and where the middle draw never pays it back."""
    hours = best.candidate.choice.training_gpu_hours if best.candidate else 0.0
    plain, speed = best.outcome.plain_tok_s, best.outcome.output_tok_s
    saved_s = device_s(problem, plain, plain) - device_s(problem, speed, plain)
    if hours <= 0 or np.median(saved_s) <= 0:
        return None
    least, middle, most = np.quantile(saved_s, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    spent_s = hours * 3600 * problem.settings.terms.train_weight
    per_day = DAY_S * float(np.median(problem.weights @ plain))
    return BreakEven(
        tokens=spent_s / middle, low=spent_s / most, high=spent_s / least if least > 0 else None, level=level,
        days=spent_s / middle / per_day,
    )  # fmt: skip
