"""A worker that stands by: what it holds of others' partitions, and what it never does for it."""

import random
import threading
import time
from dataclasses import replace

import pytest
from snapshot_world import (
    BLOCK_BYTES,
    IDENTITY,
    PATIENT_S,
    Failing,
    Far,
    Said,
    Wrapped,
    blocks,
    data,
    name,
    other,
    session,
    written,
)

from streamproc.keeper import Keeper
from streamproc.snapshots import standby as standbys
from streamproc.snapshots.collector import Collector as Pass
from streamproc.snapshots.collector import Retention, prune
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.standby import Standby
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.spare import Spare
from streamproc.state.tier import Tier

LATENCY_S = 0.02
LONG_S = 1000.0


def until(condition):
    deadline_s = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def names(numbers):
    return [name(number) for number in numbers]


def held(spare, numbers=range(1000)):
    """Numbers of the blocks in memory; their bytes are right."""
    assert len(spare) <= spare.room
    found = [number for number in numbers if name(number) in spare]
    assert all(spare.get(name(number)) == data(name(number)) for number in found)
    return found


class Follower:
    """A standby whose turns a test makes."""

    def __init__(self, store, room):
        self.said = Said()
        self.standby = Standby(store, other(topic_id="", partition=-1), LONG_S, self.said)
        self.spare = self.standby.spare
        self.spare.give(room)

    def turn(self):
        self.standby._turn(time.monotonic())
        return held(self.spare)


class Owner:
    """Writes snapshots of several sessions."""

    def __init__(self, store, identity=IDENTITY, **given):
        self.identity, self.said = identity, Said()
        self.writer = SnapshotWriter(store, self.said, **given)

    def keeps(self, offset, **sessions):
        numbers = [number for each in sessions.values() for number in each]
        self.writer.add(self.identity, blocks(*numbers))
        parts = [session(*each, key=key) for key, each in sessions.items()]
        self.writer.publish(self.identity, offset, parts)
        assert self.writer.wait(PATIENT_S)
        time.sleep(0.002)   # manifests are told apart by the millisecond

    def close(self):
        self.writer.close()
        assert self.said == []


class Worker:
    """A keeper that stands by, with memory for so many blocks."""

    def __init__(self, store, most_blocks, interval_s=0.05):
        self.said = Said()
        writer, reader = SnapshotWriter(store, self.said), SnapshotReader(store, self.said)
        self.keeper = Keeper(self.identity, writer, reader, LONG_S, self.said)
        self.standby = Standby(store, self.identity(-1, ""), interval_s, self.said)
        self.tier = Tier(most_blocks)
        self.keeper.stand_by(self.standby)
        self.keeper.connect(BlockPool(8, 16), self.tier, BLOCK_BYTES, {})

    @staticmethod
    def identity(number, topic_id):
        return replace(IDENTITY, partition=number, topic_id=topic_id)

    def assign(self, number, offset, topic_id=IDENTITY.topic_id):
        self.keeper.assigned({number: (topic_id, offset)})

    def settle(self):
        """Turn as the loop does until nothing is looked for."""
        def is_known():
            self.keeper.pick()
            return not self.keeper.sought

        until(is_known)

    def close(self):
        self.keeper.close()


def test_what_a_standby_holds_is_back_at_once_with_nothing_read(s3_url):
    """40 blocks, which take 10 requests and more, of a store that is 20 ms away, and then much further."""
    store = open_store(s3_url)
    for start in range(0, 40, 10):
        written(store, 100 + start, range(start + 10))
    far = Far(store, LATENCY_S)
    worker = Worker(far, 100)
    until(lambda: held(worker.standby.spare) == list(range(40)))
    far.seconds = 1.0
    num_read, started = far.num_read, time.monotonic()
    worker.assign(3, 500)
    found, is_coming = worker.tier.offer(names(range(40)))
    assert time.monotonic() - started < far.seconds
    assert [bytes(each) for each in found] == [data(each) for each in names(range(40))]
    assert not is_coming
    assert len(worker.standby.spare) == 0
    far.seconds = 0.0
    worker.settle()     # a newer one was looked for all the same
    assert far.num_read == num_read
    assert worker.said == []
    worker.close()


def test_a_newer_snapshot_than_the_known_one_is_found_and_only_what_is_new_is_read(s3_url):
    store = open_store(s3_url)
    written(store, 100, range(10))
    far = Far(store, LATENCY_S)
    worker = Worker(far, 100)
    until(lambda: held(worker.standby.spare) == list(range(10)))
    worker.standby._stopped.set()
    worker.standby._thread.join()
    owner = Owner(store)
    until(lambda: owner.writer.has(IDENTITY, name(9)))
    owner.keeps(200, BTC=range(20))
    owner.close()
    num_read = far.num_read
    worker.assign(3, 200)
    assert worker.keeper.sought == {3}      # somebody may have left more: too early to compute
    assert not worker.tier.has(name(15))
    worker.settle()
    assert worker.tier.offer(names(range(20)))[1]
    until(lambda: worker.tier.collect() or len(worker.tier.offer(names(range(20)))[0]) == 20)
    assert far.num_read == num_read + 2     # the header of the new segment, and its blocks
    worker.close()


@pytest.mark.parametrize(("topic_id", "offset"), [("another", 500), (IDENTITY.topic_id, 99)])
def test_what_does_not_fit_what_is_committed_is_not_taken(topic_id, offset, tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    worker = Worker(store, 100)
    until(lambda: held(worker.standby.spare) == list(range(10)))
    worker.assign(3, offset, topic_id)
    worker.settle()
    assert not worker.keeper.has(name(1))
    assert [line for line in worker.said if "passed over" in line]
    worker.close()


def test_memory_is_for_the_sessions_that_grew_last(store):
    owner, follower = Owner(store), Follower(store, 25)
    owner.keeps(100, A=range(10), B=range(100, 110), C=range(200, 210))
    assert follower.turn() == [*range(10), *range(100, 110), *range(200, 205)]
    owner.keeps(200, A=range(10), B=range(100, 110), C=range(200, 212))
    assert follower.turn() == [*range(10), *range(100, 103), *range(200, 212)]
    owner.keeps(300, A=range(10), B=range(100, 120), C=range(200, 212))
    assert follower.turn() == [*range(100, 120), *range(200, 205)]
    owner.close()
    assert follower.said == []


def test_sessions_of_all_partitions_share_the_memory(tmp_path):
    store, follower = open_store(str(tmp_path)), None
    owners = [Owner(store, other(partition=number)) for number in range(3)]
    for number, owner in enumerate(owners):
        owner.keeps(100, A=range(100 * number, 100 * number + 10))
    follower = Follower(store, 12)
    follower.turn()
    owners[2].keeps(101, A=range(200, 211))
    assert set(range(200, 211)) <= set(follower.turn())
    follower.standby.own({2})
    assert not set(range(200, 211)) & set(follower.turn())
    for owner in owners:
        owner.close()


def test_blocks_of_ours_come_before_those_of_others(tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(30))
    worker = Worker(store, 300, interval_s=LONG_S)
    until(lambda: held(worker.standby.spare) == list(range(30)))
    for start in range(500, 1000, 50):
        worker.tier.put(dict(blocks(*range(start, start + 50))))
        num_ours = min(start - 450, 300)
        assert sum(worker.tier.is_here(name(number)) for number in range(500, 1000)) == num_ours
        assert len(held(worker.standby.spare)) <= 300 - num_ours
        assert held(worker.standby.spare) == list(range(len(worker.standby.spare)))     # the first of a context stay
    assert len(worker.standby.spare) == 0
    worker.close()


def test_what_was_ours_is_kept_for_whoever_follows_it(tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    worker = Worker(store, 50, interval_s=LONG_S)
    worker.assign(3, 100)
    worker.settle()
    worker.tier.put(dict(blocks(*range(10), 77)))
    worker.keeper.let_go([3])
    assert held(worker.standby.spare) == list(range(10))
    assert worker.tier.is_here(name(77))
    assert not worker.tier.is_here(name(5))
    assert len(worker.tier.offer(names(range(10)))[0]) == 10
    worker.close()


def test_without_memory_a_standby_knows_what_there_is_and_reads_no_blocks(tmp_path):
    far = Far(open_store(str(tmp_path)), 0.0)
    written(far.store, 100, range(10))
    follower = Follower(far, 0)
    assert follower.turn() == []
    assert far.num_read == 1    # the header
    assert follower.standby.known(IDENTITY, 100).manifest.offset == 100


def test_nothing_is_read_twice(tmp_path):
    far = Far(open_store(str(tmp_path)), 0.0)
    written(far.store, 100, range(10))
    follower = Follower(far, 50)
    follower.turn()
    num_read = far.num_read
    follower.turn()
    follower.spare.give(5)
    assert follower.turn() == list(range(5))
    assert far.num_read == num_read


def test_a_damaged_block_is_left_out_and_said_once(tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    for path in tmp_path.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-BLOCK_BYTES * 3 + 5] ^= 1
        path.write_bytes(content)
    far = Far(store, 0.0)
    follower = Follower(far, 50)
    expected = [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert follower.turn() == expected
    num_read = far.num_read
    assert [follower.turn() for _ in range(3)] == [expected] * 3
    assert far.num_read == num_read
    assert len(follower.said) == 1
    assert follower.said[0].endswith("are computed again: damaged")


def test_a_damaged_manifest_is_passed_over_for_the_one_before(tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    time.sleep(0.002)
    written(store, 200, range(12))
    (path,) = tmp_path.rglob("*0200-*.json")
    path.write_bytes(b"{}")
    follower = Follower(store, 50)
    for _ in range(3):
        follower.turn()
    assert follower.turn() == list(range(10))
    assert len(follower.said) == 1
    assert "passed over" in follower.said[0]


def test_snapshots_of_another_model_hide_none_of_ours(tmp_path):
    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    time.sleep(0.002)
    written(store, 200, range(12), identity=other(fingerprint="e" * 64))
    follower = Follower(store, 50)
    follower.turn()
    assert follower.turn() == list(range(10))
    assert follower.said == []


def test_what_the_collector_takes_is_less_to_hold(tmp_path):
    """The owner goes on, and deletes at once what it needs no more, while the standby is still at the old manifest."""
    store, said = open_store(str(tmp_path)), Said()
    written(store, 100, range(10))
    follower = Follower(store, 5)
    assert follower.turn() == list(range(5))
    time.sleep(0.002)
    writer = SnapshotWriter(store, said)
    writer.add(IDENTITY, blocks(*range(100, 110)))
    assert writer.wait(PATIENT_S)
    writer.publish(IDENTITY, 200, [session(*range(100, 110))])
    assert writer.wait(PATIENT_S)
    writer.close()
    prune(store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1, grace_s=0.0))
    collector = Pass(store, IDENTITY.scope, 0.0)
    assert len(collector.collect().condemned) == 1
    assert len(collector.collect().segments) == 1
    follower.spare.give(10)
    followed = list(follower.standby._followed.values())
    assert follower.standby._followed[3].name.offset == 100
    follower.standby._fill(time.monotonic() + 10)      # finds that they are gone
    assert held(follower.spare) == list(range(5))
    assert [line for line in follower.said if line.endswith("it is gone")]
    assert follower.turn() == list(range(100, 110))
    assert follower.standby._followed[3] is not followed[0]
    assert said == []


def test_a_store_that_fails_is_said_once_and_followed_again(tmp_path):
    store = Failing(open_store(str(tmp_path)), deeds=("list", "get"))
    written(store.store, 100, range(10))
    follower = Follower(store, 50)
    for _ in range(3):
        assert follower.turn() == []
    assert len(follower.said) == 1
    assert follower.said[0].endswith("less of the partitions of others is at hand until it works again")
    store.is_failing = False
    assert follower.turn() == list(range(10))
    assert follower.said[1:] == [f"snapshots: {store.url} works again"]


def test_a_store_that_fails_in_the_middle_costs_nothing_for_good(tmp_path):
    store = Failing(open_store(str(tmp_path)), deeds=())
    written(store.store, 100, range(10))
    follower = Follower(store, 5)
    follower.turn()
    store.deeds = ("get",)
    follower.spare.give(50)
    for _ in range(3):
        assert follower.turn() == list(range(5))
    store.is_failing = False
    assert follower.turn() == list(range(10))
    first, last = follower.said
    assert first.endswith("no network; less of the partitions of others is at hand until it works again")
    assert last == f"snapshots: {store.url} works again"


def test_no_more_is_followed_than_there_is_room_for_to_know(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    for number in range(4):
        written(store, 100, range(10 * number, 10 * number + 10), identity=other(partition=number))
    monkeypatch.setattr(standbys, "MOST_BLOCKS", 25)
    num_read = []

    class Counting(Wrapped):
        def step(self, deed, path):
            num_read.extend([path] * (deed == "get" and "/manifests/" in path))

    follower = Follower(Counting(store), 100)
    for _ in range(4):
        follower.turn()
    assert follower.turn() == list(range(20))
    assert len(follower.said) == 1
    assert len(num_read) == 4


def test_a_partition_whose_snapshots_are_gone_is_followed_no_longer(store):
    written(store, 100, range(10))
    follower = Follower(store, 50)
    assert follower.turn() == list(range(10))
    for found in store.list(IDENTITY.folder):
        store.delete(found.path)
    assert follower.turn() == []
    assert follower.standby.known(IDENTITY, 500) is None


def test_a_worker_says_that_it_stands_by_and_when_it_no_longer_does(tmp_path, caplog):
    caplog.set_level("INFO", "streamproc")
    broken = threading.Event()

    class Broken(Wrapped):
        def step(self, deed, path):
            if broken.is_set():
                raise ValueError("a fault of ours")

    worker = Worker(Broken(open_store(str(tmp_path))), 100)
    assert caplog.messages == [
        "standing by: follows the snapshots of others' partitions, with memory for 100 of their blocks "
        "(engine.host_bytes)"]  # fmt: skip
    broken.set()
    until(lambda: worker.said)
    assert worker.said == ["snapshots: this worker stands by no longer: ValueError: a fault of ours"]
    worker.close()


def test_the_loop_is_not_held_up_while_the_store_is_slow(tmp_path):
    release = threading.Event()

    class Stuck(Wrapped):
        def step(self, deed, path):
            assert deed != "list" or release.wait(PATIENT_S)

    store = open_store(str(tmp_path))
    written(store, 100, range(10))
    worker = Worker(Stuck(store), 100)
    started = time.monotonic()
    for number in range(200):
        worker.assign(number % 5, 500)
        worker.keeper.pick()
        worker.tier.offer(names(range(10)))
        worker.keeper.let_go([number % 5])
    assert time.monotonic() - started < 8.0
    release.set()
    worker.close()


@pytest.mark.parametrize("seed", range(20))
def test_spare_memory_is_never_more_than_what_is_left(seed):
    rng, most = random.Random(seed), 40
    spare, tier = Spare(), Tier(most, most_coming=0)
    tier.share(spare)
    for _ in range(400):
        numbers = [rng.randrange(120) for _ in range(rng.randrange(30))]
        match rng.randrange(6):
            case 0:
                tier.put(dict(blocks(*numbers)))
            case 1:
                spare.want(names(numbers))
            case 2:
                spare.put(dict(blocks(*numbers)))
            case 3:
                tier.adopt(names(numbers))
            case 4:
                tier.part_with(names(numbers))
            case 5:
                wanted = names(numbers)
                found, _ = tier.offer(wanted)
                assert [bytes(each) for each in found] == [data(each) for each in wanted[: len(found)]]
                assert len(found) == len(wanted) or not tier.has(wanted[len(found)])
        here = {number for number in range(120) if tier.is_here(name(number))}
        assert len(here) + len(spare) <= most
