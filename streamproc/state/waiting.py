"""Messages that Kafka has brought and that may not be taken in yet: they wait for their turn (care.py), or for room.

None is looked at before its turn, however many wait: whoever waits for steps of the device asks again and again. What
waits is bounded by partition, so a partition with much to bring keeps none of the others waiting: while too much of it
waits, no more of it is fetched, and what there is of all others comes.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from itertools import count

from streamproc.state.epoch import Message

MOST_RECORDS = 8_000  # of a partition
MOST_BYTES = 2**26  # of all partitions together: from half of it on each may have its share of the other half
MESSAGE_BYTES = 500  # that a message takes beside its key and value
AGAIN = 0.5  # of what is too much: then a partition is fetched again


class Queue:
    """Records of one partition, with the order in which they came among all."""

    def __init__(self) -> None:
        self.records: deque[tuple[int, Message]] = deque()
        self.num_bytes = 0

    def add(self, arrival: int, message: Message) -> None:
        self.records.append((arrival, message))
        self.num_bytes += _size(message)

    def take(self) -> Message:
        message = self.records.popleft()[1]
        self.num_bytes -= _size(message)
        return message

    def num_before(self, end: int) -> int:
        """Records before this offset."""
        if self.records[-1][1].offset < end:
            return len(self.records)
        return bisect_left(self.records, end, key=lambda each: each[1].offset)


def _size(message: Message) -> int:
    return MESSAGE_BYTES + len(message.key or b"") + len(message.value or b"")


class Waiting:
    """Records by partition, in their order, and what is no record."""

    def __init__(self, records_topic: str) -> None:
        self._records_topic = records_topic
        self._queues: dict[int, Queue] = {}  # none is empty
        self._others: list[Message] = []
        self._arrivals, self._num, self._num_bytes = count(), 0, 0
        self._full: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self._num

    def add(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._num += 1
            if message.topic == self._records_topic:
                queue = self._queues.get(message.partition)
                if queue is None:
                    queue = self._queues[message.partition] = Queue()
                queue.add(next(self._arrivals), message)
                self._num_bytes += _size(message)
            else:
                self._others.append(message)

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what there is of these partitions."""
        for number in numbers:
            if queue := self._queues.pop(number, None):
                self._num -= len(queue.records)
                self._num_bytes -= queue.num_bytes
        self._full = self._full.difference(numbers)
        kept = [message for message in self._others if message.partition not in numbers]
        self._num -= len(self._others) - len(kept)
        self._others = kept

    @property
    def numbers(self) -> list[int]:
        """Partitions with records here; first that of the record that has waited for the longest."""
        return sorted(self._queues, key=lambda number: self._queues[number].records[0][0])

    def find_full(self, num_owned: int) -> frozenset[int]:
        """Partitions, of so many that are owned, of which no more is to be fetched: too much waits, or has since the
        last look. However many there are, never more than MOST_BYTES wait, and what comes with one more poll.
        """
        half = MOST_BYTES / 2
        if self._full or self._num >= MOST_RECORDS or self._num_bytes >= half:
            share = half / max(num_owned, 1)
            self._full = frozenset(n for n, queue in self._queues.items() if self._is_full(n, queue, half, share))
        return self._full

    def _is_full(self, number: int, queue: Queue, half: float, share: float) -> bool:
        part = AGAIN if number in self._full else 1.0
        is_long = len(queue.records) >= part * MOST_RECORDS
        return is_long or (self._num_bytes >= part * half and queue.num_bytes >= part * share)

    def holds(self, number: int) -> bool:
        """Whether records of the partition are here."""
        return number in self._queues

    def first(self, number: int) -> int | None:
        """Offset of the first record of the partition; None: there is none."""
        queue = self._queues.get(number)
        return queue.records[0][1].offset if queue else None

    def last_before(self, number: int, end: int) -> int | None:
        """Offset of the last record of the partition before this one; None: there is none."""
        queue = self._queues.get(number)
        num_before = queue.num_before(end) if queue else 0
        return queue.records[num_before - 1][1].offset if queue and num_before else None

    def take(self, number: int, end: int, most: int) -> list[Message]:
        """Take out records of the partition before this offset, no more than `most`."""
        queue, taken = self._queues.get(number), list[Message]()
        if queue is None:
            return taken
        self._num_bytes -= queue.num_bytes
        while queue.records and queue.records[0][1].offset < end and len(taken) < most:
            taken.append(queue.take())
        self._num_bytes += queue.num_bytes
        self._num -= len(taken)
        if not queue.records:
            del self._queues[number]
        return taken

    def take_fairly(self, ends: Mapping[int, int], most: int) -> list[Message]:
        """Take out records of these partitions before these offsets, together no more than `most`, or one of each.
        Those with few get all of theirs, the others equal parts of what is left.
        """
        taken = list[Message]()
        counts = {number: self._queues[number].num_before(end) for number, end in ends.items()}
        for num_others, number in enumerate(few_first := sorted(ends, key=counts.__getitem__)):
            part = (most - len(taken)) // (len(few_first) - num_others)
            taken += self.take(number, ends[number], max(part, 1))
        return taken

    def take_others(self) -> list[Message]:
        """Take out all that is no record."""
        taken, self._others = self._others, []
        self._num -= len(taken)
        return taken
