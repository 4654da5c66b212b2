"""What topics are beside their names: a topic that was deleted and made again has its name, and another id."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, TopicCollection

from streamproc.errors import Refused, Unavailable
from streamproc.kafka.positions import UNKNOWN_TOPIC
from streamproc.kafka.properties import connect_admin

NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # a cluster without ids says zero
TIMEOUT_S = 10.0
PAUSE_S = 0.1


class Identity(NamedTuple):
    """`id` is empty where the cluster knows none."""

    id: str
    num_partitions: int


class Identities:
    """Asks the cluster, each time anew."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = properties
        self._admin = connect_admin(properties)

    def of(self, *topics: str) -> list[Identity]:
        """Raises Refused where one does not exist, Unavailable where nobody answers."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                futures = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=TIMEOUT_S)
                found = [futures[topic].result() for topic in topics]
            except KafkaException as problem:
                error = problem.args[0]
                if time.monotonic() < deadline and (error.retriable() or error.code() in UNKNOWN_TOPIC):
                    time.sleep(PAUSE_S)  # one that was just made is not known everywhere
                    continue
                self._admin = connect_admin(self._properties)  # the old one may have lost Kafka for good: lifeline.py
                kind = Refused if error.code() in UNKNOWN_TOPIC else Unavailable
                raise kind(f"topics {', '.join(topics)}: {error.str()}") from None
            return [Identity(str(item.topic_id).replace(NO_ID, ""), len(item.partitions)) for item in found]


def not_as_many(found: Mapping[str, Identity], records: str, asks: str) -> str | None:
    """What to do where topics that go together have not as many partitions, in one line; None where they have.

    Range assignment gives partition n of the asks to who has partition n of the records only if both topics have the
    same number. Of the others more than that do no harm.
    """
    most = max(found[records].num_partitions, found[asks].num_partitions)
    short = {topic: each.num_partitions for topic, each in found.items() if each.num_partitions < most}
    if not short:
        return None
    largest = records if found[records].num_partitions == most else asks
    missing = ", ".join(f"{topic} has {count}" for topic, count in short.items())
    alter = " and ".join(f"`kafka-topics.sh --alter --topic {topic} --partitions {most}`" for topic in short)
    return f"{largest} has {most} partitions, {missing}: they must have as many; do {alter}, then start again"
