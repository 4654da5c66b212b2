"""The store under test is full when it is said to be, and leaves no mount behind."""

import errno
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.history import History, Past, read_history
from harness.store import Store

from streamproc.kafka.process import wait_until

NUM_BYTES = 2**20


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    found = History(tmp_path / "history.jsonl")
    yield found
    found.close()


def notes(history: History) -> list[str]:
    history.close()
    return [event["text"] for event in Past(read_history(history.path)).of("note")]


def test_a_full_disk_takes_nothing_until_there_is_room_again(history: History, tmp_path: Path) -> None:
    store = Store(tmp_path / "snapshots", history, NUM_BYTES)
    store.mount()
    try:
        if not store.is_small:  # where nobody may mount, the history says so
            assert len(notes(history)) == 1
            return
        store.fill()
        store.fill()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (store.path / "more").write_bytes(bytes(2**13))
        store.damage(random.Random(1))  # never the balloon
        store.free()
        (store.path / "more").write_bytes(bytes(NUM_BYTES // 2))
    finally:
        store.unmount()
    assert not store.path.is_mount()
    store.unmount()


def test_a_mount_goes_with_whoever_was_killed(history: History, tmp_path: Path) -> None:
    store = Store(tmp_path / "snapshots", history, NUM_BYTES)
    child = os.fork()
    if not child:
        store.mount()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert wait_until(lambda: not store.path.is_mount(), 10)


def test_where_mounting_is_refused_the_history_says_so(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no mount here
    store = Store(tmp_path / "snapshots", history, NUM_BYTES)
    store.mount()
    assert not store.is_small
    assert [note.startswith("the disk of the snapshots is never full in this run") for note in notes(history)] == [True]


def test_a_store_beside_the_history_is_no_file_system_of_its_own(history: History, tmp_path: Path) -> None:
    store = Store(tmp_path / "snapshots", history)
    store.mount()
    assert not store.is_small
    assert not notes(history)
