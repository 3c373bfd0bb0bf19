"""On a CUDA device: the CPU's text in float32 for every kind of drafter, and captured graphs that change nothing."""

import pytest
import torch

from foredraft.decode.batch import Request
from foredraft.decode.drafter import Drafter
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramDrafter
from foredraft.decode.proposals import Budget
from foredraft.models.decoder import Decoder
from foredraft.models.heads import new_head
from foredraft.models.layers import model_config_of
from foredraft.shapes import from_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256,
    "vocab_size": 512, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip
PROMPTS = [(1, 2, 3, 4, 5, 1, 2, 3), (7,), (9, 8, 9, 8, 9, 8), tuple(range(40)), (63, 0)]


def model(device: str, layers: int = 4, dtype: torch.dtype = torch.float32) -> Decoder:
    config = CONFIG | {"num_hidden_layers": layers}
    shape = from_config(config, name="tiny")
    torch.manual_seed(0)
    decoder = Decoder(shape, model_config_of(config, shape))
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return decoder.requires_grad_(False).eval().to(device, dtype)


def drafter(kind: str, target: Decoder) -> Drafter | None:
    if kind == "lm":
        small = model("cuda", 2, target.dtype)
        return ModelDrafter(small, small.new_cache(8, 400))
    if kind in ("eagle", "eagle3"):
        head = new_head(target, kind, 2, dtype=target.dtype).requires_grad_(False).eval()
        return HeadDrafter(head, head.new_cache(8, 600))
    return NGramDrafter() if kind == "ngram" else None


def answers(target: Decoder, kind: str, budget: Budget, batch: int, *, graphs: bool = True) -> list[list[int]]:
    engine = Engine(target, drafter(kind, target), lookahead=budget, max_batch=batch, max_context=256)
    if not graphs:
        engine.score.capture = None
    return [s.answer for s in engine.generate([Request(prompt=prompt, max_tokens=48) for prompt in PROMPTS])]


@pytest.fixture(scope="module")
def target() -> Decoder:
    torch.backends.cuda.matmul.allow_tf32 = False
    return model("cuda")


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    return answers(model("cpu"), "none", Budget(0), 1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("none", Budget(0)),
        ("ngram", Budget(4)),
        ("lm", Budget(4)),
        ("eagle", Budget(3)),
        ("eagle3", Budget(3)),
        ("eagle3", Budget(3, 3, 8)),
    ],
)
def test_greedy_text_is_the_cpus(
    target: Decoder, plain: list[list[int]], kind: str, budget: Budget, batch: int
) -> None:
    assert answers(target, kind, budget, batch) == plain


def test_graphs_change_nothing_in_bfloat16() -> None:
    target = model("cuda", dtype=torch.bfloat16)
    assert answers(target, "none", Budget(0), 4) == answers(target, "none", Budget(0), 4, graphs=False)
