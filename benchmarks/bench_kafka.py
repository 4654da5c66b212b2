"""How fast is the Kafka side alone: consume, decode, sessions, hops, one transaction an epoch?

The real loop on a real broker, with nothing to compute: a renderer that gives every record one token, and a runner
that does nothing. Measured from the first poll until the offset after the last record is committed.
"""

import argparse
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common import fresh_topics, kafka, last_line, show

from streamproc.config import Config, Engine, Topics, Worker
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink
from streamproc.kafka.producing import AckedProducer
from streamproc.kafka.properties import client_properties
from streamproc.kafka.source import Source
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Record, Trade, encode_record
from streamproc.schedule.plan import Plan

NUM_PARTITIONS, NUM_SYMBOLS = 4, 64
BLOCK, NUM_BLOCKS = 16, 65_536
FIRST_NS = 1_610_064_000_278_000_000


class NoRunner:
    """Computes nothing, at once."""

    num_blocks, block_size, block_bytes = NUM_BLOCKS, BLOCK, 1
    seconds = queued_at = ended_at = 0.0
    saved: dict[bytes, Any] = {}  # noqa: RUF012 - nothing ever is

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def launch(self, plan: Plan) -> "NoRunner":
        self.plan = plan
        return self

    def is_done(self, timeout_s: float) -> bool:
        return True

    def wait(self) -> dict[int, tuple[int, ...]]:
        chunks = self.plan.chunks if self.plan else ()
        return {chunk.seq_id: (7,) for chunk in chunks if chunk.num_samples}


class OneToken:
    """Renders every record to the same token."""

    prefix_ids: tuple[int, ...] = (1,)
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()
    looks_back = False

    def record_ids(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        return [(7,)] * len(records)

    def tail_ids(self, question: str) -> tuple[int, ...]:
        return (8,)

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        return (9,)

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@dataclass(frozen=True)
class NoModel:
    """The engine of a worker that has only Kafka to talk to."""

    runner: NoRunner
    renderer: OneToken
    fingerprint: str = "none"

    def why_not(self, grammar: str) -> str | None:
        return None


def trades(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of `count` trades, about 155 bytes each."""
    for i in range(count):
        sym = f"SYM{i % NUM_SYMBOLS:02}USDT"
        trade = Trade(sym, FIRST_NS + i * 1_000_000, f"{39_000 + i % 977}.{i % 100:02}", f"0.{i % 999_983:06}",
                      ("buy", "sell")[i % 2], "binance", str(553_287_559 + i))  # fmt: skip
        yield sym.encode(), encode_record(trade)


def fill(config: Config, count: int) -> None:
    """Write the records; symbol after symbol, so that all partitions hold about as many."""
    producer = AckedProducer({**client_properties(config), "linger.ms": 20})
    for i, (key, value) in enumerate(trades(count)):
        producer.send(config.topics.records, key, value, i % NUM_SYMBOLS % NUM_PARTITIONS)
    assert producer.flush(60) == 0
    assert producer.num_acked == count


def make_config(address: str, topics: Topics) -> Config:
    """Settings as they come, in a group of its own."""
    engine = Engine(block_size=BLOCK, step_tokens=1_048_576, context_tokens=1_024)
    worker = Worker(group=f"bench-{uuid.uuid4().hex[:8]}", slot="bench", backlog_tokens=2**30)
    return Config(topics, engine, worker=worker, kafka={"bootstrap.servers": address})


def consume(config: Config, count: int) -> dict[str, Any]:
    """One worker from the first poll to the committed end of the log."""
    properties = client_properties(config)
    control = ControlTopic(config)
    sink = EpochSink(properties, f"{config.worker.group}-bench", print)
    processor = StreamProcessor(config, NoModel(NoRunner(), OneToken()), sink, control, Clock())
    processor.connect(Source(config, processor, print))
    while not processor.partitions:
        processor.step()
    started, first = time.perf_counter(), processor.counters.records
    while sum(partition.committed[0] for partition in processor.partitions.values()) < count:
        processor.step()
    seconds = time.perf_counter() - started
    counters = processor.counters
    processor.close()
    control.close()
    assert counters.records == count
    assert counters.aborted_epochs == 0
    done = count - first
    return {"records": done, "seconds": seconds, "records_per_s": done / seconds, "epochs": counters.epochs}


def main() -> None:
    collect_rarely()    # as every worker does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500_000, help="records in the log")
    parser.add_argument("--runs", type=int, default=3, help="workers that read it one after another")
    given = parser.parse_args()
    with kafka() as (address, broker), fresh_topics(address, NUM_PARTITIONS) as topics:
        fill(make_config(address, topics), given.records)
        runs = [consume(make_config(address, topics), given.records) for _ in range(given.runs)]
    show(runs)
    middle = sorted(runs, key=lambda run: run["records_per_s"])[len(runs) // 2]
    spread = statistics.pstdev(run["records_per_s"] for run in runs)
    last_line({**middle, "spread_records_per_s": spread, "broker": broker})


if __name__ == "__main__":
    main()
