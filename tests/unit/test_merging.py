"""Partitions merged by time: against sorting, and with a bound on what waits."""

import random
from typing import NamedTuple

import pytest

from streamproc.kafka.merging import by_time


class Message(NamedTuple):
    partition: int
    offset: int
    timestamp_ms: int


class FakePartitions:
    """A consumer: any partition that is not paused may be the next to come; what was fetched of one is not lost."""

    def __init__(self, logs: list[list[int]], rng: random.Random) -> None:
        self.logs = logs
        self.rng = rng
        self.positions = dict.fromkeys(range(len(logs)), 0)
        self.ended: set[int] = set()
        self.paused: set[int] = set()

    def is_done(self, partition: int) -> bool:
        return partition in self.ended

    def read_some(self) -> list[Message]:
        may = [p for p in self.positions if p not in self.paused and p not in self.ended]
        assert may, "waits for what is paused"
        partition = self.rng.choice(may)
        start = self.positions[partition]
        stop = min(start + self.rng.randint(1, 4), len(self.logs[partition]))
        self.positions[partition] = stop
        if start == stop:
            self.ended.add(partition)
        return [Message(partition, offset, self.logs[partition][offset]) for offset in range(start, stop)]

    def pause(self, partition: int) -> None:
        assert partition not in self.paused
        self.paused.add(partition)

    def resume(self, partition: int) -> None:
        self.paused.remove(partition)


@pytest.mark.parametrize("seed", range(50))
def test_the_order_is_that_of_time(seed: int) -> None:
    rng = random.Random(seed)
    logs = [sorted(rng.choices(range(1000), k=rng.choice((0, 1, 30)))) for _ in range(rng.randint(1, 5))]
    found = list(by_time(FakePartitions(logs, rng), most_waiting=rng.randint(1, 8)))
    assert [message.timestamp_ms for message in found] == sorted(time for log in logs for time in log)


@pytest.mark.parametrize("seed", range(50))
def test_a_partition_keeps_its_own_order_and_nothing_is_lost(seed: int) -> None:
    """Clocks of writers may go back."""
    rng = random.Random(seed)
    logs = [rng.choices(range(1000), k=20) for _ in range(3)]
    found = list(by_time(FakePartitions(logs, rng), most_waiting=4))
    for partition, log in enumerate(logs):
        assert [message.timestamp_ms for message in found if message.partition == partition] == log


@pytest.mark.parametrize("seed", range(10))
def test_little_waits_even_where_one_partition_is_all_older(seed: int) -> None:
    partitions = FakePartitions([list(range(500)), list(range(500, 1000))], random.Random(seed))
    num_out = 0
    for _ in by_time(partitions, most_waiting=10):
        num_out += 1
        assert sum(partitions.positions.values()) - num_out < 2 * (10 + 4)
    assert num_out == 1000
