"""Sources of replays that do more than read a stretch as fast as it comes: at a pace, and more than once."""

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from streamproc.config import Config
from streamproc.kafka.stretch import Stretch
from streamproc.messages import Head
from streamproc.positions import End, Partitions, Start
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery


class Paced(Stretch):
    """The whole log, `speed` times as fast as its records' timestamps say, across partitions in their order.

    What has been read ahead waits here; within a partition the order of the log stands above timestamps.
    """

    def __init__(self, config: Config, speed: float) -> None:
        super().__init__(config, Start(), End())
        self._speed = speed
        self._waiting: list[tuple[int, int, int, Message]] = []  # a heap, by the time at which they are due
        self._due_ms: dict[int, int] = {}  # of the newest record that was read, by partition
        self._began: tuple[float, int] | None = None  # clock in seconds, timestamp
        self._now_ms = 0

    @property
    def is_read(self) -> bool:
        return super().is_read and not self._waiting

    def poll(self, timeout_s: float) -> list[Message]:
        if not super().is_read:
            self._read(0 if self._began else timeout_s)
        found = []
        while self._began and self._waiting and self._left_s() <= 0:
            found.append(heapq.heappop(self._waiting)[-1])
        if not found and self._began and self._waiting:
            time.sleep(min(timeout_s, max(self._left_s(), 0)))
        self._now_ms = self.now_ms = max([self._now_ms, *(message.timestamp_ms for message in found)])
        return found

    def _read(self, timeout_s: float) -> None:
        for message in super().poll(timeout_s):
            number = message.partition
            self._due_ms[number] = max(message.timestamp_ms, self._due_ms.get(number, 0))
            heapq.heappush(self._waiting, (self._due_ms[number], number, message.offset, message))
        has_all = self._due_ms.keys() >= self._tail.positions.keys() or super().is_read
        if self._waiting and self._began is None and has_all:
            self._began = time.monotonic(), self._waiting[0][0]

    def _left_s(self) -> float:
        """Until the next record is due."""
        assert self._began is not None
        began_s, first_ms = self._began
        return began_s + (self._waiting[0][0] - first_ms) / 1e3 / self._speed - time.monotonic()


class Again(Stretch):
    """From these offsets to the end, as often as its partitions are assigned; `heads` say what their sessions begin
    with, by partition, as the sessions topic would.
    """

    def __init__(self, config: Config, begins: Mapping[int, int], heads: Mapping[int, Sequence[Head]]) -> None:
        super().__init__(config, Partitions(tuple(sorted(begins.items()))), End())
        self._heads = heads
        self.starts |= {number: min(head.start_offset for head in own) for number, own in heads.items() if own}

    def recoveries(self) -> dict[int, Recovery]:
        """The partitions, as a worker finds them; they are read from where they are rebuilt from once more."""
        self._tail.start(self.starts)
        return {number: self._with_heads(number, found) for number, found in super().recoveries().items()}

    def _with_heads(self, number: int, found: Recovery) -> Recovery:
        own = self._heads.get(number, ())
        topic_id = own[0].topic_id if own else ""
        return replace(found, heads={head.session: head for head in own}, topic_id=topic_id)
