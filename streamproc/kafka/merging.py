"""Messages of several partitions in the order of their timestamps, with few of them in memory."""

import heapq
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import Protocol, TypeVar

MOST_WAITING = 10_000   # messages of a partition that wait for older ones of the others; then it is paused


class Timed(Protocol):
    """One message."""

    @property
    def partition(self) -> int: ...

    @property
    def timestamp_ms(self) -> int: ...


Message = TypeVar("Message", bound=Timed)
Waiting = dict[int, deque[Message]]


class Partitions(Protocol[Message]):
    """What is merged: one topic, read from some offset of each partition on."""

    @property
    def positions(self) -> Mapping[int, int]:
        """Next offset to read, by partition."""
        ...

    def is_done(self, partition: int) -> bool:
        """Whether all that is wanted of this partition has been read."""
        ...

    def read_some(self) -> list[Message]:
        """What comes next, or nothing where one more partition is done."""
        ...

    def pause(self, partition: int) -> None:
        """Read nothing more of this partition for now."""
        ...

    def resume(self, partition: int) -> None:
        """Read it again."""
        ...


def by_time(partitions: Partitions[Message], most_waiting: int = MOST_WAITING) -> Iterator[Message]:
    """Until all are done. A partition keeps its own order, whatever its timestamps say."""
    waiting: Waiting[Message] = {partition: deque() for partition in partitions.positions}
    heads: list[tuple[int, int]] = []       # a heap: timestamp of the next message, partition
    paused: set[int] = set()
    while True:
        while any(not queue and not partitions.is_done(partition) for partition, queue in waiting.items()):
            for message in partitions.read_some():
                queue = waiting[message.partition]
                queue.append(message)
                if len(queue) == 1:
                    heapq.heappush(heads, (message.timestamp_ms, message.partition))
                if len(queue) >= most_waiting and message.partition not in paused:
                    paused.add(message.partition)
                    partitions.pause(message.partition)
        if not heads:
            return
        partition = yield from oldest(waiting, heads)
        if partition in paused:
            paused.remove(partition)
            partitions.resume(partition)


def oldest(waiting: Waiting[Message], heads: list[tuple[int, int]]) -> Generator[Message, None, int]:
    """The oldest messages up to where a partition has none left -> that partition."""
    while True:
        _, partition = heapq.heappop(heads)
        queue = waiting[partition]
        yield queue.popleft()
        if not queue:
            return partition
        heapq.heappush(heads, (queue[0].timestamp_ms, partition))
