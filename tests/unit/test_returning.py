"""What comes back when a partition is assigned: the hottest sessions that fit, the others when they are needed."""

import random
from collections.abc import Iterable

import pytest
from world import BLOCK, World, make_config, random_record

from streamproc.messages import Ask
from streamproc.state.partition import Phase

NUM_SESSIONS, NUM_BLOCKS = 40, 170


def make_world(num_partitions: int = 1) -> World:
    world = World(random.Random(5), make_config(step_tokens=400, backlog_tokens=10**6), num_partitions, NUM_BLOCKS)
    world.rebalance_share = 0
    return world


def fill(world: World, order: Iterable[int]) -> None:
    """Some records for each session, one session after the other."""
    for number in order:
        for _ in range(5):
            world.log.produce(number % world.num_partitions, random_record(world.rng, f"S{number}"))
        world.drain()


def restart(world: World) -> None:
    world.crash()
    while any(p.phase is Phase.RESTORING for p in world.processor.partitions.values()):
        world.step()


def there(world: World) -> set[str]:
    """Sessions that have all their cells."""
    sessions = [s for p in world.processor.partitions.values() for s in p.sessions.values()]
    return {s.key for s in sessions if s.current.num_computed == s.current.num_tokens}


def test_only_the_hottest_sessions_come_back_as_many_as_fit() -> None:
    world = make_world()
    order = world.rng.sample(range(NUM_SESSIONS), NUM_SESSIONS)
    fill(world, order)
    restart(world)
    world.drain()
    hottest = [f"S{number}" for number in reversed(order)]
    found = there(world)
    assert 3 < len(found) < NUM_SESSIONS / 3
    assert found == set(hottest[: len(found)])
    assert world.processor.counters.tokens <= NUM_BLOCKS * BLOCK


def test_the_hottest_is_the_first() -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    restart(world)
    growing = list(world.processor.workload.growing.values())
    newest = [generation.entries[-1].offset for generation in growing]
    assert len(newest) > 3
    assert newest == sorted(newest, reverse=True)


def test_the_partitions_that_come_share_the_free_cells() -> None:
    world = make_world(num_partitions=3)
    fill(world, range(NUM_SESSIONS))
    restart(world)
    world.drain()
    numbers = [int(key[1:]) % 3 for key in there(world)]
    assert all(numbers.count(partition) >= 2 for partition in range(3))
    assert world.processor.counters.tokens <= NUM_BLOCKS * BLOCK


def test_a_cold_session_comes_back_for_its_next_record_and_for_a_question() -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    restart(world)
    world.drain()
    assert not {"S0", "S1"} & there(world)
    world.log.produce(0, random_record(world.rng, "S0"))
    world.drain()
    assert "S0" in there(world)
    world.log.append(world.config.topics.asks, 0, b"S1", Ask("a", "S1", "how?", max_tokens=3).encode())
    world.step()
    world.drain()
    assert [answer.error for answer in world.answers()] == [None]


def test_who_is_asked_while_records_are_read_again_comes_before_all_others() -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    world.log.append(world.config.topics.asks, 0, b"S0", Ask("a", "S0", "how?", max_tokens=3).encode())
    restart(world)
    asked = world.processor.partitions[0].sessions["S0"].current
    assert next(iter(world.processor.workload.growing)) == asked.seq_id
    world.drain()
    assert [answer.error for answer in world.answers()] == [None]


def test_a_session_comes_back_while_the_ask_still_waits_for_its_record() -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    restart(world)
    world.drain()
    offset = len(world.log.read(world.config.topics.records, 0))
    ask = Ask("a", "S0", "how?", min_offset=offset, max_tokens=3)
    world.log.append(world.config.topics.asks, 0, b"S0", ask.encode())
    assert "S0" not in there(world)
    for _ in range(8):
        world.step()
    assert "S0" in there(world)
    assert world.answers() == []
    world.log.produce(0, random_record(world.rng, "S0"))
    world.step()
    world.drain()
    assert [answer.id for answer in world.answers()] == ["a"]


def test_the_line_says_how_many_are_back(caplog: pytest.LogCaptureFixture) -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    restart(world)
    caplog.set_level("INFO", "streamproc")
    world.drain()
    (line,) = [message for message in caplog.messages if "is back after" in message]
    num_there = len(there(world))
    assert f"{num_there} of {NUM_SESSIONS} sessions, the others when they are needed; meanwhile" in line


def test_an_epoch_that_fails_brings_no_cold_session_back() -> None:
    world = make_world()
    fill(world, range(NUM_SESSIONS))
    restart(world)
    world.drain()
    before = world.processor.counters.tokens
    world.fate = "abort"
    world.log.produce(0, random_record(world.rng, f"S{NUM_SESSIONS - 1}"))
    while not world.processor.counters.aborted_epochs:
        world.step()
    world.drain()
    assert world.processor.counters.tokens - before < 100
