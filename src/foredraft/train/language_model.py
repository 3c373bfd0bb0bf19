"""Training a decoder on text, or on what a target makes of the text.

Promises: weights begin as transformers would begin them, and what is saved loads there to equal logits. Refuses to know:
optimisers, schedules, devices.

Shapes: B windows, T tokens, C hidden size, V vocabulary, R rows (B·(T−1): a row predicts the token after it).
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foredraft.data.tokenizer import FILES
from foredraft.data.tokens import Batch
from foredraft.models.decoder import Decoder
from foredraft.models.layers import Layer
from foredraft.models.save import save
from foredraft.teacher.acceptance import tally
from foredraft.teacher.attention import attend
from foredraft.teacher.hidden_states import OnlineHiddenStates, document_places
from foredraft.teacher.predictions import emitted_mask
from foredraft.teacher.teacher import Teacher
from foredraft.teacher.teacher_forced import draft_predictions
from foredraft.train.flops import model_training_flops
from foredraft.train.lm_head import draft_ids_of, lm_head_loss
from foredraft.train.objective import Loss, acceptance_figures


class Served(NamedTuple):
    """What a saved model has besides weights: their type, the folder of its tokenizer, token ids for its config."""

    dtype: torch.dtype = torch.float32
    tokenizer: Path | None = None
    keys: Mapping[str, Any] = {}


class LanguageModelObjective:
    """A decoder and the loss of its next tokens. `frozen` is the target: what it learns from where the loss asks for it,
    and what its drafts are held against on held-out text; None for a model that stands alone.
    """

    def __init__(
        self, decoder: Decoder, loss: Mapping[str, float], *, length: int, target: Decoder | None = None,
        within_documents: bool = False, lookahead: int = 5, served: Served | None = None,
    ) -> None:  # fmt: skip
        """`length`: tokens of a window, for the FLOPs. `lookahead`: drafted tokens per step on held-out text."""
        self.trained, self.frozen, self.lookahead = decoder, target, lookahead
        self._loss, self._within, self._served = dict(loss), within_documents, served or Served()
        self._distils, self._compiled = set(loss) != {"ce"}, False
        taught = target.shape if target and self._distils else None
        self.flops_per_token = model_training_flops(decoder.shape, taught, length)

    def compile(self) -> None:
        """Layers one by one, which compiles one layer for all, and the rows of the loss."""
        self._compiled = True
        for module in (self.trained, *((self.frozen,) if self.frozen else ())):
            for layer in module.modules():
                if isinstance(layer, Layer):
                    layer.compile(dynamic=False)

    def loss(self, batch: Batch, step: int) -> Loss:
        """The weighted sum of the recipe's losses over the window's predicted tokens."""
        total, terms, weight = self._read(batch, self._loss)
        return Loss(total, weight, terms)

    @torch.no_grad()
    def held_out(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of "loss", its terms and "ce" over "weight" tokens; with a target those of `acceptance.tally` besides."""
        total, terms, weight = self._read(batch, {"ce": 0.0} | self._loss)
        sums = {f"mean.{name}": value for name, value in ({"loss": total} | terms).items()} | {"weight": weight}
        if self.frozen is None:
            return sums
        hidden_states = OnlineHiddenStates(self.frozen, (self.frozen.shape.num_layers,))(batch)
        predicted = draft_predictions(self.trained, self.frozen, batch, hidden_states, self.lookahead)
        emitted = emitted_mask(batch.mask_BT, batch.documents_BT)
        return sums | tally(predicted, batch.tokens_BT, emitted, batch.documents_BT)

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Means per predicted token, nats; with a target τ with its 90 % interval and survival by position."""
        weight = sums["weight"].clamp(min=1)
        means = {name.removeprefix("mean."): float(x / weight) for name, x in sums.items() if name.startswith("mean.")}
        if self.frozen is None:
            return means
        return means | acceptance_figures(sums)

    def save(self, folder: Path, state: dict[str, Tensor]) -> None:
        """config.json, model.safetensors and the tokenizer."""
        served, decoder = self._served, self.trained
        save(state, decoder.shape, decoder.config, folder, dtype=served.dtype, more=served.keys)
        if served.tokenizer:
            for name in FILES:
                if (served.tokenizer / name).is_file():
                    shutil.copyfile(served.tokenizer / name, folder / name)

    def _read(self, batch: Batch, loss: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        labels_BT, counted_BT, documents_BT = batch.tokens_BT[:, 1:], batch.mask_BT[:, 1:], batch.documents_BT
        place: dict[str, Any] = {"attend": attend}
        if self._within:
            positions_BT, seen_BTT = document_places(documents_BT)
            place = {"positions_BT": positions_BT, "mask_BTS": seen_BTT}
            counted_BT = counted_BT & (documents_BT[:, 1:] == documents_BT[:, :-1])
        states_RC, teacher, ids = _states(self.trained, batch.tokens_BT, place), None, self.trained.draft_ids
        if self.frozen is not None and self._distils:
            with torch.no_grad():
                teacher = Teacher(_states(self.frozen, batch.tokens_BT, place), self.frozen.head_weight_VC, ids)
        sums = lm_head_loss(
            states_RC[None], self.trained.head_weight_VC, counted_BT.flatten()[None], loss, teacher=teacher,
            labels_M=draft_ids_of(labels_BT.flatten(), ids), monitor="accept_prob" if teacher else None, compiled=self._compiled,
        )  # fmt: skip
        terms = {name: by_step[0] for name, by_step in sums.terms.items()}
        return sums.total, terms, terms.pop("places")


def _states(decoder: Decoder, tokens_BT: Tensor, place: Mapping[str, Any]) -> Tensor:
    """The hidden states that predict a next token."""
    return decoder(tokens_BT, logits="none", **place).final_BTC[:, :-1].flatten(0, 1)
