"""A worker in a process of its own, which never outlives the demo.

It stands in a session of its own: Ctrl-C reaches the demo alone, which stops it when it has answered what is due.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamproc.errors import StreamprocError, Unavailable

READY_S = 180.0  # a large model takes its time
STOP_S = 10.0
POLL_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# -P: what lies in the current folder is not imported
COMMAND = (sys.executable, "-P", "-m", "streamproc", "run", "--json", "--config")


class WorkerProcess:
    """`streamproc run` with a config file; starts at once, `close` may be called at any time."""

    def __init__(self, config_file: Path, log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                [*COMMAND, str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=own_environment(os.environ),
                start_new_session=True,
            )

    def await_ready(self, timeout_s: float = READY_S) -> str:
        """Wait until it serves -> what it says of itself. Raises Unavailable."""
        deadline_s = time.monotonic() + timeout_s
        while (line := self._ready_line()) is None:
            self.check()
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the worker was not ready in {timeout_s:.0f} s; see {self.log_file}")
            time.sleep(POLL_S)
        return line

    def check(self) -> None:
        """Raises Unavailable where it has ended."""
        code = self._process.poll()
        if code is not None:
            said = self._lines()
            why = said[-1].removeprefix("streamproc: ") if said else "it said nothing"
            raise Unavailable(f"the worker ended with {code}: {why} (log: {self.log_file})")

    def finish(self) -> dict[str, Any]:
        """SIGTERM, and wait -> what it has done. Raises StreamprocError where it does not leave in time and with 0."""
        self.check()
        with uninterrupted():
            self._process.terminate()
            try:
                said, _ = self._process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self.close()
                raise StreamprocError(
                    f"the worker did not stop within {STOP_S:.0f} s and was killed; see {self.log_file}"
                ) from None
        if self._process.returncode:
            self.check()
        done: dict[str, Any] = json.loads(said.splitlines()[-1])
        return done

    def close(self) -> None:
        """End it, by force if it must be; its offsets stay as they were committed."""
        with uninterrupted():
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _lines(self) -> list[str]:
        return self.log_file.read_text(errors="replace").splitlines()

    def _ready_line(self) -> str | None:
        ready = (line for line in self._lines() if line.startswith("worker ") and " in group " in line)
        return next(ready, None)


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings: the config file holds them already, and would lose against them."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("STREAMPROC_") or name == "STREAMPROC_STATE_DIR"
    }


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and its like for a bounded wait, so that nothing is left behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
