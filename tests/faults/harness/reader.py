"""Who reads the answers all the time, through every fault: committed messages only, and never from the start again.

Beside it a sampler compares what has been seen with what the group has committed: an answer that is visible before the
offsets that it was computed from are committed has been torn from them.
"""

import threading
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from harness.history import History, text_of
from streamproc.kafka.lifeline import Lifeline

SAMPLE_S = 0.5
CONSUMER = {
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "enable.partition.eof": False,
    "fetch.wait.max.ms": 50,
    "socket.timeout.ms": 5_000,
    "reconnect.backoff.max.ms": 500,
    "topic.metadata.refresh.interval.ms": 5_000,    # a broker that has just started may not know its topics yet
    "error_cb": lambda error: None,
    "log_level": 0,
}


class Reader:
    """Reads one topic in a thread of its own, from `start` to `stop`."""

    def __init__(self, address: str, topic: str, num_partitions: int, history: History) -> None:
        self._properties = {**CONSUMER, "bootstrap.servers": address, "group.id": f"{topic}-reader"}
        self._consumer, self._lifeline = Consumer(self._properties), Lifeline(self._properties)
        self._topic, self._history = topic, history
        self._consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(num_partitions)])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._problem: BaseException | None = None
        self.positions = dict.fromkeys(range(num_partitions), 0)
        self.newest: dict[int, int] = {}  # newest as-of offset of triggered answers, by partition of the records
        self.num_seen = 0

    def start(self) -> "Reader":
        self._thread.start()
        return self

    def stop(self) -> None:
        """May be called again."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join(30)
            self._consumer.close()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                messages = self._consumer.consume(500, 0.1)
                for message in messages:
                    self._take(message)
                self._listen(bool(messages))
        except BaseException as problem:
            self._problem = problem

    def _listen(self, is_heard: bool) -> None:
        """A consumer that has lost its brokers for good is made anew, and goes on where it was."""
        if is_heard:
            self._lifeline.start_over()
        elif self._lifeline.is_cut(self._consumer, self._topic):
            self._history.add("note", text=f"reader: a new consumer, at {self.positions}")
            self._consumer.close()
            self._consumer = Consumer(self._properties)
            self._consumer.assign([TopicPartition(self._topic, n, at) for n, at in self.positions.items()])
            self._lifeline.start_over()

    def _take(self, message: Any) -> None:
        if (error := message.error()) is not None:
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._history.add("note", text=f"reader: {error.str()}")
            return
        partition, offset = message.partition(), message.offset()
        value = text_of(message.value())
        self._history.add("seen", partition=partition, offset=offset, key=text_of(message.key()), value=value)
        self.positions[partition] = offset + 1
        self.num_seen += 1
        doc = orjson.loads(message.value())
        if doc["kind"] == "flash":
            as_of = doc["as_of"]
            self.newest[as_of["partition"]] = max(self.newest.get(as_of["partition"], -1), as_of["offset"])


class Sampler:
    """Fetches the group's committed offsets, after it has looked at what the reader has seen."""

    def __init__(self, address: str, group: str, topic: str, reader: Reader, history: History) -> None:
        self._properties = {**CONSUMER, "bootstrap.servers": address, "group.id": group}
        self._consumer, self._lifeline = Consumer(self._properties), Lifeline(self._properties)
        self._topic, self._reader, self._history = topic, reader, history
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> "Sampler":
        self._thread.start()
        return self

    def stop(self) -> None:
        """May be called again."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join(30)
            self._consumer.close()

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            if seen := dict(self._reader.newest):
                self._sample(seen)

    def _sample(self, seen: dict[int, int]) -> None:
        wanted = [TopicPartition(self._topic, number) for number in sorted(seen)]
        try:
            found = self._consumer.committed(wanted, 3.0)
        except KafkaException:
            if self._lifeline.is_cut(self._consumer, self._topic):
                self._consumer.close()
                self._consumer = Consumer(self._properties)
                self._lifeline.start_over()
            return  # nothing can be asked while the broker is away
        self._lifeline.start_over()
        committed = {tp.partition: tp.offset for tp in found if tp.error is None}
        self._history.add("sample", seen=seen, committed=committed)
