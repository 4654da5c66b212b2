"""Records and asks of the partitions that the consumer group gives to this worker.

Partition n of the asks topic goes with partition n of the records topic (range assignment, same counts). Offsets are
tracked by the processor and committed by the epoch; the consumer itself commits nothing and never resets an offset on
its own. All calls, callbacks included, happen on the thread that polls.

The group metadata of a commit is read before each poll, and in a callback: so it never knows of a rebalance that the
listener has not heard of, and a commit that leans on what was lost is refused by the broker.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.config import Config
from streamproc.errors import Unavailable
from streamproc.kafka.identity import Identities
from streamproc.kafka.lifeline import Lifeline
from streamproc.kafka.member import is_incremental, member_properties
from streamproc.kafka.properties import client_properties, connect
from streamproc.kafka.recovery import GroupLog
from streamproc.kafka.slot import Slot
from streamproc.kafka.stamps import Stamps
from streamproc.kafka.watchdog import Watchdog
from streamproc.state.epoch import Message
from streamproc.state.origin import UNKNOWN
from streamproc.state.partition import Recovery
from streamproc.state.stamp import Stamp

BATCH = 250
TIMEOUT_S = 15.0
CLOSE_S = 5.0

PASSING = (KafkaError._MAX_POLL_EXCEEDED, KafkaError._TRANSPORT)

Place = tuple[str, int]  # topic and partition


class Listener(Protocol):
    """Hears of partitions that come and go, inside `poll`."""

    def assigned(self, recoveries: dict[int, Recovery]) -> None: ...

    def revoked(self, numbers: Sequence[int]) -> None:
        """Last chance to commit what is finished."""
        ...

    def lost(self, numbers: Sequence[int]) -> None:
        """Somebody else owns them already: nothing of them may be committed."""
        ...

    def read_to(self, ends: Mapping[int, int]) -> None:
        """There are no more records below these offsets than earlier polls have brought."""
        ...


class Source:
    """A consumer of the records and asks topics."""

    def __init__(
        self,
        config: Config,
        listener: Listener,
        warn: Callable[[str], None],
        instance_id: str | None = None,
        model: str = "",
    ) -> None:
        """instance_id: a static member's; the group keeps its partitions for it while it restarts.

        model: its digest (ports.Engine); empty: another one than before is not noticed.
        """
        self._config, self._listener, self._warn, self._model = config, listener, warn, model
        self._properties = client_properties(config)
        self._incremental = is_incremental(self._properties)
        self._records, self._asks = config.topics.records, config.topics.asks
        self._slot = Slot(config.worker.group, instance_id, warn)
        self._member = member_properties(self._properties, config.worker.group) | self._slot.properties
        self._identities = Identities(self._properties)
        self._watchdog = Watchdog(self._properties, self._records, config.worker.stall_s)
        self._lifeline = Lifeline(self._properties)
        self._owned: set[int] = set()  # partitions of the records topic
        self._starts: dict[int, int] = {}  # where they were begun
        self._origin = UNKNOWN  # of all that is committed
        self._stamps = Stamps()
        self._moved: dict[Place, int] = {}  # where partitions go on that moved in the newest poll
        self._seeks: dict[Place, int] = {}  # where the next poll begins
        self._ends: dict[int, int] = {}  # of the records topic's logs that the newest poll has read to their ends
        self._is_outside = False  # read at an offset that the log does not hold
        self._stopped: frozenset[int] = frozenset()  # of those owned: no more records of them are to be fetched
        self._is_closing = False
        self._open()

    def _open(self) -> None:
        self._consumer = connect(Consumer, self._member)
        self._log = GroupLog(self._config, self._identities, self._warn, self._model)
        self._consumer.subscribe(
            [self._records, self._asks], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        self._membership = self._consumer.consumer_group_metadata()

    @property
    def membership(self) -> Any:
        """Group metadata that knows of no more than the listener does: a commit fails if we have lost our place.

        Asked for an epoch, which must not overtake a stamp.
        """
        self._stamps.settle()
        return self._membership

    def poll(self, timeout_s: float) -> list[Message]:
        """What has arrived; waits only while there is nothing at all."""
        if self._slot.is_held:
            self._wait_for_slot(timeout_s)
            return []
        if self._ends:
            self._listener.read_to(self._ends)
            self._ends = {}
        self._go_to_seeks()
        self._membership = self._consumer.consumer_group_metadata()
        self._moved.clear()
        first = self._consumer.poll(timeout_s)
        raw = [] if first is None else [first, *self._consumer.consume(BATCH - 1, 0)]
        messages = [_message(message) for message in raw if not self._is_error(message)]
        if self._is_outside:
            self._reopen()  # retention has overtaken us, or a log has lost its end: a new owner would be told
            return []
        if raw:
            self._lifeline.start_over()
        elif self._lifeline.is_cut(self._consumer, self._records):
            self._warn(f"kafka: the client library has lost {self._properties['bootstrap.servers']}: joining anew")
            self._reopen()
            return []
        if self._watchdog.is_due(not messages and bool(self._owned - self._stopped)):
            self._look_for_stall()
        return self._without_moved(messages) if self._moved else messages

    def _without_moved(self, messages: list[Message]) -> list[Message]:
        """This poll moved partitions: what was fetched before is stale, so fetch theirs again."""
        stale = {(m.topic, m.partition) for m in messages if (m.topic, m.partition) in self._moved}
        self._seeks.update({place: self._moved[place] for place in stale})
        return [message for message in messages if (message.topic, message.partition) not in stale]

    # Errors

    def _is_error(self, message: Any) -> bool:
        error = message.error()
        if error is None:
            return False
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._reached_end(message)
            return True
        if code == KafkaError.UNSUPPORTED_VERSION:
            raise Unavailable(
                f"this Kafka has no new consumer groups (KIP-848): set group.protocol to classic: {error.str()}"
            )
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise Unavailable(
                f"cannot read {self._records} and {self._asks}: {error.str()}; `streamproc topics check` says more"
            )
        if self._slot.refuses(error):
            return True
        if code == KafkaError._AUTO_OFFSET_RESET:
            self._is_outside = True
            return True
        if code == KafkaError._FATAL or error.fatal() or (not error.retriable() and code not in PASSING):
            raise Unavailable(f"consumer of group {self._config.worker.group}: {error.str()}")
        self._warn(f"kafka: {error.str()}")
        return True

    def _reached_end(self, message: Any) -> None:
        """A log may end with markers of transactions: then its last record does not tell that it is read."""
        number = message.partition()
        if message.topic() == self._records and number in self._owned and (self._records, number) not in self._moved:
            self._ends[number] = message.offset()

    def _wait_for_slot(self, timeout_s: float) -> None:
        """Our name is still somebody's: try again as long as it may be that of our own predecessor."""
        if not self._slot.may_retry():
            time.sleep(timeout_s)
            return
        self._reopen()

    def _look_for_stall(self) -> None:
        fetched = self._owned - self._stopped
        at = {found.partition: found.offset for found in self._consumer.position(self._places(fetched))}
        positions = {number: at[number] if at[number] >= 0 else self._starts[number] for number in fetched}
        if waiting := self._watchdog.waiting(self._consumer, positions):
            self._warn(f"{waiting}, and none has come for {self._config.worker.stall_s} s: joining the group anew")
            self._reopen()

    def _reopen(self) -> None:
        """A new consumer; what the old one had is lost, and assigned again."""
        owned, self._is_outside = sorted(self._owned), False
        self._owned.clear()
        self._stopped = frozenset()
        for table in (self._moved, self._seeks):
            table.clear()
        if owned:
            self._listener.lost(owned)
        self.abandon()
        self._watchdog.start_over()
        self._lifeline.start_over()
        self._open()

    # Partitions that come and go

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not self._is_ours(consumer) or self._is_closing:
            return  # it goes again at once
        self._slot.joined()
        numbers = sorted(tp.partition for tp in partitions if tp.topic == self._records)
        recoveries = self._log.recover(numbers) if partitions else {}
        for tp in partitions:
            tp.offset = self._start_of(tp, recoveries)
            self._moved[tp.topic, tp.partition] = tp.offset
            self._ends.pop(tp.partition, None)
            self._seeks.pop((tp.topic, tp.partition), None)
        self._membership = consumer.consumer_group_metadata()
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        self._owned.update(recoveries)
        self._starts.update({number: recovery.rebuild_from for number, recovery in recoveries.items()})
        if recoveries:
            self._origin = recoveries[numbers[0]].origin
            self._listener.assigned(recoveries)
        self._hold(consumer)

    def _hold(self, consumer: Consumer) -> None:
        """Pause what must wait, resume the rest: the client remembers pauses across assignments."""
        mine = consumer.assignment()
        # Asks of a partition whose records are not ours yet wait in the broker.
        held = [
            tp
            for tp in mine
            if tp.partition not in self._owned or (tp.topic == self._records and tp.partition in self._stopped)
        ]
        consumer.pause(held)
        consumer.resume([tp for tp in mine if tp not in held])

    def _start_of(self, tp: TopicPartition, recoveries: dict[int, Recovery]) -> int:
        recovery = recoveries.get(tp.partition)
        if tp.topic == self._records:
            assert recovery is not None
            return recovery.rebuild_from
        return recovery.asks_from if recovery else self._log.asks_from(tp.partition)[0]

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._part_with(consumer, partitions, self._listener.revoked)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._part_with(consumer, partitions, self._listener.lost)

    def _part_with(
        self, consumer: Consumer, partitions: list[TopicPartition], tell: Callable[[Sequence[int]], None]
    ) -> None:
        if not self._is_ours(consumer):
            return
        numbers = sorted(tp.partition for tp in partitions if tp.topic == self._records)
        self._owned.difference_update(numbers)
        self._stopped = self._stopped.difference(numbers)
        if numbers:
            tell(numbers)
        for tp in partitions:
            self._moved.pop((tp.topic, tp.partition), None)
            self._seeks.pop((tp.topic, tp.partition), None)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _is_ours(self, consumer: Consumer) -> bool:
        return consumer is getattr(self, "_consumer", None)

    # Offsets

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        """Read again from the committed offsets -> what they are; the fallback where none was ever committed."""
        recoveries = {number: self._log.rewound(number, fallback) for number, fallback in fallbacks.items()}
        for number, recovery in recoveries.items():
            self._starts[number] = recovery.live_from  # the client knows no position between a seek and a record
            for place in ((self._records, number, recovery.live_from), (self._asks, number, recovery.asks_from)):
                # not at once: this may be a callback, where partitions cannot be moved
                self._moved[place[:2]] = self._seeks[place[:2]] = place[2]
        return recoveries

    def _go_to_seeks(self) -> None:
        for (topic, number), offset in self._seeks.items():
            self._seek(TopicPartition(topic, number, offset))
        self._seeks.clear()

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

    def stamp(self, stamps: Mapping[int, tuple[int, Stamp]]) -> None:
        """Commit these offsets again, with other stamps; fails where a rebalance is under way, and that is told."""
        sign = self._origin.sign
        offsets = [TopicPartition(self._records, n, offset, sign(stamp)) for n, (offset, stamp) in stamps.items()]
        if problem := self._stamps.write(self._consumer, offsets):
            self._warn(f"{self._records}: a death of this worker would not be counted: {problem}")

    def hold(self, numbers: Collection[int]) -> None:
        """Fetch no more records of these partitions, and again of all others; asks of all. What the client has fetched
        ahead of these is thrown away, and fetched again afterwards.
        """
        stopped, before = self._owned.intersection(numbers), self._stopped
        if stopped != before:
            self._stopped = frozenset(stopped)
            self._consumer.pause(self._places(stopped - before))
            self._consumer.resume(self._places(before - stopped))
        if before - stopped:
            self._watchdog.start_over()  # what is fetched again needs its time

    def _places(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._records, number) for number in sorted(numbers)]

    def close(self) -> None:
        """Leave the group; the listener hears of the revocation."""
        self._is_closing = True
        self._consumer.close()
        del self._consumer

    def abandon(self) -> None:
        """Leave the group, if we are in it still, without a word to the listener: nothing is to be committed."""
        old = getattr(self, "_consumer", None)
        if old is not None:
            del self._consumer  # its last callbacks are not ours
            closing = threading.Thread(target=old.close, name="close-consumer", daemon=True)
            closing.start()
            closing.join(CLOSE_S)


def _message(raw: Any) -> Message:
    return Message(raw.topic(), raw.partition(), raw.offset(), raw.key(), raw.value(), raw.timestamp()[1])
