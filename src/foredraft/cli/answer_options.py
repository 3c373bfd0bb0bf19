"""The options of verbs that answer prompts, `generate` and `chat`, a type each; and what they say of the engine and its answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from foredraft.cli.options import BATCH, CONTEXT, LOOKAHEAD, SHARE, TEMPERATURE, one_of, real, whole

Target = Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file.")]
Prompt = Annotated[str | None, typer.Argument(help="What to continue; left out, --file or stdin.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="Prompts, answered together: a line each, or rows of JSON (chats, Spec-Bench) or Parquet."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft", "-d", help="ngram, the folder of a smaller model or a draft head, or DIR+ngram, it behind a look-up."
    ),
]
Lookahead = Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.", callback=LOOKAHEAD)]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A Plan.json, whose schedule sets the lookahead by running requests.")
]
Tree = Annotated[
    str | None,
    typer.Option(
        help="TOPK,NODES: a dynamic tree with a head, e.g. 4,16, --lookahead levels deep; or a JSON file of [parent, rank]."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Longest answer.", callback=whole())]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", callback=TEMPERATURE)]
TopP = Annotated[float, typer.Option(help="Smallest set of this mass.", callback=SHARE)]
TopK = Annotated[int, typer.Option(help="The most probable tokens only; 0 for all.", callback=whole(0))]
Stop = Annotated[
    list[str] | None, typer.Option(help="A string or special token that ends the answer; repeat for more.")
]
Chat = Annotated[
    str,
    typer.Option(
        help="The model's chat template: auto (where it has one), always or never.",
        callback=one_of("auto", "always", "never"),
    ),
]
System = Annotated[str | None, typer.Option(help="What the system says first, in a chat.")]
Batch = Annotated[int, typer.Option(help="Requests decoded together.", callback=BATCH)]
Context = Annotated[
    int | None, typer.Option(help="Most tokens per request; the model's own by default.", callback=CONTEXT)
]
CacheGb = Annotated[
    float | None, typer.Option(help="Refuse a KV cache larger than this many GB.", callback=real(above=0, most=1e6))
]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Print the text as it comes (one prompt).")]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How a target answers: its draft and budget, its engine, and what ends an answer. Of `plan` the schedule stands for `lookahead`."""

    target: str
    draft: str | None
    lookahead: int
    tree: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...]
    context: int | None
    dtype: str
    device: str
    plan: Path | None = None
    cache_gb: float | None = None

    def engine(self, max_batch: int) -> Any:
        """Load target and draft. Raises ValueError where they do not fit."""
        from foredraft import records, text
        from foredraft.cli.console import dtype_of

        budget = (
            text.schedule_of(records.read(records.Plan, self.plan)) if self.plan else text.budget_of(self.lookahead, self.tree)
        )  # fmt: skip
        return text.load_engine(
            self.target, self.draft, lookahead=budget, dtype=dtype_of(self.dtype), device=self.device, max_batch=max_batch,
            max_context=self.context, cache_bytes=None if self.cache_gb is None else int(self.cache_gb * 1e9),
        )  # fmt: skip

    def answers(self, tokenizer: Any) -> dict[str, Any]:
        """Return what `text.generate` takes of them."""
        from foredraft import text
        from foredraft.decode.sampling import Sampling

        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed)
        ends = text.stop_ids(self.target, tokenizer)
        return {"max_tokens": self.max_tokens, "sampling": sampling, "ends": ends, "stops": self.stop}
