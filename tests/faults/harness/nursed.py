"""What must not be done: a sink that goes on with a producer whose transaction is in doubt.

It does what the client library's own documentation advises: what can be retried is retried, what asks for an abort is
aborted, and only a fatal error ends the producer. The hunt T7-nursed asks whether Kafka then tears or loses writes.
"""

from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaException, Producer

from streamproc.errors import EpochAborted, Unavailable
from streamproc.state.epoch import Epoch

TIMEOUT_S = 5.0
MOST_TRIES = 5


class NursedSink:
    """In the place of an EpochSink."""

    def __init__(self, properties: dict[str, Any], transactional_id: str, warn: Callable[[str], None]) -> None:
        self._properties = {**properties, "transactional.id": transactional_id, "metadata.recovery.strategy": "none"}
        self._warn = warn
        self._renew()

    def _renew(self) -> None:
        self._producer = Producer(self._properties)
        try:
            self._retried(self._producer.init_transactions)
        except KafkaException as problem:
            raise Unavailable(problem.args[0].str()) from None

    def commit(self, epoch: Epoch, membership: Any) -> None:
        """Raises EpochAborted where the library says that nothing was committed, or does not know."""
        try:
            self._producer.begin_transaction()
            for message in epoch.messages:
                self._producer.produce(message.topic, message.value, message.key, partition=message.partition or 0)
            self._retried(self._producer.commit_transaction)
        except KafkaException as problem:
            self._mend(problem.args[0])
            raise EpochAborted(problem.args[0].str()) from None

    def _mend(self, error: Any) -> None:
        if error.txn_requires_abort() and not error.fatal():
            try:
                self._retried(self._producer.abort_transaction)
                return
            except KafkaException as problem:
                self._warn(problem.args[0].str())
        self._renew()

    def _retried(self, call: Callable[[float], None]) -> None:
        for attempt in range(MOST_TRIES):
            try:
                call(TIMEOUT_S)
                return
            except KafkaException as problem:
                if not problem.args[0].retriable() or attempt == MOST_TRIES - 1:
                    raise
