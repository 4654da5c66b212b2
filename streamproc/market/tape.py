"""What a session's records say, symbol by symbol: the exact answers to the questions of `questions.py`.

Pure arithmetic on the decimals as they were written; nothing here knows of a model.
"""

from collections import deque
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from streamproc.records import Bar, Quote, Record, Trade, spread_of

DEPTH = 5


class Print(NamedTuple):
    """One trade, or a bar at its close."""

    px: str
    sz: str | None
    side: str | None

    @property
    def price(self) -> Decimal:
        return Decimal(self.px)


class Tape:
    """The newest prints and the newest quote of one symbol."""

    __slots__ = ("prints", "quote")

    def __init__(self) -> None:
        self.prints: deque[Print] = deque(maxlen=DEPTH)
        self.quote: Quote | None = None

    def update(self, record: Record) -> None:
        if isinstance(record, Trade):
            self.prints.append(Print(record.px, record.sz, record.side))
        elif isinstance(record, Bar):
            self.prints.append(Print(record.close, record.volume, None))
        else:
            self.quote = record

    @property
    def last(self) -> Print | None:
        return self.prints[-1] if self.prints else None

    @property
    def move(self) -> str | None:
        """up, down or flat, from the print before the last one; flat for the first."""
        if not self.prints:
            return None
        before, now = self.prints[-2 if len(self.prints) > 1 else -1].price, self.prints[-1].price
        return "up" if now > before else "down" if now < before else "flat"

    @property
    def high(self) -> str | None:
        """Price of the highest of the newest prints, as it was written."""
        return max(self.prints, key=lambda p: p.price).px if self.prints else None

    @property
    def low(self) -> str | None:
        return min(self.prints, key=lambda p: p.price).px if self.prints else None

    @property
    def num_buys(self) -> str | None:
        """How many of the newest prints are buys."""
        return str(sum(p.side == "buy" for p in self.prints)) if self.prints else None

    @property
    def spread(self) -> str | None:
        return spread_of(self.quote) if self.quote else None


class Tapes(dict[str, Tape]):
    """The tapes of all symbols of one session."""

    def update_all(self, records: Iterable[Record]) -> "Tapes":
        for record in records:
            self.add(record)
        return self

    def add(self, record: Record) -> Tape:
        tape = self.get(record.sym)
        if tape is None:
            tape = self[record.sym] = Tape()
        tape.update(record)
        return tape
