"""What a look-up before a draft brings, counted on a target's greedy answers: src/foredraft/published/lookup_matches.json.

    foredraft measure TARGET --prompts FILE --way forced --kept KEPT --draft DRAFT@5 --out OUT   # leaves the answers in KEPT
    python recipes/smollm2/lookup_matches.py TARGET FILE KEPT

Looked-up steps follow from the answers alone. Counted by category of prompts: prompt lookup at every step, matches of any length, as it is alone;
and the look-up as it stands before a draft, the other steps being plain decoding, or a draft's that accepts each next token with a probability
of its own. FILE: prompts with categories, as `foredraft measure` reads them; KEPT: answers to all of them at one temperature.
"""

import json
import random
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from foredraft import text
from foredraft.data.prompts import Encoding, read_prompts
from foredraft.data.sources import Skips
from foredraft.decode.ngram import NGramDrafter, NGramIndex
from foredraft.kinds import Lookup
from foredraft.measure.subject import by_category as in_order
from foredraft.plan.beside_lookup import SUMMED

ALONE = 8  # tokens that prompt lookup alone looks up
DRAFTS = ((0.4, 2), (0.6, 1), (0.6, 3), (0.8, 3), (0.8, 5))  # acceptance of a simulated draft, and its lookahead


class Answer(NamedTuple):
    """A prompt's and its answer's tokens, and where the answer's second begins: the first comes of the prompt's pass."""

    tokens: list[int]
    second: int


class Taken(NamedTuple):
    """Steps, those looked up, tokens accepted and drafted in those."""

    steps: int
    matched: int
    accepted: int
    drafted: int

    @property
    def odds(self) -> float:
        """Steps that are looked up over those that are not."""
        return self.matched / (self.steps - self.matched)

    @property
    def gained(self) -> float:
        """Tokens accepted in a looked-up step."""
        return self.accepted / self.matched


def main() -> None:
    target, prompts, kept = (Path(word) for word in sys.argv[1:])
    answers = by_category(target, prompts, next(kept.glob("answers-*.safetensors")))
    alone = {category: survival(part) for category, part in answers.items()}
    plain = {category: taken(part) for category, part in answers.items()}
    first = [np.log(plain[name].matched / plain[name].steps / alone[name][0]) for name in answers]
    further = [np.log(plain[name].gained / (alone[name][:SUMMED].sum() / alone[name][0])) for name in answers]
    beside = [(name, *draft) for name in answers for draft in DRAFTS]
    mixed = [taken(answers[name], accept, num) for name, accept, num in beside]
    tau = np.log([sum(accept**i for i in range(num + 1)) for _, accept, num in beside])
    odds = np.log([each.odds / plain[name].odds for each, (name, *_) in zip(mixed, beside, strict=True)])
    rises = np.log([each.gained / plain[name].gained for each, (name, *_) in zip(mixed, beside, strict=True)])
    every = [*plain.values(), *mixed]
    slope, constant = np.polyfit([each.gained for each in every], [each.drafted / each.matched for each in every], 1)
    figures = {
        **Lookup()._asdict(), "share_of_first": np.exp(np.mean(first)), "share_of_first_sd": np.std(first, ddof=1),
        "accepted_of_alone": np.exp(np.mean(further)), "accepted_of_alone_sd": np.std(further, ddof=1),
        "share_by_tau": tau @ odds / (tau @ tau), "accepted_by_tau": tau @ rises / (tau @ tau), "drafted": [constant, slope],
    }  # fmt: skip
    print(json.dumps(figures, default=float, indent=1))


def by_category(target: Path, file: Path, kept: Path) -> dict[str, list[Answer]]:
    """The kept answers to first turns; of each category those to later ones lie behind them."""
    stored, encoding = load_file(kept), Encoding(text.tokenizer_of(target))
    told = iter(np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1]))
    answers: dict[str, list[Answer]] = {}
    for category, prompts in groupby(
        in_order(read_prompts(file, encoding, Skips("stop"))), lambda prompt: prompt.category
    ):
        part = list(prompts)
        answers[category or ""] = [Answer([*prompt.ids, *next(told).tolist()], len(prompt.ids) + 1) for prompt in part]
        deque(islice(told, sum(len(prompt.later) for prompt in part)), maxlen=0)
    assert next(told, None) is None, f"{kept} holds answers to other prompts than {file}"
    return answers


def survival(answers: Iterable[Answer]) -> np.ndarray:
    """Shares of all steps of prompt lookup alone in which each of its tokens survives."""
    sizes, reached = NGramDrafter().sizes, []
    for tokens, place in answers:
        index = NGramIndex(sizes)
        while place < len(tokens):
            num = agreed(index.after(tokens[:place], ALONE), tokens[place:])
            reached.append(num)
            place += num + 1
    return np.array([np.mean(np.array(reached) >= i) for i in range(1, ALONE + 1)])


def taken(answers: Iterable[Answer], accept: float = 0.0, lookahead: int = 0) -> Taken:
    """What the look-up takes beside a draft whose `lookahead` tokens are each accepted, after those before, with probability `accept`."""
    lookup, chance, counts = Lookup(), random.Random(0), np.zeros(4, int)
    for tokens, place in answers:
        index = NGramIndex(lookup.sizes)
        while place < len(tokens):
            chain = index.as_long_as_matched(tokens[:place], lookup.lookahead)
            num = agreed(chain, tokens[place:])
            counts += (1, bool(chain), num, len(chain))
            while not chain and num < lookahead and chance.random() < accept:
                num += 1
            place += num + 1
    return Taken(*counts.tolist())


def agreed(drafted: Sequence[int], told: Sequence[int]) -> int:
    """How many of the drafted tokens the answer goes on with."""
    pairs = enumerate(zip(drafted, told, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(drafted), len(told)))


if __name__ == "__main__":
    main()
