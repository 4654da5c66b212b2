"""Messages in, outside of any group: from given offsets to the end of a topic, and on from there.

Committed messages only. A position that the log no longer holds raises; nothing is skipped without a word.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from streamproc.errors import Refused, Unavailable
from streamproc.kafka.failures import failure
from streamproc.kafka.lifeline import Lifeline
from streamproc.kafka.merging import MOST_WAITING, by_time
from streamproc.kafka.positions import resolve
from streamproc.kafka.properties import connect
from streamproc.positions import End, Partitions, Position, Start

# A broker that has just started may not know its topics yet: a reader that heard so asks again no sooner than this.
DEFAULTS = {
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 16_384,
    "topic.metadata.refresh.interval.ms": 10_000,
}
FIXED = {
    "group.id": "streamproc-reader",  # the library wants a name; the group is never joined, nothing is committed
    "group.protocol": "classic",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
}
GROUP_ONLY = {"group.instance.id", "group.remote.assignor"}
BATCH = 500
TIMEOUT_S = 10.0
RETRY_S = 0.05
# the leader of a new or moving partition is not settled yet; the library asks again for everything but offsets
PASSING = {
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}


class Message(NamedTuple):
    """One committed message."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class Tail:
    """One topic, read from wherever `start` says."""

    def __init__(
        self,
        properties: dict[str, Any],
        topic: str,
        num_partitions: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`properties` are librdkafka's. Raises Usage where one is wrong."""
        own = {key: value for key, value in properties.items() if key not in GROUP_ONLY}
        self._properties = {**DEFAULTS, **own, **FIXED, "error_cb": _ignore}
        self._consumer: Consumer = connect(Consumer, self._properties)
        self._lifeline = Lifeline(properties)
        self._paused: set[int] = set()
        self._topic = topic
        self._num_partitions = num_partitions
        self.clock = clock
        self._ended: set[int] = set()
        self._wanted: dict[int, int] = {}   # offsets up to which `read_by_time` reads
        self._closed = False
        self.positions: dict[int, int] = {}  # next offset to read, by partition

    @property
    def at_end(self) -> bool:
        """Whether everything committed so far has been read."""
        return self._ended >= self.positions.keys()

    def starts(self) -> dict[int, int]:
        """First offset of every partition that the log still holds."""
        return self._offsets(OFFSET_BEGINNING)

    def ends(self) -> dict[int, int]:
        """Offset after the last committed message of every partition; one request, however many there are."""
        return self._offsets(OFFSET_END)

    def resolve(self, position: Position) -> dict[int, int]:
        """Offsets of a position. Raises Refused where one that was named by partition is not in the log."""
        if isinstance(position, Start | End):
            return self.starts() if isinstance(position, Start) else self.ends()
        offsets = resolve(self._consumer, self._topic, position, TIMEOUT_S)
        if isinstance(position, Partitions):
            for partition, offset in position.offsets:
                if offsets[partition] != offset:
                    raise self._gap(partition, offset)
        return offsets

    def start(self, positions: Mapping[int, int]) -> None:
        """Read from these offsets on, and only these partitions."""
        self.positions = dict(positions)
        self._ended, self._paused = set(), set()
        self._lifeline.start_over()
        self._assign()

    def stop(self) -> None:
        """Read nothing more until the next `start`."""
        self.positions = {}
        self._consumer.unassign()

    def poll(self, timeout_s: float) -> list[Message]:
        """What is there, waiting at most `timeout_s` for the first message. Raises Refused at a gap."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            if self.positions and self._lifeline.is_cut(self._consumer, self._topic):
                self._reconnect()
            return []
        self._lifeline.start_over()
        batch = (first, *self._consumer.consume(BATCH - 1, 0))
        return [message for message in map(self._read, batch) if message is not None]

    def read_to_end(self) -> Iterator[Message]:
        """Everything up to the end. Raises Unavailable where Kafka falls silent before."""
        while not self.at_end:
            yield from self.read_some()

    def read_by_time(self, most_waiting: int = MOST_WAITING) -> Iterator[Message]:
        """Everything that is there now, of all partitions by their timestamps. Raises as `read_to_end` does."""
        self._wanted = self.ends()
        return by_time(self, most_waiting)

    def is_done(self, partition: int) -> bool:
        """Whether this partition has been read as far as `read_by_time` wants it."""
        return partition in self._ended or self.positions[partition] >= self._wanted.get(partition, 0)

    def read_some(self) -> list[Message]:
        """What comes next, or nothing where a partition has come to its end. Raises Unavailable where nothing does."""
        deadline_s, num_ended = self.clock() + TIMEOUT_S, len(self._ended)
        while True:
            if (batch := self.poll(0.2)) or len(self._ended) > num_ended:
                return batch
            if self.clock() > deadline_s:
                raise Unavailable(f"topic {self._topic}: no Kafka answers within {TIMEOUT_S:.0f} s; is it running?")

    def pause(self, partition: int) -> None:
        """Read nothing more of this partition for now; what was fetched of it ahead is fetched again later."""
        self._paused.add(partition)
        self._consumer.pause([TopicPartition(self._topic, partition)])

    def resume(self, partition: int) -> None:
        """Read it again."""
        self._paused.discard(partition)
        self._consumer.resume([TopicPartition(self._topic, partition)])

    def close(self) -> None:
        """Free the connections; may be called twice."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in self.positions.items()])

    def _reconnect(self) -> None:
        """A new consumer that goes on where this one, which has lost Kafka for good, has stopped."""
        self._consumer.close()
        self._consumer = connect(Consumer, self._properties)
        self._lifeline.start_over()
        self._assign()
        if self._paused:
            self._consumer.pause([TopicPartition(self._topic, partition) for partition in self._paused])

    def _offsets(self, which: int) -> dict[int, int]:
        deadline_s = self.clock() + TIMEOUT_S
        while True:
            found = self._offsets_once(which)
            if not isinstance(found, KafkaError):
                return found
            if found.code() not in PASSING or self.clock() > deadline_s:
                raise failure(found, self._topic)
            time.sleep(RETRY_S)

    def _offsets_once(self, which: int) -> dict[int, int] | KafkaError:
        asked = [TopicPartition(self._topic, partition, which) for partition in range(self._num_partitions)]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=TIMEOUT_S)
        except KafkaException as problem:
            error: KafkaError = problem.args[0]
            return error
        errors = (item.error for item in found if item.error is not None)
        return next(errors, None) or {item.partition: item.offset for item in found}

    def _read(self, raw: KafkaMessage) -> Message | None:
        error, partition = raw.error(), raw.partition()
        assert partition is not None
        if error is not None:
            self._at_event(error, partition, raw.offset())
            return None
        offset = raw.offset()
        assert offset is not None
        self.positions[partition] = offset + 1
        self._ended.discard(partition)
        pairs: Any = raw.headers() or []
        headers = {name: value for name, value in pairs if isinstance(value, bytes)}
        return Message(partition, offset, raw.timestamp()[1], _bytes(raw.key()), _bytes(raw.value()), headers)

    def _at_event(self, error: KafkaError, partition: int, offset: int | None) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            self._ended.add(partition)
            self.positions[partition] = max(self.positions[partition], offset or 0)  # over transaction markers
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise self._gap(partition, self.positions[partition])
        else:
            raise failure(error, self._topic)

    def _gap(self, partition: int, offset: int) -> Refused:
        return Refused(
            f"topic {self._topic}: offset {offset} of partition {partition} is outside the log, a gap; "
            "go on from start, state or now"
        )


def _ignore(_: KafkaError) -> None:
    """Lost connections are retried; whoever waits has a deadline of its own."""


def _bytes(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
