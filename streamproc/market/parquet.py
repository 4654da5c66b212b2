"""Parquet files -> rows of plain Python values, a batch at a time. The only place that knows pyarrow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamproc.errors import Usage
from streamproc.market.times import EpochNs

BATCH_ROWS = 8192


def parquet_rows(path: Path, check_header: Callable[[tuple[str, ...]], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row with its number, counted from 1. Raises Usage where the file is no Parquet or pyarrow is missing."""
    try:
        import pyarrow  # noqa: PLC0415 - optional, and slow to import
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise Usage(f"{path}: Parquet needs pyarrow, run: pip install 'streamproc[parquet]'") from None
    first = 1
    try:
        with parquet.ParquetFile(path) as file:
            check_header(tuple(file.schema_arrow.names))
            for batch in file.iter_batches(BATCH_ROWS):
                columns = {name: _values(batch.column(name)) for name in batch.schema.names}
                for number, cells in enumerate(zip(*columns.values(), strict=True), first):
                    yield number, dict(zip(columns, cells, strict=True))
                first += len(batch)
    except pyarrow.ArrowException as problem:
        raise Usage(f"{path}: cannot be read as Parquet after row {first - 1}: {problem}") from None


def _values(column: Any) -> list[Any]:
    """Times become exact nanoseconds; a 32-bit float its shortest text, not the 64-bit number next to it."""
    import pyarrow  # noqa: PLC0415 - here already when rows are read

    kind = column.type
    if pyarrow.types.is_timestamp(kind) or pyarrow.types.is_date(kind):
        whole = column.cast(pyarrow.timestamp("ns", tz=getattr(kind, "tz", None))).cast(pyarrow.int64())
        return [None if value is None else EpochNs(value) for value in whole.to_pylist()]
    if pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind):
        column = column.cast(pyarrow.float32()).cast(pyarrow.string())
    values: list[Any] = column.to_pylist()
    return values
