import errno
import os
import subprocess
import threading

import pytest
from snapshot_world import S3Server

from streamproc.errors import Unavailable, Usage
from streamproc.snapshots import files as stores
from streamproc.snapshots.files import FileStore
from streamproc.snapshots.objects import first_line
from streamproc.snapshots.store import open_store

FULL_BYTES = 2**20


@pytest.fixture
def folder(tmp_path):
    return FileStore(tmp_path / "kept")


def test_what_is_put_is_got_in_full_and_in_part(store):
    store.put("a/b/c", [b"one", memoryview(b"two"), b""])
    assert bytes(store.get("a/b/c")) == b"onetwo"
    assert bytes(store.get_range("a/b/c", 2, 3)) == b"etw"
    assert bytes(store.get_range("a/b/c", 4, 100)) == b"wo"
    store.put("a/b/c", [b"again"])
    assert bytes(store.get("a/b/c")) == b"again"


def test_what_is_not_there_is_none_and_may_be_deleted(store):
    assert store.get("a/b") is None
    assert store.get_range("a/b", 0, 10) is None
    assert store.list("a") == []
    store.delete("a/b")


def test_only_one_writer_of_a_new_file_wins(store):
    assert store.put_if_absent("a/b", [b"first"])
    assert not store.put_if_absent("a/b", [b"second"])
    assert bytes(store.get("a/b")) == b"first"


def test_a_list_has_all_files_under_a_folder_with_size_and_time(store):
    for path in ("a/c/2", "a/b", "a/c/1", "ab/d"):
        store.put(path, [path.encode()])
    listed = store.list("a")
    assert [(found.path, found.num_bytes) for found in listed] == [("a/b", 3), ("a/c/1", 5), ("a/c/2", 5)]
    assert all(found.modified_s > 1.7e9 for found in listed)
    store.delete("a/c/1")
    assert [found.path for found in store.list("a")] == ["a/b", "a/c/2"]


def test_names_that_mean_something_in_paths_are_kept_apart(store):
    store.put("%2E%2E/a%2Fb/x", [b"1"])
    assert [found.path for found in store.list("%2E%2E/a%2Fb")] == ["%2E%2E/a%2Fb/x"]
    assert bytes(store.get("%2E%2E/a%2Fb/x")) == b"1"


@pytest.mark.parametrize("url", ["ftp://host/x", "", "  ", "file://", "file://elsewhere/x", "s3://", "http://host/x"])
def test_a_url_of_no_store_is_refused_with_what_would_do(url):
    with pytest.raises(Usage, match=r"snapshots\.url = .*use a folder, file:///path, s3://bucket/prefix or memory://"):
        open_store(url)


def test_an_unknown_option_of_a_bucket_is_refused():
    with pytest.raises(Usage, match="unknown option secret; use endpoint or region"):
        open_store("s3://bucket/x?secret=1")


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Usage, match="not a folder"):
        open_store(str(tmp_path / "file"))


def test_an_object_store_that_does_not_answer_is_one_line():
    server = S3Server()
    store = open_store(f"s3://bucket/x?endpoint=http://{server.address}&region=us-east-1")
    for deed in (lambda: store.list("a"), lambda: store.get("a"), lambda: store.put("a", [b""])):
        with pytest.raises(Unavailable, match=r"^snapshots: cannot \w+ a in s3://bucket/x: [^\n]+$"):
            deed()


def test_a_missing_bucket_is_one_line(s3_url):
    store = open_store(s3_url.replace("s3://b", "s3://c"))
    for deed in (lambda: store.list("a"), lambda: store.get("a"), lambda: store.put("a", [b"x"])):
        with pytest.raises(Unavailable, match=r"^snapshots: cannot \w+ a in s3://[^\n]+: there is no such bucket"):
            deed()


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    (tmp_path / "kept").write_text("a file in the way")
    store = FileStore(tmp_path)
    with pytest.raises(Unavailable, match=r"^snapshots: cannot write kept/a in .*: (Not a directory|File exists)$"):
        store.put("kept/a", [b"x"])


def test_a_file_is_seen_whole_or_not_at_all(folder):
    """Readers beside a writer that replaces a file again and again."""
    pieces = [bytes([i]) * 1000 for i in range(50)]
    folder.put("a", pieces)
    torn = []

    def read():
        while not done.is_set():
            content = bytes(folder.get("a"))
            if content != b"".join(sorted(pieces, key=lambda piece: (piece[0] - content[0]) % 50)):
                torn.append(content)

    done = threading.Event()
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(50):
        folder.put("a", pieces[i:] + pieces[:i])
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_many_parts_are_written_in_order(folder):
    parts = [str(i).encode() for i in range(3000)]
    folder.put("a", parts)
    assert bytes(folder.get("a")) == b"".join(parts)


def test_a_short_write_goes_on_where_it_ended(folder, monkeypatch):
    real = os.writev
    monkeypatch.setattr(stores.os, "writev", lambda file, views: real(file, [memoryview(views[0])[:3]]))
    folder.put("a", [b"abcdefgh", b"ij"])
    assert bytes(folder.get("a")) == b"abcdefghij"


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_nothing_behind(folder, monkeypatch):
    folder.put("a/b", [b"old"])
    monkeypatch.setattr(stores.os, "writev", full)
    for path, put in (("a/b", folder.put), ("a/c", folder.put_if_absent)):
        with pytest.raises(Unavailable, match=f"cannot write {path} in .*: No space left"):
            put(path, [b"new"])
    assert os.listdir(folder.root / "a") == ["b"]
    assert bytes(folder.get("a/b")) == b"old"


def test_a_file_system_without_links_will_do(folder, monkeypatch):
    def no_links(new, place):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(stores.os, "link", no_links)
    assert folder.put_if_absent("a", [b"first"])
    assert not folder.put_if_absent("a", [b"second"])
    assert bytes(folder.get("a")) == b"first"


def test_what_a_killed_writer_left_is_not_listed_and_goes_in_time(folder):
    folder.put("a/b", [b"x"])
    fresh, stale = (folder.root / "a" / f"c.{letter * 32}.part" for letter in "ab")
    for path in (fresh, stale):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    assert [found.path for found in folder.list("a")] == ["a/b"]
    assert stale.exists()  # whoever only looks deletes nothing
    folder.sweep("a")
    assert fresh.exists()
    assert not stale.exists()


def test_every_step_of_a_write_is_made_durable(folder, monkeypatch):
    """The file before it gets its name, and the folder after; a new folder in the one above."""
    steps = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(file):
        steps.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{file}")).split(".")[0]))
        real_sync(file)

    def replace(new, place):
        steps.append(("rename", place.name))
        real_replace(new, place)

    monkeypatch.setattr(stores.os, "fsync", sync)
    monkeypatch.setattr(stores.os, "replace", replace)
    folder.put("a/b", [b"x"])
    above = folder.root.parent.name
    assert steps == [("sync", above), ("sync", "kept"), ("sync", "b"), ("rename", "b"), ("sync", "a")]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_what_was_there_stays(small_disk, tmp_path, monkeypatch):
    store = FileStore(small_disk or tmp_path / "kept")
    store.put("a/old", [b"old"])
    if small_disk is None:  # mounting is refused here: the same from the call
        monkeypatch.setattr(stores.os, "writev", full)
    with pytest.raises(Unavailable, match=r"^snapshots: cannot write a/new in .*: No space left"):
        store.put("a/new", [bytes(2 * FULL_BYTES)])
    assert [found.path for found in store.list("a")] == ["a/old"]
    monkeypatch.undo()
    store.put("a/new", [b"new"])
    assert bytes(store.get("a/new")) == b"new"


def test_files_of_others_with_such_a_name_are_listed_and_stay(folder):
    folder.put("a/b", [b"x"])
    film = folder.root / "a" / "film.part"
    film.write_bytes(b"long")
    os.utime(film, (0, 0))
    folder.sweep("a")
    assert [found.path for found in folder.list("a")] == ["a/b", "a/film.part"]


def test_a_left_over_that_may_not_be_deleted_is_in_nobodys_way(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder.put("a/b", [b"x"])
    left = folder.root / "a" / f"c.{'0' * 32}.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    monkeypatch.setattr(stores.os, "unlink", refuse)
    folder.sweep("a")
    assert left.exists()
    assert [found.path for found in folder.list("a")] == ["a/b"]


def test_links_that_lead_nowhere_are_passed_over(folder):
    folder.put("a/b", [b"x"])
    (folder.root / "a" / "loop").symlink_to("loop")
    (folder.root / "a" / "gone").symlink_to("nowhere")
    folder.sweep("a")
    assert [found.path for found in folder.list("a")] == ["a/b"]


@pytest.mark.parametrize("url", ["s3://[bad", "~nosuch/x", "/tmp/a\0b"])
def test_a_url_that_cannot_be_taken_apart_is_one_line(url):
    with pytest.raises(Usage, match=r"^snapshots\.url = [^\n]+; use a folder, file:///path, s3://bucket/prefix or"):
        open_store(url).list("a")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hidden@bucket/p", "s3://hidden:hid/hidden@bucket/p", "https://KEY:hidden@host/x", "ftp://hidden@h",
        "s3://KEY:hidden@[bad", "s3://b/p?endpoint=http://KEY:hidden@127.0.0.1:1",
    ],
)  # fmt: skip
def test_no_password_is_said(url):
    with pytest.raises(Usage) as caught:
        open_store(url)
    assert "hidden" not in str(caught.value)


def test_credentials_that_are_missing_are_named():
    """Without any the client asks the machine's address for them, of which nobody has heard."""
    said = "Error performing PUT http://169.254.169.254/latest/api/token in 1.2ms - Server returned 403"
    assert first_line(OSError(said)) == (
        "there are no credentials; they come from the cloud's variables, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    )
