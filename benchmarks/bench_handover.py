"""How long does a partition give no answers when it goes from one worker to another, with a snapshot left behind?

A real Kafka, the built-in model, two workers in processes of their own. Eight sessions in each of four partitions get a
record twice a second, and every record one answer. A second worker comes and goes, again and again.

    moved_gap_s_p99     longest time between two answers of a partition around each time that it moved
    stayed_gap_s_max    the same of partitions that stayed where they were

Workers without a slot: one with a slot is a static member, whose partitions wait for it until the session timeout.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common import fresh_topics, kafka, last_line, show

from streamproc.config import Topics
from streamproc.kafka.producing import AckedProducer
from streamproc.kafka.tailing import Tail
from streamproc.messages import Query, decode_answer
from streamproc.records import Trade, encode_record

PARTITIONS, SESSIONS = 4, 8
PAUSE_S = 0.5 / SESSIONS        # between records of one partition
AT_REST_S = 12.0                # before the first move, and between two
START_S = 40.0


class Feed(threading.Thread):
    """Records at a steady pace until it is stopped."""

    def __init__(self, producer: AckedProducer, topics: Topics) -> None:
        super().__init__(daemon=True)
        self.producer, self.topics = producer, topics
        self.stopped = threading.Event()

    def run(self) -> None:
        number, due = 0, time.monotonic()
        while not self.stopped.is_set():
            for partition in range(PARTITIONS):
                sym = f"P{partition}S{number % SESSIONS}USDT"
                record = Trade(sym, number, f"{39_000 + number % 977}.5", "0.5", "buy")
                self.producer.send(self.topics.records, sym.encode(), encode_record(record), partition)
            number, due = number + 1, due + PAUSE_S
            time.sleep(max(0.0, due - time.monotonic()))


class Answers(threading.Thread):
    """Notes when an answer of each partition was there to be read."""

    def __init__(self, properties: dict[str, Any], topics: Topics) -> None:
        super().__init__(daemon=True)
        self.tail = Tail(properties, topics.answers, PARTITIONS)
        self.seen: dict[int, list[float]] = defaultdict(list)
        self.stopped = threading.Event()

    def run(self) -> None:
        self.tail.start(self.tail.ends())
        while not self.stopped.is_set():
            for message in self.tail.poll(0.05):
                answer = decode_answer(message.value or b"")
                if answer.as_of:
                    self.seen[answer.as_of.partition].append(time.monotonic())

    def longest_gap(self, partition: int, start: float, end: float) -> float:
        times = [start, *(at for at in self.seen[partition] if start < at < end), end]
        return max(b - a for a, b in itertools.pairwise(times))


def worker(address: str, topics: Topics, name: str, folder: Path) -> subprocess.Popen[str]:
    settings = {"worker.group": topics.records, "worker.commit_interval_ms": 50,
                "snapshots.url": folder / "snapshots", "snapshots.interval_s": 5, "engine.threads": 1,
                **{f"topics.{name}": getattr(topics, name) for name in topics.__slots__}}  # fmt: skip
    flags = [part for key, value in settings.items() for part in ("-X", f"{key}={value}")]
    command = [sys.executable, "-P", "-m", "streamproc", "run", "-b", address, *flags]
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    return subprocess.Popen(command, stderr=log.open("w"), stdout=subprocess.DEVNULL, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=10, help="times that the second worker comes or goes")
    given = parser.parse_args()
    with (kafka() as (address, broker), fresh_topics(address, PARTITIONS) as topics,
          tempfile.TemporaryDirectory() as name):  # fmt: skip
        properties = {"bootstrap.servers": address}
        producer = AckedProducer(properties)
        query = Query("q", "Is {last} high?", "*", every=1, max_tokens=4)
        producer.send(topics.control, b"q", query.encode(), 0)
        assert producer.flush(30) == 0
        answers, feed = Answers(properties, topics), Feed(producer, topics)
        answers.start()
        first, second = worker(address, topics, "a", Path(name)), None
        feed.start()
        time.sleep(START_S)
        rows = []
        try:
            for _ in range(given.moves):
                started = time.monotonic()
                if second is None:
                    second = worker(address, topics, "b", Path(name))
                else:
                    second.terminate()
                    second.wait(30)
                    second = None
                time.sleep(AT_REST_S)
                ended = time.monotonic()
                gaps = sorted(answers.longest_gap(partition, started, ended) for partition in range(PARTITIONS))
                move = {"move": "goes" if second is None else "comes"}
                rows.append({**move, **{f"gap {i}": gap for i, gap in enumerate(gaps)}})
        finally:
            feed.stopped.set()
            answers.stopped.set()
            for process in (first, second):
                if process:
                    process.terminate()
                    process.wait(30)
        answers.join(5)
    show(rows)
    moved = sorted(row[f"gap {i}"] for row in rows for i in (2, 3))     # range assignment: two of four move
    stayed = [row[f"gap {i}"] for row in rows for i in (0, 1)]
    last_line({"moved_gap_s_p50": statistics.median(moved), "moved_gap_s_p99": moved[-1 - len(moved) // 100],
               "stayed_gap_s_max": max(stayed), "moves": len(rows), "partitions": PARTITIONS, "sessions": SESSIONS,
               "broker": broker})  # fmt: skip


if __name__ == "__main__":
    main()
