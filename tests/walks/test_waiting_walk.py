"""Random walks in which records wait, by portions so small that fetching stops and goes on all the time."""

import random
from collections.abc import Collection, Sequence

import pytest
from oracle import expected_answers
from world import CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.messages import Ask
from streamproc.state import care, waiting
from streamproc.state.epoch import Message
from streamproc.state.partition import Partition

NUM_PARTITIONS, NUM_SESSIONS = 3, 9


class Watched(World):
    """Every record of a partition is taken in in its turn, and none is committed before."""

    num_stops = 0

    def watch(self) -> None:
        """This life of the worker."""
        processor, source = self.processor, self.source
        take_records, hold = processor.intake.take_records, source.hold

        def take(partitions: dict[int, Partition], messages: Sequence[Message], now: float) -> None:
            expected = {number: partition.next_offset for number, partition in partitions.items()}
            for message in messages:
                assert message.offset == expected[message.partition], f"partition {message.partition}"
                expected[message.partition] += 1
            take_records(partitions, messages, now)

        def stop(numbers: Collection[int]) -> None:
            self.num_stops += bool(numbers)
            live = [partition for partition in processor.partitions.values() if partition.is_live]
            assert all(partition.committed[0] <= partition.next_offset for partition in live)
            hold(numbers)

        processor.intake.take_records = take  # type: ignore[method-assign]
        source.hold = stop  # type: ignore[method-assign]

    def reassign(self, number: int) -> None:
        """A session of the group is lost, and the partition is given to the same worker again."""
        self.processor.lost([number])
        self.source.positions = {where: at for where, at in self.source.positions.items() if where[1] != number}
        self.source.assign([number])


@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_lost_repeated_or_out_of_order_however_often_fetching_stops(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 6)
    monkeypatch.setattr(waiting, "MOST_BYTES", 9_000)
    monkeypatch.setattr(care, "MOST_AT_ONCE", 3)
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((16, 48, 400)), backlog_tokens=rng.choice((1, 60, 300)))
    world = Watched(rng, config, NUM_PARTITIONS, num_blocks=rng.choice((90, 400)))
    world.rebalance_share = 0.05
    for query in QUERIES:
        world.register(query)
    world.watch()
    num_asks = 0
    for _ in range(120):
        for _ in range(rng.choice((0, 1, 1, 5, 20))):
            session = rng.choice((0, rng.randrange(NUM_SESSIONS)))
            world.log.produce(session % NUM_PARTITIONS, random_record(rng, f"S{session}"))
        if rng.random() < 0.1:
            session = rng.randrange(NUM_SESSIONS)
            newest = len(world.log.read(config.topics.records, session % NUM_PARTITIONS)) - 1
            ask = Ask(f"ask-{num_asks}", f"S{session}", "how?", min_offset=max(newest, 0), max_tokens=3)
            world.log.append(config.topics.asks, session % NUM_PARTITIONS, ask.session.encode(), ask.encode())
            num_asks += 1
        world.fate = rng.choices(("ok", "abort", "lost reply"), (86, 7, 7))[0]
        world.step()
        if (fate := rng.random()) < 0.01:
            world.crash()
            world.watch()
        elif fate < 0.03:
            world.reassign(rng.randrange(NUM_PARTITIONS))
    world.drain()
    expected = []
    for number in range(NUM_PARTITIONS):
        messages = world.log.read(config.topics.records, number)
        expected += expected_answers(world.renderer, messages, QUERIES, CONTEXT, KEEP)
    expected.sort(key=lambda e: (e.offset, e.query_id, e.session))
    assert sorted(in_log_order(world.answers()), key=lambda e: (e.offset, e.query_id, e.session)) == expected
    ids = [answer.id for answer in world.answers()]
    assert len(ids) == len(set(ids))
    assert sum(answer.kind == "ask" for answer in world.answers()) == num_asks
    assert world.num_stops > 10
