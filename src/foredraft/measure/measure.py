"""A target and its drafts on prompts: every figure of `foredraft measure`, online and teacher-forced, by category.

Online: the engine decodes, by batch and temperature. Teacher-forced: the target's own answers are read once by target and draft,
which gives the greedy α of its greedy answers, and the point and sampled α of its answers at temperature 1, whatever temperature
is decoded online; and the perplexities of both on the prompts' references, or on the prompts where they have none.

Promises: plain decoding is a configuration of the same run; equal seeds give equal counts. Refuses to know: the laws, files.

Shapes: D requests, G groups that ran together.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from foredraft.data.prompts import Prompt
from foredraft.decode.batch import Request
from foredraft.decode.sampling import Sampling
from foredraft.kinds import role_of
from foredraft.measure import rows
from foredraft.measure.configurations import PLAIN, EngineConfiguration, longest
from foredraft.measure.live import Decoding, decode_in_turn, turns
from foredraft.measure.settings import MeasureSettings
from foredraft.measure.subject import Fields, Subject
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.records import Measurement
from foredraft.serving.bootstrap import Array
from foredraft.shapes import Shape
from foredraft.teacher.cache import TargetCache
from foredraft.teacher.teacher import Text
from foredraft.teacher.teacher_forced import surprise, teacher_forced

SEEDS = 2**20  # request seeds that a run's seed has to itself
Progress = Callable[[int, str], object]  # how much of `work` was done, and what is next


def measure(subject: Subject, settings: MeasureSettings, progress: Progress | None = None) -> list[Measurement]:
    """Return all rows: online by temperature, batch and configuration, then teacher-forced by draft; all categories together
    before each by itself. Raises ValueError where nothing can be measured in the way asked for.
    """
    study = _Study(subject, settings, progress)
    online = study.online() if settings.way != "forced" else []
    return online + (study.teacher_forced() if settings.way != "live" else [])


def work(subject: Subject, settings: MeasureSettings) -> int:
    """How much `progress` will hear of in all."""
    engines, num = {each.spec.name: each.engine for each in subject.configurations}, len(subject.prompts)
    by_batch = sum(turns(engines, num, batch, settings.rounds) for batch in settings.batches)
    online = by_batch * len(settings.temperatures) if settings.way != "forced" else 0
    return online + (3 * len(chains(subject.configurations)) if settings.way != "live" else 0)


def chains(configurations: Sequence[EngineConfiguration]) -> list[EngineConfiguration]:
    """The configurations that can be teacher-forced: models and heads alone, each once per depth, a tree as the chain of its depth."""
    by_depth: dict[tuple[str | None, int], EngineConfiguration] = {}
    for configuration in configurations:
        if configuration.model is not None and role_of(configuration.method) != "mixed":
            by_depth.setdefault((configuration.spec.draft, configuration.spec.budget.levels), configuration)
    return list(by_depth.values())


def requests_of(subject: Subject, settings: MeasureSettings, temperature: float) -> list[Request]:
    """The prompts as requests, each with a seed of its own."""
    return [
        Request(
            prompt=prompt.ids, max_tokens=settings.max_tokens, stop_ids=subject.stop_ids,
            sampling=Sampling(temperature=temperature, seed=settings.seed * SEEDS + i),
        )
        for i, prompt in enumerate(subject.prompts)
    ]  # fmt: skip


class _Study:
    """A subject under settings, and the target's own answers by temperature as they come."""

    def __init__(self, subject: Subject, settings: MeasureSettings, progress: Progress | None) -> None:
        self.subject, self.settings = subject, settings
        self.progress: Progress = progress or (lambda done, what: None)
        self.own_answers: dict[float, list[list[int]]] = {}
        self.target_costs: Array | None = None
        self.cache = TargetCache(subject.target, settings.cache)
        names = dict.fromkeys(prompt.category for prompt in subject.prompts)
        everything = list(range(len(subject.prompts)))
        self.parts: dict[str | None, list[int]] = {None: everything} | {
            name: [i for i in everything if subject.prompts[i].category == name] for name in names if name is not None
        }

    # online

    def online(self) -> list[Measurement]:
        dials = [(temperature, batch) for temperature in self.settings.temperatures for batch in self.settings.batches]
        return [row for temperature, batch in dials for row in self._online_at(temperature, batch)]

    def _online_at(self, temperature: float, batch: int) -> list[Measurement]:
        configurations = {each.spec.name: each for each in self.subject.configurations}
        decodings = decode_in_turn(
            {name: each.engine for name, each in configurations.items()}, requests_of(self.subject, self.settings, temperature), batch,
            rounds=self.settings.rounds,
            progress=lambda: self.progress(1, f"decoding, batch {batch}, temperature {temperature:g}"),
        )  # fmt: skip
        plain = decodings[PLAIN]
        self.own_answers.setdefault(temperature, plain.answers)
        return [
            self._online_row(configurations[name], decodings[name], plain, part, temperature, batch)
            for name in configurations
            for part in self.parts
        ]

    def _online_row(
        self, configuration: EngineConfiguration, run: Decoding, plain: Decoding, part: str | None, temperature: float, batch: int
    ) -> Measurement:  # fmt: skip
        chosen = self.parts[part]
        pure = [(ran | others) <= set(chosen) for ran, others in zip(run.ran, plain.ran, strict=True)]
        differ = sum(run.answers[i] != plain.answers[i] for i in chosen)
        note = "" if temperature else f"; {differ} of {len(chosen)} answers differ from plain decoding's"
        budget, drafts = configuration.spec.budget, configuration.method != "none"
        dials = {
            "lookahead": budget.levels, "topk": budget.topk if drafts else None,
            "tree_nodes": budget.most if drafts else None, "batch_size": batch, "temperature": temperature,
        }  # fmt: skip
        fields = self._fields(configuration, part, f"engine's own steps{note}") | dials
        row = rows.online_row(
            fields, [run.counts[i] for i in chosen], run.times_GT[pure], plain.times_GT[pure], self.settings.width
        )
        return msgspec.structs.replace(row, category=part)

    # teacher-forced

    def teacher_forced(self) -> list[Measurement]:
        able = chains(self.subject.configurations)
        if not able and self.settings.way == "forced":
            raise ValueError("way forced needs a draft that is a model or a head: give --draft DIR, or --way live")
        return [row for configuration in able for row in self._forced(configuration)]

    def _forced(self, configuration: EngineConfiguration) -> list[Measurement]:
        model, name, depth = configuration.model, configuration.spec.name, configuration.spec.budget.levels
        assert model is not None, "chains leave the others out"
        self.progress(0, f"reading the target's answers with {name}")
        greedy = teacher_forced(model, self.cache, self._texts(0.0), depth)
        self.progress(1, f"reading sampled answers with {name}")
        chance = teacher_forced(model, self.cache, self._texts(1.0), depth, probs=True)
        self.progress(1, f"perplexities of {name}")
        costs = self._costs(model)
        self.progress(1, "")
        kinds = ("point",) if isinstance(model, DraftHead) and not model.draws else ("sampled", "point")
        measurements = []
        for part, chosen in self.parts.items():
            fields = self._fields(configuration, part, "the target's own answers, read once") | {
                "lookahead": depth, "topk": 1, "tree_nodes": depth,
            }  # fmt: skip
            at_zero, at_one = ([sums[i] for i in chosen] for sums in (greedy, chance))
            words = rows.perplexities({reader: table[chosen] for reader, table in costs.items()})
            for row in (
                rows.greedy_row(fields | {"temperature": 0.0}, at_zero, self.settings.width),
                rows.chance_row(fields | {"temperature": 1.0}, at_one, kinds, self.settings.width),
            ):
                row = rows.with_more(row, words, self._tokenizers(model))
                measurements.append(msgspec.structs.replace(row, category=part))
        return measurements

    def _texts(self, temperature: float) -> list[Text]:
        """The target's own answers behind their prompts."""
        if temperature not in self.own_answers:
            plain = self.subject.configurations[0].engine
            self.own_answers[temperature] = self.cache.answers(
                requests_of(self.subject, self.settings, temperature),
                lambda requests: [list(text.answer) for text in plain.generate(requests)],
            )
        answers = self.own_answers[temperature]
        return [
            ([*prompt.ids, *answer], [False] * len(prompt.ids) + [True] * len(answer))
            for prompt, answer in zip(self.subject.prompts, answers, strict=True)
        ]

    def _costs(self, model: Decoder | DraftHead) -> dict[str, Array]:
        """Nats and tokens of each prompt's reference, or of the prompt itself, under the target and an independent draft of all tokens."""
        target = self.subject.target
        texts = [_to_be_judged(prompt, longest(target)) for prompt in self.subject.prompts]
        vocab = target.shape.vocab_size
        if self.target_costs is None:
            self.target_costs = self.cache.costs(texts, lambda uncached: surprise(target, uncached, vocab))
        drafted = {}
        if isinstance(model, Decoder) and model.d2t is None:  # others give some tokens no chance: infinite nats
            drafted = {"draft": surprise(model, texts, vocab)}
        return {"target": self.target_costs} | drafted

    def _tokenizers(self, model: Decoder | DraftHead) -> Fields:
        name = self.subject.fields.get("target_tokenizer")
        return {"target_tokenizer": name} | ({"draft_tokenizer": name} if isinstance(model, Decoder) else {})

    # both

    def _fields(self, configuration: EngineConfiguration, part: str | None, how: str) -> Fields:
        """What a configuration's rows share; a category has a dataset of its own, so that no law pools it with the others."""
        shared, model = self.subject.fields, configuration.model
        sizes: Fields = {"target_params": self._params(self.subject.target.shape)}
        if model is not None:
            sizes |= {"draft_params": self._params(model.shape), "draft_layers": model.shape.num_layers}
            sizes |= {"draft_vocab": model.shape.draft_vocab_size}
        fields: Fields = shared | sizes | dict(self.subject.by_draft.get(configuration.spec.draft or "", {}))
        dataset, note = shared.get("dataset"), f"{how}; {fields['provenance'].note}"
        return fields | {
            "method": configuration.method, "dataset": f"{dataset}/{part}" if part is not None else dataset,
            "input_len": float(np.mean([len(self.subject.prompts[i].ids) for i in self.parts[part]])),
            "provenance": msgspec.structs.replace(fields["provenance"], note=note),
        }  # fmt: skip

    def _params(self, shape: Shape) -> float:
        return float(shape.params if self.settings.params == "stored" else shape.non_embedding_params)


def _to_be_judged(prompt: Prompt, most: int | None) -> Text:
    """The reference behind its prompt, or all of the prompt, cut to the context."""
    ids = [*prompt.ids, *prompt.reference][:most]
    judged = len(prompt.ids) if prompt.reference else 0
    return ids, [i >= judged for i in range(len(ids))]
