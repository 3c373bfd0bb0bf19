"""EAGLE-3 (arXiv 2503.01840) and, with more layers, Scylla (arXiv 2505.07858) as a draft head, and what its folder calls things."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from foredraft import kinds
from foredraft.feature_layers import eagle3_feature_layers
from foredraft.kinds import AUX_CONFIG, AUX_LAYER_IDS, aux_layer_ids
from foredraft.models.chain import Entry
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.draft_head import HeadLayout, NamesOnFile, TokenHead, llama_like, no_options
from foredraft.models.draft_vocab import offsets, stored_offsets
from foredraft.models.layers import AttentionMetadata, FusionLayer, Layer, ModelConfig, norm
from foredraft.models.linear import Linear
from foredraft.models.target import Target
from foredraft.records import Record
from foredraft.shapes import Shape

USUAL_FEATURES = 3  # hidden states that published heads read


class Eagle3Switches(Record, frozen=True):
    """What a config may switch of an EAGLE-3 head, by the keys that vLLM and speculators give them; absent means false in the flat format.

    `norm_before_residual`: layer 0 adds to its normed input. `norm_before_fc`: all hidden states, joined, are normed before `fc` joins them;
    `fc_norm`: each by itself. `norm_output`: the head feeds itself its normed output (EAGLE-3.1 has these two, vLLM #42764).
    """

    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


PLAIN = Eagle3Switches()


def switches_of(config_keys: Mapping[str, Any]) -> Eagle3Switches:
    """As a config has them; ModelOpt nests one, and SGLang has an older name of another."""
    nested = config_keys.get(AUX_CONFIG)
    keys = {**config_keys, **(nested if isinstance(nested, dict) else {})}
    keys["fc_norm"] = keys.get("fc_norm") or keys.get("use_aux_norm")
    return Eagle3Switches(**{name: bool(keys.get(name)) for name in Eagle3Switches.__struct_fields__})


class Eagle3Head(TokenHead):
    """`fc` joins some of the target's hidden states, usually three, and never sees the head's own output.

    A map `d2t` it always has, over the whole vocabulary one that maps nothing. With `own_lm_head` False it reads its target's. Without `fc`
    it takes the target's last hidden state as it is (ModelOpt's `use_aux_hidden_state: false`).
    """

    layout = HeadLayout("LlamaForCausalLMEagle3")
    d2t: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    t2d: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, feature_layers: tuple[int, ...], d2t: Tensor,
        own_embedding: bool = False, *, switches: Eagle3Switches = PLAIN,
    ) -> None:  # fmt: skip
        super().__init__(shape, config, target, feature_layers, own_embedding, d2t)
        assert shape.head is not None
        self.switches = switches
        hidden, width = shape.hidden_size, shape.target_hidden_size or shape.hidden_size
        joined = len(feature_layers) * width
        self.fc = Linear(joined, hidden, bias=False) if shape.head.hidden_states else None
        self.input_norm = norm(joined, shape, config) if switches.norm_before_fc else None
        self.fc_norm = nn.ModuleList(norm(width, shape, config) for _ in feature_layers) if switches.fc_norm else None
        later_layers = (Layer(shape, config, i) for i in range(1, shape.num_layers))
        first_layer = FusionLayer(shape, config, norm_before_residual=switches.norm_before_residual)
        self.layers = nn.ModuleList([first_layer, *later_layers])
        self.norm = norm(hidden, shape, config)
        if shape.head.own_lm_head:
            self.lm_head = Linear(hidden, shape.draft_vocab_size or shape.vocab_size, bias=False)

    @classmethod
    def new(
        cls,
        target: Target,
        num_layers: int = 1,
        draft_vocab: Iterable[int] | None = None,
        feature_layers: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Self:
        no_options(options)
        d2t = offsets(draft_vocab, target.shape.vocab_size)
        feature_layers = feature_layers or eagle3_feature_layers(target.shape.num_layers)
        check_features(feature_layers, target)
        shape = kinds.EAGLE3.shape(target.shape, num_layers, len(d2t), hidden_states=len(feature_layers))
        return cls(shape, llama_like(target), target, feature_layers, d2t)

    @classmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        feature_layers, d2t = _feature_layers(config_keys, target), stored_offsets(shape, checkpoint)
        d2t = offsets(None, shape.vocab_size) if d2t is None else d2t
        own_embedding = "embed_tokens.weight" in checkpoint.stored
        with torch.device("meta"):
            return cls(shape, config, target, feature_layers, d2t, own_embedding, switches=switches_of(config_keys))

    def hollow(self, shape: Shape) -> Self:
        own_embedding = self.embed_tokens is not None
        return type(self)(
            shape, self.config, self.target, self.feature_layers, self.d2t, own_embedding, switches=self.switches
        )

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """The LM head and the final norm begin as the target's, cut to what the head can draft."""
        super().initialise(seed)
        ids = torch.nonzero(self.t2d)[:, 0]
        if self.lm_head is not None:
            self.lm_head.weight.copy_(self.target.head_weight_VC[ids.to(self.target.device)])
        if isinstance(self.target.norm, nn.RMSNorm) and self.target.norm.weight is not None:
            self.norm.weight.copy_(self.target.norm.weight)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def combine(self, features_BTF: Tensor) -> Tensor:
        """[B, T, n × target's hidden size], hidden states low to high, to [B, T, C]."""
        features_BTF = features_BTF.to(self.dtype)
        if self.input_norm is not None:
            features_BTF = self.input_norm(features_BTF)
        if self.fc_norm is not None:
            parts = features_BTF.chunk(len(self.fc_norm), -1)
            features_BTF = torch.cat([normed(part) for normed, part in zip(self.fc_norm, parts, strict=True)], -1)
        return features_BTF if self.fc is None else self.fc(features_BTF)

    def fed_back(self, pre_norm_BTC: Tensor, final_BTC: Tensor) -> Tensor:
        return final_BTC if self.switches.norm_output else pre_norm_BTC

    @property
    def entry(self) -> Entry:
        first, switches = self.layers[0], self.switches
        assert isinstance(first, FusionLayer)
        return Entry(
            embed_norm=first.input_layernorm, left_norm=first.hidden_norm,
            normed_residual=switches.norm_before_residual, leaves_normed=switches.norm_output,
        )  # fmt: skip

    def run(self, embeds_BTC: Tensor, hidden_BTC: Tensor, metadata: AttentionMetadata) -> Tensor:
        first_layer, *later_layers = self.layers
        x_BTC = first_layer(embeds_BTC, hidden_BTC, metadata)
        for layer in later_layers:
            x_BTC = layer(x_BTC, metadata)
        return x_BTC

    @staticmethod
    def names_on_file(checkpoint: Checkpoint) -> NamesOnFile:
        return _Names(checkpoint)

    def tensors_on_file(self, layout: HeadLayout) -> dict[str, Tensor]:
        """A head over the whole vocabulary has no map: vLLM 0.32 refuses one that maps nothing."""
        state = self.state_dict()
        if self.maps_nothing:
            state = {name: tensor for name, tensor in state.items() if name not in ("d2t", "t2d")}
        tensors = {re.sub(r"^layers\.0\.", "midlayer.", name): tensor for name, tensor in state.items()}
        return tensors | {twin: tensor for name, tensor in tensors.items() if (twin := _twin(name))}

    @property
    def reads_last_alone(self) -> bool:
        """Whether it reads its target's last hidden state, normed, and no inner one."""
        return self.feature_layers == (self.target.shape.num_layers,)

    @property
    def null_keys(self) -> tuple[str, ...]:
        """Without an LM head in the file both engines share the target's where its rows are not said (SGLang: null; vLLM takes both)."""
        return () if self.lm_head is not None else ("draft_vocab_size",)

    def keys_on_file(self) -> dict[str, Any]:
        """The ids of the hidden states are left out where they are the default."""
        shape, entered = self.shape, list(self.feature_layers)
        keys: dict[str, Any] = {
            "draft_vocab_size": shape.draft_vocab_size or shape.vocab_size,
            "target_hidden_size": shape.target_hidden_size or shape.hidden_size,
            **{name: getattr(self.switches, name) for name in self.switches.__struct_fields__},
        }
        depth = self.target.shape.num_layers
        if self.reads_last_alone:
            return keys | {AUX_CONFIG: {AUX_LAYER_IDS: [], "use_aux_hidden_state": False}}
        if depth >= 3 and entered == list(eagle3_feature_layers(depth)):
            return keys
        if len(entered) != USUAL_FEATURES:
            keys["num_aux_hidden_states"] = len(entered)
        left_layers = {AUX_LAYER_IDS: [i - 1 for i in entered], "use_aux_hidden_state": True}
        return keys | {AUX_LAYER_IDS: entered, AUX_CONFIG: left_layers}


def check_features(layers: tuple[int, ...], target: Target) -> None:
    """Raise unless these are hidden states of the target."""
    depth = target.shape.num_layers
    if not layers or not all(0 <= layer <= depth for layer in layers):
        raise ValueError(f"feature_layers must be hidden states from 0 to {depth}, got {list(layers)}")


def _feature_layers(config_keys: Mapping[str, Any], target: Target) -> tuple[int, ...]:
    """vLLM counts hidden states by the layer they enter, SGLang (under eagle_config) by the layer they leave."""
    depth, (entered, left_layers) = target.shape.num_layers, aux_layer_ids(config_keys)
    if kinds.last_state_alone(config_keys):
        return (depth,)
    if entered and left_layers and [i + 1 for i in left_layers] != list(entered):
        raise ValueError(f"{AUX_LAYER_IDS} {entered} must be one more than {AUX_CONFIG}'s {left_layers}")
    layers = entered or kinds.entered_layers(left_layers, depth) or eagle3_feature_layers(depth)
    check_features(tuple(layers), target)
    return tuple(layers)


class _Names(NamesOnFile):
    """The norms of later layers are `input_layernorm` (vLLM), `hidden_norm` (SGLang) or both."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        pairs = {_twin(name): name for name in checkpoint.stored}
        self.twins = {twin: name for twin, name in pairs.items() if twin in checkpoint.stored}

    def of_parameter(self, name: str) -> str:
        twin, stored = _twin(name), self.checkpoint.stored
        return twin if twin and name not in stored and twin in stored else name

    def is_spare(self, name: str) -> bool:
        return name in self.twins or super().is_spare(name)

    def check(self) -> None:
        """vLLM uses one of the two norms, SGLang the other: they must agree."""
        for twin, name in self.twins.items():
            if not torch.equal(self.checkpoint.tensor(twin), self.checkpoint.tensor(name)):
                raise self.checkpoint.fail(twin, f"differs from {name}; engines disagree about which one counts")


def _twin(name: str) -> str:
    """The second name of a later layer's first norm, or nothing."""
    match = re.fullmatch(r"layers\.([1-9]\d*)\.input_layernorm\.weight", name)
    return f"layers.{match[1]}.hidden_norm.weight" if match else ""
