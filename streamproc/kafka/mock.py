"""librdkafka's in-process mock cluster: the demo's last resort where no Kafka can be had.

It is no Kafka. Messages, consumer groups and plain offset commits work, in memory, for as long as the process lives
and for clients on this machine only. Every topic has four partitions; none is compacted. Transactions are theatre:
offsets sent with one are not kept, aborted messages are seen by everybody, an old producer is not fenced. Nothing
about exactly-once may be claimed on it.
"""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Producer

TIMEOUT_S = 10.0
PROPERTIES: dict[str, Any] = {"bootstrap.servers": "unused", "test.mock.num.brokers": 1, "log_level": 0}


class MockKafka:
    """A running mock; it lives as long as this handle."""

    def __init__(self) -> None:
        self._owner: Producer | None = Producer(PROPERTIES)
        brokers = self._owner.list_topics(timeout=TIMEOUT_S).brokers.values()
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def create_topics(self, names: Iterable[str]) -> None:
        """Make topics; the mock gives each four partitions, whatever its specification says."""
        assert self._owner is not None, "closed"
        for name in names:
            self._owner.list_topics(name, timeout=TIMEOUT_S)

    def close(self) -> None:
        """End the mock and everything in it; may be called again."""
        self._owner = None


def start_mock() -> MockKafka:
    """A mock cluster of one broker inside this process."""
    return MockKafka()
