"""Which asks of a partition are answered: a position in the log, and what is answered beyond it.

Answers leave in the order in which they are ready, so an ask that waits for its offset does not hold up the others.
What is answered past the committed position travels as the metadata of the offset commit, in the same transaction.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

MAX_OPEN = 256  # keeps the metadata far below the broker's limit of 4,096 bytes

RANGES = re.compile(r"answered( \+\d+(-\d+)?)*")


class AskLog:
    """Offsets of one partition of the asks topic."""

    def __init__(self, next_offset: int, metadata: str = "") -> None:
        self.next_offset = next_offset
        self._answered = _parse(next_offset, metadata)
        self._open: set[int] = set()

    @property
    def is_full(self) -> bool:
        return len(self._open) >= MAX_OPEN

    def see(self, offset: int) -> bool:
        """An ask has arrived -> whether it still needs an answer."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        if offset in self._answered:
            return False
        self._open.add(offset)
        return True

    def close(self, offset: int) -> None:
        """The answer of this ask is part of the epoch being committed."""
        self._open.discard(offset)
        self._answered.add(offset)

    def position(self) -> tuple[int, str]:
        """The offset to commit, and its metadata."""
        position = min(self._open, default=self.next_offset)
        self._answered = {offset for offset in self._answered if offset >= position}
        return position, _format(position, self._answered)


def _format(position: int, offsets: Iterable[int]) -> str:
    """{7, 8, 10} after position 5 -> "answered +2-3 +5"."""
    ordered = sorted(offsets)
    if not ordered:
        return ""
    starts = ordered[:1] + [b for a, b in pairwise(ordered) if b != a + 1]
    ends = [a for a, b in pairwise(ordered) if b != a + 1] + ordered[-1:]
    parts = [
        f"+{a - position}" if a == b else f"+{a - position}-{b - position}" for a, b in zip(starts, ends, strict=True)
    ]
    return " ".join(["answered", *parts])


def _parse(position: int, metadata: str) -> set[int]:
    """The inverse of `_format`; metadata that somebody else wrote means nothing to us."""
    if not RANGES.fullmatch(metadata):
        return set()
    offsets: set[int] = set()
    for part in metadata.split()[1:]:
        first, _, last = part[1:].partition("-")
        offsets.update(range(position + int(first), position + int(last or first) + 1))
    return offsets
