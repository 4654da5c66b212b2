"""Records and asks of the partitions that the consumer group gives to this worker.

Partition n of the asks topic goes with partition n of the records topic (range assignment, same counts). Offsets are
tracked by the processor and committed by the epoch; the consumer itself commits nothing and never resets an offset on
its own. All calls, callbacks included, happen on the thread that polls.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.config import Config
from streamproc.errors import Unavailable
from streamproc.kafka.heads import read_heads
from streamproc.kafka.positions import watermarks
from streamproc.kafka.properties import client_properties, connect
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery
from streamproc.state.registrar import OWNER

BATCH = 2_000
TIMEOUT_S = 15.0

PROPERTIES = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 20,
    "queued.max.messages.kbytes": 16_384,
    "topic.metadata.refresh.interval.ms": 10_000,
}


class Listener(Protocol):
    """Hears of partitions that come and go, inside `poll`."""

    def assigned(self, recoveries: dict[int, Recovery]) -> None: ...

    def revoked(self, numbers: Sequence[int]) -> None:
        """Last chance to commit what is finished."""
        ...

    def lost(self, numbers: Sequence[int]) -> None:
        """Somebody else owns them already: nothing of them may be committed."""
        ...


class Source:
    """A consumer of the records and asks topics."""

    def __init__(self, config: Config, listener: Listener, warn: Callable[[str], None]) -> None:
        self._config = config
        self._properties = client_properties(config)
        self._listener = listener
        self._warn = warn
        self._records, self._asks = config.topics.records, config.topics.asks
        self._owned: set[int] = set()  # partitions of the records topic
        self._moved: dict[tuple[str, int], int] = {}  # where partitions go on that moved in the newest poll
        self._paused = False
        self._incremental = self._properties.get("group.protocol", "consumer") == "consumer"
        self._consumer = connect(Consumer, self._group_properties())
        self._consumer.subscribe(
            [self._records, self._asks], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        self._membership = self._consumer.consumer_group_metadata()

    def _group_properties(self) -> dict[str, Any]:
        protocol = (
            {"group.protocol": "consumer", "group.remote.assignor": "range"}
            if self._incremental
            else {"partition.assignment.strategy": "range"}
        )
        return {**PROPERTIES, **protocol, **self._properties, "group.id": self._config.worker.group}

    @property
    def membership(self) -> Any:
        """Group metadata as of the newest poll: a commit with it fails if we have lost our place since."""
        return self._membership

    def poll(self, timeout_s: float) -> list[Message]:
        """What has arrived; waits only while there is nothing at all."""
        self._moved.clear()
        first = self._consumer.poll(timeout_s)
        raw = [] if first is None else [first, *self._consumer.consume(BATCH - 1, 0)]
        self._membership = self._consumer.consumer_group_metadata()
        messages = [_message(message) for message in raw if not self._is_error(message.error())]
        return self._without_moved(messages) if self._moved else messages

    def _without_moved(self, messages: list[Message]) -> list[Message]:
        """A callback inside this poll moved partitions: what was fetched before is stale, so fetch theirs again."""
        stale = {(m.topic, m.partition) for m in messages if (m.topic, m.partition) in self._moved}
        for topic, number in stale:
            self._seek(TopicPartition(topic, number, self._moved[topic, number]))
        return [message for message in messages if (message.topic, message.partition) not in stale]

    def _is_error(self, error: KafkaError | None) -> bool:
        if error is None:
            return False
        if error.code() == KafkaError.UNSUPPORTED_VERSION:
            raise Unavailable(
                f"this Kafka has no new consumer groups (KIP-848): set group.protocol to classic: {error.str()}"
            )
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise Unavailable(
                f"cannot read {self._records} and {self._asks}: {error.str()}; `streamproc topics check` says more"
            )
        if error.fatal() or (
            not error.retriable()
            and error.code() not in (KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED, KafkaError._TRANSPORT)
        ):
            raise Unavailable(f"consumer of group {self._config.worker.group}: {error.str()}")
        self._warn(f"kafka: {error.str()}")
        return True

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = sorted(tp.partition for tp in partitions if tp.topic == self._records)
        recoveries = {number: self.recover(number) for number in numbers}
        for tp in partitions:
            tp.offset = self._moved[tp.topic, tp.partition] = self._start_of(tp, recoveries)
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        self._owned.update(numbers)
        self._listener.assigned(recoveries)
        self._hold(consumer)

    def _hold(self, consumer: Consumer) -> None:
        """Pause what must wait, resume the rest: the client remembers pauses across assignments."""
        mine = consumer.assignment()
        # Asks of a partition whose records are not ours yet wait in the broker.
        held = [tp for tp in mine if tp.partition not in self._owned or (self._paused and tp.topic == self._records)]
        consumer.pause(held)
        consumer.resume([tp for tp in mine if tp not in held])

    def _start_of(self, tp: TopicPartition, recoveries: dict[int, Recovery]) -> int:
        recovery = recoveries.get(tp.partition)
        if tp.topic == self._records:
            assert recovery is not None
            return recovery.rebuild_from
        return recovery.asks_from if recovery else self._committed(self._asks, tp.partition)[0]

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = self._give_up(partitions)
        if numbers:
            self._listener.revoked(numbers)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = self._give_up(partitions)
        if numbers:
            self._listener.lost(numbers)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _give_up(self, partitions: list[TopicPartition]) -> list[int]:
        numbers = sorted(tp.partition for tp in partitions if tp.topic == self._records)
        self._owned.difference_update(numbers)
        return numbers

    def recover(self, number: int) -> Recovery:
        """What the log says about a partition now."""
        committed, _ = self._committed(self._records, number)
        asks_from, metadata = self._committed(self._asks, number)
        low, high = self._watermarks(self._records, number)
        heads = read_heads(self._config, number) if committed >= 0 else {}
        if committed < 0:
            committed = low if self._config.worker.start == "earliest" else high
        elif committed < low:
            self._warn(
                f"{self._records} partition {number}: records {committed} to {low - 1} were deleted before they "
                "were processed; going on from the oldest there is"
            )
            committed = low
        rebuild_from = min((head.start_offset for head in heads.values()), default=committed)
        if rebuild_from < low:
            self._warn(
                f"{self._records} partition {number}: records {rebuild_from} to {low - 1} are deleted; "
                "sessions that began in them are rebuilt without"
            )
        control_from = max(self._committed(self._config.topics.control, 0)[0], 0) if number == OWNER else 0
        return Recovery(min(max(rebuild_from, low), committed), committed, heads, asks_from, metadata, control_from)

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        """Read again from the committed offsets -> what they are; the fallback where none was ever committed."""
        recoveries = {}
        for number, fallback in fallbacks.items():
            committed, epoch = self._committed(self._records, number)
            offset = committed if committed >= 0 else fallback
            asks_from, metadata = self._committed(self._asks, number)
            recoveries[number] = Recovery(offset, offset, {}, asks_from, metadata, epoch=epoch)
            for topic, start in ((self._records, offset), (self._asks, asks_from)):
                self._moved[topic, number] = start
                self._seek(TopicPartition(topic, number, start))
        return recoveries

    def _seek(self, where: TopicPartition) -> None:
        """Seek; a partition that was assigned a moment ago may need that moment."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self._consumer.seek(where)
                return
            except KafkaException as problem:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"cannot seek {where.topic} partition {where.partition} to {where.offset}: "
                        f"{problem.args[0].str()}"
                    ) from None
                time.sleep(0.05)

    def _committed(self, topic: str, number: int) -> tuple[int, str]:
        """The group's offset and its metadata; for the asks topic the log's start where there is none."""
        try:
            found = self._consumer.committed([TopicPartition(topic, number)], TIMEOUT_S)[0]
        except KafkaException as problem:
            raise Unavailable(f"committed offset of {topic} partition {number}: {problem.args[0].str()}") from None
        if found.error:
            raise Unavailable(f"committed offset of {topic} partition {number}: {found.error.str()}")
        if found.offset != OFFSET_INVALID and found.offset >= 0:
            return found.offset, found.metadata or ""
        return (self._watermarks(topic, number)[0], "") if topic == self._asks else (-1, "")

    def _watermarks(self, topic: str, number: int) -> tuple[int, int]:
        try:
            return watermarks(self._consumer, TopicPartition(topic, number), TIMEOUT_S)
        except KafkaException as problem:
            raise Unavailable(f"offsets of {topic} partition {number}: {problem.args[0].str()}") from None

    def pause(self) -> None:
        """Stop fetching records; asks go on."""
        self._paused = True
        self._consumer.pause(self._record_partitions())

    def resume(self) -> None:
        self._paused = False
        self._consumer.resume(self._record_partitions())

    def _record_partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self._records, number) for number in sorted(self._owned)]

    def close(self) -> None:
        """Leave the group; the listener hears of the revocation."""
        self._consumer.close()


def _message(raw: Any) -> Message:
    return Message(raw.topic(), raw.partition(), raw.offset(), raw.key(), raw.value(), raw.timestamp()[1])
