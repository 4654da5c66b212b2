"""Messages out, outside of transactions: idempotent, and counted only once every replica in sync has acknowledged them.

Every produce ends in exactly one delivery report, so `num_acked + num_failed` reaches `num_sent`; nothing is dropped in
between. Keys go to the partition where the Java client puts them.
"""

from typing import Any, NamedTuple, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from streamproc.errors import Unavailable
from streamproc.kafka.failures import failure
from streamproc.kafka.properties import connect
from streamproc.kafka.topics import partition_counts

DEFAULTS = {"linger.ms": 10, "compression.type": "lz4", "message.timeout.ms": 60_000}
FIXED = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
POLL_EVERY = 500  # messages: delivery reports are served in bulk
ANY_PARTITION = -1


class Position(NamedTuple):
    """Where a message lies in its topic."""

    partition: int
    offset: int


class AckedProducer:
    """A producer that knows what became of every message."""

    def __init__(self, properties: dict[str, Any]) -> None:
        """`properties` are librdkafka's. Raises Usage where one is wrong."""
        self.num_sent = 0
        self.num_acked = 0
        self.num_failed = 0
        self.first_error: KafkaError | None = None
        self.last_offsets: dict[tuple[str, int], int] = {}  # (topic, partition) -> newest acknowledged offset
        self.key_partitions: dict[tuple[str, bytes | None], int] = {}  # (topic, key) -> where it went
        self._producer: Producer = connect(Producer, {**DEFAULTS, **properties, **FIXED, "error_cb": _ignore})

    def topics(self) -> dict[str, int]:
        """Partitions of every topic. Once connected by this, the first send need not wait half a second for its id."""
        return partition_counts(cast(AdminClient, self._producer))  # it has the same list_topics

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int = ANY_PARTITION) -> None:
        """Queue a message; blocks only while the queue is full. What is wrong with it shows in the counts."""
        self.num_sent += 1
        if self.num_sent % POLL_EVERY == 0:
            self._producer.poll(0)
        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
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

        self.num_sent += 1
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=delivered)
        except BufferError:
            raise Unavailable(f"topic {topic}: too many messages wait to be sent") from None
        except KafkaException as problem:
            self._failed(problem.args[0])
            raise failure(problem.args[0], topic) from None
        while not reports:
            self._producer.flush(1.0)
        error, message = reports[0]
        if error is not None:
            raise failure(error, topic)
        return Position(_number(message.partition()), _number(message.offset()))

    def flush(self, timeout_s: float) -> int:
        """Wait for delivery reports -> how many messages are still without one."""
        return int(self._producer.flush(timeout_s))

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports while waiting."""
        self._producer.poll(timeout_s)

    def purge(self) -> None:
        """Give up what has not been sent yet; it counts as failed."""
        self._producer.purge()
        self._producer.flush(1.0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed(error)
            return
        self.num_acked += 1
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
