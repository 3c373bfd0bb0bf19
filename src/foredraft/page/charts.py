"""The page's two charts as SVG: gain by load with its band and the steps of k, and tokens/s against the time per token.

Promises: ink is the page's own (classes, no colours), so that it follows light and dark; every point says its numbers in a title. Refuses to
know: how a plan is made.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from foredraft.records import Estimate, Plan, ScheduleStep

WIDTH, HEIGHT = 420.0, 310.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 14.0, 42.0
STRIP = 58.0  # height of the steps of k
Scale = Callable[[float], float]


def gain_chart(plan: Plan) -> str:
    """Gain at each load with its interval, and below it the lookahead."""
    steps = plan.schedule
    x = _places(steps)
    floor, ceiling = HEIGHT - BOTTOM - STRIP, TOP
    least, most = min(1.0, *(s.speedup.low for s in steps)), max(1.1, *(s.speedup.high for s in steps))
    y = _linear(least - 0.05 * (most - least), most + 0.06 * (most - least), floor, ceiling)
    parts = [
        _rule(x0=LEFT, x1=WIDTH - RIGHT, y=y(tick)) + _text(LEFT - 7, y(tick) + 4, f"{tick:g}×", "end")
        for tick in _ticks(least, most)
    ]
    parts.append(_line([(LEFT, y(1.0)), (WIDTH - RIGHT, y(1.0))], "even"))
    parts.append(_text(WIDTH - RIGHT, y(1.0) + 13, "without a draft", "end"))
    if len(steps) > 1:
        band = [(x(i), y(s.speedup.high)) for i, s in enumerate(steps)] + [
            (x(i), y(s.speedup.low)) for i, s in reversed(list(enumerate(steps)))
        ]
        parts.append(f'<polygon class="band" points="{_points(band)}"/>')
        parts.append(_line([(x(i), y(s.speedup.value)) for i, s in enumerate(steps)], "curve"))
    for i, step in enumerate(steps):
        title = f"{_clients(step)}: gain {_in(step.speedup, '.2f')}, k = {step.lookahead or 'off'}"
        if len(steps) == 1:
            parts.append(_line([(x(i), y(step.speedup.low)), (x(i), y(step.speedup.high))], "whisker"))
        parts.append(_dot(x(i), y(step.speedup.value), title))
    parts += _lookaheads(steps, x, floor + 20, HEIGHT - BOTTOM)
    parts += [_text(x(i), HEIGHT - BOTTOM + 15, f"{s.concurrency:,}", "middle") for i, s in enumerate(steps)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "requests at once", "middle"))
    return _svg(parts, "Gain by requests at once, with its 90 % band and the lookahead k at each load")


def _lookaheads(steps: Sequence[ScheduleStep], x: Scale, top: float, bottom: float) -> list[str]:
    """A stair of k along the loads."""
    most = max((s.lookahead for s in steps), default=0) or 1
    half = (x(1) - x(0)) / 2 if len(steps) > 1 else 20.0
    stair: list[tuple[float, float]] = []
    labels = []
    for i, step in enumerate(steps):
        y = bottom - (bottom - top - 10) * step.lookahead / most
        stair += [(max(x(i) - half, LEFT), y), (min(x(i) + half, WIDTH - RIGHT), y)]
        if i == 0 or steps[i - 1].lookahead != step.lookahead or steps[i - 1].topk != step.topk:
            tree = f", {step.tree_nodes} nodes" if step.topk > 1 else ""
            labels.append(_text(x(i), y - 4, f"k={step.lookahead}{tree}" if step.lookahead else "off", "middle", "key"))
    return [_rule(LEFT, WIDTH - RIGHT, bottom), _line(stair, "stair"), *labels]


def latency_chart(plan: Plan) -> str:
    """Tokens/s of all requests against the time per output token, a point a load; what misses the level on TPOT is shaded."""
    steps = plan.schedule
    level = plan.service_levels.tpot_s if plan.service_levels else None
    first = plan.service_levels.ttft_s if plan.service_levels else None
    slowest = 1e3 * max([max(s.tpot_s.high, s.plain_tpot_s or 0) for s in steps] + ([level * 1.15] if level else []))
    fastest = max(s.output_tok_s.high for s in steps)
    x, y = _linear(0, slowest * 1.04, LEFT + 6, WIDTH - RIGHT), _linear(0, fastest * 1.06, HEIGHT - BOTTOM, TOP)
    parts = []
    if level:
        at = x(1e3 * level)
        parts.append(
            f'<rect class="missed" x="{at:.1f}" y="{TOP:g}" width="{max(WIDTH - RIGHT - at, 0):.1f}" height="{HEIGHT - BOTTOM - TOP:g}"/>'
        )
        parts.append(_line([(at, TOP), (at, HEIGHT - BOTTOM)], "level"))
        parts.append(_text(at - 4, TOP + 11, f"TPOT ≤ {1e3 * level:g} ms", "end", "key"))
    parts += [
        _rule(LEFT + 6, WIDTH - RIGHT, y(tick)) + _text(LEFT, y(tick) + 4, _short(tick), "end")
        for tick in _ticks(0, fastest)
    ]
    parts += [_text(x(tick), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle") for tick in _ticks(0, slowest)]
    if plain := [
        (x(1e3 * s.plain_tpot_s), y(s.plain_output_tok_s)) for s in steps if s.plain_tpot_s and s.plain_output_tok_s
    ]:
        parts += [_line(plain, "plain"), _text(plain[-1][0], plain[-1][1] - 8, "without a draft", "end")]
    parts.append(_line([(x(1e3 * s.tpot_s.value), y(s.output_tok_s.value)) for s in steps], "curve"))
    for step in steps:
        at, up = x(1e3 * step.tpot_s.value), y(step.output_tok_s.value)
        parts.append(_line([(x(1e3 * step.tpot_s.low), up), (x(1e3 * step.tpot_s.high), up)], "whisker"))
        parts.append(_line([(at, y(step.output_tok_s.low)), (at, y(step.output_tok_s.high))], "whisker"))
        late = first is not None and step.ttft_s is not None and step.ttft_s.value > first
        title = f"{_clients(step)}: {_in(step.output_tok_s, ',.0f')} tokens/s, TPOT {_in(step.tpot_s, '.3g', 1e3)} ms"
        parts.append(_dot(at, up, title + (", TTFT misses its level" if late else ""), "late" if late else ""))
    parts += _labels([(x(1e3 * s.tpot_s.value), y(s.output_tok_s.value), f"{s.concurrency:,}") for s in steps])
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "ms per output token (TPOT)", "middle"))
    return _svg(
        parts, "Output tokens per second against milliseconds per output token; numbers at points are requests at once"
    )


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names beside points, of those alone that stand clear of the last named."""
    labels, last = [], (-1e9, -1e9)
    for x, y, name in reversed(points):
        if math.hypot(x - last[0], y - last[1]) > 17:
            labels.append(_text(x + 7, y + 14, name, "start", "key"))
            last = x, y
    return labels


def range_bar(estimate: Estimate, most: float) -> str:
    """An interval as a bar beside the line of no gain, from 0 to `most`."""
    x = _linear(0, most, 2, 158)
    ink = "good" if estimate.low >= 1 else "bad" if estimate.high <= 1 else "unsure"
    parts = [
        f'<rect class="{ink}" x="{x(estimate.low):.1f}" y="6" width="{max(x(estimate.high) - x(estimate.low), 1):.1f}" height="8" rx="4"/>',
        _line([(x(1.0), 0), (x(1.0), 20)], "even"),
        f'<circle class="dot" cx="{x(estimate.value):.1f}" cy="10" r="5"/>',
    ]
    return f'<svg viewBox="0 0 160 20" class="range" aria-hidden="true">{"".join(parts)}</svg>'


# --- Parts ---


def _places(steps: Sequence[ScheduleStep]) -> Scale:
    """Loads side by side, in their order."""
    room = WIDTH - RIGHT - LEFT
    return lambda i: LEFT + room * (i + 0.5) / len(steps)


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * (value - low) / ((high - low) or 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span))
    step = next(part * step for part in (0.2, 0.25, 0.5, 1, 2) if span / (part * step) <= 5.5)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _in(estimate: Estimate, form: str, scale: float = 1.0) -> str:
    value, low, high = (format(number * scale, form) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _clients(step: ScheduleStep) -> str:
    return f"{step.concurrency:,} at once"


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _line(points: Sequence[tuple[float, float]], ink: str) -> str:
    return f'<polyline class="{ink}" points="{_points(points)}"/>'


def _rule(x0: float, x1: float, y: float) -> str:
    return _line([(x0, y), (x1, y)], "rule")


def _dot(x: float, y: float, title: str, ink: str = "") -> str:
    return f'<circle class="dot {ink}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, words: str, anchor: str, ink: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{f" class={chr(34)}{ink}{chr(34)}" if ink else ""}>{escape(words)}</text>'


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
