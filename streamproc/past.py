"""What a record can say of the trades before it: the fields of a template that look back.

    {n}      number of the trade among its symbol's in this context, its last digit: 1, 2, ... 9, 0, 1
    {tick}   + - =  its price beside that of the trade before it; = for the first

A bar counts as a trade at its close. The context is a session's generation: a new one starts to count anew, so the text
of a generation follows from its records alone, wherever it is rendered.
"""

from decimal import Decimal
from typing import NamedTuple

from streamproc.records import Bar, Quote, Record


class Before(NamedTuple):
    """The trades of one symbol so far."""

    num_trades: int
    price: Decimal


class Past:
    """The trades of a generation so far, by symbol. `add` is the only writer."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[str, Before] = {}

    def marks(self, record: Record) -> tuple[str, str]:
        """`n` and `tick` of the record that comes next."""
        before = self._before.get(record.sym)
        if before is None:
            return "1", "="
        price = price_of(record)
        tick = "=" if price is None or price == before.price else "+" if price > before.price else "-"
        return str((before.num_trades + 1) % 10), tick

    def add(self, record: Record) -> None:
        price = price_of(record)
        if price is not None:
            before = self._before.get(record.sym)
            self._before[record.sym] = Before(before.num_trades + 1 if before else 1, price)


def price_of(record: Record) -> Decimal | None:
    """Price of a trade, close of a bar, None of a quote."""
    if isinstance(record, Quote):
        return None
    return Decimal(record.close if isinstance(record, Bar) else record.px)
