"""Training's tokens per second and MFU: a language model of 100 M parameters, an EAGLE-3 head, the target's hidden states.

The ceiling is the rate of matrix products in bfloat16, measured just before. Random tokens; medians over counted steps, each waited for.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Settings, Step
from models import SMALL, random_decoder, timed_models

from foredraft import records, shapes
from foredraft.data import tokenizer as tokenizers
from foredraft.data.tokens import TokenData, width
from foredraft.hardware import matmul_rate, synchronize
from foredraft.models.save import save
from foredraft.recipe import Eagle3, EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.teacher.hidden_states import HiddenStates, OnlineHiddenStates
from foredraft.train.devices import Devices
from foredraft.train.heads import HeadObjective
from foredraft.train.launch import open_data
from foredraft.train.loop import Data, TrainingRun
from foredraft.train.objective import Objective
from foredraft.train.objectives import HeadTrainee, trainee_of
from foredraft.train.progress import Meter

LM_100M = {
    "model_type": "llama", "vocab_size": 32768, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
WARM, COUNTED, DRAFT_VOCAB = 3, 8, 8192
LM_BATCH, LM_LENGTH, HEAD_BATCH, HEAD_LENGTH = 32, 1024, 32, 512


def run(step: Step) -> None:
    settings = step.settings
    steps, lm, head = WARM + COUNTED, (LM_BATCH, LM_LENGTH), (HEAD_BATCH, HEAD_LENGTH)
    if settings.small:
        steps, lm, head = WARM, (2, 16), (2, 16)
    top = matmul_rate(step.device, "bfloat16")
    step.record("matrix products bfloat16", {"flops_per_s": top})
    step.attempt("language model 100M", lambda: language_model(step, lm, steps, top, compile=False), 15)
    target = _target(settings)
    head_run = Heads(step, target, head, steps)
    step.attempt("target's hidden states", lambda: head_run.hidden_states(top), 10)
    step.attempt("eagle3 head", lambda: head_run.online(top), 10)
    step.attempt("eagle3 head, states at hand", lambda: head_run.at_hand(top), 10)
    if step.device.type == "cuda":
        step.attempt("language model 100M compiled", lambda: language_model(step, lm, steps, top, compile=True), 60)


def language_model(step: Step, sizes: tuple[int, int], steps: int, top: float, *, compile: bool) -> dict[str, float]:
    keys = LM_100M | (SMALL if step.settings.small else {})
    stage = _stage(sizes, steps)
    recipe = Recipe(model=LanguageModel(config=keys), stages=(stage,), watch=_watch(), compile=compile)
    folder = tokens(
        step.settings.work / f"tokens-{keys['vocab_size']}", keys["vocab_size"], steps * stage.tokens_per_step, "none"
    )
    data, devices = open_data(recipe, [folder], None), Devices(device=step.device)
    objective = trainee_of(recipe, None).objective(data, devices)
    return _timed(recipe, objective, data, step.settings.work / f"lm-{compile}", devices, top)


class Heads:
    """An EAGLE-3 head of one layer, unrolled seven times, over the most frequent words."""

    def __init__(self, step: Step, target: Path, sizes: tuple[int, int], steps: int) -> None:
        vocabulary = shapes.unfolded(shapes.read_config(target))["vocab_size"]
        self.stage = _stage(sizes, steps)
        self.recipe = Recipe(
            model=Eagle3(draft_vocab=min(DRAFT_VOCAB, vocabulary // 2)), stages=(self.stage,), watch=_watch()
        )
        digest = tokenizers.sha256(target) if (target / "tokenizer.json").is_file() else "none"
        folder = tokens(step.settings.work / "tokens-head", vocabulary, steps * self.stage.tokens_per_step, digest)
        self.data, self.devices, self.out = (
            open_data(self.recipe, [folder], None),
            Devices(device=step.device),
            step.settings.work,
        )
        trainee = trainee_of(self.recipe, target)
        assert isinstance(trainee, HeadTrainee)
        self.trainee, self.teacher = trainee, trainee.teacher(self.devices)
        assert self.teacher is not None
        self.teacher.requires_grad_(False).eval()

    def _head(self) -> Any:
        assert self.teacher is not None
        return self.trainee.head(self.teacher, self.data)

    def _states(self) -> Iterator[HiddenStates]:
        """Of the batches of one pass over the data."""
        assert self.teacher is not None
        source, packing, batch = (
            OnlineHiddenStates(self.teacher, self._head().feature_layers),
            self.data.stages[0],
            self.stage.batch,
        )
        for first in range(0, self.stage.steps * batch, batch):
            yield source(type(whole := packing.batch(first, batch))(*(part.to(self.devices.device) for part in whole)))

    def hidden_states(self, top: float) -> dict[str, float]:
        """Tokens per second of the target's pass."""
        assert self.teacher is not None
        took, states = [], self._states()
        for _ in range(self.stage.steps):
            began = time.perf_counter()
            next(states)
            synchronize(self.devices.device)
            took.append(time.perf_counter() - began)
        rate = self.stage.tokens_per_step / statistics.median(took[1:])
        return {"tokens_per_s": rate, "mfu": rate * self.teacher.shape.flops_per_token(self.stage.length / 2) / top}

    def online(self, top: float) -> dict[str, float]:
        """The target's pass in every step."""
        assert self.teacher is not None
        objective = HeadObjective(self.teacher, self._head(), self.trainee.settings, length=self.stage.length)
        return _timed(self.recipe, objective, self.data, self.out / "head-online", self.devices, top)

    def at_hand(self, top: float) -> dict[str, float]:
        """Hidden states of the first batch for every step, so that the head's own work is timed; its FLOPs alone are counted."""
        assert self.teacher is not None
        states, settings = cycle([next(self._states())]), self.trainee.settings
        objective = HeadObjective(
            self.teacher, self._head(), settings, source=lambda batch: next(states), length=self.stage.length
        )
        objective.flops_per_token -= self.teacher.shape.flops_per_token(self.stage.length / 2)
        return _timed(self.recipe, objective, self.data, self.out / "head-at-hand", self.devices, top)


def _timed(
    recipe: Recipe, objective: Objective, data: Data, out: Path, devices: Devices, top: float
) -> dict[str, float]:
    """Medians over the steps after the first few."""
    training, took = TrainingRun(recipe, objective, data, out, devices), []
    training.begin_stage()
    meter = Meter(objective.flops_per_token, top)
    for _ in range(recipe.stages[0].steps):
        synchronize(devices.device)
        began = time.perf_counter()
        training.step(meter)
        synchronize(devices.device)
        took.append(time.perf_counter() - began)
    step_s = statistics.median(took[min(WARM, len(took) - 1) :])
    rate = recipe.stages[0].tokens_per_step / step_s
    return {
        "tokens_per_s": rate, "mfu": rate * objective.flops_per_token / top, "step_ms": 1e3 * step_s, "first_step_s": took[0],
        "flops_per_token": objective.flops_per_token, "params": sum(p.numel() for p in objective.trained.parameters()),
    }  # fmt: skip


def _stage(sizes: tuple[int, int], steps: int) -> Stage:
    batch, length = sizes
    return Stage(tokens=steps * batch * length, length=length, batch=batch)


def _watch() -> EvalSchedule:
    return EvalSchedule(held_out_every=10**6, save_every=10**6)


def _target(settings: Settings) -> Path:
    """The target's folder; of the random model where none is given."""
    if settings.target is not None:
        return settings.target
    keys, folder = timed_models(settings)[-1].keys, settings.work / "random-target"
    decoder = random_decoder(keys, torch.bfloat16, torch.device(settings.device))
    save(
        {name: x.cpu() for name, x in decoder.state_dict().items()},
        decoder.shape,
        decoder.config,
        folder,
        dtype=torch.bfloat16,
    )
    return folder


def tokens(path: Path, vocabulary: int, count: int, digest: str) -> Path:
    """A token folder of random tokens, all of them labels: speed does not depend on what they say."""
    if (path / "data.json").is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    dtype = width(vocabulary)
    np.random.default_rng(0).integers(1, vocabulary, count).astype("<u2" if dtype == "uint16" else "<u4").tofile(
        path / "tokens.bin"
    )
    np.ones(count, dtype="u1").tofile(path / "mask.bin")
    np.array([0, count]).astype("<i8").tofile(path / "documents.bin")
    data = TokenData(
        version=1, vocab_size=vocabulary, eos_id=0, tokenizer_sha256=digest, dtype=dtype, num_tokens=count, num_documents=1,
        raw_tokens=count, regenerated_tokens=0, predicted_tokens=count, sources=(),
    )  # fmt: skip
    records.write(path / "data.json", data)
    return path
