"""Hints say what the stream says, computed in another way."""

import random
from decimal import Decimal

import pytest
import torch

from streamproc.market.questions import KINDS
from streamproc.market.synthetic import feed, instruments
from streamproc.market.tape import DEPTH, Tape, Tapes
from streamproc.records import Quote, Trade
from streamproc.training.examples import Batch, Page, Stage
from streamproc.training.hints import IGNORED, LAGS, NUMBERS, orders, pointer, signs, steps
from streamproc.training.model import Hints


def test_tokens_of_two_prices_are_compared_at_equal_places():
    assert signs(["3", "94", "32", ".48"], ["3", "94", "39", ".44"]) == [1, 1, 0, 2]
    assert signs(["1", "00", ".5"], ["99", ".45"]) == [2, 0, 2]
    assert signs([".6"], [".62"]) == [0]


@pytest.mark.parametrize("seed", range(20))
def test_a_pointer_is_the_newest_trade_that_holds_the_answer(seed: int):
    """Against all trades of the symbol, each with its number; the newest five are looked through from the old end."""
    rng = random.Random(seed)
    source = feed(rng, instruments(rng, 3))
    tapes, numbered = Tapes(), {}
    for _ in range(200):
        record = next(source)
        tape = tapes.add(record)
        trades = numbered.setdefault(record.sym, [])
        if not isinstance(record, Quote):
            trades.append((len(trades) + 1, record.px))
        for kind in KINDS.values():
            found = pointer(kind, tape, len(trades))
            if kind.is_about_quotes or not trades:
                assert found == IGNORED
                continue
            holding = trades[-1][0]
            if kind.name in ("high5", "low5"):
                for number, px in trades[-DEPTH:]:
                    if px == kind.oracle(tape, ""):
                        holding = number
            assert found == holding % NUMBERS


def test_steps_are_the_ages_of_the_highest_and_the_lowest_and_the_number_of_buys():
    rng = random.Random(1)
    source = feed(rng, instruments(rng, 1))
    tapes, prints = Tapes(), []
    for _ in range(100):
        record = next(source)
        found = steps(tapes.add(record))
        if isinstance(record, Quote):
            continue
        prints.append((float(record.px), record.side))
        newest = prints[::-1][:DEPTH]
        prices = [price for price, _ in newest]
        assert found[0] == [side for _, side in newest].count("buy")
        assert prices[found[1]] == max(prices)
        assert prices[found[2]] == min(prices)
        assert max(prices) not in prices[: found[1]]
    assert len(prints) > 10


def test_a_stream_without_trades_gives_hints_of_nothing(examples):
    empty = Page(Stage(64, 1, 1), 1).arrays()
    batch = Batch(*(array[None] for array in empty))
    hidden = tuple(torch.randn(1, 128, 128) for _ in range(7))
    nothing = Hints()(hidden, batch)
    assert {name: loss.item() for name, loss in nothing.items()} == dict.fromkeys(
        ("signs", "steps", "pointers", "lags", "orders"), 0.0)


def test_orders_compare_a_price_with_the_four_before_it():
    rng, tape = random.Random(5), Tape()
    prices: list[str] = []
    for _ in range(200):
        prices.append(f"{rng.randint(98, 102)}.{rng.randint(0, 3)}")
        tape.update(Trade("X", 0, prices[-1], "1", "buy"))
        now, before = Decimal(prices[-1]), prices[:-1][::-1][:LAGS]
        expected = [["less", "same", "greater"].index(
            "less" if now < Decimal(price) else "greater" if now > Decimal(price) else "same") for price in before]
        assert orders(tape) == expected + [IGNORED] * (LAGS - len(expected))


def test_lags_and_orders_in_a_stream_are_those_of_its_text(examples, tokenizer):
    """Read back from the ids: the first token that differs decides, as the longer number does."""
    batch, num_checked = examples.batch(random.Random(8), Stage(512, 2, 3)), 0
    for row in range(2):
        text = tokenizer.decode(batch.ids[row][batch.branches[row] == 0]).removeprefix("<s>")
        ends = [place for place in range(512) if batch.orders[row][place][0] != IGNORED]
        trades = [line for line in text.splitlines() if "#" in line]
        history: dict[str, list[Decimal]] = {}
        for line in trades:
            sym, price = line.split("#")[0], Decimal(line.split(" ")[2].rstrip("+-="))
            before = history.setdefault(sym, [])
            if before:
                place = ends.pop(0)
                expected = [1 + (price > other) - (price < other) for other in before[::-1][:LAGS]]
                assert batch.orders[row][place].tolist() == expected + [IGNORED] * (LAGS - len(expected))
                assert (batch.lags[row][:place][-14:, 0] != IGNORED).any()
                num_checked += 1
            before.append(price)
    assert num_checked > 20
