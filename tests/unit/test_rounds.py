"""Rounds of the keeper, on partitions made by hand and a real store."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from snapshot_world import PATIENT_S, Said, Wrapped

from streamproc.keeper import Keeper, Saves
from streamproc.records import Trade
from streamproc.snapshots import rounds
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.rounds import Round
from streamproc.snapshots.store import Store, open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.lifecycle import Phase
from streamproc.state.partition import Partition, Recovery
from streamproc.state.session import Session, Shape
from streamproc.state.tier import Tier

SIZE, BLOCK_BYTES = 4, 1024
SHAPE = Shape((), 400, 100)
LATER_S = 1_000.0
RECORD = Trade("S", 1, "1", "1")


def identity(number: int, topic_id: str = "id") -> Identity:
    return Identity("model", "group", "records", topic_id, number)


class Held(Wrapped):
    """Writes nothing until it is let go; notes what it writes."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.go = threading.Event()
        self.written: list[str] = []

    def step(self, deed: str, path: str) -> None:
        if deed == "put" and "condemned" not in path:
            assert self.go.wait(PATIENT_S)
            self.written.append(path)


class Rig:
    """A keeper with partitions whose blocks are all in the pool."""

    def __init__(self, store: Store, interval_s: float = LATER_S, pending_bytes: int = 2**26) -> None:
        self.said, self.store = Said(), store
        self.writer = SnapshotWriter(store, self.said, pending_bytes)
        self.keeper = Keeper(identity, self.writer, SnapshotReader(store, self.said), interval_s, self.said)
        self.pool, self.partitions, self.ids = BlockPool(8_000, SIZE), dict[int, Partition](), count(1)
        self.tier = Tier(100)
        self.keeper.connect(self.pool, self.tier, BLOCK_BYTES, self.partitions)
        self.copied: list[bytes] = []

    def partition(self, number: int, num_sessions: int, num_records: int = 10) -> Partition:
        """Of so many sessions, with so many records of one block each."""
        made = self.partitions[number] = Partition.recover(number, SHAPE, Recovery(0, 0, {}, 0))
        made.enter(Phase.LIVE)
        for place in range(num_sessions):
            session = made.session(f"{number}-{place}", 0, self.ids.__next__)
            assert session
            for offset in range(num_records):
                self.append(session, offset)
        made.committed = (num_records, 0, "")
        self.keeper.assigned({number: ("id", num_records)})
        while self.keeper.sought:
            self.step()
        return made

    def append(self, session: Session, offset: int) -> None:
        """A record; all of its session is computed."""
        session.append(offset, RECORD, tuple(next(self.ids) for _ in range(SIZE)), self.ids.__next__)
        generation = session.current
        for index in range(len(generation.block_table), generation.num_tokens // SIZE):
            (block_id,) = self.pool.allocate(1) or ()
            self.pool.name(block_id, generation.name(index, SIZE))
            generation.block_table.append(block_id)

    def copy_out(self, saves: Saves) -> None:
        self.copied += [name for _, name in saves]
        self.keeper.take({name: name * (BLOCK_BYTES // 16) for _, name in saves})

    def step(self) -> int:
        """-> the number of blocks that were copied out."""
        saves = self.keeper.pick()
        self.copy_out(saves)
        return len(saves)

    def due(self, *numbers: int) -> None:
        """The rounds of these partitions are to begin."""
        self.keeper._due_s.update(dict.fromkeys(numbers, 0.0))

    def rounds(self) -> None:
        """Until no round is left, and all is stored."""
        until(lambda: not self.step() and not self.keeper._rounds)
        assert self.writer.wait(PATIENT_S)

    def manifests(self, number: int) -> list[str]:
        return [found.path for found in self.store.list(identity(number).folder)]

    def newest(self, number: int) -> Manifest:
        found = SnapshotReader(self.store, Said(), 0).find(identity(number), 10**9)
        assert found
        return found

    def names(self, *numbers: int) -> set[bytes]:
        """Of all full blocks of these partitions."""
        sessions = [session for number in numbers for session in self.partitions[number].sessions.values()]
        return {s.current.name(index, SIZE) for s in sessions for index in range(s.current.num_tokens // SIZE)}

    def stored(self, number: int) -> int:
        """Blocks of its newest manifest that can be read back."""
        return len(SnapshotReader(self.store, Said(), 0).open(self.newest(number)).names)


@pytest.fixture
def rig(tmp_path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(wrap: Callable[[Store], Store] = lambda store: store, **given: float) -> Rig:
        rigs.append(Rig(wrap(open_store(str(tmp_path))), **given))
        return rigs[-1]

    yield make
    for each in rigs:
        each.keeper.close()


def until(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_hand_over_copies_out_what_goes_alone_and_the_rounds_of_what_stays_go_on(rig) -> None:
    world = rig()
    for number in range(3):
        world.partition(number, 4)
    world.due(0, 1, 2)
    world.keeper.committed([])
    world.keeper._begin_due()
    world.keeper.hand_over([world.partitions[2]], world.copy_out, 5.0)
    assert set(world.copied) == world.names(2)
    assert world.newest(2).offset == 10
    assert world.stored(2) == len(world.names(2))
    world.keeper.let_go([2])
    world.rounds()
    assert world.stored(0) == world.stored(1) == len(world.names(0))


def test_what_goes_is_stored_before_what_has_waited_for_longer(rig) -> None:
    held: list[Held] = []

    def hold(store: Store) -> Store:
        held.append(Held(store))
        return held[0]

    world = rig(hold, pending_bytes=2**16)      # a segment is 16 blocks
    world.partition(0, 4)
    world.partition(1, 1)
    world.due(0)
    until(lambda: world.step() == 0)
    assert world.writer.room < 2**16 - 30 * BLOCK_BYTES
    world.keeper.hand_over([world.partitions[1]], world.copy_out, 0.05)
    held[0].go.set()
    assert world.writer.wait(PATIENT_S)
    kinds = ["manifest of 1" if "/manifests/1/" in path else path.split("/")[2] for path in held[0].written]
    assert kinds.index("manifest of 1") <= 2    # the segment that was being written, and its own
    assert world.stored(1) == len(world.names(1))
    assert world.stored(0) == len(world.names(0))


def test_a_hand_over_to_a_store_that_hangs_is_bounded_and_its_manifest_comes_later(rig) -> None:
    held: list[Held] = []

    def hold(store: Store) -> Store:
        held.append(Held(store))
        return held[0]

    world = rig(hold)
    world.partition(1, 4)
    started = time.monotonic()
    world.keeper.hand_over([world.partitions[1]], world.copy_out, 30.0)
    assert 0.5 < time.monotonic() - started < 1.4
    world.keeper.let_go([1])
    assert world.manifests(1) == []
    held[0].go.set()
    assert world.writer.wait(PATIENT_S)
    assert world.newest(1).offset == 10
    assert world.stored(1) == 40


def test_a_hand_over_without_time_leaves_a_manifest_of_what_is_stored(rig) -> None:
    world = rig()
    world.partition(1, 4)
    world.due(1)
    world.rounds()
    session = next(iter(world.partitions[1].sessions.values()))
    world.append(session, 10)
    world.partitions[1].committed = (11, 0, "")
    world.keeper.hand_over([world.partitions[1]], world.copy_out, 0.0)
    assert world.writer.wait(PATIENT_S)
    assert world.newest(1).offset == 11
    assert len(world.newest(1).names) == 41
    assert world.stored(1) == 40


def test_a_partition_that_came_back_and_is_quiet_is_kept_once(rig) -> None:
    world = rig(interval_s=0.02)
    world.partition(1, 2)
    until(lambda: world.step() == 0 and world.manifests(1))
    assert world.stored(1) == 20
    for _ in range(20):
        world.step()
        time.sleep(0.005)
    assert len(world.manifests(1)) == 1


def test_a_quiet_partition_is_looked_at_again_until_all_its_blocks_were_somewhere(rig) -> None:
    world = rig(interval_s=0.02)
    made = world.partition(1, 2, 0)
    session = next(iter(made.sessions.values()))
    session.append(0, RECORD, (1, 2, 3, 4), world.ids.__next__)     # not computed yet
    made.committed = (1, 0, "")
    world.keeper.committed([made])
    until(lambda: world.step() == 0 and world.manifests(1) and world.newest(1).offset == 1)
    assert world.stored(1) == 0
    (block_id,) = world.pool.allocate(1) or ()
    world.pool.name(block_id, session.current.name(0, SIZE))
    until(lambda: world.step() == 0 and world.stored(1) == 1)


def test_what_the_writer_does_not_take_is_in_the_snapshot_all_the_same(rig) -> None:
    world = rig(pending_bytes=7 * BLOCK_BYTES)
    world.partition(1, 4)
    world.tier.put({name: bytes(BLOCK_BYTES) for name in world.names(1)})   # need not be copied out: all can be given
    world.due(1)
    world.rounds()
    assert world.copied == []
    assert world.stored(1) == 40


def test_a_step_looks_at_some_sessions_however_many_there_are(rig, monkeypatch) -> None:
    looked_at: list[int] = []
    look_at = Round._look_at
    monkeypatch.setattr(Round, "_look_at", lambda *given: looked_at.append(1) or look_at(*given))
    monkeypatch.setattr(rounds, "MANY_NAMES", 100)
    world = rig()
    world.partition(1, 300, 4)
    world.due(1)
    num_steps = 0
    while world.keeper._rounds or not num_steps:
        looked_at.clear()
        world.step()
        assert len(looked_at) <= 26     # of four names each
        num_steps += 1
    assert world.writer.wait(PATIENT_S)
    assert world.stored(1) == 1200


def test_a_snapshot_is_of_the_offset_at_which_its_round_began(rig) -> None:
    world = rig()
    made = world.partition(1, 100)
    world.due(1)
    world.step()
    for session in list(made.sessions.values()):
        world.append(session, 10)
    made.committed = (11, 0, "")
    world.rounds()
    newest = world.newest(1)
    assert newest.offset == 10
    assert {session.num_tokens for session in newest.sessions} == {10 * SIZE}
    assert world.stored(1) == 1000


def test_a_session_that_hops_meanwhile_is_kept_as_what_it_is_now(rig) -> None:
    world = rig()
    made = world.partition(1, 70, 95)
    session = next(iter(made.sessions.values()))
    before = session.current
    world.due(1)
    world.step()
    for offset in range(95, 110):
        world.append(session, offset)
    made.committed = (110, 0, "")
    assert session.settle(110) == [before]
    world.rounds()
    part = next(each for each in world.newest(1).sessions if each.key == session.key)
    assert part.start_offset == session.current.start_offset > 0
    assert part.names == tuple(session.current.name(index, SIZE) for index in range(len(part.names)))
    assert part.names
