"""Which asks of a partition are answered: a position in the log, and what is answered beyond it.

Answers leave in the order in which they are ready, so an ask that waits for its offset does not hold up the others.
What is answered past the committed position travels as the metadata of the offset commit, in the same transaction.
"""

import re
from collections.abc import Iterable

MAX_OPEN = 256  # keeps the metadata far below the broker's limit of 4,096 bytes

RANGES = re.compile(r"answered( \+[0-9]{1,18}(-[0-9]{1,18})?)*")


class AskLog:
    """Offsets of one partition of the asks topic."""

    def __init__(self, next_offset: int, metadata: str = "") -> None:
        self.next_offset = next_offset
        self._before = _parse(next_offset, metadata)  # answered by owners before this one
        self._answered: set[int] = set()
        self._open: set[int] = set()

    @property
    def is_full(self) -> bool:
        return len(self._open) >= MAX_OPEN

    def see(self, offset: int) -> bool:
        """An ask has arrived -> whether it still needs an answer."""
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        if offset in self._answered or any(offset in each for each in self._before):
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
        self._before = [range(max(each.start, position), each.stop) for each in self._before if each.stop > position]
        return position, _format(position, [*self._before, *(range(offset, offset + 1) for offset in self._answered)])


def answered_to(position: int, metadata: str) -> int:
    """One past the last ask that metadata beside this position calls answered; a log that ends before never held it."""
    return max((each.stop for each in _parse(position, metadata)), default=position)


def _format(position: int, answered: Iterable[range]) -> str:
    """{7, 8, 10} after position 5 -> "answered +2-3 +5"."""
    parts = [
        f"+{each.start - position}" if len(each) == 1 else f"+{each.start - position}-{each.stop - 1 - position}"
        for each in _joined(answered)
    ]
    return " ".join(["answered", *parts]) if parts else ""


def _joined(answered: Iterable[range]) -> list[range]:
    """In order, and as few as can be."""
    joined: list[range] = []
    for each in sorted(answered, key=lambda each: each.start):
        if joined and each.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    return joined


def _parse(position: int, metadata: str) -> list[range]:
    """The inverse of `_format`; metadata that somebody else wrote means nothing to us.

    Ranges, not offsets: what somebody else wrote may name more of these than memory holds.
    """
    if not RANGES.fullmatch(metadata):
        return []
    bounds = [part[1:].partition("-") for part in metadata.split()[1:]]
    ranges = [range(position + int(first), position + int(last or first) + 1) for first, _, last in bounds]
    return _joined(each for each in ranges if each)
