"""The model card: the template of card.md, filled with what was trained and what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamproc.evaluate.report import percent
from streamproc.market.questions import KINDS
from streamproc.training.cycles import CYCLES, MATRIX_LR, NEW_LAYER, OTHER_LR, WARMUP, Cycle, Phase, place_of

TEMPLATE = Path(__file__).with_suffix(".md")


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each kind, a column for each context."""
    bounds = list(found["by_context"])
    lines = ["| % right | " + " | ".join(f"<= {bound}" for bound in bounds) + " | all |", rule(len(bounds) + 2)]
    for kind, by_bound in found["by_question_and_context"].items():
        cells = [percent(by_bound.get(bound)) for bound in bounds]
        lines.append(f"| {kind} | " + " | ".join([*cells, percent(found["by_question"][kind])]) + " |")
    cells = [percent(value) for value in found["by_context"].values()]
    return "\n".join([*lines, "| all | " + " | ".join([*cells, percent(found["overall"])]) + " |"])


def rule(num_columns: int) -> str:
    return "|--" * num_columns + "|"


def cycles_text(cycles: Sequence[Cycle], num_steps: int) -> str:
    """Markdown: what was trained in so many steps, a point for each cycle."""
    points: list[str] = []
    before: tuple[str, ...] = ()
    for number, cycle in enumerate(cycles, 1):
        if num_steps > 0:
            stopped = f", stopped after {num_steps:,}" if num_steps < cycle.steps else ""
            points.append(f"{number}. {cycle.steps:,} steps{stopped}. {cycle_text(cycle, before)}")
        num_steps -= cycle.steps
        before = cycle.layers
    return "\n".join(points)


def cycle_text(cycle: Cycle, before: Sequence[str]) -> str:
    """In sentences, with what its layers have that those before had not."""
    fall = f"; in the last {cycle.decay:.0%} of the steps they fall to nothing" if cycle.decay else ""
    opened = [number for number in windows(before) if number not in windows(cycle.layers)]
    news = f"; {layers_text(opened)} had one before and sees the whole context from here on" if opened else ""
    if before and len(before) < len(cycle.layers):
        news = f"; layer {NEW_LAYER + 1} is new, a copy of the one below that adds nothing at first"
    return (
        f"Streams of {', '.join(map(phase_text, cycle.phases))}. Learning rates of {cycle.peak * MATRIX_LR:g} "
        f"(matrices) and {cycle.peak * OTHER_LR:g}, after a rise of {WARMUP} steps{fall}. "
        f"A window in {layers_text(windows(cycle.layers))}{news}. Hints: {', '.join(cycle.hints)}.")


def phase_text(phase: Phase) -> str:
    sizes = " / ".join(f"{stage.stream_tokens:,}" for stage in phase.stages)
    return f"{sizes} tokens{' in turn' if len(phase.stages) > 1 else ''} ({phase.steps:,} steps)"


def windows(layers: Sequence[str]) -> list[int]:
    """Numbers of the layers that have one, from 1."""
    return [number for number, kind in enumerate(layers, 1) if kind == "sliding"]


def layers_text(numbers: Sequence[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {listed(numbers)}"


def listed(numbers: Sequence[int]) -> str:
    """1, 2 and 4"""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def card(log: list[dict[str, Any]], sets: dict[str, dict[str, Any]], facts: dict[str, str]) -> str:
    """The model card from its template."""
    end = log[-1]
    tables = "\n\n".join(f"**{name}**, {found['asked']:,} questions:\n\n{table(found)}" for name, found in sets.items())
    examples = "\n".join(f"| `{kind.name}` | {kind.question('BTCUSDT', '39430.5')} |" for kind in KINDS.values())
    text, layers = TEMPLATE.read_text(), place_of(CYCLES, end["step"] - 1).cycle.layers
    values = {"layers": str(len(layers)), "tables": tables, "cycles": cycles_text(CYCLES, end["step"]),
              "examples": examples, **facts,
              "windows": layers_text(windows(layers)),
              "minutes": f"{end['seconds'] / 60:.0f}", "steps": f"{end['step']:,}",
              "tokens": f"{end['tokens'] / 1e6:.0f} million"}  # fmt: skip
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    return text
