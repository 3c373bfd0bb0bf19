"""On a CUDA device: the CPU's text in float32 for every kind of drafter, captured graphs that change nothing, the CPU's losses."""

import pytest
import torch

from foredraft.data.tokens import Batch
from foredraft.decode.batch import Request
from foredraft.decode.block_drafter import BlockDrafter
from foredraft.decode.drafter import Drafter
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramDrafter
from foredraft.decode.proposals import Budget
from foredraft.decode.sampling import Sampling
from foredraft.models.block_head import BlockHead
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import TokenHead
from foredraft.models.heads import new_head
from foredraft.models.layers import model_config_of
from foredraft.shapes import from_config
from foredraft.teacher.chains import joint
from foredraft.train.flops import EAGLE, HeadSettings
from foredraft.train.heads import HeadObjective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda"
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
        small = model(DEVICE, 2, target.dtype)
        return ModelDrafter(small, small.new_cache(8, 400))
    if kind in ("eagle", "eagle3"):
        head = new_head(target, kind, 2, dtype=target.dtype).requires_grad_(False).eval()
        assert isinstance(head, TokenHead)
        return HeadDrafter(head, head.new_cache(8, 600))
    if kind in ("dflash", "dspark"):
        head = new_head(target, kind, 1, range(256), block=4).to(target.dtype).requires_grad_(False).eval()
        assert isinstance(head, BlockHead)
        return BlockDrafter(head, head.new_cache(8, 600))
    return NGramDrafter() if kind == "ngram" else None


def answers(target: Decoder, kind: str, budget: Budget, batch: int, *, graphs: bool = True) -> list[list[int]]:
    engine = Engine(target, drafter(kind, target), lookahead=budget, max_batch=batch, max_context=256)
    if not graphs:
        engine.score.capture = None
    return [s.answer for s in engine.generate([Request(prompt=prompt, max_tokens=48) for prompt in PROMPTS])]


@pytest.fixture(scope="module")
def target() -> Decoder:
    torch.backends.cuda.matmul.allow_tf32 = False
    return model(DEVICE)


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
        ("dflash", Budget(4)),
        ("dspark", Budget(4)),
    ],
)
def test_greedy_text_is_the_cpus(
    target: Decoder, plain: list[list[int]], kind: str, budget: Budget, batch: int
) -> None:
    assert answers(target, kind, budget, batch) == plain


def test_graphs_change_nothing_in_bfloat16() -> None:
    target = model(DEVICE, dtype=torch.bfloat16)
    assert answers(target, "none", Budget(0), 4) == answers(target, "none", Budget(0), 4, graphs=False)


def test_sampled_text_is_the_cpus(target: Decoder) -> None:
    """Chance comes from each request's seed, wherever probabilities are computed. Two of 240 tokens' probabilities differ by more than
    rounding only where something is wrong, so false alarms are below one in a thousand."""
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=5)

    def sampled(on: Decoder, batch: int) -> list[list[int]]:
        engine = Engine(on, None, lookahead=0, max_batch=batch, max_context=256)
        return [
            s.answer for s in engine.generate([Request(prompt=p, max_tokens=48, sampling=sampling) for p in PROMPTS])
        ]

    assert sampled(target, 4) == sampled(model("cpu"), 1)


@pytest.mark.parametrize("steps", [1, 3])
def test_attention_of_unrolled_steps_is_the_cpus(steps: int) -> None:
    """The library's kernels in bfloat16, forward and backward, held to blocks of queries in float32 on the CPU."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 4, 96, 64), *[(2, 2, 96, 64)] * (2 * steps)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator)
    outcomes = []
    for device, dtype in ((DEVICE, torch.bfloat16), ("cpu", torch.float32)):
        q, *keys_values = (x.to(device, dtype, copy=True).requires_grad_() for x in inputs)
        documents = None if device == DEVICE else torch.zeros(2, 96, dtype=torch.int32)
        out = joint(q, keys_values, documents)
        (out.float() * weights.to(device)).sum().backward()
        outcomes.append(
            [out.detach().float().cpu(), *(x.grad.float().cpu() for x in (q, *keys_values) if x.grad is not None)]
        )
    for here, there in zip(*outcomes, strict=True):
        assert float((here - there).norm() / there.norm()) < 0.01


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_heads_loss_and_gradient_are_the_cpus(target: Decoder, kind: str) -> None:
    tokens = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(4))
    outcomes = []
    for on in (target, model("cpu")):
        settings = HeadSettings(unroll=2, loss={"soft_ce": 1.0}) if kind == "eagle3" else EAGLE._replace(noise=0.0)
        objective = HeadObjective(
            on, new_head(on, kind, 1, range(128) if kind == "eagle3" else None), settings, length=24
        )
        parts = (tokens, torch.ones(2, 24, dtype=torch.bool), torch.zeros(2, 24, dtype=torch.int32))
        loss = objective.loss(Batch(*(part.to(on.device) for part in parts)), 0)
        loss.total.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in objective.trained.parameters() if p.grad is not None])
        outcomes.append((float(loss.total.detach()), gradients))
    (here, slope), (there, slope_there) = outcomes
    assert here == pytest.approx(there, rel=1e-4)
    assert float((slope - slope_there).norm() / slope_there.norm()) < 1e-3
