from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import Usage
from streamproc.kafka.positions import offset_in
from streamproc.positions import (
    At,
    BeforeEnd,
    End,
    Offset,
    Partitions,
    Start,
    format_offsets,
    parse_position,
    parse_range,
)

NOW_MS = 1_800_000_000_000


def ms(*when):
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("start", Start()),
        ("end", End()),
        ("0", Offset(0)),
        ("100", Offset(100)),
        ("-100", BeforeEnd(100)),
        ("@now", At(NOW_MS)),
        ("@-1h", At(NOW_MS - 3_600_000)),
        ("@-2m30s", At(NOW_MS - 150_000)),
        ("@2026-01-15", At(ms(2026, 1, 15))),
        ("@2026-01-15T10:00", At(ms(2026, 1, 15, 10))),
        ("@2026-01-15T10:00Z", At(ms(2026, 1, 15, 10))),
        ("@2026-01-15T10:00:30", At(ms(2026, 1, 15, 10, 0, 30))),
        ("@2026-01-15T10:00:30.5Z", At(ms(2026, 1, 15, 10, 0, 30) + 500)),
        ("@2026-01-15T10:00+02:00", At(ms(2026, 1, 15, 8))),
        ("0:10482", Partitions(((0, 10_482),))),
        ("1:99,0:10482", Partitions(((0, 10_482), (1, 99)))),
    ],
)
def test_a_position_means_what_it_says(text, position):
    assert parse_position(text, NOW_MS) == position


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("100:200", (Offset(100), Offset(200))),
        ("start:end", (Start(), End())),
        ("0:-10", (Offset(0), BeforeEnd(10))),
        ("@-1h:@now", (At(NOW_MS - 3_600_000), At(NOW_MS))),
        ("@-1h:@-30m", (At(NOW_MS - 3_600_000), At(NOW_MS - 1_800_000))),
        ("@2026-01-15:@2026-01-16", (At(ms(2026, 1, 15)), At(ms(2026, 1, 16)))),
        ("@2026-01-15T10:00Z:@2026-01-15T11:30:15", (At(ms(2026, 1, 15, 10)), At(ms(2026, 1, 15, 11, 30, 15)))),
        ("@2026-01-15T10:00:end", (At(ms(2026, 1, 15, 10)), End())),
    ],
)
def test_a_range_has_two_ends(text, ends):
    assert parse_range(text, NOW_MS) == ends


@pytest.mark.parametrize(
    "text", ["100", "@2026-01-15T10:00", "@2026-01-15T10:00:30", "0:1,1:2", "1:2:3", ":", "a:b", ""]
)
def test_what_is_no_range_is_refused_with_an_example(text):
    with pytest.raises(Usage, match="use A:B, such as"):
        parse_range(text, NOW_MS)


@pytest.mark.parametrize(
    "text",
    ["", "begin", "1.5", "+5", "@", "@soon", "0:", ":5", "0:5,", "0:-5", "start:end", "99999999999999999999", " 1"],
)
def test_what_is_no_position_is_refused_with_the_grammar(text):
    with pytest.raises(Usage, match="is no position: use start, end"):
        parse_position(text, NOW_MS)


@pytest.mark.parametrize("text", ["@2026-13-01", "@2026-02-30", "@-", "@-5x", "@2026-01-15T25:00"])
def test_a_time_that_does_not_exist_is_refused(text):
    with pytest.raises(Usage, match="is no"):
        parse_position(text, NOW_MS)


def test_a_partition_named_twice_is_refused():
    with pytest.raises(Usage, match="every partition once"):
        parse_position("0:1,0:2", NOW_MS)


@given(st.dictionaries(st.integers(0, 10_000), st.integers(0, 2**63 - 1), min_size=1))
def test_where_a_command_stopped_is_where_it_goes_on(offsets):
    assert parse_position(format_offsets(offsets), NOW_MS) == Partitions(tuple(sorted(offsets.items())))


@pytest.mark.parametrize(
    ("position", "offset"),
    [
        (Start(), 50),
        (End(), 80),
        (Offset(60), 60),
        (Offset(3), 50),
        (Offset(99), 80),
        (BeforeEnd(10), 70),
        (BeforeEnd(0), 80),
        (BeforeEnd(1000), 50),
        (Partitions(((7, 55),)), 55),
        (Partitions(((7, 5),)), 50),
    ],
)
def test_an_offset_stays_inside_the_log(position, offset):
    assert offset_in(position, partition=7, low=50, high=80) == offset
