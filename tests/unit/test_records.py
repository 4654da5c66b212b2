import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import BadRecord
from streamproc.records import (
    MAX_DECIMAL_CHARS,
    MAX_SYMBOL_CHARS,
    MAX_TIME_NS,
    Bar,
    Quote,
    Trade,
    decimal_text,
    decode_record,
    encode_record,
    parse_record,
)

TRADE = {"v": 1, "kind": "trade", "sym": "BTCUSDT", "ts_event_ns": 5, "px": "39432.480", "sz": "0.1", "side": "sell"}
QUOTE = {"kind": "quote", "sym": "USDJPY", "ts_event_ns": 5, "bid_px": "86.655", "ask_px": "86.728"}
BAR = {"kind": "bar", "sym": "BTCPERP", "ts_event_ns": 5, "open": "2", "high": "4", "low": "1", "close": "3"}

symbols = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=MAX_SYMBOL_CHARS)
times = st.integers(0, MAX_TIME_NS)
amounts = st.decimals(0, 10**9, places=8).map(lambda number: format(number, "f"))
prices = st.decimals(-(10**9), 10**9, places=5).map(lambda number: format(number, "f"))
optional_times = st.none() | times
trades = st.builds(
    Trade,
    symbols,
    times,
    prices,
    amounts,
    st.sampled_from([None, "buy", "sell"]),
    st.none() | symbols,
    st.none() | symbols,
    optional_times,
    optional_times,
)
quotes = st.builds(
    Quote,
    symbols,
    times,
    prices,
    prices,
    st.none() | amounts,
    st.none() | amounts,
    st.none() | symbols,
    optional_times,
    optional_times,
)
bars = st.builds(
    lambda sym, ts, px, volume, interval, venue: Bar(sym, ts, px[1], px[3], px[0], px[2], volume, interval, venue),
    symbols,
    times,
    st.lists(prices, min_size=4, max_size=4).map(lambda texts: sorted(texts, key=float)),
    st.none() | amounts,
    optional_times,
    st.none() | symbols,
)


@given(trades | quotes | bars)
def test_every_record_comes_back_from_its_wire_form(record):
    assert decode_record(encode_record(record), record.sym.encode()) == record


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_bad_record(value):
    with pytest.raises(BadRecord):
        decode_record(value, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([TRADE, QUOTE, BAR]), st.data())
def test_any_value_in_any_field_is_taken_or_named(doc, data):
    field = data.draw(st.sampled_from(sorted({*doc, "venue", "id", "seq", "ts_recv_ns", "volume", "bid_sz"})))
    changed = {**doc, field: data.draw(json_values)}
    try:
        record = parse_record(changed)
    except BadRecord as problem:
        reason = str(problem)
        named = field in reason or "enclose" in reason
    else:
        named = decode_record(encode_record(record), None) == record
    assert named


def test_prices_keep_the_text_of_their_venue():
    assert parse_record(TRADE).px == "39432.480"


@pytest.mark.parametrize(
    ("value", "text"),
    [("1.50", "1.50"), (1e-7, "0.0000001"), (5, "5"), (45123.5, "45123.5"), ("-3", "-3"), (1e22, "1" + "0" * 22)],
)
def test_decimals_are_plain_text(value, text):
    assert decimal_text(value, "px") == text


@pytest.mark.parametrize(
    "value",
    ["", " 1", "1e5", "nan", "inf", "1,5", "1.", ".5", "٣", "0x1", math.nan, math.inf, 1e300, True, [], "1" * 41],
)
def test_what_is_no_finite_decimal_is_refused_by_name(value):
    with pytest.raises(BadRecord, match=r"^px: .* is not a finite decimal"):
        decimal_text(value, "px")


def test_decimals_have_a_longest_text():
    assert decimal_text("9" * MAX_DECIMAL_CHARS, "px")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "book"}, "kind: 'book' is unknown, use one of trade, quote, bar"),
        ({"kind": None}, "kind: None is unknown"),
        ({"kind": []}, "kind: "),
        ({"v": 2}, "v: 2 is unknown"),
        ({"sym": ""}, "sym: "),
        ({"sym": " BTC"}, "sym: "),
        ({"sym": "B\nTC"}, "sym: "),
        ({"sym": "B" * 65}, "sym: "),
        ({"sym": 7}, "sym: "),
        ({"ts_event_ns": None}, "ts_event_ns: "),
        ({"ts_event_ns": -1}, "ts_event_ns: "),
        ({"ts_event_ns": 1.5}, "ts_event_ns: "),
        ({"ts_event_ns": True}, "ts_event_ns: "),
        ({"ts_event_ns": 2**63}, "ts_event_ns: "),
        ({"px": None}, "px: missing"),
        ({"px": "NaN"}, "px: "),
        ({"sz": "-1"}, "sz: -1 is negative"),
        ({"side": "hold"}, "side: 'hold' is unknown"),
        ({"seq": -1}, "seq: "),
        ({"id": "a" * 65}, "id: "),
        ({"id": "a\nb"}, "id: "),
        ({"id": True}, "id: "),
        ({"venue": {}}, "venue: "),
        ({"ts_recv_ns": "now"}, "ts_recv_ns: "),
    ],
)
def test_a_bad_field_is_named_with_its_reason(change, reason):
    with pytest.raises(BadRecord) as caught:
        parse_record({**TRADE, **change})
    assert reason in str(caught.value)


def test_a_bar_encloses_its_open_and_close():
    with pytest.raises(BadRecord, match="do not enclose"):
        parse_record({**BAR, "close": "5"})


def test_a_quote_may_have_no_sizes_but_no_negative_ones():
    assert parse_record(QUOTE).bid_sz is None
    with pytest.raises(BadRecord, match="ask_sz: -1 is negative"):
        parse_record({**QUOTE, "ask_sz": "-1"})


def test_a_negative_price_is_a_price():
    assert parse_record({**TRADE, "px": "-37.63"}).px == "-37.63"


def test_unknown_fields_do_no_harm():
    assert parse_record({**TRADE, "cond": ["@"]}) == parse_record(TRADE)


def test_a_number_is_taken_as_an_id():
    assert parse_record({**TRADE, "id": 553287559}).id == "553287559"


@pytest.mark.parametrize("value", [b"[]", b"1", b'"x"', b"null"])
def test_a_record_is_an_object(value):
    with pytest.raises(BadRecord, match="a record is a JSON object"):
        decode_record(value, None)


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (None, b"BTCUSDT", "empty value"),
        (b"{", b"BTCUSDT", "not JSON"),
        (b"\xff", b"BTCUSDT", "not JSON"),
        (orjson.dumps(TRADE), b"ETHUSDT", "wrong key b'ETHUSDT'"),
        (orjson.dumps(TRADE), b"", "wrong key"),
        (orjson.dumps({**TRADE, "note": "x" * 100}), b"BTCUSDT", "the limit is 100"),
    ],
)
def test_a_message_that_is_no_record_is_refused_with_its_reason(value, key, reason):
    with pytest.raises(BadRecord, match=reason):
        decode_record(value, key, max_bytes=100 if "limit" in reason else 65_536)


def test_a_record_of_exactly_the_limit_is_taken():
    value = orjson.dumps(TRADE)
    assert decode_record(value, b"BTCUSDT", len(value)) == parse_record(TRADE)
