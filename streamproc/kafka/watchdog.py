"""Whether a consumer has fallen asleep: records wait in Kafka, and none arrives."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamproc.errors import StreamprocError
from streamproc.kafka.positions import watermarks
from streamproc.kafka.tailing import Tail

ASK_S = 5.0
GAP_S = 1.0  # between two polls: then it was not the consumer that kept still


class Watchdog:
    """Looks only after nothing has come for `patience_s` seconds, and takes nothing but a record that another client
    can read for a proof: the end of a log may be markers of transactions, which nobody gets.
    """

    def __init__(
        self, properties: Mapping[str, Any], topic: str, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._properties, self._topic, self._patience_s, self._clock = dict(properties), topic, patience_s, clock
        self._quiet_since = self._polled_at = clock()
        self._ends: dict[int, int] = {}  # of logs with nothing to read before them

    def start_over(self) -> None:
        self._quiet_since = self._clock()

    def is_due(self, may_come: bool) -> bool:
        """To be asked at every poll; may_come: nothing has come now, but something could have."""
        now = self._clock()
        if not may_come or now - self._polled_at > GAP_S:
            self._quiet_since = now
        self._polled_at = now
        return now - self._quiet_since >= self._patience_s

    def waiting(self, consumer: Consumer, positions: Mapping[int, int]) -> str | None:
        """What waits although the consumer gets nothing, in words; `positions`: the next offset of each partition."""
        self.start_over()
        try:
            ends = {number: watermarks(consumer, self._where(number), ASK_S)[1] for number in positions}
        except KafkaException:
            return None  # nobody answers: the consumer is not to blame
        behind = {n: at for n, at in positions.items() if at < ends[n] and self._ends.get(n) != ends[n]}
        for number, offset in behind.items():
            if self._can_read(number, offset, max(behind) + 1):
                return f"{self._topic} partition {number}: up to {ends[number] - offset} records wait from {offset} on"
            self._ends[number] = ends[number]
        return None

    def _where(self, number: int) -> TopicPartition:
        return TopicPartition(self._topic, number)

    def _can_read(self, number: int, offset: int, num_partitions: int) -> bool:
        tail = Tail(self._properties, self._topic, num_partitions)
        try:
            tail.start({number: offset})
            deadline = self._clock() + ASK_S
            while not tail.at_end and self._clock() < deadline:
                if tail.poll(0.2):
                    return True
        except StreamprocError:
            return False  # a gap, or no Kafka: other eyes see that
        finally:
            tail.close()
        return False
