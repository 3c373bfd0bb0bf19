"""Replies into figures: times, ratios paired by round, sameness of tokens, and a table for people.

Refuses to know: how replies came about.
"""

from typing import Any

import numpy as np

Rounds = list[dict[str, Any]]  # replies of one configuration: seconds, first_s, answers, steps, foreign
Replies = dict[tuple[str, str], Rounds]  # by (engine, method)
SPREAD = (5, 95)


def configurations(replies: Replies, new: int, batch: int) -> dict[str, Any]:
    """Times of each configuration, what it accepted, and whether its tokens are the reference's."""
    reference = replies.get(("transformers", "plain")) or next(iter(replies.values()), [])
    return {
        "/".join(configuration): _configuration(rounds, reference, new, batch)
        for configuration, rounds in replies.items()
    }


def _configuration(rounds: Rounds, reference: Rounds, new: int, batch: int) -> dict[str, Any]:
    times = [reply["seconds"] / new / batch * 1e3 for reply in rounds]
    firsts = [reply["first_s"] * 1e3 for reply in rounds if reply["first_s"] is not None]
    steps = sum(reply["steps"] or 0 for reply in rounds)
    figures = {
        "ms_per_token": _spread(times),
        "ms_by_round": times,
        "foreign_most": max(reply["foreign"] for reply in rounds),
    }
    figures |= {"first_ms": _spread(firsts)} if firsts else {}
    figures |= {"tokens_per_step": new * len(rounds) / steps} if steps and batch == 1 else {}
    return figures | _sameness(rounds, reference)


def _sameness(rounds: Rounds, reference: Rounds) -> dict[str, Any]:
    """How many answers equal the reference's, and where the first difference of each other one stands."""
    pairs = [
        pair
        for reply, other in zip(rounds, reference, strict=True)
        for pair in zip(reply["answers"], other["answers"], strict=True)
    ]
    differ = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair)))
        for pair in pairs
        if pair[0] != pair[1]
    ]
    return {"same_answers": len(pairs) - len(differ), "answers": len(pairs)} | (
        {"first_differences": differ} if differ else {}
    )


def over_ours(replies: Replies) -> dict[str, Any]:
    """How many times as fast ours is as a peer with the same method, by round."""
    ours = {method: rounds for (engine, method), rounds in replies.items() if engine == "foredraft"}
    return {
        "/".join(configuration): _ratio(rounds, ours[configuration[1]])
        for configuration, rounds in replies.items()
        if configuration[0] != "foredraft" and configuration[1] in ours
    }


def over_plain(replies: Replies) -> dict[str, Any]:
    """How many times as fast a method is as plain decoding by the same engine, by round."""
    return {
        "/".join(configuration): _ratio(replies[configuration[0], "plain"], rounds)
        for configuration, rounds in replies.items()
        if configuration[1] != "plain" and (configuration[0], "plain") in replies
    }


def _ratio(slow: Rounds, fast: Rounds) -> dict[str, float]:
    return _spread([a["seconds"] / b["seconds"] for a, b in zip(slow, fast, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    low, high = np.percentile(values, SPREAD)
    return {"median": float(np.median(values)), "p5": float(low), "p95": float(high)}


def table(name: str, race: dict[str, Any]) -> str:
    """One race for people."""
    floor = race["params_read"] * (4 if "float32" in name else 2) / race["machine"]["read_bytes_per_s"] * 1e3
    title = f"{name}: ms per token, median (5–95 %) of {race['rounds']} rounds; reading the weights once from memory takes {floor:.2f} ms"
    lines = [_line(configuration, row, race) for configuration, row in race["arms"].items()]
    return "\n".join(
        [title, *lines, *(f"  {configuration}: not run: {why}" for configuration, why in race["not_run"].items())]
    )


def _line(configuration: str, figures: dict[str, Any], race: dict[str, Any]) -> str:
    ms, over, over_plain = (
        figures["ms_per_token"],
        race["speed_over"].get(configuration),
        race["speedup_over_own_plain"].get(configuration),
    )
    cells = [
        f"  {configuration:<20}{ms['median']:7.2f} ({ms['p5']:.2f}–{ms['p95']:.2f})",
        f"same {figures['same_answers']}/{figures['answers']}",
        f"{figures['tokens_per_step']:.2f} tokens per step" if "tokens_per_step" in figures else "",
        f"first {figures['first_ms']['median']:.0f} ms" if "first_ms" in figures else "",
        f"{over_plain['median']:.2f}× own plain" if over_plain else "",
        f"ours {over['median']:.2f}× ({over['p5']:.2f}–{over['p95']:.2f})" if over else "",
    ]
    return "  ".join(cell for cell in cells if cell)
