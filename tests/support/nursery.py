"""Workers on real engines in processes of their own, which share a log in a file and a folder of snapshots, and are
killed by signal.

As a script: loads what a worker needs once, then forks one for every line it reads: what it costs to be born is the
engine. A worker writes a line at every commit of answers; at its end, what it leaves.
"""

import base64
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import orjson
import torch
from crash_world import CrashWorld, Outcome, build_engine
from fakes import Log

from streamproc.state.epoch import Epoch


class FileLog(Log):
    """Its epochs outlive the process: a line each, in one write. A line without an end was never committed."""

    def open(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)
        for line in whole.splitlines():
            super().commit(pickle.loads(base64.b64decode(line)))

    def commit(self, epoch: Epoch) -> None:
        os.write(self._file, base64.b64encode(pickle.dumps(epoch)) + b"\n")
        super().commit(epoch)
        if epoch.messages:
            print("committed ", flush=True)


class Nursery:
    """Of the workers on one folder."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.num_killed = 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-P", __file__, str(folder), dtype]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("", 30)

    def live(self, num_commits: int = 0, more_s: float = 0.0) -> dict[str, Any]:
        """A worker, killed so many seconds after so many commits; 0: it may live -> what it leaves at its end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("live\n")
        self._process.stdin.flush()
        pid, found = int(self._process.stdout.readline()), dict[str, Any]()
        for line in self._process.stdout:
            kind, _, rest = line.partition(" ")
            if kind == "committed":
                num_commits -= 1
                if num_commits == 0:
                    time.sleep(more_s)
                    os.kill(pid, signal.SIGKILL)  # it is waited for after that, so the id is still its own
            elif kind == "left":
                found = orjson.loads(rest)
            elif kind == "over":
                self.num_killed += int(rest) == signal.SIGKILL
                return found
        raise AssertionError("the nursery is gone")


def as_lists(outcome: Outcome) -> list[Any]:
    """Its answers, as they come out of JSON."""
    return [[*key, [value.decode() for value in values]] for key, values in sorted(outcome.answers.items())]


def live(folder: Path, dtype: str) -> None:
    """A worker's life, in its own process."""
    torch.set_num_threads(1)
    engine, config = build_engine(dtype)
    world = CrashWorld(engine, config, folder / "kept", make_log=FileLog)
    assert isinstance(world.log, FileLog)
    world.log.open(folder / "log")
    num_committed = len(world.log.headers)
    world.produce_all()
    world.live()
    outcome = world.outcome()
    found = {"digests": outcome.digests, "answers": as_lists(outcome), "num_loaded": world.runner.num_loaded,
             "num_committed": num_committed}  # fmt: skip
    print("left", orjson.dumps(found).decode(), flush=True)


def main(folder: Path, dtype: str) -> None:
    """Has no threads, or it could not fork."""
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            print(os.getpid(), flush=True)
            try:
                live(folder, dtype)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print("over", status, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
