"""The training log as a picture: accuracy of every kind of question against steps, in SVG. No library draws it."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 900, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 140, 40, 60
SMOOTH = 4      # lines of the log that one point is the mean of
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
           "#17becf", "#000000")  # fmt: skip


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of train.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracy_svg(log: Sequence[dict[str, Any]], kinds: Sequence[str], title: str) -> str:
    """[log lines] -> a picture of WIDTH x HEIGHT."""
    last = log[-1]["step"]
    parts = [f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>', *_grid(last), *_contexts(log, last)]
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
    for step in range(0, last + 1, 1000):
        yield f'<text x="{_x(step, last):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - BOTTOM + 40}" text-anchor="middle">steps; dotted: longer contexts</text>'


def _contexts(log: Sequence[dict[str, Any]], last: int) -> Iterable[str]:
    """A dotted line where the contexts get longer."""
    before = None
    for line in log:
        tokens = line["stream_tokens"]
        if tokens and tokens != before:
            x = _x(line["step"] if before else 0, last)
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            yield f'<line {ends} stroke="#999" stroke-dasharray="2 4"/>'
            yield f'<text x="{x + 3:.1f}" y="{TOP - 2}" font-size="11" fill="#666">{tokens}</text>'
            before = tokens
