"""What the log and the group's committed offsets say of a partition: where its owner has to begin."""

import time
from collections.abc import Callable
from dataclasses import replace

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.config import Config
from streamproc.errors import Refused, Unavailable
from streamproc.kafka.gaps import Found, Gap, find_gap
from streamproc.kafka.heads import read_heads
from streamproc.kafka.identity import Identities, Identity
from streamproc.kafka.positions import watermarks
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.messages import Head
from streamproc.state.partition import Recovery
from streamproc.state.registrar import OWNER
from streamproc.state.stamp import FRESH, decode_stamp

TIMEOUT_S = 15.0
ASK_S = 5.0
OPEN_S = 45.0  # more than a transaction may stay open (epoch.py), and what the broker takes to abort it
PAUSE_S = 0.2


class GroupLog:
    """Reads through the group's consumer; changes nothing."""

    def __init__(self, config: Config, consumer: Consumer, identities: Identities, warn: Callable[[str], None]) -> None:
        self._config, self._consumer, self._identities, self._warn = config, consumer, identities, warn
        self._records, self._asks = config.topics.records, config.topics.asks

    def recover(self, number: int) -> Recovery:
        """What a new owner of a partition finds. Raises Refused at a gap, unless the settings say to go on."""
        identity = self._identity(number)
        committed, metadata = self.committed(self._records, number)
        low, high = self._watermarks(self._records, number)
        heads, stamp = read_heads(self._config, number), decode_stamp(metadata) if committed >= 0 else FRESH
        found = Found(
            self._records, number, self._config.worker.group, identity.id, low, high, committed, stamp.topic_id, heads
        )
        stale: tuple[str, ...] = ()
        if gap := find_gap(found):
            self._judge(gap)
            stamp = FRESH
            if gap.starts_over:
                committed, stale, heads = -1, tuple(heads), {}
            else:
                committed, heads = min(max(committed, low), high), _below(heads, high)
        if committed < 0:
            committed = low if self._config.worker.start == "earliest" else high
        asks_from, asks_metadata = self.asks_from(number)
        control_from = max(self.committed(self._config.topics.control, 0)[0], 0) if number == OWNER else 0
        start = self._start(number, low, committed, heads)
        return Recovery(
            start, committed, heads, asks_from, asks_metadata, control_from, stamp, identity.id, high, stale
        )

    def _judge(self, gap: Gap) -> None:
        policy = self._config.worker.on_gap
        if policy == "fail":
            raise Refused(gap.line(policy))
        self._warn(gap.line(policy))

    def _start(self, number: int, low: int, committed: int, heads: dict[str, Head]) -> int:
        """The first record to be read again."""
        start = min((head.start_offset for head in heads.values()), default=committed)
        if start < low:
            self._warn(
                f"{self._records} partition {number}: records {start} to {low - 1} are deleted; "
                "sessions that began in them are rebuilt without"
            )
        return min(max(start, low), committed)

    def _identity(self, number: int) -> Identity:
        """The records topic. Waits a moment for a partition that others were given too; raises Refused without it."""
        topics, deadline = self._config.topics, time.monotonic() + TIMEOUT_S
        while True:
            records, asks, sessions = self._identities.of(topics.records, topics.asks, topics.sessions)
            short = {topics.asks: asks, topics.sessions: sessions}
            short = {topic: found for topic, found in short.items() if found.num_partitions <= number}
            if not short:
                return records
            if time.monotonic() > deadline:
                raise Refused(_unequal(topics.records, records.num_partitions, short))
            time.sleep(PAUSE_S)

    def asks_from(self, number: int) -> tuple[int, str]:
        """Where the asks go on, and which are answered beyond. Asks that are gone are told, and left."""
        offset, metadata = self.committed(self._asks, number)
        low, high = self._watermarks(self._asks, number)
        if low <= offset <= high:
            return offset, metadata
        if offset >= 0:
            self._warn(
                f"{self._asks} partition {number}: offset {offset} is committed, the log holds {low} to {high}: "
                "going on with what there is; asks that are gone are not answered"
            )
        return (low if offset < low else high), ""

    def rewound(self, number: int, fallback: int) -> Recovery:
        """The committed offsets now, after an epoch of unknown fate; the fallback where none was ever committed."""
        committed, metadata = self.committed(self._records, number)
        offset = committed if committed >= 0 else fallback
        asks_from, asks_metadata = self.asks_from(number)
        stamp = decode_stamp(metadata) if committed >= 0 else FRESH
        return Recovery(offset, offset, {}, asks_from, asks_metadata, stamp=stamp)

    def committed(self, topic: str, number: int) -> tuple[int, str]:
        """The group's offset and its metadata; -1 where there is none.

        Waits for the end of a transaction that an owner before us has left open: it may have moved the offset.
        """
        deadline = time.monotonic() + OPEN_S
        while True:
            try:
                found = self._consumer.committed([TopicPartition(topic, number)], ASK_S)[0]
                error = found.error
            except KafkaException as problem:
                error = problem.args[0]
            if error is None:
                has_one = found.offset != OFFSET_INVALID and found.offset >= 0
                return (found.offset, found.metadata or "") if has_one else (-1, "")
            is_passing = error.retriable() or error.code() == KafkaError._TIMED_OUT
            if not is_passing or time.monotonic() > deadline:
                raise Unavailable(f"committed offset of {topic} partition {number}: {error.str()}")
            time.sleep(PAUSE_S)  # a coordinator that moves, or a member that has just got another epoch

    def _watermarks(self, topic: str, number: int) -> tuple[int, int]:
        try:
            return watermarks(self._consumer, TopicPartition(topic, number), TIMEOUT_S)
        except KafkaException as problem:
            error = problem.args[0]
        if error.code() != KafkaError._UNKNOWN_PARTITION:
            raise Unavailable(f"offsets of {topic} partition {number}: {error.str()}")
        return self._new_watermarks(topic, number)

    def _new_watermarks(self, topic: str, number: int) -> tuple[int, int]:
        """Of a partition that was just added: the group knows of it before its members do.

        Asked by another client: the library aborts where a consumer lists topics inside its own callback.
        """
        tail = Tail(client_properties(self._config), topic, number + 1)
        try:
            return tail.starts()[number], tail.ends()[number]
        finally:
            tail.close()


def _below(heads: dict[str, Head], end: int) -> dict[str, Head]:
    """Heads of a log that has lost its end, and what they remember of it."""
    return {
        session: replace(head, marks={name: mark for name, mark in head.marks.items() if mark.offset < end})
        for session, head in heads.items()
        if head.start_offset < end
    }


def _unequal(records: str, num_partitions: int, short: dict[str, Identity]) -> str:
    missing = ", ".join(f"{topic} has {found.num_partitions}" for topic, found in short.items())
    alter = " and ".join(f"`kafka-topics.sh --alter --topic {topic} --partitions {num_partitions}`" for topic in short)
    return f"{records} has {num_partitions} partitions, {missing}: they must have as many; do {alter}, then start again"
