"""Serving engines, a file each: what they cost, and a plan, a draft's folder and a server's counters in their words.

A new one: its file, and a line in `ENGINES`.
"""

from foredraft.engines.engine import ServingEngine
from foredraft.engines.foredraft import Foredraft
from foredraft.engines.sglang import SGLang
from foredraft.engines.tensorrt_llm import TensorRTLLM
from foredraft.engines.vllm import VLLM

ENGINES: dict[str, ServingEngine] = {engine.name: engine for engine in (VLLM(), SGLang(), TensorRTLLM(), Foredraft())}
LOADERS = {name: engine for name, engine in ENGINES.items() if engine.heads}  # those that load draft heads
SERVERS = {name: engine for name, engine in ENGINES.items() if engine.info_paths}  # those whose server can be measured
USUAL = ENGINES["vllm"]  # taken where nothing names another


def named_in(text: str | None) -> ServingEngine:
    """The engine that a text such as "vLLM 0.11, B300" names; the usual one where it names none that is known."""
    return next((engine for name, engine in ENGINES.items() if name in (text or "").lower()), USUAL)


def for_format(form: str) -> ServingEngine | None:
    """The engine that serves a form of a draft's folder; None of one for whoever loads it."""
    return next((engine for engine in ENGINES.values() if form in engine.formats), None)
