"""What a commit looks at: only sessions that have changed, and yet everything that looking at all would find."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from world import QUERIES, World, make_config, random_record

from streamproc import processor
from streamproc.messages import Ask, Head, Mark
from streamproc.state.generation import Generation
from streamproc.state.partition import Partition
from streamproc.state.publish import Publisher, Settlement, settle
from streamproc.state.session import Session

Marks = dict[Session, dict[str, Mark]]


def heads_of_all(partition: Partition, target: int, marks: Marks) -> Iterator[tuple[str, Head]]:
    """The heads that a look at every session would commit."""
    for session in partition.sessions.values():
        generation = session.committed_generation(target)
        if generation.entries and generation.entries[0].offset < target:
            kept = marks.get(session, session.head.marks if session.head else {})
            start, before = generation.start_offset, generation.records_before
            head = Head(session.key, start, before, kept, partition.stamp.topic_id, generation.born_at)
            if head != session.head or session.key in partition.stale:
                yield session.key, head


@pytest.fixture
def num_compared(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every commit is compared with one that looks at all sessions; counts what was found."""
    num = {"heads": 0, "generations": 0, "left alone": 0}
    find = Publisher._heads

    def heads(self: Publisher, partition: Partition, target: int, marks: Marks) -> dict[str, Head]:
        found = dict(find(self, partition, target, marks))
        assert found == dict(heads_of_all(partition, target, marks))
        num["heads"] += len(found)
        num["left alone"] += len(partition.sessions.keys() - partition.touched.keys())
        return found

    def settled(settlement: Settlement) -> list[Generation]:
        gone = settle(settlement)
        for session in settlement.partition.sessions.values():
            assert session.settle(settlement.positions[0]) == []
        num["generations"] += len(gone)
        return gone

    monkeypatch.setattr(Publisher, "_heads", heads)
    monkeypatch.setattr(processor, "settle", settled)
    return num


@pytest.mark.parametrize("seed", range(12))
def test_a_commit_finds_what_a_look_at_all_sessions_would_find(seed: int, num_compared: dict[str, int]) -> None:
    rng = random.Random(seed)
    world = World(rng, make_config(step_tokens=rng.choice((16, 400))), 2, rng.choice((90, 400)), seed % 2 == 1)
    for query in QUERIES:
        world.register(query)
    symbols = [f"S{i}" for i in range(12)]
    for turn in range(300):
        sym = rng.choice(symbols)
        for _ in range(rng.choice((0, 1, 5))):
            world.log.produce(symbols.index(sym) % 2, random_record(rng, sym))
        if rng.random() < 0.1:
            ask = Ask(f"ask-{turn}", sym, "how?", max_tokens=4)
            world.log.append(world.config.topics.asks, symbols.index(sym) % 2, sym.encode(), ask.encode())
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
        if rng.random() < 0.01:
            world.crash()
    world.drain()
    assert all(num_compared.values())


def test_a_reply_costs_a_look_at_its_own_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(random.Random(1), make_config(), 1, 4_000)
    world.rebalance_share = 0.0
    for number in range(300):
        world.log.produce(0, random_record(world.rng, f"S{number}"))
    world.drain()
    looked_at: dict[str, list[Any]] = {"committed_generation": [], "settle": []}
    for method, calls in looked_at.items():
        original = getattr(Session, method)

        def counting(self: Session, offset: int, calls: list[Any] = calls, original: Any = original) -> Any:
            calls.append(self)
            return original(self, offset)

        monkeypatch.setattr(Session, method, counting)
    world.log.append(world.config.topics.asks, 0, b"S7", Ask("one", "S7", "how?", max_tokens=4).encode())
    world.log.produce(0, random_record(world.rng, "S8"))
    world.drain()
    assert [answer.id for answer in world.answers()] == ["one"]
    assert {session.key for calls in looked_at.values() for session in calls} <= {"S7", "S8"}
