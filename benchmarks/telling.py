"""How results are told: a table for people, one JSON line for programs."""

import json
from collections.abc import Sequence
from typing import Any


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Results as a table."""
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def last_line(result: dict[str, Any]) -> None:
    """The result for programs: one JSON object, the last line."""
    print(json.dumps(result), flush=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
