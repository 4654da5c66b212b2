"""Market feeds that never were: trades and quotes of made-up symbols, seeded, as varied as the real ones.

Prices walk in whole ticks. What differs from feed to feed, drawn once for each symbol: the scale (1e-4 to 1e6), the
number of decimals, whether trailing zeros are written, how far and how often the price moves, which levels it starts
from (some just below a power of ten, so that prices gain and lose a digit), sizes round or odd, sides that cluster.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from streamproc.records import Quote, Record, Trade

FIRST_NS = 1_700_000_000_000_000_000
ASSETS = ("BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "BNB", "XBT", "LINK", "EUR", "USD", "JPY", "GBP", "CHF",
          "AUD", "CAD", "NZD", "XAU", "XAG")
MONEY = ("USDT", "USD", "USDC", "EUR", "BTC", "JPY", "ETH", "GBP", "PERP", "")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHERS = LETTERS + "abcdefghijklmnopqrstuvwxyz0123456789.-_/"


def fixed(ticks: int, decimals: int, strips_zeros: bool = False) -> str:
    """`ticks` times 10 ** -decimals as text: fixed(1234, 2) is 12.34."""
    if decimals == 0:
        return str(ticks)
    sign, ticks = ("-", -ticks) if ticks < 0 else ("", ticks)
    text = f"{ticks:0{decimals + 1}d}"
    text = f"{sign}{text[:-decimals]}.{text[-decimals:]}"
    if strips_zeros:
        text = text.rstrip("0")
        return text + "0" if text[-1] == "." else text
    return text


def symbol(rng: random.Random) -> str:
    """A name such as BTCUSDT, AAPL, or anything at all."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(ASSETS) + rng.choice(MONEY)
    if kind < 0.9:
        return "".join(rng.choices(LETTERS, k=rng.randint(1, 6)))
    return rng.choice(LETTERS) + "".join(rng.choices(OTHERS, k=rng.randint(0, 6))) + rng.choice(LETTERS)


@dataclass(slots=True)
class Instrument:
    """One symbol and the state of its walk; `ticks` is the price."""

    sym: str
    decimals: int
    strips_zeros: bool
    ticks: int
    step: float             # mean size of a move, in ticks
    repeats: float          # share of trades at the price of the one before
    bounces: float          # share of moves that go back to a recent price
    sz_decimals: int
    sz_scale: float
    round_lots: float       # share of sizes that are round or repeat
    has_sides: bool
    sticks: float           # chance that a side follows itself
    quotes: float           # share of records that are quotes
    spread: float           # mean, in ticks
    side: str = "buy"
    recent: tuple[int, ...] = ()

    @classmethod
    def draw(cls, rng: random.Random, sym: str, quotes: float) -> "Instrument":
        digits = rng.randint(3, 8)
        decimals = rng.choice((0, 1, 2, 2, 2, 3, 3, 4, 5, 6, 8))
        ticks = int(10 ** rng.uniform(digits - 1, digits))
        if rng.random() < 0.15:
            ticks = max(2, 10 ** rng.randint(2, digits) + rng.randint(-40, 40))
        step = min(10 ** rng.uniform(-0.3, 2.7), ticks * 0.02 + 1)
        return cls(sym, decimals, rng.random() < 0.25, ticks, step, rng.choice((0.0, 0.1, 0.3, 0.5, 0.7)),
                   rng.choice((0.0, 0.0, 0.3)), rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 8)), rng.uniform(-5, 4),
                   rng.choice((0.0, 0.2, 0.5)), rng.random() < 0.95, rng.choice((0.5, 0.5, 0.7, 0.9)), quotes,
                   10 ** rng.uniform(0, 2))

    def next(self, rng: random.Random, ts_ns: int) -> Record:
        return self._quote(rng, ts_ns) if rng.random() < self.quotes else self._trade(rng, ts_ns)

    def price(self, ticks: int) -> str:
        return fixed(ticks, self.decimals, self.strips_zeros)

    def _walk(self, rng: random.Random) -> None:
        if rng.random() < self.repeats:
            return
        if self.recent and rng.random() < self.bounces:
            self.ticks = rng.choice(self.recent)
            return
        move = 1 + int(rng.expovariate(1 / self.step))
        self.ticks = max(1, self.ticks + (move if rng.random() < 0.5 else -move))
        self.recent = (*self.recent[-3:], self.ticks)

    def _trade(self, rng: random.Random, ts_ns: int) -> Trade:
        self._walk(rng)
        if rng.random() > self.sticks:
            self.side = "sell" if self.side == "buy" else "buy"
        return Trade(self.sym, ts_ns, self.price(self.ticks), self._size(rng), self.side if self.has_sides else None)

    def _size(self, rng: random.Random) -> str:
        unit = 10 ** self.sz_decimals
        size = max(1, int(unit * 10 ** (self.sz_scale + rng.gauss(0, 1.0))))
        if rng.random() < self.round_lots:
            size = rng.choice((1, 2, 5)) * 10 ** rng.randint(0, len(str(size)) - 1)
        return fixed(min(size, 10**9), self.sz_decimals, self.strips_zeros and rng.random() < 0.5)

    def _quote(self, rng: random.Random, ts_ns: int) -> Quote:
        self._walk(rng)
        spread = 1 + int(rng.expovariate(1 / self.spread))
        bid = max(1, self.ticks - rng.randint(0, spread))
        size = self._size(rng)
        return Quote(self.sym, ts_ns, self.price(bid), self.price(bid + spread), size, size)


def instruments(rng: random.Random, most: int) -> list[Instrument]:
    """1 to `most` symbols of one session, with names of their own."""
    num = min(most, rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 6)))
    quotes = rng.choice((0.0, 0.0, 0.2, 0.5))
    names: dict[str, None] = {}
    while len(names) < num:
        names[symbol(rng)] = None
    return [Instrument.draw(rng, name, 1.0 if quotes and rng.random() < 0.15 else quotes) for name in names]


def feed(rng: random.Random, found: list[Instrument]) -> Iterator[Record]:
    """Records of these symbols, interleaved; some come often, some rarely. Without end."""
    weights = [10 ** rng.uniform(0, 1) for _ in found]
    ts_ns = FIRST_NS
    while True:
        ts_ns += 1 + int(rng.expovariate(1 / 50_000_000))
        yield rng.choices(found, weights)[0].next(rng, ts_ns)
