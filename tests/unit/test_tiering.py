"""More sessions than the pool holds, with a snapshot store of real files: what leaves memory comes back from there."""

import random
import time
from pathlib import Path

import pytest
from planning import Planning

from streamproc.keeper import Keeper
from streamproc.snapshots.manifest import Identity
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.session import Shape
from streamproc.state.tier import Tier

PREFIX = tuple(range(10))
BLOCK, CONTEXT = 4, 64
SIZE = CONTEXT // BLOCK  # blocks of a session
BYTES = 8 * BLOCK
NAMES = tuple(bytes([i]) * 16 for i in range(8))
NEVER_S = 1e6


def identity(number: int, topic_id: str) -> Identity:
    return Identity("fake", "group", "records", topic_id, number)


class Kept:
    """A keeper that takes no rounds by itself, over files in a folder."""

    def __init__(self, folder: Path, tier: Tier, pending_bytes: int = 64 * 2**20) -> None:
        self.notes: list[str] = []
        store = open_store(str(folder))
        self.writer = SnapshotWriter(store, self.notes.append, pending_bytes)
        self.keeper = Keeper(identity, self.writer, SnapshotReader(store, self.notes.append), NEVER_S,
                             self.notes.append)  # fmt: skip
        self.keeper.connect(BlockPool(8, BLOCK), tier, BYTES, {})
        self.keeper.assigned({0: ("id", 0), 1: ("id", 0)})
        while self.keeper.sought:
            self.keeper.pick()

    def close(self) -> None:
        self.keeper.close()
        assert self.notes == []


@pytest.mark.parametrize("num_in_host_memory", [0, 200])
def test_two_thousand_sessions_live_on_a_pool_for_eighty(num_in_host_memory: int, tmp_path: Path) -> None:
    """64 of them are at work at a time; what comes back is not computed again, but for its newest tokens."""
    rng = random.Random(1)
    tier = Tier(num_in_host_memory * SIZE)
    kept = Kept(tmp_path, tier, pending_bytes=2**16)    # so little that most is read from files
    planning = Planning(80 * SIZE, BLOCK, 400, Shape(PREFIX, CONTEXT, CONTEXT // 2), tier=tier)
    for _ in range(2_000):
        planning.session()

    def turn() -> None:
        kept.keeper.pick()
        if tier.num_coming or not kept.keeper.room:
            time.sleep(0.0002)      # others have the processor too

    num_given, num_asked, num_returns = planning.rounds(rng, 70, (4, 9, 14), turn)
    assert num_returns > 2_400
    assert tier.num_loaded > 5_000
    assert planning.num_tokens <= num_given + num_asked * 5 + num_returns * (BLOCK - 1)
    assert list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.manifest*"))      # nobody has named any of it
    planning.workload.check()
    kept.close()


def leave(tier: Tier, names: tuple[bytes, ...]) -> None:
    """These blocks leave the pool; a step copies out those that somebody wants."""
    for number, name in enumerate(names):
        tier.leave(number, name)
    tier.put({name: name * 2 for _, name in tier.take_leaving()})


def test_what_left_can_be_read_back_at_once_and_from_its_file_before_a_manifest_names_it(tmp_path: Path) -> None:
    tier = Tier()
    kept = Kept(tmp_path, tier)
    leave(tier, NAMES)
    found = {name: name * 2 for name in NAMES}
    assert all(tier.has(name) for name in NAMES)
    assert kept.keeper.fetch(NAMES).result(10) == found
    assert not list(tmp_path.rglob("*.safetensors"))
    assert kept.writer.wait(10)
    (path,) = tmp_path.rglob("*.safetensors")
    assert kept.keeper.fetch(NAMES).result(10) == found
    path.unlink()       # as a collector may, of what nobody names
    assert kept.keeper.fetch(NAMES).result(10) == dict.fromkeys(NAMES)
    assert not any(kept.keeper.has(name) for name in NAMES)
    leave(tier, NAMES)
    assert kept.keeper.fetch(NAMES).result(10) == found
    kept.keeper.close()
    assert [note for note in kept.notes if "computed again: it is gone" not in note] == []


def test_what_the_writer_has_no_room_for_is_dropped_and_rounds_have_theirs(tmp_path: Path) -> None:
    tier = Tier()
    kept = Kept(tmp_path, tier, pending_bytes=8 * BYTES)
    leave(tier, NAMES)
    assert [tier.has(name) for name in NAMES] == [True] * 4 + [False] * 4
    assert kept.writer.room == 4 * BYTES
    kept.close()


def test_who_has_no_partition_stores_nothing(tmp_path: Path) -> None:
    tier = Tier()
    kept = Kept(tmp_path, tier)
    kept.keeper.let_go([0, 1])
    leave(tier, NAMES)
    assert not any(tier.has(name) for name in NAMES)
    kept.close()
