"""A plan's draft as a recipe: what to train is the plan's, how to train it follows known rules.

Promises: sizes and token budgets are the plan's own; the expected tokens per step go along with their interval. Refuses to
know: how a plan is made.
"""

from foredraft import kinds
from foredraft.kinds import ANSWERS_SHARE
from foredraft.recipe import HEADS, HeadModel, LanguageModel, Prediction, Recipe, Stage
from foredraft.records import DraftChoice, Plan

LENGTH = 1024
HEAD_RATE, ANSWERS_RATE = 1e-4, 5e-5  # SpecForge's and EAGLE-3's, with AdamW, at EAGLE's usual width of …
WIDTH, MOST = 4096, 20  # … from which a narrower head takes a rate as much higher (arXiv 2203.03466), up to 20 times
HEAD_STEPS, HEAD_BATCH_TOKENS = 1000, (1024, 65536)  # as many steps as the least and the most tokens of one allow
COMPILED_FLOPS = 1e14  # from here on compiling, a minute on a CPU, is worth it
DEVICES = 8  # batches are multiples of it, where they are as large


def from_plan(plan: Plan, num_folders: int = 1, length: int = LENGTH) -> Recipe:
    """The recipe of `plan.draft`. Raises ValueError where the plan has nothing to train or no budget for it.

    A head of several layers (Scylla) trains on plain text first and, where `num_folders` is 2, on the target's answers then.
    """
    draft = plan.draft
    if draft is None or kinds.of_choice(draft).passes == "none":
        raise ValueError(f"draft: the plan chose {draft.name if draft else 'no draft'}, which needs no training")
    if not draft.draft_tokens:
        raise ValueError(f"draft.draft_tokens is missing: {draft.name} is used as it is; write a recipe to train it")
    best = max(plan.schedule, key=lambda step: step.tokens_per_step.value)
    return Recipe(
        model=_model(draft),
        stages=_stages(draft, draft.draft_tokens, num_folders, length),
        precision=draft.training_dtype or "bfloat16",
        compile=draft.training_flops > COMPILED_FLOPS,
        predicted=Prediction(lookahead=best.lookahead, tokens_per_step=best.tokens_per_step),
    )


def _model(draft: DraftChoice) -> LanguageModel | HeadModel:
    kind = kinds.of_choice(draft)
    if kind is kinds.LM:
        return LanguageModel(params=draft.non_embedding_params, draft_vocab=draft.draft_vocab)
    if kind.name in HEADS:
        words = draft.draft_vocab or (_draft_vocab(draft) if kind.own_lm_head else None)
        return HEADS[kind.name](layers=draft.num_layers, draft_vocab=words)
    tools = f"; {' or '.join(draft.trained_by)} trains it" if draft.trained_by else ""
    raise ValueError(f"draft.method: foredraft has no recipe for a {kind.label} head{tools}")


def _draft_vocab(draft: DraftChoice) -> int | None:
    """The rows of the LM head, a head's only embedding, of a plan older than `draft_vocab`."""
    return round((draft.params - draft.non_embedding_params) / draft.hidden_size) or None


def _stages(draft: DraftChoice, tokens: float, num_folders: int, length: int) -> tuple[Stage, ...]:
    if draft.kind == "lm":
        rate, batch_tokens = compute_optimal(6 * draft.non_embedding_params * tokens)
        return (_stage(tokens, rate, batch_tokens, length),)
    wider = min(WIDTH / draft.hidden_size, MOST)
    least, most = HEAD_BATCH_TOKENS
    batch_tokens = min(max(tokens / HEAD_STEPS, least), most)
    if draft.num_layers == 1 or num_folders < 2:
        return (_stage(tokens, HEAD_RATE * wider, batch_tokens, length),)
    shares = ((1 - ANSWERS_SHARE, HEAD_RATE), (ANSWERS_SHARE, ANSWERS_RATE))
    return tuple(_stage(share * tokens, rate * wider, batch_tokens, length) for share, rate in shares)


def _stage(tokens: float, rate: float, batch_tokens: float, length: int) -> Stage:
    """At least two sequences a step; a budget smaller than a step takes one of its size."""
    length = min(length, max(16, round(min(batch_tokens, tokens) / 2)))
    batch = max(1, round(batch_tokens / length))
    if batch >= DEVICES:
        batch = DEVICES * round(batch / DEVICES)
    return Stage(tokens=tokens, length=length, batch=min(batch, int(tokens // length)), learning_rate=rate)


def compute_optimal(flops: float) -> tuple[float, float]:
    """Learning rate, and tokens per step, of a language model by its training FLOPs (arXiv 2401.02954, equation 1)."""
    return 0.3118 * flops**-0.125, 0.2920 * flops**0.3271
