"""Sources of replays keep to their pace, and give the log as it is."""

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from harness.paces import Again, Paced
from workers import make_config

from streamproc.config import Config, Topics
from streamproc.kafka.stretch import Stretch
from streamproc.messages import Head
from streamproc.state.epoch import Message

NUM_RECORDS, STEP_MS = 40, 50
SPAN_S = (NUM_RECORDS - 1) * STEP_MS / 1e3
BEGAN_MS = 1_700_000_000_000


@pytest.fixture
def config(make_topics: Callable[..., Topics], bootstrap_servers: str) -> Config:
    """A log of two partitions whose records come in turn, by their timestamps; number 20 has one that is too early."""
    found = make_config(make_topics(partitions=2), bootstrap_servers)
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for number in range(NUM_RECORDS):
        timestamp = BEGAN_MS + (number if number != 20 else 2) * STEP_MS
        producer.produce(found.topics.records, b"%d" % number, b"S", partition=number % 2, timestamp=timestamp)
    assert producer.flush(10) == 0
    return found


def read(source: Stretch) -> list[tuple[float, Message]]:
    """All of it, and when it came."""
    found: list[tuple[float, Message]] = []
    began_s = time.monotonic()
    while not source.is_read:
        found += [(time.monotonic() - began_s, message) for message in source.poll(0.1)]
    return found


@pytest.mark.broker
def test_records_come_when_their_timestamps_say_so_and_in_their_order(config: Config) -> None:
    source = Paced(config, speed=4.0)
    try:
        found = read(source)
    finally:
        source.close()
    numbers = [int(message.value or b"") for _, message in found]
    wanted = list(range(NUM_RECORDS))
    wanted.insert(19, wanted.pop(20))  # after 18, the one before it in its partition
    assert numbers == wanted
    assert found[-1][0] - found[0][0] >= SPAN_S / 4 * 0.95
    early = [number for (came_s, _), number in zip(found, numbers, strict=True) if came_s < number * STEP_MS / 1e3 / 4]
    assert set(early) <= {20}
    assert source.now_ms == BEGAN_MS + (NUM_RECORDS - 1) * STEP_MS
    assert source.num_records == NUM_RECORDS


@pytest.mark.broker
def test_a_stretch_is_read_as_often_as_it_is_assigned(config: Config) -> None:
    heads = {0: [Head("S", 2, 2, {}, "id"), Head("T", 4, 0, {}, "id")], 1: []}
    source = Again(config, {0: 5, 1: 9}, heads)
    try:
        for _ in range(2):
            recoveries = source.recoveries()
            assert {n: (r.rebuild_from, r.live_from) for n, r in recoveries.items()} == {0: (2, 5), 1: (0, 9)}
            assert [(r.topic_id, list(r.heads)) for r in recoveries.values()] == [("id", ["S", "T"]), ("", [])]
            assert len(read(source)) == NUM_RECORDS - 2
    finally:
        source.close()
