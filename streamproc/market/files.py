"""Market data files -> records, row by row, in the file's own order.

CSV (with a header), JSON lines and Parquet; CSV and JSON lines also gzipped and from standard input. Decimals keep the
text of the file. A row that holds no record is never passed over in silence: it raises `BadRecord("file:line:
reason")`, or goes to `on_bad` and reading continues.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from streamproc.errors import BadRecord, Usage
from streamproc.market.columns import columns_of, row_to_record
from streamproc.records import KINDS, Record

STDIN = "-"
FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
KNOWN = ".csv, .csv.gz, .jsonl, .jsonl.gz, .parquet"
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
PEEK_BYTES = 1024
DELIMITERS = ",;\t|"

Row = dict[str, Any] | BadRecord
Rows = Iterator[tuple[int, Row]]


@dataclass(frozen=True, slots=True)
class Source:
    """A file by name, and what is known of its rows beforehand."""

    name: str
    kind: str | None = None
    symbol: str | None = None

    def record(self, row: Row) -> Record:
        """The record in a row. Raises BadRecord."""
        if isinstance(row, BadRecord):
            raise row
        return row_to_record(row, self.kind, self.symbol)

    def check_header(self, names: tuple[str, ...]) -> None:
        """Raises Usage where no row under these column names can be a record."""
        if len(set(names)) < len(names):
            raise Usage(f"{self.name}:1: two columns have one name in the header {','.join(names)[:120]!r}")
        if self.kind is None and "kind" in names:
            return
        try:
            columns_of(names, self.kind, self.symbol is not None)
        except BadRecord as problem:
            raise Usage(f"{self.name}:1: {problem}") from None


def read_records(
    path: str | Path,
    kind: str | None = None,
    symbol: str | None = None,
    on_bad: Callable[[BadRecord], None] | None = None,
) -> Iterator[Record]:
    """The records of a file, or of standard input for "-".

    `kind` and `symbol` win over the file's own. Raises Usage at once for a file that cannot be read, and BadRecord with
    file and line at a bad row unless `on_bad` takes it.
    """
    if kind is not None and kind not in KINDS:
        raise Usage(f"kind: {kind!r} is unknown, use one of {', '.join(KINDS)}")
    if str(path) == STDIN:
        source = Source("standard input", kind, symbol)
        return _records(source, _stdin_rows(source), on_bad or _raise)
    source = Source(str(path), kind, symbol)
    return _records(source, _file_rows(Path(path), file_format(Path(path)), source), on_bad or _raise)


def file_format(path: Path) -> str:
    """csv, jsonl or parquet, by the name of an existing file. Raises Usage."""
    if not path.is_file():
        raise Usage(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of market data ({KNOWN})")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise Usage(f"{path}: unknown kind of file, known are {KNOWN}")
    return FORMATS[suffixes[-1]]


def _records(source: Source, rows: Rows, on_bad: Callable[[BadRecord], None]) -> Iterator[Record]:
    line = 0
    try:
        for line, row in rows:
            try:
                record = source.record(row)
            except BadRecord as problem:
                on_bad(BadRecord(f"{source.name}:{line}: {problem}"))
            else:
                yield record
    except (OSError, EOFError, zlib.error) as problem:
        raise Usage(f"{source.name}: cannot be read after line {line}: {problem}") from None


def _raise(problem: BadRecord) -> NoReturn:
    raise problem


def _file_rows(path: Path, form: str, source: Source) -> Rows:
    """Every row with its line (Parquet: its number), counted from 1."""
    if form == "parquet":
        from streamproc.market.parquet import parquet_rows  # noqa: PLC0415 - pyarrow is optional

        yield from parquet_rows(path, source.check_header)
        return
    with open(path, "rb") as stream:
        yield from _text_rows(stream, form, source)


def _stdin_rows(source: Source) -> Rows:
    stream = sys.stdin.buffer
    yield from _text_rows(stream if hasattr(stream, "peek") else io.BufferedReader(stream), "", source)  # type: ignore[type-var]


def _text_rows(stream: BinaryIO, form: str, source: Source) -> Rows:
    with ExitStack() as stack:
        if _peek(stream).startswith(GZIP_MAGIC):
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))  # type: ignore[assignment]
        form = form or _sniffed(_peek(stream))
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        stack.callback(text.detach)  # whoever opened the stream closes it
        yield from (_csv_rows(text, source) if form == "csv" else _json_rows(text))


def _peek(stream: BinaryIO) -> bytes:
    head: bytes = stream.peek(PEEK_BYTES)  # type: ignore[attr-defined]
    return head


def _sniffed(head: bytes) -> str:
    if head.startswith(PARQUET_MAGIC):
        raise Usage("standard input: Parquet cannot be read from a pipe, give the file's name")
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"


def _csv_rows(text: TextIO, source: Source) -> Rows:
    first = text.readline()
    reader = csv.reader([first], delimiter=max(DELIMITERS, key=first.count))
    header = tuple(name.strip() for name in next(reader, []))
    if not any(header):
        raise Usage(f"{source.name}:1: empty, the first line names the columns, such as ts,symbol,price,size,side")
    source.check_header(header)
    reader = csv.reader(text, delimiter=max(DELIMITERS, key=first.count))
    while True:
        try:
            for cells in reader:
                if len(cells) == len(header):
                    yield reader.line_num + 1, dict(zip(header, cells, strict=True))
                elif cells:
                    yield reader.line_num + 1, BadRecord(f"{len(cells)} columns, the header has {len(header)}")
        except csv.Error as problem:
            yield reader.line_num + 1, BadRecord(f"not CSV: {problem}")
        else:
            return


def _json_rows(text: TextIO) -> Rows:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, _json_row(line)


def _json_row(line: str) -> Row:
    try:
        row = json.loads(line, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as problem:
        return BadRecord(f"not JSON: {problem}")
    if type(row) is not dict:
        return BadRecord(f"a record is a JSON object on a line of its own, not {type(row).__name__}")
    return row
