"""A worker that fails, with the loop on fakes and a store that hangs."""

import random
import threading
import time
from typing import Any

import pytest
from snapshot_world import PATIENT_S, Wrapped
from world import World, make_config, random_record

from streamproc.keeper import Keeper
from streamproc.snapshots.manifest import Identity
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.worker import Worker


class Hanging(Wrapped):
    go = threading.Event()

    def step(self, deed: str, path: str) -> None:
        assert self.go.wait(PATIENT_S)


def test_a_worker_that_fails_leaves_no_thread_that_the_process_would_wait_for(tmp_path) -> None:
    before = set(threading.enumerate())
    store, notes, keepers = Hanging(open_store(str(tmp_path))), list[str](), list[Keeper]()

    def identity(number: int, topic_id: str) -> Identity:
        return Identity("fake", "group", "records", topic_id, number)

    def keeper() -> Keeper:
        writer, reader = SnapshotWriter(store, notes.append), SnapshotReader(store, notes.append)
        keepers.append(Keeper(identity, writer, reader, 0.0, notes.append))
        return keepers[-1]

    world = World(random.Random(1), make_config(), 1, 200, keeper=keeper)
    world.rebalance_share = 0.0
    world.log.produce(0, random_record(world.rng, "A"))
    any_: Any = None
    worker = Worker(world.processor, any_, any_)
    calls = iter(range(1000))

    def is_stopped() -> bool:
        if next(calls) == 10:
            raise RuntimeError("a fault")
        return False

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="a fault"):
        worker.run(is_stopped)
    assert time.monotonic() - started < 3.0
    assert keepers[0]._writer.room == 0
    ours = [each for each in set(threading.enumerate()) - before if each.name.startswith("snapshot")]
    assert ours
    assert all(thread.daemon for thread in ours)
    store.go.set()
    for thread in ours:
        thread.join(PATIENT_S)
