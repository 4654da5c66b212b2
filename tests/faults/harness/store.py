"""The folder of snapshots under test: its files can be damaged, and where it is a small file system of its own, which
takes root, it can be full.
"""

import contextlib
import errno
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness.history import History

PIECES = (2**20, 2**16, 2**12)
GUARD = ("sh", "-c", 'trap "" INT TERM; read _; umount -l "$0" 2>/dev/null')  # once we are gone, however we went
HOWS = ("torn", "flipped", "gone")


class Store:
    """`path` is what workers are given. num_bytes: of the file system of its own; 0: it is a folder like any other."""

    def __init__(self, path: Path, history: History, num_bytes: int = 0) -> None:
        self.path, self._history, self._num_bytes = path, history, num_bytes
        self._balloon = path / "balloon"
        self.is_small = False  # whether it can be full
        self._guard: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """Where that is refused the history says so, and the disk is never full."""
        if not self._num_bytes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.unmount()  # of a run that was killed
        options = ("-t", "tmpfs", "-o", f"size={self._num_bytes},mode=700", "streamproc-faults")
        problem = say_of("mount", *options, str(self.path))
        self.is_small = not problem
        if self.is_small:
            self._guard = subprocess.Popen([*GUARD, str(self.path.absolute())], stdin=subprocess.PIPE)
        else:
            self._history.add("note", text=f"the disk of the snapshots is never full in this run: {problem}")

    def unmount(self) -> None:
        """May be called again, and for a folder."""
        self.is_small = False
        if self._guard:
            self._guard.communicate()
            self._guard = None
        while self.path.is_mount():
            if problem := say_of("umount", "-l", str(self.path)):
                raise OSError(f"{self.path} stays mounted: {problem}")

    def fill(self) -> None:
        """Take all room that there is, down to a page."""
        with self._balloon.open("ab", buffering=0) as file:
            for num_bytes in PIECES:
                with until_full():
                    while True:
                        file.write(bytes(num_bytes))

    def free(self) -> None:
        """Give back what `fill` took."""
        self._balloon.unlink(missing_ok=True)

    def manifests(self) -> set[Path]:
        """All of them, in a folder a partition."""
        return set(self.path.glob("*/*/manifests/*/*.json"))

    def damage(self, rng: random.Random) -> None:
        """One of its files, whoever else goes on reading and writing there."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path != self._balloon)
        if not files:
            return
        path, how = rng.choice(files), rng.choice(HOWS)
        self._history.fault(f"{how} {path.suffix} in the store")
        with contextlib.suppress(FileNotFoundError), until_full():  # a worker has tidied it up
            content = path.read_bytes()
            place = rng.randrange(len(content) + 1)
            if how == "torn":
                path.write_bytes(content[:place])
            elif how == "flipped":
                flipped = bytes(255 - byte for byte in content[place : place + 1])
                path.write_bytes(content[:place] + flipped + content[place + 1 :])
            else:
                path.unlink()


@contextlib.contextmanager
def until_full() -> Iterator[None]:
    """What is left undone is so because the disk is full."""
    try:
        yield
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise


def say_of(*command: str) -> str:
    """Why a command failed; empty where it did what it should."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return str(problem)
    return (done.stderr.strip() or f"{command[0]} ended with {done.returncode}") if done.returncode else ""
