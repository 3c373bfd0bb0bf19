"""A target that transformers computes: any of its causal language models, those that our decoder does not know among them, quantised
or not. No code of a model's folder is run, and nothing is fetched.

How logits come of the last hidden state (a scale, a bias, a cap) is found out by a pass over a few tokens, and a model whose logits do not
come of it so is refused.

Promises: states are transformers' own `hidden_states`, logits as its model would make them of these. Refuses to know: heads, losses.

Shapes: B texts, T tokens, n places, W hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from foredraft import shapes
from foredraft.models.forward import Output
from foredraft.models.layers import ModelConfig
from foredraft.models.target import LogitsForm, Target
from foredraft.records import with_hint
from foredraft.shapes import Shape
from foredraft.shapes.config import text_part
from foredraft.shapes.rope import Rope, rope_from_config

NAME = "transformers"
PROBED = 16  # tokens
MATCH = {
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 1e-2,
}  # of the largest logit, by what rounding leaves
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
MOST_PER_BYTE = 4  # parameters, of two bits each
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


class TransformersFolder:
    """A target's folder as transformers reads it. Raises ValueError, one line, where it has no class for it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        raw = shapes.read_config(path)
        self.keys = completed(text_part(raw), _auto_config(self.path))
        self.shape = shapes.from_config(self.keys, shapes.folder_name(path), where=str(self.path / "config.json"))
        self.config = config_of_head(self.keys)

    @property
    def quantised(self) -> bool:
        """Whether the checkpoint's weights are."""
        return bool(self.keys.get("quantization_config"))

    def load(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> "TransformersTarget":
        """The model, frozen, in evaluation mode. Raises ValueError where its weights or its logits are not as they should be."""
        check_size(self.path, self.shape.params)
        model, lacking = loaded(self.path, dtype)
        if lacking:
            raise ValueError(f"{self.path}: lacks tensor {lacking[0]}, or has it in another shape; download it again")
        with as_one_line(self.path):  # a quantised one may be where it runs already, and refuse to move
            model = model if model.device == torch.device(device) else model.to(device)
        return TransformersTarget(model, self.shape, self.config, self.path)


def check_size(path: Path, params: int) -> None:
    """Raise ValueError where a config counts more parameters than the files beside it can hold: before transformers makes room for them."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if params > MOST_PER_BYTE * size:
        raise ValueError(
            f"{path / 'config.json'}: makes a model of {params:,} parameters, and its weights on file are {size:,} bytes; download them again, "
            "or mend its sizes"
        )


def loaded(
    path: Path, dtype: torch.dtype, change: Callable[[Any], object] = lambda config: None
) -> tuple[Any, list[str]]:
    """A folder's causal language model, frozen, its config changed, and the parameters that its files lack or have in another shape."""
    from transformers import AutoModelForCausalLM

    change(config := _auto_config(path))
    with transformers_quiet(), as_one_line(path):
        read: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, loading = read
    lacking = [*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])]
    return model.requires_grad_(False).eval(), sorted(lacking)


class TransformersTarget(Target):
    """`model`: what `AutoModelForCausalLM` gave. Its documents are put to it one by one, since not every family takes a mask.

    `layers`: how many it has, where these are not all that its shape says. `trunk_norm`: its final norm as it is, None where it has none;
    `norm`: the same as torch's own, where there is one.
    """

    masked = False

    def __init__(self, model: Any, shape: Shape, config: ModelConfig, path: Path, layers: int | None = None) -> None:
        super().__init__()
        self.model, self.shape, self.config, self.path = model, shape, config, path
        tables = ends(model)
        self.embed_tokens, self._trunk = embedding_of(tables, shape), (trunk_of(model),)
        tokens_1T = torch.arange(PROBED, device=self.device)[None] % shape.vocab_size
        with torch.no_grad(), as_one_line(path):
            logits_nV = model(tokens_1T, use_cache=False).logits[0]
            with outputs_of(self._trunk[0].children()) as outputs:
                states = self._hidden_states(tokens_1T)
        if len(states) != (num_layers := layers or shape.num_layers) + 1:
            raise ValueError(
                f"{path}: transformers gives {len(states)} hidden states of {num_layers} layers; there should be one more"
            )
        self._head, self.logits_form = read_out_of(tables, shape, states[-1][0], logits_nV, path)
        ending = [part for part, output in outputs if isinstance(output, Tensor) and torch.equal(output, states[-1])]
        self.trunk_norm = ending[-1] if ending else None
        self.norm = as_rms_norm(self.trunk_norm or nn.Identity(), states[-1][0], config.norm_eps)

    @property
    def head_weight_VC(self) -> Tensor:
        return self._head

    def forward(self, tokens_BT: Tensor, *place: None, hidden_states: tuple[int, ...] = (), **others: Any) -> Output:
        """Hidden states of whole texts; positions and masks are not taken (see `masked`)."""
        assert not any(part is not None for part in (*place, others.get("mask_BTS"))), "one document at a time"
        states = self._hidden_states(tokens_BT)
        return Output(None, states[-1], states[-1], tuple(states[i] for i in hidden_states))

    def _hidden_states(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        output = self._trunk[0](input_ids=tokens_BT, use_cache=False, output_hidden_states=True)
        if not getattr(output, "hidden_states", None):
            raise ValueError(f"{self.path}: its class in transformers gives no hidden states")
        return output.hidden_states


class Tables(NamedTuple):
    """The parts of a model at its two ends, as modules of transformers, and what bounds its logits softly."""

    embedding: Any
    lm_head: Any
    cap: float | None


def ends(model: Any) -> Tables:
    """Raises ValueError where a model has no embedding or no LM head."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    tables = Tables(model.get_input_embeddings(), model.get_output_embeddings(), cap)
    if tables.embedding is None or tables.lm_head is None:
        raise ValueError(f"{type(model).__name__} has no {'embedding' if tables.embedding is None else 'LM head'}")
    return tables


def embedding_of(tables: Tables, shape: Shape) -> nn.Embedding:
    """The rows of a model's embedding, as heads read them: without what its class multiplies them with (Gemma's)."""
    weight = tables.embedding.weight
    if tuple(weight.shape) != (shape.vocab_size, shape.hidden_size):
        raise ValueError(f"its embedding is {list(weight.shape)}, not [{shape.vocab_size}, {shape.hidden_size}]")
    embedding = nn.Embedding(*weight.shape, device="meta")
    embedding.weight = weight
    return embedding


def trunk_of(model: Any) -> Any:
    """The part of a model that holds the embedding beside the layers: tokens in, hidden states out."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return model.get_submodule(name.rpartition(".")[0])


@contextmanager
def outputs_of(parts: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Any]]]:
    """What modules give while they are called, in order, each with its module."""
    given: list[tuple[nn.Module, Any]] = []
    hooks = [part.register_forward_hook(lambda part, _, output: given.append((part, output))) for part in parts]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def as_rms_norm(norm: nn.Module, states_nW: Tensor, eps: float) -> nn.Module:
    """A norm of some class as torch's own, whose weight is its gain whatever the class stores (Gemma's); itself where it is no RMSNorm."""
    plain = nn.RMSNorm(states_nW.shape[-1], eps=eps, dtype=states_nW.dtype, device=states_nW.device)
    plain.weight.copy_(norm(torch.ones_like(states_nW[:1]))[0])
    alike = _apart(plain(states_nW), norm(states_nW)) <= MATCH[torch.bfloat16]
    return plain.requires_grad_(False) if alike else norm


def read_out_of(
    tables: Tables, shape: Shape, final_nW: Tensor, logits_nV: Tensor, path: Path
) -> tuple[Tensor, LogitsForm]:
    """The matrix that makes logits of hidden states, any scale of theirs in it, and what else is done, from states and their logits.

    Raises ValueError where no matrix with a bias and a cap does.
    """
    weight_VW, bias_V = _matrix(tables.lm_head, shape)
    form, logits = LogitsForm(bias_V, tables.cap), logits_nV[:, : shape.vocab_size].float()
    products = final_nW.float() @ weight_VW.float().T
    scale = 1.0 if _apart(form(products), logits) <= MATCH[torch.bfloat16] / 10 else _scale(products, form, logits)
    apart = _apart(form(products * scale), logits)
    if not apart <= MATCH.get(final_nW.dtype, MATCH[torch.bfloat16]):
        raise ValueError(
            f"{path}: its logits are not its LM head times its last hidden state (off by {float(apart):.1%}), which a head is trained on"
        )
    return weight_VW if scale == 1.0 else weight_VW * scale, form


def _apart(ours_nV: Tensor, theirs_nV: Tensor) -> float:
    """The largest distance, in units of the largest logit."""
    return float((ours_nV - theirs_nV).abs().max() / theirs_nV.abs().max().clamp(min=1e-20))


def _scale(products_nV: Tensor, form: LogitsForm, logits_nV: Tensor) -> float:
    """What the products are multiplied with before bias and cap, by least squares over logits that the cap leaves legible."""
    legible = torch.ones_like(logits_nV, dtype=torch.bool)
    if form.cap is not None:
        legible = logits_nV.abs() < 0.9 * form.cap
        logits_nV = form.cap * (logits_nV / form.cap).clamp(-0.9, 0.9).atanh()
    linear = logits_nV if form.bias_V is None else logits_nV - form.bias_V.float()
    return float((products_nV * linear)[legible].sum() / products_nV[legible].square().sum().clamp(min=1e-20))


def _matrix(lm_head: Any, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """An LM head's weight [V, W] and bias [V]; of one that is quantised what it makes of the unit vectors."""
    weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
    if not (weight.is_floating_point() and weight.element_size() > 1):
        unit = torch.eye(shape.hidden_size, dtype=torch.bfloat16, device=weight.device)
        weight = (lm_head(unit) - (0 if bias is None else bias)).T.contiguous()
    return weight.detach()[: shape.vocab_size], None if bias is None else bias.detach()[: shape.vocab_size]


def completed(keys: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A config's keys with the sizes that it leaves to its class, or spells otherwise, under their usual names."""
    inner = config.get_text_config()
    known = {name: value for name in SIZES if (value := getattr(inner, name, None)) is not None}
    more = {name: value for name, value in known.items() if keys.get(name) is None}
    wide = getattr(inner, "intermediate_size", None) or 4 * known.get("hidden_size", 0)
    return dict(keys) | more | ({} if keys.get("intermediate_size") else {"intermediate_size": wide})


def config_of_head(keys: Mapping[str, Any]) -> ModelConfig:
    """What a new head's layers take of a model of any family: the size of its norms' epsilon, and its rope where these layers have it;
    where the model turns parts of its heads, or layers unlike, the whole of them as the full layers do.
    """
    eps = next((keys[name] for name in EPSILONS if keys.get(name) is not None), 1e-5)
    flat = {key: value for key, value in keys.items() if key != "partial_rotary_factor"}
    for key in ("rope_parameters", "rope_scaling"):
        part = flat.get(key) or {}
        part = part.get("full_attention", part) if isinstance(part, dict) else {}
        flat[key] = {name: value for name, value in part.items() if name != "partial_rotary_factor"}
    theta = flat["rope_parameters"].get("rope_theta") or keys.get("rope_theta") or keys.get("rotary_emb_base")
    try:
        rope = rope_from_config(flat)
    except ValueError:
        rope = Rope(theta=float(theta or Rope().theta))  # of a kind that heads' layers do not have
    return msgspec.convert({"norm_eps": eps, "activation": "silu", "rope": rope}, ModelConfig, from_attributes=True)


def _auto_config(path: Path) -> Any:
    from transformers import AutoConfig

    with transformers_quiet(), as_one_line(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)


@contextmanager
def as_one_line(path: Path) -> Iterator[None]:
    """Whatever transformers raises as a ValueError of one line."""
    try:
        yield
    except Exception as error:
        import transformers

        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        message = f"{path}: transformers {transformers.__version__} cannot run it: {reason}"
        raise with_hint(
            ValueError(message), "a target that only a server runs: --teacher FOLDER of its hidden states"
        ) from None


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """No bars and warnings of transformers' own."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        restore: Callable[[], None] = logging.enable_progress_bar if bars else logging.disable_progress_bar
        restore()
