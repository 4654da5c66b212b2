"""Sources of replays that do more than read a stretch as fast as it comes: at a pace, and more than once."""

import heapq
import time
from collections.abc import Mapping
from dataclasses import replace

from streamproc.config import Config
from streamproc.kafka.stretch import Stretch
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
        if not self._paused and not super().is_read:
            self._read(0 if self._waiting else timeout_s)
        found = []
        while not self._paused and self._waiting and self._left_s() <= 0:
            found.append(heapq.heappop(self._waiting)[-1])
        if not found and self._waiting:
            time.sleep(min(timeout_s, max(self._left_s(), 0)))
        self._now_ms = self.now_ms = max([self._now_ms, *(message.timestamp_ms for message in found)])
        return found

    def _read(self, timeout_s: float) -> None:
        for message in super().poll(timeout_s):
            number = message.partition
            self._due_ms[number] = max(message.timestamp_ms, self._due_ms.get(number, 0))
            heapq.heappush(self._waiting, (self._due_ms[number], number, message.offset, message))
        if self._waiting and self._began is None:
            self._began = time.monotonic(), self._waiting[0][0]

    def _left_s(self) -> float:
        """Until the next record is due."""
        assert self._began is not None
        began_s, first_ms = self._began
        return began_s + (self._waiting[0][0] - first_ms) / 1e3 / self._speed - time.monotonic()


class Again(Stretch):
    """From these offsets to the end, as often as its partitions are assigned."""

    def __init__(self, config: Config, begins: Mapping[int, int], topic_id: str) -> None:
        super().__init__(config, Partitions(tuple(sorted(begins.items()))), End())
        self._topic_id = topic_id

    def recoveries(self) -> dict[int, Recovery]:
        """The partitions, as `Stretch` gives them; it is read from the log's start once more."""
        self._tail.start(self.starts)
        return {
            number: replace(recovery, topic_id=self._topic_id) for number, recovery in super().recoveries().items()
        }
