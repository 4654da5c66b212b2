"""The questions that can be checked: their words, the type of their answers, and the oracle that computes them.

    kind        question (the symbol may be left out where a session has only one)          answer
    last_price  What was the last price of BTCUSDT?                                         39432.48
    last_size   What was the last size of BTCUSDT?                                          0.000263
    last_side   What was the last side of BTCUSDT?                                          sell
    move        Which way did the price of BTCUSDT move last?                               up, down, flat
    above       Is the price of BTCUSDT above 39430?                                        yes, no
    high5       What was the highest of the last 5 prices of BTCUSDT?                       39439.44
    low5        What was the lowest of the last 5 prices of BTCUSDT?                        39432.48
    buys5       How many of the last 5 trades of BTCUSDT were buys?                         3
    spread      What is the spread of USDJPY?                                               0.073
    bid, ask    What is the bid of USDJPY?                                                  86.655

Where fewer than five trades are in the session's context, it is about those; the first trade of a context is flat. A
trade without a side, as every bar, is no buy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from streamproc.answertypes import AnswerType
from streamproc.market.tape import Tape

NUMBER, BOOLEAN = AnswerType("number"), AnswerType("boolean")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of question. `words` has {of} for " of SYMBOL", and {level} where a price is compared with one."""

    name: str
    words: str
    answer: AnswerType
    oracle: Callable[[Tape, str], str | None]      # of the symbol's tape and the level; None: cannot be told

    @property
    def needs_level(self) -> bool:
        return "{level}" in self.words

    @property
    def is_about_quotes(self) -> bool:
        return self.name in ("spread", "bid", "ask")

    def question(self, sym: str = "", level: str = "") -> str:
        """The question in words; without a symbol it is about the session's only one."""
        return self.words.format(of=f" of {sym}" if sym else "", level=level)

    def is_right(self, text: str, truth: str) -> bool:
        """Whether an answer's text says what the oracle says; numbers by value, words by the answer's type."""
        if self.answer.type == "number":
            return decimal_of(text) == Decimal(truth)
        value = self.answer.value_of(text)
        return value is not None and value == self.answer.value_of(truth)


def decimal_of(text: str) -> Decimal | None:
    """A finite number that stands alone; None where the text is anything else."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _above(tape: Tape, level: str) -> str | None:
    return None if tape.last is None else "yes" if tape.last.price > Decimal(level) else "no"


KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind("last_price", "What was the last price{of}?", NUMBER, lambda tape, _: tape.last and tape.last.px),
    Kind("last_size", "What was the last size{of}?", NUMBER, lambda tape, _: tape.last and tape.last.sz),
    Kind("last_side", "What was the last side{of}?", AnswerType("choice", ("buy", "sell")),
         lambda tape, _: tape.last and tape.last.side),
    Kind("move", "Which way did the price{of} move last?", AnswerType("choice", ("up", "down", "flat")),
         lambda tape, _: tape.move),
    Kind("above", "Is the price{of} above {level}?", BOOLEAN, _above),
    Kind("high5", "What was the highest of the last 5 prices{of}?", NUMBER, lambda tape, _: tape.high),
    Kind("low5", "What was the lowest of the last 5 prices{of}?", NUMBER, lambda tape, _: tape.low),
    Kind("buys5", "How many of the last 5 trades{of} were buys?", NUMBER, lambda tape, _: tape.num_buys),
    Kind("spread", "What is the spread{of}?", NUMBER, lambda tape, _: tape.spread),
    Kind("bid", "What is the bid{of}?", NUMBER, lambda tape, _: tape.quote and tape.quote.bid_px),
    Kind("ask", "What is the ask{of}?", NUMBER, lambda tape, _: tape.quote and tape.quote.ask_px),
)}
