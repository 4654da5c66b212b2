"""Rows under the column names of many feeds -> records.

Column names are compared without case, spaces and punctuation: `Bid Size`, `bid_size` and `bidSize` are one name. Where
a row has several names of one field the first of its list counts. In a row with the wire format's `kind`, `sym` and
`ts_event_ns`, `v` is the format's version; elsewhere it is a bar's volume.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from streamproc.errors import BadRecord
from streamproc.market.times import EpochNs, parse_time_ns
from streamproc.records import KINDS, MAX_DECIMAL_CHARS, PLAIN_DECIMAL, Record, parse_record
from streamproc.values import printable

Aliases = dict[str, tuple[str, ...]]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


COMMON: Aliases = {
    "sym": ("sym", "symbol", "ticker", "instrument"),
    "ts_event_ns": ("ts_event_ns", "ts_event", "ts", "timestamp", "time", "datetime", "date"),
    "venue": ("venue", "exchange"),
    "ts_recv_ns": ("ts_recv_ns", "ts_recv"),
}
FIELDS: dict[str, Aliases] = {
    "trade": {
        **COMMON,
        "px": ("px", "price"),
        "sz": ("sz", "size", "qty", "quantity", "amount"),
        "side": ("side", "aggressor", "is_buyer_maker"),
        "id": ("id", "trade_id"),
        "seq": ("seq", "sequence"),
    },
    "quote": {
        **COMMON,
        "bid_px": ("bid_px", "bid", "bid_price"),
        "ask_px": ("ask_px", "ask", "ask_price"),
        "bid_sz": ("bid_sz", "bid_size", "bid_qty", "bid_quantity", "bid_amount"),
        "ask_sz": ("ask_sz", "ask_size", "ask_qty", "ask_quantity", "ask_amount"),
        "seq": ("seq", "sequence"),
    },
    "bar": {
        **COMMON,
        "ts_event_ns": (*COMMON["ts_event_ns"], "t"),
        "open": ("open", "o"),
        "high": ("high", "h"),
        "low": ("low", "l"),
        "close": ("close", "c"),
        "volume": ("volume", "vol", "v"),
        "interval_s": ("interval_s",),
    },
}
TIMES = frozenset(map(_plain, (*COMMON["ts_event_ns"], "t")))
OWN = {"trade": ("px", "sz"), "quote": ("bid_px", "ask_px"), "bar": ("open", "high", "low", "close")}
WIRE = frozenset({"kind", "sym", "tseventns", "v"})
SIDES = {"buy": "buy", "b": "buy", "buyer": "buy", "sell": "sell", "s": "sell", "seller": "sell"}
MAX_SHOWN_CHARS = 120
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?", re.ASCII)


class Column(NamedTuple):
    """One field of a record, the name it has in a row, and what makes its value ours."""

    field: str
    name: str
    convert: Callable[[Any], Any]


def row_to_record(row: Mapping[str, Any], kind: str | None = None, symbol: str | None = None) -> Record:
    """The record in a row; `kind` and `symbol`, where given, win over the row's own. Raises BadRecord."""
    kind, columns = columns_of(tuple(row), kind or _own_kind(row), symbol is not None)
    doc: dict[str, Any] = {"kind": kind}
    field = ""
    try:
        for field, name, convert in columns:
            value = row[name]
            if value is not None and value != "":
                doc[field] = convert(value)
    except BadRecord as problem:
        raise BadRecord(f"{field}: {problem}") from None
    if symbol is not None:
        doc["sym"] = symbol
    return parse_record(doc)


def has_time(names: Iterable[str]) -> bool:
    """Whether one of these columns is a record's time."""
    return not TIMES.isdisjoint(map(_plain, names))


@functools.lru_cache(maxsize=1024)
def columns_of(names: tuple[str, ...], kind: str | None, has_symbol: bool = False) -> tuple[str, tuple[Column, ...]]:
    """The kind of rows with these column names and where its fields are. Raises BadRecord that says what is missing."""
    present = {_plain(name): name for name in reversed(names)}
    kind = kind or _kind_of(present)
    if kind not in FIELDS:
        raise BadRecord(f"kind: {kind!r} is unknown, use one of {', '.join(KINDS)}")
    version = [Column("v", present.pop("v"), _whole)] if present.keys() >= WIRE else []
    columns = [_column(field, aliases, present) for field, aliases in FIELDS[kind].items()]
    found = {column.field: column for column in columns if column}
    for field in ("ts_event_ns", *OWN[kind], *(() if has_symbol else ("sym",))):
        if field not in found:
            raise BadRecord(_missing(field, kind))
    return kind, (*found.values(), *version)


def _own_kind(row: Mapping[str, Any]) -> str | None:
    kind = row.get("kind")
    return str(kind)[:40] if kind else None


def _kind_of(present: Mapping[str, str]) -> str:
    fits = [kind for kind, fields in OWN.items() if all(_column(f, FIELDS[kind][f], present) for f in fields)]
    if len(fits) == 1:
        return fits[0]
    shown = printable(", ".join(reversed(list(present.values()))), MAX_SHOWN_CHARS)
    if fits:
        raise BadRecord(f"columns {shown} fit {' and '.join(fits)}: choose with --kind")
    raise BadRecord(f"{shown}: no kind has these columns (trade: price, size; quote: bid, ask; bar: open to close)")


def _column(field: str, aliases: tuple[str, ...], present: Mapping[str, str]) -> Column | None:
    alias = next((alias for alias in aliases if _plain(alias) in present), None)
    if alias is None:
        return None
    return Column(field, present[_plain(alias)], CONVERT_BY_ALIAS.get(alias) or CONVERT.get(field, _decimal))


def _missing(field: str, kind: str) -> str:
    hint = ", or give --symbol" if field == "sym" else ""
    return f"no column for {field} of a {kind}: name it {' or '.join(FIELDS[kind][field])}{hint}"


def _decimal(value: Any) -> Any:
    """Plain decimals keep their text; 1e-05, +1.5 and .5 are written out; anything else is refused further on."""
    if isinstance(value, str):
        value = value.strip()
        if PLAIN_DECIMAL.fullmatch(value) or not DECIMAL.fullmatch(value):
            return value
        value = Decimal(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f") if abs(value.adjusted()) <= MAX_DECIMAL_CHARS else str(value)
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 else value


def _nanoseconds(value: Any) -> Any:
    return int(value) if isinstance(value, EpochNs) else _whole(value)


def _label(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else str(value) if type(value) is int else value


def _side(value: Any) -> Any:
    return SIDES.get(value.strip().casefold(), value) if isinstance(value, str) else value


def _taker_of_maker(value: Any) -> str:
    """The aggressor, from whether the buyer was the maker."""
    known = {"true": "sell", "1": "sell", "false": "buy", "0": "buy"}
    side = known.get(str(value).strip().casefold())
    if side is None:
        raise BadRecord(f"is_buyer_maker is {str(value)[:40]!r}, not true or false")
    return side


CONVERT: dict[str, Callable[[Any], Any]] = {
    "sym": _label,
    "venue": _label,
    "id": _label,
    "side": _side,
    "seq": _whole,
    "interval_s": _whole,
    "ts_event_ns": parse_time_ns,
    "ts_recv_ns": parse_time_ns,
}
CONVERT_BY_ALIAS: dict[str, Callable[[Any], Any]] = {
    "ts_event_ns": _nanoseconds,
    "ts_recv_ns": _nanoseconds,
    "is_buyer_maker": _taker_of_maker,
}
