"""The oracles of the checkable questions, held to brute force over all records of a symbol."""

import random
from decimal import Decimal

import pytest

from streamproc.market.questions import KINDS
from streamproc.market.synthetic import feed, fixed, instruments, symbol
from streamproc.market.tape import Tapes
from streamproc.records import Bar, Quote, Record, Trade, decode_record, encode_record, spread_of


def brute_force(kind: str, records: list[Record], level: str) -> str | None:
    """The answer from the whole list, by other means than the tape's."""
    quotes = [r for r in records if isinstance(r, Quote)]
    trades = [r for r in records if isinstance(r, Trade)]
    if kind in ("bid", "ask", "spread"):
        if not quotes:
            return None
        bid, ask = Decimal(quotes[-1].bid_px), Decimal(quotes[-1].ask_px)
        return str({"bid": bid, "ask": ask, "spread": ask - bid}[kind])
    if not trades:
        return None
    prices = [Decimal(t.px) for t in trades]
    last, five = trades[-1], sorted(prices[-5:])
    before = prices[-2] if len(prices) > 1 else prices[-1]
    return {
        "last_price": last.px,
        "last_size": last.sz,
        "last_side": last.side,
        "move": "flat" if prices[-1] == before else "up" if prices[-1] > before else "down",
        "above": "yes" if prices[-1] > Decimal(level) else "no",
        "high5": str(five[-1]),
        "low5": str(five[0]),
        "buys5": str([t.side for t in trades[-5:]].count("buy")),
    }[kind]


@pytest.mark.parametrize("seed", range(30))
def test_every_oracle_equals_brute_force(seed: int):
    rng = random.Random(seed)
    records: list[Record] = []
    tapes, source = Tapes(), feed(rng, instruments(rng, 4))
    for _ in range(60):
        records.append(next(source))
        tapes.add(records[-1])
        for sym, tape in tapes.items():
            own = [r for r in records if r.sym == sym]
            level = tape.last.px if tape.last and rng.random() < 0.3 else str(rng.randint(1, 10**6))
            for kind in KINDS.values():
                found, truth = kind.oracle(tape, level), brute_force(kind.name, own, level)
                assert (found is None) == (truth is None), kind.name
                if found is not None and truth is not None:
                    assert kind.is_right(found, truth), (kind.name, found, truth)


def test_a_bar_counts_as_a_trade_at_its_close():
    tape = Tapes().update_all([Trade("A", 0, "1", "2", "buy"), Bar("A", 0, "1", "9", "1", "3", "7")])["A"]
    assert [KINDS[name].oracle(tape, "2.5") for name in ("last_price", "last_size", "last_side", "move", "above")] == [
        "3", "7", None, "up", "yes"
    ]  # fmt: skip


def test_numbers_are_right_by_value_and_words_by_the_type_of_the_answer():
    assert KINDS["last_price"].is_right("39432.480", "39432.48")
    assert not KINDS["last_price"].is_right("39432.4", "39432.48")
    assert not KINDS["last_price"].is_right("about 39432.48", "39432.48")
    assert KINDS["above"].is_right("Yes", "yes")
    assert not KINDS["above"].is_right("perhaps", "no")
    assert not KINDS["move"].is_right("", "up")
    for text in ("sNaN", "nan", "inf", ""):
        assert not KINDS["last_price"].is_right(text, "1")


def test_a_question_names_its_symbol_or_not():
    assert KINDS["above"].question("A", "5") == "Is the price of A above 5?"
    assert KINDS["last_price"].question() == "What was the last price?"


def test_spreads_are_exact():
    assert spread_of(Quote("A", 0, "39433.6", "39433.62")) == "0.02"
    assert spread_of(Quote("A", 0, "2", "1.5")) == "-0.5"
    long = spread_of(Quote("A", 0, "0.0000000001", "12345678901234567890.1234567891"))
    assert long == "12345678901234567890.1234567890"


@pytest.mark.parametrize(
    ("ticks", "decimals", "strips", "text"),
    [(1234, 2, False, "12.34"), (5, 3, False, "0.005"), (1200, 2, True, "12.0"), (1250, 2, True, "12.5"),
     (7, 0, True, "7"), (-150, 2, False, "-1.50")],
)  # fmt: skip
def test_ticks_as_text(ticks: int, decimals: int, strips: bool, text: str):
    assert fixed(ticks, decimals, strips) == text


def test_synthetic_records_are_records_and_the_same_for_the_same_seed():
    def some(seed: int) -> list[Record]:
        rng = random.Random(seed)
        source = feed(rng, instruments(rng, 6))
        return [next(source) for _ in range(200)]

    assert some(1) == some(1) != some(2)
    for seed in range(20):
        for record in some(seed):
            assert decode_record(encode_record(record), record.sym.encode()) == record
        assert len({symbol(random.Random(seed)) for _ in range(3)}) == 1
