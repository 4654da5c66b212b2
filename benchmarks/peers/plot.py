"""A question's latency against the context, ours and the peers'."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from peers.subject import OURS

CASES = {"s1_ms": "S1: 400 tokens have arrived", "s2_ms": "S2: everything is resident",
         "draft_ms": "the previous answer still holds"}  # fmt: skip


def plot(path: Path, figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """`figures`: by contender, context and case, milliseconds. A peer that takes no draft answers as in S2."""
    contexts = sorted(figures[OURS], key=int)
    drawn = Figure(figsize=(13, 4.2), layout="tight")
    axes = drawn.subplots(1, len(CASES), sharey=True)
    for panel, (case, title) in zip(axes, CASES.items(), strict=True):
        for name in figures:
            _line(panel, name, contexts, [figures[name][context] for context in contexts], case)
        panel.set(title=title, xscale="log", yscale="log", xlabel="context, tokens")
        panel.set_xticks([int(context) for context in contexts], contexts)
        panel.minorticks_off()
        panel.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("question of 24 + 8 tokens, ms")
    axes[0].legend(fontsize="small")
    drawn.savefig(path, dpi=150)


def _line(panel: Any, name: str, contexts: list[str], rows: list[dict[str, float]], case: str) -> None:
    values = [row.get(case, row["s2_ms"]) for row in rows]
    label = name if case in rows[0] else f"{name} (decodes)"
    width = 2.5 if name == OURS else 1.2
    panel.plot([int(context) for context in contexts], values, marker="o", label=label, linewidth=width)
