"""Snapshots of the loop where the store does not do as it should; the walks and tests/broker hold the rest."""

import threading
import time

import pytest

from streamproc.config import Config, Snapshots
from streamproc.errors import Unavailable, Usage
from streamproc.keeper import Keeper, check_store
from streamproc.snapshots import search
from streamproc.snapshots.manifest import Identity, Manifest, SessionPart
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import Store, open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.tier import Tier

NAMES = tuple(bytes([i]) * 16 for i in range(4))
BLOCK = bytes(range(64))


def identity(number: int, topic_id: str) -> Identity:
    return Identity("model", "group", "records", topic_id, number)


def make_keeper(store: Store, notes: list[str]) -> Keeper:
    writer, reader = SnapshotWriter(store, notes.append), SnapshotReader(store, notes.append)
    keeper = Keeper(identity, writer, reader, 1000.0, notes.append)
    keeper.connect(BlockPool(8, 4), Tier(), len(BLOCK), {})
    return keeper


def keep(store: Store, number: int, names: tuple[bytes, ...]) -> None:
    """A snapshot of one session."""
    writer = SnapshotWriter(store, print)
    writer.add(identity(number, "id"), [(name, BLOCK) for name in names])
    writer.publish(identity(number, "id"), 10, [SessionPart("S", 0, 0, 4 * len(names), names)])
    assert writer.wait(10)
    writer.close()


def assign(keeper: Keeper, committed: dict[int, tuple[str, int]]) -> None:
    """Assigned, and turned as the loop does until it is known what there is."""
    keeper.assigned(committed)
    deadline_s = time.monotonic() + 10
    while keeper.sought:
        assert time.monotonic() < deadline_s
        assert keeper.pick() == []
        time.sleep(0.001)


def test_what_was_kept_of_a_partition_is_there_until_it_goes(tmp_path) -> None:
    store, notes = open_store(str(tmp_path)), list[str]()
    keep(store, 3, NAMES[:2])
    keeper = make_keeper(store, notes)
    assign(keeper, {3: ("id", 10), 4: ("id", 10)})
    assert [keeper.has(name) for name in NAMES] == [True, True, False, False]
    assert keeper.fetch(NAMES).result(10) == dict.fromkeys(NAMES[:2], BLOCK) | dict.fromkeys(NAMES[2:])
    keeper.let_go([3])
    assert not keeper.has(NAMES[0])
    keeper.close()
    assert notes == []


@pytest.mark.parametrize(("topic_id", "offset", "reason"), [("other", 10, "recreated"), ("id", 9, "ahead of")])
def test_what_does_not_fit_is_passed_over_with_a_line(topic_id: str, offset: int, reason: str, tmp_path) -> None:
    store, notes = open_store(str(tmp_path)), list[str]()
    keep(store, 3, NAMES)
    keeper = make_keeper(store, notes)
    assign(keeper, {3: (topic_id, offset)})
    assert not keeper.has(NAMES[0])
    keeper.close()
    assert [reason in note for note in notes] == [True]


def test_a_store_that_fails_or_is_slow_holds_no_partition_up_for_long(tmp_path, monkeypatch) -> None:
    store, notes, told = open_store(str(tmp_path)), list[str](), threading.Event()
    keep(store, 4, NAMES)
    keeper = make_keeper(store, notes)
    monkeypatch.setattr(search, "FIND_S", 0.05)
    find = keeper._reader.find

    def slow(sought: Identity, offset: int) -> Manifest | None:
        if sought.partition == 3:
            raise Unavailable("snapshots: no such host")
        assert told.wait(10)
        return find(sought, offset)

    monkeypatch.setattr(keeper._reader, "find", slow)
    started = time.monotonic()
    keeper.assigned({3: ("id", 10), 4: ("id", 10)})
    assert time.monotonic() - started < 0.04    # the loop goes on
    while keeper.sought:
        keeper.pick()
    assert "snapshots: no such host; partition 3 is computed from the topic" in notes
    assert [note for note in notes if "no answer within" in note and "partition 4" in note]
    told.set()
    while not keeper.has(NAMES[0]):     # better late than never
        assert time.monotonic() - started < 10
        assert not keeper.sought
    keeper.close()
    assert len(notes) == 2


def test_a_search_that_ends_after_a_snapshot_of_our_own_changes_nothing(tmp_path, monkeypatch) -> None:
    store, notes, told = open_store(str(tmp_path)), list[str](), threading.Event()
    keep(store, 3, NAMES[:1])
    keeper = make_keeper(store, notes)
    find = keeper._reader.find

    def slow(sought: Identity, offset: int) -> Manifest | None:
        found = find(sought, offset)
        assert told.wait(10)
        return found

    monkeypatch.setattr(keeper._reader, "find", slow)
    keeper.assigned({3: ("id", 10)})
    keep(store, 3, NAMES)
    manifest = find(identity(3, "id"), 10)
    assert manifest
    keeper.learn(manifest)
    keeper.pick()
    assert not keeper.sought
    told.set()
    time.sleep(0.05)
    assert not keeper.sought
    assert keeper.has(NAMES[3])
    keeper.close()


def test_a_block_that_cannot_be_read_is_stored_again(tmp_path) -> None:
    store, notes = open_store(str(tmp_path)), list[str]()
    keep(store, 3, NAMES)
    keeper = make_keeper(store, notes)
    assign(keeper, {3: ("id", 10)})
    for path in tmp_path.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    found = keeper.fetch(NAMES).result(10)
    (lost,) = [name for name, data in found.items() if data is None]
    assert len(found) == len(NAMES)
    assert keeper._writer.wait(10)      # it has learned what the manifest names
    assert not keeper._writer.has(identity(3, "id"), lost)
    keeper.close()


def test_a_store_of_no_known_kind_is_refused_before_a_model_is_loaded() -> None:
    check_store(Config())
    with pytest.raises(Usage, match="no store that can be opened"):
        check_store(Config(snapshots=Snapshots(url="ftp://x")))
