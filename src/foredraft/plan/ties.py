"""What is planned where gains are nearly equal, and which draft the draws do not tell from the planned one.

One rule: of all drafts whose mean log gain lies within SAME_GAIN of the greatest the cheapest is planned, by device-hours of training,
then by parameters beside the target, then none before one. Among lookaheads of a load the shortest within SAME_SPEED of the best.
Where another draft gains more by SAME_GAIN in more than AHEAD of the joint draws, the best of such is named as its rival, a draft that
further measurements may well prefer. Refuses to know: how gains come about.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foredraft.laws.own_costs import RUN_NOISE

if TYPE_CHECKING:
    from foredraft.plan.search import Scored

SAME_GAIN = RUN_NOISE  # of log gain: two runs of one configuration differ by as much
SAME_SPEED = RUN_NOISE / 2  # of lookaheads, which share a draft and its costs
AHEAD = 0.2  # of joint draws


def cheapest(scored: Sequence["Scored"]) -> "Scored":
    """The cheapest of those whose gain is the greatest within SAME_GAIN, levels of service before it."""
    most = max(each.merit for each in scored)
    return min((each for each in scored if each.merit >= most - SAME_GAIN), key=_cost)


def _cost(scored: "Scored") -> tuple[float, float, int, float]:
    """Training, then parameters to hold, then how much is run: nothing, a draft, a draft behind a look-up; of equals the better one."""
    choice = scored.candidate.choice if scored.candidate else None
    if choice is None:
        return 0.0, 0.0, 0, -scored.gain
    return choice.training_gpu_hours, choice.params, 2 if choice.lookup_min_match else 1, -scored.gain


def rival(scored: Sequence["Scored"]) -> tuple["Scored", float, float] | None:
    """Of the ranked the best other draft that is ahead of the first by SAME_GAIN in more than AHEAD of the draws, with the shares of draws
    in which it is ahead and behind by more than that; None where the first is decided.
    """
    best = scored[0]
    for other in scored[1:]:
        if len(other.gains) < len(best.gains) or other.missed > best.missed:
            continue
        lead = other.gains - best.gains
        ahead, behind = float(np.mean(lead > SAME_GAIN)), float(np.mean(lead < -SAME_GAIN))
        if identity(other) != identity(best) and ahead > AHEAD:
            return other, ahead, behind
    return None


def identity(scored: "Scored") -> tuple[str, str | None, bool, bool, bool] | None:
    """What tells drafts apart for people: kind, one or more layers of a head, whether it is to be trained, and whether it stands behind a
    look-up; sizes and budgets do not. None: no speculation.
    """
    if scored.candidate is None:
        return None
    choice = scored.candidate.choice
    deep = choice.kind == "head" and choice.num_layers > 1
    return choice.kind, choice.method, deep, choice.training_flops > 0, choice.lookup_min_match is not None
