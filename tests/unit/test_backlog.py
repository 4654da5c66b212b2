"""A long backlog of records that is taken in at once: steps stay full, and cells go to whose questions come next."""

import random

import pytest
from world import World, make_config, random_record

from streamproc.messages import Query

STEP_TOKENS = 256
QUERIES = (Query("every-3", "Is {last} {count}?", every=3, max_tokens=5), Query("up-4", "up?", every=4, max_tokens=1))


def backlog(num_records: int, num_sessions: int, num_blocks: int) -> World:
    config = make_config(step_tokens=STEP_TOKENS, backlog_tokens=2**30)
    world = World(random.Random(1), config, num_partitions=1, num_blocks=num_blocks)
    world.rebalance_share = 0
    world.source.batch = num_records
    world.processor.runner.looks = lambda: 0  # type: ignore[attr-defined]
    for query in QUERIES:
        world.register(query)
    for _ in range(num_records):
        world.log.produce(0, random_record(world.rng, f"S{world.rng.randrange(num_sessions)}"))
    return world


@pytest.mark.parametrize(("num_records", "num_sessions", "num_blocks"), [(600, 4, 600), (400, 1, 600), (600, 12, 900)])
def test_steps_are_full_however_long_the_backlog_is(num_records: int, num_sessions: int, num_blocks: int) -> None:
    """More generations are behind than the pool holds, and each has questions of its own."""
    world = backlog(num_records, num_sessions, num_blocks)
    processor, num_steps = world.processor, 0
    while not (processor.is_at_rest and world.source.is_drained):
        world.clock.now_s += 0.02
        processor.step()
        num_steps += 1
        assert num_steps < 2_000
    assert processor.counters.tokens / num_steps > STEP_TOKENS / 2
    assert len(world.log.read(world.config.topics.records, 0)) == num_records
    world.drain()


def test_a_session_is_computed_in_the_order_of_its_records() -> None:
    world = backlog(100, 1, 400)
    world.processor.step()
    for _ in range(40):
        world.processor.step()
        (session,) = world.processor.partitions[0].sessions.values()
        parts = [g.num_computed / g.num_tokens for g in session.generations if g.num_waiting_forks or not g.is_retired]
        begun = [part for part in parts if part < 1]
        assert all(part == 0 for part in begun[1:])
    world.drain()
