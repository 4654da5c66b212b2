"""One grammar for places in a topic, the same in every command.

    start  end            the oldest record there is; after the newest
    100  -100             offset 100 of every partition; 100 records before the end of every partition
    @2026-01-15           the first record at or after that time (UTC where no zone is written)
    @2026-01-15T10:00Z    with a time of day: T10:00, T10:00:30, T10:00:30.5, zone Z or +02:00
    @now  @-1h  @-2m30s   now, and before now
    0:10482,1:99          PARTITION:OFFSET, comma between: just these partitions; where a command says it stopped
    A:B                   a range from A up to, not including B; only where an option takes a range

In a range `30` after a time's minutes is its seconds; a list of partitions cannot be part of one. Parsing is pure:
what `now` is comes in as a number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from streamproc.errors import Usage
from streamproc.values import parse_span_ms

GRAMMAR = "start, end, 100, -100, @2026-01-15, @2026-01-15T10:00Z, @-1h or @now"
TIME = r"@\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?"
POINT = rf"start|end|-?\d+|@now|@-[\d.a-z]+|{TIME}"
RANGE = re.compile(rf"({POINT}):({POINT})")
PARTITIONS = re.compile(r"\d+:\d+(?:,\d+:\d+)*")
MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Start:
    """The oldest record of every partition."""


@dataclass(frozen=True, slots=True)
class End:
    """After the newest record of every partition."""


@dataclass(frozen=True, slots=True)
class Offset:
    """The same offset in every partition."""

    offset: int


@dataclass(frozen=True, slots=True)
class BeforeEnd:
    """So many records before the end of every partition."""

    num_records: int


@dataclass(frozen=True, slots=True)
class At:
    """The first record at or after a time in Unix milliseconds."""

    time_ms: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """An offset for each of some partitions; the others are left out."""

    offsets: tuple[tuple[int, int], ...]


Point = Start | End | Offset | BeforeEnd | At
Position = Point | Partitions


def parse_position(text: str, now_ms: int) -> Position:
    """A point, or a list of partitions and offsets. Raises Usage."""
    if PARTITIONS.fullmatch(text):
        return parse_partitions(text)
    if re.fullmatch(POINT, text):
        return parse_point(text, now_ms)
    raise not_a_position(text)


def parse_range(text: str, now_ms: int) -> tuple[Point, Point]:
    """Both ends of A:B; B itself is not included. Raises Usage."""
    found = RANGE.fullmatch(text)
    if re.fullmatch(POINT, text) or not found:
        raise Usage(f"{text!r} is no range of positions: use A:B, such as 100:200 or @-1h:@now")
    return parse_point(found.group(1), now_ms), parse_point(found.group(2), now_ms)


def parse_point(text: str, now_ms: int) -> Point:
    """Where a text of the grammar's points lies. Raises Usage."""
    if text == "start":
        return Start()
    if text == "end":
        return End()
    if text.startswith("@"):
        return At(parse_time_ms(text[1:], now_ms))
    number = int(text)
    if abs(number) > MAX_OFFSET:
        raise not_a_position(text)
    return BeforeEnd(-number) if text.startswith("-") else Offset(number)


def parse_time_ms(text: str, now_ms: int) -> int:
    """Unix milliseconds of what follows the @."""
    if text == "now":
        return now_ms
    try:
        if text.startswith("-"):
            return max(now_ms - parse_span_ms(text[1:]), 0)
        when = datetime.fromisoformat(text)
    except ValueError as problem:
        raise Usage(f"'@{text}' is no time: {problem}") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def parse_partitions(text: str) -> Partitions:
    pairs = [tuple(map(int, part.split(":"))) for part in text.split(",")]
    offsets = {partition: offset for partition, offset in pairs}
    if len(offsets) != len(pairs) or max(max(pair) for pair in pairs) > MAX_OFFSET:
        raise Usage(f"{text!r}: name every partition once")
    return Partitions(tuple(sorted(offsets.items())))


def format_offsets(offsets: Mapping[int, int]) -> str:
    """Offsets by partition as a position: what --from takes to go on from there."""
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items()))


def not_a_position(text: str) -> Usage:
    return Usage(f"{text!r} is no position: use {GRAMMAR}, or PARTITION:OFFSET,... such as 0:10482,1:99")
