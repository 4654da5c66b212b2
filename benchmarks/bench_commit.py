"""What does it cost to commit more often, and what does it spare: by time, by bytes of records, by answers?

The loop of bench_kafka.py on a real broker, with one setting of the pace at a time and the others out of the way. Shown
for each: epochs, records a second, the time that one epoch takes in Kafka, the share of the run that all of them take,
and the most records between two epochs, which is what a crash has to do again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from bench_kafka import NUM_PARTITIONS, NoModel, NoRunner, OneToken, fill, make_config
from common import fresh_topics, kafka, last_line, show

from streamproc.config import Config
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink
from streamproc.kafka.producing import AckedProducer
from streamproc.kafka.properties import client_properties
from streamproc.kafka.source import Source
from streamproc.messages import Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.state.epoch import Epoch

NEVER = {"commit_interval_ms": 60_000, "commit_bytes": 2**40, "commit_answers": 10**9}
PACES: list[dict[str, int]] = [
    *({"commit_interval_ms": ms} for ms in (10, 100, 1_000)),
    *({"commit_bytes": num} for num in (64 * 2**10, 2**20, 16 * 2**20)),
    *({"commit_answers": num} for num in (10, 100, 1_000)),
]
EVERY = 100  # records of a session that trigger one answer


class Timed(EpochSink):
    """Notes how long each epoch takes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seconds: list[float] = []

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        started = time.perf_counter()
        super().commit(epoch, membership, timeout_s)
        self.seconds.append(time.perf_counter() - started)


def run(config: Config, count: int) -> dict[str, Any]:
    """One worker from the first record to the end of the log; what is left then is committed at once."""
    properties, warn = client_properties(config), print
    control, sink = ControlTopic(config), Timed(properties, f"{config.worker.group}-bench", warn)
    processor = StreamProcessor(config, NoModel(NoRunner(), OneToken()), sink, control, Clock())
    processor.connect(Source(config, processor, warn))
    while not processor.partitions:
        processor.step()
    started, taken, most, epochs = time.perf_counter(), 0, 0, 0
    while processor.counters.records < count:
        processor.step()
        most = max(most, processor.counters.records - taken)
        if processor.counters.epochs > epochs:
            taken, epochs = processor.counters.records, processor.counters.epochs
    processor.commit()
    seconds = time.perf_counter() - started
    processor.close()
    control.close()
    return {
        "epochs": len(sink.seconds),
        "records_per_s": count / seconds,
        "epoch_ms_p50": statistics.median(sink.seconds) * 1e3,
        "share_in_commits": sum(sink.seconds) / seconds,
        "most_records_at_stake": most,
    }


def register(config: Config) -> None:
    """One standing question, so that there are answers to count."""
    producer = AckedProducer(client_properties(config))
    query = Query("q", "how is {last}?", every=EVERY, max_tokens=1)
    producer.send_and_wait(config.topics.control, query.id.encode(), query.encode())


def with_pace(make: Callable[[], Config], pace: dict[str, int]) -> Config:
    config = make()
    return replace(config, worker=replace(config.worker, **{**NEVER, **pace}))


def main() -> None:
    collect_rarely()  # as every worker does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="records in the log")
    given = parser.parse_args()
    with kafka() as (address, broker), fresh_topics(address, NUM_PARTITIONS) as topics:
        fill(make_config(address, topics), given.records)
        register(make_config(address, topics))
        rows = []
        for pace in PACES:
            ((name, value),) = pace.items()
            config = with_pace(lambda: make_config(address, topics), pace)
            rows.append({"pace": f"{name} = {value}", **run(config, given.records)})
        show(rows)
        last_line({"records": given.records, "broker": broker, "paces": rows})


if __name__ == "__main__":
    main()
