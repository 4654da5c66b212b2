"""The recorded market data that ships with the package: real trades and quotes of three symbols.

The files were recorded on different days and cover 46 seconds, 35 minutes and 7 hours. Played together, each is
stretched or squeezed onto the length of the first, so that the symbols interleave all the way; the records
themselves, their times included, are as recorded.
"""

import heapq
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from streamproc.errors import Usage
from streamproc.market.files import read_records
from streamproc.records import Record

SAMPLE = (
    "binance-btcusdt-trades-2021-01-08.csv.gz",
    "kraken-xbtusdt-trades-2025-11-10.csv.gz",
    "truefx-usdjpy-quotes-2013-01-01.csv.gz",
)


def sample_path(name: str) -> Path:
    """Where a file of the sample lies. Raises Usage for a name that is none."""
    if name not in SAMPLE:
        raise Usage(f"sample {name!r}: no such file, there are {', '.join(SAMPLE)}")
    return Path(str(files("streamproc.market") / "data" / name))


def sample_records() -> Iterator[Record]:
    """All records of the sample, the symbols interleaved; always the same sequence."""
    return (record for _, record in sample_timeline())


def sample_timeline() -> Iterator[tuple[int, Record]]:
    """All records of the sample, each with its nanoseconds since the start of the play."""
    recorded = [list(read_records(sample_path(name))) for name in SAMPLE]
    length_ns = recorded[0][-1].ts_event_ns - recorded[0][0].ts_event_ns
    plays = [_played(records, length_ns) for records in recorded]
    return heapq.merge(*plays, key=lambda timed: timed[0])


def _played(records: list[Record], length_ns: int) -> Iterator[tuple[int, Record]]:
    start_ns, own_ns = records[0].ts_event_ns, records[-1].ts_event_ns - records[0].ts_event_ns
    return ((((record.ts_event_ns - start_ns) * length_ns) // own_ns, record) for record in records)
