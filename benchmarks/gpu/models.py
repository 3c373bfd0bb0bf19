"""The models that are timed, each for our engine and for transformers with the same weights. Refuses to know: clocks."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import Settings
from torch import nn

from foredraft import shapes
from foredraft.models.decoder import INIT_STD, Decoder
from foredraft.models.layers import model_config_of
from foredraft.models.load import load

# Llama 3.2 1B's shape, public; the weights are random, since speed does not depend on them.
LLAMA_1B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SMALL = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32,
}  # fmt: skip


class Timed(NamedTuple):
    """A model to be timed; `folder` None: random weights."""

    name: str
    keys: dict[str, Any]
    folder: Path | None = None

    def ours(self, dtype: torch.dtype, device: torch.device) -> Decoder:
        if self.folder is not None:
            return load(self.folder, dtype, device)
        return random_decoder(self.keys, dtype, device)

    def theirs(self, ours: Decoder) -> Any:
        """Transformers' model, of our weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**self.keys)
        with torch.device(ours.device):
            peer = AutoModelForCausalLM.from_config(config, dtype=ours.dtype)
        missing, unknown = peer.model.load_state_dict(ours.state_dict(), strict=False)
        if ours.lm_head is not None:
            peer.lm_head.weight.data.copy_(ours.lm_head.weight)
            unknown = [name for name in unknown if name != "lm_head.weight"]
        if unknown or [name for name in missing if "rotary" not in name]:
            raise ValueError(f"{self.name}: transformers names other weights: {[*missing, *unknown][:4]}")
        peer.tie_weights()
        peer.generation_config.eos_token_id = None
        return peer.eval()


def timed_models(settings: Settings) -> list[Timed]:
    """The target, if one is given, and a random Llama of 1 B parameters (a tiny one in miniature)."""
    random = LLAMA_1B | (SMALL if settings.small else {})
    models = [Timed("random-1b" if not settings.small else "random-tiny", random)]
    if settings.target is not None:
        keys = shapes.unfolded(shapes.read_config(settings.target))
        models.insert(0, Timed(settings.target.name, dict(keys), settings.target))
    return models


@torch.no_grad()
def random_decoder(keys: dict[str, Any], dtype: torch.dtype, device: torch.device, std: float = INIT_STD) -> Decoder:
    """Made on the device, where 1 B random numbers take no time."""
    shape = shapes.from_config(keys, name="random")
    generator = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        decoder = Decoder(shape, model_config_of(keys, shape)).to(dtype)
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0, std, generator=generator)
    return decoder.requires_grad_(False).eval()


def prompts(vocabulary: int, num: int, length: int) -> list[tuple[int, ...]]:
    """Random tokens, the same for every engine: what is timed does not depend on what they say."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(row) for row in torch.randint(3, vocabulary, (num, length), generator=generator).tolist()]
