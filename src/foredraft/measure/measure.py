"""A target and its drafts on prompts: every figure of `foredraft measure`, live and teacher-forced, by category.

Live: the engine decodes, by batch and temperature. Forced: the target's own answers are read once by target and draft, which
gives the greedy α of its greedy answers, and the point and sampled α of its answers at temperature 1, whatever temperature is
decoded live; and the perplexities of both on the prompts' references, or on the prompts where they have none.

Promises: plain decoding is an arm of the same run; equal seeds give equal counts. Refuses to know: the laws, files.

Shapes: D requests, G groups that ran together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from foredraft.data.prompts import Prompt
from foredraft.decode.batch import Request
from foredraft.decode.sampling import Sampling
from foredraft.measure import rows
from foredraft.measure.arms import PLAIN, Arm, longest, shape_of
from foredraft.measure.bootstrap import Array
from foredraft.measure.live import Run, groups_of, run_arms, turns
from foredraft.models.decoder import Decoder
from foredraft.models.heads import DraftHead
from foredraft.records import Measurement, Record
from foredraft.teacher.forced import forced, surprise
from foredraft.teacher.kept import Kept
from foredraft.teacher.teacher import Text

WAYS = ("both", "live", "forced")
UNTIMED = 16  # sequences decoded at once where no clock is read
SEEDS = 2**20  # request seeds that a run's seed has to itself
Fields = dict[str, Any]
Progress = Callable[[int, str], object]  # how much of `work` was done, and what is next


class Settings(Record, frozen=True):
    """How to measure. `width`: of τ's interval, in tokens per step, that `wanted_requests` answers for. `stop_ids` end answers.
    `params`: "stored", all weights that a folder stores, as published Observations count, or "non_embedding".
    """

    max_tokens: int = 128
    batches: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    way: str = "both"
    rounds: int = 1
    seed: int = 0
    width: float = 0.1
    stop_ids: frozenset[int] = frozenset()
    params: str = "stored"

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way must be one of {', '.join(WAYS)}, got {self.way!r}")
        if self.params not in ("stored", "non_embedding"):
            raise ValueError(f"params must be stored or non_embedding, got {self.params!r}")
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width must be a positive number of tokens per step, got {self.width}")
        for name, values, least in (("batch", self.batches, 1), ("temperature", self.temperatures, 0)):
            if not values or not all(math.isfinite(value) and value >= least for value in values):
                raise ValueError(f"{name} must list numbers of at least {least}, got {list(values)}")
        for name in ("max_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0…{2**32 - 1}, got {self.seed}")

    @property
    def together(self) -> int:
        """Most sequences that are decoded at once; where nothing is timed, as many as make answers cheap."""
        return UNTIMED if self.way == "forced" else max(self.batches)


class Subject(NamedTuple):
    """What is measured: arms on one target, prompts in the order of their categories, and the fields that all rows share.

    `by_draft` holds further fields of each draft's rows, by the draft as its spec names it. What the target says of the prompts is
    kept in the folder `kept`, if any, and taken from there.
    """

    target: Decoder
    arms: list[Arm]
    prompts: list[Prompt]
    fields: Fields
    by_draft: Mapping[str, Fields]
    kept: Path | None = None


def by_category(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Categories in the order of their first prompt, so that requests that run together are of one where possible."""
    first: dict[str | None, int] = {}
    for prompt in prompts:
        first.setdefault(prompt.category, len(first))
    return sorted(prompts, key=lambda prompt: first[prompt.category])


def measure(subject: Subject, settings: Settings, progress: Progress | None = None) -> list[Measurement]:
    """All rows: live by temperature, batch and arm, then forced by draft; all categories together before each by itself.

    Raises ValueError where nothing can be measured in the way asked for.
    """
    study = _Study(subject, settings, progress)
    live = study.live() if settings.way != "forced" else []
    return live + (study.forced() if settings.way != "live" else [])


def work(subject: Subject, settings: Settings) -> int:
    """How much `progress` will hear of in all."""
    engines, num = {arm.spec.name: arm.engine for arm in subject.arms}, len(subject.prompts)
    by_batch = sum(turns(engines, num, batch, settings.rounds) for batch in settings.batches)
    live = by_batch * len(settings.temperatures) if settings.way != "forced" else 0
    return live + (3 * len(chains(subject.arms)) if settings.way != "live" else 0)


def chains(arms: Sequence[Arm]) -> list[Arm]:
    """The arms that can be teacher-forced: models and heads, each once per depth, a tree as the chain of its depth."""
    found: dict[tuple[str | None, int], Arm] = {}
    for arm in arms:
        if _model(arm) is not None:
            found.setdefault((arm.spec.draft, arm.spec.budget.levels), arm)
    return list(found.values())


class _Study:
    """A subject under settings, and the target's own answers by temperature as they come."""

    def __init__(self, subject: Subject, settings: Settings, progress: Progress | None) -> None:
        self.subject, self.settings = subject, settings
        self.progress: Progress = progress or (lambda done, what: None)
        self.own_answers: dict[float, list[list[int]]] = {}
        self.target_costs: Array | None = None
        self.kept = Kept(subject.target, subject.kept)
        names = dict.fromkeys(prompt.category for prompt in subject.prompts)
        everything = list(range(len(subject.prompts)))
        self.parts: dict[str | None, list[int]] = {None: everything} | {
            name: [i for i in everything if subject.prompts[i].category == name] for name in names if name is not None
        }

    # live

    def live(self) -> list[Measurement]:
        found = []
        for temperature in self.settings.temperatures:
            for batch in self.settings.batches:
                found += self._live(temperature, batch)
        return found

    def _live(self, temperature: float, batch: int) -> list[Measurement]:
        settings, arms = self.settings, {arm.spec.name: arm for arm in self.subject.arms}
        runs = run_arms(
            {name: arm.engine for name, arm in arms.items()}, self._requests(temperature), batch, rounds=settings.rounds,
            progress=lambda: self.progress(1, f"decoding, batch {batch}, temperature {temperature:g}"),
        )  # fmt: skip
        plain = runs[PLAIN]
        self.own_answers.setdefault(temperature, plain.answers)
        return [
            self._live_row(arms[name], runs[name], plain, part, temperature, batch)
            for name in arms
            for part in self.parts
        ]

    def _live_row(
        self, arm: Arm, run: Run, plain: Run, part: str | None, temperature: float, batch: int
    ) -> Measurement:
        chosen = self.parts[part]
        pure = [set(group) <= set(chosen) for group in groups_of(len(self.subject.prompts), batch)]
        differ = sum(run.answers[i] != plain.answers[i] for i in chosen)
        note = "" if temperature else f"; {differ} of {len(chosen)} answers differ from plain decoding's"
        budget = arm.spec.budget
        dials = {
            "lookahead": budget.levels, "topk": budget.topk if arm.method != "none" else None,
            "tree_nodes": budget.most if arm.method != "none" else None, "batch_size": batch, "temperature": temperature,
        }  # fmt: skip
        fields = self._fields(arm, part, f"engine's own steps{note}") | dials
        made = rows.live_row(
            fields, [run.counts[i] for i in chosen], run.times_GT[pure], plain.times_GT[pure], self.settings.width
        )
        return msgspec.structs.replace(made, category=part)

    def _requests(self, temperature: float) -> list[Request]:
        settings = self.settings
        return [
            Request(
                prompt=prompt.ids, max_tokens=settings.max_tokens, stop_ids=settings.stop_ids,
                sampling=Sampling(temperature=temperature, seed=settings.seed * SEEDS + i),
            )
            for i, prompt in enumerate(self.subject.prompts)
        ]  # fmt: skip

    # forced

    def forced(self) -> list[Measurement]:
        able = chains(self.subject.arms)
        if not able and self.settings.way == "forced":
            raise ValueError("way forced needs a draft that is a model or a head: give --draft DIR, or --way live")
        return [row for arm in able for row in self._forced(arm)]

    def _forced(self, arm: Arm) -> list[Measurement]:
        model, depth = _model(arm), arm.spec.budget.levels
        assert model is not None, "chains leave the others out"
        self.progress(0, f"reading the target's answers with {arm.spec.name}")
        greedy = forced(model, self.kept, self._texts(0.0), depth)
        self.progress(1, f"reading sampled answers with {arm.spec.name}")
        chance = forced(model, self.kept, self._texts(1.0), depth, laws=True)
        self.progress(1, f"perplexities of {arm.spec.name}")
        costs = self._costs(model)
        self.progress(1, "")
        kinds = ("point",) if isinstance(model, DraftHead) else ("sampled", "point")
        found = []
        for part, chosen in self.parts.items():
            fields = self._fields(arm, part, "the target's own answers, read once") | {
                "lookahead": depth, "topk": 1, "tree_nodes": depth,
            }  # fmt: skip
            picked = ([sums[i] for i in chosen] for sums in (greedy, chance))
            for made in (
                rows.greedy_row(fields | {"temperature": 0.0}, next(picked), self.settings.width),
                rows.chance_row(fields | {"temperature": 1.0}, next(picked), kinds, self.settings.width),
            ):
                more = rows.perplexities({name: table[chosen] for name, table in costs.items()})
                found.append(
                    msgspec.structs.replace(rows.with_more(made, more, self._tokenizers(model)), category=part)
                )
        return found

    def _texts(self, temperature: float) -> list[Text]:
        """The target's own answers behind their prompts."""
        if temperature not in self.own_answers:
            plain = self.subject.arms[0].engine
            self.own_answers[temperature] = self.kept.answers(
                self._requests(temperature), lambda asked: [list(one.answer) for one in plain.generate(asked)]
            )
        answers = self.own_answers[temperature]
        return [
            ([*prompt.ids, *answer], [False] * len(prompt.ids) + [True] * len(answer))
            for prompt, answer in zip(self.subject.prompts, answers, strict=True)
        ]

    def _costs(self, model: Decoder | DraftHead) -> dict[str, Array]:
        """Nats and tokens of each prompt's reference, or of the prompt itself, under the target and a draft of its own."""
        target = self.subject.target
        texts = [_to_be_judged(prompt, longest(target)) for prompt in self.subject.prompts]
        if self.target_costs is None:
            vocab = target.shape.vocab_size
            self.target_costs = self.kept.costs(texts, lambda these: surprise(target, these, vocab))
        own = {"draft": surprise(model, texts, target.shape.vocab_size)} if isinstance(model, Decoder) else {}
        return {"target": self.target_costs} | own

    def _tokenizers(self, model: Decoder | DraftHead) -> Fields:
        name = self.subject.fields.get("target_tokenizer")
        return {"target_tokenizer": name} | ({"draft_tokenizer": name} if isinstance(model, Decoder) else {})

    # both

    def _fields(self, arm: Arm, part: str | None, way: str) -> Fields:
        """What the rows of an arm share; a category has a dataset of its own, so that no law pools it with the whole."""
        fields, chosen, shape = dict(self.subject.fields), self.parts[part], shape_of(arm)
        name = fields.get("dataset")
        sizes: Fields = {"target_params": self._params(self.subject.target.shape)}
        if shape is not None:
            sizes |= {"draft_params": self._params(shape), "draft_layers": shape.num_layers}
        own: Fields = fields | sizes | dict(self.subject.by_draft.get(arm.spec.draft or "", {}))
        note = f"{way}; {own['provenance'].note}"
        return own | {
            "method": arm.method, "dataset": f"{name}/{part}" if part is not None else name,
            "input_len": float(np.mean([len(self.subject.prompts[i].ids) for i in chosen])),
            "provenance": msgspec.structs.replace(own["provenance"], note=note),
        }  # fmt: skip

    def _params(self, shape: Any) -> float:
        return float(shape.params if self.settings.params == "stored" else shape.non_embedding_params)


def _model(arm: Arm) -> Decoder | DraftHead | None:
    """What drafts, where that is a model."""
    drafter = arm.engine.drafter
    return getattr(drafter, "head", None) or getattr(drafter, "model", None)


def _to_be_judged(prompt: Prompt, most: int | None) -> Text:
    """The reference behind its prompt, or all of the prompt, cut to the context."""
    ids = [*prompt.ids, *prompt.reference][:most]
    judged = len(prompt.ids) if prompt.reference else 0
    return ids, [i >= judged for i in range(len(ids))]
