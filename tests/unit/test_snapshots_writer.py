import threading
import time

import pytest
from snapshot_world import (
    BLOCK_BYTES,
    IDENTITY,
    PATIENT_S,
    Failing,
    Said,
    Wrapped,
    blocks,
    data,
    name,
    other,
    restored,
    session,
    written,
)

from streamproc.errors import Unavailable
from streamproc.snapshots import writer as writers
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.publisher import Publisher
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter

SOON_S = 0.3  # what is to wait has not happened until then


@pytest.fixture
def kept():
    return open_store("memory://")


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(writers, "PATIENCE_S", (0.01,))


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def start(said):
    """Writers that are closed after the test."""
    started = []

    def start(store, **given):
        started.append(SnapshotWriter(store, said, **given))
        return started[-1]

    yield start
    for writer in started:
        writer.close()
        assert not writer._thread.is_alive()


class Held(Wrapped):
    """Nothing is written until it is let go."""

    def __init__(self, store):
        super().__init__(store)
        self.go = threading.Event()
        self.writing = threading.Event()

    def step(self, deed, path):
        if deed == "put":
            self.writing.set()
            assert self.go.wait(PATIENT_S)


def paths(store, folder="desk/ticks"):
    return [found.path for found in store.list(folder)]


def manifests(store):
    return paths(store, "desk/ticks/manifests")


def segments(store):
    return paths(store, "desk/ticks/segments")


def test_a_block_is_known_from_when_it_was_given(kept, start):
    writer = start(kept)
    assert not writer.has(IDENTITY, name(1))
    writer.add(IDENTITY, blocks(1))
    assert writer.has(IDENTITY, name(1))
    assert writer.wait(PATIENT_S)
    assert writer.has(IDENTITY, name(1))
    assert not writer.has(other(fingerprint="e"), name(1))
    assert not writer.has(other(topic="quotes"), name(1))
    assert not writer.has(other(group="lab"), name(1))


def test_a_block_is_stored_once_a_topic_and_group(kept, start):
    writer = start(kept)
    for partition in range(3):
        identity = other(partition=partition)
        writer.add(identity, blocks(1, 2, 10 + partition))
        writer.publish(identity, 5, [session(1, 2, 10 + partition)])
    assert writer.wait(PATIENT_S)
    assert len(segments(kept)) == 1
    assert kept.list("desk/ticks/segments")[0].num_bytes < 6 * BLOCK_BYTES
    for partition in range(3):
        assert restored(kept, [1, 2, 10 + partition], identity=other(partition=partition))[0] == [1, 2, 10 + partition]


def test_what_is_stored_can_be_read_back_by_the_newest_manifest(kept, start):
    writer, reader = start(kept), SnapshotReader(kept, Said())
    writer.add(IDENTITY, blocks(1))
    assert writer.newest(IDENTITY) is None
    for offset, numbers in ((100, [1]), (200, [1, 2])):
        writer.add(IDENTITY, blocks(*numbers))
        writer.publish(IDENTITY, offset, [session(*numbers)])
        assert writer.wait(PATIENT_S)
        newest = writer.newest(IDENTITY)
        assert newest == reader.find(IDENTITY, offset)
        assert len(reader.open(newest).fetch(newest.names)) == len(numbers)
    writer.forget(IDENTITY)
    assert writer.newest(IDENTITY) is None


def test_a_second_snapshot_stores_only_what_is_new(kept, start):
    writer = start(kept)
    for offset, numbers in ((100, range(50)), (200, range(55))):
        writer.add(IDENTITY, [pair for pair in blocks(*numbers) if not writer.has(IDENTITY, pair[0])])
        writer.publish(IDENTITY, offset, [session(*numbers)])
        assert writer.wait(PATIENT_S)
    sizes = sorted(found.num_bytes for found in kept.list("desk/ticks/segments"))
    assert sizes[0] < 6 * BLOCK_BYTES < 50 * BLOCK_BYTES < sizes[1]
    assert restored(kept, range(55)) == (list(range(55)), [])


def test_after_a_restart_what_the_newest_manifest_names_is_known(kept, start):
    written(kept, numbers=range(10))
    writer = start(kept)
    writer.has(IDENTITY, name(1))
    assert writer.wait(PATIENT_S)
    assert all(writer.has(IDENTITY, name(number)) for number in range(10))
    writer.publish(IDENTITY, 200, [session(*range(10))])
    assert writer.wait(PATIENT_S)
    assert len(segments(kept)) == 1
    assert restored(kept) == (list(range(10)), [])


def test_blocks_given_before_the_newest_manifest_was_read_are_not_stored_twice(kept, start):
    written(kept, numbers=range(10))
    writer = start(kept)
    writer.add(IDENTITY, blocks(*range(12)))
    writer.publish(IDENTITY, 200, [session(*range(12))])
    assert writer.wait(PATIENT_S)
    small = min(kept.list("desk/ticks/segments"), key=lambda found: found.num_bytes)
    assert small.num_bytes < 3 * BLOCK_BYTES
    assert restored(kept, range(12)) == (list(range(12)), [])


def test_what_is_known_of_a_recreated_topic_is_not_taken_for_ours(kept, start):
    written(kept, numbers=range(3), identity=other(topic_id="old"))
    writer = start(kept)
    writer.has(IDENTITY, name(1))
    assert writer.wait(PATIENT_S)
    assert not writer.has(IDENTITY, name(1))


def test_nobody_waits_for_a_store_that_is_slow(kept, start):
    store = Held(kept)
    writer = start(store)
    writer.add(IDENTITY, blocks(1))
    writer.publish(IDENTITY, 100, [session(1)])
    assert store.writing.wait(PATIENT_S)
    began_s = time.monotonic()
    writer.add(IDENTITY, blocks(2))
    writer.publish(IDENTITY, 200, [session(1, 2)])
    assert writer.has(IDENTITY, name(2))
    assert writer.room > 0
    writer.forget(other(partition=8))
    assert not writer.wait(0)
    assert time.monotonic() - began_s < 0.5
    store.go.set()
    assert writer.wait(PATIENT_S)
    assert restored(kept, [1, 2]) == ([1, 2], [])


def test_a_manifest_waits_for_the_blocks_given_before_it(kept, start):
    order = []

    class Noting(Wrapped):
        def step(self, deed, path):
            if deed == "put" and "condemned" not in path:
                order.append(path.split("/")[2])

    writer = start(Noting(kept), max_pending_bytes=10 * BLOCK_BYTES)  # several segments
    writer.add(IDENTITY, blocks(*range(10)))
    writer.publish(IDENTITY, 100, [session(*range(10))])
    assert writer.wait(PATIENT_S)
    assert order == ["segments"] * (len(order) - 1) + ["manifests"]
    assert len(order) > 3
    assert restored(kept) == (list(range(10)), [])


def test_of_manifests_that_wait_the_first_and_the_newest_are_written(kept, start):
    store = Held(kept)
    writer = start(store)
    writer.add(IDENTITY, blocks(1))
    for offset in range(100, 110):
        writer.publish(IDENTITY, offset, [session(1)])
        writer.publish(other(partition=4), offset, [session(1)])
    store.go.set()
    assert writer.wait(PATIENT_S)
    assert [int(path.split("/")[-1][:20]) for path in manifests(kept)] == [100, 109, 100, 109]


def test_a_store_that_is_slower_than_the_manifests_come_gets_some(kept, start):
    """Every block takes longer than the time to the next manifest."""
    store, offsets = Held(kept), iter(range(100, 10**6))
    writer = start(store, max_pending_bytes=4 * BLOCK_BYTES, retention=Retention(keep=100))

    def go_on():
        offset = next(offsets)
        writer.add(IDENTITY, blocks(offset))
        writer.publish(IDENTITY, offset, [session(*range(100, offset + 1))])
        store.writing.clear()
        store.go.set()
        store.go.clear()
        time.sleep(0.002)
        return len(manifests(kept)) > 2

    until(go_on)
    store.go.set()
    assert writer.wait(PATIENT_S)


def test_blocks_that_were_never_given_may_be_named(kept, start):
    writer = start(kept)
    writer.add(IDENTITY, blocks(1))
    writer.publish(IDENTITY, 100, [session(1, 2, 3)])
    assert writer.wait(PATIENT_S)
    assert restored(kept, [1, 2, 3]) == ([1], [])


def test_what_does_not_fit_is_not_taken_and_may_be_given_again(kept, start):
    store = Held(kept)
    writer = start(store, max_pending_bytes=4 * BLOCK_BYTES)
    assert writer.room == 4 * BLOCK_BYTES
    assert writer.add(IDENTITY, blocks(*range(6))) == 4
    assert writer.room == 0
    assert [writer.has(IDENTITY, name(number)) for number in range(6)] == [True] * 4 + [False] * 2
    assert writer.add(IDENTITY, blocks(4, 5)) == 0
    store.go.set()
    assert writer.wait(PATIENT_S)
    assert writer.room == 4 * BLOCK_BYTES
    assert writer.add(IDENTITY, blocks(*range(6))) == 6
    assert writer.wait(PATIENT_S)


def test_a_failing_store_is_said_once_and_its_end_too_and_nothing_is_lost(kept, start, said):
    store = Failing(kept)
    writer = start(store, max_pending_bytes=8 * BLOCK_BYTES)
    writer.add(IDENTITY, blocks(1, 2, 3))
    writer.publish(IDENTITY, 100, [session(1, 2, 3)])
    assert not writer.wait(SOON_S)
    assert store.num_refused > 2
    assert writer.room == 0
    assert writer.has(IDENTITY, name(1))
    assert len(said) == 1
    assert said[0].startswith("snapshots: cannot put desk/ticks/segments/")
    assert said[0].endswith(": no network; it is tried again, until then a restart has more to compute")
    for offset in range(101, 120):  # nothing piles up meanwhile
        writer.add(IDENTITY, blocks(*range(offset)))
        writer.publish(IDENTITY, offset, [session(1, 2, 3)])
    assert writer._inbox.num_bytes <= 8 * BLOCK_BYTES
    store.is_failing = False
    assert writer.wait(PATIENT_S)
    assert said[1:] == ["snapshots: memory:// works again"]
    assert writer.room == 8 * BLOCK_BYTES
    assert restored(kept, [1, 2, 3]) == ([1, 2, 3], [])


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_partition_that_leaves_a_failing_store_does_not_leave_the_others_without_room(kept, start, is_stored):
    """Nobody wished for anything any more, so nothing was tried again: the others never had a snapshot again."""
    store = Failing(kept)
    store.is_failing = not is_stored
    writer = start(store)
    assert not writer.has(other(partition=4), name(1))
    writer.add(IDENTITY, blocks(1))
    if is_stored:
        assert writer.wait(PATIENT_S)
        store.is_failing = True
    writer.publish(IDENTITY, 100, [session(1)])
    until(lambda: not writer.room)
    writer.forget(IDENTITY)
    store.is_failing = False
    until(lambda: writer.room)


class Spoilt(Wrapped):
    """Does not give the files whose path has this in it."""

    def __init__(self, store, part):
        super().__init__(store)
        self.part = part

    def step(self, deed, path):
        if deed == "get" and self.part in path:
            raise Unavailable(f"snapshots: cannot read {path}: Input/output error")


@pytest.mark.parametrize("part", ["/segments/", "/manifests/3/"])
def test_files_that_cannot_be_read_keep_no_partition_from_being_written(kept, start, said, part):
    for offset, numbers in ((100, range(10)), (200, range(20))):
        written(kept, offset, numbers)
    num_spoilt = len([path for path in paths(kept) if part in path])
    writer = start(Spoilt(kept, part))
    for identity in (IDENTITY, other(partition=4)):
        assert not writer.has(identity, name(50))
    for identity in (IDENTITY, other(partition=4)):
        writer.add(identity, blocks(1, 50))
        writer.publish(identity, 300, [session(1, 50)])
    assert writer.wait(PATIENT_S)
    assert writer.room > 0
    for identity in (IDENTITY, other(partition=4)):
        assert restored(kept, [1, 50], identity=identity) == ([1, 50], [])
    writer.forget(IDENTITY)
    writer.has(IDENTITY, name(1))  # it comes back
    assert writer.wait(PATIENT_S)
    passed_over = [line for line in said if line.endswith("it is passed over: what it holds may be stored again")]
    assert len(set(passed_over)) == len(passed_over) >= num_spoilt


def test_a_file_that_can_be_read_at_the_second_try_is_known(kept, start, said):
    written(kept)
    store = Failing(kept, ("get",))
    fail = store.step

    def step(deed, path):
        store.is_failing = store.num_refused < 1
        fail(deed, path)

    store.step = step
    writer = start(store)
    writer.add(IDENTITY, blocks(*range(10)))
    writer.publish(IDENTITY, 200, [session(*range(10))])
    assert writer.wait(PATIENT_S)
    assert len(segments(kept)) == 1
    assert len(said) == 2


def test_a_store_that_cannot_be_listed_at_first_is_no_hindrance_later(kept, start, said):
    written(kept)
    store = Failing(kept, ("list",))
    writer = start(store)
    writer.add(IDENTITY, blocks(*range(10)))
    writer.publish(IDENTITY, 200, [session(*range(10))])
    assert not writer.wait(SOON_S)
    store.is_failing = False
    assert writer.wait(PATIENT_S)
    assert len(segments(kept)) == 1
    assert len(said) == 2


def test_where_nothing_may_be_deleted_snapshots_are_still_written(kept, start, said):
    writer = start(Failing(kept, ("delete",)), retention=Retention(keep=1))
    for offset in range(100, 105):
        writer.publish(IDENTITY, offset, [session(1)])
        assert writer.wait(PATIENT_S)
    assert len(manifests(kept)) == 5
    until(lambda: said)
    assert len(said) == 1
    assert said[0].endswith("snapshots that are no longer needed stay for now")
    assert writer.room > 0


def test_the_newest_manifests_of_a_partition_are_kept(kept, start):
    writer = start(kept, retention=Retention(keep=2))
    for offset in (100, 200, 300, 400):
        writer.publish(IDENTITY, offset, [session(1)])
        assert writer.wait(PATIENT_S)
    until(lambda: len(manifests(kept)) == 2)
    assert [path.split("/")[-1][:20].lstrip("0") for path in manifests(kept)] == ["300", "400"]


def until(holds):
    deadline_s = time.monotonic() + PATIENT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_forgotten_partition_gets_the_manifest_that_it_was_left_with(kept, start):
    store = Held(kept)
    writer = start(store)
    writer.add(IDENTITY, blocks(1))
    mine = other(partition=4)
    assert writer.has(mine, name(1))
    writer.publish(IDENTITY, 100, [session(1)])
    writer.publish(mine, 50, [session(1)])
    writer.forget(IDENTITY)
    store.go.set()
    assert writer.wait(PATIENT_S)
    assert [path.split("/")[3] for path in manifests(kept)] == ["3", "4"]
    assert restored(kept, [1]) == restored(kept, [1], identity=mine) == ([1], [])
    assert writer.newest(IDENTITY) is None  # it is somebody else's


def test_a_partition_that_comes_back_is_read_again(kept, start):
    writer = start(kept)
    writer.publish(IDENTITY, 100, [session()])
    assert writer.wait(PATIENT_S)
    writer.forget(IDENTITY)
    written(kept, 200, [7])  # its owner meanwhile
    assert not writer.has(IDENTITY, name(7))
    assert writer.wait(PATIENT_S)
    assert writer.has(IDENTITY, name(7))


def test_blocks_that_could_not_be_read_back_are_stored_again(kept, start):
    writer = start(kept)
    writer.add(IDENTITY, blocks(1, 2))
    assert writer.wait(PATIENT_S)
    writer.doubt(IDENTITY, [name(1)])
    assert [writer.has(IDENTITY, name(number)) for number in (1, 2)] == [False, True]
    kept.delete(segments(kept)[0])
    writer.add(IDENTITY, blocks(1))
    writer.publish(IDENTITY, 100, [session(1)])
    assert writer.wait(PATIENT_S)
    assert restored(kept, [1]) == ([1], [])


def test_segments_that_vanished_are_not_named(kept, start, said):
    """A store that somebody else has emptied: the next manifest names only what is there."""
    written(kept, 100)
    writer = start(kept)
    writer.has(IDENTITY, name(0))
    assert writer.wait(PATIENT_S)
    kept.delete(segments(kept)[0])
    writer.add(IDENTITY, blocks(99))
    writer.publish(IDENTITY, 200, [session(*range(10), 99)])
    assert writer.wait(PATIENT_S)
    assert said == ["snapshots: 1 segments of desk/ticks are gone; their blocks are stored again"]
    assert not writer.has(IDENTITY, name(0))
    assert restored(kept, [*range(10), 99]) == ([99], [])


def test_a_manifest_that_took_too_long_is_taken_back_and_written_again(kept):
    now, delays = [0.0], [400.0]

    class Slow(Wrapped):
        def step(self, deed, path):
            if deed == "put" and "manifests" in path and delays:
                now[0] += delays.pop()

    publisher = Publisher(Slow(kept), Said(), Retention(), now=lambda: now[0])
    publisher.write(IDENTITY, blocks(1))
    with pytest.raises(Unavailable, match="took too long to be written to memory://; taken back"):
        publisher.publish(IDENTITY, 100, [session(1)])
    assert manifests(kept) == []
    publisher.publish(IDENTITY, 100, [session(1)])
    assert restored(kept, [1]) == ([1], [])


def test_names_that_no_manifest_of_ours_needs_are_dropped_in_time(kept):
    now = [0.0]
    publisher = Publisher(kept, Said(), Retention(), now=lambda: now[0])
    for number in range(50):
        publisher.write(IDENTITY, blocks(number))
        publisher.publish(IDENTITY, number, [session(number)])
        now[0] += 60
    assert len(publisher.shelf(IDENTITY)) <= 12
    assert name(49) in publisher.shelf(IDENTITY)


def test_a_closed_writer_takes_nothing_and_says_nothing(kept, said):
    store = Held(kept)
    writer = SnapshotWriter(store, said)
    writer.add(IDENTITY, blocks(1))
    store.go.set()
    writer.close()
    assert writer.room == 0
    assert writer.add(IDENTITY, blocks(2)) == 0
    writer.publish(IDENTITY, 1, [])
    writer.close()
    assert said == []


def test_a_fault_of_ours_is_said_and_costs_only_snapshots(kept, said):
    class Faulty(Wrapped):
        def step(self, deed, path):
            raise ZeroDivisionError("a fault")

    writer = SnapshotWriter(Faulty(kept), said)
    writer.add(IDENTITY, blocks(1))
    assert not writer.wait(PATIENT_S)
    assert said == ["snapshots: none are written any more: ZeroDivisionError: a fault"]
    assert writer.room == 0
    assert writer.add(IDENTITY, blocks(2)) == 0
    writer.close()


def test_buffers_are_taken_as_they_are(store, said):
    writer = SnapshotWriter(store, said)
    whole = memoryview(bytearray(data(name(1)) + data(name(2))))
    writer.add(IDENTITY, [(name(1), whole[:BLOCK_BYTES]), (name(2), whole[BLOCK_BYTES:])])
    writer.publish(IDENTITY, 1, [session(1, 2)])
    assert writer.wait(PATIENT_S)
    writer.close()
    assert restored(store, [1, 2]) == ([1, 2], [])


def test_many_callers_at_once_lose_nothing(kept, start):
    writer = start(kept, max_pending_bytes=40 * BLOCK_BYTES)

    def give(partition):
        identity, left = other(partition=partition), blocks(*range(partition * 100, partition * 100 + 100))
        while left:
            left = left[writer.add(identity, left[:7]) :] if writer.room else left
        writer.publish(identity, 9, [session(*range(partition * 100, partition * 100 + 100))])

    threads = [threading.Thread(target=give, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.wait(PATIENT_S)
    for partition in range(4):
        numbers = list(range(partition * 100, partition * 100 + 100))
        assert restored(kept, numbers, identity=other(partition=partition)) == (numbers, [])


def test_a_reader_sees_blocks_of_a_manifest_while_the_next_is_written(kept, start):
    writer = start(kept)
    reader = SnapshotReader(kept, Said())
    for offset in range(1, 15):
        writer.add(IDENTITY, blocks(*range(offset)))
        writer.publish(IDENTITY, offset, [session(*range(offset))])
        if manifest := reader.find(IDENTITY, 10**6):
            assert len(reader.open(manifest).fetch(manifest.names)) == manifest.offset
    reader.close()
