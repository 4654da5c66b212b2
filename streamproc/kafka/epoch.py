"""Commits epochs: one Kafka transaction each, by numbered steps.

Only "commit OK" is success. After any other outcome the producer is dropped, not nursed: the client library has no
KIP-890, so a late commit or abort of a doubtful transaction could land in the next one. A new producer with the same
transactional id aborts what was open and fences what is still on its way; then the committed offsets tell what landed.
A call that does not return in time is given up with its producer.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streamproc.config import Config
from streamproc.errors import EpochAborted, Fenced, Unavailable
from streamproc.kafka.giveup import Caller, GivenUp
from streamproc.kafka.properties import connect
from streamproc.state.epoch import Epoch, Outgoing

STEP_TIMEOUT_S = 15.0
START_TIMEOUT_S = 30.0
LEAST_STEP_S = 0.1
FENCED_AGAIN_S = 45.0  # two workers in one slot fence each other at every epoch; what is longer apart is chance
MOST_REFUSALS = 3  # in a row, for a reason that does not go away by itself
REFUSALS = frozenset({
    KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION, KafkaError.OFFSET_METADATA_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
})  # fmt: skip
FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)

# message.timeout.ms must stay below transaction.timeout.ms; both bound how long a dead worker holds up readers.
# metadata.recovery.strategy: when no broker is left, the library's default forgets all of them but keeps what it knows
# of the group's coordinator, and the next send_offsets_to_transaction never returns, whatever its timeout.
PROPERTIES = {
    "metadata.recovery.strategy": "none",
    "transaction.timeout.ms": 20_000,
    "message.timeout.ms": 15_000,
    "socket.timeout.ms": 10_000,
    "linger.ms": 5,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",
}
ABORT_S = 20.0  # the broker looks for transactions that are open too long every 10 s, and then has to write


def longest_open_s(properties: Mapping[str, Any]) -> float:
    """How long a transaction of a worker that has died may hold up who waits for its end."""
    return _transaction_s({**PROPERTIES, **properties}) + ABORT_S


def _transaction_s(properties: Mapping[str, Any]) -> float:
    return int(properties["transaction.timeout.ms"]) / 1e3


def transactional_id(config: Config) -> str:
    """No name of a group or a slot holds a slash: so each pair has an id of its own."""
    return f"{config.worker.group}/{config.worker.slot}"


class EpochSink:
    """A transactional producer; one per worker slot, which names the transactional id."""

    def __init__(
        self,
        properties: dict[str, Any],
        transactional_id: str,
        warn: Callable[[str], None],
        step_timeout_s: float = STEP_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warn, self._clock = warn, clock
        self._properties = {**PROPERTIES, **properties, "transactional.id": transactional_id}
        self._step_timeout_s = step_timeout_s
        self._num_refusals, self._fenced_at = 0, -math.inf
        self._caller = Caller()
        self._producer = self._new_producer(clock() + START_TIMEOUT_S)

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        """Commit an epoch; `membership` is the consumer's group metadata, taken with the newest batch.

        timeout_s bounds all of it, for partitions that have to be let go of; a new producer comes on top.
        Raises EpochAborted if it did not commit for sure, Fenced if another process uses our transactional id,
        Unavailable where Kafka refuses what the epoch holds, again and again.
        """
        left_s, opened_at = _countdown(timeout_s, self._step_timeout_s), self._clock()
        try:
            # Step 1. Open the transaction: the device is done, so it stays open for milliseconds.
            self._producer.begin_transaction()
            # Step 2. What the epoch says.
            for message in epoch.messages:
                _produce(self._producer, message)
            # Step 3. What it was computed from.
            if epoch.positions:
                offsets = [TopicPartition(p.topic, p.partition, p.offset, p.metadata) for p in epoch.positions]
                self._call(left_s(), self._producer.send_offsets_to_transaction, offsets, membership)
            # Step 4. Both or nothing.
            self._call(left_s(), self._producer.commit_transaction)
        except (KafkaException, BufferError, GivenUp) as problem:
            raise self._start_over(problem, opened_at) from None
        self._num_refusals, self._fenced_at = 0, -math.inf

    def _call(self, timeout_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """A step that Kafka answers. Raises GivenUp where it outlasts its timeout."""
        self._caller.call(function.__name__, lambda: function(*arguments, timeout_s), timeout_s)

    def _start_over(self, problem: Exception, opened_at: float) -> EpochAborted | Fenced | Unavailable:
        error = problem.args[0] if problem.args else problem
        self._num_refusals += isinstance(error, KafkaError) and error.code() in REFUSALS
        if self._num_refusals >= MOST_REFUSALS:
            return Unavailable(
                f"Kafka refuses this worker's answers or offsets, {self._num_refusals} times in a row: {_text(error)}; "
                "`streamproc topics check` may say more"
            )
        is_fenced = isinstance(error, KafkaError) and error.code() in FENCED
        now, name = self._clock(), f"the transactional id {self._properties['transactional.id']!r}"
        if is_fenced and now - opened_at < _transaction_s(self._properties):  # what is open longer, Kafka itself ends
            if now - self._fenced_at < FENCED_AGAIN_S:
                return Fenced(f"another worker uses {name}: give each worker its own worker.slot")
            self._fenced_at = now
        doubtful = [self._producer]
        self._producer = self._new_producer()
        _drop(doubtful)
        reason = f"epoch aborted, going on from the committed offsets: {_text(error)}"
        if is_fenced:
            reason += f"; if another worker uses {name}, give each worker its own worker.slot"
        self._warn(reason)
        return EpochAborted(reason)

    def _new_producer(self, deadline: float = math.inf) -> Producer:
        """A producer whose predecessor's open transaction is aborted.

        Waits while the coordinator is only out of reach, as everything else does that asks Kafka; says so once.
        """
        producers, has_told = [connect(Producer, self._properties)], False
        while True:
            try:
                self._call(self._step_timeout_s, producers[0].init_transactions)
                return producers[0]
            except (GivenUp, KafkaException) as problem:
                error = problem.args[0]
            reason = f"no transactions at {self._properties['bootstrap.servers']}: {_text(error)}"
            if (isinstance(error, KafkaError) and (error.fatal() or not error.retriable())) or self._clock() > deadline:
                raise Unavailable(reason)
            if deadline == math.inf and not has_told:
                self._warn(f"{reason}; trying until there are")
                has_told = True
            if not isinstance(error, KafkaError):
                _drop(producers)
                producers = [connect(Producer, self._properties)]

    def close(self) -> None:
        """Let go of the producer; nothing is open between two epochs."""
        self._producer.purge()
        self._caller.close()


class PlainSink:
    """Produces epochs' messages without offsets of a group: what a replay into a topic uses. All or nothing, too."""

    def __init__(self, properties: dict[str, Any], transactional_id: str, warn: Callable[[str], None]) -> None:
        self._sink = EpochSink(properties, transactional_id, warn)

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        self._sink.commit(Epoch(epoch.messages, ()), None, timeout_s)

    def close(self) -> None:
        self._sink.close()


def _countdown(timeout_s: float | None, step_timeout_s: float) -> Callable[[], float]:
    """How long the next step may take: its own time, or what is left for all of them."""
    if timeout_s is None:
        return lambda: step_timeout_s
    deadline = time.monotonic() + timeout_s
    return lambda: min(max(deadline - time.monotonic(), LEAST_STEP_S), step_timeout_s)


def _produce(producer: Producer, message: Outgoing) -> None:
    where: dict[str, Any] = {} if message.partition is None else {"partition": message.partition}
    while True:
        try:
            producer.produce(message.topic, message.value, message.key, headers=list(message.headers), **where)
            return
        except BufferError:
            producer.poll(0.1)


def _drop(producers: list[Producer]) -> None:
    """Let go of a producer and what it still has to send. Its destructor may block: that is a thread's own trouble."""
    producers[0].purge()
    threading.Thread(target=producers.clear, name="drop-producer", daemon=True).start()


def _text(error: Any) -> str:
    return error.str() if isinstance(error, KafkaError) else str(error)
