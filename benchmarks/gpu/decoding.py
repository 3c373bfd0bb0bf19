"""Plain, chain and tree decoding against transformers' generate: tokens per second, share of the memory's bandwidth, equal texts.

Whole calls are timed, prompts included, each after a call of the same shapes that captures its passes; figures are of the fastest call,
steps' seconds a median. Untrained drafts are right by chance: their step is what a trained draft's costs, and τ is the
trained one's business.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench import Step
from models import Timed, prompts, timed_models
from rates import memory_rates

from foredraft import shapes
from foredraft.decode.batch import Request
from foredraft.decode.drafter import Drafter
from foredraft.decode.drafters import TREE_SLOTS, drafter_for
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.decode.ngram import NGramDrafter
from foredraft.decode.proposals import Budget
from foredraft.hardware import synchronize
from foredraft.models.decoder import Decoder
from foredraft.models.heads import new_head

BATCHES, NODES, DRAFT_VOCAB, REPEATS, DRAFT_PARAMS = (1, 8, 32), 64, 8192, 2, 5e6
CHAIN, TREE = Budget(5), Budget(6, 10, 60)


class Sizes(NamedTuple):
    """Tokens of a prompt and of an answer, and of how many sequences texts are compared."""

    prompt: int = 64
    new: int = 128
    new_eager: int = 64  # of transformers without captured passes
    compared: int = 16


SMALL = Sizes(8, 8, 8, 2)


def run(step: Step) -> None:
    sizes, batches = (SMALL, (1, 2)) if step.settings.small else (Sizes(), BATCHES)
    rate = memory_rates(step.device)["copy_bytes_per_s"]
    step.record("copy_bytes_per_s", rate)
    models = timed_models(step.settings)
    for timed in models:
        with torch.inference_mode():
            model = timed.ours(torch.bfloat16, step.device)
            for batch in batches:
                _ours(step, timed.name, model, batch, sizes, rate)
            _theirs(step, timed, model, batches, sizes)
            del model
        _emptied(step.device)
    step.attempt("equal texts float32", lambda: equal_texts(models[0], step.device, sizes), 10)
    step.attempt("near ties bfloat16", lambda: near_ties(models[0], step.device, sizes), 10)
    for timed in models if step.device.type == "cuda" else ():  # on a CPU transformers does not compile by itself
        step.attempt(
            f"{timed.name} transformers compiled b1", lambda timed=timed: compiled(timed, step.device, sizes), 45
        )


def drafters(model: Decoder, batch: int, slots: int) -> dict[str, tuple[Callable[[], Drafter | None], Budget]]:
    """Every way of drafting that is timed, by name: what makes its drafter, and its budget."""
    room = slots + TREE_SLOTS

    def head() -> Drafter:
        ids = range(min(DRAFT_VOCAB, model.shape.vocab_size))
        made = new_head(model, "eagle3", 1, ids, dtype=model.dtype).requires_grad_(False).eval()
        return HeadDrafter(made, made.new_cache(batch, room))

    def independent() -> Drafter:
        shape = shapes.scaled(model.shape, min(DRAFT_PARAMS, model.shape.params / 8))
        small = Decoder(shape, model.config).to(model.device, model.dtype).requires_grad_(False).eval()
        return ModelDrafter(small, small.new_cache(batch, room))

    return {
        "plain": (lambda: None, Budget(0)), "eagle3-chain5": (head, CHAIN), "eagle3-tree6x10x60": (head, TREE),
        "independent-chain5": (independent, CHAIN), "ngram-chain5": (NGramDrafter, CHAIN),
    }  # fmt: skip


def _ours(step: Step, name: str, model: Decoder, batch: int, sizes: Sizes, rate: float) -> None:
    asked = prompts(model.shape.vocab_size, batch, sizes.prompt)
    context = sizes.prompt + sizes.new
    for method, (make, budget) in drafters(model, batch, context + NODES).items():
        step.attempt(
            f"{name} {method} b{batch}",
            lambda make=make, budget=budget: timed_calls(model, make(), budget, asked, sizes, rate), 4,
        )  # fmt: skip
    if name == getattr(step.settings.target, "name", None):
        for folder in step.settings.drafts:
            for label, budget in (("chain5", CHAIN), ("tree6x10x60", TREE)):
                step.attempt(
                    f"{name} {folder.name}-{label} b{batch}",
                    lambda folder=folder, budget=budget: timed_calls(
                        model, drafter_for(model, str(folder), batch, context + NODES), budget, asked, sizes, rate
                    ),
                    4,
                )
    _emptied(step.device)


def timed_calls(
    model: Decoder, drafter: Drafter | None, budget: Budget, asked: list[tuple[int, ...]], sizes: Sizes, rate: float
) -> dict[str, float]:
    """Tokens per second of the fastest call; of plain decoding also the share of the memory's bandwidth."""
    engine = Engine(
        model, drafter, lookahead=budget, max_batch=len(asked), max_context=sizes.prompt + sizes.new, max_nodes=NODES
    )
    requests = [Request(prompt=prompt, max_tokens=sizes.new) for prompt in asked]
    began = time.perf_counter()
    engine.generate(requests)
    first_s, calls = time.perf_counter() - began, []
    for _ in range(REPEATS):
        synchronize(model.device)
        began = time.perf_counter()
        for request in requests:
            engine.add(request)
        steps = list(engine.run())
        calls.append((time.perf_counter() - began, steps))
    fastest_s, steps = min(calls, key=lambda call: call[0])
    step_s = statistics.median(record.draft_s + record.target_s + record.other_s for record in steps)
    figures = {
        "tokens_per_s": len(asked) * sizes.new / fastest_s, "step_ms": 1e3 * step_s,
        "tokens_per_step": sum(sum(s.emitted) for s in steps) / sum(len(s.emitted) for s in steps),
        "first_call_s": first_s, "captured": len(engine.score.graphs),
    }  # fmt: skip
    if drafter is None:
        read = bytes_of_a_step(model, len(asked), sizes.prompt + sizes.new / 2)
        figures["bandwidth_share"] = read / step_s / rate
    return figures


def bytes_of_a_step(model: Decoder, batch: int, context: float) -> float:
    """Weights once (of an embedding beside its own LM head only the rows looked up), and the keys and values of the contexts."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if model.lm_head is not None:
        weights -= model.embed_tokens.weight.numel() * model.embed_tokens.weight.element_size()
    return weights + batch * context * model.shape.kv_bytes_per_token(str(model.dtype)[6:])


# Transformers


def _theirs(step: Step, timed: Timed, model: Decoder, batches: tuple[int, ...], sizes: Sizes) -> None:
    peers: list[Any] = []
    step.attempt(f"{timed.name} transformers' model", lambda: {"parts": _loaded(peers, timed, model)}, 10)
    for batch in batches if peers else ():
        asked = prompts(model.shape.vocab_size, batch, sizes.prompt)
        step.attempt(
            f"{timed.name} transformers b{batch}",
            lambda asked=asked: generate_timed(peers[0], asked, sizes.new_eager),
            8,
        )


def _loaded(peers: list[Any], timed: Timed, model: Decoder) -> int:
    """Put transformers' model into `peers`; how many tensors it has."""
    peers.append(timed.theirs(model))
    return len(list(peers[0].parameters()))


def generate_timed(
    peer: Any, asked: list[tuple[int, ...]], new: int, warm: int = 8, **options: Any
) -> dict[str, float]:
    """`generate`'s defaults, greedy: tokens per second of the faster of two calls."""
    device = next(peer.parameters()).device
    ids = torch.tensor(asked, device=device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0} | options
    began = time.perf_counter()
    peer.generate(ids, max_new_tokens=warm, min_new_tokens=warm, **settings)
    synchronize(device)
    first_s, calls = time.perf_counter() - began, []
    for _ in range(REPEATS):
        began = time.perf_counter()
        peer.generate(ids, max_new_tokens=new, min_new_tokens=new, **settings)
        synchronize(device)
        calls.append(time.perf_counter() - began)
    return {"tokens_per_s": len(asked) * new / min(calls), "step_ms": 1e3 * min(calls) / new, "first_call_s": first_s}


def compiled(timed: Timed, device: torch.device, sizes: Sizes) -> dict[str, float]:
    """With a static cache, for which transformers compiles the pass by itself on a GPU; as many new tokens in the first call."""
    peer = timed.theirs(timed.ours(torch.bfloat16, device))
    with torch.inference_mode(False), torch.no_grad():
        asked = prompts(timed.keys["vocab_size"], 1, sizes.prompt)
        return generate_timed(peer, asked, sizes.new, warm=sizes.new, cache_implementation="static")


# Texts


def equal_texts(timed: Timed, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """In float32, TF32 off: the share of answers that are plain decoding's token for token, by method; transformers' too."""
    with torch.inference_mode():
        model = timed.ours(torch.float32, device)
        answers = _answers(model, sizes)
        theirs = _their_answers(timed.theirs(model), sizes)
    plain = answers.pop("plain")
    equal = {name: _share([a == b for a, b in zip(plain, rows, strict=True)]) for name, rows in answers.items()}
    return equal | {"transformers": _share([a == b for a, b in zip(plain, theirs, strict=True)]), "answers": len(plain)}


def near_ties(timed: Timed, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """In bfloat16: the share of answers that leave plain decoding's, and the plain logits' gap where the first token differs."""
    with torch.inference_mode():
        model = timed.ours(torch.bfloat16, device)
        asked, answers = prompts(model.shape.vocab_size, sizes.compared, sizes.prompt), _answers(model, sizes)
        plain, figures = answers.pop("plain"), {}
        for name, rows in answers.items():
            pairs = zip(asked, plain, rows, strict=True)
            gaps = [_gap(model, prompt, a, b) for prompt, a, b in pairs if a != b]
            figures[name] = {"parted": len(gaps), "answers": len(plain), "gaps_in_logits": sorted(gaps)}
    return figures


def _answers(model: Decoder, sizes: Sizes) -> dict[str, list[list[int]]]:
    asked = prompts(model.shape.vocab_size, sizes.compared, sizes.prompt)
    answers = {}
    for name, (make, budget) in drafters(model, 8, sizes.prompt + sizes.new + NODES).items():
        engine = Engine(
            model, make(), lookahead=budget, max_batch=8, max_context=sizes.prompt + sizes.new, max_nodes=NODES
        )
        sequences = engine.generate([Request(prompt=prompt, max_tokens=sizes.new) for prompt in asked])
        answers[name] = [sequence.answer for sequence in sequences]
    return answers


def _their_answers(peer: Any, sizes: Sizes) -> list[list[int]]:
    asked = torch.tensor(
        prompts(peer.config.vocab_size, sizes.compared, sizes.prompt), device=next(peer.parameters()).device
    )
    settings = {"attention_mask": torch.ones_like(asked), "do_sample": False, "pad_token_id": 0}
    out = peer.generate(asked, max_new_tokens=sizes.new, min_new_tokens=sizes.new, **settings)
    return out[:, asked.shape[1] :].tolist()


def _gap(model: Decoder, prompt: tuple[int, ...], plain: list[int], other: list[int]) -> float:
    """How far apart the two tokens' logits are, by a pass over what they share."""
    at = next(i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b)
    logits = model(torch.tensor([[*prompt, *plain[:at]]], device=model.device), logits="last").logits_BTV
    assert logits is not None
    return abs(float(logits[0, -1, plain[at]] - logits[0, -1, other[at]]))


def _share(equal: list[bool]) -> float:
    return sum(equal) / len(equal)


def _emptied(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
