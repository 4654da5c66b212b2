"""What is on both sides of the loop where there is no Kafka, nor its libraries."""

from collections.abc import Collection
from typing import Any

from streamproc.config import Topics
from streamproc.processor import StreamProcessor
from streamproc.records import Record, encode_record
from streamproc.state.epoch import Epoch, Message
from streamproc.state.partition import Recovery

BATCH = 250


class MemoryKafka:
    """Records in memory as a source, and a sink that keeps nothing."""

    membership = None

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.waiting: list[Message] = []
        self.num_sent = 0
        self.is_held = False

    def add(self, record: Record) -> None:
        value = encode_record(record)
        self.waiting.append(Message(self.topics.records, 0, self.num_sent, record.sym.encode(), value, 0))
        self.num_sent += 1

    def poll(self, timeout_s: float = 0.0) -> list[Message]:
        if self.is_held:
            return []
        batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        return batch

    def stamp(self, stamps: object) -> None:
        """Nobody comes after us."""

    def hold(self, numbers: Collection[int]) -> None:
        self.is_held = 0 in numbers

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        raise AssertionError("every epoch lands")

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        """Everything lands at once."""

    def close(self) -> None:
        """Nothing to let go of."""


def until_idle(processor: StreamProcessor, kafka: MemoryKafka) -> None:
    while kafka.waiting or not processor.is_at_rest or processor.partitions[0].dirty:
        processor.step()
