"""A folder as a store: a file is there whole or not at all, and what was written outlives a power cut."""

import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamproc.errors import Usage
from streamproc.snapshots.contract import TAKES, Buffer, Found, refuse

UNFINISHED = ".part"  # end of the name of a file that is being written
OURS = re.compile(r".+\.[0-9a-f]{32}\.part", re.DOTALL)  # such a name in full: others may call a film so
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
FEW = 512  # buffers that one call writes
STALE_S = 3600.0  # after this nobody writes an unfinished file any more


class FileStore:
    """A folder. A file is written beside its place, synced, then put there in one stroke, and its folder is synced.

    Ranges are read with pread, not mapped: a file that is cut short, or a disk that fails, under a mapping kills the
    process; here it is one line and a block to compute.
    """

    is_remote = False

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self.root = root
        if root.exists() and not root.is_dir():
            raise Usage(f"snapshots.url = {self.url}: not a folder; use {TAKES}")

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        with self._saying("write", path), self._written(path, parts) as (new, place):
            os.replace(new, place)

    def put_if_absent(self, path: str, parts: Sequence[Buffer]) -> bool:
        with self._saying("write", path):
            if (self.root / path).exists():
                return False
            with self._written(path, parts) as (new, place):
                return place_new(new, place)

    @contextlib.contextmanager
    def _written(self, path: str, parts: Sequence[Buffer]) -> "Iterator[tuple[Path, Path]]":
        """A synced file with these parts, and its place, where whoever asked puts it; then the folder is synced."""
        place = self.root / path
        make_folder(place.parent)
        new = place.with_name(f"{place.name}.{uuid.uuid4().hex}{UNFINISHED}")
        try:
            with open(new, "xb", buffering=0) as file:
                write_all(file.fileno(), parts)
                os.fsync(file.fileno())
            yield new, place
        finally:
            new.unlink(missing_ok=True)
        sync_folder(place.parent)

    def get(self, path: str) -> memoryview | None:
        return self._read(path, 0, None)

    def get_range(self, path: str, start: int, num_bytes: int) -> memoryview | None:
        return self._read(path, start, num_bytes)

    def _read(self, path: str, start: int, num_bytes: int | None) -> memoryview | None:
        with self._saying("read", path):
            try:
                file = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                left = max(os.fstat(file).st_size - start, 0)  # never more memory than there is to be read
                return read_all(file, start, left if num_bytes is None else min(num_bytes, left))
            finally:
                os.close(file)

    def list(self, folder: str) -> "list[Found]":
        with self._saying("list", folder):
            return sorted(self._found(entry, found) for entry, found in self._walk(self.root / folder)
                          if not OURS.fullmatch(entry.name))  # fmt: skip

    def _found(self, entry: "os.DirEntry[str]", found: os.stat_result) -> Found:
        return Found(str(Path(entry.path).relative_to(self.root)), found.st_size, found.st_mtime)

    def sweep(self, folder: str) -> None:
        """Unfinished files of ours that are so old that their writer is gone."""
        with self._saying("list", folder):
            for entry, found in self._walk(self.root / folder):
                is_ours = OURS.fullmatch(entry.name) and stat.S_ISREG(found.st_mode)
                if is_ours and time.time() - found.st_mtime > STALE_S:
                    with contextlib.suppress(OSError):  # it is in nobody's way where it may not be deleted
                        os.unlink(entry.path)

    def _walk(self, folder: Path) -> "Iterator[tuple[os.DirEntry[str], os.stat_result]]":
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
                continue
            try:
                found = entry.stat()
            except FileNotFoundError:  # deleted since
                continue
            except OSError:
                if entry.is_symlink():  # it leads nowhere, or round in circles: it is not ours
                    continue
                raise
            yield entry, found

    def delete(self, path: str) -> None:
        with self._saying("delete", path):
            (self.root / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _saying(self, deed: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            refuse(self.url, deed, path, problem.strerror or str(problem))


def place_new(new: Path, place: Path) -> bool:
    """Put a file in its place unless there is one -> whether it is there now."""
    try:
        os.link(new, place)
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in NO_LINKS:
            raise
        os.replace(new, place)  # a file system without links: two writers of one path write the same bytes
    return True


def write_all(file: int, parts: Sequence[Buffer]) -> None:
    """All bytes of all parts, without joining them."""
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        num_bytes = os.writev(file, views[:FEW])
        while views and num_bytes >= len(views[0]):
            num_bytes -= len(views.pop(0))
        if num_bytes:
            views[0] = views[0][num_bytes:]


def read_all(file: int, start: int, num_bytes: int) -> memoryview:
    """These bytes, or those up to the end of the file."""
    pieces = []
    while num_bytes > 0 and (piece := os.pread(file, num_bytes, start)):
        pieces.append(piece)
        start, num_bytes = start + len(piece), num_bytes - len(piece)
    return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def make_folder(folder: Path) -> None:
    """The folder and those above it, each durable in the one above."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
