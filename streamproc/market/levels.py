"""Prices to compare with: what the question `above` asks about."""

import random
from decimal import Decimal

from streamproc.market.tape import Tape


def draw_level(rng: random.Random, tape: Tape) -> str:
    """A price to compare the last one with: mostly near it, sometimes equal, round, or far away."""
    if tape.last is None:
        return str(rng.randint(1, 100_000))
    px = tape.last.price
    exponent = px.as_tuple().exponent
    assert isinstance(exponent, int)
    tick = Decimal(1).scaleb(exponent)
    kind = rng.random()
    if kind < 0.1:
        return tape.last.px
    if kind < 0.3:
        return rng.choice(tape.prints).px
    if kind < 0.7:
        unit = tick if rng.random() < 0.85 else tick.scaleb(-rng.randint(1, 3))
        level = px + unit * int((1 + rng.expovariate(1)) * 10 ** rng.uniform(0, 3)) * rng.choice((-1, 1))
    elif kind < 0.9:
        level = round_to(px * Decimal(str(round(rng.uniform(0.9, 1.1), 4))), rng.randint(1, 4))
    else:
        level = round_to(px * Decimal(str(round(10 ** rng.uniform(-1, 1), 4))), rng.randint(1, 6))
    return format(level, "f") if level > 0 else tape.last.px


def round_to(value: Decimal, digits: int) -> Decimal:
    """So many significant digits, written without an exponent."""
    return Decimal(format(value, f".{digits}g")) if value else value
