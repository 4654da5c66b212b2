"""How long does a partition give no answers when it goes from one worker to another, with a snapshot left behind?

A real Kafka, the built-in model, two workers in processes of their own. Eight sessions in each of four partitions get a
record twice a second, and every record one answer. A second worker comes and goes, again and again.

    moved_gap_s_p99     longest time between two answers of a partition around each time that it moved
    stayed_gap_s_max    the same of partitions that stayed where they were

Who has a partition is read from its answers: each names its worker. Every move is waited for.

Workers without a slot: one with a slot is a static member, whose partitions wait for it until the session timeout.
"""

import argparse
import itertools
import json
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
RATE = 16.0                     # records a second of each partition; no more than one worker can keep up with alone
AT_REST_S = 8.0                 # after a move, and before the first: snapshots are written
MOST_S = 90.0                   # for a worker to load its model and get its share, or to leave


class Feed(threading.Thread):
    """Records at a steady pace until it is stopped."""

    def __init__(self, producer: AckedProducer, topics: Topics, rate: float) -> None:
        super().__init__(daemon=True)
        self.producer, self.topics, self.pause_s = producer, topics, 1 / rate
        self.stopped = threading.Event()

    def run(self) -> None:
        number, due = 0, time.monotonic()
        while not self.stopped.is_set():
            for partition in range(PARTITIONS):
                sym = f"P{partition}S{number % SESSIONS}USDT"
                record = Trade(sym, number, f"{39_000 + number % 977}.5", "0.5", "buy")
                self.producer.send(self.topics.records, sym.encode(), encode_record(record), partition)
            number, due = number + 1, due + self.pause_s
            time.sleep(max(0.0, due - time.monotonic()))


class Answers(threading.Thread):
    """Notes when an answer of each partition was there to be read, and which worker gave it."""

    def __init__(self, properties: dict[str, Any], topics: Topics) -> None:
        super().__init__(daemon=True)
        self.tail = Tail(properties, topics.answers, PARTITIONS)
        self.seen: dict[int, list[tuple[float, str]]] = defaultdict(list)
        self.stopped = threading.Event()

    def run(self) -> None:
        self.tail.start(self.tail.ends())
        while not self.stopped.is_set():
            for message in self.tail.poll(0.02):
                answer = decode_answer(message.value or b"")
                if answer.as_of:
                    name = json.loads(message.headers["timings"])["worker"]
                    self.seen[answer.as_of.partition].append((time.monotonic(), name))

    def owners(self) -> dict[int, str]:
        """By partition, as its newest answer says."""
        return {partition: seen[-1][1] for partition, seen in list(self.seen.items()) if seen}

    def wait_for_owners(self, count: int) -> dict[int, str]:
        """Until so many workers have all partitions, and it has been so for a while."""
        deadline = time.monotonic() + MOST_S
        while time.monotonic() < deadline:
            owners = self.owners()
            if len(owners) == PARTITIONS and len(set(owners.values())) == count:
                time.sleep(AT_REST_S)
                if self.owners() == owners:
                    return owners
            time.sleep(0.2)
        raise SystemExit(f"{count} workers do not share the partitions within {MOST_S:.0f} s: {self.owners()}")

    def longest_gap(self, partition: int, start: float, end: float) -> float:
        times = [start, *(at for at, _ in self.seen[partition] if start < at < end), end]
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
    parser.add_argument("--rate", type=float, default=RATE, help="records a second of each partition")
    given = parser.parse_args()
    with (kafka() as (address, broker), fresh_topics(address, PARTITIONS) as topics,
          tempfile.TemporaryDirectory() as name):  # fmt: skip
        properties = {"bootstrap.servers": address}
        producer = AckedProducer(properties)
        query = Query("q", "Is {last} high?", "*", every=1, max_tokens=4)
        producer.send(topics.control, b"q", query.encode(), 0)
        assert producer.flush(30) == 0
        answers, feed = Answers(properties, topics), Feed(producer, topics, given.rate)
        answers.start()
        first, second = worker(address, topics, "a", Path(name)), None
        feed.start()
        moved: list[float] = []
        stayed: list[float] = []
        rows = []
        try:
            owners = answers.wait_for_owners(1)
            for _ in range(given.moves):
                started = time.monotonic()
                if second is None:
                    second = worker(address, topics, "b", Path(name))
                else:
                    second.terminate()
                    second.wait(30)
                    second = None
                before, owners = owners, answers.wait_for_owners(1 if second is None else 2)
                ended = time.monotonic()
                gaps = {part: answers.longest_gap(part, started, ended) for part in range(PARTITIONS)}
                ours = [gap for part, gap in gaps.items() if owners[part] != before[part]]
                others = [gap for part, gap in gaps.items() if owners[part] == before[part]]
                moved += ours
                stayed += others
                rows.append({"second worker": "goes" if second is None else "comes", "moved": len(ours),
                             "longest gap": max(ours, default=0.0), "of others": max(others, default=0.0)})  # fmt: skip
        finally:
            feed.stopped.set()
            answers.stopped.set()
            for process in (first, second):
                if process:
                    process.terminate()
                    process.wait(30)
        answers.join(5)
    show(rows)
    moved.sort()
    last_line({"moved_gap_s_p50": statistics.median(moved), "moved_gap_s_p99": moved[-1 - len(moved) // 100],
               "stayed_gap_s_max": max(stayed), "moved": len(moved), "partitions": PARTITIONS, "sessions": SESSIONS,
               "broker": broker})  # fmt: skip


if __name__ == "__main__":
    main()
