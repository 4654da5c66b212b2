"""Messages that wait until they may be taken in (care.py). None is looked at before its turn, however many wait:
whoever waits for steps of the device asks again and again.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable
from itertools import count

from streamproc.state.epoch import Message


class Waiting:
    """Records by partition, in their order, and what is no record."""

    def __init__(self, records_topic: str) -> None:
        self._records_topic = records_topic
        self._records: dict[int, deque[tuple[int, Message]]] = {}  # none is empty; with the order in which they came
        self._others: list[Message] = []
        self._arrivals, self._num = count(), 0

    def __len__(self) -> int:
        return self._num

    def add(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._num += 1
            if message.topic == self._records_topic:
                self._records.setdefault(message.partition, deque()).append((next(self._arrivals), message))
            else:
                self._others.append(message)

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what there is of these partitions."""
        for number in numbers:
            self._num -= len(self._records.pop(number, ()))
        kept = [message for message in self._others if message.partition not in numbers]
        self._num -= len(self._others) - len(kept)
        self._others = kept

    @property
    def numbers(self) -> list[int]:
        """Partitions with records here; first that of the record that has waited for the longest."""
        return sorted(self._records, key=lambda number: self._records[number][0][0])

    def first(self, number: int) -> int | None:
        """Offset of the first record of the partition; None: there is none."""
        waiting = self._records.get(number)
        return waiting[0][1].offset if waiting else None

    def last_before(self, number: int, end: int) -> int | None:
        """Offset of the last record of the partition before this one; None: there is none."""
        waiting = self._records.get(number, ())
        at = bisect_left(waiting, end, key=lambda each: each[1].offset)
        return waiting[at - 1][1].offset if at else None

    def take(self, number: int, end: int, most: int) -> list[Message]:
        """Take out records of the partition before this offset, no more than `most`."""
        waiting, taken = self._records.get(number), list[Message]()
        while waiting and waiting[0][1].offset < end and len(taken) < most:
            taken.append(waiting.popleft()[1])
        if waiting is not None and not waiting:
            del self._records[number]
        self._num -= len(taken)
        return taken

    def take_others(self) -> list[Message]:
        """Take out all that is no record."""
        taken, self._others = self._others, []
        self._num -= len(taken)
        return taken
