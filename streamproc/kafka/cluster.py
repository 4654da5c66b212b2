"""A cluster, seen from outside: what there is on it, and who is at work."""

import functools
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamproc.errors import Unavailable
from streamproc.kafka.properties import connect
from streamproc.kafka.topics import partition_counts

TIMEOUT_S = 5.0


class Cluster:
    """The cluster that `properties` lead to; connects when it is first asked."""

    def __init__(self, properties: dict[str, Any]) -> None:
        """`properties` are librdkafka's."""
        self._properties = properties

    def partition_counts(self) -> dict[str, int]:
        """Partitions of every topic, by name. Raises Unavailable where no Kafka answers."""
        try:
            return partition_counts(self._admin)
        except Unavailable:
            del self._admin  # it may have lost Kafka for good (see lifeline.py): the next one asks by a new client
            raise

    def num_members(self, group: str) -> int | None:
        """How many members a consumer group has now; None where Kafka does not say."""
        try:
            described = self._admin.describe_consumer_groups([group], request_timeout=TIMEOUT_S)
            return len(described[group].result().members)
        except KafkaException:
            del self._admin
            return None

    @functools.cached_property
    def _admin(self) -> AdminClient:
        return connect(AdminClient, self._properties)
