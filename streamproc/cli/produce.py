"""`streamproc produce`: market data from a file into the records topic, as fast as wanted, every record accounted for.

Exits 0 when every record was acknowledged, 1 when any was not or a bad row stopped it half way, 130 on Ctrl-C after
what had been sent was flushed.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options
from streamproc.errors import BadRecord, StreamprocError, Usage
from streamproc.records import KINDS, Record, encode_record
from streamproc.values import parse_count, printable

if TYPE_CHECKING:
    from streamproc.kafka.producing import AckedProducer

SAMPLE = "sample"
FAILED, INTERRUPTED = 1, 130
FLUSH_S = 0.2
EARLY_S = 0.001  # a record may leave this much before its time
LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.1

Timed = Iterable[tuple[float, Record]]  # seconds since the start of the play


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read, and how fast to send it."""

    file: str
    kind: str | None
    symbol: str | None
    rate: float | None
    speed: float | None
    count: int | None

    def records(self, on_bad: Callable[[BadRecord], None] | None) -> Timed:
        """Every record with its time. Raises Usage for a file that cannot be read."""
        from streamproc.market.files import read_records
        from streamproc.market.sample import sample_timeline

        if self.file == SAMPLE:
            if self.kind or self.symbol:
                raise Usage("sample: has its own kinds and symbols, leave --kind and --symbol out")
            played: Iterable[tuple[int, Record]] = sample_timeline()
        else:
            played = since_first(read_records(self.file, self.kind, self.symbol, on_bad))
        return itertools.islice(paced(played, self.rate, self.speed), self.count)


@dataclass(slots=True)
class Skipped:
    """Bad rows that were left out, each said on stderr."""

    note: Callable[[str], None]
    num: int = 0

    def __call__(self, problem: BadRecord) -> None:
        self.num += 1
        self.note(f"skipped: {printable(str(problem))}")


@dataclass(slots=True)
class Progress:
    """How far it is: drawn in place on a terminal, else a line every 10 s."""

    note: Callable[[str], None]
    draw: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.monotonic
    start_s: float = field(init=False)
    next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_s = self.clock()
        self.next_s = self.start_s + (DRAW_EVERY_S if self.draw else LINE_EVERY_S)

    def tick(self, producer: "AckedProducer") -> None:
        """Say how far it is, if it is time to."""
        now_s = self.clock()
        if now_s < self.next_s:
            return
        self.next_s = now_s + (DRAW_EVERY_S if self.draw else LINE_EVERY_S)
        rate = producer.num_sent / max(now_s - self.start_s, 1e-9)
        text = f"{producer.num_sent:,} sent, {producer.num_acked:,} acknowledged, {rate:,.0f} records/s"
        (self.draw or self.note)(text)


@click.command()
@click.argument("file", metavar="FILE|-|sample")
@click.option("--kind", type=click.Choice(KINDS), help="What each row is.  [default: from its columns]")
@click.option("--symbol", metavar="S", help="Symbol of every record.  [default: from its column]")
@click.option("--rate", metavar="N/s", help="Records a second.  [default: flat out]")
@click.option("--speed", metavar="10x", help="As recorded, so many times faster.")
@click.option("-t", "--topic", metavar="NAME", help="Topic to send to.  [default: topics.records]")
@click.option("-n", "--count", metavar="N", type=click.IntRange(min=1), help="Stop after N records.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out, and say which.")
@shared_options
def produce(call: Call, topic: str | None, skip_bad: bool, rate: str | None, speed: str | None, **reading: Any) -> None:
    """Send trades, quotes or bars from a CSV, JSON lines or Parquet file; `sample` is the recorded data that ships.

    \b
    streamproc produce sample --rate 200/s
    streamproc produce trades.csv.gz --symbol BTCUSDT
    streamproc produce quotes.parquet --speed 10x
    tail -f feed.jsonl | streamproc produce -
    """
    plan = Plan(rate=parse_rate(rate), speed=parse_speed(speed), **reading)
    if plan.rate and plan.speed:
        raise Usage("--rate and --speed: choose one")
    topic = topic or call.config.topics.records
    skipped = Skipped(call.note)
    records = plan.records(skipped if skip_bad else None)
    producer = open_producer(call, topic)
    start_s = time.monotonic()
    problem = send_with_progress(call, producer, topic, records)
    if isinstance(problem, StreamprocError) and producer.num_sent == 0:
        raise problem
    show(call, producer, topic, {"skipped": skipped.num, "seconds": round(time.monotonic() - start_s, 3)}, problem)


def open_producer(call: Call, topic: str) -> "AckedProducer":
    """A producer for a topic that exists. Raises Unavailable where it does not."""
    from streamproc.kafka.failures import missing_topic
    from streamproc.kafka.producing import AckedProducer
    from streamproc.kafka.properties import client_properties

    producer = AckedProducer(client_properties(call.config))
    if topic not in producer.topics():
        raise missing_topic(topic)
    return producer


def send_with_progress(
    call: Call, producer: "AckedProducer", topic: str, records: Timed
) -> StreamprocError | KeyboardInterrupt | None:
    """Send everything and wait for the acknowledgements -> what stopped it before the end, if anything did."""
    if not sys.stderr.isatty():
        return send(producer, topic, records, Progress(call.note))
    from rich.console import Console

    with Console(stderr=True).status("sending") as status:
        return send(producer, topic, records, Progress(call.note, status.update))


def send(
    producer: "AckedProducer", topic: str, records: Timed, progress: Progress
) -> StreamprocError | KeyboardInterrupt | None:
    """Send each record at its time, then flush. A second Ctrl-C gives up what is not yet acknowledged."""
    stopped: StreamprocError | KeyboardInterrupt | None = None
    try:
        for due_s, record in records:
            while (left_s := progress.start_s + due_s - progress.clock()) > EARLY_S:
                producer.poll(min(left_s, DRAW_EVERY_S))
                progress.tick(producer)
            producer.send(topic, record.sym.encode(), encode_record(record))
            progress.tick(producer)
    except (StreamprocError, KeyboardInterrupt) as problem:
        stopped = problem
    try:
        while producer.flush(FLUSH_S):
            progress.tick(producer)
    except KeyboardInterrupt as problem:
        producer.purge()
        stopped = problem
    return stopped


def show(
    call: Call,
    producer: "AckedProducer",
    topic: str,
    facts: dict[str, Any],
    stopped: StreamprocError | KeyboardInterrupt | None,
) -> None:
    """The account of a run, and its exit code."""
    seconds, num_failed = facts["seconds"], producer.num_failed
    rate = round(producer.num_acked / max(seconds, 0.001))
    offsets = {str(partition): offset for (_, partition), offset in sorted(producer.last_offsets.items())}
    doc = {"topic": topic, "sent": producer.num_sent, "acknowledged": producer.num_acked, "failed": num_failed}
    doc |= {**facts, "records_per_s": rate, "last_offsets": offsets}
    if isinstance(stopped, StreamprocError):
        doc |= {"error": stopped.code, "message": printable(str(stopped))}
        call.note(f"streamproc: {doc['message']}")
    elif producer.first_error:
        doc |= {"error": producer.first_error.name(), "message": producer.first_error.str()}
        call.note(f"streamproc: topic {topic}: {producer.first_error.name()}: {producer.first_error.str()}")
    if isinstance(stopped, KeyboardInterrupt):
        doc |= {"interrupted": True}
        call.note("interrupted; what had been sent was flushed")
    text = f"{producer.num_acked:,} acknowledged, {num_failed:,} failed, {facts['skipped']:,} skipped"
    last = ",".join(f"{partition}:{offset}" for partition, offset in offsets.items()) or "-"
    call.emit(doc, f"{text} in {seconds:.2f} s ({rate:,} records/s); last offsets {last}")
    if isinstance(stopped, KeyboardInterrupt):
        raise Exit(INTERRUPTED)
    if stopped or num_failed:
        raise Exit(FAILED)


def since_first(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    """Every record with its nanoseconds since the first."""
    start_ns: int | None = None
    for record in records:
        start_ns = record.ts_event_ns if start_ns is None else start_ns
        yield record.ts_event_ns - start_ns, record


def paced(played: Iterable[tuple[int, Record]], rate: float | None, speed: float | None) -> Timed:
    """Every record with the second it is due: evenly at a rate, as recorded at a speed, else at once."""
    for number, (since_ns, record) in enumerate(played):
        yield number / rate if rate else since_ns / 1e9 / speed if speed else 0.0, record


def parse_rate(text: str | None) -> float | None:
    """Records a second: 100, 100/s, 2.5k/s. Raises Usage."""
    return None if text is None else _positive(text.removesuffix("/s"), f"--rate {text!r}: use N/s such as 100/s")


def parse_speed(text: str | None) -> float | None:
    """How many times faster than recorded: 10x, 0.5x, 10. Raises Usage."""
    return None if text is None else _positive(text.removesuffix("x"), f"--speed {text!r}: use a factor such as 10x")


def _positive(text: str, wrong: str) -> float:
    try:
        number = parse_count(text) if text[-1:].isalpha() else float(text)
    except ValueError:
        raise Usage(wrong) from None
    if not (0 < number < math.inf):
        raise Usage(wrong)
    return number
