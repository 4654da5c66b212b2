"""Contexts that retention has cut: whoever owns the partition from then on counts and answers alike."""

import random
from dataclasses import replace

import pytest
from world import World, make_config, random_record

from streamproc.errors import Refused
from streamproc.messages import Answer, Query

QUERY = Query("q", "{count} of {last}?", every=3, max_tokens=5)


def make(seed: int, on_gap: str) -> World:
    config = make_config()
    config = replace(config, worker=replace(config.worker, on_gap=on_gap))
    world = World(random.Random(seed), config, num_partitions=1, num_blocks=400)
    world.rebalance_share = 0
    world.register(QUERY)
    return world


def produce(world: World, rng: random.Random, count: int, syms: str = "ABC") -> None:
    for _ in range(count):
        world.log.produce(0, random_record(rng, rng.choice(syms)))


def cut_one(world: World) -> str:
    """Retention takes the first record of one session's context, and not its last one -> the session."""
    session = min(world.processor.partitions[0].sessions.values(), key=lambda session: session.current.start_offset)
    assert len(session.current.entries) > 1
    world.log.lows[0] = session.current.start_offset + 1
    return session.key


def story(seed: int, restarts: int) -> tuple[list[Answer], int]:
    """Answers of a world whose log is cut, and from how many offsets on they are those after the cut."""
    world, rng = make(seed, "rebuild"), random.Random(seed)
    produce(world, rng, 60)
    world.drain()
    before = world.log.heads(0)
    key = cut_one(world)
    start = len(world.log.read(world.config.topics.records, 0))
    world.crash()
    for turn in range(3):
        produce(world, rng, rng.randrange(1, 8))
        world.drain()
        if turn < restarts:
            world.crash()
    head = world.log.heads(0)[key]
    assert head.start_offset > before[key].start_offset
    assert head.records_before >= before[key].records_before
    return [answer for answer in world.answers() if answer.as_of], start


@pytest.mark.parametrize("seed", range(20))
def test_later_owners_count_and_answer_alike(seed: int) -> None:
    stays, start = story(seed, restarts=0)
    assert any(answer.as_of and answer.as_of.offset >= start for answer in stays)
    for restarts in (1, 2, 3):
        assert story(seed, restarts)[0] == stays


@pytest.mark.parametrize("seed", range(5))
def test_with_fail_it_stops_with_a_line(seed: int) -> None:
    world = make(seed, "fail")
    produce(world, random.Random(seed), 60)
    world.drain()
    key = cut_one(world)
    world.crash()
    with pytest.raises(Refused, match=f"the beginning of 1 sessions' contexts, the first that of '{key}'"):
        world.drain()


@pytest.mark.parametrize("seed", range(5))
def test_a_session_that_is_over_stops_nobody_and_begins_anew(seed: int) -> None:
    world, rng = make(seed, "fail"), random.Random(seed)
    produce(world, rng, 5, "Z")
    produce(world, rng, 40)
    world.drain()
    sessions = world.processor.partitions[0].sessions
    world.log.lows[0] = min(session.current.start_offset for key, session in sessions.items() if key != "Z")
    world.crash()
    world.drain()
    assert "Z" not in world.log.heads(0)
    produce(world, rng, 3, "Z")
    world.drain()
    newest = [answer for answer in world.answers() if answer.session == "Z" and answer.as_of][-1]
    assert newest.question.startswith("3 of ")
