"""The training log as a picture: accuracy of every kind of question against steps, in SVG. No library draws it.

What the steps were trained on stands above them, by the schedule: a line of the log has its phase's longest context.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from streamproc.training.cycles import Cycle

WIDTH, HEIGHT = 900, 500
LEFT, RIGHT, TOP, BOTTOM = 60, 140, 60, 60
LABEL_ROWS = (TOP - 6, TOP - 19)    # y of labels; the second is for one that the first has no room for
DIGIT = 6.5                         # width of a label's character
SMOOTH = 4      # lines of the log that one point is the mean of
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
           "#17becf", "#000000")  # fmt: skip


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of train.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracy_svg(log: Sequence[dict[str, Any]], kinds: Sequence[str], title: str, cycles: Sequence[Cycle]) -> str:
    """[log lines] -> a picture of WIDTH x HEIGHT."""
    last = log[-1]["step"]
    parts = [f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>', *_cycles(cycles, last), *_grid(last),
             *_contexts(cycles, last)]
    for place, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
        points = " ".join(f"{_x(step, last):.1f},{_y(share):.1f}" for step, share in _smooth(log, kind))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = TOP + 16 + 20 * place
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y}" fill="{colour}">{escape(kind)}</text>')
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')  # fmt: skip


def _x(step: float, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / last


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _smooth(log: Sequence[dict[str, Any]], kind: str) -> Iterable[tuple[int, float]]:
    lines = [line for line in log if kind in line]
    for end in range(SMOOTH, len(lines) + 1, SMOOTH):
        some = lines[end - SMOOTH : end]
        yield some[-1]["step"], sum(line[kind] for line in some) / SMOOTH


def _grid(last: int) -> Iterable[str]:
    for percent in range(0, 101, 20):
        y = _y(percent / 100)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>'
    for step in range(0, last + 1, 1000 if last <= 10_000 else 2000):
        yield f'<text x="{_x(step, last):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - BOTTOM + 40}" text-anchor="middle">steps; above: tokens of context</text>'


def _cycles(cycles: Sequence[Cycle], last: int) -> Iterable[str]:
    """A grey ground under every second cycle, and its number."""
    start = 0
    for number, cycle in enumerate(cycles, 1):
        end = min(start + cycle.steps, last)
        if start < end and len(cycles) > 1:
            x, size = _x(start, last), f'width="{_x(end, last) - _x(start, last):.1f}" height="{HEIGHT - TOP - BOTTOM}"'
            if number % 2 == 0:
                yield f'<rect x="{x:.1f}" y="{TOP}" {size} fill="#f2f2f2"/>'
            yield f'<text x="{x + 4:.1f}" y="{HEIGHT - BOTTOM - 8}" font-size="11" fill="#666">cycle {number}</text>'
        start += cycle.steps


def _contexts(cycles: Sequence[Cycle], last: int) -> Iterable[str]:
    """A dotted line where the contexts become others."""
    taken = dict.fromkeys(LABEL_ROWS, 0.0)      # up to which x
    for step, label in context_labels(cycles):
        if step < last:
            x = _x(step, last)
            row = next((y for y, end in taken.items() if end < x), LABEL_ROWS[-1])
            taken[row] = x + DIGIT * (len(label) + 1)
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{row - 8}" y2="{HEIGHT - BOTTOM}"'
            yield f'<line {ends} stroke="#999" stroke-dasharray="2 4"/>'
            yield f'<text x="{x + 3:.1f}" y="{row}" font-size="11" fill="#666">{label}</text>'


def context_labels(cycles: Sequence[Cycle]) -> Iterable[tuple[int, str]]:
    """The first step of every stretch on the same contexts, and these."""
    step, before = 0, ""
    for phase in (phase for cycle in cycles for phase in cycle.phases):
        sizes = sorted({stage.stream_tokens for stage in phase.stages})
        label = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        if label != before:
            yield step, label
        step, before = step + phase.steps, label
