"""What the group has committed: offsets and their metadata, of many partitions in one request."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.errors import Unavailable
from streamproc.kafka.properties import connect
from streamproc.kafka.tailing import GROUP_ONLY

ASK_S = 5.0
PAUSE_S = 0.2

OUTSIDER = {"group.protocol": "classic", "enable.auto.commit": False, "isolation.level": "read_committed"}

Place = tuple[str, int]  # topic and partition


class Committed(NamedTuple):
    """`offset` -1: there is none."""

    offset: int
    metadata: str


@contextmanager
def outsider(properties: Mapping[str, Any], group: str) -> Iterator[Consumer]:
    """A new client that reads the group's offsets, and is no member of it.

    The group's own consumer may have lost Kafka (lifeline.py), and cannot be made anew in the middle of a rebalance or
    of an epoch of unknown fate.
    """
    own = {name: value for name, value in properties.items() if name not in GROUP_ONLY}
    consumer = connect(Consumer, {**own, **OUTSIDER, "group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def read_committed(consumer: Consumer, places: Collection[Place], patience_s: float) -> dict[Place, Committed]:
    """What is committed now. Raises Unavailable.

    Waits for the end of transactions that owners before us have left open: they may have moved the offsets.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found, problem = _ask(consumer, places)
        if problem is None:
            return found
        where, error = problem
        is_passing = error.retriable() or error.code() == KafkaError._TIMED_OUT
        if not is_passing or time.monotonic() > deadline:
            raise Unavailable(f"committed offset of {where[0]} partition {where[1]}: {error.str()}")
        time.sleep(PAUSE_S)  # a coordinator that moves, or a transaction that is still open


def _ask(
    consumer: Consumer, places: Collection[Place]
) -> tuple[dict[Place, Committed], tuple[Place, KafkaError] | None]:
    """What there is, and the first thing that failed."""
    try:
        found = consumer.committed([TopicPartition(*place) for place in places], ASK_S)
    except KafkaException as problem:
        return {}, (next(iter(places)), problem.args[0])
    failed = next((((each.topic, each.partition), each.error) for each in found if each.error), None)
    return {(each.topic, each.partition): _committed(each) for each in found}, failed


def _committed(found: TopicPartition) -> Committed:
    has_one = found.offset != OFFSET_INVALID and found.offset >= 0
    return Committed(found.offset, found.metadata or "") if has_one else Committed(-1, "")
