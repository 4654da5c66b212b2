"""Market data: trades, quotes and bars, from the bytes of a Kafka message and back.

The wire format is one JSON object a record. Prices and sizes are decimal strings, so that a price reads in the prompt
exactly as its venue wrote it; JSON numbers are taken at face value. Times are integers, nanoseconds since 1970 UTC.

    {"v": 1, "kind": "trade", "sym": "BTCUSDT", "venue": "binance", "ts_event_ns": 1610064000278000000,
     "id": "553287559", "px": "39432.48", "sz": "0.000263", "side": "sell"}
    {"v": 1, "kind": "quote", "sym": "USDJPY", "ts_event_ns": 1357077600295000000,
     "bid_px": "86.655", "bid_sz": "1", "ask_px": "86.728", "ask_sz": "1"}
    {"v": 1, "kind": "bar", "sym": "BTCPERP", "ts_event_ns": 1640995260000000000, "interval_s": 60,
     "open": "46211", "high": "46250", "low": "46200", "close": "46233", "volume": "1543000"}

`ts_event_ns` of a bar is its close: a bar is visible once it is complete. The Kafka key is the symbol. Unknown fields
are kept out of sessions and do no harm.
"""

import functools
import math
import re
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any, NamedTuple

import orjson

from streamproc.errors import BadRecord

VERSION = 1
KINDS = ("trade", "quote", "bar")
SIDES = ("buy", "sell")
MAX_SYMBOL_CHARS = 64
MAX_DECIMAL_CHARS = 40
MAX_TIME_NS = 2**63 - 1
EXACTLY = Context(prec=2 * MAX_DECIMAL_CHARS)   # holds the difference of any two decimals

PLAIN_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
is_plain_decimal = PLAIN_DECIMAL.fullmatch


class Trade(NamedTuple):
    """One print. `side` is the aggressor's; decimals are text as the venue wrote them."""

    sym: str
    ts_event_ns: int
    px: str
    sz: str
    side: str | None = None
    venue: str | None = None
    id: str | None = None
    seq: int | None = None
    ts_recv_ns: int | None = None

    @property
    def kind(self) -> str:
        return "trade"


class Quote(NamedTuple):
    """Best bid and offer; sizes are None where the feed has none."""

    sym: str
    ts_event_ns: int
    bid_px: str
    ask_px: str
    bid_sz: str | None = None
    ask_sz: str | None = None
    venue: str | None = None
    seq: int | None = None
    ts_recv_ns: int | None = None

    @property
    def kind(self) -> str:
        return "quote"


class Bar(NamedTuple):
    """Open, high, low, close of `interval_s` seconds that ended at `ts_event_ns`."""

    sym: str
    ts_event_ns: int
    open: str
    high: str
    low: str
    close: str
    volume: str | None = None
    interval_s: int | None = None
    venue: str | None = None
    ts_recv_ns: int | None = None

    @property
    def kind(self) -> str:
        return "bar"


Record = Trade | Quote | Bar


def spread_of(quote: Quote) -> str:
    """Ask less bid, exactly, with the decimals of the longer one: 39433.62 - 39433.6 = 0.02."""
    return format(EXACTLY.subtract(Decimal(quote.ask_px), Decimal(quote.bid_px)), "f")


def decode_record(value: bytes | None, key: bytes | None, max_bytes: int = 65_536) -> Record:
    """The record in a message's value, checked; `key` must be its symbol, or None where keys are not used.

    Raises BadRecord with a reason that names the field.
    """
    if value is None:
        raise BadRecord("empty value: a record is a JSON object")
    if len(value) > max_bytes:
        raise BadRecord(f"{len(value)} bytes: the limit is {max_bytes} (worker.max_record_bytes)")
    try:
        doc = orjson.loads(value)
    except orjson.JSONDecodeError as problem:
        raise BadRecord(f"not JSON: {problem}") from None
    record = parse_record(doc)
    if key is not None and key != record.sym.encode():
        raise BadRecord(f"wrong key {key[:80]!r}: the key of a record is its symbol {record.sym!r}")
    return record


def parse_record(doc: Any) -> Record:
    """The record in a JSON object. Raises BadRecord with a reason that names the field."""
    if type(doc) is not dict:
        raise BadRecord(f"a record is a JSON object, not {type(doc).__name__}")
    kind = doc.get("kind")
    if type(kind) is not str or kind not in PARSERS:
        raise BadRecord(f"kind: {kind!r} is unknown, use one of {', '.join(KINDS)}")
    if doc.get("v", VERSION) != VERSION:
        raise BadRecord(f"v: {doc['v']!r} is unknown, this is version {VERSION}")
    return PARSERS[kind](doc)


def encode_record(record: Record) -> bytes:
    """The record's wire form; fields that are None are left out."""
    doc = {name: value for name, value in zip(record._fields, record, strict=True) if value is not None}
    return orjson.dumps({"v": VERSION, "kind": record.kind, **doc})


def decimal_text(value: Any, name: str) -> str:
    """A finite decimal as plain text: "1.50" stays "1.50", 1e-7 becomes "0.0000001". Raises BadRecord."""
    if type(value) is str:
        if len(value) <= MAX_DECIMAL_CHARS and is_plain_decimal(value):
            return value
    elif type(value) is int or (type(value) is float and math.isfinite(value)):
        text = format(Decimal(repr(value)), "f")
        if len(text) <= MAX_DECIMAL_CHARS:
            return text
    if value is None:
        raise BadRecord(f"{name}: missing")
    shown = str(value)[:MAX_DECIMAL_CHARS]
    raise BadRecord(f'{name}: {shown!r} is not a finite decimal, use a string such as "39432.48"')


def _trade(doc: dict[str, Any]) -> Trade:
    side = doc.get("side")
    if side is not None and side not in SIDES:
        raise BadRecord(f"side: {side!r} is unknown, use buy or sell, or leave it out")
    return Trade(
        _symbol(doc.get("sym")),
        _time_ns(doc.get("ts_event_ns"), "ts_event_ns"),
        decimal_text(doc.get("px"), "px"),
        _amount(doc.get("sz"), "sz"),
        side,
        *_optional(doc, TRADE_OPTIONS),
    )


def _quote(doc: dict[str, Any]) -> Quote:
    return Quote(
        _symbol(doc.get("sym")),
        _time_ns(doc.get("ts_event_ns"), "ts_event_ns"),
        decimal_text(doc.get("bid_px"), "bid_px"),
        decimal_text(doc.get("ask_px"), "ask_px"),
        *_optional(doc, QUOTE_OPTIONS),
    )


def _bar(doc: dict[str, Any]) -> Bar:
    opened, high, low, close = (decimal_text(doc.get(name), name) for name in ("open", "high", "low", "close"))
    if not float(low) <= min(float(opened), float(close)) <= max(float(opened), float(close)) <= float(high):
        raise BadRecord(f"high: {high} and low: {low} do not enclose open {opened} and close {close}")
    sym, ts_event_ns = _symbol(doc.get("sym")), _time_ns(doc.get("ts_event_ns"), "ts_event_ns")
    return Bar(sym, ts_event_ns, opened, high, low, close, *_optional(doc, BAR_OPTIONS))


DERIVED: dict[str, dict[str, Callable[[Any], str]]] = {"quote": {"spread": spread_of}}
LOOKING_BACK = ("n", "tick")    # of trades and bars: streamproc/past.py
FIELDS: dict[str, tuple[str, ...]] = {
    "trade": (*Trade._fields, *LOOKING_BACK),
    "quote": (*Quote._fields, *DERIVED["quote"]),
    "bar": (*Bar._fields, *LOOKING_BACK),
}  # what a template may name, by kind
PARSERS: dict[str, Callable[[dict[str, Any]], Record]] = {"trade": _trade, "quote": _quote, "bar": _bar}


@functools.lru_cache(maxsize=4096)
def _known_symbol(sym: str) -> str:
    if 0 < len(sym) <= MAX_SYMBOL_CHARS and sym.isprintable() and sym == sym.strip():
        return sym
    raise BadRecord(f"sym: {sym[:80]!r} is not a symbol (1 to {MAX_SYMBOL_CHARS} printable characters)")


def _symbol(value: Any) -> str:
    if type(value) is str:
        return _known_symbol(value)
    raise BadRecord(f"sym: {str(value)[:80]!r} is not a symbol (1 to {MAX_SYMBOL_CHARS} printable characters)")


def _time_ns(value: Any, name: str) -> int:
    if type(value) is int and 0 <= value <= MAX_TIME_NS:
        return value
    raise BadRecord(f"{name}: {str(value)[:40]!r} is not a time in integer nanoseconds since 1970")


def _amount(value: Any, name: str) -> str:
    text = decimal_text(value, name)
    if text[0] == "-":
        raise BadRecord(f"{name}: {text} is negative")
    return text


def _text(value: Any, name: str) -> str:
    text = str(value) if type(value) is int else value
    if type(text) is str and len(text) <= MAX_SYMBOL_CHARS and text.isprintable():
        return text
    raise BadRecord(f"{name}: {str(value)[:40]!r} is not a text of at most {MAX_SYMBOL_CHARS} printable characters")


def _integer(value: Any, name: str) -> int:
    if type(value) is int and 0 <= value <= MAX_TIME_NS:
        return value
    raise BadRecord(f"{name}: {str(value)[:40]!r} is not a whole number")


Check = Callable[[Any, str], Any]
TRADE_OPTIONS: tuple[tuple[str, Check], ...] = (
    ("venue", _text),
    ("id", _text),
    ("seq", _integer),
    ("ts_recv_ns", _time_ns),
)
QUOTE_OPTIONS: tuple[tuple[str, Check], ...] = (
    ("bid_sz", _amount),
    ("ask_sz", _amount),
    ("venue", _text),
    ("seq", _integer),
    ("ts_recv_ns", _time_ns),
)
BAR_OPTIONS: tuple[tuple[str, Check], ...] = (
    ("volume", _amount),
    ("interval_s", _integer),
    ("venue", _text),
    ("ts_recv_ns", _time_ns),
)


def _optional(doc: dict[str, Any], options: tuple[tuple[str, Check], ...]) -> list[Any]:
    """Fields that may be missing, in the record's order."""
    return [None if (value := doc.get(name)) is None else check(value, name) for name, check in options]
