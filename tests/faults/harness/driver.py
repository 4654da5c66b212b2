"""Sends records, asks and questions, and writes down what was acknowledged.

Records are unique and seeded: every one has a number of its own, and a sequence that steps by one for its key. It
sends at a steady pace until it is told to stop, whatever becomes of the broker meanwhile.
"""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from harness.history import History, text_of
from streamproc.config import Topics
from streamproc.kafka.lifeline import Lifeline
from streamproc.messages import Ask
from streamproc.records import Quote, Record, Trade, encode_record

PACE_S = 0.02
FLUSH_S = 120.0
PRODUCER = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.timeout.ms": 300_000,
    "socket.timeout.ms": 5_000,
    "reconnect.backoff.max.ms": 500,
    "error_cb": lambda error: None,
    "log_level": 0,
}
POISON = (b"{not json", b"[1, 2]", b"\xff\xfe", b'{"kind": "trade", "sym": "S0"}', b"")


@dataclass(frozen=True)
class Load:
    """What is sent."""

    sessions: Sequence[str]
    records_per_s: float = 400.0
    poison_share: float = 0.0
    asks_per_s: float = 0.0


class Driver:
    """Sends in a thread of its own, from `start` to `stop`."""

    def __init__(
        self, address: str, topics: Topics, load: Load, history: History, rng: random.Random, first: int = 0
    ) -> None:
        """first: what its numbers begin at, where another driver has sent before."""
        self._topics, self.load, self._history, self._rng = topics, load, history, rng
        self._first = first
        self._properties = {**PRODUCER, "bootstrap.servers": address}
        self._producer, self._lifeline = Producer(self._properties), Lifeline(self._properties)
        self._roles = {topics.records: "records", topics.asks: "asks", topics.control: "control"}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._problem: BaseException | None = None
        self.num_records = self.num_asks = first
        self.num_acked = self.num_failed = 0
        self.num_given_up = 0  # with a producer that Kafka's client library had left without brokers
        self.sequences = dict.fromkeys(load.sessions, 0)
        self.newest: dict[str, tuple[int, int]] = {}  # partition and offset of a session's newest acknowledged record
        self.ends: dict[int, int] = {}  # of the records topic, as far as acknowledged

    def start(self) -> "Driver":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send nothing more; returns once everything sent is acknowledged, but for what was given up."""
        self._stopped.set()
        self._thread.join(30)
        deadline = time.monotonic() + FLUSH_S
        while (left := self._producer.flush(1)) and time.monotonic() < deadline:
            self._listen()
        if self._problem is not None:
            raise self._problem
        bad = left + self.num_failed
        assert not bad, f"{left} messages without and {self.num_failed} with a bad report"

    def _run(self) -> None:
        try:
            started = time.monotonic()
            while not self._stopped.wait(PACE_S):
                elapsed = time.monotonic() - started
                while self.num_records - self._first < elapsed * self.load.records_per_s:
                    self._send_next()
                while self.num_asks - self._first < elapsed * self.load.asks_per_s:
                    self._ask_next()
                self._producer.poll(0)
                self._listen()
        except BaseException as problem:
            self._problem = problem

    def _send_next(self) -> None:
        self.num_records += 1
        sym = self._rng.choice(self.load.sessions)
        if self._rng.random() < self.load.poison_share:
            self.send(self._topics.records, sym.encode(), self._rng.choice(POISON))
            return
        self.sequences[sym] += 1
        self.send(self._topics.records, sym.encode(), encode_record(self._record(sym)))

    def _record(self, sym: str) -> Record:
        number, rng = self.num_records, self._rng
        if rng.random() < 0.2:
            return Quote(sym, number, f"{rng.randrange(90, 100)}.5", f"{rng.randrange(100, 110)}.25")
        sequence = self.sequences[sym]
        px, sz = f"{rng.randrange(90, 110)}.{rng.randrange(10)}", str(rng.randrange(1, 9))
        return Trade(sym, number, px, sz, id=str(number), seq=sequence)

    def _ask_next(self) -> None:
        self.num_asks += 1
        known = sorted(self.newest)
        if known:
            session = self._rng.choice(known)
            partition, offset = self.newest[session]
            ask = Ask(f"ask-{self.num_asks}", session, "how is {last} {count}?", min_offset=offset, max_tokens=4)
            self.send(self._topics.asks, session.encode(), ask.encode(), partition)

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int = -1) -> None:
        """Queue a message; its acknowledgement goes into the history."""
        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _listen(self) -> None:
        """A producer that has lost its brokers for good: what it holds may be in the log or not."""
        if not len(self._producer):
            self._lifeline.start_over()
        elif self._lifeline.is_cut(self._producer, self._topics.records):
            self._history.add("note", text=f"driver: a new producer, {len(self._producer)} messages are given up")
            before = self.num_failed
            self._producer.purge()
            self._producer.flush(1)
            self.num_failed, self.num_given_up = before, self.num_given_up + self.num_failed - before
            self._producer = Producer(self._properties)
            self._lifeline.start_over()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        role = self._roles[str(message.topic())]
        key, value = text_of(message.key()), text_of(message.value())  # type: ignore[arg-type]
        if error is not None:
            self.num_failed += 1
            self._history.add("send-failed", topic=role, key=key, value=value, error=error.name())
            return
        self._lifeline.start_over()
        self.num_acked += 1
        place: dict[str, Any] = {"partition": message.partition(), "offset": message.offset()}
        self._history.add("send", topic=role, **place, key=key, value=value)
        if role == "records":
            self.ends[place["partition"]] = place["offset"] + 1
            if value and '"seq"' in value:
                self.newest[str(key)] = (place["partition"], place["offset"])

    def flush(self) -> None:
        assert not self._producer.flush(60), "messages without a report"
