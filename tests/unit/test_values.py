import pytest

from streamproc.javaproperties import parse_properties
from streamproc.values import parse_bytes, parse_count, parse_span_ms, parse_span_s, printable


def test_java_properties_are_read_as_java_reads_them():
    text = (
        "# comment\n! comment\n\n  a = 1\nb:2\nc 3\nd=\ne\nf=x\\\n   y\\\n#z\ng\\=h=i=j\nk=\\u0041\\t\\\\\nl=C:\\\\x\n"
        'm = a # b\r\nsasl.jaas.config=M required \\\n  username="u";\n'
    )
    assert parse_properties(text) == {
        "a": "1",
        "b": "2",
        "c": "3",
        "d": "",
        "e": "",
        "f": "xy#z",
        "g=h": "i=j",
        "k": "A\t\\",
        "l": "C:\\x",
        "m": "a # b",
        "sasl.jaas.config": 'M required username="u";',
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [("4096", 4096), ("25.6k", 25_600), ("32K", 32_768), ("1M", 2**20), ("1m", 10**6), ("1g", 10**9), ("-3", -3)],
)
def test_counts(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10), ("256MB", 256_000_000), ("1GiB", 2**30), ("64K", 65_536), ("1.5 kb", 1_500), ("7B", 7), ("2k", 2_000)],
)
def test_sizes(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("5", 5), ("500ms", 500), ("5s", 5_000), ("2m30s", 150_000), ("1.5h", 5_400_000), ("1d", 86_400_000)],
)
def test_spans_of_time(text, number):
    assert parse_span_ms(text) == number


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("5000ms", 5), ("2m30s", 150), ("0.5h", 1_800), ("1d", 86_400)])
def test_spans_of_time_in_seconds(text, number):
    assert parse_span_s(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "1e3", "one", "1kk", "1 2", "0x10"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValueError, match="whole number"):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "s", "5 s", "-5s", "5s3", "5x"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(ValueError, match="span of time"):
        parse_span_ms(text)


def test_what_a_terminal_would_obey_or_cannot_show_is_written_out():
    assert printable("a\x1b[31m\udcff\nb") == "a\\x1b[31m\\udcff\\nb"
    assert printable("a" * 10, 10) == "a" * 10
    assert printable("a" * 11, 10) == "a" * 9 + "…"
    assert printable("\x07" * 11, 10) == "\\x07\\x07\\…"
