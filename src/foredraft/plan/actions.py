"""What a plan says to do first, and the commands that do it.

Promises: what only the user knows stands in capitals. Refuses to know: how a plan is made.
"""

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.kinds import CHECKPOINTS
from foredraft.records import Action, DraftChoice, Plan
from foredraft.shapes import Shape, bytes_per_value
from foredraft.shapes.families import runs

PLAN, TARGET, DATA, RUN, SERVED = "PLAN", "TARGET", "DATA", "run", "served"  # folders in the commands
PUBLIC = " (public)"  # ends the name of a model that is on the Hub


def not_run(target: Shape) -> tuple[str, ...]:
    """What is possible with a target that our decoder does not run, as an assumption of a plan; none where it runs it."""
    why = None
    if not runs(target.family):
        why = f"models of family {target.family!r}"
    elif bytes_per_value(target.weight_format) < bytes_per_value("bfloat16"):
        why = f"weights in {target.weight_format}"
    if why is None:
        return ()
    return (
        f"our decoder does not run {why}: measure {target.name} on a server (measure --endpoint) and train heads for it through transformers, or "
        f"from hidden states that its server wrote (train --teacher); it is planned and deployed for as any other, and not run by generate, "
        f"bench or measure without a server",
    )


def action(plan: Plan, *, at_hand: bool = False, runs_here: bool = True) -> Action:
    """What to do for `plan`; `at_hand`: its draft is the user's own; `runs_here`: our decoder runs its target."""
    draft = plan.draft
    if draft is None or not any(step.lookahead for step in plan.schedule):
        return Action(verb="nothing", why=_why_none(plan), commands=_served(plan, None))
    if draft.training_flops:
        return _training(plan, draft, runs_here)
    if draft.kind == kinds.NGRAM.role:
        return Action(verb="use", why=f"{ENGINES[plan.engine].label} has it built in", commands=_served(plan, None))
    if kinds.of_choice(draft).in_target and draft.hub_id is None:
        return Action(verb="use", why=f"it lies in the checkpoint of {plan.target}", commands=_served(plan, None))
    if at_hand and not (draft.hub_id or _alone(draft).endswith(PUBLIC)):
        return Action(verb="use", why="trained already", commands=(_deployed(plan, "DRAFT"),))
    name = draft.hub_id or _alone(draft).removesuffix(PUBLIC)
    use = (_deployed(plan, "DRAFT"),) if draft.lookup_min_match else _served(plan, name)
    return Action(verb="download", why="public, nothing to train", commands=(f"hf download {name}", *use))


def _alone(draft: DraftChoice) -> str:
    """A draft's name without the look-up before it."""
    return draft.name.removesuffix(kinds.BEHIND)


def _why_none(plan: Plan) -> str:
    if not plan.runners_up:
        return "no draft could be weighed"
    best = plan.runners_up[0]
    return f"no draft pays at these loads; the nearest, {best.draft.name}: {best.reason}"


def _training(plan: Plan, draft: DraftChoice, runs_here: bool) -> Action:
    if (kind := kinds.of_name(draft.method) if draft.method else kinds.LM).name not in CHECKPOINTS:
        trainers = ", ".join(draft.trained_by) or "its authors' code"
        return Action(verb="train", why=f"with {trainers}: foredraft has no recipe for {kind.label}")
    if not runs_here and kind is kinds.LM:
        return Action(
            verb="train", why="with a trainer that knows its family: foredraft trains the models that it runs"
        )
    through = "" if runs_here else " --teacher transformers"
    train = f"foredraft train {PLAN}/Plan.json --target {TARGET}{through} --data {DATA} --out {RUN}"
    return Action(verb="train", why="none to download is as good", commands=(train, _deployed(plan, f"{RUN}/final")))


def _deployed(plan: Plan, folder: str) -> str:
    """The command that hands a draft's folder to the engine; our own engine takes it as it is."""
    if not (formats := ENGINES[plan.engine].formats):
        depth = max(step.lookahead for step in plan.schedule)
        match = plan.draft.lookup_min_match if plan.draft else None
        folder += f"{kinds.BESIDE}:{match}" if match else ""
        return f"foredraft measure {TARGET} --draft {folder}@{depth} --prompts PROMPTS --out measured"
    format = next(iter(formats))
    chosen = "" if format == "vllm" else f" --format {format}"
    return f"foredraft deploy {folder} --target {TARGET}{chosen} --plan {PLAN}/Plan.json --out {SERVED}"


def _served(plan: Plan, draft: str | None) -> tuple[str, ...]:
    """The engine's own command, where it has one."""
    command = ENGINES[plan.engine].command(plan, TARGET, draft)
    return (command,) if command else ()
