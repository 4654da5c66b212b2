"""Which record kills the worker: found on fakes, among innocent ones, whatever else dies meanwhile."""

import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from dying import POISON, Death, Mortal
from world import random_record

from streamproc.errors import StreamprocError
from streamproc.messages import Query
from streamproc.records import Trade
from streamproc.state.blocks import BlockPool
from streamproc.state.care import MOST_AT_ONCE, PART, Care
from streamproc.state.epoch import Message
from streamproc.state.partition import Partition, Recovery
from streamproc.state.session import Shape
from streamproc.state.stamp import EVER, MAX_POISONED, Stamp, Suspects, Work, decode_stamp
from streamproc.state.waiting import MOST_RECORDS, Waiting
from streamproc.state.workload import Workload

QUERY = Query("q", "how is {last}?", every=2, max_tokens=5)
IDLE = Query("idle", "now {last}?", max_tokens=4)


@pytest.mark.parametrize("where", ["renderer", "runner"])
@pytest.mark.parametrize("seed", range(15))
def test_a_record_that_kills_is_set_aside_and_all_others_are_answered(seed: int, where: str) -> None:
    world = Mortal(seed, where)
    world.register(QUERY)
    rng, poison = world.rng, set()
    for _ in range(rng.randrange(5, 60)):
        world.log.produce(rng.randrange(2), random_record(rng, rng.choice("ABC")))
        if rng.random() < 0.5:
            world.live(world.step)
    for _ in range(rng.choice((1, 1, 2))):
        poison.add(world.produce_poison(rng.randrange(2)))
        for _ in range(rng.randrange(1, 30)):
            world.log.produce(rng.randrange(2), random_record(rng, rng.choice("ABC")))
    world.live(world.drain)
    world.crash()
    world.live(world.drain)
    assert world.dead() == sorted(poison)
    assert all(letter["code"] == b"POISON_RECORD" and int(letter["deaths"]) >= 3 for letter in world.letters())
    assert world.num_deaths <= 5 * len(poison)  # one is not counted, and one may be blamed on the other partition
    assert world.found() == world.expected(QUERY, poison)


@pytest.mark.parametrize("poison_after", [2, 3, 5])
def test_so_many_deaths_at_one_offset_are_needed_and_no_more(poison_after: int) -> None:
    world = Mortal(1, "renderer", poison_after)
    world.register(QUERY)
    world.log.produce(0, random_record(world.rng, "A"))
    world.drain()
    world.log.produce(0, Trade("A", 5, POISON, "1"))
    world.live(world.drain)
    assert world.num_deaths in (max(poison_after, 3), max(poison_after, 3) + 1)
    assert len(world.letters()) == 1


def test_a_record_that_kills_after_its_offset_was_committed_is_found_in_the_restore() -> None:
    world = Mortal(1, "nothing")
    world.register(IDLE)
    for px in ("1", POISON, "2"):
        world.log.produce(0, Trade("A", 5, px, "1"))
    world.drain()
    world.where = "runner"
    world.crash()
    world.live(world.drain)
    (letter,) = world.letters()
    assert int(letter["offset"]) == 1
    world.num_deaths = 0
    world.crash()
    world.live(world.drain)
    assert world.num_deaths == 0
    assert len(world.letters()) == 1


@pytest.mark.parametrize("seed", range(10))
def test_workers_that_are_killed_at_random_while_they_make_progress_make_no_record_suspect(seed: int) -> None:
    world = Mortal(seed, "nothing")
    world.register(QUERY)
    for turn in range(120):
        world.log.produce(turn % 2, random_record(world.rng, "AB"[turn % 2]))
        world.step()
        if turn % 20 == 19:
            world.drain()
            world.crash()
    world.drain()
    assert world.letters() == []
    assert len(world.answers()) == 60


def test_a_clean_end_counts_no_death_and_an_owner_that_makes_progress_forgets_them() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    for _ in range(6):
        world.log.produce(0, random_record(world.rng, "A"))
        world.drain()
        world.processor.close()
        world.crash()
    stamp = Stamp(work=Work(0, EVER)).succeeded()
    assert replace(stamp, work=Work(0, EVER)).succeeded().num_deaths == 2
    recovery = world.source.recover(0)
    assert recovery.stamp.left
    assert recovery.stamp.succeeded().num_deaths == 0


def fill(world: Mortal, count: int, number: int = 0) -> None:
    for _ in range(count):
        world.log.produce(number, random_record(world.rng, world.rng.choice("ABC")))


def count_stamps(world: Mortal) -> list[dict[int, tuple[int, Stamp]]]:
    """Offsets that are committed again from now on, by this worker."""
    written: list[dict[int, tuple[int, Stamp]]] = []
    stamp = world.source.stamp
    world.source.stamp = lambda stamps: written.append(dict(stamps)) or stamp(stamps)  # type: ignore[method-assign]
    return written


@pytest.mark.parametrize("in_backlog", [0, 63, 64, 599])
@pytest.mark.parametrize("where", ["renderer", "runner"])
def test_wherever_the_record_is_in_a_long_backlog_four_deaths_find_it(where: str, in_backlog: int) -> None:
    world = Mortal(1, where)
    world.register(QUERY)
    fill(world, 30)
    world.drain()
    fill(world, in_backlog)
    poison = world.produce_poison(0)
    fill(world, 600 - in_backlog)
    world.live(world.drain)
    assert world.dead() == [poison]
    assert world.num_deaths <= 4
    assert world.found() == world.expected(QUERY, {poison})


def test_two_innocent_deaths_cost_a_long_backlog_an_offset_commit_for_each_part_and_for_each_record_of_one() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    fill(world, 1_000)
    stamp = Stamp(work=Work(0, PART), suspects=(Suspects(0, EVER, 1),))
    world.log.committed[world.config.topics.records, 0] = (0, stamp.encode())
    world.crash()
    written = count_stamps(world)
    world.drain()
    assert len(written) <= 1_000 / PART + PART + 5
    assert world.letters() == []
    assert len(world.answers()) > 450


def test_other_partitions_go_on_while_a_part_is_under_way() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    fill(world, 20)
    fill(world, 20, 1)
    world.drain()
    world.processor.close()
    fill(world, 1_000)
    world.crash()
    world.log.committed[world.config.topics.records, 0] = (20, Stamp(work=Work(20, EVER)).encode())
    world.crash()
    world.source.batch = 50
    fill(world, 30, 1)
    partitions = world.processor.partitions
    while partitions[1].committed[0] < 50:
        world.step()
    assert world.processor.care.is_holding
    assert partitions[0].committed[0] < 200


def test_at_rest_nobody_is_named() -> None:
    world = Mortal(1, "nothing")
    world.register(IDLE)
    fill(world, 20)
    fill(world, 20, 1)
    world.drain()
    for number in range(2):
        stamp = Stamp(work=Work(0, 20))
        world.log.committed[world.config.topics.records, number] = (20, stamp.encode())
    world.crash()
    written = count_stamps(world)
    world.drain()
    world.step()
    named = {(number, stamp.work) for stamps in written for number, (_, stamp) in stamps.items() if stamp.work}
    starts = [world.source.recover(number).rebuild_from for number in range(2)]
    assert named == {(number, Work(at, at + 1, True)) for number in range(2) for at in range(starts[number], 20)}
    for number in range(2):
        assert decode_stamp(world.log.committed[world.config.topics.records, number][1]) == Stamp(topic_id="first")
    alone = [sum(bool(stamp.work and stamp.work.is_alone) for _, stamp in stamps.values()) for stamps in written]
    assert max(alone) == 1


def test_messages_that_wait_stop_the_fetching_until_most_of_them_are_gone() -> None:
    world = Mortal(1, "nothing")
    fill(world, MOST_RECORDS + 1_000)
    world.log.committed[world.config.topics.records, 0] = (0, Stamp(work=Work(0, EVER)).encode())
    world.crash()
    world.source.batch = MOST_RECORDS + 100
    care = world.processor.care
    world.step()
    assert world.source.held == {0}
    while world.source.held:
        world.step()
    assert len(care._waiting) < MOST_RECORDS // 2


def test_what_has_waited_is_let_go_by_portions_and_not_while_there_is_enough_to_compute() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    fill(world, 2 * PART)
    world.log.committed[world.config.topics.records, 0] = (0, Stamp(work=Work(0, EVER)).encode())
    world.crash()
    fill(world, 1_000)
    world.source.batch = MOST_RECORDS
    care, admit = world.processor.care, world.processor.care.admit
    let_go: list[tuple[int, bool]] = []

    def watched(messages, partitions, write, has_room):  # type: ignore[no-untyped-def]
        found = admit(messages, partitions, write, has_room)
        let_go.append((len(found), has_room))
        return found

    care.admit = watched  # type: ignore[method-assign]
    world.drain()
    assert max(number for number, has_room in let_go if has_room) == MOST_AT_ONCE
    assert max(number for number, has_room in let_go if not has_room) <= PART
    assert sum(number for number, _ in let_go) == 1_000 + 2 * PART


def test_what_is_taken_away_while_messages_wait_does_not_stop_the_fetching_for_ever() -> None:
    """Partition 0 is lost with all that waits of it; nothing is left to be careful about in partition 1."""
    world = Mortal(1, "nothing")
    world.rebalance_share = 0.0
    fill(world, 2 * MOST_RECORDS)
    fill(world, 20, 1)
    world.log.committed[world.config.topics.records, 0] = (0, Stamp(work=Work(0, EVER)).encode())
    world.crash()
    world.source.batch = MOST_RECORDS + 2_000
    care = world.processor.care
    while len(care._cases) > 1:
        world.step()
    assert world.source.held == {0}
    world.processor.lost([0])
    world.source.positions = {where: at for where, at in world.source.positions.items() if where[1] != 0}
    fill(world, 20, 1)
    for _ in range(20):
        world.step()
    assert not world.source.held
    assert world.processor.partitions[1].committed[0] == 40


def test_too_many_poisoned_records_stop_the_worker_with_one_line() -> None:
    care = Care("records", 3, Workload(BlockPool(1, 1)), lambda partition: None)
    shape = Shape((1,), 100, 10)
    recovery = Recovery(0, 0, {}, 0, stamp=Stamp(poisoned=dict.fromkeys(range(MAX_POISONED + 1), 0)))
    with pytest.raises(StreamprocError, match="65 records have killed the worker, the newest at offset 64") as problem:
        care.assigned(Partition.recover(0, shape, recovery), recovery)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("how", ["close", "revoked"])
def test_who_stops_while_it_restores_has_not_died(how: str) -> None:
    """However often."""
    world = Mortal(1, "nothing")
    world.register(QUERY)
    fill(world, 40)
    world.drain()
    world.processor.close()
    for _ in range(6):
        world.crash()
        world.source.batch = 5
        for _ in range(3):
            world.step()
        assert not world.processor.partitions[0].is_live
        if how == "close":
            world.processor.close()
        else:
            world.processor.revoked([0, 1])
    world.crash()
    assert world.processor.partitions[0].stamp.num_deaths == 0
    world.drain()
    assert world.dead() == []


def test_a_restore_needs_no_care_for_suspects_that_were_tried_as_far_as_it_goes() -> None:
    """Two have died after offset 200; a third one leaves in the middle of taking those records one by one."""
    world = Mortal(1, "nothing")
    world.register(QUERY)
    fill(world, 200)
    world.drain()
    fill(world, 150)
    stamp = Stamp(topic_id="first", work=Work(200, 264), suspects=(Suspects(200, EVER, 1),))
    world.log.committed[world.config.topics.records, 0] = (200, stamp.encode())
    world.crash()
    while world.processor.partitions[0].committed[0] < 203:
        world.step()
    world.processor.close()
    world.crash()
    case, left_at = world.processor.care._cases[0], world.processor.partitions[0].live_from
    assert 203 <= left_at < 264
    assert (case.careful_from, case.careful_to, world.processor.partitions[0].is_suspect) == (left_at, 350, False)


def test_nothing_is_written_for_a_record() -> None:
    world = Mortal(1, "nothing")
    world.register(QUERY)
    written = count_stamps(world)
    for turn in range(100):
        world.log.produce(turn % 2, random_record(world.rng, "A"))
        world.step()
    world.drain()
    assert len(written) == 2


def test_the_last_record_that_may_go_is_found_without_looking_at_those_before_it() -> None:
    waiting, calls = Waiting("records"), list[str]()
    waiting.add(Message("records", 0, 2 * i, b"", b"", 0) for i in range(MOST_RECORDS))
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        found = [waiting.last_before(0, end) for end in (0, 1, 2, 3, MOST_RECORDS, EVER)]
    finally:
        sys.setprofile(None)
    assert found == [None, 0, 0, 2, MOST_RECORDS - 2, 2 * MOST_RECORDS - 2]
    assert len(calls) < 100


@pytest.mark.parametrize("waiting", [100, MOST_RECORDS])
def test_looking_for_what_may_go_takes_no_longer_when_much_waits(waiting: int) -> None:
    """Asked again and again while a part is computed."""
    world = Mortal(1, "nothing")
    fill(world, 2 * MOST_RECORDS)
    world.log.committed[world.config.topics.records, 0] = (0, Stamp(work=Work(0, EVER)).encode())
    world.crash()
    world.source.batch = PART + waiting
    while not world.processor.care.is_trying:
        world.step()
    assert len(world.processor.care._waiting) >= waiting
    calls: list[str] = []
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        world.processor.care.admit([], world.processor.partitions, world.source.stamp)
    finally:
        sys.setprofile(None)
    assert len(calls) < 100


def test_who_leaves_before_the_suspects_are_tried_leaves_them_to_the_next_owner() -> None:
    """As where a partition goes to another worker for as long as the one that has died is away."""
    world = Mortal(1, "renderer")
    world.register(QUERY)
    fill(world, 20)
    world.drain()
    poison = world.produce_poison(0)
    fill(world, 5)
    for _ in range(6):
        with suppress(Death):
            world.drain()
            break
        world.crash()
        world.source.batch = 50
        while 0 not in world.processor.partitions or not world.processor.partitions[0].is_live:
            world.step()
        world.processor.revoked([0, 1])
        world.crash()
    assert world.dead() == [poison]
