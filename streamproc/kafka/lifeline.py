"""Whether a client still knows where Kafka is.

The last broker of a cluster to shut down may answer a metadata request with topics and no brokers. librdkafka (2.10 and
later; its issue 5301) takes that at its word: it forgets every broker, those of bootstrap.servers too, and never tries
again. No error tells of it, and no setting avoids it. Only a new client gets an answer then; that is what shows it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from confluent_kafka import KafkaException

from streamproc.kafka.properties import connect_admin, open_port, parse_servers

QUIET_S = 5.0  # between two looks
OWN_S = 0.5
FRESH_S = 2.0
LOOKS = 3  # in a row: longer than a client waits before it connects again (reconnect.backoff.max.ms: 10 s)


class Client(Protocol):
    """A Producer, Consumer or AdminClient."""

    def list_topics(self, topic: str, timeout: float) -> Any: ...


class Lifeline:
    """Looks after one client, from its user's own calls."""

    def __init__(self, properties: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`properties` lead to the cluster."""
        self._properties, self._clock = dict(properties), clock
        self.start_over()

    def start_over(self) -> None:
        """Something has come from Kafka, or the client is a new one."""
        self._quiet_since, self._num_cut = self._clock(), 0

    def is_cut(self, client: Client, topic: str) -> bool:
        """Whether only a new client can go on. To be asked while nothing comes; looks now and then, which takes a
        moment where Kafka is away. `topic`: one that the client uses.
        """
        if self._clock() - self._quiet_since < QUIET_S:
            return False
        is_cut = not _answers(client, topic, OWN_S) and self._has_kafka(topic)
        self._num_cut = self._num_cut + 1 if is_cut else 0
        self._quiet_since = self._clock()
        return self._num_cut >= LOOKS

    def _has_kafka(self, topic: str) -> bool:
        servers = parse_servers(self._properties["bootstrap.servers"])
        if all(open_port(server, OWN_S) for server in servers):
            return False
        properties = {**self._properties, "error_cb": _ignore, "log_level": 0}
        return _answers(connect_admin(properties), topic, FRESH_S)


def _answers(client: Client, topic: str, timeout_s: float) -> bool:
    try:
        client.list_topics(topic, timeout=timeout_s)
    except KafkaException:
        return False
    return True


def _ignore(_: object) -> None:
    """Whether it answers is all that counts."""
