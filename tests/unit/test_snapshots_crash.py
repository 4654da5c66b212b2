"""A worker killed at any call of the operating system on its way from one snapshot to the next; a full disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snapshot_world import BLOCK_BYTES, IDENTITY, PATIENT_S, S3Server, Said, blocks, other, restored, session, written

from streamproc.snapshots import files as stores
from streamproc.snapshots import writer as writers
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter

SUPPORT = Path(__file__).parents[1] / "support"
DISK_BYTES = 40 * BLOCK_BYTES
CALLS = ("open", "writev", "fsync", "link", "replace", "unlink")
VICTIM = f"""
import os, signal, sys
from streamproc.snapshots import files
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.publisher import Publisher
from streamproc.snapshots.store import open_store
from snapshot_world import IDENTITY, blocks, session

class DeadlyOs:  # what the store calls; the process dies before the call whose turn it is
    def __init__(self, left):
        self.left = left

    def __getattr__(self, name):
        call = getattr(os, name)
        if name not in {CALLS!r}:
            return call
        def deadly(*args, **kwargs):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return call(*args, **kwargs)
        return deadly

for point in range(1000):
    kept = open_store(f"{{sys.argv[1]}}/{{point:03}}")
    publisher = Publisher(kept, print, Retention(keep=1))
    publisher.write(IDENTITY, blocks(*range(5)))
    publisher.publish(IDENTITY, 100, [session(*range(5))])
    pid = os.fork()
    if not pid:
        files.os = DeadlyOs(point)
        publisher.write(IDENTITY, blocks(*range(5, 10)))
        publisher.publish(IDENTITY, 200, [session(*range(10))])
        publisher.tidy(IDENTITY)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
"""


def test_a_worker_killed_at_any_call_leaves_the_one_snapshot_or_the_other(tmp_path):
    environ = {"PYTHONPATH": ":".join([*sys.path, str(SUPPORT)])}
    subprocess.run([sys.executable, "-P", "-c", VICTIM, str(tmp_path)], check=True, env=environ, timeout=60)
    places = sorted(tmp_path.iterdir())
    assert len(places) > 12
    seen = []
    for place in places:
        store = open_store(str(place))
        numbers, said = restored(store)
        assert said == []
        seen.append(len(numbers))
        written(store, 300)  # the next worker goes on as if nothing had happened
        assert restored(store) == (list(range(10)), [])
    assert set(seen) == {5, 10}
    assert seen == sorted(seen)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system with room for 40 blocks."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        monkeypatch.setattr(stores.os, "writev", limited(place))  # mounting is refused here: the same from the call
        yield place
    else:
        yield place
        subprocess.run(["umount", str(place)], check=True)


def limited(place):
    real = os.writev

    def writev(file, views):
        num_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        if num_bytes + sum(map(len, views)) > DISK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, views)

    return writev


def test_a_disk_that_is_full_and_gets_room_again(small_disk, monkeypatch):
    monkeypatch.setattr(writers, "PATIENCE_S", (0.01,))
    (small_disk / "somebody-elses").write_bytes(bytes(20 * BLOCK_BYTES))
    store, said = open_store(str(small_disk / "kept")), Said()
    writer = SnapshotWriter(store, said)
    writer.add(IDENTITY, blocks(*range(5)))
    writer.publish(IDENTITY, 100, [session(*range(5))])
    assert writer.wait(PATIENT_S)
    writer.add(IDENTITY, blocks(*range(5, 20)))
    writer.publish(IDENTITY, 200, [session(*range(20))])
    assert not writer.wait(0.2)
    assert len(said) == 1
    assert "No space left on device; it is tried again" in said[0]
    assert writer.room == 0
    assert restored(store) == ([0, 1, 2, 3, 4], [])
    (small_disk / "somebody-elses").unlink()
    assert writer.wait(PATIENT_S)
    writer.close()
    assert said[1:] == [f"snapshots: {store.url} works again"]
    assert restored(store, range(20)) == (list(range(20)), [])


def test_a_server_that_comes_up_late_gets_everything(monkeypatch):
    monkeypatch.setattr(writers, "PATIENCE_S", (0.05,))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-test")
    server, said = S3Server(), Said()
    store = open_store(f"s3://late/in/here?endpoint=http://{server.address}&region=us-east-1")
    writer = SnapshotWriter(store, said)
    writer.add(IDENTITY, blocks(*range(10)))
    writer.publish(IDENTITY, 100, [session(*range(10))])
    writer.publish(other(partition=4), 100, [session(*range(4))])
    assert not writer.wait(1)
    assert len(said) == 1
    server.start()
    try:
        server.bucket("late")
        assert writer.wait(PATIENT_S)
        assert restored(store) == (list(range(10)), [])
        assert restored(store, range(4), identity=other(partition=4)) == (list(range(4)), [])
        assert said[1:] == ["snapshots: s3://late/in/here works again"]
    finally:
        writer.close()
        server.stop()
