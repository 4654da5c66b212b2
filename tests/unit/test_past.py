"""Templates that look back: the number of a trade and the direction of its price, counted anew in every context."""

import random
from decimal import Decimal

from streamproc.past import Past
from streamproc.records import Bar, Quote, Record, Trade


def trade(sym: str, px: str) -> Trade:
    return Trade(sym, 0, px, "1")


def told(records: list[Record]) -> list[tuple[str, str]]:
    past, found = Past(), []
    for record in records:
        found.append(past.marks(record))
        past.add(record)
    return found


def test_trades_are_numbered_by_symbol_and_compared_with_the_one_before():
    records = [trade("A", "1.5"), trade("B", "9"), trade("A", "1.50"), trade("A", "1.6"), trade("B", "10"),
               trade("A", "1.59")]  # fmt: skip
    assert told(records) == [("1", "="), ("1", "="), ("2", "="), ("3", "+"), ("2", "+"), ("4", "-")]


def test_quotes_neither_count_nor_move_and_a_bar_counts_at_its_close():
    records = [trade("A", "5"), Quote("A", 0, "1", "2"), Bar("A", 0, "1", "9", "1", "4"), trade("A", "4.5")]
    assert [marks for record, marks in zip(records, told(records), strict=True) if record.kind != "quote"] == [
        ("1", "="),
        ("2", "-"),
        ("3", "+"),
    ]


def test_equals_a_count_from_scratch_on_random_trades():
    rng = random.Random(3)
    records = [trade(rng.choice("ABC"), f"{rng.randrange(8, 12)}.{rng.randrange(10)}") for _ in range(300)]
    for place, marks in enumerate(told(records)):
        same = [Decimal(r.px) for r in records[: place + 1] if r.sym == records[place].sym]
        sign = (same[-1] > same[-2]) - (same[-1] < same[-2]) if len(same) > 1 else 0
        assert marks == (str(len(same) % 10), "=+-"[sign])
