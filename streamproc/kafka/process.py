"""Processes that outlive the command that starts them, known by their pid and by a word of their command line.

A pid alone proves nothing: it may belong to somebody else by now. So a process is ours only while its command line
holds the marker that we started it with.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# The shell leaves at once, so the process is nobody's child here: it survives us, and we need not wait for it.
DETACH = '"$@" </dev/null >>"$0" 2>&1 & echo $!'

POLL_S = 0.05


def spawn_detached(command: Sequence[str], output: Path) -> int:
    """Start a command in a session of its own, in the folder of its output file -> its pid."""
    shell = subprocess.run(
        ["/bin/sh", "-c", DETACH, str(output), *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=output.parent,
        env=os.environ | {"LC_ALL": "C.UTF-8"},  # Java reads file names by the locale
        start_new_session=True,
    )
    return int(shell.stdout)


def is_running(pid: int, marker: str) -> bool:
    """Whether the process lives, is no zombie, and has the marker among its arguments."""
    return marker in command_line(pid).split("\0")


def command_line(pid: int) -> str:
    """The arguments of a process, each ended by a NUL; empty where there is none."""
    if not Path("/proc/self").exists():
        shown = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return shown.stdout.strip().replace(" ", "\0")
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def terminate(pid: int, marker: str, grace_s: float) -> bool:
    """SIGTERM, and SIGKILL after `grace_s` seconds -> whether it left by itself."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not is_running(pid, marker):
            return True
        os.kill(pid, number)
        if wait_until(lambda: not is_running(pid, marker), wait_s):
            return number == signal.SIGTERM
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True
