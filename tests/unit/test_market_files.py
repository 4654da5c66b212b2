import gzip
import io
import json
import random
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamproc.errors import BadRecord, Usage
from streamproc.market.files import read_records
from streamproc.market.sample import SAMPLE, sample_path, sample_records, sample_timeline
from streamproc.records import Bar, Quote, Trade, encode_record, parse_record

CSV = "ts,symbol,price,size,side\n2021-01-08T00:00:00.278Z,BTC,1.50,2,sell\n2021-01-08T00:00:01Z,BTC,1.60,3,buy\n"
RECORDS = [
    Trade("BTC", 1610064000278000000, "1.50", "2", "sell"),
    Trade("BTC", 1610064001000000000, "1.60", "3", "buy"),
]


def written(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def from_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV", "a.2021.csv"])
def test_csv_files_are_read_plain_and_gzipped(tmp_path, name):
    assert list(read_records(written(tmp_path / name, CSV))) == RECORDS


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_found_in_the_header(tmp_path, delimiter):
    assert list(read_records(written(tmp_path / "a.csv", CSV.replace(",", delimiter)))) == RECORDS


def test_csv_may_have_a_byte_order_mark_windows_line_ends_quotes_and_blank_lines(tmp_path):
    text = "\ufeff" + CSV.replace("\n", "\r\n").replace("BTC", '"BTC"') + "\r\n\r\n"
    assert list(read_records(written(tmp_path / "a.csv", text))) == RECORDS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_json_lines_are_read_in_wire_format_and_under_other_names(tmp_path, name):
    other = json.dumps({"ts": 1610064001, "sym": "BTC", "px": "1.60", "qty": 3}).encode()
    found = list(read_records(written(tmp_path / name, b"\n".join([encode_record(RECORDS[0]), b"", other]))))
    assert found == [RECORDS[0], RECORDS[1]._replace(side=None)]


def test_json_numbers_keep_their_text(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"ts": 1610064000, "sym": "A", "price": 39432.50, "size": 1e-7}\n')
    assert list(read_records(path)) == [Trade("A", 1610064000000000000, "39432.50", "0.0000001")]


def test_one_json_file_may_hold_all_kinds(tmp_path):
    records = [RECORDS[0], Quote("A", 5, "1", "2"), Bar("A", 5, "2", "4", "1", "3")]
    path = written(tmp_path / "a.jsonl", b"\n".join(map(encode_record, records)))
    assert list(read_records(path)) == records


@pytest.mark.parametrize(
    "data",
    [CSV.encode(), gzip.compress(CSV.encode()), b"\n".join(map(encode_record, RECORDS))],
    ids=["csv", "gzip", "json"],
)
def test_standard_input_is_told_by_its_first_bytes(monkeypatch, data):
    from_stdin(monkeypatch, data)
    assert list(read_records("-")) == RECORDS


def test_parquet_cannot_come_from_a_pipe(monkeypatch):
    from_stdin(monkeypatch, b"PAR1....")
    with pytest.raises(Usage, match="give the file's name"):
        list(read_records("-"))


def test_a_given_symbol_stands_in_for_a_missing_column(tmp_path):
    path = written(tmp_path / "a.csv", "ts,price,size\n1610064000,1,2\n")
    assert list(read_records(path, symbol="ETH")) == [Trade("ETH", 1610064000000000000, "1", "2")]


def test_a_kind_column_decides_row_by_row(tmp_path):
    rows = ["kind,ts,sym,price,size,bid,ask", "trade,1610064000,A,1,2,,", "quote,1610064000,A,,,1,2"]
    path = written(tmp_path / "a.csv", "\n".join(rows))
    assert [record.kind for record in read_records(path)] == ["trade", "quote"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2021-01-08,BTC,1,2,hold", "side: 'hold' is unknown"),
        ("2021-01-08,BTC,x,2,buy", "px: 'x' is not a finite decimal"),
        ("2021-01-08,BTC,1,2", "4 columns, the header has 5"),
        ("2021-01-08,BTC,1,2,buy,", "6 columns, the header has 5"),
        ("yesterday,BTC,1,2,buy", "ts_event_ns: 'yesterday' is not a time"),
        (",,,,", "px: missing"),
        ('2021-01-08,BTC,1,2,"' + "x" * 200_000 + '"', "not CSV: field larger than"),
    ],
)
def test_a_bad_csv_row_is_named_with_file_line_and_reason(tmp_path, row, reason):
    path = written(tmp_path / "a.csv", f"{CSV}{row}\n{CSV.splitlines()[1]}\n")
    records = read_records(path)
    assert [next(records), next(records)] == RECORDS
    with pytest.raises(BadRecord) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert reason in str(caught.value) or row == ",,,,"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object on a line of its own, not list"),
        ('{"sym": "A", "ts": 1610064000}', "no kind has these columns"),
        ('{"kind": "trade", "sym": "A", "ts": 1610064000, "px": NaN, "sz": 1}', "px: 'NaN'"),
        ('{"kind": "trade", "sym": "\\ud800", "ts": 1610064000, "px": 1, "sz": 1}', "sym: "),
        ('{"kind": "trade", "sym": "A", "ts": 1610064000, "px": 1, "sz": 1, "id": "\\ud800"}', "id: "),
        ('{"kind": "trade", "sym": "A", "ts": 1610064000, "sz": 1, "px": 1' + "0" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_json_line_is_named_with_file_line_and_reason(tmp_path, line, reason):
    path = written(tmp_path / "a.jsonl", f"\n{line}\n")
    with pytest.raises(BadRecord) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)


def test_bytes_that_are_no_utf_8_are_a_bad_row_not_another_symbol(tmp_path):
    path = written(tmp_path / "a.csv", b"ts,sym,px,sz\n1610064000,A\xff,1,2\n")
    with pytest.raises(BadRecord, match=r"a.csv:2: sym: "):
        list(read_records(path))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_file_of_bytes_is_refused_with_a_short_line_that_can_be_printed(tmp_path, name):
    content = b"\x1b[31m\xff\x07," + random.Random(1).randbytes(4096)
    with pytest.raises((Usage, BadRecord)) as caught:
        list(read_records(written(tmp_path / name, content)))
    said = str(caught.value).removeprefix(str(tmp_path))
    assert said.isprintable()
    assert len(said) < 300


def test_skipped_rows_are_reported_one_by_one(tmp_path):
    bad: list[BadRecord] = []
    lines = CSV.splitlines()
    path = written(tmp_path / "a.csv", "\n".join([lines[0], "x", lines[1], ",,,,", lines[2]]))
    assert list(read_records(path, on_bad=bad.append)) == RECORDS
    assert [str(problem).split(": ")[0] for problem in bad] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ":1: empty"),
        ("\n\n", ":1: empty"),
        ("a,b,c\n1,2,3\n", ":1: a, b, c: no kind has these columns"),
        ("ts,price,size\n", ":1: no column for sym"),
        ("ts,sym,price,price\n", ":1: two columns have one name"),
        ("ts,sym,price,size,bid,ask\n", "choose with --kind"),
    ],
)
def test_a_header_that_can_lead_to_nothing_is_refused_at_once(tmp_path, text, reason):
    with pytest.raises(Usage) as caught:
        list(read_records(written(tmp_path / "a.csv", text), on_bad=lambda _: None))
    assert reason in str(caught.value)


def test_files_that_cannot_be_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(Usage, match="no such file; give a file of market data"):
        read_records(tmp_path / "none.csv")
    with pytest.raises(Usage, match="a folder"):
        read_records(tmp_path)
    with pytest.raises(Usage, match=r"unknown kind of file, known are .csv"):
        read_records(written(tmp_path / "a.xlsx", ""))
    with pytest.raises(Usage, match="kind: 'book' is unknown"):
        read_records(written(tmp_path / "a.csv", CSV), kind="book")


def test_a_torn_gzip_file_is_named_with_the_last_line_read(tmp_path):
    whole = gzip.compress((CSV + CSV.splitlines()[1] * 5000).encode(), compresslevel=0)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Usage, match="cannot be read after line"):
        list(read_records(path))


def parquet_file(path: Path, columns: dict[str, object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_parquet_times_floats_and_decimals_are_exact(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "ts": pyarrow.array([1610064000278123456, 5], pyarrow.timestamp("ns", tz="UTC")),
        "symbol": pyarrow.array(["A", "A"]).dictionary_encode(),
        "price": pyarrow.array([0.1 + 0.2, 45123.5]),
        "size": pyarrow.array([1.1, 2.5], pyarrow.float32()),
    }
    assert list(read_records(parquet_file(tmp_path / "a.parquet", columns))) == [
        Trade("A", 1610064000278123456, "0.30000000000000004", "1.1"),
        Trade("A", 5, "45123.5", "2.5"),
    ]


def test_parquet_decimals_dates_and_nulls_are_read(tmp_path):
    columns = {
        "ts": [datetime(2021, 1, 8, tzinfo=UTC)] * 3,
        "sym": ["A"] * 3,
        "bid": [Decimal("1.50")] * 3,
        "ask": [Decimal("2.00")] * 3,
        "bid_size": [None, 1, 2],
    }
    found = list(read_records(parquet_file(tmp_path / "a.parquet", columns)))
    assert found[0] == Quote("A", 1610064000000000000, "1.50", "2.00")
    assert [quote.bid_sz for quote in found] == [None, "1", "2"]


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path):
    columns = {"ts": [1610064000] * 5, "sym": ["A"] * 5, "price": [1.0, 2.0, 3.0, float("nan"), 5.0], "size": [1] * 5}
    path = parquet_file(tmp_path / "a.parquet", columns)
    with pytest.raises(BadRecord, match=r"a.parquet:4: px: 'nan'"):
        list(read_records(path))


def test_what_is_no_parquet_or_has_no_market_data_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(Usage, match="cannot be read as Parquet"):
        list(read_records(written(tmp_path / "a.parquet", b"PAR1 and then nothing of the kind")))
    with pytest.raises(Usage, match="no kind has these columns"):
        list(read_records(parquet_file(tmp_path / "b.parquet", {"a": [1]})))


def test_without_pyarrow_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Usage, match=r"pip install 'streamproc\[parquet\]'"):
        list(read_records(written(tmp_path / "a.parquet", b"PAR1")))


def test_the_sample_is_whole_and_valid():
    counts = [sum(1 for _ in read_records(sample_path(name))) for name in SAMPLE]
    assert counts == [2001, 1000, 1000]
    for record in sample_records():
        assert parse_record({"kind": record.kind, **record._asdict()}) == record


def test_the_sample_interleaves_its_symbols_and_is_always_the_same():
    records = list(sample_records())
    assert len(records) == 4001
    for start in range(0, 4000, 500):
        assert {record.sym for record in records[start : start + 500]} >= {"BTCUSDT", "XBTUSDT"}
    assert {record.sym for record in records[:100]} == {"BTCUSDT", "XBTUSDT", "USDJPY"}
    assert records == list(sample_records())


def test_the_sample_plays_in_order_and_each_symbol_in_its_own():
    played = list(sample_timeline())
    assert [since for since, _ in played] == sorted(since for since, _ in played)
    for name in SAMPLE:
        own = list(read_records(sample_path(name)))
        assert [record for _, record in played if record.sym == own[0].sym] == own


def test_only_the_samples_own_files_are_samples():
    with pytest.raises(Usage, match="no such file, there are binance"):
        sample_path("../files.py")


def test_the_sample_says_where_it_comes_from():
    readme = sample_path(SAMPLE[0]).with_name("README.md").read_text()
    assert "nautechsystems/nautilus_trader" in readme
    assert all(name in readme for name in SAMPLE)
