"""Blocks outside the pool: what is kept, what is asked for, who waits for what."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from planning import Planning
from world import World, make_config, random_record

from streamproc.messages import Query
from streamproc.state.session import Shape
from streamproc.state.tier import COMING_BYTES, PATIENCE, STEP_BYTES, Tier

PREFIX = tuple(range(10))
BLOCK, CONTEXT = 4, 64
A, B, C, D = (bytes([i]) * 16 for i in range(4))


class Shelf:
    """Answers when it is told to."""

    def __init__(self, *names: bytes, room: int = 0) -> None:
        self.names = set(names)
        self.room = room
        self.taken: dict[bytes, Any] = {}
        self.asked: list[tuple[Sequence[bytes], Future[Mapping[bytes, Any]]]] = []

    def has(self, name: bytes) -> bool:
        return name in self.names

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        self.asked.append((names, Future()))
        return self.asked[-1][1]

    def put(self, name: bytes, data: Any) -> None:
        assert self.room > 0
        self.names.add(name)
        self.taken[name] = data
        self.room -= 1


def test_what_is_forgotten_on_its_way_is_not_kept_and_what_was_lost_on_its_way_may_come_again() -> None:
    tier = Tier(9)
    for name in (A, B):
        tier.leave(7, name)
        tier.saving(name for _, name in tier.take_leaving())
    tier.forget([A, B])
    assert not tier.is_leaving(A)
    tier.put({A: 1})
    assert tier.is_empty
    tier.lost([B])          # by a step that lacked memory
    tier.leave(8, B)
    tier.saving(name for _, name in tier.take_leaving())
    assert tier.is_leaving(B)
    tier.put({B: 2})
    assert tier.get(B) == 2
    assert not tier.is_leaving(B)


def test_what_leaves_the_pool_is_kept_the_longest_unused_go_first() -> None:
    tier = Tier(most_blocks=2, most_coming=1)
    tier.leave(7, A)
    tier.leave(8, B)
    assert tier.take_leaving() == [(7, A), (8, B)]
    assert tier.take_leaving() == []
    tier.put({A: 1, B: 2})
    tier.leave(7, A)
    assert tier.take_leaving() == []    # it is here already
    assert tier.offer([A]) == ([1], False)
    tier.put({C: 3})
    assert [tier.has(name) for name in (A, B, C)] == [True, False, True]


def test_without_memory_nothing_is_kept() -> None:
    tier = Tier()
    tier.leave(7, A)
    assert (tier.take_leaving(), tier.is_empty) == ([], True)


def test_what_lies_on_the_shelf_is_asked_for_once_and_waited_for() -> None:
    shelf = Shelf(A, B, D)
    tier = Tier(0, shelf, most_coming=8)
    assert tier.offer([A, B, C, D]) == ([], True)
    assert tier.offer([A, B, C, D]) == ([], True)
    assert [names for names, _ in shelf.asked] == [[A, B]]     # C has to be computed: who knows when D is needed
    tier.collect()
    assert tier.offer([A]) == ([], True)
    shelf.asked[0][1].set_result({A: 1, B: 2})
    tier.collect()
    assert tier.offer([A, B, C, D]) == ([1, 2], False)


def test_what_the_shelf_cannot_read_is_computed() -> None:
    shelf = Shelf(A, B)
    tier = Tier(0, shelf)
    tier.offer([A, B])
    shelf.asked[0][1].set_result({A: None, B: 2})
    tier.collect()
    assert tier.offer([A, B]) == ([], False)
    assert not tier.has(A)
    assert len(shelf.asked) == 1


def test_no_more_is_on_its_way_than_there_is_room_for() -> None:
    shelf = Shelf(A, B, C)
    tier = Tier(0, shelf, most_coming=2)
    assert tier.offer([A, B, C]) == ([], True)
    assert tier.offer([C]) == ([], True)        # it is waited for: to compute it takes longer
    assert [names for names, _ in shelf.asked] == [[A, B]]
    shelf.asked[0][1].set_result({A: 1, B: 2})
    tier.collect()
    assert tier.offer([C]) == ([], True)        # what has come counts until a step copies it in
    tier.loaded([A, B])
    assert tier.offer([C]) == ([], True)
    assert [names for names, _ in shelf.asked] == [[A, B], [C]]


def test_what_came_for_somebody_who_is_gone_does_not_keep_others_waiting() -> None:
    shelf = Shelf(A, B)
    tier = Tier(0, shelf, most_coming=1)
    tier.offer([A])
    shelf.asked[0][1].set_result({A: 1})
    for _ in range(PATIENCE + 1):
        tier.collect()
        assert tier.offer([B]) == ([], True)
    assert len(shelf.asked) == 1
    tier.collect()
    assert tier.offer([B]) == ([], True)
    assert [names for names, _ in shelf.asked] == [[A], [B]]
    assert not tier.is_here(A)


def test_who_may_get_no_cells_asks_for_nothing_and_keeps_nothing() -> None:
    shelf = Shelf(A, B)
    tier = Tier(0, shelf, most_coming=1)
    assert tier.offer([A], asks=False) == ([], True)
    assert shelf.asked == []
    tier.offer([A])
    shelf.asked[0][1].set_result({A: 1})
    for _ in range(PATIENCE + 2):
        tier.collect()
        assert tier.offer([A], asks=False) == ([1], False)
    tier.offer([B])
    assert not tier.is_here(A)


def test_budgets_are_in_bytes_and_without_host_memory_what_is_loaded_is_gone() -> None:
    tier = Tier.sized(0, 8 * 2**20)
    assert tier.most_coming * 8 * 2**20 == COMING_BYTES
    assert tier.most_loads * 8 * 2**20 == STEP_BYTES
    assert (Tier.sized(0, 2**40).most_coming, Tier.sized(0, 2**40).most_loads) == (1, 1)
    tier.shelf = shelf = Shelf(*(bytes([i]) * 16 for i in range(100)))
    names = sorted(shelf.names)
    while names:
        tier.offer(names)
        for asked, future in shelf.asked:
            future.set_result(dict.fromkeys(asked, 1))
        shelf.asked.clear()
        tier.collect()
        found, _ = tier.offer(names, tier.most_loads)
        assert len(found) == min(tier.most_loads, len(names))
        assert tier.num_coming <= tier.most_coming
        tier.loaded(names[: len(found)])
        names = names[len(found) :]
    assert (tier.num_coming, tier.num_loaded) == (0, 100)
    assert not any(tier.is_here(name) for name in shelf.names)


def test_what_leaves_goes_to_the_shelf_while_that_has_room_and_only_once() -> None:
    shelf = Shelf(A, room=2)
    tier = Tier(0, shelf)
    for number, name in enumerate((A, B, C, D)):
        tier.leave(number, name)
    assert tier.take_leaving() == [(1, B), (2, C)]      # A is there, for D there is no room
    tier.put({B: 2, C: 3, D: 4})        # D was copied out for somebody else
    assert shelf.taken == {B: 2, C: 3}
    shelf.room = 9
    tier.leave(5, B)
    assert tier.take_leaving() == []
    tier = Tier(0, shelf, most_loads=1)     # and no more of them in one step than it copies in
    tier.leave(1, D)
    tier.leave(2, bytes(16))
    assert tier.take_leaving() == [(1, D)]


def test_what_drops_out_of_host_memory_goes_to_the_shelf() -> None:
    shelf = Shelf(A, room=9)
    tier = Tier(2, shelf)
    tier.put({A: 1, B: 2, C: 3, D: 4})
    assert shelf.taken == {B: 2}
    shelf.room = 0
    tier.put({bytes(16): 5})
    assert shelf.taken == {B: 2}


def test_what_could_not_be_read_is_asked_for_again_when_there_is_something_newer() -> None:
    shelf = Shelf(A, B, room=1)
    tier = Tier(0, shelf)
    tier.offer([A])
    tier.offer([B])
    for (names, future) in shelf.asked:
        future.set_result(dict.fromkeys(names))
    tier.collect()
    assert (tier.offer([A]), tier.offer([B])) == (([], False), ([], False))
    tier.retry([A, C])
    assert (tier.offer([A]), tier.offer([B])) == (([], True), ([], False))
    tier.leave(3, B)        # it is put there once more
    assert tier.take_leaving() == [(3, B)]
    tier.put({B: 2})
    assert tier.offer([B]) == ([], True)


def test_a_shelf_that_does_not_answer_is_left_alone_ever_longer_and_asked_again() -> None:
    now_s, shelf = [100.0], Shelf(A)
    tier = Tier(0, shelf, now=lambda: now_s[0])

    def times_asked(seconds: float) -> int:
        before, end_s = len(shelf.asked), now_s[0] + seconds
        while now_s[0] < end_s:
            now_s[0] += 0.25
            if tier.offer([A])[1]:
                shelf.asked[-1][1].set_result({})
            tier.collect()
        return len(shelf.asked) - before

    assert 2 <= times_asked(30.0) <= 5
    assert times_asked(600.0) <= 11
    now_s[0] += 60.0
    tier.collect()
    assert tier.offer([A]) == ([], True)
    shelf.asked[-1][1].set_result({A: 1})
    tier.collect()
    assert tier.offer([A]) == ([1], False)


def test_what_is_stored_is_not_computed_however_little_is_on_its_way_at_a_time() -> None:
    shelf = Shelf()
    tier = Tier(0, shelf, most_coming=8)
    planning = Planning(400, BLOCK, 40, Shape(PREFIX, 2_000, 400), tier=tier)
    for i in range(6):
        session = planning.session()
        for k in range(10):
            planning.record(session, tuple((i * 31 + k * j) % 100 for j in range(4)))
    planning.drain()
    stored: dict[bytes, Any] = {}
    for session in planning.sessions:
        generation = session.current
        for index in range(generation.num_tokens // BLOCK):
            stored[generation.name(index, BLOCK)] = planning.runner._bytes_of(generation.block_table[index])
        planning.workload.evict(generation)
    planning.pool.release(planning.pool.allocate(planning.pool.num_free) or [])     # nothing is left in it
    shelf.names = set(stored)
    before = planning.num_tokens
    for session in planning.sessions:
        planning.workload.grow(session.current)

    def answer() -> None:
        for names, future in shelf.asked:
            future.set_result({name: stored[name] for name in names})
        shelf.asked.clear()

    planning.drain(between=answer)
    num_partly = sum(session.current.num_tokens % BLOCK for session in planning.sessions)
    assert planning.num_tokens - before == num_partly


def test_what_is_outside_the_pool_is_not_computed_where_a_step_cannot_take_all_of_it() -> None:
    tier = Tier(most_blocks=100, most_loads=3)
    planning = Planning(40, BLOCK, 400, Shape(PREFIX, 10 * CONTEXT, CONTEXT), tier=tier)
    session = planning.session()
    planning.record(session, tuple(range(100)))
    planning.drain()
    num_full = session.current.num_tokens // BLOCK
    planning.workload.evict(session.current)
    planning.call(tuple(range(40, 140)), 30)    # takes the blocks
    planning.drain()
    before = planning.num_tokens
    planning.ask(session, Query("q", "q", max_tokens=2), (7, 8, 9))
    planning.drain()
    assert tier.num_loaded > num_full // 2
    assert planning.num_tokens - before < BLOCK * (num_full - tier.num_loaded) + 2 * BLOCK + 5


def test_what_may_be_stored_somewhere_waits_what_is_in_reach_is_loaded_and_others_go_on() -> None:
    tier = Tier(most_blocks=100)
    planning = Planning(60, BLOCK, 400, Shape(PREFIX, 10 * CONTEXT, CONTEXT), tier=tier)
    held, other = planning.session(), planning.session()
    planning.record(held, tuple(range(100)))
    planning.drain()
    num_full = held.current.num_tokens // BLOCK
    planning.workload.evict(held.current)
    planning.call(tuple(range(40, 200)), 30)    # takes the blocks
    planning.drain()
    planning.record(held, tuple(range(50)))
    planning.record(other, (1, 2, 3))
    for _ in range(9):
        plan = planning.step({held.current.seq_id})
        assert {chunk.seq_id for chunk in plan.chunks} <= {other.current.seq_id}
    assert other.current.num_computed == other.current.num_tokens
    assert held.current.num_computed == num_full * BLOCK
    planning.drain()
    planning.workload.check()


def test_two_thousand_sessions_live_on_a_pool_for_eighty() -> None:
    """64 of them are at work at a time; what comes back is not computed again, but for its newest tokens."""
    rng = random.Random(1)
    size = -(-CONTEXT // BLOCK)
    tier = Tier(most_blocks=2_000 * size)
    planning = Planning(80 * size, BLOCK, 400, Shape(PREFIX, CONTEXT, CONTEXT // 2), tier=tier)
    for _ in range(2_000):
        planning.session()
    num_given, num_asked, num_returns = planning.rounds(rng, 60, (1, 3, 5))
    assert num_returns > 2_400
    assert tier.num_loaded > 500
    assert planning.num_tokens <= num_given + num_asked * 5 + num_returns * (BLOCK - 1)
    planning.workload.check()


@pytest.mark.parametrize("num_blocks", [100, 400])
def test_contexts_that_nobody_can_go_back_to_take_no_memory(num_blocks: int) -> None:
    world = World(random.Random(2), make_config(), 2, num_blocks, host_bytes=2**20)
    world.rebalance_share = 0.0
    for turn in range(400):
        world.log.produce(turn % 2, random_record(world.rng, f"S{turn % 4}"))
        world.step()
    world.drain()
    processor = world.processor
    sessions = [s for partition in processor.partitions.values() for s in partition.sessions.values()]
    live = {g.name(i, 4) for s in sessions for g in s.all_generations for i in range(g.num_tokens // 4)}
    assert sum(s.current.records_before for s in sessions) > 300      # they have hopped often
    assert len(set(processor.tier._here) - live) <= 3     # blocks with the system prefix in them
    assert processor.pool.num_free


class Stored:
    """A shelf that has all of these blocks, and cannot read some of them."""

    def __init__(self, blocks: Mapping[bytes, Any], damaged: set[bytes]) -> None:
        self.blocks, self.damaged = blocks, damaged

    def has(self, name: bytes) -> bool:
        return name in self.blocks

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        found: Future[Mapping[bytes, Any]] = Future()
        found.set_result({name: None if name in self.damaged else self.blocks[name] for name in names})
        return found

    @property
    def room(self) -> int:
        return 0


@pytest.mark.parametrize("damaged", [{0}, {7}, {20}, {24}, {3, 4, 11}, set(range(25))])
@pytest.mark.parametrize("at_once", [True, False])
def test_behind_blocks_that_the_shelf_cannot_read_nothing_is_computed_that_it_can(
    damaged: set[int], at_once: bool
) -> None:
    ids = tuple(range(91))      # with the prefix 25 full blocks, and a token
    first = Planning(100, BLOCK, 400, Shape(PREFIX, 10 * CONTEXT, CONTEXT))
    session = first.session()
    first.record(session, ids)
    first.drain()
    names = [session.current.name(index, BLOCK) for index in range(25)]
    blocks = {name: first.runner._bytes_of(session.current.block_table[i]) for i, name in enumerate(names)}
    shelf = Stored(blocks, {names[index] for index in damaged})
    second = Planning(100, BLOCK, 400, Shape(PREFIX, 10 * CONTEXT, CONTEXT), tier=Tier(0, shelf))
    again = second.session()
    for part in (ids,) if at_once else (ids[:33], ids[33:]):
        second.record(again, part)
        if not at_once:
            second.step()
    second.ask(again, Query("q", "q", max_tokens=2), (7, 8, 9))
    second.drain()
    assert second.scheduler.tier.num_loaded == 25 - len(damaged)
    num_question = 3 + 1
    assert second.num_tokens == BLOCK * len(damaged) + 1 + num_question


def test_a_shelf_that_has_a_fault_costs_the_blocks_and_not_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(A, B)
    tier = Tier(0, shelf, most_coming=8)
    assert tier.offer([A, B]) == ([], True)
    shelf.asked[0][1].set_exception(MemoryError("no room"))
    tier.collect()
    assert (tier.num_coming, tier.has(A), tier.offer([A, B])) == (0, False, ([], False))
    assert "blocks cannot be fetched: MemoryError: no room" in caplog.text
