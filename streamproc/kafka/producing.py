"""Messages out, outside of transactions: idempotent, and counted only once every replica in sync has acknowledged them.

Every produce ends in exactly one delivery report, so `num_acked + num_failed` reaches `num_sent`; nothing is dropped in
between. Keys go to the partition where the Java client puts them.
"""

import time
from typing import Any, NamedTuple, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from streamproc.errors import Unavailable
from streamproc.kafka.failures import failure
from streamproc.kafka.lifeline import Lifeline
from streamproc.kafka.properties import connect
from streamproc.kafka.topics import partition_counts

DEFAULTS = {"linger.ms": 10, "compression.type": "lz4", "message.timeout.ms": 60_000}
FIXED = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
POLL_EVERY = 500  # messages: delivery reports are served in bulk
SLICE_S = 1.0
GIVEN_UP_S = 0.1  # between two looks at what was given up
ANY_PARTITION = -1


class Position(NamedTuple):
    """Where a message lies in its topic."""

    partition: int
    offset: int


class AckedProducer:
    """A producer that knows what became of every message.

    One that has lost Kafka for good (see `lifeline`) is given up: what it holds fails once message.timeout.ms is over,
    because some of it may be in the log; later messages go by a new producer.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        """`properties` are librdkafka's. Raises Usage where one is wrong."""
        self.num_sent = 0
        self.num_acked = 0
        self.num_failed = 0
        self.first_error: KafkaError | None = None
        self.last_offsets: dict[tuple[str, int], int] = {}  # (topic, partition) -> newest acknowledged offset
        self.key_partitions: dict[tuple[str, bytes | None], int] = {}  # (topic, key) -> where it went
        self._properties = {**DEFAULTS, **properties, **FIXED, "error_cb": _ignore}
        self._producer: Producer = connect(Producer, self._properties)
        self._given_up: list[Producer] = []
        self._lifeline, self._topic = Lifeline(properties), ""  # the topic of the newest message

    def topics(self) -> dict[str, int]:
        """Partitions of every topic. Once connected by this, the first send need not wait half a second for its id."""
        return partition_counts(cast(AdminClient, self._producer))  # it has the same list_topics

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int = ANY_PARTITION) -> None:
        """Queue a message; blocks only while the queue is full. What is wrong with it shows in the counts."""
        self._count(topic)
        if self.num_sent % POLL_EVERY == 0:
            self.poll(0)
        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=self._delivered)
            except BufferError:
                self.poll(0.1)
            except KafkaException as problem:
                self._failed(problem.args[0])
                return
            else:
                return

    def send_and_wait(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int = ANY_PARTITION
    ) -> Position:
        """Send one message -> its position, once it is acknowledged. Raises Unavailable or Refused."""
        reports: list[tuple[KafkaError | None, Message]] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(error, message)
            reports.append((error, message))

        self._count(topic)
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=delivered)
        except BufferError:
            raise Unavailable(f"topic {topic}: too many messages wait to be sent") from None
        except KafkaException as problem:
            self._failed(problem.args[0])
            raise failure(problem.args[0], topic) from None
        while not reports:
            self.flush(SLICE_S)
        error, message = reports[0]
        if error is not None:
            raise failure(error, topic)
        return Position(_number(message.partition()), _number(message.offset()))

    def flush(self, timeout_s: float) -> int:
        """Wait for delivery reports -> how many messages are still without one."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0)
            num_left = self._producer.flush(min(left_s, SLICE_S)) + self._num_given_up()
            if not num_left or not left_s:
                return num_left
            self._listen()
            if not len(self._producer):
                time.sleep(min(left_s, GIVEN_UP_S))

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports while waiting."""
        self._producer.poll(timeout_s)
        self._num_given_up()
        self._listen()

    def purge(self) -> None:
        """Give up what has not been sent yet; it counts as failed."""
        for producer in (self._producer, *self._given_up):
            producer.purge()
            producer.flush(SLICE_S)

    def _count(self, topic: str) -> None:
        if self.num_sent == self.num_acked + self.num_failed:
            self._lifeline.start_over()  # until now there was nothing to hear
        self._topic = topic
        self.num_sent += 1

    def _listen(self) -> None:
        """A producer that is silent while messages wait may have lost Kafka."""
        if len(self._producer) and self._lifeline.is_cut(self._producer, self._topic):
            self._given_up.append(self._producer)
            self._producer = connect(Producer, self._properties)
            self._lifeline.start_over()

    def _num_given_up(self) -> int:
        """Messages without a report that are held by producers that were given up."""
        for producer in self._given_up:
            producer.poll(0)
        self._given_up = [producer for producer in self._given_up if len(producer)]
        return sum(map(len, self._given_up))

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed(error)
            return
        self.num_acked += 1
        self._lifeline.start_over()
        topic, partition = str(message.topic()), _number(message.partition())
        self.last_offsets[topic, partition] = _number(message.offset())
        self.key_partitions[topic, message.key()] = partition

    def _failed(self, error: KafkaError) -> None:
        self.num_failed += 1
        self.first_error = self.first_error or error


def _ignore(_: KafkaError) -> None:
    """Lost connections are retried; what cannot be delivered in the end is in its delivery report."""


def _number(value: int | None) -> int:
    assert value is not None  # delivery reports and messages without error have both
    return value
