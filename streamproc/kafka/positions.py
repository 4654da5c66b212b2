"""Positions as offsets: what a point in a topic means right now, for every partition."""

import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.errors import Refused, Unavailable
from streamproc.positions import At, BeforeEnd, End, Offset, Partitions, Position, Start

UNKNOWN_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
LEADER_MOVES = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
LEADER_PAUSE_S = 0.1


def resolve(consumer: Consumer, topic: str, position: Position, timeout_s: float = 10.0) -> dict[int, int]:
    """Offset by partition, each between the log's start and its end; a time after the newest record is the end.

    A list of partitions resolves to just those. The end is the consumer's: with isolation.level=read_committed it is
    the last stable offset. Raises Refused where the topic or a partition does not exist, Unavailable on a timeout.
    """
    try:
        partitions = partitions_of(consumer, topic, timeout_s)
        wanted = named(topic, partitions, position)
        bounds = {p: watermarks(consumer, TopicPartition(topic, p), timeout_s) for p in wanted}
        times = offsets_at(consumer, topic, wanted, position, timeout_s) if isinstance(position, At) else {}
    except KafkaException as problem:
        raise Unavailable(f"offsets of topic {topic}: {problem.args[0].str()}") from None
    return {
        p: times.get(p, high) if isinstance(position, At) else offset_in(position, p, low, high)
        for p, (low, high) in bounds.items()
    }


def watermarks(
    consumer: Consumer, where: TopicPartition, timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, int]:
    """First offset and end of a partition. Asks again while its leader moves: a new topic's may, for a moment.

    Raises KafkaException.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            low, high = consumer.get_watermark_offsets(where, timeout=timeout_s)
        except KafkaException as problem:
            if problem.args[0].code() not in LEADER_MOVES or time.monotonic() > deadline:
                raise
            sleep(LEADER_PAUSE_S)
        else:
            return low, high


def partitions_of(consumer: Consumer, topic: str, timeout_s: float = 10.0) -> list[int]:
    """The topic's partitions in order. Raises Refused where there is no such topic."""
    found = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    if found.error is None:
        return sorted(found.partitions)
    if found.error.code() in UNKNOWN_TOPIC:
        raise Refused(f"there is no topic {topic}: make it with `streamproc topics create`")
    raise Unavailable(f"topic {topic}: {found.error.str()}")


def named(topic: str, partitions: list[int], position: Position) -> list[int]:
    """The partitions that a position speaks of."""
    if not isinstance(position, Partitions):
        return partitions
    for partition, _ in position.offsets:
        if partition not in partitions:
            raise Refused(f"topic {topic} has no partition {partition}, it has 0 to {len(partitions) - 1}")
    return [partition for partition, _ in position.offsets]


def offset_in(position: Position, partition: int, low: int, high: int) -> int:
    """An offset of [low, high] for a position that is no time."""
    match position:
        case Start():
            return low
        case End():
            return high
        case Offset(offset):
            return min(max(offset, low), high)
        case BeforeEnd(num_records):
            return max(high - num_records, low)
        case Partitions(offsets):
            return min(max(dict(offsets)[partition], low), high)
    raise AssertionError(f"{position} is a time")


def offsets_at(consumer: Consumer, topic: str, partitions: list[int], position: At, timeout_s: float) -> dict[int, int]:
    """Offset of the first record at or after a time, for the partitions that have one."""
    asked = [TopicPartition(topic, partition, position.time_ms) for partition in partitions]
    return {
        found.partition: found.offset
        for found in consumer.offsets_for_times(asked, timeout=timeout_s)
        if found.offset >= 0
    }
