import os
import threading
import time
from dataclasses import replace

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
from streamproc.snapshots import restore
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.search import Search
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter


@pytest.fixture
def kept(tmp_path):
    """A store whose files a test can damage: `kept.damage(which, change)` with a function of bytes."""
    store = open_store(str(tmp_path / "kept"))

    def damage(which, change):
        paths = [path for path in (tmp_path / "kept").rglob("*") if path.is_file() and which in str(path)]
        assert paths
        for path in paths:
            path.write_bytes(change(path.read_bytes()))

    store.damage = damage
    return store


def flipped(place):
    def flip(content):
        at = place % len(content)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return flip


def test_what_was_written_comes_back(store):
    written(store, numbers=range(200))
    assert restored(store, range(200)) == (list(range(200)), [])


def test_a_manifest_tells_the_sessions_as_they_were(store):
    written(store, offset=77, numbers=range(3))
    manifest = SnapshotReader(store, Said()).find(IDENTITY, 77)
    assert (manifest.identity, manifest.offset, manifest.sessions) == (IDENTITY, 77, (session(*range(3)),))
    assert manifest.names == {name(number) for number in range(3)}


def test_an_empty_store_has_nothing(store):
    assert restored(store) == ([], [])


def test_a_partition_without_sessions_has_a_manifest(store):
    written(store, numbers=())
    reader = SnapshotReader(store, Said())
    manifest = reader.find(IDENTITY, 100)
    assert manifest.sessions == (session(),)
    assert reader.open(manifest).fetch([name(1)]) == {}


def test_the_newest_that_is_not_ahead_is_found_and_what_is_ahead_is_said(kept):
    for offset in (100, 200, 300):
        written(kept, offset, [offset])
    said = Said()
    reader = SnapshotReader(kept, said)
    assert reader.find(IDENTITY, 250) is not None
    assert len(said) == 1
    assert "passed over: it is ahead of the committed offset 250" in said[0]
    assert reader.find(IDENTITY, 300).offset == 300
    assert reader.find(IDENTITY, 10) is None


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (other(fingerprint="e" * 64), "it is of another model (eeeeeeeeeeee, here ffffffffffff)"),
        (other(topic_id="Qq1"), "the topic was recreated (it is of Qq1, now Zk9)"),
    ],
)
def test_manifests_of_others_are_passed_over_with_their_reason(kept, theirs, reason):
    written(kept, 100)
    written(kept, 200, identity=theirs)
    numbers, (line,) = restored(kept)
    assert numbers == list(range(10))
    assert line.startswith("snapshots: desk/ticks/manifests/3/00000000000000000200-")
    assert line.endswith(f" is passed over: {reason}")


def test_a_manifest_in_the_wrong_place_is_passed_over(kept, tmp_path):
    written(kept)
    os.rename(tmp_path / "kept/desk/ticks/manifests/3", tmp_path / "kept/desk/ticks/manifests/4")
    said = Said()
    assert SnapshotReader(kept, said).find(other(partition=4), 100) is None
    assert "passed over: it is of desk ticks 3 at 100" in said[0]


@pytest.mark.parametrize("change", [flipped(40), flipped(-3), lambda content: content[:-9], lambda content: b""])
def test_a_damaged_manifest_is_passed_over_for_the_one_before(kept, change):
    written(kept, 100)
    written(kept, 200)
    kept.damage("0200-", change)
    numbers, (line,) = restored(kept)
    assert numbers == list(range(10))
    assert line.endswith("is passed over: its content is not what its name says")


def test_a_manifest_that_goes_while_it_is_looked_for_is_not_missed(kept):
    class Going(Wrapped):
        def step(self, deed, path):
            if deed == "get" and "0200-" in path:
                self.store.delete(path)

    written(kept, 100)
    written(kept, 200)
    assert restored(Going(kept)) == (list(range(10)), [])


def test_a_flipped_byte_costs_one_block(kept):
    written(kept)
    kept.damage("segments", flipped(-BLOCK_BYTES * 3 + 5))
    numbers, (line,) = restored(kept)
    assert numbers == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert "1 blocks or more of desk/ticks/segments/" in line
    assert line.endswith("computed again: damaged")


def test_a_segment_cut_short_costs_what_is_gone(kept):
    written(kept)
    kept.damage("segments", lambda content: content[: -BLOCK_BYTES * 4 - 1])
    numbers, (line,) = restored(kept)
    assert numbers == [0, 1, 2, 3, 4]
    assert "5 blocks or more of" in line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flipped(100), "its header is not what its name says"),
        (flipped(0), "its header is not what its name says"),
        (lambda content: content[:50], "it ends within its header, after 50 bytes"),
        (lambda content: b"", "it ends within its header, after 0 bytes"),
    ],
)
def test_a_damaged_header_costs_the_segment(kept, change, reason):
    written(kept)
    kept.damage("segments", change)
    numbers, (line,) = restored(kept)
    assert numbers == []
    assert line.endswith(f"are computed again: {reason}")


def test_a_missing_segment_is_said(store):
    written(store)
    for found in store.list("desk/ticks/segments"):
        store.delete(found.path)
    numbers, (line,) = restored(store)
    assert numbers == []
    assert line.startswith("snapshots: 10 blocks or more of desk/ticks/segments/")
    assert line.endswith(" are computed again: it is gone")


def test_a_segment_that_goes_after_it_was_opened_is_said(kept):
    written(kept)
    said = Said()
    reader = SnapshotReader(kept, said)
    found = reader.open(reader.find(IDENTITY, 100))
    assert len(found.names) == 10
    kept.damage("segments", lambda content: content[: -BLOCK_BYTES * 9])
    assert set(found.fetch(found.names)) == {name(0)}
    for each in kept.list("desk/ticks/segments"):
        kept.delete(each.path)
    assert found.fetch(found.names) == {}
    assert len(said) == 1


def test_a_segment_of_another_model_is_not_used(kept):
    """Names are of tokens; what they are worth depends on the model."""
    written(kept, identity=other(fingerprint="e" * 64))
    reader = SnapshotReader(kept, Said())
    manifest = reader.find(other(fingerprint="e" * 64), 100)
    said = Said()
    assert SnapshotReader(kept, said).open(replace(manifest, identity=IDENTITY)).names == frozenset()
    assert said[0].endswith("it is of another model")


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_block_that_lies_twice_is_lost_only_with_both(kept, damaged):
    writer = SnapshotWriter(kept, Said())
    writer.add(IDENTITY, blocks(1, 2))
    assert writer.wait(PATIENT_S)
    writer.doubt(IDENTITY, [name(1)])
    writer.add(IDENTITY, blocks(1, 3))
    writer.publish(IDENTITY, 100, [session(1, 2, 3)])
    assert writer.wait(PATIENT_S)
    writer.close()
    which = kept.list("desk/ticks/segments")[damaged].path
    kept.damage(which, lambda content: content[: -2 * BLOCK_BYTES] + bytes(BLOCK_BYTES) + content[-BLOCK_BYTES:])
    numbers, said = restored(kept, [1, 2, 3])
    assert numbers == [1, 2, 3]
    assert len(said) <= 1


def test_a_newest_manifest_that_cannot_be_read_is_passed_over_for_the_one_before(kept):
    written(kept, 50, [20])
    written(kept)
    newest = kept.list(IDENTITY.folder)[-1].path

    class Spoilt(Wrapped):
        def step(self, deed, path):
            if deed == "get" and path == newest:
                raise Unavailable(f"snapshots: cannot read {path}: Input/output error")

    assert restored(Spoilt(kept), [20, 1]) == (
        [20],
        [f"snapshots: {newest} is passed over: cannot read {newest}: Input/output error"],
    )


def test_a_store_of_which_no_manifest_can_be_read_is_not_taken_for_empty(kept):
    for offset in (50, 60, 70, 80):
        written(kept, offset)
    store = Failing(kept, deeds=("get",))
    with pytest.raises(Unavailable):
        SnapshotReader(store, Said()).find(IDENTITY, 100)
    assert store.num_refused == 2


def test_a_store_that_stops_answering_leaves_blocks_out(kept):
    written(kept, 50, [20])
    written(kept)
    store, said = Failing(kept, deeds=("get",)), Said()
    store.is_failing = False
    reader = SnapshotReader(store, said)
    found = reader.open(reader.find(IDENTITY, 100))
    store.is_failing = True
    assert not found.failed
    assert found.fetch(found.names) == {}
    assert found.failed
    store.is_failing = False
    assert len(found.fetch(found.names)) == 10
    assert len(said) == 1
    assert said[0].endswith(": no network; blocks are computed again")


def test_neighbours_are_read_in_one_request_of_bounded_size(kept, monkeypatch):
    sizes = []

    class Counting(Wrapped):
        def get_range(self, path, start, num_bytes):
            sizes.append(num_bytes)
            return super().get_range(path, start, num_bytes)

    monkeypatch.setattr(restore, "RUN_BYTES", 5 * BLOCK_BYTES)
    written(kept, numbers=range(20))
    reader = SnapshotReader(Counting(kept), Said())
    found = reader.open(reader.find(IDENTITY, 100))
    sizes.clear()
    wanted = [name(number) for number in (0, 1, 2, 5, 6, 9, 10, 11, 12, 13, 14, 15)]
    assert set(found.fetch(wanted)) == set(wanted)
    assert sorted(size // BLOCK_BYTES for size in sizes) == [2, 2, 3, 5]


def test_many_threads_may_fetch_at_once(store):
    written(store, numbers=range(100))
    reader = SnapshotReader(store, Said())
    found = reader.open(reader.find(IDENTITY, 100))
    wrong = []

    def fetch(start):
        for number in range(start, 100, 4):
            block = name(number)
            if bytes(found.fetch([block, name(0)])[block]) != data(block):
                wrong.append(number)

    threads = [threading.Thread(target=fetch, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_blocks_of_several_sizes_and_segments_come_back(kept):
    writer = SnapshotWriter(kept, Said())
    writer.add(IDENTITY, blocks(1, 2))
    assert writer.wait(PATIENT_S)
    writer.add(IDENTITY, [*blocks(3), *blocks(4, num_bytes=1000)])
    writer.publish(IDENTITY, 5, [session(1, 2, 3, 4)])
    assert writer.wait(PATIENT_S)
    reader = SnapshotReader(kept, Said())
    manifest = reader.find(IDENTITY, 5)
    assert len(manifest.segments) == 3
    found = reader.open(manifest).fetch(manifest.names)
    assert {block: len(content) for block, content in found.items()} == {
        name(1): 4096, name(2): 4096, name(3): 4096, name(4): 1000}  # fmt: skip
    writer.close()


def test_blocks_of_another_size_than_the_engine_has_are_left_out_with_a_line(kept):
    """Their checksums are right: nothing else tells that they are not what a runner can copy in."""
    written(kept, numbers=range(2))
    said = Said()
    reader = SnapshotReader(kept, said)
    reader.block_bytes = 2 * BLOCK_BYTES
    manifest = reader.find(IDENTITY, 100)
    assert reader.open(manifest).names == frozenset()
    assert said[0].endswith("computed again: its blocks are of 4096 bytes, here they are of 8192")
    reader.block_bytes = BLOCK_BYTES
    assert len(reader.open(manifest).names) == 2


def test_a_surprise_in_a_search_is_a_line_and_no_blocks(kept):
    """Whoever asks for the outcome is the loop."""

    class Strange(Wrapped):
        def step(self, deed, path):
            raise MemoryError("no room\nat all")

    said = Said()
    search = Search(SnapshotReader(Strange(kept), said), said)
    search.begin(IDENTITY, 100, None)
    ends_s = time.monotonic() + PATIENT_S
    while search.sought and time.monotonic() < ends_s:
        assert list(search.found()) == []
    search.close()
    assert said == [r"snapshots: MemoryError: no room\nat all; partition 3 is computed from the topic"]
