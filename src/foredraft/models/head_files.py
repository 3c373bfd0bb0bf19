"""Draft heads on disk, in the flat format that vLLM and SGLang read: config.json and model.safetensors.

Promises: what is written can be read back to the same numbers, has the names and shapes of the published formats and
no null in its config. Refuses to know: how a head was trained.
"""

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from foredraft.models.checkpoint import SINGLE, Checkpoint, fill
from foredraft.models.decoder import INIT_STD, Decoder
from foredraft.models.heads import (
    Eagle3Head,
    EagleHead,
    check_features,
    default_feature_layers,
    draftable,
)
from foredraft.models.layers import ModelConfig
from foredraft.models.load import read_config
from foredraft.models.rope import Rope, rope_to_config
from foredraft.records import write, write_bytes
from foredraft.shapes import Shape, as_eagle, unfolded

IDS = "eagle_aux_hidden_state_layer_ids"
# Variants that change the numbers and are not built here; absent means false.
_VARIANTS = ("norm_before_residual", "norm_before_fc", "fc_norm", "use_aux_norm", "norm_output")


def load_head(
    folder: str | Path, target: Decoder, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Eagle3Head | EagleHead:
    """The draft head in a folder, frozen, beside the target whose embedding (and, EAGLE-1/2, LM head) it borrows."""
    checkpoint, (shape, model_config) = Checkpoint(folder), read_config(folder)
    file = Path(folder) / "config.json"
    config = unfolded(json.loads(file.read_bytes()))
    try:
        shape = _head_shape(shape, checkpoint)
        _check_fit(shape, config, target, checkpoint)
        streams = _feature_layers(config, target) if shape.draft_head == "eagle3" else ()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    head, names = _empty(shape, model_config, streams, target, checkpoint), _Names(checkpoint)
    fill(head, checkpoint, names.on_file, names.spare, dtype, device)
    names.check_twins()
    return head.to(device).requires_grad_(False).eval()


def _head_shape(shape: Shape, checkpoint: Checkpoint) -> Shape:
    """vLLM's EAGLE-1/2 folders name themselves LlamaForCausalLM: their `fc` gives them away."""
    if shape.draft_head:
        return shape
    if "fc.weight" not in checkpoint.stored:
        raise ValueError("not a draft head: architectures names none, and there is no tensor fc.weight")
    return as_eagle(shape)


def _check_fit(shape: Shape, config: dict[str, Any], target: Decoder, checkpoint: Checkpoint) -> None:
    """The head is one of those built here, and made for this target."""
    on = [key for key in _VARIANTS if config.get(key)]
    if on:
        raise ValueError(f"{on[0]} is true, which is not supported")
    width, hidden = target.shape.hidden_size, shape.target_hidden_size or shape.hidden_size
    if hidden != width:
        raise ValueError(f"made for a target of hidden_size {hidden}, but {target.shape.name} has {width}")
    if shape.vocab_size != target.shape.vocab_size:
        raise ValueError(f"vocab_size {shape.vocab_size}, but {target.shape.name} has {target.shape.vocab_size}")
    if shape.hidden_size != target.shape.embed_width and "embed_tokens.weight" not in checkpoint.stored:
        raise ValueError(f"hidden_size {shape.hidden_size}, not the target's {width}, needs tensor embed_tokens.weight")
    if shape.draft_head == "eagle" and shape.hidden_size != target.shape.embed_width:
        raise ValueError(f"an EAGLE-1/2 head needs the target's hidden_size {width}, got {shape.hidden_size}")


def _empty(
    shape: Shape, model_config: ModelConfig, streams: tuple[int, ...], target: Decoder, checkpoint: Checkpoint
) -> Eagle3Head | EagleHead:
    """The module on the meta device, with its vocabulary's map."""
    own, bias = "embed_tokens.weight" in checkpoint.stored, "fc.bias" in checkpoint.stored
    if shape.draft_head == "eagle":
        with torch.device("meta"):
            return EagleHead(shape, model_config, target, own_embedding=own, fc_bias=bias)
    d2t = _vocabulary(shape, checkpoint)
    with torch.device("meta"):
        return Eagle3Head(shape, model_config, target, streams, d2t, own)


def _feature_layers(config: dict[str, Any], target: Decoder) -> tuple[int, ...]:
    """vLLM counts streams by the layer they enter, SGLang (under eagle_config) by the layer they leave."""
    entering, leaving = config.get(IDS), (config.get("eagle_config") or {}).get(IDS)
    if entering and leaving and [i + 1 for i in leaving] != list(entering):
        raise ValueError(f"{IDS} {entering} must be one more than eagle_config's {leaving}")
    layers = entering or [i + 1 for i in leaving or ()] or default_feature_layers(target.shape.num_layers)
    check_features(tuple(layers), target)
    return tuple(layers)


def _vocabulary(shape: Shape, checkpoint: Checkpoint) -> Tensor:
    """d2t, checked against t2d where the file has it; a head over the whole vocabulary may lack both."""
    size = shape.draft_vocab_size or shape.vocab_size
    if "d2t" not in checkpoint.stored and size == shape.vocab_size:
        return torch.zeros(size, dtype=torch.int64, device="cpu")
    if "d2t" not in checkpoint.stored:
        raise ValueError(
            f"{checkpoint.where}: lacks tensor d2t, which draft_vocab_size {size} of {shape.vocab_size} needs"
        )
    _check_map(checkpoint, "d2t", ("I64", "I32"), size)
    d2t = checkpoint.tensor("d2t").to(torch.int64)
    try:
        mask = draftable(d2t, shape.vocab_size)
    except ValueError as error:
        raise ValueError(f"{checkpoint.stored['d2t'].file}: {error}") from None
    if "t2d" in checkpoint.stored:
        _check_map(checkpoint, "t2d", ("BOOL",), shape.vocab_size)
        if not torch.equal(checkpoint.tensor("t2d"), mask):
            raise checkpoint.fail("t2d", "must mark the tokens of d2t, which holds offsets: target id less own id")
    return d2t


def _check_map(checkpoint: Checkpoint, name: str, kinds: tuple[str, ...], size: int) -> None:
    stored = checkpoint.stored[name]
    if stored.kind not in kinds or stored.shape != (size,):
        raise checkpoint.fail(name, f"is {stored.kind} {list(stored.shape)}; it must be {kinds[0]} [{size}]")


class _Names:
    """What a head's parameters are called on file: layer 0 is `midlayer.` or `layers.0.`, the norms of later layers
    `input_layernorm` (vLLM), `hidden_norm` (SGLang) or both.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        middle = any(name.startswith("midlayer.") for name in checkpoint.stored)
        self.first = "midlayer." if middle else "layers.0."

    def on_file(self, name: str) -> str:
        name = re.sub(r"^layers\.0\.", self.first, name)
        twin = _twin(name)
        return twin if twin and name not in self.checkpoint.stored and twin in self.checkpoint.stored else name

    def spare(self, name: str) -> bool:
        """Tensors that are no parameters of ours."""
        return name in ("d2t", "t2d") or name.endswith("rotary_emb.inv_freq") or name in self._twins()

    def _twins(self) -> dict[str, str]:
        pairs = {_twin(name): name for name in self.checkpoint.stored}
        return {twin: name for twin, name in pairs.items() if twin in self.checkpoint.stored}

    def check_twins(self) -> None:
        """vLLM uses one of the two norms, SGLang the other: they must agree."""
        for twin, name in self._twins().items():
            if not torch.equal(self.checkpoint.tensor(twin), self.checkpoint.tensor(name)):
                raise self.checkpoint.fail(twin, f"differs from {name}; engines disagree about which one counts")


def _twin(name: str) -> str:
    """The second name of a later layer's first norm, or nothing."""
    found = re.fullmatch(r"layers\.([1-9]\d*)\.input_layernorm\.weight", name)
    return f"layers.{found[1]}.hidden_norm.weight" if found else ""


def save_head(
    head: Eagle3Head | EagleHead,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    engine: str = "vllm",
    more: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors, weights as `dtype` (the head's own by default).

    `engine` matters to EAGLE-1/2 only: "vllm" wants the architecture LlamaForCausalLM and no bias in `fc`, "sglang"
    LlamaForCausalLMEagle and a bias. `more` adds config keys, such as bos_token_id and eos_token_id.
    """
    if engine not in ("vllm", "sglang"):
        raise ValueError(f"engine must be 'vllm' or 'sglang', got {engine!r}")
    dtype, folder = dtype or head.dtype, Path(folder)
    named = _eagle3_tensors(head) if isinstance(head, Eagle3Head) else _eagle_tensors(head, engine)
    tensors = {name: _on_disk(tensor, dtype) for name, tensor in named.items()}
    config = head_config(head, dtype, engine) | {key: value for key, value in (more or {}).items() if value is not None}
    write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write(folder / "config.json", config)


def _on_disk(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, since two names may share memory; offsets and masks keep their type."""
    kept = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device="cpu", dtype=kept, copy=True).contiguous()


def _eagle3_tensors(head: Eagle3Head) -> dict[str, Tensor]:
    """Under the names of the flat format. A head over the whole vocabulary has no map: vLLM 0.32 refuses one that maps nothing."""
    state = head.state_dict()
    if len(head.d2t) == head.shape.vocab_size and not head.d2t.any():
        state = {name: tensor for name, tensor in state.items() if name not in ("d2t", "t2d")}
    named = {re.sub(r"^layers\.0\.", "midlayer.", name): tensor for name, tensor in state.items()}
    return named | {twin: tensor for name, tensor in named.items() if (twin := _twin(name))}


def _eagle_tensors(head: EagleHead, engine: str) -> dict[str, Tensor]:
    named, bias = dict(head.state_dict()), head.fc.bias
    if engine == "sglang":
        return {"fc.bias": torch.zeros(head.shape.hidden_size)} | named
    if bias is not None and bool(bias.any()):
        raise ValueError("fc.bias is not zero, and vLLM's EAGLE head has no bias; train without one or save for sglang")
    named.pop("fc.bias", None)
    return named


def head_config(head: Eagle3Head | EagleHead, dtype: torch.dtype, engine: str) -> dict[str, Any]:
    """The config.json of the flat format. The ids of the streams are left out where they are the default."""
    shape, eagle3 = head.shape, isinstance(head, Eagle3Head)
    plain = "LlamaForCausalLM" if engine == "vllm" else "LlamaForCausalLMEagle"
    config = {
        "architectures": ["LlamaForCausalLMEagle3" if eagle3 else plain],
        "model_type": shape.family,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": head.config.activation,
        "rms_norm_eps": head.config.norm_eps,
        "max_position_embeddings": shape.max_position_embeddings,
        "attention_bias": shape.qkv_bias,
        "mlp_bias": shape.mlp_bias,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "initializer_range": INIT_STD,
    }
    config |= rope_to_config(head.config.rope or Rope())
    config |= _eagle3_config(head) if isinstance(head, Eagle3Head) else {}
    return {key: value for key, value in config.items() if value is not None}


def _eagle3_config(head: Eagle3Head) -> dict[str, Any]:
    shape, layers = head.shape, list(head.feature_layers)
    config: dict[str, Any] = {
        "draft_vocab_size": shape.draft_vocab_size or shape.vocab_size,
        "target_hidden_size": shape.target_hidden_size or shape.hidden_size,
        "norm_before_residual": False,
        "fc_norm": False,
        "norm_output": False,
    }
    depth = head.target.shape.num_layers
    if depth >= 3 and layers == list(default_feature_layers(depth)):
        return config
    leaving = {IDS: [i - 1 for i in layers], "use_aux_hidden_state": True}
    return config | {IDS: layers, "eagle_config": leaving}
