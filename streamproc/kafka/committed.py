"""What the group has committed: offsets and their metadata, of many partitions in one request."""

import time
from collections.abc import Collection
from typing import NamedTuple

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.errors import Unavailable

ASK_S = 5.0
PAUSE_S = 0.2

Place = tuple[str, int]  # topic and partition


class Committed(NamedTuple):
    """`offset` -1: there is none."""

    offset: int
    metadata: str


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
        time.sleep(PAUSE_S)  # a coordinator that moves, or a member that has just got another epoch


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
