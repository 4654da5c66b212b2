"""What waits for its turn or for room: bounded by partition, let go of fairly."""

import random

import pytest
from world import World, make_config, random_record

from streamproc.messages import Query
from streamproc.processor import StreamProcessor
from streamproc.records import encode_record
from streamproc.state import waiting
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery
from streamproc.state.stamp import EVER
from streamproc.state.waiting import MESSAGE_BYTES, Waiting

ASKED = Query("every-2", "Is {last} {count}?", every=2, max_tokens=5)


def messages(number: int, count: int, first: int = 0, num_bytes: int = 0) -> list[Message]:
    return [Message("records", number, first + i, b"", bytes(num_bytes), 0) for i in range(count)]


def test_a_partition_is_full_until_half_of_it_is_gone_and_no_other_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 100)
    held = Waiting("records")
    held.add([*messages(0, 99), *messages(1, 50)])
    assert held.find_full(2) == set()
    held.add(messages(0, 1, 99))
    assert held.find_full(2) == {0}
    held.take(0, EVER, 50)
    assert held.find_full(2) == {0}
    held.take(0, EVER, 1)
    assert held.find_full(2) == set()
    held.add(messages(0, 51, 100))
    assert held.find_full(2) == {0}
    held.forget([0])
    assert held.find_full(2) == set()


def test_large_records_fill_a_partitions_share_of_the_bytes_once_half_of_all_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large, small = 1_000 + MESSAGE_BYTES, MESSAGE_BYTES
    monkeypatch.setattr(waiting, "MOST_BYTES", 40 * large)
    held = Waiting("records")
    held.add([*messages(0, 19, num_bytes=1_000), *messages(1, 2)])
    assert held.find_full(2) == set()
    held.add(messages(1, large // small - 2, 2))
    assert held.find_full(2) == {0}  # 20 of large ones wait, 10 are its share
    held.take(0, EVER, 10)
    assert held.find_full(2) == {0}
    held.take(0, EVER, 1)
    assert held.find_full(2) == set()


def test_nobody_is_stopped_while_little_waits_of_all_together() -> None:
    held = Waiting("records")
    held.add(message for number in range(1, 100) for message in messages(number, 3))
    held.add(messages(0, 1_500))
    assert held.find_full(100) == set()


@pytest.mark.parametrize("num_bytes", [0, 10_000])
def test_however_many_partitions_there_are_no_more_bytes_wait_than_may(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other brings all that it may, and nothing is taken out."""
    monkeypatch.setattr(waiting, "MOST_BYTES", 2_000_000)
    held, size, num_partitions = Waiting("records"), num_bytes + MESSAGE_BYTES, 50
    for number in range(num_partitions):
        while number not in held.find_full(num_partitions) and len(held) < 100_000:
            held.add(messages(number, 1, num_bytes=num_bytes))
    assert 1_000_000 < len(held) * size <= 2_000_000 + num_partitions * size


def test_who_has_few_gets_all_of_them_and_the_others_get_equal_parts() -> None:
    held = Waiting("records")
    held.add([*messages(0, 1_000), *messages(1, 10), *messages(2, 1_000), *messages(3, 500)])
    taken = held.take_fairly({0: EVER, 1: EVER, 2: EVER, 3: 20}, 250)
    counts = [sum(message.partition == number for message in taken) for number in range(4)]
    assert sum(counts) <= 250
    assert counts[1] == 10
    assert counts[3] == 20
    assert min(counts[0], counts[2]) >= 80
    for number in (0, 2):
        assert [m.offset for m in taken if m.partition == number] == list(range(counts[number]))
    assert len(held) == 2_510 - len(taken)


def test_what_one_may_not_give_others_do() -> None:
    held = Waiting("records")
    held.add([*messages(0, 8_000), *messages(1, 4_000)])
    assert len(held.take_fairly({0: 10, 1: EVER}, 250)) == 250


def test_everybody_gets_one_however_many_there_are() -> None:
    held = Waiting("records")
    held.add(message for number in range(40) for message in messages(number, 5))
    assert {message.partition for message in held.take_fairly(dict.fromkeys(range(40), EVER), 10)} == set(range(40))


class Client:
    """Brings records as Kafka's client does: those of one partition after those of another, so many at a poll."""

    def __init__(self, world: World, most: int) -> None:
        self.source, self.most = world.source, most
        world.source.poll = self.poll  # type: ignore[method-assign]

    def poll(self, timeout_s: float) -> list[Message]:
        source, found = self.source, list[Message]()
        for (topic, number), position in source.positions.items():
            if number not in source.held or topic != source.log.config.topics.records:
                batch = source.log.read(topic, number)[position : position + self.most - len(found)]
                source.positions[topic, number] += len(batch)
                found += batch
        return found


def overloaded(num_restored: int, num_new: int) -> World:
    """Partition 0 has far more to compute than there is room for; partition 1 has records that are read again."""
    world = World(random.Random(3), make_config(backlog_tokens=100), num_partitions=2, num_blocks=600)
    world.rebalance_share = 0
    world.register(ASKED)
    for _ in range(num_restored):
        world.log.produce(1, random_record(world.rng, "B"))
    world.drain()
    for number, count in ((0, 1_500), (1, num_new)):
        for _ in range(count):
            world.log.produce(number, random_record(world.rng, "AB"[number]))
    world.crash()
    Client(world, most=50)
    return world


@pytest.mark.parametrize("num_new", [0, 300])
def test_a_partition_comes_back_and_gets_its_part_while_another_has_more_than_can_be_computed(
    num_new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 200)
    world = overloaded(10, num_new)
    partitions, num_steps = world.processor.partitions, 0
    while not partitions[1].is_live:
        world.step()
        num_steps += 1
        assert num_steps < 100
    assert partitions[0].next_offset < 500
    begins = partitions[0].next_offset
    while partitions[1].committed[0] < 10 + num_new:
        world.step()
    assert partitions[0].next_offset - begins < 2 * num_new + 300
    world.drain()
    assert len(world.answers()) == 750 + (10 + num_new) // 2


def test_no_more_waits_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 200)
    world = overloaded(10, 1_500)
    care, most = world.processor.care, 0
    while world.processor.partitions[0].committed[0] < 500:
        world.step()
        most = max(most, len(care._waiting))
    assert 200 < most <= 2 * (200 + 50)
    assert world.source.held


def restoring(live_from: int) -> StreamProcessor:
    """A worker that has got partition 1, and no room for records that have to be computed."""
    world = World(random.Random(3), make_config(), num_partitions=2, num_blocks=600)
    processor = world.processor
    processor.lost([0, 1])
    processor.assigned({n: Recovery(0, live_from * n, {}, asks_from=0, end=900) for n in range(2)})
    processor._pressure.is_high = True
    return processor


def records(number: int, offsets: range) -> list[Message]:
    rng, topic = random.Random(number), make_config().topics.records
    return [Message(topic, number, at, b"B", encode_record(random_record(rng, "B")), 0) for at in offsets]


def test_what_is_read_again_needs_no_room_and_nothing_else_is_let_go() -> None:
    processor = restoring(live_from=400)
    processor._ingest([*records(0, range(500)), *records(1, range(500))])
    for _ in range(20):
        processor._ingest([])
    assert processor.partitions[0].next_offset == 0
    assert processor.partitions[1].next_offset == 400
    assert processor.partitions[1].is_live
    assert len(processor.care._waiting) == 600


def test_the_end_of_the_log_counts_once_all_before_it_is_taken_in() -> None:
    processor = restoring(live_from=700)
    processor._ingest(records(1, range(699)))  # the last one before the committed offset is a marker
    processor.read_to({1: 700})
    seen = []
    for _ in range(2):
        processor._ingest([])
        seen.append((processor.partitions[1].next_offset, processor.partitions[1].is_live))
    assert seen == [(500, False), (700, True)]


def test_a_partition_is_back_when_only_records_after_its_committed_offset_wait() -> None:
    """The last one before it is a marker, so no record that is read again tells."""
    processor = restoring(live_from=11)
    processor._ingest([*records(1, range(10)), *records(1, range(11, 20))])
    processor.read_to({1: 20})
    processor._ingest([])
    assert processor.partitions[1].is_live
    assert processor.partitions[1].next_offset == 11
    assert len(processor.care._waiting) == 9
