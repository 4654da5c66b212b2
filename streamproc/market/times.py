"""Times as feeds write them -> integer nanoseconds since 1970 UTC, without rounding.

Understood: ISO 8601 with up to nine digits of fraction (no zone means UTC), and seconds, milliseconds, microseconds or
nanoseconds since 1970, told apart by their magnitude; that is unambiguous from 1973-03-03 to the year 5138.
"""

import functools
import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from streamproc.errors import BadRecord

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS = 10**9

ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?)?\s?(Z|UTC|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,18})?", re.ASCII)
SCALES = ((10**8, 10**11, SECOND_NS), (10**11, 10**14, 10**6), (10**14, 10**17, 10**3), (10**17, 10**20, 1))


class EpochNs(int):
    """Nanoseconds since 1970 already, whatever their magnitude."""


def parse_time_ns(value: Any) -> int:
    """Nanoseconds since 1970 UTC. Raises BadRecord without naming a field."""
    match value:
        case EpochNs():
            return int(value)
        case str():
            return _text_ns(value.strip())
        case datetime():
            return _datetime_ns(value)
        case date():
            return _datetime_ns(datetime(value.year, value.month, value.day))
        case bool():
            raise _refusal(value)
        case int() | float() | Decimal() if math.isfinite(value):
            return _epoch_ns(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), value)
    raise _refusal(value)


def _text_ns(text: str) -> int:
    if found := ISO.fullmatch(text):
        day, clock, fraction, zone = found.groups()
        return _whole_seconds_ns(day, clock or "00:00", zone or "Z") + int((fraction or "0").ljust(9, "0"))
    if NUMBER.fullmatch(text):
        return _epoch_ns(Decimal(text), text)
    raise _refusal(text)


@functools.lru_cache(maxsize=1024)  # neighbours mostly share their second
def _whole_seconds_ns(day: str, clock: str, zone: str) -> int:
    text = f"{day}T{clock}{zone.replace('UTC', 'Z')}"
    try:
        return _datetime_ns(datetime.fromisoformat(text))
    except ValueError as problem:
        raise BadRecord(f"{text!r} is not a time: {problem}") from None


def _datetime_ns(moment: datetime) -> int:
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND_NS + since.microseconds * 1_000


def _epoch_ns(number: Decimal, shown: Any) -> int:
    for low, high, scale in SCALES:
        if low <= number < high:
            return int(number * scale)
    raise _refusal(shown)


def _refusal(value: Any) -> BadRecord:
    return BadRecord(f"{str(value)[:40]!r} is not a time, use ISO 8601 or s, ms, us or ns since 1970")
