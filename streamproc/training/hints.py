"""What the middle of the model is taught while it trains, beside the answers: what is known on the way to them.

`signs`: two numbers are compared token by token. In the stream every token of a price is held beside the token at the
same place of the symbol's price before it; in a question, every token of a level beside that of the last price:

    39432.48 after 39439.44     3|3 94|94 32|39 .48|.44    ->    same same less greater

`lags`: the same in the stream beside each of the four prices before it, a layer earlier. `orders`: by a trade's last
token it could be known how its whole price compares with each of those four.

`steps`: the last token of a trade could know, of the five newest, how many are buys and which is the highest, which the
lowest. `pointers`: where a question's answer is said, the trade that it stands in could be known; by the number that
the trade bears in the stream.
"""

import numpy as np

from streamproc.market.questions import Kind
from streamproc.market.tape import DEPTH, Tape

IGNORED = -100
SIGNS = 3               # less, same, greater
STEPS = (DEPTH + 1, DEPTH, DEPTH)       # classes: buys of five, age of the highest, age of the lowest
LAGS = DEPTH - 1        # trades before a trade that it is compared with
NUMBERS = 10            # a trade's number is written as its last digit


def places(tokens: list[str]) -> dict[int, int]:
    """A number's tokens by their distance from the decimal point -> their value in hundredths of that place."""
    point = next((i for i, token in enumerate(tokens) if token[0] == "."), len(tokens))
    found = {}
    for i, token in enumerate(tokens):
        digits = token.removeprefix(".")
        found[i - point] = int(digits) * (10 if i >= point and len(digits) == 1 else 1)
    return found


def signs(tokens: list[str], other: list[str]) -> list[int]:
    """For every token: less, same or greater than the token of the other number at its place; a missing one is 0."""
    theirs = places(other)
    return [1 + int(np.sign(value - theirs.get(place, 0))) for place, value in places(tokens).items()]


def orders(tape: Tape) -> list[int]:
    """Of the newest price beside the one before it, the one before that, and so on: less, same or greater."""
    now, *before = [print_.price for print_ in reversed(tape.prints)]
    found = [1 + (now > price) - (now < price) for price in before]
    return found + [IGNORED] * (LAGS - len(found))


def steps(tape: Tape) -> tuple[int, ...]:
    """After a record; the newest of equal prices counts as the highest and the lowest."""
    if not tape.prints:
        return (IGNORED,) * len(STEPS)
    prices = [print_.price for print_ in reversed(tape.prints)]
    return int(tape.num_buys or 0), prices.index(max(prices)), prices.index(min(prices))


def pointer(kind: Kind, tape: Tape, num_trades: int) -> int:
    """Number, as it is written, of the trade that a question is about; the newest, unless another holds the answer."""
    if kind.is_about_quotes or not tape.prints:
        return IGNORED
    _, highest, lowest = steps(tape)
    return (num_trades - {"high5": highest, "low5": lowest}.get(kind.name, 0)) % NUMBERS
