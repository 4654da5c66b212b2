"""Hints say what the stream says, computed in another way."""

import random

import pytest
import torch

from streamproc.market.questions import KINDS
from streamproc.market.synthetic import feed, instruments
from streamproc.market.tape import DEPTH, Tapes
from streamproc.records import Quote
from streamproc.training.hints import IGNORED, NUMBERS, pointer, signs, steps
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


def test_a_stream_without_trades_gives_hints_of_nothing():
    hidden = tuple(torch.randn(1, 8, 128) for _ in range(7))
    nothing = Hints()(hidden, torch.full((1, 8), IGNORED), torch.full((1, 8, 3), IGNORED), torch.full((1, 8), IGNORED))
    assert {name: loss.item() for name, loss in nothing.items()} == {"signs": 0.0, "steps": 0.0, "pointers": 0.0}
