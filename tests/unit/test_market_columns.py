from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import BadRecord
from streamproc.market.columns import columns_of, has_time, row_to_record
from streamproc.market.times import EpochNs, parse_time_ns
from streamproc.records import Bar, Quote, Trade

NS = 1610064000278123456
TRADE_ROW = {"ts": "2021-01-08T00:00:00.278Z", "symbol": "BTC", "price": "1.50", "size": "2"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2021-01-08T00:00:00.278123456Z", NS),
        ("2021-01-08 00:00:00,278123456", NS),
        ("2021-01-08T02:00:00.278123456+02:00", NS),
        ("2021-01-07T19:00:00.278123456-0500", NS),
        ("2021-01-08T00:00:00.278123456 UTC", NS),
        (" 2021-01-08T00:00Z ", NS - 278123456),
        ("2021-01-08", NS - 278123456),
        ("1610064000", NS - 278123456),
        ("1610064000.278123456", NS),
        ("1610064000278", NS - 123456),
        ("1610064000278123", NS - 456),
        (str(NS), NS),
        (NS, NS),
        (1610064000, NS - 278123456),
        (1610064000.25, NS - 28123456),
        (Decimal("1610064000.278123456"), NS),
        (datetime(2021, 1, 8, 0, 0, 0, 278123), NS - 456),
        (datetime(2021, 1, 8, 1, 0, 0, 278123, timezone(timedelta(hours=1))), NS - 456),
        (date(2021, 1, 8), NS - 278123456),
        (EpochNs(5), 5),
    ],
)
def test_times_of_every_spelling_are_exact_nanoseconds(value, expected):
    found = parse_time_ns(value)
    assert type(found) is int
    assert found == expected


@pytest.mark.parametrize(
    "value",
    ["", "now", "20210108", "2021-13-01", "2021-01-08T25:00", "2021-01-08T00:00:00.1234567890Z", "2021-01-08Tx", "-5",
     "2013-01-01T22:09:27+00:Z", 5, -5, 0.0, 10**20, float("nan"), float("inf"), True, None, [], Decimal("NaN"), 1e300],
)  # fmt: skip
def test_what_is_no_time_is_refused(value):
    with pytest.raises(BadRecord, match="is not a time"):
        parse_time_ns(value)


moments = st.datetimes(datetime(1974, 1, 1), datetime(2250, 1, 1), timezones=st.just(UTC))


@given(moments, st.integers(0, 999))
def test_iso_times_and_epochs_agree(moment, nanoseconds):
    expected = parse_time_ns(moment) + nanoseconds
    assert parse_time_ns(f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}{nanoseconds:03}Z") == expected
    assert parse_time_ns(str(expected)) == expected
    assert parse_time_ns(f"{expected // 10**9}.{expected % 10**9:09}") == expected


@pytest.mark.parametrize(
    ("row", "record"),
    [
        (TRADE_ROW, Trade("BTC", 1610064000278000000, "1.50", "2")),
        (
            {"Time": NS, "Ticker": "A", "PX": 1.5, "Qty": 2, "Side": "BUY", "TradeId": 7, "seq": "9", "venue": "x"},
            Trade("A", NS, "1.5", "2", "buy", "x", "7", 9),
        ),
        (
            {"id": 1, "sym": "A", "price": "1", "qty": "2", "time": "1610064000278", "is_buyer_maker": "true"},
            Trade("A", 1610064000278000000, "1", "2", "sell", None, "1"),
        ),
        (
            {"timestamp": NS, "symbol": "A", "Bid Price": "1", "askPrice": "2", "bid_size": "", "ask_size": "3"},
            Quote("A", NS, "1", "2", None, "3"),
        ),
        (
            {"t": NS, "sym": "A", "o": "2", "h": "4", "l": "1", "c": "3", "v": "100"},
            Bar("A", NS, "2", "4", "1", "3", "100"),
        ),
        (
            {"date": "2021-01-08", "ticker": "A", "Open": 2, "High": 4, "Low": 1, "Close": 3, "Volume": 5,
             "interval_s": "86400"},
            Bar("A", 1610064000000000000, "2", "4", "1", "3", "5", 86400),
        ),
        (
            {"v": 1, "kind": "bar", "sym": "A", "ts_event_ns": 5, "open": "2", "high": "4", "low": "1", "close": "3"},
            Bar("A", 5, "2", "4", "1", "3"),
        ),
        ({"kind": "quote", "sym": "A", "ts": NS, "bid": 1, "ask": 2, "price": 3}, Quote("A", NS, "1", "2")),
    ],
)  # fmt: skip
def test_rows_of_many_feeds_are_records(row, record):
    assert row_to_record(row) == record


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1.50", "1.50"), ("1e-05", "0.00001"), ("1.5E+3", "1500"), ("+1.5", "1.5"), (".5", "0.5"), (" 7", "7")],
)
def test_decimals_keep_their_text_or_are_written_out(text, plain):
    assert row_to_record({**TRADE_ROW, "price": text}).px == plain


@pytest.mark.parametrize("price", ["1,5", "1_000", "nan", "Infinity", "1e999", "1e99", "abc", Decimal("NaN"), True, []])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(BadRecord, match=r"^px: "):
        row_to_record({**TRADE_ROW, "price": price})


def test_kind_and_symbol_that_are_given_win_over_the_rows():
    row = {"kind": "trade", "sym": "A", "ts": NS, "bid": 1, "ask": 2}
    assert row_to_record(row, "quote", "B") == Quote("B", NS, "1", "2")


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (("ts", "sym", "price", "size", "bid", "ask"), None, "fit trade and quote: choose with --kind"),
        (("ts", "sym", "note"), None, "no kind has these columns"),
        (("sym", "price", "size"), None, "no column for ts_event_ns of a trade"),
        (("ts", "price", "size"), None, "or give --symbol"),
        (("ts", "sym", "price"), "trade", "no column for sz of a trade: name it sz or size or qty"),
        (("ts", "sym"), "book", "kind: 'book' is unknown"),
    ],
)
def test_missing_columns_are_named_with_what_would_do(names, kind, reason):
    with pytest.raises(BadRecord) as caught:
        columns_of(names, kind)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ts": "noon"}, "ts_event_ns: 'noon' is not a time"),
        ({"size": "-2"}, "sz: -2 is negative"),
        ({"side": "hold"}, "side: 'hold' is unknown"),
        ({"price": ""}, "px: missing"),
        ({"symbol": " "}, "sym: "),
        ({"is_buyer_maker": "maybe"}, "side: is_buyer_maker is 'maybe'"),
        ({"kind": 7}, "kind: '7' is unknown"),
        ({"sym": "A", "kind": "trade", "ts_event_ns": "5.5"}, "ts_event_ns: "),
    ],
)
def test_a_bad_cell_is_named_with_its_reason(change, reason):
    with pytest.raises(BadRecord) as caught:
        row_to_record({**TRADE_ROW, **change})
    assert reason in str(caught.value)


def test_the_version_of_the_wire_format_is_no_volume():
    row = {"v": 2, "kind": "bar", "sym": "A", "ts_event_ns": 5, "open": 2, "high": 4, "low": 1, "close": 3}
    with pytest.raises(BadRecord, match="v: 2 is unknown"):
        row_to_record(row)


def test_whether_a_row_has_a_time_is_known_from_its_names():
    assert has_time(TRADE_ROW)
    assert has_time(["Timestamp"])
    assert not has_time(["symbol", "price"])
